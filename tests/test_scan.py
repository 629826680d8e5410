import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.noise import noise_statistics
from shine_em.simulate.scan import (
    Scan,
    StemDetector,
    pixel_of,
    record_scan,
    response_correlation,
    visited,
)

QUIET = StemDetector(pulse_spread=0.0, black_level=0.0, read_noise=0.0)


def flat(detector, dwell, *, electrons=5.0, shape=(192, 192), frames=8, seed=0):
    lead = detector.lead(dwell)
    rng = np.random.default_rng(seed)
    field = np.full((shape[0], shape[1] + lead), electrons)
    recorded = [
        record_scan(field, rng, detector=detector, dwell_time_s=dwell, lead=lead)
        for _ in range(frames)
    ]
    return np.array([noisy for noisy, _ in recorded]), recorded[0][1]


def correlation(noise, distance, axis):
    one = np.take(noise, range(noise.shape[axis] - distance), axis)
    other = np.take(noise, range(distance, noise.shape[axis]), axis)
    return (one * other).mean() / noise.var()


@pytest.mark.parametrize("dwell", [5e-6, 10e-6])
def test_noise_has_the_analytic_correlation_and_variance(dwell):
    detector = StemDetector(conversion=40, pulse_spread=0.4, response_time_s=3e-6, read_noise=0)
    noisy, expected = flat(detector, dwell)
    noise = noisy - expected
    analytic = response_correlation(dwell, 3e-6)
    measured = [correlation(noise, k, axis=2) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(measured, analytic, atol=0.01)
    assert abs(correlation(noise, 1, axis=1)) < 0.01
    a = dwell / 3e-6
    variance = 5 * 40**2 * (1 + 0.4**2) * (a - 1 + np.exp(-a)) / a
    assert noise.var() == pytest.approx(variance, rel=0.02)


def test_mean_of_an_empty_field_is_electrons_times_conversion():
    detector = StemDetector(conversion=25, black_level=300, response_time_s=2e-6)
    noisy, expected = flat(detector, 5e-6, electrons=3.0)
    np.testing.assert_allclose(expected, 300 + 3 * 25, rtol=1e-4)
    assert noisy.mean() == pytest.approx(375, abs=0.5)


@pytest.mark.parametrize(("dwell", "hole"), [(5e-6, (1, 5)), (10e-6, (1, 3))])
def test_noise_statistics_find_the_hole_along_the_lines(dwell, hole):
    noisy, _ = flat(StemDetector(), dwell, frames=12)
    found = noise_statistics(noisy)
    assert found.hole == hole
    assert found.anisotropy > 0.8
    assert found.homogeneity_spread < 1.5


def test_the_expected_picture_is_smeared_to_the_right_only_and_keeps_its_sum():
    electrons = np.zeros((3, 60))
    electrons[1, 20] = 100.0
    _, expected = record_scan(
        electrons, np.random.default_rng(0), detector=QUIET, dwell_time_s=5e-6
    )
    assert expected[1, 20] > expected[1, 21] > expected[1, 22] > 0
    assert not expected[1, :20].any()
    assert not expected[[0, 2]].any()
    assert expected.sum() == pytest.approx(100 * QUIET.conversion, rel=1e-4)


def test_the_truth_is_the_mean_of_many_recordings():
    rng = np.random.default_rng(1)
    electrons = rng.uniform(0, 6, (16, 40))
    frames = [
        record_scan(electrons, rng, detector=StemDetector(), dwell_time_s=5e-6, lead=5)
        for _ in range(400)
    ]
    mean = np.mean([noisy for noisy, _ in frames], axis=0)
    error = np.std([noisy for noisy, _ in frames], axis=0) / 20
    assert np.abs((mean - frames[0][1]) / error).max() < 5


def test_without_response_time_the_noise_is_white_poisson():
    detector = StemDetector(pulse_spread=0, response_time_s=0, black_level=0, read_noise=0)
    noisy, _ = flat(detector, 5e-6, electrons=2.0)
    assert detector.lead(5e-6) == 0
    np.testing.assert_allclose(noisy / 40, np.rint(noisy / 40), atol=1e-5)
    assert noisy.var() / 1600 == pytest.approx(2.0, rel=0.02)
    assert abs(correlation(noisy - 80, 1, axis=2)) < 0.01
    assert not response_correlation(5e-6, 0.0).any()


def test_an_ideal_scan_visits_the_grid():
    places = visited(Scan(pixel_size_nm=0.02), (5, 7), lead=2)
    assert places.shape == (5, 9, 2)
    np.testing.assert_allclose(places[3, 2 + 4], [0.06, 0.08])


def test_drift_shears_and_jitter_tears_lines():
    scan = Scan(drift_nm_per_s=(0.1, 0.3), jitter_nm=(0.0, 0.004), flyback_s=1e-4)
    shape = (200, 64)
    drifted = visited(scan, shape, start_s=2.0)
    later = 2.0 + scan.line_time_s(64)
    np.testing.assert_allclose(
        drifted[1, 0], np.array([scan.pixel_size_nm, 0]) - [0.1 * later, 0.3 * later]
    )
    torn = visited(scan, shape, start_s=2.0, rng=np.random.default_rng(0)) - drifted
    assert not torn[..., 0].any()
    np.testing.assert_allclose(torn, torn[:, :1].repeat(64, axis=1), atol=1e-12)
    assert torn[:, 0, 1].std() == pytest.approx(0.004, rel=0.2)


def test_settling_displaces_only_the_beginning_of_lines():
    scan = Scan(settling_nm=0.03, settling_s=50e-6)
    moved = visited(scan, (2, 200)) - visited(Scan(), (2, 200))
    assert moved[0, 0, 1] == pytest.approx(0.03)
    assert moved[0, 10, 1] == pytest.approx(0.03 / np.e)
    assert abs(moved[:, 150:]).max() < 1e-6


@settings(max_examples=30)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    drift=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    start=st.floats(0, 100),
    lead=st.integers(0, 9),
)
def test_pixel_of_inverts_visited(height, width, drift, start, lead):
    scan = Scan(drift_nm_per_s=drift, settling_nm=0.02)
    places = visited(scan, (height, width), start_s=start, lead=lead)[:, lead:]
    pixels = pixel_of(scan, places, (height, width), start_s=start, lead=lead)
    np.testing.assert_allclose(pixels, np.moveaxis(np.mgrid[:height, :width], 0, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Scan(dwell_time_s=0), "dwell_time_s"),
        (lambda: Scan(jitter_nm=(-1, 0)), "jitter_nm"),
        (lambda: Scan(drift_nm_per_s=(np.nan, 0)), "drift_nm_per_s"),
        (lambda: StemDetector(conversion=-1), "conversion"),
        (lambda: StemDetector(response_time_s=np.inf), "response_time_s"),
        (lambda: StemDetector(response_time_s=3).lead(5e-6), "response_time_s=3 is 6e[+]05 times"),
        (
            lambda: pixel_of(Scan(drift_nm_per_s=(9.0, 0)), np.zeros(2), (512, 512)),
            "drift_nm_per_s",
        ),
        (
            lambda: record_scan(
                np.full((4, 4), -1.0), np.random.default_rng(), detector=QUIET, dwell_time_s=1e-6
            ),
            "electrons",
        ),
        (
            lambda: record_scan(
                np.ones((4, 4)), np.random.default_rng(), detector=QUIET, dwell_time_s=1e-6, lead=4
            ),
            "lead",
        ),
    ],
)
def test_impossible_values_are_named(make, named):
    with pytest.raises(ShineError, match=named):
        make()
