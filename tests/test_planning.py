"""What is decided from the measured noise before training begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small import scene

from shine_em.doctor import check
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.noise import noise_of
from shine_em.planning import Options, is_weak, prepare, window_frames


def movie(dose: float, frames: int = 30) -> Movie:
    counts = np.random.default_rng(3).poisson(scene(frames, 64, 64, dose=dose))
    return Movie.from_array(counts.astype(np.float32))


@pytest.mark.parametrize(
    ("dose", "frames", "preset", "window"),
    [
        (20.0, 30, "lean", 5),
        (0.2, 30, "lean", 9),
        (0.2, 26, "lean", 5),  # as many frames as three windows of nine, or the ends prevail
        (0.2, 30, "paper", 5),
    ],
)
def test_a_picture_buried_in_noise_gets_a_longer_window(dose, frames, preset, window):
    made = movie(dose, frames)
    health = check(made)
    weak = is_weak(made, health, noise_of(made, health))
    assert weak == (dose < 1)
    assert window_frames(made, health, weak=weak, preset=preset) == window


def test_hot_pixels_and_blank_frames_do_not_pass_for_a_strong_picture():
    raw = np.asarray(movie(0.2, 34).data).copy()
    raw[:, 5, 7] = raw[:, 40, 50] = 4000
    raw[[4, 11]] = 0
    made = Movie.from_array(raw)
    health = check(made)
    assert is_weak(made, health, noise_of(made, health))


def test_short_scenes_keep_the_usual_window():
    made = movie(0.2)
    health = check(made)
    cut = replace(health, segment=np.arange(30) // 5)
    assert window_frames(made, cut, weak=True) == 5
    assert window_frames(made, health, weak=True) == 9


def test_a_window_that_was_asked_for_is_kept():
    assert prepare(movie(0.2), Options(frames=3)).config.frames == 3
    assert prepare(movie(0.2), Options()).config.frames == 9


def test_a_movie_without_noise_is_not_weak():
    still = Movie.from_array(np.tile(np.arange(32, dtype=np.uint8), (30, 32, 1)))
    health = check(still)
    assert not is_weak(still, health, noise_of(still, health))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hole": 3}, r"as \(3, 3\), not 3"),
        ({"hole": "3x3"}, "not '3x3'"),
        ({"hole": (3, 3.5)}, "rows and columns"),
        ({"seed": "x"}, "whole number, not 'x'"),
        ({"seed": None}, "whole number, not None"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"frames": "5"}, "frames must be a whole number"),
    ],
)
def test_options_of_another_type_are_told_in_plain_words(options, words):
    with pytest.raises(ShineError, match=words):
        Options(**options)
    assert Options(seed=np.int64(3), steps=np.int32(4), hole=[3, np.int64(5)]).seed == 3
