"""MRC stacks (MRC2014 and its IMOD dialect)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ..errors import ShineError
from ..movie import Axis, Movie
from .raw import human_size, raw_frames, require_file
from .units import axis, plain

__all__ = ["MODES", "OWN_MARK", "read_mrc"]

OWN_MARK = "shine-em"  # the first word of the first label of files that `write` made

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex numbers", 4: "complex numbers", 16: "colour (RGB)", 101: "4-bit packed values",
}  # fmt: skip
_HEADER_BYTES = 1024
_IMOD_STAMP = 1146047817


def read_mrc(path: Path, *, signed: bool | None = None) -> Movie:
    """Read an MRC stack, one frame at a time.

    Mode 0 holds signed bytes in MRC2014. Files that carry IMOD's stamp say in a flag whether
    theirs are signed, and are believed. ``signed`` overrides both.

    Parameters
    ----------
    path
        The file.
    signed
        Whether the bytes of mode 0 are signed.

    Raises
    ------
    ShineError
        If the file is no MRC file, truncated, of a mode that is no movie, or if ``signed`` is
        given for a mode that leaves no choice.

    References
    ----------
    Cheng et al., J. Struct. Biol. 192 (2015) 146: MRC2014; IMOD's mrc_format.txt for its stamp.
    """
    size = require_file(path)
    if size < _HEADER_BYTES:
        raise ShineError(f"{path}: too short for an MRC file ({size} bytes); is it truncated?")
    header, order = _header(path)
    nx, ny, nz, mode = (int(header[key]) for key in ("nx", "ny", "nz", "mode"))
    if mode in _REFUSED:
        raise ShineError(
            f"{path}: MRC mode {mode} holds {_REFUSED[mode]}; a movie is made of real values "
            f"(mode {', '.join(map(str, MODES))}). Convert it first, for example with newstack."
        )
    stored = np.dtype(order + MODES[mode])
    if mode == 0:
        if signed is None:
            signed = int(header["imod_stamp"]) != _IMOD_STAMP or bool(header["imod_flags"] & 1)
        stored = np.dtype("i1" if signed else "u1")
    elif signed is not None:
        raise ShineError(f"{path}: --signed speaks of 8-bit data (mode 0), this is mode {mode}.")
    offset = _HEADER_BYTES + int(header["nsymbt"])
    needed = offset + nx * ny * nz * stored.itemsize
    if needed > size:
        whole = max(0, size - offset) // (nx * ny * stored.itemsize)
        raise ShineError(
            f"{path}: the header announces {nz} frames of {ny}×{nx} ({human_size(needed)}), the "
            f"file holds {human_size(size)}, {whole} whole frames: it is truncated or no MRC file."
        )
    labels = _labels(header)
    metadata = _metadata(header, labels)
    own = _own_lines(labels)
    known = dict(word.split("=", 1) for word in own[0].split() if "=" in word) if own else {}
    history = own[1:]
    if (note := _kind(path, header)) and note not in history:
        history.append(note)
    # Programs differ in what they mean by the origin: only our own is believed.
    y0, x0 = (float(header[name]) / 10 if own else 0.0 for name in ("origin_y", "origin_x"))
    movie = Movie(
        raw_frames(path, stored, (nz, ny, nx), offset),
        axes=(
            axis("t", "s", known.get("frame_time_s"), known.get("t_offset_s", 0.0)),
            _length(header, "y", int(header["my"]), y0),
            _length(header, "x", int(header["mx"]), x0),
        ),
        dose_e_per_A2=_positive(known.get("dose_e_per_A2")),
        intensity_unit=unquote(known.get("intensity_unit", "")) or None,
        name=path.stem,
        source=path,
        metadata=metadata,
        history=tuple(history),
    )  # fmt: skip
    return _with_camera_info(movie, path)


def _header(path: Path) -> tuple[Any, str]:
    """Return the header and its byte order, told by which order makes sense of size and mode."""
    with path.open("rb") as file:
        first = file.read(_HEADER_BYTES)
    sensible = []
    for order in "<>":
        header = np.frombuffer(first, _header_dtype(order))[0]
        dimensions = [int(header[key]) for key in ("nx", "ny", "nz")]
        known = int(header["mode"]) in MODES or int(header["mode"]) in _REFUSED
        if known and min(dimensions) > 0 and int(header["nsymbt"]) >= 0:
            sensible.append((math.prod(dimensions), header, order))
    if not sensible:
        raise ShineError(
            f"{path}: not an MRC file (its first bytes are {first[:12]!r}; no sensible size and "
            "mode)."
        )
    # Mode 0 reads alike both ways. The wrong order then makes of any size an absurd one.
    _, header, order = min(sensible, key=lambda one: one[0])
    return header, order


def _kind(path: Path, header: Any) -> str:
    """Return what to tell of a file that is no plain stack of several images; refuse 4-D ones."""
    nz, mz, space_group = (int(header[key]) for key in ("nz", "mz", "ispg"))
    if space_group == 401 and 1 < mz < nz:
        raise ShineError(
            f"{path}: holds {nz // mz} volumes of {mz} slices each, more than one movie. Save one "
            "(t, y, x) movie first and denoise that."
        )
    if nz == 1:
        return "the file holds a single image"
    return "the volume's slices are read as frames" if space_group == 1 else ""


def _header_dtype(order: str) -> np.dtype[Any]:
    i4, f4 = order + "i4", order + "f4"
    return np.dtype(
        {
            "names": ["nx", "ny", "nz", "mode", "mx", "my", "mz", "x", "y", "z", "ispg", "nsymbt",
                      "exttyp", "nversion", "imod_stamp", "imod_flags", "origin_x", "origin_y",
                      "nlabl", "label"],
            "formats": [i4] * 7 + [f4] * 3 + [i4, i4, "S4"] + [i4] * 3 + [f4, f4, i4, "(10,)S80"],
            "offsets": [0, 4, 8, 12, 28, 32, 36, 40, 44, 48, 88, 92, 104, 108, 152, 156, 196, 200,
                        220, 224],
            "itemsize": _HEADER_BYTES,
        }
    )  # fmt: skip


def _length(header: Any, name: str, sampling: int, offset_nm: float) -> Axis:
    """Pixel size from the cell (Å) over its sampling; a cell of 0 or less means unknown."""
    cell = float(header[name])
    if sampling <= 0 or not 0 < cell < float("inf"):
        return Axis(name)
    # The cell is float32: take the shortest number it can stand for (0.317, not 0.31700000167).
    candidates = (float(f"{cell / sampling:.{digits}g}") for digits in range(1, 10))
    size = next(
        (c for c in candidates if np.float32(c * sampling) == header[name]), cell / sampling
    )
    return axis(name, "nm", float(f"{size / 10:.12g}"), offset_nm)


def _labels(header: Any) -> list[str]:
    count = min(max(int(header["nlabl"]), 0), 10)
    return [line.decode("latin-1").rstrip(" \x00") for line in header["label"][:count]]


def _own_lines(labels: list[str]) -> list[str]:
    """Return the lines that `write` left in the labels, the first one `OWN_MARK`'s, or nothing."""
    lines: list[str] = []
    for label in labels if labels and labels[0].split()[:1] == [OWN_MARK] else ():
        if label.startswith(" ") and lines:
            lines[-1] += label[1:]  # a line that was too long for one label goes on
        else:
            lines.append(label)
    return lines


