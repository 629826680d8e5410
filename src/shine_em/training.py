"""Training on the movie itself: one readable loop.

The network is trained to predict the noisy centre frame from what its hole leaves visible
(paper, Eqs. 2 and 3): with noise that is independent across the hole, the best it can learn is the
picture. Every random choice is drawn from ``(seed, step)``, so that a resumed run equals an
uninterrupted one, bit for bit on one CPU machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compute import Lanes, autocast, memory_format, shared_evenly
from .doctor import Health
from .errors import ShineError
from .leakage import Leakage
from .movie import Movie
from .network import NetworkConfig, build
from .optimiser import dump_state, load_state
from .optimiser import optimisers as make_optimisers
from .pacing import Interrupts, Planner, learning_rate
from .patch_pool import Batch, PatchPool
from .patches import Normalisation, Timeline, cut
from .stepping import blind_error, stepper_for
from .training_settings import TrainingSettings

__all__ = ["Progress", "TrainedState", "hold_out", "train"]


@dataclass(frozen=True)
class Progress:
    """What a progress display needs to know after a step."""

    step: int
    steps: int
    loss: float
    validation: float | None
    seconds_left: float


@dataclass
class TrainedState:
    """A network's weights in training: what a checkpoint keeps, and what resuming needs.

    ``best`` is the model to use: the (averaged) weights with the lowest validation loss.
    """

    config: NetworkConfig
    settings: TrainingSettings
    best: dict[str, Tensor]
    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    train_loss: list[tuple[int, float]] = field(default_factory=list)
    validation_loss: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "all steps done"
    current: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)  # losses since the last of `train_loss`


def train(
    movie: Movie,
    health: Health,
    config: NetworkConfig,
    settings: TrainingSettings,
    *,
    normalisation: Normalisation | None = None,
    seconds: float | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    resume: TrainedState | None = None,
    start_from: dict[str, Tensor] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedState:
    """Train a network on a movie and return its state.

    Parameters
    ----------
    movie, health
        The movie and its input check.
    config, settings
        The network and the recipe.
    seconds
        Wall time that training may take: fixes the number of steps, early, from the measured
        speed (unless ``settings.steps`` is given; see `Planner`), and stops training when it is
        used up.
    resume
        The state of an interrupted run of the same settings, to be continued.
    start_from
        Weights to begin with; None for random ones from the seed.
    progress
        Called after each step. A KeyboardInterrupt during training does not lose it: the state
        so far is returned, with ``stopped`` saying "interrupted".

    Raises
    ------
    ShineError
        If there is nothing to train on, or the loss is not finite.
    """
    device = torch.device(device)
    trainer = _Trainer(movie, health, config, settings, normalisation, device, precision)
    return trainer.run(
        seconds=seconds, resume=resume, start_from=start_from,
        progress=progress,
    )  # fmt: skip


def hold_out(movie: Movie, health: Health, count: int) -> tuple[list[int], np.ndarray | None]:
    """Choose what training never sees: ``count`` frames, or blocks of pixels in short movies.

    Returns
    -------
    frames : list of int
        Held-out frames, spread through the movie; empty where the movie has fewer than ten.
    hidden : ndarray or None
        ``(y, x)`` bool: in short movies, 16-pixel blocks covering a tenth of every frame.
    """
    targets = Timeline(len(movie), health).targets()
    if len(targets) >= max(10, 4 * count):
        picks = np.linspace(0, len(targets) - 1, count + 2)[1:-1].astype(int)
        return [targets[i] for i in picks], None
    rows, columns = (-(-n // 16) for n in movie.shape[1:])
    blocks = np.random.default_rng(0).permutation(rows * columns).reshape(rows, columns)
    chosen = blocks < max(1, rows * columns // 10)
    hidden = np.kron(chosen, np.ones((16, 16), bool))[: movie.shape[1], : movie.shape[2]]
    return [], hidden if not hidden.all() else None


class _Trainer:
    """The loop's fixed surroundings."""

    def __init__(
        self,
        movie: Movie,
        health: Health,
        config: NetworkConfig,
        settings: TrainingSettings,
        normalisation: Normalisation | None,
        device: torch.device,
        precision: str,
    ) -> None:
        if settings.turn and any(m != n for m, n in settings.holes):
            settings = replace(settings, turn=False)  # an anisotropic hole must not be turned
        self.config, self.settings = config, settings
        self.device, self.precision = device, precision
        self.leakage = Leakage(settings.correlation, turned=settings.turn)
        frames, hidden = hold_out(movie, health, settings.validation_frames)
        self.pool = PatchPool(
            movie, health, normalisation or Normalisation.of(health), frames=config.frames,
            mirror=config.kind == "paper", blinded_lags=settings.blinded_lags, held_out=frames,
            hidden=hidden, seed=settings.seed,
        )  # fmt: skip
        self.whole_frames = hidden is None
        self.validation = self._validation_batches(movie, health, frames, hidden)
        self.memory = memory_format(device)

    def _validation_batches(
        self, movie: Movie, health: Health, frames: Sequence[int], hidden: np.ndarray | None
    ) -> list[Batch]:
        """Return fixed crops of what is held out."""
        timeline, normalise = self.pool.timeline, self.pool.normalisation
        bad = np.asarray(health.bad_pixels, bool)
        targets = frames or timeline.targets()[:: max(1, len(timeline.targets()) // 4)][:4]
        rng = np.random.default_rng([self.settings.seed, 3])
        edge = 256
        batches = []
        for t in targets:
            y0, x0 = (int(rng.integers(max(1, n - edge + 1))) for n in movie.shape[1:])
            here = (slice(y0, y0 + edge), slice(x0, x0 + edge))
            centre = movie.frame(t)
            weight = normalise.trusted(centre, bad)
            if hidden is not None:
                weight &= hidden
            window = timeline.window(t, self.config.frames, mirror=self.pool.mirror)
            stack = [
                np.zeros_like(bad[here], np.float32)
                if i is None
                else normalise.apply(cut(movie.frame(i), here, by), cut(bad, here, by, fill=True))
                for i, by in zip(window, timeline.displacements(window), strict=True)
            ]
            mask = weight[here][None].astype(np.float32)
            batches.append(Batch(np.stack(stack)[None], mask, timeline.shift(window)))
        return [b for b in batches if b.weights.sum() > 0]

    def run(
        self,
        *,
        seconds: float | None,
        resume: TrainedState | None,
        start_from: dict[str, Tensor] | None,
        progress: Callable[[Progress], None] | None,
    ) -> TrainedState:
        started = time.monotonic()
        if resume is not None:
            # Interrupted before its speed was known, it takes the steps that are wanted now.
            steps = resume.settings.steps or self.settings.steps
            self.settings = replace(resume.settings, steps=steps)
        steps = self.settings.steps or self._steps_from_epochs(seconds)
        if seconds is None:  # a resumed run must know them
            self.settings = replace(self.settings, steps=steps)
        settings = self.settings
        torch.manual_seed(settings.seed)
        network = build(self.config)
        if start_from is not None:
            network.load_state_dict(start_from)
        if resume is not None:
            network.load_state_dict(resume.current)
        network.to(self.device, memory_format=self.memory)  # type: ignore[call-overload]
        named = dict(network.named_parameters())
        optimisers = make_optimisers(settings.optimiser, named, settings.learning_rate)
        state = TrainedState(self.config, settings, best=_copy(named))
        if resume is not None:  # the state handed in stays as it is
            state = replace(
                resume, train_loss=[*resume.train_loss], recent=[*resume.recent],
                validation_loss=[*resume.validation_loss],
            )  # fmt: skip
            load_state(optimisers, named, state.optimiser)
        before = state.seconds
        kept = state.average or _copy(named)
        # In the order of `named`, and laid out alike.
        average = {k: torch.empty_like(p).copy_(kept[k]) for k, p in named.items()}
        planner = Planner(seconds, started, first=state.step, fixed=steps)
        broken = 0

        def keep(step: int, stopped: str) -> TrainedState:
            judged = state.validation_loss[-1][0] if state.validation_loss else -1
            # An interrupted run is judged where an uninterrupted one would be.
            if step > state.step or judged < 0 or (stopped == "time used up" and judged < step):
                self._judge(state, average or named, step)
            state.step, state.stopped = step, stopped
            state.seconds = before + time.monotonic() - started
            state.current, state.average = _copy(named), _copy(average)
            state.optimiser = dump_state(optimisers, named)
            return state

        step = state.step
        # Samples side by side, each with its share of the cores.
        count = shared_evenly(settings.batch) if self.device.type == "cpu" else 1
        with (
            Interrupts() as interrupts,
            Lanes(count) as lanes,
            ThreadPoolExecutor(1, "patches") as loader,
        ):
            try:
                kind = stepper_for(
                    optimisers, self.pool, device=self.device, precision=self.precision
                )
                make_step = kind(
                    network, optimisers, settings, self.pool, self.leakage, device=self.device,
                    precision=self.precision, lanes=lanes,
                )  # fmt: skip
                coming = loader.submit(make_step.prepare, step)
                while steps is None or step < steps:
                    batch = coming.result()
                    coming = loader.submit(make_step.prepare, step + 1)
                    # Until the speed is known, the rate warms up as in a run of 1000 steps.
                    rate = learning_rate(
                        settings.learning_rate, step, steps or 1000,
                        warmup=settings.warmup, decay=settings.decay,
                    )  # fmt: skip
                    loss = make_step(batch, rate)
                    step += 1
                    if not math.isfinite(loss):
                        broken += 1
                        if broken > 20:
                            raise ShineError(
                                "Training did not converge (the loss is not a finite number). "
                                "Check the input with: shine info --check"
                            )
                        continue
                    _update_average(average, named, step, settings, steps or 1000)
                    state.recent.append(loss)
                    steps = planner.steps(step)
                    if steps != state.settings.steps:
                        state.settings = replace(settings, steps=steps)
                    validation = None
                    every = max(1, round(settings.validate_every * steps)) if steps else 0
                    if every and (step % every == 0 or step == steps):
                        state.train_loss.append((step, float(np.mean(state.recent))))
                        state.recent.clear()
                        validation = self._judge(state, average or named, step)
                    state.step = step
                    if progress is not None:
                        progress(
                            Progress(step, steps or 0, loss, validation, planner.left(step, steps))
                        )
                    if interrupts.asked:
                        return keep(step, "interrupted")
                    if step != steps and planner.out_of_time():
                        return keep(step, "time used up")
            except KeyboardInterrupt:
                return keep(step, "interrupted")
        return keep(step, "all steps done")

    def _steps_from_epochs(self, seconds: float | None) -> int | None:
        if seconds is not None:
            return None
        if self.settings.epochs is None:
            raise ShineError("Give training a number of steps or a time.")
        frames = len(self.pool.timeline.targets())
        return max(1, math.ceil(self.settings.epochs * frames / self.settings.batch))

    @torch.inference_mode()
    def _judge(self, state: TrainedState, weights: Mapping[str, Tensor], step: int) -> float:
        """Measure the validation loss of ``weights`` and keep them where they are the best."""
        network = build(self.config)
        network.load_state_dict(weights)
        network.to(self.device, memory_format=self.memory)  # type: ignore[call-overload]
        total = count = 0.0
        for b in self.validation:
            window = torch.from_numpy(b.windows).to(self.device)
            weight = torch.from_numpy(b.weights).to(self.device)
            with autocast(self.device, self.precision):
                predicted = network(window, [self.settings.hole], b.shift)[0]
            # Around held-out blocks of pixels lie others, whose noise is as good to foretell from.
            trusted = weight if self.whole_frames else torch.ones_like(weight)
            error = blind_error(
                predicted.float(), window, trusted, self.settings.hole, self.leakage
            ).square()
            total += float((error * weight).sum())
            count += float(weight.sum())
        loss = total / count if count else math.nan
        state.validation_loss.append((step, loss))
        if not count or loss < state.best_loss:  # where nothing could be held out, the latest
            state.best, state.best_step, state.best_loss = _copy(weights), step, loss
        return loss


def _update_average(
    average: dict[str, Tensor],
    named: dict[str, torch.nn.Parameter],
    step: int,
    settings: TrainingSettings,
    steps: int,
) -> None:
    half_life = settings.average * steps
    decay = 0.5 ** (1 / half_life) if half_life > 0 else 0.0
    decay = min(decay, step / (step + 10))
    with torch.no_grad():
        targets = list(average.values())
        torch._foreach_lerp_(targets, [p.detach() for p in named.values()], 1 - decay)


def _copy(tensors: Any) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
