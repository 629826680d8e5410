"""The estimated error of every frame, and frames on which the denoising fails.

While denoised frames stream by, the mean square of raw − denoised, less the noise variance and with
the share of noise that the denoiser hands on (measured on a few frames, `ErrorEstimator`), is the
estimated error of each frame at next to no cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .doctor import Health
from .error_estimate import noise_variance
from .error_matrix import ErrorEstimate, block_sums, mean_and_error
from .noise import NoiseStatistics
from .patches import Normalisation

__all__ = ["FrameErrors", "FrameWatch"]

_Z = 5.0  # robust standard deviations above the median
_TIMES = 2.0  # and this many times the median: 3 dB


@dataclass(frozen=True, eq=False)
class FrameErrors:
    """Estimated errors of frames.

    Attributes
    ----------
    frame
        ``(n,)`` frame numbers; blank frames are left out.
    mse, standard_error
        ``(n,)`` estimated mean squared error and its standard error, movie units squared.
    flagged
        Frames whose error lies far above that of the rest.
    sigma
        Typical standard deviation of the noise, movie units.
    """

    frame: np.ndarray
    mse: np.ndarray
    standard_error: np.ndarray
    flagged: tuple[int, ...]
    sigma: float

    def warnings(self) -> tuple[str, ...]:
        """Say in plain words which frames not to trust."""
        if not self.flagged:
            return ()
        bad = np.isin(self.frame, self.flagged)
        worst, usual = (
            float(np.sqrt(max(v, 0.0))) / self.sigma
            for v in (self.mse[bad].max(), np.median(self.mse[~bad]))
        )
        named = ", ".join(str(t) for t in self.flagged[:10])
        many = len(self.flagged)
        named += f" and {many - 10} more" if many > 10 else ""
        return (
            f"{'Frame' if many == 1 else 'Frames'} {named}: raw and denoised frame differ by more "
            f"than noise (estimated error up to {worst:.2f} noise σ; {usual:.2f} in the other "
            f"frames). The denoising fails there, or {'it is' if many == 1 else 'they are'} "
            "noisier than the rest: do not measure on "
            f"{'it' if many == 1 else 'them'} without a look at the raw data.",
        )


class FrameWatch:
    """Collects the errors of frames as they stream by.

    Parameters
    ----------
    health, noise, normalisation
        Of the movie: which pixels are trusted, and how much noise they hold.
    measured
        The denoiser's error on a few frames.
    """

    def __init__(
        self,
        health: Health,
        noise: NoiseStatistics,
        normalisation: Normalisation,
        measured: ErrorEstimate,
    ) -> None:
        self.health, self.noise, self.normalisation = health, noise, normalisation
        # What a denoiser hands on is proportional to the noise variance.
        self.handed_on = measured.divergence / measured.noise_variance
        self.frames: list[int] = []
        self.errors: list[tuple[float, float]] = []

    def add(self, t: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Look at frame ``t``, ``(y, x)`` raw and denoised, movie units."""
        good = self.normalisation.trusted(raw, np.asarray(self.health.bad_pixels, bool))
        if self.health.blank[t] or not good.any():
            return
        frame = np.where(good, raw, 0).astype(np.float64)
        variance = noise_variance(self.noise, frame, floor=False)
        error = (frame - denoised) ** 2 - (1 - self.handed_on) * variance
        sums = block_sums(np.where(good, error, 0.0))
        self.frames.append(t)
        self.errors.append(mean_and_error(sums, block_sums(good.astype(float))))

    def finish(self) -> FrameErrors:
        """Return the errors of all frames that came by, and the frames that stand out."""
        mse, error = np.array(self.errors, float).reshape(-1, 2).T
        frames = np.array(self.frames, int)
        flagged: list[int] = []
        if len(frames) >= 5:
            middle = float(np.median(mse))
            scatter = 1.4826 * float(np.median(np.abs(mse - middle)))
            far = mse - middle > _Z * np.hypot(scatter, error)
            flagged = frames[far & (mse > _TIMES * max(middle, 0.0))].tolist()
        return FrameErrors(frames, mse, error, tuple(flagged), self.noise.sigma)
