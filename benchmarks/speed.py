"""The lean network against the paper's, side by side: inference speed, and quality for time.

python benchmarks/speed.py                    # all of it: about 40 minutes
python benchmarks/speed.py --only inference
python benchmarks/speed.py --quick            # does it run? 1 to 2 minutes, no result
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
    """Run the parts that were asked for, print their tables and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("inference", "quality"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--hole", type=int, default=3, help="blind spot of both networks, px")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--lean", default="60s", help="training time of the lean network")
    parser.add_argument("--paper", default="60s", help="training time of the paper's network")
    parser.add_argument("--paper-long", default="20min", help="its long training; 0 for none")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--score-every", type=int, default=5, help="score every n-th frame")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.repeats, a.score_every = 12, 128, 2, 4
        a.lean, a.paper, a.paper_long, a.results = "4s", "4s", "6s", None
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    if a.only != "quality":
        inference(a, described)
    if a.only != "inference":
        quality(a, described)


def inference(a: argparse.Namespace, described: dict[str, Any]) -> None:
    """Seconds per frame of both networks, in turns within one process."""
    common.say("timing inference ...")
    setup = {"size": a.size, "hole": a.hole, "device": a.device, "precision": a.precision}
    found, _ = common.in_own_process(time_inference, repeats=a.repeats, **setup)
    cases = found["cases"]
    for case in cases:
        case["median_s"] = statistics.median(case["seconds"])
        _, measured = common.in_own_process(one_pass, case=case["name"], **setup)
        case["peak_mb"] = measured.peak_mb
    paper = next(case for case in cases if case["kind"] == "paper")
    rows = [
        (
            case["name"], case["parameters"], Number(case["gflop"], 1),
            Number(case["median_s"], 3), Number(min(case["seconds"]), 3),
            Number(paper["median_s"] / case["median_s"], 1), Number(case["peak_mb"], 0),
        )
        for case in cases
    ]  # fmt: skip
    print(
        f"Inference of one {a.size}×{a.size} frame, hole {a.hole}×{a.hole}, {a.device}, "
        f"{found['precision']}, {found['threads']} threads; {a.repeats} interleaved repeats:\n"
    )
    head = (
        "network", "parameters", "GFLOP", "median, s", "fastest, s", "times faster than paper",
        "peak memory, MB",
    )  # fmt: skip
    print(common.table(head, rows), "\n", flush=True)
    result = {"machine": described, "setup": {**setup, "repeats": a.repeats}, **found}
    common.save(a.results and a.results / "speed-inference.json", result)


def quality(a: argparse.Namespace, described: dict[str, Any]) -> None:
    """Quality after a fixed time of training, each network in its own process."""
    trainings = [("lean", a.lean), ("paper", a.paper), ("paper", a.paper_long)]
    trainings = [(preset, seconds) for preset, seconds in trainings if seconds != "0"]
    result: dict[str, Any] = {
        "machine": described,
        "setup": {
            "scene": "au-growth", "frames": a.frames, "size": a.size, "seed": a.seed,
            "hole": a.hole, "score_every": a.score_every, "device": a.device,
        },
        "trainings": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="shine-speed-") as scratch:
        scene = Path(scratch) / "scene"
        common.simulate(scene, frames=a.frames, size=a.size, seed=a.seed)
        for preset, seconds in trainings:
            common.say(f"training {preset} for {seconds} ...")
            found, _ = common.in_own_process(
                train_and_score, scene=scene, preset=preset, seconds=seconds, hole=a.hole,
                seed=a.seed, every=a.score_every, device=a.device, precision=a.precision,
            )  # fmt: skip
            result["trainings"].append(found)
            common.save(a.results and a.results / "speed-quality.json", result)
    runs = result["trainings"]
    rows: list[list[Any]] = [
        ["raw movie", "", "", "", *common.quality_cells(runs[0]["raw"]), ""],
        *(
            [
                f"{run['preset']}, {name}", Number(run["seconds"], 0), run["steps"],
                f"{run['batch']} × {run['crop']}²", *common.quality_cells(score),
                Number(run["peak_mb"], 0),
            ]
            for run in runs
            for name, score in run["scores"].items()
        ),
    ]  # fmt: skip
    head = ("network", "training, s", "steps", "batch", *common.QUALITY_HEAD, "peak memory, MB")
    print(
        f"Au growth, {a.frames}×{a.size}×{a.size}, seed {a.seed}, hole {a.hole}×{a.hole}, "
        f"{a.device}, {runs[0]['precision']}; means over every {a.score_every}th frame; peak "
        "memory of the process up to the end of training:\n"
    )
    print(common.table(head, rows), "\n", flush=True)
    lean, *papers = runs
    best = list(lean["scores"].values())[-1]
    for paper in papers:
        (score,) = paper["scores"].values()
        gains = ", ".join(f"{best[k] - score[k]:+.2f} dB {k[5:]}" for k in best if k[:4] == "psnr")
        print(
            f"lean after {lean['seconds']:.0f} s against paper after {paper['seconds']:.0f} s: "
            f"{gains}"
        )


