"""The panels of a benchmark, after the paper's fig. 1 D–O and fig. S8."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .benchmark_methods import CEILING, DEFAULT
from .benchmark_tables import grouped, mean
from .drafts import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .benchmark import Outcome

__all__ = ["draw", "plot_ceiling", "plot_input_frames", "plot_panels", "plot_scores", "plot_time"]

_INK, _OURS, _RIVAL, _FAINT = "#222222", "#c2410c", "#94a3b8", "#64748b"
_COLUMNS = 6  # pictures side by side
_SHOWN = 5  # px around the centre of the noise heatmap
_LABELS = {
    "psnr_affine": "PSNR, affine, dB",
    "psnr_minmax": "PSNR, min–max, dB",
    "ssim_affine": "SSIM, affine",
    "ssim_minmax": "SSIM, min–max",
    "snr_neighbours": "SNR of neighbours, dB",
    "snr_halves": "SNR of halves, dB",
}

Sources = Mapping[str, tuple[Path, Path | None, Path]]


def draw(outcomes: Sequence[Outcome], sources: Sources, folder: Path) -> list[Path]:
    """Draw all figures of a benchmark into its folder.

    Parameters
    ----------
    outcomes
        All outcomes.
    sources
        Movie name → noisy movie, truth or None, and the folder of its results.
    folder
        Where the PNG files go; earlier ones are replaced.

    Returns
    -------
    list of Path
        The figures.

    Raises
    ------
    ShineError
        If a figure cannot be written.
    """
    from .noise import NoiseStatistics
    from .noise_figure import plot_noise

    made: dict[str, Figure] = {}
    for movie, (noisy, truth, place) in sources.items():
        mine = [o for o in outcomes if o.movie == movie]
        measured, noise = place / "noise.json", None
        if measured.exists():
            noise = NoiseStatistics.from_dict(json.loads(measured.read_text("utf-8"))["noise"])
        made[f"panels-{movie}"] = plot_panels(mine, noisy, truth, noise)
        if any(o.scores for o in mine):
            made[f"scores-{movie}"] = plot_scores(mine)
        if noise is not None:
            made[f"noise-{movie}"] = plot_noise(noise)
        for o in mine:
            if "curve" in o.record:
                made[f"ceiling-{movie}"] = plot_ceiling(o)
    if any(o.frames_in for o in outcomes):
        made["input-frames"] = plot_input_frames(outcomes)
    if any(o.trained and o.scores for o in outcomes):
        made["time-quality"] = plot_time(outcomes)
    paths = []
    for name, figure in made.items():
        path = folder / f"{name}.png"
        write_whole(path, partial(figure.savefig, dpi=110))
        paths.append(path)
    return paths


def plot_panels(outcomes: Sequence[Outcome], noisy: Path, truth: Path | None, noise: Any) -> Figure:
    """Return one frame as every method shows it, each with a detail below it.

    Intensities are matched to the truth by one least-squares line, as in the "affine" protocol but
    for this frame alone, and shown a little wider than its 0.5 and 99.5 percentiles. The detail
    lies where the truth varies most. The first picture is the truth, then the noisy frame and its
    noise heatmaps.

    Parameters
    ----------
    outcomes
        Of one movie.
    noisy, truth
        Files.
    noise
        `NoiseStatistics` for the heatmap, or None.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from .io import read
    from .metrics import fitted

    movie = read(noisy)
    t = len(movie) // 2
    exact = None if truth is None else read(truth)
    raw = movie.frame(t).astype(np.float64)
    tiles: list[tuple[str, np.ndarray | None]] = []
    if exact is not None:
        tiles.append(("truth", exact.frame(t).astype(np.float64)))
    tiles.append(("noisy", raw))
    for o in _pictured(outcomes):
        picture = None if o.output is None else read(o.output).frame(t).astype(np.float64)
        tiles.append((o.title, picture))
    reference = tiles[0][1] if exact is not None else _smooth(raw)
    assert reference is not None
    low, high = np.percentile(reference, (0.5, 99.5))
    low, high = low - 0.1 * (high - low), high + 0.15 * (high - low)
    detail = _detail(reference)
    scores = {o.title: o for o in _pictured(outcomes)}
    scores |= {o.title: o for o in outcomes if o.output is None and o.status == "done"}

    heatmaps = 0 if noise is None else 1
    first = len(tiles) - len(_pictured(outcomes))  # the heatmaps follow the noisy frame
    rows = -(-(len(tiles) + heatmaps) // _COLUMNS)
    figure = Figure(figsize=(2.5 * _COLUMNS, 5.2 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, _COLUMNS, squeeze=False)
    for axis in grid.ravel():
        axis.axis("off")
    for k, (title, picture) in enumerate(tiles):
        row, column = divmod(k if k < first else k + heatmaps, _COLUMNS)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.set_title(_caption(title, scores.get(title), t), fontsize=9)
        if picture is None:
            above.text(0.5, 0.5, "failed", ha="center", transform=above.transAxes, color=_FAINT)
            continue
        limits = (low, high)
        if title == "noisy":  # its own noise sets its range
            limits = tuple(np.percentile(picture, (0.5, 99.5)))
        elif exact is not None:
            picture = fitted(picture, reference)
        y, x = detail
        above.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1])
        below.imshow(picture[y, x], cmap="gray", vmin=limits[0], vmax=limits[1])
        above.add_patch(
            Rectangle(
                (x.start - 0.5, y.start - 0.5), x.stop - x.start, y.stop - y.start, fill=False,
                edgecolor=_OURS, linewidth=1.2,
            )
        )  # fmt: skip
    if noise is not None:
        _heatmap(grid[0, first], noise.raw_correlation, noise.hole, "one raw frame")
        _heatmap(grid[1, first], noise.difference_correlation, noise.hole, "noise alone")
    name = outcomes[0].movie if outcomes else movie.name
    figure.suptitle(f"{name}, frame {t} of {len(movie)}", fontsize=11)
    return figure


