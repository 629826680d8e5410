"""What a long job tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Event", "Listener"]


@dataclass(frozen=True)
class Event:
    """Where the job is: ``done`` of ``total`` in a stage, with what is worth showing."""

    stage: str
    done: int
    total: int
    text: str = ""
    seconds_left: float | None = None


Listener = Callable[[Event], None]
