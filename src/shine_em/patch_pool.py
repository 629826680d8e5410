"""Random training patches of a movie: what is drawn, and what is cut out of it.

What is drawn (`Draw`) is kept apart from the cutting: the same draws can be cut where the network
is trained (`device_patches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .doctor import Health
from .errors import ShineError
from .movie import Movie
from .patches import Normalisation, Timeline, Window, cut

__all__ = ["Batch", "Draw", "Draws", "PatchPool", "Run"]


@dataclass(frozen=True)
class Batch:
    """A training batch.

    Attributes
    ----------
    windows
        ``(b, frames, h, w)`` float32, normalised.
    weights
        ``(b, h, w)`` float32: 1 where the centre frame's pixel may be trained on, else 0.
    shift
        Neighbours out of place (`Timeline.shift`), the same for the whole batch.
    """

    windows: np.ndarray
    weights: np.ndarray
    shift: int = 0


@dataclass(frozen=True)
class Run:
    """Consecutive frames of one region, held in memory in the file's own type."""

    pixels: np.ndarray  # (k, h, w)
    numbers: dict[int, int]  # movie frame number -> row of `pixels`
    bad: np.ndarray  # (h, w): hot and dead pixels, hidden from the network
    excluded: np.ndarray  # (h, w): never trained on
    targets: list[int]


class Draw(NamedTuple):
    """One sample: where it is cut from a run, and how it is turned over.

    The window is cut at (``y``, ``x``), turned by 90° ``turns`` times, mirrored left to right,
    and reversed in time, in this order.
    """

    run: int
    t: int
    window: Window
    y: int
    x: int
    turns: int
    mirrored: bool
    reversed: bool


class Draws(NamedTuple):
    """What is drawn for a batch."""

    samples: list[Draw]
    shape: tuple[int, int]  # of each sample
    shift: int  # see `Batch`


