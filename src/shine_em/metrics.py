"""Image quality by name: PSNR, SSIM, SNR, Fourier ring correlation, with and without a truth.

A number without its protocol says little: the same pair of images can differ by 5 dB between
two common ways of matching their intensities. So each function that compares with a truth takes
one of three named protocols:

``"affine"``
    One least-squares fit ``a·image + b`` to the truth (over the image, or over the whole movie in
    the ``movie_`` functions), then the peak is the truth's range, maximum − minimum. The same
    number comes out after stretching the truth to 0–255 and taking 255 as the peak.
``"range"``
    No fit: the image is compared as it stands; the peak is ``data_range`` (by default the truth's
    range). The strictest: intensities must be right.
``"minmax"``
    The protocol of the SHINE authors: image and truth are each stretched to 0–255 by their own
    minimum and maximum and rounded to integers, then the peak is 255. It is ruled by the single
    brightest and darkest pixel of each image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .errors import ShineError
from .movie import Movie

__all__ = [
    "FRC",
    "Protocol",
    "correlation",
    "fitted",
    "fourier_ring_correlation",
    "frame_snr",
    "movie_psnr",
    "movie_ssim",
    "psnr",
    "snr",
    "snr_from_correlation",
    "ssim",
    "tukey_window",
]

Protocol = Literal["affine", "range", "minmax"]


def psnr(
    image: Any, truth: Any, *, protocol: Protocol = "affine", data_range: float | None = None
) -> float:
    """Return the peak signal-to-noise ratio of an image against the truth, in dB.

    ``10·log10(peak² / mean((image − truth)²))`` after the intensities are matched by ``protocol``.

    Parameters
    ----------
    image, truth
        ``(y, x)`` images of the same shape.
    protocol
        How intensities are matched and what the peak is, see the module's text.
    data_range
        The peak for ``"affine"`` and ``"range"`` in the truth's units; by default the truth's
        maximum − minimum. ``"minmax"`` ignores it: its peak is 255.

    Returns
    -------
    float
        In dB; ``inf`` for a perfect match.

    Raises
    ------
    ShineError
        If the shapes differ, or the truth is constant and no ``data_range`` is given.
    """
    matched, target, peak = _matched(*_pair(image, truth, ndim=2), protocol, data_range)
    return _psnr(matched, target, peak)


def ssim(
    image: Any, truth: Any, *, protocol: Protocol = "affine", data_range: float | None = None
) -> float:
    """Return the mean structural similarity of an image to the truth (1 is perfect).

    Gaussian-weighted 11×11 window, σ = 1.5, K1 = 0.01, K2 = 0.03, population covariance, as in
    Wang et al., IEEE Trans. Image Process. 13, 600 (2004). Intensities are matched first, by the
    same protocols as in `psnr`.

    Parameters
    ----------
    image, truth
        ``(y, x)`` images of the same shape, at least 11 pixels in each direction.
    protocol, data_range
        As in `psnr`.

    Raises
    ------
    ShineError
        As in `psnr`, and for images smaller than the window.
    """
    matched, target, peak = _matched(*_pair(image, truth, ndim=2), protocol, data_range)
    return _ssim(matched, target, peak)


def movie_psnr(
    movie: Any, truth: Any, *, protocol: Protocol = "affine", data_range: float | None = None
) -> np.ndarray:
    """Return the PSNR of each frame in dB, as a ``(t,)`` array.

    ``"affine"`` fits one ``a`` and ``b`` to the whole movie (so flicker counts as an error) and
    takes the whole truth's range as the peak; so does ``"range"``. ``"minmax"`` stretches frame by
    frame. Frames are read one at a time.

    Parameters
    ----------
    movie, truth
        ``(t, y, x)`` arrays or `Movie`s of the same shape.
    protocol, data_range
        As in `psnr`.

    Raises
    ------
    ShineError
        As in `psnr`.
    """
    return np.array(
        [_psnr(*frame) for frame in _matched_frames(movie, truth, protocol, data_range)]
    )


def movie_ssim(
    movie: Any, truth: Any, *, protocol: Protocol = "affine", data_range: float | None = None
) -> np.ndarray:
    """Return the SSIM of each frame as a ``(t,)`` array; intensities matched as in `movie_psnr`.

    Parameters
    ----------
    movie, truth
        ``(t, y, x)`` arrays or `Movie`s of the same shape.
    protocol, data_range
        As in `psnr`.

    Raises
    ------
    ShineError
        As in `ssim`.
    """
    return np.array(
        [_ssim(*frame) for frame in _matched_frames(movie, truth, protocol, data_range)]
    )


def fitted(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return ``a · image + b`` with the least squared distance to the truth."""
    centred = image - image.mean()
    power = float(np.vdot(centred, centred))
    slope = float(np.vdot(centred, truth - truth.mean())) / power if power > 0 else 0.0
    out: np.ndarray = slope * centred + truth.mean()
    return out


