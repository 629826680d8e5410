"""Is there leftover picture in the residual (raw − denoised)? A test with an error bar.

A good denoiser removes noise and nothing else, so what it removed must be unrelated to the
picture and correlated from pixel to pixel as the noise is. Two checks follow:

1. *Leftover picture.* The residual is regressed on the denoised picture: residual = a · picture +
   noise. ``a / (1 + a)`` is the share of the picture's contrast that was removed with the noise (0
   is right), and its square the share of the picture's power. A denoised frame also holds some of
   its own frame's noise (any filter lets some pass, at −14 dB much), and that noise is in the
   residual too: regressed on its own frame, the residual of a perfect Wiener filter has the slope
   noise/signal although nothing is left. So each residual is regressed with the help of a denoised
   frame further away in time, which shares its picture and none of its noise (an instrumental
   variable): a = <residual(t) · picture(t')> / <picture(t) · picture(t')>. The regression is the
   matched filter for correlated noise: frame and picture are divided by the local noise level,
   each spatial frequency is divided by the residual's own power there, and counts by its own
   signal-to-noise ratio, so that the picture's frequencies speak and empty ones keep silent.
   Without leftovers a/σ(a) is a standard normal number. What the slope on the frame itself shows
   beyond ``a`` is covariance of the noise with the denoised frame, by which noise alone makes the
   denoised frame wrong (the covariance penalty of Efron, J. Am. Stat. Assoc. 99, 619, 2004; a
   lower bound of it, which motion cannot feign): leftovers weaker than that are told, but no
   reason for alarm.
2. *Autocorrelation.* The residual's autocorrelation is compared with the measured noise
   correlation: structure of any shape, also such that the denoised picture lost altogether, makes
   the residual more correlated than the noise.

Both ask for an effect that matters as well as for significance: with a hundred frames, a part in
a thousand is significant and means nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .errors import ShineError
from .metrics import tukey_window
from .movie import Movie

__all__ = ["APART", "ResidualSpectra", "ResidualTest", "residual_structure", "with_error"]

LEFTOVER = 0.03  # slope from which a leftover is worth a word: 3 % of the contrast
LOST = 0.1  # share of the picture's power that no denoised frame should lose, however noisy
EXCESS = 0.03  # autocorrelation beyond the noise's that is worth a warning
Z = 4.0  # one false alarm in 30,000 tests
FLOOR = 0.02  # of the mean power: a spectrum estimated with leakage is not trusted below
LOCAL = 33  # pixels, the window of the local noise level
LAGS = 8  # pixels, half width of the autocorrelation map
_LEAST_INFORMATION = 3.0  # pictures less alike than this, in σ, are no help to each other
APART = 9  # frames between which no window of the default lengths, 5 and 9, is shared


@dataclass(frozen=True)
class ResidualTest:
    """What the residual tells.

    Attributes
    ----------
    outcome
        ``"clear"``, ``"faint"`` (leftover picture found, but weaker than the error that noise makes
        in a denoised frame, and below `LOST`), ``"structure"`` (leftover picture or structure that
        matters), ``"exaggerated"`` (the denoised picture has contrast that the raw movie does not
        bear out) or ``"undecided"`` (too little data to exclude a leftover of 2 × `LEFTOVER`).
    leftover, leftover_error
        The slope a of the residual on the denoised picture, and its standard error.
    power, power_error
        The share of the picture's power that is left in the residual, (a / (1 + a))² and its
        standard error; 0 where a is negative.
    against_error
        Power of the leftover over the prediction error that noise makes in a denoised frame, both
        in the picture's frequencies; an upper bound; inf where the denoised frames hold no noise.
    same_frame
        The slope on the denoised picture of the same frame, which counts shared noise as well.
    apart
        Whether frames far enough apart were at hand; without them, `leftover` is `same_frame`.
    z
        ``leftover / leftover_error``: standard normal if nothing is left.
    p
        Probability of so large a |z| without any leftover.
    autocorrelation_excess
        The largest amount by which the residual's autocorrelation exceeds the noise's, at the
        shifts compared; None where no noise correlation was given.
    autocorrelation_z
        That excess over its standard error.
    frames
        Number of frames that were looked at.
    verdict
        The outcome in plain language.
    """

    outcome: Literal["clear", "faint", "structure", "exaggerated", "undecided"]
    leftover: float
    leftover_error: float
    power: float
    power_error: float
    against_error: float
    same_frame: float
    apart: bool
    z: float
    p: float
    autocorrelation_excess: float | None
    autocorrelation_z: float | None
    frames: int
    verdict: str

    @property
    def contrast(self) -> tuple[float, float]:
        """The share of the picture's contrast left in the residual, and its standard error."""
        return _contrast(self.leftover, self.leftover_error)


