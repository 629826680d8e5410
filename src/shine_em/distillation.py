"""Distillation: a student learns to repeat its teacher, and is judged before it is used.

The teacher, a blind-spot ensemble, denoises some frames spread over the movie. These are what a
`StudentNetwork` is trained to reproduce, in random crops, turned and mirrored. It is kept only if
its error, estimated from the movie alone (`shine_em.error_estimate`, which counts the noise that
a network that sees every pixel may hand on), is no larger than that of the blind-spot network
that it stands in for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Model
from .compute import autocast, memory_format
from .denoising import Denoiser
from .doctor import Health
from .error_estimate import ErrorEstimator, Predict
from .error_matrix import ErrorEstimate
from .errors import ShineError
from .events import Event, Listener
from .movie import Movie
from .noise import NoiseStatistics
from .optimiser import optimisers as make_optimisers
from .optimiser import set_rate
from .pacing import Planner, learning_rate
from .patches import Timeline, Window, cut
from .student import WIDTHS, Student, StudentNetwork
from .training import Progress
from .training_settings import PRESETS

__all__ = [
    "Schooling",
    "Verdict",
    "denoised_by",
    "distil",
    "graduate",
    "judge",
    "lesson_count",
    "passes",
]

_EDGE = 512  # pixels: of larger frames, a region of this width is taught
_TAUGHT_PIXELS = 10_000_000  # more of the teacher's pixels teach hardly more
_FEW = 32  # lessons, at least, where the movie has as many frames
_MEMORY = 400_000_000  # bytes: the most that lessons may hold
_ONE_SIDED = 0.1  # share of the steps for windows with neighbours out of place
_JUDGED = 8  # frames
_RATE = 2e-3  # peak learning rate: targets without noise allow less than noisy ones demand
STEPS = 1500  # where no time budget and no number of steps is given


@dataclass(frozen=True)
class Schooling:
    """How a student is to be made and judged.

    Attributes
    ----------
    steps, seconds
        Training steps, or the wall time that making it may take, the teacher's passes included.
    ensemble_s
        Seconds that the ensemble would take to denoise the whole movie, where there is no time for
        it: without a student, the measured hole alone would be used. None where there is time.
    """

    steps: int | None = None
    seconds: float | None = None
    ensemble_s: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a student is used, and by what numbers.

    Attributes
    ----------
    student, rival
        Estimated errors: of the student, and of the blind-spot network that would denoise the
        movie otherwise.
    difference, standard_error
        Of the mean squared errors, student − rival, and its paired standard error, movie units
        squared.
    """

    student: ErrorEstimate
    rival: ErrorEstimate
    difference: float
    standard_error: float

    @property
    def kept(self) -> bool:
        """Whether the student is no worse, by more than the standard error."""
        return bool(self.difference <= self.standard_error)

    def __str__(self) -> str:
        # Both errors share that of the noise variance: their difference alone is sharp.
        word = "lower" if self.difference < 0 else "higher"
        return (
            f"its estimated mean squared error is {abs(self.difference):.3g} ± "
            f"{self.standard_error:.1g} (movie units squared) {word} than that of the blind-spot "
            "network that it stands in for"
        )


