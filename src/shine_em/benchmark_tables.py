"""The tables of a benchmark, as Markdown to read and CSV to work with."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .benchmark import Outcome

from .benchmark_methods import CEILING, RAW

__all__ = ["below_ceiling", "csv_text", "grouped", "markdown_text", "mean"]

_COLUMNS = {
    "psnr_affine": ("PSNR affine, dB", 2),
    "psnr_range": ("PSNR range, dB", 2),
    "psnr_minmax": ("PSNR min–max, dB", 2),
    "ssim_affine": ("SSIM affine", 3),
    "ssim_minmax": ("SSIM min–max", 3),
    "snr_neighbours": ("SNR of neighbours, dB", 2),
    "snr_halves": ("SNR of halves, dB", 2),
}
_COSTS = {
    "training_s": ("training, s", 1),
    "frame_s": ("s per frame", 3),
    "gflop": ("GFLOP per frame", 1),
    "seconds": ("all, s", 1),
    "cores": ("cores got", 2),
}


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of the values that are there; nan where none is."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")


def grouped(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[Outcome]]]:
    """Return outcomes by movie, then by title; a group holds the repeats with other seeds."""
    found: dict[str, dict[str, list[Outcome]]] = {}
    for o in outcomes:
        found.setdefault(o.movie, {}).setdefault(o.title, []).append(o)
    return found


def below_ceiling(outcome: Outcome, outcomes: Sequence[Outcome]) -> float | None:
    """Return how many dB of PSNR (affine) a result lies below the supervised ceiling.

    The mean over the frames that the ceiling was not taught, for both. Of several ceilings the one
    with the largest budget counts. None where there is none for the movie, or for a ceiling.
    """
    ceilings = [
        o for o in outcomes
        if o.method == CEILING and o.movie == outcome.movie and o.status == "done"
    ]  # fmt: skip
    if outcome.method == CEILING or not ceilings:
        return None
    ceiling = max(ceilings, key=lambda o: math.inf if o.budget_s is None else o.budget_s)
    best, mine = (
        dict(zip(o.frames, o.scores.get("psnr_affine", []), strict=False))
        for o in (ceiling, outcome)
    )
    pairs = [(best[t], mine.get(t)) for t in best]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return float(np.mean(known)) if known else None


def markdown_text(outcomes: Sequence[Outcome], *, machine: str = "") -> str:
    """Return one table per movie: means over frames and seeds, with the spread over seeds.

    Parameters
    ----------
    outcomes
        All of them, failed ones as well.
    machine
        A line about what it was measured on.
    """
    parts = ["# Benchmark\n"]
    if machine:
        parts.append(f"{machine}.\n")
    for movie, methods in grouped(outcomes).items():
        every = [o for group in methods.values() for o in group]
        names = [n for n in _COLUMNS if any(n in o.scores for o in every)]
        gap = any(o.method == CEILING and o.status == "done" for o in every)
        leftover = any("residual" in o.record for o in every)
        estimated = any("estimated" in o.record for o in every)
        head = ["method", *(_COLUMNS[n][0] for n in names)]
        head += ["below the ceiling, dB"] * gap
        head += ["left in the residual"] * leftover
        head += ["estimated error / noise variance"] * estimated
        head += [*(words for words, _ in _COSTS.values()), "peak memory, MB"]
        on_gpu = any(o.gpu_peak_mb for o in every)
        head += ["on the GPU, MB"] * on_gpu
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        notes = []
        for title, group in methods.items():
            good = [o for o in group if o.status == "done"]
            for o in group:
                if o.status != "done":
                    again = f" (seed {o.seed})" if len(group) > 1 else ""
                    notes.append(f"- {title}{again} failed: {o.reason}")
            if not good:
                lines.append([title, "failed", *[""] * (len(head) - 2)])
                continue
            cells = [_spread([mean(o.scores.get(n, [])) for o in good], _COLUMNS[n][1])
                     for n in names]  # fmt: skip
            if gap:
                cells.append(_spread([below_ceiling(o, every) for o in good], 2))
            if leftover:
                cells.append(_leftover(good[0]))
            if estimated:
                cells.append(_estimated(good))
            for cost, (_, digits) in _COSTS.items():
                blank = cost == "training_s" and not good[0].trained
                blank |= good[0].method == RAW
                cells.append("" if blank else _spread([getattr(o, cost) for o in good], digits))
            cells.append(_spread([o.peak_mb for o in good], 0))
            if on_gpu:
                cells.append(_spread([o.gpu_peak_mb for o in good], 0))
            lines.append([title, *cells])
            if "did" in good[0].record:
                notes.append(f"- {title}: {good[0].record['did']}")
            if "curve" in good[0].record:
                ended = "its plateau" if good[0].record["plateau"] else "the time limit"
                notes.append(
                    f"- {title}: trained to {ended}, scored on the {len(good[0].frames)} frames "
                    "that were held out"
                )
        parts.append(f"## {movie}\n")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
        if notes:
            parts.append("\n".join(notes) + "\n")
    return "\n".join(parts)


def csv_text(outcomes: Sequence[Outcome]) -> str:
    """Return a row per movie, method and seed: mean and standard deviation over frames."""
    out = io.StringIO()
    names = [n for n in _COLUMNS if any(n in o.scores for o in outcomes)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["movie", "method", "title", "seed", "frames_in", "status", "reason", "frames_scored",
         *(part for n in names for part in (n, f"{n}_sd")), "below_ceiling", "residual_leftover",
         "estimated_error", "budget_s", *_COSTS, "peak_mb", "gpu_peak_mb"]
    )  # fmt: skip
    for o in outcomes:
        numbers: list[object] = []
        for n in names:
            known = [v for v in o.scores.get(n, []) if v is not None]
            numbers += [round(float(f(known)), 5) if known else "" for f in (np.mean, np.std)]
        writer.writerow(
            [o.movie, o.method, o.title, o.seed, o.frames_in or "", o.status, o.reason,
             len(o.frames), *numbers, _cell(below_ceiling(o, outcomes)),
             o.record.get("residual", {}).get("leftover", ""),
             _cell(o.record.get("estimated", [None])[0]), _cell(o.budget_s),
             *(_cell(getattr(o, cost)) for cost in _COSTS), _cell(o.peak_mb), _cell(o.gpu_peak_mb)]
        )  # fmt: skip
    return out.getvalue()


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [v for v in values if v is not None and np.isfinite(v)]
    if not known:
        return ""
    text = f"{np.mean(known):.{digits}f}"
    return f"{text} ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else text


def _cell(value: float | None) -> object:
    return "" if value is None else round(value, 5)


def _estimated(outcomes: Sequence[Outcome]) -> str:
    """Return the estimated error, with its spread over seeds or else its standard error."""
    found = [o.record["estimated"] for o in outcomes if "estimated" in o.record]
    if len(found) == 1:
        return "{:.4f} ± {:.4f}".format(*found[0])
    return _spread([value for value, _ in found], 4)


def _leftover(outcome: Outcome) -> str:
    found = outcome.record.get("residual")
    if not found or found["leftover"] is None:
        return ""
    return f"{100 * found['leftover']:.1f} % ({found['outcome']})"
