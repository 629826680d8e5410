"""``shine dose``: how far dose and frame rate could drop. A thin caller of `shine_em.dose`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from rich.console import Console
from rich.markup import escape

from .cli_options import (
    HOW,
    RESULTS,
    Crop,
    Device,
    File,
    Frames,
    FrameTime,
    HoleText,
    Overwrite,
    PixelSize,
    Precision,
    Quiet,
    Seed,
    Signal,
    Signed,
    named_after,
    open_input,
    process_start,
)
from .dose_advice import Criterion
from .dose_thinning import Skipping
from .drafts import refuse_existing, write_whole
from .errors import ShineError

__all__ = ["dose"]

LEVELS = Group("Levels", help="What to compare with the movie as recorded.", sort_key=0)
ELECTRONS = Group("Electrons", help="Measured from the movie where not given.", sort_key=3)


def dose(
    file: File,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            ["--output", "-o"],
            group=RESULTS,
            help="Folder, or name of the figure (.png); the .json lies beside it.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    fractions: Annotated[
        str, Parameter("--fractions", group=LEVELS, help="Shares of the dose.")
    ] = "1,0.5,0.25,0.1",
    skip: Annotated[
        str | None,
        Parameter(
            "--skip",
            group=LEVELS,
            help="One of so many frames (default: 1,2,4, as far as six frames are left).",
        ),
    ] = None,
    skip_by: Annotated[
        Skipping,
        Parameter(
            "--skip-by",
            group=LEVELS,
            help="`drop` the frames between, or `sum` them, as a slower camera does.",
        ),
    ] = "drop",
    measure: Annotated[
        Criterion,
        Parameter(
            "--measure",
            group=LEVELS,
            help="What decides: `snr` of halves that share no frame, `frc` resolution, or number "
            "and diameter of `particles`.",
        ),
    ] = "snr",
    keep: Annotated[
        float | None,
        Parameter(
            "--keep",
            group=LEVELS,
            help="Share of it that must be left (default: 0.5 of the SNR as a ratio, that is 3 dB; "
            "0.8 of the resolution; 0.9 of the particles).",
        ),
    ] = None,
    gain: Annotated[
        float | None,
        Parameter("--gain", group=ELECTRONS, help="Noise variance per signal, movie units."),
    ] = None,
    dark: Annotated[
        float | None,
        Parameter("--dark", group=ELECTRONS, help="Pixel value without electrons, movie units."),
    ] = None,
    recorded: Annotated[
        float | None,
        Parameter(
            "--dose", group=ELECTRONS, help="Dose per frame in e⁻/Å², where the file has none."
        ),
    ] = None,
    time_budget: Annotated[
        str,
        Parameter("--time-budget", group=HOW, help="Wall time of the whole command, as `10min`."),
    ] = "10min",
    steps: Annotated[
        int | None,
        Parameter("--steps", group=HOW, help="Train exactly so many steps at each level."),
    ] = None,
    hole: HoleText = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    signal: Signal = None,
    signed: Signed = None,
    frames: Frames = None,
    crop: Crop = None,
    pixel_size: PixelSize = None,
    frame_time: FrameTime = None,
) -> None:
    """Say how far dose and frame rate could drop in the next session.

    Lower doses are made of the movie itself, by leaving out electrons, and lower frame rates by
    leaving out frames. Each is denoised by the ordinary job, and measured.
    """
    from dataclasses import replace

    from .display import Display
    from .dose import advise
    from .dose_figure import plot_dose
    from .files import make_folder
    from .job import Interrupted
    from .planning import Options, parse_duration, parse_hole

    console = Console(highlight=False)
    started = process_start()
    options = Options(
        steps=steps, hole=None if hole is None else parse_hole(hole), seed=seed, device=device,
        precision=precision,
    )  # fmt: skip
    budget = parse_duration(time_budget)
    shares = _numbers(fractions, "--fractions", float)
    skips = None if skip is None else _numbers(skip, "--skip", int)
    if recorded is not None and not 0 < recorded < float("inf"):
        raise ShineError(f"--dose must be positive, in e⁻/Å² per frame, not {recorded:g}.")
    figure, numbers = _places(named_after(file), output)
    if not overwrite:
        refuse_existing(figure, numbers)
    movie = open_input(file, signal, signed, frames, crop, pixel_size, frame_time)
    if recorded is not None:
        movie = replace(movie, dose_e_per_A2=recorded)
    make_folder(figure.parent)
    with Display(console, quiet=quiet) as display:
        try:
            advice = advise(
                movie, fractions=shares, skips=skips, skipping=skip_by, criterion=measure,
                keep=keep, time_budget=budget, options=options, gain=gain, dark=dark,
                started=started, progress=display,
            )  # fmt: skip
        except Interrupted:  # a level's half-trained model is of no use
            raise KeyboardInterrupt from None
    text = json.dumps(advice.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_whole(figure, lambda draft: plot_dose(advice).savefig(draft, dpi=110))
    write_whole(numbers, lambda draft: draft.write_text(text, encoding="utf-8"))
    console.print(advice.table(), markup=False, soft_wrap=True)
    for warning in (*advice.notes, *advice.levels[0].warnings):
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    for sentence in advice.sentences():
        console.print(f"[bold]{escape(sentence)}[/]", soft_wrap=True)
    console.print(f"Done in {time.monotonic() - started:.0f} s:")
    for path in (figure, numbers):
        console.print(f"  {path}", markup=False, soft_wrap=True)


def _places(source: Path, output: Path | None) -> tuple[Path, Path]:
    """Return where the figure and the numbers go."""
    whole = source.is_dir() and source.suffix.lower() != ".zarr"
    stem = source.name if whole else source.stem
    figure = source.with_name(f"{stem}_dose.png")
    if output is not None:
        if output.is_dir() or not output.suffix:
            figure = output / figure.name
        elif output.suffix.lower() == ".png":
            figure = output
        else:
            raise ShineError(f"{output}: the name of the figure ends in .png.")
    return figure, figure.with_suffix(".json")


def _numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        example = "1,0.5,0.25" if kind is float else "1,2,4"
        raise ShineError(f"{option} {text!r}: write numbers with commas, as {example}.") from None
