"""What the correction is worth, what it takes, and how much of its own pixel the result then sees.

python benchmarks/correction.py            # three movies, two trainings each: about 10 min
python benchmarks/correction.py --quick    # does it run? no result

One job per movie and number of training steps; its model then denoises all frames with and without
its correction. *Own pixel* (in the JSON) is by how much the result follows the raw pixel itself, at
each knot from flat to steep.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common

KINDS = ("without", "corrected")


def main() -> None:
    """Run a job per movie and length, each in its own process; print the table."""
    a = common.scene_options(
        __doc__, scenes=("au-growth", "stem-mos2", "sparse-counting"), steps=[330, 1000]
    )
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    rows, table = [], []
    for scene, folder in common.scene_folders(a):
        for steps in a.steps:
            found, _ = common.in_own_process(compare, folder=folder, steps=steps)
            rows.append({"scene": scene, "steps": steps, **found})
            common.say(str(rows[-1]))
            for kind in KINDS:
                cells = common.quality_cells(found[kind]["quality"])
                seconds = common.Number(found[kind]["seconds"], 3)
                table.append([scene, steps, kind, *cells, seconds])
    print(common.table(["movie", "steps", "", *common.QUALITY_HEAD, "s per frame"], table))
    setup = {k: v for k, v in vars(a).items() if k != "results"}
    common.save(
        a.results and a.results / "correction.json",
        {"machine": described, "setup": setup, "rows": rows},
    )


def compare(*, folder: str, steps: int) -> dict[str, Any]:
    """Denoise, and return quality and seconds per frame of both kinds."""
    from shine_em import denoise, read
    from shine_em.denoising import Denoiser

    movie, truth = read(Path(folder) / "noisy.tif"), read(Path(folder) / "truth.tif")
    result = denoise(movie, steps=steps)
    whole = Denoiser(result.model)
    found: dict[str, Any] = {"averaged": result.model.averaged}
    for kind, denoiser in zip(KINDS, (whole.uncorrected(), whole), strict=True):
        begun = time.perf_counter()
        out = {t: x for t, _, x in denoiser.stream(movie, result.health)}
        seconds = (time.perf_counter() - begun) / len(movie)
        scores = common.quality(common.Frames(out), truth, range(len(movie)))
        found[kind] = {"quality": scores, "seconds": seconds}
    correction = result.model.correction
    if correction is not None:
        found["own_pixel"] = [round(v, 3) for v in correction.own_pixel()]
    return found


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
