"""Errors estimated without a truth are those that the truth shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import spearmanr
from small import health as healthy
from small import model, noisy, scene

from shine_em.denoising import Denoiser
from shine_em.error_estimate import ErrorEstimate, ErrorEstimator, noise_variance
from shine_em.errors import ShineError
from shine_em.frame_errors import FrameErrors, FrameWatch
from shine_em.mean_variance import MeanVariance
from shine_em.movie import Movie
from shine_em.noise import NoiseStatistics, noise_statistics
from shine_em.patches import Normalisation
from shine_em.report_error import error_sentences

KERNEL = np.array([[1, 2, 1], [2, 6, 2], [1, 2, 1]], float)
KERNEL /= np.sqrt((KERNEL**2).sum())
T, SIZE = 10, 160


def known_noise(
    sigma: float, *, white: bool = True, lag: float = 0.0, gain: float = 0.0, offset: float = 0.0
) -> NoiseStatistics:
    """Return noise statistics without any error of measurement."""
    measured = noise_statistics(np.random.default_rng(0).normal(size=(4, 32, 32)))
    correlation = np.zeros((17, 17))
    correlation[8, 8] = 1.0
    if not white:
        correlation = convolve(convolve(correlation, KERNEL), KERNEL)
    curve = MeanVariance(gain, offset, 0.0, np.zeros(0), np.zeros(0), reliable=gain > 0)
    return replace(
        measured, difference_correlation=correlation, sigma=sigma, mean_variance=curve,
        temporal_correlation=np.array([1.0, lag, 0, 0, 0]), temporal_error=np.full(5, 0.001),
        fixed_pattern=False, warnings=(),
    )  # fmt: skip


def estimator(raw: np.ndarray, noise: NoiseStatistics, **more: object) -> ErrorEstimator:
    health = healthy(raw.shape, location=float(raw.mean()), scale=float(raw.std()))
    return ErrorEstimator(
        Movie.from_array(raw), health, noise, Normalisation.of(health),
        **{"frames": range(len(raw)), **more},
    )  # fmt: skip


def blur(width: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return a denoiser that sees every pixel."""
    return lambda windows, _shift: gaussian_filter(
        windows[:, windows.shape[1] // 2], (0, width, width)
    )


def averaged(windows: np.ndarray, _shift: int) -> np.ndarray:
    return windows.mean(1)


def as_method(predict: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[Movie], Movie]:
    return lambda m: m.with_data(predict(np.asarray(m.data)[:, None], 0), did="")


def correlated(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    white = rng.normal(size=shape)
    return np.stack([convolve(w, KERNEL, mode="wrap") for w in white])


@pytest.mark.parametrize("white", [True, False])
@pytest.mark.parametrize("width", [0.0, 0.5, 1.0, 2.5])
def test_the_error_of_a_filter_that_sees_every_pixel(white: bool, width: float) -> None:
    rng = np.random.default_rng(1)
    truth = scene(T, SIZE, SIZE)
    noise = rng.normal(size=truth.shape) if white else correlated(truth.shape, rng)
    raw = (truth + 5 * noise).astype(np.float32)
    watcher = estimator(raw, known_noise(5.0, white=white))
    estimate = watcher.measure(blur(width))
    true = float(np.mean((gaussian_filter(raw, (0, width, width)) - truth) ** 2))
    assert abs(estimate.mse - true) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02 * 25
    assert estimate.noise_variance == pytest.approx(25)
    # The same filter as a method that takes a whole movie.
    whole = watcher.measure_method(as_method(blur(width)))
    assert abs(whole.minus(estimate)[0]) < 0.01 * 25


def test_differences_are_far_sharper_than_errors() -> None:
    truth = scene(T, SIZE, SIZE)
    raw = (truth + 5 * correlated(truth.shape, np.random.default_rng(2))).astype(np.float32)
    watcher = estimator(raw, known_noise(5.0, white=False))
    narrow, wide = (watcher.measure(blur(w)) for w in (0.9, 1.1))
    difference, error = wide.minus(narrow)
    true = [np.mean((gaussian_filter(raw, (0, w, w)) - truth) ** 2) for w in (0.9, 1.1)]
    assert abs(difference - (true[1] - true[0])) < 4 * error
    assert error < 0.3 * narrow.standard_error


def test_noise_that_lives_on_in_neighbouring_frames() -> None:
    rng = np.random.default_rng(3)
    truth = scene(T, SIZE, SIZE) * 0 + 20
    fresh = rng.normal(size=(T + 1, SIZE, SIZE))
    raw = (truth + 5 * (0.9 * fresh[1:] + np.sqrt(1 - 0.81) * fresh[:-1])).astype(np.float32)
    lag = 0.9 * np.sqrt(1 - 0.81)
    watcher = estimator(raw, known_noise(5.0, lag=lag), window=3, frames=range(1, T - 1))
    true = float(np.mean((np.stack([raw[:-2], raw[1:-1], raw[2:]]).mean(0) - 20) ** 2))
    estimate = watcher.measure(averaged)
    assert abs(estimate.mse - true) < 4 * estimate.standard_error
    blind_to_it = estimator(raw, known_noise(5.0), window=3, frames=range(1, T - 1))
    assert blind_to_it.measure(averaged).mse < true - 8 * estimate.standard_error


def test_poisson_noise_that_follows_the_signal() -> None:
    truth, raw = scene(T, SIZE, SIZE), noisy(T, SIZE, SIZE)
    watcher = estimator(raw, known_noise(float(np.sqrt(truth.mean())), gain=1.0))
    estimate = watcher.measure(blur(0.8))
    true = float(np.mean((gaussian_filter(raw.astype(float), (0, 0.8, 0.8)) - truth) ** 2))
    assert abs(estimate.mse - true) < 4 * estimate.standard_error
    assert estimate.noise_variance == pytest.approx(truth.mean(), rel=0.01)
    assert estimate.psnr(20.0) == pytest.approx(10 * np.log10(400 / estimate.mse))


def test_every_mean_of_several_denoisers_follows_from_their_matrix() -> None:
    truth = scene(T, SIZE, SIZE)
    raw = (truth + 5 * np.random.default_rng(4).normal(size=truth.shape)).astype(np.float32)
    watcher = estimator(raw, known_noise(5.0), frames=4)
    each = [blur(0.5), blur(2.0), averaged]
    matrix = watcher.matrix(lambda w, s: np.stack([p(w, s) for p in each]))
    weights = [0.5, 0.2, 0.3]
    direct = watcher.measure(
        lambda w, s: np.sum([a * p(w, s) for a, p in zip(weights, each, strict=True)], axis=0)
    )
    mean = matrix.of(weights)
    # Their probes scale with the brightness that each denoiser sees: equal but for that.
    assert mean.mse == pytest.approx(direct.mse, rel=1e-3)
    assert mean.mse == pytest.approx(np.array(weights) @ matrix.values @ weights, rel=1e-5)
    assert mean.per_frame.shape == (4,)
    assert mean.mse == pytest.approx(mean.per_frame.mean(), rel=1e-6)
    with pytest.raises(ValueError, match="weights"):
        matrix.of([0.5, 0.5])


def test_pixels_are_unbiased_one_by_one() -> None:
    truth = scene(T, SIZE, SIZE)
    raw = (truth + 5 * correlated(truth.shape, np.random.default_rng(5))).astype(np.float32)
    raw[2, 10:20, 10:20] = np.nan
    watcher = estimator(np.nan_to_num(raw), known_noise(5.0, white=False))
    watcher.movie = Movie.from_array(raw)
    bright = truth > np.quantile(truth, 0.9)
    estimated: list[float] = []
    true: list[float] = []
    for t, denoised, error in watcher.pixels(blur(1.5)):
        assert np.isnan(error[10:20, 10:20]).all() == (t == 2)
        here = bright[t] & np.isfinite(error)
        estimated.append(float(error[here].mean()))
        true.append(float(((denoised - truth[t])[here] ** 2).mean()))
    scatter = np.std(np.subtract(estimated, true)) / np.sqrt(T)
    assert abs(np.mean(estimated) - np.mean(true)) < 4 * scatter
    assert scatter < 0.2 * np.mean(true)


def test_it_ranks_filters_as_the_truth_does_with_measured_noise() -> None:
    truth = scene(T, SIZE, SIZE)
    raw = (truth + 5 * correlated(truth.shape, np.random.default_rng(6))).astype(np.float32)
    noise = noise_statistics(raw)
    watcher = estimator(raw, noise, frames=5)
    widths = [0.0, 0.4, 0.7, 1.0, 1.3, 1.8, 2.5, 4.0]
    guesses = [watcher.measure(blur(w)).mse for w in widths]
    true = [float(np.mean((gaussian_filter(raw, (0, w, w)) - truth) ** 2)) for w in widths]
    assert spearmanr(guesses, true).statistic >= 0.95
    assert noise_variance(noise, truth).mean() == pytest.approx(25, rel=0.06)


def ring(hole: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return the mean of 7×7 pixels around a hole."""
    return lambda windows, _shift: convolve(windows[:, windows.shape[1] // 2], ring_kernel(hole))


def ring_kernel(hole: int) -> np.ndarray:
    kernel = np.ones((1, 7, 7))
    kernel[0, 3 - hole // 2 : 4 + hole // 2, 3 - hole // 2 : 4 + hole // 2] = 0
    return kernel / kernel.sum()


@pytest.mark.parametrize("hole", [1, 3, 5])
def test_a_hole_that_is_too_small_hands_on_noise_and_one_that_covers_it_none(hole: int) -> None:
    raw = (20 + 5 * correlated((T, SIZE, SIZE), np.random.default_rng(7))).astype(np.float32)
    noise = known_noise(5.0, white=False)  # correlated over 5×5 pixels
    expected = 2 * 25 * float((noise.difference_correlation[5:12, 5:12] * ring_kernel(hole)).sum())
    estimate = estimator(raw, noise).measure(ring(hole))
    assert expected > 1 or hole == 5
    assert estimate.divergence == pytest.approx(expected, abs=0.3)
    true = float(np.mean((convolve(raw, ring_kernel(hole)) - 20) ** 2))
    assert abs(estimate.mse - true) < 4 * estimate.standard_error


def test_a_model_is_shown_frames_as_its_denoiser_shows_them() -> None:
    raw = noisy(9, 64, 64)
    trained = model(holes=[(3, 3), (5, 5)], channels=8)
    movie, health = Movie.from_array(raw), healthy(raw.shape)
    watcher = ErrorEstimator.for_model(trained, movie, health, known_noise(4.0), frames=range(9))
    denoiser = Denoiser(trained)
    each = list(watcher.denoised(denoiser.predict_each))
    for (t, _, out), (u, seen, good, two) in zip(denoiser.stream(movie, health), each, strict=True):
        assert t == u
        assert good.all()
        np.testing.assert_array_equal(seen, raw[t])
        np.testing.assert_allclose(two.mean(0), out, rtol=1e-4, atol=1e-3)


def test_the_same_seed_gives_the_same_numbers_and_ends_do_not_dominate() -> None:
    raw = noisy(40, 48, 48).astype(np.float32)
    one, two = (estimator(raw, known_noise(4.0), frames=5) for _ in range(2))
    assert one.frames == two.frames
    np.testing.assert_array_equal(one.measure(blur(1)).blocks, two.measure(blur(1)).blocks)
    assert all(8 * i <= t < 8 * (i + 1) for i, t in enumerate(one.frames))
    with pytest.raises(ShineError, match="different frames"):
        one.measure(blur(1)).minus(estimator(raw, known_noise(4.0), frames=[0, 1]).measure(blur(1)))


def test_without_noise_there_is_nothing_to_estimate() -> None:
    raw = np.ones((4, 32, 32), np.float32)
    with pytest.raises(ShineError, match="no noise could be measured"):
        estimator(raw + np.arange(32), known_noise(0.0))


def frame_errors(raw: np.ndarray, denoised: np.ndarray, noise: NoiseStatistics) -> FrameErrors:
    health = healthy(raw.shape)
    none = np.zeros(1)
    measured = ErrorEstimate(0.0, 0.0, 25.0, 25.0, 0.0, (0,), none, none, none, none + 1)
    watch = FrameWatch(health, noise, Normalisation.of(health), measured)
    for t in range(len(raw)):
        watch.add(t, raw[t], denoised[t])
    return watch.finish()


def test_frames_on_which_the_denoising_fails_are_named_and_no_others() -> None:
    truth = scene(30, 64, 64)
    rng = np.random.default_rng(8)
    raw = (truth + 5 * rng.normal(size=truth.shape)).astype(np.float32)
    errors = rng.normal(size=truth.shape)
    good = frame_errors(raw, truth + errors, known_noise(5.0))
    assert good.flagged == ()
    assert good.warnings() == ()
    assert np.mean(good.mse) == pytest.approx(1.0, abs=0.3)
    errors[[7, 21]] *= 3.5
    bad = frame_errors(raw, truth + errors, known_noise(5.0))
    assert bad.flagged == (7, 21)
    (words,) = bad.warnings()
    assert "Frames 7, 21" in words


def test_a_matrix_of_nothing_is_refused() -> None:
    raw = np.full((5, 32, 32), np.nan, np.float32)
    watcher = estimator(noisy(5, 32, 32).astype(np.float32), known_noise(4.0))
    watcher.movie = Movie.from_array(raw)
    with pytest.raises(ShineError, match="No pixel"):
        watcher.measure(blur(1.0))


@pytest.mark.parametrize(
    ("mse", "scatter", "said"),
    [
        (65.0, 2.0, "8.1 ± 1.1"),  # nearly all from the noise variance, known within 1 %
        (65.0, 60.0, "below 14"),
        (40_000.0, 100.0, "200.00 ± 0.25"),
        (6.5e-19, 2e-19, "8.06e-10 ± 1.2e-10"),
    ],
)
def test_an_error_is_written_with_what_is_known_of_it(
    mse: float, scatter: float, said: str
) -> None:
    noise = 1700.0 if mse == 65.0 else 0.0
    nothing = np.zeros(1)
    error = ErrorEstimate(mse, scatter, 0.0, noise, 0.0, (0,), *[nothing] * 4)
    assert error_sentences(error, None)[0].split(" frames, is ")[1].startswith(said + " in")
