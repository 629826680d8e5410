"""The weights that training begins with: a lean network taught on simulated movies.

Run once to make ``src/shine_em/starting_point.safetensors``; nobody needs it to denoise movies.

    python scripts/make_starting_point.py OUTPUT      # 42 minutes on two cores, --help for more

What a network learns first, in some hundred steps, is the same for every movie: to average over
time and space, to tell edges and lattices from noise. Here it learns that from scenes whose truth
is known, so that its targets hold no noise. Six in ten examples come from this project's own
simulators (growing Au particles of many kinds, HAADF STEM of MoS2, sparse counting; seeds that
nothing else uses), the others are drawn: textures of any smoothness, discs and lattices that drift,
turn and jump. Each gets noise of its own kind: counted or Gaussian, white or correlated within the
hole, constant or growing with the signal, from -20 to +8 dB. The Pt scenes are left out, to be
tested on.

The result is never used as it is: each job trains it on the user's movie alone.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shine_em.compute import autocast, keep_freed_memory, pick_device, pick_precision
from shine_em.errors import ShineError
from shine_em.linear import window_offsets
from shine_em.network import Hole, NetworkConfig, build
from shine_em.optimiser import Muon, optimisers, set_rate
from shine_em.pacing import learning_rate
from shine_em.simulate import SCENES

CROP, FRAMES = 128, 16
DRAWN, WIDE = 800, 160  # drawn scenes, and their width in pixels
# Peak rate; Muon's momentum; steps over which weights are averaged.
RATE, MOMENTUM, HALF_LIFE = 3e-3, 0.95, 300
# Kernels shrink by this times the rate: their steps are of one size, so that a network with small
# kernels still learns quickly when it is trained on.
SHRINK = 0.15
SNR_DB = (-20.0, 8.0)
# Quiet examples must count beside loud ones, whose squared errors are larger.
LOUDNESS, QUIETEST = 0.7, 0.003
HOLES: tuple[Hole, ...] = (
    (1, 1), (3, 3), (3, 3), (5, 5), (5, 5), (7, 7), (9, 9), (1, 3), (3, 1), (1, 5), (5, 1), (3, 7),
    (7, 3),
)  # fmt: skip


def scenes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names of simulators and their parameters."""
    rng = np.random.default_rng(9000)
    for _ in range(120):
        small = rng.uniform(3, 12)
        yield (
            "au-growth",
            {
                "initial_diameter_nm": small,
                "final_diameter_nm": small + rng.uniform(0, 1) ** 2 * 30,
                "growth_spread": rng.uniform(0, 0.3),
                "diffusivity_px2": 10 ** rng.uniform(-2, 0.7),
                "pixel_size_nm": 10 ** rng.uniform(-0.5, 0.3),
                "particles": int(rng.integers(10, 150)),
                "amorphous_contrast": float(rng.choice([0.0, 0.0, 1.0, 3.0])),
            },
        )
    for drift in 3 * ((0.0, 0.0), (0.005, 0.01), (0.0, 0.0), (0.02, 0.045)):
        for size in (0.0133, 0.02):
            yield "stem-mos2", {"drift_nm_per_s": drift, "pixel_size_nm": size}
    for turn in 4 * (0.0, 0.3, 1.0, 3.0):
        yield (
            "sparse-counting",
            {"rotation_deg": turn, "diffusivity_px2": 10 ** rng.uniform(-1.5, 0.3)},
        )


def scene(k: int) -> np.ndarray | None:
    """Return the truth of a simulated movie, ``(t, y, x)``, standardised."""
    name, parameters = list(scenes())[k]
    try:
        made = SCENES[name](frames=FRAMES, size=256, seed=9000 + k, **parameters)
    except ShineError as error:  # particles that find no place
        print(f"left out: {name} {parameters}: {error}", flush=True)
        return None
    return standardised(np.asarray(made.truth.data)[:])


def drawn(k: int) -> np.ndarray:
    """Return a drawn scene, ``(9, y, x)``, standardised."""
    rng = np.random.default_rng([0, 1, k])
    drift = rng.normal(0, rng.choice([0.0, 0.3, 1.5, 4.0]), 2)
    return standardised((texture if rng.random() < 1 / 3 else objects)(rng, drift))


def standardised(movie: np.ndarray) -> np.ndarray:
    """Return float32 pixels of mean 0 and standard deviation 1."""
    return np.asarray((movie - movie.mean()) / (movie.std() + 1e-6), np.float32)


