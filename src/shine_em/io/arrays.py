"""Arrays as files: .npy, zarr arrays, and OME-Zarr movies (0.4 and 0.5)."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Axis, LazyFrames, Movie
from .layout import Layout, as_frames
from .raw import raw_frames, require_file
from .units import axis, plain

__all__ = ["array_frames", "is_zarr", "read_npy", "read_zarr"]


def read_npy(path: Path) -> Movie:
    """Read a ``(t, y, x)`` or ``(y, x)`` array saved with `numpy.save`, one frame at a time.

    Raises
    ------
    ShineError
        If the file is no .npy file, truncated, or holds anything but real numbers; pickled
        objects are never loaded, for they may run code.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version >= (2, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except Exception as error:  # a damaged header makes Python's own parser fail in many ways
        raise ShineError(f"{path}: not a .npy file, or a damaged one ({_reason(error)}).") from None
    if dtype.hasobject:
        raise ShineError(
            f"{path}: holds Python objects, which are not loaded because they may run code. Save a "
            "plain (t, y, x) array of numbers."
        )
    _require_real(path, dtype)
    if len(shape) not in (2, 3) or 0 in shape:
        raise ShineError(f"{path}: holds an array of shape {shape}; a movie is (t, y, x).")
    note = ("the file holds a single image",) if len(shape) == 2 else ()
    stack = (shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1])
    frames_of = _fortran_frames if fortran else raw_frames
    data = frames_of(path, dtype, stack, offset)
    return Movie(data, name=path.stem, source=path, metadata={"format": "npy"}, history=note)


