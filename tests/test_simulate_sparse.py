"""The sparse counting scene: integers, less than one electron per pixel, a known lattice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.simulate import SCENES, Scene

sparse_counting = SCENES["sparse-counting"]
SMALL: dict[str, Any] = {"size": 96, "smallest_diameter_nm": 3.0, "largest_diameter_nm": 4.0}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sparse_counting(frames=10, seed=1, **SMALL)


def test_counts_are_small_integers_around_the_truth(scene: Scene) -> None:
    noisy, truth = np.asarray(scene.noisy.data), np.asarray(scene.truth.data)
    assert noisy.dtype == np.uint16
    assert (noisy == 0).mean() > 0.5
    assert set(np.unique(noisy)) <= set(range(9))
    assert truth.max() < 1
    error = np.sqrt(truth.mean() / noisy.size)
    assert abs(noisy.mean() - truth.mean()) < 4 * error
    # Poisson up to what coincidence takes away.
    assert ((noisy - truth) ** 2).mean() == pytest.approx(truth.mean(), rel=0.03)


def test_empty_field_gives_dose_times_area_times_conversion_less_coincidence() -> None:
    scene = sparse_counting(frames=1, seed=0, particles=1, **{**SMALL, "size": 160})
    rate = 2.4 * 0.25  # electrons per Å² × Å² per pixel
    # 40 internal frames in 0.1 s at 400 Hz; 5 pixels of dead area; 0.8 of the electrons detected.
    counts = 0.8 * rate * np.exp(-5 * 0.8 * rate / 40)
    assert scene.parameters["background_counts"] == pytest.approx(counts, rel=1e-9)
    truth = scene.truth.frame(0)
    y, x = scene.coordinates["positions_px"][0, 0]
    far = np.hypot(*(np.indices(truth.shape) - np.array([y, x])[:, None, None])) > 70
    assert far.sum() > 1000
    np.testing.assert_allclose(truth[far], counts, rtol=1e-2)
    assert scene.unblurred is not None
    np.testing.assert_allclose(scene.unblurred.frame(0)[far], 0.8 * rate, rtol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_lattice_spacings_from_the_fourier_transform(noisy: bool) -> None:
    scene = sparse_counting(
        frames=200 if noisy else 1, size=128, seed=3, particles=1, diffusivity_px2=0.0,
        rotation_deg=0.0, smallest_diameter_nm=5.9, largest_diameter_nm=6.0,
    )  # fmt: skip
    image = np.asarray((scene.noisy if noisy else scene.truth).data, float).mean(axis=0)
    padded = 1024
    window = np.outer(np.hanning(128), np.hanning(128))
    power = np.abs(np.fft.fft2((image - image.mean()) * window, (padded, padded))) ** 2
    k = np.fft.fftfreq(padded, 0.05)  # cycles per nm
    gy, gx = np.meshgrid(k, k, indexing="ij")
    spacing = 1 / np.maximum(np.hypot(gx, gy), 1e-9)
    angle = np.radians(scene.coordinates["angles_deg"][0, 0])
    a = 0.40786
    for u, v, true in ((1, np.sqrt(2), a / np.sqrt(3)), (2, 0, a / 2)):
        towards = np.array([u * np.sin(angle) + v * np.cos(angle),
                            u * np.cos(angle) - v * np.sin(angle)]) / a  # fmt: skip
        near = np.hypot(gy - towards[0], gx - towards[1]) < 0.3
        at = np.argmax(np.where(near, power, 0))
        assert spacing.flat[at] == pytest.approx(true, rel=0.01)
        ring = np.abs(spacing - true) < 0.05 * true
        assert power.flat[at] > 5 * np.median(power[ring])


def test_particles_move_and_turn_as_told() -> None:
    scene = sparse_counting(
        frames=50, seed=2, particles=200, diffusivity_px2=0.3, rotation_deg=2.0, workers=1,
        smallest_diameter_nm=0.3, largest_diameter_nm=0.4, size=200,
    )  # fmt: skip
    turns = np.diff(scene.coordinates["angles_deg"], axis=0)
    assert turns.std() == pytest.approx(2.0, rel=0.03)
    positions = scene.coordinates["positions_px"]
    inside = ((positions > 8) & (positions < 191)).all(axis=(0, 2))
    steps = np.diff(positions[:, inside], axis=0)
    assert (steps**2).sum(axis=-1).mean() == pytest.approx(4 * 0.3, rel=0.05)
    diameters = scene.coordinates["diameters_nm"]
    assert diameters.shape == (200,)
    assert diameters.min() >= 0.3
    assert diameters.max() <= 0.4


def test_the_truth_shows_the_particle_where_it_is() -> None:
    scene = sparse_counting(
        frames=3, seed=2, particles=1, fringe_contrast=0.0, diffusivity_px2=2.0,
        **{**SMALL, "size": 160},
    )  # fmt: skip
    for t in range(3):
        dark = np.clip(1 - scene.truth.frame(t) / scene.parameters["background_counts"], 0, None)
        dark[dark < 0.02] = 0
        centre = (np.indices(dark.shape) * dark).sum(axis=(1, 2)) / dark.sum()
        true = scene.coordinates["positions_px"][t, 0]
        radius = scene.coordinates["diameters_nm"][0] / 0.05 / 2
        assert (np.abs(true - 79.5) + radius < 76).all()  # nothing of it is cut off
        np.testing.assert_allclose(centre, true, atol=0.05)
        assert dark[tuple(np.rint(true).astype(int))] > 0.08


def test_same_seed_same_movie_and_resume(tmp_path: Any, scene: Scene) -> None:
    again = sparse_counting(frames=10, seed=1, workers=3, cache=tmp_path, **SMALL)
    cached = sparse_counting(frames=10, seed=1, cache=tmp_path, **SMALL)
    other = sparse_counting(frames=10, seed=2, **SMALL)
    np.testing.assert_array_equal(scene.noisy.data, again.noisy.data)
    np.testing.assert_array_equal(scene.noisy.data, cached.noisy.data)
    assert (np.asarray(scene.noisy.data) != np.asarray(other.noisy.data)).any()


@given(
    height=st.integers(61, 90),
    width=st.integers(61, 90),
    camera=st.sampled_from(["ideal", "k2", "k2-counting", "falcon", "ccd"]),
)
@settings(max_examples=8)
def test_any_size_and_camera(height: int, width: int, camera: str) -> None:
    scene = sparse_counting(
        frames=1, size=(height, width), camera=camera, workers=1, smallest_diameter_nm=2.0,
        largest_diameter_nm=3.0,
    )  # fmt: skip
    assert scene.unblurred is not None
    for movie in (scene.noisy, scene.truth, scene.unblurred):
        assert movie.shape == (1, height, width)
        assert np.isfinite(np.asarray(movie.data)).all()
    assert scene.noisy.pixel_size_nm == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dose_e_per_A2": 0.0}, "dose_e_per_A2"),
        ({"dose_e_per_A2": 5.0}, "dose_e_per_A2"),
        ({"particles": 0}, "particles"),
        ({"fringe_contrast": 1.5}, "fringe_contrast"),
        ({"pixel_size_nm": 0.12, "dose_e_per_A2": 0.1}, "pixel_size_nm"),
        ({"largest_diameter_nm": 30.0}, "largest_diameter_nm"),
        ({"smallest_diameter_nm": 5.0}, "smallest_diameter_nm"),
        ({"rotation_deg": -1.0}, "rotation_deg"),
        ({"camera": "k9"}, "k9"),
        ({"counting_rate_hz": 0.0}, "counting_rate_hz"),
        ({"frames": 0}, "frames"),
        ({"workers": -1}, "workers"),
    ],
)
def test_impossible_parameters_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ShineError, match=named):
        sparse_counting(**{"frames": 2, **SMALL, **wrong})
