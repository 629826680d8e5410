"""`Movie`: a lazy ``(t, y, x)`` array with its calibration, dose, metadata and history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import ShineError

__all__ = ["Axis", "Frames", "LazyFrames", "Movie"]

# Lengths that microscopes write, in nm; everything else (1/nm, px, None) is kept as it stands.
_NM_PER_UNIT = {
    "m": 1e9, "cm": 1e7, "mm": 1e6, "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3,
    "nm": 1.0, "a": 0.1, "å": 0.1, "angstrom": 0.1, "pm": 1e-3,
}  # fmt: skip
_S_PER_UNIT = {
    "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0,
}  # fmt: skip


class Frames(Protocol):
    """What `Movie.data` must offer: numpy arrays, memory maps, dask and zarr arrays all do."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    def __getitem__(self, key: Any) -> Any: ...


class LazyFrames:
    """A ``(t, y, x)`` stack whose frames are read one by one, when asked for.

    Parameters
    ----------
    read_frame
        ``read_frame(i)`` returns frame ``i`` as a ``(y, x)`` array. It must be callable from
        several threads.
    shape, dtype
        Of the whole stack.
    """

    def __init__(
        self, read_frame: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: Any
    ) -> None:
        self._read = read_frame
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        parts: list[Any] = list(key) if isinstance(key, tuple) else [key]
        parts = parts or [slice(None)]
        if any(part is None for part in parts):
            return np.asarray(np.asarray(self)[key])
        at = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
        if at is not None:
            rest = parts[at + 1 :]
            parts[at:] = [slice(None)] * (len(self.shape) - at - len(rest)) + rest
        t, *inner = parts
        if isinstance(t, (int, np.integer)):
            index = int(t) + (self.shape[0] if t < 0 else 0)
            if not 0 <= index < self.shape[0]:
                raise IndexError(f"frame {int(t)} of a {self.shape[0]}-frame movie")
            return np.asarray(self._read(index))[tuple(inner)]
        wanted = np.arange(self.shape[0])[t]  # as numpy reads slices, lists and masks
        if wanted.ndim == 0:
            return self[(int(wanted), *inner)]
        if not wanted.size:
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *inner)]
        return np.stack([self[(i, *inner)] for i in wanted])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


