"""Multislice images: calibration, contrast transfer, detector grid; frames, cache, resume."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.simulate.frames import run_frames
from shine_em.simulate.multislice import Optics, electrons, image

ase = pytest.importorskip("ase")
pytest.importorskip("abtem")


def cell_with(*atoms, size=(14.0, 11.0, 6.0)):
    symbols = [name for name, _ in atoms]
    positions = np.array([place for _, place in atoms]).reshape(-1, 3)
    return ase.Atoms(symbols, positions=positions, cell=size, pbc=True)


def test_vacuum_is_one_everywhere():
    intensity = image(cell_with())
    assert intensity.dtype == np.float32
    np.testing.assert_allclose(intensity, 1, atol=1e-6)


def test_an_atom_is_imaged_where_it_is():
    # At the Scherzer focus of C3 = -0.01 mm atoms are bright.
    intensity = image(cell_with(("Pt", (9.0, 3.0, 1.0))), Optics(overfocus_nm=5.0))
    y, x = np.unravel_index(intensity.argmax(), intensity.shape)
    height, width = intensity.shape
    assert x * 14 / width == pytest.approx(9, abs=0.12)
    assert y * 11 / height == pytest.approx(3, abs=0.12)
    # The aperture stops some electrons, nothing adds any.
    assert 0.99 < intensity.mean() < 1


@pytest.mark.parametrize("overfocus_nm", [-6.0, 4.0])
def test_contrast_transfer_of_a_weak_object(overfocus_nm):
    """A weak phase object's spectrum is proportional to sin chi (Kirkland, ch. 3)."""
    atom = cell_with(("H", (8.0, 8.0, 0.5)), size=(16.0, 16.0, 1.0))

    def spectrum(overfocus):
        optics = Optics(overfocus_nm=overfocus, c3_mm=-0.02, c5_mm=4.0)
        return np.fft.fft2(image(atom, optics, slice_A=0.5) - 1.0)

    def sin_chi(overfocus):
        theta = Optics().wavelength_A * np.hypot(*np.meshgrid(f, f))
        c1, c3, c5 = 10 * overfocus + 0.5, -0.02e7, 4e7  # the atom is 0.5 Å high
        path = c1 * theta**2 / 2 + c3 * theta**4 / 4 + c5 * theta**6 / 6
        return theta, np.sin(2 * np.pi / Optics().wavelength_A * path)

    one, other = spectrum(overfocus_nm), spectrum(9.0)
    f = np.fft.fftfreq(len(one), 16.0 / len(one))
    theta, expected_one = sin_chi(overfocus_nm)
    _, expected_other = sin_chi(9.0)
    strong = (theta > 0.004) & (theta < 0.028) & (np.abs(expected_other) > 0.5)
    assert strong.sum() > 100
    ratio = (one[strong] / other[strong]).real
    expected = expected_one[strong] / expected_other[strong]
    np.testing.assert_allclose(ratio, expected, atol=0.05)


def test_overfocus_and_height_add_up():
    """An atom 2 nm higher looks like one imaged with 2 nm more overfocus."""
    low = cell_with(("C", (7.0, 5.0, 21.0)), size=(14.0, 11.0, 22.0))
    high = cell_with(("C", (7.0, 5.0, 1.0)), size=(14.0, 11.0, 22.0))
    difference = image(high, Optics(overfocus_nm=1)) - image(low, Optics(overfocus_nm=3))
    assert np.abs(difference).max() < 0.02 * np.abs(image(high) - 1).max()


def test_aperture_beyond_the_grid_is_refused():
    with pytest.raises(
        ShineError, match=r"aperture_mrad=30 .*sampling_A of 0\.164 or less, not 0\.2"
    ):
        image(cell_with(), sampling_A=0.2)
    assert Optics(aperture_mrad=15).coarsest_sampling_A == pytest.approx(0.328, abs=1e-3)
    image(cell_with(), Optics(aperture_mrad=15), sampling_A=0.3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"voltage_kV": -1}, "voltage_kV"), ({"aperture_mrad": 0}, "aperture_mrad"),
     ({"c3_mm": float("nan")}, "c3_mm"), ({"aperture_mrad": -1}, "aperture_mrad")],
)  # fmt: skip
def test_impossible_optics_are_named(changes, name):
    with pytest.raises(ShineError, match=name):
        Optics(**changes)


