r"""The standard error of every denoised pixel, calibrated on the noisy movie alone.

The squared error of a denoised pixel has two parts.

*The noise that comes through.* A probe :math:`b` that looks like the noise (its variance, its
correlation in space and time) is added to all frames; how far the result moves,
:math:`\delta = (\hat x(y + \epsilon b) - \hat x(y)) / \epsilon`, is a sample of the noise's share,
:math:`E\,\delta^2 = (J \Sigma J^T)_{ii}` with :math:`J = \partial\hat x/\partial y`. Averaged over
neighbouring pixels and frames it is the variance :math:`v`, wherever that is.

*What the denoiser gets wrong whatever the noise*: blurred edges, particles that it knows too
little of. This is seen in the residual only. By Stein's lemma

.. math:: q = (y - \hat x)^2 - \sigma^2(y) + 2 b \delta

is an unbiased estimate of the squared error of each pixel, far too noisy to look at, but good
enough to fit the three numbers of

.. math:: E[q] = v + \sigma^2 \exp(\theta_0 + \theta_1 \log W + \theta_2 \log G),

:math:`W` being the noise that comes through over a wider neighbourhood and :math:`G` the squared
slope of the denoised picture, both in units of :math:`\sigma^2`. The map is the root of the right
side. The noise level is shifted so that in the calmer half of the pixels, where a denoiser has
nothing to blur, the residual's estimate equals the noise that comes through: there an error of 1 %
in the noise variance would be larger than the error that is looked for.

References
----------
C. M. Stein, Estimation of the mean of a multivariate normal distribution. Ann. Stat. 9, 1135-1151
(1981). P. McCullagh, J. A. Nelder, Generalized Linear Models, 2nd ed. (1989), ch. 9
(quasi-likelihood).
"""

from __future__ import annotations

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

if TYPE_CHECKING:
    from .checkpoint import Model
    from .denoising import Denoiser

__all__ = [
    "Calibration",
    "ErrorMaps",
    "calibrate",
    "calibrating_passes",
    "error_history",
    "uncertainty_warnings",
    "with_errors",
]

_NEAR, _WIDE, _SLOPE = 1.5, 3.0, 1.0  # px: Gaussian widths of v, W and G
_LEAST_VARIANCE = 0.05  # of the typical one, as in `noise_variance`
_PIXELS = 6_000_000  # are enough to fit three numbers
_RUN = 6  # consecutive frames that are looked at together
_TAU = 0.5  # prior spread of the exponents around 1/2
_STEEPEST = 2.0  # largest exponent
_CALM = 0.5  # share of the pixels that fixes the noise level


