"""One task of `shine benchmark`, done in a process of its own: denoise, measure, score, write.

The memory and the allocator's state that are measured here are the method's own, and a method that
dies takes nothing with it.
"""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .benchmark_meter import Meter
from .drafts import write_whole
from .errors import ShineError
from .movie import Movie

if TYPE_CHECKING:
    from .error_estimate import ErrorEstimate
    from .noise import NoiseStatistics

__all__ = ["SCORES", "measure_noise", "own_peak_memory", "score", "work", "write_json"]

SCORES = ("psnr_affine", "psnr_range", "psnr_minmax", "ssim_affine", "ssim_minmax")
"""Scores of a frame against its truth, see `shine_em.metrics`."""

Tell = Callable[[str, float], None]

# Frames that two results must lie apart to share no noise: nine in a window, beside them up to two
# on either side that are blinded, and noise that lives on for two.
_WIDEST_WINDOW = 15


def work(task: dict[str, Any], channel: Any) -> None:
    """Do one task and write its result as JSON; never raise.

    Parameters
    ----------
    task
        Plain values: "kind" ("noise", "method", "job", "ceiling" or "raw"), "noisy", "truth" (path
        or None), "noise" (path or None), "answer" (where the result goes), "failure" (where it is
        told instead that there is none), "output" (the denoised movie, or None), "settings" (kept
        in the result), and for methods "method", "hole", "time_budget_s", "seed", "frames_in",
        "device" and "halves".
    channel
        A `multiprocessing.connection.Connection` that hears ``(stage, fraction)``, or None.
    """
    # As the command line sets it: threads that sleep while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    result: dict[str, Any] = {"settings": task["settings"], "status": "done"}

    def tell(stage: str, fraction: float) -> None:
        if channel is not None:
            channel.send((stage, float(fraction)))

    try:
        {"noise": measure_noise, "ceiling": _ceiling}.get(task["kind"], _method)(task, result, tell)
    except ShineError as error:
        result |= {"status": "failed", "reason": str(error)}
    except KeyboardInterrupt:
        return
    except MemoryError:
        result |= {"status": "failed", "reason": "out of memory"}
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        result |= {
            "status": "failed", "reason": f"{type(error).__name__}: {words}",
            "traceback": traceback.format_exc(),
        }  # fmt: skip
    try:
        write_json(Path(task["answer" if result["status"] == "done" else "failure"]), result)
    except ShineError as error:  # a full disk, as a line instead of a traceback
        raise SystemExit(str(error)) from None


def measure_noise(task: dict[str, Any], result: dict[str, Any], tell: Tell) -> None:
    """Measure the noise statistics that all methods are given."""
    from .doctor import check
    from .io import read
    from .noise import noise_of

    movie = read(task["noisy"])
    result["noise"] = noise_of(movie, check(movie)).to_dict()


def _method(task: dict[str, Any], result: dict[str, Any], tell: Tell) -> None:
    from .io import read

    noisy = read(task["noisy"])
    with Meter(len(noisy), tell) as meter:
        clean = noisy if task["kind"] == "raw" else _denoise(noisy, task, meter, result)
    result |= meter.cost() | own_peak_memory()
    if task["kind"] != "raw" and clean.history:
        result["did"] = clean.history[-1]
    if task["output"] is not None:
        _write(clean, task)
    tell("scoring", 0.0)
    truth = None if task["truth"] is None else read(task["truth"])
    result |= score(clean, noisy, truth)
    if truth is None:
        if "estimated" not in result:
            result |= _estimated(noisy, clean, task)
        if task["halves"]:
            result["scores"]["snr_halves"] = _halves_snr(noisy, task, tell)


def _write(clean: Movie, task: dict[str, Any]) -> None:
    from .io import write

    # The scores of an earlier movie must never stand beside this one.
    Path(task["answer"]).unlink(missing_ok=True)
    write(clean, task["output"], overwrite=True)