def plot_scores(outcomes: Sequence[Outcome]) -> Figure:
    """Return box plots of every score over the frames (paper, fig. 1 F, G), and the cost.

    Boxes span the quartiles, whiskers 1.5 times as far, and points are frames beyond; the frames of
    repeats with other seeds are put together.
    """
    from matplotlib.figure import Figure

    groups = next(iter(grouped(outcomes).values()))
    groups = {
        title: [o for o in group if o.status == "done"]
        for title, group in groups.items()
        if not any(o.frames_in for o in group)
    }
    groups = {title: group for title, group in groups.items() if group}
    names = [n for n in _LABELS if any(n in o.scores for g in groups.values() for o in g)]
    figure = Figure(
        figsize=(3.1 * (len(names) + 1) + 1.8, 0.32 * len(groups) + 1.4), layout="constrained"
    )
    axes = figure.subplots(1, len(names) + 1, sharey=True, squeeze=False)[0]
    titles = list(groups)
    for axis, name in zip(axes, names, strict=False):
        values = [
            [v for o in groups[title] for v in o.scores.get(name, []) if v is not None]
            for title in titles
        ]
        boxes = axis.boxplot(
            values, orientation="horizontal", widths=0.65, patch_artist=True,
            flierprops={"markersize": 2.5, "markeredgecolor": _FAINT},
            medianprops={"color": _INK},
        )  # fmt: skip
        for title, box in zip(titles, boxes["boxes"], strict=True):
            ours = any("shine" in _home(o) for o in groups[title])
            box.set(facecolor=_OURS if ours else _RIVAL, edgecolor=_INK, linewidth=0.6)
        axis.set_xlabel(_LABELS[name])
        axis.grid(axis="x", alpha=0.25)
    cost = axes[-1]
    seconds = [mean([o.seconds for o in groups[title]]) for title in titles]
    cost.barh(range(1, len(titles) + 1), seconds, color=_FAINT, height=0.5)
    cost.set_xscale("symlog", linthresh=1.0)
    most = np.nanmax([1.0, *seconds])
    ticks = [0, *(10**k for k in range(6) if 10**k <= 1.5 * most)]
    cost.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    cost.set_xlim(0, 1.5 * most)
    cost.set_xlabel("time, s (logarithmic from 1 s)")
    axes[0].set_yticks(range(1, len(titles) + 1), titles, fontsize=9)
    axes[0].invert_yaxis()
    figure.suptitle(f"{outcomes[0].movie}: all frames", fontsize=11)
    return figure


