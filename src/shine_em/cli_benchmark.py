"""``shine benchmark``: movies × methods. A thin caller of `shine_em.benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from rich.console import Console

from .baselines import METHODS
from .cli_options import Quiet
from .errors import ShineError

__all__ = ["benchmark"]

WHAT = Group("What to compare", sort_key=1)
HOW = Group("How", sort_key=2)

# Parameters of `shine_em.benchmark.run` that its errors name, and those of a scene.
OPTIONS = {
    "time_budget_s": "--time-budget", "limit_s": "--limit", "frames_in": "--frames-in",
    "seeds": "--seeds", "frames": "--frames", "size": "--size", "seed": "--seed",
}  # fmt: skip
QUICK = {"frames": 24, "size": 128}
QUICK_BUDGET_S = 10.0


def benchmark(
    *movies: Annotated[
        str,
        Parameter(
            help="Folders that `shine simulate` wrote, names of scenes to simulate now, or movies "
            "without a truth: files, folders of frames, or patterns in quotes."
        ),
    ],
    output: Annotated[
        Path, Parameter(["--output", "-o"], help="Folder; an earlier benchmark in it goes on.")
    ],
    methods: Annotated[
        str,
        Parameter(
            group=WHAT,
            help=f"Names with commas, or `all`: {', '.join(METHODS)}. Also `default`, all that "
            "`shine denoise` does, and `supervised`, the network taught the truth itself: what it "
            "can do. Each with a time budget of its own if you like: `default@60s,default@5min`.",
        ),
    ] = "all",
    time_budget: Annotated[
        str | None,
        Parameter(
            group=HOW,
            help="Training time of methods named without one, as `60s`, or `none` for their own "
            "schedules; denoising comes on top (default: 60s).",
        ),
    ] = None,
    hole: Annotated[
        str | None,
        Parameter(group=HOW, help="Blind spot, as `3x3`, where the method does not fix it."),
    ] = None,
    frames: Annotated[
        int | None, Parameter(group=WHAT, help="Frames of scenes simulated now (default: 100).")
    ] = None,
    size: Annotated[
        int | None, Parameter(group=WHAT, help="Their width and height, px (default: 512).")
    ] = None,
    seed: Annotated[int, Parameter(group=HOW, help="Seed of everything random.")] = 0,
    seeds: Annotated[
        int, Parameter(group=HOW, help="Train with so many seeds and give the spread.")
    ] = 1,
    frames_in: Annotated[
        str | None,
        Parameter(group=WHAT, help="Also compare numbers of input frames, as `1,3,5,7` (fig. S8)."),
    ] = None,
    halves: Annotated[
        bool,
        Parameter(
            group=WHAT, negative="",
            help="Movies without truth: also the SNR of even against odd frames (three times the "
            "work).",
        ),
    ] = False,
    quick: Annotated[
        bool,
        Parameter(
            group=WHAT, negative="",
            help="24 frames of 128×128 (au-growth where no movie is given), 10 s of training each: "
            "shows that everything runs, not what is best.",
        ),
    ] = False,
    device: Annotated[
        str, Parameter(group=HOW, help="`cpu`, `cuda`, `mps` or `auto`.")
    ] = "auto",
    limit: Annotated[
        str, Parameter(group=HOW, help="A method that takes longer is stopped and has failed.")
    ] = "2h",
    figures: Annotated[bool, Parameter(group=HOW, help="Draw the panels.")] = True,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare methods on movies: PSNR, SSIM, time, memory, and the paper's panels.

    What is finished stays in the folder and is not done again, unless a setting, the movie or the
    version has changed.
    """
    from .benchmark import run
    from .benchmark_methods import choose
    from .cli_simulate import named_by_option
    from .display import Display
    from .events import Event
    from .planning import parse_duration, parse_hole
    from .simulate import SCENES

    console = Console(highlight=False)
    budget: float | None = QUICK_BUDGET_S if quick else 60.0
    if time_budget is not None:
        plain = time_budget.strip().lower()
        budget = None if plain == "none" else parse_duration(time_budget)
    if not movies and not quick:
        raise ShineError(f"Give movies, or scenes: {', '.join(SCENES)}; or --quick.")
    endless = [
        c.title for c in choose(methods, budget) if c.method.needs_training and c.budget_s is None
    ]
    if endless and not quiet:
        console.print(
            f"On their own schedules: {', '.join(endless)}. Nothing is kept of what takes longer "
            f"than --limit {limit}.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    with Display(console, quiet=quiet) as display:

        def show(what: str, stage: str, fraction: float) -> None:
            display(Event(what, round(100 * fraction), 100, stage))

        try:
            found = run(
                movies or ["au-growth"], methods, out=output, time_budget_s=budget,
                hole=None if hole is None else parse_hole(hole),
                frames=(QUICK["frames"] if quick else 100) if frames is None else frames,
                size=(QUICK["size"] if quick else 512) if size is None else size,
                seed=seed, seeds=seeds, frames_in=_numbers(frames_in),
                halves=halves, device=device, limit_s=parse_duration(limit), figures=figures,
                progress=show,
            )  # fmt: skip
        except ShineError as error:
            raise named_by_option(error, OPTIONS) from error
    console.print(found.markdown(), markup=False, soft_wrap=True)
    for path in found.files:
        console.print(f"  {path}", markup=False, soft_wrap=True)


def _numbers(text: str | None) -> tuple[int, ...]:
    parts = (text or "").replace(" ", "").split(",")
    if any(p and not p.isdecimal() for p in parts):
        raise ShineError(f"--frames-in {text!r}: write odd numbers with commas, as in 1,3,5,7.")
    return tuple(int(p) for p in parts if p)
