"""Training that begins with shipped weights or another movie's model: what is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import model, noisy, scene, stop_at

import shine_em as shine
from shine_em import job
from shine_em.cli import main
from shine_em.job import Interrupted, run
from shine_em.network import NetworkConfig, build
from shine_em.planning import Options, prepare
from shine_em.simulate import au_growth
from shine_em.warm_start import FEWEST_PIXELS, beginning, shipped_weights


@pytest.fixture(scope="module")
def old() -> shine.Model:
    """Return a model of a movie taken with the same settings."""
    return shine.denoise(noisy(seed=1), steps=50).model


def distance(result: shine.Result, truth: np.ndarray) -> float:
    return float(((np.asarray(result.movie.data) - truth) ** 2).mean())


def test_fine_tuning_reaches_in_a_fifth_of_the_steps_what_training_from_nothing_does(old):
    raw, truth = noisy(seed=2), scene(seed=2)
    warm = shine.denoise(raw, model=old, fine_tune=True, steps=8)
    cold = shine.denoise(raw, steps=40, from_scratch=True)
    assert distance(warm, truth) < 1.05 * distance(cold, truth)


def test_everything_but_the_weights_is_the_new_movies(old):
    """Another brightness: the old model used as it is would be far off."""
    raw = 1000 + 5 * noisy(seed=2).astype(np.float32)
    result = shine.denoise(raw, model=old, fine_tune=True, steps=6, hole=(3, 5))
    assert result.model.normalisation.location == pytest.approx(raw.mean(), rel=1e-3)
    assert result.model.hole == (3, 5)
    assert result.model.state.step == 6
    assert float(np.mean(result.movie.data)) == pytest.approx(float(raw.mean()), rel=0.005)
    assert old.provenance["input_hash"] in result.model.provenance["fine-tuned from"]
    assert "fine-tuned" in result.movie.history[-1]
    assert not any("intensities" in w for w in result.warnings)


def test_a_model_alone_is_used_as_it_is(old):
    result = shine.denoise(noisy(seed=2), model=old)
    assert result.model is old


def test_an_interrupted_fine_tuning_is_resumed(old, tmp_path: Path):
    raw = noisy(12, 48, 48, seed=3)

    how = {"steps": 9, "model": old, "fine_tune": True}
    with pytest.raises(Interrupted) as caught:
        shine.denoise(raw, progress=stop_at("training", 4), **how)
    kept = shine.Model.load(caught.value.model.save(tmp_path / "kept.safetensors"))
    out: dict[int, np.ndarray] = {}
    resumed = run(
        shine.Movie.from_array(raw), out.__setitem__, options=Options(steps=9), resume=kept
    )
    whole = shine.denoise(raw, **how)
    np.testing.assert_array_equal(np.stack([out[t] for t in range(12)]), whole.movie.data)
    assert resumed.model.provenance["fine-tuned from"] == whole.model.provenance["fine-tuned from"]


def test_training_begins_with_the_shipped_weights_and_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shine.write(shine.Movie.from_array(noisy(12, 160, 160)), "movie.tif")
    with pytest.raises(SystemExit) as done:
        main(["denoise", "movie.tif", "--steps", "4", "--keep-model"])
    assert not done.value.code
    made = shine.Model.load("movie_model.safetensors")
    assert "simulated" in made.provenance["training began from"]
    assert "shipped weights" in job.history(made)
    assert "taught on simulated movies" in Path("movie_report.html").read_text("utf-8")
    # Never used as they are.
    shipped = shipped_weights(made.config)
    assert shipped is not None
    assert any((made.state.best[k] != v).any() for k, v in shipped.items())


def test_from_scratch_nothing_of_them_is_used():
    raw = noisy(12, 160, 160)
    plain = shine.denoise(raw, steps=4)
    alone, again = (shine.denoise(raw, steps=4, from_scratch=True) for _ in range(2))
    assert "training began from" not in alone.model.provenance
    np.testing.assert_array_equal(alone.movie.data, again.movie.data)
    assert (np.asarray(alone.movie.data) != np.asarray(plain.movie.data)).any()
    with pytest.raises(shine.ShineError, match="leave out one"):
        Options(from_scratch=True, fine_tune=True)


def test_a_movie_of_few_pixels_does_without_them():
    raw = noisy(12, 48, 48)
    assert raw.size < FEWEST_PIXELS
    alone = shine.denoise(raw, steps=4, from_scratch=True)
    plain = shine.denoise(raw, steps=4)
    np.testing.assert_array_equal(plain.movie.data, alone.movie.data)
    assert "training began from" not in plain.model.provenance


def test_short_trainings_gain_by_the_shipped_weights():
    made = au_growth(frames=12, size=160, seed=11)
    truth = np.asarray(made.truth.data)
    warm, cold = (
        shine.denoise(made.noisy, steps=20, ensemble=False, from_scratch=alone)
        for alone in (False, True)
    )
    assert distance(warm, truth) < 0.7 * distance(cold, truth)


def test_the_shipped_weights_are_small_and_fit_the_default_network_alone():
    weights = shipped_weights(NetworkConfig(paper_radius=4))
    assert weights is not None
    build(NetworkConfig()).load_state_dict(weights)
    assert sum(v.numel() * v.element_size() for v in weights.values()) < 2_000_000
    for other in (
        NetworkConfig(frames=3, open_slots=(0, 2)), NetworkConfig(open_slots=(0, 4)),
        NetworkConfig("paper", channels=64), NetworkConfig(channels=8),
    ):  # fmt: skip
        assert shipped_weights(other) is None


def test_fine_tuning_without_a_model_is_refused():
    with pytest.raises(shine.ShineError, match="--model"):
        shine.denoise(noisy(6, 32, 32), fine_tune=True, steps=4)


@pytest.mark.parametrize(
    ("other", "options", "advice"),
    [
        (model(frames=7, channels=16), {"frames": 5}, "--window 7"),
        (model(frames=7, channels=16, blinded=(1,)), {}, "blinds the neighbours ±1"),
        (model("paper", channels=64), {}, "--preset paper"),
        (model("paper", channels=64, holes=[(5, 5)]), {"preset": "paper"}, "--hole 5x5"),
        (model(channels=4), {}, "4 channels"),
    ],
)
def test_a_network_of_another_shape_is_refused(other, options, advice):
    with pytest.raises(shine.ShineError, match=advice):
        shine.denoise(noisy(12, 48, 48), model=other, fine_tune=True, steps=2, **options)


def test_a_longer_window_begins_with_the_shipped_weights_and_ignores_what_is_further_away():
    usual, longer = NetworkConfig(), NetworkConfig(frames=9, open_slots=(0, 1, 2, 3, 5, 6, 7, 8))
    networks = []
    for config in (usual, longer):
        weights = shipped_weights(config)
        assert weights is not None
        networks.append(build(config))
        networks[-1].load_state_dict(weights)
    window = torch.randn(1, 9, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for shift in range(5):
            short = networks[0](window[:, 2:7], [(3, 3), (1, 5)], max(0, shift - 2))
            long = networks[1](window, [(3, 3), (1, 5)], shift)
            torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-5)


def test_fine_tuning_takes_over_the_models_window():
    weak = np.random.default_rng(0).poisson(scene(30, 32, 32, dose=0.05)).astype(np.uint8)
    tuned = shine.denoise(weak, model=model(channels=16), fine_tune=True, steps=2)
    assert tuned.model.config.frames == 5
    fresh = shine.denoise(weak, steps=2)
    assert fresh.model.config.frames == 9


def test_a_window_as_wide_as_the_models_fits():
    other = model(frames=7, channels=16)
    options = Options(frames=7, fine_tune=True)
    plan = prepare(shine.Movie.from_array(noisy()), options)
    weights, _, _ = beginning(plan, options, model=other, resume=None, name="movie")
    assert weights is other.state.best


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_command_line_fine_tunes(old, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = shine.Movie.from_array(noisy(12, 48, 48, seed=3))
    shine.write(raw, tmp_path / "movie.tif")
    old.save(tmp_path / "old.safetensors")
    given = ["denoise", "movie.tif", "--model", "old.safetensors"]
    assert "add --fine-tune" in refused([*given, "--steps", "4"], capsys)
    assert "--model" in refused(["denoise", "movie.tif", "--fine-tune"], capsys)
    again = ["denoise", "movie.tif", "--resume", "old.safetensors", "--fine-tune"]
    assert "give one" in refused(again, capsys)
    with pytest.raises(SystemExit) as done:
        main([*given, "--fine-tune", "--steps", "4", "--keep-model"])
    assert not done.value.code
    made = shine.Model.load(tmp_path / "movie_model.safetensors")
    assert made.state.step == 4
    assert old.provenance["input_hash"] in made.provenance["fine-tuned from"]
    assert "fine-tuned from the model of" in (tmp_path / "movie_report.html").read_text("utf-8")


def test_an_unlimited_recipe_is_shortened_to_a_fifth(old):
    """The published recipe counts passes over the movie; fine-tuning needs fewer."""
    plan = prepare(shine.Movie.from_array(noisy()), Options(preset="paper"))
    paper = replace(old, state=replace(old.state, config=plan.config))
    options = Options(preset="paper", fine_tune=True)
    _, shorter, _ = beginning(plan, options, model=paper, resume=None, name="movie")
    assert shorter.settings.epochs == plan.settings.epochs // 5


def test_a_single_image_is_not_sent_to_a_longer_window(old):
    with pytest.raises(shine.ShineError, match="model of single images, or train from scratch"):
        shine.denoise(noisy(1), model=old, fine_tune=True, steps=2)
