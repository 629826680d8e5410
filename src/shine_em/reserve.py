"""The seconds that everything after training takes, and what there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .checkpoint import Model
from .correction import correcting_s, correction_passes
from .denoising import Denoiser
from .distillation import Schooling, passes
from .doctor import Health
from .ensemble import PAIR_SHARE, affordable, affordable_views, measuring_passes
from .errors import ShineError
from .linear import blank, fit_passes
from .movie import Movie
from .network import Hole, build
from .patches import Normalisation
from .planning import Options, Plan, averaged_holes
from .student import Student, StudentNetwork
from .training import TrainedState
from .uncertainty import mapping_s

__all__ = ["REPORT_S", "choosing_s", "distilling_s", "duration_text", "reserve"]

# Wall time kept for the report and for closing the files.
REPORT_S = 4.0
# Most of the time left that all but training may take.
_MOST = 0.8
# Of the whole time, that all but training may take with a correction.
_CORRECTED_SHARE = 0.6
# Share of the time budget for distilling a student, and its least and most seconds.
_DISTIL_SHARE, _DISTIL_S = 0.2, (30.0, 120.0)


def reserve(
    movie: Movie,
    plan: Plan,
    options: Options,
    *,
    budget: float,
    spent: float,
    device: Any,
    precision: str,
    writing_s: float,
) -> tuple[Plan, float]:
    """Return the seconds to keep for everything after training, and the plan that fits in them.

    Where the ensemble would take half of the whole time or more, a student takes its place if it
    saves time, the time to make it included; otherwise one hole alone, the measured one or the
    next smaller, by estimated error. Where the picture is weak, the linear prediction may take
    its place.

    Parameters
    ----------
    movie, plan, options
        The movie, and what is to be done with it.
    budget, spent
        Seconds that the whole job may take, and has taken so far.
    device, precision
        Where and how to compute.
    writing_s
        Seconds that writing the frames takes in all.

    Raises
    ------
    ShineError
        If even the fastest way leaves too little time to train.
    """
    watch = _Stopwatch(movie, plan, options, device, precision)
    alone = watch.holes((plan.settings.hole,))
    frames = 1.1 * (len(movie) + 16)
    if options.uncertainty:
        frames += 1.1 * len(movie)
        writing_s += 1.1 * len(movie) * mapping_s(movie, plan.noise)
    measuring = 1.1 * measuring_passes(movie)
    single = (frames + measuring) * alone + writing_s + REPORT_S
    # Timing takes time as well: what cannot fit is not timed.
    hurried = single > PAIR_SHARE * budget and bool(plan.candidates)
    plan = replace(plan, correct=False)
    if plan.candidates and plan.noise.sigma > 0 and not hurried:
        fitted = 1.1 * correction_passes(movie, plan.health, plan.config.frames)
        more = fitted + measuring
        # Making noise and adding up the equations takes about as long as making a map.
        correcting = (frames + more) * correcting_s(movie, device)
        correcting += fitted * mapping_s(movie, plan.noise)
        if single + more * alone + correcting < _CORRECTED_SHARE * budget:
            plan = replace(plan, correct=True)
            frames, writing_s = frames + more, writing_s + correcting
            single = (frames + measuring) * alone + writing_s + REPORT_S
    pays = options.student == "always" or distilling_s(budget) + writing_s + REPORT_S < single
    may_distil = not plan.no_student and pays
    several = plan.candidates or plan.holes
    each = watch.further_hole(alone)
    all_holes = alone + (len(several) - 1) * each
    # The filter is measured anew for every movie, and may then be part of the mean.
    linear = fitting = 0.0
    if plan.candidates and (not hurried or may_distil or plan.weak):
        linear, fitting = watch.linear()

    rest = measuring * (all_holes + linear) + fitting + writing_s + REPORT_S
    first = frames * (alone + linear)
    count = 1
    if not hurried:
        count = affordable(first, frames * each, len(several), budget=budget, rest=rest)
    ensemble = first + frames * (count - 1) * each + rest
    if count > 1:
        plan, needed = replace(plan, most_holes=count), ensemble
        said = (
            "the time budget has room for the blind-spot ensemble, about "
            f"{duration_text(ensemble - rest)} for all frames"
        )
    else:
        needed = single
        said = "making it would take longer than it saves"
    if may_distil and (options.student == "always" or count == 1):
        one_pass = watch.student()
        lessons, judged = passes(movie, plan.config.frames)
        two = alone + each + linear  # an ensemble of two holes: there are always candidates
        distilling = distilling_s(budget) + 1.1 * lessons * two
        judging = 1.1 * judged * (two + one_pass)
        by_student = distilling + judging + frames * one_pass + rest
        if options.student == "always" or by_student < single:
            ensemble_s = None if count > 1 else frames * two
            # Where there is time for the ensemble, there is still time when the student fails.
            needed = distilling + judging + ensemble if count > 1 else by_student
            plan = replace(
                plan, most_holes=max(2, count),
                schooling=Schooling(seconds=distilling, ensemble_s=ensemble_s),
            )  # fmt: skip
    if (count == 1 or plan.schooling) and needed > _MOST * (budget - spent):
        raise ShineError(
            f"Denoising {len(movie)} frames alone takes about {duration_text(needed)} here, too "
            f"much for a time budget of {duration_text(budget)}. Give --time-budget "
            f"{duration_text(2.5 * needed)}, or fewer frames with --frames."
        )
    if plan.schooling is None:
        plan = replace(plan, no_student=plan.no_student or said)
        if count == 1:
            hole = plan.settings.hole
            # A smaller hole may be better than the measured one, and takes no longer.
            few = averaged_holes(hole) if plan.candidates else ()
            needed += measuring * each if few else 0.0
            # The filter may know more of a weak picture than the network will: one or the other.
            trying = measuring * linear + fitting
            tried = plan.weak and bool(few) and needed + trying < _MOST * (budget - spent)
            needed += trying if tried else 0.0
            plan = replace(plan, holes=(hole,), candidates=few, most_holes=1, with_filter=tried)
        else:
            view = frames * (alone + (count - 1) * each) + measuring * all_holes
            views = affordable_views(view, budget=budget, training=budget - spent - needed)
            plan = replace(plan, views=views)
            needed += (plan.views - 1) * view
    return plan, needed


def choosing_s(movie: Movie, plan: Plan, options: Options, *, device: Any, precision: str) -> float:
    """Return the seconds that choosing the holes takes once the network is trained."""
    if not plan.candidates:
        return 0.0
    watch = _Stopwatch(movie, plan, options, device, precision)
    alone = watch.holes((plan.settings.hole,))
    linear, fitting = watch.linear()
    all_holes = alone + (len(plan.candidates) - 1) * watch.further_hole(alone)
    passes = measuring_passes(movie)
    correcting = 1.1 * (passes + correction_passes(movie, plan.health, plan.config.frames))
    return (1.1 * passes + correcting) * (all_holes + linear) + fitting


def distilling_s(budget: float) -> float:
    """Return the seconds that a student is trained for, its teacher's passes not included."""
    least, most = _DISTIL_S
    return min(most, max(least, _DISTIL_SHARE * budget))


