"""The best linear blind prediction: a filter that needs no training.

A network learns from noisy targets, and below about −20 dB it needs far more of them than a short
job can show it: it learns noise, or nothing. What is linear needs no steps. The weights with which
the pixels around a hole, in all frames of a window, best predict the hidden one follow from how
pixels of the movie go together (its autocovariance), measured on millions of them at once (N.
Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949; the noise drops
out, since the hole hides all pixels that share it). This prediction joins the hole ensemble with
the weight that its estimated error earns: nearly none where the network has learned more, nearly
all where there is little to learn from.

The weights are few, so that they are well measured. Pixels at the same distance count alike: rings
around the pixel, four at full resolution and two at each of four coarser ones (2×2 to 16×16 pixels
averaged), which reach 56 pixels far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .doctor import Health
from .errors import ShineError
from .movie import Movie
from .network import LARGEST_HOLE, Hole, NetworkConfig, upsampling_reach
from .patches import Normalisation, Timeline, cut

__all__ = ["LinearPrediction", "blank", "fit_linear", "fit_passes", "window_offsets"]

_LEVELS = 5
_WIDEST = 3  # the largest ring of each level, in its pixels
# A coarser level begins where the finer one ends: ring 2 of one is what would be 4 of the other.
_RINGS = tuple(
    (level, d) for level in range(_LEVELS) for d in range(2 if level else 0, _WIDEST + 1)
)
# Combinations of features with less than this power, each feature having 1, get no weight: rings
# that look alike would pull against each other.
_WEAKEST = 1e-3
_PIXELS = 5_000_000  # looked at: 20 frames of 512×512
_FIT_COST = 4.0  # times what predicting the same pixels takes
_EDGE = 512  # px: of wider frames, a part


def _bank(halfwidth: int | None) -> np.ndarray:
    """Return the rings as kernels, ``(rings, 7, 7)``, each of sum 1.

    With a half-width, without the pixels that show something of the hidden square; a ring of which
    nothing is left is 0.
    """
    y, x = np.mgrid[-_WIDEST : _WIDEST + 1, -_WIDEST : _WIDEST + 1]
    bank = np.zeros((len(_RINGS), *y.shape), np.float32)
    for kernel, (level, ring) in zip(bank, _RINGS, strict=True):
        here = np.abs(np.hypot(y, x) - ring) <= 0.5
        if halfwidth is not None:
            here &= (
                2**level * np.maximum(np.abs(y), np.abs(x)) > upsampling_reach(level) + halfwidth
            )
        kernel[here] = 1 / max(1, here.sum())
    return bank


@dataclass(frozen=True, eq=False)
class LinearPrediction:
    """A linear blind prediction of the centre frame of a window.

    Attributes
    ----------
    weights
        ``(half + 1, frames, rings)`` float32: for each number of neighbours out of place
        (`Timeline.shift`), of the mean over each ring of each frame.
    halfwidth
        Half-width of the square that is hidden, pixels.
    open_slots
        Frames of a window that are seen whole.
    share
        Its part in the ensemble's mean.
    """

    weights: Tensor
    halfwidth: int
    open_slots: tuple[int, ...]
    share: float = 0.0

    stride = 2 ** (_LEVELS - 1)
    # Input pixels that matter around an output pixel, up to the next multiple of the stride.
    halo = -(-(stride * (_WIDEST + 1) + upsampling_reach(_LEVELS - 1)) // stride) * stride

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if self.weights.ndim != 3 or shape[0] != shape[1] // 2 + 1 or shape[2] != len(_RINGS):
            raise ShineError(f"linear weights of the shape {tuple(shape)} fit no window.")
        if not 0 <= self.share <= 1 or not 0 <= self.halfwidth <= LARGEST_HOLE // 2:
            raise ShineError(f"a linear prediction cannot have {self.to_dict()}.")

    def to_dict(self) -> dict[str, Any]:
        """Return all but the weights as plain values for a checkpoint's header."""
        return {
            "halfwidth": self.halfwidth, "open_slots": self.open_slots, "share": self.share,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any], weights: Tensor) -> LinearPrediction:
        """Rebuild what `to_dict` gave.

        Raises
        ------
        ShineError
            If the weights or the values fit no window.
        """
        slots = tuple(int(i) for i in values["open_slots"])
        return cls(weights, int(values["halfwidth"]), slots, float(values["share"]))

    def __call__(self, window: Tensor, shift: int = 0) -> Tensor:
        """Predict the centre frame.

        Parameters
        ----------
        window
            ``(b, frames, h, w)``, normalised; any ``h`` and ``w``.
        shift
            Neighbours out of place in time.

        Returns
        -------
        Tensor
            ``(b, h, w)`` float32, normalised.
        """
        height, width = window.shape[-2:]
        x = F.pad(window.float(), (0, -width % self.stride, 0, -height % self.stride))
        out = None
        for level in range(_LEVELS):
            kernel = self._kernels[shift][level].to(x.device)
            if level:
                x = F.avg_pool2d(x, 2)
            part = F.conv2d(x, kernel, padding=_WIDEST)
            out = part if out is None else out + _upsampled(part, level)
        assert out is not None
        return out[:, 0, :height, :width]

    @cached_property
    def _kernels(self) -> list[list[Tensor]]:
        """For each shift and level ``(1, frames, 7, 7)``."""
        whole, holed = (torch.from_numpy(_bank(k)) for k in (None, self.halfwidth))
        shifts, frames, _ = self.weights.shape
        banks = torch.stack([whole if i in self.open_slots else holed for i in range(frames)])
        kernels = torch.zeros(shifts, _LEVELS, 1, *banks[:, 0].shape)
        for k, (level, _) in enumerate(_RINGS):
            kernels[:, level, 0] += self.weights[:, :, k, None, None] * banks[:, k]
        return [list(of_shift) for of_shift in kernels]


