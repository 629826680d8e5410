import numpy as np
import pytest

from shine_em.errors import ShineError
from shine_em.noise import noise_statistics

pytest.importorskip("abtem", reason="needs shine-em[simulate]")

from shine_em.simulate.haadf import REACH_NM, THERMAL_NM, _sharp_profile, atom_profile
from shine_em.simulate.stem_mos2 import LATTICE_NM, stem_mos2

OPTICS = (200.0, 19.0, (68.0, 280.0))


@pytest.fixture(scope="module")
def scene():
    return stem_mos2(frames=12, size=160, seed=2, workers=1)


@pytest.fixture(scope="module")
def steady():
    """A movie without drift, jitter and settling, whose lattice is undistorted."""
    return stem_mos2(
        frames=2, size=(200, 230), seed=5, drift_nm_per_s=(0, 0), jitter_nm=(0, 0), settling_nm=0,
        response_time_s=0, pt_per_nm2=0.5,
    )  # fmt: skip


def test_the_sum_of_atoms_agrees_with_multislice():
    """Vibrating MoS₂ with a Pt atom above Mo: incoherent within a few percent (mean 5 %)."""
    import abtem
    from ase import Atoms
    from scipy.interpolate import CubicSpline

    a = 10 * LATTICE_NM
    cell = np.array([3 * a, 2 * a * 3**0.5, 7.2])
    unit = [("Mo", 0, 0, 0), ("Mo", 1 / 2, 1 / 2, 0)]
    unit += [("S", x, y, z) for x, y in ((1 / 2, 1 / 6), (0, 2 / 3)) for z in (-1.56, 1.56)]
    symbols, rest = [], []
    for i in range(3):
        for j in range(2):
            for symbol, x, y, z in unit:
                symbols.append(symbol)
                rest.append(((x + i) * a, (y + j) * a * 3**0.5, z + 4.8))
    symbols.append("Pt")
    rest.append((a, a * 3**0.5, 1.2))
    rest, points = np.array(rest), (648, 744)
    step = cell[:2] / points
    thermal = 10 * np.array([THERMAL_NM[s] for s in symbols])[:, None]
    # The Mo, S₂ and Pt-on-Mo columns, and places beside them.
    probes = np.array([[0, 0], [a / 2, a * 3**0.5 / 6], [a, a * 3**0.5]])
    probes = np.concatenate([probes, probes + np.array([0.3, 0.2])])
    rng = np.random.default_rng(0)
    exact, model = np.zeros(len(probes)), np.zeros(len(probes))
    for _ in range(2):
        places = rest + thermal * rng.normal(size=rest.shape)
        # On grid points, abTEM places atoms without interpolating.
        places[:, :2] = np.rint(places[:, :2] / step) * step
        potential = abtem.Potential(
            Atoms(symbols, places, cell=cell, pbc=True), gpts=points, slice_thickness=1.8
        )
        probe = abtem.Probe(energy=200e3, semiangle_cutoff=19)
        probe.grid.match(potential)
        with abtem.config.set({"diagnostics.progress_bar": False}):
            measured = probe.scan(
                potential,
                scan=abtem.CustomScan(probes),
                detectors=abtem.AnnularDetector(68, 280),
                max_batch=len(probes),
            ).compute(scheduler="synchronous")
        exact += np.asarray(measured.array)
        for symbol, place in zip(symbols, places, strict=True):
            away = (probes - place[:2] + cell[:2] / 2) % cell[:2] - cell[:2] / 2
            distance, fraction = _sharp_profile(symbol, *OPTICS)
            away = np.hypot(*away.T) / 10
            seen = CubicSpline(distance, fraction)(np.minimum(away, distance[-1]))
            model += np.where(away < distance[-1], seen, 0)
    np.testing.assert_allclose(model, exact, rtol=0.12)
    assert model.sum() == pytest.approx(exact.sum(), rel=0.05)