def _job(noisy: Movie, task: dict[str, Any], result: dict[str, Any], tell: Tell) -> Movie:
    """Denoise as `shine denoise` does, the time budget being that of the whole job."""
    from .job import denoise

    done = denoise(
        noisy, time_budget=task["time_budget_s"], seed=task["seed"], device=task["device"],
        hole=task["hole"] and tuple(task["hole"]),
        progress=lambda e: tell(e.stage, e.done / e.total if e.total else 0.0),
    )  # fmt: skip
    result["by"] = done.denoised_by
    if done.error is not None:
        result["estimated"] = _ratio(done.error)
    return done.movie


def _measured_noise(task: dict[str, Any]) -> NoiseStatistics | None:
    from .noise import NoiseStatistics

    # Without noise statistics a method that needs them says what is wrong itself.
    if task["noise"] is None or not Path(task["noise"]).exists():
        return None
    found = json.loads(Path(task["noise"]).read_text("utf-8"))
    return NoiseStatistics.from_dict(found["noise"])


def _estimated(noisy: Movie, clean: Movie, task: dict[str, Any]) -> dict[str, Any]:
    """Estimate the error of a method that learns nothing; see `shine_em.error_estimate`."""
    from .baselines import METHODS
    from .doctor import check
    from .error_estimate import ErrorEstimator
    from .patches import Normalisation

    noise = _measured_noise(task)
    if task["kind"] == "raw" or noise is None or not noise.sigma > 0:
        return {}
    if METHODS[task["method"]].needs_training:
        return {}
    health = check(noisy)
    estimator = ErrorEstimator(noisy, health, noise, Normalisation.of(health))

    def method(movie: Movie) -> Movie:
        return clean if movie is noisy else _denoise(movie, task, lambda _stage, _fraction: None)

    return {"estimated": _ratio(estimator.measure_method(method))}


def _ratio(error: ErrorEstimate) -> list[float]:
    """Return an estimated error and its uncertainty in units of the noise variance."""
    return [error.mse / error.noise_variance, error.uncertainty / error.noise_variance]


def _denoise(
    noisy: Movie, task: dict[str, Any], tell: Tell, result: dict[str, Any] | None = None
) -> Movie:
    from .baselines import METHODS

    if task["kind"] == "job":
        return _job(noisy, task, {} if result is None else result, tell)
    how: dict[str, Any] = {
        "noise": _measured_noise(task), "time_budget_s": task["time_budget_s"],
        "seed": task["seed"], "device": task["device"], "progress": tell,
    }  # fmt: skip
    method = METHODS[task["method"]]
    if task["frames_in"] is None:
        return method.run(noisy, hole=task["hole"] and tuple(task["hole"]), **how)
    from .baselines import shine

    network = getattr(shine, method.home.partition(":")[2])
    hole = method.hole or (task["hole"] and tuple(task["hole"]))
    clean: Movie = network(noisy, hole=hole, frames=task["frames_in"], **how)
    return clean


def _halves_snr(noisy: Movie, task: dict[str, Any], tell: Tell) -> list[float | None]:
    """Return the SNR in dB between even and odd frames that were denoised as two movies.

    The two share no frame and so no noise: smearing over time does not raise it.
    """
    from .metrics import snr

    halves = [noisy.select(slice(first, None, 2)) for first in (0, 1)]
    if task["kind"] != "raw":
        halves = [_denoise(half, task, tell) for half in halves]
    return _plain(
        np.array([snr(a, b) for a, b in zip(*(h.frames() for h in halves), strict=False)])
    )


