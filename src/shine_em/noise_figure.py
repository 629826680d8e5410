"""A movie's noise statistics as a picture and as a table of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .noise import NoiseStatistics

__all__ = ["format_table", "plot_noise"]

_INK, _ACCENT, _FAINT = "#222222", "#c2410c", "#64748b"
_SHOWN = 5  # px: larger offsets are measured but would make the values unreadable


def format_table(stats: NoiseStatistics) -> str:
    """Return the statistics as a plain-text table."""
    radius = stats.difference_correlation.shape[0] // 2
    near = min(radius, 5)
    middle = stats.difference_correlation
    lines = [
        f"Blind spot        {stats.hole[0]}×{stats.hole[1]} (rows × columns), confidence "
        f"{stats.confidence}: {stats.reason}",
        f"Noise σ           {stats.sigma:.4g} (movie units)",
        "Offset, px        " + "".join(f"{k:>8d}" for k in range(1, near + 1)),
        "  along rows      "
        + "".join(f"{middle[radius, radius + k]:8.3f}" for k in range(1, near + 1)),
        "  along columns   "
        + "".join(f"{middle[radius + k, radius]:8.3f}" for k in range(1, near + 1)),
        "  raw frame, rows "
        + "".join(f"{stats.raw_correlation[radius, radius + k]:8.3f}" for k in range(1, near + 1)),
        f"  (± {stats.correlation_error:.3f})",
    ]
    # A short movie has no frames that far apart.
    in_time = [(k, v) for k, v in enumerate(stats.temporal_correlation) if k and np.isfinite(v)]
    if in_time:
        lines.append("Frames apart      " + "".join(f"{k:>8d}" for k, _ in in_time))
        lines.append("  correlation     " + "".join(f"{v:8.3f}" for _, v in in_time))
    lines.append(
        f"Fixed pattern     {100 * stats.fixed_pattern_fraction:.1f} % of the noise variance"
    )
    curve = stats.mean_variance
    if curve.reliable:
        lines.append(f"Mean–variance     gain {curve.gain:.4g}, read noise {curve.read_noise:.4g}")
    elif len(curve.means):
        typical = len(curve.means) // 2
        lines.append(
            f"Mean–variance     variance {curve.variances[typical]:.4g} at mean "
            f"{curve.means[typical]:.4g}; gain unknown: the signal varies too little or moves too "
            "fast, or the noise does not follow it"
        )
    if stats.blinded_lags:
        lines.append("Blind as well     frames ±" + ", ±".join(map(str, stats.blinded_lags)))
    lines += [f"Warning: {text}" for text in stats.warnings]
    return "\n".join(lines)


def plot_noise(stats: NoiseStatistics) -> Figure:
    """Return a figure of the noise statistics.

    Both correlation heatmaps (the paper's, of one raw frame, and that of the noise alone) with the
    recommended hole drawn in, the correlation along rows and columns, the correlation over time,
    the mean-variance curve, and the 16 sub-regions of the paper's fig. S7.

    Parameters
    ----------
    stats
        From `noise_statistics`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot: save it with ``figure.savefig(path)``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8.6), layout="constrained")
    axes = figure.subplots(2, 3)
    _heatmap(axes[0, 0], stats.raw_correlation, stats.hole, "One raw frame: picture and noise")
    image = _heatmap(axes[0, 1], stats.difference_correlation, stats.hole, "Noise alone")
    figure.colorbar(image, ax=axes[0, 1], shrink=0.8, label="correlation")
    _profiles(axes[0, 2], stats)
    _temporal(axes[1, 0], stats)
    _mean_variance(axes[1, 1], stats)
    _regions(axes[1, 2], stats)
    rows, columns = stats.hole
    figure.suptitle(
        f"Blind spot {rows}×{columns} (rows × columns), confidence {stats.confidence}: "
        f"{stats.reason}",
        fontsize=12,
    )
    return figure


