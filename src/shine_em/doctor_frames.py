"""The frames of a movie: their statistics, and blanks, cuts and jumps of brightness among them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from .movie import Movie

__all__ = ["FrameTable", "find_blanks", "find_cuts", "find_jumps", "read_table"]

_HUGE_BYTES = 4 << 30  # beyond this, hashing every pixel costs more than it brings
_SAMPLES = 2_000_000  # pixel values kept of the whole movie, for its histogram
_LARGEST = float(np.finfo(np.float32).max)
_GRID = 32


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Statistics of each of the ``t`` frames.

    Attributes
    ----------
    digest, digest_is_complete
        A hash of each frame's pixels; not complete where only every fourth row and column went in.
    count, mean, variance, low, high
        ``(t,)`` over the finite pixels of each frame.
    clipped_mean
        ``(t,)`` the same without the weight of single extreme values.
    thumbnail
        ``(t, gy, gx)`` block means of each frame, extreme values clipped.
    block
        Pixels in a block.
    sample, sample_pixels
        ``(t, m)`` some values of each frame (finite or not), and the ``(m,)`` flat indices of
        their evenly spread pixels.
    """

    digest: list[bytes]
    digest_is_complete: bool
    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray
    clipped_mean: np.ndarray
    thumbnail: np.ndarray
    block: int
    sample: np.ndarray
    sample_pixels: np.ndarray

    def values(self, frames: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Return the finite sampled values of the given frames and of a ``(y, x)`` mask."""
        picked = self.sample[frames][:, pixels.ravel()[self.sample_pixels]].ravel()
        return picked[np.abs(picked) <= _LARGEST] if picked.dtype.kind == "f" else picked


def read_table(movie: Movie) -> FrameTable:
    """Read every frame once and return its statistics."""
    t, y, x = movie.shape
    complete = t * y * x * movie.dtype.itemsize <= _HUGE_BYTES
    gy, gx = (min(_GRID, max(1, n // 2)) for n in (y, x))
    by, bx = y // gy, x // gx
    per_frame = max(256, min(y * x, _SAMPLES // t))
    # A step that shares no factor with the width visits all columns.
    step = max(1, y * x // per_frame)
    while np.gcd(step, x) > 1 and step > 1:
        step -= 1
    pixels = np.arange(0, y * x, step)
    sample = np.empty((t, len(pixels)), movie.dtype)
    digest = []
    numbers = np.full((6, t), np.nan)
    thumbnail = np.zeros((t, gy, gx), np.float32)
    for i in range(t):
        frame = np.ascontiguousarray(movie.frame(i))
        seen = frame if complete else np.ascontiguousarray(frame[::4, ::4])
        digest.append(hashlib.blake2b(seen.data, digest_size=16).digest())
        good = np.abs(frame) <= _LARGEST if frame.dtype.kind == "f" else np.ones((y, x), bool)
        whole = bool(good.all())
        sample[i] = picked = frame.ravel()[pixels]
        if not whole:
            picked = picked[good.ravel()[pixels]]
        values = (frame if whole else frame[good]).astype(np.float64).ravel()
        if not values.size:
            numbers[:, i] = 0, np.nan, np.nan, np.inf, -np.inf, np.nan
            continue
        mean = float(values.mean())
        low, high = float(values.min()), float(values.max())
        # The clip shields the block means from single hits; a third of the visible range beyond
        # the ordinary values leaves every picture as it is.
        c0, c1 = np.quantile(picked, (0.005, 0.995)) if picked.size else (low, high)
        reach = 2 * (c1 - c0) or np.inf
        clipped = np.clip(frame if whole else np.where(good, frame, mean), c0 - reach, c1 + reach)
        clipped = clipped[: gy * by, : gx * bx].astype(np.float32, copy=False)
        thumbnail[i] = clipped.reshape(gy, by, gx, bx).mean(axis=(1, 3))
        values -= mean
        variance = float(values @ values) / values.size
        numbers[:, i] = values.size, mean, variance, low, high, thumbnail[i].mean()
    count, mean_, variance_, low_, high_, clipped_mean = numbers
    return FrameTable(
        digest=digest,
        digest_is_complete=complete,
        count=count.astype(np.int64),
        mean=mean_,
        variance=variance_,
        low=low_,
        high=high_,
        clipped_mean=clipped_mean,
        thumbnail=thumbnail,
        block=by * bx,
        sample=sample,
        sample_pixels=pixels,
    )


def find_blanks(table: FrameTable, constant: np.ndarray) -> np.ndarray:
    """Return ``(t,)`` True for frames that are dark between bright ones.

    A frame is dark if nearly all of its brightness is gone (where zero means dark), or nearly
    all of its spread, and if that happens from one frame to the next: a fade is no blank.
    """
    dark = np.zeros(len(constant), bool)
    live = np.flatnonzero(~constant)
    if len(live) < 3:
        return dark
    mean, sd = table.clipped_mean[live], np.sqrt(table.variance[live])
    bright, spread = np.quantile(mean, 0.75), np.quantile(sd, 0.75)
    nonnegative = table.low[live].min() >= 0
    low = sd < 0.2 * spread
    if nonnegative:
        low = (low & (mean < 0.9 * bright)) | (mean < 0.1 * bright)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], low, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        outside = [k for k in (start - 1, stop) if 0 <= k < len(live)]
        abrupt = any(mean[k] > 0.5 * bright and sd[k] > 0.5 * spread for k in outside)
        if abrupt:
            dark[live[start:stop]] = True
    return dark


def find_cuts(table: FrameTable, usable: np.ndarray) -> np.ndarray:
    """Return the frames at which a new scene begins.

    At a cut the block means before and after do not correlate, although on both sides
    adjacent frames do. Blanked and repeated frames are passed over.
    """
    cuts: set[int] = set()
    small = _flattened(table.thumbnail[usable])
    for k in (1, 3):
        c = _adjacent_correlation(small, k)
        for j in np.flatnonzero(np.isfinite(c)):
            before = c[j - k] if j - k >= 0 else np.nan
            after = c[j + k] if j + k < len(c) else np.nan
            within = min(before, after)
            if not within > 0.3 or c[j] > 0.35 * within:
                continue
            near = c[max(0, j - k + 1) : j + k]
            if c[j] > np.nanmin(near):
                continue
            others = c[np.isfinite(c)]
            others = others[np.abs(np.flatnonzero(np.isfinite(c)) - j) >= k]
            median = np.median(others)
            mad = 1.4826 * np.median(np.abs(others - median))
            known = any(abs(int(usable[j]) - cut) < 3 for cut in cuts)
            clear = median - c[j] > 6 * mad and within - c[j] > 6 / np.sqrt(small.shape[1])
            if clear and not known:
                cuts.add(int(usable[j]))
    return np.array(sorted(cuts), int)


def _flattened(thumbnail: np.ndarray) -> np.ndarray:
    """Return ``(t, g)`` block means without the smooth illumination, of zero mean."""
    t, gy, gx = thumbnail.shape
    y, x = (
        g.ravel() for g in np.meshgrid(*(np.linspace(-1, 1, n) for n in (gy, gx)), indexing="ij")
    )
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    q, _ = np.linalg.qr(basis)
    flat = thumbnail.reshape(t, -1).astype(np.float64)
    return flat - (flat @ q) @ q.T


def _adjacent_correlation(small: np.ndarray, k: int) -> np.ndarray:
    """Return ``(t,)`` the correlation of the means of frames ``t-k..t-1`` and ``t..t+k-1``."""
    t = len(small)
    c = np.full(t, np.nan)
    if t < 2 * k:
        return c
    sums = np.cumsum(np.concatenate([np.zeros((1, small.shape[1])), small]), axis=0)
    means = (sums[k:] - sums[:-k]) / k
    norm = np.sqrt((means**2).sum(1))
    a, b = means[: t - 2 * k + 1], means[k:]
    with np.errstate(invalid="ignore", divide="ignore"):
        c[k : t - k + 1] = (a * b).sum(1) / (norm[: t - 2 * k + 1] * norm[k:])
    return c


def find_jumps(table: FrameTable, usable: np.ndarray, cuts: np.ndarray) -> list[int]:
    """Return the frames at which the brightness steps and stays, without a cut."""
    mean = table.clipped_mean[usable]
    if len(mean) < 4:
        return []
    steps = np.diff(mean)
    noise = np.sqrt(np.median(table.variance[usable] / table.count[usable]))
    usual = 1.4826 * np.median(np.abs(steps - np.median(steps))) + noise
    span = np.median(np.sqrt(table.variance[usable]))
    if table.low[usable].min() >= 0:
        span = max(span * 0.2, 0.1 * np.median(mean))
    jumps = []
    for j in np.flatnonzero(np.abs(steps) > max(10 * usual, 0.5 * span)) + 1:
        before, after = np.median(mean[max(0, j - 3) : j]), np.median(mean[j : j + 3])
        stays = abs(after - before) > 0.7 * abs(steps[j - 1])
        if stays and int(usable[j]) not in cuts:
            jumps.append(int(usable[j]))
    return jumps
