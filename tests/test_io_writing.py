"""Writing: exact, calibrated, whole or not at all."""

import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shine_em.errors import ShineError
from shine_em.io import open_writer, read, write
from shine_em.movie import Axis, Movie

ALL = [".tif", ".tiff", ".mrc", ".mrcs", ".zarr", ".npy", ".hspy"]
CALIBRATED = [suffix for suffix in ALL if suffix != ".npy"]
RNG = np.random.default_rng(11)


def movie(dtype: str = "f4", shape: tuple[int, int, int] = (3, 5, 7), **more: Any) -> Movie:
    data = (RNG.random(shape) * 100).astype(dtype)
    return Movie.from_array(data, pixel_size_nm=0.0317, frame_time_s=0.0025, **more)


def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("suffix", ALL)
def test_float32_is_exact_and_calibrated(tmp_path: Path, suffix: str) -> None:
    original = movie()
    path = write(original, tmp_path / f"a{suffix}")
    again = read(path)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again.data[:], original.data[:])
    if suffix != ".npy":
        assert again.pixel_size_nm == pytest.approx(0.0317, rel=1e-6)
        assert again.frame_time_s == pytest.approx(0.0025, rel=1e-6)
    assert leftovers(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_numbers_of_numpy_calibrate_as_plain_ones_do(tmp_path: Path, suffix: str) -> None:
    axes = (Axis("t", "s", np.float64(0.04), np.float64(0.08)), Axis("y"), Axis("x"))
    original = Movie(np.zeros((2, 3, 4), "f4"), axes=axes, dose_e_per_A2=np.float32(0.5))
    again = read(write(original, tmp_path / f"a{suffix}"))
    assert again.frame_time_s == pytest.approx(0.04)
    assert again.dose_e_per_A2 == 0.5


@pytest.mark.parametrize("suffix", [".tif", ".mrc", ".zarr"])  # .hspy has no axis of one frame
def test_a_single_image_keeps_its_frame_time(tmp_path: Path, suffix: str) -> None:
    again = read(write(movie(shape=(1, 5, 7)), tmp_path / f"a{suffix}"))
    assert again.frame_time_s == pytest.approx(0.0025)


@pytest.mark.parametrize("suffix", ALL)
def test_names_as_long_as_the_disk_allows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("n" * (255 - len(suffix)) + suffix)
    assert write(movie(), path) == path
    assert write(movie(), path, overwrite=True) == path
    assert leftovers(tmp_path) == [path.name]
    with pytest.raises(ShineError, match="too long"):
        open_writer(tmp_path / f"n{path.name}", movie())


@pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="no numbers wider than float64 here")
@pytest.mark.parametrize("suffix", ALL)
def test_numbers_that_others_cannot_read_are_not_written(tmp_path: Path, suffix: str) -> None:
    wide = movie("g")
    with pytest.raises(ShineError, match=r"float32|\.tif"):
        write(wide, tmp_path / f"a{suffix}", dtype="same")
    assert leftovers(tmp_path) == []
    assert read(write(wide, tmp_path / f"a{suffix}")).dtype == np.float32


@pytest.mark.parametrize("suffix", ALL)
def test_uncalibrated_stays_uncalibrated(tmp_path: Path, suffix: str) -> None:
    again = read(write(Movie.from_array(np.zeros((2, 3, 4))), tmp_path / f"a{suffix}"))
    assert [axis.unit for axis in again.axes] == [None, None, None]
    assert again.dose_e_per_A2 is None


@pytest.mark.parametrize("suffix", CALIBRATED)
@pytest.mark.parametrize("unit", ["nm", "Å", "µm", "pm"])
@given(
    pixel=st.floats(1e-4, 1e4),
    ratio=st.sampled_from([1.0, 2.0, 1 / 3]),
    time=st.floats(1e-6, 1e5),
)
@settings(max_examples=6)
def test_calibration_round_trip(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, unit: str, pixel: float, ratio: float,
    time: float,
) -> None:  # fmt: skip
    axes = (Axis("t", "s", time), Axis("y", unit, pixel * ratio), Axis("x", unit, pixel))
    original = Movie(np.zeros((2, 3, 5), "f4"), axes=axes)
    again = read(write(original, tmp_path_factory.mktemp("c") / f"a{suffix}"))
    assert again.pixel_size_nm == pytest.approx(original.pixel_size_nm, rel=1e-6)
    assert again.frame_time_s == pytest.approx(original.frame_time_s, rel=1e-6)
    assert again.axes[1].scale / again.axes[2].scale == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".hspy"])
