"""The training loop of the networks that are compared with ours: least squares, best weights kept.

`shine_em.training` trains the blind-spot networks of this package on the noisy movie itself. The
rivals have other inputs, targets and schedules; what they share is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..compute import autocast
from ..errors import ShineError
from ..optimiser import Optimiser, set_rate
from ..pacing import Planner, learning_rate

__all__ = ["CosinePace", "Fitted", "Pace", "PlateauPace", "Sample", "fit"]

Sample = tuple[Tensor, Tensor, Tensor]
"""Windows ``(b, frames, h, w)``, targets ``(b, h, w)`` and weights ``(b, h, w)``."""


class Pace(Protocol):
    """Decides how fast to learn and when to stop."""

    def rate(self, step: int) -> float | None:
        """Return the learning rate of a step; None to stop before it."""

    def judge_next(self, step: int) -> bool:
        """Return whether the held-out loss is due after so many steps."""

    def judged(self, loss: float) -> None:
        """Hear the held-out loss."""

    def done(self, step: int) -> float:
        """Return the fraction that is done, 0 to 1."""


class CosinePace:
    """Linear warm-up, then cosine to 0, over a number of steps or what fits into a time.

    Parameters
    ----------
    peak
        Peak learning rate.
    steps
        Number of steps where no time is given.
    seconds
        Wall time; the number of steps then follows from the speed of the first ones.
    """

    def __init__(self, peak: float, *, steps: int, seconds: float | None = None) -> None:
        self.peak = peak
        self.steps = steps if seconds is None else None
        self.seconds, self.started = seconds, time.monotonic()
        self.planner = Planner(seconds, self.started, first=0, fixed=self.steps)

    def rate(self, step: int) -> float | None:
        """Return the learning rate of a step; None once steps or time are used up."""
        if step:
            self.steps = self.planner.steps(step)
        if (self.steps is not None and step >= self.steps) or (step and self.planner.out_of_time()):
            return None
        # Until the speed is known, the rate warms up as in a run of 200 steps.
        return learning_rate(self.peak, step, self.steps or 200, warmup=0.05)

    def judge_next(self, step: int) -> bool:
        """Return whether a tenth of the steps has passed."""
        return self.steps is not None and step % max(1, self.steps // 10) == 0

    def judged(self, loss: float) -> None:
        """Ignore the loss: the schedule is fixed."""

    def done(self, step: int) -> float:
        """Return the fraction of the steps, or of the time while the steps are not known."""
        if self.steps is not None:
            return min(1.0, step / max(1, self.steps))
        return min(1.0, (time.monotonic() - self.started) / (self.seconds or 1.0))


class PlateauPace:
    """A constant rate, lowered and at last stopped where the held-out loss no longer improves.

    Parameters
    ----------
    peak
        Learning rate of the first stage; each further stage has a third of it.
    every
        Steps between two measurements of the held-out loss.
    patience
        Measurements without a new best, by more than ``tolerance`` of it, that end a stage.
    stages
        Number of stages.
    seconds
        Most wall time, or None; `plateau` tells whether the plateau was reached before it.
    steps
        Most steps, or None.
    """

    tolerance = 1e-3

    def __init__(
        self, peak: float, *, every: int, patience: int = 4, stages: int = 4,
        seconds: float | None = None, steps: int | None = None,
    ) -> None:  # fmt: skip
        self.steps = steps
        self.peak, self.every, self.patience, self.stages = peak, every, patience, stages
        self.seconds, self.started = seconds, time.monotonic()
        self.stage, self.waited, self.best = 0, 0, math.inf

    @property
    def plateau(self) -> bool:
        """Whether the last stage has ended."""
        return self.stage >= self.stages

    def rate(self, step: int) -> float | None:
        """Return the learning rate of a step; None at the plateau, or when time or steps are up."""
        spent = time.monotonic() - self.started
        if self.plateau or (self.seconds is not None and step and spent > self.seconds):
            return None
        if self.steps is not None and step >= self.steps:
            return None
        return self.peak / 3**self.stage * min(1.0, (step + 1) / self.every)

    def judge_next(self, step: int) -> bool:
        """Return whether ``every`` steps have passed."""
        return step % self.every == 0

    def judged(self, loss: float) -> None:
        """End the stage where the loss has not improved for too long."""
        if loss < self.best * (1 - self.tolerance):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.stage, self.waited = self.stage + 1, 0

    def done(self, step: int) -> float:
        """Return the fraction of the stages or of the time, whichever is further."""
        done = (self.stage + self.waited / self.patience) / self.stages
        if self.seconds is not None:
            done = max(done, (time.monotonic() - self.started) / self.seconds)
        return min(1.0, done)


@dataclass
class Fitted:
    """What came out of training.

    Attributes
    ----------
    steps, seconds
        Optimiser steps, and wall time.
    best_step
        The step whose weights the network now has.
    curve
        ``(step, training loss, held-out loss)`` at each measurement.
    """

    steps: int = 0
    seconds: float = 0.0
    best_step: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)


def fit(
    network: nn.Module,
    draw: Callable[[int], Sample],
    held_out: Sequence[Sample],
    *,
    pace: Pace,
    optimisers: Sequence[Optimiser | torch.optim.Optimizer],
    device: torch.device,
    precision: str,
    progress: Callable[[str, float], None] | None = None,
) -> Fitted:
    """Train a network by weighted least squares; leave it with the best weights.

    Parameters
    ----------
    network
        Takes windows ``(b, frames, h, w)``, gives ``(b, h, w)``; on ``device`` already.
    draw
        ``draw(step)`` gives the batch of a step.
    held_out
        Samples whose loss picks the best weights; where there are none, the last ones are kept.
    pace
        Rate and end.
    optimisers
        Of the network's parameters; a group's "ratio", where it has one, multiplies the rate.
    device, precision
        Where and how to compute.
    progress
        Called as ``progress("training", fraction)``.

    Raises
    ------
    ShineError
        If the loss is not a finite number.
    """
    result = Fitted()
    best: dict[str, Tensor] = {}
    lowest = math.inf
    started = time.monotonic()
    recent: list[float] = []

    def judge(step: int) -> None:
        nonlocal best, lowest
        loss = _loss_of(network, held_out, device, precision)
        result.curve.append((step, sum(recent) / max(1, len(recent)), loss))
        recent.clear()
        pace.judged(loss)
        if not held_out or loss < lowest:
            lowest, result.best_step = loss, step
            best = {k: v.detach().clone() for k, v in network.state_dict().items()}

    step = 0
    network.train()
    while (rate := pace.rate(step)) is not None:
        set_rate(optimisers, rate)
        sample = tuple(part.to(device) for part in draw(step))
        with autocast(device, precision):
            predicted = network(sample[0])
        loss = _error(predicted, sample[1], sample[2]) / sample[2].sum().clamp(min=1)
        network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise ShineError("Training did not converge: the loss is not a finite number.")
        step += 1
        if pace.judge_next(step):
            judge(step)
        if progress is not None:
            progress("training", pace.done(step))
    if recent or not best:
        judge(step)
    network.load_state_dict(best)
    network.eval()
    result.steps, result.seconds = step, time.monotonic() - started
    return result


def _error(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ((predicted.float() - target).square() * weight).sum()


@torch.inference_mode()
def _loss_of(
    network: nn.Module, samples: Sequence[Sample], device: torch.device, precision: str
) -> float:
    network.eval()
    total = count = 0.0
    for windows, target, weight in samples:
        with autocast(device, precision):
            predicted = network(windows.to(device))
        total += float(_error(predicted, target.to(device), weight.to(device)))
        count += float(weight.sum())
    network.train()
    return total / count if count else math.nan
