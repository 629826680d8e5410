"""Movies × methods: denoise, score, and compare, in tables and in the paper's panels.

>>> from shine_em import benchmark
>>> found = benchmark.run(["au-growth"], "bm3d,lean@60s,lean@5min", out="bench")  # doctest: +SKIP
>>> print(found.markdown())  # doctest: +SKIP

Every method runs in a process of its own, so that its peak memory is its own and a rival that dies
does not end the benchmark. What is finished is kept in the folder and not done again, unless a
setting, the movie or the version has changed.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from .baselines import METHODS
from .benchmark_methods import CEILING, DEFAULT, RAW, Contender, choose
from .benchmark_movies import Case, find_movies
from .benchmark_tables import csv_text, markdown_text
from .benchmark_worker import work, write_json
from .compute import pick_device
from .drafts import write_whole
from .errors import ShineError

__all__ = ["CEILING", "DEFAULT", "RAW", "Benchmark", "Outcome", "run"]

_MARKER = "benchmark.json"
_FORMAT = 3
_PRELOADED = ["torch", "scipy.ndimage", "skimage.metrics", "shine_em.job"]


@dataclass(frozen=True)
class Outcome:
    """One method on one movie.

    Attributes
    ----------
    movie, method, title
        Their names, and how figures call the method.
    seed
        Of everything random; `frames_in`: input frames where they were chosen (fig. S8).
    status, reason
        "done", or "failed" and why.
    budget_s
        Its time budget, s; None for its own schedule, or where it has no use for one.
    seconds
        Wall time of training and denoising, without starting Python.
    training_s, frame_s, gflop, cores
        Seconds before denoising began, seconds and 10⁹ operations per frame, and how many
        processor cores the process got on average; see `benchmark_meter.Meter.cost`.
    peak_mb, gpu_peak_mb
        Peak memory of the process, and of CUDA's allocator where it was used, in MB.
    scores
        Name of a score → one value per frame of `frames`; see `benchmark_worker.score`.
    output
        The denoised movie.
    record
        All that was stored.
    """

    movie: str
    method: str
    title: str
    seed: int
    frames_in: int | None
    status: str
    reason: str
    seconds: float | None
    peak_mb: float | None
    gpu_peak_mb: float | None
    scores: dict[str, list[float | None]]
    frames: list[int]
    output: Path | None
    record: dict[str, Any] = field(repr=False)
    budget_s: float | None = None

    @property
    def trained(self) -> bool:
        """Whether the method learned from the movie."""
        return self.method in (DEFAULT, CEILING) or (
            self.method in METHODS and METHODS[self.method].needs_training
        )

    @property
    def training_s(self) -> float | None:  # noqa: D102
        return self.record.get("training_s")

    @property
    def frame_s(self) -> float | None:  # noqa: D102
        return self.record.get("frame_s")

    @property
    def gflop(self) -> float | None:  # noqa: D102
        return self.record.get("gflop")

    @property
    def cores(self) -> float | None:  # noqa: D102
        cpu, seconds = self.record.get("cpu_s"), self.seconds
        return cpu / seconds if cpu is not None and seconds else None


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: its outcomes, and the files in its folder.

    Attributes
    ----------
    folder
        Where everything lies.
    outcomes
        Movie by movie, in the order of the methods.
    files
        Tables and figures.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    files: tuple[Path, ...]

    def markdown(self) -> str:
        """Return the table of results in Markdown."""
        return markdown_text(self.outcomes)


def run(
    movies: Sequence[str | os.PathLike[str]],
    methods: str = "all",
    *,
    out: str | os.PathLike[str],
    time_budget_s: float | None = 60.0,
    hole: tuple[int, int] | None = None,
    frames: int = 100,
    size: int = 512,
    seed: int = 0,
    seeds: int = 1,
    frames_in: Sequence[int] = (),
    halves: bool = False,
    device: str = "cpu",
    limit_s: float = 7200.0,
    figures: bool = True,
    progress: Callable[[str, str, float], None] | None = None,
) -> Benchmark:
    """Run methods on movies and compare the results.

    Like everything that starts processes, a script must call it under
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    movies
        Folders that ``shine simulate`` wrote (noisy.tif, and truth.tif to compare with), names of
        scenes to simulate now, or movies without a truth, as `shine_em.read` takes them. These are
        judged without a reference: the SNR between neighbouring frames, the picture left in the
        residual, and the estimated error (of the default job, and of methods that learn nothing).
    methods
        Comma-separated names of `shine_em.baselines.METHODS`, or "all" for all of these; "default"
        for all that `shine_em.denoise` does; "supervised" for the ceiling, the lean backbone taught
        the truth (`shine_em.baselines.supervised`). With a time budget of its own a name may come
        several times: "default@60s,default@5min,supervised@20min".
    out
        Folder for everything; made where it does not exist. One with an earlier benchmark is gone
        on with.
    time_budget_s
        For names without one of their own: seconds that a method may train, denoising comes on
        top; the whole job for "default"; a limit for "supervised". None for their own schedules.
    hole
        Blind spot for the methods whose name does not fix it; None to take it from the noise.
    frames, size
        Of scenes simulated now: number of frames, and their side in pixels.
    seed, seeds
        First seed, and with how many different ones what is random is repeated (the ceiling is
        not); scenes are simulated with the first.
    frames_in
        Numbers of input frames to compare as in the paper's fig. S8, for `paper` and `lean`.
    halves
        For movies without a truth: also denoise even and odd frames as two movies, and give the
        SNR between them. It takes twice the time on top.
    device
        For methods that run on PyTorch.
    limit_s
        Wall time after which a method is stopped and counts as failed; above all time budgets.
        Methods on their own schedules may need more, days on a CPU.
    figures
        Draw the panels.
    progress
        Called as ``progress(what, stage, fraction)``.

    Raises
    ------
    ShineError
        If a movie, a method or the device is unknown, or the folder holds something else. A method
        that fails does not raise: it is listed as failed, with its reason, and tried again next
        time; what it made earlier with other settings is kept.
    """
    chosen = choose(methods, time_budget_s)
    _check(time_budget_s, seeds, frames_in, chosen, limit_s)
    device = str(pick_device(device))  # so that "auto" and what it stands for are the same
    folder = _prepared(Path(out))
    tell = progress or (lambda _what, _stage, _fraction: None)
    cases = find_movies(movies, folder, frames=frames, size=size, seed=seed, tell=tell)
    common = {"hole": hole, "device": device, "halves": halves}
    files = [folder / "results.md", folder / "results.csv"]
    outcomes: list[Outcome] = []
    for case in cases:
        place = folder / "results" / case.name
        place.mkdir(parents=True, exist_ok=True)
        tasks = list(_tasks(case, place, chosen, common, seed, seeds, frames_in))
        for task in tasks:
            _done(task, limit_s, partial(tell, task["label"]))
        outcomes += [_outcome(case, task) for task in tasks if task["kind"] != "noise"]
        # After each movie: hours may follow, and the next one may be interrupted.
        texts = (markdown_text(outcomes, machine=_machine(device)), csv_text(outcomes))
        for path, text in zip(files, texts, strict=True):
            write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
    if figures:
        from .benchmark_figures import draw

        tell("all", "drawing figures", 0.0)
        sources = {c.name: (c.noisy, c.truth, folder / "results" / c.name) for c in cases}
        files += draw(outcomes, sources, folder)
    return Benchmark(folder, tuple(outcomes), tuple(files))


def _check(
    budget: float | None,
    seeds: int,
    frames_in: Sequence[int],
    methods: Sequence[Contender],
    limit: float,
) -> None:
    if budget is not None and not 0 < budget < float("inf"):
        raise ShineError(f"time_budget_s must be a positive number of seconds, not {budget}.")
    if not limit > 0:
        raise ShineError(f"limit_s must be a positive number of seconds, not {limit}.")
    if seeds < 1:
        raise ShineError(f"seeds must be at least 1, not {seeds}.")
    if any(n < 1 or n % 2 == 0 for n in frames_in):
        raise ShineError(
            f"frames_in must be odd numbers, as in 1,3,5,7, not {','.join(map(str, frames_in))}."
        )
    for c in methods:
        if c.method.timed and c.budget_s is not None and c.budget_s >= limit:
            raise ShineError(
                f"{c.title}: limit_s must be above its time budget of {c.budget_s:g} s: at "
                f"{limit:g} s it would be stopped, and nothing kept."
            )
    if frames_in and not any(c.method.home.startswith("shine:") for c in methods):
        raise ShineError("frames_in is for the methods paper and lean: add one.")


def _prepared(folder: Path) -> Path:
    """Make the folder, or see that it is one of ours."""
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
            raise ShineError(
                f"{folder} holds other files and no benchmark. Choose another folder, or a new one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _MARKER, {"format": _FORMAT, "shine-em": metadata.version("shine-em")})
    except OSError as error:
        raise ShineError(f"{folder}: cannot be written to ({error.strerror}).") from None
    return folder


def _tasks(
    case: Case,
    place: Path,
    contenders: Sequence[Contender],
    common: dict[str, Any],
    seed: int,
    seeds: int,
    frames_in: Sequence[int],
) -> Iterable[dict[str, Any]]:
    """Yield what is to be done with a movie, the noise statistics first."""
    base = {
        "noisy": str(case.noisy), "truth": case.truth and str(case.truth), "noise": None,
        "output": None, "seed": seed, "frames_in": None, "time_budget_s": None, "title": "",
        **common,
    }  # fmt: skip
    version = metadata.version("shine-em")

    def task(kind: str, stem: str, *matters: str, **more: Any) -> dict[str, Any]:
        """Describe a task; it is done again where one of the values that matter has changed."""
        values = {**base, "kind": kind, "method": stem, **more}
        settings = {name: values[name] for name in ("kind", "method", *matters)}
        settings |= {"movie": case.fingerprint, "shine-em": version, "format": _FORMAT}
        values["settings"] = json.loads(json.dumps(settings))
        values["answer"] = str(place / f"{stem}.json")
        values["failure"] = str(place / f"{stem}.failed.json")
        values["label"] = f"{case.name}, {more.get('title') or kind}"
        return values

    yield task("noise", "noise")
    noise = str(place / "noise.json")
    judged = ("halves",) if case.truth is None else ()
    yield task("raw", RAW, *judged, title="noisy")
    for contender in contenders:
        if contender.kind == "ceiling" and case.truth is None:
            continue
        method = contender.method
        matters: tuple[str, ...] = judged
        if method.on_torch:
            matters += ("device",)
        if contender.kind != "ceiling":
            matters += ("hole",)
        if method.timed:
            matters += ("time_budget_s",)
        if method.needs_training:
            matters += ("seed", "frames_in")
        ours = method.home.startswith("shine:")
        # The paper's network has five anyway; how many the lean one gets depends on the movie.
        usual = 5 if method.name == "paper" else None
        widths = [None if n == usual else n for n in frames_in] if ours and frames_in else []
        for width in dict.fromkeys((None, *widths)):
            for k in range(seeds if contender.repeated else 1):
                stem = contender.stem + (f"-{width}frames" if width else "")
                stem += f"-seed{seed + k}" if k else ""
                title = contender.title + (f", {width} frames" if width else "")
                made = task(
                    contender.kind, stem, *matters, title=title, noise=noise, seed=seed + k,
                    frames_in=width, output=str(place / f"{stem}.tif"),
                    time_budget_s=contender.budget_s,
                )  # fmt: skip
                yield made | {"method": method.name}


def _stored(task: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a task that was done before with the same settings."""
    try:
        found = json.loads(Path(task["answer"]).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    there = task["output"] is None or Path(task["output"]).exists()
    same = isinstance(found, dict) and found.get("settings") == task["settings"]
    return found if same and there and found.get("status") == "done" else None


def _done(task: dict[str, Any], limit: float, tell: Callable[[str, float], None]) -> None:
    """See that the result of a task is there, doing it in a process of its own where it is not."""
    Path(task["failure"]).unlink(missing_ok=True)
    if _stored(task) is not None:
        tell("done before", 1.0)
        return
    if task["output"] is None:  # quickly made again, and another movie's noise must not be used
        Path(task["answer"]).unlink(missing_ok=True)
    # A fork server has loaded the heavy modules once, and each task starts from its clean state.
    kinds = mp.get_all_start_methods()
    context: Any = mp.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    hears, speaks = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(task, speaks), daemon=False)
    process.start()
    speaks.close()
    begun = time.monotonic()
    too_long = False
    try:
        while process.is_alive() and not too_long:
            if hears.poll(max(0.0, min(0.2, begun + limit - time.monotonic()))):
                try:
                    tell(*hears.recv())
                except EOFError:
                    process.join(1.0)
            too_long = time.monotonic() - begun > limit
        if too_long:
            process.kill()
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        hears.close()
    if _stored(task) is None and not Path(task["failure"]).exists():
        reason = f"stopped after the time limit of {limit:.0f} s"
        if not too_long:
            code = process.exitcode
            reason = f"the process ended with exit code {code}"
            if code == -9:
                reason = "killed by the system, most likely for lack of memory"
        result = {"settings": task["settings"], "status": "failed", "reason": reason}
        write_json(Path(task["failure"]), result)


def _outcome(case: Case, task: dict[str, Any]) -> Outcome:
    failure = Path(task["failure"])
    told = failure if failure.exists() else Path(task["answer"])
    record = json.loads(told.read_text("utf-8"))
    done = record["status"] == "done"
    return Outcome(
        case.name, task["method"], task["title"], task["seed"], task["frames_in"],
        record["status"], record.get("reason", ""), record.get("seconds"), record.get("peak_mb"),
        record.get("gpu_peak_mb"), record.get("scores", {}), record.get("frames", []),
        Path(task["output"]) if done and task["output"] else None, record, task["time_budget_s"],
    )  # fmt: skip


def _machine(device: str) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, device {device}; Python "
        f"{platform.python_version()}, torch {metadata.version('torch')}, "
        f"shine-em {metadata.version('shine-em')}"
    )
