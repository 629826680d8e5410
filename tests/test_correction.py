"""The correction of the blind prediction: exact as its maths, and closer to the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from small import health as healthy
from small import model, noisy

import shine_em as shine
from shine_em import correction as module
from shine_em import ensemble, reserve
from shine_em.correction import (
    FEATURES,
    Correction,
    blank_correction,
    fit_correction,
)
from shine_em.denoising import Denoiser
from shine_em.doctor import check
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.noise import noise_statistics
from shine_em.planning import Options, prepare
from shine_em.simulate import SCENES

SIDES = st.integers(1, 40)


def some(knots: tuple[float, ...] = (-3.0, -1.0, 0.5), *, size: float = 0.3) -> Correction:
    weights = np.random.default_rng(3).normal(size=(FEATURES, len(knots))) * size
    return Correction(torch.from_numpy(weights.astype(np.float32)), knots)


def frames(height: int, width: int, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([height, width])
    raw = rng.normal(size=(count, height, width))
    denoised = np.stack([gaussian_filter(f, 2.0) for f in raw])
    return torch.from_numpy(denoised.astype("f4")), torch.from_numpy(raw.astype("f4"))


@given(SIDES, SIDES, st.sampled_from((0.7, 1.0, 3.0)))
def test_smoothing_is_that_of_scipy(height: int, width: int, sigma: float) -> None:
    _, (raw,) = frames(height, width)
    radius = int(np.ceil(3 * sigma))
    want = gaussian_filter(raw.numpy().astype(float), sigma, radius=radius, mode="nearest")
    np.testing.assert_allclose(module._smooth(raw, sigma).numpy(), want, atol=1e-5)


@given(SIDES, SIDES)
def test_weights_of_zero_change_nothing_at_any_size(height: int, width: int) -> None:
    denoised, raw = frames(height, width, 2)
    assert torch.equal(blank_correction()(denoised, raw), denoised)


@given(st.integers(1, 80), st.integers(1, 30), st.integers(1, 200))
def test_strips_give_what_the_whole_frame_gives(height: int, width: int, strip: int) -> None:
    denoised, raw = frames(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STRIP", 10**9)
        whole = some()(denoised, raw)
        patch.setattr(module, "_STRIP", strip)
        np.testing.assert_allclose(some()(denoised, raw), whole, atol=1e-6)


@given(st.sets(st.integers(-500, 500), min_size=1, max_size=6))
def test_the_shares_of_the_knots_sum_to_one_and_each_has_its_own_alone(
    hundredths: set[int],
) -> None:
    rising = tuple(k / 100 for k in sorted(hundredths))
    at = module._shares(torch.tensor([[*rising, -9.0, 9.0, 0.1]]), rising)
    np.testing.assert_allclose(at.sum(0), 1, atol=1e-5)
    # As exactly as float32 holds knots a hundredth apart.
    np.testing.assert_allclose(at[:, 0, : len(rising)], np.eye(len(rising)), atol=2e-4)


def test_the_own_pixel_s_share_is_the_derivative() -> None:
    found = some((0.0,))
    denoised, raw = torch.zeros(1, 40, 40), torch.ones(1, 40, 40)
    more = raw.clone()
    more[0, 20, 20] += 1
    change = found(denoised, more) - found(denoised, raw)
    assert float(change[0, 20, 20]) == pytest.approx(found.own_pixel()[0], abs=1e-5)


def test_a_bright_pixel_that_is_not_trusted_leaves_no_trace() -> None:
    denoised, raw = frames(40, 40)
    raw[0, 20, 20] = 0.0
    kept = some()(denoised, raw)
    # What lies around it is that of a residual of 0 there.
    filled = raw.clone()
    filled[0, 20, 20] = denoised[0, 20, 20]
    np.testing.assert_allclose(kept, some()(denoised, filled), atol=1e-6)
    corrected = replace(model(), correction=some())
    movie = noisy(7, 32, 32).astype(np.float32)
    burnt = movie.copy()
    burnt[3, 9, 9] = 1e6
    hot = healthy(movie.shape)
    hot = replace(hot, spike_threshold=1e5)
    normal = replace(corrected, normalisation=replace(corrected.normalisation, ceiling=1e5))
    hidden = movie.copy()
    hidden[3, 9, 9] = np.nan
    one, two = (
        np.stack([f for _, _, f in Denoiser(normal).stream(Movie.from_array(m), hot)])
        for m in (burnt, hidden)
    )
    np.testing.assert_array_equal(one, two)


def test_tiles_and_batches_make_no_difference() -> None:
    corrected = replace(model(), correction=some())
    raw = noisy(7, 150, 170)
    stack = corrected.normalisation.apply(raw[[1, 2, 3, 4, 5]])[None]
    whole = Denoiser(corrected).predict(stack)
    tiled = Denoiser(corrected, tile=96).predict(stack)
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    plain = Denoiser(corrected).uncorrected().predict(stack)
    assert not np.allclose(plain, whole, atol=1e-3)
    by_hand = corrected.correction.of_windows(plain, stack, "cpu")  # type: ignore[union-attr]
    np.testing.assert_array_equal(by_hand, whole)


def test_single_holes_stay_blind() -> None:
    corrected = replace(model(), correction=some())
    raw = noisy(5, 33, 33)
    stack = corrected.normalisation.apply(raw)[None]
    other = stack.copy()
    other[0, 2, 16, 16] += 5
    blind = Denoiser(corrected, holes=[(3, 3)])
    assert blind.predict(stack)[0, 16, 16] == blind.predict(other)[0, 16, 16]
    sees = Denoiser(corrected)
    assert sees.predict(stack)[0, 16, 16] != sees.predict(other)[0, 16, 16]


@pytest.mark.parametrize(
    ("weights", "knots"),
    [
        (torch.zeros(FEATURES, 2), (0.0, 1.0, 2.0)),
        (torch.zeros(FEATURES - 1, 2), (0.0, 1.0)),
        (torch.zeros(FEATURES, 2), (1.0, 0.0)),
        (torch.zeros(FEATURES, 0), ()),
        (torch.full((FEATURES, 1), torch.nan), (1.0,)),
    ],
)
def test_what_fits_no_picture_is_refused(weights: torch.Tensor, knots: tuple[float, ...]) -> None:
    with pytest.raises(ShineError, match="correction"):
        Correction(weights, knots)


class Blur:
    """Stands for a denoiser: a filter that blurs, of a movie whose noise is white."""

    def __init__(self, width: float) -> None:
        self.width, self.model = width, model()

    def ahead(self, shape):
        return 1

    def stream(self, movie, health, *, frames=None):
        for t in range(len(movie)) if frames is None else frames:
            raw = movie.frame(t).astype(np.float64)
            yield t, movie.frame(t), gaussian_filter(raw, self.width).astype(np.float32)


def test_the_weights_undo_a_blur_and_take_no_more_noise_than_pays() -> None:
    rng = np.random.default_rng(0)
    picture = 20 + 12 * gaussian_filter(rng.normal(size=(12, 96, 96)), (0, 4, 4)) * 10
    movie = Movie.from_array((picture + rng.normal(0, 2, picture.shape)).astype(np.float32))
    noise, health = noise_statistics(movie), healthy(movie.shape)
    blur = Blur(3.0)
    found = fit_correction(blur, movie, health, noise)  # type: ignore[arg-type]
    assert found is not None
    apply = blur.model.normalisation.apply
    before, after = [], []
    for t, raw, denoised in blur.stream(movie, health):
        made = found(torch.from_numpy(apply(denoised))[None], torch.from_numpy(apply(raw))[None])
        restored = blur.model.normalisation.invert(made[0].numpy())
        before.append(np.mean((denoised - picture[t]) ** 2))
        after.append(np.mean((restored - picture[t]) ** 2))
    assert np.mean(after) < 0.5 * np.mean(before)


def test_a_flat_picture_is_not_corrected() -> None:
    class Flat(Blur):
        def stream(self, movie, health, *, frames=None):
            for t, raw, denoised in super().stream(movie, health, frames=frames):
                yield t, raw, np.full_like(denoised, 20)

    raw = np.random.default_rng(0).normal(20, 3, (9, 48, 48)).astype(np.float32)
    movie = Movie.from_array(raw)
    flat = Flat(1.0)
    noise = noise_statistics(movie)
    assert fit_correction(flat, movie, healthy(raw.shape), noise) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "side"), [(1, 64), (2, 64), (5, 512), (100, 512), (400, 64)])
def test_few_frames_are_looked_at_in_at_most_two_stretches(count: int, side: int) -> None:
    movie = Movie.from_array(np.zeros((count, side, side), np.uint8))
    health = healthy(movie.shape)
    runs = module._runs(movie, health)
    used = [t for run in runs for t in run]
    assert len(runs) <= 2
    assert len(set(used)) == len(used) <= min(count, 24)
    assert all(0 <= t < count for t in used)


def test_a_correction_that_does_gross_harm_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    movie = Movie.from_array(noisy(20, 64, 64))
    health, noise = check(movie), noise_statistics(movie)
    plain = model()
    _, holes = ensemble.measure_ensemble(
        movie, health, noise, plain, plain.holes, most=1, with_filter=False
    )
    harmful = some(size=20.0)
    monkeypatch.setattr(ensemble, "fit_correction", lambda *_, **__: harmful)
    kept, found = ensemble.correct_ensemble(movie, health, noise, plain, holes)
    assert kept.correction is None
    assert found is holes
    monkeypatch.setattr(ensemble, "fit_correction", lambda *_, **__: some(size=0.0))
    kept, found = ensemble.correct_ensemble(movie, health, noise, plain, holes)
    assert kept.correction is not None
    assert found.corrected_from is not None


def test_a_correction_gives_way_where_there_would_be_no_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    movie = Movie.from_array(noisy(60, 24, 24))
    options = Options(time_budget=60.0, register="never", student="never")
    plan = prepare(movie, options)
    monkeypatch.setattr(reserve, "mapping_s", lambda *_: 0.0)
    monkeypatch.setattr(reserve, "correcting_s", lambda *_: 0.0)

    def corrects(seconds: float, spent: float) -> bool:
        """Tell whether a correction is planned where a frame takes so many seconds."""
        monkeypatch.setattr(reserve, "_measure", lambda *_: seconds)
        made, _ = reserve.reserve(  # refuses what it finds no time for
            movie, plan, options, budget=60.0, spent=spent, device="cpu", precision="fp32",
            writing_s=0.0,
        )  # fmt: skip
        return made.correct

    for spent in (5.0, 18.0, 25.0):
        slower = [corrects(seconds, spent) for seconds in np.linspace(0.02, 0.24, 23)]
        assert slower[0]
        assert not slower[-1]
        assert slower == sorted(slower, reverse=True)


@pytest.mark.parametrize("name", ["au-growth", "stem-mos2"])
def test_corrected_movies_are_closer_to_the_truth(name: str) -> None:
    made = SCENES[name](frames=20, size=128, seed=5)
    result = shine.denoise(made.noisy, steps=80)
    assert result.model.correction is not None
    assert result.ensemble is not None
    assert result.ensemble.corrected_from is not None
    assert result.error is result.ensemble.error
    truth = np.asarray(made.truth.data[:], float)
    blind = Denoiser(result.model).uncorrected().stream(made.noisy, result.health)
    plain = np.stack([f for _, _, f in blind])
    errors = []
    for movie in (np.asarray(result.movie.data[:], float), plain.astype(float)):
        fit = np.polyfit(movie.ravel(), truth.ravel(), 1)
        errors.append(np.mean((np.polyval(fit, movie) - truth) ** 2))
    assert errors[0] < 0.97 * errors[1]


def test_without_the_ensemble_there_is_none() -> None:
    result = shine.denoise(noisy(12, 48, 48), steps=5, ensemble=False)
    assert result.model.correction is None
