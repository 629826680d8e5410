"""Muon: momentum whose direction is orthogonalised, for convolution kernels.

A step of gradient descent on a kernel, seen as a matrix (outputs × inputs · taps), mostly moves a
few dominant directions. Muon replaces the momentum by the nearest semi-orthogonal matrix, so that
all directions move alike (K. Jordan et al., "Muon: an optimizer for hidden layers in neural
networks", 2024). In the few hundred steps of a short job this is worth 1.8 dB over Adam (see
docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Muon", "dump_state", "load_state", "optimisers", "orthogonalised"]

# Quintic Newton–Schulz iteration of the reference above: drives all singular values to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalised(matrices: Sequence[Tensor], *, steps: int = 5) -> list[Tensor]:
    """Return about the nearest semi-orthogonal matrices: U Vᵀ for each M = U S Vᵀ.

    The iteration multiplies M by polynomials of its Gram matrix M Mᵀ, which all commute. So only
    the small Gram matrices are iterated, all of them padded to one size and in one batch.

    Parameters
    ----------
    matrices
        ``(rows, columns)`` each, of any sizes.
    steps
        Newton–Schulz iterations; five bring singular values to about 0.7–1.2.
    """
    wide = [m.mT if m.shape[0] > m.shape[1] else m for m in matrices]
    wide = [m / (m.norm() + 1e-7) for m in wide]
    size = max(m.shape[0] for m in wide)
    gram = torch.stack([F.pad(m @ m.mT, (0, size - len(m)) * 2) for m in wide])
    identity = torch.eye(size, device=gram.device, dtype=gram.dtype)
    product = identity.expand_as(gram)
    for _ in range(steps):
        factor = _A * identity + _B * gram + _C * (gram @ gram)
        product = factor @ product
        gram = factor @ factor @ gram
    done = [p[: len(m), : len(m)] @ m for p, m in zip(product, wide, strict=True)]
    return [d.mT if m.shape[0] > m.shape[1] else d for d, m in zip(done, matrices, strict=True)]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised direction, for parameters that are stacks of kernels.

    Parameters
    ----------
    params
        ``(outputs, inputs, ...)``, each seen as a matrix of ``outputs`` rows.
    lr
        Rate: the singular values of a step.
    momentum
        Share of the old momentum that a step keeps.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            self._move([p for p in group["params"] if p.grad is not None], group)

    def _move(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in params]
        keep = group["momentum"]
        torch._foreach_lerp_(momenta, gradients, 1 - keep)
        ahead = torch._foreach_lerp(gradients, momenta, keep)  # Nesterov
        directions = orthogonalised([g.flatten(1) for g in ahead])
        for p, direction in zip(params, directions, strict=True):
            rows, columns = direction.shape
            p.sub_(direction.view(p.shape), alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


# How much faster than Adam's parameters Muon's kernels move.
_KERNEL_RATIO = 7.0


def optimisers(
    kind: str, named: dict[str, torch.nn.Parameter], rate: float
) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a network; each group's ``ratio`` multiplies the common rate.

    Parameters
    ----------
    kind
        "muon" (Adam for what is no kernel), "adam" or "radam".
    named
        The network's parameters by name.
    rate
        Peak learning rate.
    """
    if kind != "muon":
        one = torch.optim.RAdam if kind == "radam" else torch.optim.Adam
        return [one([{"params": list(named.values()), "ratio": 1.0}], lr=rate)]

    def is_kernel(name: str, p: Tensor) -> bool:
        # The gradients of a stem's changes come and go, which momentum does not suit.
        return p.ndim > 1 and min(p.shape[:2]) > 1 and not name.endswith("changes")

    kernels = [p for name, p in named.items() if is_kernel(name, p)]
    others = [p for name, p in named.items() if not is_kernel(name, p)]
    return [
        Muon([{"params": kernels, "ratio": _KERNEL_RATIO}], lr=rate),
        torch.optim.Adam([{"params": others, "ratio": 1.0}], lr=rate, fused=True),
    ]


def dump_state(
    several: list[torch.optim.Optimizer], named: dict[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """Flatten the optimisers' state to named tensors."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        for optimiser in several
        for name, p in named.items()
        for key, value in optimiser.state.get(p, {}).items()
    }


def load_state(
    several: list[torch.optim.Optimizer],
    named: dict[str, torch.nn.Parameter],
    flat: dict[str, Tensor],
) -> None:
    """Undo `dump_state`."""
    owner = {id(p): o for o in several for group in o.param_groups for p in group["params"]}
    for path, value in flat.items():
        name, key = path.rsplit("/", 1)
        optimiser, p = owner[id(named[name])], named[name].detach()
        if value.ndim:  # in the parameter's memory layout: fused kernels read both side by side
            kept = torch.empty_like(p).copy_(value)
        else:  # a step count; fused kernels want it beside the parameter
            kept = value.to(p.device if optimiser.defaults.get("fused") else "cpu", copy=True)
        optimiser.state[named[name]][key] = kept
