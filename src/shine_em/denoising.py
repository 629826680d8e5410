"""Running a trained network over a movie: windows, tiles with a halo, the hole ensemble."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import Model
from .compute import Lanes, autocast, memory_format, return_freed_memory, shared_evenly
from .doctor import Health
from .linear import LinearPrediction
from .metrics import snr
from .movie import Movie
from .network import Hole, LeanNetwork, PaperNetwork, build
from .patches import Timeline, Window
from .student import StudentNetwork

__all__ = [
    "LEAST_FRAMES",
    "Denoiser",
    "halves",
    "halves_snr",
    "keep_mean",
    "mean_tolerance",
    "noise_is_shared",
    "tiles",
]

LEAST_FRAMES = 6  # usable ones that comparing even and odd frames takes

# Widest tile, halo included: keeps a pass of the lean network under about 1 GB, the paper's (576
# channels at full resolution) under 2 GB.
_TILE = {"lean": 1024, "paper": 512}
_LANES = 4  # most frames side by side
_CARD_PIXELS = 2**21  # in a batch on a graphics card: eight frames of 512×512
_TIDY_EVERY = 8  # frames


def tiles(size: int, edge: int, halo: int, stride: int) -> list[tuple[slice, slice]]:
    """Cut one axis into tiles with a halo, aligned to the network's pooling grid.

    Parameters
    ----------
    size
        Pixels along the axis.
    edge
        Widest tile, halo included; raised where the halo leaves too little inside it.
    halo, stride
        Of the network.

    Returns
    -------
    list of (slice, slice)
        For each tile: the pixels to read, and the pixels to keep of them, both in the frame's
        coordinates. The kept ones cover the axis once.
    """
    if size <= edge:
        return [(slice(0, size), slice(0, size))]
    inner = max((edge - 2 * halo) // stride, 8) * stride
    return [
        (slice(max(0, start - halo), min(size, start + inner + halo)),
         slice(start, min(size, start + inner)))
        for start in range(0, size, inner)
    ]  # fmt: skip


class Denoiser:
    """A model, ready to denoise the frames of a movie.

    A model that has a student lets the student denoise, unless ``holes`` are given.

    Parameters
    ----------
    model
        The trained model.
    device, precision
        Where and how to compute.
    holes, weights
        The holes to average over, and their weights; the model's by default. Holes without weights
        count alike.
    tile
        Widest tile in pixels, halo included; None for a width that fits a laptop's memory.
    linear
        Whether the model's linear prediction takes part; by default where no holes are given.
    views
        Mirrored views to average over; the model's by default. A student has one.

    The model's correction is made where no ``holes`` are given; a student learned it from its
    teacher.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        holes: Sequence[Hole] | None = None,
        weights: Sequence[float] | None = None,
        tile: int | None = None,
        linear: bool | None = None,
        views: int | None = None,
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.precision = precision
        self.holes = list(holes or model.holes)
        equal = [1 / len(self.holes)] * len(self.holes)
        self.weights = list(weights or (equal if holes else model.weights))
        self.tile = tile or _TILE[model.config.kind]
        self.by_student = model.student is not None and not holes
        self.views = views or model.views
        joins = linear if linear is not None else not holes and not self.by_student
        self.linear: LinearPrediction | None = model.linear if joins else None
        self.correction = None if holes or self.by_student else model.correction
        network: LeanNetwork | PaperNetwork | StudentNetwork
        if model.student is not None and self.by_student:
            network = model.student.network()
        else:
            network = build(model.config)
            network.load_state_dict(model.state.best)
        self.memory = memory_format(self.device)
        self.network = network.to(self.device, memory_format=self.memory).eval()  # type: ignore[call-overload]

    @property
    def halo(self) -> int:
        """How many pixels around a tile make it equal to the whole frame."""
        if isinstance(self.network, StudentNetwork):
            return self.network.halo
        network = max(self.network.halo(h) for h in self.holes)
        if self.linear is None:
            return network
        return -(-max(network, self.linear.halo) // self.stride) * self.stride

    @property
    def stride(self) -> int:
        """Tiles start at multiples of this."""
        own = self.network.stride
        return own if self.linear is None else max(own, self.linear.stride)

    def predict(self, windows: np.ndarray | Tensor, shift: int = 0) -> np.ndarray:
        """Denoise normalised windows.

        Parameters
        ----------
        windows
            ``(b, frames, h, w)`` float32, normalised; a tensor may lie on the device already.
        shift
            Neighbours out of place in time (see `Timeline.shift`).

        Returns
        -------
        ndarray
            ``(b, h, w)`` float32, normalised: the weighted mean over the holes and the linear
            prediction, corrected where the model has a correction; or the student's result.
        """
        predicted = self._tiled(windows, shift, each=False)[0]
        if self.correction is None:
            return predicted
        return self.correction.of_windows(predicted, windows, self.device)

    def uncorrected(self) -> Denoiser:
        """Return the same denoiser without its correction."""
        if self.correction is None:
            return self
        plain = copy(self)
        plain.correction = None
        return plain

    def corrected(self, raw: np.ndarray, frame: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """Correct what `uncorrected` made of a frame; all ``(y, x)``, movie units."""
        if self.correction is None:
            return frame
        n = self.model.normalisation
        window = n.apply(raw, bad)[None, None]
        made = self.correction.of_windows(n.standardise(frame)[None], window, self.device)[0]
        return n.invert(made)

    def predict_each(self, windows: np.ndarray, shift: int = 0) -> np.ndarray:
        """Denoise normalised windows as `predict` does, but with each hole on its own.

        A student has no holes: its one result is returned.

        Returns
        -------
        ndarray
            ``(holes, b, h, w)`` float32, normalised; the linear prediction, if it takes part, last.
        """
        return self._tiled(windows, shift, each=True)

    @torch.inference_mode()
    def _tiled(self, windows: np.ndarray | Tensor, shift: int, *, each: bool) -> np.ndarray:
        b, _, height, width = windows.shape
        several = len(self.holes) + (self.linear is not None) if each and not self.by_student else 1
        on_card = self.device.type == "cuda"  # whose copies need not wait for page-locked memory
        out = torch.empty((several, b, height, width), pin_memory=on_card)
        halo = self.halo
        whole = torch.as_tensor(windows)
        for read_y, keep_y in tiles(height, self.tile, halo, self.stride):
            for read_x, keep_x in tiles(width, self.tile, halo, self.stride):
                part = whole[:, :, read_y, read_x].to(self.device)
                part = part.contiguous(memory_format=self.memory)
                predicted = self._members(part, shift, each=each) + self.model.offset
                inner_y = slice(keep_y.start - read_y.start, keep_y.stop - read_y.start)
                inner_x = slice(keep_x.start - read_x.start, keep_x.stop - read_x.start)
                out[..., keep_y, keep_x].copy_(
                    predicted[..., inner_y, inner_x], non_blocking=on_card
                )
        if on_card:
            torch.cuda.current_stream(self.device).synchronize()
        return out.numpy()

    def _members(self, window: Tensor, shift: int, *, each: bool) -> Tensor:
        """Return ``(members, b, h, w)``, or their weighted mean, ``(1, b, h, w)``."""
        linear = None if self.linear is None else self.linear(window, shift)[None]
        share = 0.0 if self.linear is None else self.linear.share
        if linear is not None and share == 1 and not each:
            return linear
        predicted = self._predict(window, shift, each=each)
        if shift and not self.by_student:
            # At an end, with few frames to learn its weights from, either guess has merits: the
            # weights for such windows, and those for frames in place. Their mean beats both.
            predicted = (predicted + self._predict(window, 0, each=each)) / 2
        if linear is None:
            return predicted
        if each:
            return torch.cat((predicted, linear))
        return (1 - share) * predicted + share * linear

    def _predict(self, window: Tensor, shift: int, *, each: bool) -> Tensor:
        """Return ``(holes, b, h, w)``, or the weighted mean over the holes, ``(1, b, h, w)``."""
        with autocast(self.device, self.precision):
            if isinstance(self.network, StudentNetwork):
                return self.network(window, shift)[None].float()
            predicted = self.network(window, self.holes, shift, self.views)
        predicted = predicted.float()
        if not each:
            weights = torch.tensor(self.weights, device=self.device).view(-1, 1, 1, 1)
            predicted = (weights * predicted).sum(0, keepdim=True)
        return predicted

    def stream(
        self,
        movie: Movie,
        health: Health,
        *,
        frames: Sequence[int] | None = None,
        halves: bool = False,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Denoise frames one by one; memory does not grow with the movie's length.

        Parameters
        ----------
        movie, health
            The movie and its input check.
        frames
            Which frames, in this order; all by default.
        halves
            Use only neighbours that are as even or odd as the frame itself, and none with a copy
            among the others, so that an even and an odd frame share nothing.

        Yields
        ------
        t, raw, denoised
            Frame number, the raw frame in its own type, and the denoised one (float32), both
            ``(y, x)`` in the movie's units.
        """
        model = self.model
        timeline = Timeline(len(movie), health, model.blinded_lags)
        pick = timeline.half_window if halves else timeline.window
        cache = _FrameCache(movie, health, model, self.device, keep=2 * model.config.frames + 2)
        most = self._at_once(movie.shape[1:])

        def batches() -> Iterator[_Batch]:
            pending: list[tuple[int, Window]] = []
            for k, t in enumerate(range(len(movie)) if frames is None else frames):
                if k % _TIDY_EVERY == 0:
                    return_freed_memory()
                window = pick(int(t), model.config.frames, mirror=model.config.kind == "paper")
                if pending and (
                    len(pending) == most or timeline.shift(pending[0][1]) != timeline.shift(window)
                ):
                    yield self._batch(pending, cache, timeline)
                    pending = []
                pending.append((int(t), window))
            if pending:
                yield self._batch(pending, cache, timeline)

        def denoised(batch: _Batch) -> list[tuple[int, np.ndarray, np.ndarray]]:
            predicted = self.predict(batch.windows, batch.shift)
            restored = [model.normalisation.invert(x) for x in predicted]
            return list(zip(batch.numbers, batch.raw, restored, strict=True))

        with Lanes(self._lanes(movie.shape[1:])) as lanes:
            for done in lanes.map(denoised, batches()):
                for t, raw, frame in done:
                    # A blanked frame holds no picture to restore: it is handed on as it is.
                    yield t, raw, frame if timeline.usable[t] else raw.astype(np.float32)

    def ahead(self, shape: tuple[int, int]) -> int:
        """Return how many frames `stream` has begun at most beyond the one it hands on.

        The frames of half a window after those come on top.
        """
        return (self._lanes(shape) + 1) * self._at_once(shape)

    def _at_once(self, shape: tuple[int, int]) -> int:
        """Return how many frames are denoised in one pass: on a card, as many as keep it busy."""
        most = _CARD_PIXELS // (shape[0] * shape[1])
        return max(1, min(8, most)) if self.device.type == "cuda" else 1

    def _lanes(self, shape: tuple[int, int]) -> int:
        """Return how many frames are denoised side by side, in the memory of one widest tile.

        On a card two batches are under way: one is computed while the processor finishes the other.
        """
        if self.device.type == "cuda":
            return 2
        if self.device.type != "cpu" or self.model.config.kind == "paper":
            return 1
        pixels = min(shape[0], self.tile) * min(shape[1], self.tile)
        return shared_evenly(min(_LANES, _TILE["lean"] ** 2 // pixels))

    def _batch(
        self, pending: list[tuple[int, Window]], cache: _FrameCache, timeline: Timeline
    ) -> _Batch:
        empty = torch.zeros(cache.bad.shape, device=self.device)
        windows = torch.stack(
            [
                torch.stack(
                    [
                        empty if i is None else _displaced(cache[i][1], by)
                        for i, by in zip(window, timeline.displacements(window), strict=True)
                    ]
                )
                for _, window in pending
            ]
        )
        numbers = [t for t, _ in pending]
        return _Batch(
            numbers, [cache[t][0] for t in numbers], windows, timeline.shift(pending[0][1])
        )


class _Batch(NamedTuple):
    """Frames to be denoised in one pass."""

    numbers: list[int]
    raw: list[np.ndarray]
    windows: Tensor  # (b, frames, h, w), normalised, on the device
    shift: int


def _displaced(frame: Tensor, by: tuple[int, int]) -> Tensor:
    """Return a frame from ``by`` (rows, columns) further on, 0 beyond its edge (as `cut` does)."""
    (y, x), (height, width) = by, frame.shape
    if abs(y) >= height or abs(x) >= width:
        return torch.zeros_like(frame)
    return F.pad(frame, (-x, x, -y, y)) if y or x else frame


class _FrameCache:
    """The last few frames, raw, and normalised on the device."""

    def __init__(
        self, movie: Movie, health: Health, model: Model, device: torch.device, *, keep: int
    ) -> None:
        self.movie, self.model, self.device, self.keep = movie, model, device, keep
        self.bad = np.asarray(health.bad_pixels, bool)
        self.good = torch.from_numpy(~self.bad).to(device)
        self.held: OrderedDict[int, tuple[np.ndarray, Tensor]] = OrderedDict()

    def __getitem__(self, t: int) -> tuple[np.ndarray, Tensor]:
        if t not in self.held:
            raw = self.movie.frame(t)
            self.held[t] = raw, self._normalised(raw)
            while len(self.held) > self.keep:
                self.held.popitem(last=False)
        self.held.move_to_end(t)
        return self.held[t]

    def _normalised(self, raw: np.ndarray) -> Tensor:
        n = self.model.normalisation
        if self.device.type != "cuda":
            return torch.from_numpy(n.apply(raw, self.bad)).to(self.device)
        # The same on the card, which is done with it sooner.
        with np.errstate(over="ignore"):
            x = torch.from_numpy(raw.astype(np.float32)).to(self.device)
        good = (x >= n.floor) & (x <= n.ceiling) & x.isfinite() & self.good
        return torch.where(good, (x - n.location) * (1 / n.scale), 0.0)


def mean_tolerance(mean: float, sigma: float) -> float:
    """Return how far a denoised frame's mean may lie from the raw one's: 0.5 % or 0.02 σ."""
    return max(0.005 * abs(mean), 0.02 * sigma)


def keep_mean(
    raw: np.ndarray, frame: np.ndarray, trusted: np.ndarray, sigma: float
) -> tuple[np.ndarray, bool]:
    """Shift a denoised frame whose mean is off by nearly as much as is tolerated.

    Parameters
    ----------
    raw, frame, trusted
        ``(y, x)`` raw and denoised frame, movie units, and which raw pixels are trusted.
    sigma
        Standard deviation of the noise, movie units.

    Returns
    -------
    ndarray, bool
        The frame, and whether it was shifted.
    """
    if not trusted.any():
        return frame, False
    mean = float(raw[trusted].mean(dtype=np.float64))
    shift = mean - float(frame[trusted].mean(dtype=np.float64))
    if abs(shift) <= 0.8 * mean_tolerance(mean, sigma):
        return frame, False
    return frame + np.float32(shift), True


def noise_is_shared(lags: Iterable[int]) -> bool:
    """Tell whether even and odd frames share noise that is correlated so many frames apart."""
    return any(lag % 2 for lag in lags)


def halves_snr(
    denoiser: Denoiser, movie: Movie, health: Health, *, pairs: int = 8
) -> dict[str, list[float]] | None:
    """Return Eq.-5 SNR between neighbouring even and odd frames denoised without a shared frame.

    Adjacent frames denoised from overlapping windows share noise, which Eq. 5 counts as signal;
    here the even frame's window holds even frames only, the odd one's odd frames only.

    Returns
    -------
    dict or None
        "frames" (the first of each pair), "raw" and "denoised" in dB; None where there is nothing
        to compare (see `halves`).
    """
    found: dict[str, list[float]] = {"frames": [], "raw": [], "denoised": []}
    for t, raw, denoised in halves(denoiser, movie, health, pairs=pairs):
        found["frames"].append(t)
        found["raw"].append(float(snr(*raw)))
        found["denoised"].append(float(snr(*denoised)))
    return found if found["frames"] else None


def halves(
    denoiser: Denoiser, movie: Movie, health: Health, *, pairs: int
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Denoise neighbouring even and odd frames, each from frames of its own kind.

    Parameters
    ----------
    denoiser, movie, health
        What denoises, the movie and its input check.
    pairs
        Most pairs, spread over the movie.

    Yields
    ------
    t, raw, denoised
        The first frame's number and both frames, ``(y, x)`` each. The raw ones are normalised,
        which changes no correlation, and takes out bad pixels (which stay where they are and would
        pass for signal), spikes and what is no number. Nothing for movies of fewer than
        `LEAST_FRAMES` usable frames, or of which no two are neighbours, or where the noise lives on
        from frame to frame: both halves would show the same noise.
    """
    model, timeline = denoiser.model, Timeline(len(movie), health)
    starts = timeline.pairs()
    if len(timeline.targets()) < LEAST_FRAMES or not starts:
        return
    # Not every network blinds what was measured: the paper's sees all its neighbours.
    if noise_is_shared((*model.blinded_lags, *model.noise.get("blinded_lags", ()))):
        return
    normalise, bad = model.normalisation.apply, np.asarray(health.bad_pixels, bool)
    picked = np.unique(np.linspace(0, len(starts) - 1, pairs).astype(int))
    frames = [t for i in picked for t in (starts[i], starts[i] + 1)]
    stream = denoiser.stream(movie, health, frames=frames, halves=True)
    for (t, raw_a, a), (_, raw_b, b) in zip(stream, stream, strict=True):
        yield t, (normalise(raw_a, bad), normalise(raw_b, bad)), (a, b)