def plot_time(outcomes: Sequence[Outcome]) -> Figure:
    """Return quality against training time, a panel per movie.

    Methods that learn nothing and the supervised ceiling are lines; bars are the standard deviation
    over seeds. Quality is the PSNR (affine), for movies without a truth the SNR of the halves
    or, where these were not denoised, of neighbours.
    """
    from matplotlib.figure import Figure

    movies = grouped(outcomes)
    columns = min(3, len(movies))
    rows = -(-len(movies) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for unused in axes.ravel()[len(movies) :]:
        unused.axis("off")
    named = list(dict.fromkeys(o.method for o in outcomes if o.trained and o.method != CEILING))
    for axis, (movie, methods) in zip(axes.ravel(), movies.items(), strict=False):
        every = [o for group in methods.values() for o in group if o.scores and not o.frames_in]
        score = next(
            (n for n in ("psnr_affine", "snr_halves") if any(n in o.scores for o in every)),
            "snr_neighbours",
        )
        every = [o for o in every if score in o.scores]
        still = [o for o in every if not o.trained]
        for k, o in enumerate(still):
            shade = 0.25 + 0.5 * k / max(1, len(still) - 1)
            axis.axhline(mean(o.scores[score]), color=str(shade), lw=0.9, ls=":")
            axis.annotate(
                o.title, (1, mean(o.scores[score])), xycoords=("axes fraction", "data"),
                ha="right", va="bottom", fontsize=6.5, color=str(shade),
            )  # fmt: skip
        for method in named:
            points = []
            for title in dict.fromkeys(o.title for o in every if o.method == method):
                group = [o for o in every if o.title == title]
                values = [mean(o.scores[score]) for o in group]
                seconds = mean([o.seconds if o.training_s is None else o.training_s for o in group])
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                points.append((seconds, float(np.mean(values)), spread))
            if points:
                x, y, bar = np.array(sorted(points)).T
                style = f"C{named.index(method)}"
                axis.errorbar(
                    x, y, yerr=bar, marker="o", ms=5, capsize=3, label=method, color=style
                )
        for o in every:
            if o.method == CEILING:
                axis.axhline(mean(o.scores[score]), color=_INK, lw=1.4, label="ceiling")
        axis.set(xscale="log", title=movie, xlabel="training, s", ylabel=_LABELS[score])
        axis.grid(alpha=0.2)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=7.5, loc="best")
    return figure


def plot_input_frames(outcomes: Sequence[Outcome]) -> Figure:
    """Return quality and time against the number of input frames (paper, fig. S8)."""
    from matplotlib.figure import Figure

    widths = sorted({o.frames_in for o in outcomes if o.frames_in} | {5})
    compared = {(o.movie, _line(o)) for o in outcomes if o.frames_in}
    movies = list(dict.fromkeys(o.movie for o in outcomes if (o.movie, _line(o)) in compared))
    lines = list(dict.fromkeys(_line(o) for o in outcomes if (o.movie, _line(o)) in compared))
    figure = Figure(figsize=(3.4 * len(movies) + 1, 8), layout="constrained")
    axes = figure.subplots(3, len(movies), squeeze=False, sharex=True)
    for column, movie in enumerate(movies):
        quality = [
            n for n in ("psnr_affine", "ssim_affine", "snr_neighbours", "snr_halves")
            if any(n in o.scores for o in outcomes if o.movie == movie)
        ][:2]  # fmt: skip
        for k, line in enumerate(lines):
            at: dict[int, list[Outcome]] = {}
            for o in outcomes:
                width = o.frames_in or (5 if o.method == "paper" else None)
                if o.movie == movie and _line(o) == line and o.status == "done" and width:
                    at.setdefault(width, []).append(o)
            known = [w for w in widths if w in at]
            style: dict[str, Any] = {
                "marker": "os^Dv<>"[k % 7], "label": line, "color": f"C{k}", "markersize": 5
            }  # fmt: skip
            for axis, name in zip(axes[:, column], quality, strict=False):
                runs = [[mean(o.scores.get(name, [])) for o in at[w]] for w in known]
                spread = [float(np.std(r, ddof=1)) if len(r) > 1 else 0.0 for r in runs]
                axis.errorbar(known, [np.mean(r) for r in runs], yerr=spread, capsize=3, **style)
                axis.set_ylabel(_LABELS[name])
            seconds = [mean([o.seconds for o in at[w]]) for w in known]
            axes[2, column].plot(known, seconds, **style)
        for unused in axes[len(quality) : 2, column]:
            unused.axis("off")
        axes[0, column].set_title(movie, fontsize=10)
        axes[2, column].set(xlabel="input frames", ylabel="time, s", xticks=widths, ylim=(0, None))
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _line(outcome: Outcome) -> str:
    """Return the title without the number of input frames: method and budget."""
    return outcome.title.removesuffix(f", {outcome.frames_in} frames")


