"""The student: one pass that does what the ensemble does, or it is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import health as healthy
from small import model, noisy, scene

import shine_em as shine
from shine_em import reserve as reserving
from shine_em.checkpoint import Model
from shine_em.denoising import Denoiser
from shine_em.distillation import Schooling, distil, graduate, judge, lesson_count
from shine_em.doctor import check
from shine_em.error_estimate import ErrorEstimator
from shine_em.errors import ShineError
from shine_em.job import train_model
from shine_em.movie import Movie
from shine_em.noise import noise_of
from shine_em.planning import Options, Plan, averaged_holes, prepare
from shine_em.student import WIDTHS, Student, StudentNetwork

STEPS = 40


def network(frames: int = 5, widths: Sequence[int] = WIDTHS, seed: int = 0) -> StudentNetwork:
    """Return a student whose weights are all random: whatever it may see, it uses."""
    torch.manual_seed(seed)
    made = StudentNetwork(frames, widths)
    with torch.no_grad():
        for p in made.parameters():
            if not p.count_nonzero():
                p.normal_(std=0.2)
    return made.eval()


def with_student(trained: Model, widths: Sequence[int] = (8, 8, 8)) -> Model:
    made = network(trained.config.frames, widths)
    weights = {k: v.detach().clone() for k, v in made.state_dict().items()}
    student = Student(weights, made.frames, tuple(widths), 3, 1.5, 2, 0.25, ((3, 3),))
    return replace(trained, student=student)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def pixels(movie: np.ndarray, denoiser: Denoiser) -> np.ndarray:
    stream = denoiser.stream(Movie.from_array(movie), check(Movie.from_array(movie)))
    return np.stack([out for _, _, out in stream])


@pytest.fixture(scope="module")
def taught() -> tuple[Movie, Plan, Model, Student]:
    """A movie, its plan, a teacher, and the student that was distilled from it."""
    movie = Movie.from_array(noisy())
    trained, plan = train_model(movie, options=Options(steps=STEPS, seed=1))
    teacher = Denoiser(trained)
    return movie, plan, trained, distil(movie, plan.health, teacher, steps=2 * STEPS)


def test_a_student_repeats_its_teacher_on_frames_it_has_not_seen_and_at_the_ends(
    taught: tuple[Movie, Plan, Model, Student],
) -> None:
    movie, _, trained, student = taught
    unseen = noisy(seed=1)
    one = pixels(unseen, Denoiser(replace(trained, student=student)))
    other = pixels(unseen, Denoiser(trained))
    noise = rms(unseen - scene(seed=1))
    for t in range(12):
        end = min(t, 11 - t) < 2
        assert rms(one[t] - other[t]) < (0.35 if end else 0.2) * noise, t
    assert student.difference * trained.normalisation.scale < 0.2 * noise
    assert (student.steps, student.lessons) == (2 * STEPS, lesson_count(movie, 5, 8))


def test_a_student_is_as_bright_as_its_teacher(
    taught: tuple[Movie, Plan, Model, Student],
) -> None:
    movie, plan, trained, _ = taught
    brighter = replace(trained, offset=trained.offset + 2.0)
    student = distil(movie, plan.health, Denoiser(brighter), steps=8, lessons=3)
    one, other = (
        pixels(noisy(), Denoiser(m)).mean() for m in (replace(brighter, student=student), brighter)
    )
    assert one == pytest.approx(other, abs=0.3 * trained.normalisation.scale)


def test_distilling_repeats_to_the_bit(taught: tuple[Movie, Plan, Model, Student]) -> None:
    movie, plan, trained, _ = taught
    teacher = Denoiser(trained)
    one, two = (distil(movie, plan.health, teacher, steps=8, lessons=3) for _ in range(2))
    for name, weight in one.weights.items():
        assert torch.equal(weight, two.weights[name])
    assert one.difference == two.difference


def test_pure_noise_comes_out_empty(taught: tuple[Movie, Plan, Model, Student]) -> None:
    _, _, trained, student = taught
    rng = np.random.default_rng(0)
    raw = rng.poisson(20.0, (7, 48, 48)).astype(np.float32)
    with_it, without = (
        pixels(raw, Denoiser(m))[2:5].std() / np.sqrt(20.0)
        for m in (replace(trained, student=student), trained)
    )
    # Taught by a blind network, it does not copy the noise of the pixel that it sees.
    assert with_it < without + 0.03


def test_tiles_equal_the_whole_frame() -> None:
    raw = noisy(5, 41, 301)
    trained = with_student(model())
    one, other = (pixels(raw, Denoiser(trained, tile=tile)) for tile in (160, 1024))
    np.testing.assert_allclose(one, other, atol=2e-5 * rms(other))


def test_no_pixel_beyond_the_halo_matters_and_the_hidden_one_does() -> None:
    made = network().double()
    for y, x in ((100, 100), (101, 103), (104, 107)):
        window = torch.zeros(1, 5, 208, 208, dtype=torch.float64).normal_().requires_grad_()
        made(window)[0, y, x].backward()
        assert window.grad is not None
        seen = window.grad.abs().sum((0, 1))
        assert seen[y, x] > 0
        far = (seen > 0).nonzero() - torch.tensor([y, x])
        assert 24 < far.abs().max() <= made.halo


@pytest.mark.parametrize("frames", [1, 3, 5, 7])
def test_any_window_and_any_size(frames: int) -> None:
    made = network(frames)
    for shift in range(frames // 2 + 1):
        out = made(torch.randn(2, frames, 21, 34), shift)
        assert out.shape == (2, 21, 34)
        assert torch.isfinite(out).all()


def test_a_denoiser_that_hands_on_its_noise_is_judged_worse(
    taught: tuple[Movie, Plan, Model, Student],
) -> None:
    movie, plan, trained, _ = taught
    teacher = Denoiser(trained)
    estimator = ErrorEstimator.for_model(trained, movie, plan.health, plan.noise)
    # What comes out as it went in has no residual at all: only its handed-on noise betrays it.
    copied = judge(estimator, lambda windows, _: windows[:, 2], teacher.predict)
    assert not copied.kept
    assert copied.difference == pytest.approx(plan.noise.sigma**2, rel=0.1)
    same = judge(estimator, teacher.predict, teacher.predict)
    assert same.kept
    assert same.difference == 0
    rival = judge(estimator, teacher.predict, lambda windows, _: windows[:, 2])
    assert rival.kept


def test_a_student_no_worse_than_what_it_stands_in_for_is_used_and_reused(
    taught: tuple[Movie, Plan, Model, Student], tmp_path: Path
) -> None:
    movie, plan, trained, student = taught
    expected = pixels(np.asarray(movie.data), Denoiser(replace(trained, student=student)))
    # Beside a network that has learned nothing, the student is the better one.
    nothing = {k: torch.zeros_like(v) for k, v in trained.state.best.items()}
    state = replace(trained.state, best=nothing)
    poor = replace(trained, state=state, student=student, linear=None)
    noise = noise_of(movie, plan.health)  # all that is known without the network
    kept, verdict = graduate(movie, plan.health, noise, poor, Schooling(steps=1))
    assert verdict.kept
    assert kept.student is not None
    assert kept.student.rival == trained.holes
    loaded = Model.load(kept.save(tmp_path / "m.safetensors"))
    result = shine.denoise(movie, model=loaded, precision="fp32")
    other = np.asarray(result.movie.data) - expected
    # The job may have shifted a frame to its raw mean, and has done nothing else.
    np.testing.assert_allclose(other - other.mean((1, 2), keepdims=True), 0, atol=1e-3)
    assert "in one pass" in result.denoised_by
    assert "student" in result.movie.history[-1]
    assert result.error is not None
    assert result.error.mse == pytest.approx(verdict.student.mse)
    without = shine.denoise(movie, model=loaded, student="never")
    assert without.model.student is None
    assert "none was wanted" in without.denoised_by
    assert np.asarray(without.movie.data).std() < 0.5 * expected.std()


def test_a_student_that_is_worse_is_not_used(taught: tuple[Movie, Plan, Model, Student]) -> None:
    movie, plan, trained, _ = taught
    # Its two steps teach it nothing.
    kept, verdict = graduate(movie, plan.health, plan.noise, trained, Schooling(steps=2))
    assert not verdict.kept
    assert verdict.difference > verdict.standard_error
    assert kept.student is None
    short = replace(trained.state.settings, steps=2)
    brief = replace(trained, state=replace(trained.state, settings=short))
    result, plain = (
        shine.denoise(movie, model=brief, student=wanted) for wanted in ("always", "never")
    )
    assert "distilled and not used" in result.denoised_by
    assert "student" not in result.movie.history[-1]
    np.testing.assert_array_equal(result.movie.data, plain.movie.data)


def test_a_saved_student_denoises_bit_for_bit_the_same(tmp_path: Path) -> None:
    trained = with_student(model(holes=[(3, 3), (1, 1)]))
    path = trained.save(tmp_path / "m.safetensors")
    loaded = Model.load(path)
    assert loaded.student is not None
    assert trained.student is not None
    assert loaded.student.to_dict() == trained.student.to_dict()
    raw = noisy(6, 40, 40)
    one, two = pixels(raw, Denoiser(trained)), pixels(raw, Denoiser(loaded))
    np.testing.assert_array_equal(one, two)
    assert (one != pixels(raw, Denoiser(loaded, holes=loaded.holes))).all(axis=(1, 2)).any()
    assert any(name.startswith("student:") for name in load_file(path))
    broken = replace(trained.student, weights={"enter.weight": torch.zeros(2, 2)})
    path = replace(trained, student=broken).save(tmp_path / "broken.safetensors")
    with pytest.raises(ShineError, match=r"broken.*student"):
        Model.load(path)


def test_a_long_movie_gets_a_student_and_a_short_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (Movie.from_array(noisy(n, 24, 24)) for n in (12, 300))
    timed: list[int] = []  # holes, 0 for a student

    def planned(movie: Movie, seconds: float, **options: object) -> Plan:
        """Plan where a student's pass takes ``seconds`` and the ensemble's five times and more."""

        def takes(denoiser: Denoiser, *_: object) -> float:
            timed.append(0 if denoiser.by_student else len(denoiser.holes))
            if denoiser.linear is not None:  # timed alone
                return 0.05 * seconds
            return seconds * (1 if denoiser.by_student else 4 + len(denoiser.holes))

        monkeypatch.setattr(reserving, "_measure", takes)
        chosen = Options(time_budget=600.0, register="never", **options)  # type: ignore[arg-type]
        plan, kept = reserving.reserve(
            movie, prepare(movie, chosen), chosen, budget=600.0, spent=10.0, device="cpu",
            precision="fp32", writing_s=1.0,
        )  # fmt: skip
        assert 0 < kept < 480
        return plan

    short = planned(few, 0.2)
    assert short.schooling is None
    assert "room for the blind-spot ensemble" in short.no_student
    assert short.views < 4
    assert planned(few, 0.02).views == 4  # mirrored views, where they take next to no time
    asked = planned(few, 0.2, student="always")
    assert asked.schooling is not None
    assert asked.schooling.ensemble_s is None
    weak = planned(Movie.from_array(noisy(30, 24, 24, dose=0.2)), 1.0, student="never")
    assert weak.holes == (weak.settings.hole,)
    assert weak.with_filter
    slow = planned(few, 2.0)
    assert slow.schooling is None
    assert "longer than it saves" in slow.no_student
    assert slow.holes == (slow.settings.hole,)
    assert slow.candidates == averaged_holes(slow.settings.hole)  # one of the two
    assert (slow.most_holes, slow.views) == (1, 1)
    assert not slow.with_filter
    timed.clear()
    planned(few, 2.0, student="never")
    assert timed == [1, 2]  # neither the filter nor all candidates: there is no time for them
    long = planned(many, 0.2)
    assert long.schooling is not None
    assert long.schooling.ensemble_s is not None
    assert long.views == 1
    assert planned(many, 0.2, student="never").schooling is None


def test_impossible_wishes_are_refused() -> None:
    for bad in ({"student": "maybe"}, {"student": "always", "ensemble": False},
                {"student": "always", "preset": "paper"}):  # fmt: skip
        with pytest.raises(ShineError, match="student"):
            Options(**bad)  # type: ignore[arg-type]
    raw = noisy(6, 32, 32)
    with pytest.raises(ShineError, match="steps"):
        distil(Movie.from_array(raw), healthy(raw.shape), Denoiser(model()))