@pytest.mark.parametrize("unit", ["1/nm", "1/Å", "mrad"])
def test_units_of_diffraction_are_kept(tmp_path: Path, suffix: str, unit: str) -> None:
    axes = (Axis("t", "ms", 4.0), Axis("y", unit, 0.02, -0.5), Axis("x", unit, 0.02, -0.4))
    again = read(write(Movie(np.zeros((2, 3, 4), "f4"), axes=axes), tmp_path / f"a{suffix}"))
    assert [axis.unit for axis in again.axes] == ["ms", unit, unit]
    assert again.axes[2].scale == pytest.approx(0.02, rel=1e-6)
    assert [axis.offset for axis in again.axes] == pytest.approx([0, -0.5, -0.4], rel=1e-6)


def test_mrc_claims_no_length_for_a_reciprocal_unit(tmp_path: Path) -> None:
    axes = (Axis("t"), Axis("y", "1/nm", 0.02), Axis("x", "1/nm", 0.02))
    again = read(write(Movie(np.zeros((2, 3, 4), "f4"), axes=axes), tmp_path / "a.mrc"))
    assert again.pixel_size_nm is None


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".hspy"])
def test_history_dose_and_intensity_unit_are_kept(tmp_path: Path, suffix: str) -> None:
    original = movie(
        dose_e_per_A2=12.5, intensity_unit="e⁻", history=("read é", "denoised, radius 1–3")
    )
    again = read(write(original, tmp_path / f"a{suffix}"))
    assert again.history == original.history
    assert again.dose_e_per_A2 == 12.5
    assert again.intensity_unit == "e⁻"


@pytest.mark.parametrize("unit", ["e⁻", "e-/px", "counts per pixel 100%", None])
def test_mrc_keeps_any_intensity_unit(tmp_path: Path, unit: str | None) -> None:
    original = movie(dose_e_per_A2=12.5, intensity_unit=unit, history=("read",))
    again = read(write(original, tmp_path / "a.mrc"))
    assert again.intensity_unit == unit
    assert again.dose_e_per_A2 == 12.5
    assert again.history == ("read",)


def test_a_chain_of_formats_loses_nothing(tmp_path: Path) -> None:
    original = step = movie(shape=(4, 9, 11), dose_e_per_A2=3.0)
    for i, suffix in enumerate([".tif", ".mrc", ".zarr", ".hspy", ".mrcs", ".tiff"]):
        step = read(write(step, tmp_path / f"{i}{suffix}"))
    np.testing.assert_array_equal(step.data[:], original.data[:])
    assert step.pixel_size_nm == pytest.approx(0.0317, rel=1e-6)
    assert step.frame_time_s == pytest.approx(0.0025, rel=1e-6)
    assert step.dose_e_per_A2 == 3.0


@pytest.mark.parametrize("suffix", ALL)
@given(data=st.data())
@settings(max_examples=12)
def test_same_type_is_exact_at_odd_sizes(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: Any
) -> None:
    kinds = ["i1", "u1", "i2", "u2", "f4", "f2"]
    if suffix not in (".mrc", ".mrcs"):
        kinds += ["i4", "u4", "f8", "i8", "u8", "?"]
    dtype = data.draw(st.sampled_from(kinds))
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))
    array = data.draw(npst.arrays(dtype, shape))
    original = Movie.from_array(array)
    path = write(original, tmp_path_factory.mktemp("s") / f"a{suffix}", dtype="same")
    np.testing.assert_array_equal(read(path).data[:], array)


