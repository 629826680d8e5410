"""Events of one or two frames that the denoised movie shows weaker than they were.

A network that sees neighbouring frames expects the picture to go on. What flashes up once may come
out faint, or smeared over the frames around it. Its missing part is then in the residual (raw −
denoised): a blob, at that place, in that frame and not in those around it.

The residual is summed over squares three holes wide. The sums are divided by their usual scatter
among places of the same brightness (so much is noise) and, at the end, by the scatter at the same
place in the frames further away where that is larger: what stands out in many frames is no event.
The threshold keeps the chance of one false alarm in a whole movie of noise at 1 %, counting every
square of every frame; where the sums are skewed (few electrons per square) it is that of the gamma
distribution with the same skewness, and heavier tails raise it by the Cornish-Fisher term.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.special import gammainccinv, ndtri  # scipy.stats takes a second to load

from .network import Hole

__all__ = ["Smear", "SmearDetector", "smear_warnings"]

FALSE_ALARMS = 0.01  # per movie
#: Share of an event's contrast that may be missing.
TOLERATED = 0.2
_AROUND = 2  # frames before and after that an event is compared with
_LEVELS = 16  # classes of brightness
_USUAL = 15  # frames that say how much the residual scatters usually
# Less does not tell how much is usual:
_CELLS = 8  # along a side
_FRAMES = 3  # of two that hold an event, or a share of it, none shows the scatter without it
_LEAST = 4.5  # what is looked at more closely, in standard deviations


@dataclass(frozen=True)
class Smear:
    """An event that was weakened.

    Attributes
    ----------
    frame
        Where in time.
    y, x
        Its middle, px.
    lost
        The share of its contrast against the frames around it that the denoised frame misses.
    z
        What is missing, in standard errors of the noise.
    """

    frame: int
    y: float
    x: float
    lost: float
    z: float


@dataclass(frozen=True)
class _Seen:
    """One frame's sums over squares: in units of their noise, and in the movie's."""

    frame: int
    scene: int
    z: np.ndarray
    residual: np.ndarray
    denoised: np.ndarray


class SmearDetector:
    """Looks for weakened events while frames stream by.

    Parameters
    ----------
    shape
        ``(y, x)`` of the frames.
    hole
        The blind spot, rows × columns: three of it make a square; less in frames of so few pixels
        that `_CELLS` blind spots do not fit. Frames of fewer pixels than that are not looked at.
    """

    def __init__(self, shape: tuple[int, int], hole: Hole) -> None:
        self.cell = tuple(max(1, min(h, n // _CELLS)) for n, h in zip(shape, hole, strict=True))
        self.cells = tuple(n // c for n, c in zip(shape, self.cell, strict=True))
        self._near: deque[_Seen] = deque(maxlen=2 * _AROUND + 1)
        self._waiting: deque[_Seen] = deque()
        self._found: list[tuple[Smear, tuple[int, int], list[float]]] = []
        self._moments: list[tuple[float, float]] = []
        self._scatter: deque[np.ndarray] = deque(maxlen=_USUAL)
        self._squares: np.ndarray | None = None
        self._frames = 0

    def add(
        self,
        t: int,
        raw: np.ndarray,
        denoised: np.ndarray,
        *,
        trusted: np.ndarray,
        scene: int = 0,
    ) -> None:
        """Look at a frame; frames come in order, blank ones are left out.

        Parameters
        ----------
        t
            Its number.
        raw, denoised
            ``(y, x)`` frames in the movie's units.
        trusted
            ``(y, x)`` bool: pixels that are neither bad nor spikes.
        scene
            Number of the scene: frames of different scenes are not compared.
        """
        self._frames += 1
        if min(self.cells) < _CELLS:
            return
        missing = np.where(trusted, raw.astype(np.float32) - denoised, np.float32(0))
        residual, level = self._sums(missing), self._sums(denoised)
        z = self._standardised(residual, level)
        self._moments.append(_skewness_and_excess(z))
        self._squares = z**2 if self._squares is None else self._squares + z**2
        seen = _Seen(t, scene, z, residual, level)
        self._near.append(seen)
        self._waiting.append(seen)
        if len(self._waiting) > _AROUND:
            self._look(self._waiting.popleft())

    @property
    def looked(self) -> bool:
        """Whether losses would have been found; a frame alone cannot lose anything to others."""
        return self._frames < 2 or (self._frames >= _FRAMES and min(self.cells) >= _CELLS)

    def finish(self) -> list[Smear]:
        """Return what was weakened, the gravest first."""
        while self._waiting:
            self._look(self._waiting.popleft())
        if self._frames < _FRAMES or self._squares is None:
            return []
        tests = self._frames * self._squares.size
        chance = FALSE_ALARMS / 2 / tests
        lean, tail = np.median(self._moments, axis=0)
        kept: list[Smear] = []
        for smear, place, near in sorted(self._found, key=lambda found: -abs(found[0].z)):
            # Not of the frames around, over which the event may be smeared.
            others = float(self._squares[place] - np.sum(np.square([smear.z, *near])))
            others /= max(self._frames - 1 - len(near), 1)
            z = smear.z / math.sqrt(max(others, 1.0))
            if abs(z) < _raised(chance, math.copysign(1.0, z) * lean, tail):
                continue
            if not any(self._same(smear, other) for other in kept):
                kept.append(Smear(smear.frame, smear.y, smear.x, smear.lost, abs(z)))
        return kept

    def _sums(self, frame: np.ndarray) -> np.ndarray:
        """Return means over squares of three by three cells, one for each cell's shift."""
        (rows, columns), (height, width) = self.cells, self.cell
        whole = frame[: rows * height, : columns * width]
        cells = whole.reshape(rows, height, columns, width).mean((1, 3), dtype=np.float32)
        down = cells[:-2] + cells[1:-1] + cells[2:]
        across: np.ndarray = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / np.float32(9)
        return across

    def _standardised(self, residual: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Divide by the usual scatter among places of the same brightness."""
        values = (residual - np.median(residual)).ravel()
        # Squares overlap: one in nine counts.
        count = max(1, min(_LEVELS, values.size // 450))
        classes = np.array_split(np.argsort(level, axis=None), count)
        middles = np.array([np.median(level.ravel()[c]) for c in classes])
        # An event raises the scatter of its own frame only.
        self._scatter.append(np.array([values[c].std() for c in classes]))
        usual = np.median(self._scatter, axis=0)
        noise = np.interp(level, middles, usual)
        smallest = 1e-6 * float(np.abs(level).max()) + 1e-30
        z: np.ndarray = values.reshape(residual.shape) / np.maximum(noise, smallest)
        return z

    def _look(self, seen: _Seen) -> None:
        """Keep the blobs of a frame that the frames around it do not have."""
        others = [s for s in self._near if s.frame != seen.frame and s.scene == seen.scene]
        others = [s for s in others if abs(s.frame - seen.frame) <= 2 * _AROUND]
        if not others:
            return
        size = np.abs(seen.z)
        summits = (size == maximum_filter(size, 3)) & (size > _LEAST)
        for row, column in np.argwhere(summits):
            place = (int(row), int(column))
            z = float(seen.z[place])
            if float(np.mean([s.z[place] for s in others])) / z > 0.5:
                continue  # the same is missing all the time: no event
            missing = seen.residual[place] - np.mean([s.residual[place] for s in others])
            left = seen.denoised[place] - np.mean([s.denoised[place] for s in others])
            contrast = float(missing + left)
            if contrast * z <= 0:
                continue
            lost = float(missing) / contrast
            if lost > TOLERATED:
                y, x = ((k + 1.5) * h for k, h in zip(place, self.cell, strict=True))
                smear = Smear(seen.frame, y, x, min(lost, 1.0), z)
                self._found.append((smear, place, [float(s.z[place]) for s in others]))

    def _same(self, a: Smear, b: Smear) -> bool:
        apart = max(abs(a.y - b.y) / self.cell[0], abs(a.x - b.x) / self.cell[1])
        return apart <= 4 and abs(a.frame - b.frame) <= 1


def smear_warnings(smears: Sequence[Smear], *, looked: bool = True) -> tuple[str, ...]:
    """Return what to tell the user of `SmearDetector.finish` and `SmearDetector.looked`, if any."""
    if not looked:
        return (
            f"Temporal smearing was not looked for: only in {_FRAMES} frames or more, of {_CELLS} "
            "pixels or more along each side, can be told whether what is there for a frame or two "
            "came out weaker than it was. Look at the raw frames before you measure such events.",
        )
    if not smears:
        return ()
    listed = "; ".join(
        f"frame {s.frame}, x {s.x:.0f}, y {s.y:.0f} (about {100 * s.lost:.0f} % missing)"
        for s in smears[:8]
    )
    more = f"; and {len(smears) - 8} more" if len(smears) > 8 else ""
    return (
        "Temporal smearing: what is there for a frame or two came out weaker than it was at "
        f"{listed}{more}. Look at the raw frames there before you measure.",
    )


def _skewness_and_excess(z: np.ndarray) -> tuple[float, float]:
    """Return the skewness of values and by how much their kurtosis exceeds the normal one's."""
    away = z - z.mean(dtype=np.float64)
    square = away**2
    variance = float(square.mean())
    if not variance > 0:
        return 0.0, 0.0
    skewness = float((square * away).mean()) / variance**1.5
    return skewness, float((square**2).mean()) / variance**2 - 3


def _raised(chance: float, skewness: float, excess: float) -> float:
    """Return the threshold that noise of a given skewness and kurtosis passes by ``chance``."""
    k = -float(ndtri(chance))
    if skewness > 0.01:
        shape = 4 / skewness**2
        k = max(k, float(gammainccinv(shape, chance) - shape) / math.sqrt(shape))
    beyond = max(excess - 1.5 * skewness**2, 0.0)
    return k + beyond * (k**3 - 3 * k) / 24
