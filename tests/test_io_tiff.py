"""TIFF movies: every layout that microscopes and ImageJ write."""

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.io import read
from shine_em.movie import Axis

RNG = np.random.default_rng(7)


def stack(dtype: str = "u2", shape: tuple[int, ...] = (5, 7, 9)) -> np.ndarray:
    return (RNG.random(shape) * 200).astype(dtype)


def test_real_movie(au_movie_path: Path) -> None:
    movie = read(au_movie_path)
    assert movie.shape == (100, 512, 512)
    assert movie.dtype == np.uint16
    assert movie.pixel_size_nm == pytest.approx(0.0317, rel=1e-12)
    assert movie.frame_time_s == pytest.approx(0.0025, rel=1e-12)
    np.testing.assert_array_equal(movie.frame(57), tifffile.imread(au_movie_path, key=57))


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", ">u2", "i2", "u4", "i4", "f2", "f4", ">f4", "f8"]
)
@pytest.mark.parametrize("how", ["plain", "zlib", "tiled", "bigtiff", "page by page", "strips"])
def test_every_type_and_layout(tmp_path: Path, dtype: str, how: str) -> None:
    data, path = stack(dtype), tmp_path / "a.tif"
    order = ">" if dtype.startswith(">") else "<"
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=how == "bigtiff") as tif:
        if how == "page by page":
            for frame in data:
                tif.write(frame, contiguous=False, photometric="minisblack")
        else:
            more = {"zlib": {"compression": "zlib"}, "tiled": {"tile": (16, 16)},
                    "strips": {"rowsperstrip": 2}}.get(how, {})  # fmt: skip
            tif.write(data, photometric="minisblack", **more)
    movie = read(path)
    assert movie.shape == data.shape
    assert movie.dtype == data.dtype.newbyteorder("=")
    assert movie.dtype.isnative
    np.testing.assert_array_equal(movie.data[:], data)
    np.testing.assert_array_equal(movie.frame(3), data[3])


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "packbits"])
def test_compressed_frames_read_at_random_from_threads(tmp_path: Path, compression: str) -> None:
    data, path = stack(shape=(12, 31, 17)), tmp_path / "a.tif"
    tifffile.imwrite(path, data, compression=compression, photometric="minisblack")
    movie = read(path)
    wanted = list(RNG.integers(0, 12, 60))
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(movie.frame, wanted))
    for index, frame in zip(wanted, frames, strict=True):
        np.testing.assert_array_equal(frame, data[index])


@pytest.mark.parametrize(
    ("unit", "pixel_nm"),
    [("nm", 0.25), ("micron", 250.0), ("um", 250.0), ("\\u00B5m", 250.0), ("A", 0.025),
     ("\\u00C5", 0.025), ("angstrom", 0.025), ("pm", 0.00025), ("pixel", None), ("", None)],
)  # fmt: skip
def test_imagej_units(tmp_path: Path, unit: str, pixel_nm: float | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stack(), imagej=True, resolution=(4, 4),
        metadata={"axes": "TYX", "unit": unit, "finterval": 0.04},
    )  # fmt: skip
    movie = read(path)
    assert movie.pixel_size_nm == (None if pixel_nm is None else pytest.approx(pixel_nm))
    assert movie.frame_time_s == pytest.approx(0.04)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_imagej_signed_16_bit(tmp_path: Path, compression: str | None) -> None:
    path, data = tmp_path / "a.tif", np.array([[[-32768, -1], [0, 32767]]] * 3, "i2")
    tifffile.imwrite(
        path, (data.view("u2") ^ 0x8000), imagej=True, compression=compression,
        metadata={"axes": "TYX", "cf": 0, "c0": -32768, "c1": 1, "vunit": "Gray Value"},
    )  # fmt: skip
    movie = read(path)
    assert movie.dtype == np.int16
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.intensity_unit is None
    assert movie.history == ()


def test_imagej_without_interval_has_no_frame_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(), imagej=True, metadata={"axes": "TYX", "fps": 7.0})
    assert read(path).frame_time_s is None, "fps is only the speed of ImageJ's player"


