"""Batches cut on the device are those that the processor cuts, whatever was drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import health, noisy

from shine_em.device_patches import DevicePatches
from shine_em.movie import Movie
from shine_em.patch_pool import PatchPool
from shine_em.patches import Normalisation

SHAPE = (16, 40, 52)
RAW = noisy(*SHAPE)
RAW[4, 10, 10] = 60_000  # a spike


def pool(*, memory: int = 10**9, drift: float = 0.0, frames: int = 5) -> PatchPool:
    bad = np.zeros(SHAPE[1:], bool)
    bad[7, 9] = bad[20:23, 30] = True
    path = np.random.default_rng(0).uniform(-drift, drift, (SHAPE[0], 2))
    state = replace(
        health(SHAPE), bad_pixels=bad, spike_threshold=10_000.0, path=path,
        segment=np.repeat((0, 1), (11, 5)),
    )  # fmt: skip
    return PatchPool(
        Movie.from_array(RAW), state, Normalisation.of(state), frames=frames,
        memory_bytes=memory, held_out=[3],
    )  # fmt: skip


@given(
    step=st.integers(0, 10**6), crop=st.integers(3, 60), turn=st.booleans(),
    drift=st.sampled_from([0.0, 3.0, 60.0]), frames=st.sampled_from([1, 3, 5, 9]),
    whole=st.booleans(), one_sided=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_they_equal_those_of_the_pool(
    step: int, crop: int, turn: bool, drift: float, frames: int, whole: bool, one_sided: float
) -> None:
    drawn = pool(memory=10**9 if whole else RAW.nbytes - 1, drift=drift, frames=frames)
    how = {"size": 3, "crop": crop, "seed": 1, "turn": turn, "one_sided": one_sided}
    draws = drawn.draw(step, **how)
    expected = drawn.batch(draws)
    on_device = DevicePatches(drawn, "cpu")
    windows, weights = on_device.cut(on_device.places(draws), draws.shape)
    np.testing.assert_array_equal(windows.numpy(), expected.windows)
    np.testing.assert_array_equal(weights.numpy(), expected.weights)
    assert draws.shift == expected.shift


def test_a_movie_goes_only_to_a_card_that_has_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not DevicePatches.fit(pool(), torch.device("cpu"))
    needed = 5 * RAW.size
    for free, fits in ((2 * needed + 2, True), (2 * needed - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, n=free: (n, n))
        assert DevicePatches.fit(pool(), torch.device("cuda")) is fits
