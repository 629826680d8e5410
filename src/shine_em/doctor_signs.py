"""Signs that a movie was processed before it came here: what `check(thorough=True)` adds."""

from __future__ import annotations

import math

import numpy as np

from .doctor import Finding
from .doctor_pixels import pile_up
from .movie import Movie

__all__ = ["find_signs"]

_PAIRS = 12  # pairs of adjacent frames that are read
_CROP = 512  # pixels on a side that are examined, about the middle
_SIDES = ("top", "bottom", "left", "right")


def find_signs(movie: Movie, usable: np.ndarray, duplicate_of: np.ndarray) -> list[Finding]:
    """Return signs of drift correction, binning, interpolation, compression and conversion.

    Parameters
    ----------
    movie
        The movie.
    usable
        Indices of the frames that are neither blank nor copies.
    duplicate_of
        ``(t,)`` the first frame with the same pixels.
    """
    middle, widths, adjacent = _read(movie, usable)
    findings = _borders(widths)
    enlarged = _enlarged(middle)
    findings += enlarged
    findings += _grey_levels(middle, movie.dtype)
    if adjacent:
        if not enlarged:
            findings += _interpolated(middle)
        findings += _compressed(middle)
    findings += _frame_rate(duplicate_of)
    return findings


def _read(movie: Movie, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read pairs of consecutive usable frames, or what few there are.

    Returns the ``(f, y, x)`` middles of the frames as finite numbers, the ``(f, 4)`` widths of
    the filled-in lines along the sides of each, and whether the frames come in pairs.
    """
    picked = usable.tolist()
    if len(usable) >= 2:
        starts = np.unique(np.linspace(0, len(usable) - 2, _PAIRS).round().astype(int))
        picked = [int(usable[s + k]) for s in starts for k in (0, 1)]
    middles, widths = [], []
    y0, x0 = (max(0, (n - _CROP) // 2) for n in movie.shape[1:])
    for frame in movie.frames(picked):
        widths.append([_filled(side) for side in (frame, frame[::-1], frame.T, frame.T[::-1])])
        middle = frame[y0 : y0 + _CROP, x0 : x0 + _CROP].astype(np.float64)
        good = np.isfinite(middle)
        if not good.all():
            middle[~good] = np.median(middle[good]) if good.any() else 0.0
        middles.append(middle)
    return np.stack(middles), np.array(widths), len(usable) >= 2


def _borders(width: np.ndarray) -> list[Finding]:
    """Look for lines along the edges that are filled in, by one value or by repetition."""
    widest = width.max(axis=0)
    moving = (widest >= 2) & (np.ptp(width, axis=0) >= 1)
    if moving.any():
        where = ", ".join(f"{w} px {s}" for w, s in zip(widest, _SIDES, strict=True) if w)
        return [
            Finding(
                "drift-corrected",
                "warning",
                f"Filled-in borders change their width from frame to frame (up to {where}).",
                "The frames were shifted to correct drift: crop the borders away, and denoise the "
                "movie as recorded if you still have it, since shifting by parts of a pixel blurs "
                "the noise.",
            )
        ]
    if (widest >= 2).any():
        where = ", ".join(f"{w} px {s}" for w, s in zip(widest, _SIDES, strict=True) if w)
        return [
            Finding(
                "empty-border",
                "info",
                f"A border of the same width in every frame holds no picture ({where}).",
                "Nothing is lost by cropping it away before denoising.",
            )
        ]
    return []


def _filled(frame: np.ndarray) -> int:
    """Return how many first rows are constant, not finite or equal to the next row."""
    rows = len(frame) // 2
    part = frame[: rows + 1]
    constant = (part == part[:, :1]).all(axis=1)
    if part.dtype.kind == "f":
        constant |= ~np.isfinite(part).any(axis=1)
    # In sparse data a row without electrons is no filling but chance.
    middle = frame[rows // 2 : rows + rows // 2 + 1]
    alike = (middle[:, 1:] == middle[:, :-1]).mean() if middle.shape[1] > 1 else 1.0
    if alike ** (frame.shape[1] - 1) * rows > 1e-4:
        return 0
    count = int(np.argmin(constant[:rows])) if not constant[:rows].all() else rows
    repeated = (part[:-1] == part[1:]).all(axis=1)
    again = int(np.argmin(repeated)) if not repeated.all() else rows
    if constant[count:].any():
        count = 0
    if repeated[max(count, again) :].any():
        again = 0
    return max(count, again)


def _enlarged(frames: np.ndarray) -> list[Finding]:
    """Look for pixels that were repeated to enlarge the picture."""
    for factor in (4, 3, 2):
        for axis, name in ((2, "columns"), (1, "rows")):
            same = (np.diff(frames, axis=axis) == 0).mean(axis=(0, 3 - axis))
            fold = [same[k::factor].mean() for k in range(factor) if same[k::factor].size]
            if len(fold) == factor and sorted(fold)[1] > 0.99 > 0.8 > min(fold):
                return [
                    Finding(
                        "upsampled",
                        "warning",
                        f"The {name} come in groups of {factor} with identical values.",
                        "The picture was enlarged by repeating pixels, which hides the noise from "
                        f"a blind spot: bin it by {factor} first, nothing is lost.",
                    )
                ]
    return []


def _grey_levels(frames: np.ndarray, dtype: np.dtype) -> list[Finding]:
    """Look at which values occur: averaged counts, stretched contrast, 8-bit conversion."""
    values = frames.ravel()[:: max(1, frames.size // 2_000_000)]
    levels = np.unique(values)
    if len(levels) < 4 or len(levels) > 20_000 or values.size < 20 * len(levels):
        return []
    low, high = np.quantile(values, (0.02, 0.98))
    gaps = np.diff(levels[(levels >= low) & (levels <= high)])
    if not gaps.size:
        return []
    findings = []
    step = float(np.median(gaps))
    parts = round(1 / step) if step < 0.9 else 1
    if dtype.kind == "f" and 1 < parts <= 64 and _whole(levels * parts):
        findings.append(
            Finding(
                "binned",
                "info",
                f"All values are multiples of 1/{parts}, as after averaging {parts} counts.",
                "Pixels or frames were averaged: their noise is still independent, but the counts "
                f"are {parts} times the values, which matters for dose and noise statistics.",
            )
        )
    elif dtype.kind in "iu" and gaps.min() > 1.5:
        findings.append(
            Finding(
                "grey-level-gaps",
                "info",
                f"Only every {int(gaps.min())}th grey level occurs.",
                "The values were multiplied; the noise statistics count in these steps, denoising "
                "itself does not mind.",
            )
        )
    elif dtype.kind in "iu" and len(gaps) > 20 and (gaps > 1.5).mean() > 0.03:
        findings.append(
            Finding(
                "grey-level-gaps",
                "info",
                f"Grey levels are missing at {np.mean(gaps > 1.5):.0%} of the steps between common "
                "values.",
                "The contrast was stretched after the values had been rounded: some detail of the "
                "counts is gone, and the original export would be better.",
            )
        )
    clipped = max(pile_up(values, +1)[0], pile_up(values, -1)[0])
    if 30 < len(levels) <= 256 and clipped > 1e-3:
        findings.append(
            Finding(
                "8-bit-conversion",
                "warning",
                f"The movie holds {len(levels)} grey levels, and {clipped:.2%} of the pixels are "
                "clipped at an end.",
                "It was converted to 8 bit with its contrast cut off: counts are no longer counts "
                "and extremes are lost, so export the movie with its full range if you can.",
            )
        )
    return findings


def _whole(values: np.ndarray) -> bool:
    return bool(np.all(np.abs(values - np.round(values)) < 1e-3 + 1e-6 * np.abs(values)))


def _interpolated(frames: np.ndarray) -> list[Finding]:
    """Look for noise whose finest detail comes and goes, in time or with the position."""
    if min(frames.shape[1:]) < 32:
        return []
    findings = []
    fine, coarse = (_mixed(frames, k).var(axis=(1, 2)) for k in (1, 2))
    if (fine > 0).all() and (coarse > 0).all() and len(frames) >= 6:
        change = float(1.4826 * np.median(np.abs(np.diff(np.log(fine / coarse)))))
        chance = 2 * math.sqrt(4 / frames[0].size)
        if change > max(0.12, 3.5 * chance):
            findings.append(
                Finding(
                    "interpolated",
                    "warning",
                    "The finest detail of the noise comes and goes from frame to frame "
                    f"(typically by {math.expm1(change):.0%}).",
                    "The frames were shifted by parts of a pixel (drift correction), which ties "
                    "neighbour pixels together: use a larger blind spot, or the movie as recorded.",
                )
            )
    noise = frames[1::2] - frames[: len(frames) // 2 * 2 : 2]
    for across, name in ((noise, "columns"), (noise.transpose(0, 2, 1), "rows")):
        period, depth = _periodic(_likeness(across))
        if period:
            findings.append(
                Finding(
                    "interpolated",
                    "warning",
                    f"How alike the noise of adjacent {name} is comes and goes every "
                    f"{period:.2f} pixels (correlation ±{depth:.2f}).",
                    "The picture was resampled to another size, which ties neighbour pixels "
                    "together: denoise it at its original size, or use a larger blind spot.",
                )
            )
    return findings


def _mixed(frames: np.ndarray, k: int) -> np.ndarray:
    across = frames[:, :, k:] - frames[:, :, :-k]
    return across[:, k:] - across[:, :-k]


def _likeness(noise: np.ndarray) -> np.ndarray:
    """Return ``(x - 1,)`` the correlation of the noise of adjacent columns.

    Atoms in rows make the variance periodic, but not the correlation. Differences along y keep
    moving pictures out of it.
    """
    fine = np.diff(noise, axis=1)
    power = (fine**2).sum(axis=(0, 1))
    shared = (fine[:, :, 1:] * fine[:, :, :-1]).sum(axis=(0, 1))
    return shared / np.maximum(np.sqrt(power[1:] * power[:-1]), 1e-30)


def _periodic(profile: np.ndarray) -> tuple[float, float]:
    """Return period (pixels) and amplitude of a profile's clear period, else (0, 0)."""
    n = len(profile)
    wave = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(n)))
    first = max(2, n // 16)  # longer periods belong to the picture
    power = wave[first:] ** 2
    usual = np.median(power) / math.log(2)
    peak = int(np.argmax(power))
    depth = 4 * wave[first + peak] / n
    if power[peak] > 40 * usual and depth > 0.05:
        return n / (first + peak), float(depth)
    return 0.0, 0.0


def _compressed(frames: np.ndarray) -> list[Finding]:
    """Look for the 8×8 blocks of JPEG, and for the blocks that video copies between frames."""
    _, y, x = frames.shape
    if min(y, x) < 64:
        return []
    signs = []
    strength = _quantised_blocks(frames)
    if strength > 0.1:
        signs.append("the 8×8 blocks of JPEG hold rounded frequencies")
    seams = []
    for axis in (1, 2):
        steps = np.abs(np.diff(frames, axis=axis)).mean(axis=(0, 3 - axis))
        fold = np.array([steps[k::8].mean() for k in range(8)])
        top = int(np.argmax(fold))
        rest = np.delete(fold, top)
        clear = fold[top] > 1.03 * rest.mean() and fold[top] - rest.mean() > 6 * rest.std()
        seams.append(fold[top] / rest.mean() - 1 if clear else 0.0)
    pairs = frames[: len(frames) // 2 * 2].reshape(-1, 2, y, x)[:, :, : y // 8 * 8, : x // 8 * 8]
    blocks = pairs.reshape(len(pairs), 2, y // 8, 8, x // 8, 8)
    same = (blocks[:, 0] == blocks[:, 1]).all(axis=(2, 4))
    busy = np.ptp(blocks[:, 0], axis=(2, 4)) > 0
    copied = float((same & busy).sum() / max(1, busy.sum()))
    if min(seams) > 0:
        signs.append(f"steps are {min(seams):.0%} larger across the borders of 8×8 blocks")
    if copied > 0.005 and busy.mean() > 0.97:
        signs.append(f"{copied:.1%} of the 8×8 blocks are copied from the frame before")
    if not signs:
        return []
    return [
        Finding(
            "lossy-compression",
            "warning",
            f"The movie went through lossy compression (JPEG or video): {' and '.join(signs)}.",
            "Compression removes part of the noise and draws blocks and rings of its own, which "
            "denoising takes for picture: use the uncompressed recording.",
        )
    ]


def _quantised_blocks(frames: np.ndarray) -> float:
    """Return how much better cosine coefficients fall on a comb in one 8×8 raster than in others.

    JPEG rounds each coefficient to a multiple of its step, but only blocks of its own raster
    show it (Fan and de Queiroz, IEEE Trans. Image Process. 12, 230, 2003).
    """
    _, y, x = frames.shape
    rows, columns = y // 8 - 1, x // 8 - 1
    picked = frames[:: max(1, len(frames) * rows * columns // 1500)]
    k = np.arange(8)
    basis = 0.5 * np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 16)
    basis[0] /= math.sqrt(2)
    kernels = np.stack([np.outer(basis[u], basis[v]).ravel() for u, v in _FREQUENCIES], axis=1)
    turns = 2 * np.pi / np.arange(3, 41)
    comb = np.empty((8, 8, len(_FREQUENCIES)))
    for dy in range(8):
        for dx in range(8):
            part = picked[:, dy : dy + 8 * rows, dx : dx + 8 * columns]
            blocks = part.reshape(-1, rows, 8, columns, 8).swapaxes(2, 3).reshape(-1, 64)
            c = (blocks[:1500] @ kernels).astype(np.float32)
            waves = np.cos(c[:, :, None] * turns.astype(np.float32)).mean(axis=0)
            comb[dy, dx] = waves.max(axis=1)
    best = comb.reshape(64, -1)
    return float(np.median(best.max(axis=0) - np.partition(best, -2, axis=0)[-2]))


_FREQUENCIES = ((1, 1), (0, 2), (2, 0), (1, 2), (2, 1))


def _frame_rate(duplicate_of: np.ndarray) -> list[Finding]:
    """Look for a beat in the repeated frames."""
    repeated = np.flatnonzero(duplicate_of[1:] == duplicate_of[:-1]) + 1
    if len(repeated) < 4:
        return []
    gaps = np.diff(repeated)
    beat = int(np.median(gaps))
    if beat < 2 or np.mean(np.abs(gaps - beat) <= 1) < 0.9 or np.mean(gaps == beat) < 0.5:
        return []
    return [
        Finding(
            "frame-rate-conversion",
            "warning",
            f"Every {beat}th frame or so repeats the one before it.",
            "The movie was converted to a higher frame rate: its true frame time is longer than "
            "stated, and dropping the copies loses nothing.",
            tuple(int(i) for i in repeated),
        )
    ]
