"""Compute the frames of a simulated movie side by side, keep them, and resume after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..drafts import write_whole
from ..errors import ShineError

__all__ = ["run_frames"]

FrameArrays = dict[str, np.ndarray]


def run_frames(
    simulate: Callable[[int], FrameArrays],
    frames: int,
    *,
    identity: Mapping[str, Any],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> FrameArrays:
    """Call ``simulate(t)`` for every frame and stack what it returns.

    The frames are computed in threads: numpy, scipy and FFTW let go of Python's lock, nothing has
    to be pickled, and it works alike in scripts, notebooks and on Windows. With a cache each frame
    is kept as soon as it is ready, so that a simulation that was stopped goes on where it was, and
    one of more frames computes only the new ones.

    Parameters
    ----------
    simulate
        Returns the arrays of frame ``t`` by name. Must depend on ``t`` and ``identity`` alone
        (draw from a generator of the frame's own seed), and be callable from several threads.
    frames
        Number of frames.
    identity
        All that decides what a frame looks like, as plain values; not the number of frames, unless
        the frames depend on it. Frames of another identity, or of another version of shine-em, are
        never taken from the cache.
    workers
        Threads; by default one per processor, at most eight.
    progress
        Called as ``progress(done, total)``, from the caller's thread, frames in order.
    cache
        Folder for finished frames; made where it does not exist.

    Returns
    -------
    dict
        By name, arrays with the frames along the first axis.

    Raises
    ------
    ShineError
        If the cache cannot be written, or what ``simulate`` raises.
    """
    folder = None if cache is None else _folder(Path(cache), identity)

    def one(t: int) -> FrameArrays:
        if folder is None:
            return simulate(t)
        path = folder / f"frame_{t:06d}.npz"
        kept = _load(path)
        if kept is None:
            kept = simulate(t)
            _keep(path, kept)
        return kept

    stacks: FrameArrays = {}
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        for t, arrays in enumerate(pool.map(one, range(frames))):
            for name, value in arrays.items():
                value = np.asarray(value)
                if t == 0:
                    stacks[name] = np.empty((frames, *value.shape), value.dtype)
                stacks[name][t] = value
            if progress is not None:
                progress(t + 1, frames)
    finally:
        # After an error or Ctrl-C the frames under way end, those that wait never start.
        pool.shutdown(cancel_futures=True)
    return stacks


def _folder(cache: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder of this identity; it holds the identity itself too, for the reader."""
    whole = {"shine_em": __version__, **identity}
    text = json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False, default=_plain)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "identity.json").exists():
            (folder / "identity.json").write_text(text + "\n", "utf-8")
    except OSError as error:
        raise ShineError(
            f"{cache}: cannot keep frames here ({error.strerror}). "
            "Choose another folder for the cache, or none."
        ) from error
    return folder


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return hashlib.sha256(
            repr((value.shape, value.dtype)).encode() + value.tobytes()
        ).hexdigest()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot identify a frame: give plain values and arrays.")


def _load(path: Path) -> FrameArrays | None:
    """Return a kept frame, or None where there is none or a crash left half a file."""
    try:
        # numpy leaves a damaged file open, so it is opened here.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _keep(path: Path, arrays: FrameArrays) -> None:
    # Threads of one process never share a frame, but two processes on one cache may.
    content: dict[str, Any] = dict(arrays)
    write_whole(path, lambda draft: np.savez(draft, **content))
