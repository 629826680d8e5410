"""The mean of a denoised movie is that of the picture, not that of a few noisy frames."""

from __future__ import annotations

import numpy as np
import pytest
from small import model, noisy, scene

from shine_em.brightness import brightness_offset, expected_means
from shine_em.denoising import Denoiser
from shine_em.movie import Movie
from shine_em.patches import Timeline
from shine_em.planning import Options, prepare

FRAMES = 100
PICKED = [10, 30, 50, 70, 90]
NEAR = [range(t - 10, t + 10) for t in PICKED]


def expected(means: np.ndarray, variance: float) -> np.ndarray:
    return expected_means(PICKED, NEAR, means, variance)


def test_means_that_take_a_smooth_course_are_found_beneath_their_noise() -> None:
    t = np.arange(FRAMES)
    true = 50 - 0.02 * t - 0.001 * (t - 20) ** 2
    off = []
    for seed in range(20):
        means = true + np.random.default_rng(seed).normal(0, 0.3, FRAMES)
        off.append((expected(means, 0.09) - true[PICKED]).mean())
    alone = 0.3 / np.sqrt(len(PICKED))
    assert np.std(off) < 0.5 * alone
    assert abs(np.mean(off)) < 0.2 * alone


def test_a_beam_that_flickers_is_not_smoothed_away() -> None:
    t = np.arange(FRAMES)
    true = 50 + np.where(t % 2, 1.0, -1.0)
    noise = np.random.default_rng(0).normal(0, 0.05, FRAMES)
    np.testing.assert_allclose(expected(true + noise, 0.05**2), (true + noise)[PICKED], atol=0.01)
    np.testing.assert_allclose(expected(true, 0.0), true[PICKED], atol=1e-9)


@pytest.mark.parametrize("around", [1, 3, 6])
def test_with_few_frames_each_speaks_for_itself(around: int) -> None:
    means = np.random.default_rng(1).normal(50, 1, FRAMES)
    near = [range(t, t + around) for t in PICKED]
    found = expected_means(PICKED, near, means, 1.0)
    np.testing.assert_array_equal(found, means[PICKED])


def test_the_ends_of_a_movie_count_no_more_than_other_frames() -> None:
    movie = Movie.from_array(noisy(60, 16, 16))
    timeline = Timeline(60, prepare(movie, Options(steps=1)).health)
    assert timeline.spread(5) == [6, 18, 30, 42, 54]
    assert timeline.spread(60) == timeline.spread(99) == list(range(60))
    assert timeline.near(3, 5) == list(range(9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_level_of_a_whole_movie_is_met_more_closely_than_its_noise_allows_few_frames(
    seed: int,
) -> None:
    size, frames = 512, 60
    truth = scene(frames, size, size, seed=seed)
    movie = Movie.from_array(np.random.default_rng([seed, 2]).poisson(truth).astype(np.uint16))
    plan = prepare(movie, Options(steps=1))
    bare = model()
    found = brightness_offset(movie, plan.health, plan.noise, bare) * bare.normalisation.scale
    stream = Denoiser(bare).stream(
        movie, plan.health, frames=Timeline(frames, plan.health).spread(5)
    )
    missing = np.mean([truth[t].mean() - frame.mean() for t, _, frame in stream])
    alone = plan.noise.sigma / np.sqrt(size * size * 5)
    assert abs(found - missing) < 0.7 * alone
