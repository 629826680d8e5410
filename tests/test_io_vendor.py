"""Files as vendors' software wrote them, against RosettaSciIO's own reading of them."""

import importlib
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shine_em.errors import ShineError
from shine_em.io import read, write

PLUGINS = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".emd": "emd", ".ser": "tia",
           ".emi": "tia", ".hspy": "hspy"}  # fmt: skip
NM = {"nm": 1.0, "µm": 1000.0, "pm": 0.001, "A": 0.1}
FILES = ["64x64x5_TEM_preview.emi", "64x64x5_TEM_preview_1.ser", "image_um_unit.dm3",
         "ncem_signal.emd", "prismatic_3d.emd", "signal2d.hspy", "stack_10.dm4",
         "stack_float32.dm4", "stack_int16.dm3", "stackbuilder_imagestack.dm3", "stem_image.dm3",
         "velox_tem_stack.emd"]  # fmt: skip


def reference(path: Path) -> dict[str, Any]:
    module = importlib.import_module(f"rsciio.{PLUGINS[path.suffix]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = module.file_reader(str(path), lazy=False)
    return found


@pytest.mark.parametrize("name", FILES)
def test_values_and_pixel_size_are_those_of_rosettasciio(data_dir: Path, name: str) -> None:
    path = data_dir / "formats" / name
    movie, expected = read(path), reference(path)
    data = expected["data"] if expected["data"].ndim == 3 else expected["data"][None]
    assert movie.shape == data.shape
    assert movie.dtype == data.dtype
    np.testing.assert_array_equal(movie.data[:], data)
    for ours, theirs in zip(movie.axes[1:], expected["axes"][-2:], strict=True):
        if theirs["units"] in NM:
            size = theirs["scale"] * NM[theirs["units"]]
            assert movie.pixel_size_nm == pytest.approx(size, rel=1e-9)
        elif theirs["units"] == "1/nm":
            assert (ours.unit, ours.scale) == ("1/nm", pytest.approx(theirs["scale"]))
        else:
            assert ours.unit is None
            assert movie.pixel_size_nm is None


def test_the_sizes_we_read_in_the_files_themselves(data_dir: Path) -> None:
    """Read from the tags by eye, not through any library."""
    sizes = {"stem_image.dm3": 0.24853801727294922, "image_um_unit.dm3": 168.67469251155853,
             "stackbuilder_imagestack.dm3": 59.98290330171585,
             "velox_tem_stack.emd": 0.0081728831922978511,
             "64x64x5_TEM_preview_1.ser": 6.281833616298531}  # fmt: skip
    for name, size in sizes.items():
        assert read(data_dir / "formats" / name).pixel_size_nm == pytest.approx(size, rel=1e-9)


def test_velox_knows_its_frame_time_and_microscope(data_dir: Path) -> None:
    movie = read(data_dir / "formats" / "velox_tem_stack.emd")
    assert movie.frame_time_s == pytest.approx(0.8)
    assert movie.metadata["original"]["Optics"]["AccelerationVoltage"] == "300000"


def test_emi_metadata_come_with_its_series(data_dir: Path) -> None:
    movie = read(data_dir / "formats" / "64x64x5_TEM_preview.emi")
    info = movie.metadata["ObjectInfo"]
    assert info["AcquireInfo"]["CameraNamePath"] == "WA-Orius"
    assert info["ExperimentalDescription"]["High tension (kV)"] == "200"


def test_ser_offset_is_in_the_unit_of_its_scale(data_dir: Path) -> None:
    _, y, _ = read(data_dir / "formats" / "64x64x5_TEM_preview_1.ser").axes
    assert y.offset == pytest.approx(-32 * y.scale, rel=1e-6), "the image is centred on the axis"


def test_frames_that_are_no_time_steps_say_so_once(data_dir: Path, tmp_path: Path) -> None:
    movie = read(data_dir / "formats" / "prismatic_3d.emd")
    assert movie.frame_time_s is None
    assert "bin_outer_angle" in movie.history[-1]
    assert read(write(movie, tmp_path / "a.hspy")).history == movie.history


def test_brightness_unit_of_other_values_is_not_claimed(data_dir: Path) -> None:
    """Gatan's calibration turns these stored counts into e-; the values themselves are no e-."""
    assert read(data_dir / "formats" / "stackbuilder_imagestack.dm3").intensity_unit == "counts"


@pytest.mark.parametrize("suffix", [".dm3", ".dm4", ".emd", ".ser", ".emi", ".hspy"])
@pytest.mark.parametrize("content", [b"", b"a letter and not a movie " * 300])
def test_other_files_of_that_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"letter{suffix}"
    path.write_bytes(content)
    with pytest.raises(ShineError, match=f"letter\\{suffix}"):
        read(path)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".emi")])
@pytest.mark.parametrize("left", [0.02, 0.5, 0.9])
def test_truncated(tmp_path: Path, data_dir: Path, name: str, left: float) -> None:
    whole = (data_dir / "formats" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * left)])
    try:
        frames = list(read(path).frames())
    except ShineError as error:
        frames, message = None, str(error)
    if frames is None:
        assert name in message
    else:  # dm and ser files end in tags that no pixel needs
        for frame, expected in zip(frames, read(data_dir / "formats" / name).frames(), strict=True):
            np.testing.assert_array_equal(frame, expected)


