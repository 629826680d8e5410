"""The noise that can be foretold from beyond the hole's rim, and taken out of what is learned.

A hole hides the pixels whose noise is *strongly* correlated with the hidden pixel's. A detector's
point spread has tails, though: a correlation of 0.04 at two pixels lies beyond a 3×3 hole, and the
network learns to foretell a little noise from there. In a clear movie this is nothing. In one whose
noise has a hundred times the power of its picture it is as much as all that there is to see.

The measured noise correlation says exactly how much. Let the hidden pixel's noise be ``n(p)``, and
``Σ a(q) n(q)`` its best linear prediction from the noise of the visible pixels ``q`` of the same
frame. Then

    y(p) − Σ a(q) (y(q) − s(q)) = s(p) + [n(p) − Σ a(q) n(q)],

and the noise left in the brackets is uncorrelated with everything visible. A network that is
trained to predict this, instead of ``y(p)``, learns the picture ``s`` alone. The ``s(q)`` on the
left is the network's own present prediction, held fixed in the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .network import Hole

__all__ = ["Leakage", "correlation_to_remember", "leak_kernel"]

# How far beyond the furthest correlated pixel others are asked, whose noise tells what part of that
# pixel's noise is not the hidden one's.
_AROUND = 3
# Smallest eigenvalue allowed in a measured correlation matrix, in units of the variance.
_FLOOR = 0.02


def correlation_to_remember(
    correlation: np.ndarray, error: float, *, sigmas: float = 2.0
) -> tuple[tuple[float, ...], ...]:
    """Return the part of a noise correlation that stands out of its error.

    Parameters
    ----------
    correlation
        ``(2R+1, 2R+1)`` noise correlation, 1 in the middle.
    error
        Standard error of one of its values.
    sigmas
        What lies within so many standard errors of zero counts as zero.

    Returns
    -------
    tuple of tuples
        ``(2r+1, 2r+1)``, cut to the offsets that count; ``((1.0,),)`` for white noise.
    """
    radius = len(correlation) // 2
    if not np.isfinite(error):
        return ((1.0,),)
    sure = np.where(np.abs(correlation) > sigmas * error, correlation, 0.0)
    rows, columns = np.nonzero(sure)
    reach = max(np.abs(np.concatenate((rows, columns)) - radius).max(initial=0), 0)
    kept = sure[radius - reach : radius + reach + 1, radius - reach : radius + reach + 1]
    return tuple(tuple(round(float(v), 6) for v in row) for row in kept) or ((1.0,),)


def leak_kernel(correlation: np.ndarray, hole: Hole) -> np.ndarray:
    """Return the best linear prediction of a hidden pixel's noise from the noise around its hole.

    Parameters
    ----------
    correlation
        ``(2r+1, 2r+1)`` noise correlation.
    hole
        Rows × columns that are hidden.

    Returns
    -------
    ndarray
        ``(2k+1, 2k+1)`` weights ``a`` of the noise at each offset, 0 inside the hole. Without
        correlation beyond the hole it is ``[[0]]``.
    """
    reach = len(correlation) // 2
    if 2 * reach < min(hole):
        return np.zeros((1, 1))
    k = reach + _AROUND
    y, x = np.mgrid[-k : k + 1, -k : k + 1].reshape(2, -1)
    seen = (np.abs(y) > hole[0] // 2) | (np.abs(x) > hole[1] // 2)
    places = np.stack((y[seen], x[seen]), axis=1)

    def between(offsets: np.ndarray) -> np.ndarray:
        known = (np.abs(offsets) <= reach).all(axis=-1)
        near = np.clip(offsets, -reach, reach) + reach
        return np.where(known, correlation[near[..., 0], near[..., 1]], 0.0)

    wanted = between(places)
    if not wanted.any():
        return np.zeros((1, 1))
    # A measured matrix need not be positive; its small eigenvalues are what errors made of it.
    values, vectors = np.linalg.eigh(between(places[:, None] - places))
    weights = vectors @ ((vectors.T @ wanted) / np.maximum(values, _FLOOR))
    kernel = np.zeros(seen.shape)
    kernel[seen] = weights
    return kernel.reshape(2 * k + 1, 2 * k + 1)


class Leakage:
    """What leaks through each hole, ready for training.

    Parameters
    ----------
    correlation
        What `correlation_to_remember` gave; empty for "not to be corrected".
    turned
        Training turns its samples by 90°: the mean over both directions counts. (They are always
        mirrored, so that the mean over mirror images counts in any case.)
    """

    def __init__(self, correlation: Sequence[Sequence[float]], *, turned: bool) -> None:
        c = np.asarray(correlation, np.float64) if correlation else np.ones((1, 1))
        c = (c + c[::-1]) / 2
        c = (c + c[:, ::-1]) / 2
        self.correlation = (c + c.T) / 2 if turned else c
        self._kernels: dict[Hole, Tensor | None] = {}  # on the device that training uses

    def foretold(self, residual: Tensor, hole: Hole) -> Tensor | float:
        """Return the noise of each pixel as foretold from the residual beyond its hole.

        Parameters
        ----------
        residual
            ``(b, h, w)`` noisy − predicted, 0 where a pixel is not to be trusted.
        hole
            The hole.

        Returns
        -------
        Tensor or float
            ``(b, h, w)``, or 0 where nothing leaks.
        """
        if hole not in self._kernels:
            weights = leak_kernel(self.correlation, hole).astype(np.float32)
            made = torch.from_numpy(weights)[None, None].to(residual.device)
            self._kernels[hole] = made if weights.any() else None
        kernel = self._kernels[hole]
        if kernel is None:
            return 0.0
        return F.conv2d(residual[:, None].float(), kernel, padding=kernel.shape[-1] // 2)[:, 0]