def texture(rng: np.random.Generator, drift: np.ndarray) -> np.ndarray:
    """Return ``(9, y, x)`` of a random texture that drifts and changes."""
    fy, fx = np.fft.fftfreq(WIDE)[:, None], np.fft.rfftfreq(WIDE)[None]
    f = np.hypot(fy, fx)
    f[0, 0] = 1
    power = f ** -rng.uniform(1, 3) / (1 + (f * rng.uniform(0.5, 6)) ** 4)
    kept = rng.choice([1.0, 0.95, 0.8, 0.0])

    def fresh() -> np.ndarray:
        return rng.normal(size=f.shape) + 1j * rng.normal(size=f.shape)

    waves, out = fresh(), []
    for k in range(9):
        if k:
            waves = kept * waves + math.sqrt(1 - kept**2) * fresh()
        moved = np.exp(-2j * np.pi * k * (fy * drift[0] + fx * drift[1]))
        out.append(np.fft.irfft2(waves * power * moved, s=(WIDE, WIDE)))
    return np.stack(out)


def objects(rng: np.random.Generator, drift: np.ndarray) -> np.ndarray:
    """Return ``(9, y, x)`` of discs, of lattices or of discs with lattices, that move."""
    y, x = np.mgrid[:WIDE, :WIDE].astype(np.float32)
    count = int(rng.integers(1, 25))
    radius, weight = rng.uniform(3, 40, count), rng.normal(1, 0.4, count)
    place, angle = rng.uniform(0, WIDE, (count, 2)), rng.uniform(0, np.pi, count)
    jump, way = rng.choice([0.0, 0.3, 1.0, 3.0]), rng.normal(0, 1, (count, 2))
    period, soft = rng.uniform(3, 16), rng.uniform(0.5, 3)
    kind = rng.choice(["discs", "lattices", "one lattice"], p=[0.4, 0.4, 0.2])
    out = np.zeros((9, WIDE, WIDE), np.float32)
    for frame in out:
        place = place + drift / 3 + jump * (0.5 * rng.normal(size=(count, 2)) + 0.3 * way)
        angle = angle + rng.normal(0, 0.03, count)
        for i in range(1 if kind == "one lattice" else count):
            dy, dx = y - place[i, 0], x - place[i, 1]
            disc = 1 / (1 + np.exp(np.clip((np.hypot(dy, dx) - radius[i]) / soft, -30, 30)))
            if kind == "discs":
                frame += weight[i] * disc
                continue
            turns = angle[i] + np.arange(3) * np.pi / 3
            waves = sum(
                np.cos(2 * np.pi / period * (dy * np.sin(a) + dx * np.cos(a))) for a in turns
            )
            frame += waves if kind == "one lattice" else weight[i] * disc * (waves + 0.5)
    return out


class Lessons(Dataset[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]):
    """Clean windows by training step: ``(hole, shift, signals, shares, seed)``.

    Every batch has one hole (its place in `HOLES`) and one number of neighbours out of place.
    """

    def __init__(self, several: list[list[np.ndarray]], batch: int, steps: int, seed: int) -> None:
        self.several, self.batch, self.steps, self.seed = several, batch, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, step])
        hole = int(rng.integers(len(HOLES)))
        shift = int(rng.choice([0, 1, 2], p=[2 / 3, 1 / 6, 1 / 6]))
        signals = np.stack([self._signal(rng, shift) for _ in range(self.batch)])
        snr = 10 ** (rng.uniform(*SNR_DB, self.batch) / 10)
        return (
            hole,
            shift,
            signals,
            (snr / (1 + snr)).astype(np.float32),
            rng.integers(2**31, size=1),
        )

    def _signal(self, rng: np.random.Generator, shift: int) -> np.ndarray:
        offsets = np.array(window_offsets(5, shift))
        simulated, drawn = self.several
        movies = simulated if rng.random() < 0.6 else drawn
        movie = movies[int(rng.integers(len(movies)))]
        t = int(rng.integers(-offsets.min(), len(movie) - offsets.max()))
        top, left = rng.integers(0, movie.shape[1] - CROP + 1, 2)
        signal = movie[t + offsets, top : top + CROP, left : left + CROP]
        # A crop of the movie: brighter or darker than the rest, with more or less in it.
        signal = (signal - 0.5 * signal.mean()) / max(float(signal.std()), 0.5)
        signal = np.rot90(signal, int(rng.integers(4)), (1, 2))
        if rng.integers(2):
            signal = signal[:, :, ::-1]
        return np.ascontiguousarray(-signal if rng.random() < 0.3 else signal, np.float32)


