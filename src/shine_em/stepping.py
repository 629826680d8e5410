"""One training step after the other, on a processor or a graphics card.

On a CUDA card the lean network's step is some five hundred small kernels, which take longer to
launch one by one than to compute. There each kind of step (one per hole and number of neighbours
out of place) is recorded once as a CUDA graph and replayed whole; the batches are cut on the card
(`device_patches`), so that a step waits for nothing but the numbers that say what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compute import Lanes, autocast, memory_format
from .device_patches import DevicePatches
from .leakage import Leakage
from .network import Hole, LeanNetwork, PaperNetwork
from .optimiser import Adam, Muon, Optimiser, set_rate
from .patch_pool import Draws, PatchPool
from .training_settings import TrainingSettings

__all__ = ["GraphStepper", "Prepared", "Stepper", "blind_error", "stepper_for"]


class Prepared(NamedTuple):
    """A batch that is ready: tensors for the device, and the kind of step that it needs."""

    tensors: tuple[Tensor, ...]
    hole: Hole
    shift: int


def blind_error(
    predicted: Tensor, windows: Tensor, trusted: Tensor, hole: Hole, leakage: Leakage
) -> Tensor:
    """Return predicted − noisy, less the noise that leaks through the hole's surroundings."""
    error = predicted - windows[:, windows.shape[1] // 2]
    return error - leakage.foretold(error.detach() * trusted, hole)


class Stepper:
    """Moves a network by one step at a time.

    Parameters
    ----------
    network, optimisers
        What is trained, on its device, and what moves it.
    settings, pool, leakage
        The recipe, the patches and the noise that leaks.
    device, precision
        Where and how to compute.
    lanes
        Samples are computed side by side in these.
    """

    def __init__(
        self,
        network: LeanNetwork | PaperNetwork,
        optimisers: Sequence[Optimiser],
        settings: TrainingSettings,
        pool: PatchPool,
        leakage: Leakage,
        *,
        device: torch.device,
        precision: str,
        lanes: Lanes,
    ) -> None:
        self.network, self.optimisers = network, optimisers
        self.settings, self.pool, self.leakage = settings, pool, leakage
        self.device, self.precision, self.lanes = device, precision, lanes
        self.parameters = list(network.parameters())
        self.memory = memory_format(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def prepare(self, step: int) -> Prepared:
        """Make the batch of a step ready; may be called in another thread."""
        batch = self.pool.batch(self._draw(step))
        made = (torch.from_numpy(batch.windows), torch.from_numpy(batch.weights))
        if self.device.type == "cuda":
            made = (made[0].pin_memory(), made[1].pin_memory())
        return Prepared(made, self._hole(step), batch.shift)

    def _draw(self, step: int) -> Draws:
        s = self.settings
        return self.pool.draw(
            step, size=s.batch, crop=s.crop, seed=s.seed, turn=s.turn, reverse=s.reverse,
            one_sided=s.one_sided,
        )  # fmt: skip

    def _hole(self, step: int) -> Hole:
        rng = np.random.default_rng([self.settings.seed, 2, step])
        return self.settings.holes[int(rng.integers(len(self.settings.holes)))]

    def __call__(self, prepared: Prepared, rate: float) -> float:
        """Make a step at a rate and return the loss; where that is not finite, nothing moves."""
        set_rate(self.optimisers, rate)
        windows, weights = (b.to(self.device, non_blocking=True) for b in prepared.tensors)
        loss = self._gradients(windows, weights, prepared.hole, prepared.shift)
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)  # type: ignore[arg-type]
        self._clip()
        value = float(loss)
        if math.isfinite(value):
            for optimiser in self.optimisers:
                self.scaler.step(optimiser)  # type: ignore[arg-type]
        self.scaler.update()
        return value

    def _gradients(self, windows: Tensor, weights: Tensor, hole: Hole, shift: int) -> Tensor:
        """Set the parameters' gradients and return the loss."""
        trusted = weights.sum().clamp(min=1)

        def share(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
            window, weight = part[0].contiguous(memory_format=self.memory), part[1]
            with autocast(self.device, self.precision):
                predicted = self.network(window, [hole], shift)[0]
            error = blind_error(predicted.float(), window, weight, hole, self.leakage).square()
            loss = (error * weight).sum() / trusted
            scaled = self.scaler.scale(loss)
            return loss.detach(), torch.autograd.grad(scaled, self.parameters, allow_unused=True)

        parts = zip(windows.chunk(self.lanes.count), weights.chunk(self.lanes.count), strict=True)
        losses, gradients = zip(*self.lanes.map(share, parts), strict=True)
        for p, *several in zip(self.parameters, *gradients, strict=True):
            found = [g for g in several if g is not None]
            p.grad = sum(found[1:], found[0]) if found else None
        return torch.stack(losses).sum()

    def _clip(self) -> None:
        """Limit the gradients' common norm to 1; those that are not finite become 0."""
        moved = [p for p in self.parameters if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in moved])  # type: ignore[union-attr]
        norm = torch.linalg.vector_norm(flat)
        flat = (flat / norm.clamp(min=1)).nan_to_num(0.0, 0.0, 0.0)
        for p, part in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
            p.grad = part.view(p.shape)


class GraphStepper(Stepper):
    """Replays recorded steps on a CUDA card; the same steps as those of `Stepper`."""

    def __init__(self, *args: object, **how: object) -> None:
        super().__init__(*args, **how)  # type: ignore[arg-type]
        s = self.settings
        self.patches = DevicePatches(self.pool, self.device)
        self.shape = self.pool.crop(s.crop, turn=s.turn)
        self.places = torch.zeros(s.batch, self.patches.columns, dtype=torch.long).to(self.device)
        self.rate = torch.zeros((), device=self.device)
        self.graphs: dict[tuple[Hole, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        with torch.cuda.device(self.device):
            self._record()

    def _kinds(self) -> Iterator[tuple[Hole, int]]:
        for hole in dict.fromkeys(self.settings.holes):
            for shift in range(self.pool.frames // 2 + 1):
                yield hole, shift

    def _record(self) -> None:
        """Record every kind of step, and leave network and optimisers as they were."""
        self.places.copy_(self.prepare(0).tensors[0])
        kept = [p.detach().clone() for p in self.parameters]
        before = {
            id(p): {k: v.clone() for k, v in state.items()}
            for o in self.optimisers
            for p, state in o.state.items()
        }
        here, beside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        beside.wait_stream(here)
        try:
            with torch.cuda.stream(beside):
                for kind in self._kinds():  # libraries and optimisers set themselves up
                    self._step(*kind)
            pool = torch.cuda.graph_pool_handle()
            for kind in self._kinds():
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(
                    graph, pool=pool, stream=beside, capture_error_mode="thread_local"
                ):
                    loss = self._step(*kind)
                self.graphs[kind] = graph, loss
        finally:
            here.wait_stream(beside)
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)
                for o in self.optimisers:
                    for p, state in o.state.items():
                        for key, value in state.items():
                            old = before.get(id(p), {}).get(key)
                            value.zero_() if old is None else value.copy_(old)

    def prepare(self, step: int) -> Prepared:
        """Draw the batch of a step."""
        draws = self._draw(step)
        return Prepared((self.patches.places(draws).pin_memory(),), self._hole(step), draws.shift)

    def __call__(self, prepared: Prepared, rate: float) -> float:
        """Make a step at a rate and return the loss; where that is not finite, no weight moves."""
        graph, loss = self.graphs[prepared.hole, prepared.shift]
        with torch.cuda.device(self.device):
            self.places.copy_(prepared.tensors[0], non_blocking=True)
            self.rate.fill_(rate)
            graph.replay()
            return float(loss)

    def _step(self, hole: Hole, shift: int) -> Tensor:
        windows, weights = self.patches.cut(self.places, self.shape)
        loss = self._gradients(windows, weights, hole, shift)
        self._clip()
        set_rate(self.optimisers, self.rate * loss.isfinite())
        for optimiser in self.optimisers:
            optimiser.step()
        return loss


def stepper_for(
    optimisers: Sequence[Optimiser], pool: PatchPool, *, device: torch.device, precision: str
) -> type[Stepper]:
    """Return the kind that makes the steps: recorded ones where device and recipe allow it.

    Float16's gradients are scaled by what the last steps were like, and PyTorch's own optimisers
    ask the device for numbers: neither can be recorded.
    """
    ours = all(isinstance(o, (Adam, Muon)) for o in optimisers)
    recorded = ours and precision != "fp16" and DevicePatches.fit(pool, device)
    return GraphStepper if recorded else Stepper
