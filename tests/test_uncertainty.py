"""The standard error map: calibrated, whole, and beside the movie."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small
from scipy import ndimage

from shine_em import Movie, ShineError, denoise, read
from shine_em.checkpoint import Model
from shine_em.doctor import Health
from shine_em.files import Outputs, denoise_file
from shine_em.noise import noise_statistics
from shine_em.noise_probe import NoiseProbe, look
from shine_em.patches import Normalisation
from shine_em.planning import Options
from shine_em.uncertainty import (
    Calibration,
    ErrorMaps,
    _where,
    calibrate,
    uncertainty_warnings,
)

SIGMA, WIDTH = 10.0, 1.2


class Blur:
    """A denoiser whose errors are known by theory: a Gaussian filter."""

    model = SimpleNamespace(normalisation=Normalisation(100.0, 15.0))

    def stream(
        self, movie: Movie, health: Health, *, frames: Sequence[int]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for t in frames:
            raw = movie.frame(t)
            smooth = ndimage.gaussian_filter(raw.astype(float), WIDTH, mode="nearest")
            yield t, raw, smooth.astype(np.float32)


@pytest.fixture(scope="module")
def swaying():
    """Return movie, truth, health, noise; discs that sway over a ground."""
    y, x = np.indices((128, 128))
    truth = np.full((16, 128, 128), 100.0)
    for t, frame in enumerate(truth):
        for cy, cx, high in ((30, 40, 90), (80, 90, 150), (95, 30, -60)):
            r = np.hypot(y - cy, x - cx - 4 * np.sin(t / 3 + high))
            frame += high / (1 + np.exp((r - 14) / 0.8))
    raw = truth + SIGMA * np.random.default_rng(1).normal(size=truth.shape)
    movie = Movie.from_array(raw.astype(np.float32))
    health, noise = small.health(truth.shape, location=100, scale=15), noise_statistics(movie)
    return movie, truth, health, noise


@pytest.fixture(scope="module")
def blurred(swaying):
    """Return truth, denoised, standard error, calibration."""
    movie, truth, health, noise = swaying
    found = calibrate(Blur(), movie, health, noise)
    frames = list(ErrorMaps(Blur(), movie, health, noise, found).stream())
    return truth, np.stack([f[2] for f in frames]), np.stack([f[3] for f in frames]), found


def test_far_from_structure_it_is_the_noise_that_comes_through(blurred):
    truth, denoised, error, _ = blurred
    flat = ndimage.maximum_filter(truth, (1, 21, 21)) - ndimage.minimum_filter(truth, (1, 21, 21))
    flat = flat < 0.1
    through = SIGMA / (2 * np.sqrt(np.pi) * WIDTH)  # of white noise, by the filter's energy
    assert np.sqrt((error[flat] ** 2).mean()) == pytest.approx(through, rel=0.15)
    z = (denoised - truth)[flat] / error[flat]
    assert (np.abs(z) < 1).mean() == pytest.approx(0.68, abs=0.05)
    assert (np.abs(z) < 1.96).mean() == pytest.approx(0.95, abs=0.025)


def test_at_edges_it_holds_the_blur_as_well(blurred):
    truth, denoised, error, found = blurred
    steep = np.hypot(*np.gradient(truth, axis=(1, 2))) > 9
    off = np.sqrt(((denoised - truth)[steep] ** 2).mean())
    through = SIGMA / (2 * np.sqrt(np.pi) * WIDTH)
    assert off > 1.15 * through  # the blur is there to be found
    assert np.sqrt((error[steep] ** 2).mean()) == pytest.approx(off, rel=0.15)
    assert found.residual_error < found.constant


def test_where_the_picture_drifts_its_edges_are_where_they_are(swaying):
    """The frames beside, from which the slope is taken, are displaced by the drift."""
    movie, _, health, noise = swaying
    frame = movie.frame(8).astype(np.float32)
    path = np.outer(np.arange(16) - 8, (7.0, -5.0))  # at rest in frame 8
    drifting = Movie.from_array(
        np.stack([np.roll(frame, tuple(p.astype(int)), (0, 1)) for p in path])
    )
    still = Movie.from_array(np.stack([frame] * 16))
    seen = []
    for m, p in ((still, None), (drifting, path)):
        checked = replace(health, path=p)
        probe = NoiseProbe(m, checked, noise, Blur.model.normalisation, 0)
        seen.append(list(look(Blur(), m, checked, probe, range(7, 10)))[1])
    there, here = (_where(s, 1.0)[1] for s in seen)
    inside = slice(40, -40)  # the surroundings count a little
    np.testing.assert_allclose(here[inside, inside], there[inside, inside], rtol=0.01, atol=1e-3)


def test_noise_that_is_not_the_measured_one_is_told(swaying):
    movie, _, health, noise = swaying
    weaker = replace(
        noise, sigma=noise.sigma / 3, mean_variance=replace(noise.mean_variance, reliable=False)
    )
    assert calibrate(Blur(), movie, health, weaker).doubtful


def test_calibration_survives_being_written(blurred):
    found = blurred[3]
    assert Calibration.from_dict(found.to_dict()) == found


def test_a_residual_that_says_little_is_told(blurred):
    told = []
    for error in (1.0, 10.0):
        found = replace(blurred[3], constant=1.0, residual_error=error)
        told.append(bool(uncertainty_warnings(SimpleNamespace(uncertainty=found.to_dict()))))
    assert told == [False, True]
    assert uncertainty_warnings(SimpleNamespace(uncertainty=None)) == ()


@pytest.mark.parametrize("error", [0.98, 1.02])
def test_it_holds_when_the_noise_level_is_a_little_off(swaying, blurred, error):
    """A wrong noise level must not pass for an error of the denoiser, nor hide one."""
    movie, _, health, noise = swaying
    curve = noise.mean_variance
    wrong = replace(
        noise,
        sigma=noise.sigma * np.sqrt(error),
        mean_variance=replace(curve, gain=curve.gain * error, offset=curve.offset * error),
    )
    found = calibrate(Blur(), movie, health, wrong)
    # The error goes as the root: by half of that.
    assert found.constant == pytest.approx(blurred[3].constant, rel=0.15)


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_it_holds_when_the_gain_is_far_off(swaying, blurred, factor):
    """As over lattices that move, whose changes pass for the noise of bright pixels."""
    movie, _, health, noise = swaying
    gain = (factor - 1) * SIGMA**2 / 50  # of a noise that has none: so much over 50 of signal
    curve = replace(noise.mean_variance, gain=gain, offset=SIGMA**2 - 100 * gain, reliable=True)
    found = calibrate(Blur(), movie, health, replace(noise, mean_variance=curve))
    assert found.constant == pytest.approx(blurred[3].constant, rel=0.3)


def test_a_movie_too_small_to_calibrate_is_refused():
    movie = Movie.from_array(100 + np.random.default_rng(0).normal(size=(4, 32, 32)))
    noise = noise_statistics(Movie.from_array(np.random.default_rng(0).normal(size=(8, 64, 64))))
    with pytest.raises(ShineError, match="10,000 pixels"):
        calibrate(Blur(), movie, small.health((4, 32, 32)), noise)


def test_without_noise_there_is_no_uncertainty():
    movie = Movie.from_array(np.ones((8, 64, 64), np.float32))
    noise = replace(noise_statistics(movie), sigma=0.0)
    with pytest.raises(ShineError, match="no noise could be measured"):
        calibrate(Blur(), movie, small.health((8, 64, 64)), noise)


def test_the_map_lies_beside_the_movie_and_the_model_keeps_its_calibration(tmp_path):
    movie = Movie.from_array(small.noisy(12, 48, 48), pixel_size_nm=0.1)
    first = Outputs.beside(tmp_path / "m.tif", report=False, model=True, uncertainty=True)
    assert first.uncertainty == tmp_path / "m_uncertainty.tif"
    options = Options(steps=8, student="never")
    done = denoise_file(movie, first, options=options)
    written = read(first.uncertainty)
    assert written.shape == movie.shape
    assert written.dtype == np.float32
    assert written.pixel_size_nm == pytest.approx(0.1)
    assert (np.asarray(written.data) > 0).all()
    with pytest.raises(ShineError, match="exists"):
        denoise_file(movie, first, options=options)
    kept = Model.load(first.model)
    assert kept.uncertainty == done.result.model.uncertainty is not None
    again = denoise(movie, model=kept, uncertainty=True)
    assert np.asarray(again.uncertainty.data) == pytest.approx(np.asarray(written.data), rel=1e-3)
    assert denoise(movie, model=kept).uncertainty is None
    short = Movie.from_array(small.noisy(4, 48, 48))  # too small to calibrate, which is done
    assert denoise(short, model=kept, uncertainty=True).uncertainty.shape == short.shape
