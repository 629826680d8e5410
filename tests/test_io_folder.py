"""Movies that are folders of frames."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from shine_em.errors import ShineError
from shine_em.io import read


def frame(value: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full(shape, value, "u2")


def values(path: str | Path) -> list[int]:
    return [int(one[0, 0]) for one in read(path).frames()]


def test_natural_order(tmp_path: Path) -> None:
    for i in (10, 2, 1, 33, 9):
        tifffile.imwrite(tmp_path / f"frame_{i}.tif", frame(i))
    movie = read(tmp_path)
    assert movie.shape == (5, 6, 8)
    assert values(tmp_path) == [1, 2, 9, 10, 33]
    assert movie.name == tmp_path.name
    assert "frame_1.tif to frame_33.tif" in movie.history[0]


def test_gatan_in_situ_folders(tmp_path: Path) -> None:
    number, expected = 0, []
    for second in (0, 1, 2, 10):
        folder = tmp_path / "Hour_00" / "Minute_00" / f"Second_{second:02}"
        folder.mkdir(parents=True)
        for i in range(3):
            tifffile.imwrite(folder / f"run_Hour_00_Frame_{i:04}.tif", frame(number))
            expected.append(number)
            number += 1
    assert values(tmp_path) == expected


def test_real_dm4_frames_in_nested_folders(tmp_path: Path, data_dir: Path) -> None:
    image = (data_dir / "formats" / "stem_image.dm3").read_bytes()
    for second in range(2):
        folder = tmp_path / "Hour_00" / "Minute_00" / f"Second_{second:02}"
        folder.mkdir(parents=True)
        (folder / "a_Frame_0000.dm3").write_bytes(image)
    movie = read(tmp_path)
    single = read(data_dir / "formats" / "stem_image.dm3")
    assert movie.frame_time_s is None, "this scan has no exposure time"
    assert movie.shape == (2, 68, 68)
    assert movie.pixel_size_nm == single.pixel_size_nm
    np.testing.assert_array_equal(movie.frame(1), single.frame(0))


def test_frames_in_the_folder_itself_win_over_those_below(tmp_path: Path) -> None:
    (tmp_path / "discarded").mkdir()
    tifffile.imwrite(tmp_path / "discarded" / "x.tif", frame(9))
    tifffile.imwrite(tmp_path / "a1.tif", frame(1))
    tifffile.imwrite(tmp_path / "a2.tif", frame(2))
    assert values(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["a" * 300 + ".tif", "a" * 300 + "*.tif"])
def test_a_name_too_long_for_the_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShineError, match="cannot be opened"):
        read(tmp_path / name)


def test_pattern(tmp_path: Path) -> None:
    for i in (1, 2, 11):
        tifffile.imwrite(tmp_path / f"a{i}.tif", frame(i))
        tifffile.imwrite(tmp_path / f"b{i}.tif", frame(100 + i))
    assert values(f"{tmp_path}/b*.tif") == [101, 102, 111]
    with pytest.raises(ShineError, match="no file matches"):
        read(f"{tmp_path}/c*.tif")


def test_a_real_file_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "run[1].tif", frame(4))
    assert values(tmp_path / "run[1].tif") == [4]


@pytest.mark.parametrize("pattern", ["f_*.tif", "*.tif", "f_[12].tif", "**/f_*.tif"])
def test_a_folder_with_brackets_is_taken_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    folder = tmp_path / "run [5 kV]"
    folder.mkdir()
    for i in (1, 2):
        tifffile.imwrite(folder / f"f_{i}.tif", frame(i))
    assert values(folder / pattern) == [1, 2]
    assert read(folder / pattern).name == (folder / pattern).parent.name
    monkeypatch.chdir(tmp_path)
    assert values(f"run [5 kV]/{pattern}") == [1, 2]
    monkeypatch.chdir(folder)
    assert values(pattern) == [1, 2]
    with pytest.raises(ShineError, match="no such file"):
        read(folder / "missing.tif")


@pytest.mark.parametrize("digit", ["²", "①", "٣"])
def test_digits_of_all_kinds_in_names(tmp_path: Path, digit: str) -> None:
    for i in (10, 2):
        tifffile.imwrite(tmp_path / f"1{digit}3_{i}.tif", frame(i))
    tifffile.imwrite(tmp_path / f"13{digit}.tif", frame(0))
    assert [v for v in values(tmp_path) if v] == [2, 10]


def test_calibration_comes_from_the_first_frame(tmp_path: Path) -> None:
    for i in range(3):
        with mrcfile.new(tmp_path / f"{i}.mrc") as mrc:
            mrc.set_data(frame(i))
            mrc.voxel_size = 2.0
    assert read(tmp_path).pixel_size_nm == pytest.approx(0.2)
    assert values(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("odd_shape", [(6, 9), (8, 6)])
def test_odd_frame_is_named(tmp_path: Path, odd_shape: tuple[int, int]) -> None:
    for i in range(6):
        tifffile.imwrite(tmp_path / f"f{i}.tif", frame(i, odd_shape if i == 4 else (6, 8)))
    with pytest.raises(ShineError, match=r"f4\.tif.*f0\.tif"):
        list(read(tmp_path).frames())


def test_frame_of_another_size_is_found_at_once(tmp_path: Path) -> None:
    for i in range(6):
        tifffile.imwrite(tmp_path / f"f{i}.tif", frame(i, (6, 9) if i == 4 else (6, 8)))
    with pytest.raises(ShineError, match=r"f4\.tif.*1×6×9"):
        read(tmp_path)


def test_folders_that_are_no_movie(tmp_path: Path) -> None:
    with pytest.raises(ShineError, match="no frames"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ShineError, match="no frames"):
        read(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", frame(1))
    np.save(tmp_path / "b.npy", frame(1))
    with pytest.raises(ShineError, match=r"mixes formats.*1 \.tif"):
        read(tmp_path)


def test_half_written_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a1.tif", frame(1))
    tifffile.imwrite(tmp_path / "a2.tif", frame(2))
    (tmp_path / "._a1.tif").write_bytes(b"litter")
    assert values(tmp_path) == [1, 2]


def test_folder_of_stacks_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.zeros((3, 6, 8), "u2"), photometric="minisblack")
    with pytest.raises(ShineError, match="3 frames"):
        read(tmp_path)


def test_folder_with_one_stack_is_that_stack(data_dir: Path) -> None:
    movie = read(data_dir / "au_glc")
    assert (movie.shape, movie.dtype) == ((100, 512, 512), np.dtype("u2"))
    assert movie.pixel_size_nm == pytest.approx(0.0317)
    assert movie.frame_time_s == pytest.approx(0.0025)


def test_many_compressed_frames_keep_no_file_open(tmp_path: Path) -> None:
    for i in range(40):
        tifffile.imwrite(tmp_path / f"{i}.tif", frame(i), compression="zlib")
    movie = read(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [int(one[0, 0]) for one in movie.frames()] == list(range(40))
    assert [int(one[0, 0]) for one in movie.frames()] == list(range(40))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.parametrize("nested", [True, False])
def test_frame_time_of_gatan_in_situ_frames(tmp_path: Path, data_dir: Path, nested: bool) -> None:
    """One exposure follows the other there; of any other folder of frames nothing is known."""
    folder = tmp_path / "Hour_00" / "Minute_00" / "Second_00" if nested else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    image = (data_dir / "formats" / "image_um_unit.dm3").read_bytes()  # exposure: 0.5 s
    for i in range(2):
        (folder / f"a_Frame_{i:04}.dm3").write_bytes(image)
    movie = read(tmp_path)
    assert movie.frame_time_s == (pytest.approx(0.5) if nested else None)
    assert ("exposure time" in " ".join(movie.history)) == nested
