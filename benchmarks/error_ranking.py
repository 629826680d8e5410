"""Does the estimated error rank denoisers as the true one does?

On simulated movies: checkpoints of a training, holes and means of holes, and linear filters. For
each the mean squared error is estimated from the noisy movie alone (`shine_em.error_estimate`) and
measured against the truth; Spearman's rho tells whether both rank alike.

    python benchmarks/error_ranking.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from common import Number, machine, machine_line, save, say, table

FILTERS = ("gaussian", "wiener", "bandpass", "mean5")


def scene(name: str, *, frames: int, size: int, seed: int) -> tuple[Any, Any]:
    """Simulate a movie; returns (noisy, truth). "scene@30" has a dose of 30 e⁻/Å² per frame."""
    from shine_em.simulate import SCENES

    name, _, dose = name.partition("@")
    more = {"dose_e_per_A2": float(dose)} if dose else {}
    made = SCENES[name](frames=frames, size=size, seed=seed, **more)
    return made.noisy, made.truth


def checkpoints(movie: Any, plan: Any, steps: list[int]) -> Iterator[tuple[int, Any]]:
    """Train once and yield the state after each number of steps."""
    from shine_em.training import train

    state = None
    for stop in steps:

        def pause(progress: Any, stop: int = stop) -> None:
            if progress.step >= stop:
                raise KeyboardInterrupt

        state = train(
            movie, plan.health, plan.config, replace(plan.settings, steps=steps[-1]),
            resume=state, progress=pause,
        )  # fmt: skip
        yield stop, state


def true_matrix(denoiser: Any, estimator: Any, truth: Any) -> Any:
    """Return E[(x̂ᵢ − s)(x̂ⱼ − s)] over the trusted pixels of all frames."""
    import numpy as np

    from shine_em.error_estimate import ErrorEstimator

    e = estimator
    every = ErrorEstimator(
        e.movie, e.health, e.noise, e.normalisation, window=e.window, edge=10**6,
        blinded_lags=sorted(e.timeline.blinded), frames=e.timeline.targets(),
    )  # fmt: skip
    total, pixels = 0.0, 0
    for t, _, good, denoised in every.denoised(denoiser.predict_each):
        error = (denoised - truth.frame(t))[:, good].astype(float)
        total = total + error @ error.T
        pixels += int(good.sum())
    return np.asarray(total) / pixels


def rank(name: str, *, frames: int, size: int, seed: int, steps: list[int]) -> dict[str, Any]:
    """Return label, estimate, its standard error, and truth of every denoiser of one movie."""
    import numpy as np
    from scipy.stats import spearmanr

    from shine_em.baselines import METHODS
    from shine_em.checkpoint import Model
    from shine_em.denoising import Denoiser
    from shine_em.ensemble import candidate_holes, choose
    from shine_em.error_estimate import ErrorEstimator
    from shine_em.patches import Normalisation
    from shine_em.planning import Options, averaged_holes, prepare

    say(f"{name}: simulating")
    movie, truth = scene(name, frames=frames, size=size, seed=seed)
    plan = prepare(movie, Options(steps=steps[-1], seed=seed))
    normalisation = Normalisation.of(plan.health)
    estimator = ErrorEstimator(
        movie, plan.health, plan.noise, normalisation, window=plan.config.frames,
        blinded_lags=plan.settings.blinded_lags,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for method in FILTERS:
        say(f"{name}: {method}")
        run = METHODS[method].run
        estimate = estimator.measure_method(lambda m, run=run: run(m, noise=plan.noise))
        denoised = np.asarray(run(movie, noise=plan.noise).data)
        true = float(np.mean((denoised - np.asarray(truth.data)) ** 2))
        rows.append(_row(method, estimate, true))
    m, n = plan.noise.hole
    holes = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (m, n), (m + 2, n + 2)]
    holes = list(dict.fromkeys([*holes, *candidate_holes((m, n)), *averaged_holes((m, n))]))
    picks: dict[int, dict[str, Any]] = {}
    for step, state in checkpoints(movie, plan, steps):
        say(f"{name}: step {step}")
        model = Model(state, normalisation, tuple(holes))
        denoiser = Denoiser(model)
        estimated = estimator.matrix(denoiser.predict_each)
        true_m = true_matrix(denoiser, estimator, truth)
        k = len(holes)
        chosen = choose(
            estimator.matrix(Denoiser(model, holes=candidate_holes((m, n))).predict_each),
            candidate_holes((m, n)), most=5,
        )  # fmt: skip
        groups = [(i,) for i in range(k)]
        groups += [c for c in combinations(range(k), 2) if holes.index((m, n)) in c]
        groups.append(tuple(range(k)))
        for group in groups:
            w = np.isin(np.arange(k), group) / len(group)
            label = f"{step} steps, " + " + ".join(f"{holes[i][0]}x{holes[i][1]}" for i in group)
            rows.append(_row(label, estimated.of(w), float(w @ true_m @ w)))
        picks[step] = _pick(chosen, holes, true_m, (m, n))
    rho = float(spearmanr([r["estimate"] for r in rows], [r["true"] for r in rows]).statistic)
    noise_mse = float(np.mean((np.asarray(movie.data) - np.asarray(truth.data, float)) ** 2))
    return {
        "movie": name, "hole": [m, n], "rho": rho, "rows": rows, "true_noise_variance": noise_mse,
        "picks": picks,
        "noise_variance": rows[-1]["noise_variance"],
    }  # fmt: skip


def _pick(chosen: Any, holes: list[Any], true_m: Any, hole: Any) -> dict[str, Any]:
    """Return what the chosen holes gain over others, by the truth."""
    import numpy as np

    from shine_em.planning import averaged_holes

    def error(some: Any, weights: Any = None) -> float:
        w = np.zeros(len(holes))
        w[[holes.index(h) for h in some]] = 1 / len(some) if weights is None else weights
        return float(w @ true_m @ w)

    mine = error(chosen.holes, chosen.weights)
    return {
        "chosen": ", ".join(
            f"{a}x{b} ({w:.2f})" for (a, b), w in zip(chosen.holes, chosen.weights, strict=True)
        ),
        "over_measured_dB": 10 * np.log10(error([hole]) / mine),
        "over_mean_dB": 10 * np.log10(error(averaged_holes(hole)) / mine),
        "below_best_dB": 10 * np.log10(mine / min(error([h]) for h in holes)),
    }


def _row(label: str, estimate: Any, true: float) -> dict[str, Any]:
    return {
        "denoiser": label, "estimate": estimate.mse, "error": estimate.standard_error,
        "true": true, "noise_variance": estimate.noise_variance, "handed_on": estimate.divergence,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", default="au-growth,sparse-counting,stem-mos2")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--steps", default="20,60,150,300")
    parser.add_argument("--all", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    found = machine()
    results = [
        rank(
            name, frames=given.frames, size=given.size, seed=given.seed,
            steps=[int(s) for s in given.steps.split(",")],
        )
        for name in given.scenes.split(",")
    ]  # fmt: skip
    print(machine_line(found))
    head = ("movie", "hole", "denoisers", "Spearman's rho", "noise variance / true")
    print(
        table(
            head,
            [
                (
                    r["movie"], "x".join(map(str, r["hole"])), len(r["rows"]),
                    Number(r["rho"], 3), Number(r["noise_variance"] / r["true_noise_variance"], 3),
                )
                for r in results
            ],
        )
    )  # fmt: skip
    print()
    head = (
        "movie",
        "steps",
        "chosen",
        "over the measured hole, dB",
        "over the fixed mean, dB",
        "over the best single hole, dB",
    )
    print(
        table(
            head,
            [
                (
                    r["movie"], step, p["chosen"], Number(p["over_measured_dB"]),
                    Number(p["over_mean_dB"]), Number(-p["below_best_dB"]),
                )
                for r in results
                for step, p in r["picks"].items()
            ],
        )
    )  # fmt: skip
    for r in results if given.all else ():
        print(f"\n{r['movie']} (all in units of the noise variance)\n")
        unit = r["true_noise_variance"]
        cells = [
            (x["denoiser"], *(Number(x[k] / unit, 4) for k in ("estimate", "error", "true")))
            for x in r["rows"]
        ]
        print(table(("denoiser", "estimated", "standard error", "true"), cells))
    save(given.json, {"machine": found, "results": results})


if __name__ == "__main__":
    main()
