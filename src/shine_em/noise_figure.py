"""The picture of a movie's noise statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .noise import NoiseStatistics

__all__ = ["plot_noise"]


def plot_noise(stats: NoiseStatistics) -> Figure:
    """Return a figure of the noise statistics.

    Both correlation heatmaps (the paper's, of one raw frame, and the one of the noise), the hole
    drawn in, the correlation over time, the mean-variance curve, and the 16 sub-regions.

    Parameters
    ----------
    stats
        From `noise_statistics`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    _heatmap(axes[0, 0], stats.raw_correlation, stats.hole, "One raw frame (picture + noise)")
    _heatmap(axes[0, 1], stats.difference_correlation, stats.hole, "Noise, from frame differences")
    return figure


def _heatmap(axis, values: np.ndarray, hole: tuple[int, int], title: str) -> None:  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    radius = values.shape[0] // 2
    shown = min(radius, 5)
    part = values[radius - shown : radius + shown + 1, radius - shown : radius + shown + 1]
    edge = shown + 0.5
    axis.imshow(part, extent=(-edge, edge, edge, -edge), cmap="RdBu_r", vmin=-1, vmax=1)
    for (y, x), value in np.ndenumerate(part):
        axis.text(x - shown, y - shown, f"{value:.2f}", ha="center", va="center", fontsize=6)
    axis.add_patch(Rectangle((-hole[1] / 2, -hole[0] / 2), hole[1], hole[0], fill=False, lw=2))
    axis.set(title=title)
