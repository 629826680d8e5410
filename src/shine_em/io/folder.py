"""Movies kept as one file per frame: folders, globs, and Gatan's Hour_00/Minute_00/Second_00."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ShineError
from ..movie import Axis, Frames, LazyFrames, Movie

__all__ = ["is_pattern", "join_frames", "matching_files", "natural_key", "split_pattern"]


_REMEMBERED = 4096
_IN_SITU = re.compile(r"Hour_\d+/Minute_\d+/Second_\d+/")


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which ``frame_2`` comes before ``frame_10``, also through nested folders."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p]


def is_pattern(path: Path) -> bool:
    """Whether a path that does not exist is a glob pattern."""
    return not path.exists() and glob.has_magic(split_pattern(path)[1])


def split_pattern(path: Path) -> tuple[Path, str]:
    """Return the folder in which a pattern searches, and the pattern.

    What exists is taken by its name, brackets and all: ``run [5 kV]`` and ``*.tif``.
    """
    folder = next((one for one in path.parents if one.is_dir()), Path())
    return folder, str(path.relative_to(folder))


def matching_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the frames of a folder (nested ones included) or a pattern, in natural order.

    Raises
    ------
    ShineError
        If there is none, or the folder holds images of several formats.
    """
    if is_pattern(path):
        folder, pattern = split_pattern(path)
        found = [folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True)]
        files = [file for file in found if file.is_file()]
        if not files:
            raise ShineError(f"{path}: no file matches this pattern.")
        return sorted(files, key=natural_key)
    # Frames in the folder itself come first; only where there are none are its folders searched.
    for found_here in (path.iterdir(), path.rglob("*")):
        files = [file for file in found_here if _is_frame(file, suffixes)]
        if files:
            break
    if not files:
        raise ShineError(
            f"{path}: the folder holds no frames (looked for {', '.join(sorted(suffixes))})."
        )
    kinds = Counter(file.suffix.lower() for file in files)
    if len(kinds) > 1:
        listing = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        raise ShineError(
            f"{path}: the folder mixes formats ({listing}). Name those of the movie with a "
            f"pattern, for example '{path}/*{kinds.most_common(1)[0][0]}'."
        )
    return sorted(files, key=lambda file: natural_key(file.relative_to(path)))


def _is_frame(file: Path, suffixes: Sequence[str]) -> bool:
    # Names with a leading dot are those of half-written files and of other systems' litter.
    return file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()


def join_frames(path: Path, files: Sequence[Path], read_one: Callable[[Path], Movie]) -> Movie:
    """Return single-frame files as one movie, each opened when its frame is asked for.

    Parameters
    ----------
    path
        The folder or pattern, for the movie's name.
    files
        One file per frame, in order.
    read_one
        Reads one file.

    Raises
    ------
    ShineError
        If a file holds several frames, or differs in frame size or type from the first.
    """
    first = read_one(files[0])
    if len(first) > 1 and len(files) > 1:
        raise ShineError(
            f"{files[0]}: holds {len(first)} frames. A folder is read as one movie of single "
            "frames; give movies of many frames one at a time."
        )
    if len(files) == 1:
        return first
    expected, size = (first.shape, first.dtype), files[0].stat().st_size
    # Frames of equal size on disk are alike; the others are opened to find the odd one now, not
    # after an hour of training. Every frame is checked again when it is read.
    for file in files[1:]:
        if file.stat().st_size != size:
            _check(file, read_one(file), files[0], expected)

    kept: dict[int, Frames] = {}

    def read_frame(i: int) -> np.ndarray:
        if i in kept:
            return np.asarray(kept[i][0])
        movie = read_one(files[i])
        _check(files[i], movie, files[0], expected)
        # Parsing a header can cost more than reading a frame, so remember some; but not those of
        # HDF5 and zarr, which hold their files open.
        if len(kept) < _REMEMBERED and files[i].suffix.lower() not in (".emd", ".hspy"):
            kept[i] = movie.data
        return movie.frame(0)

    history = [f"{len(files)} single frames, {files[0].name} to {files[-1].name}"]
    t, y, x = first.axes
    exposure = first.metadata.get("exposure_s")
    if t.unit is None and exposure and _IN_SITU.search(files[0].as_posix()):
        # Gatan's in situ cameras record without a pause: one exposure follows the other.
        t = Axis("t", "s", float(exposure))
        history.append("frame time taken from the camera's exposure time")
    name = path.parent.name if is_pattern(path) else path.name
    return replace(
        first,
        data=LazyFrames(read_frame, (len(files), *first.shape[1:]), first.dtype),
        name=name or "movie",
        source=path,
        axes=(t, y, x),
        history=tuple(history),
    )


def _check(
    file: Path, movie: Movie, first: Path, expected: tuple[tuple[int, ...], np.dtype]
) -> None:
    if (movie.shape, movie.dtype) != expected:
        n, height, width = movie.shape
        raise ShineError(
            f"{file}: holds {n}×{height}×{width} {movie.dtype}, but {first.name} holds "
            f"{'×'.join(map(str, expected[0]))} {expected[1]}; all frames must be alike."
        )
