"""Units as microscopes spell them, brought to one spelling, and metadata as plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..movie import Axis

__all__ = ["TIMES", "axis", "clean_unit", "plain"]

_SPELLINGS = {
    "nm": ("nm", "nanometer", "nanometers", "nanometre", "nanometres", "n_m"),
    "Å": ("Å", "A", "Å", "ang", "angstrom", "angstroms", "ångström"),
    "µm": ("µm", "μm", "um", "micron", "microns", "micrometer", "micrometers", "micrometre", "u_m"),
    "pm": ("pm", "picometer", "picometers", "p_m"),
    "mm": ("mm", "millimeter", "millimeters"),
    "cm": ("cm", "centimeter", "centimeters"),
    "m": ("m", "meter", "meters", "metre", "metres"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "millisecond", "milliseconds"),
    "µs": ("µs", "μs", "us", "usec", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nanosecond", "nanoseconds"),
    "min": ("min", "minute", "minutes"),
    "h": ("h", "hour", "hours"),
}
TIMES = ("s", "ms", "µs", "ns", "min", "h")
_CANONICAL = {name.lower(): unit for unit, names in _SPELLINGS.items() for name in names}
_NOTHING = {
    "", "[]", "none", "<undefined>", "undefined", "pixel", "pixels", "px", "pix", "frame",
    "frames", "reference frame", "no unit", "arbitrary", "a.u.",
}  # fmt: skip


def clean_unit(unit: Any) -> str | None:
    """Return a unit in its one canonical spelling, or None where it says nothing.

    Knows lengths, times and reciprocal lengths (``1/nm``, ``nm^-1``, ``1 / nm``); any other unit
    (``mrad``, ``eV``) is returned as it stands.
    """
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", "replace")
    if not isinstance(unit, str):
        return None
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda hit: chr(int(hit[1], 16)), unit)
    text = text.strip().strip("\x00").strip("[]").strip()
    if text.lower() in _NOTHING:
        return None
    if (whole := _CANONICAL.get(text.lower())) is not None:
        return whole
    inverse = re.fullmatch(r"(?:1\s*/\s*(.+?)|(.+?)\s*(?:\^\s*\(?-1\)?|\*\*-1|-1|⁻¹))", text)
    if inverse and (base := _CANONICAL.get((inverse[1] or inverse[2]).lower())) is not None:
        return f"1/{base}"
    return text


def axis(name: str, unit: Any, scale: Any = 1.0, offset: Any = 0.0) -> Axis:
    """Return a calibrated axis, or a bare one where the file's numbers calibrate nothing.

    Metres, in which microscopes store lengths and nobody thinks, become nm.
    """
    unit = clean_unit(unit)
    try:
        scale, offset = float(scale), float(offset)
    except (TypeError, ValueError):
        return Axis(name)
    if unit is None or not math.isfinite(scale) or scale == 0:
        return Axis(name)
    if not math.isfinite(offset):
        offset = 0.0
    for metric, factor, target in (("m", 1e9, "nm"), ("1/m", 1e-9, "1/nm")):
        if unit == metric:
            scale, offset, unit = scale * factor, offset * factor, target
    return Axis(name, unit, scale, offset)


def plain(value: Any, *, longest: int = 256) -> Any:
    """Return metadata as nested dicts, lists, strings, numbers, booleans and None.

    Long arrays (thumbnails, look-up tables) are replaced by a word on their shape, so that the
    metadata of a long movie stays small.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner, longest=longest) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        if value.size > longest:
            return f"<array {value.shape} {value.dtype}>"
        return plain(value.tolist(), longest=longest)
    if isinstance(value, (list, tuple, set)):
        if len(value) > longest:
            return f"<{len(value)} values>"
        return [plain(inner, longest=longest) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item(), longest=longest)
    if isinstance(value, bytes):
        text = value.rstrip(b"\x00")
        return text.decode("utf-8", "replace") if len(text) <= 4096 else f"<{len(text)} bytes>"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)
