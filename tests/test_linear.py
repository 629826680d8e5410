"""The linear prediction: blind to the last bit, near the best there is, used where it is better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from small import health as healthy
from small import model, noisy

import shine_em as shine
from shine_em.denoising import Denoiser
from shine_em.doctor import check
from shine_em.linear import LinearPrediction, _solve, fit_linear, window_offsets
from shine_em.movie import Movie
from shine_em.network import Hole, NetworkConfig
from shine_em.patches import Normalisation, Timeline


def fitted(
    raw: np.ndarray, hole: Hole = (1, 1), config: NetworkConfig | None = None, *, share: float = 1.0
) -> LinearPrediction:
    movie = Movie.from_array(raw)
    found = check(movie)
    made = fit_linear(movie, found, config or NetworkConfig(), Normalisation.of(found), hole)
    return replace(made, share=share)


def weak(t: int = 30, size: int = 96, *, snr: float = 0.01, width: float = 5.0) -> np.ndarray:
    """Return a smooth picture, another in every frame, ``(t, y, x)``, of variance ``snr``."""
    rng = np.random.default_rng(4)
    pictures = [
        gaussian_filter(rng.normal(size=(size, size)), width, mode="wrap") for _ in range(t)
    ]
    return np.stack([np.sqrt(snr) * p / p.std() for p in pictures])


@pytest.mark.parametrize("hole", [(1, 1), (3, 3), (1, 5), (9, 7)])
def test_no_prediction_depends_on_what_the_hole_hides(hole: Hole) -> None:
    raw = noisy(7, 61, 83)
    trained = replace(model(), linear=fitted(noisy(16, 61, 83, dose=500), hole))
    denoiser = Denoiser(trained)
    reach = [n // 2 for n in hole]
    for t, shift in ((3, 0), (0, 2), (1, 1), (6, 2)):
        window = Timeline(7, healthy(raw.shape)).window(t, 5)
        assert Timeline.shift(window) == shift
        stack = trained.normalisation.apply(raw[list(window)])[None]
        before = denoiser.predict(stack, shift)[0]
        # Every alignment to the averaged blocks of 16 pixels, and the corners.
        for y, x in [
            (0, 0),
            (60, 82),
            (60, 0),
            *((17 + k % 16, 33 + 7 * k % 16) for k in range(16)),
        ]:
            other = stack.copy()
            here = np.s_[
                max(0, y - reach[0]) : y + reach[0] + 1, max(0, x - reach[1]) : x + reach[1] + 1
            ]
            other[0, 2][here] += 9
            after = denoiser.predict(other, shift)[0]
            assert after[y, x] == before[y, x]
            assert (after != before).any()


def test_the_gradient_is_zero_in_the_hole_and_nowhere_near_it() -> None:
    raw = noisy(5, 64, 64)
    made = fitted(raw, (3, 3))
    window = torch.from_numpy(raw.astype(np.float32))[None].requires_grad_()
    (grad,) = torch.autograd.grad(made(window)[0, 30, 37], window)
    assert torch.count_nonzero(grad[0, 2, 28:33, 35:40]) == 0  # one more pixel on every side
    assert torch.count_nonzero(grad[0, 2, 27:34, 34:41]) > 0
    assert torch.count_nonzero(grad[0, 1, 29:32, 36:39]) == 9


def test_neighbours_with_correlated_noise_are_blinded_as_well() -> None:
    config = NetworkConfig(frames=7, open_slots=(0, 1, 5, 6))
    made = fitted(noisy(12, 64, 64), (3, 3), config)
    window = torch.randn(1, 7, 64, 64, requires_grad=True)
    for shift in range(4):
        (grad,) = torch.autograd.grad(made(window, shift)[0, 30, 37], window)
        assert torch.count_nonzero(grad[0, 2:5, 29:32, 36:39]) == 0
        assert torch.count_nonzero(grad[0, 1, 29:32, 36:39]) > 0


def test_tiles_give_what_the_whole_frame_gives() -> None:
    raw = noisy(5, 70, 333)
    trained = replace(model(), linear=fitted(raw, share=0.4))
    stack = trained.normalisation.apply(raw)[None]
    whole = Denoiser(trained, tile=10_000).predict(stack)
    np.testing.assert_allclose(Denoiser(trained, tile=250).predict(stack), whole, atol=1e-5)
    net, line = (Denoiser(replace(trained, linear=k)).predict(stack)
                 for k in (None, replace(trained.linear, share=1.0)))  # fmt: skip
    np.testing.assert_allclose(whole, 0.6 * net + 0.4 * line, atol=1e-5)


@given(st.integers(1, 4).map(lambda n: 2 * n - 1), st.integers(0, 40), st.integers(9, 20))
def test_the_weights_are_for_the_windows_that_are_shown(frames: int, t: int, n: int) -> None:
    window = Timeline(n).window(t % n, frames)
    offsets = tuple(i - t % n for i in window if i is not None)
    expected = window_offsets(frames, Timeline.shift(window))
    # At the other end of a movie time runs backwards.
    assert offsets in (expected, tuple(-o for o in expected))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_short_movies(n: int) -> None:
    raw = noisy(n, 40, 48)
    frames = 1 if n == 1 else 5
    config = NetworkConfig(frames=frames, open_slots=(0, 1, 3, 4) if n > 1 else ())
    made = fitted(raw, config=config)
    out = made(torch.zeros(1, frames, 40, 48) + 1.0, frames // 2)
    assert out.shape == (1, 40, 48)
    assert torch.isfinite(made.weights).all()


def test_hot_pixels_and_gaps_do_no_harm() -> None:
    truth = 30 + 20 * weak(snr=1.0)
    raw = np.random.default_rng(1).poisson(np.maximum(truth, 0)).astype(np.float32)
    spoilt = raw.copy()
    spoilt[:, 20, 30] = 4000  # hot
    spoilt[14] = 0  # blanked
    good, bad = (fitted(r).weights.numpy() for r in (raw, spoilt))
    np.testing.assert_allclose(bad, good, atol=0.05 * np.abs(good).max())


def test_close_to_the_best_linear_filter_there_is() -> None:
    # A picture with a known spectrum, another in every frame: neighbours do not help, and hiding
    # few of very noisy pixels costs little, so that the Wiener filter is the bound.
    truth = weak()
    raw = (truth + np.random.default_rng(0).normal(size=truth.shape)).astype(np.float32)
    movie = Movie.from_array(raw)
    found = check(movie)
    trained = replace(
        model(), normalisation=Normalisation.of(found), linear=fitted(raw), offset=0.0
    )
    out = np.stack([x for _, _, x in Denoiser(trained).stream(movie, found)])
    power = (np.abs(np.fft.fft2(truth)) ** 2).mean(0) / truth[0].size
    bound = (power / (power + 1)).mean()
    constant = truth.var()
    assert bound < 0.5 * constant
    error = ((out - truth) ** 2).mean()
    assert bound < error < bound + 0.25 * (constant - bound)


def test_products_that_no_movie_could_have_give_no_wild_weights() -> None:
    # Two features of the power 1 whose measured product is above 1: their difference has a negative
    # power, and would get a weight of 5.
    square = np.array([[1.0, 1.001], [1.001, 1.0]])
    wanted = np.array([[0.50, 0.51]] * 2)
    np.testing.assert_allclose(_solve(square, wanted), 0.505 / 2.001, rtol=1e-6)
    # The unit of a feature does not matter.
    unit = np.diag([1.0, 100.0])
    found = _solve(unit @ square @ unit, wanted @ unit)
    np.testing.assert_allclose(unit @ found, 0.505 / 2.001, rtol=1e-6)


def test_pure_noise_stays_flat() -> None:
    raw = np.random.default_rng(2).normal(100, 10, (20, 96, 96)).astype(np.float32)
    found = check(Movie.from_array(raw))
    made = fitted(raw)
    stack = Normalisation.of(found).apply(raw[3:8])[None]
    assert float(made(torch.from_numpy(stack)).std()) < 0.03


def test_the_job_uses_the_filter_where_the_network_learns_nothing(tmp_path: Path) -> None:
    truth = 50 + 10 * weak(24, 96, snr=0.015)
    raw = (truth + np.random.default_rng(0).normal(0, 10, truth.shape)).astype(np.float32)
    result = shine.denoise(raw, steps=10, seed=1)
    found, made = result.ensemble, result.model.linear
    assert found is not None
    assert made is not None
    assert found.linear_error is not None
    assert made.share == found.share > 0.5
    assert found.linear_error.mse < min(e.mse for e in found.errors)
    assert any("linear filter" in w for w in result.warnings)
    assert "linear filter" in result.movie.history[-1]
    out = np.asarray(result.movie.data)
    assert ((out - truth) ** 2).mean() < 0.75 * truth.var()
    # The same from a file.
    loaded = shine.Model.load(result.model.save(tmp_path / "model.safetensors"))
    again = shine.denoise(raw, model=loaded)
    np.testing.assert_array_equal(again.movie.data, out)
    # And none of it where a single hole is asked for.
    alone = shine.denoise(raw, model=loaded, ensemble=False)
    assert np.asarray(alone.movie.data).std() != pytest.approx(out.std(), rel=1e-3)


def test_a_hole_that_hides_all_there_is() -> None:
    made = fitted(noisy(1, 16, 16), (15, 15), NetworkConfig(frames=1, open_slots=()))
    assert torch.count_nonzero(made(torch.randn(1, 1, 16, 16))) == 0


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    made = fitted(noisy(5, 40, 48))
    with pytest.raises(shine.ShineError, match="share"):
        replace(made, share=1.5)
    with pytest.raises(shine.ShineError, match="shape"):
        replace(made, weights=torch.zeros(3, 5, 2))
    with pytest.raises(ValueError, match="another length"):
        replace(model(frames=3), linear=made)
    values = made.to_dict()
    assert LinearPrediction.from_dict(values, made.weights).to_dict() == values
