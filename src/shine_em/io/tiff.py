"""TIFF movies: ImageJ, OME, BigTIFF, and what microscopes' own tags say of the calibration."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Axis, LazyFrames, Movie
from .layout import Layout, as_frames
from .raw import raw_frames, require_file
from .units import axis, plain

__all__ = ["INFO_MARK", "read_tiff"]

INFO_MARK = "shine-em "  # starts the line of JSON that `write` leaves in ImageJ's Info
# Coarser than this, a resolution in dots per inch or cm speaks of print, not of a specimen.
_COARSEST_NM = 10_000.0


def read_tiff(path: Path, *, signal: str | int | None = None) -> Movie:
    """Read a TIFF movie, one frame at a time.

    Parameters
    ----------
    path
        The file.
    signal
        A channel of a multi-channel hyperstack, or one image series of a file that holds
        several: a number counted from 0, or the series' name.

    Raises
    ------
    ShineError
        If the file is no TIFF, truncated, in colour, or holds several movies and none is chosen.
    """
    import tifffile

    require_file(path)
    with _problems():
        try:
            tif = tifffile.TiffFile(path)
        except tifffile.TiffFileError as error:
            raise ShineError(f"{path}: not a TIFF file ({error}).") from None
        except Exception as error:
            raise ShineError(f"{path}: a damaged or truncated TIFF file ({error}).") from None
    try:
        with _problems() as problems:
            try:
                series, channel, note = _choose_series(path, tif, signal)
                layout = as_frames(path, series.shape, series.axes, channel)
                data = _frames(path, tif, series, layout)
                if tif.is_imagej and _is_signed(tif.imagej_metadata or {}):
                    data = _signed(data)
                axes, more = _calibration(tif, series)
            except (ShineError, MemoryError):
                raise
            except Exception as error:
                raise ShineError(f"{path}: a damaged TIFF file ({error}).") from None
        _refuse_truncated(path, tif, series, problems)
    finally:
        tif.close()
    history = list(more.pop("history", ()))
    history += [text for text in (note, layout.note) if text and text not in history]
    return Movie(data, axes=axes, name=path.stem, source=path, history=tuple(history), **more)


@contextmanager
def _problems() -> Iterator[list[str]]:
    """Collect what tifffile only logs: it reads what it can of a damaged file and goes on."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("tifffile"), Collect(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _choose_series(
    path: Path, tif: Any, signal: str | int | None
) -> tuple[Any, str | int | None, str]:
    """Return the image series to read, the channel asked of it, and a note on what is left out."""
    series = [one for one in tif.series if one.dtype is not None and 0 not in one.shape]
    if not series:
        raise ShineError(f"{path}: a truncated or damaged TIFF file; it holds no image.")
    if tif.is_ome and (own := _own_pages(tif, series)) is not None:
        return own, signal, _of_a_set(tif, series, len(own.pages))
    if len(series) == 1:
        if signal is None:
            _refuse_gaps(path, series[0], 0)
        return series[0], signal, ""
    if signal is None and (whole := _one_stack(series)) is not None:
        return whole, None, ""
    names = [one.name or f"series {i}" for i, one in enumerate(series)]
    listing = "; ".join(
        f"{i} = {name}: {'×'.join(map(str, one.shape))} {one.dtype}"
        for i, (name, one) in enumerate(zip(names, series, strict=True))
    )
    if signal is not None:
        if signal in names:
            return series[names.index(str(signal))], None, f"read {signal!r} of {listing}"
        if str(signal).isdecimal() and int(signal) < len(series):
            return series[int(signal)], None, f"read series {signal} of {listing}"
        raise ShineError(f"{path}: there is no series {signal!r}; it holds {listing}.")
    grey = [one for one in series if "S" not in one.axes]
    stacks = [one for one in grey if np.prod(one.shape[:-2]) > 1]
    chosen = grey if len(grey) == 1 else stacks
    if len(chosen) != 1:
        raise ShineError(f"{path}: holds several images; choose with --signal: {listing}.")
    number = series.index(chosen[0])
    _refuse_gaps(path, chosen[0], number)
    return chosen[0], None, f"read series {number} of {listing}"


