"""Is there leftover picture in the residual (raw − denoised)? A test with an error bar.

A good denoiser removes noise and nothing else, so what it removed must be unrelated to the
picture and correlated from pixel to pixel as the noise is. Two checks follow:

1. *Leftover picture.* The residual is regressed on the denoised picture: residual = a · picture +
   noise. ``a`` is the share of the picture's contrast that was removed with the noise (0 is
   right). The regression is the matched filter for correlated noise: frame and picture are
   divided by the local noise level, each spatial frequency is divided by the residual's own power
   there, and counts by its own signal-to-noise ratio, so that the picture's frequencies speak and
   empty ones keep silent. Without leftovers a/σ(a) is a standard normal number.
2. *Autocorrelation.* The residual's autocorrelation is compared with the measured noise
   correlation: structure of any shape, also such that the denoised picture lost altogether, makes
   the residual more correlated than the noise.

Both ask for an effect that matters as well as for significance: with a hundred frames, a part in
a thousand is significant and means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import ShineError
from .movie import Movie

__all__ = ["ResidualSpectra", "ResidualTest", "residual_structure"]

LEFTOVER = 0.03  # share of the picture's contrast from which a leftover is worth a warning
EXCESS = 0.03  # autocorrelation beyond the noise's that is worth a warning
Z = 4.0  # one false alarm in 30,000 tests
FLOOR = 0.02  # of the mean power: a spectrum estimated with leakage is not trusted below
LOCAL = 33  # pixels, the window of the local noise level
LAGS = 8  # pixels, half width of the autocorrelation map


@dataclass(frozen=True)
class ResidualTest:
    """What the residual tells.

    Attributes
    ----------
    outcome
        ``"clear"``, ``"structure"`` (leftover picture or structure found), ``"exaggerated"`` (the
        denoised picture has contrast that the raw movie does not bear out) or ``"undecided"`` (too
        little data to exclude a leftover of 2 × `LEFTOVER`).
    leftover, leftover_error
        The share of the picture's contrast found in the residual, and its standard error.
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

    outcome: Literal["clear", "structure", "exaggerated", "undecided"]
    leftover: float
    leftover_error: float
    z: float
    p: float
    autocorrelation_excess: float | None
    autocorrelation_z: float | None
    frames: int
    verdict: str


class ResidualSpectra:
    """Sums over frames that the residual test needs; memory does not grow with the frames.

    Parameters
    ----------
    shape
        ``(y, x)`` of the frames.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        if min(shape) < 16:
            raise ShineError(f"The residual test needs 16×16 pixels, not {shape[0]}×{shape[1]}.")
        self.shape = (int(shape[0]), int(shape[1]))
        half = (self.shape[0], self.shape[1] // 2 + 1)
        self.frames = 0
        self._taper = np.asarray(
            np.multiply.outer(*(_tukey(n) for n in self.shape)), dtype=np.float32
        )
        self._residual_power = np.zeros(half)
        self._picture_power = np.zeros(half)
        self._cross_power = np.zeros(half)

    def add(self, residual: np.ndarray, picture: np.ndarray) -> None:
        """Take in one ``(y, x)`` residual (raw − denoised) and its denoised picture."""
        from scipy.fft import rfft2
        from scipy.ndimage import uniform_filter

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
        self._residual_power += (fr.real**2 + fr.imag**2) * scale
        self._picture_power += (fd.real**2 + fd.imag**2) * scale
        self._cross_power += (fr.real * fd.real + fr.imag * fd.imag) * scale
        self.frames += 1

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
        leftover, error = self._regression()
        z = leftover / error if error > 0 else float("nan")
        p = math.erfc(abs(z) / math.sqrt(2)) if math.isfinite(z) else float("nan")
        excess, excess_z = (None, None)
        if noise_correlation is not None and self.frames:
            excess, excess_z = self._excess(np.asarray(noise_correlation, dtype=np.float64))
        outcome, verdict = _judge(leftover, error, z, excess, excess_z)
        return ResidualTest(outcome, leftover, error, z, p, excess, excess_z, self.frames, verdict)

    def _regression(self) -> tuple[float, float]:
        """Return the share of the picture in the residual and its standard error."""
        if not self.frames:
            return float("nan"), float("nan")
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
        weight = ratio / (1 + ratio) / noise
        information = float((twice * weight * self._picture_power).sum())
        if not information > 0:
            return float("nan"), float("nan")
        share = float((twice * weight * self._cross_power).sum()) / information
        variance = float((twice * weight**2 * self._picture_power * noise).sum())
        # The taper also multiplies the noise: pixels in the middle count for more than the mean.
        taper = self._taper.astype(np.float64)
        variance *= (taper**4).mean() / (taper**2).mean() ** 2
        return share, math.sqrt(variance) / information

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


def residual_structure(residual: Any, denoised: Any, noise_correlation: Any = None) -> ResidualTest:
    """Test whether the residual (raw − denoised) still holds some of the picture.

    Parameters
    ----------
    residual, denoised
        ``(t, y, x)`` arrays, `Movie`s or lists of ``(y, x)`` frames of the same length and shape.
        A few frames far apart are enough (and independent of each other).
    noise_correlation
        ``(2k + 1, 2k + 1)`` measured correlation map of the noise, 1 in the centre; with it the
        residual's autocorrelation is checked as well.

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
    spectra = ResidualSpectra((shape[0], shape[1]))
    for t in range(lengths[0]):
        spectra.add(np.asarray(pair[0][t]), np.asarray(pair[1][t]))
    return spectra.test(noise_correlation)


def _tukey(size: int) -> np.ndarray:
    from scipy.signal.windows import tukey

    window: np.ndarray = tukey(size, 0.25)
    return window


def _smoothed(spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Smooth a power spectrum by a Gaussian lag window: only short correlations stay."""
    from scipy.fft import irfft2, rfft2

    y, x = (np.fft.fftfreq(n) * n / min(max(n / 20, 2.5), 16.0) for n in shape)
    window = np.exp(-0.5 * y**2)[:, None] * np.exp(-0.5 * x**2)[None, :]
    smooth: np.ndarray = rfft2(irfft2(spectrum, s=shape) * window).real
    return smooth


def _judge(
    share: float, error: float, z: float, excess: float | None, excess_z: float | None
) -> tuple[Literal["clear", "structure", "exaggerated", "undecided"], str]:
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
    size = f"{100 * share:.1f} ± {100 * error:.1f} %".replace("-", "−")
    if share > LEFTOVER and z > Z:
        return "structure", (
            f"The residual follows the denoised picture: it holds {size} as much of the picture's "
            "contrast as the denoised movie does. Either some picture was removed with the noise "
            "(train longer, or use a smaller hole), or noise was copied into the picture (use a "
            "larger hole)."
        )
    if share < -LEFTOVER and z < -Z:
        return "exaggerated", (
            f"The denoised picture has more contrast than the raw movie bears out ({size} too "
            "much). Do not measure intensities on it."
        )
    if correlated:
        return "structure", (
            f"The residual is more correlated from pixel to pixel than the noise (by {excess:.3f}):"
            " some structure was removed with the noise. Look for it in the residual view."
        )
    if abs(share) + 2 * error > 2 * LEFTOVER:
        return "undecided", (
            f"No leftover picture found in the residual, but with these frames the test cannot "
            f"exclude a small one ({size} of the picture's contrast)."
        )
    return "clear", (
        f"No picture found in the residual ({size} of the picture's contrast): what was removed "
        "looks like noise."
    )
