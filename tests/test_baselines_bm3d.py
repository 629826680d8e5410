import importlib.util
import os

import numpy as np
import pytest
from small import noisy, scene

from shine_em.baselines import METHODS
from shine_em.baselines.bm3d import noise_power
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.noise import noise_statistics

if importlib.util.find_spec("bm3d") is None and not os.environ.get("CI"):
    pytest.skip('bm3d is not installed: pip install "shine-em[baselines]"', allow_module_level=True)

SHAPE = (2, 40, 48)


def test_white_noise_goes() -> None:
    """Two small frames of counted electrons gain 6 dB and more (measured: 8.0)."""
    counts, truth = noisy(12, 40, 48, dose=8.0), scene(12, 40, 48, dose=8.0)
    noise = noise_statistics(counts)
    movie = Movie.from_array(counts[:2], pixel_size_nm=0.2)
    told: list[float] = []
    denoised = METHODS["bm3d"].run(movie, noise=noise, progress=lambda _, f: told.append(f))
    assert denoised.dtype == np.float32
    assert denoised.axes == movie.axes
    assert told == [0.5, 1.0]
    errors = [np.mean((np.asarray(a, float) - truth[:2]) ** 2) for a in (movie.data, denoised.data)]
    assert 10 * np.log10(errors[0] / errors[1]) > 6


def test_correlated_noise_needs_its_spectrum() -> None:
    """With the measured spectrum, correlated noise is removed better than as white noise."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(1)
    truth = scene(24, 64, 64)[:, :40, :48]
    noise = gaussian_filter(rng.normal(size=(24, 64, 64)), (0, 0.7, 0.7), mode="wrap")[:, :40, :48]
    frames = truth + 8 * noise / noise.std()
    statistics = noise_statistics(frames)
    movie = Movie.from_array(frames[:2])
    left = [
        np.mean((np.asarray(METHODS[name].run(movie, noise=statistics).data) - truth[:2]) ** 2)
        for name in ("bm3d", "bm3d-correlated")
    ]
    assert left[1] < 0.8 * left[0]


def test_runs_are_repeatable() -> None:
    movie = Movie.from_array(noisy(2, 24, 24))
    noise = noise_statistics(noisy(12, 48, 48))
    first, second = (METHODS["bm3d"].run(movie, noise=noise).data for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_tight_budget_takes_the_low_complexity_profile() -> None:
    movie = Movie.from_array(noisy(2, 24, 24))
    noise = noise_statistics(noisy(12, 48, 48))
    quick = METHODS["bm3d"].run(movie, noise=noise, time_budget_s=0.0)
    assert "low-complexity" in quick.history[-1]
    ample = METHODS["bm3d"].run(movie, noise=noise, time_budget_s=1e6)
    assert "low-complexity" not in ample.history[-1]


def test_noiseless_movie_is_left_alone() -> None:
    movie = Movie.from_array(np.repeat(noisy(1, 24, 24), 3, axis=0))
    denoised = METHODS["bm3d-correlated"].run(movie)
    np.testing.assert_array_equal(denoised.data, movie.data)


def test_small_frames_are_refused() -> None:
    with pytest.raises(ShineError, match="16 px"):
        METHODS["bm3d"].run(Movie.from_array(noisy(3, 8, 8)))


def test_noise_power_of_white_noise_is_flat() -> None:
    covariance = np.zeros((5, 5))
    covariance[2, 2] = 9.0
    np.testing.assert_allclose(noise_power(covariance, (6, 10)), 9 * 60)


def test_noise_power_is_the_mean_power_of_noise() -> None:
    """Against the mean periodogram of noise made with a known kernel."""
    kernel = np.zeros((24, 20))
    kernel[0, 0], kernel[0, 1], kernel[0, -1], kernel[1, 0], kernel[-1, 0] = 1, 0.2, 0.2, 0.1, 0.1
    transfer = np.abs(np.fft.fft2(kernel)) ** 2
    covariance = np.fft.fftshift(np.fft.ifft2(transfer).real)[12 - 2 : 12 + 3, 10 - 2 : 10 + 3]
    white = np.random.default_rng(2).normal(size=(3000, 24, 20))
    noise = np.fft.ifft2(np.fft.fft2(white) * np.fft.fft2(kernel)).real
    measured = np.mean(np.abs(np.fft.fft2(noise)) ** 2, axis=0)
    np.testing.assert_allclose(noise_power(covariance, (24, 20)), transfer * 480, rtol=1e-6)
    np.testing.assert_allclose(noise_power(covariance, (24, 20)), measured, rtol=0.15)


def test_noise_power_is_never_zero() -> None:
    """Noise that no pixel has at the highest frequency."""
    covariance = np.outer([1, 2, 1], [1, 2, 1]) / 4.0
    power = noise_power(covariance, (16, 16))
    assert power.min() == pytest.approx(0.01 * 256)
