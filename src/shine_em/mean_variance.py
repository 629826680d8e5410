"""The noise variance against the signal: gain and read noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["MeanVariance", "fit_mean_variance", "fit_removed"]

# Ratio between line and variance beyond which one of them is wrong: 0.99 to 1.02 on 12 simulated
# movies, 1.18 and 2.3 where a lattice trembles or drifts by pixels from frame to frame.
_AGREEMENT = 1.15
# Ratio between what was removed and the noise beyond which it is something else.
_REMOVED = 1.4
_BINS = 24  # of the signal


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
        False where the means span too little to tell slope from offset, or where the line and the
        noise's own variance disagree: the picture changes too much from frame to frame.
    removed
        Whether it was measured in what a denoiser removed, not in differences of frames.
    """

    gain: float
    offset: float
    read_noise: float
    means: np.ndarray
    variances: np.ndarray
    reliable: bool
    removed: bool = False


def fit_mean_variance(
    blocks: np.ndarray, *, freedom: float, scale: float = 1.0, variance: float | None = None
) -> MeanVariance:
    """Fit noise variance against signal, robust to blocks in which the picture changes.

    Blocks are sorted by their mean in *other* frames than those of the variance; mean and variance
    of each group come from the same frames. So the noise of the sorting is independent of both
    (an instrument, as statistics has it), and neither flattens the line nor, counts being skewed,
    gives it a slope of its own; nor does a picture that has moved on between those frames. A
    picture that changes everywhere *within* the two or three frames of a variance passes for
    noise: over a lattice that rotates fast or trembles the line comes out up to twice too steep.
    Where that makes it disagree with the noise variance measured otherwise, it is called
    unreliable; `fit_removed` can tell more.

    Parameters
    ----------
    blocks
        ``(n, 5)``, a row for each small block: mean in other frames, by which blocks are sorted;
        noise variance; mean in the frames of that variance; how much the first mean differs from
        that of the blocks beside; and an estimate of its noise variance.
    freedom
        Independent pixels in a block.
    scale
        Movie units per unit of the means.
    variance
        The mean noise variance, known by other means (of the blocks' units, squared). The line is
        brought halfway to it at the mean signal: one errs where another does not. A line that does
        not come near it has taken motion for noise.

    Returns
    -------
    MeanVariance
        NaN, with an empty curve, where there are fewer than 64 blocks.

    References
    ----------
    A. Wald, The fitting of straight lines if both variables are subject to error. Ann. Math. Stat.
    11, 284-300 (1940).
    """
    blocks = blocks[np.isfinite(blocks).all(axis=1)]
    freedom = max(freedom, 1.0)
    if len(blocks) < 64 or np.ptp(blocks[:, 0]) == 0:
        empty = np.zeros(0)
        return MeanVariance(np.nan, np.nan, np.nan, empty, empty, False)
    # At edges that move, the picture changes as well: only blocks as flat as noise allows count.
    used = blocks[blocks[:, 3] <= 4 * np.sqrt(_median_of_means(blocks[:, 4]))]
    groups, every = _grouped(used), _grouped(blocks)
    if len(groups) < 3 or _span(groups) < 0.3 * _span(every):
        groups = every
    if len(groups) < 3:
        groups = np.array_split(blocks[np.argsort(blocks[:, 0])], 4)
    counts = np.array([len(group) for group in groups])
    means = np.array([group[:, 2].mean() for group in groups])
    of_means = np.array([group[:, 2].std() for group in groups]) / np.sqrt(counts)
    variances = np.array([_median_of_means(group[:, 1]) for group in groups])
    of_variances = np.maximum(variances, 0.01 * variances.max()) * np.sqrt(2 / freedom / counts)
    gain, offset, uncertainty = _line(means, of_means, variances, of_variances)
    at_mean = gain * float(blocks[:, 2].mean()) + offset
    agrees = variance is None or variance / _AGREEMENT < at_mean < variance * _AGREEMENT
    if variance is not None and agrees:
        offset += (variance - at_mean) / 2
    return MeanVariance(
        gain=gain * scale,
        offset=offset * scale**2,
        read_noise=float(np.sqrt(max(offset, 0))) * scale,
        means=means * scale,
        variances=variances * scale**2,
        reliable=bool(gain > 4 * uncertainty) and agrees,
    )