def test_wrong_cells_are_refused():
    with pytest.raises(ShineError, match="outside the cell"):
        image(cell_with(("Pt", (1, 1, 7.5))))
    with pytest.raises(ShineError, match="right-angled"):
        image(ase.Atoms("Pt", cell=[[5, 0, 0], [1, 5, 0], [0, 0, 5]]))


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(ShineError, match=r'pip install "shine-em\[simulate\]"'):
        image(cell_with())


@settings(max_examples=25)
@given(
    points=st.tuples(st.integers(8, 21), st.integers(8, 21)),
    pixels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    start=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    seed=st.integers(0, 1000),
)
def test_no_electron_is_lost_between_grid_and_pixels(points, pixels, start, seed):
    """Square pixels that cover one period catch the dose of that period, wherever they begin."""
    intensity = np.random.default_rng(seed).uniform(1, 2, points)
    pixel = 0.4
    caught = electrons(
        intensity,
        cell_A=(pixel * pixels[0], pixel * pixels[1]),
        pixel_A=pixel,
        shape=pixels,
        first_pixel_A=start,
        dose_e_per_A2=30.0,
    )
    assert caught.shape == pixels
    area = pixel**2 * pixels[0] * pixels[1]
    assert caught.sum() == pytest.approx(30 * area * intensity.mean(), rel=1e-9)


def test_a_wave_is_integrated_over_each_pixel():
    period, pixel, dose = 6.0, 0.7, 10.0
    x = np.arange(50) * period / 50
    intensity = np.tile(1 + 0.5 * np.cos(2 * np.pi * 3 * x / period), (40, 1))
    got = electrons(
        intensity, cell_A=(5.0, period), pixel_A=pixel, shape=(3, 20),
        first_pixel_A=(0.0, 0.2), dose_e_per_A2=dose,
    )  # fmt: skip
    k = 2 * np.pi * 3 / period
    left = 0.2 + pixel * (np.arange(20) - 0.5)
    wave = 0.5 * (np.sin(k * (left + pixel)) - np.sin(k * left)) / k
    np.testing.assert_allclose(got, np.tile(dose * pixel * (pixel + wave), (3, 1)), rtol=1e-9)


def test_impossible_detector_is_named():
    with pytest.raises(ShineError, match="dose_e_per_A2"):
        electrons(np.ones((4, 4)), cell_A=(1, 1), pixel_A=0.1, shape=(2, 2), dose_e_per_A2=-1)
    with pytest.raises(ShineError, match="pixel_A"):
        electrons(np.ones((4, 4)), cell_A=(1, 1), pixel_A=0, shape=(2, 2), dose_e_per_A2=1)


def numbered(t):
    return {"a": np.full((2, 3), t, np.uint16), "b": np.array([t / 2])}


@settings(max_examples=15)
@given(frames=st.integers(1, 12), workers=st.integers(1, 4))
def test_frames_come_stacked_in_order(frames, workers):
    seen = []
    stacks = run_frames(
        numbered, frames, identity={}, workers=workers, progress=lambda *p: seen.append(p)
    )
    assert stacks["a"].shape == (frames, 2, 3)
    assert stacks["a"].dtype == np.uint16
    assert stacks["b"][:, 0].tolist() == [t / 2 for t in range(frames)]
    assert seen == [(t + 1, frames) for t in range(frames)]


def test_a_stopped_simulation_goes_on_where_it_was(tmp_path):
    computed = []

    def breaks(t):
        if t == 3:
            raise ShineError("power cut")
        computed.append(t)
        return numbered(t)

    with pytest.raises(ShineError, match="power cut"):
        run_frames(breaks, 5, identity={"seed": 1}, workers=1, cache=tmp_path)
    assert sorted(computed) in ([0, 1, 2], [0, 1, 2, 4])

    def works(t):
        computed.append(t)
        return numbered(t)

    stacks = run_frames(works, 5, identity={"seed": 1}, workers=1, cache=tmp_path)
    assert sorted(computed) == [0, 1, 2, 3, 4]
    assert stacks["b"][:, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    # Another scene shares nothing, and a damaged frame is made again.
    run_frames(works, 2, identity={"seed": 2}, workers=1, cache=tmp_path)
    assert computed[5:] == [0, 1]
    for path in tmp_path.glob("*/frame_000001.npz"):
        path.write_bytes(path.read_bytes()[:30])
    stacks = run_frames(works, 2, identity={"seed": 2}, workers=1, cache=tmp_path)
    assert computed[7:] == [1]
    np.testing.assert_array_equal(stacks["a"][1], 1)
    assert not list(tmp_path.glob("*/.frame*"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShineError, match="cannot keep frames here"):
        run_frames(numbered, 1, identity={}, cache=tmp_path / "file")
