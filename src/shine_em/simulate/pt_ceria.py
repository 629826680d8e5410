"""A Pt nanoparticle that shifts on a ceria support in vacuum, by high-resolution TEM."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from .detector import camera_named
from .frames import run_frames
from .multislice import Optics, electrons, simulation_packages
from .pt_ceria_model import CERIA_NM, Atoms3D, ceria_support, pt_particle
from .scene import Scene, check_numbers, check_plan, simulated_movie

__all__ = ["pt_ceria"]

# Spacing of the waves' grid, Å, and how much finer potentials are built before they are brought
# onto it: abTEM places atoms between grid points by linear interpolation, which damps them. Images
# of a Pt particle differ from those on a grid of 0.05 Å by 1.9 % of their contrast; on one of
# 0.15 Å by 9 % (what Pt scatters twice, out of the aperture and back, is lost), without the finer
# potentials by 5 %.
_SAMPLING_A, _FINER = 0.1, 2
# The support's upper edge lies at this part of the frame's height.
_SURFACE_AT = 0.62
# Empty space around the particle on its own small grid, and around the field: potentials and the
# lens spread no further, nm.
_PATCH_MARGIN_NM, _SPREAD_NM = 0.8, 1.0


def pt_ceria(
    *,
    frames: int = 100,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    pixel_size_nm: float = 0.0332,
    frame_time_s: float = 0.1,
    dose_e_per_A2: float = 2.0,
    diameter_nm: float = 3.0,
    thickness_nm: float = 3.5,
    particle_step_nm: float = 0.1,
    drift_step_nm: float = 0.04,
    thermal_nm: float = 0.007,
    voltage_kV: float = 300.0,
    overfocus_nm: float = 7.0,
    c3_mm: float = -0.01,
    c5_mm: float = 3.0,
    aperture_mrad: float = 30.0,
    camera: str = "k2",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scene:
    r"""Simulate a Pt particle on the edge of a CeO₂ support, seen from the side.

    The scene of the paper's Fig. 1L: 512 × 512 pixels of 0.332 Å, 300 kV, 7 nm overfocus, C3 of
    -0.01 mm, C5 of 3 mm, an aperture of 30 mrad and 2 e⁻/Å² per frame, which are 0.22 electrons
    per pixel. Pt sits with its (111) facet on CeO₂(111), both seen along [1-10].

    **Waves** pass slices of half a period of CeO₂ (1.91 Å) by the multislice method on a grid of
    0.1 Å, because 30 mrad exceed the Nyquist frequency of the detector's pixels, over which the
    image is integrated afterwards. The potentials (abTEM, after Lobato and Van Dyck) are blurred by
    the atoms' thermal motion. Three things need no second calculation: the support's transmission,
    which is periodic along the beam and stands still; the particle's potential, which moves in the
    plane of the image alone; and drift, which moves the camera over the image. The latter two are
    shifts of band-limited functions, exact in Fourier space.

    The paper names no incoherence, so the illumination is coherent.

    **Motion.** Each frame the particle shifts along the surface by a normal step, reflected before
    it reaches the frame's edges, and the whole field drifts by a normal step along both axes.

    Parameters
    ----------
    frames
        Number of frames.
    size
        Height and width in pixels; one number for a square.
    seed
        The same seed gives the same movie, whatever the number of workers.
    pixel_size_nm
        Width of a pixel.
    frame_time_s
        Time from frame to frame; a calibration only, of which the paper says nothing.
    dose_e_per_A2
        Incident electrons per Å² and frame.
    diameter_nm
        Width of the particle between opposite {111} facets.
    thickness_nm
        Thickness of the support along the beam, rounded to whole periods of 0.383 nm; at least the
        particle's.
    particle_step_nm
        Standard deviation of the particle's step along the surface, per frame.
    drift_step_nm
        Standard deviation of the whole field's step along each axis, per frame.
    thermal_nm
        Standard deviation of the atoms' thermal displacement along one axis.
    voltage_kV
        Acceleration voltage.
    overfocus_nm
        Distance of the plane in focus below the exit plane; negative for underfocus.
    c3_mm
        Spherical aberration of third order.
    c5_mm
        Spherical aberration of fifth order.
    aperture_mrad
        Half angle of the objective aperture.
    camera
        Name of the camera: ideal, k2, k2-counting, falcon or ccd.
    workers
        Threads; None for one per processor, up to eight.
    progress
        Called as ``progress(done, total)`` after each frame.
    cache
        Folder that keeps finished frames until all are there, to go on after an interruption.

    Returns
    -------
    Scene
        ``coordinates``: ``pt_columns_px`` ``(t, column, 2)`` places of the particle's atomic
        columns, ``particle_px`` ``(t, 2)`` their mean, ``pt_columns_atoms`` ``(column,)`` atoms in
        each, ``surface_y_px`` ``(t,)`` the support's uppermost O layer, ``drift_px`` ``(t, 2)``.

    Raises
    ------
    ShineError
        If a parameter is impossible (the message names it), or abTEM is missing.

    References
    ----------
    SHINE, Science Advances (2025), "Pt nanoparticle migration simulation on ceria support".
    E. J. Kirkland, Advanced Computing in Electron Microscopy (Springer, 2020), chapter 6.
    """
    shape = check_plan(frames=frames, size=size, seed=seed, workers=workers)
    parameters: dict[str, Any] = {
        "scene": "pt-ceria",
        "frames": frames,
        "size": list(shape),
        "seed": seed,
        "pixel_size_nm": pixel_size_nm,
        "frame_time_s": frame_time_s,
        "dose_e_per_A2": dose_e_per_A2,
        "diameter_nm": diameter_nm,
        "thickness_nm": thickness_nm,
        "particle_step_nm": particle_step_nm,
        "drift_step_nm": drift_step_nm,
        "thermal_nm": thermal_nm,
        "voltage_kV": voltage_kV,
        "overfocus_nm": overfocus_nm,
        "c3_mm": c3_mm,
        "c5_mm": c5_mm,
        "aperture_mrad": aperture_mrad,
        "camera": camera,
    }
    optics = Optics(
        voltage_kV=voltage_kV,
        c3_mm=c3_mm,
        c5_mm=c5_mm,
        overfocus_nm=overfocus_nm,
        aperture_mrad=aperture_mrad,
    )
    recorder = camera_named(camera)
    particle = _checked(parameters, shape, optics)

    motion_seed, *noise_seeds = np.random.SeedSequence(seed).spawn(frames + 1)
    rng = np.random.default_rng(motion_seed)
    drift = np.cumsum(rng.normal(scale=drift_step_nm, size=(frames, 2)), axis=0)
    drift -= drift[0]
    walk = np.cumsum(rng.normal(scale=particle_step_nm, size=frames))
    width = np.ptp(particle.positions_nm[:, 1])
    room = (shape[1] * pixel_size_nm - width) / 2 - np.abs(drift[:, 1]).max()
    highest = particle.positions_nm[:, 0].min() + drift[:, 0].min()
    above, below = (part * shape[0] * pixel_size_nm for part in (_SURFACE_AT, 1 - _SURFACE_AT))
    if room <= 0 or highest < -above or drift[:, 0].max() > below:
        raise ShineError(
            f"drift_step_nm={drift_step_nm} carries the particle or the support out of the frame. "
            "Choose smaller steps, fewer frames or a larger size."
        )
    shift = _reflected(walk - walk[0], 0.8 * room)

    edge = recorder.border
    seen = shape[0] + 2 * edge, shape[1] + 2 * edge
    # Place on the specimen of the frame's first pixel: the surface is y = 0, x = 0 in the middle.
    first = -pixel_size_nm * np.array([_SURFACE_AT * shape[0], (shape[1] - 1) / 2])
    top = first[0] - edge * pixel_size_nm - drift[:, 0]
    specimen = _Specimen.built(
        particle,
        optics,
        rows_nm=(float(top.min()), float(top.max()) + seen[0] * pixel_size_nm),
        width_nm=seen[1] * pixel_size_nm,
        layers=_layers(thickness_nm),
        thermal_nm=thermal_nm,
    )

    def simulate(t: int) -> dict[str, np.ndarray]:
        corner = first - edge * pixel_size_nm - drift[t] - specimen.origin_nm
        arriving = electrons(
            specimen.intensity(shift[t]),
            cell_A=(10 * specimen.cell_nm[0], 10 * specimen.cell_nm[1]),
            pixel_A=10 * pixel_size_nm,
            shape=seen,
            first_pixel_A=(10 * corner[0], 10 * corner[1]),
            dose_e_per_A2=dose_e_per_A2,
        )
        rng = np.random.default_rng(noise_seeds[t])
        noisy, expected = recorder.record(arriving, rng, bordered=True)
        inner = arriving[edge : edge + shape[0], edge : edge + shape[1]]
        unblurred = recorder.conversion * inner + recorder.dark
        return {"noisy": noisy, "truth": expected, "unblurred": unblurred.astype(np.float32)}

    stacks = run_frames(
        simulate, frames, identity=parameters, workers=workers, progress=progress, cache=cache
    )
    per_pixel = dose_e_per_A2 * (10 * pixel_size_nm) ** 2
    parameters["electrons_per_pixel"] = per_pixel
    parameters["vacuum_counts"] = recorder.expected_counts(per_pixel)
    parameters["grid"] = list(specimen.propagator.shape)
    parameters["slices"] = len(specimen.particle)
    parameters["particle_atoms"] = len(particle.positions_nm)

    def movie(name: str, did: str) -> Movie:
        return simulated_movie(
            stacks[name],
            name=name,
            did=did,
            parameters=parameters,
            pixel_size_nm=pixel_size_nm,
            frame_time_s=frame_time_s,
            dose_e_per_A2=dose_e_per_A2,
        )

    columns, atoms = np.unique(particle.positions_nm[:, :2].round(4), axis=0, return_counts=True)
    moved = columns + drift[:, None]
    moved[..., 1] += shift[:, None]
    places = (moved - first) / pixel_size_nm
    return Scene(
        name="pt-ceria",
        noisy=movie("noisy", "recorded with noise"),
        truth=movie("truth", "expected counts, blurred by the camera"),
        unblurred=movie("unblurred", "expected counts without the camera's blur"),
        parameters=parameters,
        coordinates={
            "pt_columns_px": places,
            "pt_columns_atoms": atoms,
            "particle_px": np.average(places, axis=1, weights=atoms),
            "surface_y_px": (drift[:, 0] - first[0]) / pixel_size_nm,
            "drift_px": drift / pixel_size_nm,
        },
    )


@dataclass(frozen=True)
class _Specimen:
    """The support and the particle as the waves meet them, slice by slice.

    Attributes
    ----------
    support
        ``(2, y, x)`` complex64 transmission of the two slices of each of the support's periods.
    particle
        ``(slice, y, x)`` Fourier transform of the particle's phase shifts, on a grid of its own of
        the same spacing.
    particle_nm
        The first point of that grid, y and x, where the particle is not shifted.
    propagator, lens
        ``(y, x)`` complex64 in Fourier space.
    origin_nm
        The specimen's place of the grid's first point, y and x.
    cell_nm
        Height and width of the grid's period.
    """

    support: np.ndarray
    particle: np.ndarray
    particle_nm: np.ndarray
    propagator: np.ndarray
    lens: np.ndarray
    origin_nm: np.ndarray
    cell_nm: np.ndarray

    @classmethod
    def built(
        cls,
        particle: Atoms3D,
        optics: Optics,
        *,
        rows_nm: tuple[float, float],
        width_nm: float,
        layers: int,
        thermal_nm: float,
    ) -> _Specimen:
        """Build what shows y from ``rows_nm[0]`` to ``rows_nm[1]`` and at least ``width_nm`` of x.

        The support goes on without a seam at the grid's edges in x, and down to its lower edge.
        """
        from scipy.fft import fft2, ifft2, next_fast_len

        _, period = ceria_support(columns=1, depth_nm=0.1, layers=1)
        columns = math.ceil(width_nm / period[1])
        cell = np.array([rows_nm[1] - rows_nm[0] + 2 * _SPREAD_NM, columns * period[1]])
        origin = np.array([rows_nm[0] - _SPREAD_NM, -cell[1] / 2])
        points = [int(next_fast_len(math.ceil(10 * side / _SAMPLING_A))) for side in cell]
        spacing = cell / points
        depth = period[2] / 2
        phase = partial(
            _phase_shifts, spacing_nm=spacing, slice_nm=depth, optics=optics, thermal_nm=thermal_nm
        )

        atoms, _ = ceria_support(columns=columns, depth_nm=cell[0] + origin[0], layers=1)
        # Atoms lie in planes, half a period apart: the planes belong into the slices' middles.
        corner = np.array([*origin, -depth / 2])
        support = phase(
            [Atoms3D(a.element, a.positions_nm - corner) for a in atoms], points=points, slices=2
        )
        low, high = particle.positions_nm.min(axis=0), particle.positions_nm.max(axis=0)
        patch = [
            int(next_fast_len(math.ceil(side)))
            for side in (high - low + 2 * _PATCH_MARGIN_NM)[:2] / spacing
        ]
        corner = np.array([*(low[:2] - _PATCH_MARGIN_NM), -layers * depth])
        alone = phase(
            [Atoms3D("Pt", particle.positions_nm - corner)], points=patch, slices=2 * layers
        )
        frequencies = _frequencies(points, spacing)
        squared = frequencies[0] ** 2 + frequencies[1] ** 2
        wavelength = optics.wavelength_A / 10
        band = _band(points, spacing)
        propagator = band * np.exp(-1j * math.pi * wavelength * depth * squared)
        transmission = [ifft2(band * fft2(np.exp(1j * plane))) for plane in support]
        return cls(
            support=np.asarray(transmission, np.complex64),
            particle=fft2(alone).astype(np.complex64),
            particle_nm=corner[:2] - origin,
            propagator=propagator.astype(np.complex64),
            lens=_lens(optics, squared),
            origin_nm=origin,
            cell_nm=cell,
        )

    def intensity(self, shift_nm: float) -> np.ndarray:
        """Return the image, ``(y, x)`` relative to the vacuum's, of the particle so far along x."""
        from scipy.fft import fft2, ifft2

        grid, patch = self.propagator.shape, self.particle.shape[1:]
        spacing = self.cell_nm / grid
        place = (self.particle_nm + np.array([0.0, shift_nm])) / spacing
        whole = np.floor(place).astype(int)
        y, x = _frequencies(patch, np.ones(2))
        ramp = np.exp(-2j * math.pi * (y * (place - whole)[0] + x * (place - whole)[1]))
        band = _band(patch, np.ones(2)).astype(np.complex64)
        phases = ifft2(self.particle * ramp.astype(np.complex64)).real
        window = np.ix_(
            *((np.arange(n) + w) % g for n, w, g in zip(patch, whole, grid, strict=True))
        )
        wave = np.ones(grid, np.complex64)
        for k, plane in enumerate(phases):
            wave *= self.support[k % 2]
            wave[window] *= ifft2(band * fft2(np.exp(1j * plane)))
            wave = fft2(wave, overwrite_x=True)
            wave *= self.propagator if k + 1 < len(phases) else self.propagator * self.lens
            wave = ifft2(wave, overwrite_x=True)
        return wave.real**2 + wave.imag**2


