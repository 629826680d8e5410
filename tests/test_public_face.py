"""What ``import shine_em`` gives, and how little it loads."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from small import model, noisy

import shine_em as shine

HEAVY = {"torch", "matplotlib", "scipy", "skimage", "zarr", "dask", "h5py", "rsciio", "tifffile"}


def loaded_by(code: str) -> set[str]:
    """Return the packages that a fresh interpreter has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import shine_em",
        "import shine_em; shine_em.ShineError, shine_em.Movie, shine_em.__version__",
        "import shine_em.cli",  # so that help and mistyped options are told at once
    ],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert not HEAVY & loaded_by(code)


@pytest.mark.parametrize("command", [["info"], ["info", "--check"], ["noise"]])
def test_looking_at_a_movie_loads_neither_torch_nor_matplotlib(
    command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "movie.npy"
    np.save(path, noisy(5, 32, 32))
    words = [*command, str(path)]
    # The command ends with an exit of its own, so what it loaded is told on the way out.
    loaded = loaded_by(
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
        f"from shine_em.cli import main; main({words!r})"
    )
    assert "shine_em" in loaded
    assert not {"torch", "matplotlib"} & loaded


def test_everything_announced_is_there() -> None:
    assert len(set(shine.__all__)) == len(shine.__all__)
    for name in shine.__all__:
        value = getattr(shine, name)
        assert value.__name__ == name
        assert value.__doc__
    assert set(dir(shine)) >= {*shine.__all__, "__version__"}
    assert {"denoise", "read", "write", "noise_statistics", "Movie", "ShineError"} <= set(
        dir(shine)
    )
    assert shine.__version__ == version("shine-em")


def test_star_import_gives_the_same() -> None:
    names: dict[str, object] = {}
    exec("from shine_em import *", names)
    assert set(shine.__all__) <= set(names)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        shine.no_such_thing  # noqa: B018


def test_plain_arrays_are_movies() -> None:
    trained = model()
    raw = noisy(3, 24, 30)
    result = shine.denoise(raw, model=trained)
    out = np.asarray(result.movie.data)
    assert out.shape == raw.shape
    assert out.dtype == np.float32
    # Lists, other orders of bytes and memory, and single images as well.
    for same in (raw.tolist(), raw.astype(">u2"), np.asfortranarray(raw)):
        np.testing.assert_array_equal(shine.denoise(same, model=trained).movie.data, out)
    assert shine.denoise(raw[0], model=trained).movie.shape == (1, 24, 30)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2, 2, 2)), "shape"),
        (np.zeros(5), "shape"),
        (np.zeros((0, 8, 8)), "empty"),
        (np.zeros((2, 8, 8), complex), "complex"),
        (np.zeros((2, 8, 8), object), "real numbers"),
        (np.full((2, 8, 8), np.nan), "finite"),
    ],
)
def test_arrays_that_are_no_movies_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(shine.ShineError, match=words):
        shine.denoise(array, steps=2)


def test_a_path_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "movie.npy"
    np.save(path, noisy(3, 24, 30))
    trained = model()
    for given in (path, str(path)):
        result = shine.denoise(given, model=trained)
        assert result.movie.name == "movie"
    with pytest.raises(shine.ShineError, match=r"absent\.tif"):
        shine.denoise("absent.tif", model=trained)


def test_a_job_loads_nothing_that_is_slow_to_load_and_not_needed() -> None:
    """Each of these takes one to three seconds, which a job of a minute would rather learn in."""
    code = (
        "import sys, numpy as np, shine_em as shine;"
        "noise = np.random.default_rng(0).poisson(20, (12, 40, 40)).astype('u2');"
        "shine.denoise(noise, steps=2);"
        "slow = {'torch._dynamo', 'scipy.signal', 'scipy.stats', 'matplotlib'} & set(sys.modules);"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
