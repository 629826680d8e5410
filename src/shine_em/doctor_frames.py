"""The frames of a movie: their statistics, and blanks, cuts and jumps of brightness among them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from .movie import Movie

__all__ = [
    "FrameTable",
    "find_blanks",
    "find_cuts",
    "find_empty",
    "find_jumps",
    "holds_number",
    "read_table",
]

_HUGE_BYTES = 4 << 30  # beyond this, hashing every pixel costs more than it brings
_SAMPLES = 2_000_000  # pixel values kept of the whole movie, for its histogram
_GRID = 32
_AT_ONCE = 500  # frames whose thumbnails are compared at a time


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
        return picked[holds_number(picked)]


def holds_number(values: np.ndarray) -> np.ndarray:
    """Return True where a value is finite and fits into float32, in which the networks work."""
    good = np.isfinite(values)
    if values.dtype.kind == "f" and values.dtype.itemsize > 4:
        good &= np.abs(values) <= np.finfo(np.float32).max
    return good


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
        if frame.dtype.kind == "b":
            frame = frame.view(np.uint8)
        seen = frame if complete else np.ascontiguousarray(frame[::4, ::4])
        digest.append(hashlib.blake2b(seen.data, digest_size=16).digest())
        good = holds_number(frame)
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


def find_empty(table: FrameTable) -> np.ndarray:
    """Return ``(t,)`` True for frames that are constant or hold no finite value.

    In a very sparse counting movie a frame without a single electron is a fair observation:
    frames of zeros are spared where chance explains them.
    """
    constant = table.low >= table.high
    if table.sample.dtype.kind in "bui" and not constant.all() and table.low.min() == 0:
        electrons = np.median((table.mean * table.count)[~constant] / table.high[~constant])
        if electrons < 10:
            constant &= table.high != 0
    return constant


def find_blanks(table: FrameTable, constant: np.ndarray) -> np.ndarray:
    """Return ``(t,)`` True for frames that are dark between bright ones.

    A frame is dark if nearly all of its brightness is gone (where zero means dark), or nearly
    all of its spread, or if it is darker and the picture is gone, and if that happens from one
    frame to the next: a fade is no blank.
    """
    dark = np.zeros(len(constant), bool)
    live = np.flatnonzero(~constant)
    if len(live) < 3:
        return dark
    mean, sd = table.clipped_mean[live], np.sqrt(table.variance[live])
    bright, spread = np.quantile(mean, 0.75), np.quantile(sd, 0.75)
    nonnegative = table.low[live].min() >= 0
    darker = mean < bright - 0.5 * spread
    # In a sparse counting movie a frame may be empty by chance.
    surprising = bright - mean > 6 * spread / np.sqrt(table.count[live])
    low = darker & (sd < 0.3 * spread)
    if nonnegative:
        low |= mean < 0.1 * bright
    low |= darker & (sd < 0.6 * spread) & _pictureless(table.thumbnail[live], ~darker)
    low &= surprising
    edges = np.flatnonzero(np.diff(np.concatenate([[False], low, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        outside = [k for k in (start - 1, stop) if 0 <= k < len(live)]
        abrupt = any(mean[k] > 0.5 * bright and sd[k] > 0.5 * spread for k in outside)
        if abrupt:
            dark[live[start:stop]] = True
    return dark


def _pictureless(thumbnail: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """Return ``(t,)`` True where the block means correlate with no adjacent frame of their kind.

    All False unless adjacent bright frames do correlate.
    """
    lost = np.zeros(len(bright), bool)
    c = _adjacent_correlation(thumbnail, np.arange(len(thumbnail)), 1)[1:]
    both = bright[1:] & bright[:-1]
    if not both.any() or not np.median(c[both]) > 0.5:
        return lost
    seen = np.concatenate([[0.0], c, [0.0]])
    return ~bright & ~(np.maximum(seen[:-1], seen[1:]) > 0.25)


def find_cuts(table: FrameTable, usable: np.ndarray) -> np.ndarray:
    """Return the frames at which a new scene begins.

    At a cut the means of the ``k`` frames before and after do not correlate, although on both
    sides adjacent means do, and the dip stands out of the correlation's usual course. Coarser
    blocks and more frames find cuts in noisier movies. Blanked and repeated frames are passed
    over.
    """
    cuts: list[int] = []
    for k in (1, 3, 6):
        for coarse in (1, 2, 4):
            blocks = np.prod([n // coarse for n in table.thumbnail.shape[1:]])
            if blocks < 16:
                continue
            c = _adjacent_correlation(table.thumbnail, usable, k, coarse)
            known = np.flatnonzero(np.isfinite(c))
            for j in known:
                if j - k < k or j + k > known[-1]:
                    continue
                within = min(c[j - k], c[j + k])
                lowest = c[j] <= c[j - k + 1 : j + k].min()
                if within < 0.3 or c[j] > 0.35 * within or not lowest:
                    continue
                others = c[known[np.abs(known - j) >= k]]
                usual = np.median(others)
                wander = 1.4826 * np.median(np.abs(others - usual))
                clear = usual - c[j] > 6 * wander and within - c[j] > 5 / np.sqrt(blocks)
                found = int(usable[j])
                if clear and all(abs(found - cut) > max(2, k) for cut in cuts):
                    cuts.append(found)
    return np.array(sorted(cuts), int)


def _flattened(thumbnail: np.ndarray, coarse: int = 1) -> np.ndarray:
    """Return ``(t, g)`` block means without the smooth illumination, of zero mean."""
    t, gy, gx = (n // c for n, c in zip(thumbnail.shape, (1, coarse, coarse), strict=True))
    blocks = thumbnail[:, : gy * coarse, : gx * coarse].reshape(t, gy, coarse, gx, coarse)
    flat = blocks.mean(axis=(2, 4)).reshape(t, -1).astype(np.float64)
    y, x = np.repeat(np.linspace(-1, 1, gy), gx), np.tile(np.linspace(-1, 1, gx), gy)
    q, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    return flat - (flat @ q) @ q.T


def _adjacent_correlation(
    thumbnail: np.ndarray, frames: np.ndarray, k: int, coarse: int = 1
) -> np.ndarray:
    """Return ``(t,)`` the correlation of the means of ``k`` frames before and from each frame on.

    Of the ``frames`` of ``(n, y, x)`` block means, without the smooth illumination; NaN where there
    are fewer than ``k`` on a side. A part of the movie at a time: a long one would fill the memory.
    """
    t = len(frames)
    c = np.full(t, np.nan)
    for first in range(k, t - k + 1, _AT_ONCE):
        last = min(first + _AT_ONCE, t - k + 1)
        small = _flattened(thumbnail[frames[first - k : last + k - 1]], coarse)
        sums = np.cumsum(np.concatenate([np.zeros((1, small.shape[1])), small]), axis=0)
        means = (sums[k:] - sums[:-k]) / k
        norm = np.sqrt((means**2).sum(1))
        before, after = slice(last - first), slice(k, k + last - first)
        with np.errstate(invalid="ignore", divide="ignore"):
            c[first:last] = (means[before] * means[after]).sum(1) / (norm[before] * norm[after])
    return c


def find_jumps(
    table: FrameTable, usable: np.ndarray, cuts: np.ndarray
) -> list[tuple[int, float, float]]:
    """Return where the brightness steps and stays, without a cut: frame, before and after."""
    mean = table.clipped_mean[usable]
    if len(mean) < 4:
        return []
    steps = np.diff(mean)
    # A steady fade has large steps all along: what counts is how a step differs from those around.
    padded = np.pad(steps, 3, mode="reflect" if len(steps) > 3 else "edge")
    odd = steps - np.median(np.lib.stride_tricks.sliding_window_view(padded, 7), axis=1)
    noise = np.sqrt(np.median(table.variance[usable] / table.count[usable]))
    usual = 1.4826 * np.median(np.abs(odd)) + 1.4 * noise
    least = 0.1 * np.median(np.sqrt(table.variance[usable]))
    if table.low[usable].min() >= 0:
        least = max(least, 0.05 * np.median(mean))
    jumps = []
    for j in np.flatnonzero(np.abs(odd) > max(10 * usual, least)) + 1:
        before, after = np.median(mean[max(0, j - 3) : j]), np.median(mean[j : j + 3])
        stays = abs(after - before) > 0.7 * abs(steps[j - 1])
        if stays and int(usable[j]) not in cuts:
            jumps.append((int(usable[j]), float(before), float(after)))
    return jumps
