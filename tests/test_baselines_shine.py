"""Our networks in the rivals' call shape, the supervised ceiling, and the loop that trains it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import noisy, scene

from shine_em.baselines import METHODS
from shine_em.baselines.fitting import PlateauPace, fit
from shine_em.baselines.shine import _options, denoise
from shine_em.baselines.supervised import SeeingNetwork, split_frames, supervised
from shine_em.errors import ShineError
from shine_em.metrics import movie_psnr
from shine_em.movie import Movie
from shine_em.noise import noise_statistics
from shine_em.planning import Options


@pytest.fixture(scope="module")
def movie() -> Movie:
    return Movie.from_array(noisy(12, 40, 44), pixel_size_nm=0.2, name="small")


def test_a_fixed_hole_stands_alone_and_the_measured_one_in_its_ensemble(movie: Movie) -> None:
    stats = noise_statistics(movie)
    measured = _options("lean", stats, None, 60.0, 3, "cpu", 5)
    assert measured.hole == stats.hole
    assert measured.ensemble
    fixed = _options("lean", stats, METHODS["lean-3x3"].hole, 60.0, 3, "cpu", 7)
    assert (fixed.hole, fixed.ensemble, fixed.frames, fixed.seed) == ((3, 3), False, 7, 3)
    assert _options("paper", None, None, None, 0, "cpu", 5).hole is None


@pytest.mark.parametrize("preset", ["lean", "paper"])
def test_denoise_trains_on_the_movie_and_keeps_its_calibration(movie: Movie, preset: str) -> None:
    heard: list[tuple[str, float]] = []
    options = Options(
        preset=preset, hole=(3, 3), steps=2, device="cpu", frames=3, ensemble=False
    )  # fmt: skip
    clean = denoise(movie, options, progress=lambda *event: heard.append(event))
    assert clean.shape == movie.shape
    assert clean.dtype == np.float32
    assert clean.pixel_size_nm == movie.pixel_size_nm
    assert preset in clean.history[-1]
    assert "3x3" in clean.history[-1]
    assert {"training", "denoising"} <= {stage for stage, _ in heard}
    assert all(0 <= fraction <= 1 for _, fraction in heard)


def test_the_budget_is_for_training_alone(movie: Movie) -> None:
    # Checking the movie and measuring its noise take longer than this, and must not eat it up.
    clean = METHODS["lean-3x3"].run(movie, time_budget_s=0.01)
    assert np.isfinite(clean.data).all()
    assert np.mean(clean.data) == pytest.approx(np.mean(movie.data), rel=1e-3)
    with pytest.raises(ShineError, match="hole"):
        METHODS["lean"].run(movie, hole=(17, 17), time_budget_s=0.01)


# --- the ceiling -----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 500), min_size=5, max_size=120, unique=True).map(sorted))
def test_every_frame_is_either_trained_on_stopped_by_or_scored(targets: list[int]) -> None:
    train, stopping, scored = split_frames(targets)
    assert sorted([*train, *stopping, *scored]) == targets
    assert train
    assert stopping
    assert len(scored) == max(1, round(len(targets) / 5))
    first = targets.index(scored[0])  # neighbours, in the middle of the movie
    assert scored == targets[first : first + len(scored)]


def test_too_few_frames_and_another_shape_are_refused() -> None:
    data = noisy(4, 32, 32)
    with pytest.raises(ShineError, match="at least five"):
        supervised(Movie.from_array(data), Movie.from_array(data))
    with pytest.raises(ShineError, match="must agree"):
        supervised(Movie.from_array(data), Movie.from_array(data[:, 1:]))


def test_the_ceiling_network_is_the_lean_one_but_sees_the_pixel_itself() -> None:
    torch.manual_seed(0)
    network = SeeingNetwork().double()
    for p in network.parameters():  # what starts at zero would hide the gradient
        if not p.count_nonzero():
            torch.nn.init.normal_(p, std=0.1)
    window = torch.randn(1, 5, 21, 26, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(window)[0, 10, 13], window)
    assert gradient[0, 2, 10, 13] != 0


def test_the_ceiling_beats_the_noise_where_it_was_not_taught() -> None:
    movie = Movie.from_array(noisy(20, 32, 32, dose=8))
    exact = scene(20, 32, 32, dose=8)
    changed = exact.copy()
    _, _, scored = split_frames(list(range(20)))
    changed[scored] = 0  # what it is scored by must not have been looked at
    ceiling = supervised(movie, Movie.from_array(changed.astype(np.float32)), step_limit=180)
    assert ceiling.held_out == tuple(scored)
    steps, _, held = np.array(ceiling.fitted.curve).T
    assert (np.diff(steps) > 0).all()
    assert len(steps) > 2
    assert held.min() < held[0]
    assert not ceiling.plateau
    assert ceiling.fitted.best_step == steps[np.argmin(held)]
    before = movie_psnr(movie, exact)[scored]
    after = movie_psnr(ceiling.movie, exact)[scored]
    assert (after > before + 3).all()


def test_a_plateau_ends_each_stage_and_at_last_the_training() -> None:
    pace = PlateauPace(1.0, every=10, patience=3, stages=2)
    assert pace.rate(20) == 1.0
    for loss in (5.0, 4.0, 4.0, 3.9999, 4.1):
        pace.judged(loss)
    assert pace.rate(20) == pytest.approx(1 / 3)
    pace.judged(3.0)  # better again: the stage goes on
    for loss in (3.0, 3.0):
        pace.judged(loss)
        assert not pace.plateau
    pace.judged(3.0)
    assert pace.plateau
    assert pace.rate(30) is None
    assert pace.done(30) == 1.0


def test_the_best_weights_are_kept_and_a_broken_loss_is_told() -> None:
    line = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(line.weight, 0.0)
    one = torch.ones(1, 1)
    steps = [0.3, 0.3, 2.0, 2.0]  # rates: towards the target, then far beyond it

    class Given:
        def rate(self, step: int) -> float | None:
            return steps[step] if step < len(steps) else None

        def judge_next(self, step: int) -> bool:
            return True

        def judged(self, loss: float) -> None: ...

        def done(self, step: int) -> float:
            return step / len(steps)

    def train(target: torch.Tensor) -> tuple[int, float]:
        done = fit(
            line, lambda _: (one, target, one), [(one, target, one)], pace=Given(),
            optimisers=[torch.optim.SGD(line.parameters(), lr=1.0)], device=torch.device("cpu"),
            precision="fp32",
        )  # fmt: skip
        return done.best_step, min(loss for _, _, loss in done.curve)

    best, loss = train(torch.full((1, 1), 0.6))
    assert best == 2
    assert (line.weight.item() - 0.6) ** 2 == pytest.approx(loss)
    with pytest.raises(ShineError, match="did not converge"):
        train(torch.full((1, 1), float("nan")))
