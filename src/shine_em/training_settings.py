"""The training recipe: the lean network's, and the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .network import Hole

__all__ = ["CARD_BATCH", "PRESETS", "TrainingSettings"]

CARD_BATCH = 16  # samples per step on a CUDA card, which two would not keep busy


@dataclass(frozen=True)
class TrainingSettings:
    """The recipe.

    Attributes
    ----------
    steps
        Optimiser steps; None to fix them from the measured speed and the time given.
    epochs
        Used where ``steps`` and the time are both None: passes over the movie's frames.
    batch, crop
        Samples per step and their width in pixels.
    optimiser, learning_rate, warmup, decay
        "muon" (Adam for all but kernels), "adam" or "radam"; peak rate; fraction of the steps
        spent warming up; the way down to 0, "linear" or "cosine".
    average
        Half-life of the running average of the weights, as a fraction of the steps (0: none).
    holes
        Holes to draw from, one per step.
    hole
        The hole that the validation loss is measured with.
    turn
        Augment with 90° rotations (needs square holes); mirrors and 180° are always used.
    reverse, one_sided
        See `PatchPool.draw`.
    blinded_lags
        See `Timeline`.
    registered
        Whether neighbours were displaced by the scene's drift (``health.path``): a movie that this
        model is to denoise must be shown in the same way.
    correlation
        Noise correlation (`leakage.correlation_to_remember`) by which the noise that a hole's
        surroundings foretell is taken out of what is learned; empty: not done.
    validation_frames
        Frames held out, whose loss picks the best model.
    validate_every
        Steps between two validations, as a fraction of all.
    """

    preset: str = "lean"
    steps: int | None = None
    epochs: int | None = None
    batch: int = 2
    crop: int = 128
    optimiser: str = "muon"
    learning_rate: float = 3e-3
    warmup: float = 0.05
    decay: str = "linear"
    average: float = 0.02
    holes: tuple[Hole, ...] = ((3, 3),)
    hole: Hole = (3, 3)
    turn: bool = True
    reverse: bool = True
    one_sided: float = 0.3
    blinded_lags: tuple[int, ...] = ()
    registered: bool = False
    correlation: tuple[tuple[float, ...], ...] = ()
    validation_frames: int = 2
    validate_every: float = 0.1
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        """Rebuild what `to_dict` gave."""
        holes = tuple((int(m), int(n)) for m, n in values["holes"])
        lags = tuple(int(k) for k in values["blinded_lags"])
        hole = (int(values["hole"][0]), int(values["hole"][1]))
        known = tuple(tuple(float(v) for v in row) for row in values.get("correlation", ()))
        return cls(
            **{**values, "holes": holes, "hole": hole, "blinded_lags": lags, "correlation": known}
        )


PRESETS: dict[str, TrainingSettings] = {
    "lean": TrainingSettings(),
    # Materials and Methods, "Training details".
    "paper": TrainingSettings(
        preset="paper", epochs=2000, batch=16, crop=256, optimiser="radam", learning_rate=1e-3,
        decay="cosine", average=0.0, reverse=False, one_sided=0.0,
    ),
}  # fmt: skip
