"""How pictures are shown: scale bars of a nice round length, and one contrast for two movies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ScaleBar",
    "block_means",
    "fitted_into",
    "percentile_range",
    "scale_bar",
    "shared_contrast",
]

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


def block_means(image: np.ndarray, step: int) -> np.ndarray:
    """Return a ``(y, x)`` image averaged over blocks of ``step`` × ``step``; an odd rest is cut."""
    rows, columns = (n // step for n in image.shape)
    cut = image[: rows * step, : columns * step]
    return np.asarray(cut.reshape(rows, step, columns, step).mean((1, 3)))


def fitted_into(image: np.ndarray, side: int) -> np.ndarray:
    """Return a ``(y, x)`` image averaged down to at most ``side`` pixels, by whole blocks."""
    step = -(-max(image.shape) // side)
    return block_means(image, step) if step > 1 else image


def percentile_range(values: np.ndarray, percent: float) -> tuple[float, float]:
    """Return the range of the values without ``percent`` at either end; never an empty one."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, [percent, 100 - percent]))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def shared_contrast(raw: np.ndarray, denoised: np.ndarray) -> tuple[float, float]:
    """Return one black and one white level in which raw and denoised frames both can be read.

    It lies between the raw movie's own contrast, in which the denoised one looks flat, and the
    denoised movie's own, in which raw noise is all black and white: the geometric mean of both
    ranges, around the middle of the denoised one.

    Parameters
    ----------
    raw, denoised
        Pixel values (samples of the movies).
    """
    a, b = percentile_range(raw, 0.5), percentile_range(denoised, 0.2)
    half = math.sqrt((a[1] - a[0]) * (b[1] - b[0])) / 2
    middle = (b[0] + b[1]) / 2
    return middle - half, middle + half
