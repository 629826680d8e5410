"""The ceiling: the lean network without blind spot, trained on the truth itself.

It shows what this backbone can do on a movie where the truth is known. No method that learns from
the noisy movie alone can be expected above it. Real movies have no truth: it is no rival but a
yardstick for simulated scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..compute import autocast, keep_freed_memory, pick_device, pick_precision
from ..denoising import tiles
from ..doctor import check
from ..errors import ShineError
from ..movie import Movie
from ..network import LeanNetwork, NetworkConfig
from ..noise import noise_of
from ..optimiser import optimisers
from ..patches import Normalisation, Timeline
from ..planning import is_weak, window_frames
from ..training_settings import PRESETS
from .fitting import Fitted, PlateauPace, Sample, fit

__all__ = ["Ceiling", "SeeingNetwork", "split_frames", "supervised"]

_TILE, _HALO = 1024, 128  # widest tile, and how far around a pixel the input can matter


@dataclass(frozen=True)
class Ceiling:
    """A movie denoised by a network that was taught the truth.

    Attributes
    ----------
    movie
        All frames, float32, in the units of the truth. Only `held_out` are worth scoring.
    held_out
        Frames whose truth was used neither for training nor for stopping.
    fitted
        Steps, seconds and the curve ``(step, training loss, held-out loss)``; losses are mean
        squared errors to the truth, in units of the movie's robust variance.
    plateau
        Whether training ended because the held-out loss no longer improved, not for lack of time.
    """

    movie: Movie
    held_out: tuple[int, ...]
    fitted: Fitted
    plateau: bool


def split_frames(targets: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Split frames into those to train on, to stop by and to score.

    Scored is the fifth of the movie in its middle, a tenth around its first quarter decides when
    to stop. Both are runs of neighbouring frames, since a single held-out frame between two trained
    ones would be nearly known.

    Raises
    ------
    ShineError
        For fewer than five frames.
    """
    n = len(targets)
    if n < 5:
        raise ShineError(
            f"The supervised ceiling holds frames out and needs at least five; this movie has {n}."
        )
    scored, stopping = max(1, round(n / 5)), max(1, round(n / 10))
    first = (n - scored) // 2
    quarter = max(0, min(first - stopping, n // 4 - stopping // 2))
    test = targets[first : first + scored]
    validation = targets[quarter : quarter + stopping]
    held = {*test, *validation}
    return [t for t in targets if t not in held], validation, test


def supervised(
    movie: Movie,
    truth: Movie,
    *,
    time_limit_s: float | None = None,
    step_limit: int | None = None,
    frames: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Ceiling:
    """Train the lean backbone on the truth until its held-out loss stops improving.

    Batches, crops, rate and optimiser are those of the lean network's own recipe, without its
    fixed number of steps: the rate falls to a third each time the loss on held-out frames has not
    improved for four measurements, and training ends after the fourth time.

    Parameters
    ----------
    movie, truth
        ``(t, y, x)`` noisy movie and its expected values.
    time_limit_s
        Most wall time for training, s; None for as long as the plateau takes.
    step_limit
        Most training steps, for exact repeats; None for as many as the plateau takes.
    frames
        Input frames, odd; None for as many as the lean network would get (`window_frames`).
    seed, device, progress
        See `shine_em.baselines.Method.run`.

    Raises
    ------
    ShineError
        If the shapes differ or there are too few frames to hold some out.
    """
    if movie.shape != truth.shape:
        raise ShineError(
            f"The movie has the shape {movie.shape}, its truth {truth.shape}: they must agree."
        )
    keep_freed_memory()
    where = pick_device(device)
    precision = pick_precision(where)
    health = check(movie)
    if frames is None:
        weak = is_weak(movie, health, noise_of(movie, health))
        frames = window_frames(movie, health, weak=weak)
    normalisation = Normalisation.of(health)
    timeline = Timeline(len(movie), health)
    train, validation, test = split_frames(timeline.targets())
    bad = np.asarray(health.bad_pixels, bool)
    noisy = np.stack([normalisation.apply(frame, bad) for frame in movie.frames()])
    exact = np.stack(
        [(f - np.float32(normalisation.location)) / np.float32(normalisation.scale)
         for f in truth.frames()]
    ).astype(np.float32)  # fmt: skip

    def window(t: int, here: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
        empty = np.zeros(movie.shape[1:], np.float32)
        numbers = timeline.window(t, frames, mirror=True)
        return np.stack([(empty if i is None else noisy[i])[here] for i in numbers])

    recipe = PRESETS["lean"]
    edge = min(recipe.crop, *movie.shape[1:])

    def draw(step: int) -> Sample:
        rng = np.random.default_rng([seed, step])
        windows, targets = [], []
        for _ in range(recipe.batch):
            t = train[int(rng.integers(len(train)))]
            y, x = (int(rng.integers(n - edge + 1)) for n in movie.shape[1:])
            here = (slice(y, y + edge), slice(x, x + edge))
            stack = np.concatenate((window(t, here), exact[t][here][None]))
            stack = np.rot90(stack, int(rng.integers(4)), (1, 2))
            if rng.integers(2):
                stack = stack[:, :, ::-1]
            windows.append(stack[:-1])
            targets.append(stack[-1])
        target = torch.from_numpy(np.stack(targets))
        return torch.from_numpy(np.stack(windows)), target, torch.ones_like(target)

    held = []
    for t in validation:
        target = torch.from_numpy(exact[t])[None]
        held.append((torch.from_numpy(window(t))[None], target, torch.ones_like(target)))

    torch.manual_seed(seed)
    network = SeeingNetwork(frames).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    every = max(25, 4 * len(train))
    pace = PlateauPace(recipe.learning_rate, every=every, seconds=time_limit_s, steps=step_limit)
    fitted = fit(
        network, draw, held, pace=pace,
        optimisers=optimisers(recipe.optimiser, dict(network.named_parameters()), pace.peak),
        device=where, precision=precision, progress=progress,
    )  # fmt: skip
    out = np.empty(movie.shape, np.float32)
    for t in range(len(movie)):
        out[t] = normalisation.invert(_predict(network, window(t), where, precision))
        if progress is not None:
            progress("denoising", (t + 1) / len(movie))
    clean = movie.with_data(out, did="denoised by a network that was taught the truth")
    return Ceiling(clean, tuple(test), fitted, pace.plateau)


class SeeingNetwork(nn.Module):
    """The lean network with ordinary 3×3 convolutions in place of its donuts: it sees every pixel.

    Parameters
    ----------
    frames
        Input frames, odd.
    """

    def __init__(self, frames: int = 5) -> None:
        super().__init__()
        slots = tuple(i for i in range(frames) if i != frames // 2)
        self.body = LeanNetwork(NetworkConfig("lean", frames, slots))
        for i, donut in enumerate(self.body.donuts):
            weight = donut.weight
            assert isinstance(weight, Tensor)
            self.body.donuts[i] = _Open(*weight.shape[:2])

    def forward(self, window: Tensor) -> Tensor:
        """Map ``(b, frames, h, w)`` to ``(b, h, w)``, both normalised."""
        predicted: Tensor = self.body(window, [(1, 1)])
        return predicted[0]


class _Open(nn.Conv2d):
    """A 3×3 convolution with the call shape of a donut."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, hole: object) -> Tensor:  # type: ignore[override]
        return super().forward(x)


@torch.inference_mode()
def _predict(
    network: SeeingNetwork, window: np.ndarray, device: torch.device, precision: str
) -> np.ndarray:
    out = np.empty(window.shape[1:], np.float32)
    stride = network.body.stride
    for read_y, keep_y in tiles(window.shape[1], _TILE, _HALO, stride):
        for read_x, keep_x in tiles(window.shape[2], _TILE, _HALO, stride):
            part = torch.from_numpy(np.ascontiguousarray(window[:, read_y, read_x]))[None]
            with autocast(device, precision):
                whole = network(part.to(device))[0].float().cpu().numpy()
            out[keep_y, keep_x] = whole[
                keep_y.start - read_y.start : keep_y.stop - read_y.start,
                keep_x.start - read_x.start : keep_x.stop - read_x.start,
            ]
    return out