@pytest.mark.parametrize("dtype", ["i4", "u4", "f8"])
def test_mrc_refuses_types_it_cannot_hold(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ShineError, match=r"/a\.mrc: .*float32, or \.tif"):
        write(movie(dtype), tmp_path / "a.mrc", dtype="same")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("dtype", "values", "stored", "clipped"),
    [
        ("u2", [-1.0, 0.4, 0.6, 65534.6, 65536.0, np.nan], [0, 0, 1, 65535, 65535, 0], 3),
        ("i1", [-200, -128, 0, 127, 128, 1.5], [-128, -128, 0, 127, 127, 2], 2),
        ("u4", [0, 2.0**32 - 1, 2.0**32, -1, 7, np.inf],
         [0, 2**32 - 1, 2**32 - 1, 0, 7, 2**32 - 1], 3),
        ("i8", [0, 2.0**63, -(2.0**63), 5, 1e30, -1e30],
         [0, 2**63 - 1, -(2**63), 5, 2**63 - 1, -(2**63)], 3),
    ],
)  # fmt: skip
def test_integers_are_rounded_clipped_and_counted(
    tmp_path: Path, dtype: str, values: list[float], stored: list[int], clipped: int
) -> None:
    like = Movie.from_array(np.zeros((1, 2, 3), dtype))
    with open_writer(tmp_path / "a.npy", like, dtype="same") as writer:
        writer.append(np.array(values, "f8").reshape(2, 3))
    assert writer.clipped == clipped
    assert np.load(tmp_path / "a.npy").ravel().tolist() == stored


