"""Does memory grow with the movie? A 20 GB movie: opened, checked, trained on, streamed (Linux).

    python benchmarks/memory.py                   # about half an hour, 4 GB of disk
    python benchmarks/memory.py --quick           # does it run? a few minutes, no result

The file is sparse: mostly empty frames, which the input check finds blank, and among them runs of
24 noisy frames spread from its first to its last gigabyte, all different. The middle 20 of each
run are denoised.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

SIZE = 512  # px
RUN, MARGIN = 20, 2  # denoised frames in a run, and their neighbours before and after
SETTLED = 100  # frames at either end whose memory is compared
LIMIT_PERCENT = 5.0


def main() -> int:
    """Make the movie, put it through the whole road, report; 1 if memory grew too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 frames of a 1 GB file, no result")
    parser.add_argument("--frames", type=int, default=2000, help="frames to denoise")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the movie")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    parser.add_argument("--scratch", type=Path, help="folder for the movie (default: temporary)")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        print("skipped: this benchmark reads the memory from /proc, which is Linux's")
        return 0
    if a.quick:
        a.frames, a.gigabytes, a.steps, a.results = 200, 1.0, 20, None
    described = common.machine()
    frames = int(a.gigabytes * 1e9 // (2 * SIZE * SIZE))
    with tempfile.TemporaryDirectory(prefix="shine-memory-", dir=a.scratch) as folder:
        place = Path(folder)
        movie = place / "long.npy"
        common.say(f"making a sparse movie of {a.gigabytes:g} GB ...")
        made, _ = common.in_own_process(make, path=movie, frames=frames, runs=a.frames // RUN)
        info = common.shine("info", movie)
        opened, _ = common.in_own_process(open_it, path=movie)
        common.say("checking it and training on it ...")
        trained, training = common.in_own_process(
            train, path=movie, steps=a.steps, model=place / "model.safetensors",
            health=place / "health.json",
        )  # fmt: skip
        common.say(f"denoising {len(made['wanted'])} frames of it ...")
        streamed, streaming = common.in_own_process(
            stream, path=movie, model=place / "model.safetensors", health=place / "health.json",
            frames=made["wanted"], output=place / "denoised.tif",
        )  # fmt: skip
    rss = streamed["rss_mb"]
    # Memory swings by a tenth between two frames, as libraries take and return work space. A leak
    # would show in where it swings around.
    begin, end = (statistics.median(part) for part in (rss[:SETTLED], rss[-SETTLED:]))
    growth = 100 * (end - begin) / begin
    slope = 1000 * statistics.linear_regression(range(len(rss)), rss).slope
    print(f"Machine: {common.machine_line(described)}\n")
    rows = [
        ("movie", f"{frames}×{SIZE}×{SIZE} uint16, {made['size_GB']:.1f} GB"),
        ("of which on disk (sparse)", f"{made['on_disk_GB']:.1f} GB"),
        ("`shine info`, from start to end", f"{info.seconds:.2f} s"),
        ("`read`", f"{1e3 * opened['read_s']:.1f} ms, {opened['grown_mb']:.1f} MB"),
        ("reading one frame in the middle", f"{1e3 * opened['frame_s']:.1f} ms"),
        ("input check of all frames", f"{trained['checking_s']:.0f} s"),
        ("noise statistics", f"{trained['noise_s']:.0f} s"),
        (f"peak memory of check, noise, {a.steps} steps", f"{training.peak_mb:.0f} MB"),
        ("frames denoised", f"{len(rss)}, {streamed['seconds'] / len(rss):.2f} s each"),
        (f"memory, median of the first {SETTLED} frames", f"{begin:.0f} MB"),
        (f"memory, median of the last {SETTLED} frames", f"{end:.0f} MB"),
        ("growth", f"{growth:+.2f} % (limit {LIMIT_PERCENT:g} %)"),
        ("slope over all frames", f"{slope:+.2f} MB per 1,000 frames"),
        ("least and most memory", f"{min(rss):.0f} and {max(rss):.0f} MB"),
        ("peak memory of denoising", f"{streaming.peak_mb:.0f} MB"),
    ]
    print(common.table(("what", "measured"), rows))
    result = {
        "machine": described,
        "setup": {"frames": frames, "size": SIZE, "gigabytes": a.gigabytes, "steps": a.steps},
        "info_s": info.seconds, "read": opened, "training": trained,
        "training_peak_mb": training.peak_mb, "streaming_peak_mb": streaming.peak_mb,
        "streaming_s": streamed["seconds"], "rss_mb": [round(v, 1) for v in rss],
        "growth_percent": growth, "slope_mb_per_1000_frames": slope,
    }  # fmt: skip
    common.save(a.results and a.results / "memory.json", result)
    if growth >= LIMIT_PERCENT:
        print("FAILED: memory grows with the movie")
        return 1
    return 0


def make(*, path: str, frames: int, runs: int) -> dict[str, Any]:
    """Write the sparse movie; return the frames to denoise."""
    import numpy as np

    from shine_em.simulate import au_growth

    length = RUN + 2 * MARGIN
    noisy = np.asarray(au_growth(frames=length, size=SIZE, seed=1).noisy.data)
    starts = np.linspace(0, frames - length, runs).astype(int)
    shifts = np.random.default_rng(0).permutation(SIZE * SIZE)[:runs]
    target = Path(path)
    with target.open("wb") as file:
        header = {"descr": noisy.dtype.str, "fortran_order": False, "shape": (frames, SIZE, SIZE)}
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
        file.truncate(offset + frames * SIZE * SIZE * 2)
        for start, shift in zip(starts, shifts, strict=True):
            # Turned around its edges, every run has pixels of its own and the noise of all.
            turned = np.roll(noisy, divmod(int(shift), SIZE), axis=(1, 2))
            file.seek(offset + int(start) * SIZE * SIZE * 2)
            file.write(turned.tobytes())
    wanted = [int(start) + MARGIN + i for start in starts for i in range(RUN)]
    about = target.stat()
    return {
        "wanted": wanted,
        "size_GB": about.st_size / 1e9,
        "on_disk_GB": about.st_blocks * 512 / 1e9,
    }


def open_it(*, path: str) -> dict[str, float]:
    """Open the movie and read one frame."""
    from shine_em import read

    read(path)  # loads the modules
    before = common.rss_mb()
    begun = time.perf_counter()
    movie = read(path)
    opened = time.perf_counter()
    grown = common.rss_mb() - before
    movie.frame(len(movie) // 2)
    ended = time.perf_counter()
    return {"read_s": opened - begun, "frame_s": ended - opened, "grown_mb": grown}


def train(*, path: str, steps: int, model: str, health: str) -> dict[str, float]:
    """Check the whole movie, measure its noise and train on it, as ``shine train`` does."""
    from shine_em import Options, read, train_model

    begun: dict[str, float] = {}

    def listen(event: Any) -> None:
        begun.setdefault(event.stage, time.monotonic())

    trained, plan = train_model(
        read(path), options=Options(steps=steps, ensemble=False), progress=listen
    )
    trained.save(model)
    Path(health).write_text(json.dumps(plan.health.to_dict()), "utf-8")
    return {
        "checking_s": begun["measuring the noise"] - begun["checking the movie"],
        "noise_s": begun["training"] - begun["measuring the noise"],
        "training_s": trained.state.seconds,
    }


def stream(*, path: str, model: str, health: str, frames: list[int], output: str) -> dict[str, Any]:
    """Denoise the frames into a file and look at the memory after each.

    In a process of its own: memory that the check or the training gave back could hide a leak.
    """
    from shine_em import Health, Model, open_writer, read
    from shine_em.compute import keep_freed_memory, pick_device, pick_precision
    from shine_em.denoising import Denoiser

    keep_freed_memory()
    movie = read(path)
    found = Health.from_dict(json.loads(Path(health).read_text("utf-8")))
    device = pick_device("cpu")
    denoiser = Denoiser(Model.load(model), device=device, precision=pick_precision(device))
    rss = []
    begun = time.monotonic()
    with open_writer(output, movie, frames=len(frames)) as writer:
        for _, _, frame in denoiser.stream(movie, found, frames=frames):
            writer.append(frame)
            rss.append(common.rss_mb())
    return {"seconds": time.monotonic() - begun, "rss_mb": rss}


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