def _upsampled(x: Tensor, level: int) -> Tensor:
    if not level:
        return x
    return F.interpolate(x, scale_factor=2**level, mode="bilinear", align_corners=False)


def _features(x: Tensor, bank: Tensor) -> Tensor:
    """Return the mean over each ring around every pixel: ``(h, w)`` → ``(rings, h, w)``."""
    height, width = x.shape
    stride = LinearPrediction.stride
    x = F.pad(x, (0, -width % stride, 0, -height % stride))[None]
    found = []
    for level in range(_LEVELS):
        if level:
            x = F.avg_pool2d(x, 2)
        here = bank[[k for k, (of, _) in enumerate(_RINGS) if of == level], None]
        means = _upsampled(F.conv2d(x[None], here, padding=_WIDEST), level)
        found.append(means[0, :, :height, :width])
    return torch.cat(found)


def window_offsets(frames: int, shift: int) -> tuple[int, ...]:
    """Return how far in time the frames of a window lie, as `Timeline` puts them at an end.

    Where ``shift`` neighbours are missing on one side, the next ones of the other stand in their
    places, which come last.
    """
    half = frames // 2
    return tuple(o if o <= half - shift else -(o + shift) for o in range(-half, half + 1))


def blank(config: NetworkConfig) -> LinearPrediction:
    """Return one that predicts the mean, alone: to time it."""
    shape = (config.frames // 2 + 1, config.frames, len(_RINGS))
    return LinearPrediction(torch.zeros(shape), 1, config.open_slots, share=1.0)


def fit_passes(movie: Movie) -> float:
    """Return how many frames' worth of predicting it takes to measure the weights."""
    return _FIT_COST * min(len(movie), _PIXELS / math.prod(movie.shape[1:]))


def fit_linear(
    movie: Movie,
    health: Health,
    config: NetworkConfig,
    normalisation: Normalisation,
    hole: Hole,
    *,
    seed: int = 0,
) -> LinearPrediction:
    """Measure the best linear blind prediction of a movie.

    Parameters
    ----------
    movie, health, normalisation
        The movie, its input check, and how it is shown to the network.
    config
        How windows are made up, and which neighbours are seen whole.
    hole
        The blind spot that the noise asks for. One more pixel is hidden on every side: at low
        signal, noise correlated by a hundredth would outweigh what is to be predicted.
    seed
        Of the regions that are looked at in large frames.

    Raises
    ------
    ShineError
        If the movie holds no usable frame.
    """
    halfwidth = min(max(hole) // 2 + 1, LARGEST_HOLE // 2)
    bank = np.concatenate((_bank(None), _bank(halfwidth)))
    products, targets = _moments(movie, health, normalisation, bank, lags=config.frames, seed=seed)
    if not len(targets):
        raise ShineError(f"{movie.name}: no frame is left to learn from.")
    half, rings = config.frames // 2, len(_RINGS)
    # What lies beyond half a frame has been seen from few pixels only.
    near = np.array([2**level * (ring + 0.5) <= min(movie.shape[1:]) / 2 for level, ring in _RINGS])
    measured = np.isfinite(targets).any(axis=(0, 2))  # which distances in time there are
    weights = np.zeros((half + 1, config.frames * rings))
    for shift in range(half + 1):
        offsets = window_offsets(config.frames, shift)
        # The rings of a slot, whole or holed, among those that were measured.
        first = [0 if slot in config.open_slots else rings for slot in range(config.frames)]
        of = [slice(k, k + rings) for k in first]
        square = np.block(
            [
                [products[abs(a - b)][i, j] for b, j in zip(offsets, of, strict=True)]
                for a, i in zip(offsets, of, strict=True)
            ]
        )
        wanted = np.concatenate(
            [targets[:, abs(o), i] for o, i in zip(offsets, of, strict=True)], axis=1
        )
        seen = np.concatenate([near & measured[abs(o)] for o in offsets]) & (np.diag(square) > 0)
        if seen.any():  # a hole as large as the frame leaves nothing
            weights[shift, seen] = _solve(square[np.ix_(seen, seen)], wanted[:, seen])
    shaped = weights.reshape(half + 1, config.frames, rings).astype(np.float32)
    return LinearPrediction(torch.from_numpy(shaped), halfwidth, config.open_slots)


def _solve(square: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the least-squares weights, shrunk by the part of what they explain that is chance.

    The products are means over other pairs of frames for every distance in time, so that together
    they need not be those of any movie: combinations of features can come out with a negative
    power. What is as weak as the most negative one is left out, it could get any weight.

    Parameters
    ----------
    square
        ``(k, k)`` mean products of the features.
    wanted
        ``(n, k)`` mean products of features and pixel in each frame; NaN where a frame had no
        partner. How they scatter from frame to frame says what noise alone would explain.
    """
    scale = np.sqrt(np.diag(square))
    power, vectors = np.linalg.eigh(square / np.outer(scale, scale))
    known = power > max(_WEAKEST, -power[0])
    directions = vectors[:, known] / scale[:, None]
    inverse = (directions / power[known]) @ directions.T
    mean = np.nanmean(wanted, axis=0)
    weights = inverse @ mean
    whole = wanted[np.isfinite(wanted).all(axis=1)]
    explained = float(weights @ mean)
    if len(whole) < 3 or explained <= 0:
        return np.asarray(weights)
    off = (whole - whole.mean(0)).T
    scatter = float((off * (inverse @ off)).sum()) / (len(whole) - 1)
    return np.asarray(weights * max(0.0, 1 - scatter / len(wanted) / explained))


def _moments(
    movie: Movie,
    health: Health,
    normalisation: Normalisation,
    bank: np.ndarray,
    *,
    lags: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how rings around a pixel go together, and with the pixel, over frame distances.

    Returns
    -------
    products : ndarray
        ``(lags, rings, rings)`` mean products of the features of frames that far apart.
    targets : ndarray
        ``(n, lags, rings)`` mean products of a pixel and the features of a frame that far away, for
        each frame that was looked at; NaN where it had no such partner.
    """
    rings = len(bank)
    banks = torch.from_numpy(bank).split(len(_RINGS))
    products, pairs = np.zeros((lags, rings, rings)), np.zeros(lags)
    targets = []
    for run in _runs(movie, health, normalisation, lags, seed):
        held: list[tuple[Tensor, Tensor]] = []
        for frame in run:
            x = torch.from_numpy(frame)
            features = torch.cat([_features(x, b) for b in banks]).flatten(1)
            held = [*held, (features, x.flatten())][-lags:]
            new, pixel = held[-1]
            targets.append(np.full((lags, rings), np.nan))
            for lag, (old, before) in enumerate(reversed(held)):
                # Time may run either way: the mean of both is better measured.
                both = (new @ old.T).double().numpy() / len(pixel)
                products[lag] += (both + both.T) / 2
                pairs[lag] += 1
                either = (new @ before + old @ pixel).double().numpy()
                targets[-1][lag] = either / (2 * len(pixel))
    return products / np.maximum(pairs, 1)[:, None, None], np.array(targets)


def _runs(
    movie: Movie,
    health: Health,
    normalisation: Normalisation,
    lags: int,
    seed: int,
) -> Iterator[Iterator[np.ndarray]]:
    """Yield stretches of good frames of one scene, normalised and displaced by its drift."""
    timeline = Timeline(len(movie), health)
    good = timeline.targets()
    scenes = [[t for t in good if timeline.segment[t] == s] for s in np.unique(timeline.segment)]
    length = 2 * lags
    stretches = [s[i : i + length] for s in scenes for i in range(0, len(s), length)]
    area = math.prod(min(n, _EDGE) for n in movie.shape[1:])
    count = min(len(stretches), max(1, round(_PIXELS / (length * area))))
    bad, path = np.asarray(health.bad_pixels, bool), health.path
    rng = np.random.default_rng([seed, 8])
    picked = ((np.arange(count) + 0.5) * len(stretches) / max(1, count)).astype(int)
    for stretch in (stretches[i] for i in picked):
        corner = [int(rng.integers(max(1, n - _EDGE + 1))) for n in movie.shape[1:]]
        here = (slice(corner[0], corner[0] + _EDGE), slice(corner[1], corner[1] + _EDGE))
        middle = stretch[len(stretch) // 2]

        def shown(t: int, middle: int = middle, here: tuple[slice, slice] = here) -> np.ndarray:
            moved = (0, 0) if path is None else np.rint(path[t] - path[middle])
            by = int(moved[0]), int(moved[1])
            frame, hidden = cut(movie.frame(t), here, by), cut(bad, here, by, fill=True)
            return normalisation.apply(frame, hidden)

        yield (shown(t) for t in stretch)
