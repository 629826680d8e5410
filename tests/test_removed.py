"""The noise as it is seen in what a trained model removes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import health as healthy
from small import model, noisy

import shine_em as shine
from shine_em.mean_variance import MeanVariance, fit_removed
from shine_em.movie import Movie
from shine_em.noise import noise_statistics
from shine_em.removed import noise_removed

NOTHING = MeanVariance(np.nan, np.nan, np.nan, np.zeros(0), np.zeros(0), reliable=False)


def removed(
    n: int = 60_000, *, gain: float = 3.0, read: float = 4.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the signal of pixels and the squares of their noise."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(5, 60, n)
    noise = gain * (rng.poisson(signal / gain) - signal / gain) + rng.normal(0, read, n)
    return signal, noise**2


def lattice_that_moves_fast() -> np.ndarray:
    """Return counts, ``(t, y, x)``, whose gain is 1."""
    t, y, x = np.ogrid[:24, :96, :96]
    k = 2 * np.pi / 14
    lattice = np.cos(k * (y - 3.3 * t)) * np.cos(k * (x - 2.31 * t))
    counts = np.random.default_rng(0).poisson(60 * (1 + 0.5 * lattice))
    return counts.astype(np.float32)


def test_a_lattice_that_moves_fast_has_its_gain_once_it_is_denoised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Differences of frames cannot tell it: `test_a_lattice_that_moves_too_fast_gives_no_gain`."""
    movie = Movie.from_array(lattice_that_moves_fast())
    assert not noise_statistics(movie).mean_variance.reliable
    result = shine.denoise(movie, steps=80)
    curve = result.noise.mean_variance
    assert curve.reliable
    assert curve.removed
    assert curve.gain == pytest.approx(1, abs=0.15)
    assert curve.gain * 60 + curve.offset == pytest.approx(60, rel=0.08)
    # The model remembers it, and a movie that it denoises as it is has it measured as well.
    assert result.model.noise["mean_variance"]["gain"] == pytest.approx(curve.gain)
    again = shine.denoise(movie, model=result.model)
    assert again.noise.mean_variance.gain == pytest.approx(curve.gain, rel=0.02)
    # Of large frames some pixels are enough.
    monkeypatch.setattr("shine_em.removed._PIXELS", 12_000)
    some = noise_removed(movie, again.health, noise_statistics(movie), result.model)
    assert some.mean_variance.gain != again.noise.mean_variance.gain
    assert some.mean_variance.gain == pytest.approx(1, abs=0.2)


def test_the_line_is_that_of_the_noise_and_keeps_the_mean_that_is_known() -> None:
    signal, squares = removed()
    mean = 3.0 * signal.mean() + 16
    # A denoiser that is off by a tenth of the noise's variance makes the line no steeper.
    curve = fit_removed(signal, 1.1 * squares, NOTHING, independent=1.0, mean=mean)
    assert curve.reliable
    assert curve.gain == pytest.approx(3, rel=0.06)
    assert curve.gain * signal.mean() + curve.offset == pytest.approx(mean)


@settings(max_examples=25, deadline=None)
@given(
    unit=st.floats(1e-6, 1e6), dark=st.floats(-1e3, 1e3), seed=st.integers(0, 3),
)  # fmt: skip
def test_units_and_the_level_without_electrons_change_nothing_else(
    unit: float, dark: float, seed: int
) -> None:
    signal, squares = removed(4000, seed=seed)
    plain = fit_removed(signal, squares, NOTHING, independent=0.5, mean=float(squares.mean()))
    other = fit_removed(
        unit * (signal + dark), unit**2 * squares, NOTHING, independent=0.5,
        mean=unit**2 * float(squares.mean()),
    )  # fmt: skip
    assert other.removed == plain.removed
    assert other.gain == pytest.approx(unit * plain.gain, rel=1e-3, nan_ok=True)


def test_noise_that_does_not_follow_the_signal_takes_back_a_slope_that_motion_made() -> None:
    signal, _ = removed()
    squares = np.random.default_rng(1).normal(0, 5, len(signal)) ** 2
    steep = replace(NOTHING, gain=2.0, offset=-30.0, reliable=True)
    curve = fit_removed(signal, squares, steep, independent=1.0, mean=25.0)
    assert not curve.reliable
    assert curve.gain == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("signal", "squares", "mean"),
    [
        (*removed(), 10.0),  # what was removed is not the noise that was measured
        (*removed(400), 110.0),  # too few pixels
        (np.full(6000, 7.0), np.random.default_rng(0).normal(0, 5, 6000) ** 2, 25.0),  # flat
    ],
)
def test_where_it_can_tell_nothing_the_curve_stays(
    signal: np.ndarray, squares: np.ndarray, mean: float
) -> None:
    before = replace(NOTHING, gain=3.0, offset=16.0, reliable=True)
    assert fit_removed(signal, squares, before, independent=0.3, mean=mean) is before


def test_without_noise_nothing_is_looked_at() -> None:
    still = np.repeat(noisy()[:1], 6, axis=0).astype(np.float32)
    movie = Movie.from_array(still)
    noise = noise_statistics(movie)
    assert noise.sigma == 0
    assert noise_removed(movie, healthy(movie.shape), noise, model()) is noise