def test_profiles_follow_atomic_number_and_blur_keeps_the_cross_section():
    profiles = {e: atom_profile(e) for e in ("S", "Mo", "Pt")}
    heavier = np.log(profiles["Pt"][0] / profiles["S"][0]) / np.log(78 / 16)
    assert 1.4 < heavier < 2.0  # HAADF: Z to the power of 1.5 to 2
    r = np.linspace(0, REACH_NM, len(profiles["Mo"]))
    for profile in profiles.values():
        assert np.diff(profile[:200]).max() <= 0
        assert profile[-1] == 0
    wide = atom_profile("Mo", source_size_nm=0.09)
    assert wide[0] < 0.8 * profiles["Mo"][0]
    assert np.sum(wide * r) == pytest.approx(np.sum(profiles["Mo"] * r), rel=0.02)


def test_lattice_spacing_within_one_percent(steady):
    picture = steady.truth.data[0] - steady.truth.data[0].mean()
    window = np.hanning(200)[:, None] * np.hanning(230)
    spectrum = np.abs(np.fft.fft2(picture * window, (2048, 2048)))
    fy, fx = np.fft.fftfreq(2048, 0.0133)[:, None], np.fft.fftfreq(2048, 0.0133)
    frequency = np.hypot(fy, fx)
    spectrum[(frequency < 2.5) | (frequency > 5)] = 0
    found = 1 / frequency.flat[spectrum.argmax()]
    assert found == pytest.approx(LATTICE_NM * 3**0.5 / 2, rel=0.01)


def test_atoms_are_brightest_where_the_coordinates_say(steady):
    from scipy.ndimage import map_coordinates

    picture = steady.truth.data[1]
    for name in ("pt_px", "mo_px"):
        places = steady.coordinates[name][1]
        # A Mo atom below or beside a wobbling Pt atom is no maximum of its own.
        far = np.linalg.norm(places[:, None] - steady.coordinates["pt_px"][1], axis=-1)
        alone = (far > 20).all(axis=1) if name == "mo_px" else np.ones(len(places), bool)
        inside = ((places > 5) & (places < np.array(picture.shape) - 6)).all(axis=1)
        places = places[alone & inside]
        assert len(places) > 2
        at = map_coordinates(picture, places.T, order=3)
        for step in np.array([[0, 4], [4, 0], [0, -4], [-4, 0]]):
            assert (at > map_coordinates(picture, (places + step).T, order=3)).all()


def test_an_empty_film_counts_what_the_cross_sections_say(steady):
    """The mean of the picture is the current times the atoms' cross sections per area."""
    bare = stem_mos2(frames=1, size=200, seed=0, pt_per_nm2=0, response_time_s=0, black_level=50)
    r = np.linspace(0, REACH_NM, 501)
    area = {e: 2 * np.pi * np.sum(atom_profile(e) * r) * r[1] for e in ("Mo", "S")}
    fraction = (area["Mo"] + 2 * area["S"]) / (LATTICE_NM**2 * 3**0.5 / 2)
    electrons = 25e-12 * 5e-6 / 1.602176634e-19
    assert bare.parameters["electrons_per_pixel"] == pytest.approx(electrons)
    assert bare.noisy.dose_e_per_A2 == pytest.approx(electrons / 0.133**2)
    assert bare.truth.data.mean() - 50 == pytest.approx(40 * electrons * fraction, rel=0.04)
    assert bare.noisy.data.mean() == pytest.approx(bare.truth.data.mean(), rel=0.01)


def test_noise_asks_for_a_hole_along_the_lines_and_is_homogeneous(scene):
    found = noise_statistics(scene.noisy)
    assert found.hole[0] == 1
    assert found.hole[1] >= 3
    assert found.anisotropy > 0.5
    assert found.homogeneity.shape[0] == 16
    assert found.homogeneity_spread < 1.5
    along = found.difference_correlation[8, 9]
    analytic = scene.parameters["noise_correlation_along_lines"][0]
    assert along == pytest.approx(analytic, abs=0.05)


