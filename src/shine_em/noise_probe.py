"""A probe that looks like a movie's noise, to learn how much of it a denoiser hands on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from .doctor import Health
from .error_estimate import noise_variance
from .movie import Movie
from .noise import NoiseStatistics
from .noise_spectrum import noise_colour
from .patches import Normalisation

if TYPE_CHECKING:
    from .denoising import Denoiser

__all__ = ["EPSILON", "NoiseProbe", "Seen", "look"]

EPSILON = 0.3  # the probe's share of the noise
_IN_TIME = (0.3, 0.4, 0.3)  # weights of the frames before, at, and after


class NoiseProbe:
    """Noise like a movie's own.

    ``probe(t)`` is that of frame ``t``, ``(y, x)`` in movie units: of the measured variance, and
    correlated in space and time as the movie's noise is. ``probe[t]`` is the raw frame with
    `EPSILON` times the probe added, so that a probe can stand in for a movie's data.

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it; there must be some noise.
    normalisation
        Of the denoiser: pixels that it does not trust get no probe.
    seed
        Of the probe.
    """

    def __init__(
        self,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        normalisation: Normalisation,
        seed: int,
    ) -> None:
        self.movie, self.noise, self.normalisation, self.seed = movie, noise, normalisation, seed
        self.bad = np.asarray(health.bad_pixels, bool)
        self.fixed = noise.fixed_pattern_fraction if noise.fixed_pattern else 0.0
        self.in_time = _kernel(noise, self.fixed)
        self.colour = noise_colour(noise.difference_correlation, movie.shape[1:])
        # What `Denoiser.stream` asks of a movie's data: a shape, a type, and frames.
        self.shape, self.dtype = movie.shape, np.dtype(np.float32)
        self.held: deque[tuple[int, np.ndarray]] = deque(maxlen=8)

    def __call__(self, t: int) -> np.ndarray:
        """Return the probe of frame ``t``."""
        for i, made in self.held:
            if i == t:
                return made
        half = len(self.in_time) // 2
        white = sum(
            w * self._white(t + k - half) for k, w in enumerate(self.in_time) if w
        ) * np.sqrt(1 - self.fixed)
        if self.fixed:
            white = white + np.sqrt(self.fixed) * self._white(-1_000)
        raw = self.movie.frame(t)
        good = self.normalisation.trusted(raw, self.bad)
        level = ndimage.gaussian_filter(
            np.where(good, raw, self.normalisation.location).astype(float), 2.0
        )
        made = np.where(good, white * np.sqrt(noise_variance(self.noise, level)), 0.0)
        # A pixel that the probe turned into a spike would be hidden from the network.
        room = np.where(good, raw, 0.0)
        low, high = self.normalisation.floor, self.normalisation.ceiling
        made = (np.clip(room + EPSILON * made, low, high) - np.clip(room, low, high)) / EPSILON
        self.held.append((t, made))
        return np.asarray(made)

    def __getitem__(self, t: int) -> np.ndarray:
        """Return the raw frame with its share of the probe."""
        raw = self.movie.frame(t).astype(np.float32)
        return raw + np.float32(EPSILON) * self(t).astype(np.float32)

    def _white(self, t: int) -> np.ndarray:
        """Return ``(y, x)`` noise of unit variance, correlated in space."""
        rng = np.random.default_rng([self.seed, 12, t + 10_000])
        made = np.fft.ifft2(np.fft.fft2(rng.standard_normal(self.shape[1:])) * self.colour).real
        return np.asarray(made)


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


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame with the answers to the probe of itself and of the frames beside it."""

    t: int
    raw: np.ndarray
    denoised: np.ndarray
    around: tuple[np.ndarray | None, np.ndarray | None]  # denoised frames before and after
    moved: tuple[Any, np.ndarray, Any]  # δ of the frames before (or None), at, and after (or None)

    def through(self, width: float) -> np.ndarray:
        """Return the variance of the noise that comes through, averaged over ``width`` px."""
        total, weights = np.zeros(self.raw.shape), 0.0
        for moved, weight in zip(self.moved, _IN_TIME, strict=True):
            if moved is not None:
                total += weight * np.abs(moved)
                weights += weight
        # From the mean absolute value: at an edge, less of the other side bleeds in.
        mean = ndimage.gaussian_filter(total / weights, width, mode="nearest")
        return np.asarray(np.pi / 2 * mean**2)


def _placed(frame: np.ndarray, path: np.ndarray | None, of: int, at: int) -> np.ndarray:
    """Return frame ``of`` displaced by the drift, so that its picture lies on that of ``at``.

    What the drift brings in from outside is taken from the border.
    """
    if path is None:
        return frame
    by = np.rint(path[of] - path[at]).astype(int)
    rows, columns = (
        np.clip(np.arange(n) + d, 0, n - 1) for n, d in zip(frame.shape, by, strict=True)
    )
    return frame[np.ix_(rows, columns)]


def look(
    denoiser: Denoiser, movie: Movie, health: Health, probe: NoiseProbe, frames: Sequence[int]
) -> Iterator[Seen]:
    """Denoise consecutive frames with and without the probe."""
    probed = movie.with_data(probe, did="probe added")
    pairs = zip(
        denoiser.stream(movie, health, frames=frames),
        denoiser.stream(probed, health, frames=frames),
        strict=True,
    )
    held: deque[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = deque(maxlen=3)

    def seen(i: int) -> Seen:
        t, raw, denoised, moved = held[i]

        def beside(j: int) -> tuple[Any, Any]:
            if not 0 <= j < len(held) or health.segment[held[j][0]] != health.segment[t]:
                return None, None
            if health.blank[held[j][0]]:
                return None, None
            at, _, frame, moved = held[j]
            return _placed(frame, health.path, at, t), _placed(moved, health.path, at, t)

        (before, moved_before), (after, moved_after) = beside(i - 1), beside(i + 1)
        return Seen(t, raw, denoised, (before, after), (moved_before, moved, moved_after))

    for (t, raw, denoised), (_, _, second) in pairs:
        moved = (second.astype(np.float64) - denoised) / EPSILON
        held.append((t, raw, denoised, moved))
        if len(held) >= 2:
            yield seen(len(held) - 2)
    if held:
        yield seen(len(held) - 1)
