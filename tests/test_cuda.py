"""On a CUDA card: the same training and the same pictures as on a processor, only sooner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import health, model, noisy, scene

import shine_em
from shine_em.compute import Lanes
from shine_em.denoising import Denoiser, _FrameCache
from shine_em.device_patches import DevicePatches
from shine_em.leakage import Leakage
from shine_em.movie import Movie
from shine_em.network import NetworkConfig, build
from shine_em.optimiser import optimisers
from shine_em.patch_pool import PatchPool
from shine_em.patches import Normalisation
from shine_em.stepping import GraphStepper, Stepper
from shine_em.training import train
from shine_em.training_settings import TrainingSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")

CARD = torch.device("cuda")
SHAPE = (14, 80, 88)
RAW = noisy(*SHAPE)
SETTINGS = TrainingSettings(
    steps=60, crop=48, batch=4, holes=((1, 1), (3, 3)), one_sided=0.5,
    correlation=((0.0, 0.1, 0.0), (0.1, 1.0, 0.1), (0.0, 0.1, 0.0)),
)  # fmt: skip


def pool() -> PatchPool:
    path = np.cumsum(np.full((SHAPE[0], 2), 0.6), 0)
    state = replace(health(SHAPE), path=path)
    return PatchPool(Movie.from_array(RAW), state, Normalisation.of(state), frames=5)


def test_patches_are_cut_on_the_card_as_on_the_processor() -> None:
    drawn = pool()
    on_card = DevicePatches(drawn, CARD)
    for step in range(20):
        how = {"size": 3, "crop": 48, "seed": 1, "one_sided": 0.5}
        draws = drawn.draw(step, **how)
        expected = drawn.batch(draws)
        windows, weights = on_card.cut(on_card.places(draws).to(CARD), draws.shape)
        np.testing.assert_array_equal(windows.cpu().numpy(), expected.windows)
        np.testing.assert_array_equal(weights.cpu().numpy(), expected.weights)


def test_recorded_steps_do_what_single_ones_do() -> None:
    losses, weights = {}, {}
    for kind in (Stepper, GraphStepper):
        torch.manual_seed(0)
        network = build(NetworkConfig()).to(CARD, memory_format=torch.channels_last)
        named = dict(network.named_parameters())
        with Lanes(1) as lanes:
            step = kind(
                network, optimisers("muon", named, 3e-3), SETTINGS, pool(),
                Leakage(SETTINGS.correlation, turned=True), device=CARD, precision="fp32",
                lanes=lanes,
            )  # fmt: skip
            losses[kind] = [step(step.prepare(k), 1e-3 * min(1, k / 5)) for k in range(25)]
        weights[kind] = {k: v.detach().cpu() for k, v in named.items()}
    np.testing.assert_allclose(losses[GraphStepper], losses[Stepper], rtol=2e-3)
    for name, value in weights[Stepper].items():
        torch.testing.assert_close(weights[GraphStepper][name], value, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("kind", ["lean", "paper"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_on_the_card(kind: str, precision: str) -> None:
    movie, state = Movie.from_array(RAW), health(SHAPE)
    config = NetworkConfig(kind, channels=16 if kind == "lean" else 8)
    settings = replace(SETTINGS, optimiser="muon" if kind == "lean" else "radam")
    found = train(movie, state, config, settings, device=CARD, precision=precision)
    gained = 0.97 if kind == "lean" else 1.0  # of the other, sixty steps are a beginning
    assert found.validation_loss[-1][1] < gained * found.validation_loss[0][1]


def test_a_resumed_run_goes_on_as_an_uninterrupted_one() -> None:
    def stop(p: object) -> None:
        if p.step == 30:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    def run(**more: object) -> object:
        movie = Movie.from_array(RAW)
        return train(movie, health(SHAPE), NetworkConfig(), SETTINGS, device=CARD, **more)  # type: ignore[arg-type]

    whole, half = run(), run(progress=stop)
    again = run(resume=half)
    assert again.step == whole.step  # type: ignore[attr-defined]
    # A card adds in no fixed order: alike, not equal to the bit.
    pairs = zip(whole.validation_loss, again.validation_loss, strict=True)  # type: ignore[attr-defined]
    for (_, a), (_, b) in pairs:
        assert a == pytest.approx(b, rel=5e-3)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("bf16", 0.02)])
def test_tiles_equal_the_whole_frame_and_the_processor(
    precision: str, allowed: float, views: int
) -> None:
    raw = noisy(9, 200, 330)
    result = shine_em.denoise(raw, steps=20, device="cuda", precision=precision)
    movie, sigma = Movie.from_array(raw), result.noise.sigma

    def frames(**how: object) -> np.ndarray:
        denoiser = Denoiser(result.model, views=views, **how)  # type: ignore[arg-type]
        found = denoiser.stream(movie, result.health)
        return np.stack([frame for _, _, frame in found])

    whole = frames(device="cuda", precision=precision)
    tiled = frames(device="cuda", precision=precision, tile=160)
    on_cpu = frames(device="cpu")
    assert np.abs(tiled - whole).max() < allowed * sigma
    assert np.sqrt(np.mean((on_cpu - whole) ** 2)) < allowed * sigma


def test_no_hidden_pixel_is_seen() -> None:
    network = build(NetworkConfig()).to(CARD).double()
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.1)
    for hole in ((1, 1), (3, 3), (1, 5)):
        window = torch.randn(1, 5, 72, 76, dtype=torch.float64, device=CARD, requires_grad=True)
        network(window, [hole])[0, 0, 33, 36].backward()
        assert window.grad is not None
        seen = window.grad[0, 2].cpu().numpy()
        m, n = hole[0] // 2, hole[1] // 2
        assert not seen[33 - m : 34 + m, 36 - n : 37 + n].any()
        assert seen.any()


def test_the_whole_job_on_the_card(tmp_path: Path) -> None:
    raw, truth = noisy(24, 128, 128), scene(24, 128, 128)
    result = shine_em.denoise(raw, steps=150, device="cuda", student="always", uncertainty=True)
    before = np.sqrt(np.mean((raw - truth) ** 2))
    after = np.sqrt(np.mean((np.asarray(result.movie.data) - truth) ** 2))
    assert after < 0.35 * before
    assert result.model.provenance["device"] == "cuda"
    path = tmp_path / "model.safetensors"
    result.model.save(path)
    # A model from the card serves a processor.
    again = shine_em.denoise(raw, model=path, device="cpu")
    off = np.asarray(again.movie.data) - np.asarray(result.movie.data)
    assert np.sqrt(np.mean(off**2)) < 0.03 * result.noise.sigma


def test_frames_are_normalised_on_the_card_as_on_the_processor() -> None:
    raw = RAW.astype(np.float32)
    raw[2, 3, 4], raw[2, 5, 6], raw[2, 7, 8] = np.nan, 1e9, -np.inf
    bad = np.zeros(SHAPE[1:], bool)
    bad[1, 1] = True
    state = replace(health(SHAPE), bad_pixels=bad, spike_threshold=500.0, spike_floor=-500.0)
    made = replace(model(), normalisation=Normalisation.of(state))
    cache = _FrameCache(Movie.from_array(raw), state, made, CARD, keep=3)
    expected = made.normalisation.apply(raw[2], bad)
    np.testing.assert_array_equal(cache[2][1].cpu().numpy(), expected)


def test_a_broken_batch_moves_no_weight() -> None:
    torch.manual_seed(0)
    network = build(NetworkConfig()).to(CARD, memory_format=torch.channels_last)
    with Lanes(1) as lanes:
        step = GraphStepper(
            network, optimisers("muon", dict(network.named_parameters()), 3e-3), SETTINGS, pool(),
            Leakage((), turned=True), device=CARD, precision="bf16", lanes=lanes,
        )  # fmt: skip
        step(step.prepare(0), 1e-3)
        before = [p.detach().clone() for p in step.parameters]
        step.patches.frames.fill_(np.inf)
        assert not np.isfinite(step(step.prepare(1), 1e-3))
    assert all((p == b).all() for p, b in zip(step.parameters, before, strict=True))
