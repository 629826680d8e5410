"""A platinum nanoparticle that turns and trembles in a graphene liquid cell, by multislice."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShineError
from .detector import camera_named
from .frames import run_frames
from .multislice import Optics, electrons, image, simulation_packages
from .scene import Scene, check_numbers, check_plan, simulated_movie
from .water import WaterSnapshots, snapshots

if TYPE_CHECKING:
    from ase import Atoms
    from scipy.spatial.transform import Rotation

__all__ = [
    "graphene",
    "particle_motion",
    "platinum_particle",
    "pt_water",
    "water_layer",
    "without_overlap",
]

PT_LATTICE_A = 3.9242
GRAPHENE_LATTICE_A = 2.46
# Between a graphene sheet and the first oxygens: the first density peak of water at graphene.
_SHEET_GAP_A = 3.2
# No oxygen comes closer to the centre of a platinum atom.
_CLOSEST_WATER_A = 2.8
_SHORTEST_STAY, _LONGEST_STAY = 2, 10


def pt_water(
    *,
    frames: int = 100,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    diameter_nm: float = 2.5,
    water_nm: float = 10.0,
    pixel_size_nm: float = 0.0217,
    frame_time_s: float = 0.1,
    dose_e_per_A2: float = 50.0,
    tilt_deg: float = 90.0,
    vibration_deg: float = 1.0,
    vibration_nm: float = 0.02,
    voltage_kV: float = 300.0,
    c3_mm: float = -0.01,
    c5_mm: float = 3.0,
    overfocus_nm: float = 0.0,
    aperture_mrad: float = 30.0,
    sampling_nm: float = 0.01,
    slice_nm: float = 0.2,
    camera: str = "k2",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scene:
    """Simulate the paper's platinum nanoparticle in a graphene liquid cell.

    Two sheets of graphene enclose water in atomic detail; a particle in its middle takes a new
    random orientation after every 2 to 10 frames and vibrates in angle and position in each frame.
    Every frame is a multislice calculation of all atoms (see `shine_em.simulate.multislice`) with
    another snapshot of the water, recorded by a camera.

    What the paper leaves open is chosen here. The focus is on the lower sheet, the exit plane, as
    multislice programs count it: the particle, 5 nm above, is overfocused by that, which with the
    C3 of -0.01 mm shows its atoms bright. Water comes from `shine_em.simulate.water.snapshots`,
    57.28 Å wide, repeated sideways to fill the field (twice for 512 pixels); in each frame another
    snapshot (as long as there are unused ones), turned or mirrored in one of 16 ways and shifted
    sideways at random. The cell is periodic, so nothing ends at the edges of the field: graphene
    is turned to an angle at which it fits the cell with a strain of 0.2 %.

    The grid: against one of 0.05 Å, a frame of 128 × 128 pixels in 10 nm of water differs (rms, in
    percent of its contrast) by 7.8 % on 0.15 Å, 4.0 % on 0.1 Å, the default, and 2.1 % on 0.075 Å,
    which takes twice the time; 7.6, 3.7 and 2.0 % before the camera's blur.

    Parameters
    ----------
    frames
        Number of frames.
    size
        Height and width in pixels; one number for a square.
    seed
        The same seed gives the same movie, whatever the number of workers.
    diameter_nm
        Diameter of a sphere of the particle's volume; the particle is a Wulff polyhedron with {111}
        and {100} faces. 0 for none.
    water_nm
        Thickness of the water, up to the 10 nm of the snapshots; 0 for none.
    pixel_size_nm
        Width of a pixel.
    frame_time_s
        Time from frame to frame; a calibration only.
    dose_e_per_A2
        Incident electrons per Å² and frame.
    tilt_deg
        Largest angle between the particle's [110] axis and the beam; 90 allows any orientation,
        smaller values keep the atomic columns in sight, 0 fixes the zone axis.
    vibration_deg
        Standard deviation of the particle's vibration about each axis.
    vibration_nm
        Standard deviation of the particle's vibration along each axis.
    voltage_kV
        Acceleration voltage.
    c3_mm
        Spherical aberration of third order.
    c5_mm
        Spherical aberration of fifth order.
    overfocus_nm
        Distance of the plane in focus below the lower sheet; negative for underfocus.
    aperture_mrad
        Half angle of the objective aperture.
    sampling_nm
        Widest spacing of the grid of the multislice calculation.
    slice_nm
        Widest thickness of its slices.
    camera
        Name of the camera: ideal, k2, k2-counting, falcon or ccd.
    workers
        Threads; None for one per processor, up to eight.
    progress
        Called as ``progress(done, total)`` after each frame.
    cache
        Folder that keeps finished frames, to go on after an interruption.

    Returns
    -------
    Scene
        With ``coordinates`` ``centres_px`` ``(t, 2)``, ``orientations`` ``(t, 3, 3)`` (matrices
        that turn x, y and the beam of the pose of `platinum_particle` into those of the frame),
        ``atoms_px`` ``(t, atom, 2)`` and ``atoms_height_nm`` ``(t, atom)`` above the exit plane.

    Raises
    ------
    ShineError
        If abTEM is not installed or a parameter impossible; the message names it.

    References
    ----------
    The paper, Fig. 1H and Materials and Methods, "Pt nanoparticle rotation simulation in the
    graphene liquid cell".
    """
    height, width = check_plan(frames=frames, size=size, seed=seed, workers=workers)
    parameters: dict[str, Any] = {
        "scene": "pt-water",
        "frames": frames,
        "size": [height, width],
        "seed": seed,
        "diameter_nm": diameter_nm,
        "water_nm": water_nm,
        "pixel_size_nm": pixel_size_nm,
        "frame_time_s": frame_time_s,
        "dose_e_per_A2": dose_e_per_A2,
        "tilt_deg": tilt_deg,
        "vibration_deg": vibration_deg,
        "vibration_nm": vibration_nm,
        "voltage_kV": voltage_kV,
        "c3_mm": c3_mm,
        "c5_mm": c5_mm,
        "overfocus_nm": overfocus_nm,
        "aperture_mrad": aperture_mrad,
        "sampling_nm": sampling_nm,
        "slice_nm": slice_nm,
        "camera": camera,
    }
    optics = Optics(voltage_kV, c3_mm, c5_mm, overfocus_nm, aperture_mrad)
    _check(parameters, optics)
    water = snapshots()
    recorder = camera_named(camera)
    edge = recorder.border
    pixel_A = 10 * pixel_size_nm
    if 10 * water_nm > water.box_A[2]:
        raise ShineError(
            f"water_nm={water_nm} is more than the {water.box_A[2] / 10:g} nm of the snapshots."
        )
    # Sideways the cell is a whole number of boxes that covers the field.
    repeats = [math.ceil(n * pixel_A / water.box_A[0] - 1e-9) for n in (height, width)]
    cell_A = (
        repeats[1] * water.box_A[0],
        repeats[0] * water.box_A[1],
        10 * water_nm + 2 * _SHEET_GAP_A + 2.0,
    )
    # Pixel (0, 0) is placed so that the field's centre is the cell's.
    middle = (np.array([height, width]) - 1) / 2
    origin_yx = np.array([cell_A[1], cell_A[0]]) / 2 - middle * pixel_A
    first_pixel = (float(origin_yx[0] - edge * pixel_A), float(origin_yx[1] - edge * pixel_A))

    simulation_packages()
    particle = platinum_particle(diameter_nm) if diameter_nm > 0 else np.zeros((0, 3))
    reach_nm = np.linalg.norm(particle, axis=1).max(initial=0) / 10
    _check_fit(parameters, 2 * reach_nm + 6 * vibration_nm)
    turns, shifts = particle_motion(
        frames, seed, tilt_deg=tilt_deg, vibration_deg=vibration_deg, vibration_A=10 * vibration_nm
    )
    placed = np.stack([turn.apply(particle) for turn in turns]).reshape(frames, -1, 3)
    placed = placed + (shifts[:, None] + np.asarray(cell_A) / 2)
    sheet = graphene((cell_A[0], cell_A[1]))
    order = np.concatenate(
        [
            np.random.default_rng([seed, 1, lap]).permutation(len(water))
            for lap in range(math.ceil(frames / len(water)))
        ]
    )

    def simulate(t: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 2, t])
        liquid = water_layer(
            water, int(order[t]), rng, repeats=(repeats[1], repeats[0]), thickness_A=10 * water_nm
        )
        liquid += (0, 0, 1 + _SHEET_GAP_A)
        liquid = without_overlap(liquid, placed[t])
        atoms = _cell_of(sheet, liquid, placed[t], cell_A)
        intensity = image(atoms, optics, sampling_A=10 * sampling_nm, slice_A=10 * slice_nm)
        expected_electrons = electrons(
            intensity,
            cell_A=(cell_A[1], cell_A[0]),
            pixel_A=pixel_A,
            shape=(height + 2 * edge, width + 2 * edge),
            first_pixel_A=first_pixel,
            dose_e_per_A2=dose_e_per_A2,
        )
        noisy, truth = recorder.record(expected_electrons, rng, bordered=True)
        inner = expected_electrons[edge : edge + height, edge : edge + width]
        unblurred = (recorder.conversion * inner + recorder.dark).astype(np.float32)
        return {"noisy": noisy, "truth": truth, "unblurred": unblurred}

    # A frame does not depend on how many follow: more of them take the first from the cache.
    identity = {key: value for key, value in parameters.items() if key != "frames"}
    stacks = run_frames(
        simulate,
        frames,
        identity={**identity, "water": water.facts},
        workers=workers,
        progress=progress,
        cache=cache,
    )
    per_pixel = dose_e_per_A2 * pixel_A**2
    parameters["electrons_per_pixel"] = per_pixel
    parameters["vacuum_counts"] = recorder.expected_counts(per_pixel)
    parameters["pt_atoms"] = len(particle)
    parameters["cell_nm"] = [round(side / 10, 6) for side in cell_A]
    parameters["water"] = water.facts

    def movie(name: str, did: str) -> Any:
        return simulated_movie(
            stacks[name],
            name=name,
            did=did,
            parameters=parameters,
            pixel_size_nm=pixel_size_nm,
            frame_time_s=frame_time_s,
            dose_e_per_A2=dose_e_per_A2,
        )

    centre = np.asarray(cell_A)[1::-1] / 2
    return Scene(
        name="pt-water",
        noisy=movie("noisy", "recorded with noise"),
        truth=movie("truth", "expected counts, blurred by the camera"),
        unblurred=movie("unblurred", "expected counts without the camera's blur and losses"),
        parameters=parameters,
        coordinates={
            "centres_px": (shifts[:, 1::-1] + centre - origin_yx) / pixel_A,
            "orientations": np.stack([turn.as_matrix() for turn in turns]),
            "atoms_px": (placed[:, :, 1::-1] - origin_yx) / pixel_A,
            "atoms_height_nm": (cell_A[2] - placed[:, :, 2]) / 10,
        },
    )


def platinum_particle(diameter_nm: float) -> np.ndarray:
    """Return ``(atom, 3)`` Å about the origin: a platinum crystal with {111} and {100} faces.

    Its x axis is [-110], y is [001] and z, the beam, is [110], the zone axis that shows the atomic
    columns of this lattice best.

    Parameters
    ----------
    diameter_nm
        Of a sphere of the same volume; the crystal with complete faces that is nearest to it.

    References
    ----------
    L. Vitos et al., The surface energy of metals. Surf. Sci. 411, 186-202 (1998): the ratio of
    2.734 to 2.299 J/m² of Pt {100} and {111}. Lattice constant 3.9242 Å at room temperature.
    """
    simulation_packages()
    from ase.cluster import wulff_construction

    atoms = round(math.pi / 6 * (10 * diameter_nm) ** 3 / (PT_LATTICE_A**3 / 4))
    crystal = wulff_construction(
        "Pt",
        [(1, 1, 1), (1, 0, 0)],
        [2.299, 2.734],
        max(atoms, 1),
        "fcc",
        latticeconstant=PT_LATTICE_A,
    )
    positions = crystal.positions - crystal.positions.mean(axis=0)
    axes = np.array([[-1, 1, 0], [0, 0, 1], [1, 1, 0]]) / np.array([[2**0.5], [1], [2**0.5]])
    return np.asarray(positions @ axes.T)


def graphene(cell_A: tuple[float, float]) -> np.ndarray:
    """Return ``(atom, 2)`` x, y in Å of a graphene sheet that fits a rectangular periodic cell.

    A rectangle is no period of a honeycomb, except roughly: of all pairs of lattice vectors that
    are nearly as long as the sides and nearly at right angles, the pair that needs the least strain
    becomes the cell's sides. That turns the lattice and strains it: by about 1 % at worst in cells
    of 50 Å and more, by 0.2 % in those of `pt_water`.

    Parameters
    ----------
    cell_A
        Width and height of the cell in Å.
    """
    a = GRAPHENE_LATTICE_A * np.array([[1, 0], [0.5, 3**0.5 / 2]])
    reach = math.ceil(1.3 * max(cell_A) / GRAPHENE_LATTICE_A)
    n = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1)
    n = n.reshape(-1, 2)
    vectors = n @ a
    lengths = np.linalg.norm(vectors, axis=1)
    near = [np.flatnonzero(np.abs(lengths / side - 1) < 0.03) for side in cell_A]
    first, second = (vectors[i] for i in near)
    cross = first[:, None, 0] * second[None, :, 1] - first[:, None, 1] * second[None, :, 0]
    dot = first @ second.T
    area = cell_A[0] * cell_A[1]
    # Stretch of either side, and shear; a left-handed pair would turn the sheet over.
    strain = np.maximum(
        np.abs(lengths[near[0]] / cell_A[0] - 1)[:, None],
        np.abs(lengths[near[1]] / cell_A[1] - 1)[None, :],
    )
    strain = np.maximum(strain, np.abs(dot) / area)
    strain[cross <= 0] = np.inf
    i, j = np.unravel_index(np.argmin(strain), strain.shape)
    sides = np.array([n[near[0][i]], n[near[1][j]]])
    # All lattice points of the cell, and the second atom of each, as fractions of the sides.
    points = np.arange(-2 * reach, 2 * reach + 1)
    cells = np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1).reshape(-1, 2)
    fractions = cells @ np.linalg.inv(sides)
    inside = ((fractions > -1e-9) & (fractions < 1 - 1e-9)).all(axis=1)
    both = np.concatenate([cells[inside], cells[inside] + 1 / 3]) @ np.linalg.inv(sides)
    return (both % 1.0) * np.asarray(cell_A)


def water_layer(
    water: WaterSnapshots,
    index: int,
    rng: np.random.Generator,
    *,
    repeats: tuple[int, int],
    thickness_A: float,
) -> np.ndarray:
    """Return ``(molecule, 3, 3)`` Å of a periodic layer of water from z = 0 to its thickness.

    The snapshot is mirrored along x, y and z and its x and y exchanged, each or not at random,
    shifted sideways at random and repeated. A molecule belongs to the layer if its oxygen does.

    Parameters
    ----------
    water, index
        The snapshots, whose box is as wide as high, and which of them.
    rng
        Decides on the symmetry and the shift.
    repeats
        Boxes along x and y.
    thickness_A
        Up to the box's own thickness; what lies above is left out.
    """
    box = np.asarray(water.box_A)
    molecules = water.positions(index)
    molecules = np.where(rng.integers(0, 2, 3) == 1, box - molecules, molecules)
    if rng.integers(0, 2) and box[0] == box[1]:
        molecules = molecules[:, :, [1, 0, 2]]
    molecules[:, :, :2] += rng.uniform(0, box[:2])
    # Whole molecules go back into the box, after their oxygen.
    molecules[:, :, :2] -= (molecules[:, :1, :2] // box[:2]) * box[:2]
    molecules = molecules[molecules[:, 0, 2] < thickness_A]
    corners = [(i * box[0], j * box[1], 0.0) for i in range(repeats[0]) for j in range(repeats[1])]
    return np.concatenate([molecules + np.array(corner) for corner in corners])


def particle_motion(
    frames: int, seed: int, *, tilt_deg: float, vibration_deg: float, vibration_A: float
) -> tuple[list[Rotation], np.ndarray]:
    """Return each frame's rotation, and its shift ``(t, 3)`` along x, y and the beam in Å.

    A new orientation after every 2 to 10 frames, each number alike; every frame trembles about it.
    More frames begin with the same motion.

    Parameters
    ----------
    frames, seed
        Number of frames, and what decides on the motion.
    tilt_deg
        Largest angle between the particle's [110] axis and the beam; directions are drawn evenly.
    vibration_deg, vibration_A
        Standard deviation about and along each axis.
    """
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng([seed, 0])
    turns, shifts = [], []
    resting = Rotation.identity()
    until = 0
    for t in range(frames):
        if t == until:
            until = t + int(rng.integers(_SHORTEST_STAY, _LONGEST_STAY + 1))
            # Evenly over the cap of directions of [110] within the tilt, then about it.
            tilt = math.acos(rng.uniform(math.cos(math.radians(tilt_deg)), 1))
            towards, about = rng.uniform(0, 2 * math.pi, 2)
            lean = tilt * np.array([math.cos(towards), math.sin(towards), 0])
            resting = Rotation.from_rotvec(lean) * Rotation.from_rotvec([0, 0, about])
        tremble = Rotation.from_rotvec(rng.normal(scale=math.radians(vibration_deg), size=3))
        turns.append(tremble * resting)
        shifts.append(rng.normal(scale=vibration_A, size=3))
    return turns, np.array(shifts)


def without_overlap(liquid: np.ndarray, particle: np.ndarray) -> np.ndarray:
    """Leave out the molecules whose oxygen comes closer than 2.8 Å to an atom of the particle.

    Parameters
    ----------
    liquid
        ``(molecule, 3, 3)`` Å, oxygen first.
    particle
        ``(atom, 3)`` Å.
    """
    from scipy.spatial import cKDTree

    if not len(particle) or not len(liquid):
        return liquid
    distance, _ = cKDTree(particle).query(liquid[:, 0], distance_upper_bound=_CLOSEST_WATER_A)
    return liquid[~np.isfinite(distance)]


def _cell_of(
    sheet: np.ndarray, liquid: np.ndarray, particle: np.ndarray, cell_A: tuple[float, float, float]
) -> Atoms:
    """Return all atoms between the two sheets, 1 Å away from both ends of the cell."""
    _, ase = simulation_packages()
    below = np.column_stack([sheet, np.full(len(sheet), 1.0)])
    # The other sheet is turned over, as two sheets of a real cell are not aligned either.
    above = below * (-1, 1, 1) + (cell_A[0], 0, cell_A[2] - 2.0)
    flat = liquid.reshape(-1, 3)
    numbers = np.concatenate(
        [
            np.full(2 * len(sheet), 6),
            np.tile([8, 1, 1], len(liquid)),
            np.full(len(particle), 78),
        ]
    ).astype(int)
    positions = np.concatenate([below, above, flat, particle])
    return ase.Atoms(numbers=numbers, positions=positions, cell=cell_A, pbc=(True, True, False))


def _check(p: dict[str, Any], optics: Optics) -> None:
    check_numbers(
        p,
        positive=("pixel_size_nm", "frame_time_s", "dose_e_per_A2", "sampling_nm", "slice_nm"),
        not_negative=("diameter_nm", "water_nm", "tilt_deg", "vibration_deg", "vibration_nm"),
    )
    if 10 * p["sampling_nm"] > optics.coarsest_sampling_A:
        raise ShineError(
            f"aperture_mrad={p['aperture_mrad']:g} lies beyond the simulation grid: it needs "
            f"sampling_nm of {optics.coarsest_sampling_A / 10:.4f} or less, not "
            f"{p['sampling_nm']:g}."
        )
    if p["tilt_deg"] > 90:
        raise ShineError(f"tilt_deg must lie between 0 and 90, not {p['tilt_deg']}.")
    _check_fit(p, p["diameter_nm"])


def _check_fit(p: dict[str, Any], across_nm: float) -> None:
    """Refuse a particle that reaches out of the field or of the water."""
    field = min(p["size"]) * p["pixel_size_nm"]
    for limit, what in ((field, "the field"), (p["water_nm"], "the water (water_nm)")):
        if across_nm > limit and p["diameter_nm"] > 0:
            raise ShineError(
                f"diameter_nm={p['diameter_nm']} does not fit into {what} of {limit:.2f} nm: from "
                f"corner to corner and with its vibration the particle takes {across_nm:.2f} nm."
            )