def test_emi_without_its_series(tmp_path: Path, data_dir: Path) -> None:
    shutil.copy(data_dir / "formats" / "64x64x5_TEM_preview.emi", tmp_path)
    with pytest.raises(ShineError, match=r"64x64x5_TEM_preview_1\.ser"):
        read(tmp_path / "64x64x5_TEM_preview.emi")


def test_emi_with_two_series(tmp_path: Path, data_dir: Path) -> None:
    source = data_dir / "formats" / "64x64x5_TEM_preview_1.ser"
    (tmp_path / "a.emi").write_bytes(b"no info")
    shutil.copy(source, tmp_path / "a_1.ser")
    shutil.copy(source, tmp_path / "a_2.ser")
    with pytest.raises(ShineError, match=r"--signal.*a_1\.ser.*a_2\.ser"):
        read(tmp_path / "a.emi")
    assert read(tmp_path / "a.emi", signal=1).name == "a_2"


def emd(path: Path, signals: dict[str, tuple[np.ndarray, list[tuple[str, str, float]]]]) -> Path:
    """Write an NCEM EMD file, axes in the order of the data."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        for name, (data, axes) in signals.items():
            group = file.create_group(f"signals/{name}")
            group.attrs["emd_group_type"] = 1
            group.create_dataset("data", data=data)
            for i, (label, unit, step) in enumerate(axes):
                dim = group.create_dataset(f"dim{i + 1}", data=np.arange(data.shape[i]) * step)
                dim.attrs["name"], dim.attrs["units"] = label, unit
    return path


TYX = [("t", "s", 0.5), ("y", "nm", 0.2), ("x", "nm", 0.1)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_emd_time_is_where_its_axis_says(tmp_path: Path, order: tuple[int, int, int]) -> None:
    data = np.arange(3 * 4 * 5, dtype="u2").reshape(3, 4, 5)
    axes = [TYX[i] for i in order]
    movie = read(emd(tmp_path / "a.emd", {"m": (data.transpose(order), axes)}))
    np.testing.assert_array_equal(movie.data[:], data)
    np.testing.assert_array_equal(movie.frame(2), data[2])
    assert movie.frame_time_s == pytest.approx(0.5)
    assert (movie.axes[1].scale, movie.axes[2].scale) == pytest.approx((0.2, 0.1))


def test_emd_of_several_signals(tmp_path: Path) -> None:
    first, second = np.zeros((3, 4, 5), "u2"), np.ones((2, 6, 5), "u2")
    path = emd(tmp_path / "a.emd", {"HAADF": (first, TYX), "BF": (second, TYX)})
    with pytest.raises(ShineError, match=r"--signal.*BF.*HAADF"):
        read(path)
    np.testing.assert_array_equal(read(path, signal="BF").data[:], second)
    with pytest.raises(ShineError, match="no signal 'EDS'"):
        read(path, signal="EDS")


def test_a_movie_beside_a_single_image_is_taken(tmp_path: Path) -> None:
    image, movie = np.zeros((4, 5), "u2"), np.ones((3, 4, 5), "u2")
    path = emd(tmp_path / "a.emd", {"survey": (image, TYX[1:]), "movie": (movie, TYX)})
    found = read(path)
    assert found.shape == (3, 4, 5)
    assert "survey" in found.history[-1], "what was left out must be told"


@pytest.mark.parametrize(
    ("shape", "axes", "word"),
    [((2, 3, 4, 5), [("a", "nm", 1.0), ("b", "nm", 1.0), ("y", "1/nm", 1.0), ("x", "1/nm", 1.0)],
      "4-dimensional"),
     ((3, 4, 5), [("y", "nm", 1.0), ("x", "nm", 1.0), ("E", "eV", 1.0)], "spectra")],
)  # fmt: skip
def test_what_is_no_movie(tmp_path: Path, shape: Any, axes: Any, word: str) -> None:
    path = emd(tmp_path / "a.emd", {"m": (np.zeros(shape, "f4"), axes)})
    with pytest.raises(ShineError, match=word):
        read(path)


@pytest.mark.parametrize("name", ["stem_image.dm3", "stack_10.dm4", "signal2d.hspy"])
def test_missing_extra_says_how_to_install_it(
    data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_dir / "formats" / name
    monkeypatch.setitem(sys.modules, "rsciio", None)  # Python's own way of saying "not there"
    monkeypatch.setitem(sys.modules, f"rsciio.{PLUGINS[path.suffix]}", None)
    with pytest.raises(ShineError, match=r'pip install "shine-em\[formats\]"'):
        read(path)


@pytest.mark.parametrize("name", ["64x64x5_TEM_preview.emi", "64x64x5_TEM_preview_1.ser"])
def test_tia_series_need_no_extra(
    data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rsciio", "rsciio.tia", "h5py"):
        monkeypatch.setitem(sys.modules, module, None)
    assert read(data_dir / "formats" / name).frame(4).shape == (64, 64)
