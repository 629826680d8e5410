"""Cross-spectra of small windows of a movie, and the noise correlation that lies in them.

The picture and the noise are told apart by three facts: the picture lives on from frame to frame,
it is gathered in few spatial frequencies (Bragg peaks, low frequencies), and in few places; noise
whose correlation is short has a smooth spectrum, the same everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from .movie import Movie

__all__ = ["CorrelationFit", "Spectra", "fit_correlation", "lower_cluster", "measure_spectra"]

_BLOCK = 8  # pixels: side of the blocks of the mean-variance curve
_MOST_TILES = 11  # per axis: bounds time and memory for frames of any size
# Variance of a smooth average over the bins of a Hann-windowed periodogram, relative to
# independent bins: N Σw⁴ / (Σw²)², per axis.
_HANN_OVERLAP = 35 / 18


@dataclass(frozen=True)
class Spectra:
    """Windowed power spectra of a movie and of its changes in time, averaged over time.

    All spectra cover the full plane of frequencies and are scaled so that their mean over the plane
    is a variance.

    Attributes
    ----------
    power
        ``(tiles, fy, fx)``: mean of |X_t|².
    change
        ``(lags, tiles, fy, fx)``: mean of |X_t − X_{t+k}|²/2 for k = 1, 2, ...; for independent
        noise over a still picture, each is the spectrum of the noise.
    far
        ``(tiles, fy, fx)``: the same for frames further apart than every lag in `change`.
    pairs, far_pairs
        ``(lags + 1,)``: how many frames (first) and frame pairs were averaged, and how many far
        pairs; 0 where the movie has none.
    origins
        ``(tiles, 2)``: first row and column of each tile, px.
    window
        The one-dimensional tapers along y and x.
    blocks, block_pixels
        ``(n, 2)``: mean, and variance of temporal differences scaled to one frame, of small blocks
        of so many pixels.
    stuck_pixels, spikes, seen_pixels
        How many hot pixels and spikes were replaced, and pixels per frame that were looked at.
    differs
        Whether any two neighbouring frames differ at all.
    """

    power: np.ndarray
    change: np.ndarray
    far: np.ndarray
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

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return len(self.window[0]), len(self.window[1])

    @property
    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """``(fy, 1)`` and ``(1, fx)`` spatial frequencies, cycles per pixel."""
        height, width = self.tile_shape
        return np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]

    @property
    def usable(self) -> np.ndarray:
        """``(fy, fx)``: frequencies free of the tile's own mean (flicker, slow gradients)."""
        fy, fx = self.frequencies
        height, width = self.tile_shape
        return (np.abs(fy) * height > 1.5) | (np.abs(fx) * width > 1.5)

    def samples(self, lag: int, tiles: int) -> float:
        """Return the independent samples behind a bin of |X|² (lag 0) or change k, over `tiles`."""
        share = 1.0
        for axis, side in enumerate(self.tile_shape):
            places = np.unique(self.origins[:, axis])
            # Hann-tapered tiles that overlap by more than half say nothing new.
            share *= min(1.0, ((np.ptp(places) / side) * 2 + 1) / len(places))
        pairs = float(self.pairs[lag])
        # Changes k frames apart share each frame with another one: Σρ² = 1 + 2·(1/2)².
        independent = pairs if lag == 0 or pairs < 2 else pairs / 1.5
        return max(independent * max(tiles * share, 1.0), 0.5)


@dataclass(frozen=True)
class CorrelationFit:
    """Noise covariance fitted to a spectrum.

    Attributes
    ----------
    covariance, error
        ``(2R+1, 2R+1)``: covariance at each offset, and its standard error.
    kept
        ``(fy, fx)``: frequencies that took part; the others hold picture.
    solve
        ``(offsets, fy·fx)``: the linear map from a spectrum to the half plane of covariances.
    """

    covariance: np.ndarray
    error: np.ndarray
    kept: np.ndarray
    solve: np.ndarray
    spectrum: np.ndarray

    def apply(self, spectrum: np.ndarray) -> np.ndarray:
        """Return the ``(2R+1, 2R+1)`` covariance of another spectrum, by the same frequencies."""
        radius = self.covariance.shape[0] // 2
        return _mirrored(self.solve @ spectrum.ravel(), radius)


