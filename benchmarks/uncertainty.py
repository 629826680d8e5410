"""Does the uncertainty map hold? Shares of the pixels within 1.0 and 2.4 errors of the truth.

python benchmarks/uncertainty.py            # seven movies of 24 frames of 192×192
python benchmarks/uncertainty.py --quick    # does it run? no result

Every movie is simulated and denoised, with the map, by a process of its own. The regions are cut
from the truth: *edges*, where it changes by more than a tenth of the picture's contrast per pixel;
*particles*, elsewhere, where it is off its commonest value by more than a quarter of the contrast;
*background*, the rest. A right map has the ratio 1 and holds 68 and 95 %.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import common
from common import Number

SCENES: dict[str, tuple[str, dict[str, Any]]] = {
    "au-growth": ("au-growth", {}),
    "au-growth-5": ("au-growth", {"dose_e_per_A2": 5.0}),
    "au-growth-1": ("au-growth", {"dose_e_per_A2": 1.0}),
    "sparse-counting": ("sparse-counting", {}),
    "stem-mos2": ("stem-mos2", {}),
    "stem-mos2-10us": ("stem-mos2", {"dwell_time_s": 10e-6}),
    "pt-ceria": ("pt-ceria", {}),
}
REGIONS = ("all", "particles", "edges", "background")


def main() -> None:
    """Make the table of docs/uncertainty.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=[*SCENES], metavar="SCENE",
                        help=", ".join(SCENES))  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one movie each")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--time-budget", metavar="TIME", help="of the whole job, instead of steps")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.steps, a.scenes, a.results = 10, 64, 10, ["au-growth"], None
        a.time_budget = None
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    found: list[dict[str, Any]] = []
    for name in a.scenes:
        for seed in a.seeds:
            common.say(f"{name}, seed {seed} ...")
            measured, process = common.in_own_process(
                coverage, name=name, seed=seed, frames=a.frames, size=a.size,
                steps=None if a.time_budget else a.steps, time_budget=a.time_budget,
            )  # fmt: skip
            found.append({**measured, "seconds": process.seconds})
            common.say(_line(found[-1]))
    rows = [[*_cells(f), "yes" if f["warned"] else ""] for f in found]
    print(common.table(("movie", "seed", *REGIONS, "error / map", "warned"), rows))
    setup = {
        k: getattr(a, k) for k in ("scenes", "seeds", "frames", "size", "steps", "time_budget")
    }
    common.save(
        a.results and a.results / "uncertainty.json",
        {"machine": described, "setup": setup, "found": found},
    )


def _cells(found: dict[str, Any]) -> list[Any]:
    shares = [
        "–" if r is None else f"{100 * r['within_68']:.0f} / {100 * r['within_95']:.0f}"
        for r in (found["regions"][name] for name in REGIONS)
    ]
    return [found["movie"], found["seed"], *shares, Number(found["regions"]["all"]["ratio"], 2)]


def _line(found: dict[str, Any]) -> str:
    return "  ".join(map(str, _cells(found))) + f"  ({found['seconds']:.0f} s)"


def coverage(
    *, name: str, seed: int, frames: int, size: int, steps: int | None, time_budget: str | None
) -> dict[str, Any]:
    """Simulate and denoise a movie; count how often the truth lies within the interval.

    Returns
    -------
    dict
        ``regions``: by name the share of the ``pixels``, the shares ``within_68`` and ``within_95``
        of 1.0 and 2.4 standard errors, and the ``ratio`` of the root-mean-square error to that of
        the map (None where a region has no pixel).
    """
    import numpy as np

    from shine_em import denoise
    from shine_em.simulate import SCENES as simulated
    from shine_em.uncertainty import WITHIN_68, WITHIN_95

    maker, options = SCENES[name]
    scene = simulated[maker](frames=frames, size=size, seed=seed, **options)
    result = denoise(scene.noisy, steps=steps, time_budget=time_budget, uncertainty=True)
    truth = np.asarray(scene.truth.data[:], float)
    assert result.uncertainty is not None
    error = np.asarray(result.uncertainty.data, float)
    off = np.asarray(result.movie.data, float) - truth
    known = np.isfinite(error)
    z = np.abs(off[known]) / error[known]
    regions: dict[str, dict[str, float] | None] = {}
    for region, mask in regions_of(truth).items():
        here = mask[known]
        regions[region] = None if not here.any() else {
            "pixels": float(here.mean()),
            "within_68": float((z[here] < WITHIN_68).mean()),
            "within_95": float((z[here] < WITHIN_95).mean()),
            "ratio": float(
                np.sqrt((off[known][here] ** 2).mean() / (error[known][here] ** 2).mean())
            ),
        }  # fmt: skip
    return {
        "movie": name,
        "seed": seed,
        "regions": regions,
        "warned": any("uncertainty map" in w for w in result.warnings),
        "linear_share": 0.0 if result.model.linear is None else result.model.linear.share,
    }


def regions_of(truth: Any) -> dict[str, Any]:
    """Return masks ``(t, y, x)`` of the regions, cut from the truth."""
    import numpy as np

    counts, edges = np.histogram(truth, 256, tuple(np.quantile(truth, [0.001, 0.999])))
    most = int(counts.argmax())
    apart = np.abs(truth - (edges[most] + edges[most + 1]) / 2)
    contrast = float(np.quantile(apart, 0.995))
    steep = np.hypot(*np.gradient(truth, axis=(1, 2))) > 0.1 * contrast
    particles = ~steep & (apart > 0.25 * contrast)
    return {
        "all": np.ones(truth.shape, bool),
        "particles": particles,
        "edges": steep,
        "background": ~steep & ~particles,
    }


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
