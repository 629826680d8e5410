"""`write` and `open_writer`: movies to files, frame by frame, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np

from ..drafts import draft_of, is_taken
from ..errors import ShineError
from ..movie import Movie
from .arrays import is_zarr
from .folder import is_pattern, matching_files
from .formats import SINKS
from .raw import human_size
from .reading import READABLE

__all__ = ["WRITABLE", "MovieWriter", "keep_source", "open_writer", "write"]

WRITABLE = tuple(SINKS)
DType = Literal["float32", "same"]
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Sink(Protocol):
    """One file being written, of a known shape and type."""

    def append(self, frame: np.ndarray) -> None: ...
    def close(self, *, complete: bool) -> None: ...


def write(
    movie: Movie,
    path: str | Path,
    *,
    dtype: DType = "float32",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a movie, frame by frame; memory does not grow with its length.

    Parameters
    ----------
    movie
        The movie. Its calibration, dose, intensity unit and history are kept as far as the
        format can hold them.
    path
        The file; its suffix chooses the format: ``.tif``/``.tiff`` (ImageJ, BigTIFF past 4 GB),
        ``.mrc``/``.mrcs``, ``.zarr`` (OME-Zarr 0.5), ``.npy`` (pixel values only) or ``.hspy``.
    dtype
        ``"float32"``, or ``"same"`` for the movie's own type (integers are rounded and clipped).
    overwrite
        Whether an existing file may be replaced.
    progress
        Called as ``progress(frames_done, frames_in_all)`` after each frame.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ShineError
        See `open_writer`.
    """
    with open_writer(path, movie, dtype=dtype, overwrite=overwrite) as writer:
        for done, frame in enumerate(movie.frames(), start=1):
            writer.append(frame)
            if progress is not None:
                progress(done, len(movie))
    return writer.path


def open_writer(
    path: str | Path,
    like: Movie,
    *,
    frames: int | None = None,
    dtype: DType = "float32",
    overwrite: bool = False,
) -> MovieWriter:
    """Return a writer, to be used in a ``with`` block, that takes a movie frame by frame.

    The file appears under its name when the block is left without an error, and only then; until
    then it grows under a temporary name in the same folder, which is removed on any error.

    Parameters
    ----------
    path
        The file; see `write` for the formats.
    like
        The movie whose frame size, calibration and history the file takes over.
    frames
        How many frames will come; as many as ``like`` has by default.
    dtype
        ``"float32"``, or ``"same"`` for ``like.dtype``: integers are then rounded and clipped to
        its range, and ``writer.clipped`` counts the pixels that were clipped.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    ShineError
        If the suffix is unknown, the folder is missing, the file exists, the disk has no room,
        or the format cannot hold the type.
    """
    n = len(like) if frames is None else frames
    return MovieWriter(Path(path).expanduser(), like, n, dtype, overwrite)


