"""The main job, from a noisy movie to a denoised one: check, measure, train, denoise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .brightness import brightness_offset
from .checkpoint import Choice, Model, input_hash, require_unfinished, versions
from .compute import keep_freed_memory, pick_device, pick_precision
from .denoising import Denoiser, halves_snr, keep_mean
from .distillation import STEPS, Schooling, Verdict, denoised_by, graduate
from .doctor import Health
from .ensemble import Ensemble, correct_ensemble, measure_ensemble
from .error_estimate import ErrorEstimate, ErrorEstimator
from .errors import ShineError
from .events import Event, Listener
from .frame_errors import FrameErrors, FrameWatch
from .io import read
from .movie import Movie
from .noise import NoiseStatistics
from .observing import Observations, Observer
from .patches import Normalisation
from .planning import Options, Plan, holes_to_try, parse_duration, prepare
from .registration import Drift
from .removed import noise_removed
from .reserve import REPORT_S, choosing_s, distilling_s, duration_text, reserve
from .reuse import applied, misfit, refuse_settled, single_hole
from .smearing import Smear, SmearDetector, smear_warnings
from .training import Progress, train
from .uncertainty import ErrorMaps, check_possible, error_history
from .warm_start import BEGINNING, ORIGIN, beginning, fine_tuning_s, window_of

__all__ = ["Interrupted", "Result", "denoise", "halves_snr", "history", "run", "train_model"]


# What may end a job whose results so far are worth keeping.
_STOPS = (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Result:
    """A denoised movie and everything that is needed to trust it.

    Attributes
    ----------
    movie
        The denoised movie, float32, in the input's units and calibration. After `run` with a
        sink of its own it is the input movie.
    model
        The trained model (``model.save(path)``).
    health, noise
        The input check and the noise statistics.
    observations
        What was collected for the report.
    halves
        SNR in dB of even and odd frames denoised without sharing a frame:
        ``{"frames": [...], "raw": [...], "denoised": [...]}``; None where the movie is too short or
        its noise lives on from frame to frame.
    warnings
        What the user should know, plain sentences.
    seconds
        Wall time of the whole job.
    ensemble
        The holes that were tried, and why these were chosen; None where nothing was to be chosen.
    error
        Estimated error of the denoised movie on a few frames; None where no noise was measured.
    frame_errors
        The same for all frames, and those that stand out; None where no noise was measured.
    drift
        How the scene drifts, where that was measured (`shine_em.registration`).
    smears
        Events of a frame or two that came out weaker than they were (`shine_em.smearing`).
    uncertainty
        Standard error of every pixel, as a movie; None where it was not asked for.
    denoised_by
        Whether the ensemble or a student distilled from it denoised the movie, and why.
    """

    movie: Movie
    model: Model
    health: Health
    noise: NoiseStatistics
    observations: Observations
    halves: dict[str, list[float]] | None
    warnings: tuple[str, ...]
    seconds: float
    drift: Drift | None = None
    smears: tuple[Smear, ...] = ()
    ensemble: Ensemble | None = None
    error: ErrorEstimate | None = None
    frame_errors: FrameErrors | None = None
    denoised_by: str = ""
    uncertainty: Movie | None = None


class Interrupted(Exception):
    """The job was interrupted; ``model`` holds the best weights so far and can be resumed.

    ``why`` says by what: "interrupted", or "out of memory" once training was done.
    """

    def __init__(self, model: Model, why: str = "interrupted") -> None:
        super().__init__(f"the job was stopped: {why}")
        self.model, self.why = model, why


class _Clock:
    """The whole job's wall time against its budget."""

    def __init__(self, started: float | None, budget: float | None) -> None:
        self.started = time.monotonic() if started is None else started
        self.budget = budget

    def spent(self) -> float:
        return time.monotonic() - self.started

    def left(self) -> float | None:
        return None if self.budget is None else self.budget - self.spent()


