"""The report's plots, as SVG that takes the page's own font and text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .noise import NoiseStatistics
from .observing import Observations
from .registration import Drift
from .viewing import fitted_into

__all__ = [
    "drift_curve",
    "frame_means",
    "histogram",
    "loss_curve",
    "mean_variance",
    "noise_map",
    "png",
    "residual_profile",
    "snr_curve",
    "spectrum_png",
    "temporal_correlation",
]

# Readable on white and on near-black.
RAW, DENOISED, ACCENT, BEST = "#8b929c", "#2f80d0", "#e08a1e", "#3aa36b"
_TEXT = "#010203"  # stands for the page's text colour until the SVG is finished
_SIZE = (5.2, 2.7)  # inches; scaled to the page's column, so that text comes out alike
_NARROW = (3.9, 2.7)

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shine",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.formatter.limits": (-3, 4),
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
}


def png(image: np.ndarray, low: float, high: float) -> bytes:
    """Return a ``(y, x)`` image as an 8-bit grey PNG, ``low`` black and ``high`` white."""
    import imagecodecs

    grey = np.clip((image - low) * (255.0 / (high - low)), 0, 255)
    encoded = imagecodecs.png_encode(np.rint(grey).astype(np.uint8), level=3)
    return bytes(encoded)


def spectrum_png(power: np.ndarray, low: float, high: float, *, side: int = 512) -> bytes:
    """Return a log power spectrum as a PNG, averaged down to at most ``side`` pixels."""
    return png(fitted_into(power, side), low, high)


def noise_map(
    correlation: np.ndarray, *, name: str, label: str, hole: tuple[int, int] | None = None
) -> str:
    """Draw a correlation map over shifts in x and y, with the hole (rows, columns) framed."""
    correlation = np.asarray(correlation, dtype=np.float64)
    reach = correlation.shape[0] // 2
    others = correlation.copy()
    others[reach, reach] = 0
    # The centre is 1 by definition; the colours belong to the shifts around it.
    limit = max(0.05, float(np.nanmax(np.abs(others), initial=0.0)))
    with SvgFigure(name, label, size=(3.9, 3.02)) as (figure, axes):
        image = axes.imshow(
            correlation,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            extent=(-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5),
        )
        if hole is not None:
            from matplotlib.patches import Rectangle

            rows, columns = hole
            axes.add_patch(
                Rectangle(
                    (-columns / 2, -rows / 2), columns, rows, fill=False, ec="#111111", lw=1.6
                )
            )
        axes.set(xlabel="shift along x / px", ylabel="shift along y / px")
        axes.set_position((0.13, 0.16, 0.62, 0.8))
        bar = figure.colorbar(image, cax=figure.add_axes((0.79, 0.16, 0.035, 0.8)), extend="max")
        bar.set_label("correlation")
        bar.outline.set_linewidth(0.4)
    return figure.svg


def temporal_correlation(noise: NoiseStatistics) -> str:
    """Draw the noise correlation of frames k apart."""
    values = np.asarray(noise.temporal_correlation, dtype=np.float64)[1:]
    errors = np.nan_to_num(np.asarray(noise.temporal_error, dtype=np.float64)[1:])
    lags = np.arange(1, len(values) + 1)
    with SvgFigure("temporal", "Noise correlation against distance in frames") as (figure, axes):
        axes.axhline(0, color=_TEXT, lw=0.6)
        axes.bar(lags, values, width=0.5, color=ACCENT, alpha=0.85)
        axes.errorbar(lags, values, 2 * errors, fmt="none", ecolor=_TEXT, elinewidth=1, capsize=3)
        axes.set(xlabel="distance in time / frames", ylabel="noise correlation", xticks=lags)
        finite = np.abs(values[np.isfinite(values)])
        limit = max(0.1, 1.3 * float(finite.max(initial=0)))
        axes.set_ylim(-limit, limit)
    return figure.svg


def mean_variance(noise: NoiseStatistics) -> str:
    """Draw noise variance against signal with the fitted line."""
    curve = noise.mean_variance
    with SvgFigure("variance", "Noise variance against signal") as (figure, axes):
        axes.plot(curve.means, curve.variances, "o", ms=3.5, color=RAW, label="measured")
        if len(curve.means) and np.isfinite(curve.gain):
            ends = np.array([np.nanmin(curve.means), np.nanmax(curve.means)])
            style = "-" if curve.reliable else ":"
            axes.plot(ends, curve.gain * ends + curve.offset, style, color=ACCENT, label="line")
        axes.set(xlabel="signal", ylabel="noise variance")
        axes.legend()
    return figure.svg


def loss_curve(training: Mapping[str, Any]) -> str:
    """Draw training and validation loss against the step, and the best step."""
    with SvgFigure("loss", "Training and validation loss", size=_NARROW) as (figure, axes):
        finite = []
        for key, color, label in (
            ("train_loss", RAW, "training"),
            ("validation_loss", DENOISED, "validation"),
        ):
            points = np.asarray(training.get(key) or np.empty((0, 2)), dtype=np.float64)
            if not len(points):
                continue
            if key == "train_loss":
                points = _thinned(points, 400)
            marker = "o" if key == "validation_loss" else ""
            axes.plot(points[:, 0], points[:, 1], marker=marker, ms=3, color=color, label=label)
            finite.append(points[np.isfinite(points[:, 1]), 1])
        values = np.concatenate(finite) if finite else np.empty(0)
        if values.size:
            # The first steps tower over all that follows; the end is what tells.
            low, high = values.min(), np.percentile(values, 97)
            if high > low:
                axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        if training.get("best_step"):
            axes.axvline(training["best_step"], color=BEST, lw=1, ls="--", label="best (used)")
        axes.set(xlabel="step", ylabel="loss")
        axes.set_position((0.165, 0.17, 0.82, 0.72))
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.99), columnspacing=1.2)
    return figure.svg


def snr_curve(seen: Observations, halves: Mapping[str, Sequence[float]] | None) -> str:
    """Draw the SNR of each frame: adjacent frames (Eq. 5), and the honest one of two halves."""
    with SvgFigure("snr", "SNR of each frame", cursor=True) as (figure, axes):
        for values, color, label in (
            (seen.snr_raw, RAW, "raw"),
            (seen.snr_denoised, DENOISED, "denoised"),
        ):
            axes.plot(
                seen.frame, _finite(values), color=color, alpha=0.8, lw=1.1, label=f"{label}, Eq. 5"
            )
        if halves:
            for key, color in (("raw", RAW), ("denoised", DENOISED)):
                axes.plot(
                    halves["frames"], _finite(np.asarray(halves[key], dtype=np.float64)),
                    "D", ms=4.5, mec=_TEXT, mew=0.5, color=color, label=f"{key}, two halves",
                )  # fmt: skip
        axes.set(xlabel="frame", ylabel="SNR / dB")
        axes.set_position((0.125, 0.17, 0.865, 0.65))
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure.svg


def frame_means(seen: Observations) -> str:
    """Draw the mean intensity of each frame, raw and denoised."""
    with SvgFigure("means", "Mean intensity of each frame", size=_NARROW, cursor=True) as (
        figure,
        axes,
    ):
        axes.plot(seen.frame, seen.mean_raw, color=RAW, lw=2.2, label="raw")
        axes.plot(seen.frame, seen.mean_denoised, color=DENOISED, lw=1.1, label="denoised")
        axes.set(xlabel="frame", ylabel="mean intensity")
        axes.legend(ncols=2)
        axes.margins(y=0.25)
    return figure.svg


def drift_curve(drift: Drift) -> str:
    """Draw how far the picture has moved since the first frame, along x and along y."""
    with SvgFigure("drift", "Displacement of the picture", cursor=True) as (figure, axes):
        frames = np.arange(len(drift.path))
        for axis, color in ((1, DENOISED), (0, ACCENT)):
            axes.plot(frames, drift.path[:, axis], color=color, label="yx"[axis])
        axes.set(xlabel="frame", ylabel="displacement / px")
        axes.legend(ncols=2)
    return figure.svg


def histogram(seen: Observations, *, unit: str = "") -> str:
    """Draw the intensity histograms of the raw and of the denoised movie."""
    both = np.concatenate([seen.sample_raw, seen.sample_denoised])
    low, high = np.percentile(both, [0.05, 99.95])
    if not high > low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, 101)
    if np.array_equal(seen.sample_raw, np.rint(seen.sample_raw)) and high - low < 4000:
        # Bins narrower than a count, or not a whole number of them wide, draw a comb.
        step = max(1, round((high - low) / 100))
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + step, step)
    with SvgFigure("histogram", "Histogram of intensities", size=_NARROW) as (figure, axes):
        for values, color, label in (
            (seen.sample_raw, RAW, "raw"),
            (seen.sample_denoised, DENOISED, "denoised"),
        ):
            counts, _ = np.histogram(values, edges)
            # Each to its own maximum: the narrow denoised one would dwarf the raw one.
            height = counts / max(1, counts.max())
            axes.stairs(height, edges, fill=True, color=color, alpha=0.45, label=label)
        axes.set(xlabel=f"intensity / {unit}" if unit else "intensity", ylabel="relative frequency")
        axes.set(yticks=[], ylim=(0, None))
        axes.legend()
    return figure.svg


def residual_profile(residual: np.ndarray, noise: np.ndarray) -> str:
    """Draw the residual's autocorrelation and the noise correlation along x and along y."""
    with SvgFigure("profile", "Autocorrelation of the residual and of the noise") as (figure, axes):
        for values, color, label in ((noise, ACCENT, "noise"), (residual, DENOISED, "residual")):
            reach = values.shape[0] // 2
            shifts = np.arange(1, reach + 1)
            axes.plot(
                shifts, values[reach, reach + 1 :], "o-", ms=4, color=color, label=f"{label}, x"
            )
            axes.plot(
                shifts, values[reach + 1 :, reach], "s--", ms=3.5, mfc="none", color=color,
                label=f"{label}, y",
            )  # fmt: skip
        axes.axhline(0, color=_TEXT, lw=0.6)
        axes.set(xlabel="shift / px", ylabel="correlation")
        axes.legend(ncols=2)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.05), max(high, 0.1))
    return figure.svg


