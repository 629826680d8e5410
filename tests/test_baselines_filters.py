import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import noisy, scene

from shine_em.baselines import METHODS, Method, pick
from shine_em.baselines.filters import noise_covariance
from shine_em.errors import ShineError
from shine_em.movie import Axis, Movie
from shine_em.noise import NoiseStatistics, noise_statistics

FILTERS = ["gaussian", "bandpass", "wiener", "mean5"]
SPATIAL = FILTERS[:3]


@pytest.fixture(scope="module")
def movie() -> Movie:
    return Movie.from_array(noisy(16, 96, 80, dose=8.0), pixel_size_nm=0.1)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return scene(16, 96, 80, dose=8.0)


@pytest.fixture(scope="module")
def noise(movie: Movie) -> NoiseStatistics:
    return noise_statistics(movie)


def gain_db(denoised: Movie, movie: Movie, truth: np.ndarray) -> float:
    before, after = (np.mean((np.asarray(m.data, float) - truth) ** 2) for m in (movie, denoised))
    return float(10 * np.log10(before / after))


def test_names_of_the_benchmark() -> None:
    names = "gaussian bandpass wiener mean5 bm3d bm3d-correlated n2v structn2v udvd udvd-star topaz"
    ours = "paper-1x1 paper-3x3 paper lean-1x1 lean-3x3 lean"
    assert set(METHODS) == set(f"{names} {ours}".split())
    assert all(name == method.name for name, method in METHODS.items())
    assert METHODS["paper-3x3"].hole == (3, 3)
    assert METHODS["n2v"].needs_training
    assert not METHODS["wiener"].needs_training


def test_pick() -> None:
    assert [m.name for m in pick("n2v, lean,n2v")] == ["n2v", "lean"]
    assert len(pick("all")) == len(METHODS)
    with pytest.raises(ShineError, match=r"nlm.*gaussian"):
        pick("lean,nlm")
    with pytest.raises(ShineError, match="Choose from"):
        pick("")


def test_missing_extra_is_named(movie: Movie, tmp_path, monkeypatch) -> None:
    """A package that is not installed gives the line to type, not a traceback."""
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ShineError, match=r'BM3D needs.*pip install "shine-em\[baselines\]"'):
        METHODS["bm3d"].run(movie.select(slice(1)))


def test_own_import_errors_are_not_mistaken_for_extras(movie: Movie) -> None:
    broken = Method("x", "X", "no_such_module:f", extra="something")
    with pytest.raises(ModuleNotFoundError):
        broken.run(movie)


def test_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, shine_em.baselines as b; b.pick('all');"
        "print([m for m in ('torch', 'scipy', 'bm3d', 'topaz') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FILTERS)
def test_calibration_is_kept(name: str, movie: Movie, noise: NoiseStatistics) -> None:
    told: list[float] = []
    denoised = METHODS[name].run(movie, noise=noise, progress=lambda _, f: told.append(f))
    assert denoised.shape == movie.shape
    assert denoised.dtype == np.float32
    assert denoised.axes == movie.axes
    assert len(denoised.history) == len(movie.history) + 1
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) == len(movie)


# Measured: 6.4, 3.4, 7.9 and 5.5 dB.
@pytest.mark.parametrize(
    ("name", "least"), [("gaussian", 3.0), ("bandpass", 2.0), ("wiener", 4.0), ("mean5", 3.0)]
)
def test_filters_bring_a_movie_closer_to_its_truth(
    name: str, least: float, movie: Movie, truth: np.ndarray, noise: NoiseStatistics
) -> None:
    assert gain_db(METHODS[name].run(movie, noise=noise), movie, truth) > least


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=8)
@given(
    t=st.integers(1, 6), h=st.integers(8, 41), w=st.integers(8, 41),
    kind=st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"]),
)  # fmt: skip
def test_any_shape_and_type(name: str, t: int, h: int, w: int, kind: str) -> None:
    """The mean of each frame stays (over time for mean5), whatever the shape."""
    frames = np.random.default_rng([t, h, w]).poisson(40, (t, h, w)).astype(kind)
    denoised = np.asarray(METHODS[name].run(Movie.from_array(frames)).data)
    assert denoised.dtype == np.float32
    if name in SPATIAL:
        means = frames.mean(axis=(1, 2))
    else:
        near = [range(max(0, k - 2), min(t, k + 3)) for k in range(t)]
        means = np.array([frames[list(n)].mean() for n in near])
    np.testing.assert_allclose(denoised.mean(axis=(1, 2)), means, rtol=1e-5)


@pytest.mark.parametrize("name", FILTERS)
def test_constant_movie_stays_constant(name: str, noise: NoiseStatistics) -> None:
    constant = Movie.from_array(np.full((4, 32, 30), 137, np.uint16))
    for known in (noise, None):
        denoised = METHODS[name].run(constant, noise=known)
        np.testing.assert_allclose(denoised.data, 137, rtol=1e-6)


