"""Drift of the whole scene: measured, followed by whole pixels, and only where it helps."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from small import health, model

from shine_em.denoising import Denoiser
from shine_em.doctor import check
from shine_em.errors import ShineError
from shine_em.metrics import psnr
from shine_em.movie import Movie
from shine_em.network import NetworkConfig
from shine_em.noise import noise_statistics
from shine_em.patch_pool import PatchPool
from shine_em.patches import Normalisation, Timeline, cut
from shine_em.planning import Options, prepare
from shine_em.registration import Drift, _spread, measure_drift
from shine_em.training import train
from shine_em.training_settings import TrainingSettings


def atoms(places: np.ndarray, side: int, radius: float = 2.2) -> np.ndarray:
    """Return a picture of atoms at ``(n, 2)`` places."""
    rows = np.exp(-((np.arange(side) - places[:, :1]) ** 2) / (2 * radius**2))
    columns = np.exp(-((np.arange(side) - places[:, 1:]) ** 2) / (2 * radius**2))
    return rows.T @ columns


def crystal(steps: np.ndarray, side: int = 128) -> np.ndarray:
    """Return a lattice with vacancies that moves by ``(t - 1, 2)`` steps, ``(t, y, x)``."""
    rng = np.random.default_rng(4)
    i, j = np.mgrid[-10:24, -10:24]
    kept = rng.random(i.shape) > 0.2
    places = np.stack([10 * i + 2 * j, 11 * j - 2.5 * i], -1)[kept]
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return np.array([atoms(places + p, side) for p in path])


def noisy(truth: np.ndarray, snr: float, seed: int = 0) -> Movie:
    """Return the movie with white noise, of which the picture's contrast is ``snr`` times."""
    noise = np.random.default_rng(seed).normal(size=truth.shape)
    return Movie.from_array((truth + noise * truth.std() / snr).astype(np.float32))


def drift_of(movie: Movie) -> Drift:
    return measure_drift(movie, health=check(movie), noise=noise_statistics(movie))


STEPS = np.array([2.3, -1.8]) + 0.4 * np.random.default_rng(0).normal(size=(15, 2))


def test_the_path_is_found_to_a_fraction_of_a_pixel():
    drift = drift_of(noisy(crystal(STEPS), 1.0))
    assert drift.helps
    assert np.abs(np.diff(drift.path, axis=0) - STEPS).max() < 0.5
    assert drift.step == pytest.approx(np.hypot(2.3, 1.8), abs=0.4)
    assert drift.error < 0.2
    assert "drifts" in drift.reason


def test_the_trend_is_found_at_minus_14_decibels():
    drift = drift_of(noisy(crystal(STEPS), 0.2))
    assert drift.helps
    assert np.abs(np.diff(drift.path, axis=0).mean(0) - STEPS.mean(0)).max() < 0.4


def test_a_jump_of_the_stage_is_followed():
    steps = STEPS.copy()
    steps[7] = (-4.0, 16.0)
    path = np.cumsum(steps, axis=0)
    places = np.random.default_rng(6).uniform(-60, 190, (250, 2))
    movie = noisy(np.array([atoms(places + p, 128) for p in (0 * path[0], *path)]), 2.0)
    found = replace(check(movie), segment=np.zeros(16, int))  # the jump is no scene cut here
    drift = measure_drift(movie, health=found, noise=noise_statistics(movie))
    assert np.abs(np.diff(drift.path, axis=0) - steps).max() < 0.5


def broad(width: float, side: int, step: tuple[int, int], seed: int) -> np.ndarray:
    """Return 16 frames of random blobs of a Gaussian's width, px, that drift steadily."""
    wide = np.random.default_rng(seed).normal(size=(side + 160, side + 160))
    wide = gaussian_filter(wide, width, mode="wrap")
    places = 80 - np.outer(np.arange(16) - 8, step)
    return np.array([wide[y : y + side, x : x + side] for y, x in places])


@pytest.mark.parametrize(
    ("width", "side", "step", "snr"),
    [
        (8, 128, (0, 2), 10.0),
        (8, 128, (0, 2), 1.0),
        (12, 128, (0, 2), 2.0),
        (12, 128, (0, 2), 10.0),
        (8, 256, (0, 2), 1.0),
        (8, 128, (5, -6), 1.0),
        (2, 128, (0, 2), 1.0),
    ],
)
def test_the_drift_of_a_broad_picture_is_not_too_small(width, side, step, snr):
    found = [drift_of(noisy(broad(width, side, step, s), snr, seed=s)) for s in range(3)]
    off = np.array([np.diff(drift.path, axis=0) - step for drift in found])
    error = np.mean([drift.error for drift in found])
    assert np.abs(np.median(off, axis=(0, 1))).max() < 0.03 + 0.3 * error
    assert 0.4 < np.sqrt(np.mean(off**2)) / error < 2


