"""What scanning makes of a picture: where the STEM probe really was, and what its detector saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import ShineError
from .scene import check_numbers

__all__ = [
    "Scan",
    "StemDetector",
    "pixel_of",
    "record_scan",
    "response_correlation",
    "visited",
]

# Electrons that are drawn one by one at a time: bounds the memory of a frame with many of them.
_EVENTS = 2_000_000
# Response time over dwell time: beyond, a line's picture is drawn out over hundreds of pixels.
_SLOWEST = 100


@dataclass(frozen=True)
class Scan:
    """How the probe moves over the specimen.

    Attributes
    ----------
    pixel_size_nm
        Distance of neighbouring probe positions.
    dwell_time_s
        Time that the probe spends on each pixel.
    flyback_s
        Time from the end of a line to the beginning of the next, when nothing is recorded.
    frame_flyback_s
        Time from the end of a frame to the beginning of the next.
    drift_nm_per_s
        Velocity of the specimen, y then x.
    jitter_nm
        Standard deviation of each line's displacement, y then x: the scan coils' noise is slow
        against the dwell time, so a line moves as a whole and lines are torn apart.
    settling_nm, settling_s
        How far the probe still is behind its course (towards larger x, where it comes from) when a
        line begins, and the time constant with which it settles: the picture's left edge is
        distorted.

    References
    ----------
    L. Jones, P. D. Nellist, Identifying and correcting scan noise and drift in the scanning
    transmission electron microscope. Microsc. Microanal. 19, 1050-1060 (2013).
    """

    pixel_size_nm: float = 0.0133
    dwell_time_s: float = 5e-6
    flyback_s: float = 500e-6
    frame_flyback_s: float = 0.02
    drift_nm_per_s: tuple[float, float] = (0.0, 0.0)
    jitter_nm: tuple[float, float] = (0.0, 0.0)
    settling_nm: float = 0.0
    settling_s: float = 50e-6

    def __post_init__(self) -> None:
        for name in ("drift_nm_per_s", "jitter_nm"):
            pair = getattr(self, name)
            if len(pair) != 2 or not np.isfinite(pair).all():
                raise ShineError(f"{name} must be two numbers, y then x, not {pair}.")
        if min(self.jitter_nm) < 0:
            raise ShineError(f"jitter_nm must not be negative, as in {self.jitter_nm}.")
        check_numbers(
            vars(self),
            positive=("pixel_size_nm", "dwell_time_s", "settling_s"),
            not_negative=("flyback_s", "frame_flyback_s", "settling_nm"),
        )

    def line_time_s(self, width: int) -> float:
        """Time from the beginning of a line of ``width`` pixels to that of the next."""
        return width * self.dwell_time_s + self.flyback_s

    def check_motion(self, width: int) -> None:
        """See that no place appears twice in lines of ``width`` pixels.

        Raises
        ------
        ShineError
            If the specimen drifts or the probe settles that fast.
        """
        fastest = np.abs(self.drift_nm_per_s).max() * (self.line_time_s(width) + self.dwell_time_s)
        fastest += self.settling_nm * self.dwell_time_s / self.settling_s
        if fastest > self.pixel_size_nm / 2:
            raise ShineError(
                f"drift_nm_per_s={self.drift_nm_per_s} and settling_nm={self.settling_nm} move the "
                f"probe by {fastest:.3g} nm per line, beyond half a pixel. Lower one of them."
            )

    def frame_time_s(self, shape: tuple[int, int]) -> float:
        """Time from the beginning of a frame of ``(y, x)`` pixels to that of the next."""
        return shape[0] * self.line_time_s(shape[1]) + self.frame_flyback_s


@dataclass(frozen=True)
class StemDetector:
    """A scintillator with photomultiplier, amplifier and digitiser, as behind an annular detector.

    Attributes
    ----------
    conversion
        Mean counts per detected electron.
    pulse_spread
        Standard deviation over mean of the pulse heights of single electrons; 0 counts all alike.
    response_time_s
        Time constant of the exponential decay of an electron's signal (scintillator and
        amplifier). Measured detectors differ from far below one to several microseconds
        (Mullarkey et al.); where it nears the dwell time, bright atoms streak along the fast scan
        and the noise of neighbours in a line is correlated.
    black_level
        Counts without any electron.
    read_noise
        Standard deviation of the amplifier's and digitiser's noise, counts.

    References
    ----------
    T. Mullarkey, M. Geever, J. J. P. Peters, I. Griffiths, P. D. Nellist, L. Jones, How fast is
    your detector? The effect of temporal response on image quality. Microsc. Microanal. 29,
    1402-1408 (2023). J. P. Buban, Q. Ramasse, B. Gipson, N. D. Browning, H. Stahlberg,
    High-resolution low-dose scanning transmission electron microscopy. J. Electron Microsc. 59,
    103-112 (2010).
    """

    conversion: float = 40.0
    pulse_spread: float = 0.4
    response_time_s: float = 3e-6
    black_level: float = 100.0
    read_noise: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            positive=("conversion",),
            not_negative=("pulse_spread", "response_time_s", "black_level", "read_noise"),
        )

    def lead(self, dwell_time_s: float) -> int:
        """Pixels to record before a line's first, until the signal of earlier ones is settled.

        Raises
        ------
        ShineError
            If the response is so slow that nothing of a picture would be left.
        """
        if self.response_time_s > _SLOWEST * dwell_time_s:
            raise ShineError(
                f"response_time_s={self.response_time_s:g} is "
                f"{self.response_time_s / dwell_time_s:.3g} times the dwell time, both in seconds: "
                f"choose up to {_SLOWEST} times dwell_time_s={dwell_time_s:g}."
            )
        return math.ceil(8 * self.response_time_s / dwell_time_s)


def visited(
    scan: Scan,
    shape: tuple[int, int],
    *,
    start_s: float = 0.0,
    lead: int = 0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    r"""Return where on the specimen the probe was at each pixel of a frame.

    With the pixel's row :math:`i` and column :math:`j`, the pixel size :math:`a`, the line's jitter
    :math:`\xi_i`, the drift velocity :math:`v` and the settling amplitude :math:`s`:

    .. math:: r_{ij} = a (i, j) + \xi_i + (0, s\,e^{-j\,T/\tau_s}) - v\,t_{ij}

    Parameters
    ----------
    scan
        How the probe moves.
    shape
        ``(y, x)`` of the frame.
    start_s
        Time of the frame's first pixel since the drift began.
    lead
        Pixels visited before each line's first, on its left (see `StemDetector.lead`); the line
        begins, and settles, that much earlier.
    rng
        Source of the jitter; None leaves it out.

    Returns
    -------
    ndarray
        ``(y, lead + x, 2)`` positions in nm, y then x. Without drift, jitter and settling pixel
        ``(i, lead + j)`` lies at ``(i, j)`` times the pixel size.
    """
    height, width = shape
    rows = np.arange(height)
    columns = np.arange(-lead, width)
    positions = np.empty((height, lead + width, 2))
    positions[..., 0] = rows[:, None] * scan.pixel_size_nm
    positions[..., 1] = columns * scan.pixel_size_nm
    positions[..., 1] += scan.settling_nm * np.exp(
        -(columns + lead) * scan.dwell_time_s / scan.settling_s
    )
    time = start_s + rows[:, None] * scan.line_time_s(width) + columns * scan.dwell_time_s
    positions -= time[..., None] * np.asarray(scan.drift_nm_per_s)
    if rng is not None:
        positions += rng.normal(size=(height, 1, 2)) * np.asarray(scan.jitter_nm)
    return positions


def pixel_of(
    scan: Scan,
    specimen_nm: np.ndarray,
    shape: tuple[int, int],
    *,
    start_s: float = 0.0,
    lead: int = 0,
) -> np.ndarray:
    """Return where in the frame places of the specimen appear: the inverse of `visited`.

    The jitter of the lines is left out: it is noise about this place.

    Parameters
    ----------
    scan, shape, start_s, lead
        As for `visited`; ``shape`` is without the lead.
    specimen_nm
        ``(..., 2)`` places in nm, y then x.

    Returns
    -------
    ndarray
        ``(..., 2)`` pixels, y then x, pixel centres at whole numbers; places outside the frame get
        values outside it.

    Raises
    ------
    ShineError
        If the specimen drifts or the probe settles so fast that a place appears twice.
    """
    places = np.asarray(specimen_nm, np.float64)
    drift = np.asarray(scan.drift_nm_per_s)
    line = scan.line_time_s(shape[1])
    scan.check_motion(shape[1])
    pixels = places / scan.pixel_size_nm
    for _ in range(60):
        row, column = pixels[..., 0], pixels[..., 1]
        late = np.maximum(column + lead, 0) * scan.dwell_time_s / scan.settling_s
        moved = (start_s + row * line + column * scan.dwell_time_s)[..., None] * drift
        moved[..., 1] -= scan.settling_nm * np.exp(-late)
        pixels = (places + moved) / scan.pixel_size_nm
    return pixels


def record_scan(
    electrons: np.ndarray,
    rng: np.random.Generator,
    *,
    detector: StemDetector,
    dwell_time_s: float,
    lead: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Record one scanned frame.

    Every electron arrives at a random time of its pixel's dwell (Poisson), gives a pulse of random
    height (gamma distributed) that decays exponentially, and the digitiser averages the signal over
    each dwell. So an electron's signal runs on into the next pixels of the line, and never back:
    picture and noise are smeared alike. See `response_correlation` for the noise.

    Parameters
    ----------
    electrons
        ``(y, lead + x)`` expected detected electrons per pixel.
    rng
        Source of the noise.
    detector
        The detector.
    dwell_time_s
        Time per pixel.
    lead
        Pixels at the left of each line from which signal runs into the frame, and which are cut
        off.

    Returns
    -------
    noisy, expected
        ``(y, x)`` float32 counts, with and without noise.

    Raises
    ------
    ShineError
        If the expected electrons are negative or not finite, or nothing is left without the lead.
    """
    from scipy.signal import lfilter

    electrons = np.asarray(electrons, np.float64)
    if not (np.isfinite(electrons).all() and (electrons >= 0).all()):
        raise ShineError("The expected electrons per pixel must be finite and not negative.")
    if not 0 <= lead < electrons.shape[1]:
        raise ShineError(f"lead={lead} leaves nothing of a line of {electrons.shape[1]} pixels.")
    check_numbers({"dwell_time_s": dwell_time_s}, positive=("dwell_time_s",))
    tau = detector.response_time_s / dwell_time_s
    decay = math.exp(-1 / tau) if tau else 0.0
    # Mean fraction of an electron's signal that is left when the dwell in which it came ends.
    left = tau * (1 - decay)

    def smeared(at_once: np.ndarray, later: np.ndarray) -> np.ndarray:
        stored = lfilter([1.0], [1.0, -decay], later, axis=1)
        return at_once + np.pad(stored[:, :-1], ((0, 0), (1, 0))) * (1 - decay)

    expected = smeared(electrons * (1 - left), electrons * left)
    at_once, later = np.zeros_like(electrons), np.zeros_like(electrons)
    rows = max(1, int(_EVENTS / max(electrons.max() * electrons.shape[1], 1.0)))
    for start in range(0, len(electrons), rows):
        part = slice(start, start + rows)
        arrived = rng.poisson(electrons[part])
        pixel = np.repeat(np.arange(arrived.size), arrived.ravel())
        height = _pulse_heights(rng, len(pixel), detector.pulse_spread)
        # 1 - U lies in (0, 1]: the time that is left of the dwell.
        rest = np.exp((rng.random(len(pixel)) - 1) / tau) if tau else np.zeros(len(pixel))
        for total, weights in ((at_once, height * (1 - rest)), (later, height * rest)):
            counts = np.bincount(pixel, weights, minlength=arrived.size)
            total[part] = counts.reshape(arrived.shape)
    noisy = detector.black_level + detector.conversion * smeared(at_once, later)
    noisy += rng.normal(scale=detector.read_noise, size=noisy.shape)
    expected = detector.black_level + detector.conversion * expected
    return noisy[:, lead:].astype(np.float32), expected[:, lead:].astype(np.float32)


