"""The student: a small network that repeats the ensemble's result in one fast pass.

A blind-spot ensemble pays for its blindness: the trunk may not be read where it is sharpest, and
every hole is read on its own. Its results can be learned by an ordinary small U-Net that sees
every pixel (knowledge distillation: G. Hinton et al., arXiv 1503.02531; for blind-spot networks:
S. Chen et al., "Exploring asymmetric tunable blind-spots", CVPR 2024). The targets hold hardly any
noise, so that it learns fast, and they are blind to the noise of the pixel that they stand for, but
for the little that a correction hands on: the student, although it sees that pixel, is not taught
to copy its noise.

The student works at half the frame's resolution from its first convolution on, with the four
pixels of a 2×2 block as channels (as FFDNet: K. Zhang et al., IEEE Trans. Image Process. 27, 4608,
2018): few, wide convolutions are what processors do best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ShineError
from .network import Hole, frames_of

__all__ = ["WIDTHS", "Student", "StudentNetwork"]

WIDTHS = (32, 48, 64)


class StudentNetwork(nn.Module):
    """A plain three-level U-Net on 2×2 blocks of pixels; no blind spot.

    Parameters
    ----------
    frames
        Frames in a window, odd.
    widths
        Features at a half, a quarter and an eighth of the resolution.
    """

    stride = 8
    # Input pixels that matter around an output pixel: three 3×3 at half, three at a quarter, two at
    # an eighth of the resolution, the two upsamplings, and the width of a block at the coarsest.
    reach = 2 * 2 + 3 * 4 + 2 * 8 + (4 + 8) + 8

    def __init__(self, frames: int = 5, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.frames, self.widths = frames, (fine, middle, coarse)
        half = frames // 2
        inputs = 4 * (frames + 1)
        self.enter = nn.Conv2d(inputs, fine, 3, padding=1)
        # What changes with neighbours out of place, one set of weights per number of them.
        self.changes = nn.Parameter(torch.zeros(half * fine, inputs, 3, 3))
        self.halve = nn.ModuleList(
            (nn.Conv2d(fine, middle, 2, stride=2), nn.Conv2d(middle, coarse, 2, stride=2))
        )
        self.middle = nn.ModuleList(nn.Conv2d(middle, middle, 3, padding=1) for _ in range(3))
        self.coarse = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _ in range(2))
        self.raise_ = nn.ModuleList((nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)))
        self.fine = nn.Conv2d(fine, fine, 3, padding=1)
        self.last = nn.Conv2d(fine, 4, 1)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    @property
    def halo(self) -> int:
        """How many input pixels around a tile make it equal to the whole frame."""
        return -(-self.reach // self.stride) * self.stride

    def forward(self, window: Tensor, shift: int = 0) -> Tensor:
        """Restore the centre frame.

        Parameters
        ----------
        window
            ``(b, frames, h, w)``, normalised; any ``h`` and ``w``.
        shift
            Neighbours out of place in time (see `Timeline.shift`).

        Returns
        -------
        Tensor
            ``(b, h, w)``, normalised.
        """
        height, width = window.shape[-2:]
        # A channel of ones says where the frame ends.
        x = torch.cat((window, torch.ones_like(window[:, :1])), dim=1)
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        a = F.relu_(self._enter(x, shift))
        b = F.relu_(self.halve[0](a))
        for conv in self.middle[:2]:
            b = b + F.relu_(conv(b))
        c = F.relu_(self.halve[1](b))
        for conv in self.coarse:
            c = c + F.relu_(conv(c))
        b = F.relu_(b + _double(self.raise_[0](c)))
        b = b + F.relu_(self.middle[2](b))
        a = F.relu_(a + _double(self.raise_[1](b)))
        a = a + F.relu_(self.fine(a))
        return F.pixel_shuffle(self.last(a), 2)[:, 0, :height, :width]

    def _enter(self, x: Tensor, shift: int) -> Tensor:
        if not shift:
            return self.enter(F.pixel_unshuffle(x, 2))
        # As if time were mirrored at the centre: the frames that are in place step in for the
        # missing ones. What the frames at hand are worth there, the changes learn.
        last = self.frames - 1
        order = [last - i if i > last - shift else i for i in range(self.frames)]
        mirrored = self.enter(F.pixel_unshuffle(frames_of(x, [*order, self.frames]), 2))
        changes = self.changes.chunk(self.frames // 2)[shift - 1]
        return mirrored + F.conv2d(F.pixel_unshuffle(x, 2), changes, padding=1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Student:
    """A trained student.

    Attributes
    ----------
    weights
        Of its `StudentNetwork`.
    frames, widths
        See `StudentNetwork`.
    steps, seconds
        Of its training; ``seconds`` includes the teacher's passes.
    lessons
        Frames, or regions of frames, that the teacher denoised for it.
    difference
        RMS difference to the teacher on frames it was not taught (where there are at least five
        lessons), normalised units.
    rival
        Holes of the blind-spot network that it was found no worse than; empty before it was judged.
    """

    weights: dict[str, Tensor]
    frames: int
    widths: tuple[int, ...]
    steps: int
    seconds: float
    lessons: int
    difference: float
    rival: tuple[Hole, ...] = ()

    def network(self) -> StudentNetwork:
        """Return the network with its weights.

        Raises
        ------
        ShineError
            If the weights do not fit the network.
        """
        network = StudentNetwork(self.frames, self.widths)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError:
            raise ShineError("the student's weights do not fit its network.") from None
        return network

    def to_dict(self) -> dict[str, Any]:
        """Return all but the weights as plain values for a checkpoint's header."""
        return {
            "frames": self.frames, "widths": list(self.widths), "steps": self.steps,
            "seconds": self.seconds, "lessons": self.lessons, "difference": self.difference,
            "rival": self.rival,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any], weights: dict[str, Tensor]) -> Student:
        """Rebuild what `to_dict` gave; the weights are checked.

        Raises
        ------
        ShineError
            If the weights do not fit.
        """
        rival = tuple((int(m), int(n)) for m, n in values["rival"])
        widths = tuple(int(w) for w in values["widths"])
        student = cls(**{**values, "widths": widths, "rival": rival}, weights=weights)
        student.network()
        return student
