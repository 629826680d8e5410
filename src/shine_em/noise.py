"""Noise statistics of a movie, and the blind spot that they ask for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ShineError
from .mean_variance import MeanVariance, fit_mean_variance
from .movie import LazyFrames, Movie
from .noise_figure import format_table, plot_noise
from .noise_fit import (
    CorrelationFit,
    fit_correlation,
    line_noise,
    quiet_tiles,
    raw_correlation,
    silent_frequencies,
    tile_levels,
    tile_spectra,
)
from .noise_spectrum import Spectra, measure_spectra
from .temporal_noise import temporal_noise

if TYPE_CHECKING:
    from .doctor import Health

__all__ = [
    "MeanVariance",
    "NoiseStatistics",
    "format_table",
    "noise_of",
    "noise_statistics",
    "plot_noise",
]

#: A correlation below this is not worth hiding: a larger hole costs more than the noise it hides.
MATERIAL_CORRELATION = 0.045
# One-sided, 1 % false alarms over the 144 independent offsets of an R = 8 map.
_SIGMAS = 4.0
_FRAMES = 48
_REGIONS = 4
# Share of frequencies whose picture stands still above which no others are needed.
_ENOUGH_STEADY = 0.3


@dataclass(frozen=True)
class NoiseStatistics:
    """What is known of a movie's noise.

    Attributes
    ----------
    raw_correlation
        ``(2R+1, 2R+1)``: correlation of one raw frame with itself, shifted (the paper's Eq. 4 and
        heatmap); it counts the picture's own structure as well.
    difference_correlation
        ``(2R+1, 2R+1)``: correlation of the noise, from frame differences freed of the picture.
    correlation_error
        Standard error of a value of `difference_correlation`.
    temporal_correlation, temporal_error
        ``(lags + 1,)``: noise correlation of frames k apart, and its standard error; NaN where the
        movie is too short.
    sigma
        Typical standard deviation of the noise of a pixel, movie units.
    mean_variance
        Noise variance against signal.
    homogeneity, homogeneity_spread
        ``(16, 2R+1, 2R+1)``: noise correlation in 4×4 sub-regions (the paper's fig. S7), and its
        rms scatter in units of the statistical error (1 is perfectly homogeneous).
    anisotropy
        −1 (correlated along columns only) to 1 (along rows only); 0 is isotropic.
    hole
        Recommended blind spot, rows × columns, px, odd.
    confidence, reason
        "high", "medium" or "low", and why, in one sentence.
    blinded_lags
        Frame lags whose noise is correlated with the centre frame's: those neighbours, before and
        after, must be blinded as well.
    fixed_pattern, fixed_pattern_fraction
        Whether noise is frozen over all frames, and its share of the noise variance.
    warnings
        What the user should know, plain sentences.
    distribution
        ``(k,)`` rising: means of k equal parts of the noise's values, of unit variance and freed of
        the correlation, as `shine_em.removed` measures them in what was removed. Counted electrons
        are skewed and have long tails. Empty where it was not measured: a normal distribution.
    """

    raw_correlation: np.ndarray
    difference_correlation: np.ndarray
    correlation_error: float
    temporal_correlation: np.ndarray
    temporal_error: np.ndarray
    sigma: float
    mean_variance: MeanVariance
    homogeneity: np.ndarray
    homogeneity_spread: float
    anisotropy: float
    hole: tuple[int, int]
    confidence: str
    reason: str
    blinded_lags: tuple[int, ...]
    fixed_pattern: bool
    fixed_pattern_fraction: float
    warnings: tuple[str, ...]
    distribution: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-safe values (NaN becomes None)."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NoiseStatistics:
        """Return the statistics that `to_dict` wrote.

        Raises
        ------
        ShineError
            If a value is missing.
        """
        values = {"distribution": (), **values}  # models of earlier versions hold none
        try:
            curve = dict(values["mean_variance"])
            for name in ("means", "variances"):
                curve[name] = _array(curve[name])
            read = {f.name: values[f.name] for f in fields(cls)}
            read["mean_variance"] = MeanVariance(**{k: _number(v) for k, v in curve.items()})
        except (KeyError, TypeError) as error:
            raise ShineError(
                f"These noise statistics are incomplete ({error}): measure them again."
            ) from None
        for name in (
            "raw_correlation",
            "difference_correlation",
            "temporal_correlation",
            "temporal_error",
            "homogeneity",
            "distribution",
        ):
            read[name] = _array(read[name])
        for name in ("hole", "blinded_lags", "warnings"):
            read[name] = tuple(read[name])
        return cls(**{name: _number(value) for name, value in read.items()})


def noise_statistics(
    movie: Movie | np.ndarray,
    *,
    max_lag: int = 8,
    max_temporal_lag: int = 4,
    frames: int | None = None,
    skip_frames: Collection[int] = (),
    scenes: np.ndarray | None = None,
    bad_pixels: np.ndarray | None = None,
) -> NoiseStatistics:
    """Measure the noise of a movie and recommend a blind spot.

    Parameters
    ----------
    movie
        The movie, or a ``(t, y, x)`` array (a ``(y, x)`` image counts as one frame). Frames are
        read one at a time.
    max_lag
        Largest spatial offset R, px.
    max_temporal_lag
        Largest distance in time, frames.
    frames
        How many frames to sample, in runs of consecutive frames spread over the movie. The default
        gives errors below 0.01 in the correlation for frames of 128×128 and larger.
    skip_frames
        Frames to leave out (blank or broken ones).
    scenes
        ``(t,)`` number of the scene that each frame belongs to; frames of different scenes are
        never compared. The default is one scene.
    bad_pixels
        ``(y, x)`` boolean mask of pixels to leave out.

    Returns
    -------
    NoiseStatistics

    Raises
    ------
    ShineError
        If an option does not fit the movie.

    Notes
    -----
    The hole is the smallest odd rectangle that covers every offset of the contiguous core whose
    noise correlation is above 4 standard errors (1 % false alarms over all offsets together) and
    above 0.045 in magnitude (weaker tails cost less than the larger hole that hides them). Rows
    and columns are sized separately. A gap of one pixel does not end the core.

    References
    ----------
    SHINE, Science Advances (2025), Eq. 4, "Noise statistics estimation and blind-spot size
    determination", fig. S7.
    """
    if not isinstance(movie, Movie):
        movie = Movie.from_array(movie)
    _check(movie, max_lag, max_temporal_lag, frames, scenes, bad_pixels)
    count, height, width = movie.shape
    skipped = frozenset(int(i) % count for i in skip_frames)
    spectra = measure_spectra(
        movie,
        lags=max(4, max_temporal_lag),
        frames=frames or _FRAMES,
        skip_frames=skipped,
        scenes=scenes,
        bad_pixels=bad_pixels,
    )
    radius = min(max_lag, max((min(spectra.tile_shape) - 1) // 3, 0))
    used = [i for i in range(count) if i not in skipped] or list(range(count))
    raw = raw_correlation(movie.frame(used[len(used) // 2]), radius, bad_pixels)
    single = not spectra.pairs[1]
    noisy = spectra.power if single else spectra.change[0]
    if min(height, width) < 4:
        return _no_noise(raw, max_temporal_lag, f"frames of {height}×{width} px are too small")
    if not noisy.max() > 0 or not (single or spectra.differs):
        what = "the frame is constant" if single else "neighbouring frames are identical"
        return _no_noise(raw, max_temporal_lag, what if spectra.pairs[0] else "no pixel is finite")
    level = tile_levels(spectra)
    # a drift-corrected movie has empty borders
    alive = level > 0.02 * np.median(level[level > 0])
    level = np.where(alive, level, np.inf)
    quiet = quiet_tiles(spectra, alive)
    samples = spectra.samples(0 if single else 1, int(quiet.sum()))
    weights = quiet / level
    silent, steady = silent_frequencies(spectra, weights)
    enough = steady.mean() > _ENOUGH_STEADY
    noise = noisy if enough else tile_spectra(spectra)
    spectrum = np.average(noise, axis=0, weights=weights) * weights.sum() / quiet.sum()
    fit = fit_correlation(
        spectrum,
        window=spectra.window,
        usable=steady if enough else np.ones_like(steady),
        silent=silent,
        radius=radius,
        samples=samples,
    )
    variance = max(float(fit.covariance[radius, radius]), 1e-6)
    correlation = fit.covariance / variance
    error_map = fit.error / variance
    error = float(np.sqrt(np.mean(error_map**2)))
    temporal = temporal_noise(
        spectra,
        fit.spectrum / float(spectra.plane_mean(fit.spectrum)),
        1 / level,
        lags=max_temporal_lag,
    )
    # Noise that lives on changes less from one frame to the next than it weighs.
    lasting = temporal.correlation[1] if temporal.blinded_lags and not single else 0.0
    power = float(np.median(level[alive])) * variance / max(1 - lasting, 0.05)
    sigma = spectra.scale * float(np.sqrt(power))
    homogeneity, spread = _homogeneity(
        spectra, fit, error_map, shape=(height, width), quiet=quiet, level=level
    )
    hole, core = _hole(correlation, error_map)
    confidence, reason = _confidence(spectra, fit, correlation, error_map, core, quiet)
    return NoiseStatistics(
        raw_correlation=raw,
        difference_correlation=correlation,
        correlation_error=error,
        temporal_correlation=temporal.correlation,
        temporal_error=temporal.error,
        sigma=sigma,
        mean_variance=fit_mean_variance(
            spectra.blocks,
            freedom=spectra.block_pixels / float((correlation**2).sum()),
            scale=spectra.scale,
            variance=float(np.mean(level[alive])) * variance,
        ),
        homogeneity=homogeneity,
        homogeneity_spread=spread,
        anisotropy=_anisotropy(correlation, error_map),
        hole=hole,
        confidence=confidence,
        reason=reason,
        blinded_lags=temporal.blinded_lags,
        fixed_pattern=temporal.fixed_pattern,
        fixed_pattern_fraction=temporal.fixed_pattern_fraction,
        warnings=(*temporal.warnings, *_pixel_warnings(spectra, spectrum, fit, samples)),
    )


def noise_of(movie: Movie, health: Health) -> NoiseStatistics:
    """Measure the noise of a movie's good frames, as `noise_statistics` does.

    Blank frames and copies are left out, and what is left counts as consecutive: a repeated frame
    would pass for noise that lives on, and where every second frame is blank no two would be
    neighbours. Frames across a scene cut or a step of the brightness are not compared: they differ
    by more than noise.

    Parameters
    ----------
    movie, health
        The movie and its input check.
    """
    count = len(movie)
    kept = np.flatnonzero(
        ~np.asarray(health.blank, bool) & (np.asarray(health.duplicate_of) == np.arange(count))
    )
    steps = [t for f in health.findings if f.code == "intensity-jump" for t in f.frames]
    scenes = np.array(health.segment)
    for step in steps:
        scenes[step:] += 1
    good = movie
    if 0 < len(kept) < count:
        frames = LazyFrames(
            lambda i: movie.frame(int(kept[i])), (len(kept), *movie.shape[1:]), movie.dtype
        )
        good = movie.with_data(frames, did="blank and repeated frames left out")
        scenes = scenes[kept]
    return noise_statistics(good, scenes=scenes, bad_pixels=np.asarray(health.bad_pixels, bool))


def _check(
    movie: Movie,
    max_lag: int,
    max_temporal_lag: int,
    frames: int | None,
    scenes: np.ndarray | None,
    bad_pixels: np.ndarray | None,
) -> None:
    if max_lag < 0 or max_temporal_lag < 1:
        raise ShineError("max_lag must be 0 or more and max_temporal_lag 1 or more.")
    if frames is not None and frames < 1:
        raise ShineError(f"At least one frame must be sampled, not {frames}.")
    if scenes is not None and np.shape(scenes) != (len(movie),):
        raise ShineError(f"{movie.name}: {np.size(scenes)} scene numbers for {len(movie)} frames.")
    if bad_pixels is not None and np.shape(bad_pixels) != movie.shape[1:]:
        raise ShineError(
            f"{movie.name}: the mask of bad pixels has the shape {np.shape(bad_pixels)}, "
            f"the frames {movie.shape[1:]}."
        )


def _homogeneity(
    spectra: Spectra,
    fit: CorrelationFit,
    error: np.ndarray,
    *,
    shape: tuple[int, int],
    quiet: np.ndarray,
    level: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Return the noise correlation in 16 sub-regions and its scatter over the expected one."""
    radius = error.shape[0] // 2
    correlation = fit.covariance / fit.covariance[radius, radius]
    size = np.array(shape) / _REGIONS
    centres = spectra.origins + np.array(spectra.tile_shape) / 2
    noise = tile_spectra(spectra)
    near = np.hypot(*(np.indices(error.shape) - radius)) <= 2.9
    near[radius, radius] = False
    maps, ratios = [], [np.ones(1)]
    for row, column in np.ndindex(_REGIONS, _REGIONS):
        middle = (np.array([row, column]) + 0.5) * size
        chosen = (np.abs(centres - middle) <= 0.5 * size).all(axis=1)
        if not chosen.any():
            chosen = np.arange(len(centres)) == np.argmin(np.hypot(*(centres - middle).T))
        if not np.isfinite(level[chosen]).any():
            maps.append(np.full(error.shape, np.nan))
            continue
        covariance = fit.apply(np.average(noise[chosen] / level[chosen, None, None], axis=0))
        here = covariance / max(covariance[radius, radius], 1e-12)
        maps.append(here)
        expected = error[near] * np.sqrt(max(quiet.sum(), 1) / chosen.sum())
        ratios.append(((here - correlation)[near] / expected) ** 2)
    return np.array(maps), float(np.sqrt(np.mean(np.concatenate(ratios[1:] or ratios))))


def _hole(correlation: np.ndarray, error: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Return the hole and the map of offsets that it had to cover."""
    from scipy import ndimage

    radius = correlation.shape[0] // 2
    strong = (np.abs(correlation) > MATERIAL_CORRELATION) & (np.abs(correlation) > _SIGMAS * error)
    strong[radius, radius] = True
    # a gap of one pixel does not end the core
    bridged = ndimage.binary_dilation(strong, np.ones((3, 3)))
    labels, _ = ndimage.label(bridged, np.ones((3, 3)))
    core = strong & (labels == labels[radius, radius])
    rows, columns = np.nonzero(core)
    return (
        (
            2 * int(np.abs(rows - radius).max()) + 1,
            2 * int(np.abs(columns - radius).max()) + 1,
        ),
        core,
    )


def _anisotropy(correlation: np.ndarray, error: np.ndarray) -> float:
    radius = correlation.shape[0] // 2
    sure = np.where(np.abs(correlation) > _SIGMAS * error, np.abs(correlation), 0)
    row, column = float(sure[radius].sum() - 1), float(sure[:, radius].sum() - 1)
    return (row - column) / (row + column) if row + column > 0.02 else 0.0


def _confidence(
    spectra: Spectra,
    fit: CorrelationFit,
    correlation: np.ndarray,
    error: np.ndarray,
    core: np.ndarray,
    quiet: np.ndarray,
) -> tuple[str, str]:
    radius = correlation.shape[0] // 2
    near = slice(max(radius - 3, 0), radius + 4)
    worst = float(error[near, near].max())
    rows, columns = np.nonzero(core)
    reach = max(np.abs(rows - radius).max(), np.abs(columns - radius).max())
    if not spectra.pairs[1]:
        return "low", "one frame only: picture and noise cannot be told apart for sure."
    if radius == 0:
        return "low", "the frames are too small to measure correlation."
    if reach == radius:
        return "low", f"the noise is correlated as far as was looked ({radius} px)."
    if worst > 0.03:
        return "low", f"the correlation is known to ±{worst:.2f} only: too few pixels or frames."
    kept = fit.kept[spectra.usable].mean()
    doubtful = np.abs(np.abs(correlation) - MATERIAL_CORRELATION) < 2 * error
    # only offsets that would change the hole
    outside = doubtful & (np.maximum(*np.abs(np.indices(error.shape) - radius)) > reach)
    if worst > 0.01:
        return "medium", f"the correlation is known to ±{worst:.3f}."
    if outside.any():
        return "medium", "a correlation lies close to the threshold."
    if kept < 0.8 or quiet.mean() < 0.25:
        return "medium", "the picture changes much from frame to frame."
    return "high", f"the correlation is known to ±{worst:.3f} and the picture hardly leaks into it."


def _pixel_warnings(
    spectra: Spectra, spectrum: np.ndarray, fit: CorrelationFit, samples: float
) -> list[str]:
    warnings = []
    for name, share in zip(("row", "column"), line_noise(spectrum, fit, samples), strict=True):
        if share > 0.02:
            warnings.append(
                f"Each {name} carries an offset of its own ({100 * share:.0f} % of the noise "
                f"variance): no blind spot can hide that, remove it first."
            )
    if spectra.stuck_pixels > 1e-5 * spectra.seen_pixels:
        warnings.append(
            f"{100 * spectra.stuck_pixels / spectra.seen_pixels:.3f} % of the pixels are stuck "
            "(hot or dead); they were left out here: give them as bad pixels."
        )
    if spectra.spikes > 1e-5 * spectra.seen_pixels * spectra.pairs[0]:
        warnings.append("Single pixels flash (X-rays or cosmic rays); they were left out here.")
    return warnings


def _no_noise(raw: np.ndarray, lags: int, what: str) -> NoiseStatistics:
    centre = np.zeros_like(raw)
    centre[raw.shape[0] // 2, raw.shape[1] // 2] = 1
    temporal = np.full(lags + 1, np.nan)
    temporal[0] = 1
    empty = np.zeros(0)
    return NoiseStatistics(
        raw_correlation=raw,
        difference_correlation=centre,
        correlation_error=float("inf"),
        temporal_correlation=temporal,
        temporal_error=np.where(temporal == 1, 0.0, np.nan),
        sigma=0.0,
        mean_variance=MeanVariance(np.nan, np.nan, np.nan, empty, empty, False),
        homogeneity=np.repeat(centre[None], _REGIONS**2, axis=0),
        homogeneity_spread=float("nan"),
        anisotropy=0.0,
        hole=(1, 1),
        confidence="low",
        reason=f"no noise could be measured: {what}.",
        blinded_lags=(),
        fixed_pattern=False,
        fixed_pattern_fraction=0.0,
        warnings=(f"No noise could be measured: {what}.",),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, MeanVariance):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value


def _array(values: Any) -> np.ndarray:
    return np.array(values, float)


def _number(value: Any) -> Any:
    return float("nan") if value is None else value
