r"""Linear filters: Gaussian, band-pass, Wiener and the mean of five frames.

The three spatial filters multiply the frame's cosine transform (the Fourier transform of the frame
mirrored at its edges, so nothing wraps around) by a transfer function :math:`H`. Their widths need
no truth: for any linear filter of a frame :math:`y = x + n` whose noise has the power spectrum
:math:`P`, the expected squared error is known from :math:`y` alone,

.. math:: \langle |Hy - x|^2 \rangle = \sum_k \left[ (1 - H_k)^2 |y_k|^2 + 2 H_k P_k - P_k \right]

(Stein 1981; exact for correlated and for signal-dependent noise, as :math:`H` does not depend on
:math:`y`). The smallest one wins. All keep the mean of every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from ..noise import NoiseStatistics, noise_statistics

__all__ = [
    "bandpass",
    "finite",
    "gaussian",
    "map_frames",
    "mean5",
    "noise_covariance",
    "some_frames",
    "wiener",
]

# Frames behind the mean power spectrum from which the filters' widths are chosen.
_FRAMES = 16
# Standard deviations that are tried, px; 0 leaves the movie as it is.
_WIDTHS = np.concatenate([[0.0], np.geomspace(0.2, 16, 64)])
# Periods that a band-pass removes above and below, in frame widths and in pixels.
_LONGEST = (2.0, 1.0, 0.5, 0.25)
_SHORTEST = np.geomspace(2, 32, 49)
_ORDER = 2  # of the Butterworth band edges


def gaussian(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Blur every frame with one Gaussian, whose width has the least expected squared error.

    Parameters are those of `shine_em.baselines.Method.run`; ``hole``, ``time_budget_s``, ``seed``
    and ``device`` have no effect.

    References
    ----------
    C. M. Stein, Estimation of the mean of a multivariate normal distribution. Ann. Stat. 9,
    1135-1151 (1981).
    """
    power, spectrum = _mean_spectra(movie, noise)
    f, power, spectrum, many = _radial(power, spectrum)

    def transfer(f: np.ndarray, sigma: float) -> np.ndarray:
        return np.exp(-2 * (np.pi * sigma * f) ** 2)

    risks = [_risk(transfer(f, s), power, spectrum, many) for s in _WIDTHS]
    best = float(_WIDTHS[int(np.argmin(risks))])
    gain = transfer(_frequency(movie.shape[1:]), best)
    return _filtered(movie, gain, f"Gaussian filter, σ {best:.2f} px", progress)


