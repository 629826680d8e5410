"""What a trained model removes, as a measure of the noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from .checkpoint import Model
from .denoising import Denoiser
from .doctor import Health
from .error_estimate import noise_variance
from .mean_variance import fit_removed
from .movie import Movie
from .noise import NoiseStatistics
from .patches import Timeline

__all__ = ["noise_removed"]

_FRAMES = 5  # looked at: of 192×192 px enough to know the gain within 8 %
_PIXELS = 2_000_000  # of them all, more than which tell no more: memory stays small


def noise_removed(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    tile: int | None = None,
) -> NoiseStatistics:
    """Return the noise statistics with the variance against the signal measured once more.

    Differences of frames take for noise what moves, and a lattice moves everywhere: their line came
    out up to twice too steep on simulated ones that drift. In what was removed nothing moves. The
    mean variance stays what it was, for what was removed holds the denoiser's error as well, or
    lacks a little noise where a hole is smaller than the measured one.

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it.
    model
        Its blind prediction is used: neither student nor correction, which put back some of the
        noise.
    device, precision, tile
        As for `Denoiser`.
    """
    if not noise.sigma > 0:
        return noise
    blind = replace(model, student=None, correction=None)
    denoiser = Denoiser(blind, device=device, precision=precision, tile=tile)
    bad = np.asarray(health.bad_pixels, bool)
    signal, squares, known = [], [], []
    targets = Timeline(len(movie), health).targets()
    picked = [targets[i] for i in np.unique(np.linspace(0, len(targets) - 1, _FRAMES).astype(int))]
    each = math.isqrt(len(picked) * bad.size // _PIXELS) + 1  # row and column
    for _, raw, denoised in denoiser.stream(movie, health, frames=picked):
        good = model.normalisation.trusted(raw, bad)[::each, ::each]
        noisy, clean = (a[::each, ::each][good].astype(float) for a in (raw, denoised))
        signal.append(clean)
        squares.append((noisy - clean) ** 2)
        known.append(noise_variance(noise, noisy, floor=False))
    removed = np.concatenate(squares) if squares else np.zeros(0)
    if not removed.any():
        return noise
    independent = 1 / float((noise.difference_correlation**2).sum())
    curve = fit_removed(
        np.concatenate(signal), removed, noise.mean_variance, independent=independent,
        mean=float(np.concatenate(known).mean()),
    )  # fmt: skip
    return replace(noise, mean_variance=curve)
