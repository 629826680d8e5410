"""The weights that training begins with: a lean network taught on simulated movies.

Run once to make ``src/shine_em/starting_point.safetensors``; nobody needs it to denoise movies.

    python scripts/make_starting_point.py OUTPUT [--steps 4000] [--seed 0]      # about ten minutes

What a network learns first, in some hundred steps, is the same for every movie: to average over
time and space, to tell edges and lattices from noise. Here it learns that from scenes whose truth
is known, so that its targets hold no noise. Half of the examples come from this project's own
simulators (growing Au particles, HAADF STEM of MoS2, sparse counting; seeds that nothing else
uses), half are drawn: textures of any smoothness, discs and lattices that drift, turn and jump.
Each gets noise of its own kind: counted or Gaussian, white or correlated within the hole, constant
or growing with the signal, from -25 to +8 dB. The Pt scenes are left out, to be tested on.

The result is never used as it is: each job trains it on the user's movie alone.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from scipy.ndimage import gaussian_filter

from shine_em.linear import window_offsets
from shine_em.network import Hole, NetworkConfig, build
from shine_em.optimiser import Muon, optimisers, set_rate
from shine_em.pacing import learning_rate
from shine_em.simulate import SCENES

CROP, BATCH, FRAMES = 128, 2, 16
RATE, HALF_LIFE = 2e-3, 140  # peak learning rate; steps over which weights are averaged
MOMENTUM = 0.95  # of the shipped weights; trainings on a movie have less
SNR_DB = (-25.0, 8.0)
# Quiet examples must count beside loud ones, whose squared errors are larger.
LOUDNESS, QUIETEST = 0.7, 0.003
HOLES: tuple[Hole, ...] = (
    (1, 1), (3, 3), (5, 5), (7, 7), (9, 9), (1, 3), (3, 1), (1, 5), (5, 1), (3, 7), (7, 3)
)  # fmt: skip
SIMULATED: tuple[tuple[str, dict[str, float]], ...] = (
    ("au-growth", {}),
    ("au-growth", {"final_diameter_nm": 30.0, "diffusivity_px2": 1.0}),
    (
        "au-growth",
        {"initial_diameter_nm": 3.0, "final_diameter_nm": 8.0, "amorphous_contrast": 1.0},
    ),
    ("au-growth", {"pixel_size_nm": 0.5, "diffusivity_px2": 2.0, "amorphous_contrast": 3.0}),
    ("au-growth", {"pixel_size_nm": 2.0, "growth_spread": 0.5}),
    *((("stem-mos2", {}),) * 3),
    *((("sparse-counting", {}),) * 3),
)


def simulated() -> list[np.ndarray]:
    """Return the truths of simulated movies, ``(t, y, x)``, standardised."""
    movies = []
    for k, (name, changes) in enumerate(SIMULATED):
        scene = SCENES[name](frames=FRAMES, size=256, seed=9000 + k, **changes)
        truth = np.asarray(scene.truth.data)[:].astype(np.float32)
        movies.append((truth - truth.mean()) / truth.std())
        print(f"simulated {name} {changes}", flush=True)
    return movies


def texture(rng: np.random.Generator, drift: np.ndarray) -> np.ndarray:
    """Return ``(9, y, x)`` of a random texture that drifts and changes."""
    fy, fx = np.fft.fftfreq(CROP)[:, None], np.fft.rfftfreq(CROP)[None]
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
        out.append(np.fft.irfft2(waves * power * moved, s=(CROP, CROP)))
    return np.stack(out)


def objects(rng: np.random.Generator, drift: np.ndarray) -> np.ndarray:
    """Return ``(9, y, x)`` of discs, of lattices or of discs with lattices, that move."""
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32)
    count = int(rng.integers(1, 25))
    radius, weight = rng.uniform(3, 40, count), rng.normal(1, 0.4, count)
    place, angle = rng.uniform(0, CROP, (count, 2)), rng.uniform(0, np.pi, count)
    jump, way = rng.choice([0.0, 0.3, 1.0, 3.0]), rng.normal(0, 1, (count, 2))
    period, soft = rng.uniform(3, 16), rng.uniform(0.5, 3)
    kind = rng.choice(["discs", "lattices", "one lattice"], p=[0.4, 0.4, 0.2])
    out = np.zeros((9, CROP, CROP), np.float32)
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


def noise(rng: np.random.Generator, signal: np.ndarray, hole: Hole) -> np.ndarray:
    """Return noise of unit variance for ``(t, y, x)``, uncorrelated beyond the hole."""
    edge = 8
    shape = (len(signal), CROP + 2 * edge, CROP + 2 * edge)
    if rng.random() < 0.2:
        counts = 10 ** rng.uniform(-0.7, 1.5)
        n = (rng.poisson(counts, shape) - counts) / math.sqrt(counts)
    else:
        n = rng.normal(size=shape)
    if max(hole) > 1 and rng.random() < 0.85:
        blur = [rng.uniform(0.25, 0.45) * min(m // 2, 3) for m in hole]
        n = gaussian_filter(n, (0, *blur), truncate=4)
    n = n[:, edge:-edge, edge:-edge]
    n = n / n.std()
    if rng.random() < 0.5:
        n = n * np.sqrt(np.clip(1 + rng.uniform(0, 0.5) * signal, 0.2, 3))
    return np.asarray(n)


def example(
    rng: np.random.Generator, movies: list[np.ndarray], hole: Hole, shift: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a noisy window, its clean centre frame, and the picture's share of the variance."""
    offsets = np.array(window_offsets(5, shift))
    if rng.random() < 0.5:
        movie = movies[int(rng.integers(len(movies)))]
        t = int(rng.integers(-offsets.min(), len(movie) - offsets.max()))
        top, left = rng.integers(0, movie.shape[1] - CROP + 1, 2)
        signal = movie[t + offsets, top : top + CROP, left : left + CROP]
        signal = (signal - signal.mean()) / max(float(signal.std()), 0.3)
    else:
        drift = rng.normal(0, rng.choice([0.0, 0.3, 1.5, 4.0]), 2)
        drawn = (texture if rng.random() < 1 / 3 else objects)(rng, drift)
        signal = ((drawn - drawn.mean()) / (drawn.std() + 1e-6))[4 + offsets]
    signal = np.rot90(signal, int(rng.integers(4)), (1, 2))
    if rng.integers(2):
        signal = signal[:, :, ::-1]
    if rng.random() < 0.3:
        signal = -signal
    snr = 10 ** (rng.uniform(*SNR_DB) / 10)
    share = snr / (1 + snr)
    clean = math.sqrt(share) * signal
    noisy = clean + math.sqrt(1 - share) * noise(rng, signal, hole)
    return noisy.astype(np.float32), clean[2].astype(np.float32), share


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    movies = simulated()
    torch.manual_seed(given.seed)
    network = build(NetworkConfig()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    average = {k: v.detach().clone() for k, v in named.items()}
    several = optimisers("muon", named, RATE)
    for optimiser in several:
        if isinstance(optimiser, Muon):
            optimiser.momentum = MOMENTUM

    def batch(step: int) -> tuple[Hole, int, torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([given.seed, step])
        hole = HOLES[int(rng.integers(len(HOLES)))]
        shift = int(rng.choice([0, 1, 2], p=[2 / 3, 1 / 6, 1 / 6]))
        windows, clean, shares = zip(
            *(example(rng, movies, hole, shift) for _ in range(BATCH)), strict=True
        )
        share = torch.tensor(shares, dtype=torch.float32).clamp(min=QUIETEST)
        return (
            hole,
            shift,
            torch.from_numpy(np.stack(windows)),
            torch.from_numpy(np.stack(clean)),
            share,
        )

    begun, losses = time.monotonic(), []
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(batch, 0)
        for step in range(given.steps):
            hole, shift, windows, clean, share = coming.result()
            coming = loader.submit(batch, step + 1)
            rate = learning_rate(RATE, step, given.steps, warmup=0.05)
            set_rate(several, rate)
            windows = windows.contiguous(memory_format=torch.channels_last)
            error = (network(windows, [hole], shift)[0] - clean).square().mean((1, 2))
            loss = (error / share**LOUDNESS).mean()
            network.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for optimiser in several:
                optimiser.step()
            kept = min(0.5 ** (1 / HALF_LIFE), step / (step + 10))
            with torch.no_grad():
                for k, v in named.items():
                    average[k].lerp_(v.detach(), 1 - kept)
            losses.append(loss.item())
            if (step + 1) % 200 == 0:
                spent = time.monotonic() - begun
                print(
                    f"{step + 1} steps, {spent:.0f} s, loss {np.mean(losses[-200:]):.4f}",
                    flush=True,
                )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    made = {"steps": str(given.steps), "seed": str(given.seed), "torch": torch.__version__}
    # Not `save_file`: it makes files that only their owner may read.
    given.output.write_bytes(save({k: v.contiguous() for k, v in average.items()}, made))


if __name__ == "__main__":
    main()