def lesson_count(movie: Movie, frames: int, available: int) -> int:
    """Return how many frames the teacher denoises for its student.

    Parameters
    ----------
    movie, frames
        The movie and the frames in a window.
    available
        Frames worth training on.
    """
    height, width = (min(n, _EDGE) for n in movie.shape[1:])
    enough = -(-_TAUGHT_PIXELS // (height * width))
    held = _MEMORY // (4 * height * width * (2 * frames))
    # More than a share of a long movie would save no time.
    return max(1, min(available, enough, held, max(_FEW, available // 4)))


def graduate(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    schooling: Schooling,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    tile: int | None = None,
    progress: Listener | None = None,
) -> tuple[Model, Verdict]:
    """Make a student where the model has none, judge it, and keep it if it is good enough.

    Parameters
    ----------
    movie, health, noise, model
        The movie, what is known of it, and the trained teacher.
    schooling
        How to make it, and what it stands in for.
    device, precision, tile
        As for `Denoiser`.
    progress
        Called with an `Event` as it goes on.

    Returns
    -------
    Model, Verdict
        The model with its student, or without one; and why.

    Raises
    ------
    ShineError
        As `distil` and `judge`.
    """
    tell = progress or (lambda _event: None)
    teacher = Denoiser(replace(model, student=None), device=device, precision=precision, tile=tile)
    student = model.student
    if student is None:
        tell(Event("denoising frames to learn from", 0, 1))
        student = distil(
            movie, health, teacher, steps=schooling.steps, seconds=schooling.seconds,
            progress=lambda p: tell(
                Event("distilling", p.step, p.steps, f"loss {p.loss:.4f}", p.seconds_left)
            ),
        )  # fmt: skip
    tell(Event("judging the student", 0, 1))
    alone = schooling.ensemble_s is not None
    holes = student.rival or ((model.hole,) if alone else model.holes)
    rival = teacher
    if alone or holes != model.holes:
        rival = Denoiser(model, device=device, precision=precision, holes=holes, tile=tile)
    learned = replace(model, student=replace(student, rival=holes))
    made = Denoiser(learned, device=device, precision=precision, tile=tile)
    estimator = ErrorEstimator.for_model(model, movie, health, noise, frames=_JUDGED)
    verdict = judge(estimator, made.predict, rival.predict)
    return replace(model, student=learned.student if verdict.kept else None), verdict


def denoised_by(model: Model, verdict: Verdict | None, no_student: str) -> str:
    """Say in a sentence what denoised a movie, and why.

    Parameters
    ----------
    model, verdict
        What `graduate` returned; ``verdict`` is None where no student was made.
    no_student
        Why none was made.
    """
    if model.student is not None and verdict is not None:
        s = model.student
        return (
            f"A student, distilled from the blind-spot ensemble ({s.lessons} frames, {s.steps} "
            f"steps, {s.seconds:.0f} s), denoised every frame in one pass: {verdict}."
        )
    who = _who_denoised(model)
    if verdict is not None:
        return f"{who} A student was distilled and not used: {verdict}."
    return f"{who} No student was distilled: {no_student}."


def _who_denoised(model: Model) -> str:
    share = 0.0 if model.linear is None else model.linear.share
    if share == 1:
        by = "A linear blind filter" + (", corrected," if model.correction is not None else "")
        return f"{by} denoised every frame: the network has no part in the result."
    if share:
        return (
            "The blind-spot network and a linear blind filter denoised every frame, averaged with "
            f"the weights {model.averaged}."
        )
    if len(model.holes) > 1:
        return (
            "The blind-spot network denoised every frame; the outputs for several holes were "
            f"averaged: {model.averaged}."
        )
    return f"The blind-spot network denoised every frame, with the hole {model.averaged}."


def passes(movie: Movie, frames: int) -> tuple[int, int]:
    """Return how many frames are denoised to make a student, and to judge it.

    The first by the teacher, the second by the teacher and by the student.

    Parameters
    ----------
    movie, frames
        The movie and the frames in a window.
    """
    # Each frame is denoised as it is and with a probe.
    return lesson_count(movie, frames, len(movie)), 2 * min(_JUDGED, len(movie))


def distil(
    movie: Movie,
    health: Health,
    teacher: Denoiser,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    lessons: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Student:
    """Train a student to repeat a teacher's results on frames spread over the movie.

    Parameters
    ----------
    movie, health
        The movie and its input check.
    teacher
        The blind-spot ensemble; its model says how windows are made, its device and precision
        where the student is trained, its seed what everything random is drawn from.
    steps
        Training steps; or None, and
    seconds
        wall time for all of it, the teacher's passes included.
    lessons
        Frames for the teacher to denoise; None for `lesson_count`.
    progress
        Called after each step.

    Raises
    ------
    ShineError
        If neither steps nor seconds are given, no frame is worth training on, or the loss is not
        finite.
    """
    if steps is None and seconds is None:
        raise ShineError("Give the student a number of steps or a time.")
    model, begun = teacher.model, time.monotonic()
    frames, seed = model.config.frames, model.state.settings.seed
    school = _School(movie, health, teacher)
    targets = school.targets()
    count = lessons or lesson_count(movie, frames, len(targets))
    picked = [targets[i] for i in np.unique(np.linspace(0, len(targets) - 1, count).astype(int))]
    taught = [school.lesson(t) for t in picked]
    held = taught[4::8]
    if held:
        taught = [lesson for k, lesson in enumerate(taught) if k % 8 != 4]
    else:
        held = taught
    if seconds is not None:
        seconds = max(0.0, seconds - (time.monotonic() - begun))
    precision = "fp32" if teacher.precision == "fp16" else teacher.precision  # gradients underflow
    turn = all(m == n for m, n in (*model.holes, *model.state.settings.holes))
    network, done = _train(
        taught, frames, turn=turn, steps=steps, seconds=seconds, seed=seed, device=teacher.device,
        precision=precision, progress=progress,
    )  # fmt: skip
    difference = _compare(network, held, teacher.device, precision)
    weights = {k: v.detach().to("cpu", copy=True).contiguous()
               for k, v in network.state_dict().items()}  # fmt: skip
    return Student(weights, frames, WIDTHS, done, time.monotonic() - begun, len(picked), difference)


def judge(estimator: ErrorEstimator, student: Predict, rival: Predict) -> Verdict:
    """Estimate from the movie alone whether a student is as good as what it stands in for.

    Parameters
    ----------
    estimator
        Looks at frames of the movie. What a network that sees every pixel hands on of its noise
        counts as error there.
    student, rival
        `Denoiser.predict` of either.
    """
    matrix = estimator.matrix(
        lambda windows, shift: np.stack([student(windows, shift), rival(windows, shift)])
    )
    one, other = matrix.of([1.0, 0.0]), matrix.of([0.0, 1.0])
    difference, error = one.minus(other)
    return Verdict(one, other, difference, error)


@dataclass(frozen=True)
class _Lesson:
    """A region of a frame, the windows around it, and what the teacher made of it."""

    pixels: np.ndarray  # (k, h, w) float32, normalised
    rows: dict[int, list[int]]  # shift → rows of `pixels` that are its window
    target: np.ndarray  # (h, w) float32, normalised


class _School:
    """Makes lessons from a movie and a teacher."""

    def __init__(self, movie: Movie, health: Health, teacher: Denoiser) -> None:
        self.movie, self.teacher, self.model = movie, teacher, teacher.model
        self.bad = np.asarray(health.bad_pixels, bool)
        self.timeline = Timeline(len(movie), health, self.model.blinded_lags)
        self.rng = np.random.default_rng([self.model.state.settings.seed, 7])

    def targets(self) -> list[int]:
        """Return the frames to teach: those whose neighbours are all in place, where there are."""
        usable = self.timeline.targets()
        if not usable:
            raise ShineError(f"{self.movie.name}: no frame is left to train on.")
        return [t for t in usable if 0 in self._windows(t)] or usable

    def _windows(self, t: int) -> dict[int, Window]:
        """Return the windows around ``t`` by their shift: as it is, and as if near an end."""
        frames, paper = self.model.config.frames, self.model.config.kind == "paper"
        first = self.timeline.window(t, frames, mirror=paper)
        windows = {self.timeline.shift(first): first}
        if not paper and 0 in windows:  # as in its own training
            for missing in range(1, frames // 2 + 1):
                window = self.timeline.window(t, frames, last=t + frames // 2 - missing)
                windows.setdefault(self.timeline.shift(window), window)
        return windows

    def lesson(self, t: int) -> _Lesson:
        windows, whole = self._windows(t), self.movie.shape[1:]
        sizes = [min(n, _EDGE) for n in whole]
        y, x = (int(self.rng.integers(n - k + 1)) for n, k in zip(whole, sizes, strict=True))
        here = (slice(y, y + sizes[0]), slice(x, x + sizes[1]))
        placed = {
            shift: list(zip(window, self.timeline.displacements(window), strict=True))
            for shift, window in windows.items()
        }
        needed = sorted({(i, by) for each in placed.values() for i, by in each if i is not None})
        # The last row is empty: it stands where no frame may.
        pixels = np.zeros((len(needed) + 1, *sizes), np.float32)
        for k, (i, by) in enumerate(needed):
            pixels[k] = self.model.normalisation.apply(
                cut(self.movie.frame(i), here, by), cut(self.bad, here, by, fill=True)
            )
        rows = {
            shift: [len(needed) if i is None else needed.index((i, by)) for i, by in each]
            for shift, each in placed.items()
        }
        shift = min(rows)
        # Without the model's offset, which is added to whatever the student says as well.
        target = self.teacher.predict(pixels[rows[shift]][None], shift)[0] - self.model.offset
        return _Lesson(pixels, rows, target.astype(np.float32))


def _train(
    lessons: list[_Lesson],
    frames: int,
    *,
    turn: bool,
    steps: int | None,
    seconds: float | None,
    seed: int,
    device: torch.device,
    precision: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[StudentNetwork, int]:
    recipe = PRESETS["lean"]
    torch.manual_seed(seed)
    memory = memory_format(device)
    network = StudentNetwork(frames).to(device, memory_format=memory)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    optimisers = make_optimisers(recipe.optimiser, named, _RATE)
    planner = Planner(None if steps else seconds, time.monotonic(), first=0, fixed=steps)
    step = 0
    while steps is None or step < steps:
        rate = learning_rate(_RATE, step, steps or 1000, warmup=recipe.warmup, decay=recipe.decay)
        set_rate(optimisers, rate)
        windows, target, shift = _draw(lessons, step, frames, turn=turn, seed=seed)
        with autocast(device, precision):
            predicted = network(windows.to(device).contiguous(memory_format=memory), shift)
        loss = F.mse_loss(predicted.float(), target.to(device))
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        value = loss.item()
        if not math.isfinite(value):
            raise ShineError("The student did not converge: use --student never.")
        step += 1
        steps = planner.steps(step)
        if progress is not None:
            progress(Progress(step, steps or 0, value, None, planner.left(step, steps)))
        if planner.out_of_time():
            break
    return network.eval(), step


def _draw(
    lessons: list[_Lesson], step: int, frames: int, *, turn: bool, seed: int
) -> tuple[Tensor, Tensor, int]:
    """Return the batch of a step: windows, what the teacher made of them, and their shift."""
    recipe = PRESETS["lean"]
    rng = np.random.default_rng([seed, 5, step])
    shifts = sorted({shift for lesson in lessons for shift in lesson.rows})
    shift = shifts[0]
    if len(shifts) > 1 and rng.random() < _ONE_SIDED:
        shift = shifts[int(rng.integers(1, len(shifts)))]
    able = [lesson for lesson in lessons if shift in lesson.rows]
    shape = lessons[0].target.shape
    height, width = (min(recipe.crop, n) for n in shape)
    if turn:
        height = width = min(height, width)
    windows, targets = [], []
    for _ in range(recipe.batch):
        lesson = able[int(rng.integers(len(able)))]
        y, x = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
        here = (slice(y, y + height), slice(x, x + width))
        rows = lesson.rows[shift]
        if shift == 0 and rng.integers(2):
            rows = rows[::-1]
        stack = np.stack([*(lesson.pixels[row][here] for row in rows), lesson.target[here]])
        stack = np.rot90(stack, int(rng.integers(4)) if turn else 2 * int(rng.integers(2)), (1, 2))
        if rng.integers(2):
            stack = stack[:, :, ::-1]
        windows.append(stack[:frames])
        targets.append(stack[frames])
    return torch.from_numpy(np.stack(windows)), torch.from_numpy(np.stack(targets)), shift


@torch.no_grad()
def _compare(
    network: StudentNetwork, lessons: list[_Lesson], device: torch.device, precision: str
) -> float:
    """Give the student its teacher's mean, and return the RMS difference that remains."""
    differences = []
    for lesson in lessons:
        shift = min(lesson.rows)
        window = torch.from_numpy(lesson.pixels[lesson.rows[shift]])[None].to(device)
        with autocast(device, precision):
            predicted = network(window, shift)
        differences.append(lesson.target - predicted[0].float().cpu().numpy())
    offset = float(np.mean([d.mean(dtype=np.float64) for d in differences]))
    assert network.last.bias is not None
    network.last.bias += offset
    squares = [np.square(d - np.float32(offset)).mean(dtype=np.float64) for d in differences]
    return float(np.sqrt(np.mean(squares)))
