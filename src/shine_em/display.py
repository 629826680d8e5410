"""What the command line shows: rich progress or plain lines while it works, then a summary."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)

if TYPE_CHECKING:
    from .events import Event
    from .job import Result

__all__ = ["Display", "clock_time", "print_summary"]

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Shows `Event`s: a bar per stage on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.stage = ""
        self.spoken = 0.0
        self.task: TaskID | None = None
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]:>10}"),
            TextColumn("{task.fields[text]}", style="dim"),
            console=console,
        )

    def __enter__(self) -> Self:
        if not self.quiet and self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.quiet and self.console.is_terminal:
            self._finish_stage()
            self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self._bar(event)
        else:
            self._line(event)

    def count(self, stage: str) -> _Counter:
        """Return a ``(done, total)`` callback that shows as ``stage``."""
        return _Counter(self, stage)

    def _bar(self, event: Event) -> None:
        left = "" if event.seconds_left is None else f"{clock_time(event.seconds_left)} left"
        if event.stage != self.stage:
            self._finish_stage()
            self.stage = event.stage
            self.task = self.bars.add_task(event.stage, total=None, left="", text="")
        assert self.task is not None
        self.bars.update(
            self.task,
            completed=event.done,
            total=event.total or None,
            left=left,
            text=event.text,
        )

    def _finish_stage(self) -> None:
        if self.task is not None:
            task = self.bars.tasks[-1]
            self.bars.update(self.task, completed=task.total or 1, total=task.total or 1, left="")

    def _line(self, event: Event) -> None:
        now = time.monotonic()
        if event.stage == self.stage and now - self.spoken < _SECONDS_BETWEEN_LINES:
            return
        self.stage, self.spoken = event.stage, now
        words = [event.stage]
        if event.total > 1:
            words.append(f"{event.done}/{event.total}")
        if event.text:
            words.append(event.text)
        if event.seconds_left is not None:
            words.append(f"{clock_time(event.seconds_left)} left")
        self.console.print(", ".join(words), highlight=False, soft_wrap=True)


class _Counter:
    def __init__(self, display: Display, stage: str) -> None:
        self.display, self.stage = display, stage
        self.begun = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        from .events import Event

        pace = (time.monotonic() - self.begun) / max(1, done)
        self.display(Event(self.stage, done, total, seconds_left=pace * (total - done)))


def print_summary(
    console: Console, result: Result, written: Sequence[Path], seconds: float
) -> None:
    """Show warnings, what was measured and done, and where the results lie."""
    state, model, stats = result.model.state, result.model, result.noise
    for warning in result.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    gain = f", gain {stats.mean_variance.gain:.3g}" if stats.mean_variance.reliable else ""
    console.print(
        f"Noise: σ {stats.sigma:.4g}{gain}, blind spot {stats.hole[0]}x{stats.hole[1]} recommended "
        f"({stats.confidence} confidence); used {model.averaged}.",
        soft_wrap=True,
    )
    console.print(f"Model: {model.config.kind}, {state.step} steps, {state.stopped}.")
    seen = result.observations
    neighbours = (seen.snr_raw.tolist(), seen.snr_denoised.tolist())
    _print_snr(console, "neighbouring frames (Eq. 5):", *neighbours)
    if halves := result.halves:
        _print_snr(console, "halves that share no frame: ", halves["raw"], halves["denoised"])
    console.print(f"Done in {seconds:.0f} s:")
    for path in written:
        console.print(f"  {path}", markup=False, soft_wrap=True)


def _print_snr(
    console: Console, what: str, raw: Sequence[float], denoised: Sequence[float]
) -> None:
    """Show the medians over the frames, or nothing where no frame could be measured."""
    shown = []
    for values in (raw, denoised):
        measured = [value for value in values if not math.isnan(value)]
        if not measured:
            return
        middle = statistics.median(measured)
        named = "∞ dB" if middle == math.inf else "no signal"
        shown.append(f"{middle:.1f} dB" if math.isfinite(middle) else named)
    console.print(f"SNR, {what} {' → '.join(shown)}".replace(" dB →", " →"))


def clock_time(seconds: float) -> str:
    """Return "1:05" or "2:03:04" for a number of seconds."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
