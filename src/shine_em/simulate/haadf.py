"""HAADF pictures of thin specimens: the incoherent sum of what each atom scatters."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .multislice import simulation_packages

__all__ = ["REACH_NM", "THERMAL_NM", "atom_profile", "scattered_fraction"]

#: Distance from an atom at which its profile ends, nm.
REACH_NM = 0.25
#: Thermal displacement along one axis at room temperature, nm: Mo and S of MoS₂ (Schönfeld et al.,
#: Acta Cryst. B 39, 404 (1983)); a lone Pt atom is bound less stiffly.
THERMAL_NM = {"Mo": 0.0062, "S": 0.0067, "Pt": 0.010}


def atom_profile(
    element: str,
    *,
    energy_kV: float = 200.0,
    probe_mrad: float = 19.0,
    detector_mrad: tuple[float, float] = (68.0, 280.0),
    source_size_nm: float = 0.06,
    thermal_nm: float | None = None,
) -> np.ndarray:
    """Return the fraction of the beam that one atom scatters onto the detector, by distance.

    An abTEM multislice calculation of a single atom and a focused probe without aberrations (its
    potentials after Lobato and Van Dyck), blurred by the atom's thermal motion and the source.

    Parameters
    ----------
    element
        Chemical symbol.
    energy_kV, probe_mrad, detector_mrad, source_size_nm
        As for `shine_em.simulate.stem_mos2.stem_mos2`.
    thermal_nm
        Standard deviation of the thermal displacement along one axis; None takes `THERMAL_NM`.

    Returns
    -------
    ndarray
        ``(distance,)`` fractions at 0, 0.0005, ... 0.25 nm from the atom, the last of them 0: the
        profile is cut off smoothly, where it is below 0.3 % of its peak.

    Raises
    ------
    ShineError
        If abTEM is missing, or the optics are impossible.
    """
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import gaussian_filter

    distance_nm, sharp = _sharp_profile(element, energy_kV, probe_mrad, tuple(detector_mrad))
    sigma = math.hypot(
        THERMAL_NM[element] if thermal_nm is None else thermal_nm,
        source_size_nm / math.sqrt(8 * math.log(2)),
    )
    step = 0.0025
    half = round(float(distance_nm[-1]) / step)
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * step
    radius = np.minimum(np.hypot(y, x), distance_nm[-1])
    spline = CubicSpline(distance_nm, sharp, bc_type=((1, 0.0), (2, 0.0)))
    blurred = gaussian_filter(spline(radius), sigma / step, mode="nearest")
    fine = np.linspace(0, REACH_NM, round(REACH_NM / 5e-4) + 1)
    profile = CubicSpline(np.arange(half + 1) * step, blurred[half, half:])(fine)
    edge = np.clip((REACH_NM - fine) / 0.05, 0, 1)
    return np.maximum(profile, 0) * edge * edge * (3 - 2 * edge)


@lru_cache(maxsize=32)
def _sharp_profile(
    element: str, energy_kV: float, probe_mrad: float, detector_mrad: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances in nm and the detected fraction of an atom at rest, by multislice."""
    from scipy.fft import next_fast_len

    abtem, ase = simulation_packages()
    box, thickness = 12.0, 2.0
    # Waves are kept up to 2/3 of the grid's Nyquist frequency and must reach the detector's edge; a
    # grid finer by half bounds what abTEM's placing of atoms between its points costs to 2 %.
    wavelength = abtem.core.energy.energy2wavelength(energy_kV * 1e3)
    sampling = wavelength / (3 * 1.02e-3 * detector_mrad[1]) / 1.5
    points = 2 * next_fast_len(math.ceil(box / sampling / 2))
    middle = box / 2
    atom = ase.Atoms(
        element, positions=[(middle, middle, thickness / 2)], cell=(box, box, thickness)
    )
    distances = np.concatenate([np.linspace(0, 1.4, 13), np.linspace(1.7, 4.1, 8)])
    settings = {
        "diagnostics.progress_bar": False,
        "diagnostics.task_level_progress": False,
    }
    with abtem.config.set(settings):
        potential = abtem.Potential(atom, gpts=points, slice_thickness=thickness)
        probe = abtem.Probe(energy=energy_kV * 1e3, semiangle_cutoff=probe_mrad)
        probe.grid.match(potential)
        places = np.stack([middle + distances, np.full_like(distances, middle)], axis=1)
        measured: Any = probe.scan(
            potential,
            scan=abtem.CustomScan(places),
            detectors=abtem.AnnularDetector(*detector_mrad),
            max_batch=len(places),
        )
        fractions = measured.compute(scheduler="synchronous").array
    return distances / 10, np.asarray(fractions, np.float64)


def scattered_fraction(
    positions_nm: np.ndarray,
    atoms_nm: np.ndarray,
    profile: np.ndarray,
    *,
    pixel_size_nm: float,
) -> np.ndarray:
    """Return the fraction of the beam that like atoms scatter, at each place of the probe.

    Parameters
    ----------
    positions_nm
        ``(y, x, 2)`` places of the probe, nearly a grid of ``pixel_size_nm`` (see
        `shine_em.simulate.scan.visited`).
    atoms_nm
        ``(atom, 2)``, y then x.
    profile
        What `atom_profile` returns.

    Returns
    -------
    ndarray
        ``(y, x)`` float64.
    """
    height, width, _ = positions_nm.shape
    fraction = np.zeros((height, width))
    steps = np.linspace(0, REACH_NM, len(profile))
    # The grid's offset, and how far places lie from it at most, tell where to look for an atom.
    offset = positions_nm - np.moveaxis(np.mgrid[:height, :width], 0, -1) * pixel_size_nm
    low, high = offset.min(axis=(0, 1)), offset.max(axis=(0, 1))
    first = np.ceil((atoms_nm - high - REACH_NM) / pixel_size_nm).astype(int)
    last = np.floor((atoms_nm - low + REACH_NM) / pixel_size_nm).astype(int) + 1
    first = np.maximum(first, 0)
    last = np.minimum(last, (height, width))
    for k in np.flatnonzero((first < last).all(axis=1)):
        window = slice(first[k, 0], last[k, 0]), slice(first[k, 1], last[k, 1])
        away = positions_nm[window] - atoms_nm[k]
        fraction[window] += np.interp(np.hypot(away[..., 0], away[..., 1]), steps, profile)
    return fraction
