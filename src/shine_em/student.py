"""The student: a small network that repeats the ensemble's result in one fast pass.

A blind-spot ensemble pays for its blindness: the trunk may not be read where it is sharpest, and
every hole is read on its own. Its results can be learned by an ordinary small U-Net that sees
every pixel (knowledge distillation: G. Hinton et al., arXiv 1503.02531; for blind-spot networks:
S. Chen et al., "Exploring asymmetric tunable blind-spots", CVPR 2024). The targets hold hardly any
noise, so that it learns fast, and they are blind to the noise of the pixel that they stand for:
the student, although it sees that pixel, is never taught to copy its noise.

The student works at half the frame's resolution from its first convolution on, with the four
pixels of a 2×2 block as channels (as FFDNet: K. Zhang et al., IEEE Trans. Image Process. 27, 4608,
2018): few, wide convolutions are what processors do best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compute import autocast
from .doctor import Health
from .errors import ShineError
from .movie import Movie
from .optimiser import optimisers as make_optimisers
from .pacing import Planner, learning_rate
from .patches import Normalisation, Timeline, Window
from .training import PRESETS, Progress

__all__ = ["Student", "StudentNetwork", "Teacher", "distil", "lesson_count"]

# (windows ``(b, frames, h, w)``, shift) → ``(b, h, w)``, all normalised.
Teacher = Callable[[np.ndarray, int], np.ndarray]

_WIDTHS = (32, 48, 64)
_EDGE = 512  # pixels: of larger frames, a region of this width is taught
_TAUGHT_PIXELS = 10_000_000  # more of the teacher's pixels teach hardly more
_MEMORY = 400_000_000  # bytes: the most that lessons may hold
_ONE_SIDED = 0.2  # share of the steps for windows with neighbours out of place


class StudentNetwork(nn.Module):
    """A plain three-level U-Net on 2×2 blocks of pixels; no blind spot.

    Parameters
    ----------
    frames
        Frames in a window, odd.
    widths
        Features at a half, a quarter and an eighth of the resolution.
    """

    stride = 8
    # Input pixels that matter around an output pixel: three 3×3 at half, three at a quarter, two at
    # an eighth of the resolution, the two upsamplings, and the width of a block at the coarsest.
    reach = 2 * 2 + 3 * 4 + 2 * 8 + (4 + 8) + 8

    def __init__(self, frames: int = 5, widths: Sequence[int] = _WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.frames = frames
        half = frames // 2
        inputs = 4 * (frames + 1)
        self.enter = nn.Conv2d(inputs, fine, 3, padding=1)
        # What changes with neighbours out of place, one set of weights per number of them.
        self.changes = nn.Parameter(torch.zeros(half * fine, inputs, 3, 3))
        self.halve = nn.ModuleList(
            (nn.Conv2d(fine, middle, 2, stride=2), nn.Conv2d(middle, coarse, 2, stride=2))
        )
        self.middle = nn.ModuleList(nn.Conv2d(middle, middle, 3, padding=1) for _ in range(3))
        self.coarse = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _ in range(2))
        self.raise_ = nn.ModuleList((nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)))
        self.fine = nn.Conv2d(fine, fine, 3, padding=1)
        self.last = nn.Conv2d(fine, 4, 1)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    @property
    def halo(self) -> int:
        """How many input pixels around a tile make it equal to the whole frame."""
        return -(-self.reach // self.stride) * self.stride

    def forward(self, window: Tensor, shift: int = 0) -> Tensor:
        """Restore the centre frame.

        Parameters
        ----------
        window
            ``(b, frames, h, w)``, normalised; any ``h`` and ``w``.
        shift
            Neighbours out of place in time (see `Timeline.shift`).

        Returns
        -------
        Tensor
            ``(b, h, w)``, normalised.
        """
        height, width = window.shape[-2:]
        # A channel of ones says where the frame ends.
        x = torch.cat((window, torch.ones_like(window[:, :1])), dim=1)
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        a = F.relu_(self._enter(x, shift))
        b = F.relu_(self.halve[0](a))
        for conv in self.middle[:2]:
            b = b + F.relu_(conv(b))
        c = F.relu_(self.halve[1](b))
        for conv in self.coarse:
            c = c + F.relu_(conv(c))
        b = F.relu_(b + _double(self.raise_[0](c)))
        b = b + F.relu_(self.middle[2](b))
        a = F.relu_(a + _double(self.raise_[1](b)))
        a = a + F.relu_(self.fine(a))
        return F.pixel_shuffle(self.last(a), 2)[:, 0, :height, :width]

    def _enter(self, x: Tensor, shift: int) -> Tensor:
        if not shift:
            return self.enter(F.pixel_unshuffle(x, 2))
        # As if time were mirrored at the centre: the frames that are in place step in for the
        # missing ones. What the frames at hand are worth there, the changes learn.
        last = self.frames - 1
        order = [last - i if i > last - shift else i for i in range(self.frames)]
        mirrored = self.enter(F.pixel_unshuffle(x[:, [*order, self.frames]], 2))
        changes = self.changes.chunk(self.frames // 2)[shift - 1]
        return mirrored + F.conv2d(F.pixel_unshuffle(x, 2), changes, padding=1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Student:
    """A trained student.

    Attributes
    ----------
    weights
        Of its `StudentNetwork`.
    frames, widths
        See `StudentNetwork`.
    steps, seconds
        Of its training; ``seconds`` includes the teacher's passes.
    lessons
        Frames, or regions of frames, that the teacher denoised for it.
    difference
        RMS difference to the teacher on frames it was not taught (where there are at least eight
        lessons), normalised units.
    """

    weights: dict[str, Tensor]
    frames: int
    widths: tuple[int, ...]
    steps: int
    seconds: float
    lessons: int
    difference: float

    def network(self) -> StudentNetwork:
        """Return the network with its weights.

        Raises
        ------
        ShineError
            If the weights do not fit the network.
        """
        network = StudentNetwork(self.frames, self.widths)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError:
            raise ShineError("the student's weights do not fit its network.") from None
        return network

    def to_dict(self) -> dict[str, Any]:
        """Return all but the weights as plain values for a checkpoint's header."""
        return {
            "frames": self.frames, "widths": list(self.widths), "steps": self.steps,
            "seconds": self.seconds, "lessons": self.lessons, "difference": self.difference,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any], weights: dict[str, Tensor]) -> Student:
        """Rebuild what `to_dict` gave; the weights are checked.

        Raises
        ------
        ShineError
            If the weights do not fit.
        """
        student = cls(**{**values, "widths": tuple(values["widths"])}, weights=weights)
        student.network()
        return student


