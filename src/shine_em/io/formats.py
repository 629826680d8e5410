"""The formats that are written: each a sink that takes one frame after the other."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from ..errors import ShineError
from ..movie import Axis, Movie
from .mrc import MODES, OWN_MARK
from .rosetta import rosettasciio
from .tiff import INFO_MARK

__all__ = ["SINKS"]

Shape = tuple[int, int, int]
_CLASSIC_TIFF_BYTES = 2**32 - 2**22  # offsets are 32 bits; the pages' directories follow the data


class _Raw:
    """Frames appended after a header, in native byte order unless told otherwise."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any]) -> None:
        self._file: BinaryIO = path.open("r+b")
        self._file.seek(offset)
        self.dtype = dtype

    def append(self, frame: np.ndarray) -> None:
        self._file.write(frame.astype(self.dtype, copy=False).data)

    def close(self, *, complete: bool) -> None:
        self._file.close()


class _Npy(_Raw):
    """`numpy.save`'s format: pixel values and nothing else."""

    def __init__(self, path: Path, like: Movie, shape: Shape, dtype: np.dtype[Any]) -> None:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            offset = file.tell()
        super().__init__(path, offset, dtype)


class _Tiff(_Raw):
    """TIFF with ImageJ's description; classic below 4 GB, which Fiji opens with its calibration.

    Past 4 GB, and for types that ImageJ lacks, the file has the same description: Bio-Formats and
    other readers open it, and `read` finds the calibration.
    """

    def __init__(self, path: Path, like: Movie, shape: Shape, dtype: np.dtype[Any]) -> None:
        import tifffile

        stored = np.dtype("u1") if dtype.kind == "b" else dtype
        stored = stored.newbyteorder("<")
        n_bytes = int(np.prod(shape)) * stored.itemsize + 400 * shape[0]
        info = f"{INFO_MARK}{json.dumps(_record(like))}"
        _, y, x = like.axes
        with tifffile.TiffWriter(path, bigtiff=n_bytes > _CLASSIC_TIFF_BYTES, byteorder="<") as tif:
            place = tif.write(
                None,
                shape=shape,
                dtype=stored,
                photometric="minisblack",
                description=_imagej_text(like, shape[0]),
                metadata=None,
                software="shine-em",
                resolution=(_resolution(x), _resolution(y)),
                resolutionunit=1,
                extratags=tifffile.imagej_metadata_tag({"Info": info}, "<"),
                returnoffset=True,
            )
        assert place is not None
        super().__init__(path, place[0], stored)


def _resolution(one: Axis) -> tuple[int, int]:
    """Pixels per unit as TIFF's ratio of two 32-bit numbers, to better than 1 part in 10⁸."""
    if one.unit is None:
        return (1, 1)
    exact = 1 / Fraction(abs(one.scale))
    limit = 2**32 - 1
    bound = limit if exact <= 1 else max(1, int(limit / exact))
    ratio = exact.limit_denominator(bound)
    if ratio.numerator == 0:
        ratio = Fraction(1, limit)
    return min(ratio.numerator, limit), ratio.denominator


def _imagej_text(like: Movie, n: int) -> str:
    """ImageJ's description: its keys, non-ASCII characters as Java's escapes."""
    t, y, x = like.axes
    lines = ["ImageJ=1.54f", f"images={n}", f"frames={n}", "hyperstack=true", "mode=grayscale"]
    if x.unit is not None:
        lines.append(f"unit={_imagej_unit(x.unit)}")
    if y.unit != x.unit:  # without a unit of its own, y would take that of x
        lines.append(f"yunit={_imagej_unit(y.unit or 'pixel')}")
    if t.unit is not None:
        lines.append(f"finterval={abs(t.scale)!r}")
        if t.unit != "s":
            lines.append(f"tunit={_escaped(t.unit)}")
    for key, one in (("xorigin", x), ("yorigin", y)):
        if one.unit is not None and one.offset:
            # Sizes are positive here: an axis that runs backwards is mirrored, offset included.
            lines.append(f"{key}={-one.offset / one.scale!r}")
    lines.append("loop=false")
    return "\n".join(lines) + "\n"


def _imagej_unit(unit: str) -> str:
    return "micron" if unit == "µm" else _escaped(unit)


def _escaped(text: str) -> str:
    return "".join(c if ord(c) < 128 else f"\\u{ord(c):04X}" for c in text)


def _record(like: Movie) -> dict[str, Any]:
    """Return what only our own reader will look for."""
    record = {
        "history": list(like.history),
        "dose_e_per_A2": like.dose_e_per_A2,
        "intensity_unit": like.intensity_unit,
        "t_offset": like.axes[0].offset,
    }
    return {key: value for key, value in record.items() if value}


