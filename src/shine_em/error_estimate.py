r"""The squared error of a denoised movie, estimated from the noisy movie alone.

A raw frame is :math:`y = s + n`, picture and noise. For any denoiser :math:`\hat x(y)`

.. math::

   E|\hat x - s|^2 = E|y - \hat x|^2 - E\,n^2 + 2\,E[n\,\hat x].

The first term is seen. The second is the noise variance: the same for every denoiser, so that
it drops out of differences. The third says how much of its own noise a denoiser hands on: nothing
where a hole hides every pixel whose noise is correlated with the hidden one's, something for a
smaller hole, for a filter or for a network that is not blind. By Stein's lemma its sum over the
pixels is :math:`\mathrm{tr}(\Sigma\,\partial\hat x/\partial y)`, :math:`\Sigma` being the
covariance of the noise. It is measured with a probe :math:`b` of that same covariance (correlation
in space and time, variance that follows the signal):

.. math:: E[n\,\hat x] \approx \langle b\,(\hat x(y + \epsilon b) - \hat x(y)) \rangle / \epsilon.

References
----------
C. M. Stein, Estimation of the mean of a multivariate normal distribution. Ann. Stat. 9, 1135-1151
(1981). S. Ramani, T. Blu, M. Unser, Monte-Carlo SURE. IEEE Trans. Image Process. 17, 1540-1554
(2008). Y. C. Eldar, Generalized SURE for exponential families. IEEE Trans. Signal Process. 57,
471-481 (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .doctor import Health
from .error_matrix import ErrorEstimate, ErrorMatrix, block_sums
from .errors import ShineError
from .movie import Movie
from .noise import NoiseStatistics
from .noise_spectrum import coloured, noise_colour
from .patches import Normalisation, Timeline, cut

if TYPE_CHECKING:
    from .checkpoint import Model

__all__ = ["ErrorEstimate", "ErrorEstimator", "ErrorMatrix", "Predict", "noise_variance"]

# ``predict(windows, shift)``: ``(b, frames, h, w)`` normalised → ``(b, h, w)``, as
# `Denoiser.predict`; for several candidates at once ``(k, b, h, w)``, as `Denoiser.predict_each`.
Predict = Callable[[np.ndarray, int], np.ndarray]

FRAMES = 5
EDGE = 512  # px: of larger frames, a part is enough
_EPSILON = 0.1  # the probe's share of the noise: networks are bent, float32 is coarse
_SIGMAS = 3.0  # a correlation in time counts from this many standard errors
_LEAST_VARIANCE = 0.05  # of the typical one: a fitted line may fall below zero in the dark


class ErrorEstimator:
    """Estimates what denoisers get wrong on a spread of a movie's frames.

    Parameters
    ----------
    movie, health
        The movie and its input check; only trusted pixels count.
    noise
        Its noise statistics, from which the probe is made.
    normalisation
        Of the denoisers' input and output.
    window
        Frames in a window, odd.
    blinded_lags, mirror
        See `Timeline`: how the windows are made up.
    frames
        How many frames, one drawn from each of as many equal stretches of the movie (so that its
        ends count no more than any other frame), or which.
    edge
        Of wider frames, a part this wide is looked at, px.
    seed
        Of frames, places and probes: the same for all denoisers, which makes differences sharp.

    Raises
    ------
    ShineError
        If no noise could be measured, or the movie holds no usable frame.
    """

    def __init__(
        self,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        normalisation: Normalisation,
        *,
        window: int = 5,
        blinded_lags: Sequence[int] = (),
        mirror: bool = False,
        frames: int | Sequence[int] = FRAMES,
        edge: int = EDGE,
        seed: int = 0,
    ) -> None:
        if not noise.sigma > 0:
            raise ShineError(
                f"{movie.name}: no noise could be measured, so no error can be estimated."
            )
        self.movie, self.health, self.noise, self.normalisation = (
            movie,
            health,
            noise,
            normalisation,
        )
        self.window, self.mirror, self.seed = window, mirror, seed
        self.timeline = Timeline(len(movie), health, blinded_lags)
        usable = self.timeline.targets()
        if not usable:
            raise ShineError(f"{movie.name}: no frame is left whose error could be estimated.")
        self.frames = _spread(usable, frames, seed) if isinstance(frames, int) else tuple(frames)
        self.edge = edge

    @classmethod
    def for_model(
        cls, model: Model, movie: Movie, health: Health, noise: NoiseStatistics, **more: Any
    ) -> ErrorEstimator:
        """Return the estimator that shows frames as a model's `Denoiser` would."""
        return cls(
            movie, health, noise, model.normalisation, window=model.config.frames,
            blinded_lags=model.blinded_lags, mirror=model.config.kind == "paper", **more,
        )  # fmt: skip

    def measure(self, predict: Predict) -> ErrorEstimate:
        """Return the error of one denoiser.

        Parameters
        ----------
        predict
            ``predict(windows, shift)``: ``(b, frames, h, w)`` normalised → ``(b, h, w)``.
        """
        return self.matrix(lambda windows, shift: predict(windows, shift)[None]).of([1.0])

    def matrix(self, predict_each: Predict) -> ErrorMatrix:
        """Return the errors of several denoisers and all their means.

        Parameters
        ----------
        predict_each
            As in `measure`, but returning ``(k, b, h, w)``, one for each denoiser.
        """
        return _summed(self._look(predict_each), self.frames)

    def pixels(self, predict: Predict) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Look at single pixels.

        Yields
        ------
        t, denoised, squared_error
            Frame number; ``(y, x)`` denoised (of the part of the frame that is looked at), movie
            units; an estimate of ``(x̂ − s)²`` for every pixel, unbiased and very noisy (it may be
            negative), NaN where the raw pixel is not trusted.
        """
        for seen in self._look(lambda windows, shift: predict(windows, shift)[None]):
            error = (seen.raw - seen.denoised[0]) ** 2 - seen.variance + 2 * seen.handed_on[0]
            yield seen.t, seen.denoised[0], np.where(seen.good, error, np.nan)

    def measure_method(self, method: Callable[[Movie], Movie]) -> ErrorEstimate:
        """Return the error of a method that takes a whole movie and learns nothing from it.

        The movie is denoised twice, as it is and with the probe added to every frame; both are
        held in memory.
        """
        raw = np.stack([f.astype(np.float32) for f in self.movie.frames()])
        first = np.asarray(method(self.movie).data)[:]
        variance = noise_variance(self.noise, first)
        probe = np.stack([self._white(t, raw.shape[1:]) for t in range(len(raw))])
        probe = np.tensordot(self._root_in_time(), probe, 1) * np.sqrt(variance)
        probed = self.movie.with_data((raw + _EPSILON * probe).astype(np.float32), did="probed")
        second = np.asarray(method(probed).data)[:]

        def look() -> Iterator[_Seen]:
            bad = np.asarray(self.health.bad_pixels, bool)
            for t in self.frames:
                good = self.normalisation.trusted(raw[t], bad)
                frame = np.where(good, raw[t], 0).astype(np.float64)
                handed_on = probe[t] * (second[t] - first[t]) / _EPSILON
                yield _Seen(
                    t, frame, good, first[t][None], handed_on[None],
                    noise_variance(self.noise, frame, floor=False),
                )  # fmt: skip

        return _summed(look(), self.frames).of([1.0])

    def denoised(
        self, predict_each: Predict
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Denoise what is looked at.

        Yields
        ------
        t, raw, good, denoised
            Frame number; ``(y, x)`` raw part of the frame, 0 where it is not trusted; where it is;
            ``(k, y, x)`` denoised, movie units.
        """
        for t in self.frames:
            view = self._view(t)
            first = predict_each(view.stack[None], view.shift)[:, 0]
            yield t, view.raw, view.good, np.stack([self.normalisation.invert(x) for x in first])

    def _look(self, predict_each: Predict) -> Iterator[_Seen]:
        n = self.normalisation
        for t in self.frames:
            view = self._view(t)
            first = predict_each(view.stack[None], view.shift)[:, 0]
            denoised = np.stack([n.invert(x) for x in first])
            sigma = np.sqrt(noise_variance(self.noise, denoised.mean(0))) / n.scale
            probe = (self._white(t, view.raw.shape) * sigma).astype(np.float32)
            # A pixel that is not trusted is a constant to the network.
            probes = np.stack([cut(probe, (slice(None), slice(None)), by) for by in view.moved])
            probed = view.stack + np.float32(_EPSILON) * view.shares * view.trusted * probes
            second = predict_each(probed[None], view.shift)[:, 0]
            yield _Seen(
                t, view.raw, view.good, denoised,
                probe * (second - first) * (n.scale**2 / _EPSILON),
                noise_variance(self.noise, view.raw, floor=False),
            )  # fmt: skip

    def _view(self, t: int) -> _View:
        """Return what a denoiser is shown of frame ``t``."""
        n, here = self.normalisation, self._place(t)
        bad = np.asarray(self.health.bad_pixels, bool)
        window = self.timeline.window(t, self.window, mirror=self.mirror)
        moved = self.timeline.displacements(window)
        stack = np.zeros((len(window), *bad[here].shape), np.float32)
        trusted = np.zeros(stack.shape, bool)
        shares = np.zeros((len(window), 1, 1), np.float32)
        raw = np.zeros(bad[here].shape)
        for slot, (i, by) in enumerate(zip(window, moved, strict=True)):
            if i is None:
                continue
            frame, hidden = cut(self.movie.frame(i), here, by), cut(bad, here, by, fill=True)
            stack[slot] = n.apply(frame, hidden)
            trusted[slot] = n.trusted(frame, hidden)
            shares[slot] = 1.0 if i == t else self._lasting(abs(i - t))
            if i == t:
                raw = np.where(trusted[slot], frame, 0).astype(np.float64)
        centre = trusted[len(window) // 2]
        return _View(stack, trusted, shares, moved, self.timeline.shift(window), raw, centre)

    def _place(self, t: int) -> tuple[slice, slice]:
        rng = np.random.default_rng([self.seed, 4, t])
        sides = [min(n, self.edge) for n in self.movie.shape[1:]]
        corner = [
            int(rng.integers(n - side + 1))
            for n, side in zip(self.movie.shape[1:], sides, strict=True)
        ]
        y, x = (slice(a, a + side) for a, side in zip(corner, sides, strict=True))
        return y, x

    def _white(self, t: int, shape: tuple[int, int]) -> np.ndarray:
        """Return ``(y, x)`` noise of unit variance with the measured correlation in space."""
        colour = noise_colour(self.noise.difference_correlation, shape)
        white = np.random.default_rng([self.seed, 5, t]).standard_normal(shape)
        return coloured(white, colour)

    def _lasting(self, lag: int) -> float:
        """Return how much of a frame's noise is found again ``lag`` frames away."""
        noise = self.noise
        fixed = noise.fixed_pattern_fraction if noise.fixed_pattern else 0.0
        if lag >= len(noise.temporal_correlation):
            return fixed
        value, error = noise.temporal_correlation[lag], noise.temporal_error[lag]
        return max(float(value), fixed) if abs(value) > _SIGMAS * error else fixed

    def _root_in_time(self) -> np.ndarray:
        """Return the symmetric root of the noise's correlation between all frames."""
        n = len(self.movie)
        lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        table = np.array([self._lasting(k) for k in range(n)])
        values, vectors = np.linalg.eigh(table[lags])
        return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


@dataclass(frozen=True, eq=False)
class _View:
    """A window: pixels, where they are trusted, how much of the centre's noise each frame holds."""

    stack: np.ndarray  # (frames, y, x), normalised
    trusted: np.ndarray  # (frames, y, x)
    shares: np.ndarray  # (frames, 1, 1)
    moved: list[tuple[int, int]]  # of each frame's picture, see `Timeline.displacements`
    shift: int
    raw: np.ndarray  # (y, x), the centre frame, movie units
    good: np.ndarray  # (y, x), where that is trusted


@dataclass(frozen=True, eq=False)
class _Seen:
    """One frame, ``(y, x)`` or ``(k, y, x)``, movie units."""

    t: int
    raw: np.ndarray
    good: np.ndarray
    denoised: np.ndarray
    handed_on: np.ndarray
    variance: np.ndarray


def noise_variance(noise: NoiseStatistics, signal: np.ndarray, *, floor: bool = True) -> np.ndarray:
    """Return the noise variance at a signal level, movie units squared.

    Parameters
    ----------
    noise
        Noise statistics. Where their mean–variance curve is not reliable, the noise is taken to be
        the same everywhere.
    signal
        Any shape, movie units. Given the raw pixels themselves and ``floor=False``, the mean of
        the result is right whatever the noise, for the curve is a straight line.
    floor
        Keep the variance above a twentieth of the typical one.
    """
    typical = noise.sigma**2
    curve = noise.mean_variance
    if not curve.reliable:
        return np.full(np.shape(signal), typical)
    variance = curve.gain * np.asarray(signal, float) + curve.offset
    return np.maximum(variance, _LEAST_VARIANCE * typical) if floor else variance


def _spread(usable: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Draw one frame from each of ``count`` equal stretches."""
    rng = np.random.default_rng([seed, 6])
    edges = np.linspace(0, len(usable), min(count, len(usable)) + 1).astype(int)
    return tuple(usable[int(rng.integers(a, b))] for a, b in pairwise(edges))


def _summed(frames: Iterator[_Seen], numbers: Sequence[int]) -> ErrorMatrix:
    parts: list[tuple[np.ndarray, ...]] = []
    for seen in frames:
        good = seen.good & np.isfinite(seen.denoised).all(0)
        residual = np.where(good, seen.raw - seen.denoised, 0.0)
        k = len(residual)
        products = np.empty((0, k, k))
        for i in range(k):
            for j in range(i, k):
                sums = block_sums(residual[i] * residual[j])
                if not len(products):
                    products = np.empty((len(sums), k, k))
                products[:, i, j] = products[:, j, i] = sums
        parts.append(
            (
                np.full(len(products), len(parts)),
                block_sums(good.astype(float)),
                products,
                np.stack([block_sums(np.where(good, d, 0.0)) for d in seen.handed_on], axis=1),
                block_sums(np.where(good, seen.variance, 0.0)),
            )
        )
    frame, counts, products, handed_on, noise = (
        np.concatenate(p) for p in zip(*parts, strict=True)
    )
    if not counts.any():
        raise ShineError("No pixel is left whose error could be estimated.")
    return ErrorMatrix(tuple(numbers), frame, counts, products, handed_on, noise)