def test_imagej_z_stack_is_read_as_frames_and_says_so(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", stack()
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZYX"})
    movie = read(path)
    np.testing.assert_array_equal(movie.data[:], data)
    assert "z-stack" in " ".join(movie.history)


def test_channels_are_refused_or_chosen(tmp_path: Path) -> None:
    path, data = tmp_path / "a.tif", stack(shape=(4, 2, 6, 8))
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(ShineError, match=r"4×2×6×8 .*--signal"):
        read(path)
    movie = read(path, signal=1)
    np.testing.assert_array_equal(movie.data[:], data[:, 1])
    with pytest.raises(ShineError, match="no channel"):
        read(path, signal=2)


def test_z_and_t_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(shape=(4, 2, 6, 8)), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ShineError, match="4×2×6×8"):
        read(path)


@pytest.mark.parametrize("shape", [(20, 30, 3), (5, 20, 30, 3), (20, 30, 4)])
def test_colour_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack("u1", shape), photometric="rgb")
    with pytest.raises(ShineError, match="colour"):
        read(path)


def test_single_image_is_one_frame_and_says_so(tmp_path: Path) -> None:
    path, image = tmp_path / "a.TIF", stack(shape=(7, 9))
    tifffile.imwrite(path, image)
    movie = read(path)
    assert movie.shape == (1, 7, 9)
    np.testing.assert_array_equal(movie.frame(0), image)
    assert "single image" in movie.history[-1]


def test_ome(tmp_path: Path) -> None:
    path, data = tmp_path / "a.ome.tif", stack("f4")
    tifffile.imwrite(
        path, data, metadata={"axes": "TYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "nm",
                              "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "nm",
                              "TimeIncrement": 2.0, "TimeIncrementUnit": "ms"},
    )  # fmt: skip
    movie = read(path)
    np.testing.assert_array_equal(movie.data[:], data)
    assert (movie.axes[1].scale, movie.axes[2].scale) == (0.25, 0.5)
    assert movie.frame_time_s == pytest.approx(0.002)


def test_ome_time_of_the_planes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    times = [0.0, 40.1, 80.0, 120.0, 300.0]  # in milliseconds; once it waited
    tifffile.imwrite(
        path, stack("f4"), metadata={"axes": "TYX", "Plane": {
            "DeltaT": times, "DeltaTUnit": ["ms"] * 5}},
    )  # fmt: skip
    assert read(path).frame_time_s == pytest.approx(0.04005)


@pytest.mark.parametrize("plane", ["", 'DeltaT="1"', 'TheT="0" DeltaT=""', 'TheT="0" DeltaT="0,1"'])
def test_ome_planes_that_tell_no_time_cost_no_picture(tmp_path: Path, plane: str) -> None:
    path, data = tmp_path / "a.ome.tif", stack("f4")
    tifffile.imwrite(path, data, metadata={"axes": "TYX"})
    with tifffile.TiffFile(path) as tif:
        told = tif.ome_metadata
    assert told is not None
    odd = told.replace("</Pixels>", f"<Plane {plane}/><Plane {plane}/></Pixels>")
    assert odd != told
    tifffile.imwrite(path, data, description=odd.encode(), metadata=None)
    movie = read(path)
    assert movie.frame_time_s is None
    np.testing.assert_array_equal(movie.data[:], data)


@pytest.mark.parametrize(
    ("unit", "resolution", "pixel_nm"),
    [("CENTIMETER", 1e8, 0.1), ("INCH", 72, None), ("CENTIMETER", 118, None), ("NONE", 1, None)],
)
def test_print_resolution_is_no_calibration(
    tmp_path: Path, unit: str, resolution: float, pixel_nm: float | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(), resolution=(resolution, resolution), resolutionunit=unit,
                     photometric="minisblack", metadata=None)  # fmt: skip
    assert read(path).pixel_size_nm == (None if pixel_nm is None else pytest.approx(pixel_nm))


