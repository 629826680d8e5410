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
from .noise_spectrum import noise_colour
from .noise_synthesis import distribution_of, noise_values
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
    """Return the noise statistics with variance against signal and distribution measured anew.

    Differences of frames take for noise what moves, and a lattice moves everywhere: their line came
    out up to twice too steep on simulated ones that drift. In what was removed nothing moves. The
    mean variance stays what it was, for what was removed holds the denoiser's error as well, or
    lacks a little noise where a hole is smaller than the measured one.

    How the noise is distributed is seen nowhere else: differences of frames are not skewed.

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it.
    model
        What is removed is what its ensemble removes, without correction or student, which put back
        some of the noise. The signal is told through the hole next in size to the one that the
        noise asks for: of what a smaller one hands on, and of the tails of the correlation, nothing
        may be in it (a real movie, whose noise is skewed, had twice the gain then).
    device, precision, tile
        As for `Denoiser`.
    """
    if not noise.sigma > 0:
        return noise
    holes = model.state.settings.holes or (model.hole,)
    larger = holes[min(1, len(holes) - 1)]
    uncorrected = replace(model, student=None, correction=None)
    best, blind = (
        Denoiser(uncorrected, device=device, precision=precision, holes=some, tile=tile)
        for some in (None, [larger])
    )
    bad = np.asarray(health.bad_pixels, bool)
    pixels: list[list[np.ndarray]] = [[], [], []]  # blind, denoised, raw
    values: list[np.ndarray] = []
    colour = noise_colour(noise.difference_correlation, bad.shape)
    picked = Timeline(len(movie), health).spread(_FRAMES)
    each = math.isqrt(len(picked) * bad.size // _PIXELS) + 1  # row and column
    streams = (d.stream(movie, health, frames=picked) for d in (blind, best))
    for (_, raw, apart), (_, _, denoised) in zip(*streams, strict=True):
        good = model.normalisation.trusted(raw, bad)
        values.append(noise_values(raw, denoised, good, noise, colour)[:: each**2])
        for kept, frame in zip(pixels, (apart, denoised, raw), strict=True):
            kept.append(frame[::each, ::each][good[::each, ::each]].astype(float))
    if not sum(map(len, pixels[0])):
        return noise
    sorting, clean, noisy = map(np.concatenate, pixels)
    curve = fit_removed(
        sorting, clean, noisy, noise.mean_variance,
        independent=1 / float((noise.difference_correlation**2).sum()),
        mean=float(noise_variance(noise, noisy, floor=False).mean()),
    )  # fmt: skip
    return replace(noise, mean_variance=curve, distribution=distribution_of(np.concatenate(values)))
