"""The blind-spot networks: the paper's and the lean one, behind one small interface.

A blind-spot network predicts a pixel of the centre frame from everything but a hole of ``m × n``
pixels around it (paper, Eqs. 1 and 2; Krull et al., CVPR 2019; Honzátko et al., SDS 2020).
Both networks here keep an ordinary convolutional trunk and read it only through *donut*
convolutions: 3×3 kernels without their centre tap, dilated just past what the hidden pixels have
reached by then. Nothing after a donut mixes pixels, other than the bilinear upsampling that the
dilation already allows for. The donut's weights do not depend on its dilation, so the hole can be
changed after training, and several holes share one pass of the trunk.

How far a hidden pixel reaches. A feature at position ``q`` of level ``l`` (pixels of ``2**l``)
depends on the input pixels ``2**l q - a … 2**l q + 2**l - 1 + a``, where the spread ``a`` grows by
``2**l`` with every 3×3 convolution at that level, by ``2**(l-1)`` with a 4×4 convolution that
halves the resolution to that level, and not at all with 2×2 average pooling. Upsampled to full
resolution, output pixel ``p`` reads level-``l`` positions down to ``q_min`` with
``p - 2**l q_min ≤ reach``: ``2 (2**l - 1)`` for ``l`` bilinear doublings in a row,
``3 · 2**(l-1) - 1`` for one bilinear upsampling by ``2**l``; the upper side mirrors it. With a hole
of half-width ``r`` a tap at distance ``d`` stays blind if ``2**l d - a > reach + r``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ShineError

__all__ = [
    "VIEWS",
    "Hole",
    "LeanNetwork",
    "NetworkConfig",
    "PaperNetwork",
    "build",
    "check_hole",
    "frames_of",
    "upsampling_reach",
]

Hole = tuple[int, int]  # rows × columns, odd
LARGEST_HOLE = 15
# Axes (rows, columns) along which a window may be seen mirrored. Training mirrors its crops, yet
# the network's errors differ from one view to the next, and their mean has less of them.
VIEWS: tuple[tuple[int, ...], ...] = ((), (-2, -1), (-1,), (-2,))


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to rebuild a network.

    Attributes
    ----------
    kind
        "lean" or "paper".
    frames
        Frames in a window, odd; the centre frame is the one that is denoised.
    open_slots
        Window positions of the neighbours whose noise is independent of the centre frame's: these
        are seen whole. The other neighbours are blinded by the same hole as the centre frame.
    channels
        Features at full resolution (paper: 64).
    paper_radius
        Half-width of the hole that the paper's neighbour branch was made for (paper network only):
        it spreads the neighbours over the hole by that many further 3×3 convolutions.
    slope
        Of the lean network's rectifiers below zero. With 0, whose gradient ends there, a quarter of
        the features dies in 1500 steps (docs/benchmarks.md).
    """

    kind: str = "lean"
    frames: int = 5
    open_slots: tuple[int, ...] = (0, 1, 3, 4)
    channels: int = 16
    paper_radius: int = 1
    slope: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("lean", "paper"):
            raise ShineError(f"Unknown network {self.kind!r}: choose lean or paper.")
        if self.frames < 1 or self.frames % 2 == 0:
            raise ShineError(f"The number of input frames must be odd, not {self.frames}.")
        neighbours = set(range(self.frames)) - {self.centre}
        if not set(self.open_slots) <= neighbours:
            raise ShineError(f"Open slots {self.open_slots} are not neighbours in a window.")

    @property
    def centre(self) -> int:
        """Window position of the centre frame."""
        return self.frames // 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Rebuild what `to_dict` gave; models from before there was a slope have none."""
        return cls(**{"slope": 0.0, **values, "open_slots": tuple(values["open_slots"])})


def check_hole(hole: Hole) -> Hole:
    """Return ``hole`` if it is an odd m×n from 1×1 to 15×15; raise `ShineError` otherwise."""
    if len(hole) != 2 or any(n % 2 == 0 or not 1 <= n <= LARGEST_HOLE for n in hole):
        raise ShineError(
            f"The hole must be odd × odd, from 1x1 to {LARGEST_HOLE}x{LARGEST_HOLE}, "
            f"not {'x'.join(str(n) for n in hole)}."
        )
    return int(hole[0]), int(hole[1])


def build(config: NetworkConfig) -> LeanNetwork | PaperNetwork:
    """Return a freshly initialised network (deterministic under `torch.manual_seed`)."""
    return LeanNetwork(config) if config.kind == "lean" else PaperNetwork(config)


def upsampling_reach(level: int) -> int:
    """Return how far one bilinear upsampling by ``2**level`` reaches back, px (``reach`` above)."""
    return 3 * 2**level // 2 - 1 if level else 0


