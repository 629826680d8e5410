"""The selections that people type: ``a:b:step`` frames and ``y0:y1,x0:x1`` crops."""

from __future__ import annotations

from ..errors import ShineError

__all__ = ["parse_crop", "parse_frames"]


def parse_frames(text: str) -> slice:
    """Return ``"a:b:step"`` as a slice of frames, counted from 0; ``b`` itself is left out.

    Parameters
    ----------
    text
        ``"10:60"``, ``":100"``, ``"::2"``, ``"-50:"`` or a single frame ``"7"``.

    Raises
    ------
    ShineError
        If the text is no such selection, or its step is not positive.
    """
    example = "write a:b:step, for example 0:100, ::2 or 7 (counted from 0, b left out)"
    parts = _whole_numbers(text, "frames", example)
    if len(parts) == 1:
        (only,) = parts
        if only is None:
            raise ShineError(f"frames {text!r} selects nothing: {example}.")
        return slice(only, only + 1 if only != -1 else None)
    if len(parts) > 3:
        raise ShineError(f"frames {text!r} has more than two colons: {example}.")
    if len(parts) == 3 and parts[2] is not None and parts[2] < 1:
        raise ShineError(f"frames {text!r}: the step must be 1 or more.")
    return slice(*parts)


def parse_crop(text: str) -> tuple[slice, slice]:
    """Return ``"y0:y1,x0:x1"`` as ``(y, x)`` slices in pixels; ``y1`` and ``x1`` are left out.

    Either side may be open, as in ``"100:,:256"``.

    Raises
    ------
    ShineError
        If the text is no such crop, or selects nothing.
    """
    example = "write y0:y1,x0:x1 in pixels, for example 0:256,128:384"
    sides = text.split(",")
    if len(sides) != 2:
        raise ShineError(f"crop {text!r} needs rows and columns: {example}.")
    slices = []
    for side, what in zip(sides, ("rows", "columns"), strict=True):
        parts = _whole_numbers(side, "crop", example)
        if len(parts) != 2:
            raise ShineError(f"crop {text!r}: the {what} {side!r} need one colon: {example}.")
        start, stop = parts
        if (start or 0) < 0 or (stop is not None and stop < 0):
            raise ShineError(f"crop {text!r}: the {what} are counted from 0: {example}.")
        if stop is not None and stop <= (start or 0):
            raise ShineError(f"crop {text!r}: the {what} {side!r} select nothing.")
        slices.append(slice(start, stop))
    return slices[0], slices[1]


def _whole_numbers(text: str, what: str, example: str) -> list[int | None]:
    try:
        return [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        raise ShineError(f"{what} {text!r} is not made of whole numbers: {example}.") from None
