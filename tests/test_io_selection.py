"""The selections that people type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shine_em.errors import ShineError
from shine_em.io import parse_crop, parse_frames


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("0:5", [0, 1, 2, 3, 4]),
        (":3", [0, 1, 2]),
        ("7:", [7, 8, 9]),
        ("::4", [0, 4, 8]),
        ("1:9:3", [1, 4, 7]),
        ("7", [7]),
        ("-1", [9]),
        ("-3:", [7, 8, 9]),
        (" 2 : 4 ", [2, 3]),
    ],
)
def test_frames_select_as_python_does(text: str, frames: list[int]) -> None:
    assert list(range(10))[parse_frames(text)] == frames


@pytest.mark.parametrize(
    ("text", "word"),
    [("a:b", "whole numbers"), ("1:2:3:4", "two colons"), ("0:9:0", "step"), ("9:0:-1", "step"),
     ("1.5:3", "whole numbers"), ("", "selects nothing")],
)  # fmt: skip
def test_bad_frames_are_explained(text: str, word: str) -> None:
    with pytest.raises(ShineError, match=word):
        parse_frames(text)


@given(st.integers(0, 99), st.integers(1, 99), st.integers(0, 99), st.integers(1, 99))
def test_crop_is_rows_then_columns(y0: int, height: int, x0: int, width: int) -> None:
    rows, columns = parse_crop(f"{y0}:{y0 + height},{x0}:{x0 + width}")
    assert (rows, columns) == (slice(y0, y0 + height), slice(x0, x0 + width))


def test_crop_may_be_open() -> None:
    assert parse_crop("10:,:20") == (slice(10, None), slice(None, 20))


@pytest.mark.parametrize(
    ("text", "word"),
    [("0:5", "rows and columns"), ("0:5,0:5,0:5", "rows and columns"), ("5,0:5", "one colon"),
     ("0:5:2,0:5", "one colon"), ("5:5,0:9", "nothing"), ("9:5,0:9", "nothing"),
     ("-5:,0:9", "from 0"), ("x:1,0:2", "whole numbers")],
)  # fmt: skip
def test_bad_crops_are_explained(text: str, word: str) -> None:
    with pytest.raises(ShineError, match=word):
        parse_crop(text)
