"""Dose advisor: how far dose and frame rate could drop before a measurement fails.

The movie is thinned to fewer electrons (`shine_em.dose_thinning`) or to fewer frames, each of these
movies is denoised by the ordinary job, trained on itself, and measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from .checkpoint import Model
from .compute import pick_device, pick_precision
from .denoising import LEAST_FRAMES, Denoiser, noise_is_shared
from .doctor import check
from .dose_advice import KEEP, Advice, Criterion, Level, Picture
from .dose_measures import (
    Halves,
    Measure,
    check_comparable,
    measure_halves,
    particle_measure,
    ratio_of_means,
    resolution_kept,
    snr_kept,
)
from .dose_thinning import ElectronNoise, Skipping, electron_noise, slower, thin
from .error_estimate import FRAMES
from .errors import ShineError
from .events import Event, Listener
from .job import denoise
from .movie import Movie
from .network import build
from .patches import Normalisation
from .planning import Options, Plan, prepare
from .training import TrainedState

__all__ = ["advise"]

DEFAULT_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
DEFAULT_SKIPS = (1, 2, 4)
DEFAULT_BUDGET_S = 600.0

_LEAST_S = 15.0  # per level: check, noise and the end of the job take about 8 s of it
_COMPARED = 16  # frames, spread over the movie
_PAIRS = 8
_MOST_PIXELS = 6e7  # two movies of this size are held in memory
_SHOWN = 160  # px: pictures in the figure
# Where each stage of a level begins on its bar, and how much of the bar it takes, %.
_SHARES = {"training": (5, 60), "denoising": (65, 25), "comparing even and odd frames": (90, 0)}


def advise(
    movie: Movie,
    *,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    skips: Sequence[int] | None = None,
    skipping: Skipping = "drop",
    criterion: Criterion = "snr",
    keep: float | None = None,
    measure: Measure | None = None,
    time_budget: float = DEFAULT_BUDGET_S,
    options: Options | None = None,
    gain: float | None = None,
    dark: float | None = None,
    started: float | None = None,
    progress: Listener | None = None,
) -> Advice:
    """Lower the dose and the frame rate of a movie and see when a measurement fails.

    Parameters
    ----------
    movie
        The movie, as recorded.
    fractions
        Shares of the dose; 1 is always among them.
    skips
        Keep one of so many frames; 1 is always among them. By default 1, 2 and 4, as far as six
        frames are left.
    skipping
        "drop" takes every k-th frame: the exposure of a frame and its dose stay, the frame time
        grows. "sum" adds k frames: a camera that reads out more slowly at the same dose rate.
    criterion
        "snr" (halves that share no frame, as a ratio, not in dB), "frc" (resolution where their
        Fourier ring correlation falls below 1/7) or "particles" (all that ``measure`` gives).
    keep
        Share of the measurement at the full dose that must be left; by default `KEEP`.
    measure
        Called with each compared denoised frame, ``(y, x)`` in the units of the full dose; returns
        names and positive numbers. `particle_measure` by default.
    time_budget
        Seconds of wall time for everything; not used with ``options.steps``.
    options
        How to denoise (its ``time_budget`` is not used).
    gain, dark
        See `electron_noise`.
    started
        `time.monotonic` at which the time budget began; now by default.
    progress
        Called with an `Event` as the work goes on.

    Raises
    ------
    ShineError
        If a level is impossible, the movie too short, its noise unknown or (unless particles are
        measured) shared by neighbouring frames, the measurement not possible at the full dose, or
        the time too short.
    """
    begun = time.monotonic() if started is None else started
    options = options or Options()
    fractions, keep = _checked(fractions, criterion, keep)
    skips, notes = _possible_skips(movie, skips)
    todo = [(f, 1) for f in fractions] + [(1.0, k) for k in skips[1:]]
    if len(todo) < 2:
        raise ShineError("Nothing to compare: give --fractions below 1 or --skip above 1.")
    budget = None if options.steps is not None else time_budget
    if budget is not None and budget < _LEAST_S * len(todo):
        raise ShineError(
            f"A time budget of {budget:.0f}s is too short for {len(todo)} levels: give "
            f"--time-budget {_LEAST_S * len(todo):.0f}s or more, or fewer --fractions and --skip."
        )
    tell = progress or (lambda _event: None)
    plan = prepare(movie, options, progress=tell)
    by_halves = criterion != "particles"
    if by_halves and noise_is_shared(plan.noise.blinded_lags):
        raise ShineError(_shared(movie, criterion))
    electrons: ElectronNoise | None = None
    if len(fractions) > 1:  # frame rates are changed without touching a pixel
        electrons = electron_noise(movie, plan.health, plan.noise, gain=gain, dark=dark)
        notes += (f"Electrons: {electrons.note}.",)
        if plan.noise.blinded_lags and electrons.quantum is None:
            notes += (
                "The noise lives on from frame to frame, the noise that is added for lower doses "
                "does not: they may look better here than they would be.",
            )
    per_pixel = 0.0 if budget is None else _seconds_per_pixel(movie, plan, options)
    seconds = None if budget is None else (budget - (time.monotonic() - begun)) / len(todo)
    part, said = _part(movie, seconds, per_pixel, skips[-1])
    pace = per_pixel * part.shape[1] * part.shape[2]
    notes += said
    health = plan.health if part is movie else check(part)
    check_comparable(part, health)
    if skipping == "sum" and len(skips) > 1 and np.asarray(health.blank).any():
        raise ShineError(
            f"{movie.name}: frames that are blank cannot be summed with others: leave them out "
            "with --frames, or use --skip-by drop."
        )
    show = _Show(tell, len(todo), budget, begun)
    levels: list[Level] = []
    full: _Denoised | None = None
    for number, (fraction, skip) in enumerate(todo):
        name = _name(fraction, skip, skipping)
        show.begin(name)
        share = None
        if budget is not None:
            left = budget - (time.monotonic() - begun)
            share = max(left / (len(todo) - number) - pace * 2 * _PAIRS - 1.0, 0.5 * _LEAST_S)
        version = part
        if electrons is not None:
            version = thin(part, fraction, noise=electrons, health=health, seed=options.seed)
        version = slower(version, skip, skipping=skipping)
        clock = time.monotonic()
        try:
            here = _denoised(version, fraction, skip, skipping, electrons, options, share, show)
        except ShineError as error:
            if budget is None:
                raise
            raise ShineError(
                f"{error}\nThis is about {name}, one of {len(todo)} levels that share the time: a "
                f"--time-budget named here is for one level, give {len(todo)} times as much."
            ) from None
        if by_halves and not here.halves.frames.size:
            if number == 0:
                raise ShineError(_shared(movie, criterion))
            notes += (f"Not tested: {name}, where the noise was found to live on between frames.",)
            continue
        full = full or here
        if number == 0 and measure is None:
            frames = [full.clean(t) for t in _spread(len(part), _COMPARED)]
            measure = particle_measure(frames, pixel_size_nm=movie.pixel_size_nm)
        assert measure is not None
        level = _level(name, here, full, measure, levels[0] if levels else None, skips)
        levels.append(replace(level, seconds=time.monotonic() - clock))
        if number == 0:
            _measurable(movie, level, criterion)
    return Advice(
        part, criterion, keep, tuple(levels), levels[0].halves.noise / full.contrast if full else
        math.nan, skipping, notes, time.monotonic() - begun,
        {
            f.name: getattr(electrons, f.name)
            for f in (fields(electrons) if electrons else ())
            if f.name != "correlation"
        },
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Denoised:
    """A level's movie, raw and denoised, read in the units of the full dose."""

    raw_movie: Movie
    movie: Movie
    halves: Halves
    steps: int
    warnings: tuple[str, ...]
    fraction: float
    skip: int
    summed: int
    dark: float

    def _to_full(self, frame: np.ndarray) -> np.ndarray:
        exposure = self.fraction * self.summed
        return (frame.astype(np.float64) - self.dark * self.summed) / exposure + self.dark

    def clean(self, t: int) -> np.ndarray:
        return self._to_full(self.movie.frame(t))

    def raw(self, t: int) -> np.ndarray:
        return self._to_full(self.raw_movie.frame(t))

    @cached_property
    def contrast(self) -> float:
        """Return the typical standard deviation of a denoised frame."""
        picked = _spread(len(self.movie), _COMPARED)
        return float(np.sqrt(np.mean([self.clean(t).var() for t in picked]))) or math.nan


