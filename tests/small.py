"""Small movies, and models that need no training, for the tests of the main job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from shine_em.checkpoint import Model
from shine_em.doctor import Health
from shine_em.events import Event
from shine_em.network import Hole, NetworkConfig, build
from shine_em.patches import Normalisation
from shine_em.training import TrainedState
from shine_em.training_settings import PRESETS


def scene(
    t: int = 12, h: int = 48, w: int = 48, *, dose: float = 20.0, seed: int = 0
) -> np.ndarray:
    """Return the expected counts, ``(t, y, x)``: a particle that moves over a resting lattice."""
    phase = np.random.default_rng([seed, 1]).uniform(0, 6, 4)
    ks, ys, xs = np.ogrid[:t, :h, :w]
    y0, x0 = h / 2 + h / 8 * np.sin(ks / 4 + phase[0]), w / 2 + 0.5 * ks - t / 4
    particle = np.exp(-((ys - y0) ** 2 + (xs - x0) ** 2) / 30)
    lattice = np.cos(ys / 2.6 + phase[1]) * np.cos(xs / 3.1 + phase[2])
    return dose * (1 + 0.7 * particle + 0.2 * lattice)


def noisy(
    t: int = 12, h: int = 48, w: int = 48, *, dose: float = 20.0, seed: int = 0
) -> np.ndarray:
    """Return `scene` as counted electrons, ``(t, y, x)`` uint16."""
    counts = np.random.default_rng([seed, 2]).poisson(scene(t, h, w, dose=dose, seed=seed))
    return counts.astype(np.uint16)


def health(shape: tuple[int, int, int], *, location: float = 20.0, scale: float = 6.0) -> Health:
    """Return the input check of a movie without any fault."""
    t, y, x = shape
    return Health(
        findings=(),
        duplicate_of=np.arange(t),
        blank=np.zeros(t, bool),
        segment=np.zeros(t, int),
        bad_pixels=np.zeros((y, x), bool),
        spike_threshold=np.inf,
        spike_floor=-np.inf,
        location=location,
        scale=scale,
        frame_means=np.full(t, location),
    )


def model(
    kind: str = "lean",
    *,
    frames: int = 5,
    blinded: Sequence[int] = (),
    holes: Sequence[Hole] = ((3, 3),),
    channels: int = 4,
    seed: int = 0,
) -> Model:
    """Return a model whose weights are all random: whatever it may not see, it does not know.

    ``blinded`` holds the lags whose neighbours are blinded.
    """
    half = frames // 2
    slots = tuple(i for i in range(frames) if i != half and abs(i - half) not in blinded)
    config = NetworkConfig(kind, frames, slots, channels, max(holes[0]) // 2)
    torch.manual_seed(seed)
    network = build(config)
    with torch.no_grad():
        for p in network.parameters():
            if not p.count_nonzero():  # biases, and what training starts from zero
                p.normal_(std=0.1)
        # An output of the size that a trained network's has.
        *_, last = (m for m in network.modules() if getattr(m, "out_channels", 0) == 1)
        last.weight /= network(torch.randn(1, frames, 32, 32), holes).std()
    weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
    settings = replace(
        PRESETS[kind], holes=tuple(holes), hole=holes[0], blinded_lags=tuple(blinded)
    )
    state = TrainedState(config, settings, best=weights)
    return Model(state, Normalisation(20.0, 6.0), tuple(holes))


def stop_at(stage: str, done: int | None = None) -> Callable[[Event], None]:
    """Return a listener that presses Ctrl-C at a stage, or when so much of it is done."""

    def listen(event: Event) -> None:
        if event.stage == stage and done in (None, event.done):
            raise KeyboardInterrupt

    return listen
