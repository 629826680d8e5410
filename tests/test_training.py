"""Training: repeatable to the bit, resumable, in the time given, and it removes noise."""

from __future__ import annotations

import copy
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shine_em.checkpoint import Model
from shine_em.doctor import Health
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.network import Hole, NetworkConfig, build
from shine_em.patches import Normalisation, Timeline
from shine_em.training import Progress, TrainedState, hold_out, train
from shine_em.training_settings import PRESETS, TrainingSettings

TINY = NetworkConfig(frames=3, open_slots=(0, 2), channels=4)
QUICK = TrainingSettings(steps=12, crop=16, validate_every=0.25, seed=3)


def health_of(pixels: np.ndarray, **changes: Any) -> Health:
    n = len(pixels)
    values: dict[str, Any] = {
        "findings": (), "duplicate_of": np.arange(n), "blank": np.zeros(n, bool),
        "segment": np.zeros(n, int), "bad_pixels": np.zeros(pixels.shape[1:], bool),
        "spike_threshold": np.inf, "spike_floor": -np.inf, "location": 100.0, "scale": 12.0,
        "frame_means": np.full(n, 100.0),
    }  # fmt: skip
    return Health(**{**values, **changes})


def scene(n: int, height: int, width: int) -> np.ndarray:
    """Return clean drifting stripes and a moving disc, 100 ± 8."""
    t, y, x = np.meshgrid(np.arange(n), np.arange(height), np.arange(width), indexing="ij")
    stripes = np.sin(2 * np.pi * (x + 0.6 * y - 0.3 * t) / 11)
    disc = np.hypot(y - height / 2 - 3 * np.sin(t / 3), x - width / 2) < height / 5
    return (100 + 6 * stripes + 14 * disc).astype(np.float32)


def noisy(n: int = 12, height: int = 40, width: int = 36, sigma: float = 10.0) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, sigma, (n, height, width))
    return (scene(n, height, width) + noise).astype(np.float32)


PIXELS = noisy()
HEALTH = health_of(PIXELS)


def run(
    pixels: np.ndarray = PIXELS,
    health: Health = HEALTH,
    config: NetworkConfig = TINY,
    settings: TrainingSettings = QUICK,
    **more: Any,
) -> TrainedState:
    return train(Movie.from_array(pixels), health, config, settings, **more)


def stop_after(step: int) -> Callable[[Progress], None]:
    def progress(p: Progress) -> None:
        if p.step == step:
            raise KeyboardInterrupt

    return progress


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_training(a: TrainedState, b: TrainedState) -> None:
    for group in ("best", "current", "average", "optimiser"):
        assert_same_tensors(getattr(a, group), getattr(b, group))
    for name in ("config", "settings", "step", "best_step", "best_loss", "train_loss",
                 "validation_loss", "recent", "stopped"):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), name


OPTIMISERS = ["muon", "adam", "radam"]


