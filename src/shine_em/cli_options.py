"""What several commands share: options, each described once, and opening the input."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from .movie import Movie

_IMPORTED = time.monotonic()

MOVIE = Group("Movie", help="What to read, and how.", sort_key=1)
HOW = Group("Denoising", sort_key=2)
RESULTS = Group("Results", sort_key=3)

File = Annotated[
    Path, Parameter(help="Movie file, folder of frames, or a pattern in quotes ('run_*.tif').")
]
Signal = Annotated[
    str | None,
    Parameter("--signal", group=MOVIE, help="Detector or data set, where a file holds several."),
]
Signed = Annotated[
    bool | None,
    Parameter("--signed", group=MOVIE, help="Whether 8-bit MRC values are signed."),
]
Frames = Annotated[
    str | None, Parameter("--frames", group=MOVIE, help="Take frames `a:b:step` (b not included).")
]
Crop = Annotated[
    str | None, Parameter("--crop", group=MOVIE, help="Take rows and columns `y0:y1,x0:x1`.")
]
PixelSize = Annotated[
    float | None, Parameter("--pixel-size", group=MOVIE, help="Pixel size in nm, if wrong.")
]
FrameTime = Annotated[
    float | None, Parameter("--frame-time", group=MOVIE, help="Time per frame in s, if wrong.")
]
Budget = Annotated[
    str | None,
    Parameter(
        "--time-budget",
        group=HOW,
        help="Wall time of the whole job, as `60s` or `5min` (default: 4min).",
    ),
]
Steps = Annotated[
    int | None,
    Parameter("--steps", group=HOW, help="Train exactly so many steps (for exact repeats)."),
]
Preset = Annotated[
    Literal["lean", "paper"],
    Parameter(
        "--preset", group=HOW, help="`paper`: the published network and recipe (hours on a GPU)."
    ),
]
HoleText = Annotated[
    str | None,
    Parameter(
        "--hole", group=HOW, help="Blind spot, rows x columns, as `3x3` (default: measured)."
    ),
]
WindowFrames = Annotated[
    int | None,
    Parameter(
        "--window", group=HOW,
        help="Frames seen at a time, odd (default: 5, or 9 where the noise buries the picture).",
    ),
]  # fmt: skip
Ensemble = Annotated[
    bool,
    Parameter(
        "--ensemble",
        group=HOW,
        help="Average over several sizes of the blind spot, and correct what that loses in "
        "sharpness; --no-ensemble keeps to one size, strictly blind.",
    ),
]
Seed = Annotated[int, Parameter("--seed", group=HOW, help="Seed of everything random.")]
Device = Annotated[
    str, Parameter("--device", group=HOW, help="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    Parameter("--precision", group=HOW, help="`auto` takes the fastest that the device has."),
]
FineTune = Annotated[
    bool,
    Parameter(
        "--fine-tune",
        group=HOW,
        negative="",
        help="Train the `--model` further on this movie (by default for a fifth of the usual "
        "time), instead of using it as it is.",
    ),
]
FromScratch = Annotated[
    bool,
    Parameter(
        "--from-scratch",
        group=HOW,
        negative="",
        help="Begin training with random weights, instead of those taught on simulated movies that "
        "shine-em brings along (which small movies do without).",
    ),
]
Register = Annotated[
    Literal["auto", "always", "never"],
    Parameter(
        "--register",
        group=HOW,
        help="Displace neighbouring frames by the scene's drift, in whole pixels (`auto`: where "
        "it helps).",
    ),
]
Student = Annotated[
    Literal["auto", "always", "never"],
    Parameter(
        "--student",
        group=HOW,
        help="Distil the ensemble into a network that denoises in one fast pass (`auto`: where the "
        "time budget has no room for the ensemble); used only if its estimated error is no larger.",
    ),
]
Uncertainty = Annotated[
    bool,
    Parameter(
        "--uncertainty",
        group=RESULTS,
        negative="",
        help="Also write the standard error of every pixel (denoising takes twice as long).",
    ),
]
Overwrite = Annotated[
    bool, Parameter("--overwrite", group=RESULTS, negative="", help="Replace existing results.")
]
Quiet = Annotated[
    bool, Parameter(["--quiet", "-q"], group=RESULTS, negative="", help="Show only the results.")
]


def named_after(file: Path) -> Path:
    """Return what results are named after: the file, or a pattern's folder."""
    from .io.folder import is_pattern, split_pattern

    file = file.expanduser()
    if is_pattern(file):
        file, _ = split_pattern(file)
        if not file.parts:
            return Path.cwd() / "movie"
    path = Path(os.path.normpath(file))
    return path if path.name.strip(".") else path.resolve()


def open_input(
    file: Path,
    signal: str | None,
    signed: bool | None,
    frames: str | None,
    crop: str | None,
    pixel_size: float | None,
    frame_time: float | None,
) -> Movie:
    """Open a movie as the options of the group `MOVIE` say.

    Raises
    ------
    ShineError
        If the file cannot be read, or an option makes no sense.
    """
    from .io import open_movie, parse_crop, parse_frames

    return open_movie(
        file,
        signal=int(signal) if signal is not None and signal.isdecimal() else signal,
        signed=signed,
        frames=None if frames is None else parse_frames(frames),
        crop=None if crop is None else parse_crop(crop),
        pixel_size_nm=pixel_size,
        frame_time_s=frame_time,
    )


def process_start() -> float:
    """Return the `time.monotonic` at which this process began: a budget counts from there.

    Where the system does not tell, it is when this module was imported.
    """
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        age = uptime - float(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    return now - age if 0 <= age < 600 else _IMPORTED
