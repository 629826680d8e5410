"""What is measured at each dose and frame rate: halves that share no frame, and particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .denoising import LEAST_FRAMES, Denoiser, halves
from .doctor import Health
from .errors import ShineError
from .metrics import FRC, correlation, fourier_ring_correlation, snr_from_correlation
from .movie import Movie
from .patches import Timeline

__all__ = [
    "Halves",
    "Measure",
    "check_comparable",
    "measure_halves",
    "particle_measure",
    "ratio_of_means",
    "resolution_kept",
    "snr_kept",
]

#: Measures a denoised ``(y, x)`` frame in the movie's units: names and numbers, nan for none.
Measure = Callable[[np.ndarray], Mapping[str, float]]

_SMALLEST_AREA = 9  # px: smaller specks are no particles


@dataclass(frozen=True, eq=False)
class Halves:
    """Even and odd frames, denoised without a shared frame, compared.

    Attributes
    ----------
    frames
        ``(pairs,)`` first frame of each pair.
    snr_of_pairs
        ``(pairs,)`` SNR of the denoised frames, dB (paper Eq. 5).
    raw_snr, snr
        Median over the pairs, dB.
    snr_error
        Standard error of ``snr``, dB, in which the scene's own changes count.
    curve
        Fourier ring correlation, the mean over the pairs.
    resolution, resolution_error
        Where the curve falls below 1/7, nm where calibrated, else px, and its standard error.
    left_out
        ``(pairs,)`` the resolution without each one of the pairs.
    noise
        Root mean square of (even − odd)/√2, movie units: the error of one such frame, motion
        between the two included.
    """

    frames: np.ndarray
    snr_of_pairs: np.ndarray
    raw_snr: float
    snr: float
    snr_error: float
    curve: FRC
    resolution: float
    resolution_error: float
    left_out: np.ndarray
    noise: float


def check_comparable(movie: Movie, health: Health) -> None:
    """See that a movie has even and odd frames to compare, before it is trained on.

    Raises
    ------
    ShineError
        For fewer than six usable frames, or where no two of them are neighbours.
    """
    timeline = Timeline(len(movie), health)
    good = len(timeline.targets())
    if good < LEAST_FRAMES:
        raise ShineError(
            f"{movie.name}: {good} usable frames ({', '.join(movie.history[-1:])}) are too few "
            f"to compare even and odd ones; {LEAST_FRAMES} are needed."
        )
    if not timeline.pairs():
        raise ShineError(
            f"{movie.name}: no two of the {good} usable frames are neighbours ({len(movie) - good} "
            "others are copies or blank), so that even and odd ones cannot be compared. Take each "
            "picture once: with --frames ::2 where every frame is there twice."
        )


def measure_halves(denoiser: Denoiser, movie: Movie, health: Health, *, pairs: int = 8) -> Halves:
    """Compare neighbouring even and odd frames that were denoised from frames of their own kind.

    Where the noise lives on from frame to frame there are no pairs, and no number but nan.

    Parameters
    ----------
    denoiser, movie, health
        A model trained on the movie, the movie and its input check.
    pairs
        Most pairs, spread over the movie.

    Raises
    ------
    ShineError
        For fewer than six usable frames, or where no two of them are neighbours.
    """
    check_comparable(movie, health)
    picked, raw, clean, curves, errors = [], [], [], [], []
    for t, noisy, (a, b) in halves(denoiser, movie, health, pairs=pairs):
        picked.append(t)
        raw.append(correlation(*noisy))
        clean.append(correlation(a, b))
        curves.append(fourier_ring_correlation(a, b, pixel_size_nm=movie.pixel_size_nm))
        errors.append(float(np.mean((a.astype(np.float64) - b) ** 2)) / 2)
    n = len(picked)
    if not n:
        none, no = np.empty(0), math.nan
        return Halves(none.astype(int), none, no, no, no, FRC(none, none, none), no, no, none, no)
    whole = _mean_curve(curves)
    left_out = np.array(
        [_mean_curve(curves[:k] + curves[k + 1 :]).resolution() for k in range(n)]
        if n > 1
        else [math.nan]
    )
    # Median and error are those of the correlations: a single pair without any has −∞ dB.
    p = float(np.median(clean))
    spread = float(np.std(clean, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Halves(
        frames=np.array(picked),
        snr_of_pairs=np.asarray(snr_from_correlation(np.array(clean))),
        raw_snr=float(snr_from_correlation(float(np.median(raw)))),
        snr=float(snr_from_correlation(p)),
        snr_error=10 / math.log(10) * spread / (p * (1 - p)) if 0 < p < 1 else math.nan,
        curve=whole,
        resolution=whole.resolution(),
        resolution_error=_jackknife(left_out),
        left_out=left_out,
        noise=float(np.sqrt(np.mean(errors))),
    )


def snr_kept(halves: Halves, reference: Halves) -> tuple[float, float]:
    """Return the ratio of two SNRs (not in dB) and its standard error.

    Where both come from the same pairs of frames they are compared pair by pair, which takes the
    scene's own changes out of the error.
    """
    apart = halves.snr - reference.snr
    error = math.hypot(halves.snr_error, reference.snr_error)
    if np.array_equal(halves.frames, reference.frames):
        with np.errstate(invalid="ignore"):  # pairs without any correlation have −∞ dB in both
            each = halves.snr_of_pairs - reference.snr_of_pairs
        if np.isfinite(each).all() and len(each) > 1:
            apart, error = float(each.mean()), float(np.std(each, ddof=1) / math.sqrt(len(each)))
    ratio = 10 ** (apart / 10)
    return ratio, ratio * math.log(10) / 10 * error


def resolution_kept(halves: Halves, reference: Halves) -> tuple[float, float]:
    """Return how much of the resolution is left (0.5: details twice as large), and its error."""
    ratio = reference.resolution / halves.resolution
    if np.array_equal(halves.frames, reference.frames):
        return ratio, _jackknife(reference.left_out / halves.left_out)
    parts = (v.resolution_error / v.resolution for v in (halves, reference))
    return ratio, ratio * math.hypot(*parts)


def _jackknife(values: np.ndarray) -> float:
    """Return the standard error of what was computed without one observation at a time."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def _mean_curve(curves: Sequence[FRC]) -> FRC:
    first = curves[0]
    mean = np.mean([c.correlation for c in curves], axis=0)
    return FRC(first.frequency, mean, first.counts, first.calibrated)


