"""Microscope vendors' formats, read by RosettaSciIO: dm3, dm4, emd, hspy."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Axis, LazyFrames, Movie
from .arrays import array_frames
from .layout import Layout
from .raw import raw_frames, require_file
from .units import TIMES, axis, clean_unit, plain

__all__ = ["READERS", "read_vendor", "rosettasciio"]

READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
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
        elif str(wanted).isdecimal() and int(wanted) < len(signals):
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
    original = found.get("original_metadata", {})
    axes = [_axis(one) for one in found["axes"]]
    data = found["data"]
    order, (t, y, x) = _order(axes)
    own = found["metadata"].get("shine_em", {})
    history = str(own.get("history", "")).splitlines()
    notes = [note] if note else []
    if data.ndim == 2:
        notes.append("the file holds a single image")
    elif t.unit is not None and t.unit not in TIMES and not history:  # else it has been told
        notes.append(f"the frames are steps of {t.name or 'an axis'} in {t.unit}, not of time")
    dose = own.get("dose_e_per_A2")
    return Movie(
        _frames(path, data, order, original),
        axes=(replace(t, name="t"), replace(y, name="y"), replace(x, name="x")),
        dose_e_per_A2=None if dose is None else float(dose),
        intensity_unit=own.get("intensity_unit") or _intensity_unit(original),
        name=path.stem,
        source=path,
        metadata={
            "format": path.suffix.lower().lstrip("."),
            **_exposure(original),
            **plain(found["metadata"]),
            "original": plain(original),
        },
        history=(*history, *(note for note in notes if note not in history)),
    )


def _order(axes: list[Axis]) -> tuple[tuple[int, ...], tuple[Axis, Axis, Axis]]:
    """Return which of the data's axes are t, y and x (or y and x), and those axes.

    Some programs write EMD files with time last. Where an axis says by its unit or name that it
    is time, it is believed; the two others then keep their order, or the order of their names.
    """
    if len(axes) == 2:
        return (0, 1), (Axis("t"), axes[0], axes[1])
    names = [one.name.lower().removeprefix("r_") for one in axes]
    is_time = [
        one.unit in TIMES or name in ("t", "time") for one, name in zip(axes, names, strict=True)
    ]
    t = is_time.index(True) if is_time.count(True) == 1 else 0
    y, x = (i for i in range(3) if i != t)
    if t == 2 and (names[y], names[x]) != ("y", "x"):
        y, x = x, y  # the whole array is stored with its axes reversed: x, y, t
    return (t, y, x), (axes[t], axes[y], axes[x])


def _axis(found: Mapping[str, Any]) -> Axis:
    name = str(found.get("name") or "")
    return axis(name, found.get("units"), found.get("scale", 1.0), found.get("offset", 0.0))


def _exposure(original: Mapping[str, Any]) -> dict[str, float]:
    """Return Gatan's exposure time in s, as ``{"exposure_s": ...}``, where the tags know it."""
    try:
        tags = original["ImageList"]["TagGroup0"]["ImageTags"]
    except (KeyError, TypeError):
        return {}
    for trail in (
        ("DataBar", "Exposure Time (s)"),
        ("Acquisition", "Parameters", "High Level", "Exposure (s)"),
    ):
        value: Any = tags
        for key in trail:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float, np.number)) and value > 0:
            return {"exposure_s": float(value)}
    return {}


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


def _frames(
    path: Path, data: Any, order: tuple[int, ...], original: Mapping[str, Any]
) -> LazyFrames:
    shape = tuple(int(data.shape[i]) for i in order)
    layout = Layout(shape[0], 0, (0,)) if len(shape) == 3 else Layout(1, None, ())
    if path.suffix.lower() in (".dm3", ".dm4"):
        place = _gatan_place(data, original)
        if place is not None and order == tuple(range(len(order))):
            return raw_frames(path, place[1], (layout.n_frames, shape[-2], shape[-1]), place[0])
    stored = _hdf5_dataset(data)
    if stored is not None:
        dataset, axes_of = stored
        in_file = tuple(axes_of[i] for i in order)
        depth = tuple(dataset.chunks[i] for i in in_file) if dataset.chunks else None
        return array_frames(path, _Reordered(dataset, in_file), layout, depth_of=depth)
    chunks = tuple(data.chunksize[i] for i in order)
    return array_frames(path, _Reordered(data, order), layout, depth_of=chunks)


def _hdf5_dataset(data: Any) -> tuple[Any, tuple[int, ...]] | None:
    """Return the HDF5 data set behind a dask array, and which of its axes the array's axes are.

    Reading a frame through the transposed dask array costs whole chunks, hundreds of times the
    frame itself; the data set gives the frame alone.
    """
    import h5py

    held = {
        id(value): value
        for task in dict(data.dask).values()
        for value in (task, getattr(task, "value", None))
        if isinstance(value, h5py.Dataset)
    }
    if len(held) != 1:
        return None
    (dataset,) = held.values()
    if dataset.ndim != data.ndim:
        return None
    straight = tuple(range(data.ndim))
    if dataset.name.startswith("/Experiments/"):  # hspy
        axes_of = straight
    elif dataset.name.startswith("/Data/Image/"):  # Velox: y, x, t
        axes_of = (2, 0, 1) if data.ndim == 3 else straight
    else:  # NCEM: reversed, but for the dialect that counts its dimensions from 0
        axes_of = straight if "dim0" in dataset.parent else straight[::-1]
    return (dataset, axes_of) if data.shape == tuple(dataset.shape[i] for i in axes_of) else None


def _gatan_place(data: Any, original: Mapping[str, Any]) -> tuple[int, np.dtype[Any]] | None:
    """Return where a dm3/dm4 file's pixels begin and their type, or None if it does not say."""
    dtype = np.dtype(data.dtype)
    try:
        held = original["ImageList"]["TagGroup0"]["ImageData"]["Data"]
        offset, n_bytes = int(held["offset"]), int(held["size_bytes"])
        order = {"little": "<", "big": ">"}[held["endian"]]
    except (KeyError, TypeError, ValueError):
        return None
    if n_bytes != math.prod(data.shape) * dtype.itemsize:
        return None
    return offset, dtype.newbyteorder(order)


class _Reordered:
    """An array-like seen as ``(t, y, x)`` or ``(y, x)``; its slices come out as numpy arrays."""

    def __init__(self, data: Any, order: tuple[int, ...]) -> None:
        self._data, self._order = data, order
        self.shape, self.dtype = tuple(int(data.shape[i]) for i in order), np.dtype(data.dtype)

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        where: list[Any] = [slice(None)] * len(self._order)
        for axis_of, picked in zip(self._order, index, strict=False):
            where[axis_of] = picked
        found = self._data[tuple(where)]
        if hasattr(found, "compute"):
            found = found.compute(scheduler="synchronous")
        # A number as an index removes its axis: what is left is ordered as the rest was.
        left = [i for i, picked in zip(self._order, (*index, *[slice(None)] * 3), strict=False)
                if isinstance(picked, slice)]  # fmt: skip
        return np.asarray(found).transpose([sorted(left).index(i) for i in left])