def _refuse_gaps(path: Path, chosen: Any, number: int) -> None:
    """Refuse a stack whose frames other images interrupt; before and after it, they are previews.

    Frames that a camera or a copy got wrong would otherwise be left out without a word. Where the
    file itself says which images belong together (OME, ImageJ), it is believed.
    """
    if chosen.kind != "generic":
        return
    places = [page.index for page in chosen.pages]
    missing = sorted(set(range(places[0], places[-1] + 1)) - set(places))
    if missing:
        raise ShineError(
            f"{path}: image {missing[0]} of the file, counted from 0, is unlike the frames around "
            f"it; all must be alike. --signal {number} reads the others alone."
        )


def _of_a_set(tif: Any, series: list[Any], held: int) -> str:
    """Say why a file holds other frames than its OME text speaks of."""
    others = [page for one in series for page in one.pages if page is not None]
    named = set(re.findall(r"""FileName=["']([^"']+)""", tif.ome_metadata))
    if len(named) > 1 or any(page.parent is not tif for page in others):
        return "read this file's own frames of an OME set of several files"
    announced = sum(len(one.pages) for one in series)
    return f"the OME text announces {announced} frames, the file holds {held}"


def _own_pages(tif: Any, series: list[Any]) -> Any | None:
    """Return a file's own frames where its OME text speaks of other files too, else None."""
    pages = [page for one in series for page in one.pages]
    if all(page is not None and page.parent is tif for page in pages):
        return None
    own = list(tif.pages)
    if any((page.shape, page.axes) != (own[0].shape, "YX") for page in own):
        return None
    return _stack_of(own)


def _stack_of(pages: list[Any]) -> Any:
    first = pages[0].keyframe
    return SimpleNamespace(
        shape=(len(pages), *first.shape),
        axes="IYX",
        index=0,
        dtype=first.dtype,
        dataoffset=None,
        keyframe=first,
        pages=pages,
    )


def _one_stack(series: list[Any]) -> Any | None:
    """Return series of one alike image each as one stack: frames that were saved one by one."""
    first = series[0]
    if any((one.shape, one.axes, one.dtype) != (first.shape, "YX", first.dtype) for one in series):
        return None
    return _stack_of([one.pages[0] for one in series])


def _frames(path: Path, tif: Any, series: Any, layout: Layout) -> LazyFrames:
    shape = (layout.n_frames, int(series.shape[-2]), int(series.shape[-1]))
    leading = series.shape[:-2]
    stored = np.dtype(series.dtype).newbyteorder(tif.byteorder)
    frame_bytes = shape[1] * shape[2] * stored.itemsize
    which = [
        int(np.ravel_multi_index(layout.index(t), leading)) if leading else 0
        for t in range(layout.n_frames)
    ]
    if series.dataoffset is not None:
        return raw_frames(path, stored, shape, [series.dataoffset + i * frame_bytes for i in which])
    pages = [series.pages[i] for i in which]
    places = [_place(page, frame_bytes) for page in pages]
    if None not in places and series.keyframe.is_contiguous:
        return raw_frames(path, stored, shape, [place or 0 for place in places])
    lock = threading.Lock()

    def read_frame(t: int) -> np.ndarray:
        with lock, _problems():
            # Opened for this frame alone: a folder of frames would run out of file handles.
            tif.filehandle.open()
            try:
                frame = pages[t].asarray(maxworkers=1).reshape(shape[1:])
            except Exception as error:
                raise ShineError(f"{path}: frame {t} could not be decoded ({error}).") from None
            finally:
                tif.filehandle.close()
        return frame.astype(frame.dtype.newbyteorder("="), copy=False)

    return LazyFrames(read_frame, shape, stored.newbyteorder("="))


def _is_signed(imagej: dict[str, Any]) -> bool:
    """Whether ImageJ says, by a calibration of grey values, that its 16-bit pixels are signed."""
    cf, c0, c1 = (_number(imagej.get(key), math.nan) for key in ("cf", "c0", "c1"))
    return (cf, c0, c1) == (0, -32768, 1)


