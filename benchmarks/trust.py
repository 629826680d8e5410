"""Can the result be believed? The suite's trust tests on full-size movies with the default time.

python benchmarks/trust.py                  # about 40 minutes
python benchmarks/trust.py --quick          # does it run? 2 minutes, no result
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
from common import Number

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    """Denoise movies of nothing and a scene with a truth, and print what was made of them."""
    a = common.job_options(__doc__, frames=64, seeds=1, quick=(16, 128, "25s"))
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n")
    budget = {"time_budget": a.time_budget}
    found: list[dict[str, Any]] = []
    for seed in range(a.seeds):
        for blur in (0.0, 0.7):
            # A short movie is the easiest to learn by heart.
            for frames in (a.frames, 12):
                common.say(f"pure noise, blur {blur}, {frames} frames, seed {seed} ...")
                measured, _ = common.in_own_process(
                    nothing, frames=frames, size=a.size, blur=blur, seed=seed, **budget
                )
                found.append(measured)
        common.say(f"the scene, seed {seed} ...")
        measured, _ = common.in_own_process(
            scene, frames=a.frames, size=a.size, seed=seed, **budget
        )
        found.append(measured)
    rows = [
        (f["movie"], what, Number(value, 3), asked)
        for f in found
        for what, value, asked in f["values"]
    ]
    print(common.table(("movie", "measured", "value", "asked for"), rows), "\n")
    for f in found:
        for warning in f["warnings"]:
            print(f"{f['movie']}: {warning}")
    common.save(
        a.results and a.results / "trust.json",
        {"machine": described, "time_budget": a.time_budget or "default", "found": found},
    )


def nothing(
    *, frames: int, size: int, blur: float, seed: int, time_budget: str | None
) -> dict[str, Any]:
    """Denoise pure noise."""
    import numpy as np
    import trust_scenes

    from shine_em import denoise

    raw = trust_scenes.pure_noise((frames, size, size), blur=blur, seed=100 + seed)
    result = denoise(raw, seed=seed, time_budget=time_budget)
    denoised = np.asarray(result.movie.data, float)
    spread = 100 * float(denoised.std((1, 2)).max()) / trust_scenes.SIGMA
    kind = "correlated noise" if blur else "white noise"
    return {
        "movie": f"{kind}, {frames} frames, seed {seed}",
        "steps": result.model.state.step,
        "best_step": result.model.state.best_step,
        "values": [
            ["largest SD of a frame, % of the noise σ", spread, "≤ 3"],
            ["ring above the mean of all frames, σ", trust_scenes.worst_ring(raw, denoised), "≤ 3"],
            ["false alarms of smearing", len(result.smears), "0"],
        ],
        "warnings": list(result.warnings),
    }


def scene(*, frames: int, size: int, seed: int, time_budget: str | None) -> dict[str, Any]:
    """Denoise lattice, flat particles, and the particle of one frame."""
    import numpy as np
    import trust_scenes

    from shine_em import denoise

    made = trust_scenes.trust_scene(frames, size, seed=100 + seed)
    result = denoise(made.raw, seed=seed, time_budget=time_budget)
    denoised = np.asarray(result.movie.data, float)
    spacing, angle = trust_scenes.lattice_errors(made, denoised)
    told = [
        s for s in result.smears
        if s.frame == made.frame and np.hypot(s.y - made.y, s.x - made.x) < trust_scenes.EVENT_PX
    ]  # fmt: skip
    return {
        "movie": f"scene, {frames} frames, seed {seed}",
        "steps": result.model.state.step,
        "best_step": result.model.state.best_step,
        "values": [
            ["error of the lattice spacing, %", 100 * spacing, "± 0.1"],
            ["error of the lattice angle, °", angle, "± 0.2"],
            ["slope in flat regions", trust_scenes.flat_slope(made, denoised), "1 ± 0.01"],
            [
                "contrast that a one-frame particle keeps, %",
                100 * trust_scenes.contrast_kept(made, denoised),
                "≥ 80, or told of",
            ],
            ["that particle told of", len(told), "1 where less is kept"],
            [
                "events told of where hardly anything (0.3 σ) is missing",
                sum(
                    abs(trust_scenes.missing_at(made, denoised, s.frame, s.y, s.x)) < 0.3
                    for s in result.smears
                ),
                "0",
            ],
        ],
        "warnings": list(result.warnings),
    }


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
