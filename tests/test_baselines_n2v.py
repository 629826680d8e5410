import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import noisy, scene

from shine_em.baselines import METHODS
from shine_em.baselines import n2v as home
from shine_em.baselines.n2v import UNet, fit, mask_pixels, masked_loss
from shine_em.errors import ShineError
from shine_em.movie import Movie


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mask_hides_the_stated_share() -> None:
    patches = torch.randn(512, 64, 64)
    inputs, mask = mask_pixels(patches, (1, 1), generator())
    assert mask.mean().item() == pytest.approx(0.00198, rel=0.03)
    changed = inputs != patches
    # the others are as they were, and of the hidden ones one in 121 or so shows itself
    assert not (changed & (mask == 0)).any()
    own = 1 - (changed.sum() / mask.sum()).item()
    assert own == pytest.approx(1 / 121, abs=0.006)


def test_hidden_pixels_are_anywhere_and_show_what_is_near() -> None:
    """Each pixel's value is its position, so that the source of a shown value can be read."""
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    for patch, axis in ((rows, 1), (rows.T, 2)):
        inputs, mask = mask_pixels(patch.expand(2000, 64, 64), (1, 1), generator(axis))
        places = torch.nonzero(mask)[:, axis]
        moved = inputs[mask == 1] - places
        assert moved.abs().max() == 5
        inner = (places >= 5) & (places < 59)
        counts = torch.bincount((moved[inner] + 5).long(), minlength=11)
        assert (counts / counts.sum() - 1 / 11).abs().max() < 0.02
        seen = torch.bincount(places, minlength=64) / len(places)
        assert (seen * 64 - 1).abs().max() < 0.4


