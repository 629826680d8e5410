"""The seconds that everything after training takes, and what there is time for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    frames = 1.1 * (len(movie) + 16)
    if options.uncertainty:
        frames += 1.1 * len(movie)
        writing_s += 1.1 * len(movie) * mapping_s(movie, plan.noise)
    costs = _Costs(
        alone=watch.holes((plan.settings.hole,)), frames=frames,
        measuring=1.1 * measuring_passes(movie), closing=writing_s + REPORT_S,
    )  # fmt: skip
    # Timing takes time as well: what cannot fit is not timed.
    hurried = costs.single > PAIR_SHARE * budget and bool(plan.candidates)
    plan = replace(plan, correct=False)
    if plan.candidates and plan.noise.sigma > 0 and not hurried:
        dearer = _with_correction(costs, movie, plan, device)
        if dearer.single < min(_CORRECTED_SHARE * budget, _MOST * (budget - spent)):
            plan, costs = replace(plan, correct=True), dearer
    by_force = options.student == "always"
    pays = by_force or distilling_s(budget) + costs.closing < costs.single
    may_distil = not plan.no_student and pays
    several = plan.candidates or plan.holes
    costs = replace(costs, each=watch.further_hole(costs.alone), holes=len(several))
    # The filter is measured anew for every movie, and may then be part of the mean.
    if plan.candidates and (not hurried or may_distil or plan.weak):
        linear, fitting = watch.linear()
        costs = replace(costs, linear=linear, fitting=fitting)

    count = 1
    if not hurried:
        count = affordable(
            costs.averaged * (costs.alone + costs.linear), costs.averaged * costs.each,
            costs.holes, budget=budget, rest=costs.rest,
        )  # fmt: skip
    needed, said = costs.single, "making it would take longer than it saves"
    if count > 1:
        plan, needed = replace(plan, most_holes=count), costs.ensemble(count)
        said = (
            "the time budget has room for the blind-spot ensemble, about "
            f"{duration_text(needed - costs.rest)} for all frames"
        )
    if may_distil and (by_force or count == 1):
        schooling, with_student = _with_student(costs, watch, count, budget)
        if by_force or with_student < costs.single:
            plan = replace(plan, most_holes=max(2, count), schooling=schooling)
            needed = with_student
    if (count == 1 or plan.schooling) and needed > _MOST * (budget - spent):
        raise ShineError(
            f"Denoising {len(movie)} frames alone takes about {duration_text(needed)} here, too "
            f"much for a time budget of {duration_text(budget)}. Give --time-budget "
            f"{duration_text(2.5 * needed)}, or fewer frames with --frames."
        )
    if plan.schooling is not None:
        return plan, needed
    plan = replace(plan, no_student=plan.no_student or said)
    if count == 1:
        return _with_one_hole(plan, costs, most=_MOST * (budget - spent))
    view = costs.averaged * (costs.alone + (count - 1) * costs.each)
    view += costs.measuring * costs.all_holes
    views = affordable_views(view, budget=budget, training=budget - spent - needed)
    return replace(plan, views=views), needed + (views - 1) * view


@dataclass(frozen=True)
class _Costs:
    """What passes over frames cost, and how many there are.

    Attributes
    ----------
    alone, each, linear
        Seconds that a frame takes with one hole, longer with each further one, and longer with
        the linear filter.
    fitting
        Seconds of measuring that filter.
    frames, fitted, measuring
        How many frames are denoised, how many before that to fit a correction on, and how many to
        estimate errors on.
    closing
        Seconds of writing the files and the report.
    holes
        How many there are to choose from.
    """

    alone: float
    frames: float
    measuring: float
    closing: float
    each: float = 0.0
    linear: float = 0.0
    fitting: float = 0.0
    fitted: float = 0.0
    holes: int = 1

    @property
    def averaged(self) -> float:
        """How many frames are denoised by all that is averaged."""
        return self.frames + self.fitted

    @property
    def single(self) -> float:
        """All seconds after training with one hole."""
        return (self.averaged + self.measuring) * self.alone + self.closing

    @property
    def all_holes(self) -> float:
        """Seconds that a frame takes with all holes there are."""
        return self.alone + (self.holes - 1) * self.each

    @property
    def rest(self) -> float:
        """Seconds of all but denoising, where holes are chosen among."""
        return self.measuring * (self.all_holes + self.linear) + self.fitting + self.closing

    def ensemble(self, count: int) -> float:
        """Return all seconds after training where so many holes are averaged."""
        return self.averaged * (self.alone + self.linear + (count - 1) * self.each) + self.rest


def _with_correction(costs: _Costs, movie: Movie, plan: Plan, device: Any) -> _Costs:
    """Return the costs where the result is corrected."""
    renewed = 1.1 * correction_passes(movie, plan.health, plan.config.frames)
    fitted = renewed + costs.measuring  # its error is estimated as well
    # Making noise and adding up the equations takes about as long as making a map.
    correcting = (costs.frames + fitted) * correcting_s(movie, device)
    correcting += renewed * mapping_s(movie, plan.noise)
    return replace(costs, fitted=fitted, closing=costs.closing + correcting)


def _with_student(
    costs: _Costs, watch: _Stopwatch, count: int, budget: float
) -> tuple[Schooling, float]:
    """Return how a student is made, and all seconds after training then."""
    one_pass = watch.student()
    lessons, judged = passes(watch.movie, watch.plan.config.frames)
    two = costs.alone + costs.each + costs.linear  # of two holes: there are always candidates
    distilling = distilling_s(budget) + 1.1 * lessons * two
    making = distilling + 1.1 * judged * (two + one_pass)
    # Where there is time for the ensemble, there is still time when the student fails.
    if count > 1:
        return Schooling(seconds=distilling, ensemble_s=None), making + costs.ensemble(count)
    schooling = Schooling(seconds=distilling, ensemble_s=costs.frames * two)
    making += costs.fitted * two  # by the ensemble: a correction is fitted before
    return schooling, making + costs.frames * one_pass + costs.rest


def _with_one_hole(plan: Plan, costs: _Costs, *, most: float) -> tuple[Plan, float]:
    """Return the plan, and all seconds after training, where there is time for one hole only."""
    hole = plan.settings.hole
    # A smaller hole may be better than the measured one, and takes no longer.
    few = averaged_holes(hole) if plan.candidates else ()
    needed = costs.single + (costs.measuring * costs.each if few else 0.0)
    # The filter may know more of a weak picture than the network will: one or the other.
    trying = costs.measuring * costs.linear + costs.fitting
    tried = plan.weak and bool(few) and needed + trying < most
    needed += trying if tried else 0.0
    plan = replace(plan, holes=(hole,), candidates=few, most_holes=1, with_filter=tried)
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