def _finite(values: np.ndarray) -> np.ndarray:
    """Return the values with ±inf as gaps."""
    return np.where(np.isfinite(values), values, np.nan)


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    """Average runs of points, so that at most ``most`` are left."""
    run = -(-len(points) // most)
    starts = np.arange(0, len(points), run)
    sizes = np.diff(np.append(starts, len(points)))[:, None]
    thinned: np.ndarray = np.add.reduceat(points, starts, axis=0) / sizes
    return thinned


class SvgFigure:
    """One plot: ``with SvgFigure(...) as (figure, axes)``, then ``figure.svg``.

    ``cursor`` adds a line that the page moves to the frame on show.
    """

    svg: str

    def __init__(
        self, name: str, label: str, *, size: tuple[float, float] = _SIZE, cursor: bool = False
    ) -> None:
        self._name, self._label, self._size, self._cursor = name, label, size, cursor

    def __enter__(self) -> tuple[Any, Any]:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._context = mpl.rc_context(_STYLE)
        self._context.__enter__()
        self._figure: Any = Figure(figsize=self._size)
        left = 0.65 / self._size[0]  # inches, for the tick labels
        # Fixed margins: a layout engine would take longer than all the drawing.
        self._axes = self._figure.add_axes((left, 0.17, 0.985 - left, 0.77))
        return self._figure, self._axes

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self._figure.svg = self._render()
        finally:
            self._context.__exit__(*error)

    def _render(self) -> str:
        attributes = f'class="plot" role="img" aria-label="{self._label}"'
        if self._cursor:
            self._axes.set_xlim(self._axes.get_xlim())
            self._axes.axvline(0, color=ACCENT, lw=1.2, gid="cursor")
            ends = self._axes.transData.transform([(0, 0), (1, 0)])
            per_frame = (ends[1, 0] - ends[0, 0]) * 72 / self._figure.dpi
            attributes += f' data-per-frame="{per_frame:.6f}"'
        buffer = io.StringIO()
        self._figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', rf"<svg {attributes} \1", svg, count=1)
        svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
        # Ids must be unique in the page, not only in the plot.
        svg = re.sub(r'\bid="', f'id="{self._name}-', svg)
        svg = re.sub(r'((?:url\(|href=")#)', rf"\g<1>{self._name}-", svg)
        return svg.replace(_TEXT, "currentColor")
