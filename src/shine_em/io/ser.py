"""FEI/TIA series (.ser, and .emi beside it), one frame at a time.

RosettaSciIO reads these too, but whole, which a long movie does not allow; the format is small.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Axis, LazyFrames, Movie
from .raw import raw_frames, require_file
from .units import TIMES, axis

__all__ = ["read_emi", "read_ser"]

_DTYPES = {1: "u1", 2: "u2", 3: "u4", 4: "i1", 5: "i2", 6: "i4", 7: "f4", 8: "f8"}
_SPECTRA, _IMAGES = 0x4120, 0x4122
_ELEMENT_HEADER = struct.Struct("<ddiddihii")


def read_emi(path: Path, *, signal: str | int | None = None) -> Movie:
    """Read the series that belongs to an .emi file, which itself holds only metadata.

    Parameters
    ----------
    path
        ``NAME.emi``; its images lie beside it in ``NAME_1.ser``, ``NAME_2.ser``, ...
    signal
        Which of several series to read: its file name, or its number counted from 0.

    Raises
    ------
    ShineError
        If no series lies beside the file, or several do and none is chosen.
    """
    require_file(path)
    pattern = re.compile(re.escape(path.stem) + r"_(\d+)\.ser", re.IGNORECASE)
    beside = {
        int(hit[1]): file for file in path.parent.iterdir() if (hit := pattern.match(file.name))
    }
    series = [file for _, file in sorted(beside.items())]
    if not series:
        raise ShineError(
            f"{path}: an .emi file holds only metadata; its images, {path.stem}_1.ser, are missing."
        )
    listing = ", ".join(f"{i} = {file.name}" for i, file in enumerate(series))
    names = [file.name for file in series]
    if signal is None:
        if len(series) > 1:
            raise ShineError(f"{path}: has several series; choose with --signal: {listing}.")
        return read_ser(series[0])
    if str(signal) in names:
        return read_ser(series[names.index(str(signal))])
    if str(signal).isdigit() and int(signal) < len(series):
        return read_ser(series[int(signal)])
    raise ShineError(f"{path}: there is no series {signal!r}; it has {listing}.")


def read_ser(path: Path) -> Movie:
    """Read a TIA image series. What an .emi file beside it tells is read along.

    Raises
    ------
    ShineError
        If the file is no TIA series, truncated, or holds spectra or a 4D-STEM scan.

    References
    ----------
    C. Boothroyd, "TIA (Emispec) file format", er-c.org/cbb/info/TIAformat.
    """
    size = require_file(path)
    try:
        kind, dimensions, places = _header(path, size)
    except (struct.error, ValueError, IndexError):
        raise ShineError(f"{path}: not a TIA series, or a damaged or truncated one.") from None
    if kind == _SPECTRA:
        raise ShineError(f"{path}: holds spectra; denoising needs a (t, y, x) movie of images.")
    if kind != _IMAGES or not places:
        raise ShineError(f"{path}: holds no images; was the acquisition stopped before the first?")
    if sum(n > 1 for n, *_ in dimensions) > 1:
        shape = "×".join(str(n) for n, *_ in dimensions)
        raise ShineError(f"{path}: holds a scan of {shape} images (4D-STEM), which is no movie.")
    elements = [_element(path, place) for place in places]
    x_offset, x_size, x_index, y_offset, y_size, y_index, data_type, width, height = elements[0]
    odd = next((i for i, one in enumerate(elements) if one[6:] != elements[0][6:]), None)
    if odd is not None:
        raise ShineError(f"{path}: frame {odd} differs in size or type from the first.")
    if data_type not in _DTYPES or min(width, height) < 1:
        what = "complex numbers" if data_type in (9, 10) else f"unknown data (type {data_type})"
        raise ShineError(f"{path}: holds {what}; a movie is made of real numbers.")
    starts = [place + _ELEMENT_HEADER.size for place in places]
    stored = raw_frames(path, "<" + _DTYPES[data_type], (len(places), height, width), starts)
    emi = _emi_info(path)
    unit = "1/m" if _is_diffraction(emi) else "m"
    name, time_unit, time_step, time_start = "", "", 1.0, 0.0
    if dimensions:
        _, time_start, time_step, name, time_unit = dimensions[0]
    return Movie(
        # TIA counts rows from the bottom.
        LazyFrames(lambda i: stored[i][::-1], stored.shape, stored.dtype),
        axes=(
            _time(time_unit, time_step, time_start),
            axis("y", unit, y_size, y_offset - y_index * y_size),
            axis("x", unit, x_size, x_offset - x_index * x_size),
        ),
        name=path.stem,
        source=path,
        metadata={"format": "TIA series", "dimension": name, **emi},
        history=("the file holds a single image",) if len(places) == 1 else (),
    )


def _time(unit: str, step: float, start: float) -> Axis:
    found = axis("t", unit, step, start)
    return found if found.unit in TIMES else Axis("t")


def _header(
    path: Path, size: int
) -> tuple[int, list[tuple[int, float, float, str, str]], list[int]]:
    """Return the data type id, the series' dimensions, and where its elements begin."""
    with path.open("rb") as file:
        order, series, version, kind, _, total, valid = struct.unpack("<HHHIIII", file.read(22))
        if (order, series) != (0x4949, 0x0197):
            raise ValueError("not a series")
        wide = version >= 0x0220
        pointer = struct.Struct("<q" if wide else "<i")
        (table,) = pointer.unpack(file.read(pointer.size))
        (n_dimensions,) = struct.unpack("<i", file.read(4))
        dimensions = []
        for _ in range(n_dimensions):
            count, start, step, _, length = struct.unpack("<iddii", file.read(28))
            name = file.read(length).decode("latin-1")
            (length,) = struct.unpack("<i", file.read(4))
            dimensions.append((count, start, step, name, file.read(length).decode("latin-1")))
        if valid > total or min(table, n_dimensions) < 0 or table + total * pointer.size > size:
            raise ValueError("the offsets lie outside the file")
        file.seek(table)
        places = np.frombuffer(file.read(valid * pointer.size), "<i8" if wide else "<i4")
    if places.size and not 0 < int(places.min()) <= int(places.max()) < size:
        raise ValueError("the elements lie outside the file")
    return kind, dimensions, [int(place) for place in places]


