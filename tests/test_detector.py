"""Cameras: their counts and noise spectra are what their formulas say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.simulate.counting import COINCIDENCE_PIXELS, counted
from shine_em.simulate.detector import (
    CAMERAS,
    Camera,
    camera_named,
)
from shine_em.simulate.point_spread import noise_correlation, record, spread

BUSY = replace(CAMERAS["k2-counting"], counting_frames=20)  # 0.2 electrons per internal frame
NOISY_READOUT = replace(CAMERAS["ideal"], conversion=3.3, read_noise=4.0, dark=60.0)


def recordings(
    camera: Camera, electrons: np.ndarray, repeats: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pairs = [camera.record(electrons, rng) for _ in range(repeats)]
    return np.stack([noisy for noisy, _ in pairs]).astype(float), pairs[0][1]


def correlation_at(noise: np.ndarray, distance: int, axis: int) -> float:
    n = noise.shape[axis]
    early, late = noise.take(range(n - distance), axis), noise.take(range(distance, n), axis)
    return float((early * late).mean() / (noise**2).mean())


@pytest.mark.parametrize(
    ("camera", "electrons"),
    [
        (CAMERAS["ideal"], 0.8),
        (CAMERAS["k2"], 2.35),
        (CAMERAS["k2-counting"], 2.35),
        (BUSY, 5.0),
        (CAMERAS["falcon"], 6.0),
        (CAMERAS["ccd"], 8.0),
        (NOISY_READOUT, 7.0),
    ],
    ids=["ideal", "k2", "k2-counting", "busy", "falcon", "ccd", "read noise"],
)
def test_noise_power_of_an_even_field_is_the_analytic_one(camera: Camera, electrons: float) -> None:
    size, repeats = 80, 40
    noisy, expected = recordings(camera, np.full((size, size), electrons), repeats)
    np.testing.assert_allclose(expected, camera.expected_counts(electrons), rtol=1e-5)
    # The window keeps the strong low frequencies of a wide point spread out of the high ones.
    slope = np.hanning(size + 1)[:-1]
    window = np.outer(slope, slope)
    window /= np.sqrt((window**2).sum())
    power = (np.abs(np.fft.fft2((noisy - expected) * window)) ** 2).mean(axis=0)
    k = np.fft.fftfreq(size)
    g, f = np.meshgrid(k, k, indexing="ij")
    ratio = power / camera.nps(f, electrons, g)
    # In rings, each mean of many exponentially distributed values; the window makes about 2.25
    # neighbouring values per axis one.
    radius = np.hypot(f, g)
    for low in np.arange(0.03, 0.7, 0.05):
        ring = (radius >= low) & (radius < low + 0.05)
        error = np.sqrt(2.25**2 / (ring.sum() / 2 * repeats))
        assert abs(ratio[ring].mean() - 1) < 4 * error, f"{low:.2f} cycles per pixel"
    assert noisy.var(axis=0, ddof=1).mean() == pytest.approx(
        float(camera.nps(f, electrons, g).mean()), rel=0.02
    )


@pytest.mark.parametrize("name", list(CAMERAS))
def test_empty_scene_gives_dose_times_area_times_conversion(name: str) -> None:
    dose_e_per_A2, pixel_size_nm = 4.0, 0.05
    electrons = dose_e_per_A2 * (10 * pixel_size_nm) ** 2
    # Whole counts per electron that is counted, as an integer camera needs them.
    camera = replace(CAMERAS[name], conversion=7 * CAMERAS[name].efficiency)
    conversion = camera.conversion
    noisy, expected = recordings(camera, np.full((64, 64), electrons), 40)
    lost = 0.0
    if camera.counting_frames is not None:
        lost = 1 - np.exp(-5 * 0.8 * electrons / 400)
        assert lost < 0.011
    np.testing.assert_allclose(
        expected - camera.dark, conversion * electrons * (1 - lost), rtol=1e-5
    )
    error = np.sqrt(camera.nps(0.0, electrons) / noisy.size)
    assert abs(noisy.mean() - expected.mean()) < 4 * error


@pytest.mark.parametrize("electrons", [1.0, 10.0, 40.0, 120.0])
def test_coincidence_loss_follows_its_formula(electrons: float) -> None:
    frames, size = 100, 80
    expected, counts = counted(
        np.full((size, size), electrons), frames, np.random.default_rng(int(electrons))
    )
    inner = slice(1, -1), slice(1, -1)
    theory = electrons * np.exp(-COINCIDENCE_PIXELS * electrons / frames)
    np.testing.assert_allclose(expected[inner], theory)
    assert counts[inner].mean() == pytest.approx(theory, abs=4 * np.sqrt(theory) / size)
    # A pixel at the edge has fewer neighbours to lose electrons to.
    assert expected[0, 0] == pytest.approx(electrons * np.exp(-3 * electrons / frames))
    assert counts[0].mean() == pytest.approx(expected[0].mean(), abs=5 * np.sqrt(theory / size))


def test_counts_never_touch_within_an_internal_frame() -> None:
    _, counts = counted(np.full((60, 60), 0.3), 1, np.random.default_rng(0))
    assert counts.max() == 1
    assert counts.sum() > 100
    assert not (counts[1:] * counts[:-1]).any()
    assert not (counts[:, 1:] * counts[:, :-1]).any()
    assert (counts[1:, 1:] * counts[:-1, :-1]).any()


@pytest.mark.parametrize("name", ["k2", "falcon", "ccd"])
def test_a_sine_is_passed_by_the_modulation_transfer(name: str) -> None:
    camera = CAMERAS[name]
    x = np.arange(120)
    for period in (4, 8, 24):
        wave = 1 + 0.5 * np.cos(2 * np.pi * x / period)
        _, expected = camera.record(np.tile(10 * wave, (8, 1)), np.random.default_rng(0))
        line = expected[0, 36:84] - camera.dark
        seen = 2 * np.abs((line * np.exp(-2j * np.pi * x[36:84] / period)).mean()) / line.mean()
        assert seen / 0.5 == pytest.approx(float(camera.mtf(1 / period)), abs=2e-3)


def test_transfer_of_the_named_cameras() -> None:
    f = np.linspace(0, 0.5, 26)
    for camera in CAMERAS.values():
        mtf, dqe = camera.mtf(f), camera.dqe(f)
        assert mtf[0] == pytest.approx(1)
        assert (np.diff(mtf) <= 1e-9).all()
        assert (dqe <= dqe[0] + 1e-9).all()
        np.testing.assert_allclose(dqe, dqe[0] * (mtf / camera.ntf(f)) ** 2)
    assert camera_named("falcon") is CAMERAS["falcon"]
    sinc = np.sinc(f)
    # Read off clTEM's table for the K2: DQE 0.73, 0.35 and 0.15 at 0, 0.217 and 0.5; NTF falls to
    # 0.56 of its start.
    k2 = CAMERAS["k2"]
    assert float(k2.dqe(0.0)) == pytest.approx(0.73)
    assert np.interp(0.217, f, k2.dqe(f) * sinc**2) == pytest.approx(0.35, abs=0.02)
    assert float(k2.dqe(0.5)) * sinc[-1] ** 2 == pytest.approx(0.15, abs=0.02)
    assert float(k2.ntf(0.5)) == pytest.approx(0.56, abs=0.02)
    # Read off RELION's table for the Falcon II.
    falcon = CAMERAS["falcon"].mtf(f) * sinc
    np.testing.assert_allclose(
        np.interp([0.1, 0.25, 0.5], f, falcon), [0.601, 0.219, 0.052], atol=0.03
    )
    # A CCD behind a scintillator blurs most, an electron counter least.
    at_half = {name: float(camera.mtf(0.25)) for name, camera in CAMERAS.items()}
    assert at_half["ccd"] < 0.2 < at_half["k2"] < at_half["k2-counting"] < at_half["ideal"] == 1


@pytest.mark.parametrize("name", ["k2", "k2-counting", "falcon", "ccd"])
def test_dqe_is_signal_to_noise_out_over_in(name: str) -> None:
    camera, electrons, f = CAMERAS[name], 3.0, np.array([0.0, 0.1, 0.3, 0.5])
    # The small-signal response, measured on the expected counts.
    x = np.arange(200)
    for frequency in f:
        size = 1e-3
        wave = size * np.cos(2 * np.pi * frequency * x)
        rng = np.random.default_rng(0)
        up, down = (
            camera.record(np.tile(electrons * (1 + s * wave), (120, 1)), rng)[1].astype(float)
            for s in (1, -1)
        )
        response = ((up - down) / 2)[60, 100] / (electrons * size)
        dqe = response**2 * electrons / camera.nps(frequency, electrons)
        assert dqe == pytest.approx(float(camera.dqe(frequency, electrons)), rel=0.02)


def test_read_noise_and_coincidence_lower_the_dqe() -> None:
    f = np.array([0.0, 0.25, 0.5])
    assert (NOISY_READOUT.dqe(f, 1.0) < NOISY_READOUT.dqe(f, 100.0)).all()
    assert (NOISY_READOUT.dqe(f, 100.0) < NOISY_READOUT.dqe(f)).all()
    counting = CAMERAS["k2-counting"]
    assert counting.dqe(0.0, 40.0) < 0.7 * counting.dqe(0.0, 0.4)


def test_fixed_pattern_hot_and_dead_pixels_stay_where_they_are() -> None:
    camera = replace(
        CAMERAS["falcon"], gain_variation=0.05, hot_pixels=0.01, dead_pixels=0.02, read_noise=0.0
    )
    noisy, expected = recordings(camera, np.full((50, 60), 100.0), 30)
    mean = noisy.mean(axis=0)
    dead, hot = mean == camera.dark, mean > expected + 600
    assert dead.sum() == pytest.approx(0.02 * dead.size, rel=0.5)
    assert hot.sum() == pytest.approx(0.01 * hot.size, rel=0.7)
    good = mean[~dead & ~hot] / expected[~dead & ~hot]
    assert good.std() == pytest.approx(0.05, rel=0.15)
    np.testing.assert_allclose(expected, 100 * 30 + 50, rtol=1e-6)
    again, _ = recordings(camera, np.full((50, 60), 20.0), 2, seed=5)
    assert (again[0][dead] == camera.dark).all()
    other = replace(camera, pattern_seed=1)
    moved, _ = recordings(other, np.full((50, 60), 100.0), 2)
    assert (moved[0][dead] > camera.dark).any()


def test_a_border_brings_in_what_lies_outside() -> None:
    camera = CAMERAS["falcon"]
    edge = camera.border
    rng = np.random.default_rng(0)
    field = np.full((40 + 2 * edge, 80 + 2 * edge), 10.0)
    field[:, :edge] = 40.0
    _, bordered = camera.record(field, rng, bordered=True)
    _, mirrored = camera.record(field[edge:-edge, edge:-edge], rng)
    assert bordered.shape == mirrored.shape == (40, 80)
    assert (bordered[:, 0] > mirrored[:, 0] + 10).all()
    np.testing.assert_allclose(bordered[:, 40:], mirrored[:, 40:], rtol=1e-3)


@given(
    name=st.sampled_from(list(CAMERAS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    electrons=st.floats(0, 20),
)
@settings(max_examples=30)
def test_any_size_and_dose(name: str, height: int, width: int, electrons: float) -> None:
    camera = CAMERAS[name]
    noisy, expected = camera.record(
        np.full((height, width), electrons), np.random.default_rng(height)
    )
    assert noisy.shape == expected.shape == (height, width)
    assert expected.dtype == np.float32
    assert noisy.dtype == (np.uint16 if camera.integer else np.float32)
    assert np.isfinite(noisy).all()
    np.testing.assert_allclose(expected, camera.expected_counts(electrons), rtol=1e-4, atol=1e-4)
    if electrons == 0 and camera.read_noise == 0:
        assert (noisy == camera.dark).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"conversion": 0.0}, "conversion"),
        ({"efficiency": 1.1}, "efficiency"),
        ({"efficiency": float("nan")}, "efficiency"),
        ({"gain_spread": -1.0}, "gain_spread"),
        ({"spread": ((0.5, -1.0),)}, "spread"),
        ({"scatter": ((0.7, 1.0), (0.4, 2.0))}, "scatter"),
        ({"counting_frames": 0}, "counting_frames"),
        ({"counting_frames": 10, "gain_spread": 0.5}, "gain_spread"),
        ({"hot_pixels": 0.6, "dead_pixels": 0.6}, "hot_pixels"),
        ({"read_noise": -2.0}, "read_noise"),
        ({"conversion": 3.47}, "conversion"),
    ],
)
def test_impossible_cameras_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ShineError, match=named):
        Camera(name="x", title="X", **wrong)


@pytest.mark.parametrize(
    ("electrons", "word"),
    [
        (np.full((4, 4), -1.0), "negative"),
        (np.full((4, 4), np.nan), "finite"),
        (np.ones(4), "shape"),
        (np.full((4, 4), 1e5), "16 bits"),
    ],
)
def test_impossible_images_are_refused(electrons: np.ndarray, word: str) -> None:
    with pytest.raises(ShineError, match=word):
        CAMERAS["ideal"].record(electrons, np.random.default_rng(0))


def test_unknown_camera_lists_the_known_ones() -> None:
    with pytest.raises(ShineError, match=r"'k4'.*k2-counting"):
        camera_named("k4")


def test_noise_reaches_the_border_unchanged() -> None:
    electrons = np.full((40, 40), 200.0)
    rng = np.random.default_rng(0)
    recorded = np.stack([record(electrons, rng, dqe=0.5)[0] for _ in range(400)])
    variance = recorded.var(axis=0)
    edge = np.concatenate([variance[0], variance[-1], variance[:, 0], variance[:, -1]])
    assert edge.mean() == pytest.approx(variance[5:-5, 5:-5].mean(), rel=0.04)


def test_truth_is_the_mean_of_many_recordings() -> None:
    rng = np.random.default_rng(1)
    electrons = rng.uniform(50, 500, (16, 16))
    repeats = 600
    recordings = [record(electrons, rng, conversion=2.0, dqe=0.2) for _ in range(repeats)]
    mean = np.mean([noisy for noisy, _ in recordings], axis=0)
    expected = recordings[0][1]
    error = np.std([noisy for noisy, _ in recordings], axis=0) / np.sqrt(repeats)
    assert np.abs((mean - expected) / error).max() < 5


@pytest.mark.parametrize("point_spread", [(1.0,), (1.0, 0.5), (1.0, 0.3, 0.1, 0.05)])
def test_point_spread_keeps_the_signal_and_gives_its_correlation(
    point_spread: tuple[float, ...],
) -> None:
    border = len(point_spread) - 1
    delta = np.zeros((41, 41))
    delta[20, 20] = 7.0
    blurred = spread(delta, point_spread)
    assert blurred.shape == (41 - 2 * border, 41 - 2 * border)
    assert blurred.sum() == pytest.approx(7.0, rel=1e-6)
    noise = spread(np.random.default_rng(0).normal(size=(500, 500)), point_spread)
    measured = [correlation_at(noise, d, 1) for d in (1, 2, 3)]
    np.testing.assert_allclose(measured, noise_correlation(point_spread, 3), atol=0.012)