def _ceiling(task: dict[str, Any], result: dict[str, Any], tell: Tell) -> None:
    from .baselines.supervised import supervised
    from .io import read

    noisy, truth = read(task["noisy"]), read(task["truth"])
    with Meter(len(noisy), tell) as meter:
        ceiling = supervised(
            noisy, truth, time_limit_s=task["time_budget_s"], seed=task["seed"],
            device=task["device"], progress=meter,
        )  # fmt: skip
    result |= meter.cost() | own_peak_memory()
    _write(ceiling.movie, task)
    tell("scoring", 0.0)
    held = ceiling.held_out
    result |= score(ceiling.movie, noisy, truth)
    # Only frames whose truth it was not taught say anything.
    result["scores"] = {k: [v[t] for t in held] for k, v in result["scores"].items()}
    result["frames"] = list(held)
    result["curve"] = [[s, a, b] for s, a, b in ceiling.fitted.curve]
    result["plateau"] = ceiling.plateau


def score(clean: Movie, noisy: Movie, truth: Movie | None) -> dict[str, Any]:
    """Score a denoised movie frame by frame.

    Parameters
    ----------
    clean, noisy
        ``(t, y, x)`` denoised and noisy movie.
    truth
        The expected values, or None.

    Returns
    -------
    dict
        "scores": with a truth, lists over frames of all of `SCORES`; without one,
        "snr_neighbours", the SNR in dB between adjacent frames (paper, Eq. 5; any smoothing in
        time raises it). "frames": their numbers. Without a truth also "residual": what part of the
        picture the residual still holds, 0 for none (see `shine_em.residual`).
    """
    from .metrics import frame_snr, movie_psnr, movie_ssim

    if clean.shape != noisy.shape:
        raise ShineError(f"The method changed the movie's shape, {noisy.shape}, to {clean.shape}.")
    if not all(np.isfinite(frame).all() for frame in clean.frames()):
        raise ShineError("The method's result holds values that are no finite numbers.")
    if truth is not None:
        scores: dict[str, Any] = {}
        for name in SCORES:
            quantity, _, protocol = name.partition("_")
            measure: Any = movie_psnr if quantity == "psnr" else movie_ssim
            scores[name] = _plain(measure(clean, truth, protocol=protocol))
        return {"scores": scores, "frames": list(range(len(clean)))}
    snr = frame_snr(clean)
    found: dict[str, Any] = {
        "scores": {"snr_neighbours": _plain(snr)}, "frames": list(range(1, len(clean)))
    }  # fmt: skip
    if clean.data is not noisy.data and min(clean.shape[1:]) >= 16:
        from .residual import ResidualSpectra

        spectra = ResidualSpectra((clean.shape[1], clean.shape[2]), apart=_WIDEST_WINDOW)
        for t in np.unique(np.linspace(0, len(clean) - 1, 24).astype(int)):
            frame = clean.frame(int(t))
            spectra.add(noisy.frame(int(t)) - frame, frame, frame=int(t))
        test = spectra.test(None)
        found["residual"] = {
            "outcome": test.outcome, "leftover": _finite(test.leftover), "verdict": test.verdict
        }  # fmt: skip
    return found


def own_peak_memory() -> dict[str, float | None]:
    """Return this process's peak memory in MB: "peak_mb" and, where CUDA was used, "gpu_peak_mb".

    On Linux it is the kernel's high-water mark of this very process; the number that `resource`
    reports there begins at the size of the process that started this one. It includes Python,
    NumPy, SciPy and PyTorch, which are loaded for every method (about 0.3 GB).
    """
    import sys

    found: dict[str, float | None] = {"peak_mb": None}
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        found["peak_mb"] = int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        from .compute import peak_memory_bytes

        if (peak := peak_memory_bytes()) is not None:
            found["peak_mb"] = peak / 1e6
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def write_json(path: Path, values: Any) -> None:
    """Write JSON, whole or not at all; raise `ShineError` where the disk has no room."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, lambda draft: draft.write_text(text, "utf-8"))


def _plain(values: np.ndarray) -> list[float | None]:
    return [_finite(v) for v in values]


def _finite(value: Any) -> float | None:
    return round(float(value), 6) if value is not None and math.isfinite(value) else None
