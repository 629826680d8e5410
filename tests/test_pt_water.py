"""The Pt particle in water: its parts, the calibration of its images, resume, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from shine_em.errors import ShineError
from shine_em.simulate.pt_water import (
    graphene,
    particle_motion,
    platinum_particle,
    pt_water,
    water_layer,
    without_overlap,
)
from shine_em.simulate.water import OH_A, pack_snapshots, snapshots

pytest.importorskip("ase")
pytest.importorskip("abtem")

# Seconds instead of minutes: a small particle in a thin layer, on the coarsest grid.
QUICK = {"size": 64, "diameter_nm": 0.8, "water_nm": 1.2, "sampling_nm": 0.016, "workers": 1}


@pytest.fixture(scope="module")
def zone_axis():
    """Return the particle at rest along [110], at the focus where atoms are bright."""
    return pt_water(
        frames=1, size=128, seed=5, water_nm=2.6, tilt_deg=0, vibration_deg=0, vibration_nm=0,
        overfocus_nm=3.6, sampling_nm=0.015, workers=1,
    )  # fmt: skip


def test_shipped_water_is_liquid_water_of_the_right_density():
    water = snapshots()
    volume = np.prod(water.box_A)
    grams_per_cm3 = water.molecules * 18.0154 / 0.602214 / volume
    assert grams_per_cm3 == pytest.approx(1.0, abs=0.005)
    assert water.molecules == 10_968
    assert water.box_A == pytest.approx((57.28, 57.28, 100.0))
    for index in (0, len(water) - 1):
        molecules = water.positions(index)
        bonds = molecules[:, 1:] - molecules[:, :1]
        np.testing.assert_allclose(np.linalg.norm(bonds, axis=2), OH_A, atol=1e-9)
        cosine = (bonds[:, 0] * bonds[:, 1]).sum(axis=1) / OH_A**2
        np.testing.assert_allclose(np.degrees(np.arccos(cosine)), 104.52, atol=1.5)
        oxygen = molecules[:, 0]
        assert (oxygen >= 0).all()
        assert (oxygen < water.box_A).all()
        distance, _ = cKDTree(oxygen, boxsize=water.box_A).query(oxygen, k=2)
        # Hydrogen-bonded neighbours: nothing overlaps, and no lattice or gas has this histogram.
        assert distance[:, 1].min() > 2.2
        assert 2.55 < np.median(distance[:, 1]) < 2.75
        assert np.percentile(distance[:, 1], 99) < 3.1


def test_shipped_water_has_a_liquids_pair_distribution():
    """First peak of g(r) of TIP3P at 2.77 Å, its height about 2.7 (Jorgensen et al. 1983)."""
    water = snapshots()
    oxygen = water.positions(0)[:, 0]
    tree = cKDTree(oxygen, boxsize=water.box_A)
    edges = np.arange(2.0, 8.01, 0.1)
    pairs = np.diff(tree.count_neighbors(tree, edges)) / len(oxygen)
    shells = 4 / 3 * np.pi * np.diff(edges**3) * len(oxygen) / np.prod(water.box_A)
    g = pairs / shells
    peak = g.argmax()
    assert edges[peak] + 0.05 == pytest.approx(2.77, abs=0.12)
    assert 2.2 < g[peak] < 3.3
    assert g[edges[:-1] > 6].mean() == pytest.approx(1, abs=0.05)


def test_snapshots_differ():
    water = snapshots()
    assert len(water) >= 10
    assert water.facts["temperature_K"] == pytest.approx(300, abs=3)
    first = cKDTree(water.positions(0)[:, 0], boxsize=water.box_A)
    moved, _ = first.query(water.positions(len(water) - 1)[:, 0])
    assert np.median(moved) > 0.3


@settings(max_examples=5)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 2), molecules=st.integers(600, 700))
def test_packing_keeps_atoms_to_a_hundredth_of_an_angstrom(
    tmp_path_factory, seed, count, molecules
):
    rng = np.random.default_rng(seed)
    box = np.array([20.0, 23.0, 31.0])
    bonds = rng.normal(size=(count, molecules, 2, 3))
    bonds *= OH_A / np.linalg.norm(bonds, axis=3, keepdims=True)
    oxygen = rng.uniform(-40, 60, (count, molecules, 1, 3))
    path = tmp_path_factory.mktemp("water") / "packed.npz"
    pack_snapshots(
        path, np.concatenate([oxygen, oxygen + bonds], axis=2), box_A=box, facts={"seed": seed}
    )
    water = snapshots(path)
    assert (len(water), water.molecules, water.facts) == (count, molecules, {"seed": seed})
    for i in range(count):
        back = water.positions(i)
        # Molecules come back in another order: each is the one next to it.
        difference = back[:, None, 0] - oxygen[i, None, :, 0]
        difference -= np.rint(difference / box) * box
        nearest = (difference**2).sum(axis=2).argmin(axis=1)
        assert len(set(nearest)) == molecules
        assert np.abs(difference[np.arange(molecules), nearest]).max() < 0.007
        assert np.abs(back[:, 1:] - back[:, :1] - bonds[i][nearest]).max() < 0.01


def test_bad_snapshot_files_are_refused(tmp_path):
    with pytest.raises(ShineError, match="no such file"):
        snapshots(tmp_path / "absent.npz")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(ShineError, match=r"damaged\.npz"):
        snapshots(damaged)
    broken = np.zeros((300, 3, 3))
    with pytest.raises(ShineError, match="O–H distances"):
        pack_snapshots(tmp_path / "new.npz", [broken], box_A=(9, 9, 9), facts={})
    assert not (tmp_path / "new.npz").exists()


def check_graphene(cell, tolerance):
    sheet = graphene(cell)
    density = len(sheet) / np.prod(cell)
    assert density == pytest.approx(4 / (3**0.5 * 2.46**2), rel=2 * tolerance)
    sheet = np.minimum(sheet, np.nextafter(cell, 0))
    bonds, _ = cKDTree(sheet, boxsize=cell).query(sheet, k=5)
    np.testing.assert_allclose(bonds[:, 1:4], 2.46 / 3**0.5, rtol=tolerance)
    assert bonds[:, 4].min() > 2.46 * (1 - tolerance)


@settings(max_examples=8)
@given(width=st.floats(50, 130), height=st.floats(50, 130))
def test_graphene_fits_any_cell(width, height):
    check_graphene((width, height), 0.015)


@pytest.mark.parametrize("boxes", [(1, 1), (2, 2), (1, 2)])
def test_graphene_is_unstrained_over_the_water(boxes):
    check_graphene((57.28 * boxes[0], 57.28 * boxes[1]), 0.003)


def test_platinum_is_a_compact_crystal_of_its_size():
    particle = platinum_particle(2.5)
    spacing, _ = cKDTree(particle).query(particle, k=2)
    np.testing.assert_allclose(spacing[:, 1], 3.9242 / 2**0.5, rtol=1e-6)
    volume = len(particle) * 3.9242**3 / 4
    assert (6 * volume / np.pi) ** (1 / 3) == pytest.approx(25, rel=0.08)
    np.testing.assert_allclose(particle.mean(axis=0), 0, atol=1e-9)
    # Along the beam, [110], atoms stand in columns.
    columns = np.unique(particle[:, :2].round(3), axis=0)
    assert len(columns) < len(particle) / 4


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), tilt=st.floats(0, 90))
def test_the_particle_stays_for_2_to_10_frames(seed, tilt):
    turns, shifts = particle_motion(60, seed, tilt_deg=tilt, vibration_deg=0, vibration_A=0.3)
    matrices = np.array([turn.as_matrix() for turn in turns])
    assert shifts.shape == (60, 3)
    changes = np.flatnonzero(np.abs(np.diff(matrices, axis=0)).max(axis=(1, 2)) > 1e-12) + 1
    stays = np.diff([0, *changes])
    assert stays.min() >= 2
    assert stays.max() <= 10
    assert (matrices[:, 2, 2] >= np.cos(np.radians(tilt)) - 1e-9).all()
    # More frames go on from the same beginning.
    longer, _ = particle_motion(80, seed, tilt_deg=tilt, vibration_deg=0, vibration_A=0.3)
    np.testing.assert_array_equal([turn.as_matrix() for turn in longer[:60]], matrices)


def test_vibration_has_its_amplitude():
    turns, shifts = particle_motion(900, 3, tilt_deg=0, vibration_deg=2, vibration_A=0.4)
    # Without tilt the beam axis moves by the vibration alone.
    axis = np.array([turn.as_matrix()[:2, 2] for turn in turns])
    assert np.degrees(axis.std()) == pytest.approx(2, rel=0.1)
    assert shifts.std(axis=0) == pytest.approx(0.4, rel=0.1)


@settings(max_examples=6)
@given(seed=st.integers(0, 100), thickness=st.floats(15, 100), repeats=st.integers(1, 2))
def test_water_layers_keep_the_density(seed, thickness, repeats):
    water = snapshots()
    layer = water_layer(
        water, seed % len(water), np.random.default_rng(seed), repeats=(repeats, 1),
        thickness_A=thickness,
    )  # fmt: skip
    oxygen = layer[:, 0]
    sides = np.array([repeats * water.box_A[0], water.box_A[1], thickness])
    assert (oxygen >= 0).all()
    assert (oxygen <= sides).all()
    density = len(layer) / sides.prod()
    assert density == pytest.approx(water.molecules / np.prod(water.box_A), rel=0.06)
    np.testing.assert_allclose(np.linalg.norm(layer[:, 1:] - layer[:, :1], axis=2), OH_A, rtol=1e-6)


def test_no_water_inside_the_particle():
    water = snapshots()
    particle = platinum_particle(2.5) + np.array([28, 28, 50])
    layer = water_layer(water, 0, np.random.default_rng(1), repeats=(1, 1), thickness_A=100)
    left = without_overlap(layer, particle)
    distance, _ = cKDTree(particle).query(left[:, 0])
    assert distance.min() >= 2.8
    displaced = (len(layer) - len(left)) * np.prod(water.box_A) / water.molecules
    # The particle and a skin of 1.4 to 2.8 Å: from 2.8 to 3.1 nm across.
    assert 2.6 < (6 * displaced / np.pi) ** (1 / 3) / 10 < 3.2


def test_empty_cell_gives_the_dose():
    scene = pt_water(
        frames=1, size=(40, 56), diameter_nm=0, water_nm=0, camera="ideal", sampling_nm=0.015,
        workers=1,
    )  # fmt: skip
    truth = scene.truth.data[:]
    assert truth.shape == (1, 40, 56)
    expected = 50 * 0.217**2
    assert scene.parameters["electrons_per_pixel"] == pytest.approx(expected)
    # Only graphene is left: a few electrons in ten thousand beyond the aperture.
    assert truth.mean() == pytest.approx(expected * 1.0, rel=2e-3)
    assert scene.noisy.data[:].mean() == pytest.approx(expected, rel=0.05)


def test_lattice_spacings_of_the_zone_axis(zone_axis):
    """{111} and {002} of platinum within 1 %, from the power spectrum of the image."""
    truth = zone_axis.truth.frame(0).astype(float)
    window = np.hanning(len(truth))
    pad = 1024
    power = np.abs(np.fft.fft2((truth - truth.mean()) * np.outer(window, window), (pad, pad))) ** 2
    frequency = np.fft.fftfreq(pad, 10 * zone_axis.truth.pixel_size_nm)
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    for spacing in (3.9242 / 3**0.5, 3.9242 / 2):
        ring = np.abs(radius * spacing - 1) < 0.05
        brightest = np.unravel_index(np.where(ring, power, 0).argmax(), power.shape)
        assert 1 / radius[brightest] == pytest.approx(spacing, rel=0.01)
        # It is a peak, not the ring's edge.
        assert power[brightest] > 30 * np.median(power[ring])


def test_columns_lie_where_the_coordinates_say(zone_axis):
    truth = zone_axis.truth.frame(0)
    assert zone_axis.noisy.shape == zone_axis.truth.shape == (1, 128, 128)
    y, x = np.rint(zone_axis.coordinates["atoms_px"][0]).astype(int).T
    columns = np.zeros(truth.shape, bool)
    columns[y, x] = True
    elsewhere = truth[~columns]
    assert truth[columns].mean() > elsewhere.mean() + 5 * elsewhere.std()
    for mirrored in (columns[::-1], columns[:, ::-1], columns.T):
        assert truth[mirrored].mean() < elsewhere.mean() + 3 * elsewhere.std()
    np.testing.assert_allclose(zone_axis.coordinates["centres_px"], 63.5, atol=1e-6)
    # The particle is in the middle of the cell.
    heights = zone_axis.coordinates["atoms_height_nm"]
    assert heights.mean() == pytest.approx(zone_axis.parameters["cell_nm"][2] / 2, abs=1e-6)


def test_resumed_movie_is_the_same_movie(tmp_path):
    first = pt_water(frames=1, seed=7, cache=tmp_path, **QUICK)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/frame_*.npz")}
    assert len(kept) == 1
    longer = pt_water(frames=2, seed=7, cache=tmp_path, **(QUICK | {"workers": 2}))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    fresh = pt_water(frames=2, seed=7, **QUICK)
    for name in ("noisy", "truth"):
        np.testing.assert_array_equal(getattr(longer, name).data, getattr(fresh, name).data)
        np.testing.assert_array_equal(getattr(first, name).data, getattr(fresh, name).data[:1])
    # Another water in every frame, other noise and another pose with another seed.
    assert np.abs(fresh.truth.frame(0) - fresh.truth.frame(1)).max() > 0.05
    other = pt_water(frames=1, seed=8, **QUICK)
    assert (other.noisy.frame(0) != fresh.noisy.frame(0)).mean() > 0.5
    assert other.truth.pixel_size_nm == pytest.approx(0.0217)
    assert other.truth.dose_e_per_A2 == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diameter_nm": 40}, r"diameter_nm=40 does not fit into the field of 1\.39 nm"),
        ({"size": 256, "diameter_nm": 1.5}, r"does not fit into the water \(water_nm\)"),
        ({"water_nm": 12}, r"water_nm=12 is more than the 10 nm"),
        ({"tilt_deg": 120}, "tilt_deg"),
        ({"dose_e_per_A2": -1}, "dose_e_per_A2"),
        ({"vibration_nm": -1}, "vibration_nm"),
        ({"aperture_mrad": 60}, "aperture_mrad=60 lies beyond the simulation grid"),
        ({"camera": "k9"}, "camera='k9' is not known"),
        ({"frames": 0}, "frames"),
    ],
)
def test_impossible_physics_is_named(changes, message):
    with pytest.raises(ShineError, match=message):
        pt_water(**{"frames": 1, **QUICK, **changes})
