"""Temporal windows, and normalisation with its exact inverse."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .doctor import Health

__all__ = ["Normalisation", "Timeline", "Window", "cut"]

# A neighbour this far away in time is none any more; it also bounds the search among blanks.
_FURTHEST = 64

Window = tuple[int | None, ...]  # frame numbers; None where no frame may stand


@dataclass(frozen=True)
class Normalisation:
    """Global, per-movie standardisation ``(x - location) / scale``, and which values it trusts.

    Pixels above ``ceiling`` or below ``floor`` (X-ray spikes) and pixels that are not finite are
    set to 0 (the movie's mean) at the network's input: a constant, since filling them from their
    neighbours would carry hidden pixels across the hole's edge.
    """

    location: float
    scale: float
    floor: float = -np.inf
    ceiling: float = np.inf

    @classmethod
    def of(cls, health: Health) -> Normalisation:
        """Take the robust statistics that the input check measured."""
        scale = health.scale if health.scale > 0 else 1.0
        return cls(health.location, scale, health.spike_floor, health.spike_threshold)

    def trusted(self, raw: np.ndarray, bad: np.ndarray | None = None) -> np.ndarray:
        """Return where values are finite, no spikes and not ``bad``, as bool of the same shape."""
        good = (raw >= self.floor) & (raw <= self.ceiling)
        if raw.dtype.kind == "f":
            good &= np.isfinite(raw)
        return good if bad is None else good & ~bad

    def apply(self, raw: np.ndarray, bad: np.ndarray | None = None) -> np.ndarray:
        """Return float32 standardised values; untrusted and ``bad`` pixels become 0."""
        with np.errstate(over="ignore"):  # values too large for float32 are spikes
            x = self.standardise(raw)
        return np.where(self.trusted(raw, bad), x, np.float32(0))

    def standardise(self, x: np.ndarray) -> np.ndarray:
        """Return float32 standardised values, whether they are trusted or not."""
        return (x.astype(np.float32) - np.float32(self.location)) * np.float32(1 / self.scale)

    def invert(self, x: np.ndarray) -> np.ndarray:
        """Return float32 values in the movie's units."""
        return (x.astype(np.float64) * self.scale + self.location).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values (infinities as None)."""
        return {k: v if np.isfinite(v) else None for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Normalisation:
        """Rebuild what `to_dict` gave."""
        edges = {"floor": -np.inf, "ceiling": np.inf}
        return cls(**{k: edges[k] if v is None else float(v) for k, v in values.items()})


def cut(
    image: np.ndarray, here: tuple[slice, slice], by: tuple[int, int] = (0, 0), *, fill: Any = 0
) -> np.ndarray:
    """Return ``image[here]`` from ``by`` (rows, columns) further on; ``fill`` beyond the image.

    Whole pixels only: interpolation would correlate the noise of neighbouring pixels.
    """
    if by == (0, 0):
        return image[here]
    source, target, size = [], [], []
    for place, length, moved in zip(here, image.shape, by, strict=True):
        start, stop, _ = place.indices(length)
        first, last = (min(max(v + moved, 0), length) for v in (start, stop))
        source.append(slice(first, last))
        target.append(slice(first - start - moved, last - start - moved))
        size.append(stop - start)
    out = np.full(size, fill, image.dtype)
    if all(s.stop > s.start for s in source):
        out[tuple(target)] = image[tuple(source)]
    return out


class Timeline:
    """Which frames may stand beside which: the windows that a network is shown.

    A window never crosses a scene cut and never holds its centre frame twice, be it the frame
    itself or an identical copy: that would show the network the pixels that its hole hides.
    Where a neighbour is missing (blanks, duplicates), the next one takes its place, so that the
    frames on either side stay in the order of time. Where there is none near (ends, cuts), the
    nearest unused frames of the other side do, inner positions first; a scene with too few frames
    repeats neighbours; one with a single frame leaves the positions empty.

    Where the scene drifts (``health.path``), neighbours are to be shown displaced by whole pixels,
    so that their picture lies on that of the centre frame (`displacements`).

    Parameters
    ----------
    n
        Frames in the movie.
    health
        The input check's findings; None for "all frames are different, good and one scene".
    blinded_lags
        Distances in time at which the noise is correlated: a frame so near to the centre frame may
        only stand where the network is blinded, at an offset that is itself such a distance.
    """

    def __init__(
        self, n: int, health: Health | None = None, blinded_lags: Sequence[int] = ()
    ) -> None:
        self.n = n
        self.blinded = frozenset(blinded_lags)
        self.identity = np.arange(n) if health is None else np.asarray(health.duplicate_of)
        self.usable = np.ones(n, bool) if health is None else ~np.asarray(health.blank)
        self.segment = np.zeros(n, int) if health is None else np.asarray(health.segment)
        self.path = None if health is None else health.path

    def window(
        self,
        t: int,
        frames: int,
        *,
        first: int = 0,
        last: int | None = None,
        mirror: bool = False,
    ) -> Window:
        """Return the ``frames`` frame numbers around ``t``, in the order of time offsets.

        A window with neighbours out of place (`shift`) is turned so that these come last.

        Parameters
        ----------
        t, frames
            The centre frame, and the width of the window.
        first, last
            Narrow the frames that may be used, as at the ends of a movie.
        mirror
            Fill gaps with the mirror image in time, as the paper's network was trained, instead
            of with the nearest unused frames.
        """
        allowed = range(first, self.n if last is None else last + 1)
        return self._window(t, frames, allowed, mirror=mirror)

    def half_window(self, t: int, frames: int, *, mirror: bool = False) -> Window:
        """Return a window made only of frames as even or odd as ``t``.

        Pictures of which the other kind holds a copy are left out, or halves would share them.
        """
        half = copy(self)
        half.usable = self.usable & ~np.isin(self.identity, self.identity[1 - t % 2 :: 2])
        return half._window(t, frames, range(t % 2, self.n, 2), step=2, mirror=mirror)

    def _window(
        self, t: int, frames: int, allowed: range, *, step: int = 1, mirror: bool = False
    ) -> Window:
        half = frames // 2
        candidates = self._nearest(t, allowed, 2 * frames * step)
        chosen: dict[int, int] = {}
        for side in (1, -1):  # outwards, in the order of time
            waiting = [c for c in candidates if (c - t) * side > 0]
            for o in range(1, half + 1):
                near = [c for c in waiting if abs(c - t) <= step * (o + half)]
                fitting = [c for c in near if self._fits(t, o, c)]
                if not fitting:
                    break
                chosen[side * o] = fitting[0]
                waiting = waiting[waiting.index(fitting[0]) + 1 :]
        offsets = sorted((o for o in range(-half, half + 1) if o), key=lambda o: (abs(o), -o))
        moved = [o for o in offsets if o not in chosen]
        for o in moved:
            fitting = [c for c in candidates if self._fits(t, o, c)]
            if mirror and t - step * o in fitting:
                chosen[o] = t - step * o
            elif fitting:
                used = chosen.values()
                chosen[o] = min(fitting, key=lambda c: (c in used, (c - t) * o > 0, abs(c - t)))
        turn = -1 if sum(o < 0 for o in moved) > sum(o > 0 for o in moved) else 1
        return tuple(t if o == 0 else chosen.get(turn * o) for o in range(-half, half + 1))

    @staticmethod
    def shift(window: Window) -> int:
        """Return how many neighbours are out of place, at most half of the window's width.

        That is, on the other side of the centre frame in time than their place says. The network
        has extra weights for each number, since such a neighbour tells something else.
        """
        half = len(window) // 2
        t = window[half]
        assert t is not None
        sides = [(k < half) == (i < t) for k, i in enumerate(window) if i is not None and k != half]
        return min(sum(sides), len(sides) - sum(sides))  # the window may be turned

    def displacements(self, window: Window) -> list[tuple[int, int]]:
        """Return how far (rows, columns) the picture of each frame lies from the centre frame's.

        Zero where the frame may not be displaced: where the network is blinded, the hole must lie
        on the pixels whose noise is correlated with the hidden ones, and these are where they are.
        """
        half = len(window) // 2
        t = window[half]
        found = []
        for k, i in enumerate(window):
            y = x = 0
            if self.path is not None and None not in (i, t) and abs(k - half) not in self.blinded:
                y, x = (int(v) for v in np.rint(self.path[i] - self.path[t]))
            found.append((y, x))
        return found

    def _fits(self, t: int, offset: int, candidate: int) -> bool:
        return abs(offset) in self.blinded or abs(candidate - t) not in self.blinded

    def _nearest(self, t: int, allowed: range, most: int) -> list[int]:
        """Return up to ``most`` distinct, usable frames of the scene, nearest first."""
        seen = {int(self.identity[t])}
        found: list[int] = []
        for distance in range(1, min(self.n, _FURTHEST)):
            inside = False
            for c in (t + distance, t - distance):
                if not 0 <= c < self.n or self.segment[c] != self.segment[t]:
                    continue
                inside = True
                if c in allowed and self.usable[c] and int(self.identity[c]) not in seen:
                    seen.add(int(self.identity[c]))
                    found.append(c)
            if not inside or len(found) >= most:
                break
        return found

    def targets(self) -> list[int]:
        """Return the frames worth training on: usable, each picture once."""
        return [t for t in range(self.n) if self.usable[t] and self.identity[t] == t]

    def spread(self, count: int) -> list[int]:
        """Return up to ``count`` of the `targets`: the middles of as many equal stretches.

        The ends of the movie, which have neighbours on one side only, count no more than others.
        """
        targets = self.targets()
        count = min(count, len(targets))
        return [targets[(2 * i + 1) * len(targets) // (2 * count)] for i in range(count)]

    def near(self, t: int, most: int) -> list[int]:
        """Return the `targets` of the scene of ``t`` that are up to ``most`` frames away."""
        here = self.segment[t]
        return [i for i in self.targets() if abs(i - t) <= most and self.segment[i] == here]

    def pairs(self) -> list[int]:
        """Return the first frames of all neighbours in one scene that are both `targets`."""
        good = set(self.targets())
        return [t for t in sorted(good) if t + 1 in good and self.segment[t] == self.segment[t + 1]]