def test_imagej_stack_past_4_gb_has_one_directory_and_is_read_lazily(tmp_path: Path) -> None:
    """ImageJ writes only the first page's directory there; the frames follow in one piece."""
    path, (n, height, width) = tmp_path / "big.tif", (1200, 1024, 2048)
    text = f"ImageJ=1.54f\nimages={n}\nframes={n}\nunit=nm\nfinterval=0.5\n".encode() + b"\0"
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1),
            (262, 3, 1, 1), (270, 2, len(text), 500), (273, 4, 1, 1000), (277, 3, 1, 1),
            (278, 4, 1, height), (279, 4, 1, height * width * 2), (282, 5, 1, 480),
            (283, 5, 1, 480), (296, 3, 1, 1)]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<I", 0))
        file.seek(480)
        file.write(struct.pack("<II", 20, 1))
        file.seek(500)
        file.write(text)
        last = 1000 + (n - 1) * height * width * 2
        file.seek(last)
        file.write(np.arange(height * width, dtype="<u2").tobytes())
    movie = read(path)
    assert movie.shape == (n, height, width)
    assert movie.pixel_size_nm == pytest.approx(0.05)
    assert movie.frame(0).max() == 0
    np.testing.assert_array_equal(
        movie.frame(-1).ravel(), np.arange(height * width, dtype="u4") % 65536
    )


def test_gatan_export_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    extra = [(65003, "s", 0, "nm", True), (65004, "s", 0, "nm", True),
             (65009, "d", 1, 0.05, True), (65010, "d", 1, 0.06, True)]  # fmt: skip
    tifffile.imwrite(path, stack(shape=(7, 9)), extratags=extra, metadata=None)
    movie = read(path)
    assert (movie.axes[1].scale, movie.axes[2].scale) == (0.06, 0.05)
    assert movie.pixel_size_nm == pytest.approx(0.05)


def test_several_series_must_be_chosen(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a.tif", stack(), stack(shape=(3, 6, 6))
    with tifffile.TiffWriter(path) as tif:
        tif.write(first, photometric="minisblack")
        tif.write(second, photometric="minisblack")
    with pytest.raises(ShineError, match=r"--signal.*0 = .*5×7×9.*1 = .*3×6×6"):
        read(path)
    np.testing.assert_array_equal(read(path, signal=1).data[:], second)


def test_olympus_picture_beside_its_thumbnail(data_dir: Path) -> None:
    path = data_dir / "formats" / "olympus_SIS.tif"
    movie = read(path)
    assert movie.shape == (1, 101, 112)
    assert movie.pixel_size_nm == pytest.approx(0.0239279, rel=1e-5)
    np.testing.assert_array_equal(movie.frame(0), tifffile.imread(path, key=1))


@pytest.mark.parametrize("kind", ["imagej", "plain", "zlib", "bigtiff"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused_or_fail_when_read(
    tmp_path: Path, kind: str, left: float
) -> None:
    path = tmp_path / "a.tif"
    data = RNG.integers(0, 60000, (9, 64, 64), dtype="u2")
    more = {"imagej": {"imagej": True}, "zlib": {"compression": "zlib"},
            "bigtiff": {"bigtiff": True}}.get(kind, {})  # fmt: skip
    tifffile.imwrite(path, data, photometric="minisblack", **more)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(ShineError, match=r"a\.tif"):
        list(read(path).frames())


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"this is a letter, not a movie\n" * 20, "not a TIFF"),
     (b"II*\0", "TIFF"), (b"II*\0\xff\xff\xff\x7f", "TIFF")],
)  # fmt: skip
def test_what_is_no_tiff(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ShineError, match=word):
        read(path)


def test_complex_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack("c8"), photometric="minisblack")
    with pytest.raises(ShineError, match="real numbers"):
        read(path)


@given(n=st.integers(1, 4), height=st.integers(1, 33), width=st.integers(1, 33))
def test_odd_sizes(
    tmp_path_factory: pytest.TempPathFactory, n: int, height: int, width: int
) -> None:
    path = tmp_path_factory.mktemp("odd") / "a.tif"
    data = stack("u2", (n, height, width))
    tifffile.imwrite(path, data, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read(path).data[:], data)


