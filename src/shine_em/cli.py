"""The command line: ``shine denoise movie.dm4`` and its companions. Thin callers, no science."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal as signals
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from .cli_options import (
    HOW,
    RESULTS,
    Budget,
    Crop,
    Device,
    Ensemble,
    File,
    FineTune,
    Frames,
    FrameTime,
    FromScratch,
    HoleText,
    Overwrite,
    PixelSize,
    Precision,
    Preset,
    Quiet,
    Register,
    Seed,
    Signal,
    Signed,
    Steps,
    Student,
    Uncertainty,
    WindowFrames,
    named_after,
    open_input,
    process_start,
)
from .drafts import refuse_existing, write_whole
from .errors import ShineError

if TYPE_CHECKING:
    from .checkpoint import Model

# A laptop also runs a browser: threads that sleep while they wait lose far less to it than
# threads that spin, and nothing on an idle machine. It must be set before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

app = App(
    name="shine",
    help="Denoise electron-microscopy movies, trained on the movie itself.",
    help_epilogue=(
        "Example: `shine denoise movie.dm4` writes `movie_denoised.tif` and `movie_report.html`."
    ),
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says something
)
app.command(
    "shine_em.cli_simulate:app", name="simulate", help="Simulate movies whose truth is known."
)
app.command(
    "shine_em.cli_benchmark:benchmark",
    name="benchmark",
    help="Compare methods on movies: PSNR, SSIM, time, memory, and the paper's panels.",
    help_epilogue="Example: `shine benchmark au-growth --methods bm3d,n2v,lean -o bench`",
)
app.command(
    "shine_em.cli_dose:dose",
    name="dose",
    help="Say how far dose and frame rate could drop in the next session.",
    help_epilogue="Example: `shine dose movie.dm4 --measure frc --time-budget 10min`",
)


@app.command(help_epilogue="Example: `shine denoise movie.dm4 --time-budget 5min -o results/`")
def denoise(
    file: File,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            ["--output", "-o"],
            group=RESULTS,
            help="Folder, or name of the movie; its suffix chooses the format: .tif .mrc .zarr "
            ".npy .hspy.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "same"],
        Parameter("--dtype", group=RESULTS, help="`same`: the input's type, rounded and clipped."),
    ] = "float32",
    report: Annotated[
        bool, Parameter("--report", group=RESULTS, help="Write the HTML report.")
    ] = True,
    mp4: Annotated[
        bool,
        Parameter("--mp4", group=RESULTS, negative="", help="Also write a side-by-side video."),
    ] = False,
    keep_model: Annotated[
        bool,
        Parameter("--keep-model", group=RESULTS, negative="", help="Also write the trained model."),
    ] = False,
    uncertainty: Uncertainty = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    time_budget: Budget = None,
    steps: Steps = None,
    preset: Preset = "lean",
    hole: HoleText = None,
    window: WindowFrames = None,
    ensemble: Ensemble = True,
    register: Register = "auto",
    student: Student = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    model: Annotated[
        Path | None,
        Parameter("--model", group=HOW, help="Use this trained model as it is, do not train."),
    ] = None,
    fine_tune: FineTune = False,
    from_scratch: FromScratch = False,
    resume: Annotated[
        Path | None,
        Parameter("--resume", group=HOW, help="Go on training this interrupted model."),
    ] = None,
    signal: Signal = None,
    signed: Signed = None,
    frames: Frames = None,
    crop: Crop = None,
    pixel_size: PixelSize = None,
    frame_time: FrameTime = None,
) -> None:
    """Denoise a movie: measure its noise, train on it, write movie and report."""
    from .checkpoint import Model
    from .display import Display, print_summary
    from .files import Outputs, denoise_file, make_folder, save_interrupted
    from .job import Interrupted

    options = _options(
        preset=preset, time_budget=time_budget, steps=steps, hole=hole, frames=window,
        ensemble=ensemble, register=register, student=student, seed=seed, device=device,
        precision=precision, fine_tune=fine_tune, from_scratch=from_scratch,
    )  # fmt: skip
    if resume is not None and (model is not None or fine_tune):
        raise ShineError(
            "--resume goes on training an interrupted model of this movie, --model takes the model "
            "of another: give one."
        )
    if fine_tune and model is None:
        raise ShineError("--fine-tune trains a model further: say which one, with --model.")
    source = named_after(file)
    outputs = Outputs.beside(
        source, output=output, report=report, model=keep_model, video=mp4, uncertainty=uncertainty
    )
    if not overwrite:
        outputs.refuse_existing()
    trained = Model.load(model) if model else None
    unfinished = Model.load(resume, resuming=True) if resume else None
    movie = open_input(file, signal, signed, frames, crop, pixel_size, frame_time)
    if output is not None and not output.suffix:
        make_folder(output)
    started = process_start()
    with Display(console, quiet=quiet) as display:
        try:
            done = denoise_file(
                movie, outputs, options=options, model=trained, resume=unfinished, dtype=dtype,
                overwrite=overwrite, started=started, progress=display,
            )  # fmt: skip
        except Interrupted as stopped:
            path = save_interrupted(stopped, outputs)
            raise _Stopped(
                f"{stopped.why.capitalize()} after {stopped.model.state.step} steps. "
                f"The best model so far is {path}:\n"
                f"  finish training:  {_resuming(stopped.model, path)}\n"
                f"  use it as it is:  {_again('--model', path, '--time-budget', '--register')}",
                stopped.why,
            ) from None
    print_summary(console, done.result, outputs.all(), time.monotonic() - started)


@app.command(
    help_epilogue="Example: `shine train movie.dm4 --time-budget 30min -o movie.safetensors`"
)
def train(
    file: File,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(["--output", "-o"], group=RESULTS, help="Model file (.safetensors)."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    time_budget: Budget = None,
    steps: Steps = None,
    preset: Preset = "lean",
    hole: HoleText = None,
    window: WindowFrames = None,
    ensemble: Ensemble = True,
    register: Register = "auto",
    student: Student = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    from_scratch: FromScratch = False,
    resume: Annotated[
        Path | None,
        Parameter("--resume", group=HOW, help="Go on training this interrupted model."),
    ] = None,
    signal: Signal = None,
    signed: Signed = None,
    frames: Frames = None,
    crop: Crop = None,
    pixel_size: PixelSize = None,
    frame_time: FrameTime = None,
) -> None:
    """Train a model on a movie, to be used with `shine denoise --model`."""
    from .checkpoint import Model
    from .display import Display
    from .files import Outputs
    from .job import Interrupted, train_model

    options = _options(
        preset=preset, time_budget=time_budget, steps=steps, hole=hole, frames=window,
        ensemble=ensemble, register=register, student=student, seed=seed, device=device,
        precision=precision, from_scratch=from_scratch,
    )  # fmt: skip
    source = named_after(file)
    path = Outputs.beside(source, model=True).model or source
    if output is not None:
        path = output / path.name if output.is_dir() else output
    if path.suffix != ".safetensors":
        raise ShineError(f"{path}: a model's name ends in .safetensors.")
    if not overwrite:
        refuse_existing(path)
    if not path.parent.is_dir():
        raise ShineError(f"{path}: the folder {path.parent} does not exist; create it first.")
    unfinished = Model.load(resume, resuming=True) if resume else None
    movie = open_input(file, signal, signed, frames, crop, pixel_size, frame_time)
    with Display(console, quiet=quiet) as display:
        try:
            model, plan = train_model(
                movie, options=options, resume=unfinished, started=process_start(), progress=display
            )
        except Interrupted as stopped:
            stopped.model.save(path, overwrite=overwrite)
            again = _resuming(stopped.model, path) + ("" if overwrite else " --overwrite")
            raise _Stopped(
                f"{stopped.why.capitalize()} after {stopped.model.state.step} steps. "
                f"The best model so far is {path}; go on with:\n  {again}",
                stopped.why,
            ) from None
    model.save(path, overwrite=overwrite)
    for warning in plan.warnings:
        console.print(f"[yellow]![/] {_escape(warning)}", soft_wrap=True)
    state = model.state
    console.print(
        f"Trained {state.step} steps in {state.seconds:.0f} s; validation loss "
        f"{state.best_loss:.4f} at step {state.best_step}."
    )
    console.print(f"Model: {path}", markup=False, soft_wrap=True)


@app.command(help_epilogue="Example: `shine noise movie.dm4 --figure noise.png --json noise.json`")
def noise(
    file: File,
    /,
    *,
    figure: Annotated[
        Path | None,
        Parameter("--figure", group=RESULTS, help="Write the picture (.png, .svg, .pdf)."),
    ] = None,
    as_json: Annotated[
        Path | None, Parameter("--json", group=RESULTS, help="Write the numbers as JSON.")
    ] = None,
    overwrite: Overwrite = False,
    signal: Signal = None,
    signed: Signed = None,
    frames: Frames = None,
    crop: Crop = None,
) -> None:
    """Measure a movie's noise and recommend the blind spot (paper, Eq. 4)."""
    from .doctor import check
    from .io.writing import keep_source
    from .noise import format_table, noise_of

    outputs = [path for path in (figure, as_json) if path is not None]
    if not overwrite:
        refuse_existing(*outputs)
    for path in outputs:
        if not path.parent.is_dir():
            raise ShineError(f"{path}: the folder {path.parent} does not exist; create it first.")
    if figure is not None and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ShineError(f"{figure}: the picture's name ends in .png, .svg or .pdf.")
    movie = open_input(file, signal, signed, frames, crop, None, None)
    keep_source(movie, outputs)
    health = check(movie)
    stats = noise_of(movie, health)
    console.print(format_table(stats), markup=False, soft_wrap=True)
    if as_json is not None:
        text = json.dumps(stats.to_dict(), indent=2) + "\n"
        write_whole(as_json, lambda draft: draft.write_text(text, encoding="utf-8"))
        console.print(f"Numbers: {as_json}", markup=False, soft_wrap=True)
    if figure is not None:
        from .noise_figure import plot_noise

        write_whole(figure, lambda draft: plot_noise(stats).savefig(draft, dpi=150))
        console.print(f"Picture: {figure}", markup=False, soft_wrap=True)


