"""Which axis of a file's array is time, and how to reach one frame of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ShineError

__all__ = ["Layout", "as_frames"]


@dataclass(frozen=True)
class Layout:
    """How an n-dimensional array is read as frames.

    Attributes
    ----------
    n_frames
        Number of frames.
    time_axis
        Index of the axis that is read as time; None for a single image.
    fixed
        The index used on each leading axis; the one of the time axis is replaced by the frame.
    note
        What to tell the user about the reading, or "".
    """

    n_frames: int
    time_axis: int | None
    fixed: tuple[int, ...]
    note: str = ""

    def index(self, frame: int) -> tuple[int, ...]:
        """Return the leading indices of one frame."""
        where = list(self.fixed)
        if self.time_axis is not None:
            where[self.time_axis] = frame
        return tuple(where)


def as_frames(
    where: object, shape: Sequence[int], axes: str, signal: str | int | None = None
) -> Layout:
    """Decide how an array of the given axes is read as a ``(t, y, x)`` movie.

    Parameters
    ----------
    where
        The file, for messages.
    shape, axes
        One letter per axis: T time, Z depth, C channel, S colour samples, Y, X; any other letter
        is an unnamed sequence (TIFF's I, Q).
    signal
        The channel to read where the file holds several: a number, counted from 0.

    Raises
    ------
    ShineError
        If the array is colour, has several channels and none was chosen, or has both a time and
        a depth axis.
    """
    shape = tuple(int(n) for n in shape)
    words = f"{'×'.join(map(str, shape))} ({', '.join(axes)})"
    if "S" in axes and shape[axes.index("S")] > 1:
        raise ShineError(
            f"{where}: holds a colour picture, {words}; denoising needs the detector's own grey "
            "values. Export the data without the scale bar and colour (16 or 32 bit)."
        )
    if axes[-2:] != "YX":
        raise ShineError(f"{where}: the last two axes must be y and x, the file holds {words}.")
    if signal is not None and "C" not in axes and str(signal) != "0":
        raise ShineError(f"{where}: there is no signal {signal!r}; the file holds one, {words}.")
    fixed = [0] * (len(shape) - 2)
    note = ""
    sequences = []
    for i, (letter, size) in enumerate(zip(axes[:-2], shape[:-2], strict=True)):
        if letter == "C" and (size > 1 or signal is not None):
            fixed[i] = _channel(where, words, size, signal)
            note = f"read channel {fixed[i]} of {size}" if size > 1 else note
        elif size > 1:
            sequences.append(i)
    if len(sequences) > 1:
        raise ShineError(
            f"{where}: holds {words}, more than one movie: 4D-STEM data or a z-stack at each time. "
            "Save one (t, y, x) movie first and denoise that."
        )
    if not sequences:
        return Layout(1, None, tuple(fixed), note or "the file holds a single image")
    time_axis = sequences[0]
    if axes[time_axis] == "Z":
        note = (note + "; " if note else "") + "the z-stack's slices are read as frames"
    return Layout(shape[time_axis], time_axis, tuple(fixed), note)


def _channel(where: object, words: str, size: int, signal: str | int | None) -> int:
    if signal is None:
        raise ShineError(
            f"{where}: holds {words}, {size} channels. Choose one with --signal 0 to "
            f"--signal {size - 1} (if the channels are really frames, set them so in Fiji: "
            "Image > Properties)."
        )
    try:
        channel = int(signal)
    except ValueError:
        channel = -1
    if not 0 <= channel < size:
        raise ShineError(f"{where}: there is no channel {signal!r}; it has 0 to {size - 1}.")
    return channel
