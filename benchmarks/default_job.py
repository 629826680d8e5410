"""The default job as a user runs it: time, memory, and what it does to a movie with a truth.

python benchmarks/default_job.py                  # about 7 minutes with the simulation
python benchmarks/default_job.py --quick          # does it run? 1 to 2 minutes, no result
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from common import Number


def main() -> None:
    """Simulate a movie, run ``shine denoise`` on it, compare with the truth."""
    a = common.job_options(__doc__, frames=100, seed=1, quick=(12, 128, "40s"))
    described = common.machine()
    extra = ["--time-budget", a.time_budget] if a.time_budget else []
    with tempfile.TemporaryDirectory(prefix="shine-job-") as scratch:
        scene = Path(scratch)
        common.simulate(scene, frames=a.frames, size=a.size, seed=a.seed)
        measured = common.shine("denoise", scene / "noisy.tif", *extra)
        scores, _ = common.in_own_process(score, scene=scene)
        size_mb = (scene / "noisy_report.html").stat().st_size / 1e6
    print(f"Machine: {common.machine_line(described)}\n")
    print(
        f"`shine denoise noisy.tif{''.join(' ' + part for part in extra)}`, Au growth, "
        f"{a.frames}×{a.size}×{a.size}, seed {a.seed}; means over all frames:\n"
    )
    rows = [(name, *common.quality_cells(found)) for name, found in scores.items()]
    print(common.table(("movie", *common.QUALITY_HEAD), rows), "\n")
    print(
        f"Wall time {measured.seconds:.0f} s, peak memory {measured.peak_mb:.0f} MB, report "
        f"{Number(size_mb, 1)} MB"
    )
    result: dict[str, Any] = {
        "machine": described,
        "setup": {
            "scene": "au-growth", "frames": a.frames, "size": a.size, "seed": a.seed,
            "command": " ".join(["shine denoise noisy.tif", *extra]),
        },
        "seconds": measured.seconds, "peak_mb": measured.peak_mb, "report_mb": size_mb,
        "scores": scores,
    }  # fmt: skip
    common.save(a.results and a.results / "default-job.json", result)


def score(*, scene: str) -> dict[str, dict[str, float]]:
    """Compare the raw and the denoised movie with the truth, every frame."""
    from shine_em import read

    folder = Path(scene)
    truth = read(folder / "truth.tif")
    return {
        name: common.quality(read(folder / file), truth, range(len(truth)))
        for name, file in (("raw", "noisy.tif"), ("denoised", "noisy_denoised.tif"))
    }


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