@pytest.mark.parametrize("batch", [2, 3])
def test_samples_side_by_side_teach_what_a_batch_does(
    batch: int, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, batch=batch, steps=8)
    together = run(settings=settings)
    assert_same_training(together, run(settings=settings))
    monkeypatch.setattr("shine_em.training.shared_evenly", lambda most: 1)
    alone = run(settings=settings)
    for (_, a), (_, b) in zip(together.train_loss, alone.train_loss, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    for name, tensor in together.best.items():
        torch.testing.assert_close(tensor, alone.best[name], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_same_seed_gives_the_same_bits(optimiser: str) -> None:
    settings = replace(QUICK, optimiser=optimiser, steps=6)
    first = run(settings=settings)
    torch.manual_seed(99)
    np.random.default_rng().random()
    assert_same_training(first, run(settings=settings))
    other = run(settings=replace(settings, seed=4))
    assert other.train_loss != first.train_loss


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("after", [6, 7, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(
    optimiser: str, after: int, tmp_path: Any
) -> None:
    settings = replace(QUICK, optimiser=optimiser, holes=((3, 3), (5, 5)))
    whole = run(settings=settings)
    half = run(settings=settings, progress=stop_after(after))
    assert (half.stopped, half.step) == ("interrupted", after)
    before = copy.deepcopy(half)
    assert_same_training(whole, run(settings=settings, resume=half))
    assert_same_training(before, half)  # what was handed in is not changed
    # The same by way of a file, which keeps the tensors in another order.
    path = Model(half, Normalisation.of(HEALTH), ((3, 3),)).save(tmp_path / "half.safetensors")
    assert_same_training(whole, run(settings=settings, resume=Model.load(path).state))


def test_an_interruption_before_the_first_validation_leaves_a_model() -> None:
    half = run(progress=stop_after(1))
    assert half.stopped == "interrupted"
    assert half.best_step == 1
    assert math.isfinite(half.best_loss)
    whole, resumed = run(), run(resume=half)
    assert_same_tensors(whole.current, resumed.current)
    assert_same_tensors(whole.average, resumed.average)
    assert whole.train_loss == resumed.train_loss
    assert set(whole.validation_loss) <= set(resumed.validation_loss)


def test_ctrl_c_waits_for_the_end_of_the_step() -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(p: Progress) -> None:
        if p.step == 5:
            signal.raise_signal(signal.SIGINT)

    half = run(progress=press)
    assert (half.stopped, half.step) == ("interrupted", 5)
    assert signal.getsignal(signal.SIGINT) is before
    assert_same_training(run(), run(resume=half))


def test_progress_is_told_after_each_step() -> None:
    told: list[Progress] = []
    state = run(progress=told.append)
    assert [p.step for p in told] == list(range(1, 13))
    assert {p.steps for p in told} == {12}
    assert [(p.step, p.validation) for p in told if p.validation is not None] == (
        state.validation_loss
    )
    assert [step for step, _ in state.train_loss] == [3, 6, 9, 12]
    assert state.train_loss[0][1] == pytest.approx(np.mean([p.loss for p in told[:3]]))
    assert told[-1].seconds_left == 0
    assert state.seconds > 0


def test_time_fixes_the_number_of_steps() -> None:
    told: list[Progress] = []
    settings = replace(QUICK, steps=None, batch=1)
    state = run(settings=settings, seconds=4.0, progress=told.append)
    assert state.stopped in ("all steps done", "time used up")
    assert state.settings.steps is not None
    assert 5 < state.step <= state.settings.steps
    assert state.seconds < 30  # loose: the machine may be busy
    assert told[0].steps == 0  # not known yet
    assert told[-1].steps == state.settings.steps
    if state.stopped == "all steps done":
        assert state.step == state.settings.steps
    # Resuming goes on with the number of steps that was fixed.
    more = run(settings=settings, resume=replace(state, step=state.settings.steps - 2), seconds=60)
    assert more.settings.steps == state.settings.steps
    assert more.step == state.settings.steps


def test_no_time_left_still_returns_a_model() -> None:
    state = run(settings=replace(QUICK, steps=10_000), seconds=0.0)
    assert state.stopped == "time used up"
    assert state.step == 1
    assert math.isfinite(state.best_loss)


def test_epochs_are_passes_over_the_frames() -> None:
    state = run(settings=replace(QUICK, steps=None, epochs=2, batch=4))
    assert state.step == math.ceil(2 * 12 / 4)


def test_neither_steps_nor_time_is_refused() -> None:
    with pytest.raises(ShineError, match="steps or a time"):
        run(settings=replace(QUICK, steps=None))


def test_the_best_validation_loss_picks_the_model() -> None:
    # A rate that grows far too high: the model gets worse again after its best step.
    settings = replace(
        QUICK, steps=40, optimiser="adam", learning_rate=1.0, warmup=1.0, average=0.0,
        validate_every=0.05,
    )  # fmt: skip
    state = run(settings=settings)
    losses = dict(state.validation_loss)
    assert len(losses) == 20
    assert state.best_step == min(losses, key=losses.__getitem__)
    assert state.best_loss == losses[state.best_step]
    assert state.best_loss < losses[40]
    best = {k: v.clone() for k, v in state.best.items()}
    again = run(settings=settings, progress=stop_after(state.best_step))
    assert_same_tensors(again.current, best)  # without averaging, best is the weights of that step


def denoised(
    state: TrainedState, pixels: np.ndarray, hole: Hole, health: Health = HEALTH
) -> np.ndarray:
    network = build(state.config)
    network.load_state_dict(state.best)
    timeline, normalise = Timeline(len(pixels)), Normalisation.of(health)
    out = []
    for t in range(len(pixels)):
        window = timeline.window(t, state.config.frames)
        stack = np.stack([normalise.apply(pixels[i]) for i in window if i is not None])
        with torch.inference_mode():
            x = network(torch.from_numpy(stack)[None], [hole], timeline.shift(window))[0, 0]
        out.append(normalise.invert(x.numpy()))
    return np.stack(out)


def test_training_removes_noise_and_the_hole_can_be_changed_afterwards() -> None:
    told: list[Progress] = []
    settings = replace(QUICK, steps=100, crop=32, validate_every=0.1)
    state = run(config=replace(TINY, channels=8), settings=settings, progress=told.append)
    losses = [p.loss for p in told]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])
    clean = scene(*PIXELS.shape)
    raw_error = np.mean((PIXELS - clean) ** 2)
    assert np.mean((clean.mean() - clean) ** 2) > 0.3 * raw_error  # grey is not good enough
    assert np.mean((denoised(state, PIXELS, (3, 3)) - clean) ** 2) < 0.25 * raw_error
    for hole in ((1, 1), (5, 5), (3, 5)):
        assert np.mean((denoised(state, PIXELS, hole) - clean) ** 2) < 0.4 * raw_error


def test_values_of_masked_pixels_have_no_influence() -> None:
    rng = np.random.default_rng(1)
    bad = rng.random(PIXELS.shape[1:]) < 0.05
    spikes = rng.random(PIXELS.shape) < 0.01
    wild = PIXELS.copy()
    wild[:, bad] = rng.choice([-1e6, 0.0, 1e6, np.nan], (len(wild), bad.sum()))
    wild[spikes] = np.inf
    tame = PIXELS.copy()
    tame[spikes] = 1e5
    limits: dict[str, Any] = {"bad_pixels": bad, "spike_threshold": 1000.0}
    a = run(tame, health_of(tame, **limits))
    b = run(wild, health_of(wild, **limits))
    assert_same_training(a, b)
    unmasked = run(tame, health_of(tame, spike_threshold=1000.0))
    assert a.train_loss != unmasked.train_loss


def test_held_out_frames_have_no_influence_as_targets() -> None:
    """In a movie of single-frame scenes nothing but a frame's own loss can use it."""
    frames, hidden = hold_out(Movie.from_array(PIXELS), HEALTH, 2)
    assert len(frames) == 2
    assert hidden is None
    alone = {"segment": np.arange(len(PIXELS))}
    changed = PIXELS.copy()
    changed[frames] = 0.0
    a, b = run(PIXELS, health_of(PIXELS, **alone)), run(changed, health_of(changed, **alone))
    assert_same_tensors(a.current, b.current)
    assert a.train_loss == b.train_loss
    assert a.validation_loss != b.validation_loss  # they are what validation looks at


@pytest.mark.parametrize("n", [1, 4])
def test_short_movies_hold_out_blocks_of_pixels(n: int) -> None:
    pixels = noisy(n, 50, 70)
    frames, hidden = hold_out(Movie.from_array(pixels), health_of(pixels), 2)
    assert frames == []
    assert hidden is not None
    assert hidden.shape == (50, 70)
    assert 0.02 < hidden.mean() < 0.25
    config = NetworkConfig(frames=1, open_slots=(), channels=4) if n == 1 else TINY
    state = run(pixels, health_of(pixels), config)
    assert state.step == 12
    assert math.isfinite(state.best_loss)


def test_a_movie_too_small_to_hold_anything_out_is_judged_by_what_there_is() -> None:
    pixels = noisy(2, 9, 11)
    assert hold_out(Movie.from_array(pixels), health_of(pixels), 2) == ([], None)
    state = run(pixels, health_of(pixels))
    assert (state.best_step, state.best_loss) in state.validation_loss


def test_where_nothing_can_be_judged_the_latest_model_is_kept() -> None:
    # The only pixels that are good in the frames used for validation are those trained on.
    pixels = noisy(4, 50, 70)
    frames, hidden = hold_out(Movie.from_array(pixels), health_of(pixels), 2)
    assert not frames
    state = run(pixels, health_of(pixels, bad_pixels=hidden))
    assert state.best_step == state.step == 12


def test_anisotropic_holes_are_never_turned() -> None:
    square = run(settings=replace(QUICK, steps=1))
    flat = run(settings=replace(QUICK, steps=1, holes=((3, 3), (1, 5)), hole=(1, 5)))
    assert square.settings.turn
    assert not flat.settings.turn


@pytest.mark.parametrize("kind", ["lean", "paper"])
def test_training_from_given_weights(kind: str) -> None:
    config = replace(TINY, kind=kind)
    first = run(config=config, settings=replace(QUICK, steps=2, validate_every=1.0))
    more = run(config=config, settings=replace(QUICK, steps=1), start_from=first.best)
    fresh = run(config=config, settings=replace(QUICK, steps=1))
    for a, b in ((more, first), (fresh, more)):
        assert any(not torch.equal(a.best[k], b.best[k]) for k in a.best)


def test_low_precision_trains_too() -> None:
    state = run(settings=replace(QUICK, steps=3), precision="bf16")
    assert all(v.dtype == torch.float32 for v in state.best.values())
    assert math.isfinite(state.best_loss)


def test_paper_preset_is_the_papers() -> None:
    """Materials and Methods, "Training details" and "Ablation study"."""
    paper = PRESETS["paper"]
    assert (paper.crop, paper.batch, paper.epochs, paper.steps) == (256, 16, 2000, None)
    assert (paper.optimiser, paper.learning_rate) == ("radam", 1e-3)
    assert paper.warmup > 0
    assert paper.validation_frames == 2
    assert paper.turn
    assert NetworkConfig("paper").frames == 5


def test_settings_survive_json() -> None:
    for settings in (*PRESETS.values(), replace(QUICK, holes=((1, 5),), hole=(1, 5))):
        text = json.dumps(settings.to_dict(), allow_nan=False)
        assert TrainingSettings.from_dict(json.loads(text)) == settings


def test_nothing_to_train_on_is_said_plainly() -> None:
    with pytest.raises(ShineError, match="no frame is left"):
        run(health=health_of(PIXELS, blank=np.ones(len(PIXELS), bool)))


def test_a_loss_that_is_not_finite_stops_training() -> None:
    settings = replace(QUICK, steps=60, optimiser="adam", learning_rate=1e30)
    with pytest.raises(ShineError, match="did not converge"):
        run(settings=settings)