def particle_measure(
    frames: Sequence[np.ndarray], *, pixel_size_nm: float | None = None
) -> Measure:
    """Return a plain particle measurement: number of particles and their median diameter.

    Otsu's threshold on the denoised frame, one opening, and all connected areas of nine pixels or
    more, those at the border included. Whether particles are dark or bright is decided here, once:
    they are what covers the smaller part of the frames. It is meant to tell levels of one movie
    apart, not to replace a particle analysis.

    Parameters
    ----------
    frames
        Denoised ``(y, x)`` frames at the full dose.
    pixel_size_nm
        Pixel size in nm; the diameter is in px without it.

    Returns
    -------
    Measure
        Gives ``{"count": ..., "diameter": ...}``; the diameter (of the circle of the same area) is
        nan where there is no particle.

    References
    ----------
    N. Otsu, A threshold selection method from gray-level histograms. IEEE Trans. Syst. Man Cybern.
    9, 62-66 (1979).
    """
    from skimage.filters import threshold_otsu

    above = [float(np.mean(f > threshold_otsu(f))) for f in frames if np.ptp(f) > 0]
    dark = bool(np.mean(above) > 0.5) if above else False
    scale = pixel_size_nm or 1.0

    def measure(frame: np.ndarray) -> dict[str, float]:
        from scipy import ndimage

        if not np.ptp(frame) > 0:
            return {"count": 0.0, "diameter": float("nan")}
        threshold = threshold_otsu(frame)
        mask = frame < threshold if dark else frame > threshold
        labels, count = ndimage.label(ndimage.binary_opening(mask))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        areas = areas[areas >= _SMALLEST_AREA]
        if not areas.size:
            return {"count": 0.0, "diameter": float("nan")}
        diameter = scale * float(np.median(np.sqrt(4 * areas / np.pi)))
        return {"count": float(areas.size), "diameter": diameter}

    return measure


def ratio_of_means(values: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return how much of a quantity is kept, at most 1, and its standard error.

    Parameters
    ----------
    values, reference
        ``(n,)`` the quantity in the same frames at a level and at the full dose; nan for none.

    Returns
    -------
    kept, error
        The ratio of the means, turned so that it is not above 1: too large is as wrong as too
        small. 0 where the level has no values. The error is that of a ratio estimate.
    """
    both = np.isfinite(values) & np.isfinite(reference)
    if not both.any() or not values[both].mean() > 0 or not reference[both].mean() > 0:
        return 0.0, float("nan")
    v, r = values[both], reference[both]
    ratio = float(v.mean() / r.mean())
    n = len(v)
    error = float(np.std(v - ratio * r, ddof=1) / math.sqrt(n) / r.mean()) if n > 1 else math.nan
    return (ratio, error) if ratio <= 1 else (1 / ratio, error / ratio**2)
