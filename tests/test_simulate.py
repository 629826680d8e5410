"""Simulated scenes: the physics they claim, and files that come back."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.simulate import SCENES, Scene, au_growth, save
from shine_em.simulate.au_growth import gold_thickness
from shine_em.simulate.point_spread import K2_LIKE_POINT_SPREAD


@pytest.fixture(scope="module")
def scene() -> Scene:
    return au_growth(frames=24, size=128, seed=3)


def correlation_at(noise: np.ndarray, distance: int, axis: int) -> float:
    n = noise.shape[axis]
    early, late = noise.take(range(n - distance), axis), noise.take(range(distance, n), axis)
    return float((early * late).mean() / (noise**2).mean())


def test_movies_are_calibrated(scene: Scene) -> None:
    for movie in (scene.noisy, scene.truth, scene.unblurred):
        assert movie.shape == (24, 128, 128)
        assert movie.pixel_size_nm == pytest.approx(1.045)
        assert movie.frame_time_s == pytest.approx(1.0)
        assert movie.dose_e_per_A2 == 20.0
        assert movie.intensity_unit == "counts"
        assert "seed 3" in movie.history[0]
    assert scene.noisy.dtype == np.uint16
    assert scene.truth.dtype == scene.unblurred.dtype == np.float32


def test_empty_cell_gives_the_counts_of_beer_and_lambert(scene: Scene) -> None:
    electrons = 20 * 10.45**2 * np.exp(-50 / 185 - 100 / 144)
    assert scene.parameters["electrons_per_pixel"] == pytest.approx(electrons)
    unblurred, truth = np.asarray(scene.unblurred.data), np.asarray(scene.truth.data)
    assert unblurred.max() == pytest.approx(3.47 * electrons, rel=1e-6)
    empty = truth >= 3.47 * electrons * (1 - 1e-6)
    assert empty.mean() > 0.3
    noisy = np.asarray(scene.noisy.data)[empty]
    # Neighbours share electrons, so the mean is less sure than that of independent pixels.
    uncertainty = noisy.std() / np.sqrt(noisy.size) / np.sqrt(np.prod(_kernel_energy()))
    assert abs(noisy.mean() - 3.47 * electrons) < 4 * uncertainty


def _kernel_energy() -> tuple[float, float]:
    kernel = np.array([*K2_LIKE_POINT_SPREAD[:0:-1], *K2_LIKE_POINT_SPREAD])
    kernel /= kernel.sum()
    energy = float((kernel**2).sum())
    return energy, energy


def test_noise_variance_follows_the_counts() -> None:
    movie = au_growth(frames=20, size=64, seed=1, final_diameter_nm=30.0, gold_mfp_nm=15.0)
    noise = np.asarray(movie.noisy.data, float) - np.asarray(movie.truth.data)
    truth = np.asarray(movie.truth.data)
    # Away from edges var = g ⟨I⟩ Σk² / DQE; blurring Poisson variance by k² instead of k matters
    # little there.
    slope = 3.47 * np.prod(_kernel_energy()) / 0.03
    for low, high in ((0.15, 0.4), (0.4, 0.7), (0.999, 1.1)):
        chosen = (truth > low * truth.max()) & (truth < high * truth.max())
        assert chosen.sum() > 1000
        expected = slope * truth[chosen].mean()
        assert (noise[chosen] ** 2).mean() == pytest.approx(expected, rel=0.12)


def test_noise_is_correlated_as_on_the_target_camera(scene: Scene) -> None:
    noise = np.asarray(scene.noisy.data, float) - np.asarray(scene.truth.data)
    for axis in (1, 2):
        measured = [correlation_at(noise, d, axis) for d in (1, 2, 3, 4)]
        np.testing.assert_allclose(measured, [0.305, 0.039, 0.0, 0.0], atol=0.012)
    diagonal = (noise[:, 1:, 1:] * noise[:, :-1, :-1]).mean() / (noise**2).mean()
    assert diagonal == pytest.approx(0.305**2, abs=0.012)
    assert correlation_at(noise, 1, 0) == pytest.approx(0, abs=0.012)


def test_mean_squared_displacement_is_4_d_per_frame() -> None:
    scene = au_growth(frames=40, size=(120, 400), particles=300, seed=5, diffusivity_px2=0.2)
    positions = scene.coordinates["positions_px"]
    # A walker within 15 px (24 standard deviations of one step) of a wall may be reflected.
    far = ((positions > 15) & (positions < np.array([105, 385]))).all(axis=(0, 2))
    assert far.sum() > 100
    for lag in (1, 2, 5):
        steps = positions[lag:, far] - positions[:-lag, far]
        assert (steps**2).sum(axis=-1).mean() == pytest.approx(4 * 0.2 * lag, rel=0.12)
    assert (positions >= -0.5).all()
    assert (positions <= np.array([119.5, 399.5])).all()


def test_particles_do_not_move_without_diffusion() -> None:
    scene = au_growth(frames=3, size=32, diffusivity_px2=0.0)
    assert (scene.coordinates["positions_px"] == scene.coordinates["positions_px"][0]).all()


def test_growth_is_linear_from_6_nm(scene: Scene) -> None:
    diameters = scene.coordinates["diameters_nm"]
    np.testing.assert_allclose(diameters[0], 6.0)
    np.testing.assert_allclose(np.diff(diameters, 2, axis=0), 0, atol=1e-12)
    assert (np.diff(diameters, axis=0) > 0).all()
    many = au_growth(frames=2, size=32, particles=2000, seed=1, growth_spread=0.2)
    assert many.coordinates["diameters_nm"][-1].mean() == pytest.approx(20.0, abs=0.3)
    assert many.coordinates["diameters_nm"][-1].std() == pytest.approx(0.2 * 14, rel=0.1)
    alike = au_growth(frames=2, size=32, particles=5, growth_spread=0.0, final_diameter_nm=12.0)
    np.testing.assert_allclose(alike.coordinates["diameters_nm"][-1], 12.0)


@given(
    diameter=st.floats(6, 20),
    y=st.floats(15, 30),
    x=st.floats(15, 40),
    pixel_size_nm=st.floats(0.7, 1.2),
)
@settings(max_examples=40, deadline=None)
def test_projected_sphere_has_its_volume_depth_and_centre(
    diameter: float, y: float, x: float, pixel_size_nm: float
) -> None:
    gold = gold_thickness(
        np.array([[y, x]]), np.array([diameter]), shape=(46, 56), pixel_size_nm=pixel_size_nm
    )
    assert gold.sum() * pixel_size_nm**2 == pytest.approx(np.pi / 6 * diameter**3, rel=0.04)
    assert 0.8 * diameter < gold.max() <= diameter
    grid = np.indices(gold.shape)
    centre = (grid * gold).sum(axis=(1, 2)) / gold.sum()
    np.testing.assert_allclose(centre, [y, x], atol=0.1)


def test_overlapping_particles_add_up_to_the_depth_of_the_liquid() -> None:
    common: dict[str, Any] = {
        "frames": 1, "size": 24, "initial_diameter_nm": 20.0, "final_diameter_nm": 20.0,
        "point_spread": (1.0,), "gold_mfp_nm": 25.0,
    }  # fmt: skip
    crowded = au_growth(particles=300, **common)
    liquid_of_gold = np.exp(-50 * (1 / 25 - 1 / 185)) * crowded.parameters["background_counts"]
    assert np.asarray(crowded.unblurred.data).min() == pytest.approx(liquid_of_gold, rel=1e-5)


def test_particles_are_dark(scene: Scene) -> None:
    unblurred = np.asarray(scene.unblurred.data)
    for t in (0, 23):
        y, x = np.rint(scene.coordinates["positions_px"][t]).astype(int).clip(0, 127).T
        at_particles = unblurred[t, y, x] / scene.parameters["background_counts"]
        depth = scene.coordinates["diameters_nm"][t] * (1 / 30 - 1 / 185)
        # Overlaps only darken; the pixel's mean is a little less deep than the centre.
        assert (at_particles < np.exp(-0.8 * depth)).all()


def test_same_seed_gives_the_same_movie_with_any_number_of_workers() -> None:
    one = au_growth(frames=4, size=40, seed=11, workers=1)
    many = au_growth(frames=4, size=40, seed=11, workers=4)
    other = au_growth(frames=4, size=40, seed=12)
    np.testing.assert_array_equal(one.noisy.data, many.noisy.data)
    np.testing.assert_array_equal(one.truth.data, many.truth.data)
    assert one.parameters == many.parameters
    assert (np.asarray(one.noisy.data) != np.asarray(other.noisy.data)).any()


@given(
    frames=st.integers(1, 3),
    height=st.integers(26, 61),
    width=st.integers(26, 61),
    point_spread=st.sampled_from([(1.0,), (1.0, 0.2), K2_LIKE_POINT_SPREAD]),
)
@settings(max_examples=15, deadline=None)
def test_any_size(frames: int, height: int, width: int, point_spread: tuple[float, ...]) -> None:
    scene = au_growth(frames=frames, size=(height, width), point_spread=point_spread, workers=1)
    for movie in (scene.noisy, scene.truth, scene.unblurred):
        assert movie.shape == (frames, height, width)
        assert np.isfinite(np.asarray(movie.data)).all()
    assert scene.parameters["particles"] == max(1, round(350 * height * width / 512**2))


def test_16_by_16() -> None:
    scene = au_growth(frames=2, size=16, final_diameter_nm=10.0)
    assert scene.noisy.shape == (2, 16, 16)
    assert scene.parameters["particles"] == 1


def test_progress_counts_every_frame() -> None:
    seen: list[tuple[int, int]] = []
    au_growth(frames=3, size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_parameters_repeat_the_simulation() -> None:
    scene = au_growth(frames=2, size=(30, 34), seed=9, dqe=0.2, final_diameter_nm=12.0)
    repeated = json.loads(json.dumps(scene.parameters))
    simulate = SCENES[repeated.pop("scene")]
    for derived in ("electrons_per_pixel", "background_counts", "noise_correlation"):
        repeated.pop(derived)
    again = simulate(**repeated)
    np.testing.assert_array_equal(again.noisy.data, scene.noisy.data)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"frames": 0}, "frames"),
        ({"size": 0}, "size"),
        ({"particles": 0}, "particles"),
        ({"seed": -1}, "seed"),
        ({"dose_e_per_A2": -20.0}, "dose_e_per_A2"),
        ({"dose_e_per_A2": float("nan")}, "dose_e_per_A2"),
        ({"dose_e_per_A2": 5000.0}, "dose_e_per_A2"),
        ({"pixel_size_nm": 0.0}, "pixel_size_nm"),
        ({"frame_time_s": -1.0}, "frame_time_s"),
        ({"diffusivity_px2": -0.1}, "diffusivity_px2"),
        ({"conversion": 0.0}, "conversion"),
        ({"dqe": 0.0}, "dqe"),
        ({"dqe": 1.5}, "dqe"),
        ({"gold_mfp_nm": float("inf")}, "gold_mfp_nm"),
        ({"window_nm": -1.0}, "window_nm"),
        ({"size": 16}, "final_diameter_nm"),
        ({"initial_diameter_nm": 60.0, "final_diameter_nm": 60.0}, "initial_diameter_nm"),
        ({"liquid_nm": 10.0}, "liquid_nm"),
        ({"growth_spread": 2.0}, "growth_spread"),
        ({"point_spread": (0.0, 1.0)}, "point_spread"),
        ({"point_spread": (1.0, -0.5)}, "point_spread"),
        ({"point_spread": ()}, "point_spread"),
        ({"workers": 0}, "workers"),
    ],
)
def test_impossible_parameters_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ShineError, match=named):
        au_growth(**{"frames": 2, "size": 64, **wrong})


def test_save_writes_what_read_returns(tmp_path: Any) -> None:
    from shine_em.io import read

    scene = au_growth(frames=3, size=(32, 40), seed=2)
    paths = save(scene, tmp_path / "new" / "demo")
    assert {k: p.name for k, p in paths.items()} == {
        "noisy": "noisy.tif",
        "truth": "truth.tif",
        "unblurred": "unblurred.tif",
        "parameters": "parameters.json",
        "coordinates": "coordinates.npz",
    }
    for name in ("noisy", "truth", "unblurred"):
        back = read(paths[name])
        np.testing.assert_array_equal(np.asarray(back.data), getattr(scene, name).data)
        assert back.pixel_size_nm == pytest.approx(1.045)
        assert back.frame_time_s == pytest.approx(1.0)
    assert json.loads(paths["parameters"].read_text()) == scene.parameters
    assert {p.name for p in paths["noisy"].parent.iterdir()} == {p.name for p in paths.values()}


def test_save_overwrites_only_when_asked(tmp_path: Any) -> None:
    scene = au_growth(frames=1, size=32)
    (tmp_path / "parameters.json").write_text("mine")
    with pytest.raises(ShineError, match=r"parameters\.json"):
        save(scene, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["parameters.json"]
    assert (tmp_path / "parameters.json").read_text() == "mine"
    save(scene, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "parameters.json").read_text())["seed"] == 0


def test_save_into_a_file_is_refused(tmp_path: Any) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ShineError, match="taken"):
        save(au_growth(frames=1, size=32), tmp_path / "taken")
