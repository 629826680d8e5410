"""Muon: what its directions are, and that it minimises."""

import subprocess
import sys

import pytest
import torch

from shine_em.optimiser import Adam, Muon, orthogonalised, set_rate


@pytest.mark.parametrize("shapes", [[(4, 9)], [(9, 4), (3, 3)], [(16, 144), (1, 5), (32, 288)]])
def test_directions_are_nearly_orthogonal(shapes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) * 10 ** torch.randn(()) for shape in shapes]
    for m, d in zip(matrices, orthogonalised(matrices), strict=True):
        assert d.shape == m.shape
        values = torch.linalg.svdvals(d)
        assert float(values.min()) > 0.3
        assert float(values.max()) < 1.3
        u, _, v = torch.linalg.svd(m, full_matrices=False)
        nearest = u @ v
        alike = float((d * nearest).sum() / d.norm() / nearest.norm())
        assert alike > 0.95  # the same directions as U Vᵀ


def test_batching_changes_nothing() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(3, 7), torch.randn(8, 20), torch.randn(6, 2)]
    together = orthogonalised(matrices)
    for m, d in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalised([m])[0], d, rtol=1e-4, atol=1e-4)


def test_it_finds_a_minimum_and_skips_what_has_no_gradient() -> None:
    torch.manual_seed(0)
    target = torch.randn(6, 4, 3, 3)
    moved, kept = torch.nn.Parameter(torch.zeros(6, 4, 3, 3)), torch.nn.Parameter(torch.ones(2, 2))
    optimiser = Muon([moved, kept], lr=0.1)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        moved.grad = None
        (moved - target).square().sum().backward()
        optimiser.step()
    assert float((moved.detach() - target).abs().max()) < 0.05
    assert torch.equal(kept.detach(), torch.ones(2, 2))


def test_adam_is_adam() -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    pair = Adam(ours, lr=0.03), torch.optim.Adam(theirs, lr=0.03)
    for step in range(30):
        for params, optimiser in zip((ours, theirs), pair, strict=True):
            for k, p in enumerate(params):  # the second one has a gradient now and then
                p.grad = torch.sin(7 * p.detach() + step) if k == 0 or step % 3 == 0 else None
            optimiser.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_lean_recipe_loads_no_compiler() -> None:
    code = (
        "import sys; from shine_em.network import NetworkConfig, build;"
        "from shine_em.optimiser import optimisers;"
        "optimisers('muon', dict(build(NetworkConfig()).named_parameters()), 1e-3);"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [Adam, Muon])
def test_a_rate_may_lie_in_a_tensor(kind: type[Adam] | type[Muon]) -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 4)
    moved = []
    for rate in (0.03, torch.tensor(0.03)):
        p = torch.nn.Parameter(start.clone())
        optimiser = kind([p], lr=0.0)
        for step in range(5):
            set_rate([optimiser], rate)
            p.grad = torch.sin(7 * p.detach() + step)
            optimiser.step()
        moved.append(p.detach())
    torch.testing.assert_close(moved[0], moved[1])
    assert (moved[0] != start).all()
