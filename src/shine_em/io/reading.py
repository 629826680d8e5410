"""`read`: any movie file, folder or pattern to a lazy `Movie`; `open_movie`: a part of it."""

from __future__ import annotations

from pathlib import Path

from ..errors import ShineError
from ..movie import Movie
from .arrays import is_zarr, read_npy, read_zarr
from .folder import is_pattern, join_frames, matching_files
from .mrc import read_mrc
from .rosetta import READERS, read_vendor
from .ser import read_emi, read_ser
from .tiff import read_tiff

__all__ = ["READABLE", "open_movie", "read"]

_TIFF = (".tif", ".tiff", ".btf", ".tf8")
_MRC = (".mrc", ".mrcs", ".st", ".rec", ".ali")
READABLE = (*_TIFF, *_MRC, ".npy", ".zarr", *READERS, ".ser", ".emi")


def read(path: str | Path, *, signal: str | int | None = None, signed: bool | None = None) -> Movie:
    """Read a movie lazily: nothing but its header is read until a frame is asked for.

    Parameters
    ----------
    path
        A file (TIFF, MRC, npy, zarr, ser/emi; dm3/dm4, emd and hspy with the extra ``formats``),
        a folder of single frames (nested ones such as ``Hour_00/Minute_00/Second_00`` too), or a
        pattern such as ``"run1/*.tif"``; frames are put in natural order, 2 before 10.
    signal
        The detector, data set or channel to read where a file holds several, by name or number.
    signed
        Whether the bytes of an MRC file of mode 0 are signed; None follows the file.

    Returns
    -------
    Movie
        With pixel size, frame time, units, dose and metadata as far as the file knows them.

    Raises
    ------
    ShineError
        If there is no such file, it is damaged or of an unknown format, or holds no movie of
        real grey values; the message says what it holds and what to do.
    """
    path = Path(path).expanduser()
    try:
        path.exists()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise ShineError(f"{path}: cannot be opened ({error.strerror}).") from None

    def read_one(file: Path) -> Movie:
        return _read_file(file, signal, signed)

    if is_pattern(path):
        return join_frames(path, matching_files(path, READABLE), read_one)
    if path.is_dir() and not is_zarr(path):
        if path.suffix.lower() == ".zarr":
            raise ShineError(f"{path}: not a zarr store (it has no zarr.json, .zarray or .zgroup).")
        frame_suffixes = [suffix for suffix in READABLE if suffix not in (".zarr", ".emi")]
        return join_frames(path, matching_files(path, frame_suffixes), read_one)
    return read_one(path)


def open_movie(
    path: str | Path,
    *,
    signal: str | int | None = None,
    signed: bool | None = None,
    frames: slice | None = None,
    crop: tuple[slice, slice] | None = None,
    pixel_size_nm: float | None = None,
    frame_time_s: float | None = None,
) -> Movie:
    """Read a movie, correct its calibration and take a part of it (in this order).

    Parameters
    ----------
    path, signal, signed
        See `read`.
    frames, crop
        See `Movie.select`; None takes all.
    pixel_size_nm, frame_time_s
        Replace what the file says, nm and s; None keeps it.

    Returns
    -------
    Movie
        Lazy: no frame is read.

    Raises
    ------
    ShineError
        If the file cannot be read, a calibration is not positive, or nothing is left to take.
    """
    movie = read(path, signal=signal, signed=signed)
    movie = movie.calibrated(pixel_size_nm=pixel_size_nm, frame_time_s=frame_time_s)
    return movie.select(frames, crop) if frames or crop else movie


def _read_file(path: Path, signal: str | int | None, signed: bool | None) -> Movie:
    if not path.exists():
        raise ShineError(f"{path}: there is no such file or folder.")
    suffix = path.suffix.lower()
    if suffix in _MRC:
        if signal is not None:
            raise ShineError(f"{path}: an MRC file holds one signal; leave --signal out.")
        return read_mrc(path, signed=signed)
    if signed is not None:
        raise ShineError(f"{path}: --signed speaks of MRC files (mode 0), not of {suffix} files.")
    if path.is_dir() and is_zarr(path):
        return read_zarr(path, signal=signal)
    if suffix in _TIFF:
        return read_tiff(path, signal=signal)
    if suffix == ".emi":
        return read_emi(path, signal=signal)
    if suffix in (".npy", ".ser"):
        if signal is not None:
            raise ShineError(f"{path}: a {suffix} file holds one signal; leave --signal out.")
        return read_npy(path) if suffix == ".npy" else read_ser(path)
    if suffix in READERS:
        return read_vendor(path, signal=signal)
    raise ShineError(
        f"{path}: unknown format {suffix or '(no suffix)'}. Known: {', '.join(READABLE)}; or a "
        "folder of such frames."
    )
