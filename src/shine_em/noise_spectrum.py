"""Cross-spectra of small windows of a movie, and the noise correlation that lies in them.

Everything that `shine_em.noise` says comes from these spectra, so frames are read once, one at a
time, and memory does not grow with the movie.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from .movie import Movie

__all__ = [
    "HANN_OVERLAP",
    "Spectra",
    "coloured",
    "measure_spectra",
    "noise_colour",
    "periodic_power",
    "plane_weights",
]

_BLOCK = 4  # pixels: side of the blocks of the mean-variance curve
# What each frame adds to the variance of a first and of a second difference.
_SHARES = {1: (1, 1), 2: (1, 4, 1)}
# Frames behind the mean of a block.
_LEVEL_FRAMES = 6
_MOST_TILES = 11  # per axis: bounds time and memory for frames of any size
# Variance of a smooth average over the bins of a Hann-windowed periodogram, relative to
# independent bins: N Σw⁴ / (Σw²)², per axis.
HANN_OVERLAP = 35 / 18


@dataclass(frozen=True)
class Spectra:
    """Windowed power spectra of a movie and of its changes in time, averaged over time.

    All spectra cover the half plane fx ≥ 0 and are scaled so that their mean over the whole plane
    (`plane_mean`) is a variance.

    Attributes
    ----------
    power
        ``(tiles, fy, fx)``: mean of |X_t|².
    change
        ``(lags, tiles, fy, fx)``: mean of |X_t − X_{t+k}|²/2 for k = 1, 2, ...; for independent
        noise over a still picture, each is the spectrum of the noise.
    common
        ``(lags, tiles, fy, fx)``: mean of Re X_t* X_{t+k}, what such frames have in common. With
        `change` it adds up to the power of the very frames that were compared.
    far, far_common
        ``(tiles, fy, fx)``: the same two for frames further apart than every lag in `change`.
    pairs, far_pairs
        ``(lags + 1,)``: how many frames (first) and frame pairs were averaged, and how many far
        pairs; 0 where the movie has none.
    origins
        ``(tiles, 2)``: first row and column of each tile, px.
    window
        The one-dimensional tapers along y and x.
    blocks, block_pixels
        ``(n, 5)``, of small blocks of so many pixels: mean in frames beside, variance of temporal
        differences scaled to one frame, mean in the frames of those differences, and slope and
        noise variance of the first mean.
    stuck_pixels, spikes, seen_pixels
        How many hot pixels and spikes were replaced, and pixels per frame that were looked at.
    differs
        Whether any two neighbouring frames differ at all.
    scale
        Movie units per unit of everything above.
    """

    power: np.ndarray
    change: np.ndarray
    common: np.ndarray
    far: np.ndarray
    far_common: np.ndarray
    pairs: np.ndarray
    far_pairs: int
    origins: np.ndarray
    window: tuple[np.ndarray, np.ndarray]
    blocks: np.ndarray
    block_pixels: int
    stuck_pixels: int
    spikes: int
    seen_pixels: int
    differs: bool
    scale: float

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return len(self.window[0]), len(self.window[1])

    @property
    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """``(fy, 1)`` and ``(1, fx)`` spatial frequencies, cycles per pixel."""
        height, width = self.tile_shape
        return np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]

    @property
    def plane_weights(self) -> np.ndarray:
        """``(1, fx)``: how many frequencies of the whole plane a bin stands for."""
        return plane_weights(self.tile_shape[1])

    def plane_mean(self, spectrum: np.ndarray) -> np.ndarray:
        """Return the mean over the whole plane: the variance behind ``(..., fy, fx)`` spectra."""
        weights = np.broadcast_to(self.plane_weights, spectrum.shape[-2:])
        return np.asarray((spectrum * weights).sum(axis=(-2, -1)) / weights.sum())

    @property
    def usable(self) -> np.ndarray:
        """``(fy, fx)``: frequencies free of the tile's own mean (flicker, slow gradients)."""
        fy, fx = self.frequencies
        height, width = self.tile_shape
        return (np.abs(fy) * height > 1.5) | (np.abs(fx) * width > 1.5)

    def samples(self, lag: int, tiles: int) -> float:
        """Return the independent samples behind a bin of |X|² (lag 0) or change k, over `tiles`."""
        pairs = float(self.pairs[lag])
        # Changes k frames apart share each frame with another one: Σρ² = 1 + 2·(1/2)².
        independent = pairs if lag == 0 or pairs < 2 else pairs / 1.5
        return max(independent * self._independent_tiles(tiles), 0.5)

    def far_samples(self, tiles: int) -> float:
        """Return the independent samples behind a bin of `far` or `far_common`, over `tiles`."""
        # Pairs share frames: many of them tell about as much as there are frames.
        return max(float(min(self.far_pairs, self.pairs[0])) * self._independent_tiles(tiles), 0.5)

    def _independent_tiles(self, tiles: int) -> float:
        share = 1.0
        for axis, side in enumerate(self.tile_shape):
            places = np.unique(self.origins[:, axis])
            # Hann-tapered tiles that overlap by more than half say nothing new.
            share *= min(1.0, ((np.ptp(places) / side) * 2 + 1) / len(places))
        return max(tiles * share, 1.0)


