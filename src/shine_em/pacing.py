"""The pace of training: how many steps fit, how fast to learn, when to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Self

import numpy as np

__all__ = ["Interrupts", "Planner", "learning_rate"]


class Interrupts:
    """Lets a step end before Ctrl-C takes effect, so that a resumed run repeats no half step."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self.before = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_: object) -> None:
        if self.asked:  # asked twice: at once
            raise KeyboardInterrupt
        self.asked = True


class Planner:
    """Turns seconds into steps, from the speed of the first steps.

    The number stands unless the machine turns out quicker or slower, which is looked at a few
    times.

    Parameters
    ----------
    seconds
        Wall time that training may take, or None.
    started
        `time.monotonic` when it began.
    first
        Step that it began with.
    fixed
        The number of steps, where it is given: then nothing is planned.
    """

    least, most = 8, 18  # steps that are timed,
    long_enough = 0.5  # and for at least so many seconds: a card's steps take milliseconds
    looks = (0.125, 0.25, 0.5, 0.75, 0.9)  # fractions of the steps or the time, what comes first
    tolerance = 0.02  # by which the number of steps that are left may be off

    def __init__(
        self, seconds: float | None, started: float, *, first: int, fixed: int | None = None
    ) -> None:
        self.seconds, self.started, self.first = seconds, started, first
        self.marks: list[float] = []
        self.fixed = fixed
        self.planned: int | None = None
        self._looks = list(self.looks)
        self._since = (first, started)  # step and time of the last plan

    def steps(self, step: int) -> int | None:
        """Return the number of steps that fit, or None while the speed is being measured.

        To be asked after each step; ``step`` is the number of those done.
        """
        if self.fixed is not None or self.seconds is None:
            return self.fixed
        now = time.monotonic()
        if self.planned is None:
            self.marks.append(now)
            timing = now - self.marks[0]
            timed = len(self.marks) >= self.most and timing >= self.long_enough
            if timed or timing > 0.1 * self.seconds:
                self.planned = self.expected(step)
                self._since = (step, now)
        elif self._looks and self._looks[0] <= max(
            (step - self.first) / max(1, self.planned - self.first),
            (now - self.started) / max(1e-9, self.seconds),
        ):
            self._looks.pop(0)
            before, then = self._since
            if step - before >= self.least:
                # Validation is part of this pace, unlike of the first one.
                steps = self._fitting(step, now, (now - then) / (step - before), kept=0.03)
                if abs(steps - self.planned) > self.tolerance * (self.planned - step):
                    self.planned = steps
                self._since = (step, now)
        return self.planned

    def expected(self, step: int) -> int | None:
        """Return how many steps would fit at the first ones' speed; None before some are timed."""
        if self.seconds is None or len(self.marks) < self.least:
            return None
        # The first steps are slower: memory and caches fill.
        pace = float(np.mean(np.diff(self.marks[len(self.marks) // 2 :])))
        # Something is kept for validation and for a machine that slows down.
        return self._fitting(step, self.marks[-1], pace, kept=0.08)

    def _fitting(self, step: int, now: float, pace: float, *, kept: float) -> int:
        left = (self.seconds or 0.0) - (now - self.started)
        return step + max(0, int((1 - kept) * left / pace))

    def left(self, step: int, steps: int | None) -> float:
        """Return the seconds that training will still take."""
        spent = time.monotonic() - self.started
        if not steps:
            return (self.seconds or 0.0) - spent
        pace = spent / max(1, step - self.first)
        return max(0.0, pace * (steps - step))

    def out_of_time(self) -> bool:
        """Return whether the time given is used up."""
        return self.seconds is not None and time.monotonic() - self.started > self.seconds


def learning_rate(
    peak: float, step: int, steps: int, *, warmup: float, decay: str = "cosine"
) -> float:
    """Return the rate of a step: linear warm-up over a fraction of the steps, then down to 0.

    Parameters
    ----------
    peak
        The highest rate.
    step, steps
        The step, from 0, and how many there are.
    warmup
        Fraction of the steps spent warming up.
    decay
        The way down: "cosine" or "linear".
    """
    warm = max(1.0, warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    done = min(1.0, (step - warm) / max(1.0, steps - warm))
    return peak * (1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
