"""The standard error map: as large as the errors, whole, and beside the movie."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from shine_em import Movie, ShineError, denoise, read
from shine_em.checkpoint import Model
from shine_em.correction import correction_passes, fit_correction
from shine_em.denoising import Denoiser
from shine_em.doctor import Health
from shine_em.files import Outputs, denoise_file
from shine_em.noise import NoiseStatistics, noise_statistics
from shine_em.noise_synthesis import Renewed, SyntheticNoise
from shine_em.patches import Normalisation
from shine_em.planning import Options
from shine_em.simulate import SCENES
from shine_em.uncertainty import WITHIN_68, WITHIN_95, ErrorMaps, error_map

SIGMA, WIDTH = 10.0, 1.2


class Blur:
    """A denoiser whose errors are known by theory: a Gaussian filter."""

    model = SimpleNamespace(
        normalisation=Normalisation(100.0, 15.0), config=SimpleNamespace(frames=1)
    )

    def __init__(self, width: float = WIDTH) -> None:
        self.width = width

    def uncorrected(self):
        return self

    def corrected(self, raw, frame, bad):
        return frame

    def ahead(self, shape):
        return 1

    def stream(
        self, movie: Movie, health: Health, *, frames: Sequence[int] | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for t in range(len(movie)) if frames is None else frames:
            raw = movie.frame(t)
            smooth = ndimage.gaussian_filter(raw.astype(float), self.width, mode="nearest")
            yield t, raw, smooth.astype(np.float32)


@pytest.fixture(scope="module")
def swaying() -> tuple[Movie, np.ndarray, Health, NoiseStatistics]:
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


def looked_at(
    denoiser: Blur, movie: Movie, health: Health, noise: NoiseStatistics
) -> tuple[np.ndarray, np.ndarray, ErrorMaps]:
    """Return the denoised movie, its standard errors, and what made them."""
    denoised, errors = np.empty(movie.shape), np.empty(movie.shape)
    maps = ErrorMaps(denoiser, movie, health, noise)  # type: ignore[arg-type]
    for t, raw, frame in maps.stream(errors.__setitem__):
        np.testing.assert_array_equal(raw, movie.frame(t))
        denoised[t] = frame
    return denoised, errors, maps


@pytest.mark.parametrize("width", [0.8, 1.2])
def test_in_flat_regions_it_is_the_noise_that_comes_through(swaying, width):
    """The law is one for trained networks: of a filter's error it makes a third too much."""
    movie, truth, health, noise = swaying
    denoised, error, maps = looked_at(Blur(width), movie, health, noise)
    flat = ndimage.maximum_filter(truth, (1, 25, 25)) - ndimage.minimum_filter(truth, (1, 25, 25))
    flat = flat < 0.1
    through = SIGMA / (2 * np.sqrt(np.pi) * width)  # of white noise, by the filter's energy
    assert np.sqrt((error[flat] ** 2).mean()) == pytest.approx(1.33 * through, rel=0.1)
    z = np.abs(denoised - truth)[flat] / error[flat]
    assert (z < WITHIN_68).mean() == pytest.approx(0.78, abs=0.05)
    assert (z < WITHIN_95).mean() == pytest.approx(0.98, abs=0.02)
    assert maps.warnings() == ()


def test_at_edges_it_holds_the_blur_as_well(swaying):
    movie, truth, health, noise = swaying
    denoised, error, _ = looked_at(Blur(), movie, health, noise)
    steep = np.hypot(*np.gradient(truth, axis=(1, 2))) > 9
    off = np.sqrt(((denoised - truth)[steep] ** 2).mean())
    through = SIGMA / (2 * np.sqrt(np.pi) * WIDTH)
    assert off > 2 * through  # the blur is there to be found
    assert off < np.sqrt((error[steep] ** 2).mean()) < 1.4 * off