def measure_spectra(
    movie: Movie,
    *,
    lags: int,
    frames: int,
    skip_frames: Collection[int] = (),
    scenes: np.ndarray | None = None,
    bad_pixels: np.ndarray | None = None,
) -> Spectra:
    """Measure the cross-spectra of a movie from about `frames` of its frames.

    Frames are read one at a time, in evenly spread runs of consecutive frames.

    Parameters
    ----------
    movie
        The movie.
    lags
        Largest distance in time, frames.
    frames
        How many frames to read.
    skip_frames
        Frames that are left out.
    scenes
        ``(t,)`` number of each frame's scene; frames of different scenes are never compared.
    bad_pixels
        ``(y, x)`` boolean mask of pixels that are left out.
    """
    from scipy import fft

    count, height, width = movie.shape
    origins, shape = _tile_grid(height, width)
    tapers = (_hann(shape[0]), _hann(shape[1]))
    taper = np.outer(*tapers).astype(np.float32)
    taper /= np.sqrt(np.sum(taper.astype(float) ** 2))
    bad = np.zeros((height, width), bool) if bad_pixels is None else np.asarray(bad_pixels, bool)
    wanted = _sampled(count, frames, lags, set(skip_frames))
    # Two frames show which pixels are stuck, and how far noise reaches.
    shown = _first_two(movie, wanted, origins, shape)
    samples = np.stack(shown).astype(np.float32) if shown else np.zeros((1, len(origins), *shape))
    whole = _whole(samples[0], _cut(bad, origins, shape))
    origins, scale = origins[whole], _scale(samples[0])
    cleaner = _Cleaner(_cut(bad, origins, shape), samples[:, whole] / scale)
    half = shape[1] // 2 + 1
    plane = (len(origins), shape[0], half)
    power, far, far_common = (np.zeros(plane, np.float32) for _ in range(3))
    change, common = (np.zeros((lags, *plane), np.float32) for _ in range(2))
    pairs = np.zeros(lags + 1, int)
    far_pairs = 0
    offset: np.ndarray | None = None
    moments, block_pixels = [], 1
    differs = False
    numbers = np.zeros(count, int) if scenes is None else np.asarray(scenes)
    for _, group in groupby(wanted, key=lambda i: numbers[i]):
        scene = list(group)
        own = np.zeros(plane, np.float32)
        total = np.zeros(plane, np.complex64)
        recent: dict[int, np.ndarray] = {}
        pixels: dict[int, np.ndarray] = {}
        blocks = _Blocks()
        for beside in _first_two(movie, scene, origins, shape)[-1:]:
            cleaner.restart(beside / scale)
        read = 0
        for index in scene:
            tiles = _cut(movie.frame(index), origins, shape)
            if not _mostly_finite(tiles):
                continue
            tiles = cleaner((tiles / scale).astype(np.float32))
            if offset is None:
                offset = tiles.mean(axis=(1, 2), keepdims=True)
            tiles -= offset
            spectrum = fft.rfft2(tiles * taper, axes=(1, 2))
            own += spectrum.real**2 + spectrum.imag**2
            total += spectrum
            read += 1
            for k in range(1, lags + 1):
                past = recent.get(index - k)
                if past is not None:
                    step = spectrum - past
                    change[k - 1] += step.real**2 + step.imag**2
                    common[k - 1] += spectrum.real * past.real + spectrum.imag * past.imag
                    pairs[k] += 1
                    far_pairs -= 1
            if index - 1 in pixels:
                differs = differs or not np.array_equal(tiles, pixels[index - 1])
            blocks.add(tiles, pixels, index, offset)
            recent[index], pixels[index] = spectrum, tiles
            recent = {i: s for i, s in recent.items() if i > index - max(lags, 1)}
            pixels = {i: p for i, p in pixels.items() if i > index - 2}
        moments.append(blocks.moments())
        block_pixels = max(block_pixels, blocks.pixels)
        power += own
        pairs[0] += read
        # Σ over all pairs of |X_t − X_t'|² = n Σ|X|² − |ΣX|², and 2 Σ Re X_t* X_t' = |ΣX|² − Σ|X|²
        whole_power = total.real**2 + total.imag**2
        far += read * own - whole_power
        far_common += (whole_power - own) / 2
        far_pairs += read * (read - 1) // 2
    each = np.maximum(pairs[1:], 1)[:, None, None, None]
    return Spectra(
        power=power / max(int(pairs[0]), 1),
        change=change / (2 * each),
        common=common / each,
        far=np.maximum(far - change.sum(axis=0), 0) / max(2 * far_pairs, 1),
        far_common=(far_common - common.sum(axis=0)) / max(far_pairs, 1),
        pairs=pairs,
        far_pairs=far_pairs,
        origins=origins,
        window=tapers,
        blocks=np.concatenate(moments),
        block_pixels=block_pixels,
        stuck_pixels=cleaner.stuck,
        spikes=cleaner.spikes,
        seen_pixels=len(origins) * shape[0] * shape[1],
        differs=differs,
        scale=scale,
    )


