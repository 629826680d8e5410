r"""A correction of the blind prediction, learned where the truth is known.

A blind-spot network that was trained for a minute blurs a little, and never sees the pixel that it
predicts. What both cost shows in the residual :math:`r = y - \hat x`, raw − denoised, and in the
denoised picture itself. The corrected picture is

.. math:: \hat x' = \hat x + \sum_i w_i(G)\, f_i(\hat x, r)

with eight linear features: the residual as it is and as three Gaussians smooth it, and what four
Gaussians take out of the denoised picture. How much of each is added depends on the slope
:math:`G` of the denoised picture alone.

The weights are few, and least squares finds them where the truth is known: noise :math:`n'` of the
measured kind is added to the denoised movie, and that is denoised once more. The weights that bring
the result back to the denoised movie are used on the real one (a parametric bootstrap: B. Efron,
R. J. Tibshirani, An Introduction to the Bootstrap, 1993, ch. 10, "Estimates of bias"). The residual
has its share according to what it is worth there, which noise left over would make smaller, as in
Wiener's filter. Gross harm on the movie itself would show in the error that is estimated from the
movie alone (`shine_em.error_estimate`), and is looked for (`shine_em.ensemble.correct_ensemble`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .doctor import Health
from .errors import ShineError
from .movie import Movie
from .noise import NoiseStatistics
from .patches import Timeline

if TYPE_CHECKING:
    from .denoising import Denoiser

__all__ = ["Correction", "blank_correction", "correcting_s", "correction_passes", "fit_correction"]

_RESIDUAL = (0.7, 1.5, 3.0)  # px: Gaussian widths
_PICTURE = (0.7, 1.0, 2.0, 3.0)
FEATURES = 1 + len(_RESIDUAL) + len(_PICTURE)
_SLOPE = 1.0  # px: Gaussian width of the slope
_KNOTS = (0.3, 0.6, 0.8, 0.9, 0.96, 0.99)  # quantiles of the slope between which weights run
_STRIP = 2**18  # pixels worked on at once
_PIXELS = 1_300_000  # enough to fit the weights on
_FRAMES = (2, 24)  # least and most of them
_RIDGE = 1e-3  # of each feature's power: differences of Gaussians are much alike


@dataclass(frozen=True, eq=False)
class Correction:
    """Weights of what is added to a denoised picture.

    Attributes
    ----------
    weights
        ``(features, knots)`` float32.
    knots
        Logarithms of the slope (normalised units per pixel), rising; weights run in straight lines
        between them and are constant beyond.
    """

    weights: Tensor
    knots: tuple[float, ...]

    # Input pixels that matter around an output pixel.
    halo = math.ceil(3 * max(*_RESIDUAL, *_PICTURE)) + 1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.knots))
        if self.weights.shape != (FEATURES, len(self.knots)) or not rising or not self.knots:
            raise ShineError(
                f"a correction cannot have weights of the shape {tuple(self.weights.shape)} for "
                f"the slopes {self.knots}."
            )
        if not torch.isfinite(self.weights).all():
            raise ShineError("a correction's weights must be finite.")

    def to_dict(self) -> dict[str, Any]:
        """Return all but the weights as plain values for a checkpoint's header."""
        return {"knots": self.knots}

    @classmethod
    def from_dict(cls, values: dict[str, Any], weights: Tensor) -> Correction:
        """Rebuild what `to_dict` gave.

        Raises
        ------
        ShineError
            If weights and values do not fit each other.
        """
        return cls(weights, tuple(float(k) for k in values["knots"]))

    @torch.inference_mode()
    def __call__(self, denoised: Tensor, noisy: Tensor) -> Tensor:
        """Correct frames.

        Parameters
        ----------
        denoised, noisy
            ``(b, h, w)`` float32, normalised. Noisy pixels of exactly 0 are those that are not
            trusted (`shine_em.patches.Normalisation.apply`).

        Returns
        -------
        Tensor
            ``(b, h, w)`` float32.
        """
        out = torch.empty_like(denoised)
        weights = self.weights.to(denoised.device)
        for one, raw, made in zip(denoised, noisy, out, strict=True):
            for read, inner, keep in _strips(*one.shape):
                mixed = torch.einsum("fk,fhw->khw", weights, _features(one[read], raw[read]))
                added = (mixed * _shares(_log_slope(one[read]), self.knots)).sum(0)
                made[keep] = one[keep] + added[inner]
        return out

    def of_windows(
        self, denoised: np.ndarray, windows: np.ndarray | Tensor, device: torch.device | str
    ) -> np.ndarray:
        """Correct ``(b, h, w)`` what was made of ``(b, frames, h, w)`` windows, both normalised."""
        noisy = torch.as_tensor(windows)[:, windows.shape[1] // 2].to(device)
        return np.asarray(self(torch.from_numpy(denoised).to(device), noisy).cpu().numpy())

    def own_pixel(self) -> list[float]:
        """Return by how much the result follows the raw pixel itself at each knot.

        As if the prediction did not: 0 is blind, 1 no denoising.
        """
        middle = torch.zeros(2 * self.halo + 1, 2 * self.halo + 1)
        middle[self.halo, self.halo] = 1.0
        kept = [middle, *(_smooth(middle, width) for width in _RESIDUAL)]
        at_centre = torch.stack([image[self.halo, self.halo] for image in kept])
        return [float(v) for v in at_centre @ self.weights[: len(kept)]]


def _shares(slope: Tensor, knots: Sequence[float]) -> Tensor:
    """Return ``(knots, h, w)``: the share of each knot at a slope; they sum to 1."""
    place = torch.zeros_like(slope)  # 1.5: halfway from the second knot to the third
    for low, high in pairwise(knots):
        place += ((slope - low) / (high - low)).clamp(0, 1)
    return torch.stack([(1 - (place - i).abs()).clamp(min=0) for i in range(len(knots))])


def _strips(height: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut rows: those to read, those of them to keep, and where these lie in the frame."""
    rows = max(1, _STRIP // width)
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        first, last = max(0, start - Correction.halo), min(height, stop + Correction.halo)
        yield slice(first, last), slice(start - first, stop - first), slice(start, stop)


def _smooth(image: Tensor, width: float) -> Tensor:
    """Return an image, ``(h, w)``, as a Gaussian smooths it, edges repeated."""
    radius = math.ceil(3 * width)
    taps = [math.exp(-0.5 * (k / width) ** 2) for k in range(radius + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    # Sums of shifted images are quicker than a convolution of one channel.
    for axis in (0, 1):
        n = image.shape[axis]
        at = torch.arange(-radius, n + radius, device=image.device).clamp(0, n - 1)
        padded = image.index_select(axis, at)
        image = padded.narrow(axis, radius, n) * (taps[0] / total)
        for k in range(1, radius + 1):
            both = padded.narrow(axis, radius - k, n) + padded.narrow(axis, radius + k, n)
            image.add_(both, alpha=taps[k] / total)
    return image


def _features(denoised: Tensor, noisy: Tensor) -> Tensor:
    """Return ``(features, h, w)``."""
    residual = torch.where(noisy != 0, noisy - denoised, 0.0)
    smoothed = [_smooth(residual, width) for width in _RESIDUAL]
    removed = [denoised - _smooth(denoised, width) for width in _PICTURE]
    return torch.stack((residual, *smoothed, *removed))


def _log_slope(denoised: Tensor) -> Tensor:
    """Return the logarithm of the slope, ``(h, w)``."""
    squared = torch.zeros_like(denoised)
    for axis in (0, 1):
        if denoised.shape[axis] > 1:
            steep = torch.gradient(denoised, dim=axis)[0].abs()
            squared += _smooth(steep, _SLOPE) ** 2
    return 0.5 * torch.log(squared + 1e-12)


def fit_correction(
    denoiser: Denoiser, movie: Movie, health: Health, noise: NoiseStatistics, *, seed: int = 0
) -> Correction | None:
    """Find the weights with which noise added anew is best made undone.

    Parameters
    ----------
    denoiser
        Without a correction.
    movie, health, noise
        The movie and what is known of it; there must be some noise.
    seed
        Of the noise that is added.

    Returns
    -------
    Correction or None
        None where the denoised movie is flat, so that there is nothing to correct.
    """
    from .noise_synthesis import Renewed

    bad = np.asarray(health.bad_pixels, bool)
    n = denoiser.model.normalisation
    sums: tuple[np.ndarray, np.ndarray] | None = None
    knots: tuple[float, ...] = ()
    for run in _runs(movie, health):
        renewed = Renewed(denoiser, movie, health, noise, seed, frames=run)
        again = movie.with_data(renewed, did="denoised, noise added anew")
        for t, noisy, twice in denoiser.stream(again, health, frames=run):
            known = n.standardise(renewed.known(t)[1])
            if sums is None:
                knots = _quantiles(torch.from_numpy(known))
                if not knots:
                    return None
                k = FEATURES * len(knots)
                sums = np.zeros((k, k)), np.zeros(k)
            _add(sums, n.standardise(twice), n.apply(noisy, bad), known, ~bad, knots)
    if sums is None:
        return None
    products, wanted = sums
    power = np.sqrt(np.maximum(np.diag(products), 1e-30))
    scaled = products / np.outer(power, power) + _RIDGE * np.eye(len(power))
    weights = np.linalg.solve(scaled, wanted / power) / power
    shaped = weights.reshape(FEATURES, len(knots)).astype(np.float32)
    return Correction(torch.from_numpy(shaped), knots)


def _quantiles(known: Tensor) -> tuple[float, ...]:
    """Return the knots: where the slopes of a denoised picture lie."""
    values = np.quantile(_log_slope(known).numpy().astype(float), _KNOTS)
    if not values[-1] - values[0] > 1e-3:
        return ()
    kept = [float(values[0])]
    for value in values[1:]:
        if value - kept[-1] > 1e-3:
            kept.append(float(value))
    return tuple(kept)


@torch.inference_mode()
def _add(
    sums: tuple[np.ndarray, np.ndarray],
    twice: np.ndarray,
    noisy: np.ndarray,
    known: np.ndarray,
    good: np.ndarray,
    knots: tuple[float, ...],
) -> None:
    """Add a frame, ``(y, x)`` normalised each, to the normal equations."""
    products, wanted = sums
    one, raw, off = (torch.from_numpy(a) for a in (twice, noisy, known - twice))
    for read, inner, keep in _strips(*one.shape):
        here = torch.from_numpy(good[keep])
        features, shares = _features(one[read], raw[read]), _shares(_log_slope(one[read]), knots)
        columns = (features[:, None] * shares)[:, :, inner][:, :, here]
        design, target = columns.reshape(-1, columns.shape[-1]), off[keep][here]
        products += (design @ design.T).double().numpy()
        wanted += (design @ target).double().numpy()


def _runs(movie: Movie, health: Health) -> list[list[int]]:
    """Return the frames to fit on: two stretches of frames that follow each other."""
    targets = Timeline(len(movie), health).targets()
    least, most = _FRAMES
    pixels = movie.shape[1] * movie.shape[2]
    count = min(len(targets), max(least, min(most, math.ceil(_PIXELS / pixels))))
    if count <= least or len(targets) < 2 * count:
        middle = (len(targets) - count) // 2
        return [targets[middle : middle + count]] if count else []
    half = count // 2
    starts = (len(targets) // 3 - half // 2, 2 * len(targets) // 3 - half // 2)
    return [targets[starts[0] : starts[0] + count - half], targets[starts[1] : starts[1] + half]]


def correction_passes(movie: Movie, health: Health, frames: int) -> int:
    """Return how many frames' worth of inference fitting takes, with windows of ``frames``."""
    # Frames between those fitted on, as copies, are made as well, and half a window on both sides.
    return sum(len(run) + run[-1] - run[0] + frames for run in _runs(movie, health))


def blank_correction() -> Correction:
    """Return a correction that adds nothing, to be timed."""
    knots = tuple(float(k) for k in range(len(_KNOTS)))
    return Correction(torch.zeros(FEATURES, len(knots)), knots)


def correcting_s(movie: Movie, device: torch.device | str) -> float:
    """Return the seconds that correcting one frame takes."""
    frame = torch.zeros((1, *movie.shape[1:]), device=device)
    blank = blank_correction()
    blank(frame, frame).cpu()
    begun = time.monotonic()
    blank(frame, frame).cpu()
    return time.monotonic() - begun