def fit_removed(
    blind: np.ndarray,
    denoised: np.ndarray,
    raw: np.ndarray,
    before: MeanVariance,
    *,
    independent: float,
    mean: float,
) -> MeanVariance:
    """Fit the noise variance in what a denoiser removed against the signal.

    Pixels are sorted by a prediction that knows nothing of their noise. So the mean of raw over
    all that are alike is their signal, whether the prediction is right or not (it is an instrument,
    as in `fit_mean_variance`), and the mean square of raw − denoised their noise variance, and a
    little more for the denoiser's own error. Motion plays no part in it.

    Parameters
    ----------
    blind
        ``(n,)`` pixels, predicted without anything of their noise; by these they are sorted.
    denoised, raw
        ``(n,)``: the same pixels, as well as they can be denoised, and as recorded; movie units.
    before
        The curve from differences of frames.
    independent
        Share of the pixels that count as independent: 1 / Σρ² of the noise.
    mean
        Mean noise variance of these pixels, as it is known otherwise: variances are scaled to it.

    Returns
    -------
    MeanVariance
        `before` where the signal spans too little to tell more, or where what was removed is not
        the noise.
    """
    squares = (raw - denoised) ** 2
    factor = mean / max(float(squares.mean()), 1e-300)
    low, high = np.quantile(blind, [0.002, 0.998])
    if not high > low or not 1 / _REMOVED < factor < _REMOVED:
        return before
    which = np.digitize(blind, np.linspace(low, high, _BINS + 1)[1:-1])
    counts = np.bincount(which, minlength=_BINS)
    used = counts * independent >= 100
    if used.sum() < 3:
        return before
    counts = counts[used]

    def binned(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(which, values, _BINS)[used] / counts)

    means, variances = binned(raw), factor * binned(squares)
    of_means, of_variances = (
        np.sqrt(np.maximum(second - first**2, 0) / (counts * independent))
        for first, second in (
            (means, binned(raw**2)),
            (variances, factor**2 * binned(squares**2)),
        )
    )
    gain, _, uncertainty = _line(means, of_means, variances, of_variances)
    clear = gain > 4 * uncertainty
    other = before.reliable and abs(gain - before.gain) > 4 * uncertainty
    if not clear and not other:
        return before
    offset = mean - gain * float(raw.mean())
    read_noise = float(np.sqrt(max(offset, 0)))
    return MeanVariance(gain, offset, read_noise, means, variances, clear, removed=True)


def _line(
    means: np.ndarray, of_means: np.ndarray, variances: np.ndarray, of_variances: np.ndarray
) -> tuple[float, float, float]:
    """Fit a line, robust to single points; return gain, offset and the gain's uncertainty.

    Parameters
    ----------
    means, of_means, variances, of_variances
        The points and their standard errors.
    """
    gain = level = 0.0
    heed = np.ones(len(means))
    for _ in range(20):
        error = np.sqrt(of_variances**2 + (gain * of_means) ** 2 + (0.01 * variances.mean()) ** 2)
        weight = heed / error
        middle = float(np.average(means, weights=weight**2))
        gain, level = (float(v) for v in np.polyfit(means - middle, variances, 1, w=weight))
        apart = np.abs(variances - gain * (means - middle) - level) / error
        scatter = max(1.4826 * float(np.median(apart)), 0.1)
        heed = 1 / np.sqrt(np.maximum(apart / (1.5 * scatter), 1))
    uncertainty = float(scatter / np.sqrt((weight**2 * (means - middle) ** 2).sum()))
    return gain, level - gain * middle, uncertainty


def _grouped(blocks: np.ndarray) -> list[np.ndarray]:
    """Return bins of equal width in the mean: bright particles are few, but fix the slope."""
    if len(blocks) < 96:
        return []
    low, high = np.quantile(blocks[:, 0], [0.002, 0.998])
    edges = np.linspace(float(low), float(high), 25)
    which = np.digitize(blocks[:, 0], edges)
    return [group for i in range(1, 25) if len(group := blocks[which == i]) >= 32]


def _span(groups: list[np.ndarray]) -> float:
    return float(np.ptp([group[:, 2].mean() for group in groups])) if groups else 0.0


def _median_of_means(values: np.ndarray) -> float:
    """Return a mean that a few outliers cannot move and that skewness does not bias.

    Means over 8 values, or 32 of many: the median of eight variances of 16 pixels lies 1 % below
    their mean, or more, which is as much as a good denoiser leaves. Where most values are far
    below their mean, of a few electrons each, which are many in few blocks, larger batches are
    needed for a mean without skewness.
    """
    size, mean = min(max(len(values) // 100, 8), 32), float(values.mean())
    if np.median(values) < 0.5 * mean:
        size = max(size, int(np.ceil((values.std() / (0.25 * mean)) ** 2)))
    batches = max(len(values) // size, 1)
    return float(
        np.median(values[: batches * (len(values) // batches)].reshape(-1, batches).mean(axis=0))
    )