class _Cleaner:
    """Replaces bad, non-finite, stuck and struck pixels of the tiles by their surroundings."""

    def __init__(self, bad: np.ndarray, samples: np.ndarray) -> None:
        lost = bad | ~np.isfinite(samples).all(axis=0)
        stuck = np.all([_outliers(_filled(sample, lost)) for sample in samples], axis=0)
        self.bad = bad | (stuck if len(samples) > 1 else False)
        self.stuck = int((self.bad & ~bad).sum())
        self.spikes = 0
        jump = np.abs(samples[-1] - samples[0])[~(lost | self.bad)]
        # Noise does not reach five times beyond what one pixel in a thousand reaches.
        reach = float(np.quantile(jump, 0.999)) if jump.size else 0.0
        self._limit = 5 * reach if reach > 0 else np.inf

    def restart(self, beside: np.ndarray) -> None:
        """Begin a scene, at which all pixels may jump, with what one of its frames shows."""
        self._last = np.where(np.isfinite(beside), beside, np.nan)

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        finite = np.isfinite(tiles)
        struck = np.abs(tiles - self._last) > self._limit  # False beside NaN
        self.spikes += int((struck & finite & ~self.bad).sum())
        self._last = np.where(finite, tiles, np.nan)
        return _filled(tiles, self.bad | ~finite | struck)


