"""The movies of a benchmark: folders of simulated scenes, movie files, scenes to simulate now."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from .errors import ShineError

__all__ = ["Case", "find_movies"]


@dataclass(frozen=True)
class Case:
    """A movie, with its truth where there is one.

    Attributes
    ----------
    name
        Unique within the benchmark.
    noisy, truth
        Their files.
    fingerprint
        Hash of the pixels of both.
    """

    name: str
    noisy: Path
    truth: Path | None
    fingerprint: str


def find_movies(
    movies: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    frames: int,
    size: int,
    seed: int,
    tell: Callable[[str, str, float], None],
) -> list[Case]:
    """Find the movies, simulating those that are named as scenes.

    Parameters
    ----------
    movies
        See `shine_em.benchmark.run`.
    folder
        Of the benchmark; simulated scenes go to its ``scenes``.
    frames, size, seed
        Of scenes that are simulated.
    tell
        Called as ``tell(name, "simulating", fraction)``.

    Raises
    ------
    ShineError
        If a movie is neither there nor a scene, or cannot be read.
    """
    from .io.folder import is_pattern
    from .simulate import SCENES

    if not movies:
        raise ShineError(f"Give at least one movie, or a scene: {', '.join(SCENES)}.")
    places: list[tuple[str, Path, Path | None]] = []
    for given in movies:
        path = Path(given).expanduser()
        if (path / "noisy.tif").is_file():
            places.append((path.resolve().name, path / "noisy.tif", path / "truth.tif"))
        elif path.exists():
            places.append((path.resolve().stem, path, None))
        elif is_pattern(path):
            fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            places.append((fixed.resolve().name or "movie", path, None))
        elif str(given) in list(SCENES):  # asking the mapping itself would import the scene
            made = folder / "scenes" / f"{given}-{frames}x{size}-seed{seed}"
            places.append((str(given), made / "noisy.tif", made / "truth.tif"))
        else:
            raise ShineError(
                f"{given}: no such movie or folder, and no scene of this name. "
                f"Scenes: {', '.join(SCENES)}."
            )
    cases: list[Case] = []
    for name, noisy, exact in places:
        if noisy.is_relative_to(folder / "scenes") and not noisy.exists():
            _simulate(name, noisy.parent, frames=frames, size=size, seed=seed, tell=tell)
        truth = exact if exact is not None and exact.is_file() else None
        taken, unique, k = {c.name for c in cases}, name, 1
        while unique in taken:
            unique, k = f"{name}-{k + 1}", k + 1
        cases.append(Case(unique, noisy, truth, _fingerprint(noisy, truth)))
    return cases


def _simulate(
    name: str,
    place: Path,
    *,
    frames: int,
    size: int,
    seed: int,
    tell: Callable[[str, str, float], None],
) -> None:
    """Simulate a scene into a folder, whole or not at all; frames done before are kept."""
    from .simulate import SCENES, save

    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.partial")
    unfinished = draft / "unfinished"
    try:
        scene = SCENES[name](
            frames=frames, size=size, seed=seed, cache=unfinished,
            progress=lambda done, total: tell(name, "simulating", done / total),
        )  # fmt: skip
    except ShineError as error:  # it may name a parameter of the scene that is not one of ours
        raise ShineError(f"The scene {name} with frames={frames}, size={size}: {error}") from error
    save(scene, draft, overwrite=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    os.replace(draft, place)


def _fingerprint(noisy: Path, truth: Path | None) -> str:
    """Return a hash of the pixels of a movie and its truth."""
    from .io import read

    found = hashlib.sha256()
    for path in (noisy, truth):
        if path is not None:
            movie = read(path)
            found.update(f"{movie.shape}{movie.dtype}".encode())
            for frame in movie.frames():
                found.update(frame.tobytes())
    return found.hexdigest()[:16]