def _phase_shifts(
    atoms: list[Atoms3D],
    *,
    points: Sequence[int],
    slices: int,
    spacing_nm: np.ndarray,
    slice_nm: float,
    optics: Optics,
    thermal_nm: float,
) -> np.ndarray:
    """Return the phase shifts ``(slice, y, x)``, radians, of atoms of a periodic cell."""
    from scipy.fft import fft2, ifft2

    abtem, ase = simulation_packages()
    positions = 10 * np.concatenate([a.positions_nm for a in atoms])
    symbols = [a.element for a in atoms for _ in a.positions_nm]
    sides = 10 * np.array([*(np.array(points) * spacing_nm), slices * slice_nm])
    potential = abtem.Potential(
        # y comes first here as in the arrays.
        ase.Atoms(symbols, positions=positions, cell=sides, pbc=True),
        gpts=tuple(_FINER * n for n in points),
        slice_thickness=(10 * slice_nm,) * slices,
        parametrization="lobato",
        projection="infinite",
    ).build(lazy=False)
    y, x = _frequencies(points, spacing_nm)
    vibration = np.exp(-2 * (math.pi * thermal_nm) ** 2 * (y**2 + x**2))
    keep = vibration * _band(points, spacing_nm) / _FINER**2
    rows, columns = (_kept(n) for n in points)
    sigma = abtem.core.energy.energy2sigma(1e3 * optics.voltage_kV)
    planes = [
        ifft2(fft2(plane)[np.ix_(rows, columns)] * keep).real
        for plane in np.asarray(potential.array)
    ]
    return np.asarray(planes, np.float32) * np.float32(sigma)