@settings(max_examples=20)
@given(
    h=st.integers(16, 70), w=st.integers(16, 70), rows=st.sampled_from([1, 3, 5]),
    columns=st.sampled_from([1, 3, 9]), seed=st.integers(0, 99),
)  # fmt: skip
def test_struct_mask_covers_the_hole(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    """In the hole of a hidden pixel nothing of the patch is left, and nothing else changes."""
    patches = torch.full((3, h, w), 7.0)  # outside the noise's ±2
    inputs, mask = mask_pixels(patches, (rows, columns), generator(seed))
    footprint = torch.ones(1, 1, rows, columns)
    near = torch.nn.functional.conv2d(mask[:, None], footprint, padding=(rows // 2, columns // 2))
    covered = (near[:, 0] > 0.5) & (mask == 0)
    assert (inputs[covered].abs() <= 2).all()
    assert (inputs[(near[:, 0] < 0.5)] == 7).all()
    if rows * columns == 1:
        assert not covered.any()


def test_loss_never_sees_the_hidden_pixel() -> None:
    """By gradient: what a network predicts for a hidden pixel does not depend on its value."""
    torch.manual_seed(0)
    network = UNet(features=4).eval()
    patches = torch.randn(4, 16, 16, requires_grad=True)
    inputs, mask = mask_pixels(patches, (1, 1), generator(5))
    spots = torch.nonzero(mask)
    assert len(spots) > 0
    for b, y, x in spots.tolist():
        if inputs[b, y, x] == patches[b, y, x]:
            continue  # shows its own value: one in 121
        predicted = network(inputs)
        (gradient,) = torch.autograd.grad(predicted[b, y, x], patches)
        assert gradient[b, y, x] == 0
        assert gradient[b].abs().sum() > 0


def test_loss_counts_hidden_pixels_only() -> None:
    predicted = torch.randn(2, 16, 16, requires_grad=True)
    target = torch.randn(2, 16, 16)
    _, mask = mask_pixels(target, (3, 3), generator(3))
    masked_loss(predicted, target, mask).backward()
    assert torch.equal(predicted.grad != 0, mask == 1)
    wrong = predicted.detach() - target
    expected = wrong[mask == 1].square().mean()
    torch.testing.assert_close(masked_loss(predicted.detach(), target, mask), expected)


def test_network_is_that_of_the_example_notebooks() -> None:
    """Weights per layer as in n2v's two-level U-Net of 32 features with 3×3 kernels."""
    widths = [
        (1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 64), (128, 64), (64, 32),
        (64, 32), (32, 32),
    ]  # fmt: skip
    # 3×3 kernel, bias, and scale and shift of the normalisation; then 1×1 and its bias
    expected = sum(9 * a * b + 3 * b for a, b in widths) + 33
    assert sum(p.numel() for p in UNet().parameters()) == expected


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return noisy(12, 48, 48, dose=200.0).astype(np.float32)


def test_training_denoises(counts: np.ndarray) -> None:
    """Sixty small steps gain 1.5 dB (measured: 3.4; a flat frame would lose 5.8)."""
    told: list[float] = []
    fitted = fit(counts, steps=60, batch=8, progress=lambda _, f: told.append(f))
    assert fitted.steps == len(told) == 60
    assert told == sorted(told)
    assert told[-1] == 1
    assert [step for step, _ in fitted.validation_loss] == [10, 20, 30, 40, 50, 60]
    truth = scene(12, 48, 48, dose=200.0)
    denoised = np.stack([fitted.denoise(frame) for frame in counts])
    errors = [np.mean((a - truth) ** 2) for a in (counts, denoised)]
    assert 10 * np.log10(errors[0] / errors[1]) > 1.5
    assert denoised.mean() == pytest.approx(counts.mean(), rel=0.05)


def test_same_seed_same_result(counts: np.ndarray) -> None:
    small = counts[:4, :20, :24]
    runs = [fit(small, steps=3, batch=4, seed=s).denoise(small[0]) for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_time_budget_bounds_the_steps(counts: np.ndarray) -> None:
    """Without a budget this movie would take 700 steps of 128 patches."""
    movie = Movie.from_array(counts[:, :32, :32], pixel_size_nm=0.1)
    stages: list[tuple[str, float]] = []
    denoised = METHODS["n2v"].run(
        movie, time_budget_s=0.5, progress=lambda name, f: stages.append((name, f))
    )
    words = denoised.history[-1].split()
    steps, batch = int(words[1]), int(words[4])
    assert 0 < steps < 500
    assert batch in (8, 16, 32, 64, 128)
    training = [f for name, f in stages if name == "training"]
    assert len(training) == steps
    assert sum(name == "denoising" for name, _ in stages) == len(movie)
    assert denoised.axes == movie.axes
    assert denoised.dtype == np.float32


def test_default_schedule_follows_the_movie(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch known, one held out: 100 passes over its 8 orientations, one batch each."""
    monkeypatch.setattr(home, "_BATCH", 2)
    monkeypatch.setattr(home, "_EPOCHS", 1)
    fitted = fit(noisy(2, 16, 16).astype(np.float32), batch=2)
    assert fitted.steps == 4


def test_structn2v_hides_the_measured_hole() -> None:
    movie = Movie.from_array(noisy(3, 24, 24))
    denoised = METHODS["structn2v"].run(movie, hole=(1, 5), time_budget_s=0.01)
    assert "structN2V 1×5" in denoised.history[-1]


def test_tiles_equal_the_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large frames are cut into tiles whose halo covers all that a pixel depends on."""
    frame = noisy(1, 150, 141)[0].astype(np.float32)
    fitted = fit(frame[None, :32, :32], steps=2, batch=2)
    whole = fitted.denoise(frame)
    monkeypatch.setattr(home, "_TILE", 100)
    np.testing.assert_allclose(fitted.denoise(frame), whole, rtol=1e-5, atol=1e-4)


@settings(max_examples=6)
@given(t=st.integers(1, 3), h=st.integers(16, 39), w=st.integers(16, 39))
def test_any_shape(t: int, h: int, w: int) -> None:
    fitted = fit(noisy(t, h, w).astype(np.float32), steps=1, batch=2)
    assert fitted.denoise(noisy(1, h, w)[0]).shape == (h, w)


def test_small_frames_are_refused() -> None:
    with pytest.raises(ShineError, match="16 px"):
        METHODS["n2v"].run(Movie.from_array(noisy(3, 15, 40)))


def test_empty_movies_are_refused() -> None:
    with pytest.raises(ShineError, match="finite"):
        METHODS["n2v"].run(Movie.from_array(np.full((2, 32, 32), np.nan)))
