"""Au nanoparticles growing in a silicon nitride liquid cell (the demo scene)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from .frames import run_frames
from .point_spread import K2_LIKE_POINT_SPREAD, noise_correlation, record
from .scene import Scene, check_numbers, check_plan, simulated_movie

__all__ = ["au_growth", "gold_thickness", "random_walk"]

_PAPER_PARTICLES, _PAPER_SIZE = 350, 512
# Scatterers per nm³: the atoms of amorphous Si3N4 of 3.17 g/cm³, and water's molecules, in which
# the hydrogens scatter little.
_SIN_ATOMS, _WATER_MOLECULES = 95.0, 33.4


def au_growth(
    *,
    frames: int = 100,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    particles: int | None = None,
    pixel_size_nm: float = 1.045,
    frame_time_s: float = 1.0,
    dose_e_per_A2: float = 20.0,
    diffusivity_px2: float = 0.2,
    initial_diameter_nm: float = 6.0,
    final_diameter_nm: float = 20.0,
    growth_spread: float = 0.2,
    window_nm: float = 50.0,
    liquid_nm: float = 50.0,
    gold_mfp_nm: float = 30.0,
    water_mfp_nm: float = 185.0,
    window_mfp_nm: float = 144.0,
    conversion: float = 3.47,
    dqe: float = 0.03,
    point_spread: Sequence[float] = K2_LIKE_POINT_SPREAD,
    amorphous_contrast: float = 0.0,
    amorphous_grain_nm: float = 1.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scene:
    r"""Simulate Au nanoparticles that grow and diffuse in a silicon nitride liquid cell.

    The scene of the paper's Fig. 1D: 350 spheres in 50 nm of water between two 50 nm windows,
    512 × 512 pixels of 1.045 nm, 20 e⁻/Å² per frame, conversion 3.47. Contrast is mass-thickness
    contrast after Beer and Lambert, with the water that the gold displaces taken away:

    .. math:: N = D a^2 \exp\left(-\frac{t_{Au}}{\lambda_{Au}}
              - \frac{t_{liquid} - t_{Au}}{\lambda_{water}} - \frac{2 t_{SiN}}{\lambda_{SiN}}\right)

    with the dose :math:`D`, the pixel's width :math:`a` and the thickness :math:`t_{Au}` of gold
    in projection, which adds up where particles overlap, up to the depth of the liquid.
    `shine_em.simulate.point_spread.record` makes counts of the expected electrons :math:`N`.

    Windows and water are amorphous: the number of atoms above a pixel is random. For independent
    atoms of the density :math:`\rho` a layer's optical depth :math:`t / \lambda` varies with the
    standard deviation

    .. math:: \sigma = \frac{s}{\lambda a} \sqrt{\frac{t}{\rho}}

    around its mean, which the exponent above then follows pixel by pixel: the windows' texture
    stands still, the water's is a new one in each frame and thinner where gold displaces it. The
    strength :math:`s` is ``amorphous_contrast``.

    Each particle is a random walker, reflected at the edges of the field: each frame it moves
    along each axis by a normal step of variance :math:`2 D_p`, so its mean squared displacement in
    the plane is :math:`4 D_p` per frame. Its diameter grows linearly with time.

    **Noise.** The paper gives neither its camera's DQE nor the PSNR of its noisy frames in numbers.
    About 830 of the 2184 electrons per pixel pass the cell; a ``dqe`` of 1 counts them all, and the
    noise is light: PSNR 25 dB in the first and 32 dB in the last frame without a fit (13 and 21 dB
    by the authors' min-max protocol). The default of 0.03 keeps the information of 25 electrons per
    pixel, which is a harder and for low-dose movies more typical test: 9 and 17 dB (5 and 9 dB). A
    scintillator camera has such a DQE near its Nyquist frequency; equally one may read the paper's
    "dose rate" of 20 e⁻/Å² as per second, recorded by an ideal camera at 33 frames per second.

    Parameters
    ----------
    frames
        Number of frames.
    size
        Height and width in pixels; one number for a square.
    seed
        The same seed gives the same movie, whatever the number of workers.
    particles
        Number of particles; by default the paper's density, 350 in 512 × 512 pixels.
    pixel_size_nm
        Width of a pixel.
    frame_time_s
        Time from frame to frame. The paper gives none; it does not affect the picture.
    dose_e_per_A2
        Incident electrons per Å² and frame.
    diffusivity_px2
        Diffusivity :math:`D_p` of the particles.
    initial_diameter_nm
        Diameter of all particles in the first frame.
    final_diameter_nm
        Mean diameter in the last frame.
    growth_spread
        Standard deviation of the particles' growth rates over their mean, cut off at two standard
        deviations; 0 makes all particles grow alike.
    window_nm
        Thickness of each of the two windows.
    liquid_nm
        Thickness of the water.
    gold_mfp_nm
        Mean free path in gold for loss from the image: scattering past the objective aperture or,
        with an energy filter, inelastic scattering. The paper's simulator (Yao et al. 2020) draws
        it from 20 to 80 nm.
    water_mfp_nm
        Mean free path in water; the value of the paper's simulator.
    window_mfp_nm
        Mean free path in silicon nitride; the value of the paper's simulator.
    conversion
        Counts per incident electron.
    dqe
        Detective quantum efficiency, above 0 and up to 1, the same at all frequencies. What is lost
        makes noise: the mean counts stay.
    point_spread
        Weights of an electron's signal at 0, 1, 2, ... pixels along each axis.
    amorphous_contrast
        Strength of the texture of windows and water: 0 for none, 1 for the contrast of independent
        atoms (at 1 nm per pixel 0.9 % of the counts, against noise of 20 %). Phase contrast makes
        images out of focus show several times that.
    amorphous_grain_nm
        Width of the texture's grains, as the standard deviation of a Gaussian; the contrast is
        that of the smoothed texture.
    workers
        Threads; None for one per processor, up to eight.
    progress
        Called as ``progress(done, total)`` after each frame.
    cache
        Folder that keeps finished frames until all are there, to go on after an interruption.

    Returns
    -------
    Scene

    Raises
    ------
    ShineError
        If a parameter is impossible; the message names it.

    References
    ----------
    SHINE, Science Advances (2025), "Au nanoparticle growth simulation in the silicon nitride liquid
    cell". L. Yao, Z. Ou, B. Luo, C. Xu, Q. Chen, Machine learning to reveal nanoparticle dynamics
    from liquid-phase TEM videos. ACS Cent. Sci. 6, 1421-1430 (2020).
    """
    height, width = check_plan(frames=frames, size=size, seed=seed, workers=workers)
    if particles is None:
        particles = max(1, round(_PAPER_PARTICLES * height * width / _PAPER_SIZE**2))
    parameters: dict[str, Any] = {
        "scene": "au-growth",
        "frames": frames,
        "size": [height, width],
        "seed": seed,
        "particles": particles,
        "pixel_size_nm": pixel_size_nm,
        "frame_time_s": frame_time_s,
        "dose_e_per_A2": dose_e_per_A2,
        "diffusivity_px2": diffusivity_px2,
        "initial_diameter_nm": initial_diameter_nm,
        "final_diameter_nm": final_diameter_nm,
        "growth_spread": growth_spread,
        "window_nm": window_nm,
        "liquid_nm": liquid_nm,
        "gold_mfp_nm": gold_mfp_nm,
        "water_mfp_nm": water_mfp_nm,
        "window_mfp_nm": window_mfp_nm,
        "conversion": conversion,
        "dqe": dqe,
        "point_spread": [float(w) for w in point_spread],
        "amorphous_contrast": amorphous_contrast,
        "amorphous_grain_nm": amorphous_grain_nm,
    }
    _check(parameters)
    correlation = noise_correlation(point_spread)
    border = len(point_spread) - 1
    attenuation = np.exp(-liquid_nm / water_mfp_nm - 2 * window_nm / window_mfp_nm)
    background = dose_e_per_A2 * (10 * pixel_size_nm) ** 2 * attenuation
    # Standard deviation of the optical depth per square root of the thickness in nm.
    window_grit, water_grit = (
        amorphous_contrast / (mfp * pixel_size_nm * math.sqrt(density))
        for mfp, density in ((window_mfp_nm, _SIN_ATOMS), (water_mfp_nm, _WATER_MOLECULES))
    )
    texture = math.hypot(window_grit * math.sqrt(2 * window_nm), water_grit * math.sqrt(liquid_nm))
    for name, brightest in (
        (f"dose_e_per_A2={dose_e_per_A2}", background),
        (f"amorphous_contrast={amorphous_contrast}", background * np.exp(min(5 * texture, 20.0))),
    ):
        if conversion * (brightest + 8 * np.sqrt(brightest / dqe)) > np.iinfo(np.uint16).max:
            raise ShineError(
                f"{name} saturates the 16-bit camera: the empty part of the cell would give "
                f"{conversion * brightest:.0f} counts. Lower it, the dose or the conversion."
            )

    motion_seed, *noise_seeds = np.random.SeedSequence(seed).spawn(frames + 1)
    rng = np.random.default_rng(motion_seed)
    positions = random_walk(rng, frames, particles, (height, width), diffusivity_px2)
    rates = np.clip(rng.normal(size=particles), -2, 2) * growth_spread + 1
    elapsed = np.linspace(0, 1, frames)[:, None]
    diameters = initial_diameter_nm + (final_diameter_nm - initial_diameter_nm) * rates * elapsed

    inner = slice(border, border + height), slice(border, border + width)
    whole = height + 2 * border, width + 2 * border
    grain = amorphous_grain_nm / pixel_size_nm
    texture_seeds = np.random.SeedSequence([seed, 1]).spawn(frames + 1)
    windows = _texture(texture_seeds[0], whole, grain) if amorphous_contrast > 0 else None

    def simulate(t: int) -> dict[str, np.ndarray]:
        gold = gold_thickness(
            positions[t] + border, diameters[t], shape=whole, pixel_size_nm=pixel_size_nm
        )
        gold = np.minimum(gold, liquid_nm)
        electrons = background * np.exp(-gold * (1 / gold_mfp_nm - 1 / water_mfp_nm))
        if windows is not None:
            water = _texture(texture_seeds[t + 1], whole, grain)
            electrons *= np.exp(
                window_grit * np.sqrt(2 * window_nm) * windows
                + water_grit * np.sqrt(liquid_nm - gold) * water
            )
        counts, expected = record(
            electrons,
            np.random.default_rng(noise_seeds[t]),
            conversion=conversion,
            dqe=dqe,
            point_spread=point_spread,
        )
        return {
            "noisy": np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16),
            "truth": expected,
            "unblurred": (conversion * electrons[inner]).astype(np.float32),
        }

    stacks = run_frames(
        simulate, frames, identity=parameters, workers=workers, progress=progress, cache=cache
    )

    parameters["electrons_per_pixel"] = float(background)
    parameters["background_counts"] = float(conversion * background)
    parameters["noise_correlation"] = correlation.tolist()

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

    return Scene(
        name="au-growth",
        noisy=movie("noisy", "recorded with noise"),
        truth=movie("truth", "expected counts, blurred by the camera"),
        unblurred=movie("unblurred", "expected counts without the camera's blur"),
        coordinates={"positions_px": positions, "diameters_nm": diameters},
        parameters=parameters,
    )


def gold_thickness(
    positions_px: np.ndarray,
    diameters_nm: np.ndarray,
    *,
    shape: tuple[int, int],
    pixel_size_nm: float,
) -> np.ndarray:
    """Project spheres along the beam.

    Parameters
    ----------
    positions_px
        ``(particle, 2)`` centres, y then x, in pixels; parts outside the frame are cut off.
    diameters_nm
        ``(particle,)``.
    shape
        ``(y, x)`` of the result.
    pixel_size_nm
        Width of a pixel.

    Returns
    -------
    ndarray
        ``(y, x)`` float64, the thickness in nm, mean over each pixel (2 × 2 samples).
    """
    thickness = np.zeros(shape)
    quarter = np.array([-0.25, 0.25])
    for centre, diameter in zip(positions_px.tolist(), diameters_nm.tolist(), strict=True):
        radius = diameter / 2 / pixel_size_nm
        low = [max(math.ceil(c - radius - 0.5), 0) for c in centre]
        high = [
            min(math.floor(c + radius + 0.5) + 1, n) for c, n in zip(centre, shape, strict=True)
        ]
        if high[0] <= low[0] or high[1] <= low[1]:
            continue
        y, x = (
            (np.arange(a, b)[:, None] + quarter - c).ravel() ** 2
            for a, b, c in zip(low, high, centre, strict=True)
        )
        chord = 2 * np.sqrt(np.maximum(radius**2 - y[:, None] - x, 0))
        total = chord[0::2] + chord[1::2]
        total = total[:, 0::2] + total[:, 1::2]
        thickness[low[0] : high[0], low[1] : high[1]] += total
    return thickness * (pixel_size_nm / 4)


def random_walk(
    rng: np.random.Generator,
    frames: int,
    particles: int,
    shape: tuple[int, int],
    diffusivity_px2: float,
) -> np.ndarray:
    """Return ``(t, particle, 2)`` positions of random walkers in a field with reflecting walls.

    The steps along each axis are normal with the variance ``2 * diffusivity_px2``, so that the mean
    squared displacement in the plane is ``4 * diffusivity_px2`` per frame.
    """
    start = rng.uniform(size=(1, particles, 2)) * shape
    steps = rng.normal(scale=np.sqrt(2 * diffusivity_px2), size=(frames - 1, particles, 2))
    path = np.concatenate([start, start + np.cumsum(steps, axis=0)])
    # Unfolding the mirrored field into a period of twice its size makes the walls reflect.
    period = 2 * np.asarray(shape)
    folded = path % period
    # Pixel centres lie at whole numbers, so the field reaches from -1/2 to size - 1/2.
    return np.minimum(folded, period - folded) - 0.5


def _texture(seed: np.random.SeedSequence, shape: tuple[int, int], grain_px: float) -> np.ndarray:
    """Return a smooth random field of mean 0 and standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    field = np.random.default_rng(seed).normal(size=shape)
    if grain_px == 0:
        return field
    reach = math.ceil(4 * grain_px)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / grain_px) ** 2)
    weights /= weights.sum()
    # The energy of the kernel along each axis is what smoothing leaves of the variance.
    return gaussian_filter(field, grain_px, mode="wrap") / (weights**2).sum()


