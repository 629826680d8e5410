r"""The standard error of every denoised pixel: noise is added anew, and denoised again.

What a denoiser makes of a picture is seen where the picture is known. The denoised movie
:math:`\hat x` is such a picture, close to the true one: noise :math:`n'` of the measured kind is
added to it, and that movie is denoised as the real one was (a parametric bootstrap). By how much
the result is off, :math:`d = \hat x(\hat x + n') - \hat x`, is one sample of the error, and its
mean square over neighbouring pixels, :math:`b`, its variance.

The denoised movie is smoother than the truth. What the denoiser blurs has gone from it already, so
that :math:`b` says too little where the picture is steep, and most on an edge for itself; in flat
parts, where noise that was left over counts as picture, it says too much. With :math:`G` and
:math:`G_2`, the squared slope of the denoised picture (per pixel) as Gaussians of 1 and 2 px smooth
it, the squared error of trained networks follows

.. math:: e^2 = 1.55\, b\, (G / b)^{1/5}\, (G / G_2)^{3/4}

on simulated movies of several kinds, doses and lengths of training, without a number that would
have to be fitted to each of them: what was measured is in docs/uncertainty.md. All squares are in
squared units of the movie.

Where results are corrected (`shine_em.correction`), the movie that noise is added to is the
uncorrected one, and :math:`d` is how far the corrected result is off it.

References
----------
B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (Chapman & Hall, 1993), ch. 6.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .doctor import Health
from .errors import ShineError
from .movie import Movie
from .noise import NoiseStatistics
from .noise_synthesis import Renewed, SyntheticNoise

if TYPE_CHECKING:
    from .checkpoint import Model
    from .denoising import Denoiser

__all__ = [
    "WITHIN_68",
    "WITHIN_95",
    "ErrorMaps",
    "check_possible",
    "error_history",
    "error_map",
    "mapping_s",
]

# By how many standard errors 68 and 95 of 100 pixels are off at most, as measured on simulated
# movies; 1 and 1.96 for normal errors whose spread is known exactly.
WITHIN_68, WITHIN_95 = 1.0, 2.4

_NEAR, _SLOPE, _WIDE = 1.5, 1.0, 2.0  # px: Gaussian widths of b, G and G2
_FACTOR, _STEEP, _ALONE = 1.55, 0.2, 0.75  # of the law
# Of the noise variance: less of b, of a squared slope, is not told from nothing.
_LEAST, _FLAT = 1e-6, 1e-8
_WEAK = 0.004  # mean squared error, of the noise variance, below which much may be missing unseen
_OTHER = (0.5, 4.0)  # residual, of the noise variance, outside of which it is not that noise


class ErrorMaps:
    """Denoises a movie and says how far each pixel may be off.

    It takes as long again as denoising alone: every frame is denoised twice.

    Parameters
    ----------
    denoiser, movie, health, noise
        What denoises, and what.
    seed
        Of the noise that is added.

    Raises
    ------
    ShineError
        If no noise could be measured.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        *,
        seed: int = 0,
    ) -> None:
        check_possible(movie, noise)
        self.denoiser, self.movie, self.health, self.noise = denoiser, movie, health, noise
        self.seed = seed
        self.bad = np.asarray(health.bad_pixels, bool)
        self.squares = self.residuals = 0.0
        self.pixels = self.trusted = 0

    def stream(
        self, sink: Callable[[int, np.ndarray], None]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Denoise frames one by one, in order; memory does not grow with the movie's length.

        Parameters
        ----------
        sink
            Called as ``sink(t, standard_error)`` for every frame; ``(y, x)`` float32 in the
            movie's units, NaN for blank frames, which hold no picture.

        Yields
        ------
        t, raw, denoised
            As `Denoiser.stream` does.
        """
        # The same truth as that on which a correction was fitted: without it.
        renewed = Renewed(
            self.denoiser.uncorrected(), self.movie, self.health, self.noise, self.seed
        )
        again = self.denoiser.stream(
            self.movie.with_data(renewed, did="denoised, noise added anew"), self.health
        )
        for t, _, twice in again:
            raw, known = renewed.known(t)
            if self.health.blank[t]:
                error, denoised = np.full(known.shape, np.nan, np.float32), known
            else:
                denoised = self.denoiser.corrected(raw, known, self.bad)
                error = error_map(denoised, twice - known, self.noise.sigma)
                self._add(raw, denoised, error)
            sink(t, error)
            yield t, raw, denoised

    def _add(self, raw: np.ndarray, denoised: np.ndarray, error: np.ndarray) -> None:
        good = self.denoiser.model.normalisation.trusted(raw, self.bad)
        self.squares += float((error.astype(float) ** 2).sum())
        self.residuals += float(((raw.astype(float) - denoised)[good] ** 2).sum())
        self.pixels += error.size
        self.trusted += int(good.sum())

    @property
    def doubtful(self) -> bool:
        """Whether, of the frames so far, more may be missing than the map says.

        So it is where the picture is so weak that next to nothing comes out at all, and where the
        residual is not noise of the measured kind.
        """
        variance = self.noise.sigma**2
        weak = self.squares < _WEAK * variance * self.pixels
        low, high = (share * variance * self.trusted for share in _OTHER)
        return weak or not low <= self.residuals <= high

    def warnings(self) -> tuple[str, ...]:
        """Return what to say of the map, if anything, once all frames are done."""
        if not self.doubtful:
            return ()
        return (
            "The uncertainty map may be far too narrow: the picture is too weak to tell what of it "
            "the denoised movie misses, or its noise is not of the measured kind. Do not rely on "
            "it.",
        )


def error_map(denoised: np.ndarray, off: np.ndarray, sigma: float) -> np.ndarray:
    """Return the standard error of every pixel of a frame; see the module.

    Parameters
    ----------
    denoised
        The denoised frame, ``(y, x)``, movie units.
    off
        By how much it changes where it is denoised once more, with new noise.
    sigma
        Standard deviation of the noise, movie units.
    """
    # From the mean absolute value: at an edge, less of the other side bleeds in.
    near = ndimage.gaussian_filter(np.abs(off.astype(float)), _NEAR, mode="nearest")
    again = np.pi / 2 * near**2 + _LEAST * sigma**2
    flat = np.full(denoised.shape, _FLAT * sigma**2)
    axes = [axis for axis in (0, 1) if denoised.shape[axis] > 1]
    steep = [np.abs(np.gradient(denoised.astype(float), axis=axis)) for axis in axes]
    slope, wide = (
        sum((ndimage.gaussian_filter(s, width, mode="nearest") ** 2 for s in steep), flat)
        for width in (_SLOPE, _WIDE)
    )
    squared = _FACTOR * again * (slope / again) ** _STEEP * (slope / wide) ** _ALONE
    return np.asarray(np.sqrt(squared).astype(np.float32))


def check_possible(movie: Movie, noise: NoiseStatistics) -> None:
    """Refuse a movie for which no uncertainty can be told, before anything is trained.

    Raises
    ------
    ShineError
        If no noise could be measured.
    """
    if not noise.sigma > 0:
        raise ShineError(
            f"{movie.name}: no noise could be measured, so no uncertainty can be told. Leave "
            "out --uncertainty."
        )


def mapping_s(movie: Movie, noise: NoiseStatistics) -> float:
    """Return the seconds that a frame's map takes beside denoising, measured on one."""
    frame = movie.frame(len(movie) // 2).astype(float)
    made = SyntheticNoise(noise, movie.shape[1:], 0)
    begun = time.monotonic()
    error_map(frame, made(0, frame), noise.sigma)
    return time.monotonic() - begun


def error_history(model: Model | None) -> str:
    """Return the line that an uncertainty map's history gets."""
    seed = "" if model is None else f", seed {model.state.settings.seed}"
    return f"standard error of each pixel as denoised by shine-em{seed}"