# MRC2014 has no unsigned bytes: they are widened to mode 6.
_MRC_MODES = {"b1": 0, "i1": 0, "i2": 1, "f4": 2, "u1": 6, "u2": 6, "f2": 12}


class _Mrc(_Raw):
    """MRC2014 image stack; its statistics are filled in at the end."""

    def __init__(self, path: Path, like: Movie, shape: Shape, dtype: np.dtype[Any]) -> None:
        kind = dtype.str[1:]
        if kind not in _MRC_MODES:
            raise ShineError(
                f"{path}: MRC files cannot hold {dtype} values; write float32, or .tif or .zarr."
            )
        self._mode = _MRC_MODES[kind]
        self._path, self._like, self._shape = path, like, shape
        self._count, self._sums = 0, np.zeros(2)
        self._range = [np.inf, -np.inf]
        path.write_bytes(self._header())
        super().__init__(path, 1024, np.dtype("<" + MODES[self._mode]))

    def append(self, frame: np.ndarray) -> None:
        super().append(frame)
        # The header's statistics are those of the finite pixels: one NaN would spoil them all.
        values = frame[np.isfinite(frame)].astype(np.float64)
        if values.size:
            self._count += values.size
            self._sums += values.sum(), np.square(values).sum()
            self._range = [min(self._range[0], values.min()), max(self._range[1], values.max())]

    def close(self, *, complete: bool) -> None:
        try:
            if complete and self._count:
                mean = self._sums[0] / self._count
                rms = np.sqrt(max(0.0, self._sums[1] / self._count - mean**2))
                self._file.seek(0)
                self._file.write(self._header(self._range[0], self._range[1], mean, rms))
        finally:
            super().close(complete=complete)

    def _header(self, low: float = 0, high: float = -1, mean: float = -2, rms: float = -1) -> bytes:
        """Return the 1024 bytes; the default statistics are MRC2014's way of saying unknown."""
        from mrcfile.dtypes import HEADER_DTYPE

        header = np.zeros((), HEADER_DTYPE)
        n, height, width = self._shape
        header["nx"], header["ny"], header["nz"], header["mode"] = width, height, n, self._mode
        header["mx"], header["my"], header["mz"] = width, height, 1
        (x_size, x_start), (y_size, y_start) = (_angstrom(self._like.axes[i]) for i in (2, 1))
        header["cella"] = (x_size * width, y_size * height, x_size)
        header["origin"] = (x_start, y_start, 0)
        header["cellb"] = (90, 90, 90)
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = low, high, mean, rms
        header["map"], header["nversion"], header["machst"] = b"MAP ", 20141, (0x44, 0x44, 0, 0)
        labels = self._labels()
        header["nlabl"] = len(labels)
        for i, label in enumerate(labels):
            header["label"][i] = label
        return header.tobytes()

    def _labels(self) -> list[bytes]:
        t, time, dose = self._like.axes[0], self._like.frame_time_s, self._like.dose_e_per_A2
        first = OWN_MARK
        if time:
            first += f" frame_time_s={time!r}"
            first += f" t_offset_s={t.offset / t.scale * time!r}" if t.offset else ""
        if dose:
            first += f" dose_e_per_A2={dose!r}"
        if self._like.intensity_unit:  # one ASCII word, whatever it is
            first += f" intensity_unit={quote(self._like.intensity_unit)}"
        labels = _wrapped(first)
        history: list[bytes] = []
        for line in reversed(self._like.history):
            # Where there are too many lines, the last ones tell most: that it was denoised.
            if len(labels) + len(wrapped := _wrapped(line)) + len(history) > 10:
                break
            history = wrapped + history
        return labels + history


def _wrapped(line: str) -> list[bytes]:
    """Return a line as labels of 80 ASCII characters; those that go on begin with one more space.

    A label may begin with spaces and not end with one: programs strip what ends it.
    """
    rest = " ".join(line.encode("ascii", "replace").decode().split())
    labels: list[bytes] = []
    while rest:
        room = 79 if labels else 80
        cut = len(rest)
        if cut > room:
            cut = rest.rfind(" ", 1, room + 1)
            cut = room if cut < 1 else cut  # within a word only where it is longer than a label
        labels.append((" " if labels else "").encode() + rest[:cut].encode())
        rest = rest[cut:]
    return labels


def _angstrom(one: Axis) -> tuple[float, float]:
    """Pixel size and offset in Å, or 0, MRC's way of saying unknown (reciprocal units included).

    MRC's pixel sizes are positive: an axis that runs backwards is mirrored, offset included.
    """
    bare = Movie(np.zeros((1, 1, 1)), axes=(Axis("t"), Axis("y"), one)).pixel_size_nm
    return (bare * 10, one.offset / one.scale * bare * 10) if bare else (0.0, 0.0)


