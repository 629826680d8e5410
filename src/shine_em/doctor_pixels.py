"""The pixels of a movie: hot, dead and stuck ones, X-ray spikes, and values that pile up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .doctor_frames import FrameTable, holds_number
from .movie import Movie

__all__ = [
    "PixelStatistics",
    "find_bad_pixels",
    "find_spikes",
    "fixed_pattern",
    "pile_up",
    "pixel_statistics",
]

_PIXEL_BUDGET = 250_000_000  # pixel values read for the statistics of pixels in a long movie
# An atom's image reaches the pixels beside its centre with more than this share of its height,
# even where it is as narrow as sampling allows (FWHM 1.2 px, integrated over the pixels).
_BLUR = 0.22
_Z = 8.0  # in standard errors: beyond chance among 10⁸ pixels, also with unequal variances


@dataclass(frozen=True, eq=False)
class PixelStatistics:
    """Statistics over ``n`` frames of each ``(y, x)`` pixel.

    Attributes
    ----------
    mean, variance
        Over time; from eight frames on, without each pixel's largest value, so that one X-ray
        does not make a hot pixel.
    changes
        The fraction of the frames in which the value differs from the frame before.
    halves
        The means of the first and of the second half of the frames.
    never_finite
        True where no frame holds a finite value.
    n
        Number of frames.
    """

    mean: np.ndarray
    variance: np.ndarray
    changes: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    never_finite: np.ndarray
    n: int


def pixel_statistics(movie: Movie, usable: np.ndarray) -> PixelStatistics:
    """Read an even spread of the usable frames and return the statistics of each pixel."""
    _, y, x = movie.shape
    n = min(len(usable), max(32, _PIXEL_BUDGET // (y * x)))
    picked = usable[np.linspace(0, len(usable) - 1, n).round().astype(int)]
    origin = None
    before: np.ndarray | None = None
    total = np.zeros((y, x))
    squares = np.zeros((y, x))
    count = np.zeros((y, x), np.int32)
    changed = np.zeros((y, x), np.int32)
    largest = np.full((y, x), -np.inf, np.float32)
    half, first = n // 2, total
    for k, i in enumerate(picked.tolist()):
        if k == half:
            first = total.copy()
        frame = movie.frame(int(i))
        good = holds_number(frame) if frame.dtype.kind == "f" else None
        values = frame.astype(np.float64)
        if origin is None:
            kept = values if good is None else values[good]
            origin = float(np.median(kept.ravel()[:: max(1, kept.size // 4096)]))
        values -= origin
        if good is not None and not good.all():
            values[~good] = 0.0
            count += good
            np.maximum(largest, values, out=largest, where=good, casting="same_kind")
        else:
            count += 1
            np.maximum(largest, values, out=largest, casting="same_kind")
        total += values
        values *= values
        squares += values
        if before is not None:
            changed += frame != before
        before = frame
    assert origin is not None
    halves = first / max(1, half), (total - first) / (n - half)
    never_finite = count == 0
    weight = np.maximum(count, 1)
    if n >= 8:
        top = np.where(np.isfinite(largest), largest, 0.0).astype(np.float64)
        total, squares, weight = total - top, squares - top * top, np.maximum(weight - 1, 1)
    mean = total / weight
    variance = np.maximum(squares - weight * mean**2, 0.0) / np.maximum(weight - 1, 1)
    return PixelStatistics(
        mean=mean + origin,
        variance=variance,
        changes=changed / max(1, n - 1),
        halves=halves,
        never_finite=never_finite,
        n=n,
    )


def find_bad_pixels(pixels: PixelStatistics, table: FrameTable) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(y, x)`` masks of the hot and the dead (also: stuck) pixels.

    A hot pixel is brighter in the temporal mean than its neighbourhood, beyond its own noise,
    the neighbours' noise and their spread; a dead one is darker or does not change at all. Bad
    pixels stand alone or in pairs, and stay: what may spread over its neighbours as the image of
    an atom or a particle does, within the errors and in comparison with the picture's other
    sharp peaks, is left alone.
    """
    from scipy.special import ndtri

    n = pixels.n
    hot = np.zeros(pixels.mean.shape, bool)
    dead = hot.copy()
    if n < 2 or min(hot.shape) < 5:
        return hot, dead
    stuck = _never_changing(pixels)
    y, x = np.nonzero(_candidates(pixels) | stuck)
    mean, variance = _patches(pixels.mean, y, x), _patches(pixels.variance, y, x)
    background = np.median(mean[:, _RING], axis=1)
    excess = mean - background[:, None]
    around = np.delete(excess, 12, axis=1)
    own, theirs = variance[:, 12], np.delete(variance, 12, axis=1).mean(1)
    spread = 1.4826 * np.median(np.abs(around), axis=1)
    # With two or three frames the pixel's own variance says little.
    z_least = _Z if n >= 4 else 2.5 * _Z
    sigma = np.sqrt(np.maximum(theirs / n, spread**2))
    own_sigma = np.sqrt(own / n)  # large where a few frames made the mean, so less will do
    side_error = np.sqrt(np.maximum(theirs, variance[:, _SIDES].mean(axis=1)) / (3 * n))
    own_error = np.sqrt(np.maximum(theirs, own) / n)
    half_patches = [_patches(half, y, x) for half in pixels.halves]
    halves = np.stack([p[:, 12] - np.median(p[:, _RING], axis=1) for p in half_patches], axis=1)
    within = own - 0.25 * np.diff(halves, axis=1)[:, 0] ** 2  # variance inside each half
    half_error = np.sqrt(2 * np.maximum(theirs, within) / n)[:, None]
    dark = 0.0 if table.low[np.isfinite(table.low)].min() >= 0 else None
    floor = 0.5 * np.sqrt(theirs)
    height = excess[:, 12]
    for mask, sign in ((hot, +1), (dead, -1)):
        size = sign * height
        least = floor
        if dark is not None and sign < 0:
            least = np.maximum(0.5 * (background - dark), 0.0)
        clear = (size > z_least * sigma) & (size > 0.6 * z_least * own_sigma)
        clear &= (size > least) & (size > 0)
        if dark is not None:
            # Counts have skewed tails: compare square roots of the electrons summed over time.
            gain = max(float(pixels.variance.mean() / (pixels.mean.mean() - dark)), 1e-12)
            expected = np.maximum(background + around.mean(1) - dark, 0) * n / gain
            events = np.maximum(mean[:, 12] - dark, 0) * n / gain
            root = 2 * np.abs(np.sqrt(events + 0.375) - np.sqrt(expected + 0.375))
            clear &= root > 0.8 * z_least
        # The blur of a sharp atom reaches all four sides; three are asked, for bad pairs.
        beside = np.sort(sign * excess[:, _BESIDE], axis=1)
        sides = np.sort(sign * excess[:, _SIDES], axis=1)[:, :3].mean(axis=1)
        alone = clear & (beside[:, -2] < 0.25 * size) & (sides < 0.1 * size)
        # Noise may hide the blur of an atom: the sides must exclude it, not only fail to show it.
        alone &= sides + 3 * np.hypot(side_error, _BLUR * own_error) < _BLUR * size
        # Atoms look alike: whatever may be one of the picture's many sharp peaks is one of them.
        peak = (size > 0.5 * z_least * sigma) & (size > least) & (size > beside[:, -1])
        if peak.any():
            usual = float(np.median(sides[peak] / size[peak]))
            if usual > 0.05:
                z_all = -ndtri(0.001 / peak.sum())
                error = np.hypot(side_error, usual * own_error)
                alone &= sides + z_all * error < usual * size
        # An atom may hop; what shines in one half of the frames only must stand alone for certain.
        lasting = (sign * halves + 3 * half_error > 0.5 * size[:, None]).all(axis=1)
        alone &= lasting | (sides + 5 * side_error < 0.1 * size)
        mask[y[alone], x[alone]] = True
    if hot.mean() > 0.01:  # one pixel in a hundred is a picture, not a defect
        hot[:] = False
    if dead.mean() > 0.01:
        dead[:] = False
    bright = np.zeros_like(hot)
    bright[y, x] = height > 0
    return hot | (stuck & bright), dead | (stuck & ~bright & ~hot)


