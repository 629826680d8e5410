import importlib.util
import os
import pickle

import numpy as np
import pytest
from small import noisy, scene

from shine_em.baselines import METHODS, topaz
from shine_em.errors import ShineError
from shine_em.movie import Movie

if importlib.util.find_spec("topaz") is None and not os.environ.get("CI"):
    pytest.skip(
        "topaz-em is not installed: pip install --no-deps topaz-em", allow_module_level=True
    )


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return noisy(2, 75, 64, dose=4.0)


def test_it_denoises(counts: np.ndarray) -> None:
    """The pretrained model removes more than 4 dB of noise (measured: 6.5), at odd sizes too."""
    movie = Movie.from_array(counts, pixel_size_nm=0.1)
    told: list[float] = []
    denoised = METHODS["topaz"].run(movie, progress=lambda _, f: told.append(f))
    assert denoised.dtype == np.float32
    assert denoised.axes == movie.axes
    assert told == [0.5, 1.0]
    truth = scene(2, 75, 64, dose=4.0)
    errors = [np.mean((np.asarray(a, float) - truth) ** 2) for a in (counts, denoised.data)]
    assert 10 * np.log10(errors[0] / errors[1]) > 4


def test_it_needs_no_torchvision(counts: np.ndarray, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    frame = Movie.from_array(counts[:1])
    assert np.isfinite(np.asarray(METHODS["topaz"].run(frame).data)).all()


def test_units_are_followed(counts: np.ndarray) -> None:
    """Frames are standardised: a movie in other units comes out in those units."""
    frame = counts[:1].astype(np.float32)
    plain = np.asarray(METHODS["topaz"].run(Movie.from_array(frame)).data)
    scaled = np.asarray(METHODS["topaz"].run(Movie.from_array(7 * frame - 40)).data)
    np.testing.assert_allclose(scaled, 7 * plain - 40, rtol=1e-3, atol=1e-2)


def test_flat_frames_stay() -> None:
    movie = Movie.from_array(np.full((1, 32, 32), 5.0))
    np.testing.assert_array_equal(METHODS["topaz"].run(movie).data, 5.0)


def test_small_frames_are_refused() -> None:
    with pytest.raises(ShineError, match="32 px"):
        METHODS["topaz"].run(Movie.from_array(noisy(1, 31, 64)))


class _Burglar:
    def __reduce__(self):  # what a pickle can do when it is loaded as one
        return os.mkdir, ("stolen",)


@pytest.mark.parametrize("what", [None, {}, _Burglar()])
def test_wrong_weights_are_refused_unread(what, counts, tmp_path, monkeypatch) -> None:
    """A missing file, another network's weights, and a file that would run code."""
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "pretrained" / "denoise"
    shipped.mkdir(parents=True)
    if isinstance(what, _Burglar):
        (shipped / topaz._WEIGHTS).write_bytes(pickle.dumps(what, protocol=2))
    elif what is not None:
        import torch

        torch.save(what, shipped / topaz._WEIGHTS)
    monkeypatch.setattr(topaz, "files", lambda _: tmp_path)
    with pytest.raises(ShineError, match="topaz-em has no usable weights"):
        METHODS["topaz"].run(Movie.from_array(counts))
    assert not (tmp_path / "stolen").exists()
