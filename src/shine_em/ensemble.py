"""The hole ensemble: which holes to average over, and with which weights, by measured error.

A larger hole hides more of the noise's correlation, a smaller one blurs less, and their errors are
partly independent, so that a mean of several is better than each of them (S. Chen et al.,
"Exploring asymmetric tunable blind-spots", CVPR 2024). One trained network serves all holes. What
each of them, and any mean of them, gets wrong is estimated on the movie itself (`ErrorMatrix`);
the weights follow from that.

The linear prediction (`shine_em.linear`) is one more candidate: where there was too little signal
or time for the network to learn from, it takes most of the weight or all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from .checkpoint import Model
from .correction import fit_correction
from .denoising import Denoiser
from .doctor import Health
from .error_estimate import FRAMES, ErrorEstimator
from .error_matrix import ErrorEstimate, ErrorMatrix
from .linear import fit_linear
from .movie import Movie
from .network import LARGEST_HOLE, Hole
from .noise import NoiseStatistics

__all__ = [
    "Ensemble",
    "affordable",
    "affordable_views",
    "candidate_holes",
    "choose",
    "correct_ensemble",
    "measure_ensemble",
    "measuring_passes",
]

CANDIDATES = 5
PAIR_SHARE = 0.5  # of the whole time: as much may two holes take
# Of the whole time, and of what is left for training: as much may all views but the first take.
_VIEWS_SHARE, _VIEWS_OF_TRAINING = 0.15, 0.33
# A correction must not be worse by so many standard errors and this share of the noise variance:
# what the error of the measured noise adds to the estimate was up to 2 % (docs/correction.md).
_SURELY, _BIAS = 2.0, 0.05
_LEAST_WEIGHT = 0.02  # a hole that counts less is not worth its time


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The holes that were chosen, and what they were chosen from.

    Attributes
    ----------
    holes, weights
        What to average over; the weights sum to 1. The heaviest hole comes first.
    error
        Estimated error of the whole mean.
    candidates, errors
        All holes that were looked at, and the estimated error of each alone.
    share
        Part of the linear prediction in the mean; the holes' mean has the rest.
    linear_error
        Estimated error of the linear prediction alone; None where it was no candidate.
    corrected_from
        Estimated error of the mean without its correction (`shine_em.correction`), where it has
        one; ``error`` is that with it.
    """

    holes: tuple[Hole, ...]
    weights: tuple[float, ...]
    error: ErrorEstimate
    candidates: tuple[Hole, ...]
    errors: tuple[ErrorEstimate, ...]
    share: float = 0.0
    linear_error: ErrorEstimate | None = None
    corrected_from: ErrorEstimate | None = None

    def warnings(self) -> tuple[str, ...]:
        """Say in plain words where a filter does better than what was learned."""
        if self.share <= 0.5:
            return ()
        return (
            "The network learned less from this movie than a linear filter knows: its signal is "
            f"weak, or the time was short. {100 * self.share:.0f} % of the result is the filter's. "
            "More frames or a longer --time-budget may teach it more.",
        )


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

    From the best member alone upwards, one more is taken as long as the best set of that size has
    an error that is lower by more than the standard error of the difference.

    Parameters
    ----------
    matrix
        Of the predictions with ``holes``, and of the linear prediction where it has one row more.
    holes
        The candidates.
    most
        Most holes that there is time for. The linear prediction takes next to none, unless there is
        time for one hole only: then it is one or the other.
    """
    holes = tuple(holes)
    k = matrix.products.shape[1]
    linear = range(len(holes), k)  # one or none
    values = matrix.values
    singles = tuple(matrix.of(np.eye(k)[i]) for i in range(k))
    chosen = np.eye(k)[int(np.argmin([e.mse for e in singles]))]
    error = singles[int(np.argmax(chosen))]
    beside = len(linear) if most > 1 else 0
    for size in range(2, min(most + beside, k) + 1):
        tried = [
            weights
            for face in combinations(range(k), size)
            if len(set(face) - set(linear)) <= most
            and (weights := _stationary(values, face)) is not None
            and weights[list(face)].min() >= _LEAST_WEIGHT
        ]
        if not tried:
            continue
        weights = min(tried, key=lambda w: float(w @ values @ w))
        estimate = matrix.of(weights)
        gain, uncertain = error.minus(estimate)
        if gain > uncertain:
            chosen, error = weights, estimate
    share = float(sum(chosen[i] for i in linear))
    if share > 0.999:  # a model must name a hole; it has no part in the result
        chosen = np.eye(k)[int(np.argmin([e.mse for e in singles[: len(holes)]]))]
        share = 1.0
    part = chosen[: len(holes)] / chosen[: len(holes)].sum()
    order = [int(i) for i in np.argsort(-part, kind="stable") if part[i] > 0]
    return Ensemble(
        tuple(holes[i] for i in order), tuple(float(part[i]) for i in order), error, holes,
        singles[: len(holes)], share, singles[-1] if linear else None,
    )  # fmt: skip


def measure_ensemble(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    candidates: Sequence[Hole],
    *,
    most: int,
    with_filter: bool = True,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    tile: int | None = None,
) -> tuple[Model, Ensemble]:
    """Measure a trained model with every candidate on a few frames, and choose.

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it.
    model
        The trained model; its own holes and offset have no effect.
    candidates, most
        Holes to choose from, and most holes to choose.
    with_filter
        Whether the linear prediction is measured on the movie, and a candidate.
    device, precision, tile
        As for `Denoiser`.

    Returns
    -------
    Model, Ensemble
        The model with the holes, the weights and the linear prediction that were chosen.
    """
    linear = None
    if with_filter:
        linear = fit_linear(
            movie, health, model.config, model.normalisation, model.hole,
            seed=model.state.settings.seed,
        )  # fmt: skip
    model = replace(model, linear=linear)
    denoiser = Denoiser(
        model, device=device, precision=precision, holes=list(candidates), tile=tile,
        linear=with_filter,
    )  # fmt: skip
    estimator = ErrorEstimator.for_model(model, movie, health, noise)
    found = choose(estimator.matrix(denoiser.predict_each), candidates, most=most)
    kept = replace(linear, share=found.share) if linear is not None and found.share else None
    return replace(model, holes=found.holes, weights=found.weights, linear=kept), found


def correct_ensemble(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    ensemble: Ensemble,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    tile: int | None = None,
) -> tuple[Model, Ensemble]:
    """Fit a correction of an ensemble's mean, and keep it unless it is found to do gross harm.

    The estimated error tells no correction that is a few percent better from one that does nothing:
    that it helps is known from simulated movies (docs/correction.md).

    Parameters
    ----------
    movie, health, noise
        The movie and what is known of it.
    model, ensemble
        What `measure_ensemble` returned.
    device, precision, tile
        As for `Denoiser`.
    """
    denoiser = Denoiser(model, device=device, precision=precision, tile=tile)
    found = fit_correction(denoiser, movie, health, noise, seed=model.state.settings.seed + 1)
    if found is None:
        return model, ensemble

    def both(windows: np.ndarray, shift: int) -> np.ndarray:
        plain = denoiser.predict(windows, shift)
        return np.stack([found.of_windows(plain, windows, denoiser.device), plain])

    matrix = ErrorEstimator.for_model(model, movie, health, noise).matrix(both)
    corrected, plain = matrix.of([1.0, 0.0]), matrix.of([0.0, 1.0])
    worse, uncertain = corrected.minus(plain)
    if worse > _SURELY * uncertain + _BIAS * noise.sigma**2:
        return model, ensemble
    return (
        replace(model, correction=found),
        replace(ensemble, error=corrected, corrected_from=plain),
    )


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
        share = PAIR_SHARE if count == 2 else 0.2
        if alone + (count - 1) * each + rest < share * budget:
            return count
    return 1


def affordable_views(each: float, *, budget: float, training: float) -> int:
    """Return how many mirrored views there is time to average over: 1, 2 or 4.

    They are worth about as much wherever training ends: on simulated Au growth two are 0.14 dB and
    four 0.22 dB closer to the truth than one (docs/benchmarks.md), as is a training half as long
    again.

    Parameters
    ----------
    each
        Seconds that every further view takes.
    budget, training
        Seconds that the whole job may take, and that training would have with one view.
    """
    most = min(_VIEWS_SHARE * budget, _VIEWS_OF_TRAINING * training)
    return next((n for n in (4, 2) if (n - 1) * each < most), 1)


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
