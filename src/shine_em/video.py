"""A side-by-side video: raw | denoised, with labels, scale bar and time."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ShineError
from .movie import Movie
from .viewing import ScaleBar, block_means, scale_bar, shared_contrast

__all__ = ["write_side_by_side"]

LARGEST = 1920  # pixels, width of the video; wider pairs of frames are averaged down
SMALLEST = 320  # pixels, width of one side; smaller frames are enlarged by whole steps
_CODEC = "libx264"
SAMPLED = 24  # frames that the contrast is taken from


def write_side_by_side(
    path: str | Path,
    movie: Movie,
    denoised_movie: Movie,
    *,
    fps: float = 10,
    scale_bar: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write raw and denoised frames side by side as an H.264 mp4 that plays everywhere.

    The contrast is one for both sides and fixed over the movie, so that neither flicker nor a
    change of brightness is hidden. Frames are read one at a time.

    Parameters
    ----------
    path
        The mp4 file to write; it appears only when it is complete.
    movie, denoised_movie
        Of the same shape. Calibration is taken from ``movie``.
    fps
        Frames per second.
    scale_bar
        Draw a scale bar (in pixels where the movie is not calibrated).
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ShineError
        If the shapes differ, the file exists already, or the video cannot be encoded.
    """
    target = Path(path)
    if movie.shape != denoised_movie.shape:
        raise ShineError(
            f"{denoised_movie.name} has the shape {denoised_movie.shape}, {movie.name} "
            f"{movie.shape}: a side-by-side video needs the same frames of both."
        )
    if not (np.isfinite(fps) and 0 < fps <= 240):
        raise ShineError(f"fps must lie between 0 and 240, not {fps}.")
    if target.suffix.lower() != ".mp4":
        raise ShineError(f"{target}: the video is written as mp4, so name it {target.stem}.mp4.")
    if target.exists() and not overwrite:
        raise ShineError(f"{target} exists already: choose another name or allow overwriting.")

    layout = _Layout(movie, with_bar=scale_bar)
    low, high = _contrast(movie, denoised_movie)
    pictures = (
        layout.compose(t, *(_grey(frame, low, high) for frame in pair))
        for t, pair in enumerate(zip(movie.frames(), denoised_movie.frames(), strict=True))
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".shine-video-", dir=target.parent) as folder:
            part = Path(folder) / "video.mp4"
            _encode(part, pictures, layout.size, fps)
            os.replace(part, target)
    except OSError as error:
        raise ShineError(f"{target}: the video cannot be written ({error.strerror}).") from None
    return target


def _encode(part: Path, pictures: Iterator[np.ndarray], size: tuple[int, int], fps: float) -> None:
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{size[0]}x{size[1]}", "-r", str(fps),
        "-i", "-", "-an", "-c:v", _CODEC, "-preset", "medium", "-crf", "18",
        "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(part),
    ]  # fmt: skip
    # ffmpeg's words go to a file: a pipe that nobody empties could block it.
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=words, stderr=words) as process,
    ):
        assert process.stdin is not None
        try:
            for picture in pictures:
                process.stdin.write(picture.tobytes())
        except BrokenPipeError:
            pass  # ffmpeg gave up; its exit code and words tell why
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(OSError):
                process.stdin.close()
        if process.wait() != 0 or not part.exists():
            words.seek(0)
            reason = words.read().decode("utf-8", "replace").strip().splitlines()
            raise ShineError(
                "The video could not be encoded: " + (reason[-1] if reason else "ffmpeg failed.")
            )


def _contrast(movie: Movie, denoised: Movie) -> tuple[float, float]:
    """Return one black and white level for both, from frames spread over the movie."""
    picks = np.unique(np.linspace(0, len(movie) - 1, min(len(movie), SAMPLED)).astype(int))
    raw, clean = (
        np.concatenate([_sample(frame) for frame in source.frames(picks.tolist())])
        for source in (movie, denoised)
    )
    return shared_contrast(raw, clean)


def _sample(frame: np.ndarray) -> np.ndarray:
    step = max(1, int(np.sqrt(frame.size / 40_000)))
    return np.asarray(frame[::step, ::step], dtype=np.float32).ravel()


