"""Nanocrystals seen with less than one electron per pixel, by a camera that counts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from .au_growth import random_walk
from .detector import camera_named
from .frames import run_frames
from .scene import Scene, check_numbers, check_plan, simulated_movie

__all__ = ["sparse_counting"]

_PARTICLES, _SIZE = 8, 512


def sparse_counting(
    *,
    frames: int = 100,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    particles: int | None = None,
    pixel_size_nm: float = 0.05,
    frame_time_s: float = 0.1,
    dose_e_per_A2: float = 2.4,
    smallest_diameter_nm: float = 3.0,
    largest_diameter_nm: float = 6.0,
    lattice_nm: float = 0.40786,
    fringe_contrast: float = 0.6,
    mfp_nm: float = 30.0,
    diffusivity_px2: float = 0.1,
    rotation_deg: float = 1.0,
    camera: str = "k2-counting",
    counting_rate_hz: float = 400.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scene:
    r"""Simulate gold nanocrystals that drift and turn, recorded with a few electrons per Å².

    Spheres of face-centred cubic gold, seen along [110], move and turn in the plane of the image.
    Their lattice fringes stand on their mass-thickness contrast:

    .. math:: N = D a^2 \prod_p e^{-t_p / \lambda} \left[1 + c \, \frac{t_p}{d_{max}} \cdot
              \frac{1}{3} \sum_{g} \cos\left(2 \pi \, g \cdot (r - r_p)\right)\right]

    with the dose :math:`D`, the pixel's width :math:`a`, the thickness :math:`t_p` of particle
    :math:`p` in projection, the largest diameter :math:`d_{max}` and the reflections (1-11),
    (1-1-1) and (002) :math:`g`, turned with the particle. It is a model with the symmetry, the
    spacings and the contrast of lattice images, not a multislice calculation: its purpose is a
    truth known in closed form at a dose where most pixels are empty.

    Each particle is a random walker, reflected at the edges of the field, of mean squared
    displacement :math:`4 D_p` per frame; its angle is a random walk as well.

    Parameters
    ----------
    frames
        Number of frames.
    size
        Height and width in pixels; one number for a square.
    seed
        The same seed gives the same movie, whatever the number of workers.
    particles
        Number of particles; by default 8 in 512 × 512 pixels, and at least one.
    pixel_size_nm
        Width of a pixel.
    frame_time_s
        Time from frame to frame.
    dose_e_per_A2
        Incident electrons per Å² and frame. With the default pixel size the default gives 0.6
        electrons per pixel; one or more are refused.
    smallest_diameter_nm
        Smallest of the particles' diameters, which are drawn evenly from a range.
    largest_diameter_nm
        Largest of the particles' diameters.
    lattice_nm
        Lattice constant of the crystals. Gold's gives fringes of 0.2355 nm (111) and 0.2039 nm
        (200).
    fringe_contrast
        Amplitude :math:`c` of the fringes in the middle of the largest particle, 0 to 1.
    mfp_nm
        Mean free path for loss from the image in gold.
    diffusivity_px2
        Diffusivity :math:`D_p` of the particles.
    rotation_deg
        Standard deviation of the turn from frame to frame.
    camera
        Name of the camera: ideal, k2, k2-counting, falcon or ccd.
    counting_rate_hz
        Internal frames per second of a camera that counts.
    workers
        Threads; None for one per processor, up to eight.
    progress
        Called as ``progress(done, total)`` after each frame.
    cache
        Folder that keeps finished frames until all are there, to go on after an interruption.

    Returns
    -------
    Scene
        With ``coordinates`` ``positions_px`` ``(t, particle, 2)``, ``angles_deg``
        ``(t, particle)`` and ``diameters_nm`` ``(particle,)``.

    Raises
    ------
    ShineError
        If a parameter is impossible; the message names it.
    """
    height, width = check_plan(frames=frames, size=size, seed=seed, workers=workers)
    if particles is None:
        particles = max(1, round(_PARTICLES * height * width / _SIZE**2))
    parameters: dict[str, Any] = {
        "scene": "sparse-counting",
        "frames": frames,
        "size": [height, width],
        "seed": seed,
        "particles": particles,
        "pixel_size_nm": pixel_size_nm,
        "frame_time_s": frame_time_s,
        "dose_e_per_A2": dose_e_per_A2,
        "smallest_diameter_nm": smallest_diameter_nm,
        "largest_diameter_nm": largest_diameter_nm,
        "lattice_nm": lattice_nm,
        "fringe_contrast": fringe_contrast,
        "mfp_nm": mfp_nm,
        "diffusivity_px2": diffusivity_px2,
        "rotation_deg": rotation_deg,
        "camera": camera,
        "counting_rate_hz": counting_rate_hz,
    }
    _check(parameters)
    recorder = camera_named(camera)
    if recorder.counting_frames is not None:
        internal = max(1, round(counting_rate_hz * frame_time_s))
        recorder = replace(recorder, counting_frames=internal)
    edge = recorder.border

    rng = np.random.default_rng([seed, frames])
    positions = random_walk(rng, frames, particles, (height, width), diffusivity_px2)
    turns = rng.normal(scale=rotation_deg, size=(frames, particles))
    turns[0] = rng.uniform(0, 360, particles)
    angles = np.cumsum(turns, axis=0)
    diameters = rng.uniform(smallest_diameter_nm, largest_diameter_nm, particles)
    per_pixel = dose_e_per_A2 * (10 * pixel_size_nm) ** 2

    def simulate(t: int) -> dict[str, np.ndarray]:
        electrons = np.full((height + 2 * edge, width + 2 * edge), per_pixel)
        for centre, angle, diameter in zip(positions[t], angles[t], diameters, strict=True):
            _add_particle(
                electrons, centre + edge, math.radians(angle), diameter / pixel_size_nm,
                lattice_px=lattice_nm / pixel_size_nm,
                amplitude=fringe_contrast * pixel_size_nm / largest_diameter_nm,
                mfp_px=mfp_nm / pixel_size_nm,
            )  # fmt: skip
        noise = np.random.default_rng([seed, frames, t])
        noisy, expected = recorder.record(electrons, noise, bordered=True)
        inner = electrons[edge : edge + height, edge : edge + width]
        unblurred = (recorder.conversion * inner + recorder.dark).astype(np.float32)
        return {"noisy": noisy, "truth": expected, "unblurred": unblurred}

    stacks = run_frames(
        simulate, frames, identity=parameters, workers=workers, progress=progress, cache=cache
    )
    parameters["electrons_per_pixel"] = per_pixel
    parameters["background_counts"] = recorder.expected_counts(per_pixel)

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
        name="sparse-counting",
        noisy=movie("noisy", "electrons counted"),
        truth=movie("truth", "expected counts, blurred by the camera"),
        unblurred=movie("unblurred", "expected counts without the camera's blur and losses"),
        parameters=parameters,
        coordinates={
            "positions_px": positions,
            "angles_deg": angles,
            "diameters_nm": diameters,
        },
    )


def _add_particle(
    electrons: np.ndarray,
    centre: np.ndarray,
    angle: float,
    diameter: float,
    *,
    lattice_px: float,
    amplitude: float,
    mfp_px: float,
) -> None:
    """Multiply the image of one particle into a field; all lengths in pixels."""
    rows, columns = (
        slice(max(0, math.ceil(c - diameter / 2)), max(0, math.floor(c + diameter / 2) + 1))
        for c in centre
    )
    patch = electrons[rows, columns]
    y = np.arange(rows.start, rows.start + patch.shape[0])[:, None] - centre[0]
    x = np.arange(columns.start, columns.start + patch.shape[1]) - centre[1]
    thickness = 2 * np.sqrt(np.maximum((diameter / 2) ** 2 - y**2 - x**2, 0))
    # In the [110] zone [001] and [1-10] are at right angles; (1-11) has parts along both.
    along_001, along_110 = 1 / lattice_px, math.sqrt(2) / lattice_px
    fringes = np.zeros_like(thickness)
    for u, v in ((along_001, along_110), (along_001, -along_110), (2 * along_001, 0.0)):
        gx = u * math.cos(angle) - v * math.sin(angle)
        gy = u * math.sin(angle) + v * math.cos(angle)
        # Each pixel integrates over its own width.
        pixel = np.sinc(gx) * np.sinc(gy)
        fringes += pixel * np.cos(2 * math.pi * (gx * x + gy * y)) / 3
    patch *= np.exp(-thickness / mfp_px) * (1 + amplitude * thickness * fringes)


def _check(p: dict[str, Any]) -> None:
    check_numbers(
        p,
        positive=(
            "particles", "pixel_size_nm", "frame_time_s", "dose_e_per_A2", "smallest_diameter_nm",
            "largest_diameter_nm", "lattice_nm", "mfp_nm", "counting_rate_hz",
        ),
        not_negative=("fringe_contrast", "diffusivity_px2", "rotation_deg"),
    )  # fmt: skip
    per_pixel = p["dose_e_per_A2"] * (10 * p["pixel_size_nm"]) ** 2
    if per_pixel >= 1:
        raise ShineError(
            f"dose_e_per_A2={p['dose_e_per_A2']} gives {per_pixel:.2f} electrons per pixel: this "
            "scene is for less than one. Lower the dose or the pixel size."
        )
    if p["smallest_diameter_nm"] > p["largest_diameter_nm"]:
        raise ShineError("smallest_diameter_nm must not be above largest_diameter_nm.")
    if p["fringe_contrast"] > 1:
        raise ShineError(f"fringe_contrast must lie between 0 and 1, not {p['fringe_contrast']}.")
    field = min(p["size"]) * p["pixel_size_nm"]
    if p["largest_diameter_nm"] > field:
        raise ShineError(
            f"largest_diameter_nm: a particle of {p['largest_diameter_nm']} nm does not fit into "
            f"the field of {field:.1f} nm. Choose smaller particles or a larger size."
        )
    if p["lattice_nm"] <= 4 * p["pixel_size_nm"]:
        raise ShineError(
            f"pixel_size_nm={p['pixel_size_nm']} is too coarse: the (200) fringes of "
            f"{p['lattice_nm'] / 2:.4f} nm need pixels of less than half that width."
        )
