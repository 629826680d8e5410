"""The best picture per second of compute: one command, one table, one figure.

python benchmarks/bench.py -o bench            # hours; says how many before it starts
python benchmarks/bench.py -o bench --quick    # minutes: does it run?
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import say

from shine_em import benchmark
from shine_em.benchmark_methods import choose, training_seconds
from shine_em.planning import parse_duration

SCENES = "au-growth,pt-water,stem-mos2,sparse-counting"
# Seconds to simulate a frame of 512×512 on two cores.
SIMULATION_S = {"pt-water": 60.0, "au-growth": 0.3, "stem-mos2": 0.3, "sparse-counting": 0.3}
QUICK = {"frames": 24, "size": 128, "seeds": 2, "budgets": "5s,10s", "paper": "10s",
         "ceiling": "20s", "scenes": "au-growth,stem-mos2,sparse-counting"}  # fmt: skip
FULL = {"frames": 100, "size": 512, "seeds": 3, "budgets": "60s,5min,20min", "paper": "30min",
        "ceiling": "1h", "scenes": SCENES}  # fmt: skip


def main() -> None:
    """Compare what users get in given times with the paper's network and the ceiling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", required=True, help="folder; an earlier run goes on")
    parser.add_argument("--quick", action="store_true", help="tiny: shows only that it runs")
    parser.add_argument("--scenes", help=f"to simulate, or folders with a truth ({SCENES})")
    parser.add_argument("--real", nargs="*", default=[], metavar="FILE", help="without a truth")
    parser.add_argument("--budgets", help="of the default job (60s,5min,20min)")
    parser.add_argument(
        "--paper", help="training time of the paper's network (30min); none: without it"
    )
    parser.add_argument("--ceiling", help="most time for the supervised ceiling (1h)")
    parser.add_argument("--methods", default="mean5", help="rivals beside these (mean5)")
    parser.add_argument("--seeds", type=int, help="3")
    parser.add_argument("--frames", type=int, help="of simulated scenes (100)")
    parser.add_argument("--size", type=int, help="their side, px (512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    for name, value in (QUICK if a.quick else FULL).items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    scenes = [name.strip() for name in a.scenes.split(",") if name.strip()]
    real = [] if a.quick else a.real
    jobs = [f"default@{budget.strip()}" for budget in a.budgets.split(",")]
    rivals = [] if a.paper == "none" else [f"paper@{a.paper}"]
    methods = ",".join([a.methods, *jobs, *rivals, f"supervised@{a.ceiling}"])
    chosen = choose(methods, None)
    each = training_seconds(chosen, a.seeds)
    ceiling = parse_duration(a.ceiling)
    # Denoising even and odd frames as movies of their own is twice the work again.
    training = each * len(scenes) + 3 * (each - ceiling) * len(real)
    pixels = a.frames * (a.size / 512) ** 2
    making = sum(SIMULATION_S.get(name, 0.0) for name in scenes) * pixels
    paper = 5.0 * pixels * a.seeds * (len(scenes) + 3 * len(real)) * len(rivals)
    say(
        f"{len(scenes)} scenes and {len(real)} real movies, {a.seeds} seeds. On two idle cores: "
        f"at most {_words(training)} of training, {_words(making)} of simulating"
        + (f" and about {_words(paper)} of denoising by the paper's network" if rivals else "")
        + ", less what is done already."
    )
    found = benchmark.run(
        [*scenes, *real], methods, out=a.output, time_budget_s=None, seeds=a.seeds, seed=a.seed,
        frames=a.frames, size=a.size, halves=True, device=a.device, limit_s=6 * 3600.0,
        progress=_Told(),
    )  # fmt: skip
    print(found.markdown())
    for path in found.files:
        if path.name in ("results.md", "results.csv", "time-quality.png"):
            print(Path(path))


class _Told:
    """Says once what is being done."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, what: str, stage: str, fraction: float) -> None:
        line = f"{what}: {stage}"
        if line != self.last:
            say(line)
            self.last = line


def _words(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


if __name__ == "__main__":
    main()