def _outliers(tiles: np.ndarray) -> np.ndarray:
    """Return the pixels that stand far from their surroundings, and are rare."""
    from scipy import ndimage

    apart = np.abs(tiles - ndimage.median_filter(tiles, size=(1, 3, 3)))
    scale = 1.4826 * float(np.median(apart))
    return apart > max(12 * scale, 4 * float(np.quantile(apart, 0.995))) if scale > 0 else apart < 0


def _filled(tiles: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    if not wrong.any():
        return tiles.copy()
    from scipy import ndimage

    out = tiles.copy()
    for i in np.flatnonzero(wrong.any(axis=(1, 2))):
        good = (~wrong[i]).astype(np.float32)
        value = np.where(wrong[i], 0, tiles[i])
        mean = float(value.sum() / max(good.sum(), 1))
        share = ndimage.uniform_filter(good, 5)
        local = ndimage.uniform_filter(value, 5) / np.maximum(share, 0.04)
        out[i] = np.where(wrong[i], np.where(share >= 0.04, local, mean), tiles[i])
    return out


class _Blocks:
    """Means and variances of small blocks, and their means in other frames to sort them by."""

    def __init__(self) -> None:
        self.levels: dict[int, np.ndarray] = {}
        self.variances: dict[int, tuple[int, np.ndarray]] = {}
        self.pixels = 1

    def add(
        self, tiles: np.ndarray, pixels: dict[int, np.ndarray], index: int, offset: np.ndarray
    ) -> None:
        self.levels[index] = self._blockwise(tiles) + offset
        # overlapping triples of frames say the same again
        if index - 1 not in pixels or index - 1 in self.variances:
            return
        change, order = tiles - pixels[index - 1], 1
        if index - 2 in pixels:
            # the second difference, in which a steady motion cancels
            change, order = change - pixels[index - 1] + pixels[index - 2], 2
        change -= change.mean(axis=(1, 2), keepdims=True)
        self.variances[index] = order, self._blockwise(change**2) / sum(_SHARES[order])

    def moments(self) -> np.ndarray:
        pairs = []
        for index, (order, variance) in self.variances.items():
            others = [i for i in self.levels if i < index - order or i > index]
            near = sorted(others, key=lambda i: abs(i - index))[:_LEVEL_FRAMES]
            if len(near) > 1:
                level = np.mean([self.levels[i] for i in near], axis=0)
                # What two halves of those frames disagree in is the noise of their mean.
                halves = [np.mean([self.levels[i] for i in near[k::2]], axis=0) for k in (0, 1)]
                share = 1 / len(near) / (1 / len(near[::2]) + 1 / len(near[1::2]))
                noise = share * (halves[0] - halves[1]) ** 2
                down, right = np.gradient(
                    np.pad(level, ((0, 0), (1, 1), (1, 1)), "edge"), axis=(1, 2)
                )
                slope = np.hypot(down, right)[:, 1:-1, 1:-1]
                own = np.average(
                    [self.levels[i] for i in range(index - order, index + 1)],
                    axis=0,
                    weights=_SHARES[order],
                )
                columns = level, variance, own, slope, noise
                pairs.append(np.stack([a.ravel() for a in columns], axis=1))
        return np.concatenate(pairs) if pairs else np.zeros((0, 5))

    def _blockwise(self, a: np.ndarray) -> np.ndarray:
        n, height, width = a.shape
        by, bx = min(_BLOCK, height), min(_BLOCK, width)
        self.pixels = by * bx
        a = a[:, : height // by * by, : width // bx * bx]
        return a.reshape(n, height // by, by, width // bx, bx).mean(axis=(2, 4))


def _sampled(count: int, frames: int, lags: int, skip: set[int]) -> list[int]:
    """Return frames in evenly spread runs of consecutive frames, long enough for every lag."""
    allowed = np.array([i for i in range(count) if i not in skip], int)
    if not len(allowed):
        allowed = np.arange(count)
    if len(allowed) > frames * 1.25:
        run = min(2 * lags, frames)
        runs = max(1, round(frames / run))
        starts = np.linspace(0, len(allowed) - run, runs).round().astype(int)
        allowed = np.unique(np.concatenate([allowed[i : i + run] for i in starts]))
    return [int(i) for i in allowed]


def _first_two(
    movie: Movie, frames: list[int], origins: np.ndarray, shape: tuple[int, int]
) -> list[np.ndarray]:
    """Return the tiles of the first two of the frames that are finite enough."""
    cuts = (_cut(movie.frame(i), origins, shape) for i in frames)
    return list(islice((c for c in cuts if _mostly_finite(c)), 2))


def _whole(tiles: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Return the tiles that are whole enough to be used, or the best where none is."""
    lost = (bad | ~np.isfinite(tiles)).mean(axis=(1, 2))
    return np.flatnonzero(lost <= max(0.2, float(lost.min())))


def _mostly_finite(tiles: np.ndarray) -> bool:
    return bool(np.isfinite(tiles).mean() > 0.3)


def _scale(tiles: np.ndarray) -> float:
    """Return a power of two near the spread of the pixels, to keep single precision precise."""
    good = tiles[np.isfinite(tiles)].astype(float)
    spread = float(np.abs(good - good.mean()).mean()) if good.size else 0.0
    return float(2.0 ** np.round(np.log2(spread))) if spread > 0 else 1.0


def _tile_grid(height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    def along(size: int, side: int) -> np.ndarray:
        steps = min(max(-(-2 * size // side) - 1, 1), _MOST_TILES)
        return np.linspace(0, size - side, steps).round().astype(int)

    least = min(height, width)
    side = 64 if least >= 256 else 48 if least >= 128 else 32
    shape = min(side, height), min(side, width)
    rows, columns = along(height, shape[0]), along(width, shape[1])
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    return grid, shape


def _cut(frame: np.ndarray, origins: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.stack([frame[y : y + shape[0], x : x + shape[1]] for y, x in origins])


def _hann(size: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2


def plane_weights(width: int) -> np.ndarray:
    """Return ``(1, fx)``: frequencies of the whole plane behind each bin of the half plane."""
    weights = np.full((1, width // 2 + 1), 2.0)
    weights[0, 0] = 1
    if width % 2 == 0:
        weights[0, -1] = 1
    return weights


def periodic_power(covariance: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the power spectrum of periodic frames of noise with a covariance.

    Parameters
    ----------
    covariance
        ``(2R+1, 2R+1)`` noise covariance (or correlation), offset zero in the middle.
    shape
        Height and width of a frame, px; smaller ones than the covariance wrap around.

    Returns
    -------
    ndarray
        ``shape``, zero frequency first; its mean is the variance. A measured covariance need not be
        positive definite, so that single values may lie below zero.
    """
    offsets = np.arange(len(covariance)) - len(covariance) // 2
    wrapped = np.zeros(shape)
    np.add.at(wrapped, (offsets[:, None] % shape[0], offsets[None] % shape[1]), covariance)
    return np.asarray(np.fft.fft2(wrapped).real)


def noise_colour(correlation: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return by what to multiply the spectrum of white frames, to give them a correlation.

    Parameters
    ----------
    correlation
        ``(2R+1, 2R+1)`` noise correlation, offset zero in the middle.
    shape
        Height and width of a frame, px.

    Returns
    -------
    ndarray
        ``shape``, zero frequency first, at least 0; its mean square is 1.
    """
    power = np.maximum(periodic_power(correlation, shape), 0)
    return np.asarray(np.sqrt(power / power.mean()))


def coloured(white: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return a white frame with the correlation that a `noise_colour` of its shape gives it."""
    from scipy.fft import fft2, ifft2

    return np.asarray(ifft2(fft2(white) * colour).real)
