"""The picture of the dose advisor: curves with the point of failure, one frame at each level."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from .viewing import percentile_range, scale_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .dose_advice import Advice, Level

__all__ = ["plot_dose"]

_INK, _DOSE, _RATE, _FAINT = "#222222", "#c2410c", "#2563eb", "#94a3b8"


def plot_dose(advice: Advice) -> Figure:
    """Return a figure of all levels.

    Above, against the share of dose or frame rate: how much of the chosen measurement is kept,
    with the level asked for and the first levels that fail; the SNR; the resolution; what was
    measured in the frames; and the difference from the full dose beside that movie's own
    uncertainty. Below, the middle of one frame at each level, raw and denoised, in the units of
    the full dose: the denoised ones share one contrast, the raw ones have their own.

    Parameters
    ----------
    advice
        From `shine_em.dose.advise`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot: save it with ``figure.savefig(path)``.
    """
    from matplotlib.figure import Figure

    names = list(advice.levels[0].values)
    curves = 4 + len(names)
    columns = len(advice.levels)
    width = max(2.1 * columns, 13.0)
    figure = Figure(figsize=(width, 6.2 + 4.6 * width / columns / 2.1), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(6.2, 4.6 * width / columns / 2.1))
    above, below = parts
    axes = above.subplots(2, -(-curves // 2), squeeze=False).ravel()
    for unused in axes[curves:]:
        unused.axis("off")
    _kept(axes[0], advice)
    _curve(axes[1], advice, "SNR of halves, dB", lambda v: (v.halves.snr, float("nan")))
    unit = "nm" if advice.movie.pixel_size_nm else "px"
    _curve(
        axes[2], advice, f"FRC 1/7, {unit}",
        lambda v: (v.halves.resolution, v.halves.resolution_error),
    )  # fmt: skip
    _curve(
        axes[3], advice, "difference from full dose, %",
        lambda v: (100 * v.difference, float("nan")),
    )  # fmt: skip
    axes[3].axhline(100 * advice.uncertainty, color=_FAINT, linestyle="--", linewidth=1)
    axes[3].text(
        0.98, 100 * advice.uncertainty, "error of the full dose", color=_FAINT, fontsize=7,
        ha="right", va="bottom", transform=axes[3].get_yaxis_transform(),
    )  # fmt: skip
    axes[3].set_ylim(bottom=0)
    for axis, name in zip(axes[4:], names, strict=False):
        words = f"{name}, {unit}" if name == "diameter" else name
        _curve(axis, advice, words, lambda v, name=name: (v.values[name], float("nan")))
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.8 * high), high)
    _pictures(below, advice)
    wide = int(10.5 * width)  # characters of this size in the figure's width
    above.suptitle("\n".join(fill(text, wide) for text in advice.sentences()), fontsize=10)
    return figure


def _series(advice: Advice) -> list[tuple[str, str, str, Sequence[Level]]]:
    both = (
        ("dose", _DOSE, "o-", advice.doses()),
        (f"frame rate ({advice.skipping})", _RATE, "s--", advice.rates()),
    )
    return [series for series in both if len(series[3]) > 1]


def _share(level: Level) -> float:
    return 100 * level.fraction / level.skip


def _curve(axis: Any, advice: Advice, words: str, value: Any) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    for label, colour, style, levels in _series(advice):
        numbers = np.array([value(v) for v in levels], float)
        numbers[~np.isfinite(numbers[:, 0]), 0] = np.nan
        errors = np.nan_to_num(numbers[:, 1], nan=0.0, posinf=0.0)
        axis.errorbar(
            [_share(v) for v in levels], numbers[:, 0], yerr=errors, fmt=style, color=colour,
            label=label, markersize=4.5, linewidth=1.3, capsize=2,
        )  # fmt: skip
    axis.set_xscale("log")
    ticks = sorted({_share(v) for v in advice.levels})
    axis.set_xticks(ticks, minor=False)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("share of the full dose or frame rate, %", fontsize=8)
    axis.set_title(words, fontsize=9, color=_INK)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _kept(axis: Any, advice: Advice) -> None:
    criterion = advice.criterion
    _curve(
        axis, advice, f"kept of {criterion if criterion == 'particles' else criterion.upper()}, %",
        lambda v: (100 * v.kept[criterion], 100 * v.kept_error[criterion]),
    )  # fmt: skip
    axis.axhline(100 * advice.keep, color=_INK, linewidth=1, linestyle=":")
    axis.text(
        0.02, 100 * advice.keep, f"asked for: {100 * advice.keep:g} %", fontsize=7, va="bottom",
        transform=axis.get_yaxis_transform(),
    )  # fmt: skip
    for _, _, _, levels in _series(advice):
        _, failed = advice.lowest(levels)
        if failed is not None:
            axis.plot(
                _share(failed), 100 * failed.kept[criterion], "x", color=_INK, markersize=11,
                markeredgewidth=2, zorder=5,
            )  # fmt: skip
    axis.plot([], [], "x", color=_INK, markersize=7, markeredgewidth=2, label="fails")
    axis.legend(frameon=False, fontsize=7)
    axis.set_ylim(bottom=0)


def _pictures(figure: Any, advice: Advice) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    grid = figure.subplots(2, len(advice.levels), squeeze=False)
    low, high = percentile_range(advice.levels[0].picture.denoised, 0.3)
    contrast = low - 0.1 * (high - low), high + 0.1 * (high - low)
    for column, level in zip(grid.T, advice.levels, strict=True):
        picture = level.picture
        limits = percentile_range(picture.raw, 0.5), contrast
        for axis, image, (black, white) in zip(
            column, (picture.raw, picture.denoised), limits, strict=True
        ):
            axis.imshow(image, cmap="gray", vmin=black, vmax=white, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        fine = advice.passes(level)
        column[0].set_title(
            level.name if fine else f"{level.name}: fails", fontsize=9,
            color=_INK if fine else _DOSE,
        )  # fmt: skip
    grid[0, 0].set_ylabel("raw", fontsize=9)
    grid[1, 0].set_ylabel("denoised", fontsize=9)
    height, width = advice.levels[0].picture.raw.shape
    bar = scale_bar(width, advice.movie.pixel_size_nm)
    x, y = 0.04 * width, 0.95 * height
    thick = max(0.015 * height, 1.0)
    axis = grid[1, 0]
    axis.add_patch(
        Rectangle(
            (x, y - thick), bar.length_px, thick, facecolor="white", edgecolor="black", lw=0.5
        )
    )
    axis.text(
        x + bar.length_px / 2, y - 2 * thick, bar.label, color="white", fontsize=8, ha="center",
        va="bottom", path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip
