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
    scene = au_growth(
        frames=40, size=(120, 400), particles=300, seed=5, diffusivity_px2=0.2,
        initial_diameter_nm=1.0, final_diameter_nm=1.0,
    )  # fmt: skip
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
@settings(max_examples=40)
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
@settings(max_examples=15)
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
        ({"frames": 2.5}, "frames"),
        ({"size": (3, 4, 5)}, "size"),
        ({"amorphous_contrast": -1.0}, "amorphous_contrast"),
        ({"amorphous_contrast": 1e6}, "amorphous_contrast=1000000.0 saturates"),
        ({"amorphous_grain_nm": float("nan")}, "amorphous_grain_nm"),
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


def test_the_movie_of_record_stays_what_it_is(scene: Scene) -> None:
    # The measured benchmarks stand on this movie. Processors round exp() differently, so that
    # single counts may move; all else must not.
    noisy = np.asarray(scene.noisy.data)
    assert noisy.sum(dtype=np.int64) == pytest.approx(1089729801, rel=1e-7)
    np.testing.assert_allclose(
        scene.coordinates["positions_px"][[0, -1], 0],
        [[68.7953151, 47.9708291], [66.2712101, 49.1920513]], atol=1e-6,
    )  # fmt: skip


def test_diffusion_is_recovered_by_tracking_the_noisy_movie() -> None:
    diffusivity, frames, size = 0.5, 60, 256
    movie = au_growth(
        frames=frames, size=size, particles=12, seed=4, diffusivity_px2=diffusivity, dqe=1.0,
        initial_diameter_nm=12.0, final_diameter_nm=12.0, growth_spread=0.0, gold_mfp_nm=15.0,
    )  # fmt: skip
    background = movie.parameters["background_counts"]
    true = movie.coordinates["positions_px"]
    yx = np.indices((size, size))
    tracks = []
    for particle in range(12):
        # Tracked by the centre of darkness near the last place; those that meet or leave are not.
        here, track = true[0, particle], []
        apart = np.hypot(*(true - true[:, [particle]]).transpose(2, 0, 1)) + 1e3 * (
            np.arange(12) == particle
        )
        if apart.min() < 24 or (np.abs(true[:, particle] - size / 2) > size / 2 - 14).any():
            continue
        for t in range(frames):
            dark = np.clip(1 - movie.noisy.frame(t) / background - 0.1, 0, None)
            dark = dark * (np.hypot(*(yx - here[:, None, None])) < 10)
            here = (yx * dark).sum(axis=(1, 2)) / dark.sum()
            track.append(here)
        tracks.append(track)
        assert np.hypot(*(np.array(track) - true[:, particle]).T).max() < 0.5
    assert len(tracks) >= 4
    steps = np.diff(np.array(tracks), axis=1)
    measured = (steps**2).sum(axis=-1).mean() / 4
    # Each step adds two terms of relative variance 2; finding a centre is good to 0.05 px.
    error = diffusivity * np.sqrt(1 / steps[..., 0].size)
    assert abs(measured - diffusivity) < 3 * error + 0.01


def test_noise_is_alike_in_16_regions() -> None:
    from shine_em import noise_statistics

    movie = au_growth(frames=20, size=192, seed=2).noisy
    stats = noise_statistics(movie)
    assert stats.homogeneity_spread < 1.3
    middle = stats.homogeneity.shape[-1] // 2
    for row in stats.homogeneity[:, middle, middle + 1], stats.homogeneity[:, middle + 1, middle]:
        np.testing.assert_allclose(row, 0.305, atol=0.06)


def amorphous(**chosen: Any) -> Scene:
    return au_growth(
        **{"frames": 6, "size": 150, "particles": 1, "amorphous_contrast": 5.0, "dqe": 1.0,
           "initial_diameter_nm": 2.0, "final_diameter_nm": 2.0, **chosen}
    )  # fmt: skip


@pytest.mark.parametrize("grain_nm", [0.0, 1.0, 2.5])
def test_amorphous_texture_has_the_contrast_of_its_thickness(grain_nm: float) -> None:
    def texture(**chosen: Any) -> np.ndarray:
        movie = amorphous(amorphous_grain_nm=grain_nm, **chosen)
        depth = np.log(np.asarray(movie.unblurred.data) / movie.parameters["background_counts"])
        return depth

    # In nm: strength / (mean free path × pixel) × sqrt(thickness / density), two windows.
    windows = 5 / (144 * 1.045) * np.sqrt(100 / 95)
    water = 5 / (185 * 1.045) * np.sqrt(50 / 33.4)
    tolerance = 0.03 if grain_nm < 2 else 0.08
    both = texture()
    assert both.std() == pytest.approx(np.hypot(windows, water), rel=tolerance)
    assert both.mean(axis=0).std() == pytest.approx(
        np.hypot(windows, water / np.sqrt(6)), rel=tolerance
    )
    no_windows = texture(window_nm=0.0)
    assert no_windows.std() == pytest.approx(water, rel=tolerance)
    lag = np.corrcoef(no_windows[0].ravel(), no_windows[1].ravel())[0, 1]
    grains = 150 / max(1, 2 * np.sqrt(np.pi) * grain_nm / 1.045)  # along each axis
    assert abs(lag) < 4 / grains
    thicker = texture(window_nm=0.0, liquid_nm=200.0)
    assert thicker.std() == pytest.approx(2 * water, rel=tolerance)


def test_texture_leaves_everything_else_alone() -> None:
    plain, rough = amorphous(amorphous_contrast=0.0), amorphous()
    np.testing.assert_array_equal(
        plain.coordinates["positions_px"], rough.coordinates["positions_px"]
    )
    assert np.asarray(plain.unblurred.data).max() == pytest.approx(
        plain.parameters["background_counts"], rel=1e-6
    )
    assert np.asarray(rough.truth.data).mean() == pytest.approx(
        np.asarray(plain.truth.data).mean(), rel=0.01
    )


def test_a_cached_movie_goes_on_and_is_the_same(tmp_path: Any) -> None:
    common: dict[str, Any] = {"frames": 5, "size": 40, "seed": 6}
    whole = au_growth(**common)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        au_growth(**common, cache=tmp_path, progress=stop, workers=1)
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*/frame_*.npz")}
    assert {f"frame_{t:06d}.npz" for t in range(3)} <= set(kept)
    resumed = au_growth(**common, cache=tmp_path)
    np.testing.assert_array_equal(resumed.noisy.data, whole.noisy.data)
    np.testing.assert_array_equal(resumed.truth.data, whole.truth.data)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*/frame_*.npz")}
    assert len(after) == 5
    assert all(after[name] == then for name, then in kept.items())
    other = au_growth(**{**common, "dose_e_per_A2": 30.0}, cache=tmp_path)
    assert np.asarray(other.noisy.data).mean() > 1.3 * np.asarray(whole.noisy.data).mean()


def test_save_leaves_no_file_of_an_earlier_scene(tmp_path: Any) -> None:
    from dataclasses import replace

    scene = au_growth(frames=1, size=32)
    save(scene, tmp_path)
    bare = replace(scene, unblurred=None, coordinates={})
    paths = save(bare, tmp_path, overwrite=True)
    assert set(paths) == {"noisy", "truth", "parameters"}
    assert {p.name for p in tmp_path.iterdir()} == {"noisy.tif", "truth.tif", "parameters.json"}


def test_saved_coordinates_come_back(tmp_path: Any) -> None:
    scene = au_growth(frames=2, size=32)
    with np.load(save(scene, tmp_path)["coordinates"]) as saved:
        assert set(saved.files) == {"positions_px", "diameters_nm"}
        np.testing.assert_array_equal(saved["positions_px"], scene.coordinates["positions_px"])
