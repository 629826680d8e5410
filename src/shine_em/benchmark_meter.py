"""What a method costs: seconds of training, seconds and operations per frame.

It is read off the method's own progress while the method runs, so nothing is run again, in another
way, or without the rest of the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from types import TracebackType
from typing import Any

__all__ = ["Meter"]


class Meter:
    """A listener to a method's progress, ``meter(stage, fraction)``.

    While "denoising" goes from a third to two thirds, PyTorch's operations are counted (a
    multiply-add is two); the time per frame is taken outside of that stretch, which the counting
    slows down.

    Parameters
    ----------
    frames
        How many frames the movie has.
    tell
        Who else listens.
    """

    def __init__(self, frames: int, tell: Callable[[str, float], None]) -> None:
        self.frames, self.tell = frames, tell
        self._seen: list[tuple[float, float]] = []  # time and fraction of what has been denoised
        self._from = self._to = -1  # where counting began and ended, in that list
        self._counter: Any = None
        self._counting = ExitStack()
        self._gflop: float | None = None
        self._begun = self._cpu = self._seconds = 0.0

    def __enter__(self) -> Meter:
        self._begun, self._cpu = time.monotonic(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seconds = time.monotonic() - self._begun
        self._cpu = time.process_time() - self._cpu
        self._stop_counting()

    def __call__(self, stage: str, fraction: float) -> None:
        """Hear how far the method is."""
        if stage == "denoising":
            self._seen.append((time.monotonic(), fraction))
            if self._from < 0 and fraction >= 1 / 3 and "torch" in sys.modules:
                self._start_counting()
            elif self._counter is not None and fraction >= 2 / 3:
                self._stop_counting()
        self.tell(stage, fraction)

    def cost(self) -> dict[str, float | None]:
        """Return what was measured; None for what the method's progress does not tell.

        Returns
        -------
        dict
            "seconds": all; "cpu_s": of all threads, so that the ratio says how many cores it got;
            "training_s": until the first frame is denoised, one frame's time taken off; "frame_s":
            per frame; "gflop": 10⁹ operations per frame.
        """
        found: dict[str, float | None] = {
            "seconds": self._seconds, "cpu_s": self._cpu, "training_s": None, "frame_s": None,
            "gflop": self._gflop,
        }  # fmt: skip
        seen, middle = self._seen, range(self._from, self._to)
        steps = [
            (b[0] - a[0], b[1] - a[1]) for k, (a, b) in enumerate(pairwise(seen)) if k not in middle
        ]
        part = sum(fraction for _, fraction in steps)
        if part > 0:
            each = sum(seconds for seconds, _ in steps) / part
            found["frame_s"] = each / self.frames
            first, fraction = seen[0]
            found["training_s"] = max(0.0, first - self._begun - each * fraction)
        return found

    def _start_counting(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        from .compute import in_this_thread

        self._from = len(self._seen) - 1
        self._counting.enter_context(in_this_thread())
        self._counter = self._counting.enter_context(FlopCounterMode(display=False))

    def _stop_counting(self) -> None:
        if self._counter is None:
            return
        self._counting.close()
        self._to = len(self._seen) - 1
        part = self._seen[self._to][1] - self._seen[self._from][1]
        operations = self._counter.get_total_flops()
        if operations and part > 0:  # none are counted where PyTorch does none
            self._gflop = operations / (part * self.frames) / 1e9
        self._counter = None