def measure_spectra(
    movie: Movie,
    *,
    lags: int,
    frames: int,
    skip_frames: Collection[int] = (),
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
    cleaner = _Cleaner(_cut(bad, origins, shape))
    half = shape[1] // 2 + 1
    sums = np.zeros((lags + 1, len(origins), shape[0], half), np.float32)
    pairs = np.zeros(lags + 1, int)
    total = np.zeros((len(origins), shape[0], half), np.complex64)
    recent: dict[int, np.ndarray] = {}
    pixels: dict[int, np.ndarray] = {}
    blocks: list[np.ndarray] = []
    offset: np.ndarray | None = None
    read = 0
    differs = False
    for index in _sampled(count, frames, lags, set(skip_frames)):
        tiles = cleaner(_cut(movie.frame(index), origins, shape))
        if offset is None:
            offset = tiles.mean(axis=(1, 2), keepdims=True)
        tiles -= offset
        spectrum = fft.rfft2(tiles * taper, axes=(1, 2))
        for k in range(lags + 1):
            past = spectrum if k == 0 else recent.get(index - k)
            if past is not None:
                step = spectrum if k == 0 else spectrum - past
                sums[k] += step.real**2 + step.imag**2
                pairs[k] += 1
        if index - 1 in pixels:
            differs = differs or not np.array_equal(tiles, pixels[index - 1])
            if len(blocks) < 24:
                blocks.append(_block_moments(tiles, pixels, index, offset))
        total += spectrum
        read += 1
        recent[index], pixels[index] = spectrum, tiles
        recent = {i: s for i, s in recent.items() if i > index - max(lags, 1)}
        pixels = {i: p for i, p in pixels.items() if i > index - 2}
    # Σ over all pairs of |X_t − X_t'|² = n Σ|X|² − |ΣX|²
    far = np.maximum(read * sums[0] - total.real**2 - total.imag**2 - sums[1:].sum(axis=0), 0)
    far_pairs = read * (read - 1) // 2 - int(pairs[1:].sum())
    each = np.maximum(pairs, 1) * np.where(np.arange(lags + 1) > 0, 2, 1)
    plane = _full_plane(sums / each[:, None, None, None], shape[1])
    return Spectra(
        power=plane[0],
        change=plane[1:],
        far=_full_plane(far / max(2 * far_pairs, 1), shape[1]),
        pairs=pairs,
        far_pairs=far_pairs,
        origins=origins,
        window=tapers,
        blocks=np.concatenate(blocks) if blocks else np.zeros((0, 2)),
        block_pixels=min(_BLOCK, shape[0]) * min(_BLOCK, shape[1]),
        stuck_pixels=cleaner.stuck,
        spikes=cleaner.spikes,
        seen_pixels=len(origins) * shape[0] * shape[1],
        differs=differs,
    )


def fit_correlation(
    spectrum: np.ndarray,
    *,
    window: tuple[np.ndarray, np.ndarray],
    usable: np.ndarray,
    radius: int,
    samples: float,
) -> CorrelationFit:
    """Fit the covariance of noise to a power spectrum in which some frequencies hold picture.

    Noise whose correlation ends within r pixels has the spectrum Σ_r C(r) w(r) cos(2π f·r), with w
    the taper's own correlation: the shorter the correlation, the smoother the spectrum. The
    picture only ever adds power. So ever less smooth spectra are fitted from below, each with the
    frequencies dropped that stand above it, until one explains most of the plane and overshoots
    nowhere. What it leaves is the picture; all offsets are then fitted to the rest.

    Parameters
    ----------
    spectrum
        ``(fy, fx)`` power over the full plane.
    window
        Tapers along y and x.
    usable
        ``(fy, fx)`` frequencies that may be used at all.
    radius
        Largest offset R, px.
    samples
        Independent samples behind each frequency bin; sets the statistical error.
    """
    relative = max(1 / np.sqrt(samples), 1e-3)
    level = max(float(np.mean(spectrum[usable])), 1e-30)
    best, kept = -1.0, usable
    for short in [r for r in (0, 1, 2, 3, 4, 6, 8, 12) if r < radius] + [radius]:
        basis = _basis(window, short)
        trial = usable
        for _ in range(25):
            model, half, solve = _least_squares(spectrum, basis, trial, relative, None)
            misfit = (spectrum - model) / _tolerance(model, relative)
            limit = max(4.0, 0.4 * float(misfit[usable].max()))
            new = usable & (misfit < limit)
            if new.sum() < 0.2 * usable.sum():
                break
            if limit == 4.0 and np.array_equal(new, trial):
                break
            trial = new
        share = float(trial.sum() / usable.sum())
        below = float((misfit[usable] < -4).mean())
        score = share - 10 * below
        if score > best + 0.03:
            best, kept = score, trial
        if share > 0.6 and below < 0.002:
            kept = trial
            break
    basis = _basis(window, radius)
    # Far offsets are rarely correlated: a weak prior settles what the dropped frequencies leave open.
    dy, dx = _half_plane(radius)
    prior = 0.3 * np.exp(-np.hypot(dy, dx) / 4)
    prior[0] = 10
    for _ in range(3):
        model, half, solve = _least_squares(spectrum, basis, kept, relative, prior)
        misfit = (spectrum - model) / _tolerance(model, relative)
        kept = kept & (misfit < 4) if (kept & (misfit < 4)).sum() > 0.2 * usable.sum() else kept
    noise = solve * (np.maximum(model, 0.05 * level) * relative * _HANN_OVERLAP).ravel()
    error = np.sqrt((noise**2).sum(axis=1))
    return CorrelationFit(_mirrored(half, radius), _mirrored(error, radius), kept, solve, model)


def _least_squares(
    spectrum: np.ndarray,
    basis: np.ndarray,
    kept: np.ndarray,
    relative: float,
    prior: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fitted spectrum, its covariances, and the linear map between spectrum and them."""
    level = max(float(np.mean(spectrum[kept])), 1e-30)
    model = np.full(spectrum.shape, level)
    for _ in range(2):
        weight = np.where(kept, 1 / (np.maximum(model, 0) + 0.3 * level) ** 2, 0).ravel()
        weight /= (relative * _HANN_OVERLAP) ** 2
        right = basis.T * weight
        normal = right @ basis
        penalty = 1e-9 * np.diag(normal).mean() if prior is None else 1 / (prior * level) ** 2
        normal[np.diag_indices_from(normal)] += penalty
        solve = np.linalg.solve(normal, right)
        half = solve @ spectrum.ravel()
        model = (basis @ half).reshape(spectrum.shape)
    return model, half, solve


def _tolerance(model: np.ndarray, relative: float) -> np.ndarray:
    level = max(float(model.mean()), 1e-30)
    return (relative + 0.01) * np.maximum(model, 0) + 0.01 * level


def lower_cluster(
    values: np.ndarray, error: np.ndarray | float, start: float = 15.0
) -> tuple[float, np.ndarray]:
    """Return the centre of the lowest group of values that agree within their error, and who they are.

    The picture pushes values up where it has power; where it has none, the values gather.
    """
    error = np.broadcast_to(np.asarray(error, float), values.shape)
    centre = float(np.percentile(values, start) + np.median(error))
    kept = np.ones(values.shape, bool)
    for _ in range(30):
        kept = np.abs(values - centre) < 2.5 * error + 1e-12
        if not kept.any():
            kept = values <= np.percentile(values, 25)
        new = float(np.average(values[kept], weights=1 / np.maximum(error[kept], 1e-12) ** 2))
        if abs(new - centre) < 1e-6:
            break
        centre = new
    return centre, kept


class _Cleaner:
    """Replaces bad, non-finite, stuck and struck pixels of the tiles by their surroundings."""

    def __init__(self, bad: np.ndarray) -> None:
        self.bad = bad
        self.stuck = 0
        self.spikes = 0
        self._last: np.ndarray | None = None
        self._limit = np.inf

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        tiles = tiles.astype(np.float32)
        wrong = self.bad | ~np.isfinite(tiles)
        if self._last is None:
            stuck = self._stuck(_filled(tiles, wrong))
            self.stuck = int((stuck & ~wrong).sum())
            self.bad = self.bad | stuck
            wrong |= stuck
        else:
            jump = np.abs(tiles - self._last)
            if not np.isfinite(self._limit) and (good := jump[~wrong & np.isfinite(jump)]).size:
                # Noise does not reach five times beyond what one pixel in a thousand reaches.
                quantile = float(np.quantile(good[:: max(1, good.size // 200_000)], 0.999))
                self._limit = 5 * quantile if quantile > 0 else np.inf
            with np.errstate(invalid="ignore"):
                struck = jump > self._limit
            self.spikes += int((struck & ~wrong).sum())
            wrong |= struck
        self._last = tiles
        return _filled(tiles, wrong)

    @staticmethod
    def _stuck(tiles: np.ndarray) -> np.ndarray:
        """Find hot pixels: far above or below their surroundings, and rare."""
        from scipy import ndimage

        apart = tiles - ndimage.median_filter(tiles, size=(1, 5, 5))
        scale = 1.4826 * float(np.median(np.abs(apart)))
        top = float(np.quantile(np.abs(apart), 0.995))
        found = np.abs(apart) > max(12 * scale, 4 * top)
        return found if scale > 0 else np.zeros(tiles.shape, bool)


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


def _block_moments(
    tiles: np.ndarray, pixels: dict[int, np.ndarray], index: int, offset: np.ndarray
) -> np.ndarray:
    """Return mean and variance of blocks, from the second difference where there is one."""
    before = pixels[index - 1]
    if index - 2 in pixels:
        change = (tiles - 2 * before + pixels[index - 2]) / np.sqrt(np.float32(6))
        level = (tiles + before + pixels[index - 2]) / 3
    else:
        change = (tiles - before) / np.sqrt(np.float32(2))
        level = (tiles + before) / 2
    change -= change.mean(axis=(1, 2), keepdims=True)
    n, height, width = tiles.shape
    by, bx = min(_BLOCK, height), min(_BLOCK, width)

    def blockwise(a: np.ndarray) -> np.ndarray:
        a = a[:, : height // by * by, : width // bx * bx]
        return a.reshape(n, height // by, by, width // bx, bx).mean(axis=(2, 4))

    return np.stack([(blockwise(level) + offset).ravel(), blockwise(change**2).ravel()], axis=1)


def _sampled(count: int, frames: int, lags: int, skip: set[int]) -> Iterator[int]:
    """Yield frames in evenly spread runs of consecutive frames, long enough for every lag."""
    allowed = np.array([i for i in range(count) if i not in skip], int)
    if not len(allowed):
        allowed = np.arange(count)
    if len(allowed) <= frames * 1.25:
        yield from (int(i) for i in allowed)
        return
    run = min(2 * lags, frames)
    runs = max(1, round(frames / run))
    for start in np.linspace(0, len(allowed) - run, runs).round().astype(int):
        yield from (int(i) for i in allowed[start : start + run])


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


def _full_plane(half: np.ndarray, width: int) -> np.ndarray:
    """Return the full plane of frequencies of a symmetric spectrum known on its half plane."""
    height, known = half.shape[-2:]
    rest = half[..., _minus(height), :][..., width - np.arange(known, width)]
    return np.concatenate([half, rest], axis=-1)


def _minus(size: int) -> np.ndarray:
    """Return where the frequency -f lies."""
    return (-np.arange(size)) % size


def _half_plane(radius: int) -> tuple[np.ndarray, np.ndarray]:
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    middle = len(dy) // 2
    return dy[middle:], dx[middle:]


def _mirrored(half: np.ndarray, radius: int) -> np.ndarray:
    side = 2 * radius + 1
    return np.concatenate([half[:0:-1], half]).reshape(side, side)


def _basis(window: tuple[np.ndarray, np.ndarray], radius: int) -> np.ndarray:
    dy, dx = _half_plane(radius)
    axes = []
    for taper in window:
        own = np.correlate(taper, taper, "full")[len(taper) - 1 :]
        axes.append(np.concatenate([own / own[0], np.zeros(radius + 1)]))
    share = axes[0][np.abs(dy)] * axes[1][np.abs(dx)]
    fy = np.fft.fftfreq(len(window[0]))
    fx = np.fft.fftfreq(len(window[1]))
    phase = fy[:, None, None] * dy[None, None, :] + fx[None, :, None] * dx[None, None, :]
    basis = 2 * share * np.cos(2 * np.pi * phase)
    basis[..., 0] = 1
    return basis.reshape(-1, len(dy))