def denoise(
    movie: Movie | np.ndarray | str | Path,
    *,
    model: Model | str | Path | None = None,
    uncertainty: bool = False,
    progress: Listener | None = None,
    **options: Any,
) -> Result:
    """Denoise a movie in memory, trained on itself.

    Parameters
    ----------
    movie
        The movie, a ``(t, y, x)`` array, or the name of a file.
    model
        A trained model, or the name of its file, to use as it is, instead of training one; with
        ``fine_tune=True`` one to begin training with.
    uncertainty
        Also return the standard error of every pixel; denoising then takes twice as long.
    progress
        Called with an `Event` as the job goes on.
    **options
        See `Options`; ``time_budget`` may also be text such as "5min".

    Returns
    -------
    Result
        ``result.movie`` is the denoised movie, ``np.asarray(result.movie.data)`` its pixels.

    Raises
    ------
    ShineError
        If the movie cannot be denoised, the time does not suffice, or an option is given that the
        model has settled (`shine_em.reuse.refuse_settled`).
    Interrupted
        On Ctrl-C once training has begun, with the model so far.

    Examples
    --------
    >>> import shine_em as shine
    >>> result = shine.denoise("movie.tif", time_budget="2min")  # doctest: +SKIP
    >>> shine.write(result.movie, "movie_denoised.tif")  # doctest: +SKIP
    """
    if isinstance(movie, (str, Path)):
        movie = read(movie)
    elif not isinstance(movie, Movie):
        movie = Movie.from_array(movie)
    if isinstance(model, (str, Path)):
        model = Model.load(model)
    if "time_budget" in options and options["time_budget"] is not None:
        options["time_budget"] = parse_duration(options["time_budget"])
    out = np.empty(movie.shape, np.float32)
    off = np.empty_like(out) if uncertainty else None
    result = run(
        movie, out.__setitem__, options=Options(uncertainty=uncertainty, **options), model=model,
        progress=progress,
        error_sink=None if off is None else off.__setitem__,
    )  # fmt: skip
    errors = None if off is None else movie.with_data(off, did=error_history(result.model))
    return replace(
        result, movie=movie.with_data(out, did=history(result.model)), uncertainty=errors
    )


def history(model: Model) -> str:
    """Return the line that a denoised movie's history gets."""
    return (
        f"denoised by shine-em {versions()['shine-em']} ({model.config.kind}, blind spot "
        f"{model.averaged}{', repeated by a student in one pass' if model.student else ''}, "
        f"{model.state.best_step} steps, seed {model.state.settings.seed}"
        f"{', neighbours registered' if model.state.settings.registered else ''}"
        f"{', fine-tuned' if ORIGIN in model.provenance else ''}"
        f"{', begun from shipped weights' if BEGINNING in model.provenance else ''})"
    )


def run(
    movie: Movie,
    sink: Callable[[int, np.ndarray], None],
    *,
    options: Options,
    model: Model | None = None,
    resume: Model | None = None,
    started: float | None = None,
    writing_s: float = 0.0,
    progress: Listener | None = None,
    error_sink: Callable[[int, np.ndarray], None] | None = None,
) -> Result:
    """Do the whole job, handing each denoised frame to ``sink(t, frame)`` in order.

    Parameters
    ----------
    movie
        The movie.
    sink
        Takes the denoised ``(y, x)`` float32 frames, in the movie's units.
    options
        See `Options`.
    model
        A trained model to use as it is, or to begin training with (``options.fine_tune``).
    resume
        An interrupted model, to be trained to its end first.
    started
        `time.monotonic` at which the time budget began; now by default.
    writing_s
        Seconds that the sink is expected to take in all.
    progress
        Called with an `Event` as the job goes on.
    error_sink
        Takes the standard error of each frame's pixels, where that is wanted.
    """
    tell = progress or (lambda _event: None)
    keep_freed_memory()
    start, model = (model, None) if options.fine_tune else (None, model)
    if (settled := model or resume) is not None:
        refuse_settled(options, settled, resumed=model is None)
    clock = _Clock(started, None if model is not None else _budget(options, resume))
    if start is not None and options.frames is None:
        options = replace(options, frames=window_of(start.config))
    plan = prepare(movie, options, model=model or resume, progress=tell)
    if error_sink is not None:
        check_possible(movie, plan.noise)
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    trained_here = model is None
    if model is None:
        model, plan = _fit(movie, plan, options, resume, start, clock, writing_s, tell)
    else:
        plan = replace(plan, warnings=plan.warnings + misfit(movie, plan, model))
        model = applied(movie, plan, options, model)
        noise = noise_removed(
            movie, plan.health, plan.noise, model, device=device, precision=precision,
            tile=options.tile,
        )  # fmt: skip
        plan = replace(plan, noise=noise)
    with _rescued(model if trained_here else None):
        model, plan, verdict = _one_pass(movie, plan, options, model, clock, tell)
    denoiser = Denoiser(model, device=device, precision=precision, tile=options.tile)
    error = verdict.student if denoiser.by_student and verdict else None
    # Windows share no frame, nor frames whose noise is alike.
    apart = model.config.frames + max(model.blinded_lags, default=0)
    observer = Observer(movie, health=plan.health, apart=apart)
    smearing = SmearDetector(movie.shape[1:], plan.settings.hole)
    normalisation = Normalisation.of(plan.health)
    bad = np.asarray(plan.health.bad_pixels, bool)
    restored = 0
    n = len(movie)
    with _rescued(model if trained_here else None):
        error = error or _error(movie, plan, denoiser, tell)
        watch = None if error is None else _watch(plan, error)
        maps, stream = None, denoiser.stream(movie, plan.health)
        if error_sink is not None:
            maps = ErrorMaps(denoiser, movie, plan.health, plan.noise)
            stream = maps.stream(error_sink)
        begun = time.monotonic()
        for done, (t, raw, frame) in enumerate(stream, start=1):
            trusted = normalisation.trusted(raw, bad)
            frame, changed = keep_mean(raw, frame, trusted, plan.noise.sigma)
            restored += changed
            sink(t, frame)
            observer.add(t, raw, frame)
            if watch is not None:
                watch.add(t, raw, frame)
            if not plan.health.blank[t]:
                scene = int(plan.health.segment[t])
                smearing.add(t, raw, frame, trusted=trusted, scene=scene)
            pace = (time.monotonic() - begun) / done
            tell(Event("denoising", done, n, seconds_left=pace * (n - done)))
    warnings = plan.warnings
    if restored:
        warnings += (
            f"The mean of {restored} of {n} frames was shifted to the raw frame's: the network "
            "alone came too close to the tolerance (0.5 % or 0.02 noise σ).",
        )
    smears = tuple(smearing.finish())
    warnings += smear_warnings(smears, looked=smearing.looked)
    warnings += maps.warnings() if maps else ()
    frame_errors = None if watch is None else watch.finish()
    warnings += () if frame_errors is None else frame_errors.warnings()
    halves = None
    if (left := clock.left()) is None or left > REPORT_S:
        try:
            halves = halves_snr(denoiser, movie, plan.health)
        except _STOPS:  # all frames are there: they are worth more than one number
            warnings += ("The SNR of even against odd frames was interrupted, and is not given.",)
    return Result(
        movie, model, plan.health, plan.noise, observer.finish(), halves, warnings, clock.spent(),
        plan.drift, smears, plan.ensemble, error, frame_errors,
        denoised_by(model, verdict, plan.no_student),
    )  # fmt: skip