def _heatmap(axis: Any, values: np.ndarray, hole: tuple[int, int], title: str) -> Any:
    from matplotlib.patches import Rectangle

    radius = values.shape[0] // 2
    shown = min(radius, _SHOWN)
    part = values[radius - shown : radius + shown + 1, radius - shown : radius + shown + 1]
    edge = shown + 0.5
    image = axis.imshow(
        part, extent=(-edge, edge, edge, -edge), cmap="RdBu_r", vmin=-1, vmax=1, aspect="equal"
    )
    for (y, x), value in np.ndenumerate(part):
        text = f"{value:.2f}".replace("0.", ".") if abs(value) >= 0.005 else "0"
        axis.text(
            x - shown,
            y - shown,
            text if y != shown or x != shown else "1",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if abs(value) > 0.6 else _INK,
        )
    height, width = hole
    axis.add_patch(
        Rectangle(
            (-width / 2, -height / 2), width, height, fill=False, edgecolor=_ACCENT, linewidth=2.5
        )
    )
    axis.set(title=title, xlabel="columns, px", ylabel="rows, px")
    return image


def _profiles(axis: Any, stats: NoiseStatistics) -> None:
    from .noise import MATERIAL_CORRELATION

    radius = stats.difference_correlation.shape[0] // 2
    offsets = np.arange(radius + 1)
    noise, raw = stats.difference_correlation, stats.raw_correlation
    axis.axhspan(
        -MATERIAL_CORRELATION, MATERIAL_CORRELATION, color=_FAINT, alpha=0.15, label="immaterial"
    )
    axis.plot(offsets, raw[radius, radius:], ":", color=_FAINT, label="raw, along rows")
    axis.plot(offsets, noise[radius, radius:], "o-", color=_ACCENT, label="noise, along rows")
    axis.plot(offsets, noise[radius:, radius], "s--", color=_INK, label="noise, along columns")
    axis.set(
        title="Along rows and columns", xlabel="offset, px", ylabel="correlation", ylim=(None, 1.05)
    )
    axis.legend(frameon=False)


def _temporal(axis: Any, stats: NoiseStatistics) -> None:
    lags = np.arange(1, len(stats.temporal_correlation))
    values, errors = stats.temporal_correlation[1:], stats.temporal_error[1:]
    known = np.isfinite(values)
    colours = [_ACCENT if k in stats.blinded_lags else _FAINT for k in lags[known]]
    axis.bar(lags[known], values[known], yerr=2 * errors[known], color=colours, capsize=4)
    for lag in lags[~known]:
        axis.text(lag, 0, "?", ha="center", va="bottom", color=_FAINT)
    top = float(np.max(np.abs(values[known]), initial=0.1)) * 1.3
    frozen = f"frozen over all frames: {100 * stats.fixed_pattern_fraction:.1f} % of the variance"
    axis.axhline(0, color=_INK, linewidth=0.8)
    axis.set(
        title="Noise over time",
        xlabel=f"frames apart\n{frozen}",
        ylabel="correlation",
        ylim=(-top, top),
        xlim=(0.4, len(lags) + 0.6),
        xticks=lags,
    )


def _mean_variance(axis: Any, stats: NoiseStatistics) -> None:
    curve = stats.mean_variance
    axis.set(title="Noise variance against signal", xlabel="mean", ylabel="variance")
    if not len(curve.means):
        axis.text(0.5, 0.5, "too few frames", ha="center", va="center", transform=axis.transAxes)
        return
    axis.plot(curve.means, curve.variances, "o", color=_INK, markersize=4)
    line = np.array([curve.means.min(), curve.means.max()])
    label = f"gain {curve.gain:.3g}, read noise {curve.read_noise:.3g}"
    axis.plot(
        line,
        curve.gain * line + curve.offset,
        color=_ACCENT,
        label=label
        if curve.reliable
        else label + "\n(unreliable: the signal spans too little, or moves too fast)",
    )
    axis.legend(frameon=False, loc="upper left")


def _regions(axis: Any, stats: NoiseStatistics) -> None:
    radius = stats.difference_correlation.shape[0] // 2
    shown = min(radius, 3)
    window = slice(radius - shown, radius + shown + 1)
    gap = 1
    side = 2 * shown + 1 + gap
    sheet = np.full((4 * side - gap, 4 * side - gap), np.nan)
    for index, part in enumerate(stats.homogeneity):
        row, column = divmod(index, 4)
        sheet[row * side : row * side + side - gap, column * side : column * side + side - gap] = (
            part[window, window]
        )
    axis.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set(
        title="The same in 4×4 sub-regions",
        xticks=[],
        yticks=[],
        xlabel=f"scatter {stats.homogeneity_spread:.1f} × the statistical error",
    )
