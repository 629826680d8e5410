"""From raw movie to denoised frames: blind, seamless, lazy, and never across a cut."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small import health as healthy
from small import model, noisy, scene

from shine_em.checkpoint import Model
from shine_em.denoising import Denoiser, halves_snr, mean_tolerance, tiles
from shine_em.doctor import Health, check
from shine_em.movie import LazyFrames, Movie
from shine_em.network import Hole

Position = tuple[int, int]


def frame(
    trained: Model, raw: np.ndarray, health: Health, t: int, *, halves: bool = False, **how: Any
) -> np.ndarray:
    """Return one denoised frame."""
    stream = Denoiser(trained, **how).stream(
        Movie.from_array(raw), health, frames=[t], halves=halves
    )
    ((number, seen, out),) = stream
    assert number == t
    np.testing.assert_array_equal(seen, raw[t])
    assert out.dtype == np.float32
    return out


def hidden(position: Position, hole: Hole) -> tuple[slice, slice]:
    (y, x), (m, n) = position, hole
    return (
        slice(max(0, y - m // 2), y + m // 2 + 1),
        slice(max(0, x - n // 2), x + n // 2 + 1),
    )


def assert_blind(
    trained: Model,
    raw: np.ndarray,
    health: Health,
    t: int,
    positions: Iterable[Position],
    *,
    hole: Hole | None = None,
    frames: Sequence[int] | None = None,
    **how: Any,
) -> None:
    """Replace the pixels in the hole around each position, in ``frames``: its output must stay."""
    before = frame(trained, raw, health, t, **how)
    for position in positions:
        other = raw.copy()
        for i in [t] if frames is None else frames:
            other[i][hidden(position, hole or trained.holes[0])] += 9
        after = frame(trained, other, health, t, **how)
        assert after[position] == before[position], position  # bit for bit
        assert (after != before).any(), position  # what was replaced matters elsewhere


def corners_and_middle(height: int, width: int) -> list[Position]:
    return [
        (0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1),
        (0, width // 2), (height // 2, 0), (height // 2, width // 2), (height // 2 + 1, 9),
    ]  # fmt: skip


@pytest.mark.parametrize("hole", [(1, 1), (3, 3), (5, 5), (1, 5), (7, 3)])
@pytest.mark.parametrize("kind", ["lean", "paper"])
def test_an_output_pixel_never_depends_on_the_raw_pixels_in_its_hole(kind: str, hole: Hole) -> None:
    raw = noisy(6, 37, 45)
    trained = model(kind, holes=[hole])
    for t, positions in {
        2: corners_and_middle(37, 45), 0: [(18, 20), (0, 0)], 5: [(18, 20), (36, 44)],
    }.items():  # fmt: skip
        assert_blind(trained, raw, healthy(raw.shape), t, positions)


def test_the_pixels_just_outside_the_hole_are_used() -> None:
    raw = noisy(5, 40, 40)
    trained = model(holes=[(3, 3)])
    with pytest.raises(AssertionError):
        assert_blind(trained, raw, healthy(raw.shape), 2, [(20, 20)], hole=(5, 5))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["lean", "paper"])
def test_blind_in_movies_shorter_than_a_window(kind: str, n: int) -> None:
    raw = noisy(n, 32, 40)
    # A job on a single image makes a network of one frame; a model of a movie works as well.
    for frames in (5, 1) if n == 1 else (5,):
        trained = model(kind, frames=frames)
        for t in range(n):
            assert_blind(trained, raw, healthy(raw.shape), t, [(16, 20), (0, 0), (31, 39)])


@pytest.mark.parametrize("kind", ["lean", "paper"])
def test_blind_at_the_seams_of_tiles(kind: str) -> None:
    raw = noisy(3, 20, 203)
    trained = model(kind)
    halo = Denoiser(trained).network.halo((3, 3))
    cuts = [keep.stop for _, keep in tiles(203, 64, halo, 8)][:-1]
    assert cuts, "the frame must be cut"
    around = [
        (10, x + d) for x in cuts[:2] for d in ((-2, -1, 0, 1) if kind == "lean" else (-1, 0))
    ]
    assert_blind(trained, raw, healthy(raw.shape), 1, around, tile=64)


def test_an_ensemble_is_as_blind_as_its_smallest_hole() -> None:
    raw = noisy(5, 37, 45)
    trained = model(holes=[(3, 3), (5, 5), (7, 7)])
    assert_blind(trained, raw, healthy(raw.shape), 2, corners_and_middle(37, 45), hole=(3, 3))
    # Whichever comes first.
    trained = model(holes=[(5, 5), (3, 3)])
    assert_blind(trained, raw, healthy(raw.shape), 2, [(18, 20), (0, 44)], hole=(3, 3))


def test_mirrored_views_are_as_blind() -> None:
    raw = noisy(5, 37, 45)
    trained = model(holes=[(3, 3), (5, 5)])
    assert_blind(trained, raw, healthy(raw.shape), 2, corners_and_middle(37, 45), views=4)
    assert_blind(trained, raw, healthy(raw.shape), 0, [(18, 20), (36, 44)], views=2)


def test_blind_in_bf16() -> None:
    raw = noisy(5, 37, 45)
    trained = model(channels=16)
    for views in (1, 4):
        assert_blind(
            trained, raw, healthy(raw.shape), 2, corners_and_middle(37, 45), precision="bf16",
            views=views,
        )  # fmt: skip


@pytest.mark.parametrize("t", [0, 1, 4, 8])
def test_copies_of_the_centre_frame_are_no_neighbours(t: int) -> None:
    raw = noisy(9, 37, 45)
    raw[2] = raw[1]  # a frame grabber that ran faster than the camera
    raw[5] = raw[3] = raw[4]
    raw[8] = raw[0]
    health = check(Movie.from_array(raw))
    copies = np.flatnonzero(health.duplicate_of == health.duplicate_of[t])
    assert len(copies) > 1
    assert_blind(model(), raw, health, t, [(18, 20), (0, 0)], frames=copies)


def test_a_movie_of_nothing_but_copies() -> None:
    raw = np.repeat(noisy(1, 37, 45), 4, axis=0)
    health = check(Movie.from_array(raw))
    assert_blind(model(), raw, health, 2, [(18, 20)], frames=range(4))


@pytest.mark.parametrize("kind", ["lean", "paper"])
@pytest.mark.parametrize("t", [0, 1, 4, 7])
def test_neighbours_with_correlated_noise_are_blinded_too(kind: str, t: int) -> None:
    raw = noisy(8, 37, 45)
    trained = model(kind, frames=7, blinded=(1,))
    near = [i for i in (t - 1, t, t + 1) if 0 <= i < 8]
    assert_blind(trained, raw, healthy(raw.shape), t, [(18, 20), (0, 3)], frames=near)


def test_blind_by_gradient_from_raw_counts_to_denoised_counts() -> None:
    raw = noisy(5, 37, 45).astype(np.float32)
    trained = replace(model(holes=[(3, 3), (5, 5)]), offset=0.02)
    n = trained.normalisation
    denoiser = Denoiser(trained)
    counts = torch.from_numpy(raw).requires_grad_()
    window = ((counts - n.location) / n.scale)[None]
    out = (denoiser.network(window, denoiser.holes)[:, 0].mean(0) + trained.offset) * n.scale
    out = out + n.location
    # The road by hand is the road that is taken.
    taken = frame(trained, raw, healthy(raw.shape), 2)
    np.testing.assert_allclose(out.detach().numpy(), taken, rtol=1e-4)
    for position in corners_and_middle(37, 45):
        (grad,) = torch.autograd.grad(out[position], counts, retain_graph=True)
        assert torch.count_nonzero(grad[2][hidden(position, (3, 3))]) == 0
        assert torch.count_nonzero(grad[2]) > 0
        assert torch.count_nonzero(grad[1][hidden(position, (3, 3))]) > 0


def test_halves_share_no_frame() -> None:
    raw = noisy(9, 32, 32)
    other = raw.copy()
    other[1::2] += 7
    health, trained = healthy(raw.shape), model()
    for t in (0, 4, 8):
        a, b = (frame(trained, r, health, t, halves=True) for r in (raw, other))
        np.testing.assert_array_equal(a, b)
        assert (frame(trained, raw, health, t) != frame(trained, other, health, t)).any()


@given(
    size=st.integers(1, 700),
    edge=st.integers(1, 400),
    halo=st.integers(0, 20).map(lambda n: 8 * n),
    stride=st.sampled_from([1, 4, 8]),
)
def test_tiles_cover_each_pixel_once_with_a_whole_halo(
    size: int, edge: int, halo: int, stride: int
) -> None:
    cut = tiles(size, edge, halo, stride)
    kept = [i for _, keep in cut for i in range(keep.start, keep.stop)]
    assert kept == list(range(size))
    for read, keep in cut:
        assert read.start % stride == 0
        assert read.start == max(0, keep.start - halo)
        assert read.stop == min(size, keep.stop + halo)
        assert read.stop - read.start <= max(edge, 2 * halo + 8 * stride)


@pytest.mark.parametrize(
    ("kind", "size", "tile", "holes", "views"),
    [
        ("lean", (179, 187), 64, [(3, 3)], 1),
        ("lean", (179, 187), 64, [(3, 3)], 4),
        ("lean", (331, 21), 300, [(1, 5), (3, 7)], 2),
        ("lean", (19, 400), 64, [(15, 15)], 1),
        ("paper", (18, 367), 64, [(3, 3)], 1),
        ("paper", (479, 9), 456, [(9, 9)], 1),
    ],
)
def test_tiles_equal_the_whole_frame(
    kind: str, size: tuple[int, int], tile: int, holes: list[Hole], views: int
) -> None:
    trained = model(kind, holes=holes)
    windows = np.random.default_rng(5).normal(size=(1, 5, *size)).astype(np.float32)
    whole = Denoiser(trained, tile=10_000, views=views).predict(windows)
    cut = Denoiser(trained, tile=tile, views=views)
    halo = max(cut.network.halo(h) for h in cut.holes)
    assert any(len(tiles(n, tile, halo, 8)) > 1 for n in size), "the frame must be cut"
    np.testing.assert_allclose(cut.predict(windows), whole, rtol=0, atol=1e-5)
    assert whole.std() > 0.3


@hypothesis_settings(max_examples=15)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), n=st.integers(1, 4))
def test_any_size_and_length(size: tuple[int, int], n: int) -> None:
    raw = noisy(n, *size)
    streamed = list(Denoiser(model()).stream(Movie.from_array(raw), healthy(raw.shape)))
    assert [t for t, _, _ in streamed] == list(range(n))
    for t, seen, out in streamed:
        np.testing.assert_array_equal(seen, raw[t])
        assert out.shape == size
        assert np.isfinite(out).all()


@pytest.mark.parametrize("kind", ["lean", "paper"])
@pytest.mark.parametrize("faulty", [False, True])
def test_frames_are_read_once_and_few_are_held(kind: str, faulty: bool) -> None:
    raw = noisy(40, 16, 16)
    health = healthy(raw.shape)
    if faulty:
        health.blank[7:11] = True
        health.segment[23:] = 1
        health.duplicate_of[30] = 29
    reads: Counter[int] = Counter()
    given_out: list[weakref.ref[np.ndarray]] = []

    def read(i: int) -> np.ndarray:
        reads[i] += 1
        pixels = raw[i].copy()
        given_out.append(weakref.ref(pixels))
        return pixels

    movie = Movie(LazyFrames(read, raw.shape, raw.dtype))
    most = 0
    for _ in Denoiser(model(kind)).stream(movie, health):
        most = max(most, sum(r() is not None for r in given_out))
    assert max(reads.values()) == 1
    assert set(reads) == set(range(40))
    assert 5 <= most <= 16


def test_nothing_is_read_before_it_is_asked_for() -> None:
    raw = noisy(40, 16, 16)
    reads = []

    def read(i: int) -> np.ndarray:
        reads.append(i)
        return raw[i]

    stream = Denoiser(model()).stream(
        Movie(LazyFrames(read, raw.shape, raw.dtype)), healthy(raw.shape)
    )
    assert reads == []
    next(stream)
    assert max(reads) < 8


def test_windows_never_cross_a_scene_cut() -> None:
    raw = noisy(12, 48, 48, seed=1)
    raw[6:] = np.random.default_rng(3).poisson(scene(6, 48, 48, seed=7)[:, ::-1] * 1.3 + 30)
    health = check(Movie.from_array(raw))
    assert health.segment.tolist() == [0] * 6 + [1] * 6
    other = raw.copy()
    other[6:] = other[6:][:, :, ::-1] + 5
    trained = model()
    one, two = (
        [out for _, _, out in Denoiser(trained).stream(Movie.from_array(r), health)]
        for r in (raw, other)
    )
    np.testing.assert_array_equal(one[:6], two[:6])
    assert all((a != b).any() for a, b in zip(one[6:], two[6:], strict=True))


def test_blank_frames_are_handed_on_and_are_nobodys_neighbours() -> None:
    raw = noisy(9, 32, 32)
    raw[4] = 1
    health = check(Movie.from_array(raw))
    assert np.flatnonzero(health.blank).tolist() == [4]
    other = raw.copy()
    other[4] = 3
    trained = model()
    outputs = [
        [out for _, _, out in Denoiser(trained).stream(Movie.from_array(r), health)]
        for r in (raw, other)
    ]
    np.testing.assert_array_equal(outputs[0][4], raw[4])
    np.testing.assert_array_equal(outputs[1][4], other[4])
    for t in (0, 2, 3, 5, 8):
        np.testing.assert_array_equal(outputs[0][t], outputs[1][t])


def test_pixels_without_a_number_and_hot_pixels_are_not_seen() -> None:
    raw = noisy(9, 32, 32).astype(np.float32)
    raw[:, 10, 12] = 4000  # hot
    raw[4, 20, 20] = np.nan
    raw[5, 21, 20] = np.inf
    raw[3, 5, 5] = -np.inf
    health = check(Movie.from_array(raw))
    assert health.bad_pixels[10, 12]
    other = raw.copy()
    other[:, 10, 12] = 77
    trained = model()
    one, two = (
        [out for _, _, out in Denoiser(trained).stream(Movie.from_array(r), health)]
        for r in (raw, other)
    )
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)


def test_hot_pixels_are_no_signal_in_the_raw_halves() -> None:
    clean = noisy(9, 64, 64)
    raw = clean.copy()
    raw[:, 10, 12] = raw[:, 50, 7] = 4000
    found = []
    for frames in (clean, raw):
        movie = Movie.from_array(frames)
        halves = halves_snr(Denoiser(model()), movie, check(movie))
        assert halves is not None
        found.append(halves["raw"])
    np.testing.assert_allclose(found[1], found[0], atol=0.1)


@pytest.mark.parametrize("told_by", ["network", "noise"])
@pytest.mark.parametrize(("lags", "measured"), [((1, 2, 3, 4), False), ((1,), False), ((), True)])
def test_halves_that_share_the_noise_are_not_compared(
    told_by: str, lags: tuple[int, ...], measured: bool
) -> None:
    """Noise that lives on (0.4 of it, here) is in both frames of a pair, and would be signal."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(9, 64, 64))
    for t in range(1, 9):
        raw[t] = 0.4 * raw[t - 1] + 0.84**0.5 * raw[t]
    raw = (20 + 6 * raw).astype(np.float32)
    trained = model(blinded=lags if told_by == "network" else ())
    if told_by == "noise":  # the paper's network is not blinded to it
        trained = replace(trained, noise={"blinded_lags": list(lags)})
    movie = Movie.from_array(raw)
    assert (halves_snr(Denoiser(trained), movie, check(movie)) is not None) == measured


def test_mean_tolerance_is_half_a_percent_or_a_fiftieth_of_the_noise() -> None:
    assert mean_tolerance(1000.0, 1.0) == pytest.approx(5.0)
    assert mean_tolerance(-1000.0, 1.0) == pytest.approx(5.0)
    assert mean_tolerance(0.0, 10.0) == pytest.approx(0.2)


def test_frames_side_by_side_are_those_of_one_after_the_other(two_cores: None) -> None:
    raw, trained = noisy(9, 40, 36), model()
    denoiser = Denoiser(trained)
    movie, health = Movie.from_array(raw), healthy(raw.shape)
    assert denoiser._lanes(raw.shape[1:]) == 2
    assert denoiser._lanes((1500, 1500)) == 1  # the memory of one tile, whatever the frame
    together = list(denoiser.stream(movie, health))
    assert [t for t, _, _ in together] == list(range(9))
    for t, seen, out in together:
        np.testing.assert_array_equal(seen, raw[t])
        np.testing.assert_allclose(out, frame(trained, raw, health, t), rtol=1e-5)
