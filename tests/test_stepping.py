"""A training step: its gradients are limited, and a broken batch moves nothing."""

from __future__ import annotations

import math

import torch
from small import health, noisy

from shine_em.compute import Lanes
from shine_em.leakage import Leakage
from shine_em.movie import Movie
from shine_em.network import NetworkConfig, build
from shine_em.optimiser import optimisers
from shine_em.patch_pool import PatchPool
from shine_em.patches import Normalisation
from shine_em.stepping import Stepper, stepper_for
from shine_em.training_settings import TrainingSettings

SHAPE = (8, 32, 32)


def made() -> Stepper:
    torch.manual_seed(0)
    network = build(NetworkConfig(channels=4))
    state = health(SHAPE)
    pool = PatchPool(Movie.from_array(noisy(*SHAPE)), state, Normalisation.of(state), frames=5)
    settings = TrainingSettings(crop=32)
    several = optimisers("muon", dict(network.named_parameters()), 1e-3)
    cpu = torch.device("cpu")
    kind = stepper_for(several, pool, device=cpu, precision="fp32")
    return kind(
        network, several, settings, pool, Leakage((), turned=True), device=cpu, precision="fp32",
        lanes=Lanes(1),
    )  # fmt: skip


def gradient(step: Stepper) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None])


def test_a_step_moves_the_network_along_gradients_of_limited_norm() -> None:
    step = made()
    before = [p.detach().clone() for p in step.parameters]
    assert math.isfinite(step(step.prepare(0), 1e-3))
    assert any((p != b).any() for p, b in zip(step.parameters, before, strict=True))
    assert float(gradient(step).norm()) <= 1.0001
    windows, weights = step.prepare(1).tensors
    step(step.prepare(1)._replace(tensors=(1000 * windows, weights)), 1e-3)
    assert 0.999 < float(gradient(step).norm()) < 1.001


def test_a_broken_batch_moves_nothing() -> None:
    step = made()
    step(step.prepare(0), 1e-3)
    before = [p.detach().clone() for p in step.parameters]
    windows, weights = step.prepare(1).tensors
    windows[0, 2, 3, 3] = math.inf
    assert not math.isfinite(step(step.prepare(1)._replace(tensors=(windows, weights)), 1e-3))
    assert all((p == b).all() for p, b in zip(step.parameters, before, strict=True))
    assert not gradient(step).any()