def correlation(a: Any, b: Any) -> float:
    """Return Pearson's correlation coefficient of two arrays of one shape (paper Eq. 4).

    A constant array correlates with nothing: the result is ``nan``.

    Raises
    ------
    ShineError
        If the shapes differ.
    """
    first, second = _pair(a, b)
    first = first - first.mean()
    second = second - second.mean()
    power = float(np.vdot(first, first)) * float(np.vdot(second, second))
    if not power > 0:
        return float("nan")
    return float(np.clip(np.vdot(first, second) / np.sqrt(power), -1.0, 1.0))


def snr_from_correlation(p: Any) -> Any:
    """Return the signal-to-noise ratio ``10·log10(p / (1 − p))`` in dB (paper Eq. 5).

    ``p`` is the correlation of two measurements of one scene with independent noise (Frank and
    Al-Ali, Nature 256, 376 (1975)). It is ``-inf`` for p ≤ 0, ``inf`` for p ≥ 1 and ``nan`` for
    ``nan``.

    Parameters
    ----------
    p
        A number or an array.

    Returns
    -------
    float or ndarray
        In the shape of ``p``.
    """
    values = np.asarray(p, dtype=np.float64)
    out = np.full(values.shape, np.nan)
    out[values <= 0] = -np.inf
    out[values >= 1] = np.inf
    inside = (values > 0) & (values < 1)
    out[inside] = 10 * np.log10(values[inside] / (1 - values[inside]))
    return float(out) if out.ndim == 0 else out


def snr(a: Any, b: Any) -> float:
    """Return the SNR in dB of two measurements of one scene, from their correlation (paper Eq. 5).

    Honest only if the noise of the two is independent: two frames denoised from shared input
    frames are not, and the number then rewards smearing.

    Raises
    ------
    ShineError
        If the shapes differ.
    """
    return float(snr_from_correlation(correlation(a, b)))


def frame_snr(frames: Any) -> np.ndarray:
    """Return the SNR in dB between each two adjacent frames (paper Eq. 5), as a ``(t − 1,)`` array.

    Motion between frames lowers it, and any smoothing in time raises it without any gain in truth.

    Parameters
    ----------
    frames
        A ``(t, y, x)`` array, a `Movie`, or any iterable of ``(y, x)`` frames; read one at a time.
    """
    previous: np.ndarray | None = None
    values = []
    for frame in frames.frames() if isinstance(frames, Movie) else frames:
        current = np.asarray(frame)
        if previous is not None:
            values.append(snr(previous, current))
        previous = current
    return np.array(values, dtype=np.float64)


