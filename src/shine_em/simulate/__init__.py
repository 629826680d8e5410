"""Simulated movies whose truth is known, for demonstrations, tests and benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import ShineError
from .au_growth import Scene, au_growth

__all__ = ["SCENES", "Scene", "au_growth", "save"]

SCENES: dict[str, Callable[..., Scene]] = {"au-growth": au_growth}


def save(
    scene: Scene, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Path]:
    """Write a scene's movies and parameters.

    Parameters
    ----------
    scene
        What a function of `SCENES` returned.
    directory
        Made where it does not exist.
    overwrite
        Replace files of the same names.

    Returns
    -------
    dict
        ``"noisy"``, ``"truth"``, ``"unblurred"`` and ``"parameters"`` with the path of each file.

    Raises
    ------
    ShineError
        If a file exists already (then nothing is written), or cannot be written.
    """
    from ..io import write

    folder = Path(directory)
    names = ("noisy.tif", "truth.tif", "unblurred.tif", "parameters.json")
    paths = {Path(name).stem: folder / name for name in names}
    present = [path.name for path in paths.values() if path.exists()]
    if present and not overwrite:
        raise ShineError(
            f"{folder} already holds {', '.join(present)}. "
            "Choose another folder, or ask for overwriting."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShineError(f"{folder}: cannot make this folder ({error.strerror}).") from error
    for name in ("noisy", "truth", "unblurred"):
        write(getattr(scene, name), paths[name], dtype="same", overwrite=overwrite)
    text = json.dumps(scene.parameters, indent=2, ensure_ascii=False) + "\n"
    draft = folder / f".parameters.{os.getpid()}.json"
    try:
        draft.write_text(text, "utf-8")
        draft.replace(paths["parameters"])
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ShineError(f"{paths['parameters']}: cannot write ({error.strerror}).") from error
    return paths
