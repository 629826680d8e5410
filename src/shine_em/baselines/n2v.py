"""Noise2Void and structN2V: a U-Net that learns to predict pixels hidden in single frames.

Our own implementation of the recipe that the paper used for its rival. It is that of the example
notebooks of the package n2v: 3×3 kernels, squared error, batches of 128 patches, 0.198 % of the
pixels hidden; the package's own defaults are 5×5, absolute error, 16 and 1.5 %. The rest are these
defaults: a two-level U-Net of 32 features, 64×64 patches, the learning rate and how it falls. The
movie's frames are separate images to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..compute import keep_freed_memory, memory_format, pick_device
from ..denoising import tiles
from ..errors import ShineError
from ..movie import Movie
from ..noise import NoiseStatistics, noise_statistics
from ..pacing import Planner
from .filters import finite, map_frames

__all__ = ["Fitted", "UNet", "fit", "mask_pixels", "masked_loss", "n2v", "structn2v"]

_PATCH, _BATCH, _EPOCHS = 64, 128, 100
_RATE, _FACTOR, _PATIENCE = 4e-4, 0.5, 10  # epochs of patience
_MASKED = 0.00198  # share of a patch's pixels that are hidden
_RADIUS = 5  # px: a hidden pixel shows a value from this far around
_HELD_OUT = 0.1  # share of the patches
_STRUCT_RANGE = 2.0  # standard deviations
_SETTLED = 32  # patches behind the batch normalisation's mean and variance, at least
_FEATURES, _STRIDE, _HALO, _TILE = 32, 4, 32, 768
_SMALLEST = 16  # px
# A budget that allows fewer steps takes smaller batches: N2V gains more from steps.
_ENOUGH_STEPS, _SMALLEST_BATCH = 500, 8
_MOST_BYTES = 2 << 30  # of frames held for training


def n2v(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Denoise with Noise2Void, trained on all frames of the movie.

    0.198 % of a patch's pixels are hidden behind values of their 11×11 neighbourhood (their own
    among them) and are to be predicted. Without a time budget, training takes 100 passes over the
    patches in their 8 orientations; with one, as many steps as fit, in batches small enough for
    500 of them or of 8 patches at least. Unlike in n2v, the statistics of the batch
    normalisation are measured afresh for the weights that are used, because the running ones lag
    behind in short runs.

    Parameters are those of `shine_em.baselines.Method.run`; ``noise`` and ``hole`` have no effect.

    Raises
    ------
    ShineError
        If frames are smaller than 16 pixels, or the device cannot be used.

    References
    ----------
    A. Krull, T.-O. Buchholz, F. Jug, Noise2Void: learning denoising from single noisy images.
    CVPR 2019. Materials and Methods of the SHINE paper, "For N2V training".
    """
    return _run(movie, (1, 1), "Noise2Void", time_budget_s, seed, device, progress)