@pytest.mark.parametrize(("width", "snr"), [(8, 10.0), (8, 1.0), (12, 2.0)])
def test_a_broad_picture_at_rest_does_not_drift(width, snr):
    for seed in range(3):
        drift = drift_of(noisy(broad(width, 128, (0, 0), seed), snr, seed=seed))
        assert drift.step == 0
        assert not drift.helps


@pytest.mark.parametrize("snr", [1.0, 0.2, 0.08])
def test_a_crystal_at_rest_is_left_alone(snr):
    assert not drift_of(noisy(crystal(np.zeros((15, 2))), snr)).helps


def test_drift_from_a_pixel_and_a_half_is_followed():
    drift = drift_of(noisy(crystal(np.full((15, 2), (0.0, 1.5))), 1.0))
    assert drift.helps
    assert drift.step == pytest.approx(1.5, abs=0.15)


def test_slow_drift_is_left_to_the_network():
    drift = drift_of(noisy(crystal(np.full((15, 2), 0.4)), 1.0))
    assert not drift.helps


def test_particles_that_go_their_own_ways_have_no_common_drift():
    rng = np.random.default_rng(2)
    places = rng.uniform(0, 128, (25, 2)) + np.cumsum(rng.normal(scale=2, size=(16, 25, 2)), 0)
    assert not drift_of(noisy(np.array([atoms(p, 128, 5.0) for p in places]), 1.0)).helps


def test_a_detector_pattern_at_rest_does_not_hide_the_drift():
    truth = crystal(STEPS)
    pattern = np.random.default_rng(9).normal(size=truth.shape[1:]) * truth.std()
    drift = drift_of(noisy(truth + 0.5 * pattern, 1.0))
    assert np.abs(np.diff(drift.path, axis=0).mean(0) - STEPS.mean(0)).max() < 0.5


def test_the_path_ends_at_a_cut_and_passes_blanks_and_copies():
    steps = np.full((15, 2), (0.0, 3.0))
    raw = np.asarray(noisy(crystal(steps), 1.0).data)
    raw[4] = raw[3]  # dropped, and filled with the one before
    raw[9] = 0  # beam blanked
    found = replace(
        health(raw.shape, location=float(raw.mean()), scale=float(raw.std())),
        duplicate_of=np.where(np.arange(16) == 4, 3, np.arange(16)),
        blank=np.arange(16) == 9,
        segment=(np.arange(16) >= 12).astype(int),
    )
    movie = Movie.from_array(raw)
    path = measure_drift(movie, health=found, noise=noise_statistics(crystal_free(raw))).path
    assert path[4] == pytest.approx(path[3])
    assert path[5] - path[3] == pytest.approx([0, 6], abs=0.4)
    assert path[10] - path[8] == pytest.approx([0, 6], abs=0.4)
    assert path[12] == pytest.approx(path[11])


def crystal_free(raw: np.ndarray) -> np.ndarray:
    """Return white noise as strong as that of `noisy` at SNR 1."""
    sigma = float(crystal(np.zeros((1, 2))).std())
    return np.random.default_rng(1).normal(scale=sigma, size=(8, *raw.shape[1:]))


def test_a_movie_of_one_frame_does_not_drift():
    movie = noisy(crystal(STEPS)[:1], 1.0)
    drift = drift_of(movie)
    assert not drift.helps
    assert drift.path.shape == (1, 2)


@pytest.mark.parametrize("width", [4.0, 16.0])
def test_the_noise_of_an_average_over_time_needs_no_square_of_the_frames(width):
    for n in (1, 2, 5, 32, 33, 34, 66, 128, 129, 130, 300):
        weights = gaussian_filter1d(np.eye(n), width, axis=0, mode="nearest")
        np.testing.assert_allclose(_spread(n, width), np.sqrt((weights**2).sum(1)), rtol=1e-12)
    tracemalloc.start()
    assert len(_spread(20_000, width)) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6


def test_cut_takes_whole_pixels_and_fills_what_lies_outside():
    image = np.arange(30.0).reshape(5, 6)
    here = (slice(1, 4), slice(2, 6))
    assert np.array_equal(cut(image, here), image[1:4, 2:6])
    assert np.array_equal(cut(image, here, (1, -2)), image[2:5, 0:4])
    outside = cut(image, here, (2, 1), fill=-1)
    assert np.array_equal(outside[:2, :3], image[3:5, 3:6])
    assert np.all(outside[2] == -1)
    assert np.all(outside[:, 3] == -1)
    assert np.all(cut(image, here, (50, 0), fill=7) == 7)