def _kept(points: int) -> np.ndarray:
    """Return which frequencies of a finer grid a grid of so many points holds."""
    return np.fft.fftfreq(points, 1 / points).astype(int) % (_FINER * points)


def _frequencies(points: Sequence[int], spacing_nm: np.ndarray) -> list[np.ndarray]:
    y, x = (np.fft.fftfreq(n, d) for n, d in zip(points, spacing_nm, strict=True))
    return [y[:, None], x[None, :]]


def _band(points: Sequence[int], spacing_nm: np.ndarray) -> np.ndarray:
    """Return where frequencies lie below 2/3 of the grid's highest: products of waves alias not."""
    y, x = _frequencies(points, spacing_nm)
    return y**2 + x**2 < (1 / (3 * max(spacing_nm))) ** 2


def _lens(optics: Optics, squared_frequencies: np.ndarray) -> np.ndarray:
    """Return the coherent transfer of the objective lens for squared frequencies in 1/nm²."""
    angle = np.sqrt(squared_frequencies) * optics.wavelength_A / 10
    c1, c3, c5 = optics.overfocus_nm, 1e6 * optics.c3_mm, 1e6 * optics.c5_mm
    path = c1 * angle**2 / 2 + c3 * angle**4 / 4 + c5 * angle**6 / 6
    wave = np.exp(-2j * math.pi / (optics.wavelength_A / 10) * path)
    return (wave * (angle <= 1e-3 * optics.aperture_mrad)).astype(np.complex64)


