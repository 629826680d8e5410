"""What a benchmark compares: methods with their time budgets, the default job, the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .baselines import METHODS, Method, pick
from .errors import ShineError
from .planning import parse_duration

__all__ = ["CEILING", "DEFAULT", "RAW", "Contender", "choose", "training_seconds"]

RAW, CEILING, DEFAULT = "noisy", "supervised", "default"
"""The noisy movie itself, the supervised ceiling, and the whole job of `shine_em.denoise`."""

_OWN = {
    DEFAULT: Method(DEFAULT, "shine denoise", "", needs_training=True, on_torch=True),
    CEILING: Method(CEILING, "supervised on the truth", "", needs_training=True, on_torch=True),
}


@dataclass(frozen=True)
class Contender:
    """A method with its time budget.

    Attributes
    ----------
    method
        One of `METHODS`, the default job or the ceiling.
    budget_s
        Its time budget, s: of the training; of the whole job for the default; the limit after which
        the ceiling ends without its plateau. None for its own schedule.
    stem, title
        Names of its files and in tables; they hold the budget where it was named with the method.
    """

    method: Method
    budget_s: float | None
    stem: str
    title: str

    @property
    def kind(self) -> str:
        """Which task of `benchmark_worker` it is."""
        return {DEFAULT: "job", CEILING: "ceiling"}.get(self.method.name, "method")

    @property
    def repeated(self) -> bool:
        """Whether it is run with every seed; the ceiling is a yardstick and run with the first."""
        return self.method.needs_training and self.kind != "ceiling"


def choose(names: str, time_budget_s: float | None) -> list[Contender]:
    """Return what a comma-separated list names.

    Parameters
    ----------
    names
        Names of `METHODS`, "all" for every one of them, "default" for what `shine_em.denoise` does,
        "supervised" for the ceiling. A budget of its own stands behind an @: "lean@60s,lean@5min";
        "lean@none" for the method's own schedule.
    time_budget_s
        Seconds for those that are named without one; None for their own schedules.

    Raises
    ------
    ShineError
        If a name or a budget is unknown, or a method has no use for a budget.

    Examples
    --------
    >>> [c.title for c in choose("mean5, lean@60s, lean@5min", 60.0)]
    ['5-frame mean', 'lean, 60 s', 'lean, 5 min']
    """
    found: dict[str, Contender] = {}
    for part in filter(None, (part.strip() for part in names.split(","))):
        name, at, text = (piece.strip() for piece in part.partition("@"))
        methods = [_OWN[name]] if name in _OWN else _picked(name)
        for method in methods:
            if at and not method.timed:
                raise ShineError(
                    f"{part}: {method.title} takes what it takes; leave the budget {at}{text} out."
                )
            budget, stem, title = time_budget_s, method.name, method.title
            if at:
                budget = None if text.lower() == "none" else parse_duration(text)
                if budget is not None and budget <= 0:
                    raise ShineError(f"{part}: the budget must be positive, as in {name}@60s.")
                words = "own schedule" if budget is None else _words(budget)
                stem = f"{method.name}@{words.replace(' ', '')}"
                title = f"{method.title}, {words}"
            found.setdefault(stem, Contender(method, budget, stem, title))
    if not found:
        _picked(names)  # says what there is to choose from
    return list(found.values())


def training_seconds(contenders: Sequence[Contender], seeds: int) -> float:
    """Return the seconds that the budgets add up to for one movie with a truth.

    Methods on their own schedule count for nothing, and denoising comes on top.
    """
    return sum(
        (c.budget_s or 0.0) * (seeds if c.repeated else 1)
        for c in contenders
        if c.method.needs_training
    )


def _picked(names: str) -> list[Method]:
    try:
        return pick(names)
    except ShineError:
        raise ShineError(
            f"Unknown method {names!r}. Choose from: {', '.join((*METHODS, *_OWN))}."
        ) from None


def _words(seconds: float) -> str:
    """Return "90 s" or "5 min", exactly."""
    return f"{seconds / 60:g} min" if seconds > 60 and seconds % 60 == 0 else f"{seconds:g} s"
