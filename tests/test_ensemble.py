"""Holes and weights follow from measured errors, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import convolve1d
from small import model, noisy, scene

import shine_em as shine
from shine_em.ensemble import affordable, affordable_views, candidate_holes, choose
from shine_em.error_matrix import ErrorMatrix
from shine_em.job import history

HOLES = ((3, 3), (1, 1), (5, 5))


def matrix(values: list[list[float]], *, scatter: float = 0.0, blocks: int = 400) -> ErrorMatrix:
    """Return measurements whose mean is ``values``, in blocks of one pixel that scatter."""
    m = np.array(values, float)
    k = len(m)
    rng = np.random.default_rng(0)
    noise = scatter * rng.normal(size=(blocks, k))
    noise -= noise.mean(0)
    return ErrorMatrix(
        (0,), np.zeros(blocks, int), np.ones(blocks), np.repeat(m[None], blocks, 0), noise,
        np.zeros(blocks),
    )  # fmt: skip


def test_independent_errors_are_averaged_by_their_inverse() -> None:
    found = choose(matrix([[1, 0, 0], [0, 2, 0], [0, 0, 4]]), HOLES, most=3)
    assert found.holes == HOLES  # the heaviest first
    assert found.weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert found.error.mse == pytest.approx(4 / 7)
    assert [e.mse for e in found.errors] == pytest.approx([1, 2, 4])


def test_no_more_holes_than_there_is_time_for() -> None:
    values = [[1, 0, 0], [0, 2, 0], [0, 0, 4]]
    assert choose(matrix(values), HOLES, most=2).weights == pytest.approx((2 / 3, 1 / 3))
    assert choose(matrix(values), HOLES, most=1).holes == ((3, 3),)


def test_where_there_is_time_for_one_hole_the_filter_is_taken_alone_or_not_at_all() -> None:
    one = HOLES[:1]
    assert choose(matrix([[1, 0], [0, 2]]), one, most=2).share == pytest.approx(1 / 3)
    assert choose(matrix([[1, 0], [0, 2]]), one, most=1).share == 0
    found = choose(matrix([[3, 0], [0, 2]]), one, most=1)
    assert found.share == 1
    assert found.error.mse == pytest.approx(2)


def test_a_hole_that_copies_noise_is_left_out() -> None:
    # Whatever the second hole gets wrong the first does as well, and less.
    found = choose(matrix([[1, 1, 0.2], [1, 3, 1], [0.2, 1, 2]]), HOLES, most=3)
    assert (1, 1) not in found.holes
    assert found.holes == ((3, 3), (5, 5))


def test_a_gain_within_its_error_is_none() -> None:
    values = [[1.0, 0.99, 0.99], [0.99, 1.0, 0.99], [0.99, 0.99, 1.0]]
    assert len(choose(matrix(values), HOLES, most=3).holes) > 1
    assert choose(matrix(values, scatter=1.0), HOLES, most=3).weights == (1.0,)


def test_weights_are_the_best_that_there_are() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        root = rng.normal(size=(4, 6)) + 0.5
        m = root @ root.T
        found = choose(matrix(m.tolist()), (*HOLES, (7, 7)), most=4)
        tried = rng.dirichlet(np.ones(4) * 0.5, size=4000)
        assert found.error.mse <= np.einsum("ni,ij,nj->n", tried, m, tried).min() * 1.02


def test_candidates_surround_the_recommended_hole_where_noise_is_correlated() -> None:
    assert candidate_holes((3, 3)) == ((3, 3), (1, 1), (5, 5), (7, 7))
    rows = candidate_holes((1, 5))
    assert rows == ((1, 5), (1, 3), (1, 7), (3, 5), (3, 7))
    assert candidate_holes((5, 1)) == tuple((m, n) for n, m in rows)
    assert candidate_holes((1, 1))[0] == (1, 1)
    assert len(candidate_holes((1, 1))) == 5
    for hole in ((15, 15), (1, 15), (13, 3)):
        found = candidate_holes(hole)
        assert found[0] == hole
        assert all(max(h) <= 15 and min(h) >= 1 for h in found)


def test_more_holes_where_there_is_time() -> None:
    job = {"alone": 15.0, "each": 5.0, "candidates": 5}
    assert affordable(**job, budget=30.0) == 1
    assert affordable(**job, budget=60.0) == 2
    assert affordable(**job, budget=150.0) == 3
    assert affordable(**job, budget=1200.0) == 5
    assert affordable(**job, budget=60.0, rest=15.0) == 1


def test_more_mirrored_views_where_there_is_time() -> None:
    assert affordable_views(20.0, budget=120.0, training=60.0) == 1
    assert affordable_views(40.0, budget=300.0, training=220.0) == 2
    assert affordable_views(25.0, budget=300.0, training=50.0) == 1
    assert affordable_views(25.0, budget=1200.0, training=1000.0) == 4


def row_noise(t: int = 12, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return a movie with noise that is correlated along its rows, and its truth."""
    truth = scene(t, size, size)
    white = np.random.default_rng(5).normal(size=truth.shape)
    noise = convolve1d(white, [0.5, 0.8, 0.5], axis=2) / np.sqrt(1.14)
    return (truth + 8 * noise).astype(np.float32), truth


def test_the_job_chooses_by_measured_error_and_says_so(tmp_path: Path) -> None:
    raw, truth = row_noise()
    first = shine.denoise(raw, steps=40, seed=3)
    hole = first.noise.hole
    assert hole[1] >= 3
    found = first.ensemble
    assert found is not None
    assert found.candidates == candidate_holes(hole)
    assert first.model.holes == found.holes
    assert sum(first.model.weights) == pytest.approx(1)
    assert found.error.mse <= min(e.mse for e in found.errors)
    for m, n in found.holes:
        assert f"{m}x{n}" in history(first.model)
    assert first.error is found.error
    true = float(((np.asarray(first.movie.data) - truth) ** 2).mean())
    assert first.error is not None
    assert first.error.mse == pytest.approx(true, abs=0.1 * 64)
    assert first.frame_errors is not None
    assert first.frame_errors.frame.tolist() == list(range(12))
    # The same again, bit by bit; and so through a file.
    again = shine.denoise(raw, steps=40, seed=3)
    assert again.model.weights == first.model.weights
    np.testing.assert_array_equal(again.movie.data, first.movie.data)
    loaded = shine.Model.load(first.model.save(tmp_path / "model.safetensors"))
    assert (loaded.holes, loaded.weights) == (first.model.holes, first.model.weights)
    reused = shine.denoise(raw, model=loaded)
    np.testing.assert_array_equal(reused.movie.data, first.movie.data)
    assert reused.ensemble is None
    assert reused.error is not None
    assert reused.error.mse == pytest.approx(first.error.mse, rel=0.05, abs=0.01 * 64)


def test_a_single_hole_where_no_ensemble_is_wanted() -> None:
    result = shine.denoise(noisy(), steps=4, ensemble=False)
    assert result.ensemble is None
    assert result.model.holes == (result.model.hole,)
    assert result.model.weights == (1.0,)
    assert result.error is not None


def test_older_model_files_have_no_weights(tmp_path: Path) -> None:
    path = model(holes=[(3, 3), (1, 1)]).save(tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["shine"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header.pop("weights") == [0.5, 0.5]
    save_file(tensors, path, {"shine": json.dumps(header)})
    assert shine.Model.load(path).weights == (0.5, 0.5)