def _element(path: Path, place: int) -> tuple[Any, ...]:
    with path.open("rb") as file:
        file.seek(place)
        head = file.read(_ELEMENT_HEADER.size)
    if len(head) < _ELEMENT_HEADER.size:
        raise ShineError(f"{path}: the file is truncated.")
    return _ELEMENT_HEADER.unpack(head)


def _emi_info(path: Path) -> dict[str, Any]:
    """Return what the .emi file beside ``NAME_1.ser`` says, or nothing."""
    emi = path.with_name(re.sub(r"_\d+$", "", path.stem) + ".emi")
    number = int((re.findall(r"_(\d+)$", path.stem) or ["1"])[0])
    if not emi.is_file():
        return {}
    parts = re.findall(rb"<ObjectInfo>.*?</ObjectInfo>", emi.read_bytes(), re.DOTALL)
    if not parts:
        return {}
    try:
        tree = ET.fromstring(parts[min(number, len(parts)) - 1].decode("utf-8", "replace"))
    except ET.ParseError:
        return {}
    return {"ObjectInfo": _tree(tree)}


def _tree(node: ET.Element) -> Any:
    """Return an XML element as nested values; TIA's Label/Value/Unit triples as one entry."""
    if not len(node):
        return (node.text or "").strip()
    found: dict[str, Any] = {}
    for child in node:
        label = child.findtext("Label")
        if child.tag == "Data" and label:
            unit = child.findtext("Unit") or ""
            found[f"{label} ({unit})" if unit else label] = (child.findtext("Value") or "").strip()
        else:
            found[child.tag] = _tree(child)
    root = found.pop("Root", None)
    return {**found, **root} if isinstance(root, dict) else found


def _is_diffraction(emi: dict[str, Any]) -> bool:
    """Whether the .emi file says that the camera saw a diffraction pattern."""
    info = emi.get("ObjectInfo", {})
    if not isinstance(info, dict):
        return False
    mode = str(info.get("ExperimentalDescription", {}).get("Mode", ""))
    camera = "CameraNamePath" in info.get("AcquireInfo", {})
    return "Diffraction" in mode or ("STEM" in mode and camera)
