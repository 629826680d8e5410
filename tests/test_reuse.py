"""A model on a movie that is not its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small import model, noisy

import shine_em as shine
from shine_em.movie import Movie
from shine_em.planning import Options, prepare
from shine_em.reuse import applied, brightness_offset, misfit, single_hole


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
        brightness_offset(movie, plan.health, replace(first, offset=offset), "cpu", "fp32")
        for offset in (0.0, 0.7)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_a_model_without_its_ensemble_says_so_and_loses_what_was_calibrated_for_it() -> None:
    movie = Movie.from_array(noisy())
    trained = replace(
        model(holes=((3, 3), (1, 1))), uncertainty={"constant": 1.0}, weights=(0.5, 0.5)
    )
    plan = prepare(movie, Options(ensemble=False), model=trained)
    used = applied(movie, plan, Options(ensemble=False), trained)
    assert used.holes == ((3, 3),)
    assert used.weights == (1.0,)
    assert used.uncertainty is None
    bare = replace(used, offset=0.0)
    measured = brightness_offset(movie, plan.health, bare, "cpu", "fp32")
    assert used.offset == pytest.approx(measured, abs=1e-5)
    assert applied(movie, plan, Options(), trained).holes == trained.holes
    assert single_hole(movie, plan, trained, "cpu", "fp32").linear is None


def test_lags_beyond_the_window_are_no_misfit_where_all_neighbours_are_blinded() -> None:
    movie = Movie.from_array(noisy())
    plan = prepare(movie, Options(steps=1))
    plan = replace(plan, noise=replace(plan.noise, blinded_lags=(1, 2, 3, 4)))
    blind, seeing = model(blinded=(1, 2)), model()
    assert not [w for w in misfit(movie, plan, blind) if "correlated in time" in w]
    assert [w for w in misfit(movie, plan, seeing) if "correlated in time" in w]
