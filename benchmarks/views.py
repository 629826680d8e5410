"""What the mean over mirrored views is worth, and what it takes.

python benchmarks/views.py            # three movies: about 6 min
python benchmarks/views.py --quick    # does it run? no result

One training per movie; the same network then denoises frames spread through the movie with one, two
and four views, each with two holes averaged as a short job does. Seconds are of a frame, the views
taking turns.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import common
from common import Number

SCENES = ("au-growth", "stem-mos2", "sparse-counting")
COUNTS = (1, 2, 4)


def main() -> None:
    """Train once per movie, in a process of its own, print the table and write its numbers."""
    a = common.scene_options(__doc__, scenes=SCENES, steps=[1000])
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    rows = []
    for scene, folder in common.scene_folders(a):
        for steps in a.steps:
            found, _ = common.in_own_process(compare, folder=folder, steps=steps)
            rows.append({"scene": scene, "steps": steps, "views": found})
            common.say(str(rows[-1]))
    print(common.table(
        ["movie", "steps", *(f"{n} views, dB" for n in COUNTS),
         *(f"{n} views, s per frame" for n in COUNTS)],
        [[r["scene"], r["steps"],
          *(Number(r["views"][str(n)]["psnr_affine"], 2) for n in COUNTS),
          *(Number(r["views"][str(n)]["seconds"], 3) for n in COUNTS)] for r in rows],
    ))  # fmt: skip
    setup = {k: v for k, v in vars(a).items() if k != "results"}
    common.save(
        a.results and a.results / "views.json",
        {"machine": described, "setup": setup, "rows": rows},
    )


def compare(*, folder: str, steps: int) -> dict[str, dict[str, float]]:
    """Train, and return PSNR and seconds per frame by the number of views."""
    import numpy as np

    from shine_em import Options, read
    from shine_em.compute import keep_freed_memory
    from shine_em.denoising import Denoiser
    from shine_em.planning import averaged_holes

    movie, truth = read(Path(folder) / "noisy.tif"), read(Path(folder) / "truth.tif")
    keep_freed_memory()
    frames = list(range(2, len(movie) - 2, 3))
    plan, model = common.trained(movie, Options(steps=steps))
    holes = averaged_holes(plan.settings.hole)
    taken: dict[int, list[float]] = {n: [] for n in COUNTS}
    found = {}
    for _ in range(3):
        for n in COUNTS:
            denoiser = Denoiser(model, holes=holes, views=n)
            begun = time.perf_counter()
            out = {t: x for t, _, x in denoiser.stream(movie, plan.health, frames=frames)}
            taken[n].append((time.perf_counter() - begun) / len(frames))
            found[n] = common.quality(common.Frames(out), truth, frames)["psnr_affine"]
    return {
        str(n): {"psnr_affine": found[n], "seconds": float(np.median(taken[n]))} for n in COUNTS
    }


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
