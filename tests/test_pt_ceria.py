import numpy as np
import pytest

from shine_em.errors import ShineError
from shine_em.noise import noise_statistics

pytest.importorskip("abtem", reason="needs shine-em[simulate]")

from shine_em.simulate.multislice import Optics, electrons, image
from shine_em.simulate.pt_ceria import _Specimen, pt_ceria
from shine_em.simulate.pt_ceria_model import (
    CERIA_NM,
    PLATINUM_NM,
    Atoms3D,
    ceria_support,
    pt_particle,
)

SMALL = {"diameter_nm": 2.0, "thickness_nm": 2.3}
QUICK = {"frames": 3, "size": 96, "diameter_nm": 2.0, "thickness_nm": 2.3, "workers": 1}


@pytest.fixture(scope="module")
def scene():
    return pt_ceria(seed=3, **QUICK)


def spacing(picture, low, high, pixel_nm):
    """Return the spacing (nm) of the strongest frequency whose spacing lies in a range."""
    picture = (picture - picture.mean()) * np.hanning(len(picture))[:, None]
    picture = picture * np.hanning(picture.shape[1])
    spectrum = np.abs(np.fft.fft2(picture, (2048, 2048)))
    fy, fx = np.fft.fftfreq(2048, pixel_nm)[:, None], np.fft.fftfreq(2048, pixel_nm)
    frequency = np.hypot(fy, fx)
    spectrum[(frequency < 1 / high) | (frequency > 1 / low)] = 0
    return 1 / frequency.flat[spectrum.argmax()]


def neighbours(positions, others):
    from scipy.spatial import cKDTree

    return cKDTree(others).query(positions, k=13)[0]


def test_the_crystals_have_their_bond_lengths_and_composition():
    (ce, o), sides = ceria_support(columns=4, depth_nm=2.8, layers=5)
    np.testing.assert_allclose(sides, CERIA_NM * np.sqrt([3, 1.5, 0.5]))
    assert len(o.positions_nm) == pytest.approx(2 * len(ce.positions_nm), rel=0.05)
    bulk = ce.positions_nm[np.abs(ce.positions_nm - ce.positions_nm.mean(axis=0)).max(axis=1) < 0.5]
    np.testing.assert_allclose(neighbours(bulk, o.positions_nm)[:, :8], CERIA_NM * 3**0.5 / 4)
    assert o.positions_nm[:, 0].min() == pytest.approx(0, abs=1e-6)
    particle = pt_particle(3.0).positions_nm
    nearest = neighbours(particle, particle)
    np.testing.assert_allclose(nearest[:, 1], PLATINUM_NM / 2**0.5, rtol=1e-6)
    assert np.isclose(nearest[:, 12], PLATINUM_NM / 2**0.5).mean() > 0.4
    assert particle[:, 0].max() == pytest.approx(-0.21)


def test_the_image_agrees_with_abtem(monkeypatch):
    """On the same grid, what is calculated once and shifted gives what abTEM calculates anew."""
    import ase

    from shine_em.simulate import pt_ceria as module

    monkeypatch.setattr(module, "_SAMPLING_A", 0.06)
    monkeypatch.setattr(module, "_FINER", 1)

    optics = Optics(overfocus_nm=7.0)
    particle = pt_particle(1.2)
    specimen = _Specimen.built(
        particle, optics, rows_nm=(-1.2, 0.8), width_nm=2.4, layers=4, thermal_nm=0.0
    )
    ours = specimen.intensity(0.0437)
    height, width = specimen.cell_nm
    depth = 4 * CERIA_NM / 2**0.5
    support, _ = ceria_support(
        columns=round(width / (CERIA_NM * 1.5**0.5)),
        depth_nm=height + specimen.origin_nm[0],
        layers=4,
    )
    moved = Atoms3D("Pt", particle.positions_nm + np.array([0, 0.0437, depth / 2]))
    corner = np.array([*specimen.origin_nm, -CERIA_NM / 2**0.5 / 4])
    symbols, places = [], []
    for kind in (*support, moved):
        shifted = kind.positions_nm - (corner if kind.element != "Pt" else [*corner[:2], 0])
        symbols += [kind.element] * len(shifted)
        places.append(10 * shifted[:, [1, 0, 2]])
    atoms = ase.Atoms(symbols, np.concatenate(places), cell=(10 * width, 10 * height, 10 * depth))
    theirs = image(atoms, optics, sampling_A=0.06, slice_A=1.92)
    pixels = {
        "cell_A": (10 * height, 10 * width),
        "pixel_A": 0.332,
        "shape": (90, 70),
        "dose_e_per_A2": 1.0,
    }
    ours, theirs = electrons(ours, **pixels), electrons(theirs, **pixels)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    assert np.std(ours - theirs) < 0.04 * np.std(theirs)


def test_lattice_spacings_within_one_percent(scene):
    picture = scene.unblurred.data[0]
    surface = scene.coordinates["surface_y_px"][0]
    ceria = picture[int(surface) + 2 :]
    assert spacing(ceria, 0.3, 0.33, 0.0332) == pytest.approx(CERIA_NM / 3**0.5, rel=0.01)


