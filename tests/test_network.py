"""The networks: exactly blind, as blind as needed and no more, for any hole, size and window."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shine_em.compute import autocast
from shine_em.errors import ShineError
from shine_em.network import (
    VIEWS,
    Donut,
    Hole,
    LeanNetwork,
    NetworkConfig,
    PaperNetwork,
    build,
    check_hole,
)

KINDS = ("lean", "paper")
CHANNELS = {"lean": 8, "paper": 4}  # lean: enough that some feature is alive everywhere
HOLES = [(1, 1), (3, 3), (5, 5), (9, 9), (15, 15), (1, 5), (7, 3)]
Network = LeanNetwork | PaperNetwork
Position = tuple[int, int]


def make(
    kind: str,
    *,
    frames: int = 5,
    open_slots: tuple[int, ...] | None = None,
    hole: Hole = (3, 3),
    dtype: torch.dtype = torch.float64,
) -> Network:
    """Return a network whose every weight and bias is random."""
    if open_slots is None:
        open_slots = tuple(i for i in range(frames) if i != frames // 2)
    torch.manual_seed(7)
    network = build(NetworkConfig(kind, frames, open_slots, CHANNELS[kind], max(hole) // 2))
    for name, p in network.named_parameters():
        if name.endswith(("bias", "changes")) or name.startswith("last"):
            torch.nn.init.normal_(p, std=0.1)  # nothing starts at zero here
    return network.to(dtype)


def gradients(
    network: Network,
    size: tuple[int, int],
    positions: Sequence[Position],
    hole: Hole,
    shift: int = 0,
    views: int = 1,
) -> Tensor:
    """Return d output[positions[i]] / d window, ``(i, frames, h, w)``: one random window each."""
    generator = torch.Generator().manual_seed(11)
    shape = (len(positions), network.config.frames, *size)
    window = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    out = network(window, [hole], shift, views)[0]
    sum(out[i, y, x] for i, (y, x) in enumerate(positions)).backward()
    assert window.grad is not None
    return window.grad


def in_hole(grad: Tensor, position: Position, hole: Hole) -> Tensor:
    """Return the part of one sample's ``(frames, h, w)`` gradient that lies in its hole."""
    (y, x), (rows, columns) = position, (hole[0] // 2, hole[1] // 2)
    return grad[:, max(0, y - rows) : y + rows + 1, max(0, x - columns) : x + columns + 1]


def assert_blind(
    network: Network,
    size: tuple[int, int],
    positions: Sequence[Position],
    hole: Hole,
    shift: int = 0,
    views: int = 1,
) -> None:
    config = network.config
    hidden = [i for i in range(config.frames) if i not in config.open_slots]
    influence = torch.zeros(config.frames, dtype=torch.float64)
    grads = gradients(network, size, positions, hole, shift, views)
    for grad, position in zip(grads, positions, strict=True):
        inside = in_hole(grad, position, hole)
        assert torch.count_nonzero(inside[hidden]) == 0, position  # exactly
        assert torch.count_nonzero(grad[hidden]) > 0  # what surrounds the hole is seen
        influence += inside.abs().sum((1, 2))
    assert all(influence[i] > 0 for i in config.open_slots)


@pytest.mark.parametrize("hole", HOLES, ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_have_no_influence_at_all(kind: str, hole: Hole) -> None:
    network = make(kind, hole=hole)
    # Long enough for the widest donut's taps on either side, so that they could leak.
    along = [(4 + phase, 90 + phase) for phase in range(8)]
    assert_blind(network, (16, 187), along, hole)
    assert_blind(network, (187, 16), [(x, y) for y, x in along], hole)


@pytest.mark.parametrize("hole", [(1, 1), (3, 3), (5, 7)], ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_blind_at_every_alignment_to_the_pooling_grid(kind: str, hole: Hole) -> None:
    positions = [(6 + dy, 6 + dx) for dy in range(8) for dx in range(8)]
    assert_blind(make(kind, hole=hole), (20, 20), positions, hole)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("hole", [(1, 1), (3, 3), (5, 7)], ids=lambda h: f"{h[0]}x{h[1]}")
def test_blind_in_mirrored_views_too(hole: Hole, shift: int) -> None:
    positions = [(6 + d, 9 + 2 * d) for d in range(8)] + [(0, 0), (20, 26), (0, 13), (20, 1)]
    assert_blind(make("lean", hole=hole), (21, 27), positions, hole, shift, views=len(VIEWS))


def test_views_are_averaged_as_if_the_movie_had_been_mirrored() -> None:
    network = make("lean")
    window = torch.randn(2, 5, 24, 40, dtype=torch.float64)
    with torch.inference_mode():
        single = [network(window.flip(axes), HOLES).flip(axes) for axes in VIEWS]
        for views in range(1, len(VIEWS) + 1):
            mean = torch.stack(single[:views]).mean(0)
            together = network(window, HOLES, views=views)
            torch.testing.assert_close(together, mean, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(single[0], single[1])


@pytest.mark.parametrize("size", [(17, 23), (61, 45)])
@pytest.mark.parametrize("kind", KINDS)
def test_blind_at_borders_and_corners(kind: str, size: tuple[int, int]) -> None:
    height, width = size
    network = make(kind)
    ys, xs = (0, 1, height // 2, height - 1), (0, 8, width - 2, width - 1)
    assert_blind(network, size, [(y, x) for y in ys for x in xs], (7, 3))


@pytest.mark.parametrize("open_slots", [(), (0, 4), (1,)])
@pytest.mark.parametrize("kind", KINDS)
def test_blinded_neighbours_are_as_blind_as_the_centre(
    kind: str, open_slots: tuple[int, ...]
) -> None:
    network = make(kind, open_slots=open_slots)
    positions = [(4 + phase, 90 + phase) for phase in range(8)]
    assert_blind(network, (16, 187), positions, (3, 3))
    assert_blind(network, (16, 187), positions, (1, 5), shift=1)


def test_blind_with_neighbours_out_of_place() -> None:
    network = make("lean")
    window = torch.randn(1, 5, 24, 24, dtype=torch.float64)
    with torch.inference_mode():
        outputs = [network(window, [(3, 3)], shift) for shift in (0, 1, 2)]
    assert not torch.equal(outputs[0], outputs[1])  # each number has weights of its own
    assert not torch.equal(outputs[1], outputs[2])
    for shift in (1, 2):
        assert_blind(network, (24, 24), [(8 + k, 9 + k) for k in range(8)], (3, 3), shift)


@pytest.mark.parametrize("hole", HOLES, ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_next_to_the_hole_are_seen(kind: str, hole: Hole) -> None:
    network = make(kind, hole=hole)
    positions = [(8 + phase, 8 + phase) for phase in range(8)]
    grad = gradients(network, (24, 24), positions, hole)
    rows, columns = hole[0] // 2 + 1, hole[1] // 2 + 1
    for dy in (-rows, 0, rows):
        for dx in (-columns, 0, columns):
            if dy or dx:
                seen = torch.stack(
                    [grad[i, 2, y + dy, x + dx] for i, (y, x) in enumerate(positions)]
                )
                assert seen.abs().amax() > 0, (dy, dx)


@pytest.mark.parametrize("kind", KINDS)
def test_every_dilation_is_the_smallest_that_is_blind(kind: str) -> None:
    """One pixel less in any donut leaks: the tests above would notice, and nothing is wasted."""
    hole = (3, 3)
    network = make(kind, hole=hole)
    positions = [(4 + phase, 90 + phase) for phase in range(8)]
    donuts = [m for m in network.modules() if isinstance(m, Donut)]
    assert len(donuts) == {"lean": 4, "paper": 9}[kind]
    for donut in donuts:
        kept, donut.reach = donut.reach, donut.reach - 2**donut.level
        grads = gradients(network, (16, 187), positions, hole)
        donut.reach = kept
        leaks = [in_hole(g, p, hole)[2] for g, p in zip(grads, positions, strict=True)]
        assert any(torch.count_nonzero(leak) > 0 for leak in leaks), (donut.level, donut.spread)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_blind_bit_for_bit_as_it_is_run(kind: str, precision: str) -> None:
    """Wild values in the hole change no bit of the output in the layout and types of real runs."""
    network = make(kind, dtype=torch.float32).to(memory_format=torch.channels_last)
    window = torch.randn(1, 5, 61, 75, generator=torch.Generator().manual_seed(3))
    window = window.contiguous(memory_format=torch.channels_last)
    device = torch.device("cpu")
    with torch.inference_mode(), autocast(device, precision):
        before = network(window, [(5, 3)])[0, 0]
        for y, x in ((30, 30), (0, 74), (37, 41)):
            changed = window.clone()
            changed[0, 2, max(0, y - 2) : y + 3, max(0, x - 1) : x + 2] += 1000
            after = network(changed, [(5, 3)])[0, 0]
            assert torch.equal(after[y, x], before[y, x])
            assert not torch.equal(after, before)


def test_paper_network_has_the_published_size() -> None:
    """1.09 M parameters and 287 GFLOP per 512×512 frame (the reference implementation's)."""
    network = build(NetworkConfig("paper", channels=64, paper_radius=1))
    assert network.parameter_count() == pytest.approx(1.09e6, rel=0.1)
    assert not any("bias" in name for name, _ in network.named_parameters())
    assert _gflop(network) == pytest.approx(287, rel=0.1)


def test_lean_network_needs_at_most_a_twentieth() -> None:
    assert _gflop(build(NetworkConfig())) <= 287 / 20


def _gflop(network: Network) -> float:
    """Count 2 operations per multiply-add for one 512×512 frame, from a 64×64 one."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, network.config.frames, 64, 64), [(3, 3)])
    return float(counter.get_total_flops()) * 64 / 1e9


@pytest.mark.parametrize("kind", KINDS)
def test_several_holes_in_one_pass_equal_single_passes(kind: str) -> None:
    network = make(kind)
    window = torch.randn(2, 5, 33, 47, dtype=torch.float64)
    with torch.inference_mode():
        together = network(window, HOLES)
        single = [network(window, [hole])[0] for hole in HOLES]
    assert together.shape == (len(HOLES), 2, 33, 47)
    for a, b in zip(together, single, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together[1], together[2])  # the hole does matter


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    frames=st.sampled_from([1, 3, 5, 7]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    hole=st.sampled_from(HOLES),
    opened=st.integers(0, 6),
)
def test_any_window_and_any_size(
    kind: str, frames: int, height: int, width: int, hole: Hole, opened: int
) -> None:
    neighbours = [i for i in range(frames) if i != frames // 2]
    network = make(kind, frames=frames, open_slots=tuple(neighbours[:opened]), dtype=torch.float32)
    with torch.inference_mode():
        out = network(torch.randn(1, frames, height, width), [hole])
    assert out.shape == (1, 1, height, width)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("hole", [(1, 1), (15, 5)], ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_beyond_the_halo_matters(kind: str, hole: Hole) -> None:
    network = make(kind, hole=hole)
    halo = network.halo(hole)
    assert halo % network.stride == 0
    centre = halo + 16
    positions = [(phase, centre + phase) for phase in range(8)]
    grad = gradients(network, (8, 2 * halo + 40), positions, hole)
    far = 0
    for g, (_, x) in zip(grad, positions, strict=True):
        assert torch.count_nonzero(g[..., : x - halo]) == 0
        assert torch.count_nonzero(g[..., x + halo + 1 :]) == 0
        far += int(torch.count_nonzero(g[..., : x - halo // 2]))
        far += int(torch.count_nonzero(g[..., x + halo // 2 :]))
    assert far > 0  # nor is the halo idle


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_with_a_halo_equal_the_whole_frame(kind: str) -> None:
    hole = (3, 3)
    network = make(kind, dtype=torch.float32)
    halo, stride = network.halo(hole), network.stride
    width = 2 * halo + 101
    inner = 14 * stride
    window = torch.randn(1, 5, 13, width, generator=torch.Generator().manual_seed(5))
    for turned in (False, True):
        full = window.transpose(2, 3) if turned else window
        with torch.inference_mode():
            whole = network(full, [hole])[0, 0]
            for start in range(0, width, inner):
                low, high = max(0, start - halo), min(width, start + inner + halo)
                keep = slice(start, min(width, start + inner))
                part = full[:, :, low:high] if turned else full[..., low:high]
                inside = slice(keep.start - low, keep.stop - low)
                tile = network(part, [hole])[0, 0]
                if turned:
                    torch.testing.assert_close(tile[inside], whole[keep], rtol=0, atol=1e-5)
                else:
                    torch.testing.assert_close(tile[:, inside], whole[:, keep], rtol=0, atol=1e-5)


def test_build_is_repeatable_and_all_parameters_are_used() -> None:
    for kind in KINDS:
        for open_slots in ((0, 1, 3, 4), (0,), ()):
            config = NetworkConfig(kind, 5, open_slots, CHANNELS[kind])
            torch.manual_seed(1)
            a = build(config)
            torch.manual_seed(1)
            b = build(config)
            assert all(
                torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)
            )
            for p in a.parameters():
                torch.nn.init.normal_(p, std=0.1)
            a(torch.randn(1, 5, 64, 64), [(3, 3)], shift=1).square().mean().backward()
            unused = [n for n, p in a.named_parameters() if p.grad is None]
            assert not unused


def test_features_that_are_below_zero_everywhere_can_still_learn() -> None:
    window = torch.randn(1, 5, 96, 96, generator=torch.Generator().manual_seed(0))
    for slope, alive in ((0.1, True), (0.0, False)):
        torch.manual_seed(0)
        network = build(NetworkConfig(slope=slope))
        with torch.no_grad():
            network.last.weight.fill_(1.0)
            for name, p in network.named_parameters():
                if name.endswith("bias"):
                    p.fill_(-9.0)
        network(window, [(3, 3)]).square().sum().backward()
        kernel = network.get_parameter("trunk.2.1.weight")
        assert kernel.grad is not None
        assert bool(kernel.grad.any()) is alive


def test_models_from_before_there_was_a_slope_have_none() -> None:
    values = NetworkConfig().to_dict()
    del values["slope"]
    assert NetworkConfig.from_dict(values) == NetworkConfig(slope=0.0)


def test_config_survives_json() -> None:
    for config in (NetworkConfig(), NetworkConfig("paper", 7, (0, 6), 64, 4)):
        assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "unet"},
        {"frames": 4},
        {"frames": 0, "open_slots": ()},
        {"open_slots": (2,)},
        {"open_slots": (5,)},
        {"open_slots": (-1,)},
        {"frames": 3},  # the default open slots are those of five frames
    ],
)
def test_impossible_networks_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ShineError):
        NetworkConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "hole", [(2, 3), (3, 4), (0, 1), (-1, 3), (17, 3), (3, 17), (3,), (3, 3, 3)]
)
def test_impossible_holes_are_refused(hole: tuple[int, ...]) -> None:
    with pytest.raises(ShineError, match="odd × odd"):
        check_hole(hole)  # type: ignore[arg-type]
    with pytest.raises(ShineError, match="odd × odd"):
        make("lean")(torch.zeros(1, 5, 16, 16, dtype=torch.float64), [hole])  # type: ignore[list-item]