def structn2v(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Denoise with structN2V: Noise2Void that also hides what correlated noise gives away.

    Around each hidden pixel, all others within the hole are replaced by random values, so that
    noise that is correlated within it cannot be predicted. The hole is that of the noise
    statistics unless one is given. All else is as for `n2v`.

    Parameters are those of `shine_em.baselines.Method.run`.

    Raises
    ------
    ShineError
        If frames are smaller than 16 pixels, or the device cannot be used.

    References
    ----------
    C. Broaddus et al., Removing structured noise with self-supervised blind-spot networks.
    ISBI 2020.
    """
    hole = hole or (noise or noise_statistics(movie)).hole
    title = f"structN2V {hole[0]}×{hole[1]}"
    return _run(movie, hole, title, time_budget_s, seed, device, progress)


class UNet(nn.Module):
    """The two-level U-Net of n2v's example notebooks (0.3.0): 32, 64, 128 features, 3×3 kernels.

    Each convolution is followed by batch normalisation and ReLU; 2×2 maximum on the way down,
    nearest neighbour on the way up, a linear 1×1 at the end.
    """

    def __init__(self, features: int = _FEATURES) -> None:
        super().__init__()
        n = features
        self.top = _block(1, n, n)
        self.middle = _block(n, 2 * n, 2 * n)
        self.bottom = _block(2 * n, 4 * n, 2 * n)
        self.middle_up = _block(4 * n, 2 * n, n)
        self.top_up = _block(2 * n, n, n)
        self.last = nn.Conv2d(n, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(b, h, w)`` from ``(b, h, w)``; both sides must be multiples of 4."""
        fine = self.top(x[:, None])
        coarse = self.middle(nn.functional.max_pool2d(fine, 2))
        up = self.bottom(nn.functional.max_pool2d(coarse, 2))
        up = self.middle_up(torch.cat([_twice(up), coarse], 1))
        return self.last(self.top_up(torch.cat([_twice(up), fine], 1)))[:, 0]


def mask_pixels(
    patches: Tensor, hole: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide some pixels of each patch.

    Parameters
    ----------
    patches
        ``(b, h, w)``, standardised.
    hole
        Rows × columns around a hidden pixel that are hidden with it.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    inputs
        ``(b, h, w)``: each hidden pixel shows the value of a random one of the 11×11 around it,
        itself included; the rest of its hole shows uniform noise between ±2 standard deviations.
    mask
        ``(b, h, w)`` float: 1 at hidden pixels (not at the rest of their holes), else 0.
    """
    b, h, w = patches.shape
    box = math.sqrt(1 / _MASKED)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    # One pixel in each box of a grid, so that hidden pixels keep apart; the last boxes reach out.
    rows, columns = math.ceil(h / box), math.ceil(w / box)
    y = ((torch.arange(rows)[:, None] + random(b, rows, columns)) * box).long().flatten(1)
    x = ((torch.arange(columns) + random(b, rows, columns)) * box).long().flatten(1)
    which, at = torch.nonzero((y < h) & (x < w), as_tuple=True)
    y, x = y[which, at], x[which, at]

    def near(centre: Tensor, size: int) -> Tensor:
        low, high = (centre - _RADIUS).clamp(min=0), (centre + _RADIUS).clamp(max=size - 1)
        return low + (random(len(centre)) * (high - low + 1)).long()

    mask = torch.zeros(b, h, w)
    mask[which, y, x] = 1
    inputs = patches.clone()
    inputs[which, y, x] = patches[which, near(y, h), near(x, w)]
    for dy in range(-(hole[0] // 2), hole[0] // 2 + 1):
        for dx in range(-(hole[1] // 2), hole[1] // 2 + 1):
            inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
            if (dy, dx) != (0, 0):
                noise = (2 * random(int(inside.sum())) - 1) * _STRUCT_RANGE
                inputs[which[inside], y[inside] + dy, x[inside] + dx] = noise
    return inputs, mask


def masked_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error over the hidden pixels."""
    return ((predicted - target).square() * mask).sum() / mask.sum().clamp(min=1)


@dataclass
class Fitted:
    """A trained network and how it was trained.

    Attributes
    ----------
    network
        With the weights of the lowest validation loss, in evaluation mode.
    mean, std
        Of the training pixels; the network sees standardised ones.
    steps, batch
        Optimiser steps, and patches in each.
    validation_loss
        ``(step, loss)`` once per epoch.
    """

    network: UNet
    mean: float
    std: float
    batch: int
    steps: int = 0
    validation_loss: list[tuple[int, float]] = field(default_factory=list)

    def denoise(self, frame: np.ndarray) -> np.ndarray:
        """Denoise a finite ``(y, x)`` frame."""
        out = np.empty(frame.shape, np.float32)
        device = next(self.network.parameters()).device
        height, width = frame.shape
        padding = ((0, -height % _STRIDE), (0, -width % _STRIDE))
        padded = np.pad((frame - self.mean) / self.std, padding, mode="reflect")
        for read_y, keep_y in tiles(padded.shape[0], _TILE, _HALO, _STRIDE):
            for read_x, keep_x in tiles(padded.shape[1], _TILE, _HALO, _STRIDE):
                part = torch.from_numpy(padded[read_y, read_x].astype(np.float32))
                with torch.inference_mode():
                    predicted = self.network(part[None].to(device))[0].cpu().numpy()
                inner = (
                    slice(keep_y.start - read_y.start, min(keep_y.stop, height) - read_y.start),
                    slice(keep_x.start - read_x.start, min(keep_x.stop, width) - read_x.start),
                )
                out[keep_y, keep_x] = predicted[inner]
        return out * np.float32(self.std) + np.float32(self.mean)


def fit(
    frames: np.ndarray,
    *,
    hole: tuple[int, int] = (1, 1),
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = _BATCH,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Fitted:
    """Train on frames.

    Parameters
    ----------
    frames
        ``(t, y, x)`` float32, finite.
    hole
        See `mask_pixels`.
    steps
        Optimiser steps; None for 100 passes over the patches in their 8 orientations.
    seconds
        Wall time instead, from which steps and batch follow.
    batch
        Patches per step, the most where ``seconds`` is given.
    seed, device, progress
        As in `shine_em.baselines.Method.run`.

    Raises
    ------
    ShineError
        If frames are smaller than 16 pixels, or the loss is not finite.
    """
    if min(frames.shape[1:]) < _SMALLEST:
        raise ShineError(
            f"Noise2Void needs frames of {_SMALLEST} px and more, "
            f"not {frames.shape[1]}×{frames.shape[2]}."
        )
    place = pick_device(device)
    memory = memory_format(place)
    keep_freed_memory()
    mean, std = float(frames.mean(dtype=np.float64)), float(frames.std(dtype=np.float64)) or 1.0
    rng = np.random.default_rng([seed, 0])
    generator = torch.Generator().manual_seed(seed)
    known, held_out = _split(frames.shape, rng)

    def cut(spots: np.ndarray, turns: np.ndarray) -> Tensor:
        edge = _edge(frames.shape)
        patches = (
            np.rot90(frames[t, y : y + edge, x : x + edge], turn % 4)[:, :: 1 - 2 * (turn // 4)]
            for (t, y, x), turn in zip(spots, turns, strict=True)
        )
        return (torch.from_numpy(np.stack(list(patches))) - mean) / std

    def forward(network: UNet, patches: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        return masked_loss(network(inputs.to(place)), patches.to(place), mask.to(place))

    def draw(size: int) -> tuple[Tensor, Tensor, Tensor]:
        patches = cut(known[rng.integers(len(known), size=size)], rng.integers(8, size=size))
        return patches, *mask_pixels(patches, hole, generator)

    def new() -> UNet:
        torch.manual_seed(seed)
        return UNet().to(place, memory_format=memory)  # type: ignore[call-overload]

    started = time.monotonic()
    if seconds is not None:
        trial, small = new(), draw(_SMALLEST_BATCH)
        for _ in range(2):  # the first is slower
            began = time.monotonic()
            forward(trial, *small).backward()
            spent = time.monotonic() - began
        fits = _SMALLEST_BATCH * seconds / spent / _ENOUGH_STEPS
        batch = int(np.clip(2 ** math.floor(math.log2(max(fits, 1))), _SMALLEST_BATCH, batch))
    elif steps is None:
        steps = _EPOCHS * math.ceil(8 * len(known) / batch)
    fitted = Fitted(new(), mean, std, batch)
    network = fitted.network
    optimiser = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        # One less: an epoch counts here once its patience is exceeded, not when it is reached.
        optimiser, factor=_FACTOR, patience=_PATIENCE - 1, threshold=1e-4, threshold_mode="abs",
    )  # fmt: skip
    checked = cut(held_out, np.zeros(len(held_out), int))
    checked_masks = mask_pixels(checked, hole, generator)
    planner = Planner(seconds, started, first=0, fixed=steps)
    best: dict[str, Tensor] = {}
    lowest = math.inf
    while steps is None or fitted.steps < steps:
        loss = forward(network, *draw(batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        fitted.steps += 1
        steps = planner.steps(fitted.steps)
        late = planner.out_of_time()
        epoch = max(10, (steps or 0) // _EPOCHS)
        if late or (steps and (fitted.steps % epoch == 0 or fitted.steps >= steps)):
            with torch.no_grad():
                # A running mean of 100 steps, as Keras keeps, would lag behind in a short run.
                network(draw(max(batch, _SETTLED))[1].to(place))
                value = forward(network.eval(), checked, *checked_masks).item()
            network.train()
            if not math.isfinite(value):
                raise ShineError("Noise2Void did not converge: the loss is not a finite number.")
            schedule.step(value)
            fitted.validation_loss.append((fitted.steps, value))
            if value < lowest:
                lowest = value
                best = {k: v.detach().clone() for k, v in network.state_dict().items()}
        if progress is not None:
            done = fitted.steps / steps if steps else (time.monotonic() - started) / (seconds or 1)
            progress("training", min(1.0, done))
        if late:
            break
    network.load_state_dict(best)
    network.eval()
    return fitted


def _run(
    movie: Movie,
    hole: tuple[int, int],
    title: str,
    time_budget_s: float | None,
    seed: int,
    device: str,
    progress: Callable[[str, float], None] | None,
) -> Movie:
    size = 4 * movie.shape[1] * movie.shape[2]
    most = max(1, _MOST_BYTES // size)
    # evenly spread, where not all frames fit into memory
    picked = np.unique(np.linspace(0, len(movie) - 1, min(len(movie), most)).round().astype(int))
    frames = (finite(movie.frame(int(t)).astype(np.float32)) for t in picked)
    good = [frame for frame in frames if frame is not None]
    if not good:
        raise ShineError(f"{movie.name}: no frame holds a finite pixel: nothing to denoise.")
    fitted = fit(
        np.stack(good), hole=hole, seconds=time_budget_s, seed=seed, device=device,
        progress=progress,
    )  # fmt: skip
    did = f"{title}, {fitted.steps} steps of {fitted.batch} patches"
    return map_frames(movie, fitted.denoise, did=did, progress=progress)


def _edge(shape: tuple[int, ...]) -> int:
    return min(_PATCH, min(shape[1:]) // _STRIDE * _STRIDE)


def _split(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return first frame, row and column of the patches to train on, and of those held out."""
    edge = _edge(shape)
    along = [np.unique([*range(0, n - edge, edge), n - edge]) for n in shape[1:]]
    spots = np.stack(np.meshgrid(np.arange(shape[0]), *along, indexing="ij"), -1).reshape(-1, 3)
    spots = rng.permutation(spots)
    count = max(1, round(_HELD_OUT * len(spots)))
    # A single patch must serve both ends.
    return spots[count:] if len(spots) > 1 else spots, spots[: min(count, _BATCH)]


def _block(channels: int, first: int, second: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((channels, first), (first, second)):
        # Keras's epsilon; mean and variance are those of the last batch, see `fit`.
        norm = nn.BatchNorm2d(b, eps=1e-3, momentum=1.0)
        layers += [nn.Conv2d(a, b, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*layers)


def _twice(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
