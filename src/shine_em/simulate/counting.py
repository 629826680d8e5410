r"""Electron counting: what is lost, and what the loss does to the noise.

A counting camera reads many internal frames for each frame that it records, and finds single
electrons in them. Where two electrons meet in one internal frame in the same pixel or in adjoining
ones (above, below, left, right), their tracks merge, and here both are lost. With :math:`n`
detectable electrons per pixel in :math:`M` internal frames,

.. math:: n e^{-5 n / M}

are counted: the formula of a paralysable counter whose dead time is 5 pixels of one internal frame.
At 400 internal frames per second it loses 10 % of 8 electrons per pixel and second. That is the
order of the K2's loss: Leginon's manual calls 0.9 counts per electron typical at this dose rate.
The neighbourhood of 5 pixels is a model, not a measurement.

The counted electrons of one internal frame are a point process in which neighbours extinguish each
other (Matérn's first), so that its noise is known exactly: white at low dose rates, with less power
at low frequencies at high ones.

References
----------
B. Matérn, Spatial Variation (1960). Leginon manual, "K2 camera sensitivity".
P. Zambon, Modeling the impact of coincidence loss on count rate statistics and noise performance in
counting detectors for imaging applications. Front. Phys. 12, 1408430 (2024) (other such models).
"""

from __future__ import annotations

import numpy as np

__all__ = ["COINCIDENCE_PIXELS", "counted", "counting_noise_power", "counting_response"]

# Pixels that the plus-shaped neighbourhoods of two pixels share, by their distance; None where
# one pixel lies in the other's neighbourhood, so that not both can count.
_PLUS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
COINCIDENCE_PIXELS = len(_PLUS)
_SHARED: dict[tuple[int, int], int | None] = {
    **dict.fromkeys(_PLUS[1:], None),
    **dict.fromkeys(((1, 1), (1, -1), (-1, 1), (-1, -1)), 2),
    **dict.fromkeys(((0, 2), (2, 0), (0, -2), (-2, 0)), 1),
}


def counted(
    electrons: np.ndarray, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw electrons, and count those that are alone in their neighbourhood and internal frame.

    Parameters
    ----------
    electrons
        ``(y, x)`` expected detectable electrons per pixel.
    frames
        Number of internal frames.
    rng
        Source of the noise.

    Returns
    -------
    expected, counts
        ``(y, x)`` float64: the mean after coincidence loss, and one draw.
    """
    height, width = electrons.shape
    padded = np.pad(electrons, 1)
    around = np.zeros(electrons.shape)
    for dy, dx in _PLUS:
        around += padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
    expected = electrons * np.exp(-around / frames)

    arrived = rng.poisson(electrons)
    pixel = np.repeat(np.arange(arrived.size), arrived.ravel())
    frame = rng.integers(frames, size=pixel.size)
    # A spare row and column keep neighbours from wrapping around the image's edges.
    row, column = np.divmod(pixel, width)
    key = (frame * (height + 1) + row) * (width + 1) + column
    order = np.argsort(key)
    key, pixel = key[order], pixel[order]
    alone = np.ones(key.size, bool)
    same = key[1:] == key[:-1]
    alone[1:] &= ~same
    alone[:-1] &= ~same
    for step in (1, width + 1):
        after = np.searchsorted(key, key + step)
        met = np.flatnonzero(after < key.size)
        met = met[key[after[met]] == key[met] + step]
        # Of several electrons in one pixel all are lost already, so marking one of them is enough.
        alone[met] = False
        alone[after[met]] = False
    counts = np.bincount(pixel[alone], minlength=electrons.size)
    return expected, counts.reshape(electrons.shape).astype(np.float64)


def counting_noise_power(electrons: float, frames: int, f: np.ndarray, g: np.ndarray) -> np.ndarray:
    r"""Return the noise power of the counts in an even field, in square electrons per pixel.

    With :math:`\lambda = n / M` electrons per internal frame, the probability
    :math:`\rho = \lambda e^{-5 \lambda}` of a count and the number :math:`o(d)` of pixels that the
    neighbourhoods of two pixels at the distance :math:`d` share, the covariance is

    .. math:: C(0) = M \rho (1 - \rho), \quad C(d) = -M \rho^2 \text{ for adjoining pixels},
              \quad C(d) = M \rho^2 (e^{\lambda o(d)} - 1) \text{ beyond},

    and the noise power is its Fourier transform.

    Parameters
    ----------
    electrons
        Detectable electrons per pixel.
    frames
        Number of internal frames.
    f, g
        Cycles per pixel along x and y, of one shape.
    """
    rate = electrons / frames
    count = rate * np.exp(-COINCIDENCE_PIXELS * rate)
    power = np.full(np.shape(f), count * (1 - count))
    for (dy, dx), shared in _SHARED.items():
        covariance = -(count**2) if shared is None else count**2 * np.expm1(rate * shared)
        power = power + covariance * np.cos(2 * np.pi * (f * dx + g * dy))
    return power * frames


def counting_response(electrons: float, frames: int, f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Return how much of a small modulation at ``f``, ``g`` the coincidence loss leaves."""
    rate = electrons / frames
    around = 1 + 2 * np.cos(2 * np.pi * f) + 2 * np.cos(2 * np.pi * g)
    return np.exp(-COINCIDENCE_PIXELS * rate) * (1 - rate * around)