def response_correlation(
    dwell_time_s: float, response_time_s: float, distances: int = 4
) -> np.ndarray:
    r"""Return the correlation of shot noise at 1, 2, ... pixels along the fast scan.

    Electrons that arrive at random, each with a signal that decays with the time constant
    :math:`\tau`, averaged over dwells of :math:`T = a \tau`, have the autocovariance
    :math:`\int_{-T}^{T} (T - |u|)\, e^{-|k T + u| / \tau} du` at :math:`k` pixels, hence

    .. math:: \rho_k = e^{-k a} \, \frac{\cosh a - 1}{a - 1 + e^{-a}}

    Read noise, which is not smeared, lowers it. Along the slow scan there is none.

    Examples
    --------
    >>> response_correlation(5e-6, 3e-6, 2).round(3)
    array([0.385, 0.073])
    """
    check_numbers(
        {"dwell_time_s": dwell_time_s, "response_time_s": response_time_s},
        positive=("dwell_time_s",),
        not_negative=("response_time_s",),
    )
    k = np.arange(1, distances + 1)
    if response_time_s == 0:
        return np.zeros(distances)
    a = dwell_time_s / response_time_s
    # cosh(a) exp(-k a) written without a large exponential.
    hill = (np.exp(-(k - 1) * a) + np.exp(-(k + 1) * a)) / 2 - np.exp(-k * a)
    return hill / (a + math.expm1(-a))


def _pulse_heights(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    if spread == 0:
        return np.ones(count)
    shape = spread**-2
    return rng.gamma(shape, 1 / shape, count)
