"""Movies that show whether a result can be trusted, and what is measured on them.

`test_trust.py` asks in the suite, with few steps and small frames; `benchmarks/trust.py` asks the
same of larger movies and the default time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import expit

SIGMA = 10.0  # of the noise
EVENT_PX = 9  # three holes of 3 × 3
SPACING_PX, ANGLE_DEG = 7.3, 20.0
BLUR = 0.7  # px: makes noise that asks for a hole of 3 × 3


def noise(shape: tuple[int, ...], *, blur: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return noise of standard deviation 1, white or correlated from pixel to pixel."""
    white = np.random.default_rng(seed).normal(size=shape)
    if not blur:
        return white
    correlated = ndimage.gaussian_filter(white, (0, blur, blur))
    return np.asarray(correlated / correlated.std())


def pure_noise(shape: tuple[int, int, int], *, blur: float, seed: int = 3) -> np.ndarray:
    """Return a movie of nothing."""
    return (100 + SIGMA * noise(shape, blur=blur, seed=seed)).astype(np.float32)


def radial_power(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean power over ``(t, y, x)`` frames in rings of frequency, and the rings' sizes."""
    height, width = frames.shape[1:]
    side = min(height, width)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    ring = np.rint(np.hypot(fy, fx) * side).astype(int)
    inside = (ring > 0) & (ring <= side // 2)
    power = np.mean([np.abs(np.fft.fft2(frame)) ** 2 for frame in frames], axis=0)
    count = np.bincount(ring[inside])[1:]
    return np.bincount(ring[inside], power[inside])[1:] / count, count


def worst_ring(raw: np.ndarray, denoised: np.ndarray) -> float:
    """Return by how many standard errors any ring's power exceeds that of the mean of all frames.

    The mean of all frames is what no denoiser of noise can be blamed for.
    """
    mean, count = radial_power(raw.mean(0, dtype=float)[None])
    ours, _ = radial_power(denoised)
    error = mean * np.sqrt(2 / count)  # of a picture's frequencies, half are independent
    return float(((ours - mean) / error).max())


def lattice(shape: tuple[int, int]) -> np.ndarray:
    """Return a hexagonal lattice of known spacing and angle, mean 0, from -0.75 to 1.5."""
    y, x = np.indices(shape)
    waves = np.zeros(shape)
    for turn in (0, 60, 120):
        angle = np.deg2rad(ANGLE_DEG + turn)
        waves += np.cos(2 * np.pi / SPACING_PX * (x * np.cos(angle) + y * np.sin(angle)))
    return waves / 2


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    """Return a disc with an edge one pixel wide, 0 to 1."""
    rows, columns = np.indices(shape)
    return np.asarray(expit((radius - np.hypot(rows - y, columns - x)) / 0.4))


@dataclass(frozen=True)
class TrustScene:
    """A lattice above; below it flat particles that sway, and one that is there for one frame.

    Attributes
    ----------
    raw, truth
        ``(t, y, x)``, with and without noise.
    event, without
        ``(y, x)`` the particle of one frame, and its frame as it would be without it.
    frame, y, x
        Where that particle is.
    """

    raw: np.ndarray
    truth: np.ndarray
    event: np.ndarray
    without: np.ndarray
    frame: int
    y: int
    x: int


def trust_scene(frames: int, side: int, *, seed: int = 1) -> TrustScene:
    """Make the scene: particles 13 px in radius at a side of 128, larger in larger frames."""
    truth = np.full((frames, side, side), 100.0)
    half, scale = side // 2, side / 128
    for t, frame in enumerate(truth):
        frame[:half] += 2 * SIGMA * lattice((half, side))
        for level, y, x in ((60, 20, 18), (120, 42, 48), (-80, 20, 76)):
            sway = 4 * np.sin(t / 6 + level)
            frame[half:] += level * disc((half, side), y * scale, x * scale + sway, 13 * scale)
    when, y, x = frames // 2, int(96 * scale), int(104 * scale)
    without = truth[when].copy()
    event = 3 * SIGMA * disc((side, side), y, x, EVENT_PX / 2)
    truth[when] += event
    raw = truth + SIGMA * noise(truth.shape, blur=BLUR, seed=seed)
    return TrustScene(raw.astype(np.float32), truth, event, without, when, y, x)


def peak(image: np.ndarray, near: tuple[float, float]) -> np.ndarray:
    """Return where the Fourier transform of a windowed image is largest, cycles per pixel."""
    window = np.outer(*(np.hanning(n) for n in image.shape))
    values = (image - image.mean()) * window
    rows, columns = (np.arange(n) for n in image.shape)

    def negative(f: np.ndarray) -> float:
        waves = np.exp(-2j * np.pi * f[0] * rows) @ values @ np.exp(-2j * np.pi * f[1] * columns)
        return -float(abs(waves))

    start = np.array([near, near, near])
    start[1:] += np.diag([0.2 / image.shape[0], 0.2 / image.shape[1]])
    options: Any = {"xatol": 1e-7, "fatol": 1e-4, "initial_simplex": start}
    return np.asarray(minimize(negative, near, method="Nelder-Mead", options=options).x)


def lattice_errors(scene: TrustScene, denoised: np.ndarray) -> tuple[float, float]:
    """Return the mean relative error of the spacing and that of the angle in degrees."""
    side = scene.truth.shape[2]
    part = (slice(4, side // 2 - 4), slice(4, side - 4))  # away from the other scene
    spacings, angles = [], []
    for turn in (0, 60, 120):
        angle = np.deg2rad(ANGLE_DEG + turn)
        near = (np.sin(angle) / SPACING_PX, np.cos(angle) / SPACING_PX)
        reference = peak(scene.truth[0][part], near)
        for frame in denoised[:: max(1, len(denoised) // 8)]:
            found = peak(frame[part], near)
            spacings.append(np.hypot(*reference) / np.hypot(*found) - 1)
            angles.append(np.rad2deg(np.arctan2(*found) - np.arctan2(*reference)))
    return float(np.mean(spacings)), float(np.mean(angles))


def flat_slope(scene: TrustScene, denoised: np.ndarray) -> float:
    """Return the slope of the denoised values against the truth, 4 px off every edge."""
    truth = scene.truth
    relief = ndimage.maximum_filter(truth, (1, 9, 9)) - ndimage.minimum_filter(truth, (1, 9, 9))
    flat = relief < 0.05 * SIGMA
    flat[:, : truth.shape[1] // 2 + 4] = False
    return float(np.polyfit(truth[flat], denoised[flat], 1)[0])


def missing_at(scene: TrustScene, denoised: np.ndarray, frame: int, y: float, x: float) -> float:
    """Return what a denoised frame misses of the truth around a place, in σ of the noise."""
    rows, columns = (slice(max(0, round(v) - 4), round(v) + 5) for v in (y, x))
    difference = (scene.truth[frame] - denoised[frame])[rows, columns]
    return float(difference.mean()) / SIGMA


def contrast_kept(scene: TrustScene, denoised: np.ndarray) -> float:
    """Return the share of its contrast that the particle of one frame keeps."""
    rise = denoised[scene.frame] - scene.without
    around = (scene.event < 0.01 * scene.event.max()) & (
        ndimage.maximum_filter(scene.event, 15) > 0.01 * scene.event.max()
    )
    rise = rise - rise[around].mean()
    return float((rise * scene.event).sum() / (scene.event**2).sum())