def _grey(frame: np.ndarray, low: float, high: float) -> np.ndarray:
    values = np.nan_to_num(np.asarray(frame, dtype=np.float32), nan=low, posinf=high, neginf=low)
    return np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.float32)


class _Layout:
    """Where things stand in a frame of the video, and the text that does not change."""

    def __init__(self, movie: Movie, *, with_bar: bool) -> None:
        _, height, width = movie.shape
        self._shrink = max(1, -(-2 * max(width, height // 2) // LARGEST))
        enlarge = min(-(-SMALLEST // width), LARGEST // height)
        self._enlarge = 1 if self._shrink > 1 else max(1, enlarge)
        self._side = (
            height // self._shrink * self._enlarge,
            width // self._shrink * self._enlarge,
        )
        self._gap = 4
        full = self._side[0], 2 * self._side[1] + self._gap
        # yuv420p halves the colour planes: both sides must be even.
        self.size = (full[1] + full[1] % 2, full[0] + full[0] % 2)
        self._seconds = movie.frame_time_s
        self._total = len(movie)
        self._bar: ScaleBar | None = scale_bar(width, movie.pixel_size_nm) if with_bar else None
        self._per_pixel = self._enlarge / self._shrink

    def compose(self, t: int, raw: np.ndarray, denoised: np.ndarray) -> np.ndarray:
        """Return frame ``t`` of the video, ``(y, x)`` uint8."""
        from PIL import Image, ImageDraw

        canvas = np.zeros((self.size[1], self.size[0]), np.uint8)
        height, width = self._side
        canvas[:height, :width] = self._sized(raw)
        start = width + self._gap
        canvas[:height, start : start + width] = self._sized(denoised)
        image = Image.fromarray(canvas)
        draw = ImageDraw.Draw(image)
        text = _font(max(12, min(28, width // 20)))
        margin = max(6, width // 40)
        _write(image, draw, (margin, margin), "raw", text, "la")
        _write(image, draw, (start + margin, margin), "denoised", text, "la")
        _write(image, draw, (width - margin, margin), self._time(t), text, "ra")
        if self._bar:
            length = self._bar.length_px * self._per_pixel
            thick = max(2, height // 110)
            bottom = height - margin - 4
            box = (margin + 4, bottom - thick, margin + 3 + round(length), bottom)
            at = (box[0], box[1] - 4)
            words = draw.textbbox(at, self._bar.label, font=text, anchor="ld")
            _darken(image, (box[0], words[1], max(box[2], words[2]), box[3]))
            draw.rectangle(box, fill=255)
            draw.text(at, self._bar.label, fill=255, font=text, anchor="ld")
        return np.asarray(image)

    def _time(self, t: int) -> str:
        if self._seconds is None:
            return f"{t} / {self._total - 1}"  # counted from 0, as in the report and in --frames
        last = self._seconds * (self._total - 1)
        factor, unit = (1e3, "ms") if last < 1 else (1.0, "s")
        step = self._seconds * factor
        # As many decimals as the frame time needs, and the same in each frame.
        decimals = next((d for d in range(3) if abs(round(step, d) - step) < 0.01 * step), 3)
        return f"{t * step:.{decimals}f} {unit}"

    def _sized(self, grey: np.ndarray) -> np.ndarray:
        k, m = self._shrink, self._enlarge
        if k > 1:
            grey = block_means(grey, k)
        pixels = np.rint(grey).astype(np.uint8)
        return pixels.repeat(m, 0).repeat(m, 1) if m > 1 else pixels


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _write(image: Any, draw: Any, at: tuple[int, int], words: str, font: Any, anchor: str) -> None:
    _darken(image, draw.textbbox(at, words, font=font, anchor=anchor))
    draw.text(at, words, fill=255, font=font, anchor=anchor)


def _darken(image: Any, box: tuple[float, float, float, float], *, rim: int = 4) -> None:
    """Darken a box and a rim around it, so that white can be read on it over any picture."""
    area = (
        max(0, int(box[0]) - rim), max(0, int(box[1]) - rim),
        min(image.width, int(box[2]) + rim + 1), min(image.height, int(box[3]) + rim + 1),
    )  # fmt: skip
    if area[2] > area[0] and area[3] > area[1]:
        image.paste(image.crop(area).point(lambda value: value * 0.3), area)
