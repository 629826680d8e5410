r"""The standard error of every denoised pixel, calibrated on the noisy movie alone.

Where a denoiser errs is seen without a truth; how far it errs there is one number, which the
residual tells.

*Where.* A probe :math:`b` that looks like the noise (its variance, its correlation in space and
time) is added to all frames. How far the result moves,
:math:`\delta = (\hat x(y + \epsilon b) - \hat x(y)) / \epsilon`, is a sample of the noise that
comes through; its mean square over neighbouring pixels and frames is the variance :math:`v`. What
the denoiser blurs, it blurs where the picture is steep: :math:`G` is the squared slope of the
denoised picture, with a hundredth of its mean over the surroundings. Both count in units of the
noise variance :math:`\sigma^2`. On simulated movies of every kind here, the squared error of
trained networks follows

.. math:: e^2 = C \sigma^2 \sqrt{v G}, \quad C \approx \langle G \rangle^{-1/10}

(see docs/uncertainty.md for what was measured). It is never less than the noise that comes
through, :math:`\sigma^2 v`.

*How far.* By Stein's lemma

.. math:: q = (y - \hat x)^2 - \sigma^2(y) + 2 b \delta

is an unbiased estimate of the squared error of each pixel: far too noisy to look at, but :math:`C`
is one number. Where the residual is small, an error of 1 % in the noise variance outweighs the
error that is looked for, and the gain may have been measured too high where a lattice moves. So
both are fitted with it, within what they are known to:

.. math:: E[q] / \sigma^2 = \alpha + \beta g (\hat x - \langle\hat x\rangle) / \sigma^2
          + C \sqrt{v G},

:math:`g` being the measured gain; to means over small blocks, since the denoised picture, and with
it :math:`G`, follows a pixel's own noise a little. The law holds within some 30 % only, hence the
weights and what is known of :math:`C` beforehand.

References
----------
C. M. Stein, Estimation of the mean of a multivariate normal distribution. Ann. Stat. 9, 1135-1151
(1981).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from .doctor import Health
from .errors import ShineError
from .events import Event, Listener
from .movie import Movie
from .noise import NoiseStatistics
from .noise_probe import NoiseProbe, Seen, look
from .patches import Normalisation
from .viewing import block_means

if TYPE_CHECKING:
    from .checkpoint import Model
    from .denoising import Denoiser

__all__ = [
    "WITHIN_68",
    "WITHIN_95",
    "Calibration",
    "ErrorMaps",
    "calibrate",
    "calibrating_frames",
    "check_possible",
    "error_history",
    "probing_s",
    "uncertainty_warnings",
    "with_errors",
]

# By how many standard errors 68 and 95 of 100 pixels are off at most, as measured on simulated
# movies: errors have longer tails than normal ones, for which it would be 1 and 1.96.
WITHIN_68, WITHIN_95 = 0.95, 2.1

_NEAR, _SLOPE = 1.5, 1.0  # px: Gaussian widths of v and G
_AROUND, _SHARE = 49, 0.01  # px that a network sees, and their mean slope's share in G
_PIXELS = 6_000_000  # are enough to fit three numbers
_FEWEST = 10_000  # pixels that it takes
_RUN = 6  # consecutive frames that are looked at together
_BLOCK = 8  # px
# What is known beforehand (standard deviations): the noise level and gain, relative; a gain that
# could not be measured, per spread of the picture; and C where <G> is 1, relative.
_LEVEL, _GAIN, _UNKNOWN_GAIN = 0.01, 0.4, 0.05
_USUAL, _USUAL_ERROR, _POWER = 1.0, 0.25, -0.1
_TYPICAL = 1.4  # C, roughly, for the weights
_MISFIT = 0.03  # squared relative error of the law, times the share of independent blocks
_DOUBT = 3.0  # relative error of C by the residual from which the map is not to be relied on


@dataclass(frozen=True)
class Calibration:
    """What turns the probe's answer into a standard error; see the module.

    Attributes
    ----------
    constant, residual_error
        C, and its error if only the residual were known.
    level, gain
        α and β: by how much, relatively, the noise level and the gain were measured too low.
    pixels
        How many were looked at.
    """

    constant: float
    residual_error: float
    level: float
    gain: float
    pixels: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Rebuild what `to_dict` gave.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a value is missing or is none.
        """
        read = {f.name: float(values[f.name]) for f in fields(cls)}
        return cls(**{**read, "pixels": int(read["pixels"])})  # type: ignore[arg-type]

    @property
    def doubtful(self) -> bool:
        """Whether the residual hardly says how far the denoiser errs."""
        return self.residual_error > _DOUBT * self.constant

    def standard_error(self, sigma: float, near: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Return the standard error, movie units.

        Parameters
        ----------
        sigma
            Standard deviation of the noise, movie units.
        near, slope
            ``(y, x)`` v and G in units of its square.
        """
        return np.asarray(sigma * np.sqrt(np.maximum(self.constant * _law(near, slope), near)))


class ErrorMaps:
    """Denoises a movie and says how far each pixel may be off.

    It takes as long again as denoising alone: every frame is denoised twice.

    Parameters
    ----------
    denoiser, movie, health, noise
        What denoises, and what.
    calibration
        Of this denoiser (`calibrate`).
    seed
        Of the probe.

    Raises
    ------
    ShineError
        If no noise could be measured.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        calibration: Calibration,
        *,
        seed: int = 0,
    ) -> None:
        check_possible(movie, health, noise, calibrated=True)
        self.denoiser, self.movie, self.health = denoiser, movie, health
        self.sigma, self.calibration = noise.sigma, calibration
        self.probe = NoiseProbe(movie, health, noise, denoiser.model.normalisation, seed)

    def stream(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Denoise frames one by one, in order; memory does not grow with the movie's length.

        Yields
        ------
        t, raw, denoised, standard_error
            Frame number; the raw frame, the denoised one and its standard error (float32), all
            ``(y, x)`` in the movie's units; NaN for blank frames, which hold no picture.
        """
        for seen in look(
            self.denoiser, self.movie, self.health, self.probe, range(len(self.movie))
        ):
            error = self.calibration.standard_error(self.sigma, *_where(seen, self.sigma))
            if self.health.blank[seen.t]:
                error = np.full_like(error, np.nan)
            yield seen.t, seen.raw, seen.denoised, error.astype(np.float32)


def calibrate(
    denoiser: Denoiser,
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit the standard error to a movie's own residual; no truth is needed.

    Parameters
    ----------
    denoiser
        What denoises.
    movie, health, noise
        The movie, and what is known of it.
    seed
        Of the probe.
    progress
        Called as ``progress(frames_done, frames_in_all)``.

    Raises
    ------
    ShineError
        If `check_possible` does.
    """
    check_possible(movie, health, noise)
    normalisation = denoiser.model.normalisation
    probe = NoiseProbe(movie, health, noise, normalisation, seed)
    bad = np.asarray(health.bad_pixels, bool)
    runs = _runs(movie, health)
    total, done = sum(map(len, runs)), 0
    sums = _Sums(noise, normalisation.location, total * movie.shape[1] * movie.shape[2])
    for run in runs:
        for seen in look(denoiser, movie, health, probe, run):
            sums.add(seen, probe(seen.t), normalisation.trusted(seen.raw, bad))
            done += 1
            if progress is not None:
                progress(done, total)
    return sums.fitted()


def check_possible(
    movie: Movie, health: Health, noise: NoiseStatistics, *, calibrated: bool = False
) -> None:
    """Refuse a movie for which no uncertainty can be told, before anything is trained.

    Raises
    ------
    ShineError
        If no noise could be measured, or, unless all is ``calibrated``, the movie is too small to
        fit anything to.
    """
    if not noise.sigma > 0:
        raise ShineError(
            f"{movie.name}: no noise could be measured, so no uncertainty can be told. Leave "
            "out --uncertainty."
        )
    good = (~np.asarray(health.bad_pixels, bool)).sum() * sum(map(len, _runs(movie, health)))
    if good < _FEWEST and not calibrated:
        raise ShineError(
            f"{movie.name}: fewer than {_FEWEST:,} pixels can be looked at, too few to calibrate "
            "an uncertainty map. Leave out --uncertainty."
        )


def with_errors(
    denoiser: Denoiser,
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    sink: Callable[[int, np.ndarray], None] | None,
    tell: Listener,
) -> tuple[Model, Iterator[tuple[int, np.ndarray, np.ndarray]]]:
    """Return the model, with its calibration, and the denoised frames; errors go to ``sink``.

    Without a ``sink`` nothing is calibrated. A model that was calibrated before is used as it is.
    """
    model = denoiser.model
    if sink is None:
        return model, denoiser.stream(movie, health)
    if model.uncertainty is None:
        calibration = calibrate(
            denoiser, movie, health, noise,
            progress=lambda done, n: tell(Event("calibrating the uncertainty", done, n)),
        )  # fmt: skip
        model = replace(model, uncertainty=calibration.to_dict())
    else:
        try:
            calibration = Calibration.from_dict(model.uncertainty)
        except (KeyError, TypeError, ValueError):
            raise ShineError(
                "The model's uncertainty calibration is damaged: train it anew."
            ) from None

    def frames() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        maps = ErrorMaps(denoiser, movie, health, noise, calibration)
        for t, raw, denoised, error in maps.stream():
            sink(t, error)
            yield t, raw, denoised

    return model, frames()


def uncertainty_warnings(model: Model) -> tuple[str, ...]:
    """Return what to say of the model's calibration, if anything."""
    if model.uncertainty is None or not Calibration.from_dict(model.uncertainty).doubtful:
        return ()
    return (
        "The uncertainty map may be wrong by a factor of two or more: the movie is too short or "
        "too noisy for its residual to show how far the denoised picture is off. Do not rely on "
        "it.",
    )


def error_history(model: Model | None) -> str:
    """Return the line that an uncertainty map's history gets."""
    seed = "" if model is None else f", seed {model.state.settings.seed}"
    return f"standard error of each pixel as denoised by shine-em{seed}"


class _Sums:
    """Sums over blocks, from which the three numbers are fitted by weighted least squares."""

    def __init__(self, noise: NoiseStatistics, location: float, pixels: int) -> None:
        curve = noise.mean_variance
        self.known = bool(curve.reliable)
        self.gain = curve.gain if self.known else 0.0
        self.sigma, self.location = noise.sigma, location
        # Squares of correlated noise vary together.
        self.scatter = 2.0 * float((noise.difference_correlation**2).sum())
        self.misfit = _MISFIT * pixels / _BLOCK**2
        self.normal, self.right = np.zeros((3, 3)), np.zeros(3)
        self.raw = self.picture = self.slope = self.residual = 0.0
        self.pixels = 0

    def add(self, seen: Seen, probe: np.ndarray, good: np.ndarray) -> None:
        """Take in a frame, its probe, and which of its pixels count."""
        raw, denoised = seen.raw.astype(float), seen.denoised.astype(float)
        square = (raw - denoised) ** 2 + 2 * probe * seen.moved[1]
        near, slope = _where(seen, self.sigma)
        picture = (denoised - self.location) / self.sigma
        self.pixels += int(good.sum())
        self.raw += float(raw[good].sum())
        self.picture += float(picture[good].sum())
        self.slope += float(slope[good].sum())
        self.residual += float(square[good].sum())
        edge = min(_BLOCK, *raw.shape)
        filled = block_means(good.astype(float), edge)
        full = filled >= 0.5
        law = np.maximum(_law(near, slope), near / _TYPICAL)
        beyond, picture, law = (
            block_means(np.where(good, a, 0.0), edge)[full] / filled[full]
            for a in ((square - self.gain * raw) / self.sigma**2, picture, law)
        )
        level = np.maximum(1 + self.gain / self.sigma * picture, 0.2)
        spread = (
            self.scatter * level**2 / (edge**2 * filled[full]) + self.misfit * (_TYPICAL * law) ** 2
        )
        x = np.stack([np.ones_like(picture), picture, law])
        self.normal += (x / spread) @ x.T
        self.right += (x / spread) @ beyond

    def fitted(self) -> Calibration:
        """Return the calibration."""
        n = max(self.pixels, 1)
        # The noise variance at the mean signal is better known than the line's offset.
        offset = 1 - self.gain * self.raw / n / self.sigma**2
        right = self.right - self.normal[0] * offset
        mean = self.picture / n
        weight, first, second = self.normal[[0, 0, 1], [0, 1, 1]]
        spread = np.sqrt(max(second / weight - (first / weight) ** 2, 1e-12))  # of the picture
        # What a relative error of the gain adds to q / σ², per picture in units of σ.
        per = self.gain / self.sigma if self.known else 1 / spread
        turn = np.array([[1.0, -mean * per, 0.0], [0.0, per, 0.0], [0.0, 0.0, 1.0]])
        usual = _USUAL * (self.slope / n + 1e-5) ** _POWER
        known_to = np.array([_LEVEL, _GAIN if self.known else _UNKNOWN_GAIN, _USUAL_ERROR * usual])
        prior = 1 / known_to**2
        precision = turn.T @ self.normal @ turn + np.diag(prior)
        right = turn.T @ right + np.array([0.0, 0.0, usual * prior[2]])
        level, gain, constant = (float(v) for v in np.linalg.solve(precision, right))
        told = 1 / float(np.linalg.inv(precision)[2, 2]) - prior[2]
        constant = max(constant, 0.1)
        error = min(1 / np.sqrt(max(told, 1e-12)), 1e3)
        if not 0.5 < self.residual / n / self.sigma**2 < 4:
            error = 1e3  # not by an error of the measured noise: it is not that noise
        return Calibration(constant, float(error), level, gain, self.pixels)


def calibrating_frames(movie: Movie) -> int:
    """Return how many frames `calibrate` looks at; each is denoised twice."""
    return min(_RUN * _run_count(movie), len(movie))


def probing_s(movie: Movie, health: Health, noise: NoiseStatistics) -> float:
    """Return the seconds that a frame takes beside its denoising, measured on one."""
    probe = NoiseProbe(movie, health, noise, Normalisation.of(health), 0)
    begun = time.monotonic()
    t = len(movie) // 2
    frame, made = movie.frame(t), probe(t)
    _law(*_where(Seen(t, frame, frame, (frame, frame), (made, made, made)), noise.sigma))
    return time.monotonic() - begun


def _run_count(movie: Movie) -> int:
    """Return how many stretches of frames hold enough pixels; at least four."""
    return max(4, -(-_PIXELS // (_RUN * movie.shape[1] * movie.shape[2])))


def _runs(movie: Movie, health: Health) -> list[range]:
    """Return stretches of consecutive frames, spread over the movie, of one scene each."""
    usable = ~np.asarray(health.blank, bool)
    n = len(movie)
    starts = np.unique(
        np.linspace(0, max(0, n - _RUN), min(_run_count(movie), -(-n // _RUN))).astype(int)
    )
    runs, taken = [], 0
    for start in starts:
        first, last = max(int(start), taken), min(int(start) + _RUN, n)
        cuts = [
            t for t in range(first + 1, last)
            if health.segment[t] != health.segment[t - 1] or usable[t] != usable[t - 1]
        ]  # fmt: skip
        edges = [first, *cuts, last]
        runs += [range(a, b) for a, b in pairwise(edges) if b > a and usable[a]]
        taken = max(taken, last)
    return runs


def _where(seen: Seen, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return v and G of the module, ``(y, x)``.

    The slope is taken from the frames before and after: in the frame itself the picture is steep
    also where the pixel's own noise is high, and the residual with it, which would pass for an
    error.
    """
    frames = [f for f in seen.around if f is not None] or [seen.denoised]
    slope = np.zeros(seen.raw.shape)
    for axis in (0, 1):
        if slope.shape[axis] > 1:
            steep = np.mean([np.abs(np.gradient(f.astype(float), axis=axis)) for f in frames], 0)
            slope += ndimage.gaussian_filter(steep, _SLOPE, mode="nearest") ** 2
    slope += _SHARE * ndimage.uniform_filter(slope, _AROUND, mode="nearest")
    return seen.through(_NEAR) / sigma**2, slope / sigma**2


def _law(near: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return by what the squared error goes, in units of the noise variance."""
    return np.asarray(np.sqrt((near + 1e-5) * (slope + 1e-5)))
