"""The main job from Python: movies of every kind come out whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small import model, noisy, scene, stop_at

import shine_em as shine
from shine_em.checkpoint import Choice
from shine_em.denoising import mean_tolerance
from shine_em.ensemble import candidate_holes
from shine_em.events import Event
from shine_em.job import Interrupted, run
from shine_em.pacing import Planner
from shine_em.planning import Options, parse_duration


def denoised(movie: np.ndarray, **options: object) -> np.ndarray:
    result = shine.denoise(movie, **{"steps": 6, **options})
    out = np.asarray(result.movie.data)
    assert out.shape == (movie.shape if movie.ndim == 3 else (1, *movie.shape))
    assert out.dtype == np.float32
    return out


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    n=st.integers(1, 6),
    size=st.tuples(st.integers(16, 50), st.integers(16, 50)),
    dtype=st.sampled_from(["u1", "u2", "i2", "u4", "f4", "f8"]),
)
def test_any_length_size_and_type(n: int, size: tuple[int, int], dtype: str) -> None:
    out = denoised(noisy(n, *size, dose=10.0).astype(dtype))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", [(2, 959, 927), (3, 5, 300), (4, 16, 16), (1, 64, 64)])
def test_odd_movies_work(shape: tuple[int, int, int]) -> None:
    assert np.isfinite(denoised(noisy(*shape))).all()


def test_broken_pixels_and_frames_do_not_spread() -> None:
    raw = noisy(12, 40, 40).astype(np.float32)
    raw[3, 5, 5], raw[7, 20, 20] = np.nan, np.inf
    raw[9] = 0.0  # the beam was blanked
    out = denoised(raw, steps=20)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[9], 0.0)
    assert float(out[8].min()) > 0.2 * float(raw[8].mean())


def test_a_constant_movie_is_refused() -> None:
    with pytest.raises(shine.ShineError, match="same value"):
        shine.denoise(np.full((6, 32, 32), 7.0, np.float32), steps=2)


def test_a_saturated_movie_works() -> None:
    raw = np.minimum(noisy(6, 32, 32), 24).astype(np.uint8)
    assert np.isfinite(denoised(raw)).all()


def test_denoising_brings_the_movie_closer_to_the_truth_at_every_frame() -> None:
    truth = scene(14, 64, 64)
    raw = noisy(14, 64, 64)
    out = denoised(raw, steps=120, seed=1)
    before = ((raw - truth) ** 2).mean((1, 2))
    after = ((out - truth) ** 2).mean((1, 2))
    assert (after < 0.35 * before).all()


def test_result_says_what_was_done() -> None:
    seen: list[Event] = []
    movie = shine.Movie.from_array(noisy(), pixel_size_nm=0.1, frame_time_s=2.0)
    result = shine.denoise(movie, steps=6, hole=(1, 3), seed=5, progress=seen.append)
    assert result.model.state.step == 6
    assert result.model.hole == (1, 3)
    assert set(result.model.holes) <= set(candidate_holes((1, 3)))
    assert result.model.state.settings.holes == ((1, 3), (1, 5), (3, 5), (3, 7))
    assert result.movie.pixel_size_nm == pytest.approx(0.1)
    assert result.movie.frame_time_s == pytest.approx(2.0)
    assert result.halves is not None
    assert len(result.halves["raw"]) == len(result.halves["denoised"]) > 0
    assert {e.stage for e in seen} >= {"training", "denoising"}
    assert [e.done for e in seen if e.stage == "denoising"] == list(range(1, 13))
    assert result.model.provenance["seed"] == 5


def test_a_model_is_reused_as_it_is() -> None:
    first = shine.denoise(noisy(), steps=6)
    again = shine.denoise(noisy(), model=first.model)
    np.testing.assert_array_equal(again.movie.data, first.movie.data)
    assert again.model is first.model


def test_a_model_may_be_given_by_its_file(tmp_path: Path) -> None:
    raw, trained = noisy(3, 24, 24), model()
    path = trained.save(tmp_path / "m.safetensors")
    expected = np.asarray(shine.denoise(raw, model=trained).movie.data)
    for name in (path, str(path)):
        got = np.asarray(shine.denoise(raw, model=name).movie.data)
        np.testing.assert_array_equal(got, expected)


def test_interrupting_returns_the_model(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        shine.denoise(noisy(), steps=9, progress=stop_at("training", 4))
    assert caught.value.model.state.step == 4
    path = caught.value.model.save(tmp_path / "m.safetensors")
    assert shine.Model.load(path).state.step == 4


def test_interrupting_while_denoising_keeps_the_model() -> None:
    with pytest.raises(Interrupted) as caught:
        shine.denoise(noisy(), steps=5, progress=stop_at("denoising"))
    assert caught.value.model.state.step == 5


def test_interrupting_after_the_last_frame_keeps_the_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shine_em.job.halves_snr", stop)
    result = shine.denoise(noisy(), steps=5)
    assert result.movie.shape == (12, 48, 48)
    assert result.halves is None
    assert [w for w in result.warnings if "interrupted" in w]


def test_interrupting_while_the_error_is_estimated_keeps_the_model() -> None:
    with pytest.raises(Interrupted) as caught:
        shine.denoise(noisy(), steps=5, ensemble=False, progress=stop_at("estimating the error"))
    assert caught.value.model.state.step == 5


def test_the_number_of_steps_is_fixed_early_and_stored() -> None:
    seen: list[Event] = []
    result = shine.denoise(noisy(8, 32, 32), time_budget="20s", progress=seen.append)
    totals = [e.total for e in seen if e.stage == "training"]
    planned = next(t for t in totals if t)
    assert totals.index(planned) < max(20, 0.1 * planned)
    assert len(set(totals)) <= 2 + len(Planner.looks)  # a machine may turn out quicker or slower
    assert result.model.state.settings.steps == totals[-1]
    assert result.model.state.step <= totals[-1]


def test_durations() -> None:
    assert parse_duration("90s") == 90
    assert parse_duration("5min") == parse_duration("5m") == 300
    assert parse_duration("1h30m") == 5400
    assert parse_duration(12) == 12
    for text in ("", "five", "5 parsecs", "-3s"):
        with pytest.raises(shine.ShineError, match="5min"):
            parse_duration(text)


def test_impossible_options_are_refused() -> None:
    for bad in (
        {"preset": "x"}, {"time_budget": -1.0}, {"steps": 0}, {"frames": 2}, {"hole": (2, 2)},
        {"hole": (17, 1)}, {"seed": -1}, {"time_budget": float("inf")},
    ):  # fmt: skip
        with pytest.raises(shine.ShineError):
            Options(**bad)


def test_every_frame_keeps_its_mean() -> None:
    raw = scene(12, 40, 40) * np.linspace(1.0, 1.6, 12)[:, None, None]  # the beam drifts
    raw = np.random.default_rng(0).poisson(raw).astype(np.float32)
    raw[4, 3, 3], raw[4, 30, 3], raw[5, 9, 9] = np.inf, -np.inf, np.inf
    raw[:, 20, 20] = 3000  # hot
    result = shine.denoise(raw, steps=20)
    good = np.isfinite(raw) & ~result.health.bad_pixels
    assert result.health.bad_pixels[20, 20]
    for t, frame in enumerate(np.asarray(result.movie.data)):
        assert np.isfinite(frame).all()
        mean = float(raw[t][good[t]].mean())
        off = float(frame[good[t]].mean()) - mean
        assert abs(off) <= mean_tolerance(mean, result.noise.sigma) + 1e-3


def test_same_seed_same_pixels_and_another_seed_others() -> None:
    # (After so few steps the ensemble might be the filter alone, which has no seed.)
    one, two, other = (denoised(noisy(), seed=seed, ensemble=False) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_a_model_says_where_another_movie_differs_from_its_own() -> None:
    trained = shine.denoise(noisy(), steps=6).model
    same = shine.denoise(noisy(8, 33, 57, seed=5), model=trained)
    assert not [w for w in same.warnings if "train anew" in w]
    assert same.movie.shape == (8, 33, 57)
    bright = shine.denoise(noisy(8, 33, 57, dose=200.0), model=trained)
    assert [w for w in bright.warnings if "intensities" in w]


def test_a_hole_smaller_than_the_noise_asks_for_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(12, 65, 65))
    noise = sum(white[:, dy : dy + 64, dx : dx + 64] for dy in (0, 1) for dx in (0, 1))
    result = shine.denoise((scene(12, 64, 64) + 4 * noise).astype(np.float32), steps=6, hole=(1, 1))
    assert min(result.noise.hole) >= 3
    assert [w for w in result.warnings if "smaller than" in w]


def test_neighbours_whose_noise_is_the_same_are_blinded() -> None:
    rng = np.random.default_rng(0)
    fresh = 5 * rng.normal(size=(25, 64, 64))
    raw = scene(24, 64, 64) + fresh[1:] + 0.8 * fresh[:-1]  # a lagging detector
    result = shine.denoise(raw.astype(np.float32), steps=6)
    assert 1 in result.noise.blinded_lags
    assert 1 in result.model.blinded_lags
    config = result.model.config
    assert not {config.centre - 1, config.centre + 1} & set(config.open_slots)


def test_an_interrupted_model_is_resumed_on_its_own_movie_only() -> None:
    raw = noisy()
    with pytest.raises(Interrupted) as caught:
        shine.denoise(raw, steps=9, progress=stop_at("training", 4))
    unfinished = caught.value.model
    how = {"options": Options(steps=9), "resume": unfinished}
    out: dict[int, np.ndarray] = {}
    result = run(shine.Movie.from_array(raw), out.__setitem__, **how)
    assert result.model.state.step == 9
    np.testing.assert_array_equal(np.stack([out[t] for t in range(12)]), denoised(raw, steps=9))
    with pytest.raises(shine.ShineError, match="other pixels"):
        run(shine.Movie.from_array(raw[1:]), out.__setitem__, **how)
    only_weights = replace(unfinished, state=replace(unfinished.state, current={}))
    with pytest.raises(shine.ShineError, match="no training that could go on"):
        run(shine.Movie.from_array(raw), out.__setitem__, options=Options(), resume=only_weights)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_trained_model_is_not_lost_where_memory_runs_out(error: type[Exception]) -> None:
    def sink(t: int, frame: np.ndarray) -> None:
        if t == 2:
            raise error("no room")

    with pytest.raises(Interrupted, match="out of memory") as caught:
        run(shine.Movie.from_array(noisy()), sink, options=Options(steps=3))
    assert caught.value.model.state.step == 3
    with pytest.raises(error):  # what came from a file is there still
        run(shine.Movie.from_array(noisy()), sink, options=Options(), model=caught.value.model)


def test_a_budget_that_is_used_up_is_refused_before_training() -> None:
    seen: list[Event] = []
    with pytest.raises(shine.ShineError, match="budget"):
        shine.denoise(noisy(60, 64, 64), time_budget=0.5, progress=seen.append)
    assert "training" not in {e.stage for e in seen}


def test_a_model_interrupted_before_its_steps_were_known_takes_them_from_the_command() -> None:
    raw = noisy()
    with pytest.raises(Interrupted) as caught:
        shine.denoise(raw, time_budget="30s", progress=stop_at("training", 2))
    unfinished = caught.value.model
    assert unfinished.state.settings.steps is None
    out: dict[int, np.ndarray] = {}
    result = run(
        shine.Movie.from_array(raw), out.__setitem__, options=Options(steps=5), resume=unfinished
    )
    assert result.model.state.step == 5


def test_a_resumed_job_does_what_was_planned() -> None:
    raw = noisy()
    with pytest.raises(Interrupted) as caught:
        shine.denoise(raw, steps=45, progress=stop_at("training", 40))
    # What a budget plans hangs on the machine's speed: this is not what steps alone plan.
    planned = Choice(((3, 3), (1, 1)), 1, with_filter=False, correct=False)
    unfinished = replace(caught.value.model, views=2, choice=planned)
    assert (caught.value.model.views, caught.value.model.choice) != (2, planned)
    out: dict[int, np.ndarray] = {}
    movie = shine.Movie.from_array(raw)
    done = run(movie, out.__setitem__, options=Options(), resume=unfinished).model
    assert (done.views, len(done.holes)) == (2, 1)
    assert done.linear is None
    assert done.correction is None
    older = replace(unfinished, choice=None)  # a file of an earlier version
    assert run(movie, out.__setitem__, options=Options(), resume=older).model.correction is not None


def test_noise_correlated_further_than_a_hole_reaches_is_denoised_and_told() -> None:
    white = np.random.default_rng(0).normal(size=(8, 96, 96))
    raw = scene(8, 96, 96) + 40 * ndimage.gaussian_filter(white, (0, 4, 4))
    result = shine.denoise(raw.astype(np.float32), steps=2)
    assert max(result.noise.hole) > 15
    assert max(result.model.hole) == 15
    assert [w for w in result.warnings if "smaller than" in w]


def test_a_movie_of_which_every_second_frame_is_blank_is_denoised() -> None:
    raw = noisy(16)
    raw[1::2] = 0
    result = shine.denoise(raw, steps=5)
    assert result.noise.sigma == pytest.approx(np.sqrt(20), rel=0.15)
    assert not result.noise.fixed_pattern


def test_repeated_frames_do_not_pass_for_noise_that_lives_on() -> None:
    raw = noisy(24)
    raw[5], raw[6], raw[13] = raw[4], raw[4], raw[12]
    assert shine.denoise(raw, steps=2).noise.blinded_lags == ()
    doubled = np.repeat(noisy(12), 2, axis=0)
    noise = shine.denoise(doubled, steps=2).noise
    assert noise.blinded_lags == ()
    assert noise.hole == (1, 1)