def _require_real(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "buif":
        what = "complex numbers" if dtype.kind == "c" else f"values of type {dtype}"
        raise ShineError(f"{path}: holds {what}; a movie is made of real numbers.")


def _fortran_frames(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, int, int], offset: int
) -> LazyFrames:
    """Frames of an array that is stored with x slowest: every frame is spread over the file."""
    raw_frames(path, dtype, shape, offset)  # refuses a truncated file
    native = dtype.newbyteorder("=")

    def read_frame(i: int) -> np.ndarray:
        # A fresh map each time: its pages are given back as soon as the frame is copied.
        whole = np.memmap(path, dtype, "r", offset, shape, "F")
        return np.array(whole[i], native, order="C")

    return LazyFrames(read_frame, shape, native)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr array or group (version 2 or 3)."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def read_zarr(path: Path, *, signal: str | int | None = None) -> Movie:
    """Read a zarr array, a group that holds one, or an OME-Zarr image, one frame at a time.

    Parameters
    ----------
    path
        The ``.zarr`` folder, or an array inside it.
    signal
        A channel of a multi-channel image, or the array of a group that holds several.

    Raises
    ------
    ShineError
        If the folder is no zarr store, or what it holds is no movie.
    """
    import zarr

    try:
        node = zarr.open(path, mode="r")
    except Exception as error:
        raise ShineError(f"{path}: not a readable zarr store ({error}).") from None
    try:
        return _movie(path, node, signal)
    except (ShineError, MemoryError):
        raise
    except Exception as error:
        raise ShineError(
            f"{path}: its metadata are damaged or of an unknown kind ({_reason(error)})."
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _movie(path: Path, node: Any, signal: str | int | None) -> Movie:
    import zarr

    attributes: dict[str, Any] = dict(node.attrs)
    ome = attributes.get("ome", attributes)
    metadata: dict[str, Any] = {"format": "zarr", **plain(attributes)}
    kept = attributes.get("shine_em")
    kept = kept if isinstance(kept, Mapping) else {}
    letters, scales, offsets, units = None, None, None, None
    if isinstance(node, zarr.Array):
        data = node
    elif "bioformats2raw.layout" in ome:
        return _one_of_several(path, node, signal)
    elif "multiscales" in ome:
        metadata["format"] = "OME-Zarr"
        image = ome["multiscales"][0]
        level = image["datasets"][0]
        data = _child(path, node, level["path"])
        letters, scales, offsets, units = _ome_axes(image, level, data.ndim)
    else:
        data, signal = _choose_array(path, node, signal), None
    _require_real(path, np.dtype(data.dtype))
    if letters is None:
        if data.ndim not in (2, 3):
            raise ShineError(f"{path}: holds an array of shape {data.shape}; a movie is (t, y, x).")
        letters = "TYX"[-data.ndim :]
    layout = as_frames(path, data.shape, letters, signal)
    axes = [Axis("t"), Axis("y"), Axis("x")]
    if units is not None and scales is not None and offsets is not None:
        t = letters.find("T")  # of one frame or many; slices that are read as frames have no time
        frames = [t] if t >= 0 and layout.time_axis in (None, t) else []
        for i in (*frames, len(letters) - 2, len(letters) - 1):
            slot = "TYX".index(letters[i])
            axes[slot] = axis("tyx"[slot], units[i], scales[i], offsets[i])
    history = tuple(kept.get("history", ()))
    if layout.note and layout.note not in history:
        history = (*history, layout.note)
    return Movie(
        array_frames(path, data, layout, depth_of=data.chunks),
        axes=(axes[0], axes[1], axes[2]),
        dose_e_per_A2=kept.get("dose_e_per_A2"),
        intensity_unit=kept.get("intensity_unit"),
        name=path.name.removesuffix(".zarr").removesuffix(".ome"),
        source=path,
        metadata=metadata,
        history=history,
    )


def _one_of_several(path: Path, group: Any, signal: str | int | None) -> Movie:
    """Read an image of a store that bioformats2raw made: each is a group of its own."""
    images = {
        name: image
        for name, image in sorted(group.groups())
        if "multiscales" in image.attrs.get("ome", image.attrs)
    }
    if len(images) == 1:
        return _movie(path, next(iter(images.values())), signal)
    listing = ", ".join(images) or "none"
    if str(signal) in images:
        movie = _movie(path, images[str(signal)], None)
        return replace(movie, history=(*movie.history, f"read image {signal} of {listing}"))
    raise ShineError(
        f"{path}: holds several images; choose with --signal: {listing}."
        if signal is None and images
        else f"{path}: there is no image {signal or ''}; it holds {listing}."
    )


def _child(path: Path, group: Any, name: str) -> Any:
    try:
        return group[name]
    except KeyError:
        raise ShineError(
            f"{path}: the array {name!r} that its metadata names is missing."
        ) from None


def _choose_array(path: Path, group: Any, signal: str | int | None) -> Any:
    arrays = dict(sorted(group.arrays()))
    listing = "; ".join(f"{name}: {'×'.join(map(str, a.shape))}" for name, a in arrays.items())
    if signal is not None:
        if str(signal) in arrays:
            return arrays[str(signal)]
        raise ShineError(f"{path}: there is no array {signal!r}; it holds {listing or 'none'}.")
    movies = [a for a in arrays.values() if a.ndim in (2, 3)]
    if len(movies) != 1:
        raise ShineError(
            f"{path}: holds several arrays; choose with --signal: {listing}."
            if movies
            else f"{path}: the zarr group holds no (t, y, x) array ({listing or 'it is empty'})."
        )
    return movies[0]


def _ome_axes(
    image: Any, level: Any, ndim: int
) -> tuple[str, list[float], list[float], list[str | None]]:
    """Return axis letters, scales, offsets and units of an OME-Zarr level (0.4, 0.5)."""
    axes = image.get("axes") or [{"name": name} for name in "tczyx"[-ndim:]]
    axes = [{"name": one} if isinstance(one, str) else one for one in axes]
    letters = "".join(str(one["name"])[:1].upper() for one in axes)
    scales, offsets = [1.0] * ndim, [0.0] * ndim
    # A level's own transformations come first, then those of the whole image.
    for step in (*level.get("coordinateTransformations", ()),
                 *image.get("coordinateTransformations", ())):  # fmt: skip
        if step.get("type") == "scale":
            scales = [a * float(b) for a, b in zip(scales, step["scale"], strict=True)]
            offsets = [a * float(b) for a, b in zip(offsets, step["scale"], strict=True)]
        elif step.get("type") == "translation":
            offsets = [a + float(b) for a, b in zip(offsets, step["translation"], strict=True)]
    return letters, scales, offsets, [one.get("unit") for one in axes]


def array_frames(
    path: Path, data: Any, layout: Layout, *, depth_of: tuple[int, ...] | None = None
) -> LazyFrames:
    """Return the frames of anything that slices like an array (zarr, HDF5, dask).

    Where the file is chunked several frames deep, the last chunk read is kept: reading frame
    after frame would otherwise decode each chunk as many times as it holds frames.

    Parameters
    ----------
    path
        The file, for messages.
    data
        The n-dimensional array.
    layout
        How it is read as frames.
    depth_of
        Its chunk shape, where it has one.
    """
    native = np.dtype(data.dtype).newbyteorder("=")
    shape = (layout.n_frames, *(int(n) for n in data.shape[-2:]))
    depth = 1
    if depth_of is not None and layout.time_axis is not None:
        frame_bytes = math.prod(shape[1:]) * native.itemsize
        # No more than this is held; deeper chunks are rare and would cost the memory they save.
        depth = min(depth_of[layout.time_axis], max(1, (256 << 20) // frame_bytes))
        if depth < depth_of[layout.time_axis]:
            depth = 1
    lock = threading.Lock()
    held: dict[int, np.ndarray] = {}

    def read(i: int, index: tuple[Any, ...]) -> np.ndarray:
        try:
            return np.asarray(data[index]).astype(native, copy=False)
        except MemoryError:
            raise
        except Exception as error:  # each library and each compression has errors of its own
            raise ShineError(f"{path}: frame {i} cannot be read ({_reason(error)}).") from None

    def read_frame(i: int) -> np.ndarray:
        index = layout.index(i)
        if depth == 1 or layout.time_axis is None:
            return read(i, index)
        block, inside = divmod(i, depth)
        with lock:
            if block not in held:
                where: list[Any] = list(index)
                where[layout.time_axis] = slice(block * depth, (block + 1) * depth)
                held.clear()
                held[block] = read(i, tuple(where))
            return held[block][inside].copy()

    return LazyFrames(read_frame, shape, native)