@dataclass(frozen=True)
class FRC:
    """A Fourier ring correlation curve.

    Attributes
    ----------
    frequency
        ``(ring,)`` centres of the rings, in 1/nm where the pixel size is known, else in cycles per
        pixel; the last ring lies at Nyquist.
    correlation
        ``(ring,)`` correlation of the two images in each ring.
    counts
        ``(ring,)`` number of Fourier pixels in each ring (both halves of the plane).
    calibrated
        Whether the frequency is in 1/nm.
    """

    frequency: np.ndarray
    correlation: np.ndarray
    counts: np.ndarray
    calibrated: bool = False

    def threshold(self, threshold: float | Literal["half-bit"] = 1 / 7) -> np.ndarray:
        """Return the threshold curve on this curve's rings.

        ``"half-bit"`` is ``(0.2071 + 1.9102/√n) / (1.2071 + 0.9102/√n)`` with n Fourier pixels in
        the ring (van Heel and Schatz, J. Struct. Biol. 151, 250 (2005)).
        """
        if threshold == "half-bit":
            root = np.sqrt(self.counts)
            return (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
        return np.full(self.frequency.shape, float(threshold))

    def resolution(self, threshold: float | Literal["half-bit"] = 1 / 7) -> float:
        """Return the length at which the curve first falls below the threshold.

        Returns
        -------
        float
            In nm where calibrated, else in pixels. It is never finer than Nyquist (two pixels),
            and ``inf`` where the curve starts below the threshold.
        """
        excess = self.correlation - self.threshold(threshold)
        below = np.flatnonzero(~(excess >= 0))
        if below.size == 0:
            return float(1 / self.frequency[-1])
        k = int(below[0])
        if k == 0:
            return float("inf")
        if not np.isfinite(excess[k]):
            return float(1 / self.frequency[k - 1])
        part = excess[k - 1] / (excess[k - 1] - excess[k])
        return float(
            1 / (self.frequency[k - 1] + part * (self.frequency[k] - self.frequency[k - 1]))
        )


def fourier_ring_correlation(
    a: Any, b: Any, *, pixel_size_nm: float | None = None, taper: float = 0.25
) -> FRC:
    """Return the Fourier ring correlation of two images of one scene with independent noise.

    The edges are tapered to the mean by a Tukey window, so that the frame's border does not
    correlate with itself. Rings are rings of true spatial frequency also in frames that are not
    square; each is one Fourier pixel of the shorter side wide.

    Parameters
    ----------
    a, b
        ``(y, x)`` images of the same shape.
    pixel_size_nm
        Pixel size in nm, for a frequency axis in 1/nm.
    taper
        Share of each side under the cosine slope, 0 (none) to 1 (a Hann window).

    Raises
    ------
    ShineError
        If the shapes differ or the images are smaller than 8 pixels.
    """
    from scipy.fft import rfft2

    first, second = _pair(a, b, ndim=2)
    height, width = first.shape
    short = min(height, width)
    if short < 8:
        raise ShineError(f"A Fourier ring correlation needs 8×8 pixels, not {height}×{width}.")
    window = tukey_window((height, width), taper)
    weight = window / window.sum()
    fa = rfft2((first - (first * weight).sum()) * window)
    fb = rfft2((second - (second * weight).sum()) * window)

    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    ring = np.rint(np.hypot(fy, fx) * short).astype(int)
    # Each column of the half plane stands for two, but the first and (at even width) the last.
    twice = np.full((height, fx.size), 2.0)
    twice[:, 0] = 1
    if width % 2 == 0:
        twice[:, -1] = 1
    n = short // 2 + 1

    def ring_sum(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring.ravel(), (twice * values).ravel(), minlength=n)[1:n]

    cross = ring_sum((fa * fb.conj()).real)
    power = ring_sum(np.abs(fa) ** 2) * ring_sum(np.abs(fb) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        curve = np.where(power > 0, cross / np.sqrt(power), np.nan)
    frequency = np.arange(1, n) / short / (pixel_size_nm or 1.0)
    counts = ring_sum(np.ones_like(twice)).astype(int)
    return FRC(frequency, curve, counts, pixel_size_nm is not None)


def _pair(a: Any, b: Any, *, ndim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ShineError(
            f"The two images have different shapes, {first.shape} and {second.shape}: "
            "crop or bin them to the same frame first."
        )
    if first.size == 0 or (ndim is not None and first.ndim != ndim):
        raise ShineError(f"Expected {ndim or 1}-dimensional images, got the shape {first.shape}.")
    return first, second


def _check_protocol(protocol: str) -> None:
    if protocol not in get_args(Protocol):
        raise ShineError(f"Unknown protocol {protocol!r}: choose from {get_args(Protocol)}.")


def _peak(low: float, high: float, data_range: float | None) -> float:
    peak = float(high - low) if data_range is None else float(data_range)
    if not peak > 0:
        raise ShineError(
            "The truth is constant, so it has no range to measure against: give data_range."
        )
    return peak


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return np.rint((image - low) * (255.0 / (high - low))) if high > low else np.zeros_like(image)


def _matched(
    image: np.ndarray, truth: np.ndarray, protocol: str, data_range: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    _check_protocol(protocol)
    if protocol == "minmax":
        return _stretched(image), _stretched(truth), 255.0
    peak = _peak(truth.min(), truth.max(), data_range)
    if protocol == "affine":
        image = fitted(image, truth)
    return image, truth, peak


def _matched_frames(
    movie: Any, truth: Any, protocol: str, data_range: float | None
) -> Iterable[tuple[np.ndarray, np.ndarray, float]]:
    """Yield each frame of a movie and of its truth, matched, and the peak."""
    _check_protocol(protocol)
    data, target = (m.data if isinstance(m, Movie) else m for m in (movie, truth))
    if tuple(data.shape) != tuple(target.shape) or len(data.shape) != 3:
        raise ShineError(
            f"Expected two (t, y, x) movies of one shape, got {tuple(data.shape)} and "
            f"{tuple(target.shape)}."
        )

    def pairs() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return (_pair(data[t], target[t]) for t in range(data.shape[0]))

    if protocol == "minmax":
        return ((_stretched(x), _stretched(y), 255.0) for x, y in pairs())
    origin, origin_truth = (f.mean() for f in _pair(data[0], target[0]))
    low, high = np.inf, -np.inf
    sums = np.zeros(5)
    for x, y in pairs():
        low, high = min(low, float(y.min())), max(high, float(y.max()))
        # Sums about the first frame's mean: small numbers keep their digits.
        u, v = x - origin, y - origin_truth
        sums += np.array([u.size, u.sum(), v.sum(), np.vdot(u, u), np.vdot(u, v)])
    peak = _peak(low, high, data_range)
    if protocol == "range":
        return ((x, y, peak) for x, y in pairs())
    n, su, sv, suu, suv = sums
    power = suu - su * su / n
    slope = (suv - su * sv / n) / power if power > 0 else 0.0
    shift = origin_truth + sv / n - slope * (origin + su / n)
    return ((slope * x + shift, y, peak) for x, y in pairs())


def _psnr(image: np.ndarray, truth: np.ndarray, peak: float) -> float:
    error = float(np.mean((image - truth) ** 2))
    if error == 0:
        return float("inf")
    return float(10 * np.log10(peak**2 / error)) if np.isfinite(error) else float("nan")


def _ssim(image: np.ndarray, truth: np.ndarray, peak: float) -> float:
    from skimage.metrics import structural_similarity

    if min(image.shape) < 11:
        raise ShineError(
            f"SSIM needs at least 11×11 pixels, not {image.shape[0]}×{image.shape[1]}."
        )
    return float(
        structural_similarity(
            image,
            truth,
            data_range=peak,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def tukey_window(shape: tuple[int, int], taper: float) -> np.ndarray:
    """Return ``(y, x)`` weights that fall to zero towards the edges.

    As `scipy.signal.windows.tukey` along each axis, which takes a job two seconds to load.

    Parameters
    ----------
    shape
        Of the frame.
    taper
        Share of each side under the cosine slopes, 0 (none) to 1 (a Hann window).
    """
    sides = []
    for n in shape:
        side = np.ones(n)
        if (slope := taper * (n - 1) / 2) > 0:
            to_edge = np.minimum(np.arange(n), np.arange(n)[::-1])
            side = 0.5 * (1 - np.cos(np.pi * np.minimum(to_edge / slope, 1)))
        sides.append(side)
    return np.multiply.outer(*sides)