class Donut(nn.Module):
    """A 3×3 convolution without its centre tap, dilated past the hidden pixels.

    Parameters
    ----------
    inputs, outputs
        Channels.
    level
        Pyramid level: a pixel here is ``2**level`` input pixels wide.
    spread
        How many input pixels beyond its own extent a feature here depends on (``a`` above).
    reach
        How far upsampling reaches back, in input pixels (``reach`` above).
    """

    def __init__(
        self, inputs: int, outputs: int, *, level: int, spread: int, reach: int, bias: bool
    ) -> None:
        super().__init__()
        self.level, self.spread, self.reach = level, spread, reach
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 8))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.normal_(self.weight, std=(8 * inputs) ** -0.5)

    def dilation(self, hole: Hole) -> tuple[int, int]:
        """Return the smallest blind dilation for a hole, in pixels of this level."""
        rows, columns = (
            (self.reach + self.spread + n // 2) // 2**self.level + 1 for n in check_hole(hole)
        )
        return rows, columns

    def forward(self, x: Tensor, hole: Hole) -> Tensor:
        w = self.weight
        centre = torch.zeros_like(w[..., :1])
        kernel = torch.cat((w[..., :4], centre, w[..., 4:]), dim=-1).unflatten(-1, (3, 3))
        dilation = self.dilation(hole)
        return F.conv2d(x, kernel, self.bias, padding=dilation, dilation=dilation)


class _Network(nn.Module):
    """What both networks share: sizes, padding to the pooling grid, the interface."""

    levels = 4

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def stride(self) -> int:
        """Pixels of the pooling grid; tiles must start on its multiples."""
        return int(2 ** (self.levels - 1))

    def halo(self, hole: Hole) -> int:
        """Return how many input pixels around an output pixel can matter, a multiple of `stride`.

        A tile that is larger by this on each side gives the same output as the whole frame.
        """
        donuts = [m for m in self.modules() if isinstance(m, Donut)]
        widest = max(2**d.level * (max(d.dilation(hole)) + 1) + d.spread + d.reach for d in donuts)
        needed = max(widest, self._open_reach())
        return -(-needed // self.stride) * self.stride

    def _open_reach(self) -> int:
        return 0

    def forward(
        self, window: Tensor, holes: Sequence[Hole], shift: int = 0, views: int = 1
    ) -> Tensor:
        """Predict the centre frame once per hole.

        Parameters
        ----------
        window
            ``(b, frames, h, w)``, normalised; any ``h`` and ``w``.
        holes
            One or more ``(m, n)``.
        shift
            Neighbours out of place in time (see `Timeline.shift`).
        views
            Mirrored views of the window to average over: the first of `VIEWS`.

        Returns
        -------
        Tensor
            ``(holes, b, h, w)``, normalised.
        """
        height, width = window.shape[-2:]
        pad = (0, -width % self.stride, 0, -height % self.stride)
        # Outside the frame everything is zero: nothing hidden is copied there. The mask tells
        # the network where the frame ends.
        mask = torch.ones_like(window[:, :1])
        if any(pad):
            mask, window = F.pad(mask, pad), F.pad(window, pad)
        checked = [check_hole(h) for h in holes]
        out = self._predict(window, mask, checked, shift)
        if views > 1:
            # Mirrored after padding, so that a tile's pooling grid stays the frame's; summed up in
            # full precision.
            out = out.to(torch.promote_types(out.dtype, torch.float32))
            for axes in VIEWS[1:views]:
                seen = self._predict(window.flip(axes), mask.flip(axes), checked, shift)
                out = _sum(out, seen.flip(axes))
            out = out / views
        return out[..., :height, :width]

    def _predict(self, window: Tensor, mask: Tensor, holes: list[Hole], shift: int) -> Tensor:
        raise NotImplementedError

    def parameter_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


def _conv3(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _halve(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution to half the resolution; it spreads by one pixel of the finer level."""
    return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)


def frames_of(window: Tensor, slots: Sequence[int]) -> Tensor:
    """Return some frames of a window; a list as an index would be copied to the device."""
    return torch.stack([window[:, i] for i in slots], dim=1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _sum(spare: Tensor, kept: Tensor) -> Tensor:
    """Return the sum, in ``spare``'s memory where no gradient needs its values."""
    return spare + kept if torch.is_grad_enabled() else spare.add_(kept)


def _rectified(x: Tensor, slope: float) -> Tensor:
    """Return ``x``, in its own memory, with what is below zero times ``slope``."""
    return F.leaky_relu_(x, slope) if slope else F.relu_(x)


class _Residual(nn.Module):
    """Two 3×3 convolutions around a residual sum, GELU after each."""

    spread = 2  # of its own level's pixels

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.first = _conv3(channels, channels, bias=bias)
        self.second = _conv3(channels, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.second(F.gelu(self.first(x))))


class PaperNetwork(_Network):
    """The network of the paper (Materials and Methods, fig. S1): 1.1 M parameters, no biases.

    The centre frame (1×1, 48 channels) and its open neighbours (3×3 and as many further 3×3 as the
    hole's half-width, 16 channels) make the 64 base features; neighbours to be blinded, which the
    paper does not have, enter with the centre frame. Four scales joined by 2×2 average
    pooling hold two residual blocks each; the base and every block are read by a donut, brought
    back to full resolution, passed through a 1×1, concatenated (576) and fused 288, 64, 1.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.whole = list(config.open_slots)
        self.holed = [i for i in range(config.frames) if i not in self.whole]
        width = config.channels
        side = width // 4 if self.whole else 0
        self.centre_stem = nn.Conv2d(len(self.holed), width - side, 1, bias=False)
        steps: list[nn.Module] = []
        if self.whole:
            steps.append(_conv3(len(self.whole), side, bias=False))
            for _ in range(config.paper_radius):
                steps += [nn.GELU(), _conv3(side, side, bias=False)]
        self.neighbour_stem = nn.Sequential(*steps)
        self.blocks = nn.ModuleList(_Residual(width, bias=False) for _ in range(2 * self.levels))
        donuts = [Donut(width, width, level=0, spread=0, reach=0, bias=False)]
        spread = 0
        for level in range(self.levels):
            reach = upsampling_reach(level)
            for _ in range(2):
                spread += _Residual.spread * 2**level
                donuts.append(
                    Donut(width, width, level=level, spread=spread, reach=reach, bias=False)
                )
        self.donuts = nn.ModuleList(donuts)
        self.after = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in donuts)
        total = width * len(donuts)
        self.fuse = nn.Sequential(
            nn.Conv2d(total, total // 2, 1, bias=False), nn.GELU(),
            nn.Conv2d(total // 2, width, 1, bias=False), nn.GELU(),
            nn.Conv2d(width, 1, 1, bias=False),
        )  # fmt: skip

    def _open_reach(self) -> int:
        # The neighbours enter the trunk already spread by their stem.
        return self.halo_of_trunk() + 1 + self.config.paper_radius

    def halo_of_trunk(self) -> int:
        """Return the reach of the deepest donut for the largest hole it may be run with."""
        last = self.donuts[-1]
        assert isinstance(last, Donut)
        widest = (LARGEST_HOLE, LARGEST_HOLE)
        return 2**last.level * (max(last.dilation(widest)) + 1) + last.spread + last.reach

    def _predict(self, window: Tensor, mask: Tensor, holes: list[Hole], shift: int) -> Tensor:
        base = self.centre_stem(frames_of(window, self.holed))
        if self.whole:
            base = torch.cat((base, self.neighbour_stem(frames_of(window, self.whole))), dim=1)
        features = [base]
        x = base
        for i, block in enumerate(self.blocks):
            if i and i % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = block(x)
            features.append(x)
        return torch.stack([self._read(features, hole) for hole in holes])

    def _read(self, features: list[Tensor], hole: Hole) -> Tensor:
        size = features[0].shape[-2:]
        parts = []
        for donut, after, x in zip(self.donuts, self.after, features, strict=True):
            y = F.gelu(donut(x, hole))
            if y.shape[-2:] != size:
                y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            parts.append(F.gelu(after(y)))
        return self.fuse(torch.cat(parts, dim=1))[:, 0]


class LeanNetwork(_Network):
    """The default: the same blindness at about a twentieth of the operations or less.

    The trunk sees the whole window and is read through donuts at each pyramid level's own
    resolution; what they read is summed from coarse to fine, with a 1×1 convolution before each
    upsampling. At full resolution the donut reads the first convolution, so that it may look
    close to the hole. The open neighbours, whose noise is independent of the centre frame's, also
    pass a small U-Net that needs no donut; its coarse part shares the last upsampling.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        width = config.channels
        widths = [width, *[2 * width] * (self.levels - 1)]
        self.stem = _Stem(range(config.frames), config.frames, width)
        self.trunk = nn.ModuleList()
        self.donuts = nn.ModuleList([Donut(width, width, level=0, spread=1, reach=0, bias=True)])
        self.heads = nn.ModuleList()
        spread = 1
        for level in range(1, self.levels):
            before, w = widths[level - 1 : level + 1]
            if level == 1:
                convs = [_halve(before, w), _conv3(w, w)]
                spread += 1 + 2
            else:
                convs = [_conv3(before, w), _conv3(w, w)]
                spread += 2 * 2**level
            self.trunk.append(nn.ModuleList(convs))
            reach = 2 * (2**level - 1)
            self.donuts.append(Donut(w, w, level=level, spread=spread, reach=reach, bias=True))
            self.heads.append(nn.Conv2d(w, before, 1))
        self.open = _OpenBranch(config, width) if config.open_slots else None
        self.slope = config.slope
        self.mix = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, 1, 1)
        # The movie's mean is a better first guess than a random picture.
        for p in self.last.parameters():
            nn.init.zeros_(p)

    def _open_reach(self) -> int:
        return _OpenBranch.reach

    def _predict(self, window: Tensor, mask: Tensor, holes: list[Hole], shift: int) -> Tensor:
        x = _rectified(self.stem(torch.cat((window, mask), dim=1), shift), self.slope)
        features = [x]
        for level, convs in enumerate(self.trunk, start=1):
            if level > 1:
                x = F.avg_pool2d(x, 2)
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                y = _rectified(conv(x), self.slope)
                x = _sum(y, x) if y.shape == x.shape else y
            features.append(x)
        shared = None
        if self.open is not None:
            neighbours = frames_of(window, self.config.open_slots)
            shared = self.open(neighbours, mask, shift)
        return torch.stack([self._read(features, shared, hole) for hole in holes])

    def _read(
        self, features: list[Tensor], shared: tuple[Tensor, Tensor] | None, hole: Hole
    ) -> Tensor:
        coarser = None
        for level in reversed(range(self.levels)):
            x = self.donuts[level](features[level], hole)
            if coarser is not None:
                if level == 0 and shared is not None:
                    coarser = _sum(coarser, shared[1])
                x = _sum(x, _double(coarser))
            if level:
                coarser = self.heads[level - 1](_rectified(x, self.slope))
        if shared is not None:
            x = _sum(x, shared[0])
        x = _rectified(x, self.slope)
        return self.last(_sum(_rectified(self.mix(x), self.slope), x))[:, 0]


class _Stem(nn.Module):
    """A 3×3 convolution over frames that changes its weights with the neighbours out of place.

    Where ``shift`` frames on one side of the centre are missing, those on the other side take over
    their weights, as if time were mirrored at the centre, and the frames that stand in for the
    missing ones have weights of their own. Those, and corrections of all others, are learned.

    Parameters
    ----------
    slots
        Window positions of the input's channels; a channel more says where the frame ends.
    frames
        Frames in a window.
    outputs
        Features.
    """

    mirrored: Tensor

    def __init__(self, slots: Sequence[int], frames: int, outputs: int) -> None:
        super().__init__()
        inputs = len(slots) + 1
        half = frames // 2
        self.conv = _conv3(inputs, outputs)
        self.changes = nn.Parameter(torch.zeros(half * outputs, inputs, 3, 3))
        mirrored = torch.eye(inputs).repeat(half + 1, 1, 1)
        for shift in range(1, half + 1):
            for missing in range(frames - shift, frames):
                twin = frames - 1 - missing
                if missing in slots and twin in slots:
                    i, j = slots.index(missing), slots.index(twin)
                    mirrored[shift, [i, j], [i, i]] = mirrored.new_tensor([0.0, 1.0])
        self.register_buffer("mirrored", mirrored, persistent=False)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        weight = self.conv.weight
        if shift:
            changes = self.changes.chunk(len(self.changes) // len(weight))[shift - 1]
            weight = torch.einsum("ji,oi...->oj...", self.mirrored[shift], weight) + changes
        return F.conv2d(x, weight, self.conv.bias, padding=1)


class _OpenBranch(nn.Module):
    """A three-level U-Net over the open neighbours: ``(b, slots, h, w)`` → what is to be added.

    That is ``(b, width, h, w)`` and, to be upsampled, ``(b, width, h/2, w/2)``.
    """

    # Input pixels that matter around an output pixel: the first convolution and the halving, one
    # and two convolutions at the coarser levels, the footprints of upsampling and pooling.
    reach = (1 + 1) + 2 + 2 * 4 + (2 + 4) + 3

    def __init__(self, config: NetworkConfig, width: int) -> None:
        super().__init__()
        self.slope = config.slope
        self.enter = _Stem(config.open_slots, config.frames, width)
        self.halve = _halve(width, 2 * width)
        self.middle = _conv3(2 * width, 2 * width)
        self.coarse = nn.ModuleList((_conv3(2 * width, 2 * width), _conv3(2 * width, 2 * width)))
        self.merge = nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Conv2d(2 * width, width, 1)

    def forward(self, neighbours: Tensor, mask: Tensor, shift: int) -> tuple[Tensor, Tensor]:
        x = _rectified(self.enter(torch.cat((neighbours, mask), dim=1), shift), self.slope)
        y = _rectified(self.halve(x), self.slope)
        y = _sum(_rectified(self.middle(y), self.slope), y)
        z = F.avg_pool2d(y, 2)
        z = _rectified(self.coarse[0](z), self.slope)
        z = _sum(_rectified(self.coarse[1](z), self.slope), z)
        y = _rectified(_sum(_double(self.merge(z)), y), self.slope)
        return x, self.head(y)
