"""Molecular dynamics of liquid water, and the compact snapshots that shine-em ships.

Run once to make ``src/shine_em/simulate/data/water_snapshots.npz``; nobody needs it to simulate
movies. It follows the recipe of the SHINE paper (Materials and Methods, "Pt nanoparticle rotation
simulation in the graphene liquid cell"): 10,968 molecules in 57.28 × 57.28 × 100 Å, CHARMM TIP3P,
energy minimisation, then NVT with a Nosé–Hoover thermostat, 1 fs steps, 100 ps, a frame every
100 fs. The paper used LAMMPS; this uses OpenMM (``pip install "shine-em[water]"``).

What the paper leaves open is chosen here: 300 K; rigid molecules (TIP3P is a rigid model);
Lennard-Jones cut at 8 Å, Coulomb forces by particle-mesh Ewald. And one saving: molecules placed
at random are minimised and melted for 10 ps in an eighth of the box. Eight copies of that, each
shifted across its periodic borders, mirrored and turned at random, fill the box; their joints are
minimised and calmed for 1 ps, in which velocities are drawn anew every 25 fs. Then the 100 ps
begin.

    python scripts/make_water_snapshots.py run WORKDIR          # hours on few cores; resumes
    python scripts/make_water_snapshots.py pack WORKDIR OUTPUT  # any time, of what is there
    python scripts/make_water_snapshots.py check WORKDIR        # temperature, diffusion

Where the work folder of an earlier run is gone, ``run --after FILE`` goes on from the last snapshot
in its packed file: packed positions are 0.007 Å off at most and hold no velocities, so these are
drawn anew and calmed as above.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BOX_A = (57.28, 57.28, 100.0)
MOLECULES = 10_968
TEMPERATURE_K = 300.0
STEP_FS = 1.0
FRAME_FS = 100.0
LENGTH_PS = 100.0
OH_A = 0.9572
HOH_DEGREES = 104.52
CUTOFF_A = 8.0
MELTING_PS = 10.0
JOINING_STEPS = 100
CALMING_DRAWS, CALMING_FS = 40, 25.0
# toppar_water_ions.str; unlike the original TIP3P the hydrogens have a Lennard-Jones site.
CHARMM_TIP3P = {
    "O": {"charge": -0.834, "half_rmin_A": 1.7682, "epsilon_kcal": 0.1521},
    "H": {"charge": 0.417, "half_rmin_A": 0.2245, "epsilon_kcal": 0.046},
}


def starting_positions(
    box_A: tuple[float, float, float], molecules: int, rng: np.random.Generator
) -> np.ndarray:
    """Return ``(molecule, 3, 3)`` Å: O, H, H of molecules on a thinned grid, turned at random."""
    from scipy.spatial.transform import Rotation

    box = np.asarray(box_A)
    counts = np.maximum((box / (box.prod() / molecules) ** (1 / 3)).astype(int), 1)
    while counts.prod() < molecules:
        counts[np.argmax(box / counts)] += 1
    cells = rng.choice(counts.prod(), molecules, replace=False)
    oxygen = (np.stack(np.unravel_index(cells, tuple(counts)), axis=1) + 0.5) * (box / counts)
    half = np.radians(HOH_DEGREES) / 2
    shape = OH_A * np.array(
        [[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]]
    )
    turns = Rotation.random(molecules, random_state=rng).as_matrix()
    return oxygen[:, None] + np.einsum("mij,aj->mai", turns, shape)


def build(box_A: tuple[float, float, float], molecules: int, seed: int, threads: int) -> Any:
    """Return an OpenMM simulation of the box and its starting positions in Å."""
    import openmm
    from openmm import app, unit

    topology = app.Topology()
    chain = topology.addChain()
    oxygen, hydrogen = (app.Element.getBySymbol(s) for s in "OH")
    for _ in range(molecules):
        residue = topology.addResidue("HOH", chain)
        o = topology.addAtom("O", oxygen, residue)
        for name in ("H1", "H2"):
            topology.addBond(o, topology.addAtom(name, hydrogen, residue))
    topology.setUnitCellDimensions(openmm.Vec3(*box_A) * unit.angstrom)
    system = app.ForceField("charmm36/water.xml").createSystem(
        topology, nonbondedMethod=app.PME, rigidWater=True
    )
    # The force field file asks for a general Lennard-Jones force that can hold CHARMM's pair
    # exceptions. Water has none, and the plain force is many times faster on a CPU.
    for index in reversed(range(system.getNumForces())):
        if not isinstance(
            system.getForce(index), (openmm.NonbondedForce, openmm.HarmonicBondForce)
        ):
            system.removeForce(index)
    forces = [f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)]
    (nonbonded,) = forces
    nonbonded.setCutoffDistance(CUTOFF_A * unit.angstrom)
    nonbonded.setUseDispersionCorrection(False)  # it acts on the pressure only
    for atom in topology.atoms():
        sites = CHARMM_TIP3P[atom.element.symbol]
        nonbonded.setParticleParameters(
            atom.index,
            sites["charge"],
            2 * sites["half_rmin_A"] / 2 ** (1 / 6) * unit.angstrom,
            sites["epsilon_kcal"] * unit.kilocalorie_per_mole,
        )
    integrator = openmm.NoseHooverIntegrator(
        TEMPERATURE_K * unit.kelvin, 1 / unit.picosecond, STEP_FS * unit.femtosecond
    )
    simulation = app.Simulation(
        topology,
        system,
        integrator,
        openmm.Platform.getPlatformByName("CPU"),
        {"Threads": str(threads)},
    )
    start = starting_positions(box_A, molecules, np.random.default_rng(seed))
    simulation.context.setPositions(start.reshape(-1, 3) * 0.1)
    return simulation


def melted(
    box_A: tuple[float, float, float], molecules: int, seed: int, threads: int
) -> np.ndarray:
    """Return ``(molecule, 3, 3)`` Å: liquid water in a periodic box."""
    from openmm import unit

    simulation = build(box_A, molecules, seed, threads)
    simulation.minimizeEnergy(maxIterations=300)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, seed + 1)
    simulation.step(round(MELTING_PS * 1000 / STEP_FS))
    state = simulation.context.getState(getPositions=True)
    return state.getPositions(asNumpy=True).value_in_unit(unit.angstrom).reshape(-1, 3, 3)


def eight_pieces(
    piece: np.ndarray, piece_A: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Fill 2 × 2 × 2 places with a periodic piece, each time at another shift and symmetry."""
    side = np.asarray(piece_A)
    pieces = []
    for corner in np.ndindex(2, 2, 2):
        molecules = piece * np.where(rng.integers(0, 2, 3) == 1, 1, -1)
        if side[0] == side[1] and rng.integers(0, 2):
            molecules = molecules[:, :, [1, 0, 2]]
        molecules = molecules + rng.uniform(0, side)
        molecules -= (molecules[:, :1] // side) * side  # whole molecules, after their oxygen
        pieces.append(molecules + corner * side)
    return np.concatenate(pieces)


def run(
    workdir: Path,
    *,
    molecules: int,
    length_ps: float,
    seed: int,
    threads: int,
    after: Path | None = None,
) -> None:
    """Run or resume the dynamics; every frame goes to ``workdir/trajectory.npy`` at once."""
    from openmm import unit

    from shine_em.simulate.water import snapshots

    earlier = None if after is None else snapshots(after)
    if earlier is not None:
        molecules = earlier.molecules
    if molecules % 8:
        raise SystemExit("--molecules must be a multiple of 8.")
    workdir.mkdir(parents=True, exist_ok=True)
    scale = (molecules / MOLECULES) ** (1 / 3)
    box_A = tuple(float(b * scale) for b in BOX_A)
    before_ps = 0.0 if earlier is None else float(earlier.facts["simulated_ps"])
    total = round((length_ps - before_ps) * 1000 / FRAME_FS)
    checkpoint, log = workdir / "checkpoint.chk", workdir / "progress.json"
    simulation = build(box_A, molecules, seed, threads)
    if checkpoint.exists():
        simulation.loadCheckpoint(str(checkpoint))
        done = json.loads(log.read_text())["frames"]
        temperatures = json.loads(log.read_text())["temperature_K"]
        trajectory = np.lib.format.open_memmap(workdir / "trajectory.npy", mode="r+")
        print(f"resumed after {done} of {total} frames", flush=True)
    else:
        done, temperatures = 0, []
        # Not compressed and of full size from the beginning: frame i is always at the same place,
        # so that a run that was killed between two checkpoints simply writes it again.
        trajectory = np.lib.format.open_memmap(
            workdir / "trajectory.npy", "w+", np.float32, (total, molecules, 3, 3)
        )
        began = time.monotonic()
        if earlier is not None:
            start = earlier.positions(len(earlier) - 1)
            simulation.context.setPositions(start.reshape(-1, 3) * 0.1)
            simulation.context.applyConstraints(1e-6)
        else:
            piece_A = (box_A[0] / 2, box_A[1] / 2, box_A[2] / 2)
            kept = workdir / "melted.npy"
            if not kept.exists():
                np.save(kept, melted(piece_A, molecules // 8, seed, threads))
            start = eight_pieces(np.load(kept), piece_A, np.random.default_rng(seed + 2))
            simulation.context.setPositions(start.reshape(-1, 3) * 0.1)
            simulation.minimizeEnergy(maxIterations=JOINING_STEPS)
        # What joints or rounding still hold of energy would heat the box for picoseconds.
        for i in range(CALMING_DRAWS):
            simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, seed + 3 + i)
            simulation.step(round(CALMING_FS / STEP_FS))
        simulation.context.setVelocitiesToTemperature(TEMPERATURE_K * unit.kelvin, seed + 1)
        print(f"ready to begin after {time.monotonic() - began:.0f} s", flush=True)
    freedom = 6 * molecules - 3  # rigid molecules, the centre of mass at rest
    began, first = time.monotonic(), done
    while done < total:
        simulation.step(round(FRAME_FS / STEP_FS))
        state = simulation.context.getState(getPositions=True, getEnergy=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        trajectory[done] = positions.reshape(molecules, 3, 3)
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
        temperatures.append(round(2 * kinetic / (freedom * 0.00831446), 2))
        done += 1
        if done % 10 == 0 or done == total:
            trajectory.flush()
            temporary = checkpoint.with_suffix(".new")
            simulation.saveCheckpoint(str(temporary))
            facts = {"frames": done, "box_A": box_A, "molecules": molecules, "seed": seed}
            facts["before_ps"] = before_ps
            progress = log.with_suffix(".new")
            progress.write_text(json.dumps({**facts, "temperature_K": temperatures}))
            os.replace(temporary, checkpoint)
            os.replace(progress, log)
            speed = (time.monotonic() - began) / (done - first) / FRAME_FS * STEP_FS
            print(
                f"{before_ps + done * FRAME_FS / 1000:.1f} ps, {temperatures[-1]:.0f} K, "
                f"{1000 * speed:.0f} ms per step",
                flush=True,
            )


def pack(workdir: Path, output: Path, *, snapshots: int, from_ps: float) -> None:
    """Write evenly spaced frames of the trajectory in the package's compact form."""
    from shine_em.simulate.water import pack_snapshots

    facts = json.loads((workdir / "progress.json").read_text())
    done, before_ps = facts["frames"], facts["before_ps"]
    first = max(round((from_ps - before_ps) * 1000 / FRAME_FS), 0)
    picked = np.unique(np.linspace(first, done - 1, snapshots).round().astype(int))
    trajectory = np.load(workdir / "trajectory.npy", mmap_mode="r")
    pack_snapshots(
        output,
        (np.asarray(trajectory[i], np.float64) for i in picked),
        box_A=facts["box_A"],
        facts={
            "model": "CHARMM TIP3P, rigid; NVT, Nosé–Hoover, 1 fs steps",
            "software": f"OpenMM {version('openmm')}",
            # As measured: a run that was packed too early is not yet at the thermostat's.
            "temperature_K": round(float(np.mean([facts["temperature_K"][i] for i in picked])), 1),
            "simulated_ps": round(before_ps + done * FRAME_FS / 1000, 3),
            "times_ps": [round(before_ps + float(t) * FRAME_FS / 1000, 3) for t in picked + 1],
            "seed": facts["seed"],
        },
    )
    print(f"{len(picked)} snapshots, {output.stat().st_size / 1e6:.2f} MB")


def check(workdir: Path) -> None:
    """Print temperature and self-diffusion (CHARMM TIP3P: about 5.9e-9 m²/s at 298 K)."""
    facts = json.loads((workdir / "progress.json").read_text())
    done = facts["frames"]
    trajectory = np.load(workdir / "trajectory.npy", mmap_mode="r")
    half = np.asarray(trajectory[done // 2 : done, :, 0], np.float64)
    moved = half - half.mean(axis=1, keepdims=True)
    lag = max(len(half) // 2, 1)
    square = ((moved[lag:] - moved[:-lag]) ** 2).sum(axis=2).mean()
    temperature = np.asarray(facts["temperature_K"][done // 2 :])
    print(f"{facts['before_ps'] + done * FRAME_FS / 1000:.1f} ps, second half of this run:")
    print(f"temperature {temperature.mean():.1f} ± {temperature.std():.1f} K")
    print(f"self-diffusion {square / (6 * lag * FRAME_FS * 1e-15) * 1e-20:.2e} m²/s")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run or resume the dynamics")
    runner.add_argument("workdir", type=Path)
    runner.add_argument("--molecules", type=int, default=MOLECULES, help="fewer for a trial")
    runner.add_argument("--length-ps", type=float, default=LENGTH_PS)
    runner.add_argument("--seed", type=int, default=1)
    runner.add_argument("--after", type=Path, help="packed snapshots to go on from")
    runner.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    packer = commands.add_parser("pack", help="write the compact snapshots")
    packer.add_argument("workdir", type=Path)
    packer.add_argument("output", type=Path)
    packer.add_argument("--snapshots", type=int, default=32)
    packer.add_argument("--from-ps", type=float, default=20.0, help="time before it is left out")
    checker = commands.add_parser("check", help="print temperature and diffusion")
    checker.add_argument("workdir", type=Path)
    options = vars(parser.parse_args())
    {"run": run, "pack": pack, "check": check}[options.pop("command")](**options)


if __name__ == "__main__":
    main()
