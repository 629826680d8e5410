"""The noise correlation that lies in a spectrum which holds picture as well.

Picture and noise are told apart by three facts. The picture lives on from frame to frame. It is
gathered in few places and few spatial frequencies (low ones, Bragg peaks). And noise whose
correlation is short has a smooth spectrum, the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .noise_spectrum import HANN_OVERLAP, Spectra, plane_weights

__all__ = [
    "CorrelationFit",
    "fit_correlation",
    "lower_cluster",
    "noise_floor",
    "quiet_tiles",
    "tile_levels",
    "tile_spectra",
]


@dataclass(frozen=True)
class CorrelationFit:
    """Noise covariance fitted to a spectrum.

    Attributes
    ----------
    covariance, error
        ``(2R+1, 2R+1)``: covariance at each offset, and its standard error.
    kept
        ``(fy, fx)``: frequencies that took part; the others hold picture.
    solve
        ``(offsets, fy·fx)``: the linear map from a spectrum to the half plane of covariances.
    """

    covariance: np.ndarray
    error: np.ndarray
    kept: np.ndarray
    solve: np.ndarray
    spectrum: np.ndarray

    def apply(self, spectrum: np.ndarray) -> np.ndarray:
        """Return the ``(2R+1, 2R+1)`` covariance of another spectrum, by the same frequencies."""
        radius = self.covariance.shape[0] // 2
        return _mirrored(self.solve @ spectrum.ravel(), radius)


def tile_spectra(spectra: Spectra) -> np.ndarray:
    """Return the noise spectrum of each tile, the picture's change suppressed as time allows."""
    if not spectra.pairs[1]:
        return spectra.power
    if spectra.pairs[2] < 2:
        return spectra.change[0]
    # the second difference, in which a steady motion cancels
    return (4 * spectra.change[0] - spectra.change[1]) / 3


def tile_levels(spectra: Spectra) -> np.ndarray:
    """Return the noise power of each tile where the picture has little: high frequencies."""
    fy, fx = spectra.frequencies
    high = spectra.usable & (np.hypot(fy, fx) > 0.2)
    noise = spectra.change[0] if spectra.pairs[1] else spectra.power
    return np.median(noise[:, high if high.any() else spectra.usable], axis=1)