def test_mean5_of_a_ramp() -> None:
    """A ramp in time is its own mean, but for the ends, which average three or four frames."""
    ramp = np.arange(9.0)[:, None, None] * np.ones((9, 8, 8))
    mean = np.asarray(METHODS["mean5"].run(Movie.from_array(ramp)).data)[:, 3, 3]
    np.testing.assert_allclose(mean, [1, 1.5, 2, 3, 4, 5, 6, 6.5, 7], rtol=1e-6)


def test_mean5_leaves_out_dead_pixels() -> None:
    frames = np.ones((5, 8, 8), np.float32)
    frames[2, 4, 4] = np.nan
    frames[:, 0, 0] = np.inf
    mean = np.asarray(METHODS["mean5"].run(Movie.from_array(frames)).data)
    assert np.isnan(mean[:, 0, 0]).all()
    mean[:, 0, 0] = 1
    np.testing.assert_array_equal(mean, 1)


@pytest.mark.parametrize("name", SPATIAL)
def test_pixels_that_are_not_finite_do_not_spread(
    name: str, movie: Movie, noise: NoiseStatistics
) -> None:
    frames = np.asarray(movie.data, np.float32).copy()
    frames[1, 5, 7] = np.nan
    frames[3] = np.nan
    denoised = np.asarray(METHODS[name].run(Movie.from_array(frames), noise=noise).data)
    assert np.isnan(denoised[3]).all()
    assert np.isfinite(np.delete(denoised, 3, axis=0)).all()


def test_nothing_but_holes_is_refused(noise: NoiseStatistics) -> None:
    with pytest.raises(ShineError, match="finite"):
        METHODS["gaussian"].run(Movie.from_array(np.full((2, 16, 16), np.nan)), noise=noise)


def test_gaussian_width_is_the_best_one(
    movie: Movie, truth: np.ndarray, noise: NoiseStatistics
) -> None:
    """The width chosen without the truth comes within 0.1 dB of the one chosen with it."""
    from scipy.ndimage import gaussian_filter

    frames = np.asarray(movie.data, float)
    errors = [
        np.mean((gaussian_filter(frames, (0, s, s), mode="reflect") - truth) ** 2)
        for s in np.linspace(0.3, 6, 58)
    ]
    chosen = METHODS["gaussian"].run(movie, noise=noise)
    error = np.mean((np.asarray(chosen.data, float) - truth) ** 2)
    assert 10 * np.log10(error / min(errors)) < 0.1


def test_gaussian_equals_scipy(movie: Movie, noise: NoiseStatistics) -> None:
    """The same width applied by an independent implementation."""
    from scipy.ndimage import gaussian_filter

    denoised = METHODS["gaussian"].run(movie, noise=noise)
    sigma = float(denoised.history[-1].split()[-2])
    expected = gaussian_filter(movie.frame(2).astype(float), sigma, mode="reflect", truncate=6)
    # the history gives two decimals of the width
    np.testing.assert_allclose(denoised.frame(2), expected, atol=0.05)


def test_correlated_noise_asks_for_wider_filters() -> None:
    """White and correlated noise of one variance: only the spectrum tells them apart."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    white = rng.normal(size=(12, 96, 96))
    red = gaussian_filter(rng.normal(size=white.shape), (0, 0.8, 0.8), mode="wrap")
    movies = [Movie.from_array(scene(12, 96, 96) + 8 * n / n.std()) for n in (white, red)]
    widths = [float(METHODS["gaussian"].run(m).history[-1].split()[-2]) for m in movies]
    assert widths[1] > 1.2 * widths[0]


def test_noise_covariance_ends_where_noise_does(movie: Movie, noise: NoiseStatistics) -> None:
    covariance = noise_covariance(movie, noise)
    radius = covariance.shape[0] // 2
    assert covariance[radius, radius] == pytest.approx(8, rel=0.15)  # Poisson: the mean
    # counted electrons are independent
    assert (covariance != 0).sum() <= 5


def test_bandpass_keeps_a_lattice_and_drops_the_rest() -> None:
    """A lattice under white noise stays in place and keeps most of its height (measured: 76 %)."""
    y, x = np.mgrid[:96, :96]
    lattice = 10 * np.cos(2 * np.pi * x / 8) * np.cos(2 * np.pi * y / 8)
    rng = np.random.default_rng(5)
    frames = 100 + lattice + rng.normal(0, 6, (8, 96, 96))
    denoised = np.asarray(METHODS["bandpass"].run(Movie.from_array(frames)).data, float)
    kept = np.sum((denoised - 100) * lattice, axis=(1, 2)) / np.sum(lattice**2)
    assert np.all((kept > 0.65) & (kept < 1.05))
    assert np.var(denoised - 100 - lattice) < 0.4 * 36


def test_axis_units_survive() -> None:
    t, y, x = Axis("t", "s", 0.1), Axis("y", "nm", 0.2, 3.0), Axis("x", "nm", 0.2)
    movie = Movie(noisy(4, 32, 32), (t, y, x), intensity_unit="counts")
    denoised = METHODS["wiener"].run(movie)
    assert denoised.axes == (t, y, x)
    assert denoised.intensity_unit == "counts"