def test_imagej_reads_what_fiji_needs(tmp_path: Path) -> None:
    axes = (Axis("t", "s", 0.25), Axis("y", "Å", 0.5, 5.0), Axis("x", "Å", 0.5))
    path = write(Movie(np.zeros((3, 4, 5), "f4"), axes=axes), tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej
        assert tif.series[0].axes == "TYX"
        description = tif.pages[0].description
        assert description.isascii(), "ImageJ reads Java's escapes, not UTF-8"
        assert "unit=\\u00C5\n" in description
        assert "finterval=0.25\n" in description
        assert "yorigin=-10.0\n" in description
        assert tif.pages[0].tags["XResolution"].value == (2, 1)
        assert len(tif.pages) == 3
        offsets = [page.dataoffsets[0] for page in tif.pages]
        assert np.diff(offsets).tolist() == [80, 80], "ImageJ expects one contiguous piece"


def test_mrc_is_valid_for_mrcfile(tmp_path: Path) -> None:
    original = movie(shape=(4, 9, 11), history=("denoised", "word " * 20))
    path = write(original, tmp_path / "a.mrc")
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert mrc.voxel_size.x == pytest.approx(0.317)
        assert float(mrc.header.dmax) == original.data[:].max()
        assert float(mrc.header.rms) == pytest.approx(original.data[:].std(), rel=1e-5)
        labels = [str(label) for label in mrc.get_labels()]
    assert "frame_time_s=0.0025" in labels[0]
    assert labels[1:] == ["denoised", ("word " * 16).strip(), "  word word word word"]


def test_mrc_keeps_as_much_of_the_end_of_the_history_as_its_labels_hold(tmp_path: Path) -> None:
    job = "denoised by shine-em 0.1.0 (lean, trained on itself, begun from shipped weights where " \
          "they fit, seed 17)"  # fmt: skip
    history = ("selected frames 0:20:1", job)
    again = read(write(movie(history=history), tmp_path / "a.mrc"))
    assert again.history == history
    names = ("read " + "a_long_name_" * 12 + ".tif to " + "b" * 90 + ".tif",)
    assert read(write(movie(history=names), tmp_path / "n.mrc")).history == names
    lines = tuple(f"step {i} of a long story" for i in range(12))
    again = read(write(movie(history=(*lines, job)), tmp_path / "b.mrc"))
    assert again.history == (*lines[-7:], job)


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_a_single_image_is_told_once(tmp_path: Path, suffix: str) -> None:
    step = movie(shape=(1, 4, 5))
    for i in range(3):
        step = read(write(step, tmp_path / f"{i}{suffix}"))
    assert sum("single image" in line for line in step.history) <= 1


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_offsets_are_kept(tmp_path: Path, suffix: str) -> None:
    axes = (Axis("t", "ms", 4.0, 100.0), Axis("y", "µm", 0.002, -0.5), Axis("x", "nm", 0.2, 7.0))
    original = Movie(np.zeros((2, 3, 4), "f4"), axes=axes)
    again = read(write(original, tmp_path / f"a{suffix}"))
    for old, new in zip(original.axes, again.axes, strict=True):
        assert new.offset / new.scale == pytest.approx(old.offset / old.scale, rel=1e-6)


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_an_axis_without_a_unit_takes_none_from_its_neighbour(tmp_path: Path, suffix: str) -> None:
    for axes in ((Axis("y"), Axis("x", "nm", 0.1)), (Axis("y", "nm", 0.1), Axis("x"))):
        original = Movie(np.zeros((2, 3, 4), "f4"), axes=(Axis("t"), *axes))
        again = read(write(original, tmp_path / f"a{suffix}", overwrite=True))
        assert [one.unit for one in again.axes] == [one.unit for one in original.axes]


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_zero_of_an_axis_that_runs_backwards_stays_at_its_pixel(
    tmp_path: Path, suffix: str
) -> None:
    axes = (Axis("t"), Axis("y", "nm", -0.1, 5.0), Axis("x", "nm", 0.1))
    again = read(write(Movie(np.zeros((2, 3, 4), "f4"), axes=axes), tmp_path / f"a{suffix}"))
    y = again.axes[1]
    assert abs(y.scale) == pytest.approx(0.1)
    assert y.offset / y.scale == pytest.approx(-50)


def test_zarr_is_ome_0_5_with_a_chunk_per_frame(tmp_path: Path) -> None:
    path = write(movie(shape=(4, 9, 11)), tmp_path / "a.zarr")
    group = zarr.open_group(path, mode="r")
    image = group.attrs["ome"]["multiscales"][0]
    assert group.attrs["ome"]["version"] == "0.5"
    assert [(axis["name"], axis["type"], axis["unit"]) for axis in image["axes"]] == [
        ("t", "time", "second"), ("y", "space", "nanometer"), ("x", "space", "nanometer")
    ]  # fmt: skip
    array = group[image["datasets"][0]["path"]]
    assert array.chunks == (1, 9, 11)
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("t", "y", "x")


def test_hspy_opens_in_rosettasciio(tmp_path: Path) -> None:
    from rsciio.hspy import file_reader

    original = movie(shape=(4, 9, 11), name="a/b")
    (found,) = file_reader(write(original, tmp_path / "a.hspy"), lazy=False)
    np.testing.assert_array_equal(found["data"], original.data[:])
    assert [axis["navigate"] for axis in found["axes"]] == [True, False, False]
    assert found["axes"][2]["units"] == "nm"
    with h5py.File(tmp_path / "a.hspy") as file:
        assert file["Experiments/a-b/data"].chunks == (1, 9, 11)


def test_bigtiff_past_4_gb_is_decided_up_front(tmp_path: Path) -> None:
    """Only one frame is really written; the file is sparse."""
    like = Movie.from_array(np.broadcast_to(np.float32(0), (1100, 1024, 1024)), pixel_size_nm=0.5)

    def stop_after_one() -> None:
        with open_writer(tmp_path / "a.tif", like) as writer:
            writer.append(np.zeros((1024, 1024), "f4"))
            (temporary,) = tmp_path.glob(".*.tif")
            (tmp_path / "copy.tif").hardlink_to(temporary)

    with pytest.raises(ShineError, match="1 of 1100 frames"):
        stop_after_one()
    with tifffile.TiffFile(tmp_path / "copy.tif") as tif:
        assert tif.is_bigtiff
    again = read(tmp_path / "copy.tif")
    assert again.shape == (1100, 1024, 1024)
    assert again.pixel_size_nm == pytest.approx(0.5)
    assert leftovers(tmp_path) == ["copy.tif"]


@pytest.mark.parametrize("suffix", ALL)
def test_existing_file_is_kept_unless_told(tmp_path: Path, suffix: str) -> None:
    path = write(movie(shape=(2, 3, 4)), tmp_path / f"a{suffix}")
    with pytest.raises(ShineError, match=r"exists.*--overwrite"):
        write(movie(), path)
    assert read(path).shape == (2, 3, 4)
    write(movie(), path, overwrite=True)
    assert read(path).shape == (3, 5, 7)
    assert leftovers(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ALL)
def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"a{suffix}"
    folder.mkdir()
    (folder / "years of work.txt").write_text("mine")
    with pytest.raises(ShineError, match="a folder has this name"):
        write(movie(), folder, overwrite=True)
    assert leftovers(folder) == ["years of work.txt"]
    assert leftovers(tmp_path) == [folder.name]


@pytest.mark.parametrize("suffix", ALL)
def test_a_movie_may_be_written_over_itself(tmp_path: Path, suffix: str) -> None:
    original = movie()
    path = write(original, tmp_path / f"a{suffix}")
    write(read(path), path, overwrite=True)
    np.testing.assert_array_equal(read(path).data[:], original.data[:])


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind_and_the_old_file_in_place(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = write(movie(shape=(2, 3, 4)), tmp_path / f"a{suffix}")

    def fail_after_one() -> None:
        with open_writer(path, movie(), overwrite=True) as writer:
            writer.append(np.zeros((5, 7)))
            raise error

    with pytest.raises(error):
        fail_after_one()
    assert leftovers(tmp_path) == [path.name]
    assert read(path).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("frames", "shapes", "word"),
    [(None, [(5, 8)], r"shape \(5, 8\)"), (1, [(5, 7)] * 2, "announced"),
     (None, [(5, 7)] * 2, "2 of 3 frames"), (None, [], "0 of 3 frames"),
     (None, [(1, 5, 7)], "shape")],
)  # fmt: skip
def test_wrong_frames_are_refused(
    tmp_path: Path, frames: int | None, shapes: list[tuple[int, ...]], word: str
) -> None:
    def write_them() -> None:
        with open_writer(tmp_path / "a.tif", movie(), frames=frames) as writer:
            for shape in shapes:
                writer.append(np.zeros(shape))

    with pytest.raises(ShineError, match=word):
        write_them()
    assert leftovers(tmp_path) == []


def test_writer_must_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ShineError, match="with block"):
        open_writer(tmp_path / "a.tif", movie()).append(np.zeros((5, 7)))


