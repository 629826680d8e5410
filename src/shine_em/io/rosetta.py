"""Microscope vendors' formats, read by RosettaSciIO: dm3, dm4, emd, ser/emi, hspy."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Axis, LazyFrames, Movie
from .arrays import array_frames
from .layout import Layout
from .raw import raw_frames, require_file
from .units import axis, clean_unit, plain

__all__ = ["READERS", "read_vendor", "rosettasciio"]

READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".ser": "tia",
    ".emi": "tia",
    ".hspy": "hspy",
}
_ENERGY = {"eV", "keV", "meV"}


def rosettasciio(module: str, path: Path) -> Any:
    """Import one of RosettaSciIO's modules, which is an optional dependency (GPL-3).

    Raises
    ------
    ShineError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"rsciio.{module}")
    except ImportError as error:
        raise ShineError(
            f"{path}: {path.suffix} files need RosettaSciIO ({error}). Install it with: "
            'pip install "shine-em[formats]"'
        ) from None


def read_vendor(path: Path, *, signal: str | int | None = None) -> Movie:
    """Read a movie from a vendor's format, one frame at a time.

    Parameters
    ----------
    path
        The file.
    signal
        The detector or data set to read where the file holds several: its title, or its number
        counted from 0.

    Raises
    ------
    ShineError
        If RosettaSciIO is missing or cannot read the file, or the file holds no movie.
    """
    reader = rosettasciio(READERS[path.suffix.lower()], path)
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signals = list(reader.file_reader(str(path), lazy=True))
    except (KeyboardInterrupt, ShineError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ShineError(
            f"{path}: not a readable {path.suffix} file; it may be damaged, truncated or of "
            f"another type ({reason})."
        ) from None
    found, note = _choose(path, signals, signal)
    return _movie(path, found, note)


def _title(found: Mapping[str, Any], number: int) -> str:
    return str(found["metadata"].get("General", {}).get("title") or f"signal {number}")


def _refusal(found: Mapping[str, Any]) -> str:
    """Say why a signal is no movie, or return an empty string."""
    data, axes = found["data"], found["axes"]
    units = [clean_unit(one.get("units")) for one in axes]
    shape = "×".join(str(int(n)) for n in data.shape)
    if np.dtype(data.dtype).names is not None:
        return f"a colour picture ({shape})"
    if np.dtype(data.dtype).kind == "c":
        return f"complex numbers ({shape})"
    signal_axes = [one for one in axes if not one.get("navigate", False)]
    if any(unit in _ENERGY for unit in units) or (len(signal_axes) == 1 and data.ndim > 0):
        return f"spectra ({shape})"
    if data.ndim < 2:
        return f"no image (shape {shape})"
    if data.ndim > 3:
        return f"{data.ndim}-dimensional data ({shape}), such as 4D-STEM"
    return ""


def _choose(
    path: Path, signals: list[dict[str, Any]], wanted: str | int | None
) -> tuple[dict[str, Any], str]:
    if not signals:
        raise ShineError(f"{path}: holds no data.")
    titles = [_title(found, i) for i, found in enumerate(signals)]
    listing = "; ".join(
        f"{i} = {title}: {'×'.join(str(int(n)) for n in found['data'].shape)}"
        for i, (title, found) in enumerate(zip(titles, signals, strict=True))
    )
    if wanted is not None:
        if titles.count(str(wanted)) == 1:
            chosen = titles.index(str(wanted))
        elif str(wanted).isdigit() and int(wanted) < len(signals):
            chosen = int(wanted)
        else:
            raise ShineError(f"{path}: there is no signal {wanted!r}; it holds {listing}.")
        if why := _refusal(signals[chosen]):
            raise ShineError(f"{path}: {titles[chosen]} holds {why}, not a movie.")
    else:
        movies = [i for i, found in enumerate(signals) if not _refusal(found)]
        stacks = [i for i in movies if signals[i]["data"].ndim == 3]
        if not movies:
            raise ShineError(
                f"{path}: holds {_refusal(signals[0])}; a movie is made of (t, y, x) images."
            )
        candidates = stacks or movies
        if len(candidates) > 1:
            raise ShineError(f"{path}: holds several movies; choose with --signal: {listing}.")
        chosen = candidates[0]
    note = f"read {titles[chosen]!r} of {listing}" if len(signals) > 1 else ""
    return signals[chosen], note


def _movie(path: Path, found: dict[str, Any], note: str) -> Movie:
    data = found["data"]
    original = found.get("original_metadata", {})
    axes = [_axis(one) for one in found["axes"]]
    own = found["metadata"].get("shine_em", {})
    history = str(own.get("history", "")).splitlines()
    if data.ndim == 2:
        axes = [Axis("t"), *axes]
        note = note or "the file holds a single image"
    first = str(found["axes"][0].get("name") or "")
    if data.ndim == 3 and axes[0].unit not in (None, "s", "ms", "µs", "min", "h"):
        note = (note + "; " if note else "") + f"the frames are steps of {first} ({axes[0].unit})"
    t, y, x = axes
    dose = own.get("dose_e_per_A2")
    return Movie(
        _frames(path, found),
        axes=(Axis("t", t.unit, t.scale, t.offset), Axis("y", y.unit, y.scale, y.offset),
              Axis("x", x.unit, x.scale, x.offset)),
        dose_e_per_A2=None if dose is None else float(dose),
        intensity_unit=own.get("intensity_unit") or _intensity_unit(original),
        name=path.stem,
        source=path,
        metadata={
            "format": path.suffix.lower().lstrip("."),
            **plain(found["metadata"]),
            "original": plain(original),
        },
        history=tuple([*history, note] if note else history),
    )  # fmt: skip


def _axis(found: Mapping[str, Any]) -> Axis:
    name = str(found.get("name") or "")
    return axis(name, found.get("units"), found.get("scale", 1.0), found.get("offset", 0.0))


def _intensity_unit(original: Mapping[str, Any]) -> str | None:
    """Return Gatan's brightness unit where the stored values themselves are in it."""
    images = original.get("ImageList", {}) if isinstance(original, Mapping) else {}
    try:
        brightness = images["TagGroup0"]["ImageData"]["Calibrations"]["Brightness"]
        unit = brightness["Units"]
        scale, origin = float(brightness["Scale"]), float(brightness["Origin"])
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(unit, str) or not unit:
        return None
    return unit if (scale, origin) == (1.0, 0.0) else "counts"


def _frames(path: Path, found: dict[str, Any]) -> LazyFrames:
    data = found["data"]
    shape = tuple(int(n) for n in data.shape)
    layout = Layout(shape[0], 0, (0,)) if len(shape) == 3 else Layout(1, None, ())
    if path.suffix.lower() in (".dm3", ".dm4"):
        place = _gatan_place(found)
        if place is not None:
            return raw_frames(path, place[1], (layout.n_frames, shape[-2], shape[-1]), place[0])
    return array_frames(_Dask(data), layout, depth_of=data.chunksize)


def _gatan_place(found: Mapping[str, Any]) -> tuple[int, np.dtype[Any]] | None:
    """Return where a dm3/dm4 file's pixels begin and their type, or None if it does not say."""
    dtype = np.dtype(found["data"].dtype)
    try:
        held = found["original_metadata"]["ImageList"]["TagGroup0"]["ImageData"]["Data"]
        offset, n_bytes = int(held["offset"]), int(held["size_bytes"])
        order = {"little": "<", "big": ">"}[held["endian"]]
    except (KeyError, TypeError, ValueError):
        return None
    if n_bytes != int(np.prod(found["data"].shape)) * dtype.itemsize:
        return None
    return offset, dtype.newbyteorder(order)


class _Dask:
    """A dask array whose slices come out computed, in the calling thread."""

    def __init__(self, data: Any) -> None:
        self._data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._data[index].compute(scheduler="synchronous"))
