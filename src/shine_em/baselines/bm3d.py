"""BM3D: block matching and collaborative filtering, by its authors' own package.

The package bm3d is free for non-commercial use only; nothing else of shine-em depends on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from ..noise import NoiseStatistics
from ..noise_spectrum import periodic_power
from .filters import finite, map_frames, noise_covariance

__all__ = ["bm3d", "bm3d_correlated", "noise_power"]

_SMALLEST = 16  # px; BM3D crashes where its 8×8 blocks have no room to be moved
# BM3D divides by the noise power: none may be nearly zero.
_LEAST_POWER = 0.01


def bm3d(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Denoise every frame with BM3D for white noise of the measured standard deviation.

    The default profile ("np") is used, the low-complexity one (larger steps between the blocks, a
    narrower search) where the first frame shows that a time budget needs it, and only the first of
    its two stages (hard thresholding) where that would still take too long, even where this does
    not fit either. The movie's history, and the benchmark's table with it, tells which.

    Parameters are those of `shine_em.baselines.Method.run`; ``hole``, ``seed`` and ``device`` have
    no effect.

    Raises
    ------
    ShineError
        If frames are smaller than 16 pixels.

    References
    ----------
    K. Dabov, A. Foi, V. Katkovnik, K. Egiazarian, Image denoising by sparse 3-D transform-domain
    collaborative filtering. IEEE Trans. Image Process. 16, 2080-2095 (2007).
    """
    covariance = noise_covariance(movie, noise)
    sigma = float(np.sqrt(covariance.max()))
    return _run(movie, sigma, f"white noise of σ {sigma:.4g}", time_budget_s, progress)


def bm3d_correlated(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Denoise every frame with BM3D for correlated noise of the measured power spectrum.

    Its thresholds follow from the spectrum, as its authors tuned them. Time budget and parameters
    as for `bm3d`.

    Raises
    ------
    ShineError
        If frames are smaller than 16 pixels.

    References
    ----------
    Y. Mäkinen, L. Azzari, A. Foi, Collaborative filtering of correlated noise: exact
    transform-domain variance for improved shrinkage and patch matching. IEEE Trans. Image Process.
    29, 8339-8354 (2020).
    """
    power = noise_power(noise_covariance(movie, noise), movie.shape[1:])
    return _run(movie, power, "measured noise spectrum", time_budget_s, progress)


def noise_power(covariance: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the expected power of the noise's discrete Fourier transform.

    Parameters
    ----------
    covariance
        ``(2R+1, 2R+1)`` noise covariance.
    shape
        Height and width of a frame, px.

    Returns
    -------
    ndarray
        ``shape``: ⟨|FFT of the noise|²⟩ without any normalisation, so its mean is pixels times
        variance; at least 1 % of that mean, at every frequency.
    """
    radius = covariance.shape[0] // 2
    pixels = shape[0] * shape[1]
    power = periodic_power(covariance, shape) * pixels
    return np.maximum(power, _LEAST_POWER * covariance[radius, radius] * pixels)


def _run(
    movie: Movie,
    noise: float | np.ndarray,
    words: str,
    time_budget_s: float | None,
    progress: Callable[[str, float], None] | None,
) -> Movie:
    package = _package()
    if min(movie.shape[1:]) < _SMALLEST:
        raise ShineError(
            f"{movie.name}: BM3D needs frames of {_SMALLEST} px and more, "
            f"not {movie.shape[1]}×{movie.shape[2]}."
        )
    if not np.max(noise) > 0:  # nothing to remove
        return map_frames(movie, lambda f: f, did="BM3D left it: no noise", progress=progress)
    workers = min(8, os.cpu_count() or 1)

    def way(profile: Any, stage: Any) -> Callable[[np.ndarray], np.ndarray]:
        settings = profile()
        # One thread per frame: several would sum in changing order.
        settings.num_threads = 1
        return lambda frame: np.asarray(package.bm3d(frame, noise, settings, stage_arg=stage))

    both, first = package.BM3DStages.ALL_STAGES, package.BM3DStages.HARD_THRESHOLDING
    ways = {  # from the quickest to the best
        ", low-complexity profile, first stage alone": way(package.BM3DProfileLC, first),
        ", low-complexity profile": way(package.BM3DProfileLC, both),
        "": way(package.BM3DProfile, both),
    }
    chosen = "" if time_budget_s is None else next(iter(ways))
    sample = finite(movie.frame(0).astype(np.float32))
    if time_budget_s is not None and sample is not None:
        left = time_budget_s
        for name, denoise in ways.items():
            started = time.monotonic()
            denoise(sample)
            spent = time.monotonic() - started
            left -= spent
            if spent * len(movie) / workers > left:
                break
            chosen = name
    did = f"BM3D, {words}{chosen}"
    return map_frames(movie, ways[chosen], did=did, progress=progress, workers=workers)


def _package() -> Any:
    import bm3d
    import bm4d

    # bm4d 4.2.5 still calls np.trapz, which NumPy 2.4 no longer has.
    if not isinstance(bm4d.np, _NumPyWithTrapz):
        bm4d.np = _NumPyWithTrapz("numpy")
    return bm3d


class _NumPyWithTrapz(ModuleType):
    trapz = staticmethod(np.trapezoid)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
