"""The student against its teacher: seconds and operations per frame, and quality, in one run.

python benchmarks/student.py            # about 6 minutes
python benchmarks/student.py --quick    # does it run? under 1 minute, no result
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import Number


def main() -> None:
    """Run both parts, print their tables and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("inference", "quality"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--training", type=float, default=60.0, help="seconds for the teacher")
    parser.add_argument("--distilling", type=float, default=60.0, help="seconds for the student")
    parser.add_argument("--training-steps", type=int, help="steps in place of seconds")
    parser.add_argument("--distilling-steps", type=int, help="steps in place of seconds")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--score-every", type=int, default=5, help="score every n-th frame")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.repeats, a.score_every, a.results = 12, 128, 2, 4, None
        a.training_steps, a.distilling_steps = 20, 20
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    where = {"device": a.device, "precision": a.precision}
    result: dict[str, Any] = {"machine": described, "frames": a.frames, "size": a.size, **where}
    if a.only != "quality":
        found, _ = common.in_own_process(time_inference, size=a.size, repeats=a.repeats, **where)
        result["inference"] = found
        _show_inference(a, found)
    if a.only != "inference":
        with tempfile.TemporaryDirectory(prefix="shine-student-") as scratch:
            scene = Path(scratch) / "scene"
            common.simulate(scene, frames=a.frames, size=a.size, seed=a.seed)
            found, _ = common.in_own_process(
                score, scene=scene, training=a.training, distilling=a.distilling,
                training_steps=a.training_steps, distilling_steps=a.distilling_steps, seed=a.seed,
                every=a.score_every, **where,
            )  # fmt: skip
        result["quality"] = found
        _show_quality(a, found)
    common.save(a.results and a.results / "student.json", result)


def _show_inference(a: argparse.Namespace, found: dict[str, Any]) -> None:
    medians = {c["name"]: statistics.median(c["seconds"]) for c in found["cases"]}
    rows = [
        (
            c["name"], c["parameters"], Number(c["gflop"], 1), Number(medians[c["name"]], 3),
            Number(min(c["seconds"]), 3),
            Number(medians["ensemble of two"] / medians[c["name"]], 2),
        )
        for c in found["cases"]
    ]  # fmt: skip
    print(
        f"One {a.size}×{a.size} frame, {a.device}, {found['precision']}, {found['threads']} "
        f"threads; {a.repeats} interleaved repeats:\n"
    )
    head = (
        "network", "parameters", "GFLOP", "median, s", "fastest, s",
        "times faster than the ensemble",
    )  # fmt: skip
    print(common.table(head, rows), "\n", flush=True)


def _show_quality(a: argparse.Namespace, found: dict[str, Any]) -> None:
    rows = [[name, *common.quality_cells(score)] for name, score in found["scores"].items()]
    print(
        f"Au growth, {a.frames}×{a.size}×{a.size}, seed {a.seed}; teacher {found['steps']} steps, "
        f"{found['seconds']:.0f} s; student {found['student_steps']} steps, "
        f"{found['student_seconds']:.0f} s with {found['lessons']} frames of the teacher's; means "
        f"over every {a.score_every}th frame:\n"
    )
    print(common.table(("denoised by", *common.QUALITY_HEAD), rows), "\n")
    for name, verdict in found["verdicts"].items():
        print(f"student against {name}: {verdict}", flush=True)


def time_inference(*, size: int, repeats: int, device: str, precision: str) -> dict[str, Any]:
    """Time all in turns, so that a change of the machine's mood meets them alike."""
    from dataclasses import replace

    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from shine_em.checkpoint import Model
    from shine_em.compute import keep_freed_memory, pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.network import NetworkConfig, build
    from shine_em.patches import Normalisation
    from shine_em.student import Student, StudentNetwork
    from shine_em.training import TrainedState
    from shine_em.training_settings import PRESETS

    keep_freed_memory()
    where = pick_device(device)
    precision = pick_precision(where, precision)
    config = NetworkConfig()
    state = TrainedState(config, PRESETS["lean"], best=dict(build(config).state_dict()))
    pair = ((3, 3), (1, 1))
    model = Model(state, Normalisation(0.0, 1.0), pair)
    pupil = StudentNetwork(config.frames)
    student = Student(dict(pupil.state_dict()), pupil.frames, pupil.widths, 0, 0.0, 0, 0.0)
    made = {
        "hole 3×3": Denoiser(model, device=where, precision=precision, holes=pair[:1]),
        "ensemble of two": Denoiser(model, device=where, precision=precision, holes=pair),
        "student": Denoiser(replace(model, student=student), device=where, precision=precision),
    }
    window = np.random.default_rng(0).normal(size=(1, 5, size, size)).astype(np.float32)
    cases = []
    for name, denoiser in made.items():
        for _ in range(2):
            denoiser.predict(window)
        with FlopCounterMode(display=False) as counter:
            denoiser.predict(window)
        parameters = sum(p.numel() for p in denoiser.network.parameters())
        gflop = counter.get_total_flops() / 1e9
        cases.append({"name": name, "parameters": parameters, "gflop": gflop, "seconds": []})
    for _ in range(repeats):
        for case, denoiser in zip(cases, made.values(), strict=True):
            # The pass before may have given memory back to the system: a warm-up for each.
            denoiser.predict(window)
            begun = time.perf_counter()
            denoiser.predict(window)
            case["seconds"].append(time.perf_counter() - begun)
    return {"cases": cases, "precision": precision, "threads": torch.get_num_threads()}


def score(
    *, scene: str, training: float, distilling: float, training_steps: int | None,
    distilling_steps: int | None, seed: int, every: int, device: str, precision: str,
) -> dict[str, Any]:  # fmt: skip
    """Train a teacher, distil a student, score both against the truth and by the estimate."""
    from dataclasses import replace

    from shine_em import Options, read, train_model
    from shine_em.compute import pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.distillation import distil, judge
    from shine_em.error_estimate import ErrorEstimator
    from shine_em.planning import prepare

    movie, truth = read(Path(scene) / "noisy.tif"), read(Path(scene) / "truth.tif")
    options = Options(seed=seed, device=device, precision=precision, steps=training_steps)
    begun = time.monotonic()
    prepare(movie, options)
    preparing = time.monotonic() - begun
    # The clock starts when preparing, which `train_model` does again, will be over.
    model, plan = train_model(
        movie,
        options=replace(options, time_budget=training),
        started=time.monotonic() + preparing,
    )
    where = pick_device(device)
    how: dict[str, Any] = {"device": where, "precision": pick_precision(where, precision)}
    teacher = Denoiser(model, holes=model.holes, weights=model.weights, **how)
    seconds = None if distilling_steps else distilling
    student = distil(movie, plan.health, teacher, steps=distilling_steps, seconds=seconds)
    names = {
        "hole": Denoiser(model, holes=[model.hole], **how),
        "ensemble": teacher,
        "student": Denoiser(replace(model, student=student), **how),
    }
    frames = range(0, len(movie), every)
    scores = {"raw": common.quality(movie, truth, frames)}
    for name, denoiser in names.items():
        clean = {t: frame for t, _, frame in denoiser.stream(movie, plan.health, frames=frames)}
        scores[name] = common.quality(common.Frames(clean), truth, frames)
    estimator = ErrorEstimator.for_model(model, movie, plan.health, plan.noise, frames=8)
    verdicts = {}
    for name in ("hole", "ensemble"):
        found = judge(estimator, names["student"].predict, names[name].predict)
        verdicts[name] = f"{found}; {'kept' if found.kept else 'not used'}"
    return {
        "steps": model.state.step, "seconds": model.state.seconds, "holes": model.holes,
        "student_steps": student.steps, "student_seconds": student.seconds,
        "lessons": student.lessons, "difference": student.difference, "scores": scores,
        "verdicts": verdicts,
    }  # fmt: skip


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
