"""Noise statistics: known noise must be found again, through any picture, still or moving."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from shine_em.doctor import check
from shine_em.errors import ShineError
from shine_em.movie import LazyFrames, Movie
from shine_em.noise import (
    NoiseStatistics,
    format_table,
    noise_statistics,
    plot_noise,
)
from shine_em.noise import noise_of as noise_of_checked
from shine_em.simulate import SCENES

# Kernels that make white noise correlated, and the hole that hides their autocorrelation.
KERNELS = {
    "white": (np.ones((1, 1)), (1, 1)),
    "1 px": (np.ones((2, 2)), (3, 3)),
    "2 px": (np.ones((3, 3)), (5, 5)),
    "4 px": (np.ones((5, 5)), (9, 9)),
    "4 px, weak end": (np.outer([0.5, 1, 1, 1, 0.5], [0.5, 1, 1, 1, 0.5]), (9, 9)),
    "rows": (np.ones((1, 3)), (1, 5)),
    "columns": (np.ones((3, 1)), (5, 1)),
    "drifted scan": (np.array([[1, 1, 0, 0], [0, 0, 1, 1]]), (3, 7)),
    "diagonal": (np.eye(3), (5, 5)),
    "every other pixel": (np.array([[1, 0, 1]]), (1, 5)),
}


@cache
def picture(kind: str, frames: int, size: int) -> np.ndarray:
    """Return a ``(t, y, x)`` picture with intensities of 0 to about 1.5."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    out = np.zeros((frames, size, size), np.float32)
    if kind == "empty":
        return out
    if "lattice" in kind:
        degrees = {"still lattice": 0, "slow lattice": 0.1, "rotating lattice": 1.0}[kind]
        for t in range(frames):
            for arm in range(3):
                angle = np.deg2rad(13 + degrees * t + 60 * arm)
                along = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
                out[t] += np.cos(2 * np.pi / 6.7 * along) / 3
        return out * 0.75 + 0.5
    if kind == "drifting atoms":
        places = rng.uniform(-20, size + 20, (size * size // 150, 2))
        for t in range(frames):
            points = np.zeros((size, size), np.float32)
            at = np.rint(places + np.array([0.6, 0.9]) * t).astype(int)
            at = at[((at >= 0) & (at < size)).all(axis=1)]
            np.add.at(points, (at[:, 0], at[:, 1]), 1)
            out[t] = ndimage.gaussian_filter(points, 1.7) * 2 * np.pi * 1.7**2
        return out
    places = rng.uniform(0, size, (size * size // 2500, 2))
    radii = rng.uniform(4, 14, len(places))
    step = {"still particles": 0.0, "Brownian particles": 1.0}[kind]
    for t in range(frames):
        for (py, px), radius in zip(places, radii, strict=True):
            edge = (np.hypot(y - py, x - px) - radius) / 0.7
            out[t] = np.maximum(out[t], 1 / (1 + np.exp(np.clip(edge, -30, 30))))
        places = places + rng.normal(0, step, places.shape)
    return out * 1.5


def noise_of(kernel: str, signal: np.ndarray, seed: int) -> np.ndarray:
    """Return shot-like noise (its variance grows with the signal), then blurred by the detector."""
    weights = KERNELS[kernel][0].astype(np.float32)
    weights = weights / np.sqrt((weights**2).sum())
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(signal.shape, dtype=np.float32) * np.sqrt(1 + signal / 2)
    return ndimage.convolve(white, weights[None], mode="wrap")


def movie_of(kernel: str, kind: str, *, frames: int, size: int, seed: int = 0) -> np.ndarray:
    signal = picture(kind, frames, size)
    return signal + noise_of(kernel, signal, seed) + 10


# --- The blind spot -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["Brownian particles", "rotating lattice", "drifting atoms"])
def test_hole_covers_the_noise_correlation_whatever_moves(kernel: str, kind: str) -> None:
    stats = noise_statistics(movie_of(kernel, kind, frames=14, size=128))
    assert stats.hole == KERNELS[kernel][1]
    assert stats.blinded_lags == ()
    assert not stats.fixed_pattern


@pytest.mark.parametrize(("size", "frames"), [(256, 5), (201, 12)])
@pytest.mark.parametrize("kernel", ["white", "4 px"])
def test_hole_at_other_sizes_and_lengths(kernel: str, size: int, frames: int) -> None:
    stats = noise_statistics(movie_of(kernel, "Brownian particles", frames=frames, size=size))
    assert stats.hole == KERNELS[kernel][1]


def test_correlation_values_are_those_of_the_noise() -> None:
    stats = noise_statistics(movie_of("4 px", "drifting atoms", frames=20, size=128))
    triangle = np.clip(1 - np.abs(np.arange(-8, 9)) / 5, 0, None)
    truth = np.outer(triangle, triangle)
    assert stats.difference_correlation == pytest.approx(truth, abs=0.03)
    assert stats.difference_correlation == pytest.approx(stats.difference_correlation[::-1, ::-1])


def test_raw_frame_counts_the_picture_the_noise_map_does_not() -> None:
    stats = noise_statistics(movie_of("white", "Brownian particles", frames=12, size=128))
    assert stats.raw_correlation[8, 9] > 0.1
    assert stats.difference_correlation[8, 9] == pytest.approx(0, abs=0.02)


def test_stated_error_is_the_scatter_over_noise_realisations() -> None:
    runs = [
        noise_statistics(movie_of("white", "empty", frames=8, size=64, seed=s)) for s in range(12)
    ]
    values = np.array([r.difference_correlation for r in runs])
    values[:, 8, 8] = np.nan
    scatter = np.sqrt(np.nanmean(values[:, 6:11, 6:11] ** 2))
    assert 0.6 < scatter / np.mean([r.correlation_error for r in runs]) < 1.5


def test_anisotropy_has_the_sign_of_the_longer_axis() -> None:
    rows, columns, both = (
        noise_statistics(movie_of(k, "empty", frames=8, size=96)).anisotropy
        for k in ("rows", "columns", "2 px")
    )
    assert rows > 0.8
    assert columns < -0.8
    assert abs(both) < 0.1


def test_real_movie_asks_for_the_paper_hole(au_movie_path: Path) -> None:
    stats = noise_statistics(tifffile.imread(au_movie_path))
    assert stats.hole == (3, 3)
    assert stats.confidence == "high"
    # the raw frame: 0.28 and 0.05 at 1 and 2 px
    assert stats.raw_correlation[8, 9:11] == pytest.approx([0.28, 0.05], abs=0.02)
    assert stats.difference_correlation[8, 9:11] == pytest.approx([0.25, 0.02], abs=0.02)
    assert stats.blinded_lags == ()
    assert not stats.fixed_pattern
    assert stats.homogeneity.shape == (16, 17, 17)
    assert np.ptp(stats.homogeneity[:, 8, 9]) < 0.05


def test_raw_correlation_is_equation_4() -> None:
    frame = movie_of("2 px", "still particles", frames=1, size=64)
    raw = noise_statistics(frame, max_lag=3).raw_correlation
    for dy, dx in ((0, 1), (2, 0), (1, 3), (3, -2)):
        a = frame[0, : 64 - dy, max(0, -dx) : 64 - max(0, dx)]
        b = frame[0, dy:, max(0, dx) : 64 - max(0, -dx)]
        assert raw[3 + dy, 3 + dx] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert raw[3, 3] == 1


# --- Noise over time ----------------------------------------------------------------------------

PICTURES = ["still lattice", "slow lattice", "still particles", "Brownian particles"]


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("kernel", ["white", "2 px"])
def test_lag_is_found_and_its_size_measured(kind: str, kernel: str) -> None:
    signal = picture(kind, 25, 128)
    noise = noise_of(kernel, signal, 3)
    movie = signal[1:] + noise[1:] + 0.3 * noise[:-1]
    stats = noise_statistics(movie)
    assert stats.blinded_lags == (1,)
    assert stats.temporal_correlation[1] == pytest.approx(0.3 / 1.09, abs=0.02)
    assert stats.hole == KERNELS[kernel][1]
    assert not stats.fixed_pattern
    assert any("lag" in text for text in stats.warnings)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("strength", [1, 4])
def test_independent_noise_over_still_pictures_is_not_flagged(kind: str, strength: int) -> None:
    signal = picture(kind, 24, 128)
    stats = noise_statistics(strength * signal + noise_of("1 px", signal, 5))
    assert stats.blinded_lags == ()
    assert not stats.fixed_pattern
    assert stats.temporal_correlation[1:] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", ["still lattice", "Brownian particles"])
def test_averaged_and_interpolated_frames_are_found(kind: str) -> None:
    movie = movie_of("1 px", kind, frames=26, size=128)
    sliding = (movie[:-2] + movie[1:-1] + movie[2:]) / 3
    assert noise_statistics(sliding).blinded_lags == (1, 2)
    movie[1:-1:2] = (movie[:-2:2] + movie[2::2]) / 2
    assert 1 in noise_statistics(movie).blinded_lags


@pytest.mark.parametrize("kind", ["still lattice", "rotating lattice", "Brownian particles"])
@pytest.mark.parametrize("shape", [(128, 128), (1, 128)], ids=["gain residue", "columns"])
def test_frozen_pattern_is_found(kind: str, shape: tuple[int, int]) -> None:
    movie = movie_of("1 px", kind, frames=24, size=128)
    frozen = np.random.default_rng(2).normal(0, 0.4, shape)
    stats = noise_statistics(movie + frozen)
    assert stats.fixed_pattern
    assert stats.blinded_lags == (1, 2, 3, 4)
    assert stats.fixed_pattern_fraction == pytest.approx(0.16 / 1.4, abs=0.05)
    assert any("frozen" in text for text in stats.warnings)


def textured(seed: int, sigma: float, contrast: float, size: int) -> np.ndarray:
    """Return a still ``(size, size)`` picture of random blobs of a Gaussian's width, px."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return contrast * blobs / blobs.std()


@pytest.mark.parametrize("contrast", [0, 60], ids=["empty", "still"])
@pytest.mark.parametrize(
    ("frames", "size", "seeds"), [(4, 64, (27, 35)), (6, 96, range(4)), (7, 64, range(4))]
)
def test_a_few_frames_of_independent_noise_have_nothing_that_lasts(
    frames: int, size: int, seeds: tuple[int, ...], contrast: float
) -> None:
    for seed in seeds:
        noise = np.random.default_rng(seed).normal(100, 10, (frames, size, size))
        stats = noise_statistics(noise + textured(seed, 4, contrast, size))
        assert not stats.fixed_pattern
        assert stats.blinded_lags == ()


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize("shape", [(96, 96), (1, 96)], ids=["gain residue", "columns"])
def test_a_strong_frozen_pattern_is_found_in_a_few_frames(
    frames: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    movie = rng.normal(100, 10, (frames, 96, 96)) + textured(1, 4, 60, 96)
    stats = noise_statistics(movie + rng.normal(0, 7.5, shape))
    assert stats.fixed_pattern
    assert stats.blinded_lags == (1, 2, 3, 4)


# --- Cuts ---------------------------------------------------------------------------------------


def scenes_of(starts: tuple[int, ...], frames: int) -> np.ndarray:
    """Return noise of standard deviation 10 over another still texture from each start on."""
    movie = np.random.default_rng(5).normal(500, 10, (frames, 192, 192))
    for k, start in enumerate((0, *starts)):
        movie[start:] += textured(k, 1, 60, 192) - (textured(k - 1, 1, 60, 192) if k else 0)
    return movie.astype(np.float32)


@pytest.mark.parametrize(("frames", "starts"), [(40, (10, 20, 30)), (8, (4,))])
def test_frames_across_a_cut_are_not_compared(frames: int, starts: tuple[int, ...]) -> None:
    movie = Movie.from_array(scenes_of(starts, frames))
    health = check(movie)
    assert np.flatnonzero(np.diff(health.segment)).tolist() == [s - 1 for s in starts]
    stats = noise_of_checked(movie, health)
    assert stats.hole == (1, 1)
    assert stats.sigma == pytest.approx(10, rel=0.05)
    assert not stats.fixed_pattern
    assert np.median(stats.mean_variance.variances) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(("frames", "start", "gain"), [(8, 4, 1.5), (12, 4, 0.5), (12, 8, 2.0)])
def test_frames_across_a_jump_of_the_brightness_are_not_compared(
    frames: int, start: int, gain: float
) -> None:
    """Scenes of different length and noise weigh the same in a change and in its power."""
    picture = textured(0, 2, 60, 192) + 500
    brightness = np.where(np.arange(frames) < start, 1, gain)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 10, (frames, 192, 192)) * np.sqrt(brightness)
    movie = Movie.from_array((picture * brightness + noise).astype(np.float32))
    health = check(movie)
    assert [f.frames for f in health.findings if f.code == "intensity-jump"] == [(start,)]
    stats = noise_of_checked(movie, health)
    assert stats.hole == (1, 1)
    levels = 10 * np.sqrt(brightness)
    assert levels.min() * 0.95 < stats.sigma < levels.max() * 1.05
    assert stats.blinded_lags == ()
    assert not stats.fixed_pattern


def test_flashes_in_the_first_frame_of_a_scene_are_left_out() -> None:
    movie = scenes_of((10,), 20)
    movie[10][np.random.default_rng(0).random((192, 192)) < 3e-3] += 5000
    stats = noise_statistics(movie, scenes=np.arange(20) >= 10)
    assert stats.hole == (1, 1)
    assert stats.sigma == pytest.approx(10, rel=0.05)
    assert any("flash" in text for text in stats.warnings)


# --- Noise level --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["still particles", "slow lattice"])
def test_gain_and_read_noise(kind: str) -> None:
    rng = np.random.default_rng(1)
    electrons = 10 + 40 * picture(kind, 24, 128)
    curve = noise_statistics(3 * rng.poisson(electrons) + rng.normal(0, 5, electrons.shape))
    assert curve.mean_variance.reliable
    assert curve.mean_variance.gain == pytest.approx(3, rel=0.15)
    assert 0 < curve.mean_variance.read_noise < 9


@pytest.mark.parametrize(
    ("scene", "options"), [("stem-mos2", {}), ("au-growth", {"dose_e_per_A2": 1.0})]
)
def test_gain_of_weak_signals_that_move(scene: str, options: dict[str, float]) -> None:
    """Neither noise in the means nor a picture that moves on flattens or steepens the line."""
    made = SCENES[scene](frames=24, size=160, seed=1, **options)
    noisy, truth = (np.asarray(m.data[:], float) for m in (made.noisy, made.truth))
    gain, offset = np.polyfit(truth.ravel(), ((noisy - truth) ** 2).ravel(), 1)
    curve = noise_statistics(made.noisy).mean_variance
    assert curve.reliable
    assert curve.gain == pytest.approx(gain, rel=0.08)
    at_mean = gain * truth.mean() + offset
    assert curve.gain * truth.mean() + curve.offset == pytest.approx(at_mean, rel=0.03)


@pytest.mark.parametrize(("step", "right"), [(0.0, True), (0.5, True), (3.3, False), (5.0, False)])
def test_a_lattice_that_moves_too_fast_gives_no_gain(step: float, right: bool) -> None:
    t, y, x = np.ogrid[:24, :128, :128]
    k = 2 * np.pi / 14
    lattice = np.cos(k * (y - step * t)) * np.cos(k * (x - 0.7 * step * t))
    counts = np.random.default_rng(0).poisson(60 * (1 + 0.5 * lattice))
    curve = noise_statistics(counts.astype(np.float32)).mean_variance
    assert curve.reliable == right
    assert not right or curve.gain == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["still particles", "slow lattice"])
def test_gain_of_a_weak_contrast(kind: str) -> None:
    electrons = 1 + 0.4 * picture(kind, 24, 128)
    curve = noise_statistics(3 * np.random.default_rng(1).poisson(electrons)).mean_variance
    assert curve.reliable
    assert curve.gain == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize("rate", [0.006, 0.3])
def test_variance_of_few_electrons_is_not_taken_too_low(rate: float) -> None:
    counts = np.random.default_rng(0).poisson(rate, (40, 128, 128))
    curve = noise_statistics(counts).mean_variance
    assert curve.gain * counts.mean() + curve.offset == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("electrons", [2.0, 20.0])
def test_variance_of_skewed_noise_is_known_within_a_percent(electrons: float) -> None:
    """An error of the noise variance is as large an error of the estimated squared error."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(electrons, (30, 192, 192))
    charge = rng.gamma(np.maximum(counts, 1), 12.0) * (counts > 0)  # 12 per electron, exponential
    blurred = ndimage.convolve1d(ndimage.convolve1d(charge, [0.12, 0.76, 0.12]), [0.1, 0.8, 0.1])
    curve = noise_statistics(blurred.astype(np.float32)).mean_variance
    if curve.reliable:
        assert curve.gain * blurred.mean() + curve.offset == pytest.approx(blurred.var(), rel=0.01)
    assert curve.variances.mean() == pytest.approx(blurred.var(), rel=0.01)


def test_skewed_counts_over_a_flat_field_have_no_slope_of_their_own() -> None:
    counts = np.random.default_rng(0).poisson(0.3, (24, 128, 128))
    stats = noise_statistics(counts)
    assert not stats.mean_variance.reliable
    assert "gain unknown" in format_table(stats)


def test_real_movie_has_the_gain_of_its_adjacent_differences(au_movie_path: Path) -> None:
    frames = tifffile.imread(au_movie_path)[:24, :256, :256].astype(float)
    stats = noise_statistics(frames)
    curve = stats.mean_variance
    variance = (np.diff(frames, axis=0) ** 2).mean() / 2
    at_mean = float(np.interp(frames.mean(), curve.means, curve.variances))
    assert at_mean == pytest.approx(variance, rel=0.06)
    # Pixel by pixel, with means and variances of different frames, so that the noise that they
    # share makes no slope; a second mean takes the place of the noisy first one.
    one, two = frames[:12], frames[12:]
    difference = (np.diff(two, axis=0) ** 2).mean(axis=0) / 2
    slope = np.cov(one.mean(0).ravel(), difference.ravel())[0, 1]
    slope /= np.cov(one.mean(0).ravel(), two.mean(0).ravel())[0, 1]
    assert curve.reliable
    assert curve.gain == pytest.approx(slope, rel=0.15)


def test_sigma_is_the_noise_and_follows_the_units() -> None:
    movie = movie_of("2 px", "empty", frames=8, size=96) - 10
    stats = noise_statistics(movie)
    assert stats.sigma == pytest.approx(movie.std(), rel=0.02)
    scaled = noise_statistics(movie.astype(float) * 1e-20 + 3e-20)
    assert scaled.sigma == pytest.approx(stats.sigma * 1e-20, rel=1e-3)
    assert scaled.difference_correlation == pytest.approx(stats.difference_correlation, abs=1e-3)


# --- Trouble ------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 70), st.integers(1, 70)),
    kind=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64, bool]),
    holes=st.booleans(),
)
def test_any_shape_and_type(shape: tuple[int, int, int], kind: type, holes: bool) -> None:
    movie = np.random.default_rng(0).poisson(2, shape).astype(kind)
    if holes and movie.dtype.kind == "f":
        movie[:, ::3, ::4] = np.nan
    stats = noise_statistics(movie)
    side = len(stats.difference_correlation)
    assert stats.difference_correlation.shape == stats.raw_correlation.shape == (side, side)
    assert stats.homogeneity.shape == (16, side, side)
    assert all(n % 2 == 1 and n <= max(side, 1) for n in stats.hole)
    assert stats.confidence in ("high", "medium", "low")
    assert stats.sigma >= 0
    back = NoiseStatistics.from_dict(json.loads(json.dumps(stats.to_dict(), allow_nan=False)))
    assert back.hole == stats.hole
    np.testing.assert_allclose(back.difference_correlation, stats.difference_correlation)
    np.testing.assert_allclose(back.temporal_correlation, stats.temporal_correlation)
    assert format_table(back).splitlines()


def test_odd_sizes_of_users() -> None:
    movie = np.random.default_rng(0).normal(size=(2, 959, 927)).astype(np.float32)
    assert noise_statistics(movie).hole == (1, 1)


def test_one_frame_says_that_it_is_a_guess() -> None:
    stats = noise_statistics(movie_of("2 px", "still particles", frames=1, size=256))
    assert stats.hole == (5, 5)
    assert stats.confidence == "low"
    assert "one frame" in stats.reason
    assert np.isnan(stats.temporal_correlation[1:]).all()


@pytest.mark.parametrize("frames", [1, 5])
def test_constant_movie_has_no_noise(frames: int) -> None:
    stats = noise_statistics(np.full((frames, 64, 64), 7, np.uint8))
    assert (stats.hole, stats.sigma, stats.confidence) == ((1, 1), 0.0, "low")
    assert stats.warnings


def test_repeated_frames_are_said() -> None:
    frame = np.random.default_rng(0).normal(size=(1, 64, 64))
    stats = noise_statistics(np.repeat(frame, 6, axis=0))
    assert stats.confidence == "low"
    assert "identical" in stats.warnings[0]


def test_broken_frames_pixels_and_borders_do_not_matter() -> None:
    movie = movie_of("2 px", "Brownian particles", frames=20, size=128).astype(float)
    rng = np.random.default_rng(0)
    movie[:, rng.random((128, 128)) < 5e-4] += 200  # hot
    movie[rng.random(movie.shape) < 1e-4] += 300  # X-rays
    movie[4] = np.nan
    movie[7, 30:40] = np.inf
    movie[:, :25] = 0  # the empty border of a drift-corrected movie
    stats = noise_statistics(movie)
    assert stats.hole == (5, 5)
    assert stats.sigma == pytest.approx(1, abs=0.2)
    assert stats.blinded_lags == ()
    text = " ".join(stats.warnings)
    assert "stuck" in text
    assert "flash" in text


def test_flicker_of_the_whole_frame_is_not_correlated_noise() -> None:
    movie = np.random.default_rng(0).poisson(100, (20, 128, 128)).astype(float)
    movie[::2] *= 1.3
    stats = noise_statistics(movie)
    assert stats.hole == (1, 1)
    assert stats.blinded_lags == ()


def test_line_noise_is_named() -> None:
    rng = np.random.default_rng(0)
    movie = rng.normal(size=(20, 128, 128)) + 0.5 * rng.normal(size=(20, 128, 1))
    warnings = noise_statistics(movie).warnings
    assert any(text.startswith("Each row") for text in warnings)
    assert not any(text.startswith("Each column") for text in warnings)


def test_skipped_frames_and_bad_pixels_are_not_looked_at() -> None:
    clean = movie_of("white", "empty", frames=12, size=96)
    spoiled, mask = clean.copy(), np.zeros((96, 96), bool)
    spoiled[5] = ndimage.gaussian_filter(spoiled[5], 3) * 50
    mask[40:44, 50:54] = True
    spoiled[:, mask] = np.random.default_rng(0).normal(0, 50, (12, 16))
    stats = noise_statistics(spoiled, skip_frames=[5], bad_pixels=mask)
    assert stats.hole == (1, 1)
    assert stats.sigma == pytest.approx(noise_statistics(clean).sigma, rel=0.02)


def test_frames_are_read_one_at_a_time_and_only_some() -> None:
    asked: list[int] = []

    def read(index: int) -> np.ndarray:
        asked.append(index)
        return np.random.default_rng(index).normal(size=(64, 64))

    frames = LazyFrames(read, (100_000, 64, 64), np.float32)
    stats = noise_statistics(Movie(frames), frames=24)
    assert stats.hole == (1, 1)
    assert len(asked) < 40
    assert max(asked) - min(asked) > 90_000


def test_wrong_options_are_explained() -> None:
    movie = np.zeros((3, 16, 16))
    for wrong in (
        {"max_lag": -1},
        {"max_temporal_lag": 0},
        {"frames": 0},
        {"scenes": np.zeros(4, int)},
        {"bad_pixels": np.zeros((4, 4), bool)},
    ):
        with pytest.raises(ShineError):
            noise_statistics(movie, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ShineError, match="incomplete"):
        NoiseStatistics.from_dict({"hole": [3, 3]})


def test_table_and_figure_show_the_hole() -> None:
    stats = noise_statistics(movie_of("rows", "empty", frames=8, size=96))
    assert "1×5" in format_table(stats)
    figure = plot_noise(stats)
    hole = figure.axes[1].patches[0]
    assert (hole.get_height(), hole.get_width()) == (1, 5)
    values = {text.get_text() for text in figure.axes[1].texts}
    assert f"{stats.difference_correlation[8, 9]:.2f}".replace("0.", ".") in values
    figure.canvas.draw()