class ResidualSpectra:
    """Sums over frames that the residual test needs; memory does not grow with the frames.

    Parameters
    ----------
    shape
        ``(y, x)`` of the frames.
    apart
        How many frames apart two frames must be for their windows to share no frame: the whole
        window. Else the noise that both denoised pictures hold passes for exaggerated contrast.
    """

    def __init__(self, shape: tuple[int, int], *, apart: int = APART) -> None:
        if min(shape) < 16:
            raise ShineError(f"The residual test needs 16×16 pixels, not {shape[0]}×{shape[1]}.")
        self.shape = (int(shape[0]), int(shape[1]))
        half = (self.shape[0], self.shape[1] // 2 + 1)
        self.frames = 0
        self._taper = tukey_window(self.shape, 0.25).astype(np.float32)
        self._residual_power = np.zeros(half)
        self._picture_power = np.zeros(half)
        self._cross_power = np.zeros(half)
        # The same for pairs of frames that lie apart.
        self.pairs = 0
        self._apart = apart
        self._calls = 0
        self._before: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self._helper_power = np.zeros(half)
        self._paired_cross = np.zeros(half)
        self._paired_picture = np.zeros(half)

    def add(self, residual: np.ndarray, picture: np.ndarray, *, frame: int | None = None) -> None:
        """Take in one ``(y, x)`` residual (raw − denoised) and its denoised picture.

        ``frame`` is its number in the movie, rising; None counts the calls.
        """
        from scipy.fft import rfft2
        from scipy.ndimage import uniform_filter

        self._calls += 1
        r = np.asarray(residual, dtype=np.float32)
        d = np.asarray(picture, dtype=np.float32)
        if r.shape != self.shape or d.shape != self.shape:
            raise ShineError(
                f"Residual {r.shape} and denoised picture {d.shape} must both be {self.shape}."
            )
        r = r - r.mean()
        d = d - d.mean()
        power = float(np.vdot(r, r)) / r.size
        if not (np.isfinite(power) and power > 0 and np.isfinite(d).all()):
            return
        # Shot noise is stronger where the picture is brighter: level it before weighing pixels.
        level = np.sqrt(np.maximum(uniform_filter(r * r, LOCAL), 0.05 * power))
        # Tapered, as the frame's edges would leak into frequencies where there is little noise.
        fr, fd = (rfft2(self._levelled(image / level)) for image in (r, d))
        scale = 1 / r.size
        self._residual_power += _product(fr, fr) * scale
        self._picture_power += _product(fd, fd) * scale
        self._cross_power += _product(fr, fd) * scale
        self.frames += 1
        self._pair(self._calls if frame is None else frame, fr, fd, scale)

    def _pair(self, frame: int, fr: np.ndarray, fd: np.ndarray, scale: float) -> None:
        """Compare with the latest frame that lies far enough back, in both directions."""
        before = self._before
        while len(before) > 1 and frame - before[1][0] >= self._apart:
            before.popleft()
        if before and frame - before[0][0] >= self._apart:
            _, r, d = before[0]
            half = 0.5 * scale
            self._helper_power += (_product(d, d) + _product(fd, fd)) * half
            self._paired_cross += (_product(fr, d) + _product(r, fd)) * half
            self._paired_picture += _product(fd, d) * scale
            self.pairs += 1
        before.append((frame, fr, fd))

    def _levelled(self, image: np.ndarray) -> np.ndarray:
        mean = float(np.vdot(image, self._taper)) / float(self._taper.sum())
        return (image - mean) * self._taper

    @property
    def autocorrelation(self) -> np.ndarray:
        """Mean autocorrelation of the residual, ``(2·lags + 1, 2·lags + 1)``, 1 in the centre."""
        from scipy.fft import irfft2

        lags = min(LAGS, (min(self.shape) - 1) // 2)
        full = np.fft.fftshift(irfft2(self._residual_power, s=self.shape))
        cy, cx = self.shape[0] // 2, self.shape[1] // 2
        centre = full[cy, cx]
        if not centre > 0:
            return np.full((2 * lags + 1, 2 * lags + 1), np.nan)
        return full[cy - lags : cy + lags + 1, cx - lags : cx + lags + 1] / centre

    def test(self, noise_correlation: Any = None) -> ResidualTest:
        """Return the verdict.

        Parameters
        ----------
        noise_correlation
            ``(2k + 1, 2k + 1)`` measured correlation map of the noise, 1 in the centre (for
            instance `NoiseStatistics.difference_correlation`); None leaves out the second check.
        """
        same, same_error, _ = self._regression(apart=False)
        apart = self.pairs > 0
        leftover, error, against = self._regression(apart=True) if apart else (
            same, same_error, math.inf
        )  # fmt: skip
        if not math.isfinite(leftover):
            leftover, error, apart = same, same_error, False
        contrast, contrast_error = _contrast(leftover, error)
        power = max(contrast, 0.0) ** 2
        # Where the contrast lost is near zero, the square of its error counts.
        power_error = math.hypot(2 * contrast * contrast_error, contrast_error**2)
        z = leftover / error if error > 0 else float("nan")
        p = math.erfc(abs(z) / math.sqrt(2)) if math.isfinite(z) else float("nan")
        excess, excess_z = (None, None)
        if noise_correlation is not None and self.frames:
            excess, excess_z = self._excess(np.asarray(noise_correlation, dtype=np.float64))
        result = ResidualTest(
            outcome="clear", leftover=leftover, leftover_error=error, power=power,
            power_error=power_error, against_error=against, same_frame=same, apart=apart, z=z, p=p,
            autocorrelation_excess=excess, autocorrelation_z=excess_z, frames=self.frames,
            verdict="",
        )  # fmt: skip
        outcome, verdict = _judge(result)
        return replace(result, outcome=outcome, verdict=verdict)

    def _regression(self, *, apart: bool) -> tuple[float, float, float]:
        """Return the slope, its standard error, and the leftover over the noise's own error."""
        nothing = (float("nan"),) * 3
        if not self.frames:
            return nothing
        own = self._residual_power / self.frames
        # The smooth spectrum is the noise's; where a line stands out of it (scan rows, mains hum)
        # the line itself is the noise level, or chance would pass for a leftover there.
        noise = np.maximum(np.maximum(_smoothed(own, self.shape), own), FLOOR * own.mean())
        # The half plane stands for the full one: most pixels for two, independent as one.
        twice = np.full(own.shape, 2.0)
        twice[:, 0] = 1
        if self.shape[1] % 2 == 0:
            twice[:, -1] = 1
        twice[0, 0] = 0
        ratio = self._picture_power / self.frames / noise
        share = ratio / (1 + ratio)
        weight = share / noise
        if apart:
            helper, picture, cross = self._helper_power, self._paired_picture, self._paired_cross
        else:
            helper, picture, cross = self._picture_power, self._picture_power, self._cross_power
        information = float((twice * weight * picture).sum())
        variance = float((twice * weight**2 * helper * noise).sum())
        # The taper also multiplies the noise: pixels in the middle count for more than the mean.
        taper = self._taper.astype(np.float64)
        variance *= (taper**4).mean() / (taper**2).mean() ** 2
        least = _LEAST_INFORMATION * math.sqrt(variance) if apart else 0.0
        if not information > least:
            return nothing
        slope = float((twice * weight * cross).sum()) / information
        # The covariance of noise and denoised frame (less the power of the noise in the denoised
        # frame, which only a still picture would let us tell), in the picture's frequencies.
        count = self.pairs if apart else self.frames
        seen = float((twice * share * picture).sum()) / count
        shared = float((twice * share * self._cross_power).sum()) / self.frames
        shared -= slope * float((twice * share * self._picture_power).sum()) / self.frames
        against = slope**2 * seen / shared if shared > 0 else math.inf
        return slope, math.sqrt(variance) / information, against

    def _excess(self, noise: np.ndarray) -> tuple[float, float]:
        """Return by how much the residual is more correlated than the noise, and its z."""
        from scipy.ndimage import uniform_filter

        side = noise.shape[0] if noise.ndim == 2 else 0
        if noise.shape != (side, side) or side < 3 or side % 2 == 0:
            raise ShineError(
                f"A noise correlation map is a square of odd side, 3 or more, not {noise.shape}."
            )
        own = self.autocorrelation
        reach = min(own.shape[0], noise.shape[0]) // 2
        ours, theirs = (
            m[m.shape[0] // 2 - reach :, :][: 2 * reach + 1, m.shape[1] // 2 - reach :][
                :, : 2 * reach + 1
            ]
            for m in (own, noise)
        )
        excess = uniform_filter(ours - theirs, 3, mode="nearest")
        excess[reach, reach] = -np.inf
        # Bartlett: the variance of a sample autocorrelation is about Σρ² / N.
        pixels = self.frames * self.shape[0] * self.shape[1]
        error = math.sqrt(float((own**2).sum()) / pixels)
        largest = float(excess.max())
        return largest, largest / error


def residual_structure(
    residual: Any, denoised: Any, noise_correlation: Any = None, *, apart: int = APART
) -> ResidualTest:
    """Test whether the residual (raw − denoised) still holds some of the picture.

    Parameters
    ----------
    residual, denoised
        ``(t, y, x)`` arrays, `Movie`s or lists of ``(y, x)`` frames of the same length and shape.
        A few frames far apart are enough (and independent of each other): give ``apart=1`` then.
    noise_correlation
        ``(2k + 1, 2k + 1)`` measured correlation map of the noise, 1 in the centre; with it the
        residual's autocorrelation is checked as well.
    apart
        See `ResidualSpectra`, counted in the frames given.

    Returns
    -------
    ResidualTest

    Raises
    ------
    ShineError
        If shapes or lengths differ, or the frames are smaller than 16×16 pixels.
    """
    pair: list[Any] = [m.data if isinstance(m, Movie) else m for m in (residual, denoised)]
    lengths = [len(m) for m in pair]
    if lengths[0] != lengths[1] or not lengths[0]:
        raise ShineError(
            f"The residual has {lengths[0]} frames and the denoised movie {lengths[1]}: "
            "the test needs the same frames of both."
        )
    shape = np.shape(pair[0][0])
    if len(shape) != 2:
        raise ShineError(f"Expected (t, y, x) stacks, got frames of the shape {shape}.")
    spectra = ResidualSpectra((shape[0], shape[1]), apart=apart)
    for t in range(lengths[0]):
        spectra.add(np.asarray(pair[0][t]), np.asarray(pair[1][t]), frame=t)
    return spectra.test(noise_correlation)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the real part of a · b*."""
    product: np.ndarray = a.real * b.real + a.imag * b.imag
    return product


def _contrast(slope: float, error: float) -> tuple[float, float]:
    """Return a / (1 + a) and its standard error; below zero, where nothing is lost, a itself."""
    whole = 1 + max(slope, 0.0)
    return slope / whole, error / whole**2


def _smoothed(spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Smooth a power spectrum by a Gaussian lag window: only short correlations stay."""
    from scipy.fft import irfft2, rfft2

    y, x = (np.fft.fftfreq(n) * n / min(max(n / 20, 2.5), 16.0) for n in shape)
    window = np.exp(-0.5 * y**2)[:, None] * np.exp(-0.5 * x**2)[None, :]
    smooth: np.ndarray = rfft2(irfft2(spectrum, s=shape) * window).real
    return smooth


def _judge(
    found: ResidualTest,
) -> tuple[Literal["clear", "faint", "structure", "exaggerated", "undecided"], str]:
    share, error, z = found.leftover, found.leftover_error, found.z
    excess, excess_z = found.autocorrelation_excess, found.autocorrelation_z
    correlated = excess is not None and excess_z is not None and excess > EXCESS and excess_z > Z
    if not math.isfinite(share):
        if correlated:
            return "structure", (
                "The denoised picture is empty, but the residual is more correlated than the "
                "noise: some picture may have been removed with it."
            )
        return "undecided", (
            "The denoised picture or the residual is constant: there is nothing to compare."
        )
    size = with_error(*found.contrast)
    power = with_error(found.power, found.power_error)
    picture = f"{size} of the picture's contrast ({power} of its power)"
    more = (
        f" The residual is more correlated from pixel to pixel than the noise (by "
        f"{excess or 0:.3f}): some structure was removed with the noise. "
        "Look for it in the residual view."
    )
    if share > LEFTOVER and z > Z:
        if not found.apart:
            return "structure", (
                f"The residual follows the denoised picture: it holds {picture}. Either some "
                "picture was removed with the noise (train longer, or use a smaller hole), or "
                "noise was copied into the picture (use a larger hole); so few frames cannot tell "
                "which."
            )
        if found.against_error < 1 and found.power < LOST:
            understated = (
                f"The residual holds {picture}. That is at most {found.against_error:.0%} of the "
                "error that noise makes in a denoised frame: no frame shows it, but contrast "
                "measured on the denoised movie is too low by that share (train longer for more)."
            )
            return ("structure", understated + more) if correlated else ("faint", understated)
        return "structure", (
            f"The residual follows the denoised picture: it holds {picture}. Some picture was "
            "removed with the noise, and contrast measured on the denoised movie is too low by "
            "that share. Train longer if the validation loss still falls; far below an SNR of 0 dB "
            "a share always stays behind."
        )
    if share < -LEFTOVER and z < -Z:
        return "exaggerated", (
            "The denoised picture has more contrast than the raw movie bears out "
            f"({with_error(-share, error)} too much). Do not measure intensities on it."
        )
    if correlated:
        return "structure", more.strip()
    if abs(share) + 2 * error > 2 * LEFTOVER:
        return "undecided", (
            "No leftover picture found in the residual, but with these frames the test cannot "
            f"exclude a small one ({picture})."
        )
    little = "Hardly any picture is left" if z > Z else "No picture found"
    return "clear", f"{little} in the residual ({picture}): what was removed looks like noise."


def with_error(share: float, error: float) -> str:
    """Write a share and its standard error in percent, as ``1.3 ± 0.2 %``."""
    return f"{100 * share:.1f} ± {100 * error:.1f} %".replace("-", "−")
