"""npy, zarr and OME-Zarr."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from shine_em.errors import ShineError
from shine_em.io import read

RNG = np.random.default_rng(3)


def stack(dtype: str = "u2", shape: tuple[int, ...] = (5, 7, 9)) -> np.ndarray:
    return (RNG.random(shape) * 100).astype(dtype)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "<i2", ">u2", "i4", "u8", "f2", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, dtype: str, order: Any) -> None:
    data = np.asarray(stack(dtype), order=order)
    np.save(tmp_path / "a.npy", data)
    movie = read(tmp_path / "a.npy")
    assert movie.dtype.isnative
    assert movie.dtype == data.dtype.newbyteorder("=")
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.pixel_size_nm is None
    assert movie.frame_time_s is None


def test_npy_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ShineError, match="objects"):
        read(tmp_path / "a.npy")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("array", "word"),
    [(np.zeros((2, 3, 4), "c8"), "complex"), (np.zeros(9), "shape"), (np.zeros((0, 3, 4)), "shape"),
     (np.zeros((2, 2, 2, 2)), "shape"), (np.array(["a", "b"]), "type")],
)  # fmt: skip
def test_npy_that_is_no_movie(tmp_path: Path, array: np.ndarray, word: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ShineError, match=word):
        read(tmp_path / "a.npy")


def test_npy_truncated_or_fake(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, stack())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ShineError, match="truncated"):
        read(path)
    path.write_bytes(b"hello, I am a text\n")
    with pytest.raises(ShineError, match=r"not a \.npy"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(ShineError, match="empty"):
        read(path)


def test_npy_with_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, stack())
    path.write_bytes(path.read_bytes().replace(b"}", b" "))
    with pytest.raises(ShineError, match=r"a\.npy: not a \.npy file, or a damaged one"):
        read(path)


def test_npy_absurd_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6, 10**6)}
        )
        file.write(b"\0" * 64)
    with pytest.raises(ShineError, match="truncated"):
        read(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 7, 9), (2, 4, 4), (5, 7, 9), (3, 7, 2)])
def test_zarr_arrays_of_any_chunking(tmp_path: Path, version: Any, chunks: Any) -> None:
    data, path = stack(), tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=data.shape, chunks=chunks, dtype=data.dtype,
                              zarr_format=version)  # fmt: skip
    array[:] = data
    movie = read(path)
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(movie.frame, [4, 0, 3, 3, 1, 2, 0, 4]))
    np.testing.assert_array_equal(frames, data[[4, 0, 3, 3, 1, 2, 0, 4]])
    frames[0][:] = 0
    np.testing.assert_array_equal(movie.frame(4), data[4], "a frame must not be a shared view")


def ome(path: Path, version: str, axes: list[dict[str, str]], scale: list[float],
        data: np.ndarray) -> None:  # fmt: skip
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("s0", data=data, chunks=(1,) * (data.ndim - 2) + data.shape[-2:])
    multiscales = [{
        "version": version, "axes": axes,
        "datasets": [{"path": "s0", "coordinateTransformations": [
            {"type": "scale", "scale": scale}]}],
    }]  # fmt: skip
    if version == "0.4":
        group.attrs["multiscales"] = multiscales
    else:
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}


T, C, Z, Y, X = (
    {"name": "t", "type": "time", "unit": "millisecond"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "nanometer"},
    {"name": "y", "type": "space", "unit": "angstrom"},
    {"name": "x", "type": "space", "unit": "angstrom"},
)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    data, path = stack(), tmp_path / "a.ome.zarr"
    ome(path, version, [T, Y, X], [40.0, 0.5, 0.25], data)
    movie = read(path)
    np.testing.assert_array_equal(movie.data[:], data)
    assert movie.name == "a"
    assert movie.frame_time_s == pytest.approx(0.04)
    assert movie.pixel_size_nm == pytest.approx(0.025)
    assert movie.axes[1].scale == 0.5


def test_ome_zarr_of_five_axes_with_one_movie_in_it(tmp_path: Path) -> None:
    data, path = stack(shape=(4, 2, 1, 7, 9)), tmp_path / "a.zarr"
    ome(path, "0.5", [T, C, Z, Y, X], [40, 1, 1, 0.5, 0.5], data)
    with pytest.raises(ShineError, match="--signal"):
        read(path)
    movie = read(path, signal="1")
    np.testing.assert_array_equal(movie.data[:], data[:, 1, 0])
    assert movie.frame_time_s == pytest.approx(0.04)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_store_of_bioformats2raw(tmp_path: Path, version: str) -> None:
    first, second, path = stack(), stack("f4"), tmp_path / "a.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if version == "0.4" else {"ome": {"version": "0.5", **layout}})
    root.create_group("OME")
    ome(path / "0", version, [T, Y, X], [40.0, 0.5, 0.25], first)
    movie = read(path)
    np.testing.assert_array_equal(movie.data[:], first)
    assert movie.pixel_size_nm == pytest.approx(0.025)
    assert movie.name == "a"
    ome(path / "1", version, [T, Y, X], [40.0, 0.5, 0.25], second)
    with pytest.raises(ShineError, match=r"several images.*--signal: 0, 1"):
        read(path)
    np.testing.assert_array_equal(read(path, signal=1).data[:], second)
    with pytest.raises(ShineError, match="no image 7; it holds 0, 1"):
        read(path, signal="7")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.clear(),
        lambda image: image[0].update(datasets=[]),
        lambda image: image[0]["datasets"][0].pop("path"),
        lambda image: image[0].update(axes=[T, T, T, Y, X]),
        lambda image: image[0]["datasets"][0]["coordinateTransformations"][0].update(scale=[1.0]),
        lambda image: image[0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "path": "0/scale"}]
        ),
    ],
)
def test_damaged_ome_metadata_are_told(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "a.zarr"
    ome(path, "0.5", [T, Y, X], [40.0, 0.5, 0.25], stack())
    group = zarr.open_group(path)
    found = group.attrs["ome"]
    change(found["multiscales"])
    group.attrs["ome"] = found
    with pytest.raises(ShineError, match=r"a\.zarr: its metadata are damaged"):
        read(path)


def test_an_attribute_that_only_shares_our_name(tmp_path: Path) -> None:
    path, data = tmp_path / "a.zarr", stack()
    ome(path, "0.5", [T, Y, X], [40.0, 0.5, 0.25], data)
    zarr.open_group(path).attrs["shine_em"] = "a note"
    np.testing.assert_array_equal(read(path).data[:], data)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=stack("f4"), chunks=(1, 7, 9))
    (chunk,) = path.glob("c/3/0/0")
    chunk.write_bytes(b"nothing that Zstandard knows")
    movie = read(path)
    assert movie.frame(2).shape == (7, 9)
    with pytest.raises(ShineError, match=r"a\.zarr: frame 3 cannot be read"):
        movie.frame(3)


def test_zarr_group_of_several_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w")
    first, second = stack(), stack("f4")
    group.create_array("one", data=first)
    group.create_array("two", data=second)
    with pytest.raises(ShineError, match=r"--signal.*one.*two"):
        read(path)
    np.testing.assert_array_equal(read(path, signal="two").data[:], second)
    np.testing.assert_array_equal(read(path / "one").data[:], first)


def test_folder_that_only_calls_itself_zarr(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ShineError, match="not a zarr store"):
        read(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "zarr.json").write_text("{nonsense")
    with pytest.raises(ShineError, match="zarr"):
        read(tmp_path / "a.zarr")


def test_zarr_of_complex_or_many_dimensions(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((2, 3, 4), "c8"))
    with pytest.raises(ShineError, match="complex"):
        read(tmp_path / "a.zarr")
    zarr.create_array(tmp_path / "b.zarr", data=np.zeros((2, 2, 3, 4), "f4"))
    with pytest.raises(ShineError, match="shape"):
        read(tmp_path / "b.zarr")
