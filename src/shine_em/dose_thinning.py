r"""Movies as they would have been recorded with fewer electrons, made from the movie itself.

**Counted electrons.** If a pixel holds a number of electrons that is Poisson distributed with the
mean λ, and each of them is kept with the probability f, the number that is kept is Poisson
distributed with the mean f·λ, exactly: that *is* a recording at the fraction f of the dose. Only a
camera that loses electrons which coincide (`shine_em.simulate.counting`) would lose fewer at a
lower dose and count a little more: where it loses 7 % at the full dose, up to 7 % more.

**All other cameras.** With the level o that the camera gives without electrons, the gain G
(variance per signal) and the read noise r, a pixel of the expected value μ has the variance

.. math:: V(\mu) = G (\mu - o) + r^2 ,

and recorded at the fraction f of the dose it has the expected value :math:`o + f (\mu - o)` and the
variance :math:`f G (\mu - o) + r^2`. The scaled movie :math:`o + f (y - o)` has the right
expected value and the variance :math:`f^2 V(\mu)`. What is missing is noise of the variance

.. math:: f (1 - f) \, G (\mu - o) + (1 - f^2) \, r^2

The first part has the correlation of the electrons' noise: the camera spreads the signal of each of
them alike at every dose. It is what the measured correlation leaves once the read noise, taken as
white, is subtracted. White Gaussian noise of the missing variance is drawn pixel by pixel and then
filtered, as the camera spreads what has arrived. For the unknown μ stands the movie itself, lightly
smoothed; the variance is linear in μ, so that its mean is right. The mean, the variance and the
correlation come out right, not the skewness, which matters below a few electrons per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .doctor import Health
from .errors import ShineError
from .mean_variance import MeanVariance
from .movie import LazyFrames, Movie
from .noise import NoiseStatistics
from .patches import Normalisation

__all__ = ["ElectronNoise", "Skipping", "electron_noise", "slower", "thin"]

Skipping = Literal["drop", "sum"]

# Smoothing of the frame that stands for the expected one, px: 28 pixels take part.
_SMOOTHING = 1.5
# Variance over mean of counted electrons. Coincidence loss lowers it to 0.93 at the least (1 - p,
# where a pixel of an internal frame counts an electron with the probability p = λ exp(-5 λ)); the
# rest is for the error of the measurement.
_POISSON = (0.75, 1.15)
# Standard errors below which a correlation, or noise without electrons, is not believed.
_SURE = 3.0


@dataclass(frozen=True, eq=False)
class ElectronNoise:
    """How a movie's noise follows from its electrons.

    Attributes
    ----------
    gain
        Variance per signal, movie units.
    dark
        Pixel value without any electron, movie units.
    read_noise
        Standard deviation of the noise without any electron, movie units.
    correlation
        ``(2R+1, 2R+1)`` correlation of the electrons' noise, 1 in the middle; read noise is white.
    quantum
        Pixel value of one electron where electrons were counted, so that single ones can be taken
        out; None elsewhere.
    note
        How this was found, one sentence.
    """

    gain: float
    dark: float
    read_noise: float
    correlation: np.ndarray
    quantum: int | None
    note: str


def electron_noise(
    movie: Movie,
    health: Health,
    noise: NoiseStatistics,
    *,
    gain: float | None = None,
    dark: float | None = None,
) -> ElectronNoise:
    """Find out how a movie's noise follows from its electrons.

    Parameters
    ----------
    movie, health, noise
        The movie, its input check and its noise statistics.
    gain
        Variance per signal in movie units; by default the slope of the mean-variance curve.
    dark
        Pixel value without any electron; by default 0, or where the mean-variance curve reaches
        zero variance if that is surely higher. Given without a gain, it may also stand for a
        curve that is not reliable, the read noise taken as zero.

    Raises
    ------
    ShineError
        If the gain is neither given nor measurable, or contradicts the movie.
    """
    level, variance = health.location, noise.sigma**2
    curve = noise.mean_variance
    if dark is not None and not np.isfinite(dark):
        raise ShineError(f"--dark is a pixel value in the units of the movie, not {dark}.")
    if not variance > 0:
        raise ShineError(f"{movie.name}: no noise could be measured, so none can be added.")
    if curve.reliable:
        variance = curve.gain * level + curve.offset
    correlation = np.asarray(noise.difference_correlation, float)
    if gain is None and dark in (None, 0.0) and noise.hole == (1, 1):
        quantum = _quantum(movie, health)
        if quantum and _POISSON[0] < variance / (quantum * level) < _POISSON[1]:
            words = "counted electrons" + (f" of {quantum} counts each" if quantum > 1 else "")
            alone = np.ones((1, 1))
            return ElectronNoise(
                float(quantum),
                0.0,
                0.0,
                alone,
                quantum,
                f"{words}, taken out one by one (exact without coincidence loss)",
            )
    how, assumed = "measured", ""
    if gain is not None:
        how, read_variance = "given", variance - gain * (level - (dark or 0.0))
        if not (np.isfinite(gain) and gain > 0 and read_variance > -0.2 * variance):
            raise ShineError(
                f"{movie.name}: with a gain of {gain:g} electrons alone would make noise of the "
                f"variance {gain * (level - (dark or 0.0)):.4g}, and it is {variance:.4g}: check "
                "--gain and --dark."
            )
    elif curve.reliable:
        given = dark
        read_variance, dark = _without_electrons(curve, dark)
        assumed = "" if dark == given else ", where the noise curve ends"
    elif dark is not None:
        how, read_variance = "from the level without electrons", 0.0
    else:
        raise ShineError(
            f"{movie.name}: how the noise grows with the signal is unknown (the signal varies too "
            "little or moves too fast, or the noise does not follow it). Give --gain, the noise "
            "variance per signal (the report of shine denoise may tell it), or, if the read noise "
            "is negligible, --dark, the pixel value without electrons."
        )
    dark, read_variance = dark or 0.0, max(read_variance, 0.0)
    if not dark < level:
        raise ShineError(
            f"{movie.name}: the level without electrons, {dark:g}, is not below the movie's mean, "
            f"{level:.4g}: give --dark in the units of the movie."
        )
    if read_variance > 0.95 * variance:
        raise ShineError(
            f"{movie.name}: nearly all noise is there without electrons (variance "
            f"{read_variance:.4g} of {variance:.4g}): check --gain and --dark."
        )
    slope = (variance - read_variance) / (level - dark) if gain is None else gain
    sure = np.abs(correlation) > _SURE * noise.correlation_error
    middle = correlation.shape[0] // 2
    # White read noise adds to the variance alone and so dilutes what is measured.
    spread = np.clip(correlation * variance / (variance - read_variance), -1, 1)
    spread[middle, middle], sure[middle, middle] = 1.0, True
    read = float(np.sqrt(read_variance))
    return ElectronNoise(
        float(slope), float(dark), read, np.where(sure, spread, 0.0), None,
        f"gain {slope:.4g} ({how}), read noise {read:.4g}, level without electrons {dark:.4g}"
        f"{assumed}; lower doses get noise of the measured correlation",
    )  # fmt: skip


def thin(
    movie: Movie,
    fraction: float,
    *,
    noise: ElectronNoise,
    health: Health,
    seed: int = 0,
) -> Movie:
    """Return the movie as it would have been recorded with a fraction of the dose.

    Frames are made when they are read, always alike; identical frames stay identical and blanked
    frames stay as they are, so that both are still known for what they are.

    Parameters
    ----------
    movie
        The movie.
    fraction
        Share of the electrons, above 0 and up to 1; with 1 the movie is returned as it is.
    noise
        From `electron_noise`.
    health
        The movie's input check.
    seed
        Of the electrons that are kept.

    Returns
    -------
    Movie
        Lazy, of the same shape; in the movie's own type where electrons were counted, else
        float32. Its level is lower: ``dark + fraction · (signal − dark)``. The dose is corrected.

    Raises
    ------
    ShineError
        If the fraction is not within 0 and 1.

    References
    ----------
    Thinning of a Poisson process: J. F. C. Kingman, Poisson Processes (Oxford, 1993), chapter 5.
    """
    if not 0 < fraction <= 1:
        raise ShineError(f"A fraction of the dose lies above 0 and not above 1, not {fraction:g}.")
    if fraction == 1:
        return movie
    normalisation = Normalisation.of(health)
    bad = np.asarray(health.bad_pixels, bool)
    counted = noise.quantum is not None

    def read_frame(t: int) -> np.ndarray:
        raw = movie.frame(t)
        if health.blank[t]:
            return raw.astype(kind)
        rng = np.random.default_rng([seed, 7, int(health.duplicate_of[t]), *_key(fraction)])
        if noise.quantum is not None:
            return _counts_kept(raw, fraction, noise.quantum, rng).astype(kind)
        expected = normalisation.invert(normalisation.apply(raw, bad))
        return _scaled(raw, expected, fraction, noise, rng)

    kind = movie.dtype if counted else np.dtype(np.float32)
    dose = movie.dose_e_per_A2
    return replace(
        movie.with_data(
            LazyFrames(read_frame, movie.shape, kind), did=f"thinned to {100 * fraction:g} % dose"
        ),
        dose_e_per_A2=None if dose is None else dose * fraction,
    )


def slower(movie: Movie, skip: int, *, skipping: Skipping = "drop") -> Movie:
    """Return the movie at one ``skip``-th of its frame rate.

    Parameters
    ----------
    movie
        The movie.
    skip
        One of so many frames is left.
    skipping
        "drop" keeps every ``skip``-th frame, "sum" adds so many (an incomplete last group is left
        out); frame time and dose follow.
    """
    if skip == 1:
        return movie
    if skipping == "drop":
        return movie.select(frames=slice(None, None, skip))
    n, height, width = movie.shape

    def read_frame(t: int) -> np.ndarray:
        whole = np.zeros((height, width), np.float64)
        for frame in movie.frames(range(t * skip, (t + 1) * skip)):
            whole += frame
        return whole.astype(np.float32)

    t, y, x = movie.axes
    centre = t.offset + t.scale * (skip - 1) / 2
    summed = movie.with_data(
        LazyFrames(read_frame, (n // skip, height, width), np.float32), did=f"{skip} frames summed"
    )
    dose = movie.dose_e_per_A2
    return replace(
        summed, axes=(replace(t, scale=t.scale * skip, offset=centre), y, x),
        dose_e_per_A2=None if dose is None else dose * skip,
    )  # fmt: skip


def _counts_kept(
    raw: np.ndarray, fraction: float, quantum: int, rng: np.random.Generator
) -> np.ndarray:
    """Keep each electron with the probability ``fraction``; what is no number stays none."""
    good = np.isfinite(raw) & (raw >= 0)
    electrons = np.where(good, raw, 0) // quantum
    kept = rng.binomial(electrons.astype(np.int64), fraction) * quantum
    return np.where(good, kept, raw)


def _scaled(
    raw: np.ndarray,
    expected: np.ndarray,
    fraction: float,
    noise: ElectronNoise,
    rng: np.random.Generator,
) -> np.ndarray:
    """Scale a frame about its dark level and add the noise that is then missing."""
    from scipy.ndimage import gaussian_filter

    signal = gaussian_filter(expected.astype(np.float64) - noise.dark, _SMOOTHING, mode="nearest")
    shot = np.sqrt(fraction * (1 - fraction) * noise.gain * np.maximum(signal, 0))
    reach = noise.correlation.shape[0] // 2
    wide = np.pad(shot, reach, mode="edge")
    added = _filtered(rng.standard_normal(wide.shape) * wide, noise.correlation)
    inner = slice(reach, -reach or None)
    out = noise.dark + fraction * (raw.astype(np.float64) - noise.dark) + added[inner, inner]
    if noise.read_noise:
        read = np.sqrt(1 - fraction**2) * noise.read_noise
        out += read * rng.standard_normal(raw.shape)
    return out.astype(np.float32)


def _filtered(white: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Give white noise a correlation and keep its variance: the filter is √(its spectrum)."""
    from scipy import fft

    if correlation.shape == (1, 1):
        return white
    radius = correlation.shape[0] // 2
    shape = [fft.next_fast_len(n + 2 * radius, real=True) for n in white.shape]
    around = np.zeros(shape)
    around[: 2 * radius + 1, : 2 * radius + 1] = correlation
    around = np.roll(around, (-radius, -radius), axis=(0, 1))
    power = np.maximum(fft.rfft2(around).real, 0)  # errors of the correlation can dip below zero
    power /= fft.irfft2(power, shape)[0, 0]
    filtered = fft.irfft2(fft.rfft2(white, shape) * np.sqrt(power), shape)
    out: np.ndarray = filtered[: white.shape[0], : white.shape[1]]
    return out


