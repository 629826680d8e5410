"""What the dose advisor found: the levels, the sentence, the table, the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .dose_thinning import Skipping
from .movie import Movie

if TYPE_CHECKING:
    from .dose_measures import Halves

__all__ = ["KEEP", "Advice", "Criterion", "Level", "Picture"]

Criterion = Literal["snr", "frc", "particles"]

#: What must be left of a measurement, by default: 3 dB less SNR, four fifths of the resolution, and
#: particles' number and diameter within 10 %.
KEEP: dict[str, float] = {"snr": 0.5, "frc": 0.8, "particles": 0.9}


@dataclass(frozen=True, eq=False)
class Picture:
    """The middle of one frame, in units of the full dose: ``(y, x)`` raw and denoised."""

    raw: np.ndarray
    denoised: np.ndarray


@dataclass(frozen=True, eq=False)
class Level:
    """What was measured at one dose or frame rate.

    Attributes
    ----------
    name
        "25 % dose", "every 2nd frame", ...
    fraction, skip
        Share of the dose; and one of so many frames (or so many summed).
    frames, steps, seconds
        Frames of this movie, training steps, and wall time.
    halves
        SNR and Fourier ring correlation of frames that share nothing.
    difference
        Root mean square difference from the movie denoised at the full dose, as a share of that
        movie's contrast (standard deviation).
    values
        Mean over the frames of what was measured in each.
    kept, kept_error
        By criterion: how much of the measurement at the full dose is left, and the standard error.
    picture
        One frame, for the figure.
    warnings
        Of the job.
    """

    name: str
    fraction: float
    skip: int
    frames: int
    steps: int
    seconds: float
    halves: Halves
    difference: float
    values: dict[str, float]
    kept: dict[str, float]
    kept_error: dict[str, float]
    picture: Picture
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Advice:
    """The levels, and what they mean for the next session.

    Attributes
    ----------
    movie
        The part of the movie that was used.
    criterion, keep
        The measurement that decides, and how much of it must be left.
    levels
        The full dose first, then lower doses, then lower frame rates.
    uncertainty
        Error of a denoised frame at the full dose as a share of the contrast, from its halves.
    skipping
        Whether skipped frames were dropped or summed.
    notes
        How electrons were found and what part of the movie was used, plain sentences.
    seconds
        Wall time.
    """

    movie: Movie
    criterion: Criterion
    keep: float
    levels: tuple[Level, ...]
    uncertainty: float
    skipping: Skipping
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    electrons: dict[str, Any] = field(default_factory=dict)

    def doses(self) -> list[Level]:
        """Return the full dose and the lower ones."""
        return [v for v in self.levels if v.skip == 1]

    def rates(self) -> list[Level]:
        """Return the full frame rate and the lower ones."""
        return [v for v in self.levels if v.fraction == 1]

    def passes(self, level: Level) -> bool:
        """Tell whether enough of the measurement is left."""
        return level.kept[self.criterion] >= self.keep

    def lowest(self, levels: Sequence[Level]) -> tuple[Level, Level | None]:
        """Return the last level before the first failure, and that failure if there is one."""
        last = levels[0]
        for level in levels[1:]:
            if not self.passes(level):
                return last, level
            last = level
        return last, None

    def sentences(self) -> list[str]:
        """Return how far dose and frame rate could drop, a sentence each where it was tested."""
        said = []
        if len(self.doses()) > 1:
            said.append(self._sentence("dose", self.doses()))
        if len(self.rates()) > 1:
            said.append(self._sentence("frame rate", self.rates()))
        return said

    def _sentence(self, what: str, levels: Sequence[Level]) -> str:
        last, failed = self.lowest(levels)
        measured = {
            "snr": "the SNR of the denoised movie (halves that share no frame)",
            "frc": "the resolution of the denoised movie (Fourier ring correlation 1/7)",
            "particles": "the particle measurement",
        }[self.criterion]
        aim = f"the {100 * self.keep:g} % asked for"
        if failed is None:
            return (
                f"The {what} could drop to {self._amount(last)} or further: {measured} keeps "
                f"{self._left(last)} there, above {aim}, and no lower {what} was tested."
            )
        if last is levels[0]:
            return (
                f"The {what} could not drop as far as to {self._amount(failed)}: {measured} keeps "
                f"only {self._left(failed)} there, below {aim}, and nothing between was tested."
            )
        return (
            f"The {what} could drop to {self._amount(last)} before {measured} fails: it keeps "
            f"{self._left(last)} there, and {self._left(failed)} at {self._amount(failed)}, below "
            f"{aim}."
        )

    def _left(self, level: Level) -> str:
        error = level.kept_error[self.criterion]
        spread = f" ± {100 * error:.0f}" if np.isfinite(error) else ""
        return f"{100 * level.kept[self.criterion]:.0f}{spread} %"

    def _amount(self, level: Level) -> str:
        if level.skip == 1:
            dose = self.movie.dose_e_per_A2
            known = "" if dose is None else f" ({level.fraction * dose:.3g} of {dose:.3g} e⁻/Å²)"
            return f"{100 * level.fraction:g} %{known}"
        time_s = self.movie.frame_time_s
        if not time_s:
            return f"1/{level.skip}"
        return f"1/{level.skip} ({1 / (time_s * level.skip):.3g} of {1 / time_s:.3g} frames/s)"

    def table(self) -> str:
        """Return the levels as a plain-text table."""
        unit = "nm" if self.movie.pixel_size_nm else "px"
        names = list(self.levels[0].values)
        head = [
            "level", "frames", "SNR raw, dB", "SNR, dB", f"FRC 1/7, {unit}", "difference, %",
            *names, "kept, %", "",
        ]  # fmt: skip
        rows = [head]
        for v in self.levels:
            h = v.halves
            rows.append(
                [
                    v.name, str(v.frames), _db(h.raw_snr), _db(h.snr),
                    _pm(h.resolution, h.resolution_error, 2), f"{100 * v.difference:.1f}",
                    *(f"{v.values[n]:.4g}" for n in names),
                    _pm(100 * v.kept[self.criterion], 100 * v.kept_error[self.criterion], 0),
                    "" if self.passes(v) else "fails",
                ]
            )  # fmt: skip
        widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in
                      enumerate(zip(r, widths, strict=True))).rstrip()
            for r in rows
        ]  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-safe values; what is not finite becomes None."""
        m = self.movie
        return {
            "movie": str(m.source or m.name), "shape": list(m.shape), "history": list(m.history),
            "dose_e_per_A2": m.dose_e_per_A2, "frame_time_s": m.frame_time_s,
            "pixel_size_nm": m.pixel_size_nm, "measure": self.criterion, "keep": self.keep,
            "skipping": self.skipping, "electrons": _plain(self.electrons),
            "uncertainty_of_full_dose": _plain(self.uncertainty),
            "levels": [
                {
                    "name": v.name, "fraction": v.fraction, "skip": v.skip, "frames": v.frames,
                    "steps": v.steps, "seconds": round(v.seconds, 1),
                    "pairs_begin_at": v.halves.frames.tolist(),
                    "snr_raw_db": _plain(v.halves.raw_snr), "snr_db": _plain(v.halves.snr),
                    "snr_error_db": _plain(v.halves.snr_error),
                    "resolution": _plain(v.halves.resolution),
                    "resolution_error": _plain(v.halves.resolution_error),
                    "frc_frequency": _plain(v.halves.curve.frequency.tolist()),
                    "frc": _plain(v.halves.curve.correlation.tolist()),
                    "difference_from_full_dose": _plain(v.difference),
                    "values": _plain(v.values), "kept": _plain(v.kept),
                    "kept_error": _plain(v.kept_error), "passes": self.passes(v),
                    "warnings": list(v.warnings),
                }
                for v in self.levels
            ],
            "advice": self.sentences(), "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def _pm(value: float, error: float, digits: int) -> str:
    if not np.isfinite(value):
        return "none"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if np.isfinite(error) else "")


def _db(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "none"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