class MovieWriter:
    """A movie being written; see `open_writer`.

    Attributes
    ----------
    path
        The file that will be there in the end.
    shape
        ``(t, y, x)`` of that file.
    dtype
        Type of its pixel values.
    clipped
        Number of pixels so far that did not fit an integer ``dtype`` and were clipped to it.
    """

    def __init__(self, path: Path, like: Movie, frames: int, dtype: DType, overwrite: bool) -> None:
        suffix = path.suffix.lower()
        if suffix not in SINKS:
            raise ShineError(
                f"{path}: cannot write {suffix or 'a file without a suffix'}. Choose one of "
                f"{', '.join(WRITABLE)}."
            )
        if dtype not in ("float32", "same"):
            raise ShineError(f'dtype must be "float32" or "same", not {dtype!r}.')
        if frames < 1:
            raise ShineError(f"{path}: a movie has at least one frame, not {frames}.")
        if not path.parent.is_dir():
            raise ShineError(f"{path}: the folder {path.parent} does not exist; create it first.")
        self.path = path
        self.shape = (frames, like.shape[1], like.shape[2])
        self.dtype = np.dtype("f4") if dtype == "float32" else like.dtype.newbyteorder("=")
        if self.dtype.kind == "f" and self.dtype.itemsize > 8:
            raise ShineError(
                f"{path}: other programs cannot read {self.dtype} values; write float32, without "
                "--dtype same."
            )
        self.clipped = 0
        self._overwrite = overwrite
        self._refuse_existing()
        self._require_space()
        self._like = like
        self._done = 0
        self._temporary = draft_of(path)
        self._sink: Sink | None = None

    def __enter__(self) -> Self:
        sink = SINKS[self.path.suffix.lower()]
        try:
            self._sink = sink(self._temporary, self._like, self.shape, self.dtype)
        except BaseException as error:
            self._remove_temporary()
            raise self._explained(error) from None
        return self

    def append(self, frame: np.ndarray) -> None:
        """Write the next ``(y, x)`` frame.

        Raises
        ------
        ShineError
            If the frame has another size than the movie, there are more frames than announced,
            or the disk is full.
        """
        if self._sink is None:
            raise ShineError(f"{self.path}: the writer is not open; use it in a with block.")
        if self._done == self.shape[0]:
            raise ShineError(f"{self.path}: only {self.shape[0]} frames were announced.")
        frame = np.asarray(frame)
        if frame.shape != self.shape[1:]:
            raise ShineError(
                f"{self.path}: frame {self._done} has the shape {frame.shape}, the movie "
                f"{self.shape[1:]}."
            )
        try:
            self._sink.append(np.ascontiguousarray(self._converted(frame)))
        except OSError as error:
            raise self._explained(error) from None
        self._done += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sink, self._sink = self._sink, None
        complete = kind is None and self._done == self.shape[0]
        try:
            if sink is not None:
                with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
                    sink.close(complete=complete)
            if complete:
                self._publish()
        except OSError as problem:
            raise self._explained(problem) from None
        finally:
            self._remove_temporary()
        if kind is None and not complete:
            raise ShineError(
                f"{self.path}: {self._done} of {self.shape[0]} frames came; nothing was written."
            )

    def _converted(self, frame: np.ndarray) -> np.ndarray:
        if frame.dtype == self.dtype:
            return frame
        if self.dtype.kind == "f":
            return frame.astype(self.dtype)
        out, clipped = _to_integers(frame, self.dtype)
        self.clipped += clipped
        return out

    def _refuse_existing(self) -> None:
        if is_taken(self.path) and not self._overwrite:
            raise ShineError(
                f"{self.path}: exists already. Choose another name, or --overwrite to replace it."
            )
        folder = self.path.is_dir() and not self.path.is_symlink()
        if folder and not (self.path.suffix.lower() == ".zarr" and is_zarr(self.path)):
            raise ShineError(
                f"{self.path}: a folder has this name, and is not replaced. Choose another name."
            )

    def _require_space(self) -> None:
        needed = int(np.prod(self.shape)) * self.dtype.itemsize + 4096 + 512 * self.shape[0]
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise ShineError(
                f"{self.path}: the disk is too full: {human_size(needed)} are needed, "
                f"{human_size(free)} are free in {self.path.parent}."
            )

    def _explained(self, error: BaseException) -> BaseException:
        # HDF5 tells the reason in words only.
        if isinstance(error, OSError) and (
            error.errno in _DISK_FULL or any(f"errno = {n}," in str(error) for n in _DISK_FULL)
        ):
            needed = int(np.prod(self.shape)) * self.dtype.itemsize
            return ShineError(
                f"{self.path}: the disk filled up while writing "
                f"({error.strerror or 'no space left'}); the movie needs {human_size(needed)}. "
                "The unfinished file was removed."
            )
        if isinstance(error, ShineError):  # a sink knows only the temporary name
            return ShineError(str(error).replace(str(self._temporary), str(self.path)))
        if isinstance(error, OSError):
            return ShineError(f"{self.path}: cannot be written ({error.strerror or error}).")
        return error

    def _publish(self) -> None:
        self._refuse_existing()
        old = None
        if self.path.is_dir() and not self.path.is_symlink():
            # A folder cannot be replaced in one step: move it aside, and back if that fails.
            old = self._temporary.with_name(self._temporary.name + ".old")
            os.replace(self.path, old)
        try:
            os.replace(self._temporary, self.path)
        except BaseException:
            if old is not None:
                os.replace(old, self.path)
            raise
        if old is not None:
            shutil.rmtree(old)

    def _remove_temporary(self) -> None:
        if self._temporary.is_dir():
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)


def keep_source(movie: Movie, results: Sequence[Path]) -> None:
    """Refuse to write a result over the movie that it is made from, or over another result.

    Not even where replacing files was asked for.

    Raises
    ------
    ShineError
        If a result is part of the movie or holds it, or has the name of another result.
    """
    where = [path.resolve() for path in results]
    for path, place in zip(results, where, strict=True):
        if where.count(place) > 1:
            raise ShineError(f"{path}: two results have this name; give each its own.")
    source = movie.source
    if source is None:
        return
    kept = [source, *source.resolve().parents]  # a store is replaced with every array in it
    if is_pattern(source) or (source.is_dir() and not is_zarr(source)):
        try:
            kept += matching_files(source, READABLE)
        except ShineError:  # files of other kinds have come since it was read
            kept += (source if source.is_dir() else source.parent).iterdir()
    for path, place in zip(results, where, strict=True):
        inside = is_zarr(source) and any(_same(above, source) for above in place.parents)
        if inside or any(_same(path, one) for one in kept):
            raise ShineError(
                f"{path} is part of the movie itself, or holds it: give the result another name."
            )


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def _to_integers(frame: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, int]:
    """Return a frame rounded and clipped to an integer type, and how many pixels were clipped.

    NaN, which has no integer, becomes 0 (or the type's lowest value) and counts as clipped.
    """
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if frame.dtype.kind == "f":
        values = np.rint(frame.astype(np.float64))
        # Not ``<= high``: 2**63 - 1 is no float64, and would let 2**63 through.
        over, under = values >= float(high) + 1, values < low
        lost = over | under | np.isnan(values)
    else:
        values = frame
        over, under = values > high, values < low
        lost = over | under
    clipped = int(np.count_nonzero(lost))
    if clipped == 0:
        return values.astype(dtype), 0
    out = np.where(lost, np.zeros((), values.dtype), values).astype(dtype)
    out[over], out[under] = high, low
    return out, clipped