def test_a_longer_dwell_correlates_less_and_counts_more(scene):
    longer = stem_mos2(frames=12, size=160, seed=2, dwell_time_s=10e-6)
    short, long = (noise_statistics(s.noisy) for s in (scene, longer))
    assert long.difference_correlation[8, 9] < short.difference_correlation[8, 9] - 0.1
    assert longer.parameters["electrons_per_pixel"] == pytest.approx(
        2 * scene.parameters["electrons_per_pixel"]
    )
    assert longer.noisy.frame_time_s > scene.noisy.frame_time_s


def test_pt_atoms_hop_between_free_sites_mainly_above_mo():
    scene = stem_mos2(frames=40, size=96, seed=4, hop_probability=0.2, pt_wobble_nm=0)
    places, site = scene.coordinates["pt_nm"], scene.coordinates["pt_site"]
    steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    hops = steps > 0
    assert 0.1 < hops.mean() < 0.25
    assert steps.max() < 1.2 * LATTICE_NM + 1e-9
    assert (site == 0).mean() > 0.5
    for frame in places:
        apart = np.linalg.norm(frame[:, None] - frame, axis=-1)[np.triu_indices(len(frame), 1)]
        assert (apart > 0.99 * LATTICE_NM).all()


def test_drift_correction_holds_the_film_still():
    moving = {"frames": 3, "size": 96, "seed": 1, "jitter_nm": (0, 0), "settling_nm": 0}
    drift = {"drift_nm_per_s": (0.2, 0.5)}
    still = stem_mos2(**moving, **drift, drift_correction=True)
    free = stem_mos2(**moving, **drift)
    assert np.abs(np.diff(still.coordinates["mo_px"], axis=0)).max() < 0.05
    assert np.abs(np.diff(free.coordinates["mo_px"], axis=0)).max() > 1
    assert still.noisy.data.shape == (3, 96, 96)
    # Interpolation smears the noise across the lines, too: what drift does to aligned movies.
    noise = (still.noisy.data - still.truth.data)[1:]
    rows = (noise[:, 1:] * noise[:, :-1]).mean() / noise.var()
    assert rows > 0.1


def test_the_seed_decides_and_resuming_changes_nothing(tmp_path):
    plan = {"frames": 3, "size": 64, "seed": 9}
    first = stem_mos2(**plan, workers=2, cache=tmp_path)
    again = stem_mos2(**plan, workers=1, cache=tmp_path)
    fresh = stem_mos2(**plan)
    other = stem_mos2(**{**plan, "seed": 10})
    np.testing.assert_array_equal(first.noisy.data, again.noisy.data)
    np.testing.assert_array_equal(first.noisy.data, fresh.noisy.data)
    assert (first.noisy.data != other.noisy.data).any()
    assert first.noisy.data.dtype == np.uint16


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dwell_time_s": 0}, "dwell_time_s"),
        ({"beam_current_pA": -3}, "beam_current_pA"),
        ({"detector_mrad": (10, 280)}, "detector_mrad"),
        ({"hop_probability": 1.5}, "hop_probability"),
        ({"pt_per_nm2": 40}, "pt_per_nm2"),
        ({"conversion": 1e5}, "conversion"),
        ({"pixel_size_nm": 0.2}, "pixel_size_nm.* up to 0.08 nm"),
        ({"pixel_size_nm": 0.06, "probe_mrad": 30.0}, "pixel_size_nm.* up to 0.05 nm"),
        ({"drift_nm_per_s": (50.0, 0)}, "drift_nm_per_s"),
        ({"settling_nm": 9.0}, "settling_nm"),
        ({"response_time_s": 3}, "response_time_s"),
    ],
)
def test_impossible_parameters_are_named_before_any_frame(wrong, named):
    seen = []
    with pytest.raises(ShineError, match=named):
        stem_mos2(**{"frames": 1, "size": 48, "progress": lambda *done: seen.append(done), **wrong})
    assert seen == []