def _check(p: dict[str, Any]) -> None:
    height, width = p["size"]
    if p["particles"] < 1:
        raise ShineError(f"particles must be at least 1, not {p['particles']}.")
    check_numbers(
        p,
        positive=(
            "pixel_size_nm", "frame_time_s", "dose_e_per_A2", "initial_diameter_nm",
            "final_diameter_nm", "liquid_nm", "gold_mfp_nm", "water_mfp_nm", "window_mfp_nm",
            "conversion", "dqe",
        ),
        not_negative=(
            "diffusivity_px2", "window_nm", "growth_spread", "amorphous_contrast",
            "amorphous_grain_nm",
        ),
    )  # fmt: skip
    growth = p["final_diameter_nm"] - p["initial_diameter_nm"]
    extremes = [growth * (1 + s * 2 * p["growth_spread"]) for s in (-1, 1)]
    largest = p["initial_diameter_nm"] + max(0.0, *extremes)
    if p["initial_diameter_nm"] + min(0.0, *extremes) <= 0:
        raise ShineError("final_diameter_nm and growth_spread make some particles vanish.")
    field_nm = min(height, width) * p["pixel_size_nm"]
    for limit, what in ((field_nm, "the field"), (p["liquid_nm"], "the liquid (liquid_nm)")):
        if largest > limit:
            name = "initial_diameter_nm" if growth <= 0 else "final_diameter_nm"
            raise ShineError(
                f"{name}: the largest particle of {largest:.1f} nm does not fit into {what} of "
                f"{limit:.1f} nm. Choose smaller particles or a larger size."
            )
