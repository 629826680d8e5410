"""The hole ensemble: which holes to average over, and with which weights, by measured error.

A larger hole hides more of the noise's correlation, a smaller one blurs less, and their errors are
partly independent, so that a mean of several is better than each of them (S. Chen et al.,
"Exploring asymmetric tunable blind-spots", CVPR 2024). One trained network serves all holes. What
each of them, and any mean of them, gets wrong is estimated on the movie itself (`ErrorMatrix`);
the weights follow from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from .checkpoint import Model
from .denoising import Denoiser
from .doctor import Health
from .error_estimate import FRAMES, ErrorEstimator
from .error_matrix import ErrorEstimate, ErrorMatrix
from .movie import Movie
from .network import LARGEST_HOLE, Hole
from .noise import NoiseStatistics

__all__ = [
    "Ensemble",
    "affordable",
    "candidate_holes",
    "choose",
    "measure_ensemble",
    "measuring_passes",
]

CANDIDATES = 5
_LEAST_WEIGHT = 0.02  # a hole that counts less is not worth its time


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The holes that were chosen, and what they were chosen from.

    Attributes
    ----------
    holes, weights
        What to average over; the weights sum to 1. The heaviest hole comes first.
    error
        Estimated error of their mean.
    candidates, errors
        All holes that were looked at, and the estimated error of each alone.
    """

    holes: tuple[Hole, ...]
    weights: tuple[float, ...]
    error: ErrorEstimate
    candidates: tuple[Hole, ...]
    errors: tuple[ErrorEstimate, ...]


def candidate_holes(hole: Hole) -> tuple[Hole, ...]:
    """Return up to five holes worth trying: the recommended one, the first, and its neighbours.

    Along an axis whose noise is correlated there are a smaller and a larger one. Where the noise is
    correlated along one axis only, the hole grows along that axis alone as well as along both;
    where it is white, there is none smaller.
    """
    m, n = hole
    correlated = (m > 1, n > 1)
    smaller = tuple(max(1, k - 2) for k in hole)
    larger = (m + 2, n + 2)
    if correlated[0] == correlated[1]:
        found = [hole, smaller, larger, (m + 4, n + 4)]
        found += [] if all(correlated) else [(m, n + 2), (m + 2, n)]
    else:
        along = (m + 2 * correlated[0], n + 2 * correlated[1])
        across = (m + 2 * correlated[1], n + 2 * correlated[0])
        found = [hole, smaller, along, across, larger]
    allowed = [h for h in dict.fromkeys(found) if max(h) <= LARGEST_HOLE]
    return tuple((int(a), int(b)) for a, b in allowed)[:CANDIDATES]


def choose(matrix: ErrorMatrix, holes: Sequence[Hole], *, most: int) -> Ensemble:
    """Choose holes and weights by the estimated error.

    From the best hole alone upwards, one more hole is taken as long as the best set of that size
    has an error that is lower by more than the standard error of the difference.

    Parameters
    ----------
    matrix
        Of the predictions with ``holes``.
    holes
        The candidates.
    most
        Most holes that there is time for.
    """
    k = len(holes)
    values = matrix.values
    singles = tuple(matrix.of(np.eye(k)[i]) for i in range(k))
    chosen = np.eye(k)[int(np.argmin([e.mse for e in singles]))]
    error = singles[int(np.argmax(chosen))]
    for size in range(2, min(most, k) + 1):
        tried = [
            weights
            for face in combinations(range(k), size)
            if (weights := _stationary(values, face)) is not None
            and weights[list(face)].min() >= _LEAST_WEIGHT
        ]
        if not tried:
            continue
        weights = min(tried, key=lambda w: float(w @ values @ w))
        estimate = matrix.of(weights)
        gain, uncertain = error.minus(estimate)
        if gain > uncertain:
            chosen, error = weights, estimate
    order = [int(i) for i in np.argsort(-chosen, kind="stable") if chosen[i] > 0]
    return Ensemble(
        tuple(holes[i] for i in order), tuple(float(chosen[i]) for i in order), error,
        tuple(holes), singles,
    )  # fmt: skip


def measure_ensemble(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    candidates: Sequence[Hole],
    *,
    most: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    tile: int | None = None,
) -> Ensemble:
    """Measure a trained model with every candidate on a few frames, and choose.

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it.
    model
        The trained model; its own holes and offset have no effect.
    candidates, most
        Holes to choose from, and most holes to choose.
    device, precision, tile
        As for `Denoiser`.
    """
    denoiser = Denoiser(
        model, device=device, precision=precision, holes=list(candidates), tile=tile
    )
    estimator = ErrorEstimator.for_model(model, movie, health, noise)
    return choose(estimator.matrix(denoiser.predict_each), candidates, most=most)


def measuring_passes(movie: Movie) -> float:
    """Return how many frames' worth of inference one measurement takes."""
    return 2.0 * min(FRAMES, len(movie))


def affordable(
    alone: float, each: float, candidates: int, *, budget: float, rest: float = 0.0
) -> int:
    """Return how many holes there is time to average over.

    Two are worth up to half of the whole time. Each further one brings less than training does in
    the time that it takes: only where inference stays below a fifth.

    Parameters
    ----------
    alone, each
        Seconds that inference takes with one hole, and that every further hole takes.
    candidates
        Most holes.
    budget, rest
        Seconds that the whole job may take, and that everything else after training takes.
    """
    for count in range(candidates, 1, -1):
        share = 0.5 if count == 2 else 0.2
        if alone + (count - 1) * each + rest < share * budget:
            return count
    return 1


def _stationary(matrix: np.ndarray, face: Sequence[int]) -> np.ndarray | None:
    """Return the weights at which the form is stationary on a face; None outside of it."""
    part = matrix[np.ix_(face, face)]
    try:
        solved = np.linalg.solve(part, np.ones(len(face)))
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(solved).all() or solved.sum() == 0:
        return None
    solved = solved / solved.sum()
    if (solved < 0).any():
        return None
    weights = np.zeros(len(matrix))
    weights[list(face)] = solved
    return weights
