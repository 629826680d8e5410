"""Windows in time, normalisation, and patches that come from where they should."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shine_em.doctor import Health
from shine_em.errors import ShineError
from shine_em.movie import LazyFrames, Movie
from shine_em.patch_pool import Batch, PatchPool
from shine_em.patches import Normalisation, Timeline, Window

PLAIN = Normalisation(0.0, 1.0)


def healthy(n: int, height: int = 1, width: int = 1, **changes: Any) -> Health:
    """Return the input check of a movie without faults, but for ``changes``."""
    values: dict[str, Any] = {
        "findings": (), "duplicate_of": np.arange(n), "blank": np.zeros(n, bool),
        "segment": np.zeros(n, int), "bad_pixels": np.zeros((height, width), bool),
        "spike_threshold": np.inf, "spike_floor": -np.inf, "location": 0.0, "scale": 1.0,
        "frame_means": np.zeros(n),
    }  # fmt: skip
    return Health(**{**values, **changes})


# --- windows -------------------------------------------------------------------------------------


@st.composite
def faulty(draw: st.DrawFn) -> Health:
    """Draw a movie with copies, blanked frames and scene cuts anywhere."""
    n = draw(st.integers(1, 24))
    pictures = draw(st.lists(st.integers(0, 24), min_size=n, max_size=n))
    blanked = draw(st.sets(st.integers(0, 24), max_size=6))
    cuts = draw(st.lists(st.integers(0, 5).map(lambda k: k == 0), min_size=n, max_size=n))
    return healthy(
        n,
        duplicate_of=np.array([pictures.index(p) for p in pictures]),
        blank=np.array([p in blanked for p in pictures]),
        segment=np.cumsum(cuts),
    )


widths = st.sampled_from([1, 3, 5, 7])
lags = st.integers(0, 3).map(lambda k: tuple(range(1, k + 1)))


def candidates(timeline: Timeline, t: int, allowed: Sequence[int]) -> dict[int, int]:
    """Return the pictures that may stand beside frame ``t``: picture -> distance in time."""
    found: dict[int, int] = {}
    for i in allowed:
        picture = int(timeline.identity[i])
        if (
            timeline.usable[i]
            and timeline.segment[i] == timeline.segment[t]
            and picture != timeline.identity[t]
        ):
            found[picture] = min(abs(i - t), found.get(picture, timeline.n))
    return found


def check_window(
    timeline: Timeline, window: Window, t: int, frames: int, allowed: Sequence[int]
) -> None:
    half = frames // 2
    assert len(window) == frames
    assert window[half] == t
    possible = candidates(timeline, t, allowed)

    def fits(k: int) -> set[int]:
        hidden = abs(k - half) in timeline.blinded
        return {p for p, lag in possible.items() if hidden or lag not in timeline.blinded}

    neighbours = {k: i for k, i in enumerate(window) if k != half}
    pictures = {k: int(timeline.identity[i]) for k, i in neighbours.items() if i is not None}
    for k, i in neighbours.items():
        if i is None:
            assert not fits(k)
        else:
            assert i in allowed
            assert pictures[k] in fits(k)
            assert abs(i - t) == possible[pictures[k]]
    used = list(pictures.values())
    for picture in set(used):
        places = [k for k, p in pictures.items() if p == picture]
        exhausted = sum(fits(k) <= set(used) for k in places)
        assert exhausted >= len(places) - 1  # repeated only where nothing unused was left


@given(health=faulty(), frames=widths, blinded=lags, data=st.data())
def test_windows_hold_only_what_they_may(
    health: Health, frames: int, blinded: tuple[int, ...], data: st.DataObject
) -> None:
    n = len(health.blank)
    timeline = Timeline(n, health, blinded)
    t = data.draw(st.integers(0, n - 1))
    check_window(timeline, timeline.window(t, frames), t, frames, range(n))
    first, last = data.draw(st.integers(0, t)), data.draw(st.integers(t, n - 1))
    one_sided = timeline.window(t, frames, first=first, last=last)
    check_window(timeline, one_sided, t, frames, range(first, last + 1))


@given(health=faulty(), frames=widths, blinded=lags, data=st.data())
def test_half_windows_share_no_frame_between_even_and_odd(
    health: Health, frames: int, blinded: tuple[int, ...], data: st.DataObject
) -> None:
    n = len(health.blank)
    timeline = Timeline(n, health, blinded)
    t = data.draw(st.integers(0, n - 1))
    others = set(timeline.identity[1 - t % 2 :: 2])
    allowed = [i for i in range(t % 2, n, 2) if timeline.identity[i] not in others]
    check_window(timeline, timeline.half_window(t, frames), t, frames, allowed)


@given(health=faulty(), frames=widths, blinded=lags)
def test_half_windows_of_neighbours_share_no_picture(
    health: Health, frames: int, blinded: tuple[int, ...]
) -> None:
    timeline = Timeline(len(health.blank), health, blinded)
    for t in timeline.pairs():
        even, odd = (
            {int(timeline.identity[i]) for i in timeline.half_window(k, frames) if i is not None}
            for k in (t, t + 1)
        )
        assert not even & odd


def test_pictures_with_copies_in_the_other_half_are_in_neither() -> None:
    copies = np.arange(20)
    copies[4::5] = copies[3::5]  # every fourth picture is there twice
    timeline = Timeline(20, healthy(20, duplicate_of=copies))
    assert set(timeline.half_window(10, 5)) <= {0, 2, 6, 10, 12, 16}
    assert set(timeline.half_window(11, 5)) <= {1, 5, 7, 11, 15, 17}


@given(n=st.integers(1, 30), frames=widths, data=st.data())
def test_windows_of_a_good_movie(n: int, frames: int, data: st.DataObject) -> None:
    timeline = Timeline(n)
    t = data.draw(st.integers(0, n - 1))
    window, half = timeline.window(t, frames), frames // 2
    if half <= t < n - half:
        assert window == tuple(range(t - half, t + half + 1))
        assert timeline.shift(window) == 0
    elif n >= frames:
        assert len(set(window)) == frames  # ends use distinct frames, the nearest ones
        nearest = range(frames) if t < half else range(n - frames, n)
        assert set(window) == set(nearest)
        assert timeline.shift(window) > 0
        # Turned so that the early positions hold frames at their proper distance.
        assert [abs(i - t) for i in window[:half] if i is not None] == list(range(half, 0, -1))


def test_windows_at_the_ends() -> None:
    timeline = Timeline(20)
    assert timeline.window(0, 5) == (2, 1, 0, 3, 4)
    assert timeline.window(1, 5) == (3, 2, 1, 0, 4)
    assert timeline.window(19, 5) == (17, 18, 19, 16, 15)
    assert timeline.window(0, 5, mirror=True) == (2, 1, 0, 1, 2)
    assert timeline.window(18, 5, mirror=True) == (16, 17, 18, 19, 16)
    assert timeline.half_window(10, 5) == (6, 8, 10, 12, 14)
    assert timeline.shift(timeline.half_window(10, 5)) == 0


def test_beside_a_blank_or_a_copy_neighbours_keep_the_order_of_time() -> None:
    blank = np.zeros(20, bool)
    blank[[10, 16, 17, 18, 19]] = True
    copies = np.arange(20)
    copies[4] = 3
    timeline = Timeline(20, healthy(20, blank=blank, duplicate_of=copies))
    assert timeline.window(9, 5) == (7, 8, 9, 11, 12)
    assert timeline.window(11, 5) == (8, 9, 11, 12, 13)
    assert timeline.window(8, 5) == (6, 7, 8, 9, 11)
    assert timeline.window(3, 5) == (1, 2, 3, 5, 6)
    assert timeline.window(5, 5) == (2, 4, 5, 6, 7)
    assert timeline.window(15, 5) == (13, 14, 15, 12, 11)  # nothing near on the other side
    assert [timeline.shift(timeline.window(t, 5)) for t in (9, 11, 8, 3, 15)] == [0, 0, 0, 0, 2]


@given(health=faulty(), frames=widths, blinded=lags, data=st.data())
def test_windows_that_are_in_place_run_with_time(
    health: Health, frames: int, blinded: tuple[int, ...], data: st.DataObject
) -> None:
    timeline = Timeline(len(health.blank), health, blinded)
    window = timeline.window(data.draw(st.integers(0, len(health.blank) - 1)), frames)
    if timeline.shift(window) == 0:
        held = [i for i in window if i is not None]
        assert held in (sorted(held), sorted(held)[::-1])


def test_one_frame_has_no_neighbours() -> None:
    assert Timeline(1).window(0, 5) == (None, None, 0, None, None)
    assert Timeline(1).shift((None, None, 0, None, None)) == 0
    alone = Timeline(3, healthy(3, segment=np.array([0, 1, 2])))
    assert alone.window(1, 3) == (None, 1, None)
    same = Timeline(3, healthy(3, duplicate_of=np.zeros(3, int)))
    assert same.window(1, 3) == (None, 1, None)


def test_two_frames_repeat_the_only_neighbour() -> None:
    assert Timeline(2).window(0, 5) == (1, 1, 0, 1, 1)


def test_frames_with_shared_noise_stand_only_where_the_network_is_blinded() -> None:
    timeline = Timeline(20, None, blinded_lags=(1,))
    assert timeline.window(10, 5) == (8, 9, 10, 11, 12)
    at_the_end = timeline.window(0, 5)
    assert 1 not in (at_the_end[0], at_the_end[4])
    assert 1 in (at_the_end[1], at_the_end[3])


def test_targets_are_usable_and_different() -> None:
    health = healthy(5, duplicate_of=np.array([0, 0, 2, 3, 2]), blank=np.array([0, 0, 0, 1, 0]) > 0)
    assert Timeline(5, health).targets() == [0, 2]


# --- normalisation -------------------------------------------------------------------------------


@given(
    raw=hnp.arrays(
        st.sampled_from(["u1", "<u2", ">u2", "i2", "<i4", "f4", "f8"]),
        (3, 4),
        elements={"min_value": 0, "max_value": 250},
    ),
    location=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e4),
)
def test_normalisation_has_an_exact_inverse(raw: np.ndarray, location: float, scale: float) -> None:
    normalise = Normalisation(location, scale)
    x = normalise.apply(raw)
    assert x.dtype == np.float32
    assert x.dtype.isnative
    back = normalise.invert(x)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, raw.astype(float), rtol=0, atol=1e-6 * (abs(location) + 250))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_untrusted_pixels_become_zero(dtype: str) -> None:
    raw = np.array([[10, np.nan, np.inf], [-np.inf, 900, -900], [12, 14, 1e30]], dtype)
    if dtype == "f8":
        raw[2, 2] = 1e300  # no float32
    bad = np.zeros((3, 3), bool)
    bad[2, 0] = True
    normalise = Normalisation(10.0, 2.0, floor=-100.0, ceiling=100.0)
    x = normalise.apply(raw, bad)
    assert x.tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 0]]
    assert normalise.trusted(raw).tolist() == [
        [True, False, False], [False, False, False], [True, True, False],
    ]  # fmt: skip


@given(
    location=st.floats(allow_nan=False, allow_infinity=False),
    scale=st.floats(1e-30, 1e30),
    floor=st.floats(-1e9, 0) | st.just(-np.inf),
    ceiling=st.floats(0, 1e9) | st.just(np.inf),
)
def test_normalisation_survives_json(
    location: float, scale: float, floor: float, ceiling: float
) -> None:
    before = Normalisation(location, scale, floor, ceiling)
    text = json.dumps(before.to_dict(), allow_nan=False)
    assert Normalisation.from_dict(json.loads(text)) == before


def test_normalisation_takes_what_the_input_check_measured() -> None:
    health = healthy(2, location=7.0, scale=3.0, spike_threshold=99.0, spike_floor=-5.0)
    assert Normalisation.of(health) == Normalisation(7.0, 3.0, -5.0, 99.0)
    constant = Normalisation.of(healthy(2, location=7.0, scale=0.0))
    assert np.isfinite(constant.apply(np.full((2, 2), 7, np.uint16))).all()


# --- patches -------------------------------------------------------------------------------------


def coded(n: int, height: int, width: int) -> Movie:
    """Return a movie whose pixel values say where they are (exact in float32)."""
    assert n * height * width < 2**24

    def read_frame(t: int) -> np.ndarray:
        first = 1 + t * height * width
        return np.arange(first, first + height * width, dtype=np.float32).reshape(height, width)

    return Movie.from_array(LazyFrames(read_frame, (n, height, width), np.float32))


def decode(
    stack: np.ndarray, shape: tuple[int, int, int]
) -> tuple[list[int | None], np.ndarray, np.ndarray]:
    """Return a patch's frame numbers and its ``(h, w)`` row and column numbers in the movie.

    Asserts that each pixel that is not hidden (0) comes from one regular, unbroken block.
    """
    _, height, width = shape
    i, j = np.indices(stack.shape[1:])
    plane = np.stack([np.ones_like(i), i, j], axis=-1).reshape(-1, 3)
    value = stack.astype(np.int64).reshape(len(stack), -1) - 1
    centre = value[len(stack) // 2]
    seen = centre >= 0
    place = centre % (height * width)
    known = np.stack([place // width, place % width], axis=-1)
    fit, *_ = np.linalg.lstsq(plane[seen].astype(float), known[seen].astype(float), rcond=None)
    slopes = np.rint(fit[1:]).astype(int)
    assert sorted(np.abs(slopes).ravel()) == [0, 0, 1, 1]
    assert abs(round(np.linalg.det(slopes))) == 1
    rows, columns = (plane @ np.rint(fit).astype(int)).T
    frames: list[int | None] = []
    for v in value:
        seen = v >= 0
        ts = set((v[seen] // (height * width)).tolist())
        assert len(ts) <= 1
        frames.append(ts.pop() if ts else None)
        assert np.array_equal((v % (height * width))[seen], (rows * width + columns)[seen])
    return frames, rows.reshape(i.shape), columns.reshape(i.shape)


def orientation(rows: np.ndarray, columns: np.ndarray) -> tuple[int, int, int, int]:
    return (
        int(rows[1, 0] - rows[0, 0]), int(columns[1, 0] - columns[0, 0]),
        int(rows[0, 1] - rows[0, 0]), int(columns[0, 1] - columns[0, 0]),
    )  # fmt: skip


def batches(pool: PatchPool, count: int, **options: Any) -> list[Batch]:
    return [
        pool.batch(pool.draw(step, **{"size": 4, "crop": 16, "seed": 1, **options}))
        for step in range(count)
    ]


def test_a_step_always_draws_the_same_batch() -> None:
    movie = coded(8, 30, 40)
    pool = PatchPool(movie, healthy(8, 30, 40), PLAIN, frames=5)
    again = PatchPool(movie, healthy(8, 30, 40), PLAIN, frames=5)
    options: dict[str, Any] = {"size": 3, "crop": 16}
    pool.batch(pool.draw(4, seed=0, **options))  # the order of calls must not matter
    for step in (7, 0, 3):
        a, b = (p.batch(p.draw(step, seed=5, **options)) for p in (pool, again))
        assert np.array_equal(a.windows, b.windows)
        assert np.array_equal(a.weights, b.weights)
        assert a.shift == b.shift
        assert a.windows.dtype == a.weights.dtype == np.float32
        assert a.windows.shape == (3, 5, 16, 16)
        assert a.weights.shape == (3, 16, 16)
    drawn = [
        pool.batch(pool.draw(step, seed=seed, **options)) for step in range(6) for seed in (0, 1)
    ]
    assert len({b.windows.tobytes() for b in drawn}) == len(drawn)


@pytest.mark.parametrize("turn", [True, False])
def test_patches_are_pieces_of_the_movie_turned_and_mirrored(turn: bool) -> None:
    shape = (9, 37, 52)
    pool = PatchPool(coded(*shape), healthy(*shape), PLAIN, frames=5)
    orientations, times = set(), set()
    corners = []
    for batch in batches(pool, 40, turn=turn, one_sided=0.0):
        for stack in batch.windows:
            frames, rows, columns = decode(stack, shape)
            orientations.add(orientation(rows, columns))
            corners.append((rows.min(), columns.min()))
            t = frames[2]
            assert t is not None
            window = pool.timeline.window(t, 5)
            assert tuple(frames) in (window, window[::-1])
            times.add((t, tuple(frames) == window))
        assert batch.weights.min() == 1
    assert len(orientations) == (8 if turn else 4)
    if not turn:
        assert all(drows and not dcolumns for drows, dcolumns, _, _ in orientations)
    assert {t for t, _ in times} == set(range(9))
    assert (4, True) in times  # time runs forwards
    assert (4, False) in times  # and backwards
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    assert low.tolist() == [0, 0]  # the movie's edges are drawn too
    assert high.tolist() == [37 - 16, 52 - 16]


def test_time_runs_forwards_if_asked_and_out_of_place_neighbours_stay_last() -> None:
    shape = (9, 20, 20)
    pool = PatchPool(coded(*shape), healthy(*shape), PLAIN, frames=5)
    for reverse in (False, True):
        for batch in batches(pool, 25, one_sided=0.0, reverse=reverse):
            for stack in batch.windows:
                frames, _, _ = decode(stack, shape)
                t = frames[2]
                assert t is not None
                window = pool.timeline.window(t, 5)
                if not reverse or pool.timeline.shift(window):
                    assert tuple(frames) == window


def test_windows_are_drawn_as_near_the_ends() -> None:
    shape = (15, 20, 20)
    pool = PatchPool(coded(*shape), healthy(*shape), PLAIN, frames=5)
    seen = set()
    for batch in batches(pool, 20, one_sided=1.0):
        shifts = []
        for stack in batch.windows:
            frames, _, _ = decode(stack, shape)
            t = frames[2]
            assert t is not None
            ends = [pool.timeline.window(t, 5, last=t + 2 - missing) for missing in (1, 2)]
            assert tuple(frames) in [*ends, pool.timeline.window(t, 5)]
            shifts.append(pool.timeline.shift(tuple(frames)))
        assert batch.shift == max(shifts)
        seen.add(batch.shift)
    assert seen == {1, 2}


def test_what_must_not_be_trained_on_has_no_weight() -> None:
    shape = (8, 24, 31)
    rng = np.random.default_rng(0)
    pixels = np.asarray(coded(*shape).data).copy()
    spikes = rng.random(shape) < 0.05
    pixels[spikes] = rng.choice([1e9, -1e9, np.nan, np.inf], spikes.sum())
    bad, hidden = rng.random((2, *shape[1:])) < 0.08
    pool = PatchPool(
        Movie.from_array(pixels), healthy(*shape, bad_pixels=bad),
        Normalisation(0.0, 1.0, floor=0.0, ceiling=2.0**24), frames=3, hidden=hidden,
    )  # fmt: skip
    for batch in batches(pool, 25):
        for stack, weight in zip(batch.windows, batch.weights, strict=True):
            frames, rows, columns = decode(stack, shape)
            t = frames[1]
            assert t is not None
            here = bad[rows, columns] | hidden[rows, columns] | spikes[t, rows, columns]
            assert np.array_equal(weight, (~here).astype(np.float32))
            for slot, i in zip(stack, frames, strict=True):
                # Bad pixels and spikes are hidden from the network, in every frame.
                assert not slot[bad[rows, columns] | spikes[i, rows, columns]].any()


@pytest.mark.parametrize("memory_bytes", [10**9, 30_000])
def test_held_out_blank_and_copied_frames_are_never_targets(memory_bytes: int) -> None:
    shape = (40, 16, 16)
    duplicate_of, blank = np.arange(40), np.zeros(40, bool)
    duplicate_of[[6, 7, 30]] = 5, 5, 29
    blank[[12, 20]] = True
    held_out = [10, 25]
    pool = PatchPool(
        coded(*shape), healthy(*shape, duplicate_of=duplicate_of, blank=blank), PLAIN,
        frames=5, held_out=held_out, memory_bytes=memory_bytes,
    )  # fmt: skip
    centres, neighbours = set(), set()
    for batch in batches(pool, 120, crop=8):
        for stack in batch.windows:
            frames, _, _ = decode(stack, shape)
            centres.add(frames[2])
            neighbours |= {*frames[:2], *frames[3:]}
    assert not centres & {6, 7, 30, 12, 20, 10, 25}
    assert not neighbours & {12, 20}
    if memory_bytes == 10**9:
        assert centres == set(range(40)) - {6, 7, 30, 12, 20, 10, 25}
        assert {10, 25} <= neighbours  # held-out frames may still be neighbours


def test_a_large_movie_is_drawn_from_in_runs() -> None:
    shape = (40, 600, 600)
    movie = coded(*shape)
    memory = 25_000_000
    pool = PatchPool(movie, healthy(*shape), PLAIN, frames=3, memory_bytes=memory)
    assert len(pool.runs) > 1
    assert sum(run.pixels.nbytes for run in pool.runs) <= memory
    centres = set()
    for batch in batches(pool, 12, crop=64, one_sided=0.0):
        assert batch.windows.shape == (4, 3, 64, 64)
        for stack in batch.windows:
            frames, _, _ = decode(stack, shape)
            t = frames[1]
            assert t is not None
            assert None not in frames
            assert len(set(frames)) == 3
            centres.add(t)
    assert min(centres) < 10  # from the movie's start
    assert max(centres) >= 30  # to its end


@settings(max_examples=40)
@given(health=faulty(), frames=widths, runs=st.integers(1, 3))
def test_memory_is_bounded_whatever_the_movie(health: Health, frames: int, runs: int) -> None:
    n, height, width = 3 * len(health.blank), 6, 7
    shape = (n, height, width)
    third = len(health.blank)
    health = healthy(
        *shape,
        duplicate_of=np.concatenate([health.duplicate_of + k * third for k in range(3)]),
        blank=np.tile(health.blank, 3),
        segment=np.concatenate([health.segment + 99 * k for k in range(3)]),
    )
    memory = runs * (4 + 2 * frames) * height * width * 4
    try:
        pool = PatchPool(coded(*shape), health, PLAIN, frames=frames, memory_bytes=memory)
    except ShineError:
        assert not Timeline(n, health).targets()
        return
    assert sum(run.pixels.nbytes for run in pool.runs) <= memory
    for stack in pool.batch(pool.draw(0, size=3, crop=4, seed=0)).windows:
        taken, _, _ = decode(stack, shape)
        t = taken[frames // 2]
        assert t is not None
        check = [i for i in taken[: frames // 2] + taken[frames // 2 + 1 :] if i is not None]
        assert all(health.duplicate_of[i] != health.duplicate_of[t] for i in check)
        assert all(health.segment[i] == health.segment[t] for i in check)


@settings(max_examples=30)
@given(
    n=st.integers(1, 6),
    height=st.sampled_from([2, 5, 16, 23, 300]),
    width=st.sampled_from([2, 5, 16, 37, 300]),
    frames=widths,
    turn=st.booleans(),
)
def test_any_size(n: int, height: int, width: int, frames: int, turn: bool) -> None:
    shape = (n, height, width)
    pool = PatchPool(coded(*shape), healthy(*shape), PLAIN, frames=frames)
    batch = pool.batch(pool.draw(0, size=3, crop=16, seed=0, turn=turn))
    if not turn:
        assert batch.windows.shape == (3, frames, min(16, height), min(16, width))
    for stack, weight in zip(batch.windows, batch.weights, strict=True):
        assert weight.shape == stack.shape[1:]
        taken, rows, columns = decode(stack, shape)
        assert 0 <= rows.min() <= rows.max() < height
        assert 0 <= columns.min() <= columns.max() < width
        assert (None in taken) == (n == 1 and frames > 1)


def test_nothing_to_train_on_is_said_plainly() -> None:
    movie = coded(4, 8, 8)
    with pytest.raises(ShineError, match="no frame is left"):
        PatchPool(movie, healthy(4, 8, 8, blank=np.ones(4, bool)), PLAIN, frames=3)
    with pytest.raises(ShineError, match="no frame is left"):
        PatchPool(movie, healthy(4, 8, 8), PLAIN, frames=3, held_out=[0, 1, 2, 3])
