"""MRC stacks: modes, signedness, pixel size, and headers that lie."""

import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from shine_em.errors import ShineError
from shine_em.io import read, write

RNG = np.random.default_rng(5)
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def make(path: Path, data: np.ndarray, pixel_A: float | tuple[float, float, float] = 0) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_image_stack()
        mrc.voxel_size = pixel_A
    return path


def patch(path: Path, offset: int, *values: int, dtype: str = "<i4") -> None:
    content = bytearray(path.read_bytes())
    new = np.array(values, dtype).tobytes()
    content[offset : offset + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".mrc", ".mrcs", ".st", ".rec", ".ali", ".MRC"])
@pytest.mark.parametrize(("mode", "dtype"), MODES.items())
def test_every_mode(tmp_path: Path, suffix: str, mode: int, dtype: str) -> None:
    data = (RNG.random((4, 5, 7)) * 100).astype(dtype)
    movie = read(make(tmp_path / f"a{suffix}", data, 2.5))
    assert movie.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.pixel_size_nm == pytest.approx(0.25, rel=1e-12)


def test_signedness_of_bytes(tmp_path: Path) -> None:
    data = np.array([[[-128, -1, 0, 1, 127, 5]]], "i1")
    path = make(tmp_path / "a.mrc", data)
    unsigned = data.view("u1")
    assert read(path).dtype == np.int8, "MRC2014 says signed"
    np.testing.assert_array_equal(read(path, signed=False).data[:], unsigned)
    patch(path, 152, 1146047817, 0)
    np.testing.assert_array_equal(read(path).data[:], unsigned)
    np.testing.assert_array_equal(read(path, signed=True).data[:], data)
    patch(path, 152, 1146047817, 1)
    np.testing.assert_array_equal(read(path).data[:], data)


def test_signedness_is_asked_in_vain_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ShineError, match="mode 2"):
        read(make(tmp_path / "a.mrc", np.zeros((2, 3, 4), "f4")), signed=True)
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    with pytest.raises(ShineError, match="MRC"):
        read(tmp_path / "a.npy", signed=True)


@pytest.mark.parametrize("pixel_A", [0.317, 1.0, 3.3333, 0.01234567, 12345.6])
def test_pixel_size_is_the_number_that_was_written(tmp_path: Path, pixel_A: float) -> None:
    movie = read(make(tmp_path / "a.mrc", np.zeros((2, 30, 47), "f4"), pixel_A))
    assert movie.pixel_size_nm == pytest.approx(pixel_A / 10, rel=3e-7)


def test_pixels_need_not_be_square_nor_known(tmp_path: Path) -> None:
    movie = read(make(tmp_path / "a.mrc", np.zeros((2, 30, 47), "f4"), (1.0, 2.0, 1.0)))
    assert (movie.axes[1].scale, movie.axes[2].scale) == (0.2, 0.1)
    assert read(make(tmp_path / "b.mrc", np.zeros((2, 30, 47), "f4"))).pixel_size_nm is None


def test_extended_header_is_skipped(tmp_path: Path) -> None:
    data = (RNG.random((3, 4, 5)) * 100).astype("f4")
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.set_extended_header(np.arange(300, dtype="u1"))
    np.testing.assert_array_equal(read(path).data[:], data)


def test_big_endian(tmp_path: Path) -> None:
    data = (RNG.random((3, 4, 5)) * 1000).astype("i2")
    path = make(tmp_path / "a.mrc", data, 4.0)
    header = np.frombuffer(path.read_bytes()[:1024], mrcfile.dtypes.HEADER_DTYPE).copy()
    swapped = header.astype(header.dtype.newbyteorder(">"))
    swapped["machst"] = (0x11, 0x11, 0, 0)
    path.write_bytes(swapped.tobytes() + data.astype(">i2").tobytes())
    movie = read(path)
    assert movie.dtype.isnative
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.pixel_size_nm == pytest.approx(0.4)


@pytest.mark.parametrize("stamp", [(0x11, 0x11, 0, 0), (0, 0, 0, 0)])
def test_big_endian_bytes(tmp_path: Path, stamp: tuple[int, ...]) -> None:
    data = (RNG.random((3, 4, 5)) * 100).astype("i1")  # mode 0 is 0 in either order
    path = make(tmp_path / "a.mrc", data, 4.0)
    header = np.frombuffer(path.read_bytes()[:1024], mrcfile.dtypes.HEADER_DTYPE).copy()
    swapped = header.astype(header.dtype.newbyteorder(">"))
    swapped["machst"] = stamp
    path.write_bytes(swapped.tobytes() + data.tobytes())
    movie = read(path)
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.pixel_size_nm == pytest.approx(0.4)


