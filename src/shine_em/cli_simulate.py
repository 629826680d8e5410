"""``shine simulate NAME``: one command per scene, its options made from the scene's own function.

A scene's keyword arguments and their descriptions stand in its docstring alone. Units that end a
name (``pixel_size_nm``) move from the option's name into its help.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from cyclopts import App, Group, Parameter
from rich.console import Console

from .cli_options import RESULTS, Overwrite, Quiet
from .errors import ShineError
from .simulate import SCENES, Scene

if TYPE_CHECKING:
    from .events import Event

__all__ = ["app", "frame_progress", "named_by_option", "parameter_help"]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

app = App(
    name="simulate",
    help="Simulate movies whose truth is known.",
    help_epilogue="Example: `shine simulate au-growth --frames 100 --size 512 -o scene`",
    help_format="markdown",
)

_MOVIE = Group("Movie", sort_key=1)
_PHYSICS = Group("Scene", help="Its physics and its detector.", sort_key=2)
_UNITS = {
    "e_per_A2": "e⁻/Å²", "nm_per_s": "nm/s", "nm_per_frame": "nm per frame",
    "px2": "px² per frame", "px": "px", "A": "Å", "nm": "nm", "um": "µm", "mm": "mm", "s": "s",
    "us": "µs", "mrad": "mrad", "deg": "°", "kV": "kV", "hz": "Hz", "K": "K", "eV": "eV",
    "pA": "pA",
}  # fmt: skip
_COMMON = {
    "frames": "Number of frames.",
    "size": "Width and height in px, as 512, or height x width, as 300x400.",
    "seed": "Seed of everything random: the same one gives the same movie.",
    "workers": "Frames simulated side by side (default: one per processor, up to eight).",
}
_NOT_OPTIONS = ("progress", "cache")


def _command(name: str) -> Callable[..., None]:
    """Return a scene's command."""
    function = SCENES[name]
    text = inspect.getdoc(function) or ""
    help_of = parameter_help(text)
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    named = _options(name)
    options = []
    for parameter in parameters.values():
        if parameter.name not in named:
            continue
        unit = _without_unit(parameter.name)[1]
        words = _COMMON.get(parameter.name) or help_of.get(parameter.name, "")
        kind: Any = str if parameter.name == "size" else hints[parameter.name]
        annotation: Any = Annotated[
            kind,
            Parameter(
                named[parameter.name],
                group=_MOVIE if parameter.name in _COMMON else _PHYSICS,
                help=f"{words} [{unit}]".strip() if unit else words,
                negative_iterable="",
            ),
        ]
        default = str(parameter.default) if parameter.name == "size" else parameter.default
        options.append(parameter.replace(annotation=annotation, default=default))

    def run(
        *, output: Path = Path(name), overwrite: bool = False, quiet: bool = False, **chosen: Any
    ) -> None:
        _simulate(name, chosen, output=output, overwrite=overwrite, quiet=quiet)

    output = Annotated[
        Path,
        Parameter(
            ["--output", "-o"],
            group=RESULTS,
            help="Folder for the movies. A simulation that was stopped goes on from here.",
        ),
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    options += [
        inspect.Parameter("output", keyword, default=Path(name), annotation=output),
        inspect.Parameter("overwrite", keyword, default=False, annotation=Overwrite),
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
    ]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options(scene: str) -> dict[str, str]:
    """Return the option of each parameter of a scene that can be typed."""
    function = SCENES[scene]
    hints = get_type_hints(function)
    names = inspect.signature(function).parameters
    bare = Counter(_without_unit(name)[0] for name in names)
    found = {}
    for name in names:
        if name not in _NOT_OPTIONS and _typed(hints[name], name):
            option = _without_unit(name)[0]
            if bare[option] > 1:  # as settling_nm and settling_s
                option = name
            found[name] = f"--{option.replace('_', '-')}"
    return found


def _simulate(
    name: str, chosen: dict[str, Any], *, output: Path, overwrite: bool, quiet: bool
) -> None:
    from .display import Display
    from .simulate import refuse_existing, save

    if "size" in chosen:
        chosen["size"] = _size(chosen["size"])
    if not overwrite:
        refuse_existing(output)
    unfinished = output / "unfinished"
    try:
        with Display(console, quiet=quiet) as display:
            try:
                scene = SCENES[name](
                    **chosen,
                    cache=unfinished,
                    progress=frame_progress(display, f"simulating {name}"),
                )
            except ShineError as error:
                raise named_by_option(error, _options(name)) from error
            paths = save(scene, output, overwrite=overwrite)
    except KeyboardInterrupt:
        kept = len(list(unfinished.glob("*/frame_*.npz")))
        errors.print(
            f"Interrupted. {kept} finished frames are in {unfinished}; the same command goes on "
            "from there.",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(130)
    shutil.rmtree(unfinished, ignore_errors=True)
    for what, path in paths.items():
        console.print(f"{what:<12}{path}", markup=False, soft_wrap=True)
    console.print(_in_short(scene), markup=False, soft_wrap=True)


def frame_progress(show_event: Callable[[Event], None], stage: str) -> Callable[[int, int], None]:
    """Return a callback that shows the time left.

    It is reckoned from the first new frame on: that one also waits for imports and tables, and
    frames kept from an earlier run come at once.
    """
    from .events import Event

    begun, first = time.monotonic(), 0
    working = False

    def show(done: int, total: int) -> None:
        nonlocal begun, first, working
        now = time.monotonic()
        left = (now - begun) / (done - first) * (total - done) if working else None
        if not working:
            working = now - begun > 0.05
            begun, first = now, done
        show_event(Event(stage, done, total, seconds_left=left))

    return show


def _in_short(scene: Scene) -> str:
    import numpy as np

    middle = len(scene.noisy) // 2
    noisy, truth = (np.asarray(m.frame(middle), float) for m in (scene.noisy, scene.truth))
    return (
        f"Frame {middle}: mean {truth.mean():.4g} {scene.truth.intensity_unit}, contrast (SD) "
        f"{truth.std():.3g}, noise (SD) {(noisy - truth).std():.3g}."
    )


def named_by_option(error: ShineError, options: Mapping[str, str]) -> ShineError:
    """Return an error that names options where the original one names parameters.

    Parameters
    ----------
    error
        As a Python function raised it.
    options
        Parameter → option. A parameter of one plain word (``frames``) counts as named only where a
        value or "must" follows: elsewhere the word is just a word.
    """
    text = str(error)
    for name, option in options.items():
        named = rf"(?<![\w-]){name}(?!\w)"
        text = re.sub(f"{named}=", f"{option} ", text)
        text = re.sub(named if "_" in name else f"{named}(?= must)", option, text)
    return ShineError(text)


def parameter_help(docstring: str) -> dict[str, str]:
    """Return what a numpydoc docstring says about each parameter, on one line, without markup."""
    _, _, rest = docstring.partition("Parameters\n----------\n")
    section = re.split(r"\n\w[\w ]*\n-{3,}\n", rest)[0]
    described: dict[str, str] = {}
    for head, body in re.findall(r"^(\w[\w, ]*)\n((?:[ ]+.*\n?|\n)*)", section, re.MULTILINE):
        words = " ".join(body.split())
        words = re.sub(r":math:`([^`]*)`", r"\1", words).replace("`", "").rstrip(".")
        for name in head.split(","):
            described[name.strip()] = words
    return described


def _without_unit(name: str) -> tuple[str, str]:
    """Split ``pixel_size_nm`` into ``pixel_size`` and ``nm``."""
    for end, unit in _UNITS.items():
        if name.endswith(f"_{end}"):
            return name.removesuffix(f"_{end}"), unit
    return name, ""


def _typed(hint: Any, name: str) -> bool:
    """Tell whether a value of this type can be typed on a command line."""
    if name == "size" or hint in (int, float, str, bool, type(None)):
        return True
    origin = get_origin(hint)
    if origin is Literal:
        return True
    inner = [a for a in get_args(hint) if a is not ...]
    if origin in (Union, types.UnionType, tuple, list, Sequence):
        return all(_typed(a, "") for a in inner)
    return False


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"[(]?(\d+)(?:\s*[x×,]\s*(\d+))?[)]?", text.strip())
    if match is None:
        raise ShineError(f"--size {text}: give a width, as 512, or height x width, as 300x400.")
    first, second = match.groups()
    return int(first) if second is None else (int(first), int(second))


for _name in SCENES:
    app.command(
        _command(_name),
        name=_name,
        help=(inspect.getdoc(SCENES[_name]) or "").partition("\n")[0],
        help_epilogue=f"Example: `shine simulate {_name} --frames 8 --size 128 -o {_name}`",
    )