class PatchPool:
    """Random crops of a movie for training, within a fixed memory.

    A movie that fits is held whole, in the file's own type; of a larger one, runs of consecutive
    frames in random regions are held, drawn once by ``seed``.

    Parameters
    ----------
    movie, health, normalisation
        The movie, its input check and its normalisation.
    frames, mirror, blinded_lags
        See `Timeline.window` and `Timeline`.
    held_out
        Frames that are never trained on (they may still be neighbours).
    hidden
        ``(y, x)`` bool, pixels never trained on in any frame (movies too short to hold out
        frames), or None.
    memory_bytes
        Most that the held pixels may take.
    """

    def __init__(
        self,
        movie: Movie,
        health: Health,
        normalisation: Normalisation,
        *,
        frames: int,
        mirror: bool = False,
        blinded_lags: Sequence[int] = (),
        held_out: Sequence[int] = (),
        hidden: np.ndarray | None = None,
        memory_bytes: int = 400_000_000,
        seed: int = 0,
    ) -> None:
        self.timeline = Timeline(len(movie), health, blinded_lags)
        self.normalisation = normalisation
        self.frames, self.mirror = frames, mirror
        self._windows: dict[tuple[int, int, int], Window] = {}
        targets = [t for t in self.timeline.targets() if t not in set(held_out)]
        if not targets:
            raise ShineError(f"{movie.name}: no frame is left to train on.")
        bad = np.asarray(health.bad_pixels, bool)
        excluded = bad if hidden is None else bad | hidden
        size = np.prod(movie.shape, dtype=float) * movie.dtype.itemsize
        if size <= memory_bytes:
            whole = np.empty(movie.shape, movie.dtype)
            for t, frame in enumerate(movie.frames()):
                whole[t] = frame
            self.runs = [Run(whole, {t: t for t in range(len(movie))}, bad, excluded, targets)]
        else:
            self.runs = list(self._draw_runs(movie, bad, excluded, targets, memory_bytes, seed))

    def _draw_runs(
        self,
        movie: Movie,
        bad: np.ndarray,
        excluded: np.ndarray,
        targets: list[int],
        memory: int,
        seed: int,
    ) -> Iterator[Run]:
        rng = np.random.default_rng([seed, 1])
        n, height, width = movie.shape
        edge = 512
        length, regions = min(4, n), max(1, min(4, (height * width) // (edge * edge)))
        rows, columns = min(edge, height), min(edge, width)
        per_run = (length + 2 * self.frames) * rows * columns * movie.dtype.itemsize
        count = max(1, int(memory // (per_run * regions)))
        starts = np.linspace(0, len(targets) - length, min(count, len(targets))).astype(int)
        for start in np.unique(np.maximum(starts, 0)):
            chosen = targets[start : start + length]
            needed = sorted(
                {
                    i
                    for t in chosen
                    for i in self.timeline.window(t, self.frames, mirror=self.mirror)
                    if i is not None
                }
            )
            corners = [
                (int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)))
                for _ in range(regions)
            ]
            places = [(slice(y, y + rows), slice(x, x + columns)) for y, x in corners]
            held = np.empty((regions, len(needed), rows, columns), movie.dtype)
            for k, i in enumerate(needed):
                frame = movie.frame(i)
                for region, here in zip(held, places, strict=True):
                    region[k] = frame[here]
            numbers = {i: k for k, i in enumerate(needed)}
            for region, here in zip(held, places, strict=True):
                yield Run(region, numbers, bad[here], excluded[here], chosen)

    def batch(self, draws: Draws) -> Batch:
        """Return what `draw` drew, cut out."""
        samples = [self._cut(sample, draws.shape) for sample in draws.samples]
        windows, weights = zip(*samples, strict=True)
        return Batch(np.stack(windows), np.stack(weights), draws.shift)

    def draw(
        self,
        step: int,
        *,
        size: int,
        crop: int,
        seed: int,
        turn: bool = True,
        one_sided: float = 0.15,
        reverse: bool = True,
    ) -> Draws:
        """Return what is drawn for a training step; the same step and seed give the same.

        Parameters
        ----------
        step, seed
            Everything random is drawn from these two, so that a resumed run repeats nothing.
        size, crop
            Samples, and their width in pixels (less where the movie is smaller).
        turn
            Rotate by 90° as well as mirror; not allowed where the hole or the noise is
            anisotropic.
        one_sided
            Chance that a batch is drawn as near an end of the movie, so that the network knows
            how to treat the first and the last frames.
        reverse
            Reverse time for half of the samples (not where neighbours are out of place: these
            stand last).
        """
        rng = np.random.default_rng([seed, 0, step])
        half = self.frames // 2
        missing = int(rng.integers(1, half + 1)) if half and rng.random() < one_sided else 0
        samples = []
        shift = 0
        height, width = self.crop(crop, turn=turn)
        for _ in range(size):
            number = int(rng.integers(len(self.runs)))
            run = self.runs[number]
            t = run.targets[int(rng.integers(len(run.targets)))]
            window = self._window(t, missing, number)
            moved = self.timeline.shift(window)
            shift = max(shift, moved)
            y = int(rng.integers(run.pixels.shape[1] - height + 1))
            x = int(rng.integers(run.pixels.shape[2] - width + 1))
            turns = int(rng.integers(4)) if turn else 2 * int(rng.integers(2))
            mirrored = bool(rng.integers(2))
            reversed_ = reverse and moved == 0 and bool(rng.integers(2))
            samples.append(Draw(number, t, window, y, x, turns, mirrored, reversed_))
        return Draws(samples, (height, width), shift)

    def crop(self, wanted: int, *, turn: bool) -> tuple[int, int]:
        """Return the size of a sample: as wanted, or less where the movie is smaller."""
        height = min(wanted, *(r.pixels.shape[1] for r in self.runs))
        width = min(wanted, *(r.pixels.shape[2] for r in self.runs))
        return (min(height, width),) * 2 if turn else (height, width)

    def _window(self, t: int, missing: int, number: int) -> Window:
        """Return the window of ``t``, as if its last ``missing`` neighbours did not exist."""
        key = (t, missing, number)
        if key not in self._windows:
            self._windows[key] = self._found_window(t, missing, self.runs[number])
        return self._windows[key]

    def _found_window(self, t: int, missing: int, run: Run) -> Window:
        if missing:
            last = t + self.frames // 2 - missing
            window = self.timeline.window(t, self.frames, last=last)
            if all(i is not None and i in run.numbers for i in window):
                return window
        return self.timeline.window(t, self.frames, mirror=self.mirror)

    def _cut(self, sample: Draw, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the window ``(frames, h, w)`` and the weights ``(h, w)`` of a sample."""
        run = self.runs[sample.run]
        here = (slice(sample.y, sample.y + shape[0]), slice(sample.x, sample.x + shape[1]))
        empty = np.zeros(shape, np.float32)
        placed = zip(sample.window, self.timeline.displacements(sample.window), strict=True)
        stack = np.stack(
            [
                empty
                if i is None
                else self.normalisation.apply(
                    cut(run.pixels[run.numbers[i]], here, by), cut(run.bad, here, by, fill=True)
                )
                for i, by in placed
            ]
        )
        raw = run.pixels[run.numbers[sample.t]][here]
        weight = self.normalisation.trusted(raw, run.excluded[here]).astype(np.float32)
        stack, weight = np.rot90(stack, sample.turns, (1, 2)), np.rot90(weight, sample.turns)
        if sample.mirrored:
            stack, weight = stack[:, :, ::-1], weight[:, ::-1]
        return stack[::-1] if sample.reversed else stack, weight