def _without_electrons(curve: MeanVariance, dark: float | None) -> tuple[float, float | None]:
    """Return read variance and dark level: what the mean-variance curve surely says of them.

    A lower dose is an extrapolation of the curve to less signal than it was measured at, and a
    small error of its slope is a large one there: a variance without electrons counts only from
    three standard errors on (leaving out one point of the curve at a time).
    """
    means, variances = curve.means - (dark or 0.0), curve.variances
    scatter = np.maximum(variances, 0.05 * variances.max())
    n = len(means)
    kept = [np.arange(n) != k for k in range(n)]
    ends = [np.polyfit(means[k], variances[k], 1, w=1 / scatter[k])[1] for k in kept]
    error = float(np.sqrt((n - 1) / n * np.sum((ends - np.mean(ends)) ** 2)))
    end = curve.offset + curve.gain * (dark or 0.0)
    if end > _SURE * error:
        return end, dark
    if dark is None and end < -_SURE * error:
        return 0.0, -curve.offset / curve.gain
    return 0.0, dark


def _quantum(movie: Movie, health: Health) -> int | None:
    """Return the pixel value of one electron if all values are whole numbers of it, else None."""
    usable = np.flatnonzero(~np.asarray(health.blank))
    picked = usable[np.unique(np.linspace(0, len(usable) - 1, 4).astype(int))]
    good = ~np.asarray(health.bad_pixels, bool)
    quantum = 0
    for t in picked:
        values = movie.frame(int(t))[good]
        values = values[np.isfinite(values)]
        if not values.size or values.min() < 0 or values.max() > 2**31:
            return None
        if movie.dtype.kind == "f" and (values != np.rint(values)).any():
            return None
        quantum = int(np.gcd(quantum, np.gcd.reduce(values.astype(np.int64))))
    return quantum or None


def _key(fraction: float) -> tuple[int, int]:
    """Return a fraction as whole numbers, so that every fraction gets electrons of its own."""
    return float(fraction).as_integer_ratio()
