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
    "line_noise",
    "lower_cluster",
    "quiet_tiles",
    "raw_correlation",
    "silent_frequencies",
    "tile_levels",
    "tile_spectra",
]


# Picture below this share of the noise power does no harm to its correlation.
_SILENCE = 0.02


@dataclass(frozen=True)
class CorrelationFit:
    """Noise covariance fitted to a spectrum.

    Attributes
    ----------
    covariance, error
        ``(2R+1, 2R+1)``: covariance at each offset, and its standard error.
    kept
        ``(fy, fx)``: frequencies that took part; the others hold picture.
    spectrum
        ``(fy, fx)``: the noise spectrum that the covariance gives.
    solve
        ``(offsets, fy·fx)``: the linear map from a change of the spectrum to that of the half
        plane of covariances.
    """

    covariance: np.ndarray
    error: np.ndarray
    kept: np.ndarray
    spectrum: np.ndarray
    solve: np.ndarray

    def apply(self, spectrum: np.ndarray) -> np.ndarray:
        """Return the ``(2R+1, 2R+1)`` covariance of a spectrum of about the same noise power."""
        change = self.solve @ (spectrum - self.spectrum).ravel()
        return self.covariance + _mirrored(change, self.covariance.shape[0] // 2)


def raw_correlation(
    frame: np.ndarray, radius: int, bad_pixels: np.ndarray | None = None
) -> np.ndarray:
    """Return the correlation of one frame with itself shifted (SHINE, Eq. 4).

    Means and variances are those of the pixels that both hold, so the result is the exact Pearson
    correlation at each offset. Frames larger than 1024×1024 are cropped around their middle.

    Parameters
    ----------
    frame
        ``(y, x)``; pixels that are not finite are left out.
    radius
        Largest offset R, px.
    bad_pixels
        ``(y, x)`` boolean mask of pixels to leave out.

    Returns
    -------
    ndarray
        ``(2R+1, 2R+1)``, 1 in the centre, 0 where a part of the frame is constant.
    """
    from scipy import fft

    frame = np.asarray(frame, float)
    good = np.isfinite(frame)
    if bad_pixels is not None:
        good &= ~np.asarray(bad_pixels, bool)
    crop = tuple(
        slice((n - min(n, 1024)) // 2, (n - min(n, 1024)) // 2 + min(n, 1024)) for n in frame.shape
    )
    frame, good = frame[crop], good[crop]
    mean = frame[good].mean() if good.any() else 0.0
    value = np.where(good, frame - mean, 0.0)
    scale = value.std() or 1.0
    value /= scale
    shape = [fft.next_fast_len(n + radius, real=True) for n in value.shape]
    f_good, f_value, f_square = (fft.rfft2(a, shape) for a in (good.astype(float), value, value**2))

    def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        full = fft.irfft2(np.conj(a) * b, shape)
        index = np.arange(-radius, radius + 1)
        return full[np.ix_(index, index)]

    n = np.maximum(np.rint(products(f_good, f_good)), 1)
    mean_x, mean_y = products(f_value, f_good) / n, products(f_good, f_value) / n
    covariance = products(f_value, f_value) / n - mean_x * mean_y
    var_x = products(f_square, f_good) / n - mean_x**2
    var_y = products(f_good, f_square) / n - mean_y**2
    norm = np.sqrt(np.maximum(var_x * var_y, 0))
    out = np.where(norm > 1e-9, covariance / np.maximum(norm, 1e-9), 0.0)
    out[radius, radius] = 1.0
    return np.clip(out, -1, 1)


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


def line_noise(spectrum: np.ndarray, fit: CorrelationFit, samples: float) -> tuple[float, float]:
    """Return the share of the noise that whole rows, and whole columns, have in common.

    An offset of its own for each row puts power at fx = 0 only, for each column at fy = 0, where
    the taper spreads it over 1.5 bins. What is not significant counts as 0.
    """
    height, width = spectrum.shape[0], 2 * (spectrum.shape[1] - 1)
    radius = fit.covariance.shape[0] // 2
    total = max(float(fit.covariance[radius, radius]), 1e-30)
    shares = []
    for line, across in (
        ((spectrum / fit.spectrum)[height // 8 : height // 2, 0], width),
        ((spectrum / fit.spectrum)[0, width // 8 :], height),
    ):
        excess = float(np.median(line)) - 1 if line.size > 4 else 0.0
        error = 1.25 * np.sqrt(HANN_OVERLAP / max(line.size, 1) / samples)
        level = float(fit.spectrum.mean()) / total
        shares.append(excess * level * 1.5 / across if excess > 5 * error else 0.0)
    return shares[0], shares[1]


def quiet_tiles(spectra: Spectra, alive: np.ndarray) -> np.ndarray:
    """Return those of the tiles in which the picture changes least: lowest low-frequency excess."""
    tiles = int(alive.sum())
    fy, fx = spectra.frequencies
    radius = np.hypot(fy, fx)
    low, high = spectra.usable & (radius < 0.2), spectra.usable & (radius >= 0.2)
    if tiles < 4 or not low.any() or not high.any():
        return alive
    noise = tile_spectra(spectra)[alive]
    excess = noise[:, low].mean(axis=1) / np.maximum(noise[:, high].mean(axis=1), 1e-30)
    samples = spectra.samples(1 if spectra.pairs[1] else 0, 1)
    spread = HANN_OVERLAP * np.sqrt((1 / low.sum() + 1 / high.sum()) / samples)
    typical = max(float(np.median(excess)), 1e-6)
    _, kept = lower_cluster(excess, (spread + 0.03) * typical)
    kept |= excess < np.min(excess[kept])
    fewest = max(4, tiles // 8)
    if kept.sum() < fewest:
        kept = excess <= np.sort(excess)[fewest - 1]
    quiet = alive.copy()
    quiet[alive] = kept
    return quiet


def silent_frequencies(spectra: Spectra, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the frequencies whose change from frame to frame is noise.

    Returns
    -------
    silent
        ``(fy, fx)``: frames have nothing in common here but what they share at all frequencies, so
        there is no picture at all.
    steady
        ``(fy, fx)``: the change does not depend on how far apart the frames are, so the picture,
        if any, stands still (or jumps at random about a place).

    Both hold on the average over the tiles, and in single tiles with either sign (a lattice that
    rotates brings its own phase back in one tile and reverses it in another).
    """
    tiles = int((weights > 0).sum())
    later = [(spectra.change[k - 1], spectra.samples(k, tiles)) for k in (2, 4) if spectra.pairs[k]]
    if spectra.far_pairs:
        later.append((spectra.far, spectra.samples(0, tiles)))
    if not spectra.pairs[1]:
        return np.zeros(spectra.usable.shape, bool), spectra.usable
    first, samples = spectra.change[0], spectra.samples(1, tiles)
    silent, steady = spectra.usable.copy(), np.ones_like(spectra.usable)
    for change, count in [(first, samples), *later]:
        silent &= _alike(change, spectra.power, weights, 1 / np.sqrt(2 * count), spectra.usable)
    for change, _ in later:
        steady &= _alike(first, change, weights, 1 / np.sqrt(samples), spectra.usable)
    return silent, steady


def _alike(
    spectrum: np.ndarray,
    reference: np.ndarray,
    weights: np.ndarray,
    error: float,
    usable: np.ndarray,
) -> np.ndarray:
    """Return where a spectrum is the same share of the reference as at most frequencies."""
    from scipy import ndimage

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, 3, mode=("wrap", "nearest"))

    chosen = weights > 0
    whole = np.average(reference, axis=0, weights=weights)
    share = smooth(1 - np.average(spectrum, axis=0, weights=weights) / whole)
    # 3×3 bins of a Hann-tapered spectrum have 0.54 of the error of one.
    centre, _ = lower_cluster(share[usable], 0.54 * error)
    alike = np.abs(share - centre) < max(2 * error, _SILENCE)
    apart = 1 - spectrum[chosen] / np.maximum(reference[chosen], 1e-12 * whole)
    square = smooth((apart**2).mean(axis=0))
    typical = float(np.percentile(square[usable], 30))
    spread = 0.54 * typical * np.sqrt(2 / chosen.sum())
    centre, _ = lower_cluster(square[usable], spread)
    return alike & (np.abs(square - centre) < max(4 * spread, _SILENCE**2))


def fit_correlation(
    spectrum: np.ndarray,
    *,
    window: tuple[np.ndarray, np.ndarray],
    usable: np.ndarray,
    silent: np.ndarray,
    radius: int,
    samples: float,
) -> CorrelationFit:
    """Fit the covariance of noise to a power spectrum in which some frequencies hold picture.

    Noise whose correlation ends within r pixels has the spectrum Σ_r C(r) w(r) cos(2π f·r), with w
    the taper's own correlation: the shorter the correlation, the smoother the spectrum. The
    picture only ever adds power. So ever less smooth spectra are fitted from below, each with the
    frequencies dropped that stand above it, until one overshoots nowhere and explains all
    frequencies known to hold noise only (or else most of the plane). What it leaves is the
    picture; all offsets are then fitted to the rest.

    Parameters
    ----------
    spectrum
        ``(fy, fx)`` power over the half plane fx ≥ 0.
    window
        Tapers along y and x.
    usable
        ``(fy, fx)`` frequencies that may be used at all.
    silent
        ``(fy, fx)`` frequencies known to hold noise only, see `silent_frequencies`.
    radius
        Largest offset R, px.
    samples
        Independent samples behind each frequency bin; sets the statistical error.
    """
    relative = max(1 / np.sqrt(samples), 1e-3)
    many = np.where(usable, plane_weights(len(window[1])) / 2, 0)
    silent = silent & usable
    told = silent.sum() > 0.1 * usable.sum()
    best, kept, start, settled = -1.0, usable, np.zeros(1), False
    for short in [r for r in (0, 1, 2, 3, 4, 6, 8, 12) if r < radius] + [radius]:
        trial, misfit, half = _peeled(spectrum, _basis(window, short), many, relative)
        share = float(trial.sum() / usable.sum())
        below = float((misfit[usable] < -4).mean())
        heard = float(trial[silent].mean()) if told else 0.0
        if below < 0.002 and heard > 0.97:
            kept, start = trial, half
            break
        score = share - 10 * below
        if not settled and score > best + 0.03:
            best, kept, start = score, trial, half
        if not settled and share > 0.6 and below < 0.002:
            kept, start, settled = trial, half, True
        if settled and not told:
            break
    # All offsets are fitted at last, but may leave the short fit only where the data ask for it:
    # frequencies that were dropped leave combinations of far offsets open.
    basis = _basis(window, radius)
    dy, dx = _half_plane(radius)
    start = _widened(start, radius)
    prior = 0.1 * np.exp(-np.hypot(dy, dx) / 4)
    for _ in range(3):
        model, half, normal, right = _least_squares(
            spectrum, basis, many * kept, relative, start, prior
        )
        misfit = (spectrum - model) / _tolerance(model, relative)
        if (kept & (misfit < 4)).sum() > 0.2 * usable.sum():
            kept = kept & (misfit < 4)
    inverse = np.linalg.inv(normal)
    return CorrelationFit(
        covariance=_mirrored(half, radius),
        error=_mirrored(np.sqrt(np.diag(inverse)), radius),
        kept=kept,
        spectrum=model,
        solve=inverse @ right,
    )


def _peeled(
    spectrum: np.ndarray, basis: np.ndarray, many: np.ndarray, relative: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit from below: drop what stands above the fit, the highest first, and fit again."""
    usable = many > 0
    kept = usable
    for _ in range(25):
        model, half, _, _ = _least_squares(spectrum, basis, many * kept, relative)
        misfit = (spectrum - model) / _tolerance(model, relative)
        limit = max(4.0, 0.4 * float(misfit[usable].max()))
        new = usable & (misfit < limit)
        if new.sum() < 0.2 * usable.sum() or (limit == 4.0 and np.array_equal(new, kept)):
            break
        kept = new
    return kept, misfit, half


def _least_squares(
    spectrum: np.ndarray,
    basis: np.ndarray,
    many: np.ndarray,
    relative: float,
    start: np.ndarray | None = None,
    prior: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit covariances to a spectrum, close to `start` within `prior` (in units of the mean power).

    Returns the fitted spectrum, the covariances, the normal matrix, and its right-hand side per
    bin of the spectrum.
    """
    level = max(float(np.average(spectrum, weights=many)), 1e-30)
    if start is None:
        start = np.zeros(basis.shape[1])
        start[0] = level
    model = (basis @ start).reshape(spectrum.shape)
    half = start
    for _ in range(2):
        weight = (many / (np.maximum(model, 0) + 0.3 * level) ** 2).ravel()
        right = basis.T * (weight / (relative * HANN_OVERLAP) ** 2)
        normal = right @ basis
        penalty = 1e-9 * np.diag(normal).mean() if prior is None else 1 / (prior * level) ** 2
        normal[np.diag_indices_from(normal)] += penalty
        change = right @ (spectrum.ravel() - basis @ start)
        half = start + np.linalg.solve(normal, change)
        model = (basis @ half).reshape(spectrum.shape)
    return model, half, normal, right


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


def _widened(half: np.ndarray, radius: int) -> np.ndarray:
    """Return the half plane of a larger radius, zero where the smaller one ends."""
    short = (int(np.sqrt(2 * len(half) - 1)) - 1) // 2
    wide = np.pad(_mirrored(half, short), radius - short)
    return wide.ravel()[wide.size // 2 :]


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