def _denoised(
    movie: Movie,
    fraction: float,
    skip: int,
    skipping: Skipping,
    electrons: ElectronNoise | None,
    options: Options,
    seconds: float | None,
    show: Listener,
) -> _Denoised:
    """Denoise a level's movie by the ordinary job, and compare its halves."""
    chosen = {**vars(options), "time_budget": seconds}
    result = denoise(movie, progress=show, **chosen)
    device = pick_device(options.device)
    denoiser = Denoiser(
        result.model, device=device, precision=pick_precision(device, options.precision),
        tile=options.tile,
    )  # fmt: skip
    show(Event("comparing even and odd frames", 0, 1))
    halves = measure_halves(denoiser, movie, result.health, pairs=_PAIRS)
    return _Denoised(
        movie, result.movie, halves, result.model.state.step, result.warnings, fraction, skip,
        skip if skipping == "sum" else 1, electrons.dark if electrons else 0.0,
    )  # fmt: skip


def _level(
    name: str,
    here: _Denoised,
    full: _Denoised,
    measure: Measure,
    first: Level | None,
    skips: Sequence[int],
) -> Level:
    """Measure a level against the full dose, in the frames that both have."""
    places = _spread(len(here.movie), _COMPARED)
    # A sum stands for the frame in its middle.
    matching = [t * here.skip + (here.summed - 1) // 2 for t in places]
    squares, ours, theirs = [], [], []
    for t, there in zip(places, matching, strict=True):
        a, b = here.clean(t), full.clean(there)
        squares.append(float(np.mean((a - b) ** 2)))
        ours.append(dict(measure(a)))
        theirs.append(ours[-1] if here is full else dict(measure(b)))
    names = list(theirs[0])
    columns = {n: np.array([[v[n] for v in ours], [v[n] for v in theirs]], float) for n in names}
    ratios = {n: ratio_of_means(*column) for n, column in columns.items()}
    worst = min(names, key=lambda n: ratios[n][0])
    reference = first.halves if first else here.halves
    found = {
        "snr": snr_kept(here.halves, reference),
        "frc": resolution_kept(here.halves, reference),
        "particles": ratios[worst],
    }
    kept, error = ({k: v[i] for k, v in found.items()} for i in (0, 1))
    if here is full:
        kept, error = dict.fromkeys(kept, 1.0), dict.fromkeys(error, 0.0)
    step = math.lcm(*skips)
    middle = step * (len(full.movie) // 2 // step) // here.skip
    shown = tuple(
        slice((n - min(n, _SHOWN)) // 2, (n + min(n, _SHOWN)) // 2) for n in here.movie.shape[1:]
    )
    with np.errstate(invalid="ignore"):
        values = {
            n: float(np.nanmean(c[0])) if np.isfinite(c[0]).any() else math.nan
            for n, c in columns.items()
        }
    return Level(
        name, here.fraction, here.skip, len(here.movie), here.steps, 0.0, here.halves,
        math.sqrt(float(np.mean(squares))) / full.contrast, values, kept, error,
        Picture(here.raw(middle)[shown], here.clean(middle)[shown]), here.warnings,
    )  # fmt: skip


def _checked(
    fractions: Sequence[float], criterion: str, keep: float | None
) -> tuple[tuple[float, ...], float]:
    if criterion not in KEEP:
        raise ShineError(f"Unknown measurement {criterion!r}: choose from {', '.join(KEEP)}.")
    keep = KEEP[criterion] if keep is None else keep
    if not 0 < keep < 1:
        raise ShineError(f"--keep is a share above 0 and below 1, as 0.9, not {keep:g}.")
    for f in fractions:
        if not 0 < f <= 1:
            raise ShineError(f"A fraction of the dose lies above 0 and not above 1, not {f:g}.")
    return tuple(sorted({1.0, *(float(f) for f in fractions)}, reverse=True)), keep


def _possible_skips(
    movie: Movie, skips: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the skips, 1 first; asked for, all must be possible."""
    n = len(movie)
    if n < LEAST_FRAMES:
        raise ShineError(
            f"{movie.name}: {n} frames are too few to compare even and odd ones; {LEAST_FRAMES} or "
            "more are needed."
        )
    wanted = tuple(sorted({1, *(DEFAULT_SKIPS if skips is None else skips)}))
    if wanted[0] < 1:
        raise ShineError(f"--skip takes whole numbers from 1, not {wanted[0]}.")
    possible = tuple(k for k in wanted if n // k >= LEAST_FRAMES)
    left_out = [k for k in wanted if k not in possible]
    if not left_out:
        return wanted, ()
    if skips is not None:
        raise ShineError(
            f"{movie.name}: of {n} frames --skip {left_out[0]} leaves {n // left_out[0]}, and "
            f"{LEAST_FRAMES} are needed: give a smaller --skip."
        )
    return possible, (
        f"Not tested: every {left_out[0]}th frame, which would leave {n // left_out[0]} of {n}.",
    )


def _part(
    movie: Movie, seconds: float | None, per_pixel: float, skip: int
) -> tuple[Movie, tuple[str, ...]]:
    """Return what ``seconds`` for each level (and memory) suffice for, and how it was chosen.

    Inference, at ``per_pixel`` seconds, may take a third of the time, so that most is left for
    training. Frames are given up first, as long as the largest ``skip`` leaves enough of them, then
    the frames' borders.
    """
    n, height, width = movie.shape
    most = _MOST_PIXELS
    if seconds is not None:
        most = min(most, max(seconds, _LEAST_S / 2) / 3 / per_pixel)
    area = float(height * width)
    extra = 4 * _PAIRS + 2 * FRAMES  # frames of the halves, in the job and here; its error
    if (n + extra) * area <= most:
        return movie, ()
    enough = min(n, max(24, 2 * LEAST_FRAMES * skip))
    frames = min(n, max(enough, int(most / area) - extra))
    side = math.sqrt(min(1.0, most / ((frames + extra) * area)))
    rows, columns = (min(v, max(128, int(v * side) // 8 * 8)) for v in (height, width))
    start, y, x = (n - frames) // 2, (height - rows) // 2, (width - columns) // 2
    part = movie.select(slice(start, start + frames), (slice(y, y + rows), slice(x, x + columns)))
    if part.shape == movie.shape:
        return movie, ()
    return part, (
        f"Measured on frames {start}:{start + frames}, rows {y}:{y + rows}, columns "
        f"{x}:{x + columns} of {n} frames of {height}×{width}: more does not fit into the time "
        "budget" + (" or memory." if most == _MOST_PIXELS else "."),
    )


def _seconds_per_pixel(movie: Movie, plan: Plan, options: Options) -> float:
    """Time an untrained network on one frame, or on the middle of a large one."""
    n, height, width = movie.shape
    crop = tuple(slice((v - min(v, 512)) // 2, (v + min(v, 512)) // 2) for v in (height, width))
    near = movie.select(slice(n // 2 - 3, n // 2 + 3), (crop[0], crop[1]))
    rows, columns = near.shape[1:]
    model = Model(
        TrainedState(plan.config, plan.settings, best=dict(build(plan.config).state_dict())),
        Normalisation.of(plan.health), plan.holes,
    )  # fmt: skip
    device = pick_device(options.device)
    denoiser = Denoiser(
        model, device=device, precision=pick_precision(device, options.precision),
        tile=options.tile,
    )  # fmt: skip
    windows = np.zeros((1, plan.config.frames, rows, columns), np.float32)
    times = []
    for _ in range(3):
        begun = time.monotonic()
        denoiser.predict(windows)
        times.append(time.monotonic() - begun)
    return min(times[1:]) / (rows * columns)


def _shared(movie: Movie, criterion: str) -> str:
    return (
        f"{movie.name}: the noise lives on from frame to frame, so that even and odd frames share "
        f"it and {criterion} would count it as picture: use --measure particles."
    )


def _measurable(movie: Movie, level: Level, criterion: str) -> None:
    """Refuse what cannot even be measured at the full dose."""
    found = {
        "snr": np.isfinite(level.halves.snr),
        "frc": np.isfinite(level.halves.resolution),
        "particles": all(np.isfinite(v) and v > 0 for v in level.values.values()),
    }
    if not found[criterion]:
        others = " or ".join(name for name, good in found.items() if good)
        raise ShineError(
            f"{movie.name}: {criterion} cannot be measured even at the full dose "
            + (f"(no particles found): use --measure {others}." if criterion == "particles" else
               "(even and odd frames have nothing in common): give more frames or more time.")
        )  # fmt: skip


def _name(fraction: float, skip: int, skipping: Skipping) -> str:
    if skip == 1:
        return "full dose" if fraction == 1 else f"{100 * fraction:g} % dose"
    if skipping == "sum":
        return f"{skip} frames summed"
    return f"every {skip}{ {2: 'nd', 3: 'rd'}.get(skip, 'th') } frame"


def _spread(n: int, most: int) -> list[int]:
    return [int(t) for t in np.unique(np.linspace(0, n - 1, most).round().astype(int))]


class _Show:
    """Turns the events of each level's job into one bar per level, with the time left in all."""

    def __init__(self, tell: Listener, levels: int, budget: float | None, begun: float) -> None:
        self.tell, self.levels, self.budget, self.begun = tell, levels, budget, begun
        self.number, self.name = 0, ""
        self.since, self.first = begun, begun
        self.reached = 0

    def begin(self, name: str) -> None:
        self.number, self.name, self.reached = self.number + 1, name, 0
        self.since = time.monotonic()
        self.first = self.since if self.number == 1 else self.first

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        start, span = _SHARES.get(event.stage, (0, 0))
        self.reached = max(self.reached, round(start + span * event.done / max(event.total, 1)))
        left: float | None = None
        if self.budget is not None:
            left = max(self.budget - (now - self.begun), 0.0)
        elif self.number > 1:  # by the pace of the levels that are done, and of this one
            each = (self.since - self.first) / (self.number - 1)
            here = now - self.since
            rest = here * (100 - self.reached) / self.reached if self.reached > 20 else each - here
            left = each * (self.levels - self.number) + max(rest, 0.0)
        words = f"{event.stage} {event.text}".strip()
        stage = f"{self.number} of {self.levels}: {self.name}"
        self.tell(Event(stage, self.reached, 100, words, left))
