"""`describe`: what a movie is, in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..movie import Axis, Movie
from .raw import human_size
from .units import TIMES

__all__ = ["describe"]

# Where vendors keep the facts that matter to a denoised movie: (what, words of the key).
_FACTS = (
    ("microscope", r"(?:^|\.)(?:InstrumentClass|Microscope|Session Info\.Microscope)$"),
    ("voltage", r"(?:^|\.)(?:AccelerationVoltage|AcceleratingVoltage|Voltage|E0|beam_energy)$"),
    ("magnification", r"(?:^|\.)(?:NominalMagnification|Indicated Magnification|Magnification"
                      r"(?:_x)?|magnification)$"),
    ("detector", r"(?:^|\.)(?:BinaryResult\.Detector|Device Name|CameraNamePath|Camera Model|"
                 r"cameraname|detector)$"),
    ("exposure", r"(?:^|\.)(?:Exposure \(s\)|Exposure Time \(s\)|Exposure Time \(seconds\)|"
                 r"ExposureTime|DwellTimePath|exposure)$"),
)  # fmt: skip


def describe(movie: Movie) -> dict[str, str]:
    """Return what is known of a movie, ready to print.

    Parameters
    ----------
    movie
        The movie; only its header is looked at, no frame is read.

    Returns
    -------
    dict
        From a short name ("pixel size") to a readable value ("0.0317 nm"), in reading order.
        What the file does not know says so ("not calibrated", "unknown") where it matters.
    """
    n, height, width = movie.shape
    t, y, x = movie.axes
    size = n * height * width * movie.dtype.itemsize
    is_time = t.unit in TIMES
    told = {
        "name": movie.name,
        "format": str(movie.metadata.get("format", "array")),
        "file": str(movie.source) if movie.source is not None else "none (in memory)",
        "shape": f"{n} frames of {height}×{width} pixels (y×x)",
        "dtype": str(movie.dtype),
        "pixel size": _pixel_size(y, x),
        "field of view": _field(y, x, height, width),
        "frame time": _with_unit(abs(t.scale), t.unit) if is_time else "not calibrated",
        "duration": _with_unit(n * abs(t.scale), t.unit) if is_time else "unknown",
        "dose": (
            f"{movie.dose_e_per_A2:.4g} e⁻/Å² per frame, {n * movie.dose_e_per_A2:.4g} e⁻/Å² in all"
            if movie.dose_e_per_A2 is not None
            else "unknown"
        ),
        "intensity unit": movie.intensity_unit or "unknown",
        "size": f"{human_size(size)} uncompressed",
    }
    if (on_disk := _size_on_disk(movie.source)) is not None:
        told["size"] += f", {human_size(on_disk)} on disk"
    told.update(_facts(movie.metadata))
    told["history"] = "; ".join(movie.history) or "none"
    return told


def _with_unit(value: float, unit: str | None) -> str:
    if unit == "s" and value < 0.1:
        return f"{value * 1e3:.6g} ms"
    return f"{value:.6g} {unit}"


def _pixel_size(y: Axis, x: Axis) -> str:
    if x.unit is None:
        return "not calibrated"
    if y.unit == x.unit and abs(abs(y.scale) - abs(x.scale)) <= 1e-6 * abs(x.scale):
        return f"{abs(x.scale):.6g} {x.unit}"
    return f"{abs(y.scale):.6g} {y.unit or 'px'} × {abs(x.scale):.6g} {x.unit} (y×x)"


def _field(y: Axis, x: Axis, height: int, width: int) -> str:
    if x.unit is None or y.unit is None:
        return "unknown"
    return f"{height * abs(y.scale):.5g} {y.unit} × {width * abs(x.scale):.5g} {x.unit} (y×x)"


def _size_on_disk(source: Path | None) -> int | None:
    if source is None or not source.exists():
        return None
    if source.is_file():
        return source.stat().st_size
    return sum(file.stat().st_size for file in source.rglob("*") if file.is_file())


def _facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    leaves = list(_leaves(metadata))
    found = {}
    for what, pattern in _FACTS:
        for key, value in leaves:
            if value not in (None, "", 0, 0.0, "0") and re.search(pattern, key):
                found[what] = _voltage(value, key) if what == "voltage" else str(value).strip()
                break
    return found


def _voltage(value: Any, key: str) -> str:
    try:
        volts = float(value)
    except (TypeError, ValueError):
        return str(value)
    # hspy and simulations give keV, microscopes V; no electron microscope runs below 1.5 kV.
    return f"{volts / 1000 if volts > 1500 else volts:g} kV"


def _leaves(tree: Mapping[str, Any], trail: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        where = f"{trail}.{key}" if trail else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, where)
        elif not isinstance(value, (list, tuple)):
            yield where, value
