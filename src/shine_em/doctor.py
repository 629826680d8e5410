"""The input doctor: what is wrong with a movie before it is denoised, and what to leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .doctor_frames import (
    FrameTable,
    find_blanks,
    find_cuts,
    find_empty,
    find_jumps,
    holds_number,
    read_table,
)
from .doctor_pixels import find_bad_pixels, find_spikes, fixed_pattern, pile_up, pixel_statistics
from .errors import ShineError
from .movie import Movie

__all__ = ["Finding", "Health", "check", "format_findings"]

_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that was seen in a movie.

    Attributes
    ----------
    code
        A stable short name: "duplicate-frames", "hot-pixels", "scene-cut", ...
    severity
        "info", "warning" or "error".
    what
        One sentence: what was seen, with numbers.
    meaning
        One sentence: what it means for denoising, or what shine does about it.
    frames
        The frames concerned, counted from 0; empty where it concerns the whole movie.
    """

    code: str
    severity: str
    what: str
    meaning: str
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Health:
    """What `check` found out about a movie.

    Attributes
    ----------
    findings
        Everything worth telling, the most severe first.
    duplicate_of
        ``(t,)`` index of the first frame with identical pixels; a unique frame holds its own.
    blank
        ``(t,)`` True for frames that are beam-blanked, constant or hold no finite value.
    segment
        ``(t,)`` number of the scene, from 0; it rises by one at each scene cut.
    bad_pixels
        ``(y, x)`` True for hot, dead, stuck and permanently non-finite pixels.
    spike_threshold, spike_floor
        Values above (below) are X-ray spikes (negative spikes); inf (-inf) where there are none.
    location, scale
        Mean and standard deviation of the good pixels of the frames that are not blank, without
        spikes and non-finite values. ``(x - location) / scale`` is the normalisation.
    frame_means
        ``(t,)`` mean over each frame's good pixels, without spikes; NaN where a frame has none.
    path
        ``(t, 2)`` displacement of the picture (y, x), px, where the frames of a window are to be
        registered (see `shine_em.registration`), or None. `check` leaves it open.
    """

    findings: tuple[Finding, ...]
    duplicate_of: np.ndarray
    blank: np.ndarray
    segment: np.ndarray
    bad_pixels: np.ndarray
    spike_threshold: float
    spike_floor: float
    location: float
    scale: float
    frame_means: np.ndarray
    path: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-safe values; the large arrays as lists of their exceptions."""
        index = np.arange(len(self.blank))
        copies = np.flatnonzero(self.duplicate_of != index)
        return {
            "findings": [{**asdict(f), "frames": list(f.frames)} for f in self.findings],
            "shape": [len(self.blank), *self.bad_pixels.shape],
            "duplicates": [[int(i), int(self.duplicate_of[i])] for i in copies],
            "blank": np.flatnonzero(self.blank).tolist(),
            "scene_starts": (np.flatnonzero(np.diff(self.segment)) + 1).tolist(),
            "bad_pixels": np.argwhere(self.bad_pixels).tolist(),
            "spike_threshold": _or_none(self.spike_threshold),
            "spike_floor": _or_none(self.spike_floor),
            "location": float(self.location),
            "scale": float(self.scale),
            "frame_means": [_or_none(m) for m in self.frame_means],
            "path": None if self.path is None else np.asarray(self.path).tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Health:
        """Rebuild what `to_dict` wrote."""
        t, y, x = values["shape"]
        duplicate_of = np.arange(t)
        for copy, first in values["duplicates"]:
            duplicate_of[copy] = first
        blank = np.zeros(t, bool)
        blank[values["blank"]] = True
        starts = np.zeros(t, int)
        starts[values["scene_starts"]] = 1
        bad = np.zeros((y, x), bool)
        if values["bad_pixels"]:
            bad[tuple(np.array(values["bad_pixels"]).T)] = True
        top, bottom = values["spike_threshold"], values["spike_floor"]
        return cls(
            findings=tuple(
                Finding(**{**f, "frames": tuple(f["frames"])}) for f in values["findings"]
            ),
            duplicate_of=duplicate_of,
            blank=blank,
            segment=np.cumsum(starts),
            bad_pixels=bad,
            spike_threshold=np.inf if top is None else float(top),
            spike_floor=-np.inf if bottom is None else float(bottom),
            location=float(values["location"]),
            scale=float(values["scale"]),
            frame_means=np.array([np.nan if m is None else m for m in values["frame_means"]]),
            path=None if values.get("path") is None else np.array(values["path"], float),
        )


def check(movie: Movie | Any, *, thorough: bool = False) -> Health:
    """Examine a movie: frames and pixels to leave out, and signs of trouble.

    Every frame is read once for the frame statistics; a spread of frames (all of them in a
    movie of usual size) is read a second time for the statistics of the pixels.

    Parameters
    ----------
    movie
        A `Movie` or a ``(t, y, x)`` array.
    thorough
        Also look for signs of earlier processing (drift correction, binning, interpolation,
        lossy compression, ...). These need more time and change nothing in the masks.

    Raises
    ------
    ShineError
        If no frame of the movie is usable.
    """
    if not isinstance(movie, Movie):
        movie = Movie.from_array(movie)
    table = read_table(movie)
    duplicate_of = _duplicates(movie, table)
    constant = find_empty(table)
    if (table.high - table.low < np.finfo(np.float32).tiny).all():
        reason = "every pixel of each frame has the same value"
        if not table.count.any():
            reason = "no frame holds a finite number"
        elif movie.dtype.kind in "iu" and np.any(table.sample != table.sample[:, :1]):
            reason = "its numbers differ by less than 1 part in 10¹⁵: subtract a constant first"
        elif np.any(table.high > table.low):
            reason = "its numbers are too small for float32: multiply them by a constant first"
        raise ShineError(
            f"{movie.source or movie.name}: no frame of this movie can be used, {reason}.\n"
            "Check that the right file or channel was exported."
        )
    dark = find_blanks(table, constant)
    blank = constant | dark
    index = np.arange(len(movie))
    usable = index[~blank & (duplicate_of == index)]

    pixels = pixel_statistics(movie, usable)
    hot, dead = find_bad_pixels(pixels, table)
    bad = hot | dead | pixels.never_finite
    spike_threshold, spikes = find_spikes(movie, table, usable, bad, sign=+1)
    negative, pits = find_spikes(movie, table, usable, bad, sign=-1)
    spike_floor = -negative  # `find_spikes` looked at the values upside down
    means, location, scale = _normalisation(movie, table, blank, bad, spike_threshold, spike_floor)
    cuts = find_cuts(table, usable)
    segment = np.zeros(len(movie), int)
    segment[cuts] = 1
    segment = np.cumsum(segment)

    findings = _frame_findings(movie, table, duplicate_of, constant, dark, usable, cuts)
    findings += _pixel_findings(hot, dead, pixels.never_finite, spikes, pits, spike_threshold)
    findings += _saturation(table.values(usable, ~bad))
    findings += _fixed_pattern(*fixed_pattern(pixels, bad))
    noise = float(np.sqrt(np.median(pixels.variance[~bad]))) if not bad.all() else 0.0
    findings += _rounding(movie.dtype, location, noise or scale)
    if thorough:
        from .doctor_signs import find_signs

        findings += find_signs(movie, usable, duplicate_of)
    findings.sort(key=lambda f: _SEVERITIES.index(f.severity))
    return Health(
        findings=tuple(findings),
        duplicate_of=duplicate_of,
        blank=blank,
        segment=segment,
        bad_pixels=bad,
        spike_threshold=spike_threshold,
        spike_floor=spike_floor,
        location=location,
        scale=scale,
        frame_means=means,
    )


def format_findings(health: Health) -> str:
    """Return the findings as lines of plain text for the terminal."""
    if not health.findings:
        return "No problems found."
    lines = []
    for finding in health.findings:
        where = f" (frames {list_frames(finding.frames)})" if finding.frames else ""
        lines.append(f"{finding.severity.upper():8}{finding.code}: {finding.what}{where}")
        lines.append(f"{'':8}{finding.meaning}")
    return "\n".join(lines)


def list_frames(frames: Sequence[int], *, longest: int = 8) -> str:
    """Write frame numbers compactly, as in ``3, 7-9, 12, ...``."""
    ordered = np.unique(np.asarray(frames, int))
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    words = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs[:longest]]
    return ", ".join(words) + (", ..." if len(runs) > longest else "")


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _duplicates(movie: Movie, table: FrameTable) -> np.ndarray:
    """Return, for each frame, the first frame with the same pixels."""
    first: dict[bytes, list[int]] = {}
    duplicate_of = np.arange(len(movie))
    for i, digest in enumerate(table.digest):
        for j in first.setdefault(digest, []):
            if table.digest_is_complete or _same(movie.frame(i), movie.frame(j)):
                duplicate_of[i] = j
                break
        else:
            first[digest].append(i)
    return duplicate_of


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _normalisation(
    movie: Movie,
    table: FrameTable,
    blank: np.ndarray,
    bad: np.ndarray,
    top: float,
    bottom: float,
) -> tuple[np.ndarray, float, float]:
    """Return frame means, location and scale; only frames that need a correction are re-read."""
    count, mean, variance = table.count.copy(), table.mean.copy(), table.variance.copy()
    again = (table.high > top) | (table.low < bottom) | bool(bad.any())
    for i in np.flatnonzero(again & (count > 0)):
        frame = movie.frame(int(i))
        values = frame[~bad].astype(np.float64)
        values = values[holds_number(values) & (values <= top) & (values >= bottom)]
        count[i] = values.size
        mean[i], variance[i] = (values.mean(), values.var()) if values.size else (np.nan, np.nan)
    use = ~blank & (count > 0)
    weight = count[use] / count[use].sum()
    location = float(np.sum(weight * mean[use]))
    scale = float(np.sqrt(np.sum(weight * (variance[use] + (mean[use] - location) ** 2))))
    return np.where(count > 0, mean, np.nan), location, scale


def _frame_findings(
    movie: Movie,
    table: FrameTable,
    duplicate_of: np.ndarray,
    constant: np.ndarray,
    dark: np.ndarray,
    usable: np.ndarray,
    cuts: np.ndarray,
) -> list[Finding]:
    findings = []
    n = len(movie)
    pixels = movie.shape[1] * movie.shape[2]
    copies = np.flatnonzero((duplicate_of != np.arange(n)) & (table.low < table.high))
    if copies.size:
        findings.append(
            Finding(
                "duplicate-frames",
                "warning",
                f"{copies.size} of {n} frames repeat an earlier frame pixel by pixel.",
                "A copy carries the same noise, so a network that sees it learns to copy noise: "
                "shine never uses a frame and its copy as each other's neighbours.",
                _ints(copies),
            )
        )
    if constant.any():
        findings.append(
            Finding(
                "constant-frame",
                "warning",
                f"{int(constant.sum())} of {n} frames are constant or hold no finite value.",
                "There is nothing to learn from them: they are left out of training and are "
                "nobody's neighbours.",
                _ints(np.flatnonzero(constant)),
            )
        )
    if dark.any():
        findings.append(
            Finding(
                "beam-blank",
                "warning",
                f"{int(dark.sum())} of {n} frames are dark between bright ones: the beam was "
                "blanked or the shutter closed.",
                "Dark frames carry no picture: they are left out of training and are nobody's "
                "neighbours.",
                _ints(np.flatnonzero(dark)),
            )
        )
    holes = np.flatnonzero((table.count < pixels) & (table.count > 0))
    if holes.size:
        missing = 1 - table.count[holes].sum() / (pixels * holes.size)
        findings.append(
            Finding(
                "non-finite",
                "warning",
                f"{holes.size} frames hold NaN, infinite or unusably large values "
                f"({missing:.2g} of their pixels).",
                "These pixels are left out of the statistics and of the training.",
                _ints(holes),
            )
        )
    for t, before, after in find_jumps(table, usable, cuts):
        findings.append(
            Finding(
                "intensity-jump",
                "warning",
                f"The brightness steps from {before:.4g} to {after:.4g} at frame {t}, "
                "without a visible change of scene.",
                "Neighbour frames across the step differ in brightness and noise; expect the "
                "best results when the two parts are denoised as separate movies.",
                (t,),
            )
        )
    if cuts.size:
        findings.append(
            Finding(
                "scene-cut",
                "warning",
                f"The picture changes altogether at {cuts.size} place"
                f"{'s' if cuts.size > 1 else ''}: the movie holds {cuts.size + 1} scenes.",
                "Frames of different scenes say nothing about each other: windows of "
                "neighbour frames never cross a cut.",
                _ints(cuts),
            )
        )
    return findings


def _pixel_findings(
    hot: np.ndarray,
    dead: np.ndarray,
    never_finite: np.ndarray,
    spikes: list[tuple[int, float]],
    pits: list[tuple[int, float]],
    threshold: float,
) -> list[Finding]:
    findings = []
    masked = "They are masked in the training, so that the network does not learn to draw them."
    for mask, code, words in (
        (hot, "hot-pixels", "stay far brighter than their neighbourhood"),
        (dead, "dead-pixels", "stay far darker than their neighbourhood or never change"),
        (never_finite, "non-finite-pixels", "are never finite"),
    ):
        if mask.any():
            y, x = np.argwhere(mask)[0]
            findings.append(
                Finding(
                    code,
                    "warning",
                    f"{int(mask.sum())} pixels ({mask.mean():.2g} of the detector) {words} "
                    f"(the first at y={y}, x={x}).",
                    masked,
                )
            )
    for found, code, words in (
        (spikes, "x-ray-spikes", "up to"),
        (pits, "negative-spikes", "down to"),
    ):
        if found:
            extreme = max((v for _, v in found), key=abs)
            findings.append(
                Finding(
                    code,
                    "warning",
                    f"{len(found)} isolated values ({words} {extreme:.4g}) lie far beyond all "
                    "others and last one frame only"
                    + (f" (threshold {threshold:.4g})." if code == "x-ray-spikes" else "."),
                    "Single hits of that size (X-rays, cosmic rays, read-out errors) would "
                    "dominate the loss: they are masked in the training.",
                    _ints(np.unique([i for i, _ in found])),
                )
            )
    return findings


def _saturation(values: np.ndarray) -> list[Finding]:
    findings = []
    for side, words in ((+1, "highest"), (-1, "lowest")):
        fraction, value = pile_up(values, side)
        if fraction:
            findings.append(
                Finding(
                    "saturation" if side > 0 else "clipped-low",
                    "warning" if fraction > 1e-3 else "info",
                    f"{fraction:.2%} of the pixels pile up at the {words} value, {value:.6g}.",
                    "What lay beyond is lost and denoising cannot bring it back; the noise there "
                    "is not what the statistics assume.",
                )
            )
    return findings


def _fixed_pattern(strength: float, white: bool) -> list[Finding]:
    if strength < 0.05 or not white:
        return []
    return [
        Finding(
            "fixed-pattern",
            "warning" if strength > 0.2 else "info",
            f"Pixel-fine structure of {strength:.2f} times the noise of one frame stays the same "
            "in all frames, most likely differences of gain or offset between pixels.",
            "What is the same in all frames passes for picture: correct the movie with the "
            "detector's gain and dark references first, if you have them.",
        )
    ]


def _rounding(dtype: np.dtype[Any], location: float, noise: float) -> list[Finding]:
    """Tell where float32, in which networks work and results are written, rounds off too much.

    That is more than a fourteenth of the noise: the error of rounding is a step over √12.
    """
    step = float(np.spacing(np.float32(abs(location))))
    exact = step <= 1 if dtype.kind in "biu" else dtype.itemsize <= 4
    if exact or step <= noise / 4:
        return []
    return [
        Finding(
            "rounding",
            "warning",
            f"At this movie's level, {location:.6g}, float32 numbers are {step:.3g} apart, and the "
            f"noise is {noise:.3g}.",
            "Networks work with such numbers, so that much of the picture is rounded away: "
            "subtract a constant from the movie first.",
        )
    ]


def _ints(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
