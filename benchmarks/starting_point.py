"""Training that begins with the shipped weights against training from random ones.

python benchmarks/starting_point.py            # five movies, two lengths: about 10 min
python benchmarks/starting_point.py --quick    # does it run? no result

Equal movies, plans, steps, seeds and batches, rates as jobs have them; the mean over frames spread
through the movie is scored against the truth, of the measured hole alone. The Pt scenes are of no
kind that the weights were taught on; of the others no seed is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
from common import Number

SCENES = ("au-growth", "au-growth --dose 1", "stem-mos2", "sparse-counting", "pt-water")


def main() -> None:
    """Run all trainings, one process per movie, print their table and write their numbers."""
    a = common.scene_options(__doc__, scenes=SCENES, steps=[60, 300], seeds=[0])
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    rows = []
    for scene, folder in common.scene_folders(a):
        found, _ = common.in_own_process(compare, folder=folder, steps=a.steps, seeds=a.seeds)
        rows += [{"scene": scene, **row} for row in found]
    print(common.table(
        ["movie", "steps", "from random weights, dB", "from shipped weights, dB", "gain, dB"],
        [[r["scene"], r["steps"], *(Number(r[k], 2) for k in ("cold", "warm")),
          Number(r["warm"] - r["cold"], 2)] for r in rows],
    ))  # fmt: skip
    setup = {k: v for k, v in vars(a).items() if k != "results"}
    common.save(
        a.results and a.results / "starting-point.json",
        {"machine": described, "setup": setup, "rows": rows},
    )


def compare(*, folder: str, steps: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """Train both ways, return the affine PSNR of each number of steps, means over the seeds."""
    import numpy as np

    from shine_em import Options, read
    from shine_em.denoising import Denoiser

    movie, truth = read(Path(folder) / "noisy.tif"), read(Path(folder) / "truth.tif")
    frames = list(range(2, len(movie) - 2, 6))

    def quality(count: int, seed: int, *, warm: bool) -> float:
        options = Options(steps=count, seed=seed, from_scratch=not warm)
        plan, model = common.trained(movie, options)
        denoiser = Denoiser(model)
        out = {t: x for t, _, x in denoiser.stream(movie, plan.health, frames=frames)}
        return common.quality(common.Frames(out), truth, frames)["psnr_affine"]

    rows = []
    for count in steps:
        cold, warm = (
            float(np.mean([quality(count, seed, warm=warm) for seed in seeds]))
            for warm in (False, True)
        )
        rows.append({"steps": count, "cold": cold, "warm": warm})
        common.say(f"{Path(folder).name}: {rows[-1]}")
    return rows


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