@app.command(help_epilogue="Example: `shine info movie.dm4 --check`")
def info(
    file: File,
    /,
    *,
    check: Annotated[
        bool,
        Parameter("--check", negative="", help="Examine the pixels as well: the input doctor."),
    ] = False,
    signal: Signal = None,
    signed: Signed = None,
    frames: Frames = None,
    crop: Crop = None,
    pixel_size: PixelSize = None,
    frame_time: FrameTime = None,
) -> None:
    """Show what was understood of a file; with --check, what is wrong with it."""
    from .io import describe

    movie = open_input(file, signal, signed, frames, crop, pixel_size, frame_time)
    facts = describe(movie)
    width = max(map(len, facts))
    for label, value in facts.items():
        console.print(f"{label:<{width}}  {value}", markup=False, soft_wrap=True)
    if check:
        from .doctor import check as examine
        from .doctor import format_findings

        console.print()
        console.print(format_findings(examine(movie, thorough=True)), markup=False, soft_wrap=True)


@app.command(help_epilogue="Example: `shine demo -o demo`")
def demo(
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="Folder for everything.")] = Path(
        "demo"
    ),
    time_budget: Annotated[
        str, Parameter("--time-budget", help="Wall time for denoising, as `2min`.")
    ] = "2min",
    frames: Annotated[int, Parameter(help="Number of frames.")] = 60,
    size: Annotated[int, Parameter(help="Width and height, px.")] = 384,
    seed: Seed = 0,
) -> None:
    """Simulate a movie, denoise it, and compare with the truth. Results are replaced."""
    from .demo import run_demo
    from .display import Display
    from .job import Interrupted
    from .planning import parse_duration

    with Display(console) as display:
        try:
            shown = run_demo(
                output, budget_s=parse_duration(time_budget), frames=frames, size=size, seed=seed,
                simulating=display.count("simulating"), progress=display,
            )  # fmt: skip
        except Interrupted:  # nobody goes on with a demonstration's half-trained model
            raise KeyboardInterrupt from None
    for line in shown.lines():
        console.print(line, soft_wrap=True)


