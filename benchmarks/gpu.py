"""The default job on an NVIDIA card: time, memory on either side, and quality.

python benchmarks/gpu.py                          # skips, with a line, where there is no card
python benchmarks/gpu.py --quick                  # does it run? no result
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common


def main() -> None:
    """Run the default job on the card, with the default time and with a short one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budgets", nargs="+", default=["26s", "30s", "60s"])
    parser.add_argument("--device", default="cuda", help="cpu only tries the script itself")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.budgets, a.results = 12, 128, ["40s"], None
    card, _ = common.in_own_process(find_card)
    if card is None and a.device.startswith("cuda"):
        print("skipped: PyTorch finds no CUDA device here (see docs/install.md for its build)")
        return
    described = {**common.machine(), "gpu": card}
    runs = []
    with tempfile.TemporaryDirectory(prefix="shine-gpu-") as scratch:
        scene = Path(scratch) / "scene"
        common.simulate(scene, frames=a.frames, size=a.size, seed=a.seed)
        for budget in a.budgets:
            common.say(f"the default job within {budget} ...")
            found, measured = common.in_own_process(
                job, scene=scene, output=Path(scratch) / budget, budget=budget, device=a.device,
                begun=time.time(),
            )  # fmt: skip
            runs.append({"budget": budget, **found})
            runs[-1]["peak_mb"] = measured.peak_mb
        common.say("frames per second ...")
        speeds, _ = common.in_own_process(passes, scene=scene, device=a.device)
    print(f"Machine: {card or a.device}; {common.machine_line(described)}\n")
    print(
        f"Default job, Au growth, {a.frames}×{a.size}×{a.size}, seed {a.seed}, "
        f"{runs[0]['precision']}; means over every 5th frame:\n"
    )
    head = (
        "time budget", "wall, s", "steps", "denoising, s", *common.QUALITY_HEAD,
        "peak GPU memory, MB", "peak memory, MB",
    )  # fmt: skip
    raw = ["raw movie", "", "", "", *common.quality_cells(runs[0]["raw"]), "", ""]
    rows = [
        [
            run["budget"], common.Number(run["wall_s"], 1), run["steps"],
            common.Number(run["denoising_s"], 1), *common.quality_cells(run["denoised"]),
            common.Number(run["gpu_mb"], 0), common.Number(run["peak_mb"], 0),
        ]
        for run in runs
    ]  # fmt: skip
    print(common.table(head, [*rows, raw]))
    names = {"student": "student", "hole": "blind-spot network, one hole", "holes": "five holes"}
    print("\nDenoising alone, frames/s:\n")
    head = ("in one pass", "read, denoised and handed on", "the network alone")
    print(common.table(head, [
        [names[k], common.Number(v["stream"], 0), common.Number(v["network"], 0)]
        for k, v in speeds.items()
    ]))  # fmt: skip
    setup = {"scene": "au-growth", "frames": a.frames, "size": a.size, "seed": a.seed}
    result = {"machine": described, "setup": setup, "runs": runs, "frames_per_s": speeds}
    common.save(a.results and a.results / "gpu.json", result)


def find_card() -> str | None:
    """Return the name of the card that PyTorch would compute on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def job(*, scene: str, output: str, budget: str, device: str, begun: float) -> dict[str, Any]:
    """Do what ``shine denoise --device cuda --time-budget ...`` does, and compare.

    The time budget counts from ``begun``, when this process was started.
    """
    started = time.monotonic() - (time.time() - begun)
    import torch

    from shine_em import Options, Outputs, denoise_file, read
    from shine_em.planning import parse_duration

    marks: dict[str, float] = {}

    def listen(event: Any) -> None:
        marks.setdefault(event.stage, time.monotonic())

    folder = Path(output)
    folder.mkdir()
    source = Path(scene) / "noisy.tif"
    movie, truth = read(source), read(Path(scene) / "truth.tif")
    outputs = Outputs.beside(source, output=folder)
    done = denoise_file(
        movie, outputs, options=Options(time_budget=parse_duration(budget), device=device),
        started=started, progress=listen,
    )  # fmt: skip
    taken = time.monotonic() - started
    model = done.result.model
    frames = range(0, len(movie), 5)
    return {
        "wall_s": taken,
        "steps": model.state.step,
        "denoising_s": marks["writing the report"] - marks["denoising"],
        "precision": model.provenance["precision"],
        "gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0,
        "raw": common.quality(movie, truth, frames),
        "denoised": common.quality(read(outputs.movie), truth, frames),
    }


def passes(*, scene: str, device: str) -> dict[str, dict[str, float]]:
    """Return frames per second of denoising with untrained networks, which are as fast as others.

    "stream" counts everything from the file to the frame in the movie's units; "network" what the
    card does with eight windows that lie there already.
    """
    from dataclasses import replace

    import torch

    from shine_em import read
    from shine_em.checkpoint import Model
    from shine_em.compute import pick_device, pick_precision
    from shine_em.denoising import Denoiser
    from shine_em.network import build
    from shine_em.patches import Normalisation
    from shine_em.planning import Options, prepare
    from shine_em.student import Student, StudentNetwork
    from shine_em.training import TrainedState

    def seconds(function: Any, repeats: int) -> float:
        function()
        begun = time.monotonic()
        for _ in range(repeats):
            function()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return (time.monotonic() - begun) / repeats

    where = pick_device(device)
    movie = read(Path(scene) / "noisy.tif")
    plan = prepare(movie, Options(device=device))
    state = TrainedState(plan.config, plan.settings, dict(build(plan.config).state_dict()))
    blind = Model(state, Normalisation.of(plan.health), plan.holes)
    pupil = StudentNetwork(plan.config.frames)
    student = Student(dict(pupil.state_dict()), pupil.frames, pupil.widths, 0, 0.0, 0, 0.0)
    several = ((3, 3), (1, 1), (5, 5), (7, 7), (9, 9))
    found = {}
    for name, model, holes in (
        ("student", replace(blind, student=student), None), ("hole", blind, several[:1]),
        ("holes", blind, several),
    ):  # fmt: skip
        how = {"device": where, "precision": pick_precision(where), "holes": holes}
        denoiser = Denoiser(model, **how)
        windows = torch.randn(8, plan.config.frames, *movie.shape[1:], device=where)
        found[name] = {
            "stream": len(movie)
            / seconds(lambda d=denoiser: list(d.stream(movie, plan.health)), 2),
            "network": 8 / seconds(lambda d=denoiser, w=windows: d.predict(w), 10),
        }
    return found


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
