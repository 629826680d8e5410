"""The level of a denoised movie: its mean is that of the raw one.

What a network learns is off by a constant, which shows in the mean of raw − denoised. Over five
frames of 512×512 pixels that mean is itself uncertain by 0.001 to 0.002 noise σ, as much as flat
background is off otherwise. Most of it is the noise in the mean of the few raw frames; that of
their neighbours, which the input check has measured, is independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checkpoint import Model
from .denoising import Denoiser
from .doctor import Health
from .movie import Movie
from .noise import NoiseStatistics
from .patches import Timeline

__all__ = ["brightness_offset", "expected_means"]

_FRAMES = 5  # that are denoised
_AROUND = 10  # frames to either side whose raw means are looked at
_DEGREE = 2  # of the polynomial through them
_LEAST = 7  # of them all


def brightness_offset(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    model: Model,
    *,
    device: Any = "cpu",
    precision: str = "fp32",
) -> float:
    """Return what to add to a model's result for the raw movie's mean, normalised.

    Over the trusted pixels of a few frames, and what the raw frames around tell of their means.
    """
    timeline = Timeline(len(movie), health)
    picked = timeline.spread(_FRAMES)
    denoiser = Denoiser(model, device=device, precision=precision)
    n, bad = model.normalisation, np.asarray(health.bad_pixels, bool)

    denoised = []
    for _, raw, frame in denoiser.stream(movie, health, frames=picked):
        trusted = n.trusted(raw, bad)
        denoised.append(frame[trusted].mean(dtype=np.float64) if trusted.any() else np.nan)
    near = [timeline.near(t, _AROUND) for t in picked]
    # A frame's mean has that much noise.
    variance = noise.sigma**2 * max(0.0, float(noise.difference_correlation.sum())) / bad.size
    missing = expected_means(picked, near, health.frame_means, variance) - np.array(denoised)
    found = missing[np.isfinite(missing)]
    return model.offset + (float(found.mean()) / n.scale if len(found) else 0.0)


def expected_means(
    picked: Sequence[int],
    near: Sequence[Sequence[int]],
    means: np.ndarray,
    variance: float,
) -> np.ndarray:
    """Return the means that frames have beneath their noise, as the frames around tell them.

    A parabola through the means of the frames around (particles that grow bend a straight line by
    as much as is to be gained), and of the frame's own distance from it as much as the scatter
    about it is more than noise: all of it where the beam flickers.

    Parameters
    ----------
    picked
        The frames.
    near
        For each, the frames around in its scene, itself among them.
    means
        ``(t,)`` mean of every raw frame; NaN where one has none.
    variance
        Of the noise in such a mean.

    Returns
    -------
    ndarray
        ``(picked,)`` float64, in the units of the means.
    """
    smooth, scatter, free = [], 0.0, 0
    for t, some in zip(picked, near, strict=True):
        times, values = np.array(some, float) - t, means[list(some)]
        good = np.isfinite(values)
        if good.sum() < _LEAST:
            smooth.append(float(means[t]))
            continue
        course = np.polyfit(times[good], values[good], _DEGREE)
        smooth.append(float(course[-1]))
        scatter += float(((values - np.polyval(course, times))[good] ** 2).sum())
        free += int(good.sum()) - _DEGREE - 1
    own = max(0.0, 1 - variance * free / scatter) if scatter > 0 else 1.0
    return np.asarray((1 - own) * np.array(smooth) + own * means[list(picked)])
