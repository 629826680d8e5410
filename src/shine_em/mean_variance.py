"""The noise variance against the signal: gain and read noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["MeanVariance", "fit_mean_variance"]


_REAL = 0.3  # least share of true differences in the spread of the means


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


def fit_mean_variance(blocks: np.ndarray, *, freedom: float, scale: float = 1.0) -> MeanVariance:
    """Fit noise variance against signal, robust to blocks in which the picture changes.

    Parameters
    ----------
    blocks
        ``(n, 4)``: mean and noise variance of small blocks, of independent frames, how much the
        mean differs from that of the blocks beside, and an estimate of the mean's noise variance.
    freedom
        Independent pixels in a block.
    scale
        Movie units per unit of the means.

    Returns
    -------
    MeanVariance
        NaN, with an empty curve, where there are fewer than 64 blocks.
    """
    blocks = blocks[np.isfinite(blocks).all(axis=1)]
    freedom = max(freedom, 1.0)
    if len(blocks) < 64 or np.ptp(blocks[:, 0]) == 0:
        empty = np.zeros(0)
        return MeanVariance(np.nan, np.nan, np.nan, empty, empty, False)
    # At edges that move, the picture changes as well: only blocks as flat as noise allows count.
    noise_of_mean = float(np.sqrt(_median_of_means(blocks[:, 3])))
    used = blocks[blocks[:, 2] <= 4 * noise_of_mean]
    groups = _grouped(used)
    if len(groups) < 3 or np.ptp(used[:, 0]) < 0.3 * np.ptp(blocks[:, 0]):
        used = blocks
        groups = _grouped(used)
    if len(groups) < 3:
        groups = np.array_split(blocks[np.argsort(blocks[:, 0])], 4)
    means = np.array([group[:, 0].mean() for group in groups])
    variances = np.array([_median_of_means(group[:, 1]) for group in groups])
    counts = np.array([len(group) for group in groups])
    error = np.maximum(variances, 0.01 * variances.max()) * np.sqrt(2 / freedom / counts)
    error = np.hypot(error, 0.01 * variances.mean())
    weight = 1 / error
    middle = float(np.average(means, weights=weight**2))
    gain = level = 0.0
    for _ in range(20):
        gain, level = (float(v) for v in np.polyfit(means - middle, variances, 1, w=weight))
        apart = np.abs(variances - gain * (means - middle) - level) / error
        scatter = max(1.4826 * float(np.median(apart)), 0.1)
        weight = 1 / (error * np.sqrt(np.maximum(apart / (1.5 * scatter), 1)))
    uncertainty = scatter / np.sqrt((weight**2 * (means - middle) ** 2).sum())
    # Errors of the means flatten the slope by the share of real spread in the spread of the means.
    real = 1 - float(used[:, 3].mean()) / float(used[:, 0].var())
    reliable = real > _REAL and gain > 4 * uncertainty
    if real > _REAL:
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


def _grouped(blocks: np.ndarray) -> list[np.ndarray]:
    """Return bins of equal width in the mean: bright particles are few, but fix the slope."""
    if len(blocks) < 96:
        return []
    low, high = np.quantile(blocks[:, 0], [0.002, 0.998])
    edges = np.linspace(float(low), float(high), 25)
    which = np.digitize(blocks[:, 0], edges)
    return [group for i in range(1, 25) if len(group := blocks[which == i]) >= 32]


def _median_of_means(values: np.ndarray) -> float:
    """Return a mean that a few outliers cannot move and that skewness does not bias."""
    batches = max(len(values) // 8, 1)
    return float(
        np.median(values[: batches * (len(values) // batches)].reshape(-1, batches).mean(axis=0))
    )