def noise(signal: Tensor, hole: Hole, seed: int) -> Tensor:
    """Return noise of unit variance for ``(b, t, y, x)``, uncorrelated beyond the hole."""
    rng = np.random.default_rng(seed)
    draw = torch.Generator(signal.device).manual_seed(seed)
    b, frames = signal.shape[:2]
    edge = 8
    shape = (frames, b, CROP + 2 * edge, CROP + 2 * edge)
    n = torch.randn(shape, generator=draw, device=signal.device)
    counted = rng.random(b) < 0.2
    if counted.any():
        counts = torch.tensor(10 ** rng.uniform(-0.7, 1.5, counted.sum()), dtype=torch.float32)
        mean = counts.to(signal.device)[:, None, None].expand(frames, -1, *shape[2:])
        n[:, counted] = (torch.poisson(mean, generator=draw) - mean) / mean.sqrt()
    blurred = rng.random(b) < (0.85 if max(hole) > 1 else 0)
    for axis, m in enumerate(hole):
        widths = blurred * rng.uniform(0.25, 0.45, b) * min(m // 2, 3)
        x = np.arange(-edge, edge + 1)
        kernels = np.exp(-0.5 * (x / np.maximum(widths, 1e-3)[:, None]) ** 2)
        kernels = torch.tensor(kernels, dtype=torch.float32, device=signal.device)
        size = (b, 1, -1, 1) if axis == 0 else (b, 1, 1, -1)
        n = F.conv2d(n, kernels.view(size), groups=b, padding="same")
    n = n[..., edge:-edge, edge:-edge].transpose(0, 1)
    n = n / n.std((1, 2, 3), keepdim=True)
    with_signal = torch.tensor(
        (rng.random(b) < 0.5) * rng.uniform(0, 0.5, b), dtype=torch.float32, device=signal.device
    )[:, None, None, None]
    return n * (1 + with_signal * signal).clamp(0.2, 3).sqrt()


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=24_000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    keep_freed_memory()
    device = pick_device(given.device)
    precision = pick_precision(device)
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        simulated = [m for m in pool.map(scene, range(len(list(scenes())))) if m is not None]
        print(f"simulated {len(simulated)} movies", flush=True)
        others = list(pool.map(drawn, range(DRAWN), chunksize=8))
        print(f"drew {len(others)} scenes", flush=True)
    lessons = Lessons([simulated, others], given.batch, given.steps, given.seed)
    workers = max(1, cores - 2)
    loader = DataLoader(
        lessons, batch_size=None, num_workers=workers, prefetch_factor=max(2, 24 // workers)
    )
    torch.manual_seed(given.seed)
    network = build(NetworkConfig()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    average = {k: v.detach().clone() for k, v in named.items()}
    several = optimisers("muon", named, RATE)
    for optimiser in several:
        if isinstance(optimiser, Muon):
            optimiser.momentum = MOMENTUM
    begun, losses = time.monotonic(), []
    for step, (number, shift, signal, share, seed) in enumerate(loader):
        rate = learning_rate(RATE, step, given.steps, warmup=0.02, decay="linear")
        set_rate(several, rate)
        signal, share = signal.to(device), share.to(device)
        share = share.clamp(min=QUIETEST)
        part = share[:, None, None, None]
        clean = part.sqrt() * signal
        windows = clean + (1 - part).sqrt() * noise(signal, HOLES[number], int(seed))
        windows = windows.contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            predicted = network(windows, [HOLES[number]], shift)[0]
        error = (predicted.float() - clean[:, 2]).square().mean((1, 2))
        loss = (error / share**LOUDNESS).mean()
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in several:
            optimiser.step()
            if isinstance(optimiser, Muon):
                (group,) = optimiser.param_groups
                kernels = [p.data for p in group["params"]]
                torch._foreach_mul_(kernels, 1 - SHRINK * group["lr"])
        kept = min(0.5 ** (1 / HALF_LIFE), step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(named.values()), 1 - kept)
        losses.append(loss.detach())
        if (step + 1) % 500 == 0:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            print(
                f"{step + 1} steps, {time.monotonic() - begun:.0f} s, loss {mean:.4f}", flush=True
            )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    made = {"steps": str(given.steps), "batch": str(given.batch), "seed": str(given.seed),
            "torch": torch.__version__}  # fmt: skip
    # Not `save_file`: it makes files that only their owner may read.
    kept_weights = {k: v.to("cpu").contiguous() for k, v in average.items()}
    given.output.write_bytes(save(kept_weights, made))


if __name__ == "__main__":
    main()
