"""The noise variance against the signal: gain and read noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["MeanVariance", "fit_mean_variance"]


@dataclass(frozen=True)
class MeanVariance:
    """Noise variance against mean signal, with the line ``variance = gain · mean + offset``.

    Attributes
    ----------
    gain
        Slope: variance per signal, movie units.
    offset
        Variance where the signal is zero, movie units squared.
    read_noise
        Standard deviation where the signal is zero, √max(offset, 0), movie units.
    means, variances
        Points of the curve, movie units and movie units squared.
    reliable
        False where the means span too little to tell slope from offset.
    """

    gain: float
    offset: float
    read_noise: float
    means: np.ndarray
    variances: np.ndarray
    reliable: bool


def fit_mean_variance(
    blocks: np.ndarray, *, freedom: float, averaged: int, scale: float = 1.0
) -> MeanVariance:
    """Fit noise variance against signal, robust to blocks in which the picture changes.

    Parameters
    ----------
    blocks
        ``(n, 2)``: mean and noise variance of small blocks, of independent frames.
    freedom
        Independent pixels in a block.
    averaged
        Frames behind each mean.
    scale
        Movie units per unit of the means.

    Returns
    -------
    MeanVariance
        NaN, with an empty curve, where there are fewer than 64 blocks.
    """
    blocks = blocks[np.isfinite(blocks).all(axis=1)]
    if len(blocks) < 64 or np.ptp(blocks[:, 0]) == 0:
        empty = np.zeros(0)
        return MeanVariance(np.nan, np.nan, np.nan, empty, empty, False)
    blocks = blocks[np.argsort(blocks[:, 0])]
    groups = np.array_split(blocks, int(np.clip(len(blocks) // 64, 4, 24)))
    means = np.array([group[:, 0].mean() for group in groups])
    variances = np.array([_median_of_means(group[:, 1]) for group in groups])
    weight = np.ones(len(means))
    middle = float(means.mean())
    gain = level = scale = 0.0
    for _ in range(20):
        gain, level = (
            float(v) for v in np.polyfit(means - middle, variances, 1, w=np.sqrt(weight))
        )
        apart = np.abs(variances - gain * (means - middle) - level)
        scale = max(1.4826 * float(np.median(apart)), 1e-6 * abs(level), 1e-30)
        weight = 1 / np.maximum(apart / (1.5 * scale), 1)
    # Errors of the means flatten the slope by the share of real spread in the spread of the means.
    spread = float(blocks[:, 0].var())
    real = 1 - level / (max(freedom, 1.0) * averaged) / spread
    error = scale / max(float(means.std()), 1e-30) / np.sqrt(len(means))
    reliable = real > 0.7 and gain > 4 * error
    if real > 0.5:
        gain /= real
        means = middle + real * (means - middle)
    offset = level - gain * middle
    return MeanVariance(
        gain=gain * scale,
        offset=offset * scale**2,
        read_noise=float(np.sqrt(max(offset, 0))) * scale,
        means=means * scale,
        variances=variances * scale**2,
        reliable=bool(reliable),
    )


def _median_of_means(values: np.ndarray) -> float:
    """Return a mean that a few outliers cannot move and that skewness does not bias."""
    batches = max(len(values) // 8, 1)
    return float(
        np.median(values[: batches * (len(values) // batches)].reshape(-1, batches).mean(axis=0))
    )