def test_particle_spacings_within_one_percent(scene):
    """Its spots are too broad for one percent; the transform of its power spectrum is not."""
    from scipy.ndimage import map_coordinates

    picture, columns = scene.unblurred.data[0], scene.coordinates["pt_columns_px"][0]
    (top, left), (bottom, right) = columns.min(axis=0).astype(int), columns.max(axis=0).astype(int)
    particle = picture[max(top - 3, 0) : bottom - 3, left - 3 : right + 4]
    particle = particle - particle.mean()
    power = np.abs(np.fft.fft2(particle, (256, 256))) ** 2
    overlap = np.abs(np.fft.fft2(np.ones_like(particle), (256, 256))) ** 2
    correlation = np.fft.ifft2(power).real / np.maximum(np.fft.ifft2(overlap).real, 1)
    along = PLATINUM_NM * 1.5**0.5 / 2 / 0.0332
    for y, x in ((0, 3 * along), (PLATINUM_NM * 3**0.5 / 0.0332, 0)):
        window = np.mgrid[-2:2:81j, -2:2:81j] + np.array([y, x])[:, None, None]
        values = map_coordinates(np.fft.fftshift(correlation), window + 128, order=3)
        found = window.reshape(2, -1)[:, values.argmax()]
        np.testing.assert_allclose(found, [y, x], atol=0.01 * max(x, y))


def test_vacuum_counts_are_dose_times_area_times_conversion(scene):
    per_pixel = 2.0 * 0.332**2
    assert scene.parameters["electrons_per_pixel"] == pytest.approx(per_pixel)
    corner = scene.truth.data[:, :8, :12]
    assert corner.mean() == pytest.approx(scene.parameters["vacuum_counts"], rel=0.02)
    assert scene.noisy.data.mean() == pytest.approx(scene.truth.data.mean(), rel=0.03)


def test_atomic_columns_stand_out_at_their_places(scene):
    """The exact places are those where the picture shows the columns: best of all small shifts."""
    picture = scene.unblurred.data[2]
    columns = scene.coordinates["pt_columns_px"][2]
    size = np.arange(-3, 4)
    patches = [
        picture[np.ix_(y + size, x + size)]
        for y, x in np.rint(columns).astype(int)
        if 4 < y < 90 and 4 < x < 90
    ]
    mean = np.mean(patches, axis=0)
    assert len(patches) > 20
    # Columns look alike on all sides of their true centres.
    assert np.corrcoef(mean.ravel(), mean[::-1, ::-1].ravel())[0, 1] > 0.95
    assert mean.std() > 0.1 * mean.mean()


def test_drift_moves_the_support_and_shifts_move_the_particle(scene):
    c = scene.coordinates
    moved = c["pt_columns_px"] - c["pt_columns_px"][:1]
    np.testing.assert_allclose(moved, moved[:, :1].repeat(moved.shape[1], axis=1))
    alone = moved[:, 0] - c["drift_px"]
    np.testing.assert_allclose(alone[:, 0], 0, atol=1e-9)
    assert np.abs(alone[1:, 1]).min() > 0
    np.testing.assert_allclose(np.diff(c["surface_y_px"]), np.diff(c["drift_px"][:, 0]))
    # The support's rows in the picture follow the drift, too.
    from skimage.registration import phase_cross_correlation

    below = scene.unblurred.data[:, 70:, :]
    shift, _, _ = phase_cross_correlation(
        below[0], below[1], upsample_factor=50, normalization=None
    )
    assert -shift[0] == pytest.approx(c["drift_px"][1, 0], abs=0.15)


def test_the_seed_decides_and_workers_do_not(scene):
    again = pt_ceria(seed=3, **{**QUICK, "workers": 2})
    np.testing.assert_array_equal(scene.noisy.data, again.noisy.data)
    np.testing.assert_array_equal(scene.truth.data, again.truth.data)
    assert scene.noisy.pixel_size_nm == pytest.approx(0.0332)
    assert scene.truth.data.dtype == np.float32


def test_noise_is_homogeneous_over_sub_regions():
    scene = pt_ceria(frames=6, size=(96, 160), diameter_nm=1.5, thickness_nm=2.0, seed=1)
    found = noise_statistics(scene.noisy)
    assert found.homogeneity.shape[0] == 16
    assert found.homogeneity_spread < 1.5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"aperture_mrad": 60.0}, "aperture_mrad"),
        ({"dose_e_per_A2": -1.0}, "dose_e_per_A2"),
        ({"diameter_nm": 9.0, "thickness_nm": 12.0}, "diameter_nm"),
        ({"diameter_nm": 3.0, "thickness_nm": 1.0}, "thickness_nm"),
        ({"camera": "film"}, "camera"),
        ({"diameter_nm": float("nan")}, "diameter_nm"),
        ({"frames": 0}, "frames"),
        ({"frames": 9, "drift_step_nm": 0.8, **SMALL}, "drift_step_nm"),
    ],
)
def test_impossible_parameters_are_named(wrong, named):
    with pytest.raises(ShineError, match=named):
        pt_ceria(**{"frames": 1, "size": 96, **wrong})