class _Stopwatch:
    """Times passes over frames of the movie, of networks that have not been trained."""

    def __init__(
        self, movie: Movie, plan: Plan, options: Options, device: Any, precision: str
    ) -> None:
        self.movie, self.plan, self.options = movie, plan, options
        self.device, self.precision = device, precision
        self.model = Model(
            TrainedState(plan.config, plan.settings, best=dict(build(plan.config).state_dict())),
            Normalisation.of(plan.health), plan.holes,
        )  # fmt: skip

    def holes(self, holes: Sequence[Hole]) -> float:
        """Return the seconds that a frame takes with some holes."""
        return self._seconds(self.model, holes)

    def further_hole(self, alone: float) -> float:
        """Return the seconds that a frame takes longer with each hole after the first."""
        pair = averaged_holes(self.plan.settings.hole) if self.plan.candidates else self.plan.holes
        return max(0.0, self.holes(pair) - alone) / max(1, len(pair) - 1)

    def linear(self) -> tuple[float, float]:
        """Return the seconds per frame of the linear prediction, and those of measuring it."""
        model = replace(self.model, linear=blank(self.plan.config))
        seconds = self._seconds(model)
        # It is measured on the CPU, whatever denoises.
        on_cpu = seconds if str(self.device) == "cpu" else self._seconds(model, on_cpu=True)
        return seconds, 1.1 * fit_passes(self.movie) * on_cpu

    def student(self) -> float:
        """Return the seconds that a frame takes a student."""
        pupil = StudentNetwork(self.plan.config.frames)
        fresh = Student(dict(pupil.state_dict()), pupil.frames, pupil.widths, 0, 0.0, 0, 0.0)
        return self._seconds(replace(self.model, student=fresh))

    def _seconds(
        self, model: Model, holes: Sequence[Hole] | None = None, *, on_cpu: bool = False
    ) -> float:
        device, precision = ("cpu", "fp32") if on_cpu else (self.device, self.precision)
        denoiser = Denoiser(
            model, device=device, precision=precision, holes=holes, tile=self.options.tile
        )
        return _measure(denoiser, self.movie, self.plan.health)


def _measure(denoiser: Denoiser, movie: Movie, health: Health) -> float:
    """Return the seconds that one frame takes, once warm."""
    # Several at a stretch, as in the job: the first of them finds its memory given back.
    first = max(0, len(movie) // 2 - 2)
    frames = range(first, min(first + 4, len(movie)))
    for _ in denoiser.stream(movie, health, frames=frames[:1]):
        pass
    begun = time.monotonic()
    for _ in denoiser.stream(movie, health, frames=frames):
        pass
    return (time.monotonic() - begun) / len(frames)


def duration_text(seconds: float) -> str:
    """Return "95s" or "12min", rounded up, as ``--time-budget`` takes it."""
    return f"{seconds:.0f}s" if seconds < 100 else f"{-(-seconds // 60):.0f}min"