def test_file_of_an_ome_set_gives_its_own_frames(tmp_path: Path) -> None:
    """Each file of such a set describes the whole set; its pixels are still its own."""
    files = "".join(
        f'<TiffData FirstT="{i}" IFD="0"><UUID FileName="f{i}.ome.tif">urn:uuid:{i}</UUID>'
        "</TiffData>"
        for i in range(3)
    )
    for i in range(3):
        text = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            'Type="uint16" SizeX="9" SizeY="7" SizeZ="1" SizeC="1" SizeT="3" PhysicalSizeX="0.5" '
            'PhysicalSizeXUnit="nm" PhysicalSizeY="0.5" PhysicalSizeYUnit="nm">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{files}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"f{i}.ome.tif", np.full((7, 9), i, "u2"), metadata=None,
                         description=text)  # fmt: skip
    movie = read(tmp_path)
    assert [int(frame[0, 0]) for frame in movie.frames()] == [0, 1, 2]
    assert movie.pixel_size_nm == pytest.approx(0.5)


def test_unreadable_numbers_in_imagej_text_calibrate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    text = "ImageJ=1.53\nimages=5\nframes=5\nunit=nm\nfinterval=0,04\nxorigin=a\n"
    tifffile.imwrite(path, stack(), description=text, metadata=None, photometric="minisblack")
    assert read(path).frame_time_s is None


def test_a_signal_that_is_not_there_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(), photometric="minisblack")
    assert read(path, signal=0).shape == (5, 7, 9)
    with pytest.raises(ShineError, match="no signal 'HAADF'"):
        read(path, signal="HAADF")


def pages(path: Path, *frames: np.ndarray) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for one in frames:
            tif.write(one, photometric="minisblack", metadata=None, contiguous=False)
    return path


@pytest.mark.parametrize("odd", [np.zeros((6, 9), "u2"), np.zeros((8, 10), "u1")])
def test_a_page_unlike_the_others_is_refused_in_the_middle_only(
    tmp_path: Path, odd: np.ndarray
) -> None:
    data = stack("u2", (5, 8, 10))
    path = pages(tmp_path / "a.tif", *data[:2], odd, *data[2:])
    with pytest.raises(ShineError, match=r"image 2 .* unlike.*--signal 0"):
        read(path)
    np.testing.assert_array_equal(read(path, signal=0).data[:], data)
    for beside in ((odd, *data), (*data, odd), (odd, *data, odd[:3])):  # previews
        np.testing.assert_array_equal(read(pages(path, *beside)).data[:], data)


def test_frames_of_two_sizes_by_turns_are_refused(tmp_path: Path) -> None:
    """Such as tifffile takes for previews of one another."""
    data = stack("u2", (3, 64, 64))
    path = pages(tmp_path / "a.tif", *(f[:n, :n] for f in data for n in (64, 32)))
    with pytest.raises(ShineError, match=r"image 1 .* unlike"):
        read(path)
    np.testing.assert_array_equal(read(path, signal=0).data[:], data)


def test_an_ome_file_with_fewer_frames_than_announced_says_so(tmp_path: Path) -> None:
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="9" '
        'SizeY="7" SizeZ="1" SizeC="1" SizeT="8" TimeIncrement="40" TimeIncrementUnit="ns" '
        'PhysicalSizeX="1" PhysicalSizeXUnit="reference frame" PhysicalSizeY="1" '
        'PhysicalSizeYUnit="reference frame"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        "<TiffData/></Pixels></Image></OME>"
    )
    data = stack("u2")
    tifffile.imwrite(tmp_path / "a.ome.tif", data, metadata=None, description=text)
    movie = read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.history == ("the OME text announces 8 frames, the file holds 5",)
    assert movie.frame_time_s == pytest.approx(4e-8)
    assert movie.axes[1:] == (Axis("y"), Axis("x"))
