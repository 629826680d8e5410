"""The atoms of a Pt particle on the (111) surface of ceria, seen along [1-10]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["CERIA_NM", "PLATINUM_NM", "Atoms3D", "ceria_support", "oriented_cell", "pt_particle"]

#: Lattice constants, nm: fluorite CeO₂ and face-centred cubic Pt.
CERIA_NM = 0.5411
PLATINUM_NM = 0.39242

_FACE_CENTRED = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
# Rows: the picture's y (into the support), x (along its surface) and the beam, in the cubic axes.
_AXES = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
# Height of the lowest Pt layer above the uppermost O layer: a Pt-O bond length of 0.21 nm.
_CONTACT_NM = 0.21
# Wulff shape of Pt: surface energy of {100} over that of {111}.
_WULFF_RATIO = 1.15
# How much of the free particle's lower half is left when it wets the support (Winterbottom).
_WETTING = 0.6


@dataclass(frozen=True)
class Atoms3D:
    """Atoms of one element: ``positions_nm`` ``(atom, 3)``, y, x and z along the beam."""

    element: str
    positions_nm: np.ndarray


def oriented_cell(basis: np.ndarray, lattice_nm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest right-angled cell of a face-centred cubic crystal, seen along [1-10].

    Its sides are [-1-1-1], half [11-2] and half [1-10], along the picture's y and x and the beam.

    Parameters
    ----------
    basis
        ``(atom, 3)`` places in the cubic cell that belong to each lattice point, as fractions.
    lattice_nm
        Lattice constant.

    Returns
    -------
    positions_nm, sides_nm
        ``(atom, 3)`` and ``(3,)``, y, x and beam.
    """
    sides = lattice_nm * np.sqrt([3.0, 1.5, 0.5])
    cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 1, 1, 3)
    cubic = (cells + _FACE_CENTRED[:, None] + basis).reshape(-1, 3) * lattice_nm
    turned = cubic @ (_AXES / np.linalg.norm(_AXES, axis=1, keepdims=True)).T
    # Atoms on a side belong to the lower one, in spite of rounding.
    inside = ((turned > -1e-6) & (turned < sides - 1e-6)).all(axis=1)
    return turned[inside], sides


def ceria_support(
    *, columns: int, depth_nm: float, layers: int
) -> tuple[list[Atoms3D], np.ndarray]:
    """Return a CeO₂ slab with an O-terminated (111) surface at y = 0 that reaches to larger y.

    Parameters
    ----------
    columns
        Periods along x, of 0.663 nm each.
    depth_nm
        Depth along y.
    layers
        Periods along the beam, of 0.383 nm each.

    Returns
    -------
    atoms, sides_nm
        Ce and O; and the periods along y, x and the beam ``(3,)``, of which x spans from 0 to
        ``columns`` times the second and z from 0 to ``layers`` times the third.
    """
    atoms = []
    quarter = np.array([0.25, 0.25, 0.25])
    for element, basis in (("Ce", np.zeros((1, 3))), ("O", np.stack([quarter, -quarter]))):
        cell, sides = oriented_cell(basis, CERIA_NM)
        # The surface cuts below an O layer, a quarter of the (111) spacing above the next Ce.
        cell[:, 0] = (cell[:, 0] + sides[0] / 12 + 1e-6) % sides[0] - 1e-6
        repeats = [math.ceil(depth_nm / sides[0]), columns, layers]
        shifts = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1)
        places = (cell + shifts.reshape(-1, 1, 3) * sides).reshape(-1, 3)
        atoms.append(Atoms3D(element, places[places[:, 0] < depth_nm]))
    return atoms, sides


def pt_particle(diameter_nm: float) -> Atoms3D:
    """Return a Pt particle of Wulff shape, (111) facets below, flattened where it sits on ceria.

    Parameters
    ----------
    diameter_nm
        Width of the free particle between opposite {111} facets.

    Returns
    -------
    Atoms3D
        x and z are about 0; the support's surface is y = 0, so all y are negative.
    """
    cell, sides = oriented_cell(np.zeros((1, 3)), PLATINUM_NM)
    radius = diameter_nm / 2
    counts = [math.ceil(1.3 * radius / side) + 1 for side in sides]
    shifts = np.stack(
        np.meshgrid(*[np.arange(-n, n + 1) for n in counts], indexing="ij"), -1
    ).reshape(-1, 1, 3)
    places = (cell + shifts * sides).reshape(-1, 3)
    cubic = places @ (_AXES / np.linalg.norm(_AXES, axis=1, keepdims=True))
    # Half the sum of |x|, |y|, |z| over sqrt(3) is the distance along the nearest <111>.
    inside = np.abs(cubic).sum(axis=1) / math.sqrt(3) <= radius + 1e-6
    inside &= np.abs(cubic).max(axis=1) <= _WULFF_RATIO * radius + 1e-6
    inside &= places[:, 0] <= _WETTING * radius + 1e-6
    kept = places[inside]
    kept[:, 0] -= kept[:, 0].max() + _CONTACT_NM
    kept[:, 1:] -= (kept[:, 1:].max(axis=0) + kept[:, 1:].min(axis=0)) / 2
    return Atoms3D("Pt", kept)