def _again(option: str, path: Path, *less: str) -> str:
    """Return the command that was given, ``less`` some options, with the interrupted model."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--steps", "--hole", "--model", "--resume", *less):
            if not value:
                next(words, None)
        elif name != "--fine-tune":
            kept.append(word)
    return shlex.join(["shine", *kept, option, str(path)])


def _resuming(model: Model, path: Path) -> str:
    """Return the command that was given, to be gone on with."""
    # Once the number of steps is fixed, the budget that it was made of has no meaning any more.
    fixed = model.state.settings.steps is not None
    return _again("--resume", path, *(("--time-budget",) if fixed else ()))


class _Stopped(Exception):
    """The end of a job, by Ctrl-C or for want of memory, that left something worth telling."""

    def __init__(self, words: str, why: str) -> None:
        super().__init__(words)
        self.code = 130 if why == "interrupted" else 2


def _options(*, time_budget: str | None, hole: str | None, **more: Any) -> Any:
    from .planning import Options, parse_duration, parse_hole

    return Options(
        time_budget=None if time_budget is None else parse_duration(time_budget),
        hole=None if hole is None else parse_hole(hole),
        **more,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes: 0 done, 2 bad input, 130 interrupted."""
    # Where the terminal or a log file knows no "→" (Windows), a "?" must do.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # A job that a cluster takes off the machine ends like one that was stopped with Ctrl-C.
    signals.signal(signals.SIGTERM, lambda *_: signals.raise_signal(signals.SIGINT))
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except ShineError as error:
        errors.print(f"[bold red]shine:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except CycloptsError as error:
        errors.print(f"[bold red]shine:[/] {_escape(str(error))} See shine --help.", soft_wrap=True)
        sys.exit(2)
    except OSError as error:  # a name too long, a folder that may not be looked into
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        errors.print(f"[bold red]shine:[/] {_escape(words)}", soft_wrap=True)
        sys.exit(2)
    except _Stopped as stopped:
        errors.print(_escape(str(stopped)), soft_wrap=True)
        sys.exit(stopped.code)
    except (MemoryError, RuntimeError) as error:
        # PyTorch's own class is told by its name: here it may not have been loaded.
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        errors.print(
            "[bold red]shine:[/] Out of memory. Take a part of the movie with --frames or --crop; "
            "if a graphics card ran out of it, try --device cpu.",
            soft_wrap=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("Interrupted; nothing was left half-written.")
        sys.exit(130)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