@dataclass(frozen=True)
class Calibration:
    """What turns the probe's answer into a standard error; see the module.

    Attributes
    ----------
    gain, offset
        Noise variance at a signal: ``gain · signal + offset``, movie units (squared).
    constant, wide, slope
        θ₀, θ₁ and θ₂.
    limits
        Smallest and largest log W and log G that were fitted; beyond them the excess stays level.
    pixels
        How many were looked at.
    excess, excess_error
        Mean squared error beyond the noise that comes through, in units of the noise variance, and
        its statistical error.
    """

    gain: float
    offset: float
    constant: float
    wide: float
    slope: float
    limits: tuple[float, float, float, float]
    pixels: int
    excess: float
    excess_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return {**asdict(self), "limits": list(self.limits)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Rebuild what `to_dict` gave.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a value is missing or is none.
        """
        read = {f.name: float(values[f.name]) for f in fields(cls) if f.name != "limits"}
        limits = tuple(float(v) for v in values["limits"])
        if len(limits) != 4:
            raise ValueError("limits of an uncertainty calibration")
        return cls(**{**read, "pixels": int(read["pixels"])}, limits=limits)  # type: ignore[arg-type]

    @property
    def doubtful(self) -> bool:
        """Whether the fit ended at a limit of what is credible: it does not describe the movie."""
        return any(k <= 0 or k >= _STEEPEST for k in (self.wide, self.slope))

    def variance(self, signal: np.ndarray, typical: float) -> np.ndarray:
        """Return the noise variance at a signal, at least a twentieth of the typical one."""
        return np.maximum(self.gain * signal + self.offset, _LEAST_VARIANCE * typical)

    def standard_error(
        self, variance: np.ndarray, near: np.ndarray, wide: np.ndarray, slope: np.ndarray
    ) -> np.ndarray:
        """Return the standard error, movie units.

        Parameters
        ----------
        variance
            ``(y, x)`` noise variance, movie units squared.
        near, wide, slope
            ``(y, x)`` v, W and G in units of that variance.
        """
        a, b, c, d = self.limits
        log_wide, log_slope = np.clip(_log(wide), a, b), np.clip(_log(slope), c, d)
        # An error beyond the noise itself would mean that denoising made things worse.
        excess = np.exp(
            np.minimum(self.constant + self.wide * log_wide + self.slope * log_slope, 0.0)
        )
        return np.asarray(np.sqrt(variance * (near + excess)))


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
        self.denoiser, self.movie, self.health = denoiser, movie, health
        self.typical, self.calibration = noise.sigma**2, calibration
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
            variance = self.calibration.variance(seen.denoised.astype(float), self.typical)
            near, wide = seen.through(_NEAR, variance), seen.through(_WIDE, variance)
            error = self.calibration.standard_error(variance, near, wide, _slope(seen, variance))
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
        If no noise could be measured, or the movie is too small to fit anything to.
    """
    probe = NoiseProbe(movie, health, noise, denoiser.model.normalisation, seed)
    typical = noise.sigma**2
    bad = np.asarray(health.bad_pixels, bool)
    runs = _runs(movie, health)
    total, done = sum(map(len, runs)), 0
    keep = max(1, int(np.ceil(total * movie.shape[1] * movie.shape[2] / _PIXELS)))
    rng = np.random.default_rng([seed, 11])
    parts: list[np.ndarray] = []
    line = _Line(noise)
    for run in runs:
        raw_before: np.ndarray | None = None
        for seen in look(denoiser, movie, health, probe, run):
            done += 1
            if progress is not None:
                progress(done, total)
            good = denoiser.model.normalisation.trusted(seen.raw) & ~bad
            frame = np.where(good, seen.raw, seen.denoised).astype(float)
            if raw_before is not None and not line.known:
                line.add(raw_before, frame, good, seen)
            raw_before = frame
            constant = np.full(frame.shape, typical)
            good &= (rng.random(frame.shape) < 1 / keep) if keep > 1 else True
            parts.append(
                np.stack(
                    [
                        frame, seen.denoised, (frame - seen.denoised) ** 2
                        + 2 * probe(seen.t) * seen.moved[len(seen.moved) // 2],
                        seen.through(_NEAR, constant), seen.through(_WIDE, constant),
                        _slope(seen, constant), _calm(seen, constant),
                    ]
                )[:, good].astype(np.float32)
            )  # fmt: skip
    if sum(p.shape[1] for p in parts) < 10_000:
        raise ShineError(
            f"{movie.name}: fewer than 10,000 pixels can be looked at, too few to calibrate an "
            "uncertainty map. Leave out --uncertainty."
        )
    return _fit(np.concatenate(parts, axis=1).astype(float), line.fitted(), typical)


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
        "The uncertainty map may be wrong by a factor of two or more: what the residual shows does "
        "not follow the picture's slope and the noise that comes through, from which the map is "
        "made. Do not rely on it.",
    )


def error_history(model: Model | None) -> str:
    """Return the line that an uncertainty map's history gets."""
    seed = "" if model is None else f", seed {model.state.settings.seed}"
    return f"standard error of each pixel as denoised by shine-em{seed}"


def _fit(seen: np.ndarray, line: tuple[float, float], typical: float) -> Calibration:
    """Fit the noise level, then the three numbers, by Poisson quasi-likelihood with a prior."""
    raw, denoised, square, near, wide, slope, unrest = seen
    gain, offset = line
    calm = unrest <= np.quantile(unrest, _CALM)
    level = gain * raw + offset
    factor = float((square - near * typical)[calm].mean() / level[calm].mean())
    if not 0.5 < factor < 2:
        raise ShineError(
            "The residual does not fit the measured noise (their variances differ by a factor of "
            f"{factor:.2g}), so an uncertainty map would be wrong. Leave out --uncertainty."
        )
    gain, offset = gain * factor, offset * factor
    variance = np.maximum(gain * denoised + offset, _LEAST_VARIANCE * typical)
    share = typical / variance
    target = (square - factor * level) / variance - near * share
    # Calm pixels have fixed the noise level: they have nothing more to say.
    x = np.stack([_log(wide * share), _log(slope * share)], axis=1)
    limits = np.quantile(x, [0.001, 0.999], axis=0)
    x = np.clip(x, *limits)
    x_fit, target = x[~calm], target[~calm]
    middle = x_fit.mean(0)
    ones = np.column_stack([np.ones(len(x_fit)), x_fit - middle])
    scatter, mean = float(target.var()), float(target.mean())
    error = float(np.sqrt(scatter / len(target)))
    start = max(mean, error)
    theta, prior = np.array([np.log(start), 0.5, 0.5]), np.array([np.log(start), 0.5, 0.5])
    # A normal prior of width τ; the quasi-likelihood's dispersion is scatter / mean.
    ridge = np.array([0.01, 1.0, 1.0]) * scatter / start / _TAU**2
    for _ in range(100):
        model = np.exp(np.clip(ones @ theta, -25, 0))
        gradient = ones.T @ (target - model) - ridge * (theta - prior)
        hessian = (ones * model[:, None]).T @ ones + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        before, theta = theta, theta + step
        # More of either is never less of an error; steeper than its square is not credible.
        theta[1:] = np.clip(theta[1:], 0.0, _STEEPEST)
        if float(np.abs(theta - before).max()) < 1e-4:
            break
    return Calibration(
        gain, offset, float(theta[0] - theta[1:] @ middle), float(theta[1]), float(theta[2]),
        (float(limits[0, 0]), float(limits[1, 0]), float(limits[0, 1]), float(limits[1, 1])),
        seen.shape[1], mean * len(target) / seen.shape[1], error * len(target) / seen.shape[1],
    )  # fmt: skip


class _Line:
    """Noise variance against signal: the measured line, or one from pairs of adjacent frames.

    Where the mean–variance curve is not reliable, pixels are sorted by the denoised level, and in
    each group half the squared difference of two frames, freed of what the denoised frames say has
    changed, is set against the mean of the *raw* pixels: a denoised picture of low contrast would
    make the line too steep.
    """

    GROUPS = 8

    def __init__(self, noise: NoiseStatistics) -> None:
        curve = noise.mean_variance
        self.known = bool(curve.reliable)
        self.line = (curve.gain, curve.offset) if self.known else (0.0, noise.sigma**2)
        self.edges: np.ndarray | None = None
        self.sums = np.zeros((3, self.GROUPS))

    def add(self, before: np.ndarray, now: np.ndarray, good: np.ndarray, seen: Seen) -> None:
        """Take in a frame and the one before, ``(y, x)`` raw, with what was denoised of them."""
        previous, moved = seen.around[0], seen.moved[0]
        if previous is None or moved is None:
            return
        half = 0.5 * (
            (now - before) ** 2 - (seen.denoised - previous) ** 2 + (seen.moved[1] - moved) ** 2
        )
        level = ndimage.gaussian_filter(0.5 * (seen.denoised + previous), 3.0)
        if self.edges is None:
            low, high = (float(v) for v in np.quantile(level, [0.001, 0.999]))
            self.edges = np.linspace(low, high, self.GROUPS + 1)[1:-1]
        unrest = _calm(seen, np.full(now.shape, self.line[1]))
        group = np.digitize(level, self.edges)
        for i in range(self.GROUPS):
            here = good & (group == i)
            if here.sum() < 16:
                continue
            here &= unrest <= np.median(unrest[here])
            self.sums[:, i] += (
                here.sum(),
                now[here].sum() / 2 + before[here].sum() / 2,
                half[here].sum(),
            )

    def fitted(self) -> tuple[float, float]:
        """Return gain and offset."""
        count, level, variance = self.sums
        used = count >= 500
        if self.known or used.sum() < 3:
            return self.line
        level, variance = level[used] / count[used], variance[used] / count[used]
        if not (variance > 0).all():
            return self.line
        gain, offset = np.polyfit(level, variance, 1, w=np.sqrt(count[used]) / variance)
        return float(gain), float(offset)


def calibrating_passes(movie: Movie) -> float:
    """Return how many frames' worth of inference `calibrate` takes."""
    return 2.0 * min(_RUN * _run_count(movie), len(movie))


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


def _slope(seen: Seen, variance: np.ndarray) -> np.ndarray:
    """Return the picture's squared slope per pixel, in units of the noise variance.

    It is taken from the frames before and after: in the frame itself the picture is steep also
    where the pixel's own noise is high, and the residual with it, which would pass for an error.
    """
    frames = [f for f in seen.around if f is not None] or [seen.denoised]
    total = np.zeros(seen.raw.shape)
    for axis in (0, 1):
        if total.shape[axis] > 1:
            steep = np.mean([np.abs(np.gradient(f.astype(float), axis=axis)) for f in frames], 0)
            total += ndimage.gaussian_filter(steep, _SLOPE, mode="nearest") ** 2
    return np.asarray(total / variance)


def _calm(seen: Seen, variance: np.ndarray) -> np.ndarray:
    """Return how much goes on around a pixel.

    Over so wide a neighbourhood that the pixel's own noise has hardly a say: the calmest pixels by
    a narrow measure would be those whose noise happens to be low.
    """
    near = seen.through(_NEAR, variance, own=False) + 0.2 * _slope(seen, variance)
    return np.asarray(ndimage.gaussian_filter(near, 6.0, mode="nearest"))


def _log(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(values + 1e-5))
