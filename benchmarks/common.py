"""What the benchmarks share: own processes, the machine's description, tables.

Everything that is measured runs in a process of its own, so that memory and the allocator's state
are its own as well. The process that starts it loads neither torch nor a movie: on Linux the peak
that the system reports for a child begins at the size of its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_WORKER = "--in-own-process"


@dataclass(frozen=True)
class Measured:
    """A finished process."""

    seconds: float
    peak_mb: float


class Frames:
    """Some frames of a movie, by their number."""

    def __init__(self, frames: dict[int, Any]) -> None:
        self._frames = frames

    def frame(self, t: int) -> Any:
        """Return a frame."""
        return self._frames[t]


def job_options(
    about: str, *, frames: int, quick: tuple[int, int, str], **counts: int
) -> argparse.Namespace:
    """Parse the options of a benchmark of the whole job; results are None with ``--quick``.

    ``about`` is the script's docstring, ``frames`` the number of frames by default, ``quick`` what
    takes the place of frames, size and time budget, ``counts`` further whole numbers.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    for name, value in {"frames": frames, "size": 512, **counts}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--time-budget", help="default: the command's own")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.time_budget = quick
        a.results = None
    return a


def scene_options(
    about: str, *, scenes: Sequence[str], **lists: Sequence[int]
) -> argparse.Namespace:
    """Parse the options of a benchmark over small scenes; results are None with ``--quick``.

    ``about`` is the script's docstring, ``scenes`` those by default, ``lists`` the whole numbers
    that further options take several of, ``steps`` among them.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument(
        "--scenes", nargs="+", default=list(scenes), help="with options, or folders"
    )
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    for name, values in lists.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=list(values))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.scenes, a.frames, a.size, a.steps, a.results = a.scenes[:1], 12, 64, [4], None
    return a


def scene_folders(a: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of each of ``a.scenes``, simulated for as long as it is in use."""
    for scene in a.scenes:
        if Path(scene).is_dir():
            yield Path(scene).name, Path(scene)
            continue
        with tempfile.TemporaryDirectory(prefix="shine-scene-") as scratch:
            simulate(Path(scratch), frames=a.frames, size=a.size, seed=3, scene=scene)
            yield scene, Path(scratch)


def trained(movie: Any, options: Any) -> tuple[Any, Any]:
    """Train as a job of so many steps does; return its plan, and a model with the measured hole."""
    from shine_em import Model
    from shine_em.patches import Normalisation
    from shine_em.planning import prepare
    from shine_em.training import train
    from shine_em.warm_start import beginning

    plan = prepare(movie, options)
    weights, plan, _ = beginning(plan, options, model=None, resume=None, name=movie.name)
    normalisation = Normalisation.of(plan.health)
    state = train(
        movie, plan.health, plan.config, plan.settings, normalisation=normalisation,
        start_from=weights,
    )  # fmt: skip
    return plan, Model(state, normalisation, (plan.settings.hole,))


def run(command: Sequence[str | Path]) -> Measured:
    """Run a command to its end; stop the benchmark where it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"stopped: {Path(command[0]).name} {command[1]} ... failed")
    return Measured(seconds, _peak_mb(usage.ru_maxrss))


def shine(*arguments: str | Path) -> Measured:
    """Run the command line, as ``shine ...`` does."""
    return run([sys.executable, "-m", "shine_em.cli", *arguments])


def simulate(folder: Path, *, frames: int, size: int, seed: int, scene: str = "au-growth") -> None:
    """Simulate a scene, named with its options, into a folder: noisy.tif, truth.tif and more."""
    say(f"simulating {frames} frames of {size}×{size} ...")
    numbers = {"frames": frames, "size": size, "seed": seed}
    options = (f"--{name}={value}" for name, value in numbers.items())
    shine("simulate", *scene.split(), *options, "-o", folder)


def in_own_process(function: Callable[..., Any], **arguments: Any) -> tuple[Any, Measured]:
    """Call a module-level function of the running script in a fresh process.

    Arguments and result travel as JSON. The script must end in ``serve(globals()) or main()``.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        script = Path(sys.modules["__main__"].__file__ or "")
        task = json.dumps(arguments, default=str)
        measured = run([sys.executable, script, _WORKER, function.__name__, task, answer])
        return json.loads(answer.read_text("utf-8")), measured


def serve(names: Mapping[str, Any]) -> bool:
    """In a process started by `in_own_process`, do its work and return True."""
    if sys.argv[1:2] != [_WORKER]:
        return False
    # As the command line sets it: threads that sleep while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _, _, name, task, answer = sys.argv
    result = names[name](**json.loads(task))
    Path(answer).write_text(json.dumps(result), "utf-8")
    return True


def machine() -> dict[str, Any]:
    """Describe the machine and the versions, as far as they matter to a timing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "cpu": _cpu(),
        "cores": cores,
        "memory_GB": round(memory, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "shine-em")},
        "load_before": [round(v, 2) for v in os.getloadavg()],
        "date": datetime.now(UTC).date().isoformat(),
    }


def machine_line(found: Mapping[str, Any]) -> str:
    """Return the machine in one line for a document."""
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_GB']:g} GB; torch "
        f"{found['torch']}, Python {found['python']}, shine-em {found['shine-em']}; "
        f"load before the run {found['load_before'][0]:g}; {found['date']}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; columns with a number in them are aligned to the right."""
    columns = zip(*rows, strict=True)
    align = ["---" if all(isinstance(cell, str) for cell in c) else "---:" for c in columns]
    lines = [list(head), align, *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Number(float):
    """A number that prints with a fixed count of digits."""

    def __new__(cls, value: float, digits: int = 2) -> Number:
        made = super().__new__(cls, value)
        made.digits = digits  # type: ignore[attr-defined]
        return made

    def __str__(self) -> str:
        return f"{float(self):.{self.digits}f}"  # type: ignore[attr-defined]


def say(text: str) -> None:
    """Tell on stderr what is going on; stdout holds the results alone."""
    print(text, file=sys.stderr, flush=True)


def save(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
        say(f"wrote {path.name}")


def quality(movie: Any, truth: Any, frames: Sequence[int]) -> dict[str, float]:
    """Return PSNR in the three protocols and SSIM, means over the given frames."""
    import numpy as np

    from shine_em.metrics import psnr, ssim

    scores = []
    for t in frames:
        a, b = movie.frame(t).astype(float), truth.frame(t).astype(float)
        scores.append(
            [*(psnr(a, b, protocol=p) for p in ("affine", "range", "minmax")), ssim(a, b)]
        )
    means = np.mean(scores, axis=0)
    names = ("psnr_affine", "psnr_range", "psnr_minmax", "ssim_affine")
    return {name: float(value) for name, value in zip(names, means, strict=True)}


def quality_cells(score: Mapping[str, float]) -> list[Number]:
    """Return the cells of a table's row for what `quality` gave."""
    return [Number(v, 3 if name.startswith("ssim") else 2) for name, v in score.items()]


QUALITY_HEAD = ("PSNR affine, dB", "PSNR range, dB", "PSNR min–max, dB", "SSIM")


def rss_mb() -> float:
    """Return the memory that this process holds now, in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb(maxrss: int) -> float:
    return maxrss / 1e6 if sys.platform == "darwin" else maxrss * 1024 / 1e6


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