def moving(t: int = 8, step: tuple[int, int] = (1, -2)) -> tuple[np.ndarray, np.ndarray]:
    """Return random pictures, each the one before displaced by whole pixels, and the path."""
    wide = np.random.default_rng(3).normal(20, 6, (90, 90)).astype(np.float32)
    path = np.outer(np.arange(t), step)
    frames = [wide[16 - y : 64 - y, 20 - x : 68 - x] for y, x in path]
    return np.array(frames), path.astype(float)


def test_neighbours_lie_on_the_centre_frame_in_training_and_denoising():
    raw, path = moving()
    found = replace(health(raw.shape), path=path)
    pool = PatchPool(Movie.from_array(raw), found, Normalisation(20.0, 6.0), frames=5)
    for step in range(6):
        windows = pool.batch(pool.draw(step, size=2, crop=24, seed=0)).windows
        for window in windows:
            for frame in window:
                there = frame != 0  # zero is what came from outside
                assert there.mean() > 0.5
                assert np.array_equal(frame[there], window[2][there])
    trained = model()
    (_, _, got), *_ = Denoiser(trained).stream(Movie.from_array(raw), found, frames=[3])
    window = np.zeros((1, 5, *raw.shape[1:]), np.float32)
    normal = trained.normalisation.apply(raw)
    for k in range(5):
        y, x = (int(v) for v in path[k + 1] - path[3])
        rolled = np.roll(normal[k + 1], (-y, -x), (0, 1))
        if y:
            rolled[slice(-y, None) if y > 0 else slice(None, -y)] = 0
        if x:
            rolled[:, slice(-x, None) if x > 0 else slice(None, -x)] = 0
        window[0, k] = rolled
    expected = trained.normalisation.invert(Denoiser(trained).predict(window)[0])
    assert got == pytest.approx(expected, abs=1e-4)


def test_blinded_neighbours_stay_where_their_noise_is():
    """Noise correlated in time sits on the same pixel: displaced, it would escape the hole."""
    raw, path = moving()
    found = replace(health(raw.shape), path=path)
    timeline = Timeline(8, found, blinded_lags=(1,))
    assert timeline.displacements((1, 2, 3, 4, 5)) == [(-2, 4), (0, 0), (0, 0), (0, 0), (2, -4)]
    denoiser = Denoiser(model(blinded=(1,)))

    def frame_3(pixels: np.ndarray) -> np.ndarray:
        ((_, _, denoised),) = denoiser.stream(Movie.from_array(pixels), found, frames=[3])
        return denoised

    before = frame_3(raw)
    hidden = (24, 25)
    for changed in (2, 3, 4):
        other = raw.copy()
        other[changed][hidden] += 50
        after = frame_3(other)
        assert after[hidden] == before[hidden]
        assert not np.array_equal(after, before)


def test_a_window_across_the_ends_knows_how_far_each_frame_has_moved():
    _, path = moving()
    timeline = Timeline(8, replace(health((8, 48, 48)), path=path))
    window = timeline.window(0, 5)
    assert window == (4, 3, 0, 1, 2) or sorted(window) == [0, 1, 2, 3, 4]
    assert timeline.displacements(window) == [(i, -2 * i) for i in window]
    assert Timeline(8).displacements(window) == [(0, 0)] * 5


def test_the_plan_registers_where_it_helps_and_as_told():
    drifting = noisy(crystal(STEPS), 1.0)
    plan = prepare(drifting, Options(steps=1))
    assert plan.settings.registered
    assert plan.health.path is not None
    assert plan.drift is not None
    left = prepare(drifting, Options(steps=1, register="never"))
    assert not left.settings.registered
    assert left.health.path is None
    still = noisy(crystal(np.full((15, 2), 0.4)), 1.0)
    assert not prepare(still, Options(steps=1)).settings.registered
    assert prepare(still, Options(steps=1, register="always")).settings.registered
    with pytest.raises(ShineError, match="auto, always or never"):
        Options(register="perhaps")


def test_a_registered_movie_comes_out_better_after_as_many_steps():
    truth = crystal(STEPS, 96)
    movie = noisy(truth, 0.7)
    found = check(movie)
    drift = measure_drift(movie, health=found, noise=noise_statistics(movie))
    settings = TrainingSettings(steps=60, crop=96, hole=(1, 1), holes=((1, 1), (3, 3)))
    scores = []
    for path in (None, drift.path):
        seen = replace(found, path=path)
        state = train(movie, seen, NetworkConfig(), settings)
        trained = replace(model(), state=state, normalisation=Normalisation.of(found))
        stream = Denoiser(trained).stream(movie, seen, frames=[2, 5, 8, 11])
        scores.append(np.mean([psnr(frame, truth[t], protocol="affine") for t, _, frame in stream]))
    assert scores[1] > scores[0] + 0.5
