r"""High-resolution TEM images by multislice, with abTEM, on a grid fine enough for the aperture.

An image is computed in three steps, each on the grid that it needs:

1. `image`: a plane wave goes through the atoms slice by slice (independent-atom potentials of
   Lobato and Van Dyck, projected slice by slice, grid of ``sampling_A``), then through the lens
   (aberrations and aperture). The result is the intensity relative to the vacuum's.
2. `electrons`: the intensity is integrated over the camera's pixels. As it holds no frequency above
   twice the aperture, this is done exactly, in Fourier space, for any pixel size and position.
3. A camera of `shine_em.simulate.detector` turns electrons into counts.

The grid must hold the intensity, thus twice the aperture: :math:`d \le \lambda / (4 \alpha)` for
the sampling :math:`d`, the wavelength :math:`\lambda` and the aperture's half angle :math:`\alpha`
(0.164 Å at 300 kV and 30 mrad). Then the wave's band limit, 2/3 of the grid's Nyquist frequency,
lies above the aperture as well.

References
----------
J. Madsen, T. Susi, The abTEM code: transmission electron microscopy from first principles.
Open Res. Europe 1, 24 (2021).
I. Lobato, D. Van Dyck, Acta Cryst. A 70, 636-649 (2014) (scattering factors).
E. J. Kirkland, Advanced Computing in Electron Microscopy, 3rd ed. (Springer, 2020), ch. 5 and 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShineError
from .scene import check_numbers

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Optics", "electrons", "image", "simulation_packages"]


@dataclass(frozen=True)
class Optics:
    """The microscope of a high-resolution TEM image. Defaults: the paper's, in focus.

    The illumination is coherent in space and time: the paper names no incoherence.

    Attributes
    ----------
    voltage_kV
        Acceleration voltage.
    c3_mm, c5_mm
        Spherical aberration of third and fifth order.
    overfocus_nm
        How much stronger than in focus the lens is: the plane in focus lies this far below the
        specimen's exit plane (the end of the cell that holds the atoms), so that atoms above the
        exit plane are overfocused further by their own height. Negative values are underfocus.
    aperture_mrad
        Half angle of the objective aperture.

    Raises
    ------
    ShineError
        If a value is impossible; the message names it.
    """

    voltage_kV: float = 300.0
    c3_mm: float = -0.01
    c5_mm: float = 3.0
    overfocus_nm: float = 0.0
    aperture_mrad: float = 30.0

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            positive=("voltage_kV", "aperture_mrad"),
            finite=("c3_mm", "c5_mm", "overfocus_nm"),
        )

    @property
    def wavelength_A(self) -> float:
        """Relativistic wavelength of the electrons in Å.

        Examples
        --------
        >>> round(Optics(voltage_kV=300).wavelength_A, 5)
        0.01969
        """
        volts = 1e3 * self.voltage_kV
        # h / sqrt(2 m e), and e / (2 m c²): CODATA 2018.
        return 12.2642593 / math.sqrt(volts * (1 + 0.978475623e-6 * volts))

    @property
    def coarsest_sampling_A(self) -> float:
        """Widest grid spacing in Å that holds the image."""
        return self.wavelength_A / (4e-3 * self.aperture_mrad)


def image(
    atoms: Atoms,
    optics: Optics | None = None,
    *,
    sampling_A: float = 0.15,
    slice_A: float = 2.0,
) -> np.ndarray:
    """Return the image of atoms, relative to the vacuum's intensity.

    Parameters
    ----------
    atoms
        In a right-angled cell, periodic along x and y, the beam along +z; all atoms between z = 0
        and the cell's end, the exit plane. A cell without atoms is vacuum.
    optics
        The microscope; by default that of the paper.
    sampling_A
        Widest spacing of the grid.
    slice_A
        Widest thickness of the slices.

    Returns
    -------
    ndarray
        ``(y, x)`` float32 over the whole cell, 1 in vacuum; its points lie at
        ``i * cell / points``. Electrons that the aperture stops are missing from its mean.

    Raises
    ------
    ShineError
        If abTEM is not installed, the aperture lies beyond the grid, or an atom outside the cell.
    """
    optics = optics or Optics()
    check_numbers(
        {"sampling_A": sampling_A, "slice_A": slice_A}, positive=("sampling_A", "slice_A")
    )
    if sampling_A > optics.coarsest_sampling_A:
        raise ShineError(
            f"aperture_mrad={optics.aperture_mrad:g} lies beyond the simulation grid: it needs "
            f"sampling_A of {optics.coarsest_sampling_A:.3f} or less, not {sampling_A:g}."
        )
    width, height, depth = _cell(atoms)
    abtem, _ = simulation_packages()
    points = tuple(_fast_length(side / sampling_A) for side in (width, height))
    wave = abtem.PlaneWave(energy=1e3 * optics.voltage_kV)
    if len(atoms):
        potential = abtem.Potential(
            atoms,
            gpts=points,
            slice_thickness=depth / math.ceil(depth / slice_A),
            parametrization="lobato",
            projection="infinite",
        )
        exit_wave = wave.multislice(potential, lazy=False)
    else:
        wave = abtem.PlaneWave(energy=1e3 * optics.voltage_kV, extent=(width, height), gpts=points)
        exit_wave = wave.build(lazy=False)
    transfer = abtem.CTF(
        energy=1e3 * optics.voltage_kV,
        semiangle_cutoff=optics.aperture_mrad,
        soft=False,
        # abTEM counts underfocus and Å.
        defocus=-10 * optics.overfocus_nm,
        Cs=1e7 * optics.c3_mm,
        C50=1e7 * optics.c5_mm,
    )
    wave_behind_lens = np.asarray(exit_wave.apply_ctf(transfer).array)
    # abTEM's first axis is x.
    intensity = wave_behind_lens.real**2 + wave_behind_lens.imag**2
    return np.ascontiguousarray(intensity.T, dtype=np.float32)


def electrons(
    intensity: np.ndarray,
    *,
    cell_A: tuple[float, float],
    pixel_A: float,
    shape: tuple[int, int],
    first_pixel_A: tuple[float, float] = (0.0, 0.0),
    dose_e_per_A2: float,
) -> np.ndarray:
    r"""Return the expected electrons on each pixel of a camera.

    .. math:: N_j = D \int_{\mathrm{pixel}\,j} I(r)\,dr = D a^2 \sum_k \hat I_k \,
              \mathrm{sinc}(k_x a)\,\mathrm{sinc}(k_y a)\, e^{2 \pi i k \cdot r_j}

    with the dose :math:`D` and the pixel's width :math:`a`. What the pixels cannot resolve is
    folded back, as in a real camera.

    Parameters
    ----------
    intensity
        ``(y, x)`` over one period, as `image` returns it.
    cell_A
        Height and width of that period in Å.
    pixel_A
        Width of a pixel in Å.
    shape
        ``(y, x)`` pixels. A camera larger than the cell sees it repeated.
    first_pixel_A
        Position ``(y, x)`` of the first pixel's centre in the cell, in Å.
    dose_e_per_A2
        Incident electrons per Å².

    Returns
    -------
    ndarray
        ``(y, x)`` float64, not negative.

    Raises
    ------
    ShineError
        If the dose is negative or the pixel size not positive.
    """
    check_numbers(
        {"pixel_A": pixel_A, "dose_e_per_A2": dose_e_per_A2},
        positive=("pixel_A",),
        not_negative=("dose_e_per_A2",),
    )
    spectrum = np.fft.fft2(np.asarray(intensity, np.float64), norm="forward")
    for axis in (0, 1):
        frequencies = np.fft.fftfreq(intensity.shape[axis], cell_A[axis] / intensity.shape[axis])
        centres = first_pixel_A[axis] + pixel_A * np.arange(shape[axis])
        samples = np.exp(2j * np.pi * np.outer(centres, frequencies))
        samples *= np.sinc(frequencies * pixel_A)
        spectrum = np.moveaxis(np.tensordot(samples, spectrum, axes=(1, axis)), 0, axis)
    # Rounding may leave -1e-17 where the intensity is zero.
    return np.maximum(spectrum.real, 0) * (dose_e_per_A2 * pixel_A**2)


def simulation_packages() -> tuple[Any, Any]:
    """Return the modules ``abtem`` and ``ase``.

    Raises
    ------
    ShineError
        If they are not installed.
    """
    try:
        import abtem
        import ase
    except ImportError as error:
        raise ShineError(
            f"This simulation needs {error.name or 'abTEM'}, which is not installed. "
            'Install it with: pip install "shine-em[simulate]"'
        ) from error
    # Measured plans differ from run to run, and with them the last digits of an image: the same
    # seed must give the same movie. Set for good, as threads share abTEM's settings.
    abtem.config.set({"fftw.planning_effort": "FFTW_ESTIMATE"})
    return abtem, ase


def _cell(atoms: Atoms) -> tuple[float, float, float]:
    cell = np.asarray(atoms.cell[:])
    if np.count_nonzero(cell - np.diag(np.diag(cell))) or (np.diag(cell) <= 0).any():
        raise ShineError("The atoms must lie in a right-angled cell with three sides.")
    depth = cell[2, 2]
    if len(atoms):
        z = atoms.positions[:, 2]
        if z.min() < 0 or z.max() > depth:
            raise ShineError(
                f"Atoms lie at z = {z.min():.2f} to {z.max():.2f} Å, outside the cell of "
                f"0 to {depth:.2f} Å: the beam would miss them."
            )
    return float(cell[0, 0]), float(cell[1, 1]), float(depth)


def _fast_length(points: float) -> int:
    from scipy.fft import next_fast_len

    return int(next_fast_len(math.ceil(points - 1e-9)))
