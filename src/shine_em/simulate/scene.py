"""`Scene`: a simulated movie with everything that is known about it, and how it is saved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..drafts import write_together
from ..errors import ShineError
from ..movie import Axis, Movie

__all__ = ["Scene", "check_numbers", "check_plan", "refuse_existing", "save", "simulated_movie"]

_FILES = {
    "noisy": "noisy.tif",
    "truth": "truth.tif",
    "unblurred": "unblurred.tif",
    "parameters": "parameters.json",
    "coordinates": "coordinates.npz",
}


@dataclass(frozen=True)
class Scene:
    """A simulated movie together with everything that is known about it.

    Attributes
    ----------
    name
        The scene's name in `shine_em.simulate.SCENES`.
    noisy
        What the camera or scan records: uint16 counts, or float32 where the detector writes such.
    truth
        The expected values, float32: ``noisy`` without its noise, blurred by the detector alike.
        The mean of endlessly many recordings of the same scene.
    parameters
        All that is needed to repeat the simulation and what follows from it, as plain values.
    unblurred
        The expected values of a detector without point spread, float32, where they differ.
    coordinates
        Exact positions, diameters, atoms ... by name, with the unit in the name. Pixel positions
        are y then x; pixel centres lie at whole numbers.
    """

    name: str
    noisy: Movie
    truth: Movie
    parameters: dict[str, Any]
    unblurred: Movie | None = None
    coordinates: dict[str, np.ndarray] = field(default_factory=dict)


def simulated_movie(
    data: np.ndarray,
    *,
    name: str,
    did: str,
    parameters: Mapping[str, Any],
    pixel_size_nm: float,
    frame_time_s: float,
    dose_e_per_A2: float | None = None,
    intensity_unit: str = "counts",
) -> Movie:
    """Wrap a simulated ``(t, y, x)`` array with its calibration, parameters and history.

    Parameters
    ----------
    data
        ``(t, y, x)``.
    name
        ``"noisy"``, ``"truth"`` or ``"unblurred"``.
    did
        How these values came about, in a few words.
    parameters
        The scene's; ``"scene"`` and ``"seed"`` appear in the movie's history.
    pixel_size_nm, frame_time_s
        Calibration.
    dose_e_per_A2
        Incident electrons per Å² and frame.
    intensity_unit
        Unit of the pixel values.
    """
    return Movie(
        data,
        axes=(
            Axis("t", "s", frame_time_s),
            Axis("y", "nm", pixel_size_nm),
            Axis("x", "nm", pixel_size_nm),
        ),
        dose_e_per_A2=dose_e_per_A2,
        intensity_unit=intensity_unit,
        name=name,
        metadata={"simulation": dict(parameters)},
        history=(f"simulated {parameters['scene']}, seed {parameters['seed']}: {did}",),
    )


def check_plan(
    *, frames: int, size: int | tuple[int, int], seed: int, workers: int | None = None
) -> tuple[int, int]:
    """Check what all scenes share and return the height and width of a frame.

    Raises
    ------
    ShineError
        If a value is impossible; the message names it.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = (int, np.integer)
    if len(sides) != 2 or not all(isinstance(n, whole) and n >= 1 for n in sides):
        raise ShineError(f"size must be one or two whole numbers of at least 1 pixel, not {size}.")
    if not (isinstance(frames, whole) and frames >= 1):
        raise ShineError(f"frames must be a whole number of at least 1, not {frames}.")
    if not (isinstance(seed, whole) and seed >= 0):
        raise ShineError(f"seed must be a whole number, 0 or positive, not {seed}.")
    if workers is not None and not (isinstance(workers, whole) and workers >= 1):
        raise ShineError(f"workers must be a whole number of at least 1, not {workers}.")
    return int(sides[0]), int(sides[1])


def check_numbers(
    values: Mapping[str, Any],
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    finite: Iterable[str] = (),
) -> None:
    """Check physical parameters; the arguments list names in ``values``.

    Raises
    ------
    ShineError
        If a value is not a finite number of the kind asked for; the message names it.
    """
    kinds: tuple[tuple[Iterable[str], Callable[[float], bool], str], ...] = (
        (positive, lambda v: v > 0, "a positive number"),
        (not_negative, lambda v: v >= 0, "0 or a positive number"),
        (finite, lambda _: True, "a number"),
    )
    for names, fits, what in kinds:
        for name in names:
            value = values[name]
            try:
                good = math.isfinite(value) and fits(value)
            except TypeError:
                good = False
            if not good:
                raise ShineError(f"{name} must be {what}, not {value}.")


def refuse_existing(directory: str | os.PathLike[str]) -> None:
    """Raise `ShineError` where a folder already holds a scene's file, before hours of work."""
    folder = Path(directory)
    present = [name for name in _FILES.values() if (folder / name).exists()]
    if present:
        raise ShineError(
            f"{folder} already holds {', '.join(present)}. "
            "Choose another folder, or ask for overwriting."
        )


def save(
    scene: Scene, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Path]:
    """Write a scene's movies, parameters and coordinates.

    Parameters
    ----------
    scene
        What a function of `shine_em.simulate.SCENES` returned.
    directory
        Made where it does not exist.
    overwrite
        Replace the files of an earlier scene. One of its files that this scene does not have
        (``unblurred.tif``, ``coordinates.npz``) is removed, as it would belong to another movie.

    Returns
    -------
    dict
        ``"noisy"``, ``"truth"``, ``"parameters"`` and, where the scene has them, ``"unblurred"``
        and ``"coordinates"`` with the path of each file.

    Raises
    ------
    ShineError
        If a file exists already (then nothing is written), or cannot be written.
    """
    from ..io import write

    folder = Path(directory)
    if not overwrite:
        refuse_existing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShineError(f"{folder}: cannot make this folder ({error.strerror}).") from error
    text = json.dumps(scene.parameters, indent=2, ensure_ascii=False) + "\n"
    arrays: dict[str, Any] = dict(scene.coordinates)
    makers: dict[str, Callable[[Path], object]] = {
        "parameters": lambda draft: draft.write_text(text, "utf-8")
    }
    if arrays:
        makers["coordinates"] = lambda draft: np.savez_compressed(draft, **arrays)
    # The noisy movie comes last: where it is there, all that lies beside it belongs to it.
    movies = {"unblurred": scene.unblurred, "truth": scene.truth, "noisy": scene.noisy}
    for name, movie in movies.items():
        if movie is not None:
            makers[name] = partial(write, movie, dtype="same")
    paths = {name: folder / _FILES[name] for name in makers}
    write_together({paths[name]: make for name, make in makers.items()})
    for name in _FILES.keys() - paths.keys():
        (folder / _FILES[name]).unlink(missing_ok=True)
    return {name: paths[name] for name in _FILES if name in paths}