def _metadata(header: Any, labels: list[str]) -> dict[str, Any]:
    keys = ("nx", "ny", "nz", "mode", "mx", "my", "mz", "ispg", "nsymbt", "exttyp", "nversion")
    found = {key: plain(header[key]) for key in keys}
    found["cella_A"] = [float(header[key]) for key in ("x", "y", "z")]
    return {"format": "MRC", "header": found, "labels": labels}


def _with_camera_info(movie: Movie, path: Path) -> Movie:
    """Add what Direct Electron's server wrote beside the movie, in ``<name>_info.txt``."""
    stem = re.sub(r"_movie$", "", path.stem)
    sidecars = [path.with_name(f"{name}_info.txt") for name in (path.stem, stem)]
    sidecar = next((file for file in sidecars if file.is_file()), None)
    if sidecar is None:
        return movie
    lines = sidecar.read_text("utf-8", "replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    t, y, x = movie.axes
    history = movie.history
    # What the file itself says goes first: a result may hold every second frame of a movie, and
    # lie beside it.
    if t.unit is None and (rate := _positive(info.get("Frames Per Second"))) is not None:
        t = axis("t", "s", 1 / rate)
    if info.get("Scan - Enable") == "Enable":
        # The frames are diffraction patterns: the specimen pixel size is not theirs.
        note = "the camera scanned: the frames are diffraction patterns (4D-STEM)"
        history = history if note in history else (*history, note)
    elif y.unit is None and x.unit is None:
        y, x = (
            axis(
                name, "nm", _positive(info.get(f"Specimen Pixel Size {name.upper()} (nanometers)"))
            )
            for name in "yx"
        )
    metadata = {**movie.metadata, "camera": info}
    return replace(movie, axes=(t, y, x), metadata=metadata, history=history)


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