@pytest.mark.parametrize(
    ("name", "word"),
    [("a.avi", r"\.tif, .*\.hspy"), ("a", "suffix"), ("nowhere/a.tif", "does not exist")],
)
def test_bad_names(tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises(ShineError, match=word):
        write(movie(), tmp_path / name)


def test_bad_dtype_and_frame_count(tmp_path: Path) -> None:
    with pytest.raises(ShineError, match="same"):
        open_writer(tmp_path / "a.tif", movie(), dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ShineError, match="at least one frame"):
        open_writer(tmp_path / "a.tif", movie(), frames=0)


def test_progress_counts_frames(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(movie(), tmp_path / "a.npy", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_disk_without_room_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ShineError, match=r"MB are needed, 1\.0 kB are free"):
        write(Movie.from_array(np.zeros((10, 512, 512), "u2")), tmp_path / "a.tif")
    assert leftovers(tmp_path) == []


def test_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    """The operating system really refuses: no file may grow past 100 kB in that process."""
    script = f"""
import resource
import numpy as np
from shine_em.errors import ShineError
from shine_em.io import write
from shine_em.movie import Movie
import mrcfile, tifffile, zarr, h5py, rsciio.hspy
noise = np.random.default_rng(0).random((8, 200, 200)).astype("f4")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for suffix in {ALL!r}:
    try:
        write(Movie.from_array(noise), {str(tmp_path)!r} + "/a" + suffix)
    except ShineError as error:
        print(error, flush=True)  # HDF5 may end the process at its exit
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    refused = [line for line in run.stdout.splitlines() if "filled up" in line]
    assert len(refused) == len(ALL), run.stdout + run.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("suffix", CALIBRATED)
def test_a_long_movie_needs_little_memory(tmp_path: Path, suffix: str) -> None:
    frame = np.zeros((512, 512), "f4")
    like = Movie.from_array(np.broadcast_to(frame, (60, 512, 512)))
    for one in read(write(like.select(slice(0, 1)), tmp_path / f"warm{suffix}")).frames():
        assert one.shape == (512, 512)  # everything is imported now
    tracemalloc.start()
    write(like, tmp_path / f"a{suffix}")
    for one in read(tmp_path / f"a{suffix}").frames():
        assert one.shape == (512, 512)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6, f"a movie of 63 MB took {peak / 1e6:.0f} MB"


@pytest.mark.parametrize("suffix", ALL)
def test_pixels_that_are_not_finite_are_kept(tmp_path: Path, suffix: str) -> None:
    data = np.array([[[1, np.nan, 3]], [[np.inf, -np.inf, 5]]], "f4")
    path = write(Movie.from_array(data), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read(path).data[:], data)
    if suffix == ".mrc":
        with mrcfile.open(path) as mrc:
            assert (float(mrc.header.dmin), float(mrc.header.dmax)) == (1.0, 5.0)
            assert float(mrc.header.dmean) == 3.0
