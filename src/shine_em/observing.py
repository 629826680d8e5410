"""Collect what a report shows while denoised frames stream by, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .doctor import Health
from .metrics import snr_from_correlation
from .movie import Movie
from .patches import Normalisation, Timeline
from .residual import APART, ResidualSpectra

__all__ = ["Observations", "Observer", "Spectrum"]

DISPLAY_SIDE = 1024  # pixels: kept frames are averaged down to this for display
SPECTRUM_SIDE = 1024  # pixels: spectra are taken of the middle of larger frames
TESTED_FRAMES = 24  # frames in the residual test, spread over the movie
POINTS = 2000  # most points of a curve over frames; longer movies are averaged in blocks
SAMPLES = 200_000  # pixel values kept for histogram and contrast


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Log power spectra of one frame, ``(y, x)`` each, zero frequency in the middle.

    Untrusted pixels of the raw frame are at their denoised value.

    Attributes
    ----------
    frame
        Which frame.
    raw, denoised, residual
        log10 of the power per pixel (of Hann-windowed frames), in movie units squared.
    """

    frame: int
    raw: np.ndarray
    denoised: np.ndarray
    residual: np.ndarray


@dataclass(frozen=True, eq=False)
class Observations:
    """What an `Observer` saw.

    Pixels are trusted that are neither bad nor spikes and have a value.

    Attributes
    ----------
    shape
        ``(t, y, x)`` of the movie.
    kept
        ``(k,)`` indices of the kept frames.
    raw, denoised
        ``(k, y, x)`` float32 kept frames, averaged down by ``shrink``.
    shrink
        Movie pixels per kept pixel, along each side.
    frame
        ``(n,)`` frame index of each point of the curves below (the middle of the block of frames
        that was averaged, for movies longer than `POINTS`).
    mean_raw, mean_denoised
        ``(n,)`` mean of the frame's trusted pixels, movie units; nan for blank frames.
    snr_raw, snr_denoised
        ``(n,)`` SNR in dB from the correlation with the frame before (paper Eq. 5); nan where the
        two are no neighbours (`Timeline.pairs`): for the first frame, beside a blank one or a copy,
        and after a cut.
    sample_raw, sample_denoised
        ``(m,)`` pixel values at the same random places, for histograms and contrast.
    spectrum
        Power spectra of the middle one of the kept frames.
    residual
        Sums for the residual test over `TESTED_FRAMES` frames, untrusted pixels as 0; None for
        frames below 16×16 pixels.
    residual_sigma
        Standard deviation of raw − denoised in the kept frames, averaged down as they are,
        untrusted pixels as 0.
    """

    shape: tuple[int, int, int]
    kept: np.ndarray
    raw: np.ndarray
    denoised: np.ndarray
    shrink: int
    frame: np.ndarray
    mean_raw: np.ndarray
    mean_denoised: np.ndarray
    snr_raw: np.ndarray
    snr_denoised: np.ndarray
    sample_raw: np.ndarray
    sample_denoised: np.ndarray
    spectrum: Spectrum
    residual: ResidualSpectra | None
    residual_sigma: float


