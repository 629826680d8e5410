"""May a microscopist believe the result? Nothing made of noise, nothing measured wrong.

Small frames and few steps; `benchmarks/trust.py` asks the same of larger movies and default times.
"""

from __future__ import annotations

import numpy as np
import pytest
import trust_scenes as scenes
from trust_scenes import EVENT_PX, SIGMA, TrustScene, disc, noise

import shine_em
from shine_em.smearing import SmearDetector, smear_warnings
from shine_em.warm_start import FEWEST_PIXELS

Denoised = tuple[np.ndarray, shine_em.Result]


SMALL, SHIPPED = (12, 96, 96), (20, 128, 128)  # the second begins with the shipped weights


@pytest.fixture(
    scope="module",
    params=[(SMALL, 0.0), (SMALL, scenes.BLUR), (SHIPPED, 0.0), (SHIPPED, scenes.BLUR)],
    ids=["white", "correlated", "white, shipped weights", "correlated, shipped weights"],
)
def nothing(request: pytest.FixtureRequest) -> Denoised:
    """A few frames of pure noise, denoised: a short movie is the easiest to learn by heart."""
    shape, blur = request.param
    assert (np.prod(shape) < FEWEST_PIXELS) == (shape == SMALL)
    raw = scenes.pure_noise(shape, blur=blur)
    return raw, shine_em.denoise(raw, steps=60)


def test_pure_noise_comes_out_empty(nothing: Denoised):
    raw, result = nothing
    denoised = np.asarray(result.movie.data, float)
    assert denoised.std((1, 2)).max() <= 0.03 * SIGMA
    assert abs(denoised.mean() - raw.mean()) < 0.02 * SIGMA


def test_pure_noise_has_no_frequency_above_that_of_the_mean_of_all_frames(nothing: Denoised):
    raw, result = nothing
    assert scenes.worst_ring(raw, np.asarray(result.movie.data, float)) <= 3


def test_pure_noise_raises_no_alarm(nothing: Denoised):
    _, result = nothing
    assert result.smears == ()
    assert not result.model.state.settings.registered


@pytest.fixture(scope="module")
def seen() -> tuple[TrustScene, np.ndarray, shine_em.Result]:
    scene = scenes.trust_scene(20, 128)
    result = shine_em.denoise(scene.raw, steps=120)
    return scene, np.asarray(result.movie.data, float), result


Seen = tuple[TrustScene, np.ndarray, shine_em.Result]


def test_lattice_spacing_and_angle_are_unbiased(seen: Seen):
    scene, denoised, _ = seen
    spacing, angle = scenes.lattice_errors(scene, denoised)
    assert abs(spacing) < 1e-3
    assert abs(angle) < 0.2


def test_intensities_are_linear_in_flat_regions(seen: Seen):
    scene, denoised, _ = seen
    assert scenes.flat_slope(scene, denoised) == pytest.approx(1, abs=0.01)


def test_a_particle_of_one_frame_is_kept_or_told_of(seen: Seen):
    scene, denoised, result = seen
    told = [
        s
        for s in result.smears
        if s.frame == scene.frame and np.hypot(s.y - scene.y, s.x - scene.x) < EVENT_PX
    ]
    assert scenes.contrast_kept(scene, denoised) >= 0.8 or told
    for s in result.smears:  # and whatever else is told of is missing indeed
        assert abs(scenes.missing_at(scene, denoised, s.frame, s.y, s.x)) > 0.3
    spoken = [w for w in result.warnings if f"frame {scene.frame}," in w and "smearing" in w]
    assert bool(spoken) == bool(told)


def detector_of(
    raw: np.ndarray, denoised: np.ndarray, hole: tuple[int, int] = (3, 3)
) -> SmearDetector:
    """Return a detector that has seen a movie and what became of it."""
    detector = SmearDetector(raw.shape[1:], hole)
    trusted = np.ones(raw.shape[1:], bool)
    for t, (a, b) in enumerate(zip(raw, denoised, strict=True)):
        detector.add(t, a, b, trusted=trusted)
    return detector


