"""Our own networks, the paper's and the lean one, in the call shape of the rivals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..checkpoint import Model
from ..compute import keep_freed_memory, pick_device, pick_precision
from ..denoising import Denoiser
from ..ensemble import measure_ensemble
from ..events import Event
from ..job import history
from ..movie import Movie
from ..network import Hole
from ..noise import NoiseStatistics
from ..patches import Normalisation
from ..planning import Options, prepare
from ..training import train
from ..warm_start import beginning

__all__ = ["denoise", "lean", "paper"]


def paper(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: Hole | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
    frames: int = 5,
) -> Movie:
    """Denoise with the network of the paper and its recipe, a single hole at a time.

    With a time budget it is trained on batches of 4 crops of 128×128 instead of 16 of 256×256,
    which in minutes on a CPU would be a handful of steps.

    Parameters
    ----------
    movie
        ``(t, y, x)``.
    noise
        Noise statistics, for the hole where none is given; measured where needed.
    hole
        Blind spot, rows × columns; None for the one that the noise statistics recommend.
    time_budget_s
        Wall time for training; None for the 2000 epochs of the paper (hours on a GPU).
    seed, device, progress
        See `shine_em.baselines.Method.run`.
    frames
        Input frames, odd (paper, fig. S8).

    Raises
    ------
    ShineError
        If the movie cannot be denoised.
    """
    options = _options("paper", noise, hole, time_budget_s, seed, device, frames)
    return denoise(movie, options, progress=progress)


def lean(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: Hole | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
    frames: int | None = None,
) -> Movie:
    """Denoise as ``shine denoise`` does; with a hole given, with this one alone.

    Without ``hole`` the prediction is the mean over the holes that have the least estimated error
    (`shine_em.ensemble`), the default of `shine_em.denoise`, in one view and not corrected. A given
    hole is not averaged with any other, so that holes can be compared.

    Parameters
    ----------
    movie, noise, hole, seed, device, progress
        See `paper`.
    frames
        Input frames, odd; None to choose by the strength of the noise.
    time_budget_s
        Wall time for training; None for 4 minutes.

    Raises
    ------
    ShineError
        If the movie cannot be denoised.
    """
    options = _options("lean", noise, hole, time_budget_s, seed, device, frames)
    return denoise(movie, options, progress=progress)


def _options(
    preset: str,
    noise: NoiseStatistics | None,
    hole: Hole | None,
    seconds: float | None,
    seed: int,
    device: str,
    frames: int | None,
) -> Options:
    """Return how to denoise: a given hole stands alone, the measured one in its ensemble."""
    return Options(
        preset=preset, hole=hole if hole or noise is None else noise.hole, ensemble=hole is None,
        time_budget=seconds, seed=seed, device=device, frames=frames,
    )  # fmt: skip


def denoise(
    movie: Movie,
    options: Options,
    *,
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Train for the whole time budget, then denoise every frame.

    `shine_em.denoise` keeps part of its budget for checking, measuring and denoising. In a
    benchmark all methods get the same time to learn, and the rest comes on top. Otherwise the steps
    are the same: plan, training, denoising, and the mean of the movie restored.

    Parameters
    ----------
    movie
        ``(t, y, x)``.
    options
        Network, hole, input frames and time.
    progress
        Called with a stage and the fraction of it that is done.

    Returns
    -------
    Movie
        float32, in the movie's units.

    Raises
    ------
    ShineError
        If the movie cannot be denoised.
    """

    def tell(event: Event) -> None:
        if progress is not None:
            progress(event.stage, event.done / event.total if event.total else 0.0)

    keep_freed_memory()
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    plan = prepare(movie, options, progress=tell)
    normalisation = Normalisation.of(plan.health)
    weights, plan, origin = beginning(plan, options, model=None, resume=None, name=movie.name)
    state = train(
        movie, plan.health, plan.config, plan.settings, normalisation=normalisation,
        seconds=options.seconds, device=device, precision=precision, start_from=weights,
        progress=lambda p: tell(Event("training", p.step, p.steps)),
    )  # fmt: skip
    if state.stopped == "interrupted":
        raise KeyboardInterrupt
    model = Model(state, normalisation, plan.holes, provenance=origin)
    if plan.candidates and plan.noise.sigma > 0:
        model, _ = measure_ensemble(
            movie, plan.health, plan.noise, model, plan.candidates, most=plan.most_holes,
            device=device, precision=precision,
        )  # fmt: skip
    denoiser = Denoiser(model, device=device, precision=precision)
    bad = np.asarray(plan.health.bad_pixels, bool)
    out = np.empty(movie.shape, np.float32)
    shifts = []
    for done, (t, raw, frame) in enumerate(denoiser.stream(movie, plan.health), start=1):
        out[t] = frame
        trusted = normalisation.trusted(raw, bad)
        if trusted.any() and not plan.health.blank[t]:
            shifts.append((raw.astype(np.float64) - frame)[trusted].mean())
        tell(Event("denoising", done, len(movie)))
    out[~np.asarray(plan.health.blank)] += np.float32(np.mean(shifts))
    return movie.with_data(out, did=history(model))
