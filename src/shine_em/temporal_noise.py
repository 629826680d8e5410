"""Noise that lives on from frame to frame: detector lag, interpolated frames, fixed pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .noise_fit import lower_cluster
from .noise_spectrum import HANN_OVERLAP, Spectra

__all__ = ["TemporalNoise", "temporal_noise"]

# Below these shares of the noise variance a network gains nothing by copying noise: it copies
# about the square of the correlation.
MATERIAL_LAG = 0.05
MATERIAL_PATTERN = 0.05
_SIGMAS = 4.0
# What the faint tails of a picture do to a ratio at frequencies that hold next to none of it.
_SYSTEMATIC = 0.003


@dataclass(frozen=True)
class TemporalNoise:
    """Correlation of noise between frames.

    Attributes
    ----------
    correlation, error
        ``(lags + 1,)``: correlation k frames apart (index 0 is 1), NaN where the movie is too
        short, and its standard error.
    blinded_lags
        Lags whose noise is correlated significantly and materially.
    fixed_pattern, fixed_pattern_fraction, fixed_pattern_error
        Noise frozen over the whole movie, and its share of the whole noise variance.
    warnings
        What the user should know, plain sentences.
    """

    correlation: np.ndarray
    error: np.ndarray
    blinded_lags: tuple[int, ...]
    fixed_pattern: bool
    fixed_pattern_fraction: float
    fixed_pattern_error: float
    warnings: tuple[str, ...]


def temporal_noise(
    spectra: Spectra, noise: np.ndarray, weights: np.ndarray, *, lags: int
) -> TemporalNoise:
    """Measure how far noise is correlated in time.

    At frequencies that hold no picture, the correlation of the noise k frames apart is
    (power in common)/(power), of the same pairs of frames: so noise that is independent gives zero
    on average, however few the pairs are. Where the picture has power, the same ratio is raised,
    because the picture lives on. So the correlation is the centre of the lowest group of ratios
    over all frequencies at which the noise is strong. Noise frozen for good is what this leaves
    at frames far apart, at the highest spatial frequencies, where no picture reaches.

    Parameters
    ----------
    spectra
        Of the movie.
    noise
        ``(fy, fx)``: spectrum of the noise, in units of its own mean.
    weights
        ``(tiles,)``: what each tile's spectrum is multiplied with, to bring all to the same noise.
    lags
        Largest lag to report.
    """
    tiles = int((weights > 0).sum())
    correlation = np.full(lags + 1, np.nan)
    error = np.full(lags + 1, np.nan)
    correlation[0], error[0] = 1.0, 0.0

    def correlated(common: np.ndarray, change: np.ndarray) -> np.ndarray:
        shared = np.average(common, axis=0, weights=weights)
        return shared / (shared + np.average(change, axis=0, weights=weights))

    strong = spectra.usable & (noise > 0.05)
    crowded = False
    fraction, fraction_error = _fixed_pattern(spectra, weights)
    fixed = fraction > MATERIAL_PATTERN and fraction > _SIGMAS * fraction_error
    far = correlated(spectra.far_common, spectra.far) if spectra.far_pairs else None
    blinded = []
    for lag in range(1, lags + 1):
        if lag >= len(spectra.pairs) or not spectra.pairs[lag]:
            continue
        ratio = correlated(spectra.common[lag - 1], spectra.change[lag - 1])[strong]
        spread = 1 / np.sqrt(2 * spectra.samples(lag, tiles))
        centre, kept = lower_cluster(ratio, spread)
        alone = max(kept.sum() / HANN_OVERLAP**2, 1)
        correlation[lag] = centre
        error[lag] = np.hypot(spread / np.sqrt(alone), _SYSTEMATIC)
        crowded = crowded or (centre > MATERIAL_LAG and kept.mean() < 0.1)
        lasting = max(float(far[strong][kept].mean()), 0.0) if far is not None else 0.0
        if centre - lasting > MATERIAL_LAG and centre - lasting > _SIGMAS * error[lag]:
            blinded.append(lag)
    warnings = []
    if fixed:
        blinded = list(range(1, lags + 1))
        warnings.append(
            f"{100 * fraction:.0f} % of the noise is frozen over all frames (a gain residue, hot "
            "pixels or columns, or a still picture that is sharp to the last pixel): neighbouring "
            "frames would betray it, so all of them are blinded. A gain correction is better."
        )
    elif blinded:
        worst = max(blinded, key=lambda k: correlation[k])
        warnings.append(
            f"The noise of frames {worst} apart is correlated ({correlation[worst]:.2f}; detector "
            "lag, averaged or interpolated frames): those neighbours are blinded as well."
        )
    if blinded and not fixed and (far is None or crowded):
        warnings.append(
            "The movie is too short to tell that from noise frozen over all frames."
            if far is None
            else "The picture has power at nearly all spatial frequencies, so that it cannot be "
            "told apart from correlated noise for sure."
        )
    return TemporalNoise(
        correlation=correlation,
        error=error,
        blinded_lags=tuple(blinded),
        fixed_pattern=bool(fixed),
        fixed_pattern_fraction=float(fraction),
        fixed_pattern_error=float(fraction_error),
        warnings=tuple(warnings),
    )


def _fixed_pattern(spectra: Spectra, weights: np.ndarray) -> tuple[float, float]:
    """Return the frozen share of the noise variance and its error: pixels, columns and rows."""
    if not spectra.far_pairs or not spectra.pairs[1]:
        return 0.0, np.inf
    # The median over the tiles: a pattern is everywhere, a sharp edge of the picture is not.
    alive = weights > 0
    # Independent noise has either sign in what two frames share, so that its median is zero.
    parts = spectra.far_common[alive] * weights[alive, None, None]
    frozen = np.median(parts, axis=0) / weights[alive].mean()
    fy, fx = (np.abs(f) for f in spectra.frequencies)
    corner = np.hypot(fy, fx) > 0.5
    power = np.average(spectra.power, axis=0, weights=weights)
    spread = 1.25 * float(np.median(power[corner]))
    spread /= np.sqrt(2 * spectra.far_samples(int(alive.sum())))
    total = float(spectra.plane_mean(np.average(spectra.change[0], axis=0, weights=weights)))
    pixel, kept = lower_cluster(frozen[corner], spread)
    pixel_error = spread / np.sqrt(max(kept.sum() / HANN_OVERLAP**2, 1))
    lines = 0.0
    height, width = spectra.tile_shape
    # A pattern of columns has all its power at fy = 0, spread by the taper over 1.5 bins.
    for values, along, across in (
        (frozen[0], fx[0], height),
        (frozen[: height // 2 + 1, 0], np.abs(fy[: height // 2 + 1, 0]), width),
    ):
        bands = [(along > 0.25) & (along <= 0.375), (along > 0.375) & (along <= 0.5)]
        if all(band.any() for band in bands):
            line = (min(float(np.median(values[band])) for band in bands) - pixel) * 1.5 / across
            if line > _SIGMAS * spread * 1.5 / across:
                lines += line
    fraction = max(pixel, 0.0) + lines
    whole = fraction + total
    return fraction / whole, float(np.hypot(pixel_error / whole, _SYSTEMATIC))