def _denoisers(hole: int, device: str, precision: str) -> dict[str, Any]:
    """Return untrained denoisers: weights do not matter to the speed."""
    import torch

    from shine_em.checkpoint import Model
    from shine_em.compute import keep_freed_memory, pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.network import NetworkConfig, build
    from shine_em.patches import Normalisation
    from shine_em.planning import averaged_holes
    from shine_em.training import TrainedState
    from shine_em.training_settings import PRESETS

    keep_freed_memory()
    torch.manual_seed(0)
    where = pick_device(device)
    single = (hole, hole)
    found = {}
    for name, kind, holes in (
        ("paper, single hole", "paper", (single,)),
        ("lean, single hole", "lean", (single,)),
        ("lean, ensemble", "lean", averaged_holes(single)),
    ):
        channels = 64 if kind == "paper" else NetworkConfig.channels
        config = NetworkConfig(kind, channels=channels, paper_radius=hole // 2)
        state = TrainedState(config, PRESETS[kind], best=dict(build(config).state_dict()))
        model = Model(state, Normalisation(0.0, 1.0), holes)
        found[name] = Denoiser(model, device=where, precision=pick_precision(where, precision))
    return found


def _window(size: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).normal(size=(1, 5, size, size)).astype(np.float32)


def time_inference(
    *, size: int, hole: int, repeats: int, device: str, precision: str
) -> dict[str, Any]:
    """Time every network in turns, so that a change of the machine's mood meets them all."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    denoisers = _denoisers(hole, device, precision)
    window = _window(size)
    cases = []
    for name, denoiser in denoisers.items():
        for _ in range(2):
            denoiser.predict(window)
        with FlopCounterMode(display=False) as counter:
            denoiser.predict(window)
        cases.append(
            {
                "name": name, "kind": denoiser.model.config.kind,
                "holes": [list(h) for h in denoiser.holes],
                "parameters": denoiser.network.parameter_count(),
                "gflop": counter.get_total_flops() / 1e9, "seconds": [],
            }
        )  # fmt: skip
    for _ in range(repeats):
        for case, denoiser in zip(cases, denoisers.values(), strict=True):
            # The pass before may have given memory back to the system: a warm-up for each.
            denoiser.predict(window)
            begun = time.perf_counter()
            denoiser.predict(window)  # ends in the computer's memory: the device is done
            case["seconds"].append(time.perf_counter() - begun)
    precision = next(iter(denoisers.values())).precision
    return {"cases": cases, "precision": precision, "threads": torch.get_num_threads()}


def one_pass(*, case: str, size: int, hole: int, device: str, precision: str) -> None:
    """Denoise two frames: what remains to be seen from outside is the memory."""
    denoiser = _denoisers(hole, device, precision)[case]
    for _ in range(2):
        denoiser.predict(_window(size))


def train_and_score(
    *, scene: str, preset: str, seconds: str, hole: int, seed: int, every: int, device: str,
    precision: str,
) -> dict[str, Any]:  # fmt: skip
    """Train one network for so long, the movie's check and noise statistics not counted."""
    from dataclasses import replace

    from shine_em import Options, read, train_model
    from shine_em.compute import peak_memory_bytes, pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.planning import parse_duration, prepare

    movie, truth = read(Path(scene) / "noisy.tif"), read(Path(scene) / "truth.tif")
    options = Options(
        preset=preset, hole=(hole, hole), seed=seed, device=device, precision=precision
    )
    begun = time.monotonic()
    prepare(movie, options)
    preparing = time.monotonic() - begun
    model, plan = train_model(
        movie,
        options=replace(options, time_budget=parse_duration(seconds)),
        # The clock starts when preparing, which `train_model` does again, will be over.
        started=time.monotonic() + preparing,
    )
    peak = peak_memory_bytes()
    where = pick_device(device)
    frames = range(0, len(movie), every)
    scores = {}
    sets = {"single hole": model.holes[:1]}
    if len(model.holes) > 1:
        sets["ensemble"] = model.holes
    for name, holes in sets.items():
        denoiser = Denoiser(
            model, device=where, precision=pick_precision(where, precision), holes=holes
        )
        clean = {t: frame for t, _, frame in denoiser.stream(movie, plan.health, frames=frames)}
        scores[name] = common.quality(common.Frames(clean), truth, frames)
    state, settings = model.state, model.state.settings
    return {
        "preset": preset, "seconds": state.seconds, "steps": state.step, "stopped": state.stopped,
        "batch": settings.batch, "crop": settings.crop, "best_step": state.best_step,
        "holes": [list(h) for h in model.holes], "precision": pick_precision(where, precision),
        "preparing_s": preparing, "peak_mb": (peak or 0) / 1e6,
        "raw": common.quality(movie, truth, frames), "scores": scores,
    }  # fmt: skip


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