def plot_ceiling(outcome: Outcome) -> Figure:
    """Return the supervised ceiling's loss over its training, to its plateau."""
    from matplotlib.figure import Figure

    steps, train, held = np.array(outcome.record["curve"], dtype=float).T
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, train, color=_FAINT, label="frames trained on")
    axis.plot(steps, held, color=_OURS, label="frames held out")
    best = int(np.argmin(held))
    axis.plot(steps[best], held[best], "o", color=_OURS, label=f"kept: step {steps[best]:.0f}")
    ended = "plateau reached" if outcome.record["plateau"] else "stopped by the time limit"
    axis.set(
        xlabel="step", ylabel="mean squared error to the truth", yscale="log",
        title=f"{outcome.movie}: supervised ceiling, {ended}",
    )  # fmt: skip
    axis.legend(frameon=False)
    return figure


def _pictured(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the first of each method's repeats, with the usual number of input frames."""
    found: dict[str, Outcome] = {}
    for o in outcomes:
        if o.frames_in is None and (o.output is not None or o.status != "done"):
            found.setdefault(o.title, o)
    return list(found.values())


def _caption(title: str, outcome: Outcome | None, t: int) -> str:
    if outcome is None or t not in outcome.frames:
        return title
    at = outcome.frames.index(t)
    values = {n: v[at] for n, v in outcome.scores.items() if at < len(v) and v[at] is not None}
    if "psnr_affine" in values and "ssim_affine" in values:
        return f"{title}\n{values['psnr_affine']:.1f} dB, SSIM {values['ssim_affine']:.2f}"
    if "snr_neighbours" in values:
        return f"{title}\nSNR {values['snr_neighbours']:.1f} dB"
    return title


def _detail(picture: np.ndarray) -> tuple[slice, slice]:
    """Return the quarter of a picture, along each side, in which it varies most."""
    from scipy.ndimage import uniform_filter

    sides = [max(8, n // 4) for n in picture.shape]
    sides = [min(a, n) for a, n in zip(sides, picture.shape, strict=True)]
    centred = picture - picture.mean()
    smooth = [uniform_filter(v, sides, mode="nearest") for v in (centred**2, centred)]
    variance = smooth[0] - smooth[1] ** 2
    starts = [n - a + 1 for a, n in zip(sides, picture.shape, strict=True)]
    inner = variance[
        sides[0] // 2 : sides[0] // 2 + starts[0], sides[1] // 2 : sides[1] // 2 + starts[1]
    ]
    y, x = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return slice(int(y), int(y) + sides[0]), slice(int(x), int(x) + sides[1])


def _smooth(picture: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    smooth: np.ndarray = gaussian_filter(picture, 2.0)
    return smooth


def _heatmap(axis: Any, correlation: np.ndarray, hole: tuple[int, int], what: str) -> None:
    from matplotlib.patches import Rectangle

    reach = correlation.shape[0] // 2
    shown = min(reach, _SHOWN)
    part = correlation[reach - shown : reach + shown + 1, reach - shown : reach + shown + 1]
    edge = shown + 0.5
    axis.imshow(part, extent=(-edge, edge, edge, -edge), cmap="RdBu_r", vmin=-1, vmax=1)
    height, width = hole
    axis.add_patch(
        Rectangle((-width / 2, -height / 2), width, height, fill=False, edgecolor=_OURS, lw=2)
    )
    axis.set_title(f"correlation, {what}\nblind spot {height}×{width}", fontsize=9)


def _home(outcome: Outcome) -> str:
    from .baselines import METHODS

    if outcome.method == DEFAULT:
        return "shine:default"
    return METHODS[outcome.method].home if outcome.method in METHODS else ""
