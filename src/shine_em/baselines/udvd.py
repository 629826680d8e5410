"""UDVD, a blind-spot network of four half planes over five frames, and UDVD* with a wider hole.

D. Y. Sheth, S. Mohan, J. L. Vincent, R. Manzorro, P. A. Crozier, M. M. Khapra, E. P. Simoncelli
and C. Fernandez-Granda, "Unsupervised deep video denoising", ICCV 2021. The half planes are those
of S. Laine et al., "High-quality self-supervised deep image denoising", NeurIPS 2019.

Each of four branches sees one half plane: every 3×3 convolution reads its own row and the two
above, on the frames rotated by 0°, 90°, 180° and 270° with shared weights. A last shift by one row
excludes the pixel's own row, so that the union of the four half planes is everything but the pixel
itself; a shift by ``r + 1`` excludes a hole of half width ``r``. That is UDVD*, "modified UDVD
incorporating statistics of noise" in the SHINE paper.

Differences from the authors' scripts, all of them needed to be fair or exact: zeros instead of
mirrored pixels outside the frame (mirroring carries hidden pixels past the hole at the edges),
standardised input and therefore no final ReLU, and a cosine instead of three halvings of the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute import autocast, keep_freed_memory, pick_device, pick_precision
from ..denoising import tiles
from ..doctor import Health, check
from ..movie import Movie
from ..network import Hole, check_hole
from ..noise import NoiseStatistics, noise_of
from ..patch_pool import PatchPool
from ..patches import Normalisation, Timeline
from ..training import hold_out
from .fitting import CosinePace, Sample, fit

__all__ = ["UDVD", "udvd"]

FRAMES = 5
# The authors' 1e-4 suits their hours on a GPU; 60 steps on a small movie gain 12.6 dB with this
# rate and 6.1 dB with theirs.
RATE = 1e-3
_STRIDE = 4  # two poolings
# How far around a pixel the input matters: 143 rows beside its hole, rounded up.
_HALO = 160
_TILE = 640  # widest tile, halo included: under about 2 GB


def udvd(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: Hole | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
    steps: int | None = None,
    width: int = 96,
) -> Movie:
    """Denoise with UDVD (hole 1×1) or UDVD* (a larger hole), trained on the movie alone.

    Parameters
    ----------
    movie
        ``(t, y, x)``.
    noise
        Noise statistics, for the hole where none is given; measured where needed.
    hole
        Blind spot, rows × columns; None for the one that the noise statistics recommend.
    time_budget_s
        Wall time for training; None for 50 passes over the frames, as in the authors' scripts.
    seed, device, progress
        See `shine_em.baselines.Method.run`.
    steps
        Exact number of training steps, for exact repeats; then ``time_budget_s`` is not used.
    width
        Channels of the decoders; see `UDVD`.

    Returns
    -------
    Movie
        float32, in the movie's units.

    Raises
    ------
    ShineError
        If the movie has nothing to train on, or training does not converge.
    """
    keep_freed_memory()
    where = pick_device(device)
    precision = pick_precision(where)
    health = check(movie)
    if hole is None:
        hole = (noise or noise_of(movie, health)).hole
    torch.manual_seed(seed)
    network = UDVD(hole, width=width).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalisation = Normalisation.of(health)
    frames, hidden = hold_out(movie, health, 2)
    pool = PatchPool(
        movie, health, normalisation, frames=FRAMES, mirror=True, held_out=frames, hidden=hidden,
        seed=seed,
    )  # fmt: skip
    square = hole[0] == hole[1]

    def draw(step: int) -> Sample:
        drawn = pool.draw(step, size=1, crop=128, seed=seed, turn=square, one_sided=0.0)
        batch = pool.batch(drawn)
        windows = torch.from_numpy(batch.windows)
        return windows, windows[:, FRAMES // 2], torch.from_numpy(batch.weights)

    passes = 50 * len(Timeline(len(movie), health).targets())
    budget = None if steps is not None else time_budget_s
    fit(
        network, draw, _held_out(movie, health, normalisation, frames, hidden),
        pace=CosinePace(RATE, steps=steps or passes, seconds=budget),
        optimisers=[torch.optim.Adam(network.parameters(), lr=RATE)],
        device=where, precision=precision, progress=progress,
    )  # fmt: skip
    out = np.empty(movie.shape, np.float32)
    _denoise(network, movie, health, normalisation, out, where, precision, progress)
    return movie.with_data(out, did=f"denoised by UDVD, blind spot {hole[0]}x{hole[1]}")


class UDVD(nn.Module):
    """The network: ``(b, 5, h, w)`` windows to ``(b, h, w)`` centre frames, both normalised.

    Channels, layers and the missing biases are as published: 2.1 M weights.

    Parameters
    ----------
    hole
        Blind spot, rows × columns, odd: in all five frames.
    width
        Channels of the decoders; the encoders have half as many (published: 96).
    """

    def __init__(self, hole: Hole = (1, 1), *, width: int = 96) -> None:
        super().__init__()
        self.hole = check_hole(hole)
        self.first = _HalfPlaneUNet(3, width // 3, width)
        self.second = _HalfPlaneUNet(3 * (width // 3), width, width)
        self.mix = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 1, bias=False), nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(4 * width, width, 1, bias=False), nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(width, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, window: Tensor) -> Tensor:
        """Predict the centre frames, each pixel from outside its hole."""
        b, _, height, width = window.shape
        count = FRAMES - 2
        seen = self.features(torch.cat([window[:, k : k + 3] for k in range(count)]))
        split = [x.unflatten(0, (2, count, b)) for x in seen]
        triples = [[x[:, k].flatten(0, 1) for x in split] for k in range(count)]
        return self.join(triples)[:, :height, :width]

    def features(self, three: Tensor) -> list[Tensor]:
        """Return what the branches of the first U-Net see in three frames ``(b, 3, h, w)``.

        Neighbouring windows share two of their three triples, so these are worth keeping.

        Returns
        -------
        list of Tensor
            The upright branches (0° and 180°), ``(2b, c, h, w)``, and those turned by 90° and 270°,
            ``(2b, c, w, h)``, both padded to the pooling grid.
        """
        height, width = three.shape[-2:]
        three = F.pad(three, (0, -width % _STRIDE, 0, -height % _STRIDE))
        turned = [torch.rot90(three, turn, (2, 3)) for turn in range(4)]
        return [self.first(torch.cat(turned[way::2])) for way in (0, 1)]

    def join(self, triples: Sequence[list[Tensor]]) -> Tensor:
        """Return the prediction from the features of the window's three triples, still padded."""
        seen: list[Tensor] = []
        for way in (0, 1):
            x = self.second(torch.cat([t[way] for t in triples], dim=1))
            # Upright branches look up and down, past the hole's rows; the others past its columns.
            x = _shifted_down(x, self.hole[way] // 2 + 1)
            seen += [
                torch.rot90(part, -turn, (2, 3))
                for part, turn in zip(x.chunk(2), (way, way + 2), strict=True)
            ]
        return self.mix(torch.cat(seen, dim=1))[:, 0]


class _HalfPlaneUNet(nn.Module):
    """A U-Net of three levels whose outputs depend on their own row and those above only."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.down_1 = _UpwardChain(inputs, half, half, half)
        self.down_2 = _UpwardChain(half, half, half, half)
        self.bottom = _UpwardChain(half, width, width, half)
        self.up_2 = _UpwardChain(2 * half, width, width, width, width)
        self.up_1 = _UpwardChain(width + inputs, width, width, width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        one = _pooled(self.down_1(x))
        two = _pooled(self.down_2(one))
        up = self.up_2(torch.cat((F.interpolate(self.bottom(two), scale_factor=2), one), dim=1))
        return self.up_1(torch.cat((F.interpolate(up, scale_factor=2), x), dim=1))


class _UpwardChain(nn.Module):
    """3×3 convolutions, each over a pixel's own row and the two above it, then leaky ReLU.

    Without biases, what lies above the frame stays zero from layer to layer. So all rows that the
    chain needs are put there at once, and every layer uses up two.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(a, b, 3, padding=(0, 1), bias=False) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=0.1)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 2 * len(self.layers), 0))
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1, inplace=True)
        return x


