"""The movies of a benchmark: what may be named, under which names, and simulating them."""

from pathlib import Path

import numpy as np
import pytest
from small import noisy

from shine_em.benchmark_movies import Case, find_movies
from shine_em.errors import ShineError
from shine_em.io import read, write
from shine_em.movie import Movie


def found(
    *movies: Path | str, out: Path, frames: int = 3, stop_at: float | None = None
) -> list[Case]:
    def tell(_what: str, _stage: str, fraction: float) -> None:
        if stop_at is not None and fraction >= stop_at:
            raise KeyboardInterrupt

    return find_movies(movies, out, frames=frames, size=128, seed=0, tell=tell)


def test_every_movie_has_a_name_of_its_own(tmp_path: Path) -> None:
    movie = Movie.from_array(noisy(2, 16, 16))
    for folder in ("a", "b"):
        for name in ("run", "run-2"):
            (tmp_path / folder / name).mkdir(parents=True)
            write(movie, tmp_path / folder / name / "noisy.tif", dtype="same")
    a, b = tmp_path / "a", tmp_path / "b"
    for movies, names in (
        ((a / "run-2", a / "run"), ["run-2", "run"]),
        ((a / "run", b / "run", b / "run-2"), ["run", "run-2", "run-2-2"]),
        ((a / "run-2", a / "run", b / "run"), ["run-2", "run", "run-3"]),
    ):
        assert [case.name for case in found(*movies, out=tmp_path / "out")] == names


def test_a_pattern_is_a_movie(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    frames = noisy(3, 16, 20)
    for t, frame in enumerate(frames):
        write(Movie.from_array(frame[None]), tmp_path / "run" / f"{t}.tif", dtype="same")
    (case,) = found(str(tmp_path / "run" / "*.tif"), out=tmp_path / "out")
    assert case.name == "run"
    np.testing.assert_array_equal(np.asarray(read(case.noisy).data), frames)
    with pytest.raises(ShineError, match="no file matches"):
        found(str(tmp_path / "run" / "*.mrc"), out=tmp_path / "out")


def test_an_interrupted_simulation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shine_em.simulate import frames

    with pytest.raises(KeyboardInterrupt):
        found("sparse-counting", out=tmp_path, stop_at=0.6)
    done = len(list(tmp_path.rglob("frame_*.npz")))
    assert done >= 2
    new: list[Path] = []
    keep = frames._keep
    monkeypatch.setattr(frames, "_keep", lambda path, a: (new.append(path), keep(path, a)))
    (case,) = found("sparse-counting", out=tmp_path, frames=3)
    assert len(new) == 3 - done
    assert case.truth is not None
    assert sorted(p.name for p in case.noisy.parent.iterdir()) == [
        "coordinates.npz", "noisy.tif", "parameters.json", "truth.tif", "unblurred.tif",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "scenes").iterdir()] == [case.noisy.parent.name]