@pytest.mark.parametrize("kind", ["correlated", "few electrons", "bright here, dark there"])
def test_noise_alone_is_no_event(kind):
    rng = np.random.default_rng(5)
    shape = (40, 150, 150)
    level = np.full(shape, 20.0)
    if kind == "correlated":
        raw = level + 4 * noise(shape, blur=0.8)
    elif kind == "few electrons":
        raw = rng.poisson(0.02, shape).astype(float)
        level[:] = 0.02
    else:
        level[:, :, 75:] = 2.0
        raw = rng.poisson(level).astype(float)
    assert detector_of(raw, level).finish() == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_weakened_event_is_told_of_with_frame_and_place(sign):
    level = np.full((12, 120, 150), 50.0)
    event = sign * 15 * disc(level.shape[1:], 40, 100, 4.5)
    raw = level + 5 * noise(level.shape, blur=0.6)
    raw[7] += event
    denoised = level.copy()
    denoised[7] += 0.4 * event
    (smear,) = detector_of(raw, denoised).finish()
    assert smear.frame == 7
    assert max(abs(smear.y - 40), abs(smear.x - 100)) <= 4
    assert smear.lost == pytest.approx(0.6, abs=0.2)


def test_an_event_that_is_kept_is_not_told_of():
    level = np.full((12, 120, 150), 50.0)
    raw = level + 5 * noise(level.shape, blur=0.6)
    event = 15 * disc(level.shape[1:], 40, 100, 4.5)
    raw[7] += event
    level[7] += 0.95 * event
    assert detector_of(raw, level).finish() == []


def test_what_is_missing_in_every_frame_is_no_event():
    level = np.full((12, 120, 150), 50.0)
    raw = level + 5 * noise(level.shape, blur=0.6)
    raw += 10 * disc(level.shape[1:], 40, 100, 4.5)
    assert detector_of(raw, level).finish() == []


def test_scenes_are_not_compared_across_a_cut():
    """After the cut everything is elsewhere: only what its own scene lacks is an event."""
    shape = (120, 150)
    detector = SmearDetector(shape, (3, 3))
    raw = 50 + 5 * noise((12, *shape), blur=0.6)
    raw[6:] += 15 * disc(shape, 40, 100, 4.5)
    for t, frame in enumerate(raw):
        denoised = np.full(shape, 50.0)
        detector.add(t, frame, denoised, trusted=np.ones(shape, bool), scene=int(t >= 6))
    assert detector.finish() == []


def test_losses_are_seen_in_frames_of_a_few_blind_spots():
    """112 pixels hold seven blind spots of 15: too few squares, unless these are made smaller."""
    level = np.full((16, 112, 112), 50.0)
    raw = level + 5 * noise(level.shape, blur=3)
    assert detector_of(raw, level, (15, 15)).finish() == []
    event = 25 * disc(level.shape[1:], 40, 70, 20)
    raw[8] += event
    level[6:11] += event / 5
    detector = detector_of(raw, level, (15, 15))
    (smear,) = detector.finish()
    assert detector.looked
    assert smear.frame == 8
    assert max(abs(smear.y - 40), abs(smear.x - 70)) <= 15


@pytest.mark.parametrize("n", [4, 5])
def test_losses_to_all_the_other_frames_are_seen(n):
    """In a short movie a smeared event is in all frames: that makes it no less of an event."""
    level = np.full((n, 120, 150), 50.0)
    event = 15 * disc(level.shape[1:], 40, 100, 4.5)
    raw = level + 5 * noise(level.shape, blur=0.6)
    raw[-1] += event
    (smear,) = detector_of(raw, level + event / n).finish()
    assert smear.frame == n - 1
    assert max(abs(smear.y - 40), abs(smear.x - 100)) <= 4


@pytest.mark.parametrize(
    ("shape", "looked"),
    [((1, 40, 40), True), ((2, 40, 40), False), ((3, 40, 40), True), ((9, 7, 40), False),
     ((9, 8, 8), True)],
)  # fmt: skip
def test_where_losses_cannot_be_seen_the_user_is_told(shape, looked):
    detector = detector_of(5 * noise(shape), np.zeros(shape))
    assert detector.finish() == []
    assert detector.looked == looked
    told = smear_warnings((), looked=detector.looked)
    assert bool(told) != looked
    assert all("not looked for" in text for text in told)