def test_a_stack_of_volumes_is_refused_and_a_volume_says_so(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(np.zeros((3, 5, 8, 9), "f4"))
    with pytest.raises(ShineError, match="3 volumes of 5 slices each"):
        read(tmp_path / "a.mrc")
    with mrcfile.new(tmp_path / "b.mrc") as mrc:
        mrc.set_data(np.zeros((5, 8, 9), "f4"))
    assert read(tmp_path / "b.mrc").history == ("the volume's slices are read as frames",)
    assert read(make(tmp_path / "c.mrc", np.zeros((5, 8, 9), "f4"))).history == ()


def test_truncated_file_names_what_is_left(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((10, 8, 8), "f4"))
    path.write_bytes(path.read_bytes()[: 1024 + 7 * 256 + 10])
    with pytest.raises(ShineError, match=r"10 frames of 8×8.*7 whole frames.*truncated"):
        read(path)


def test_absurd_header_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((2, 8, 8), "f4"))
    patch(path, 0, 2_000_000_000, 2_000_000_000, 2_000_000_000)
    with pytest.raises(ShineError, match=r"truncated or no MRC file"):
        read(path)


@pytest.mark.parametrize(
    ("mode", "word"), [(4, "complex"), (3, "complex"), (16, "RGB"), (101, "4-bit")]
)
def test_modes_that_are_no_movie(tmp_path: Path, mode: int, word: str) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((2, 8, 8), "f4"))
    patch(path, 12, mode)
    with pytest.raises(ShineError, match=word):
        read(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"MRC" * 20, "too short"),
        (b"a text that is no movie at all " * 99, "not an MRC"),
    ],
)
def test_what_is_no_mrc(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(content)
    with pytest.raises(ShineError, match=word):
        read(path)


def test_file_shortened_after_opening_fails_with_its_name(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((10, 8, 8), "f4"))
    movie = read(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShineError, match=r"a\.mrc: frame 9"):
        movie.frame(9)


def test_file_that_went_away_after_opening_fails_with_its_name(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((10, 8, 8), "f4"))
    movie = read(path)
    path.unlink()
    with pytest.raises(ShineError, match=r"a\.mrc: frame 3 cannot be read \(No such file"):
        movie.frame(3)


def test_a_20_gb_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((1, 1000, 1000), "u2"), 1.0)
    n = 10_000
    patch(path, 8, n)
    with path.open("r+b") as file:
        file.truncate(1024 + n * 2_000_000)
        file.seek(1024 + (n - 1) * 2_000_000)
        file.write(np.full(1_000_000, 7, "<u2").tobytes())
    movie = read(path)
    assert movie.shape == (n, 1000, 1000)
    assert movie.frame(-1).min() == 7
    before = resident()
    tracemalloc.start()
    for index in range(0, n, 80):
        movie.frame(index)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6, f"125 frames of 2 MB were read, which took {peak / 1e6:.0f} MB"
    # Pages of a mapped file are not allocated; they would have piled up by now.
    assert resident() - before < 60e6


def resident() -> float:
    """Return the bytes of memory that this process holds now; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096.0 if pages.exists() else 0.0


def test_direct_electron_file_and_its_info(data_dir: Path) -> None:
    movie = read(data_dir / "formats" / "de_movie.mrc")
    assert (movie.shape, movie.dtype) == ((32, 4, 8), np.dtype("u2"))
    assert movie.pixel_size_nm is None, "the header says -1, which is no size"
    assert movie.frame_time_s == pytest.approx(1 / 700)
    with mrcfile.open(data_dir / "formats" / "de_movie.mrc", permissive=True) as mrc:
        np.testing.assert_array_equal(movie.data[:], mrc.data)


def test_what_a_file_of_ours_says_goes_before_the_cameras_info(tmp_path: Path) -> None:
    """Every second frame of a movie, written beside it."""
    (tmp_path / "run_info.txt").write_text("Frames Per Second = 100\nScan - Enable = Enable\n")
    assert read(make(tmp_path / "run_movie.mrc", np.zeros((4, 5, 7), "f4"))).frame_time_s == 0.01
    half = read(tmp_path / "run_movie.mrc").select(slice(0, 4, 2))
    again = read(write(half, tmp_path / "run.mrc"))
    assert again.frame_time_s == pytest.approx(0.02)
    assert again.history == half.history


@pytest.mark.parametrize(
    ("label", "time"),
    [
        ("converted; frame_time_s=0.0025", None),  # whatever another program means by it
        ("shine-em frame_time_s=0.0025", 0.0025),
        ("shine-em frame_time_s=0.0025-ish", None),
        ("shine-em frame_time_s= dose_e_per_A2=much", None),
    ],
)
def test_only_labels_of_ours_are_believed(tmp_path: Path, label: str, time: float | None) -> None:
    path = make(tmp_path / "a.mrc", np.zeros((4, 5, 7), "f4"))
    patch(path, 220, 1)
    patch(path, 224, *label.ljust(80).encode(), dtype="u1")
    movie = read(path)
    assert movie.frame_time_s == time
    assert movie.dose_e_per_A2 is None