@dataclass(frozen=True)
class Axis:
    """One calibrated axis: position of index ``i`` is ``offset + i * scale`` in ``unit``."""

    name: str
    unit: str | None = None
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        # A numpy number is written as "np.float64(0.04)", which nothing can read.
        for name in ("scale", "offset"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def sliced(self, start: int, step: int = 1) -> Axis:
        """Return the axis after ``[start::step]``."""
        return replace(self, offset=self.offset + start * self.scale, scale=self.scale * step)


@dataclass(frozen=True)
class Movie:
    """A movie as the microscope meant it.

    Attributes
    ----------
    data
        ``(t, y, x)``, lazy: nothing is read until a frame is asked for.
    axes
        The calibrated t, y and x axes. A unit of None means "not calibrated".
    dose_e_per_A2
        Electron dose per frame, e⁻/Å², where known.
    intensity_unit
        Unit of the pixel values ("counts", "e-", ...), where known.
    name
        A short name for figures and reports (the file's stem).
    source
        The file or folder it was read from.
    metadata
        The file's own metadata, as a nested mapping of plain values.
    history
        What was done since the file was recorded, oldest first.
    """

    data: Frames
    axes: tuple[Axis, Axis, Axis] = (Axis("t"), Axis("y"), Axis("x"))
    dose_e_per_A2: float | None = None
    intensity_unit: str | None = None
    name: str = "movie"
    source: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.data.shape)
        if len(shape) != 3:
            raise ShineError(
                f"{self.name}: a movie has the shape (t, y, x), this array has the shape {shape}."
            )
        if min(shape) < 1:
            raise ShineError(f"{self.name}: the movie is empty (shape {shape}).")
        kind = np.dtype(self.data.dtype)
        if kind.kind not in "buif":
            raise ShineError(
                f"{self.name}: pixel values must be real numbers, not {kind}"
                + (" (colour or complex data)." if kind.kind in "cV" else ".")
            )
        if self.dose_e_per_A2 is not None:
            object.__setattr__(self, "dose_e_per_A2", float(self.dose_e_per_A2))

    @classmethod
    def from_array(
        cls,
        array: Any,
        *,
        pixel_size_nm: float | None = None,
        frame_time_s: float | None = None,
        name: str = "array",
        **more: Any,
    ) -> Movie:
        """Wrap a ``(t, y, x)`` array; a single ``(y, x)`` image becomes a one-frame movie.

        Raises
        ------
        ShineError
            If the array is not two- or three-dimensional and real.
        """
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        if len(array.shape) == 2:
            array = array[None]
        movie = cls(array, name=name, **more)
        return movie.calibrated(pixel_size_nm=pixel_size_nm, frame_time_s=frame_time_s)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(t, y, x)`` in frames and pixels."""
        t, y, x = self.data.shape
        return int(t), int(y), int(x)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored pixel values."""
        return np.dtype(self.data.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def frame(self, index: int) -> np.ndarray:
        """Return one ``(y, x)`` frame in the stored type."""
        return np.asarray(self.data[index])

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Yield ``(y, x)`` frames one at a time (all of them by default)."""
        for index in range(len(self)) if indices is None else indices:
            yield self.frame(int(index))

    @property
    def pixel_size_nm(self) -> float | None:
        """Width of a pixel in nm, or None where the x axis is not a calibrated length."""
        return _converted(self.axes[2], _NM_PER_UNIT)

    @property
    def frame_time_s(self) -> float | None:
        """Time from frame to frame in s, or None where the t axis is not a calibrated time."""
        return _converted(self.axes[0], _S_PER_UNIT)

    def calibrated(
        self, *, pixel_size_nm: float | None = None, frame_time_s: float | None = None
    ) -> Movie:
        """Return the movie with its pixel size (nm) and frame time (s) replaced where given."""
        t, y, x = self.axes
        if frame_time_s is not None:
            t = _rescaled(t, "s", frame_time_s, "frame time")
        if pixel_size_nm is not None:
            y = _rescaled(y, "nm", pixel_size_nm, "pixel size")
            x = _rescaled(x, "nm", pixel_size_nm, "pixel size")
        return replace(self, axes=(t, y, x))

    def select(
        self,
        frames: slice | None = None,
        crop: tuple[slice, slice] | None = None,
    ) -> Movie:
        """Return a lazy sub-movie, its calibration corrected for the offset and the step.

        Parameters
        ----------
        frames
            As in ``movie[a:b:step]``; the step must be positive.
        crop
            ``(y, x)`` slices without a step.

        Raises
        ------
        ShineError
            If nothing is left, or a slice lies outside the movie.
        """
        n, height, width = self.shape
        frames = frames or slice(None)
        rows, columns = crop or (slice(None), slice(None))
        if (frames.step or 1) < 1:
            raise ShineError("--frames a:b:step needs a positive step.")
        for given, size, what in ((rows, height, "rows"), (columns, width, "columns")):
            if (given.stop or 0) > size or (given.start or 0) >= size or (given.step or 1) != 1:
                raise ShineError(
                    f"{self.name}: crop {what} {given.start}:{given.stop} outside 0:{size}."
                )
        picked = range(*frames.indices(n))
        y0, y1, _ = rows.indices(height)
        x0, x1, _ = columns.indices(width)
        if not picked or y1 <= y0 or x1 <= x0:
            raise ShineError(
                f"{self.name}: the selection is empty (the movie has {n} frames of "
                f"{height}×{width})."
            )
        data = self.data

        def read_frame(i: int) -> np.ndarray:
            return np.asarray(data[picked[i]])[y0:y1, x0:x1]

        t, y, x = self.axes
        words = []
        if picked != range(n):
            words.append(f"frames {picked.start}:{picked.stop}:{picked.step}")
        if (y0, y1, x0, x1) != (0, height, 0, width):
            words.append(f"crop {y0}:{y1},{x0}:{x1}")
        return replace(
            self,
            data=LazyFrames(read_frame, (len(picked), y1 - y0, x1 - x0), self.dtype),
            axes=(t.sliced(picked.start, picked.step), y.sliced(y0), x.sliced(x0)),
            history=(*self.history, "selected " + ", ".join(words)) if words else self.history,
        )

    def with_data(self, data: Frames, *, did: str) -> Movie:
        """Return the movie with new pixel values of the same frame size, ``did`` in its history."""
        return replace(self, data=data, history=(*self.history, did))


def _converted(axis: Axis, table: dict[str, float]) -> float | None:
    factor = table.get((axis.unit or "").strip().lower())
    return None if factor is None else abs(axis.scale) * factor


def _rescaled(axis: Axis, unit: str, scale: float, what: str) -> Axis:
    if not np.isfinite(scale) or scale <= 0:
        raise ShineError(f"The {what} must be a positive number, not {scale}.")
    index = axis.offset / axis.scale if axis.scale else 0.0
    return Axis(axis.name, unit, float(scale), float(index * scale))