def train_model(
    movie: Movie,
    *,
    options: Options,
    resume: Model | None = None,
    started: float | None = None,
    progress: Listener | None = None,
) -> tuple[Model, Plan]:
    """Train a model on a movie without denoising it (`shine train`)."""
    tell = progress or (lambda _event: None)
    keep_freed_memory()
    if resume is not None:
        refuse_settled(options, resume, resumed=True)
    clock = _Clock(started, _budget(options, resume))
    plan = prepare(movie, options, model=resume, progress=tell)
    model, plan = _fit(movie, plan, options, resume, None, clock, None, tell)
    with _rescued(model):
        model, plan, _ = _one_pass(movie, plan, options, model, clock, tell)
    return model, plan


@contextmanager
def _rescued(model: Model | None) -> Iterator[None]:
    """Let Ctrl-C and a lack of memory carry out what was trained: it took the time."""
    try:
        yield
    except _STOPS as error:
        if model is None:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        raise Interrupted(model, "interrupted" if stopped else "out of memory") from None


def _budget(options: Options, resume: Model | None) -> float | None:
    """Return the time budget; a resumed run whose steps are fixed needs none."""
    return None if resume is not None and resume.state.settings.steps else options.seconds


def _fit(
    movie: Movie,
    plan: Plan,
    options: Options,
    resume: Model | None,
    start: Model | None,
    clock: _Clock,
    writing_s: float | None,
    tell: Listener,
) -> tuple[Model, Plan]:
    """Train, within what the budget leaves beside inference."""
    if resume is not None:  # its time was planned before
        require_unfinished(resume.state)
        candidates = holes_to_try(options, plan.settings)
        plan = replace(plan, candidates=candidates, views=resume.views)
        if candidates and resume.choice is not None and resume.state.settings.steps:
            plan = replace(plan, **vars(resume.choice))
    weights, plan, origin = beginning(plan, options, model=start, resume=resume, name=movie.name)
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    normalisation = resume.normalisation if resume else Normalisation.of(plan.health)
    fingerprint = input_hash(movie)
    if resume is not None and resume.provenance.get("input_hash") != fingerprint:
        raise ShineError(
            f"{movie.name}: the model to resume was interrupted on other pixels "
            f"({resume.provenance.get('input')}). Give the same movie, --frames and --crop, or "
            "use the model as it is with --model."
        )
    seconds = None
    if clock.budget is not None:
        if writing_s is None:
            kept = 1.0 + choosing_s(movie, plan, options, device=device, precision=precision)
            if options.student == "always" and not plan.no_student:
                making = distilling_s(clock.budget)
                plan, kept = replace(plan, schooling=Schooling(seconds=making)), kept + making
        else:
            plan, kept = reserve(
                movie, plan, options, budget=clock.budget, spent=clock.spent(), device=device,
                precision=precision, writing_s=writing_s,
            )  # fmt: skip
        seconds = clock.budget - clock.spent() - kept
        if start is not None:
            seconds = fine_tuning_s(seconds, options)
        if seconds <= 0:
            raise ShineError(
                f"The time budget of {duration_text(clock.budget)} was used up before training "
                "could begin: give a larger --time-budget."
            )

    def listen(p: Progress) -> None:
        words = f"loss {p.loss:.4f}"
        if p.validation is not None:
            listen.validation = f", validation {p.validation:.4f}"  # type: ignore[attr-defined]
        words += listen.validation  # type: ignore[attr-defined]
        tell(Event("training", p.step, p.steps, words, p.seconds_left))

    listen.validation = ""  # type: ignore[attr-defined]
    state = train(
        movie, plan.health, plan.config, plan.settings, normalisation=normalisation,
        seconds=seconds, device=device, precision=precision,
        resume=resume.state if resume else None, start_from=weights,
        progress=listen,
    )  # fmt: skip
    model = Model(
        state, normalisation, plan.holes, 0.0, plan.noise.to_dict(),
        {
            **versions(), **origin, "seed": state.settings.seed,
            "input": str(movie.source or movie.name), "input_hash": fingerprint,
            "device": str(device), "precision": precision,
            "trained": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        views=plan.views,
        choice=Choice(plan.candidates, plan.most_holes, plan.with_filter, plan.correct),
    )  # fmt: skip
    stopped = state.stopped == "interrupted"
    with _rescued(model):
        if plan.candidates and plan.noise.sigma > 0 and not stopped:
            tell(Event("choosing the holes", 0, 1))
            model, ensemble = measure_ensemble(
                movie, plan.health, plan.noise, model, plan.candidates, most=plan.most_holes,
                with_filter=plan.with_filter, device=device, precision=precision, tile=options.tile,
            )  # fmt: skip
            plan = replace(
                plan, holes=ensemble.holes, ensemble=ensemble,
                warnings=(*plan.warnings, *ensemble.warnings()),
            )  # fmt: skip
        offset = brightness_offset(
            movie, plan.health, plan.noise, model, device=device, precision=precision
        )
        model = replace(model, offset=offset)
        noise = noise_removed(
            movie, plan.health, plan.noise, model, device=device, precision=precision,
            tile=options.tile,
        )  # fmt: skip
        plan, model = replace(plan, noise=noise), replace(model, noise=noise.to_dict())
        if plan.ensemble is not None and plan.correct:
            tell(Event("fitting the correction", 0, 1))
            model, ensemble = correct_ensemble(
                movie, plan.health, plan.noise, model, plan.ensemble, device=device,
                precision=precision, tile=options.tile,
            )  # fmt: skip
            plan = replace(plan, ensemble=ensemble)
    if stopped:
        raise Interrupted(model)
    return model, plan


def _one_pass(
    movie: Movie, plan: Plan, options: Options, model: Model, clock: _Clock, tell: Listener
) -> tuple[Model, Plan, Verdict | None]:
    """Let a student take the ensemble's place, where that is planned and it is good enough."""
    if plan.schooling is None and not plan.no_student:
        if options.student != "always" and model.student is None:
            plan = replace(plan, no_student="without a time budget it is only made where asked for")
        else:
            plan = replace(plan, schooling=Schooling(steps=plan.settings.steps or STEPS))
    if plan.schooling is None:
        return replace(model, student=None) if model.student else model, plan, None
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    model, verdict = graduate(
        movie, plan.health, plan.noise, model, plan.schooling, device=device, precision=precision,
        tile=options.tile, progress=tell,
    )  # fmt: skip
    ensemble_s, left = plan.schooling.ensemble_s, clock.left()
    if not verdict.kept and ensemble_s is not None and left is not None and left < ensemble_s:
        model = single_hole(movie, plan, model, device, precision)
        plan = replace(
            plan, ensemble=None, holes=model.holes,
            warnings=(
                *plan.warnings,
                "The student that was to save time is not as good as the blind-spot network, which "
                "denoises instead: this takes longer than the time budget.",
            ),
        )  # fmt: skip
    return model, plan, verdict


def _error(movie: Movie, plan: Plan, denoiser: Denoiser, tell: Listener) -> ErrorEstimate | None:
    """Return the estimated error, as it was measured to choose the holes or measured now."""
    if not plan.noise.sigma > 0:
        return None
    if plan.ensemble is not None:
        return plan.ensemble.error
    tell(Event("estimating the error", 0, 1))
    estimator = ErrorEstimator.for_model(denoiser.model, movie, plan.health, plan.noise)
    return estimator.measure(denoiser.predict)


def _watch(plan: Plan, error: ErrorEstimate) -> FrameWatch:
    return FrameWatch(plan.health, plan.noise, Normalisation.of(plan.health), error)
