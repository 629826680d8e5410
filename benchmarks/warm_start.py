"""Training from another movie's model against training from nothing, at equal steps.

python benchmarks/warm_start.py            # 192×192 pixels, 24 frames: some minutes
python benchmarks/warm_start.py --quick    # does it run? no result

One movie of Au growth trains the old model; a second one of the same settings, another seed, is
denoised from nothing and from that model. Both get fresh plans, learning rates that fall to zero
within their steps, and the same batches. The real movie, or any without truth, is scored by its
validation loss: ``--movie FILE``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from common import Number


def main() -> None:
    """Run all trainings in one process, print their table and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--old-steps", type=int, default=300, help="of the old model")
    parser.add_argument("--cold", type=int, nargs="*", default=[30, 60, 120, 300])
    parser.add_argument("--warm", type=int, nargs="*", default=[30, 60])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--seeds", type=int, nargs=2, default=[1, 2], help="of the two movies")
    parser.add_argument("--score-every", type=int, default=4, help="score every n-th frame")
    parser.add_argument("--movie", type=Path, help="a movie without truth, as the second one")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.old_steps, a.cold, a.warm = 12, 64, 10, [4, 8], [4]
        a.results = None
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="shine-warm-") as scratch:
        folders = [Path(scratch) / str(k) for k in range(2)]
        for folder, seed in zip(folders[: 1 if a.movie else 2], a.seeds, strict=False):
            common.simulate(folder, frames=a.frames, size=a.size, seed=seed)
        found, _ = common.in_own_process(
            compare, old=folders[0] / "noisy.tif", new=a.movie or folders[1] / "noisy.tif",
            truth=None if a.movie else folders[1] / "truth.tif", old_steps=a.old_steps,
            cold=a.cold, warm=a.warm, rates=a.rates, every=a.score_every, precision=a.precision,
        )  # fmt: skip
    _show(a, found)
    setup = {k: v for k, v in vars(a).items() if k not in ("results", "movie")}
    common.save(
        a.results and a.results / "warm-start.json",
        {"machine": described, "setup": setup, "movie": str(a.movie or "au-growth"), **found},
    )


def compare(
    *, old: str, new: str, truth: str | None, old_steps: int, cold: list[int], warm: list[int],
    rates: list[float], every: int, precision: str,
) -> dict[str, Any]:  # fmt: skip
    """Train and score all ways."""
    from dataclasses import replace

    from shine_em import Model, Options, read
    from shine_em.compute import keep_freed_memory, pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.patches import Normalisation
    from shine_em.planning import prepare
    from shine_em.training import train

    keep_freed_memory()
    device = pick_device("cpu")
    precision = pick_precision(device, precision)

    def trained(movie: Any, plan: Any, steps: int, start: Any, rate: float) -> Model:
        settings = plan.settings
        settings = replace(settings, steps=steps, learning_rate=rate * settings.learning_rate)
        normalisation = Normalisation.of(plan.health)
        state = train(
            movie, plan.health, plan.config, settings, normalisation=normalisation,
            device=device, precision=precision, start_from=start,
        )  # fmt: skip
        return Model(state, normalisation, plan.holes)

    first = read(old)
    common.say(f"{old_steps} steps for the old model ...")
    start = trained(first, prepare(first, Options(steps=old_steps)), old_steps, None, 1.0)
    movie = read(new)
    plan = prepare(movie, Options(steps=old_steps))
    picked = list(range(every // 2, len(movie), every))

    def scored(name: str, steps: int, model: Model, seconds: float) -> dict[str, Any]:
        # Each validation before the last saw a learning rate that had not yet fallen.
        losses = model.state.validation_loss
        row = {"name": name, "steps": steps, "seconds": seconds, "loss": model.state.best_loss}
        if truth is not None:
            denoiser = Denoiser(model, device=device, precision=precision)
            out = {t: x for t, _, x in denoiser.stream(movie, plan.health, frames=picked)}
            row |= common.quality(common.Frames(out), read(truth), picked)
        row["losses"] = losses
        common.say(f"{name}, {steps} steps: {row}")
        return row

    kept = replace(start, normalisation=Normalisation.of(plan.health), holes=plan.holes, weights=())
    rows = [scored("old model, not fine-tuned", 0, kept, 0.0)]
    ways = [("from nothing", None, 1.0, steps) for steps in cold]
    for rate in rates:
        name = f"fine-tuned, {rate:g} × the learning rate"
        ways += [(name, start.state.best, rate, steps) for steps in warm]
    for name, weights, rate, steps in ways:
        model = trained(movie, plan, steps, weights, rate)
        rows.append(scored(name, steps, model, model.state.seconds))
    return {"rows": rows, "precision": precision, "noise_hole": list(plan.noise.hole)}


def _show(a: argparse.Namespace, found: dict[str, Any]) -> None:
    rows = []
    for row in found["rows"]:
        kept = [row["name"], row["steps"], Number(row["seconds"], 1)]
        kept.append(Number(row["loss"], 4) if row["steps"] else "")
        if "psnr_affine" in row:
            kept += common.quality_cells(
                {k: v for k, v in row.items() if k[:4] in ("psnr", "ssim")}
            )
        rows.append(kept)
    head = ["training", "steps", "s", "validation loss"]
    if "psnr_affine" in found["rows"][0]:
        head += common.QUALITY_HEAD
    what = (
        a.movie.name if a.movie else f"Au growth, {a.frames}×{a.size}×{a.size}, seed {a.seeds[1]}"
    )
    print(
        f"{what}; the old model: Au growth, seed {a.seeds[0]}, {a.old_steps} steps; "
        f"{found['precision']}; means over every {a.score_every}th frame:\n"
    )
    print(common.table(head, rows), flush=True)


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
