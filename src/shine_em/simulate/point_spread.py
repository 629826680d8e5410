"""The simplest camera: Poisson arrival and one point spread, which signal and noise share.

The Au growth movie of the benchmarks is recorded with it; `shine_em.simulate.detector` has cameras
whose signal and noise transfer differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ShineError

__all__ = ["K2_LIKE_POINT_SPREAD", "noise_correlation", "record", "spread"]

# Weights at 0, 1 and 2 pixels from the pixel that an electron hits. They make the noise correlated
# by 0.305, 0.039 and 0.002 at 1, 2 and 3 pixels, as measured on a K2-like camera.
K2_LIKE_POINT_SPREAD = (1.0, 0.159, 0.0079)


def record(
    electrons: np.ndarray,
    rng: np.random.Generator,
    *,
    conversion: float = 3.47,
    dqe: float = 1.0,
    point_spread: Sequence[float] = K2_LIKE_POINT_SPREAD,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Record one frame with an integrating camera.

    Electrons arrive at random (Poisson), the camera keeps a fraction ``dqe`` of their information,
    and spreads the signal of each electron over the neighbouring pixels. As a whole electron is
    spread, noise and image are blurred alike and the noise of adjacent pixels is correlated:

    .. math:: I = \frac{g}{Q} \, k * n, \quad n \sim \mathrm{Poisson}(Q N)

    with the expected electrons :math:`N`, the detective quantum efficiency at zero frequency
    :math:`Q`, the conversion :math:`g` and the point spread :math:`k` of sum 1. Then
    :math:`\langle I \rangle = g \, k * N` and, in an even field,
    :math:`\mathrm{var}\,I = g^2 N \sum k^2 / Q`.

    Parameters
    ----------
    electrons
        ``(y + 2 p, x + 2 p)`` expected electrons per pixel, with a border of
        ``p = len(point_spread) - 1`` pixels, from which signal spreads into the frame.
    rng
        Source of the noise.
    conversion
        Counts per incident electron.
    dqe
        Detective quantum efficiency at zero frequency, above 0 and up to 1.
    point_spread
        Weights at 0, 1, 2, ... pixels along each axis; scaled here to the sum 1.

    Returns
    -------
    noisy, expected
        ``(y, x)`` float32 counts with and without noise.

    Raises
    ------
    ShineError
        If ``conversion``, ``dqe`` or ``point_spread`` is impossible.

    References
    ----------
    R. R. Meyer, A. I. Kirkland, Characterisation of the signal and noise transfer of CCD cameras
    for electron detection. Microsc. Res. Tech. 49, 269-280 (2000).
    """
    if not (np.isfinite(conversion) and conversion > 0):
        raise ShineError(f"conversion must be positive counts per electron, not {conversion}.")
    if not 0 < dqe <= 1:
        raise ShineError(f"dqe must lie above 0 and not above 1, not {dqe}.")
    arrived = rng.poisson(electrons * dqe).astype(np.float32)
    noisy = spread(arrived, point_spread) * np.float32(conversion / dqe)
    expected = spread(electrons, point_spread) * np.float32(conversion)
    return noisy, expected


def spread(image: np.ndarray, point_spread: Sequence[float]) -> np.ndarray:
    """Convolve an image with the point spread along both axes and cut off the border.

    Parameters
    ----------
    image
        ``(y + 2 p, x + 2 p)`` with ``p = len(point_spread) - 1``.
    point_spread
        Weights at 0, 1, ..., ``p`` pixels; scaled here to the sum 1.

    Returns
    -------
    ndarray
        ``(y, x)`` float32.

    Raises
    ------
    ShineError
        If a weight is negative or not finite, or the image is not larger than its border.
    """
    from scipy.ndimage import correlate1d

    kernel = _kernel(point_spread)
    border = len(kernel) // 2
    if min(image.shape) <= 2 * border:
        raise ShineError(f"An image of {image.shape} is too small for point_spread's border.")
    blurred = np.asarray(image, np.float32)
    for axis in (0, 1):
        blurred = correlate1d(blurred, kernel, axis=axis)
    inner = slice(border, -border or None)
    return blurred[inner, inner]


def noise_correlation(point_spread: Sequence[float], distances: int = 4) -> np.ndarray:
    """Return the correlation of the noise at 1, 2, ... pixels along an axis.

    It is the normalised autocorrelation of the point spread, because the arrivals themselves are
    independent. Off the axes it is the product of the two axes' values.

    Examples
    --------
    >>> noise_correlation((1.0, 0.5), 2).round(3)
    array([0.667, 0.167])
    """
    kernel = _kernel(point_spread)
    full = np.correlate(kernel, kernel, mode="full")
    full = np.pad(full / full.max(), distances)
    middle = len(full) // 2
    return full[middle + 1 : middle + 1 + distances]


def _kernel(point_spread: Sequence[float]) -> np.ndarray:
    weights = np.asarray(point_spread, np.float64)
    if weights.ndim != 1 or not weights.size or not np.isfinite(weights).all():
        raise ShineError(f"point_spread must be a list of weights, not {point_spread!r}.")
    if (weights < 0).any() or weights[0] == 0:
        raise ShineError(f"point_spread needs a positive centre and no negative weight: {weights}.")
    kernel = np.concatenate([weights[:0:-1], weights])
    return kernel / kernel.sum()
