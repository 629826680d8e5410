"""Noise like a movie's own: its variance, and its correlation in space and time."""

from __future__ import annotations

import numpy as np

from .error_estimate import noise_variance
from .noise import NoiseStatistics
from .noise_spectrum import coloured, noise_colour

__all__ = ["SyntheticNoise"]


class SyntheticNoise:
    """Draws noise of the kind that was measured.

    ``noise(t, level)`` is that of frame ``t``, ``(y, x)`` in movie units, the same every time it is
    asked for: of the variance that the measured one has at the signal ``level``, ``(y, x)``, and
    correlated in space and time as the movie's noise is. A measured fixed pattern is part of it.

    Parameters
    ----------
    noise
        What was measured; there must be some noise.
    shape
        Of a frame, ``(y, x)``.
    seed
        Another seed gives other noise.
    """

    def __init__(self, noise: NoiseStatistics, shape: tuple[int, int], seed: int) -> None:
        self.noise, self.shape, self.seed = noise, shape, seed
        self.fixed = noise.fixed_pattern_fraction if noise.fixed_pattern else 0.0
        self.in_time = _kernel(noise, self.fixed)
        self.colour = noise_colour(noise.difference_correlation, shape)

    def __call__(self, t: int, level: np.ndarray) -> np.ndarray:
        """Return the noise of frame ``t`` over a signal ``level``."""
        half = len(self.in_time) // 2
        white = np.zeros(self.shape)
        for k, weight in enumerate(self.in_time):
            if weight:
                white += np.sqrt(1 - self.fixed) * weight * self._white(t + k - half)
        if self.fixed:
            white += np.sqrt(self.fixed) * self._white(-1_000)
        unit = coloured(white, self.colour)
        return np.asarray(unit * np.sqrt(noise_variance(self.noise, level)))

    def _white(self, t: int) -> np.ndarray:
        """Return ``(y, x)`` white noise of unit variance."""
        return np.random.default_rng([self.seed, 12, t + 10_000]).standard_normal(self.shape)


def _kernel(noise: NoiseStatistics, fixed: float) -> np.ndarray:
    """Return weights that give white frames the noise's correlation in time; ``[1]`` for none."""
    values, errors = noise.temporal_correlation, noise.temporal_error
    if not noise.blinded_lags or fixed >= 1:
        return np.ones(1)
    n = 32
    table = np.zeros(n)
    for lag in range(1, min(len(values), n // 2)):
        sure = np.isfinite(values[lag]) and abs(values[lag]) > 3 * errors[lag]
        table[[lag, -lag]] = (values[lag] - fixed) / (1 - fixed) if sure else 0.0
    table[0] = 1.0
    kernel = np.fft.ifft(np.sqrt(np.maximum(np.fft.fft(table).real, 0))).real
    weights = np.roll(kernel, n // 2)[n // 2 - 6 : n // 2 + 7]
    return np.asarray(weights / np.sqrt((weights**2).sum()))