class Observer:
    """Looks at pairs of raw and denoised frames as they stream by.

    Parameters
    ----------
    movie
        The movie being denoised; only its shape is used.
    keep
        Most frame pairs to keep for display, evenly spread over the movie.
    health
        Its input check: bad pixels and spikes, which the denoised frames rightly do not have, are
        shown but do not count, and blank frames are not looked at. None for a movie without any.
    apart
        How many frames apart two denoised frames share no noise (see `ResidualSpectra`).

    Examples
    --------
    >>> movie = Movie.from_array(np.random.default_rng(0).normal(size=(4, 32, 32)))
    >>> observer = Observer(movie)
    >>> for t, frame in enumerate(movie.frames()):
    ...     observer.add(t, frame, np.zeros_like(frame))
    >>> observer.finish().kept
    array([0, 1, 2, 3])
    """

    def __init__(
        self, movie: Movie, *, keep: int = 16, health: Health | None = None, apart: int = APART
    ) -> None:
        n, height, width = movie.shape
        self._normalisation = None if health is None else Normalisation.of(health)
        self._bad = None if health is None else np.asarray(health.bad_pixels, bool)
        self._shape = movie.shape
        self._next = 0
        timeline = Timeline(n, health)
        self._neighbours = set(timeline.pairs())
        # A blank frame has nothing to show, unless there are no others.
        shown = np.flatnonzero(timeline.usable | ~timeline.usable.any())
        self._shown = set(shown.tolist())
        self._kept = shown[_spread(len(shown), max(1, keep))]
        self._tested = set(shown[_spread(len(shown), TESTED_FRAMES)].tolist())
        self._pictured = int(self._kept[len(self._kept) // 2])
        self._shrink = max(1, -(-max(height, width) // DISPLAY_SIDE))
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._middle = tuple(_middle(side) for side in (height, width))
        sides = tuple(s.stop - s.start for s in self._middle)
        self._residual = None
        if min(sides) >= 16 and n:
            self._residual = ResidualSpectra((sides[0], sides[1]), apart=apart)
        self._spectrum: Spectrum | None = None
        # Frames per point of the curves, so that memory does not grow with the movie.
        self._block = -(-n // POINTS)
        self._sums = np.zeros((4, -(-n // self._block)))
        self._counts = np.zeros((4, self._sums.shape[1]))
        sampled = shown[:: max(1, len(shown) // 1000)]
        self._sampled = set(sampled.tolist())
        self._per_frame = min(height * width, max(1, SAMPLES // max(1, len(sampled))))
        self._samples: list[tuple[np.ndarray, np.ndarray]] = []
        self._random = np.random.default_rng(0)
        self._moments: list[tuple[float, float]] = []  # of the residuals that are shown
        self._previous: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, t: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Look at frame ``t``: frames come in order, each once.

        Parameters
        ----------
        t
            Index of the frame.
        raw, denoised
            ``(y, x)`` frames in the movie's units.

        Raises
        ------
        ValueError
            If the frame is not the next one, or has another shape than the movie.
        """
        if t != self._next or t >= self._shape[0]:
            raise ValueError(f"frame {t} came where frame {self._next} of {self._shape[0]} was due")
        if raw.shape != self._shape[1:] or denoised.shape != self._shape[1:]:
            raise ValueError(f"frames {raw.shape} and {denoised.shape} of a movie {self._shape}")
        self._next += 1
        if t not in self._shown:
            return
        pair = (_finite(raw), _finite(denoised))
        trusted, compared = np.isfinite(raw), pair
        if self._normalisation is not None:
            trusted = self._normalisation.trusted(raw, self._bad)
            # At the mean, where no pixel speaks for or against; this changes no correlation.
            compared = self._normalisation.apply(raw, self._bad), pair[1]
        # What is known of an untrusted pixel is its denoised value: their difference is 0.
        clean = np.where(trusted, pair[0], pair[1])
        point = t // self._block
        values = [_mean(image, trusted) for image in pair]
        if self._previous is not None and t - 1 in self._neighbours:
            values += [_correlation(a, b) for a, b in zip(self._previous, compared, strict=True)]
        for row, value in enumerate(values):
            if np.isfinite(value):
                self._sums[row, point] += value
                self._counts[row, point] += 1
        if t in self._sampled:
            places = self._random.integers(0, raw.size, self._per_frame)
            self._samples.append((pair[0].ravel()[places], pair[1].ravel()[places]))
        if t in self._kept:
            self._pairs.append((_shrunk(pair[0], self._shrink), _shrunk(pair[1], self._shrink)))
            shown = _shrunk(clean - pair[1], self._shrink)
            self._moments.append((_mean(shown), _mean(np.square(shown, dtype=np.float64))))
        if self._residual is not None and t in self._tested:
            self._residual.add((clean - pair[1])[self._middle], pair[1][self._middle], frame=t)
        if t == self._pictured:
            a, b = (image[self._middle] for image in (clean, pair[1]))
            self._spectrum = Spectrum(t, _log_power(a), _log_power(b), _log_power(a - b))
        self._previous = compared

    def finish(self) -> Observations:
        """Return what was seen.

        Raises
        ------
        ValueError
            If frames are missing.
        """
        n = self._shape[0]
        if self._next != n or self._spectrum is None:
            raise ValueError(f"only {self._next} of {n} frames came by")
        with np.errstate(invalid="ignore"):
            means = np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), np.nan)
        first = np.arange(means.shape[1]) * self._block
        last = np.minimum(first + self._block, n) - 1
        mean, square = np.mean(self._moments, axis=0)
        return Observations(
            shape=self._shape,
            kept=self._kept,
            raw=np.stack([a for a, _ in self._pairs]),
            denoised=np.stack([b for _, b in self._pairs]),
            shrink=self._shrink,
            frame=(first + last) / 2,
            mean_raw=means[0],
            mean_denoised=means[1],
            snr_raw=snr_from_correlation(means[2]),
            snr_denoised=snr_from_correlation(means[3]),
            sample_raw=np.concatenate([a for a, _ in self._samples]),
            sample_denoised=np.concatenate([b for _, b in self._samples]),
            spectrum=self._spectrum,
            residual=self._residual,
            residual_sigma=float(np.sqrt(max(square - mean**2, 0.0))),
        )


def _spread(n: int, most: int) -> np.ndarray:
    """Return up to ``most`` indices, evenly spread from the first frame to the last."""
    return np.unique(np.rint(np.linspace(0, n - 1, min(n, most))).astype(int))


def _middle(side: int) -> slice:
    start = max(0, (side - SPECTRUM_SIDE) // 2)
    return slice(start, start + min(side, SPECTRUM_SIDE))


def _finite(image: np.ndarray) -> np.ndarray:
    """Return the frame as float32, pixels without a value at the mean of the others."""
    out = np.asarray(image, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # inf − inf
        total = out.sum(dtype=np.float64)
    if not np.isfinite(total):
        good = np.isfinite(out)
        out = np.where(good, out, out[good].mean() if good.any() else 0).astype(np.float32)
    return out


def _mean(image: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the mean of all pixels, or of those ``where`` True; nan for none."""
    values = image if where is None or where.all() else image[where]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two float32 frames; single precision is enough here and twice as quick."""
    first, second = a - a.mean(), b - b.mean()
    power = float(np.vdot(first, first)) * float(np.vdot(second, second))
    return float(np.vdot(first, second)) / power**0.5 if power > 0 else float("nan")


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor`` × ``factor`` pixels; the last ones may be smaller."""
    if factor == 1:
        return image.copy()
    for axis in (0, 1):
        starts = np.arange(0, image.shape[axis], factor)
        sizes = np.diff(np.append(starts, image.shape[axis]))
        total = np.add.reduceat(image, starts, axis=axis)
        image = total / np.expand_dims(sizes, 1 - axis).astype(np.float32)
    return image


def _log_power(image: np.ndarray) -> np.ndarray:
    """Return log10 of the power spectrum of a Hann-windowed frame, zero frequency in the middle."""
    from scipy.fft import fft2, fftshift

    window = np.multiply.outer(*(np.hanning(n + 1)[:n] for n in image.shape)).astype(np.float32)
    if not window.any():
        window = np.ones_like(window)
    spectrum = fft2((image - image.mean()) * window)
    power = (spectrum.real**2 + spectrum.imag**2) / float((window**2).sum())
    logarithm: np.ndarray = np.log10(fftshift(power) + max(float(power.max()), 1e-30) * 1e-12)
    return logarithm.astype(np.float32)