def _signed(data: LazyFrames) -> LazyFrames:
    """Return the values of ImageJ's signed 16-bit stacks, stored 32768 higher."""
    if data.dtype != np.uint16:
        return data

    def read_frame(t: int) -> np.ndarray:
        signed: np.ndarray = (data[t] ^ np.uint16(0x8000)).view(np.int16)
        return signed

    return LazyFrames(read_frame, data.shape, np.int16)


def _place(page: Any, frame_bytes: int) -> int | None:
    """Return where an uncompressed page's pixels begin, if they lie in one piece."""
    starts, lengths = page.dataoffsets, page.databytecounts
    if not starts or sum(lengths) != frame_bytes:
        return None
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    return int(starts[0]) if list(starts[1:]) == ends[:-1] else None


def _refuse_truncated(path: Path, tif: Any, series: Any, problems: list[str]) -> None:
    announced = int((tif.imagej_metadata or {}).get("images", 0)) if tif.is_imagej else 0
    held = int(np.prod(series.shape[:-2]))
    if announced > held:
        raise ShineError(
            f"{path}: the file is truncated: its header announces {announced} frames, it holds "
            f"{held}."
        )
    broken = [text for text in problems if "invalid" in text or "corrupt" in text]
    if broken:
        raise ShineError(f"{path}: a truncated or damaged TIFF file ({broken[0]}).")


def _calibration(tif: Any, series: Any) -> tuple[tuple[Axis, Axis, Axis], dict[str, Any]]:
    """Return the (t, y, x) axes, and what else the file says, as `Movie` fields."""
    page = series.keyframe
    bare = (Axis("t"), Axis("y"), Axis("x"))
    if tif.is_imagej:
        return _imagej(tif, page)
    if tif.is_ome:
        return _ome(tif, series)
    found = {"format": "TIFF", "description": page.description[:10_000]}
    for name, read in (("SIS", _sis), ("FEI", _fei), ("TVIPS", _tvips), ("Gatan", _gatan)):
        if (own := read(tif, page)) is not None:
            sizes, metadata = own
            axes = (bare[0], axis("y", sizes[2], sizes[0]), axis("x", sizes[2], sizes[1]))
            return axes, {"metadata": plain({**found, name: metadata})}
    unit = {2: "inch", 3: "cm"}.get(int(page.resolutionunit))
    sizes_nm = [size * {"inch": 2.54e7, "cm": 1e7}.get(unit or "", 0.0) for size in _sizes(page)]
    if all(0 < size <= _COARSEST_NM for size in sizes_nm):
        return (bare[0], axis("y", "nm", sizes_nm[0]), axis("x", "nm", sizes_nm[1])), {
            "metadata": found
        }
    return bare, {"metadata": found}


def _sizes(page: Any) -> tuple[float, float]:
    """Return the (y, x) pixel sizes in the page's resolution unit; 0 where there is none."""

    def size(tag: str) -> float:
        held = page.tags.get(tag)
        numerator, denominator = held.value if held is not None else (0, 1)
        return denominator / numerator if numerator else 0.0

    return size("YResolution"), size("XResolution")


def _imagej(tif: Any, page: Any) -> tuple[tuple[Axis, Axis, Axis], dict[str, Any]]:
    """ImageJ keeps pixels per unit in the resolution tags, the unit and the time in its text."""
    found = dict(tif.imagej_metadata or {})
    sizes = _sizes(page)
    y, x = (
        axis(
            name,
            found.get(f"{name}unit", found.get("unit")),
            size,
            0.0 - _number(found.get(f"{name}origin")) * size,
        )
        for name, size in (("y", sizes[0]), ("x", sizes[1]))
    )
    # fps is the speed of ImageJ's player, no property of the recording: it is left alone.
    t = axis("t", found.get("tunit", "s"), max(0.0, _number(found.get("finterval"))))
    more: dict[str, Any] = {}
    kept = _own_record(str(found.get("Info", "")))
    if kept:
        more["history"] = tuple(kept.get("history", ()))
        more["dose_e_per_A2"] = kept.get("dose_e_per_A2")
        more["intensity_unit"] = kept.get("intensity_unit")
        if t.unit is not None and kept.get("t_offset"):
            t = Axis("t", t.unit, t.scale, float(kept["t_offset"]))
    elif found.get("vunit") and found.get("cf") is None:
        more["intensity_unit"] = str(found["vunit"])
    elif _is_signed(found):
        unit = str(found.get("vunit") or "")
        more["intensity_unit"] = unit if unit.lower() not in ("", "gray value") else None
    elif _number(found.get("c0")) != 0 or _number(found.get("c1"), 1.0) != 1:
        more["history"] = (
            f"stored pixel values read; ImageJ shows {found.get('c0')} + {found.get('c1')}·value",
        )
    more["metadata"] = plain({"format": "TIFF (ImageJ)", "ImageJ": found})
    return (t, y, x), more


