"""Estimated squared errors, with their statistics: what `error_estimate` measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ShineError

__all__ = ["ErrorEstimate", "ErrorMatrix", "block_sums", "mean_and_error"]

# How well the noise variance is known, of itself: see docs/error.md.
_NOISE_KNOWN = 0.01
_BLOCK = 32  # px: errors of blocks this wide are as good as independent


@dataclass(frozen=True, eq=False)
class ErrorEstimate:
    """An estimated mean squared error, movie units squared.

    Attributes
    ----------
    mse
        Mean squared error per pixel; may come out negative where it is within its error of zero.
    standard_error
        Statistical, from the scatter between blocks of pixels. Not in it: the error of the noise
        variance, which shifts all estimates of a movie alike.
    residual, noise_variance, divergence
        The three terms: ``mse = residual − noise_variance + divergence``.
    frames
        The frames that were looked at.
    per_frame, per_frame_error
        ``(frames,)`` the same for each frame alone.
    blocks, counts
        ``(n,)`` summed squared error and number of pixels of every block.
    """

    mse: float
    standard_error: float
    residual: float
    noise_variance: float
    divergence: float
    frames: tuple[int, ...]
    per_frame: np.ndarray
    per_frame_error: np.ndarray
    blocks: np.ndarray
    counts: np.ndarray

    @property
    def uncertainty(self) -> float:
        """Standard uncertainty of the mean squared error, that of the noise variance included."""
        return float(np.hypot(self.standard_error, _NOISE_KNOWN * self.noise_variance))

    def psnr(self, data_range: float) -> float:
        """Return the estimated PSNR in dB by the "range" protocol; inf where no error is seen.

        Parameters
        ----------
        data_range
            Maximum − minimum of the noise-free picture, movie units.
        """
        return float(10 * np.log10(data_range**2 / self.mse)) if self.mse > 0 else float("inf")

    def minus(self, other: ErrorEstimate) -> tuple[float, float]:
        """Return the difference of two mean squared errors and its (paired) standard error.

        The noise variance drops out, as does most of the scatter.

        Raises
        ------
        ShineError
            If the two do not come from the same pixels.
        """
        if not np.array_equal(self.counts, other.counts) or self.frames != other.frames:
            raise ShineError("Error estimates of different frames or pixels cannot be compared.")
        return mean_and_error(self.blocks - other.blocks, self.counts)


@dataclass(frozen=True, eq=False)
class ErrorMatrix:
    """``M[i, j] = E[(x̂ᵢ − s)(x̂ⱼ − s)]`` of several denoisers, from which any mean of them follows.

    Attributes
    ----------
    frames, frame
        The frames that were looked at; ``(n,)`` which of them each block belongs to.
    counts
        ``(n,)`` trusted pixels of each block.
    products
        ``(n, k, k)`` sums of the residuals' products ``(y − x̂ᵢ)(y − x̂ⱼ)``.
    handed_on
        ``(n, k)`` sums of the estimates of ``n · x̂ᵢ``.
    noise
        ``(n,)`` sums of the noise variance.
    """

    frames: tuple[int, ...]
    frame: np.ndarray
    counts: np.ndarray
    products: np.ndarray
    handed_on: np.ndarray
    noise: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """``(k, k)`` the matrix, movie units squared."""
        d = self.handed_on.sum(0)
        total = self.products.sum(0) + d[:, None] + d[None, :] - self.noise.sum()
        return np.asarray(total / self.counts.sum())

    def of(self, weights: Sequence[float] | np.ndarray) -> ErrorEstimate:
        """Return the error of ``Σ wᵢ x̂ᵢ``; the weights must sum to 1."""
        w = np.asarray(weights, float)
        if w.shape != (self.products.shape[1],) or abs(w.sum() - 1) > 1e-6:
            raise ValueError(f"weights {w} for {self.products.shape[1]} denoisers")
        residual = np.einsum("nij,i,j->n", self.products, w, w)
        divergence = 2 * self.handed_on @ w
        blocks = residual - self.noise + divergence
        mse, error = mean_and_error(blocks, self.counts)
        each = [
            mean_and_error(blocks[self.frame == i], self.counts[self.frame == i])
            for i in range(len(self.frames))
        ]
        pixels = self.counts.sum()
        return ErrorEstimate(
            mse, error, float(residual.sum() / pixels), float(self.noise.sum() / pixels),
            float(divergence.sum() / pixels), self.frames, np.array([m for m, _ in each]),
            np.array([e for _, e in each]), blocks, self.counts,
        )  # fmt: skip


def block_sums(image: np.ndarray) -> np.ndarray:
    """Return the sums over blocks of 32×32 pixels, flat; those at the edges may be smaller."""
    for axis in (0, 1):
        image = np.add.reduceat(image, np.arange(0, image.shape[axis], _BLOCK), axis=axis)
    return image.ravel()


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the mean per pixel and its standard error (ratio estimator over blocks)."""
    total, used = counts.sum(), int((counts > 0).sum())
    if not used:
        return float("nan"), float("nan")
    mean = float(sums.sum() / total)
    if used < 2:
        return mean, float("inf")
    scatter = ((sums - mean * counts) ** 2).sum() * used / (used - 1)
    return mean, float(np.sqrt(scatter) / total)
