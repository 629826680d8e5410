"""A model on a movie that is not its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small import model, noisy

import shine_em as shine
from shine_em.brightness import brightness_offset
from shine_em.distillation import denoised_by
from shine_em.files import Outputs, denoise_file
from shine_em.linear import blank
from shine_em.movie import Movie
from shine_em.planning import Options, prepare
from shine_em.reuse import applied, misfit, refuse_settled, single_hole


def test_spikes_are_those_of_the_movie_and_not_of_the_model() -> None:
    trained = shine.denoise(noisy(), steps=6).model
    assert trained.normalisation.ceiling == np.inf
    raw = noisy(seed=3).astype(np.float32)
    struck = raw.copy()
    struck[5, 20, 30] = 1e5
    quiet, hit = (shine.denoise(movie, model=trained) for movie in (raw, struck))
    there = np.asarray(hit.movie.data) - np.asarray(quiet.movie.data)
    # It is masked, not seen: what it was is missing, but nothing is added.
    assert np.abs(there).max() < 6 * np.sqrt(20)


def test_the_brightness_offset_counts_what_is_there_already() -> None:
    movie = Movie.from_array(noisy().astype(np.float32))
    plan = prepare(movie, Options(steps=1))
    first = model()
    found = [
        brightness_offset(movie, plan.health, plan.noise, replace(first, offset=offset))
        for offset in (0.0, 0.7)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_a_model_without_its_ensemble_says_so() -> None:
    movie = Movie.from_array(noisy())
    trained = replace(model(holes=((3, 3), (1, 1))), weights=(0.5, 0.5), views=2)
    assert trained.averaged == "3x3 (0.50), 1x1 (0.50), in 2 mirrored views"
    alone = Options(ensemble=False, precision="fp32")
    plan = prepare(movie, alone, model=trained)
    used = applied(movie, plan, alone, trained)
    assert used.holes == ((3, 3),)
    assert used.weights == (1.0,)
    assert used.averaged == "3x3"  # in one view
    alike = applied(movie, plan, alone, replace(used, views=2))
    assert alike.views == 1
    bare = replace(used, offset=0.0)
    measured = brightness_offset(movie, plan.health, plan.noise, bare)
    assert used.offset == pytest.approx(measured, abs=1e-5)
    assert applied(movie, plan, Options(), trained).holes == trained.holes
    assert single_hole(movie, plan, trained, "cpu", "fp32").linear is None


@pytest.mark.parametrize(
    ("options", "resumed", "named"),
    [
        (Options(seed=5, frames=7), False, "--window, --seed"),
        (Options(preset="paper"), True, "--preset"),
        (Options(time_budget=60.0), False, "--time-budget"),
        (Options(time_budget=60.0), True, "--time-budget"),  # its steps are fixed
        (Options(steps=9), True, "--steps"),
        (Options(hole=(5, 5)), True, "--hole"),
        (Options(register="never"), False, "--register"),
    ],
)
def test_options_that_a_model_has_settled_are_refused(options, resumed, named) -> None:
    trained = model()
    fixed = replace(trained.state.settings, steps=4)
    trained = replace(trained, state=replace(trained.state, settings=fixed))
    with pytest.raises(shine.ShineError, match=named):
        refuse_settled(options, trained, resumed=resumed)


def test_the_window_of_a_single_frame_is_nobodys_wish() -> None:
    refuse_settled(Options(frames=5), model(frames=1), resumed=True)


@pytest.mark.parametrize("resumed", [True, False])
def test_options_that_agree_with_the_model_are_taken(resumed) -> None:
    trained = model(holes=((3, 3),))
    agreeing = Options(hole=(3, 3), frames=5, from_scratch=True)
    refuse_settled(agreeing, trained, resumed=resumed)
    refuse_settled(Options(student="never", ensemble=False), trained, resumed=resumed)


def test_the_report_names_the_movie_that_a_model_was_trained_on(tmp_path) -> None:
    trained = shine.denoise(noisy(), steps=4, ensemble=False).model
    for name, seed in (("same", 0), ("other", 3)):
        movie = tmp_path / f"{name}.npy"
        np.save(movie, noisy(seed=seed))
    trained = replace(trained, provenance={**trained.provenance, "input": "first/run_1.tif"})
    texts = {}
    for name in ("same", "other"):
        outputs = Outputs.beside(tmp_path / f"{name}.npy")
        denoise_file(
            shine.read(tmp_path / f"{name}.npy"), outputs, options=Options(), model=trained
        )
        assert outputs.report is not None
        texts[name] = outputs.report.read_text("utf-8")
    # One process read an array, the other a file: the pixels alone decide.
    assert "trained on the noisy movie alone" in texts["same"]
    assert "trained on another noisy movie (run_1.tif)" in texts["other"]
    for text in texts.values():
        assert trained.averaged in text


def test_the_report_says_where_the_network_has_no_part() -> None:
    trained = model(holes=((3, 3), (1, 1)))
    assert "averaged: 3x3 (0.50), 1x1 (0.50)" in denoised_by(trained, None, "none was wanted")
    filtered = replace(trained, linear=blank(trained.config))
    assert "no part" in denoised_by(filtered, None, "none was wanted")


def test_lags_beyond_the_window_are_no_misfit_where_all_neighbours_are_blinded() -> None:
    movie = Movie.from_array(noisy())
    plan = prepare(movie, Options(steps=1))
    plan = replace(plan, noise=replace(plan.noise, blinded_lags=(1, 2, 3, 4)))
    blind, seeing = model(blinded=(1, 2)), model()
    assert not [w for w in misfit(movie, plan, blind) if "correlated in time" in w]
    assert [w for w in misfit(movie, plan, seeing) if "correlated in time" in w]