def _layers(thickness_nm: float) -> int:
    """Return the number of the support's periods along the beam."""
    return max(1, round(thickness_nm * math.sqrt(2) / CERIA_NM))


def _reflected(walk: np.ndarray, reach: float) -> np.ndarray:
    """Fold a walk about 0 into the range from -reach to reach, whose ends reflect."""
    return reach - np.abs((walk + reach) % (4 * reach) - 2 * reach)


def _checked(p: dict[str, Any], shape: tuple[int, int], optics: Optics) -> Atoms3D:
    """Check the parameters and return the particle."""
    check_numbers(
        p,
        positive=(
            "pixel_size_nm", "frame_time_s", "dose_e_per_A2", "diameter_nm", "thickness_nm",
        ),
        not_negative=("particle_step_nm", "drift_step_nm", "thermal_nm"),
    )  # fmt: skip
    if optics.coarsest_sampling_A < _SAMPLING_A:
        raise ShineError(
            f"aperture_mrad={optics.aperture_mrad:g} lies beyond the simulation grid of "
            f"{_SAMPLING_A} Å: choose up to {250 * optics.wavelength_A / _SAMPLING_A:.1f} mrad."
        )
    if not 1 <= p["diameter_nm"] <= 15:
        raise ShineError(f"diameter_nm must lie from 1 to 15 nm, not {p['diameter_nm']}.")
    particle = pt_particle(p["diameter_nm"])
    height, width, depth = np.ptp(particle.positions_nm, axis=0)
    support = _layers(p["thickness_nm"]) * CERIA_NM / math.sqrt(2)
    if depth >= support:
        raise ShineError(
            f"diameter_nm={p['diameter_nm']}: the particle is {depth:.2f} nm thick, the support "
            f"only {support:.2f} nm. Raise thickness_nm."
        )
    room = np.array([_SURFACE_AT * shape[0], shape[1]]) * p["pixel_size_nm"]
    if height > room[0] or width > room[1]:
        raise ShineError(
            f"diameter_nm={p['diameter_nm']}: the particle of {height:.1f} × {width:.1f} nm does "
            f"not fit into the {room[0]:.1f} × {room[1]:.1f} nm above the support. Choose a "
            "smaller particle or a larger size."
        )
    return particle