@pytest.mark.parametrize("scene", ["au-growth", "stem-mos2"])
def test_errors_of_a_trained_network_lie_within_it(scene):
    """68 ± 8 and 95 ± 4 of 100 pixels after so short a training; docs/uncertainty.md has more."""
    made = SCENES[scene](frames=16, size=128, seed=4)
    result = denoise(made.noisy, steps=90, uncertainty=True, student="never")
    assert result.uncertainty is not None
    off = np.abs(np.asarray(result.movie.data) - np.asarray(made.truth.data))
    z = off / np.asarray(result.uncertainty.data)
    assert (z < WITHIN_68).mean() == pytest.approx(0.68, abs=0.08)
    assert (z < WITHIN_95).mean() == pytest.approx(0.95, abs=0.04)


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.sampled_from([(1, 7), (16, 16), (9, 33)]))
@settings(max_examples=30, deadline=None)
def test_it_has_the_movies_units(scale, offset, shape):
    rng = np.random.default_rng(2)
    frame, off = rng.normal(size=(2, *shape))
    plain = error_map(frame, off, 3.0)
    np.testing.assert_allclose(
        error_map(scale * frame + offset * scale, scale * off, 3.0 * scale),
        scale * plain,
        rtol=1e-4,
    )
    assert plain.shape == shape
    assert (plain > 0).all()


def test_a_flat_picture_that_noise_does_not_change_has_next_to_no_error():
    error = error_map(np.full((16, 16), 7.0), np.zeros((16, 16)), 2.0)
    assert 0 < error.max() < 0.02


def test_noise_that_is_not_the_measured_one_is_told(swaying):
    movie, _, health, noise = swaying
    for wrong in (noise.sigma / 3, noise.sigma * 3):
        curve = replace(noise.mean_variance, reliable=False)
        told = replace(noise, sigma=wrong, mean_variance=curve)
        assert "far too narrow" in looked_at(Blur(), movie, health, told)[2].warnings()[0]


def test_a_picture_too_weak_to_be_seen_is_told():
    raw = 100 + SIGMA * np.random.default_rng(3).normal(size=(8, 96, 96))
    movie = Movie.from_array(raw.astype(np.float32))
    noise = noise_statistics(movie)
    maps = [
        looked_at(Blur(width), movie, small.health(raw.shape, location=100, scale=15), noise)[2]
        for width in (12.0, 1.2)
    ]
    assert [m.doubtful for m in maps] == [True, False]


