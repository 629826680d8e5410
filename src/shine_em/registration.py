"""How far the whole scene drifts from frame to frame.

Where it does, the neighbours in a window are displaced by whole pixels before the network sees
them, so that it finds in them what it looks for at the same place. Whole pixels only:
interpolation would correlate the noise of neighbouring pixels.

Frames are compared by plain cross-correlation. Phase correlation, which gives every spatial
frequency the same weight, drowns where most frequencies hold nothing but noise; here each counts
by its own signal-to-noise ratio, as in the maximum-likelihood estimate of a delay (C. Knapp and
G. Carter, IEEE Trans. Acoust. Speech Signal Process. 24, 320, 1976). What noise lives on from
frame to frame, as a fixed pattern does, would pass for a picture at rest: as much as the noise
statistics found is subtracted. The height of a peak is judged by the spread that the frames' own
power makes us expect at any displacement. Pairs too noisy to speak for themselves follow the
trend of those around them.

The taper stands still where the picture moves, and what it makes of a picture broader than its
slopes looks like a picture at rest, so that the peak lies too near. Pairs that speak for
themselves are therefore compared once more, without a taper: by the displacement at which their
squared difference is least (B. Lucas and T. Kanade, Proc. 7th IJCAI, 674, 1981).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.fft import dctn, idctn, irfft2, rfft2
from scipy.ndimage import gaussian_filter1d

from .doctor import Health
from .metrics import tukey_window
from .movie import Movie
from .noise import NoiseStatistics
from .patches import Normalisation

__all__ = ["Drift", "measure_drift"]

_SIDE = 512  # pixels: of larger frames, the middle is compared
_SCREENED = 12  # pairs of frames, spread over the movie, that tell whether to look at all of them
_FURTHEST = 24  # px per frame
# A peak this high above the noise, in standard deviations: in a map of 49×49 displacements noise
# alone comes so far once in a million maps.
_Z = 6.0
# Frames: standard deviation of the average that tells the trend; the shortest that suffices.
_TRENDS = (4.0, 16.0, np.inf)
_NEAR = 3  # px: how far from the trend a single pair's displacement is looked for
#: Drift per frame, px, from which neighbours are displaced: below it they hardly move, and the
#: network follows by itself.
LEAST_DRIFT_PX = 1.0
#: At rest, neighbours may agree at most this well, relative to displaced by the drift. On a STEM
#: scene of 1.8 px per frame (0.84) the middle frames come out the same with and without, but the
#: first and the last, with neighbours on one side only, by 3 and 1.6 dB better with registration.
_AT_REST = 0.9
_BETTER = 4.0  # and the difference must be so many standard deviations of its noise


@dataclass(frozen=True, eq=False)
class Drift:
    """How the picture moves as a whole.

    Attributes
    ----------
    path
        ``(t, 2)`` displacement of the picture (y, x) since the first frame, px; zero throughout
        where no common drift was found. It does not change across scene cuts.
    step
        Median displacement from one frame to the next, px.
    error
        Typical standard error of a displacement along one axis that noise makes, px; NaN where
        nothing was measured.
    significance
        Height of the correlation peak of a dozen pairs, in standard deviations of what noise makes.
    at_rest
        Correlation of neighbours as they stand over that of neighbours displaced by the drift
        (by whole pixels); 1 where nothing was measured.
    helps
        Whether displacing the neighbours brings them closer to each other, by enough.
    reason
        What was found, in one sentence.
    """

    path: np.ndarray
    step: float
    error: float
    significance: float
    at_rest: float
    helps: bool
    reason: str


def measure_drift(movie: Movie, *, health: Health, noise: NoiseStatistics) -> Drift:
    """Measure how the whole scene drifts from frame to frame.

    Parameters
    ----------
    movie
        The movie; frames are read one at a time. A dozen pairs are compared first; only where
        these drift are all frames read.
    health, noise
        Its input check and its noise statistics.

    Returns
    -------
    Drift
        ``drift.helps`` says whether neighbours should be displaced: the drift is significant (6
        standard errors), at least 1 px per frame, and frames displaced by it agree clearly better
        than frames at rest.

    Notes
    -----
    A lattice looks the same displaced by its own spacing. Among peaks of nearly the same height
    the nearest is taken, so a perfect lattice that drifts by more than half its spacing per frame
    seems to go the other way; displaced so, it fits as well.
    """
    pairs = _pairs(health)
    shape = movie.shape[1:]
    reach = min(_FURTHEST, min(shape) // 6)
    if len(pairs) < 2 or reach < 2:
        return _none(len(movie), "The movie is too short or its frames too small to see a drift.")
    picked = np.unique(np.linspace(0, len(pairs) - 1, min(_SCREENED, len(pairs))).astype(int))
    screened = [pairs[i] for i in picked]
    correlator = _Correlator(movie, health, noise, screened, reach)
    maps = correlator.maps(screened)
    alone = [_peak(m) for m in maps]
    together = maps.mean(0) * np.sqrt(len(maps))
    height, displacement = _peak(together)
    common = height > _Z and np.abs(displacement).max() >= 0.5
    strong = np.array([z > _Z for z, _ in alone])
    moved, errors = correlator.refined(screened, np.array([d for _, d in alone]), strong)
    each = np.mean(strong & (np.abs(moved).max(1) >= np.fmax(0.5, 2 * errors)))
    if not common and each < 0.5:
        return _none(len(movie), "The scene does not drift as a whole.", max(height, 0.0))
    significance = max(height, float(np.median([z for z, _ in alone])))
    return _follow(len(movie), health, pairs, correlator, significance)


def _none(n: int, reason: str, significance: float = 0.0) -> Drift:
    return Drift(np.zeros((n, 2)), 0.0, float("nan"), significance, 1.0, False, reason)


def _follow(
    n: int,
    health: Health,
    pairs: Sequence[tuple[int, int]],
    correlator: _Correlator,
    significance: float,
) -> Drift:
    """Measure the drift between all neighbours."""
    reach = correlator.reach
    maps = correlator.maps(pairs)
    for width in _TRENDS:
        smooth, spread = _averaged(maps, width)
        peaks = [_peak(m) for m in smooth / spread]
        if all(height > _Z for height, _ in peaks):
            break
    found = [_single(own, trend) for own, (_, trend) in zip(maps, peaks, strict=True)]
    alone = np.array([by_itself for _, by_itself in found])
    steps, errors = correlator.refined(pairs, np.array([step for step, _ in found]), alone)
    whole = np.clip(np.rint(steps).astype(int), -reach, reach) + reach
    index = np.arange(len(maps))
    there = maps[index, whole[:, 0], whole[:, 1]]
    here = maps[:, reach, reach]
    at_rest = float(here.sum() / there.sum()) if there.sum() > 0 else 1.0
    size = float(np.median(np.hypot(*steps.T)))
    path = np.zeros((n, 2))
    for (a, b), step in zip(pairs, steps, strict=True):
        # Blank frames between the two are never shown; copies show what their first showed.
        path[b:] += step
        path[a + 1 : b] += step * 0.5
    first, segment = np.asarray(health.duplicate_of), np.asarray(health.segment)
    path = np.where((segment[first] == segment)[:, None], path[first], path)
    heights = np.where(alone, there, [height for height, _ in peaks])
    errors = np.where(np.isnan(errors), correlator.width / np.maximum(heights, 1), errors)
    error = float(np.median(errors))
    moved = f"{size:.1f} px per frame (± {error:.1f} px)"
    better = float((there - here).sum() / np.sqrt(2 * len(maps)))
    helps = size >= LEAST_DRIFT_PX and at_rest <= _AT_REST and better > _BETTER
    if helps:
        reason = f"The scene drifts by {moved}."
    elif size < LEAST_DRIFT_PX:
        reason = f"The scene drifts by {moved}: too little to matter."
    else:
        reason = (
            f"The scene moves by {moved}, but frames displaced by as much are hardly more alike."
        )
    return Drift(path, size, error, significance, at_rest, helps, reason)


def _pairs(health: Health) -> list[tuple[int, int]]:
    """Return neighbouring frames that show different pictures of one scene."""
    blank, segment = np.asarray(health.blank), np.asarray(health.segment)
    first = np.asarray(health.duplicate_of) == np.arange(len(blank))
    used = np.flatnonzero(~blank & first)
    return [(int(a), int(b)) for a, b in pairwise(used) if segment[a] == segment[b] and b - a <= 4]


class _Correlator:
    """Cross-correlation of frames, each spatial frequency weighted by what it tells."""

    def __init__(
        self,
        movie: Movie,
        health: Health,
        noise: NoiseStatistics,
        pairs: Sequence[tuple[int, int]],
        reach: int,
    ) -> None:
        self.movie, self.reach = movie, reach
        self.normalisation = Normalisation.of(health)
        self.bad = np.asarray(health.bad_pixels, bool)
        self.middle = tuple(
            slice((n - min(n, _SIDE)) // 2, (n - min(n, _SIDE)) // 2 + min(n, _SIDE))
            for n in movie.shape[1:]
        )
        self.shape = tuple(s.stop - s.start for s in self.middle)
        self.taper = tukey_window((self.shape[0], self.shape[1]), 0.25).astype(np.float32)
        sampled = sorted({t for pair in pairs for t in pair})
        energy = float((self.taper**2).sum())
        power = np.mean([np.abs(self._spectrum(t)) ** 2 for t in sampled], axis=0) / energy
        grain = self._noise_power(noise, health.scale)
        # The share of the picture in the power; not quite zero anywhere, where the noise is not
        # known that well.
        share = np.clip(1 - grain / np.maximum(power, 1e-12), 0.02, 1)
        smooth = self._passed(self._frequency2())
        self.weight = (smooth * share / np.maximum(power, 1e-12)).astype(np.float32)
        # Noise with noise, and noise with picture, make the correlation vary at any displacement.
        varied = (self.weight * power) ** 2 * (1 - np.maximum(1 - grain / power, 0) ** 2)
        varied = np.maximum(varied, (0.02 * self.weight * power) ** 2)
        twice = np.full(varied.shape, 2.0)
        twice[:, 0] = 1
        if self.shape[1] % 2 == 0:
            twice[:, -1] = 1
        pixels = self.shape[0] * self.shape[1]
        self.sigma = energy / pixels * float(np.sqrt((twice * varied).sum()))
        lasting = _lasting(noise)
        self.lasting = (lasting * energy * grain).astype(np.float32) if lasting else None
        # A parabola's summit errs by the slope of the noise over its bend.
        f2 = (2 * np.pi) ** 2 / 2 * self._frequency2()
        picture = twice * self.weight * power * share
        bend = float((picture * f2).sum() / picture.sum())
        slope = float(np.sqrt((twice * varied * f2).sum() / (twice * varied).sum()))
        self.width = slope / bend  # px, at a height of one standard deviation
        # The same without the taper: noise with picture, and noise with noise, per pixel.
        heard = grain * smooth**2
        self.heard = float(heard.max()), float((twice * heard**2 * f2).sum() / pixels)

    def maps(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return ``(pairs, 2·reach + 1, 2·reach + 1)`` correlations in units of their noise.

        The picture of the second frame is displaced by (row − reach, column − reach) pixels
        against that of the first.
        """
        side = np.arange(-self.reach, self.reach + 1)
        out = np.empty((len(pairs), len(side), len(side)), np.float32)
        held: dict[int, np.ndarray] = {}
        for k, pair in enumerate(pairs):
            held = {t: held[t] if t in held else self._spectrum(t) for t in pair}
            a, b = (held[t] for t in pair)
            cross = np.conj(a) * b
            if self.lasting is not None:
                cross -= self.lasting
            full = irfft2(self.weight * cross, s=self.shape)
            out[k] = full[np.ix_(side, side)] / self.sigma
        return out

    def refined(
        self, pairs: Sequence[tuple[int, int]], steps: np.ndarray, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(pairs, 2)`` displacements and ``(pairs,)`` their errors without a taper, px.

        Pairs that are not chosen stay as they are, and their error is NaN.
        """
        out, errors = steps.copy(), np.full(len(steps), np.nan)
        # A pattern at rest would draw them to zero.
        if self.lasting is not None:
            return out, errors
        fy, fx = (np.arange(n) / (2 * n) for n in self.shape)
        band = self._passed(fy[:, None] ** 2 + fx[None] ** 2).astype(np.float32)
        held: dict[int, np.ndarray] = {}
        for k in np.flatnonzero(chosen):
            held = {t: held[t] if t in held else self._banded(t, band) for t in pairs[int(k)]}
            first, second = (held[t] for t in pairs[int(k)])
            out[k], slopes = _matched(first, second, steps[k], 1.5 * self.reach)
            if slopes > 0:
                known, unknown = self.heard
                errors[k] = np.sqrt(2 * known * slopes + unknown * first.size) / slopes
        return out, errors

    def _banded(self, t: int, band: np.ndarray) -> np.ndarray:
        """Return a frame in a band of frequencies, its borders mirrored."""
        frame: np.ndarray = idctn(dctn(self._frame(t)) * band)
        return frame

    def _frame(self, t: int) -> np.ndarray:
        raw = self.movie.frame(t)[self.middle]
        return self.normalisation.apply(raw, self.bad[self.middle])

    def _spectrum(self, t: int) -> np.ndarray:
        frame = self._frame(t)
        level = float(np.vdot(frame, self.taper)) / float(self.taper.sum())
        spectrum: np.ndarray = rfft2((frame - np.float32(level)) * self.taper)
        return spectrum

    def _noise_power(self, noise: NoiseStatistics, scale: float) -> np.ndarray:
        """Return the noise's power spectrum, per pixel, in normalised units."""
        around = np.asarray(noise.difference_correlation, float)
        radius = around.shape[0] // 2
        placed = np.zeros(self.shape)
        side = np.arange(-radius, radius + 1)
        placed[np.ix_(side, side)] = around
        power: np.ndarray = np.maximum(rfft2(placed).real, 0) * (noise.sigma / (scale or 1.0)) ** 2
        return power

    def _frequency2(self) -> np.ndarray:
        fy, fx = np.fft.fftfreq(self.shape[0])[:, None], np.fft.rfftfreq(self.shape[1])[None]
        squared: np.ndarray = fy**2 + fx**2
        return squared

    def _passed(self, radius2: np.ndarray) -> np.ndarray:
        """Leave out uneven illumination, and what is finer than the displacement's rounding."""
        slow = 1.5 / min(self.shape)
        band: np.ndarray = np.exp(-radius2 / (2 * 0.18**2)) * (1 - np.exp(-radius2 / (2 * slow**2)))
        return band


def _lasting(noise: NoiseStatistics) -> float:
    """Return the share of the noise that neighbouring frames have in common, where it is sure."""
    sure = [
        float(value)
        for value, error in zip(
            noise.temporal_correlation[1:2], noise.temporal_error[1:2], strict=True
        )
        if value > 3 * error
    ]
    return max([noise.fixed_pattern_fraction if noise.fixed_pattern else 0.0, *sure])


def _matched(
    first: np.ndarray, second: np.ndarray, step: np.ndarray, reach: float
) -> tuple[np.ndarray, float]:
    """Return the displacement near ``step`` (y, x), px, at which two frames differ least.

    Also the sum of the picture's squared slopes, per axis (0 if no displacement was found).

    Gauss-Newton steps, each from the whole-pixel displacement that the last one led to. The
    slopes of both frames are multiplied, each with noise of its own, so that noise adds nothing.
    """
    best, least, slopes = step, np.inf, 0.0
    found = step
    rows, columns = first.shape
    for _ in range(8):
        whole = np.rint(found).astype(int)
        if np.abs(whole).max() > reach:
            break
        # The frames' mirrored borders do not move with the picture.
        (y, x), (my, mx) = whole, (max(n // 8, 2) for n in first.shape)
        top, left = max(0, -y) + my, max(0, -x) + mx
        low, right = rows - max(0, y) - my, columns - max(0, x) - mx
        a, b = first[top:low, left:right], second[top + y : low + y, left + x : right + x]
        change = (a - b)[1:-1, 1:-1]
        differs = float(np.mean(change**2))
        if differs >= least:
            break
        ga, gb = (
            np.stack([(f[2:, 1:-1] - f[:-2, 1:-1]).ravel(), (f[1:-1, 2:] - f[1:-1, :-2]).ravel()])
            / 2
            for f in (a, b)
        )
        bend = ga @ gb.T
        bend = (bend + bend.T) / 2
        if np.linalg.eigvalsh(bend)[0] <= 0:
            break
        move = np.linalg.solve(bend, (ga + gb) @ change.ravel() / 2)
        best, least, slopes = whole + np.clip(move, -1, 1), differs, float(np.trace(bend)) / 2
        found = whole + np.clip(move, -2, 2)
        if np.array_equal(np.rint(found), whole):
            break
    return best, slopes


def _averaged(maps: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return averages over time, Gaussian or over all, and their noise relative to single maps'."""
    n = len(maps)
    if not np.isfinite(width):
        return np.broadcast_to(maps.mean(0), maps.shape), np.full((n, 1, 1), n**-0.5, np.float32)
    smooth = gaussian_filter1d(maps, width, axis=0, mode="nearest")
    return smooth, _spread(n, width)[:, None, None].astype(np.float32)


def _spread(n: int, width: float) -> np.ndarray:
    """Return how noisy the Gaussian averages of ``n`` values are, ``(n,)``, relative to them."""
    # Far from both ends all averages are alike: one row of weights stands for them.
    few = min(n, 2 * int(4 * width + 0.5) + 1)  # `gaussian_filter1d` cuts off at 4 widths
    weights = gaussian_filter1d(np.eye(few), width, axis=0, mode="nearest")
    alike = np.ones(few, int)
    alike[few // 2] += n - few
    spread: np.ndarray = np.repeat(np.sqrt((weights**2).sum(1)), alike)
    return spread


def _peak(correlation: np.ndarray) -> tuple[float, np.ndarray]:
    """Return height and place (y, x) of the highest peak; of nearly equal ones, the nearest."""
    reach = correlation.shape[0] // 2
    highest = float(correlation.max())
    inside = correlation[1:-1, 1:-1]
    summit = np.ones_like(inside, bool)
    for y, x in np.ndindex(3, 3):
        if (y, x) != (1, 1):
            rows, columns = correlation.shape
            summit &= inside >= correlation[y : rows - 2 + y, x : columns - 2 + x]
    # Two noisy heights differ by √2 standard deviations.
    nearly = max(0.9 * highest, highest - 3) if highest > 0 else highest
    places = np.argwhere(summit & (inside >= nearly)) + 1
    if not len(places):
        return highest, np.zeros(2)
    nearest = places[np.argmin(np.hypot(*(places - reach).T))]
    return float(correlation[tuple(nearest)]), _refined(correlation, nearest) - reach


def _refined(correlation: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the summit of the parabola through a maximum and its neighbours, per axis."""
    y, x = (int(v) for v in place)
    found = np.array([y, x], float)
    for axis, (before, after) in enumerate(
        (
            (correlation[y - 1, x], correlation[y + 1, x]),
            (correlation[y, x - 1], correlation[y, x + 1]),
        )
    ):
        bend = float(before - 2 * correlation[y, x] + after)
        if bend < 0:
            found[axis] += np.clip(0.5 * float(before - after) / bend, -0.5, 0.5)
    return found


def _single(own: np.ndarray, trend: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return one pair's displacement, and whether it speaks for itself or follows the trend."""
    reach = own.shape[0] // 2
    middle = np.clip(np.rint(trend).astype(int) + reach, 1, 2 * reach - 1)
    low, high = np.maximum(middle - _NEAR, 1), np.minimum(middle + _NEAR, 2 * reach - 1)
    near = own[low[0] : high[0] + 1, low[1] : high[1] + 1]
    place = np.array(np.unravel_index(near.argmax(), near.shape)) + low
    height = float(own[tuple(place)])
    far_height, far = _peak(own)
    if far_height > 2 * _Z and far_height > 1.3 * height:
        return far, True  # the stage was moved
    return (_refined(own, place) - reach, True) if height > _Z else (trend, False)
