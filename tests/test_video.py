"""The side-by-side video, decoded again."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from shine_em import video
from shine_em.errors import ShineError
from shine_em.movie import LazyFrames, Movie
from shine_em.video import write_side_by_side
from shine_em.viewing import scale_bar, shared_contrast


def decode(path) -> tuple[np.ndarray, dict]:
    """Return grey frames (t, y, x) and what ffmpeg says of the video."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    told = subprocess.run([ffmpeg, "-i", str(path)], capture_output=True, text=True).stderr
    line = next(line for line in told.splitlines() if "Video:" in line)
    width, height = (int(n) for n in re.search(r", (\d+)x(\d+)", line).groups())
    fps = float(re.search(r"([\d.]+) fps", line).group(1))
    pixels = subprocess.run(
        [ffmpeg, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "gray", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, height, width)
    return frames, {"size": (width, height), "fps": fps, "line": line}


def pair(shape=(7, 60, 90), **calibration) -> tuple[Movie, Movie]:
    rng = np.random.default_rng(0)
    t, y, x = np.indices(shape)
    clean = 100.0 + 40 * ((np.abs(y - shape[1] / 2) < 8) & (np.abs(x - 20 - 4 * t) < 8))
    raw = rng.poisson(clean).astype(np.uint16)
    return Movie.from_array(raw, **calibration), Movie.from_array(clean.astype(np.float32))


def test_video_has_every_frame_side_by_side(tmp_path) -> None:
    raw, clean = pair(pixel_size_nm=0.05, frame_time_s=0.0025)
    path = write_side_by_side(tmp_path / "v.mp4", raw, clean, fps=12)
    frames, meta = decode(path)
    assert len(frames) == 7
    assert "h264" in meta["line"]
    assert "yuv420p" in meta["line"]
    assert meta["fps"] == pytest.approx(12)
    width, height = meta["size"]
    assert width % 2 == height % 2 == 0
    zoom = 4  # 90 pixels reach 320 in whole steps of 4
    assert (width, height) == (2 * 90 * zoom + 4, 60 * zoom)
    # The bright square moves right by 4 pixels a frame on the denoised side.
    row = frames[:, height // 2, width // 2 + 2 :].astype(float)
    centres = [np.flatnonzero(r > r.mean() + 20).mean() / zoom for r in row]
    np.testing.assert_allclose(np.diff(centres), 4, atol=0.5)
    # Denoised is quiet, raw is not, under one contrast.
    corner = frames[3, height - 60 : height - 4]
    assert corner[:, width // 2 - 80 : width // 2 - 10].std() > 20
    assert corner[:, width - 80 : width - 10].std() < 4


def test_scale_bar_is_as_long_as_it_says(tmp_path) -> None:
    raw = Movie.from_array(np.full((1, 400, 400), 7, np.uint8), pixel_size_nm=0.1)
    frames, _ = decode(write_side_by_side(tmp_path / "a.mp4", raw, raw))
    bare, _ = decode(write_side_by_side(tmp_path / "b.mp4", raw, raw, scale_bar=False))
    margin = 10
    row = frames[0, 400 - margin - 5, :400] > 200
    assert row.sum() == pytest.approx(100, abs=2)  # 10 nm
    assert not (bare[0, 400 - margin - 5, :400] > 200).any()


@pytest.mark.parametrize(
    "shape", [(2, 33, 47), (3, 1, 5), (1, 700, 1301), (2, 2100, 300), (2, 512, 16), (1, 1900, 16)]
)
def test_odd_sizes_become_even_and_never_huge(tmp_path, shape) -> None:
    raw = Movie.from_array(np.random.default_rng(0).integers(0, 9, shape, dtype=np.uint8))
    frames, meta = decode(write_side_by_side(tmp_path / "v.mp4", raw, raw))
    assert len(frames) == shape[0]
    assert meta["size"][0] % 2 == meta["size"][1] % 2 == 0
    assert max(meta["size"]) <= video.LARGEST + 4


def test_bad_values_and_constant_movies_are_shown(tmp_path) -> None:
    flat = np.zeros((2, 32, 32), np.float32)
    flat[0, :4] = np.nan
    frames, _ = decode(write_side_by_side(tmp_path / "v.mp4", *[Movie.from_array(flat)] * 2))
    assert len(frames) == 2


def test_nothing_is_overwritten_or_left_behind(tmp_path) -> None:
    raw, clean = pair((2, 32, 32))
    path = tmp_path / "v.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(ShineError, match="exists already"):
        write_side_by_side(path, raw, clean)

    def broken(i: int) -> np.ndarray:
        if i == 1:
            raise ShineError("frame 1 cannot be read")
        return raw.frame(i)

    bad = Movie(LazyFrames(broken, raw.shape, raw.dtype))
    with pytest.raises(ShineError, match="frame 1"):
        write_side_by_side(path, bad, clean, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    write_side_by_side(path, raw, clean, overwrite=True)
    assert len(decode(path)[0]) == 2


def test_wrong_input_is_named(tmp_path) -> None:
    raw, clean = pair((2, 32, 32))
    with pytest.raises(ShineError, match="same frames"):
        write_side_by_side(tmp_path / "v.mp4", raw, clean.select(slice(0, 1)))
    with pytest.raises(ShineError, match="fps"):
        write_side_by_side(tmp_path / "v.mp4", raw, clean, fps=0)
    with pytest.raises(ShineError, match=r"v\.mp4"):
        write_side_by_side(tmp_path / "v.avi", raw, clean)


def test_time_stamps_tell_frames_apart() -> None:
    def stamps(seconds, n=100):
        movie = Movie.from_array(np.zeros((n, 8, 8), np.uint8), frame_time_s=seconds)
        layout = video._Layout(movie, with_bar=False)
        return [layout._time(t) for t in range(n)]

    assert stamps(0.0025)[:3] == ["0.0 ms", "2.5 ms", "5.0 ms"]
    assert stamps(1)[5] == "5 s"
    assert stamps(0.04)[7] == "0.28 s"
    assert stamps(None)[7] == "7 / 99"
    assert len(set(stamps(1 / 30))) == 100


@pytest.mark.parametrize(
    ("width", "pixel", "length", "label"),
    [
        (512, 0.0317, 2 / 0.0317, "2 nm"),
        (512, None, 100, "100 px"),
        (1000, 20.0, 250, "5 µm"),
        (128, 0.01, 20, "0.2 nm"),
        (4096, 1.0, 1000, "1 µm"),
        (100, 0.001, 20, "20 pm"),
        (400, 0.1, 100, "10 nm"),
        (3, None, 1, "1 px"),
    ],
)
def test_scale_bars_are_round(width, pixel, length, label) -> None:
    bar = scale_bar(width, pixel)
    assert bar.label == label
    assert bar.length_px == pytest.approx(length)


def test_shared_contrast_lies_between_both() -> None:
    rng = np.random.default_rng(0)
    raw, clean = rng.normal(10, 9, 20000), rng.normal(10, 1, 20000)
    low, high = shared_contrast(raw, clean)
    assert low + high == pytest.approx(20, abs=0.5)
    assert np.ptp(clean) < high - low < np.ptp(raw)
    assert shared_contrast(np.zeros(5), np.zeros(5)) == (-0.5, 0.5)


def test_ffmpeg_failure_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(video, "_CODEC", "no-such-codec")
    raw, clean = pair((2, 32, 32))
    with pytest.raises(ShineError, match="could not be encoded"):
        write_side_by_side(tmp_path / "v.mp4", raw, clean)
    assert not list(tmp_path.iterdir())
