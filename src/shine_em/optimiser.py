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
from torch import Tensor

__all__ = [
    "Adam",
    "Muon",
    "Optimiser",
    "dump_state",
    "load_state",
    "optimisers",
    "orthogonalised",
    "set_rate",
]

# Quintic Newton–Schulz iteration of the reference above: drives all singular values to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class _Optimiser:
    """The little of `torch.optim.Optimizer` that is needed here.

    That class, as it is made, imports a compiler that is never used: two seconds of every job.
    Nothing here waits for the device, and a rate may lie on it, so that a step can be recorded as
    a CUDA graph.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float) -> None:
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, **group} for group in groups]  # type: ignore[dict-item]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self._move(params, [p.grad for p in params], group["lr"])

    def _move(self, params: list[Tensor], gradients: list[Tensor], rate: float | Tensor) -> None:
        raise NotImplementedError

    def _kept(
        self, params: list[Tensor], key: str, *, shape: tuple[()] | None = None
    ) -> list[Tensor]:
        """Return what is remembered of each parameter, zeros at first: of its shape by default."""
        states = [self.state.setdefault(p, {}) for p in params]
        for p, state in zip(params, states, strict=True):
            if key not in state:
                state[key] = p.new_zeros(p.shape if shape is None else shape)
        return [state[key] for state in states]


class Adam(_Optimiser):
    """Adam (D. P. Kingma, J. Ba, ICLR 2015, algorithm 1), with the usual decay rates."""

    decay = 0.9, 0.999
    epsilon = 1e-8

    def _move(self, params: list[Tensor], gradients: list[Tensor], rate: float | Tensor) -> None:
        means, squares = self._kept(params, "exp_avg"), self._kept(params, "exp_avg_sq")
        # Each has its own count: without a gradient it does not move.
        counts = self._kept(params, "step", shape=())
        first, second = self.decay
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        torch._foreach_add_(counts, 1)
        n = torch.stack(counts)
        steps, roots = -rate / (1 - first**n), (1 - second**n).sqrt()
        sizes = torch._foreach_div(torch._foreach_sqrt(squares), list(roots.unbind()))
        torch._foreach_add_(sizes, self.epsilon)
        torch._foreach_div_(updates := torch._foreach_mul(means, list(steps.unbind())), sizes)
        torch._foreach_add_(params, updates)


class Muon(_Optimiser):
    """Momentum with orthogonalised direction, for parameters that are stacks of kernels.

    Parameters
    ----------
    params
        ``(outputs, inputs, ...)``, each seen as a matrix of ``outputs`` rows.
    lr
        Rate: the singular values of a step.
    """

    momentum = 0.9  # the share of the old momentum that a step keeps

    def _move(self, params: list[Tensor], gradients: list[Tensor], rate: float | Tensor) -> None:
        momenta = self._kept(params, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, momenta, self.momentum)  # Nesterov
        directions = orthogonalised([g.flatten(1) for g in ahead])
        for p, direction in zip(params, directions, strict=True):
            rows, columns = direction.shape
            p.sub_(direction.view(p.shape) * (rate * max(1.0, rows / columns) ** 0.5))


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
    rows, columns = (max(m.shape[i] for m in wide) for i in (0, 1))
    stack = wide[0].new_zeros(len(wide), rows, columns)
    views = [padded[: m.shape[0], : m.shape[1]] for padded, m in zip(stack, wide, strict=True)]
    torch._foreach_copy_(views, wide)
    stack /= torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) + 1e-7
    gram = stack @ stack.mT
    product = None
    for left in reversed(range(steps)):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        product = factor if product is None else factor @ product
        if left:
            gram = factor @ factor @ gram
    done = (stack if product is None else product @ stack).unbind()
    return [
        d[: m.shape[1], : m.shape[0]].mT
        if m.shape[0] > m.shape[1]
        else d[: m.shape[0], : m.shape[1]]
        for d, m in zip(done, matrices, strict=True)
    ]


Optimiser = Adam | Muon | torch.optim.RAdam

# How much faster than Adam's parameters Muon's kernels move.
_KERNEL_RATIO = 7.0


def optimisers(kind: str, named: dict[str, torch.nn.Parameter], rate: float) -> list[Optimiser]:
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
        everything = [{"params": list(named.values()), "ratio": 1.0}]
        if kind == "radam":
            return [torch.optim.RAdam(everything, lr=rate)]
        return [Adam(everything, lr=rate)]

    def is_kernel(name: str, p: Tensor) -> bool:
        # The gradients of a stem's changes come and go, which momentum does not suit.
        return p.ndim > 1 and min(p.shape[:2]) > 1 and not name.endswith("changes")

    kernels = [p for name, p in named.items() if is_kernel(name, p)]
    others = [p for name, p in named.items() if not is_kernel(name, p)]
    return [
        Muon([{"params": kernels, "ratio": _KERNEL_RATIO}], lr=rate),
        Adam([{"params": others, "ratio": 1.0}], lr=rate),
    ]


def set_rate(several: Sequence[Optimiser | torch.optim.Optimizer], rate: float | Tensor) -> None:
    """Set the common rate; each group's ``ratio``, 1 where it has none, multiplies it."""
    for optimiser in several:
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("ratio", 1.0)


def dump_state(
    several: Sequence[Optimiser], named: dict[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """Flatten the optimisers' state to named tensors."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        for optimiser in several
        for name, p in named.items()
        for key, value in optimiser.state.get(p, {}).items()
    }


def load_state(
    several: Sequence[Optimiser],
    named: dict[str, torch.nn.Parameter],
    flat: dict[str, Tensor],
) -> None:
    """Undo `dump_state`."""
    owner = {id(p): o for o in several for group in o.param_groups for p in group["params"]}
    for path, value in flat.items():
        name, key = path.rsplit("/", 1)
        optimiser, p = owner[id(named[name])], named[name].detach()
        # PyTorch's own optimisers keep their counts on the CPU.
        place = p.device if isinstance(optimiser, _Optimiser) or value.ndim else "cpu"
        optimiser.state.setdefault(named[name], {})[key] = value.to(place, copy=True)