def bandpass(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Keep a band of spatial frequencies (Butterworth, second order) and the mean.

    What varies more slowly than two frame widths or less, and faster than a few pixels, goes; both
    limits are those of the least expected squared error.

    Parameters are those of `shine_em.baselines.Method.run`; ``hole``, ``time_budget_s``, ``seed``
    and ``device`` have no effect.

    References
    ----------
    C. M. Stein, Ann. Stat. 9, 1135-1151 (1981).
    """
    power, spectrum = _mean_spectra(movie, noise)
    f, power, spectrum, many = _radial(power, spectrum)
    wide = min(movie.shape[1:])

    def transfer(f: np.ndarray, longest: float, shortest: float) -> np.ndarray:
        low = 1 / (1 + (f * shortest) ** (2 * _ORDER))
        high = (f * longest) ** (2 * _ORDER)
        return np.where(f > 0, low * high / (1 + high), 1.0)

    tried = [
        (share * wide, short) for share in _LONGEST for short in _SHORTEST if short < share * wide
    ]
    if not tried:
        raise ShineError(
            f"{movie.name}: frames of {movie.shape[1:]} px are too small to band-pass."
        )
    risks = [_risk(transfer(f, *periods), power, spectrum, many) for periods in tried]
    longest, shortest = tried[int(np.argmin(risks))]
    gain = transfer(_frequency(movie.shape[1:]), longest, shortest)
    return _filtered(
        movie, gain, f"band-pass filter, periods {shortest:.1f} to {longest:.0f} px", progress
    )


def wiener(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    r"""Weight every spatial frequency by the share of its power that is not noise.

    .. math:: H_k = \max(1 - P_k / \langle |y_k|^2 \rangle, 0)

    has the least expected squared error of all linear filters. The mean power is that of the
    movie's frames, smoothed over 3×3 frequencies; :math:`P` is the measured noise spectrum.

    Parameters are those of `shine_em.baselines.Method.run`; ``hole``, ``time_budget_s``, ``seed``
    and ``device`` have no effect.

    References
    ----------
    L. D. Marks, Wiener-filter enhancement of noisy HREM images. Ultramicroscopy 62, 43-52 (1996).
    R. Kilaas, Optimal and near-optimal filters in high-resolution electron microscopy.
    J. Microsc. 190, 45-51 (1998).
    """
    from scipy.ndimage import uniform_filter

    power, spectrum = _mean_spectra(movie, noise)
    # The mean's own power would leak into the smoothed power beside it.
    height, width = power.shape
    power[0, 0] = (power[0, 1 % width] + power[1 % height, 0]) / 2
    smooth = uniform_filter(power, 3, mode="reflect")
    gain = 1 - np.divide(spectrum, smooth, out=np.ones_like(smooth), where=smooth > 0)
    gain = np.clip(gain, 0, 1)
    gain[0, 0] = 1
    return _filtered(movie, gain, "Wiener filter with the measured noise spectrum", progress)


def mean5(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Average every frame with two before and two after it (the paper's fig. 2C).

    The first and last two frames average the three or four that there are. Pixels that are not
    finite in a frame are left out of the average.

    Parameters are those of `shine_em.baselines.Method.run`; only ``progress`` has an effect.
    """
    count, height, width = movie.shape
    held: dict[int, np.ndarray] = {}

    def average(t: int) -> np.ndarray:
        near = range(max(0, t - 2), min(count, t + 3))
        for i in [i for i in held if i not in near]:
            del held[i]
        for i in near:
            if i not in held:
                held[i] = movie.frame(i).astype(np.float32)
        stack = np.stack([held[i] for i in near])
        good = np.isfinite(stack)
        total = np.where(good, stack, 0).sum(axis=0, dtype=np.float64)
        seen = good.sum(axis=0)
        return np.divide(total, seen, out=np.full((height, width), np.nan), where=seen > 0)

    frames = (average(t) for t in range(count))
    return _collected(movie, frames, "mean of 5 frames", progress)


def map_frames(
    movie: Movie,
    denoise: Callable[[np.ndarray], np.ndarray],
    *,
    did: str,
    progress: Callable[[str, float], None] | None = None,
    workers: int = 1,
) -> Movie:
    """Denoise a movie frame by frame.

    Parameters
    ----------
    movie
        ``(t, y, x)``.
    denoise
        From a finite float32 ``(y, x)`` frame to its denoised one.
    did
        What was done, for the history and the progress display.
    progress
        As in `Method.run`.
    workers
        Threads that denoise frames at a time.

    Returns
    -------
    Movie
        float32. Pixels that are not finite are filled with the frame's median before; a frame
        without any finite pixel stays as it is.
    """

    def one(t: int) -> np.ndarray:
        frame = movie.frame(t).astype(np.float32)
        filled = finite(frame)
        return frame if filled is None else denoise(filled)

    if workers == 1:
        return _collected(movie, map(one, range(len(movie))), did, progress)
    with ThreadPoolExecutor(workers) as pool:
        return _collected(movie, pool.map(one, range(len(movie))), did, progress)


def finite(frame: np.ndarray) -> np.ndarray | None:
    """Return a frame whose non-finite pixels hold its median; None where no pixel is finite."""
    good = np.isfinite(frame)
    if good.all():
        return frame
    return np.where(good, frame, np.median(frame[good])) if good.any() else None


def some_frames(movie: Movie, most: int) -> list[np.ndarray]:
    """Return up to ``most`` evenly spread frames, float32, finite, empty ones left out.

    Raises
    ------
    ShineError
        If none of them holds a finite pixel.
    """
    count = len(movie)
    picked = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    frames = [finite(movie.frame(int(t)).astype(np.float32)) for t in picked]
    good = [frame for frame in frames if frame is not None]
    if not good:
        raise ShineError(f"{movie.name}: no frame holds a finite pixel: nothing to denoise.")
    return good


def noise_covariance(movie: Movie, noise: NoiseStatistics | None) -> np.ndarray:
    """Return the ``(2R+1, 2R+1)`` noise covariance, movie units squared.

    Correlations within 3 standard errors of zero count as zero: together, the errors of hundreds
    of offsets would ripple through the power spectrum.
    """
    noise = noise or noise_statistics(movie)
    correlation = noise.difference_correlation
    sure = np.abs(correlation) > 3 * noise.correlation_error
    radius = correlation.shape[0] // 2
    sure[radius, radius] = True
    return np.where(sure, correlation, 0) * noise.sigma**2


def _mean_spectra(movie: Movie, noise: NoiseStatistics | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean power of the frames' cosine transforms, and that of their noise."""
    from scipy.fft import dctn

    frames = some_frames(movie, _FRAMES)
    power = np.mean([dctn(f, norm="ortho").astype(np.float64) ** 2 for f in frames], axis=0)
    covariance = noise_covariance(movie, noise)
    radius = covariance.shape[0] // 2
    offsets = np.arange(-radius, radius + 1)
    # Cosines of all offsets at the transform's frequencies, k / (2 N) cycles per pixel.
    down, across = (np.cos(np.pi * np.arange(n)[:, None] / n * offsets) for n in movie.shape[1:])
    return power, np.maximum(down @ covariance @ across.T, 0)


def _frequency(shape: tuple[int, ...]) -> np.ndarray:
    """Return ``(y, x)`` spatial frequencies of the cosine transform, cycles per pixel."""
    fy, fx = (np.arange(n) / (2 * n) for n in shape)
    return np.hypot(fy[:, None], fx[None, :])


def _radial(
    power: np.ndarray, spectrum: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Average two spectra over rings; returns frequency, both means and the ring's size."""
    steps = 2 * max(power.shape)
    ring = np.rint(_frequency(power.shape) * steps).astype(int).ravel()
    many = np.bincount(ring)
    size = np.maximum(many, 1)
    means = [np.bincount(ring, weights=values.ravel()) / size for values in (power, spectrum)]
    return np.arange(len(many)) / steps, means[0], means[1], many


def _risk(gain: np.ndarray, power: np.ndarray, spectrum: np.ndarray, many: np.ndarray) -> float:
    """Return the expected squared error of a filter up to a constant (the module's formula)."""
    # The mean is kept by all filters alike.
    return float((many * ((1 - gain) ** 2 * power + 2 * gain * spectrum))[1:].sum())


def _filtered(
    movie: Movie, gain: np.ndarray, did: str, progress: Callable[[str, float], None] | None
) -> Movie:
    from scipy.fft import dctn, idctn

    def denoise(frame: np.ndarray) -> np.ndarray:
        mean = frame.mean(dtype=np.float64)
        return np.asarray(idctn(dctn(frame - mean, norm="ortho") * gain, norm="ortho") + mean)

    return map_frames(movie, denoise, did=did, progress=progress)


def _collected(
    movie: Movie,
    frames: Iterable[np.ndarray],
    did: str,
    progress: Callable[[str, float], None] | None,
) -> Movie:
    out = np.empty(movie.shape, np.float32)
    for t, frame in enumerate(frames):
        out[t] = frame
        if progress is not None:
            progress("denoising", (t + 1) / len(out))
    return movie.with_data(out, did=did)