_OME_UNITS = {
    "nm": "nanometer", "Å": "angstrom", "µm": "micrometer", "pm": "picometer", "mm": "millimeter",
    "cm": "centimeter", "s": "second", "ms": "millisecond", "µs": "microsecond", "ns": "nanosecond",
    "min": "minute", "h": "hour",
}  # fmt: skip


class _Zarr:
    """OME-Zarr 0.5 (zarr 3): one level, one chunk per frame, axes t, y, x."""

    def __init__(self, path: Path, like: Movie, shape: Shape, dtype: np.dtype[Any]) -> None:
        import zarr

        axes = []
        for one, kind in zip(like.axes, ("time", "space", "space"), strict=True):
            entry = {"name": one.name if one.name in "tyx" else "", "type": kind}
            if one.unit is not None:
                entry["unit"] = _OME_UNITS.get(one.unit, one.unit)
            axes.append(entry)
        for entry, name in zip(axes, "tyx", strict=True):
            entry["name"] = name
        calibrated = [one if one.unit is not None else Axis(one.name) for one in like.axes]
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [float(one.scale) for one in calibrated]}
        ]
        if any(one.offset for one in calibrated):
            steps.append(
                {"type": "translation", "translation": [float(one.offset) for one in calibrated]}
            )
        group = zarr.open_group(path, mode="w", zarr_format=3)
        group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [
                {
                    "name": like.name,
                    "axes": axes,
                    "datasets": [{"path": "0", "coordinateTransformations": steps}],
                }
            ],
        }
        record = _record(like)
        record.pop("t_offset", None)
        group.attrs["shine_em"] = record
        self._array = group.create_array(
            "0", shape=shape, chunks=(1, *shape[1:]), dtype=dtype, dimension_names=("t", "y", "x")
        )
        self._next = 0

    def append(self, frame: np.ndarray) -> None:
        self._array[self._next] = frame
        self._next += 1

    def close(self, *, complete: bool) -> None:
        pass


class _Hspy:
    """HyperSpy's HDF5 file: RosettaSciIO writes the frame of it, h5py the pixels."""

    def __init__(self, path: Path, like: Movie, shape: Shape, dtype: np.dtype[Any]) -> None:
        writer = rosettasciio("hspy", path)
        import h5py

        title = like.name.replace("/", "-") or "movie"
        with h5py.File(path, "w") as file:
            file.create_dataset(
                f"Experiments/{title}/data",
                shape,
                dtype,
                chunks=(1, *shape[1:]),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer.file_writer(
                str(path), self._signal(like, shape, dtype, title), write_dataset=False, mode="a"
            )
        self._file = h5py.File(path, "r+")
        self._data = self._file[f"Experiments/{title}/data"]
        self._next = 0

    def append(self, frame: np.ndarray) -> None:
        self._data[self._next] = frame
        self._next += 1

    def close(self, *, complete: bool) -> None:
        self._file.close()

    @staticmethod
    def _signal(like: Movie, shape: Shape, dtype: np.dtype[Any], title: str) -> dict[str, Any]:
        axes = [
            {
                "_type": "UniformDataAxis",
                "name": one.name,
                "units": one.unit,
                "navigate": i == 0,
                "is_binned": False,
                "size": shape[i],
                "scale": float(one.scale if one.unit is not None else 1.0),
                "offset": float(one.offset if one.unit is not None else 0.0),
            }
            for i, one in enumerate(like.axes)
        ]
        record = _record(like)
        record.pop("t_offset", None)
        if like.history:
            record["history"] = "\n".join(like.history)  # RosettaSciIO stores no list of strings
        return {
            "data": np.broadcast_to(np.zeros((), dtype), shape),
            "axes": axes,
            "metadata": {
                "General": {"title": title},
                "Signal": {"signal_type": "", "quantity": like.intensity_unit or ""},
                "shine_em": record,
            },
            "original_metadata": {},
            "attributes": {"_lazy": False, "ragged": False},
            # The package whose classes shall hold the data when HyperSpy loads the file.
            "package_info": {"package": "hyperspy", "package_version": ""},
            "tmp_parameters": {},
            "learning_results": {},
            "models": {},
        }


SINKS: dict[str, Callable[[Path, Movie, Shape, np.dtype[Any]], Any]] = {
    ".tif": _Tiff,
    ".tiff": _Tiff,
    ".mrc": _Mrc,
    ".mrcs": _Mrc,
    ".zarr": _Zarr,
    ".npy": _Npy,
    ".hspy": _Hspy,
}
