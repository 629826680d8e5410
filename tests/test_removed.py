"""The noise as it is seen in what a trained model removes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from small import health as healthy
from small import model, noisy

import shine_em as shine
from shine_em.correction import fit_correction
from shine_em.denoising import Denoiser
from shine_em.mean_variance import MeanVariance, fit_removed
from shine_em.movie import Movie
from shine_em.noise import noise_statistics
from shine_em.noise_spectrum import noise_colour
from shine_em.noise_synthesis import SyntheticNoise, distribution_of, noise_values
from shine_em.removed import noise_removed

NOTHING = MeanVariance(np.nan, np.nan, np.nan, np.zeros(0), np.zeros(0), reliable=False)


def removed(
    n: int = 60_000, *, gain: float = 3.0, read: float = 4.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels without and with noise."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(5, 60, n)
    noise = gain * (rng.poisson(signal / gain) - signal / gain) + rng.normal(0, read, n)
    return signal, signal + noise


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


def test_a_real_movie_keeps_the_gain_that_its_differences_have(au_movie_path: Path) -> None:
    """Its noise is skewed and correlated: a prediction that knows some of it doubles the gain."""
    frames = tifffile.imread(au_movie_path)[:24, :192, :192].astype(np.float32)
    before = noise_statistics(frames).mean_variance
    curve = shine.denoise(frames, steps=60).noise.mean_variance
    assert before.reliable
    assert curve.reliable
    assert curve.gain == pytest.approx(before.gain, rel=0.25)


def test_noise_added_anew_is_distributed_as_what_was_removed() -> None:
    rng = np.random.default_rng(2)
    shape = (12, 128, 128)
    level = np.broadcast_to(np.linspace(100, 300, 128), shape[1:])
    white = rng.exponential(size=shape) - 1  # skewness 2, excess kurtosis 6
    beside = np.roll(white, 1, axis=2) + np.roll(white, -1, axis=2)
    made = (white + 0.25 * beside) / np.sqrt(1.125) * np.sqrt(level)
    stats = noise_statistics((level + made).astype(np.float32))
    good = rng.random(shape[1:]) > 0.02
    colour = noise_colour(stats.difference_correlation, shape[1:])
    values = [noise_values(level + frame, level, good, stats, colour) for frame in made]
    assert sum(map(len, values)) == 12 * good.sum()
    parts = distribution_of(np.concatenate(values))
    assert (np.diff(parts) >= 0).all()
    like = SyntheticNoise(replace(stats, distribution=parts), shape[1:], 0)
    normal = SyntheticNoise(stats, shape[1:], 0)
    drawn, bell = (np.stack([draw(t, level) for t in range(12)]) for draw in (like, normal))
    assert drawn.mean() == pytest.approx(0, abs=0.02 * drawn.std())
    assert drawn.var() == pytest.approx(bell.var(), rel=0.03)
    assert (drawn.var(axis=(0, 1)) / level[0]).std() < 0.15
    skewness = [float((d**3).mean() / d.std() ** 3) for d in (made, drawn, bell)]
    assert skewness[0] > 1.4
    assert skewness[1] == pytest.approx(skewness[0], rel=0.1)
    assert skewness[2] == pytest.approx(0, abs=0.1)


def test_few_or_equal_values_have_no_distribution() -> None:
    assert not len(distribution_of(np.random.default_rng(0).normal(size=500)))
    assert not len(distribution_of(np.ones(100_000)))


def test_a_correction_taught_on_skewed_noise_leaves_more_of_a_real_picture(
    au_movie_path: Path,
) -> None:
    """Its counts are skewed: normal noise would teach to take a part of the contrast."""
    frames = tifffile.imread(au_movie_path)[:24, :192, :192].astype(np.float32)
    movie = Movie.from_array(frames)
    result = shine.denoise(movie, steps=200)
    assert float((result.noise.distribution**3).mean()) == pytest.approx(2.4, abs=0.5)
    plain = Denoiser(replace(result.model, correction=None))
    shared = []
    for noise in (result.noise, replace(result.noise, distribution=np.zeros(0))):
        found = fit_correction(plain, movie, result.health, noise)
        denoiser, total = Denoiser(replace(result.model, correction=found)), 0.0
        for t, _, denoised in denoiser.stream(movie, result.health, frames=range(6, 18)):
            # Frames outside of the window hold the picture, and none of the noise.
            apart = frames[t - 6] + frames[t + 6]
            total += float(((denoised - denoised.mean()) * (apart - apart.mean())).mean())
        shared.append(total)
    assert shared[0] > 1.02 * shared[1]


def test_the_line_is_that_of_the_noise_and_keeps_the_mean_that_is_known() -> None:
    signal, noisy = removed()
    mean = 3.0 * signal.mean() + 16
    rng = np.random.default_rng(5)
    off = rng.normal(0, np.sqrt(0.1 * mean), len(signal))
    flat = 0.5 * (signal + signal.mean())
    # A denoiser that is off by a tenth of the noise's variance, a blind one that knows but half.
    for blind, denoised in ((signal, signal), (signal, signal + off), (flat, signal)):
        curve = fit_removed(blind, denoised, noisy, NOTHING, independent=1.0, mean=mean)
        assert curve.reliable
        assert curve.gain == pytest.approx(3, rel=0.1)
        assert curve.gain * noisy.mean() + curve.offset == pytest.approx(mean)


@settings(max_examples=25, deadline=None)
@given(
    unit=st.floats(1e-6, 1e6), dark=st.floats(-1e3, 1e3), seed=st.integers(0, 3),
)  # fmt: skip
def test_units_and_the_level_without_electrons_change_nothing_else(
    unit: float, dark: float, seed: int
) -> None:
    signal, noisy = removed(4000, seed=seed)
    mean = float(((noisy - signal) ** 2).mean())
    plain = fit_removed(signal, signal, noisy, NOTHING, independent=0.5, mean=mean)
    other = fit_removed(
        *(unit * (pixels + dark) for pixels in (signal, signal, noisy)), NOTHING,
        independent=0.5, mean=unit**2 * mean,
    )  # fmt: skip
    assert other.removed == plain.removed
    assert other.gain == pytest.approx(unit * plain.gain, rel=1e-3, nan_ok=True)


def test_noise_that_does_not_follow_the_signal_takes_back_a_slope_that_motion_made() -> None:
    signal, _ = removed()
    noisy = signal + np.random.default_rng(1).normal(0, 5, len(signal))
    steep = replace(NOTHING, gain=2.0, offset=-30.0, reliable=True)
    curve = fit_removed(signal, signal, noisy, steep, independent=1.0, mean=25.0)
    assert not curve.reliable
    assert curve.gain == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("signal", "noisy", "mean"),
    [
        (*removed(), 10.0),  # what was removed is not the noise that was measured
        (*removed(400), 110.0),  # too few pixels
        (np.full(6000, 7.0), np.random.default_rng(0).normal(7, 5, 6000), 25.0),  # flat
    ],
)
def test_where_it_can_tell_nothing_the_curve_stays(
    signal: np.ndarray, noisy: np.ndarray, mean: float
) -> None:
    before = replace(NOTHING, gain=3.0, offset=16.0, reliable=True)
    assert fit_removed(signal, signal, noisy, before, independent=0.3, mean=mean) is before


def test_without_noise_nothing_is_looked_at() -> None:
    still = np.repeat(noisy()[:1], 6, axis=0).astype(np.float32)
    movie = Movie.from_array(still)
    noise = noise_statistics(movie)
    assert noise.sigma == 0
    assert noise_removed(movie, healthy(movie.shape), noise, model()) is noise