_OFFSETS = np.array([(a, b) for a in range(-2, 3) for b in range(-2, 3)])
_RING = np.flatnonzero(np.abs(_OFFSETS).max(1) == 2)
_SIDES = np.flatnonzero(np.abs(_OFFSETS).sum(1) == 1)
_BESIDE = np.flatnonzero(np.abs(_OFFSETS).max(1) == 1)


def _patches(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return ``(m, 25)`` the 5×5 surroundings of the points, mirrored at the edges."""
    padded = np.pad(image, 2, mode="reflect")
    return padded[y[:, None] + 2 + _OFFSETS[:, 0], x[:, None] + 2 + _OFFSETS[:, 1]]


def _candidates(pixels: PixelStatistics) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    around = (9 * uniform_filter(pixels.mean, 3, mode="mirror") - pixels.mean) / 8
    rest = np.abs(pixels.mean - around)
    usual = 1.4826 * np.median(rest)
    chance = np.sqrt(pixels.variance.mean() / pixels.n)
    found = rest > 5 * max(usual, min(chance, 10 * usual) if usual else chance)
    # A picture of sharp atoms has many: look at the sharpest ones only.
    most = found.size // 20
    if found.sum() > most:
        found &= rest > np.partition(rest.ravel(), -most - 1)[-most - 1]
    return found & ~pixels.never_finite


def _never_changing(pixels: PixelStatistics) -> np.ndarray:
    """Return pixels that keep one value although chance would have changed it."""
    from scipy.ndimage import uniform_filter

    constant = (pixels.changes == 0) & ~pixels.never_finite
    if not constant.any():
        return constant
    # Two draws agree with probability q = Σp²; no single value is likelier than √q.
    agree = np.maximum(1 - uniform_filter(pixels.changes, 7, mode="mirror"), 1e-9)
    log_chance = (pixels.n - 1) * 0.5 * np.log(agree)
    alone = uniform_filter(constant.astype(float), 7, mode="mirror") < 0.35
    return constant & alone & (log_chance < -np.log(constant.size) - 10)


def find_spikes(
    movie: Movie, table: FrameTable, usable: np.ndarray, bad: np.ndarray, *, sign: int
) -> tuple[float, list[tuple[int, float]]]:
    """Return the spike threshold times `sign`, and the spikes as (frame, value).

    The tail of the ordinary values is extrapolated (as an exponential, twice as long as
    fitted); a spike lies beyond it, has at most a few pixels, is gone in the frames before and
    after, and nothing fills the range between the tail and the spikes. Everything else that is
    bright pushes the threshold up, so that no picture is masked.
    """
    none: tuple[float, list[tuple[int, float]]] = (np.inf, [])
    values = sign * table.values(usable, ~bad).astype(np.float64)
    if values.size < 500:
        return none
    rare = max(1e-4, 20 / values.size)
    middle, common, tail = np.quantile(values, (0.5, 1 - 10 * rare, 1 - rare))
    if tail <= middle:
        return none
    length = (tail - (common if common < tail else middle)) / np.log(10)
    expected = np.log(max(rare * len(usable) * bad.size, 1.0))
    limit = max(tail + 2 * length * (expected + 7), middle + 3 * (tail - middle))
    half = 0.5 * (middle + limit)
    extreme = sign * (table.high if sign > 0 else table.low)
    order = usable[np.argsort(-extreme[usable])][:64]
    spikes: list[tuple[int, float]] = []
    between = 0
    for i in np.sort(order[extreme[order] > half]):
        frame = sign * movie.frame(int(i)).astype(np.float64)
        frame[~holds_number(frame) | bad] = middle
        y, x = np.nonzero(frame > half)
        if not y.size:
            continue
        height = frame[y, x] - middle
        beside = np.sort(_patches(frame, y, x)[:, _BESIDE], axis=1)[:, -3] - middle
        alone = beside < 0.3 * height
        place = int(np.searchsorted(usable, i))
        for j in (place - 1, place + 1):
            if 0 <= j < len(usable):
                other = sign * movie.frame(int(usable[j]))[y, x].astype(np.float64) - middle
                alone &= ~(other > 0.5 * height)
        if y.size > 1e-3 * bad.size + 9:
            alone[:] = False
        if not alone.all():
            limit = max(limit, float(np.nextafter((height[~alone] + middle).max(), np.inf)))
        spikes += [(int(i), float(v)) for v in height[alone] + middle]
    between = sum(v <= limit for _, v in spikes)
    spikes = [(i, sign * v) for i, v in spikes if v > limit]
    if not spikes or len(spikes) < 3 * between:
        return none
    return float(limit), spikes


def fixed_pattern(pixels: PixelStatistics, bad: np.ndarray) -> tuple[float, bool]:
    """Return the SD of the pattern fixed to the pixels over one frame's noise, and if it is white.

    The pattern's variance is the covariance of the two halves' temporal means, in which no noise
    is left. A static picture has such a covariance as well, but it fades towards the finest
    scales; differences between pixels are as strong in every pair of directions and distances.
    """
    if pixels.n < 8 or min(bad.shape) < 16:
        return 0.0, False
    noise = float(pixels.variance[~bad].mean())
    if not noise > 0:
        return 0.0, False
    powers = []
    for dy, dx in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)):
        a, b = (_crosswise(h, dy, dx) for h in pixels.halves)
        good = _crosswise(bad.astype(float), dy, dx, np.add) == 0
        chance = 2 * noise / pixels.n / np.sqrt(good.sum())
        powers.append(float((a * b)[good].mean()))
        if powers[-1] < 6 * chance:
            return 0.0, False
    return float(np.sqrt(powers[0] / noise)), max(powers) < 1.6 * min(powers)


def _crosswise(image: np.ndarray, dy: int, dx: int, join: np.ufunc = np.subtract) -> np.ndarray:
    """Return the mixed difference over (dy, dx); white noise keeps its variance."""
    across = join(image[:, dx:], image[:, :-dx])
    return join(across[dy:], across[:-dy]) / 2


def pile_up(values: np.ndarray, side: int) -> tuple[float, float]:
    """Return the fraction of the values that pile up at their highest (lowest) one, and it.

    Clipping leaves many more values at the end than the next steps lead to expect; the tail of
    ordinary counts, however sparse, goes on falling from step to step.
    """
    if not values.size:
        return 0.0, 0.0
    flipped = values.astype(np.float64) * side
    end = flipped.max()
    steps, counts = np.unique(flipped[flipped < end], return_counts=True)
    here = values.size - int(counts.sum())
    if here < 20 or here < 1e-4 * values.size or len(steps) < 8:
        return 0.0, 0.0
    # Clipping cuts through the values; a gap beside the end means counts that were scaled.
    if end - steps[-1] > 30 * np.median(np.diff(steps[-50:])):
        return 0.0, 0.0
    near, next_ = counts[-3:].mean(), counts[-6:-3].mean()
    sparse = side < 0 and here > 0.5 * values.size  # most pixels saw no electron at all
    if here > 2.5 * near and near < 1.7 * next_ and not sparse:
        return here / values.size, float(end * side)
    return 0.0, 0.0
