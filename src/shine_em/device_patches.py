"""Training patches cut on the device that trains.

A graphics card is done with a step before a processor has cut and normalised the next one's
patches. So the movie lies on the card, normalised, and of each batch only what was drawn goes
there: a few whole numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .patch_pool import Draw, Draws, PatchPool
from .patches import Window

__all__ = ["DevicePatches"]

_SHARE = 0.5  # of the card's free memory: as much may the movie take


class DevicePatches:
    """Cuts the batches of a `PatchPool` on a device; they equal those of `PatchPool.batch`.

    Parameters
    ----------
    pool
        What is drawn from.
    device
        Where the movie is to lie, and the batches are cut.
    """

    def __init__(self, pool: PatchPool, device: torch.device | str) -> None:
        self.pool, self.device = pool, torch.device(device)
        held = [len(run.pixels) for run in pool.runs]
        self.first = [sum(held[:k]) for k in range(len(held))]  # row of each run's first frame
        height, width = pool.runs[0].pixels.shape[1:]
        shape = (sum(held), height, width)
        self._known: dict[tuple[int, int, Window], tuple[int, np.ndarray, np.ndarray]] = {}
        self.frames = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.trusted = torch.empty(shape, dtype=torch.bool, device=self.device)
        for run, row in zip(pool.runs, self.first, strict=True):
            for k, raw in enumerate(run.pixels):
                normalised = pool.normalisation.apply(raw, run.bad)
                self.frames[row + k] = torch.from_numpy(normalised).to(self.device)
                good = pool.normalisation.trusted(raw, run.excluded)
                self.trusted[row + k] = torch.from_numpy(good).to(self.device)

    @staticmethod
    def fit(pool: PatchPool, device: torch.device) -> bool:
        """Tell whether a pool's frames can lie in a card's memory with room to train beside."""
        if device.type != "cuda":
            return False
        needed = sum(run.pixels.size for run in pool.runs) * 5  # bytes: a float and a bool each
        return needed < _SHARE * torch.cuda.mem_get_info(device)[0]

    @property
    def columns(self) -> int:
        """Numbers that say where a sample lies: see `places`."""
        return 3 * self.pool.frames + 7

    def places(self, draws: Draws) -> Tensor:
        """Return where the samples of a batch lie: ``(b, columns)`` int64, on the CPU.

        For each frame of the window its row, -1 where there is none, and its displacement down and
        right; the centre frame's row; and the six numbers that give the pixel (row, column) of the
        movie for a sample's pixel (i, j): ``a + b i + c j`` each.
        """
        return torch.from_numpy(np.stack([self._place(d, draws.shape) for d in draws.samples]))

    def _place(self, sample: Draw, shape: tuple[int, int]) -> np.ndarray:
        centre, rows, moved = self._rows(sample.run, sample.t, sample.window)
        if sample.reversed:
            rows, moved = rows[::-1], moved[:, ::-1]
        start, down, right = _turned(shape, sample.turns, sample.mirrored)
        y, x = start[0] + sample.y, start[1] + sample.x
        affine = (y, down[0], right[0], x, down[1], right[1])
        return np.concatenate((rows, moved[0], moved[1], (centre, *affine)))

    def _rows(self, run: int, t: int, window: Window) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the row of the centre frame, and those of a window with their displacements."""
        key = (run, t, window)
        if key not in self._known:
            first, numbers = self.first[run], self.pool.runs[run].numbers
            rows = [-1 if i is None else first + numbers[i] for i in window]
            moved = np.array(self.pool.timeline.displacements(window), np.int64).T
            self._known[key] = first + numbers[t], np.array(rows, np.int64), moved
        return self._known[key]

    def cut(self, places: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cut a batch, without waiting for the device.

        Parameters
        ----------
        places
            What `places` returned, on the device.
        shape
            Of a sample.

        Returns
        -------
        Tensor, Tensor
            The ``windows`` and ``weights`` of a `Batch`.
        """
        f = self.pool.frames
        height, width = self.frames.shape[1:]
        i = torch.arange(shape[0], device=self.device)[:, None]
        j = torch.arange(shape[1], device=self.device)
        numbers = places[:, :, None, None]
        y0, y_down, y_right, x0, x_down, x_right = numbers[:, 3 * f + 1 :].unbind(1)
        y = y0 + y_down * i + y_right * j  # (b, h, w)
        x = x0 + x_down * i + x_right * j
        rows, centre = numbers[:, :f], numbers[:, 3 * f]
        ys, xs = y[:, None] + numbers[:, f : 2 * f], x[:, None] + numbers[:, 2 * f : 3 * f]
        inside = (rows >= 0) & (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
        at = (rows.clamp(min=0) * height + ys.clamp(0, height - 1)) * width
        at = at + xs.clamp(0, width - 1)
        windows = self.frames.view(-1)[at] * inside
        weights = self.trusted.view(-1)[(centre * height + y) * width + x]
        return windows, weights.float()


@lru_cache
def _turned(
    shape: tuple[int, int], turns: int, mirrored: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return where a turned sample begins in the one that was cut, and its ways down and right."""
    # Where its corners come from tells where every pixel does.
    corners = np.stack(np.meshgrid((0, shape[0] - 1), (0, shape[1] - 1), indexing="ij"))
    corners = np.rot90(corners, turns, (1, 2))
    corners = corners[:, :, ::-1] if mirrored else corners
    start = corners[:, 0, 0]
    ways = np.sign(corners[:, 1, 0] - start), np.sign(corners[:, 0, 1] - start)
    y, x = ((int(v[0]), int(v[1])) for v in ways)
    return (int(start[0]), int(start[1])), y, x
