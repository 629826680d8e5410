"""Scale bars of a nice round length."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ScaleBar", "scale_bar"]

_UNITS = ((1e6, "mm"), (1e3, "µm"), (1.0, "nm"), (1e-3, "pm"))


@dataclass(frozen=True)
class ScaleBar:
    """A scale bar for one picture.

    Attributes
    ----------
    length_px
        Length in pixels of the picture.
    label
        Length in words: ``"5 nm"``, ``"0.5 nm"``, ``"2 µm"``, or ``"100 px"`` where the pixel size
        is not known.
    """

    length_px: float
    label: str


def scale_bar(width_px: int, pixel_size_nm: float | None, *, share: float = 0.25) -> ScaleBar:
    """Return the scale bar of the largest length 1, 2 or 5 · 10ⁿ within a share of the width.

    Parameters
    ----------
    width_px
        Width of the picture in pixels.
    pixel_size_nm
        Pixel size in nm; None gives a bar in pixels.
    share
        Most of the picture's width that the bar may take.
    """
    size = pixel_size_nm or 1.0
    longest = max(width_px * share, 1.0) * size
    # The last factor keeps 4.999… from losing the 5 that it means.
    decade = 10.0 ** math.floor(math.log10(longest * (1 + 1e-9)))
    length = max(step for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9)) * decade
    if pixel_size_nm is None:
        return ScaleBar(length, f"{length:g} px")
    # Atoms are seen at 0.1–1 nm, where "0.5 nm" reads better than "500 pm".
    factor, unit = next(
        ((f, u) for f, u in _UNITS if length >= (0.1 * f if u == "nm" else f) * (1 - 1e-9)),
        _UNITS[-1],
    )
    return ScaleBar(length / size, f"{round(length / factor, 9):g} {unit}")