def _shifted_down(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0, rows, 0))[..., : x.shape[-2], :]


def _pooled(x: Tensor) -> Tensor:
    """Pool 2×2, shifted so that a pooled pixel's upper row sees nothing of its lower one."""
    return F.max_pool2d(_shifted_down(x, 1), 2)


def _held_out(
    movie: Movie,
    health: Health,
    normalisation: Normalisation,
    frames: Sequence[int],
    hidden: np.ndarray | None,
) -> list[Sample]:
    """Return crops from the middle of the frames, or of the pixels, that training never sees."""
    timeline = Timeline(len(movie), health)
    bad = np.asarray(health.bad_pixels, bool)
    middle = tuple(slice(max(0, n // 2 - 64), n // 2 + 64) for n in movie.shape[1:])
    samples = []
    for t in frames or timeline.targets()[:1]:
        weight = normalisation.trusted(movie.frame(t), bad)
        if hidden is not None:
            weight &= hidden
        if weight[middle].any():
            window = _window(movie, timeline, normalisation, bad, t)[:, *middle]
            windows = torch.from_numpy(np.ascontiguousarray(window))[None]
            mask = torch.from_numpy(weight[middle].astype(np.float32))[None]
            samples.append((windows, windows[:, FRAMES // 2], mask))
    return samples


def _window(
    movie: Movie, timeline: Timeline, normalisation: Normalisation, bad: np.ndarray, t: int
) -> np.ndarray:
    empty = np.zeros(movie.shape[1:], np.float32)
    return np.stack(
        [
            empty if i is None else normalisation.apply(movie.frame(i), bad)
            for i in timeline.window(t, FRAMES, mirror=True)
        ]
    )


@torch.inference_mode()
def _denoise(
    network: UDVD,
    movie: Movie,
    health: Health,
    normalisation: Normalisation,
    out: np.ndarray,
    device: torch.device,
    precision: str,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Fill ``out`` with the denoised frames, tile by tile, each triple of frames seen once."""
    timeline = Timeline(len(movie), health)
    bad = np.asarray(health.bad_pixels, bool)
    places = [
        (y, x)
        for y in tiles(movie.shape[1], _TILE, _HALO, _STRIDE)
        for x in tiles(movie.shape[2], _TILE, _HALO, _STRIDE)
    ]
    done = 0
    for (read_y, keep_y), (read_x, keep_x) in places:
        inside = (
            slice(keep_y.start - read_y.start, keep_y.stop - read_y.start),
            slice(keep_x.start - read_x.start, keep_x.stop - read_x.start),
        )
        seen: dict[tuple[int | None, ...], list[Tensor]] = {}
        for t in range(len(movie)):
            numbers = timeline.window(t, FRAMES, mirror=True)
            window = _window(movie, timeline, normalisation, bad, t)[:, read_y, read_x]
            frames = torch.from_numpy(np.ascontiguousarray(window))[None].to(device)
            triples = [numbers[k : k + 3] for k in range(FRAMES - 2)]
            with autocast(device, precision):
                for k, triple in enumerate(triples):
                    if triple not in seen:
                        seen[triple] = network.features(frames[:, k : k + 3])
                predicted = network.join([seen[triple] for triple in triples])
            seen = {triple: seen[triple] for triple in triples}
            picture = predicted[0].float().cpu().numpy()[inside]
            if timeline.usable[t]:
                out[t, keep_y, keep_x] = normalisation.invert(picture)
            else:  # a blanked frame holds no picture to restore
                out[t, keep_y, keep_x] = movie.frame(t)[keep_y, keep_x]
            done += 1
            if progress is not None:
                progress("denoising", done / (len(places) * len(movie)))
