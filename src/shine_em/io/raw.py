"""Frames that lie one after the other, uncompressed, in a file: TIFF, MRC, npy, ser, dm4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import LazyFrames

__all__ = ["human_size", "raw_frames", "require_file"]


def human_size(n_bytes: float) -> str:
    """Return a size in bytes as people read it: ``"524.3 kB"``, ``"20.0 GB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def require_file(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises
    ------
    ShineError
        If the file does not exist, is no file, cannot be read, or is empty.
    """
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except FileNotFoundError:
        raise ShineError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ShineError(f"{path}: cannot be opened ({error.strerror}).") from None
    if size == 0:
        raise ShineError(f"{path}: the file is empty (0 bytes).")
    return size


def raw_frames(
    path: Path, dtype: Any, shape: tuple[int, int, int], offsets: int | Sequence[int]
) -> LazyFrames:
    """Return frames read straight from their place in the file, one at a time.

    Each read opens the file anew: no handle stays open, no pages pile up, and any number of
    threads may read at once.

    Parameters
    ----------
    path, dtype
        The file and the type of its pixels, byte order included; frames come out native.
    shape
        ``(t, y, x)``.
    offsets
        Where the frames begin, in bytes: the first one's place if they are contiguous, else one
        place for each frame.

    Raises
    ------
    ShineError
        If the file is too short to hold the frames; when a frame is asked for, if it cannot be
        read.
    """
    stored = np.dtype(dtype)
    native = stored.newbyteorder("=")
    n, height, width = shape
    count = height * width
    places = (
        range(offsets, offsets + n * count * stored.itemsize, max(1, count * stored.itemsize))
        if isinstance(offsets, int)
        else offsets
    )
    size = require_file(path)
    end = max(int(places[0]), int(places[-1])) + count * stored.itemsize
    if end > size:
        raise ShineError(
            f"{path}: the file is truncated: its header announces {n} frames of {height}×{width} "
            f"{native} ({human_size(end)}), but it holds {human_size(size)}."
        )

    def read_frame(i: int) -> np.ndarray:
        try:
            values = np.fromfile(path, stored, count, offset=int(places[i]))
        except OSError as error:  # a network share that went away
            raise ShineError(
                f"{path}: frame {i} cannot be read ({error.strerror or error})."
            ) from None
        if values.size != count:
            raise ShineError(f"{path}: frame {i} could not be read; has the file been shortened?")
        return values.astype(native, copy=False).reshape(height, width)

    return LazyFrames(read_frame, shape, native)