def _number(value: Any, default: float = 0.0) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _own_record(info: str) -> dict[str, Any]:
    """Return what `write` left in ImageJ's Info: history, dose and intensity unit."""
    for line in info.splitlines():
        if line.startswith(INFO_MARK):
            try:
                record = json.loads(line[len(INFO_MARK) :])
            except ValueError:
                return {}
            return record if isinstance(record, dict) else {}
    return {}


def _ome(tif: Any, series: Any) -> tuple[tuple[Axis, Axis, Axis], dict[str, Any]]:
    import tifffile

    tree = tifffile.xml2dict(tif.ome_metadata).get("OME", {})
    images = tree.get("Image", {})
    image = images[min(series.index, len(images) - 1)] if isinstance(images, list) else images
    pixels = image.get("Pixels", {})
    step, unit = pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s")
    if step is None:
        step, unit = _plane_interval(pixels.get("Plane", []))
    axes = (
        axis("t", unit, step),
        axis("y", pixels.get("PhysicalSizeYUnit", "µm"), pixels.get("PhysicalSizeY", 0)),
        axis("x", pixels.get("PhysicalSizeXUnit", "µm"), pixels.get("PhysicalSizeX", 0)),
    )
    pixels = {key: value for key, value in pixels.items() if key not in ("TiffData", "Plane")}
    return axes, {"metadata": plain({"format": "TIFF (OME)", "OME": {**image, "Pixels": pixels}})}


def _plane_interval(planes: Any) -> tuple[float, str]:
    """Return the usual time from frame to frame and its unit; 0 where the planes do not tell."""
    timed = [
        one for one in (planes if isinstance(planes, list) else [planes])
        if isinstance(one, dict)
        and all(isinstance(one.get(key), (int, float)) for key in ("TheT", "DeltaT"))
    ]  # fmt: skip
    times = {int(one["TheT"]): float(one["DeltaT"]) for one in reversed(timed)}
    if len(times) < 2:
        return 0.0, "s"
    frames = sorted(times)
    steps = np.diff([times[t] for t in frames]) / np.diff(frames)
    return max(0.0, float(np.median(steps))), str(timed[0].get("DeltaTUnit", "s"))


_Own = tuple[tuple[Any, Any, str | None], Any]


def _sis(tif: Any, page: Any) -> _Own | None:
    """Olympus Soft Imaging Solutions: pixel size in m."""
    if "OlympusSIS" not in page.tags:
        return None
    found = page.tags["OlympusSIS"].value
    return (found.get("pixelsizey", 0), found.get("pixelsizex", 0), "m"), found


def _fei(tif: Any, page: Any) -> _Own | None:
    """FEI/Thermo Fisher: pixel size in m under [Scan]."""
    found = tif.fei_metadata
    if not found:
        return None
    scan = found.get("Scan", {})
    return (scan.get("PixelHeight", 0), scan.get("PixelWidth", 0), "m"), found


def _tvips(tif: Any, page: Any) -> _Own | None:
    """TVIPS: pixel size in nm."""
    found = tif.tvips_metadata
    if not found:
        return None
    return (found.get("PixelSizeY", 0), found.get("PixelSizeX", 0), "nm"), found


def _gatan(tif: Any, page: Any) -> _Own | None:
    """DigitalMicrograph's export: units in tags 65003 (x) and 65004 (y), scales in 65009, 65010."""
    tags = {code: page.tags[code].value for code in range(65003, 65026) if code in page.tags}
    if 65009 not in tags:
        return None
    unit = tags.get(65003)
    return (tags.get(65010, tags[65009]), tags[65009], unit), tags