def quiet_tiles(spectra: Spectra) -> np.ndarray:
    """Return the tiles in which the picture changes least: lowest low-frequency excess."""
    tiles = len(spectra.origins)
    fy, fx = spectra.frequencies
    radius = np.hypot(fy, fx)
    low, high = spectra.usable & (radius < 0.2), spectra.usable & (radius >= 0.2)
    if tiles < 4 or not low.any() or not high.any():
        return np.ones(tiles, bool)
    noise = tile_spectra(spectra)
    excess = noise[:, low].mean(axis=1) / np.maximum(noise[:, high].mean(axis=1), 1e-30)
    samples = spectra.samples(1 if spectra.pairs[1] else 0, 1)
    spread = np.sqrt((1 / low.sum() + 1 / high.sum()) * 2 * 1.944**2 / samples)
    typical = max(float(np.median(excess)), 1e-6)
    _, kept = lower_cluster(excess, (spread + 0.03) * typical)
    kept |= excess < np.min(excess[kept])
    if kept.sum() < max(4, tiles // 8):
        kept = excess <= np.sort(excess)[max(4, tiles // 8) - 1]
    return kept


def noise_floor(
    spectra: Spectra, weights: np.ndarray, samples: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrum of what changes at once, the picture's own change extrapolated away.

    The change D_k over k frames is noise plus picture. The picture's part grows with k, as a power
    of it while the picture moves little and as 1 − exp(−λk) where it forgets itself; D_1, D_2 and
    D_4 settle which, and how much of D_1 is picture.
    """
    if not spectra.pairs[1]:
        return np.average(spectra.power, axis=0, weights=weights), spectra.usable
    change = [np.average(c, axis=0, weights=weights) for c in spectra.change]
    first = change[0]
    if spectra.pairs[4] < 2:
        if spectra.pairs[2] < 2:
            return first, spectra.usable
        return np.clip((4 * first - change[1]) / 3, 0.2 * first, first * 1.2), spectra.usable
    from scipy import ndimage

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, 3, mode=("wrap", "nearest"))

    base = smooth(first)
    error = base / np.sqrt(samples)

    def growth_of_picture(later: np.ndarray, sooner: np.ndarray) -> np.ndarray:
        # Noise that is correlated in time grows as well, but everywhere alike.
        ratio = smooth(later - sooner) / base
        common, _ = lower_cluster(ratio[spectra.usable], 1 / np.sqrt(samples))
        return (ratio - common) * base

    near, wide = growth_of_picture(change[1], first), growth_of_picture(change[3], change[1])
    growth = np.clip(wide / np.maximum(near, 1e-3 * error), 0.3, 4.0)
    lasting = (np.sqrt(1 + 4 * growth) - 1) / 2
    picture = near / np.where(growth >= 2, growth - 1, lasting)
    picture = np.where(near > 2 * error, picture, 0.0)
    share = picture / base
    return first - picture, share <= max(0.4, float(np.quantile(share, 0.4)))


def fit_correlation(
    spectrum: np.ndarray,
    *,
    window: tuple[np.ndarray, np.ndarray],
    usable: np.ndarray,
    radius: int,
    samples: float,
) -> CorrelationFit:
    """Fit the covariance of noise to a power spectrum in which some frequencies hold picture.

    Noise whose correlation ends within r pixels has the spectrum Σ_r C(r) w(r) cos(2π f·r), with w
    the taper's own correlation: the shorter the correlation, the smoother the spectrum. The
    picture only ever adds power. So ever less smooth spectra are fitted from below, each with the
    frequencies dropped that stand above it, until one explains most of the plane and overshoots
    nowhere. What it leaves is the picture; all offsets are then fitted to the rest.

    Parameters
    ----------
    spectrum
        ``(fy, fx)`` power over the half plane fx ≥ 0.
    window
        Tapers along y and x.
    usable
        ``(fy, fx)`` frequencies that may be used at all.
    radius
        Largest offset R, px.
    samples
        Independent samples behind each frequency bin; sets the statistical error.
    """
    relative = max(1 / np.sqrt(samples), 1e-3)
    level = max(float(np.mean(spectrum[usable])), 1e-30)
    best, kept = -1.0, usable
    many = plane_weights(len(window[1])) / 2
    for short in [r for r in (0, 1, 2, 3, 4, 6, 8, 12) if r < radius] + [radius]:
        basis = _basis(window, short)
        trial = usable
        for _ in range(25):
            model, half, solve = _least_squares(spectrum, basis, many, trial, relative, None)
            misfit = (spectrum - model) / _tolerance(model, relative)
            limit = max(4.0, 0.4 * float(misfit[usable].max()))
            new = usable & (misfit < limit)
            if new.sum() < 0.2 * usable.sum():
                break
            if limit == 4.0 and np.array_equal(new, trial):
                break
            trial = new
        share = float(trial.sum() / usable.sum())
        below = float((misfit[usable] < -4).mean())
        score = share - 10 * below
        if score > best + 0.03:
            best, kept = score, trial
        if share > 0.6 and below < 0.002:
            kept = trial
            break
    basis = _basis(window, radius)
    # Far offsets are rarely correlated: a weak prior settles what dropped frequencies leave open.
    dy, dx = _half_plane(radius)
    prior = 0.3 * np.exp(-np.hypot(dy, dx) / 4)
    prior[0] = 10
    for _ in range(3):
        model, half, solve = _least_squares(spectrum, basis, many, kept, relative, prior)
        misfit = (spectrum - model) / _tolerance(model, relative)
        kept = kept & (misfit < 4) if (kept & (misfit < 4)).sum() > 0.2 * usable.sum() else kept
    noise = solve * (np.maximum(model, 0.05 * level) * relative * HANN_OVERLAP).ravel()
    error = np.sqrt((noise**2).sum(axis=1))
    return CorrelationFit(_mirrored(half, radius), _mirrored(error, radius), kept, solve, model)


def _least_squares(
    spectrum: np.ndarray,
    basis: np.ndarray,
    many: np.ndarray,
    kept: np.ndarray,
    relative: float,
    prior: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fitted spectrum, its covariances, and the linear map between spectrum and them."""
    level = max(float(np.mean(spectrum[kept])), 1e-30)
    model = np.full(spectrum.shape, level)
    for _ in range(2):
        weight = np.where(kept, many / (np.maximum(model, 0) + 0.3 * level) ** 2, 0).ravel()
        weight /= (relative * HANN_OVERLAP) ** 2
        right = basis.T * weight
        normal = right @ basis
        penalty = 1e-9 * np.diag(normal).mean() if prior is None else 1 / (prior * level) ** 2
        normal[np.diag_indices_from(normal)] += penalty
        solve = np.linalg.solve(normal, right)
        half = solve @ spectrum.ravel()
        model = (basis @ half).reshape(spectrum.shape)
    return model, half, solve


def _tolerance(model: np.ndarray, relative: float) -> np.ndarray:
    level = max(float(model.mean()), 1e-30)
    return (relative + 0.01) * np.maximum(model, 0) + 0.01 * level


def lower_cluster(
    values: np.ndarray, error: np.ndarray | float, start: float = 15.0
) -> tuple[float, np.ndarray]:
    """Return the centre of the lowest group of values that agree within error, and its members.

    The picture pushes values up where it has power; where it has none, the values gather.
    """
    error = np.broadcast_to(np.asarray(error, float), values.shape)
    centre = float(np.percentile(values, start) + np.median(error))
    kept = np.ones(values.shape, bool)
    for _ in range(30):
        kept = np.abs(values - centre) < 2.5 * error + 1e-12
        if not kept.any():
            kept = values <= np.percentile(values, 25)
        new = float(np.average(values[kept], weights=1 / np.maximum(error[kept], 1e-12) ** 2))
        if abs(new - centre) < 1e-6:
            break
        centre = new
    return centre, kept


def _half_plane(radius: int) -> tuple[np.ndarray, np.ndarray]:
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    middle = len(dy) // 2
    return dy[middle:], dx[middle:]


def _mirrored(half: np.ndarray, radius: int) -> np.ndarray:
    side = 2 * radius + 1
    return np.concatenate([half[:0:-1], half]).reshape(side, side)


def _basis(window: tuple[np.ndarray, np.ndarray], radius: int) -> np.ndarray:
    dy, dx = _half_plane(radius)
    axes = []
    for taper in window:
        own = np.correlate(taper, taper, "full")[len(taper) - 1 :]
        axes.append(np.concatenate([own / own[0], np.zeros(radius + 1)]))
    share = axes[0][np.abs(dy)] * axes[1][np.abs(dx)]
    fy = np.fft.fftfreq(len(window[0]))
    fx = np.fft.rfftfreq(len(window[1]))
    phase = fy[:, None, None] * dy[None, None, :] + fx[None, :, None] * dx[None, None, :]
    basis = 2 * share * np.cos(2 * np.pi * phase)
    basis[..., 0] = 1
    return basis.reshape(-1, len(dy))
