"""The observer against plain numpy on the whole movie, and its memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter1d

from shine_em import observing
from shine_em.doctor import Health, check
from shine_em.metrics import frame_snr
from shine_em.movie import LazyFrames, Movie
from shine_em.observing import Observations, Observer


def observe(raw: np.ndarray, denoised: np.ndarray, keep: int = 16) -> Observations:
    observer = Observer(Movie.from_array(raw), keep=keep)
    for t in range(len(raw)):
        observer.add(t, raw[t], denoised[t])
    return observer.finish()


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(3, 40), st.integers(3, 40)),
    kind=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64, np.bool_]),
    keep=st.integers(1, 12),
)
@settings(max_examples=15)
def test_any_shape_and_type(shape, kind, keep) -> None:
    raw = (np.random.default_rng(0).random(shape) * 5).astype(kind)
    denoised = np.full(shape, 2.0, np.float32)
    seen = observe(raw, denoised, keep)
    assert len(seen.kept) == len(seen.raw) == len(seen.denoised) == min(keep, shape[0])
    assert seen.raw.shape[1:] == shape[1:]
    assert seen.frame.shape == seen.mean_raw.shape == (shape[0],)
    np.testing.assert_allclose(seen.mean_raw, raw.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(seen.mean_denoised, 2)
    assert (seen.residual is None) == (min(shape[1:]) < 16)


def test_values_agree_with_the_whole_movie() -> None:
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(40, 56))
    denoised = picture + 0.2 * rng.normal(size=(12, 40, 56))
    raw = denoised + 3 + rng.normal(size=denoised.shape)
    seen = observe(raw, denoised, keep=3)
    np.testing.assert_array_equal(seen.kept, [0, 6, 11])
    np.testing.assert_allclose(seen.raw, raw[seen.kept], rtol=1e-6)
    assert np.isnan(seen.snr_raw[0])
    np.testing.assert_allclose(seen.snr_raw[1:], frame_snr(raw), atol=1e-3)
    np.testing.assert_allclose(seen.snr_denoised[1:], frame_snr(denoised), atol=1e-3)
    assert seen.residual is not None
    assert seen.residual.frames == 12
    # Raw and denoised values are sampled at the same places.
    residual = seen.sample_raw - seen.sample_denoised
    assert residual.mean() == pytest.approx(3, abs=0.05)
    assert residual.std() == pytest.approx(1, abs=0.05)


def test_spectrum_shows_a_lattice_where_it_belongs() -> None:
    y, x = np.indices((64, 96))
    lattice = np.cos(2 * np.pi * (x * 12 / 96 + y * 5 / 64))
    raw = np.stack([lattice + 0.01 * np.random.default_rng(0).normal(size=(64, 96))] * 3)
    seen = observe(raw, np.zeros_like(raw))
    top = np.unravel_index(seen.spectrum.raw.argmax(), (64, 96))
    assert (top[0] - 32, top[1] - 48) in [(5, 12), (-5, -12)]
    assert seen.spectrum.residual.max() == pytest.approx(seen.spectrum.raw.max())


def test_large_frames_are_averaged_down_for_display(monkeypatch) -> None:
    monkeypatch.setattr(observing, "DISPLAY_SIDE", 20)
    raw = np.random.default_rng(0).normal(size=(2, 45, 31)).astype(np.float32)
    seen = observe(raw, raw)
    assert seen.shrink == 3
    assert seen.raw.shape == (2, 15, 11)
    np.testing.assert_allclose(seen.raw[0, 2, 3], raw[0, 6:9, 9:12].mean(), rtol=1e-5)
    np.testing.assert_allclose(seen.raw[0, 2, 10], raw[0, 6:9, 30:31].mean(), rtol=1e-5)


def test_memory_does_not_grow_with_the_movie() -> None:
    frame = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def held(n: int) -> int:
        movie = Movie(LazyFrames(lambda i: frame, (n, 16, 16), np.float32))
        observer = Observer(movie)
        for t in range(n):
            observer.add(t, frame + t / n, frame)
        seen = observer.finish()
        assert seen.frame[-1] == pytest.approx(n - 1, abs=n / observing.POINTS)
        assert (
            np.nanmax(np.abs(np.interp(n / 2, seen.frame, seen.mean_raw) - frame.mean() - 0.5))
            < 0.01
        )
        return sum(v.nbytes for v in vars(seen).values() if isinstance(v, np.ndarray))

    assert held(5000) < 1.3 * held(2500)


def test_pixels_without_a_value_do_not_spread() -> None:
    raw = np.random.default_rng(0).normal(5, 1, size=(3, 32, 32))
    raw[1, 3, 4], raw[2, 0, 0] = np.nan, np.inf
    seen = observe(raw, np.full_like(raw, 5.0))
    assert np.isfinite(seen.raw).all()
    np.testing.assert_allclose(seen.mean_raw, 5, atol=0.2)
    assert np.isfinite(seen.sample_raw).all()
    empty = observe(np.full((2, 20, 20), np.nan), np.zeros((2, 20, 20)))
    assert np.isfinite(empty.raw).all()


def test_hot_pixels_are_no_signal() -> None:
    clean = np.random.default_rng(0).poisson(20, size=(8, 64, 64)).astype(np.float32)
    raw = clean.copy()
    raw[:, 10, 12] = raw[:, 50, 7] = 3000
    health = check(Movie.from_array(raw))
    observer = Observer(Movie.from_array(raw), health=health)
    for t, frame in enumerate(raw):
        observer.add(t, frame, clean[t])
    seen = observer.finish()
    assert np.nanmax(frame_snr(raw)) > 10
    # White noise alone: 10 dB would be a correlation of 0.9.
    assert np.nanmax(seen.snr_raw) < -10
    # Nor do they make the raw frames brighter than the denoised ones.
    good = ~health.bad_pixels
    np.testing.assert_allclose(seen.mean_raw, raw[:, good].mean(1), rtol=1e-5)
    np.testing.assert_allclose(seen.mean_raw, seen.mean_denoised, rtol=1e-5)


def perfect(raw: np.ndarray, denoised: np.ndarray) -> tuple[Observations, Health]:
    """Return what is seen of a movie with faults, and its input check."""
    health = check(Movie.from_array(raw))
    observer = Observer(Movie.from_array(raw), health=health)
    for t, frame in enumerate(raw):
        observer.add(t, frame, denoised[t])
    return observer.finish(), health


def disc_movie() -> tuple[np.ndarray, np.ndarray]:
    """Return noisy and true frames, ``(24, 256, 256)``: a disc that moves, noise σ 10."""
    t, y, x = np.ogrid[:24, :256, :256]
    clean = (100 + 30.0 * (np.hypot(y - 128, x - 100 - t) < 40)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape).astype(np.float32)
    return clean + noise, clean


def test_pairs_of_hot_pixels_are_no_structure_in_the_residual() -> None:
    raw, clean = disc_movie()
    rng = np.random.default_rng(1)
    for y, x in zip(rng.integers(0, 256, 20), rng.integers(0, 255, 20), strict=True):
        raw[:, y, x : x + 2] += 1000
    seen, health = perfect(raw, clean)
    assert health.bad_pixels.sum() >= 38
    assert seen.residual is not None
    white = np.zeros((9, 9))
    white[4, 4] = 1
    assert seen.residual.test(white).outcome == "clear"
    assert seen.residual_sigma == pytest.approx(10, rel=0.01)
    np.testing.assert_allclose(seen.mean_raw, seen.mean_denoised, atol=0.2)
    # The pairs' spectrum, a cosine over all of the plane, is in neither picture.
    for power in (seen.spectrum.raw[5:100], seen.spectrum.residual):
        assert np.log10((10.0**power).mean()) == pytest.approx(2, abs=0.05)


def test_spikes_are_not_in_the_scale_of_the_residual() -> None:
    raw, clean = disc_movie()
    for t in range(24):
        raw[t, 7 * t + 5, [60, 200]] = 20000
    seen, health = perfect(raw, clean)
    assert health.spike_threshold < 20000
    assert seen.raw.max() == 20000  # shown as it is
    assert seen.residual_sigma == pytest.approx(10, rel=0.01)
    np.testing.assert_allclose(seen.mean_raw, seen.mean_denoised, atol=0.2)


def test_only_neighbours_are_compared() -> None:
    raw = np.random.default_rng(0).poisson(20, size=(10, 32, 32)).astype(np.float32)
    raw += 40 * (np.arange(32) < 16)
    raw[3] = 0  # a blank
    raw[6] = raw[5]
    raw[8:] = raw[8:, :, ::-1] + 500  # a cut
    seen, health = perfect(raw, raw)
    assert health.blank.tolist() == [t == 3 for t in range(10)]
    assert health.segment.tolist() == [int(t > 7) for t in range(10)]
    for values in (seen.snr_raw, seen.snr_denoised):
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(values)), [1, 2, 5, 9])
        assert np.isnan(values[[0, 3, 4, 6, 7, 8]]).all()
    assert np.isnan(seen.mean_raw[3])
    assert seen.sample_raw.min() > 0


def test_a_movie_of_copies_has_no_infinite_snr() -> None:
    raw = np.repeat(np.random.default_rng(0).poisson(20, size=(6, 32, 32)), 2, axis=0)
    seen, _ = perfect(raw.astype(np.float32), raw)
    assert not np.isinf(seen.snr_raw).any()
    assert not np.isinf(seen.snr_denoised).any()


@pytest.mark.parametrize("window", [5, 9])
def test_noise_that_two_windows_share_is_no_exaggerated_contrast(window: int) -> None:
    noise = np.random.default_rng(0).normal(size=(24, 128, 128)).astype(np.float32)
    mean = uniform_filter1d(noise, window, axis=0)
    observer = Observer(Movie.from_array(noise), apart=window)
    for t, frame in enumerate(noise):
        observer.add(t, frame, mean[t])
    residual = observer.finish().residual
    assert residual is not None
    assert residual.test().outcome != "exaggerated"


def test_blank_frames_are_not_shown() -> None:
    raw = np.random.default_rng(0).poisson(20, size=(9, 32, 32)).astype(np.float32)
    raw[[0, 4]] = 0
    health = check(Movie.from_array(raw))
    observer = Observer(Movie.from_array(raw), health=health, keep=3)
    for t, frame in enumerate(raw):
        observer.add(t, frame, frame)
    seen = observer.finish()
    assert not {0, 4} & {*seen.kept.tolist(), seen.spectrum.frame}
    assert len(seen.raw) == len(seen.kept) == 3


def test_frames_must_come_in_order_and_all() -> None:
    movie = Movie.from_array(np.zeros((3, 8, 8)))
    observer = Observer(movie)
    observer.add(0, movie.frame(0), movie.frame(0))
    with pytest.raises(ValueError, match="frame 2 came"):
        observer.add(2, movie.frame(2), movie.frame(2))
    with pytest.raises(ValueError, match="of a movie"):
        observer.add(1, movie.frame(1)[:4], movie.frame(1))
    with pytest.raises(ValueError, match="only 1 of 3"):
        observer.finish()
