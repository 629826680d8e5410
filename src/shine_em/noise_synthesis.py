"""Noise like a movie's own: its variance, distribution, and correlation in space and time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .doctor import Health
from .error_estimate import noise_variance
from .movie import Movie
from .noise import NoiseStatistics
from .noise_spectrum import coloured, noise_colour

if TYPE_CHECKING:
    from .denoising import Denoiser

__all__ = ["Renewed", "SyntheticNoise", "distribution_of", "noise_values"]

_PARTS = 512  # of a distribution
_DEAF = 0.2  # share of the mean amplitude below which a frequency holds no noise to speak of


class SyntheticNoise:
    """Draws noise of the kind that was measured.

    ``noise(t, level)`` is that of frame ``t``, ``(y, x)`` in movie units, the same every time it is
    asked for: of the variance that the measured one has at the signal ``level``, ``(y, x)``,
    distributed as it is, and correlated in space and time. A measured fixed pattern is part of it.

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
        rng = np.random.default_rng([self.seed, 12, t + 10_000])
        parts = self.noise.distribution
        if not len(parts):
            return rng.standard_normal(self.shape)
        return np.interp(rng.random(self.shape), np.linspace(0, 1, len(parts)), parts)


def noise_values(
    raw: np.ndarray,
    denoised: np.ndarray,
    good: np.ndarray,
    noise: NoiseStatistics,
    colour: np.ndarray,
) -> np.ndarray:
    """Return the noise of a frame's good pixels, of about unit variance and freed of correlation.

    Parameters
    ----------
    raw, denoised, good
        ``(y, x)``: the frame as recorded and denoised, movie units, and where it is trusted.
    noise, colour
        What is known of the noise, and its `noise_colour` for such frames.

    Returns
    -------
    ndarray
        ``(n,)``.
    """
    removed = np.where(good, raw, denoised) - denoised.astype(float)
    unit = removed / np.sqrt(noise_variance(noise, denoised))
    return np.asarray(coloured(unit, 1 / np.maximum(colour, _DEAF))[good])


def distribution_of(values: np.ndarray) -> np.ndarray:
    """Return the means of equal parts of the values, scaled to what is drawn between them.

    Empty for fewer than ten values a part, or values that are all alike.
    """
    if len(values) < 10 * _PARTS:
        return np.zeros(0)
    parts = np.array([part.mean() for part in np.array_split(np.sort(values), _PARTS)])
    a, b = parts[:-1], parts[1:]  # straight lines between are drawn from
    mean, square = (a + b).mean() / 2, (a**2 + a * b + b**2).mean() / 3
    spread = float(square - mean**2)
    return (parts - mean) / np.sqrt(spread) if spread > 0 else np.zeros(0)


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


class Renewed:
    """The denoised movie with new noise, as a movie's data: each frame as it is asked for.

    Parameters
    ----------
    denoiser, movie, health, noise
        What denoises, the movie, and what is known of it.
    seed
        Of the noise.
    frames
        Those that will be denoised once more, rising; all by default. Only they and their
        neighbours are made.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        seed: int,
        *,
        frames: Sequence[int] | None = None,
    ) -> None:
        self.denoiser, self.movie, self.health = denoiser, movie, health
        self.shape, self.dtype = movie.shape, np.dtype(np.float32)
        self.noise = SyntheticNoise(noise, movie.shape[1:], seed)
        reach = denoiser.model.config.frames // 2
        self.next = 0 if frames is None else max(0, frames[0] - reach)
        self.frames = denoiser.stream(movie, health, frames=range(self.next, len(movie)))
        # What is denoised once more has begun further on than the frame that is asked for last; a
        # window holds a few frames before and after its own, and their copies.
        self.keep = denoiser.ahead(movie.shape[1:]) + 2 * denoiser.model.config.frames + 2
        self.held: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def known(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a raw frame and its denoised one; those long past are denoised anew."""
        if t < self.next and t not in self.held:
            ((_, raw, denoised),) = self.denoiser.stream(self.movie, self.health, frames=[t])
            return raw, denoised
        while t not in self.held:
            number, raw, denoised = next(self.frames)
            self.held[number], self.next = (raw, denoised), number + 1
            if len(self.held) > self.keep:
                self.held.popitem(last=False)
        return self.held[t]

    def __getitem__(self, t: int) -> np.ndarray:
        """Return a denoised frame with new noise."""
        _, denoised = self.known(t)
        made = denoised + self.noise(t, denoised.astype(float))
        # A pixel that the noise turned into a spike would be hidden from the network.
        n = self.denoiser.model.normalisation
        return np.clip(made, n.floor, n.ceiling).astype(np.float32)
