"""Noise foretold from beyond the hole: computed exactly, and kept out of what is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from shine_em.doctor import check
from shine_em.leakage import Leakage, correlation_to_remember, leak_kernel
from shine_em.movie import Movie
from shine_em.network import NetworkConfig, build
from shine_em.training import train
from shine_em.training_settings import TrainingSettings


def tailed_noise(n: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit noise with a core and a tail, and its exact correlation to 4 pixels."""
    y, x = np.mgrid[-4:5, -4:5]
    spread = np.exp(-(x**2 + y**2) / 0.5) + 0.02 * (np.hypot(x, y) < 2.5)
    spread /= np.sqrt((spread**2).sum())
    correlation = ndimage.correlate(np.pad(spread, 4), spread, mode="constant")[4:-4, 4:-4]
    white = np.random.default_rng(seed).normal(size=(n, side, side))
    noise = np.stack([ndimage.convolve(frame, spread, mode="wrap") for frame in white])
    return noise.astype(np.float32), correlation


@pytest.mark.parametrize("hole", [(1, 1), (3, 3), (1, 5), (5, 3)])
def test_the_kernel_is_the_least_squares_prediction(hole: tuple[int, int]) -> None:
    noise, correlation = tailed_noise(24, 96)
    kernel = leak_kernel(correlation, hole)
    k = len(kernel) // 2
    foretold = np.stack([ndimage.correlate(frame, kernel, mode="wrap") for frame in noise])
    left = noise - foretold
    assert left.var() < noise.var()
    # Nothing visible is left in it: the mark of a least-squares prediction.
    for dy, dx in [(0, 3), (3, 0), (2, 2), (-3, 1), (0, 4)]:
        if abs(dy) > hole[0] // 2 or abs(dx) > hole[1] // 2:
            r = float(np.mean(left * np.roll(noise, (-dy, -dx), (1, 2))))
            assert abs(r) < 5 / np.sqrt(noise.size), (dy, dx)
    inside = kernel[
        k - hole[0] // 2 : k + hole[0] // 2 + 1, k - hole[1] // 2 : k + hole[1] // 2 + 1
    ]
    assert not inside.any()


@settings(max_examples=25)
@given(rows=st.integers(0, 7), columns=st.integers(0, 7), reach=st.integers(0, 3))
def test_any_hole_and_correlation_give_a_finite_symmetric_kernel(
    rows: int, columns: int, reach: int
) -> None:
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    correlation = 0.9 ** (x**2 + y**2)  # far from positive definite when cut off
    kernel = leak_kernel(correlation, (2 * rows + 1, 2 * columns + 1))
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-9)


def test_only_what_stands_out_of_the_error_is_remembered() -> None:
    correlation = np.zeros((17, 17))
    correlation[8, 8], correlation[8, 7], correlation[8, 9], correlation[2, 2] = 1, 0.3, 0.3, 0.009
    assert correlation_to_remember(correlation, 0.005) == ((0, 0, 0), (0.3, 1, 0.3), (0, 0, 0))
    assert correlation_to_remember(correlation, float("inf")) == ((1.0,),)
    white = Leakage(((1.0,),), turned=True)
    assert white.foretold(torch.ones(1, 8, 8), (1, 1)) == 0.0
    assert Leakage((), turned=True).foretold(torch.ones(1, 8, 8), (1, 1)) == 0.0


def test_training_keeps_out_the_noise_that_passes_the_rim() -> None:
    noise, correlation = tailed_noise(24, 64)
    movie = Movie.from_array(100 + 10 * noise)
    health = check(movie)
    recipe = TrainingSettings(steps=80, crop=64, holes=((3, 3),), seed=1)
    window = torch.from_numpy(noise[:5])[None]
    passed = {}
    for name, known in (("plain", ()), ("corrected", tuple(map(tuple, correlation.tolist())))):
        state = train(movie, health, NetworkConfig(), replace(recipe, correlation=known))
        network = build(state.config)
        network.load_state_dict(state.average)
        with torch.inference_mode():
            out = network(window, [(3, 3)])[0, 0].numpy()
        foretold = ndimage.correlate(noise[2], leak_kernel(correlation, (3, 3)), mode="nearest")
        passed[name] = float(np.vdot(out, foretold) / np.vdot(foretold, foretold))
    assert passed["plain"] > 0.3
    assert abs(passed["corrected"]) < 0.3 * passed["plain"]
