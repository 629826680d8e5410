"""`LazyFrames` is indexed as numpy arrays are."""

from typing import Any

import numpy as np
import pytest

from shine_em.movie import Axis, LazyFrames, Movie

DATA = np.random.default_rng(0).random((4, 3, 5))
MASK = DATA[0] > 0.5


@pytest.mark.parametrize(
    "key",
    [
        0, -1, np.int64(2), slice(1, 4, 2), slice(9, 9), [2, 0], [], np.array([3, 1]),
        np.array([False, True, False, True]), [True, False, False, True], np.zeros(4, bool),
        ..., None, (), (2, ...), (..., 2), (slice(1, 3), ..., slice(0, 2)), (1, 2, 3),
        (None, 1), (slice(None), 1), (np.array([[0, 1], [2, 3]])), np.array(2), (2, MASK),
        (slice(1, 3), MASK), (..., MASK[0]),
    ],
)  # fmt: skip
def test_keys_mean_what_they_mean_for_an_array(key: Any) -> None:
    key = np.array(key, int) if isinstance(key, list) and not key else key
    frames = LazyFrames(lambda i: DATA[i], DATA.shape, DATA.dtype)
    np.testing.assert_array_equal(frames[key], DATA[key])


def test_a_mask_on_a_selected_movie_picks_its_frames() -> None:
    movie = Movie(DATA).select(crop=(slice(0, 2), slice(0, 5)))
    np.testing.assert_array_equal(movie.data[np.array([False, True, False, True])], DATA[1::2, :2])


@pytest.mark.parametrize("key", [4, -5, [0, 4], np.array([True, False])])
def test_frames_that_are_not_there(key: Any) -> None:
    with pytest.raises(IndexError):
        LazyFrames(lambda i: DATA[i], DATA.shape, DATA.dtype)[key]


def test_numbers_of_numpy_become_plain_ones() -> None:
    t = Axis("t", "s", np.float32(0.25), np.int64(2))
    movie = Movie(DATA, axes=(t, Axis("y"), Axis("x")), dose_e_per_A2=np.float32(1.5))
    numbers = (t.scale, t.offset, movie.dose_e_per_A2, movie.axes[0].sliced(np.int64(1)).offset)
    assert numbers == (0.25, 2.0, 1.5, 2.25)
    assert all(type(n) is float for n in numbers)