def test_frames_are_the_same_in_whatever_order_they_are_asked_for(swaying):
    movie, _, health, noise = swaying

    def renewed() -> Renewed:
        return Renewed(Blur(), movie, health, noise, 0)  # type: ignore[arg-type]

    one, two = renewed(), renewed()
    forward = [one[t] for t in range(len(movie))]
    backward = [two[t] for t in reversed(range(len(movie)))][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_of_a_corrected_movie_the_uncorrected_one_is_the_known_one(swaying):
    class Corrected(Blur):
        def uncorrected(self):
            return Blur()

        def corrected(self, raw, frame, bad):
            return 0.9 * frame + 10

        def stream(self, movie, health, *, frames=None):
            for t, raw, frame in super().stream(movie, health, frames=frames):
                yield t, raw, self.corrected(raw, frame, None)

    movie, _, health, noise = swaying
    denoised, errors, _ = looked_at(Corrected(), movie, health, noise)
    renewed = Renewed(Blur(), movie, health, noise, 0)  # type: ignore[arg-type]
    again = Corrected().stream(movie.with_data(renewed, did="noise added"), health)
    for t, _, twice in again:
        _, known = renewed.known(t)
        np.testing.assert_allclose(denoised[t], 0.9 * known + 10)
        expected = error_map(denoised[t].astype(np.float32), twice - known, noise.sigma)
        np.testing.assert_allclose(errors[t], expected, rtol=1e-5)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of frames of every pass from now on."""
    passes: list[int] = []
    whole = Denoiser.predict

    def predict(self: Denoiser, windows: np.ndarray, shift: int = 0) -> np.ndarray:
        passes.append(len(windows))
        return whole(self, windows, shift)

    monkeypatch.setattr(Denoiser, "predict", predict)
    return passes


@pytest.mark.parametrize("frames", [1, 5])
def test_every_frame_is_denoised_twice_and_no_oftener(
    monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    movie = Movie.from_array(small.noisy(40, 24, 24))
    health, noise = small.health(movie.shape), noise_statistics(movie)
    monkeypatch.setattr(Denoiser, "_lanes", lambda *_: 4)  # as on a machine of many cores
    passes = counted(monkeypatch)
    maps = ErrorMaps(Denoiser(small.model(frames=frames)), movie, health, noise)
    assert sum(1 for _ in maps.stream(lambda *_: None)) == 40
    assert sum(passes) == 80


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_fitting_a_correction_takes_the_passes_that_are_planned_for(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    movie = Movie.from_array(np.repeat(small.noisy(80 // copies, 24, 24), copies, axis=0))
    health = replace(
        small.health(movie.shape), duplicate_of=np.arange(len(movie)) // copies * copies
    )
    passes = counted(monkeypatch)
    fit_correction(Denoiser(small.model()), movie, health, noise_statistics(movie))
    planned = correction_passes(movie, health, 5)
    assert planned - 8 <= sum(passes) <= planned + 8  # each stretch begins a few frames further


def test_blank_frames_have_none(swaying):
    movie, _, health, noise = swaying
    blank = np.arange(len(movie)) == 5
    _, error, _ = looked_at(Blur(), movie, replace(health, blank=blank), noise)
    np.testing.assert_array_equal(np.isnan(error).all(axis=(1, 2)), blank)
    np.testing.assert_array_equal(np.isnan(error).any(axis=(1, 2)), blank)


def test_synthetic_noise_is_like_the_measured_one():
    rng = np.random.default_rng(5)
    white = rng.normal(size=(40, 96, 96))
    white = white + 0.6 * np.roll(white, 1, axis=2)  # along the lines
    white[1:] += 0.5 * white[:-1]  # and in time
    noise = noise_statistics(Movie.from_array((500 + 7 * white).astype(np.float32)))
    made = SyntheticNoise(noise, (96, 96), 0)
    level = np.full((96, 96), 500.0)
    np.testing.assert_array_equal(made(3, level), made(3, level))
    assert (made(3, level) != SyntheticNoise(noise, (96, 96), 1)(3, level)).any()
    frames = np.stack([made(t, level) for t in range(40)])
    real = 7 * white

    def lag(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).mean() / np.sqrt((a**2).mean() * (b**2).mean()))

    assert frames.std() == pytest.approx(real.std(), rel=0.05)
    for a, b in (
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[1:], np.s_[:-1]),
    ):
        assert lag(frames[a], frames[b]) == pytest.approx(lag(real[a], real[b]), abs=0.05)


def test_without_noise_there_is_no_uncertainty(swaying):
    movie, _, health, noise = swaying
    with pytest.raises(ShineError, match="no noise could be measured"):
        ErrorMaps(Blur(), movie, health, replace(noise, sigma=0.0))  # type: ignore[arg-type]


def test_the_map_lies_beside_the_movie_and_a_model_used_again_gives_the_same(tmp_path):
    movie = Movie.from_array(small.noisy(12, 48, 48), pixel_size_nm=0.1)
    first = Outputs.beside(tmp_path / "m.tif", report=False, model=True, uncertainty=True)
    assert first.uncertainty == tmp_path / "m_uncertainty.tif"
    options = Options(steps=8, student="never")
    denoise_file(movie, first, options=options)
    written = read(first.uncertainty)
    assert written.shape == movie.shape
    assert written.dtype == np.float32
    assert written.pixel_size_nm == pytest.approx(0.1)
    assert (np.asarray(written.data) > 0).all()
    with pytest.raises(ShineError, match="exists"):
        denoise_file(movie, first, options=options)
    kept = Model.load(first.model)
    again = denoise(movie, model=kept, uncertainty=True)
    np.testing.assert_allclose(
        np.asarray(again.uncertainty.data), np.asarray(written.data), rtol=1e-5
    )
    assert denoise(movie, model=kept).uncertainty is None