@dataclass(frozen=True)
class _Lesson:
    """A region of a frame, the windows around it, and what the teacher made of it."""

    pixels: np.ndarray  # (k, h, w) float32, normalised
    rows: dict[int, list[int]]  # shift → rows of `pixels` that are its window
    target: np.ndarray  # (h, w) float32, normalised


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
    return max(1, min(available, enough, held))


def distil(
    movie: Movie,
    health: Health,
    teacher: Teacher,
    *,
    normalisation: Normalisation,
    frames: int = 5,
    blinded_lags: Sequence[int] = (),
    turn: bool = True,
    steps: int | None = None,
    seconds: float | None = None,
    lessons: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[Progress], None] | None = None,
) -> Student:
    """Train a student to repeat a teacher's results on frames spread over the movie.

    Parameters
    ----------
    movie, health, normalisation
        The movie, its input check and the teacher's normalisation.
    teacher
        Maps normalised windows ``(b, frames, h, w)`` and their shift to ``(b, h, w)``, as
        `shine_em.denoising.Denoiser.predict` does.
    frames, blinded_lags
        Of the teacher's windows.
    turn
        Augment with 90° rotations (for noise that is the same along rows and columns); mirrors,
        180° and reversed time are always used.
    steps
        Training steps; or None, and
    seconds
        wall time for training (without the teacher's passes).
    lessons
        Frames for the teacher to denoise; None for `lesson_count`.
    seed
        Everything random is drawn from it and the step.
    device, precision
        Where and how to compute.
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
    device = torch.device(device)
    begun = time.monotonic()
    timeline = Timeline(len(movie), health, blinded_lags)
    targets = timeline.targets()
    if not targets:
        raise ShineError(f"{movie.name}: no frame is left to train on.")
    # Frames whose neighbours are all in place teach most, wherever there are any.
    targets = [t for t in targets if timeline.shift(timeline.window(t, frames)) == 0] or targets
    count = lessons or lesson_count(movie, frames, len(targets))
    picked = [targets[i] for i in np.unique(np.linspace(0, len(targets) - 1, count).astype(int))]
    rng = np.random.default_rng([seed, 4])
    taught = [_lesson(movie, health, normalisation, timeline, t, frames, teacher, rng)
              for t in picked]  # fmt: skip
    held = taught[4::8]
    if held:
        taught = [lesson for k, lesson in enumerate(taught) if k % 8 != 4]
    else:
        held = taught
    network, done = _train(
        taught, frames, turn=turn, steps=steps, seconds=seconds, seed=seed, device=device,
        precision="fp32" if precision == "fp16" else precision,  # fp16 gradients underflow
        progress=progress,
    )  # fmt: skip
    difference = _compare(network, held, device, precision)
    weights = {k: v.detach().to("cpu", copy=True).contiguous()
               for k, v in network.state_dict().items()}  # fmt: skip
    return Student(
        weights, frames, _WIDTHS, done, time.monotonic() - begun, len(picked), difference
    )


def _lesson(
    movie: Movie,
    health: Health,
    normalisation: Normalisation,
    timeline: Timeline,
    t: int,
    frames: int,
    teacher: Teacher,
    rng: np.random.Generator,
) -> _Lesson:
    half = frames // 2
    windows: dict[int, Window] = {}
    for missing in range(half + 1):
        window = timeline.window(t, frames, last=t + half - missing if missing else None)
        windows.setdefault(timeline.shift(window), window)
    sizes = [min(n, _EDGE) for n in movie.shape[1:]]
    y, x = (int(rng.integers(n - k + 1)) for n, k in zip(movie.shape[1:], sizes, strict=True))
    here = (slice(y, y + sizes[0]), slice(x, x + sizes[1]))
    bad = np.asarray(health.bad_pixels, bool)[here]
    needed = sorted({i for window in windows.values() for i in window if i is not None})
    # The last row is empty: it stands where no frame may.
    pixels = np.zeros((len(needed) + 1, *sizes), np.float32)
    for k, i in enumerate(needed):
        pixels[k] = normalisation.apply(movie.frame(i)[here], bad)
    rows = {
        shift: [len(needed) if i is None else needed.index(i) for i in window]
        for shift, window in windows.items()
    }
    shift = min(rows)
    target = teacher(pixels[rows[shift]][None], shift)[0]
    return _Lesson(pixels, rows, target)


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
    memory = torch.contiguous_format if device.type == "mps" else torch.channels_last
    network = StudentNetwork(frames).to(device, memory_format=memory)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    optimisers = make_optimisers("muon", named, recipe.learning_rate)
    planner = Planner(None if steps else seconds, time.monotonic(), first=0)
    step = 0
    while steps is None or step < steps:
        rate = learning_rate(recipe.learning_rate, step, steps or 1000, warmup=recipe.warmup)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["ratio"]
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
        if steps is None:
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
