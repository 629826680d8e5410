"""Snapshots of liquid water from molecular dynamics, packed small enough to ship.

``scripts/make_water_snapshots.py`` makes them; `snapshots` says how long the dynamics ran and what
was kept. Each snapshot is a periodic box in atomic detail.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..drafts import write_whole
from ..errors import ShineError

__all__ = ["OH_A", "WaterSnapshots", "pack_snapshots", "snapshots"]

OH_A = 0.9572  # the rigid O–H distance of TIP3P
_STEPS = np.array([1 << 12, 1 << 12, 1 << 13])  # of the box: x, y, z
_HYDROGEN_STEP_A = 0.01
_FILE = Path(__file__).with_name("data") / "water_snapshots.npz"


@dataclass(frozen=True)
class WaterSnapshots:
    """A set of periodic boxes of liquid water.

    Attributes
    ----------
    box_A
        Sides x, y and z in Å.
    facts
        How they were made: ``model``, ``times_ps`` of the snapshots, ``simulated_ps`` of the
        dynamics, ``temperature_K``, ``software``, ``seed``.
    """

    box_A: tuple[float, float, float]
    facts: dict[str, Any]
    _z_steps: np.ndarray
    _xy: np.ndarray
    _hydrogens: np.ndarray

    def __len__(self) -> int:
        return len(self._z_steps)

    @property
    def molecules(self) -> int:
        """Number of molecules in each snapshot."""
        return int(self._z_steps.shape[1])

    def positions(self, index: int) -> np.ndarray:
        """Return ``(molecule, 3, 3)`` float64 Å: of each molecule O, H and H, each x, y and z.

        Oxygens lie inside the box, within 0.007 Å along each axis of where the dynamics had them;
        hydrogens may stick out of it. The order of the molecules is that of their height z, so it
        differs between snapshots.
        """
        high, middle, low = (self._xy[index, i].astype(np.int64) for i in range(3))
        codes = np.stack(
            [
                (high << 4) | (middle >> 4),
                ((middle & 15) << 8) | low,
                np.cumsum(self._z_steps[index], dtype=np.int64),
            ],
            axis=1,
        )
        oxygen = (codes + 0.5) * (np.asarray(self.box_A) / _STEPS)
        bonds = self._hydrogens[index].astype(np.float64)
        bonds *= OH_A / np.linalg.norm(bonds, axis=2, keepdims=True)
        return np.concatenate([oxygen[:, None], oxygen[:, None] + bonds], axis=1)


@lru_cache(maxsize=1)
def snapshots(path: str | os.PathLike[str] | None = None) -> WaterSnapshots:
    """Return the snapshots that come with shine-em, or those of another file.

    Parameters
    ----------
    path
        A file of `pack_snapshots`.

    Raises
    ------
    ShineError
        If the file is missing or damaged.
    """
    file = _FILE if path is None else Path(path)
    try:
        # numpy leaves a damaged file open, so it is opened here.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            facts = json.loads(str(content["facts"]))
            return WaterSnapshots(
                tuple(facts.pop("box_A")), facts,
                content["z_steps"], content["xy"], content["hydrogens"],
            )  # fmt: skip
    except FileNotFoundError as error:
        raise ShineError(f"{file}: no such file of water snapshots.") from error
    except Exception as error:  # whatever zip, numpy and json say of a damaged file
        raise ShineError(f"{file}: not a file of water snapshots, or damaged ({error}).") from error


def pack_snapshots(
    path: str | os.PathLike[str],
    positions: Iterable[np.ndarray],
    *,
    box_A: Sequence[float],
    facts: dict[str, Any],
) -> None:
    """Write snapshots in about 9 bytes per molecule.

    Oxygens become whole numbers of 1/4096 (x, y) and 1/8192 (z) of the box, hydrogens the direction
    of their bond in steps of 0.01 Å, whose length is known. Molecules are sorted by height, which
    costs nothing, as they are all alike, and leaves of z only small differences.

    Parameters
    ----------
    path
        The ``.npz`` file, replaced if it exists.
    positions
        Per snapshot ``(molecule, 3, 3)`` Å: O, H, H; anywhere, they are brought into the box.
    box_A
        Sides x, y, z in Å.
    facts
        See `WaterSnapshots.facts`.

    Raises
    ------
    ShineError
        If a hydrogen is not at the O–H distance of TIP3P, or the file cannot be written.
    """
    box = np.asarray(box_A, np.float64)
    z_steps, xy, hydrogens = [], [], []
    for molecules in positions:
        oxygen, bonds = molecules[:, 0], molecules[:, 1:] - molecules[:, :1]
        lengths = np.linalg.norm(bonds, axis=2)
        if np.abs(lengths - OH_A).max() > 0.01:
            raise ShineError(
                f"O–H distances of {lengths.min():.3f} to {lengths.max():.3f} Å are not those of "
                f"TIP3P water, {OH_A} Å: are the molecules whole?"
            )
        codes = np.floor(oxygen % box / box * _STEPS).astype(np.int64) % _STEPS
        order = np.argsort(codes[:, 2], kind="stable")
        x, y, z = codes[order].T
        step = np.diff(z, prepend=0)
        if step.max() > 255:
            raise ShineError("A layer without any water: these are not snapshots of a liquid.")
        z_steps.append(step)
        xy.append(np.stack([x >> 4, ((x & 15) << 4) | (y >> 8), y & 255]))
        hydrogens.append(np.rint(bonds[order] / _HYDROGEN_STEP_A))
    content: dict[str, Any] = {
        "facts": np.array(json.dumps({"box_A": [float(b) for b in box], **facts})),
        "z_steps": np.array(z_steps, np.uint8),
        "xy": np.array(xy, np.uint8),
        "hydrogens": np.array(hydrogens, np.int8),
    }
    write_whole(Path(path), lambda draft: np.savez_compressed(draft, **content))
