"""shine-em: noisy electron-microscopy movies into ones that can be measured.

>>> import shine_em as shine
>>> result = shine.denoise(shine.read("movie.dm4"))  # doctest: +SKIP

Everything here is loaded when it is first used, so that ``import shine_em`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Model
    from .doctor import Health, check
    from .dose import advise
    from .errors import ShineError
    from .files import Outputs, denoise_file
    from .io import open_writer, read, write
    from .job import Interrupted, Result, denoise, train_model
    from .movie import Axis, Movie
    from .noise import NoiseStatistics, noise_statistics
    from .planning import Options
    from .report import write_report
    from .video import write_side_by_side

_HOMES = {
    "Model": "checkpoint",
    "Health": "doctor",
    "check": "doctor",
    "advise": "dose",
    "ShineError": "errors",
    "Outputs": "files",
    "denoise_file": "files",
    "open_writer": "io",
    "read": "io",
    "write": "io",
    "Interrupted": "job",
    "Options": "planning",
    "Result": "job",
    "denoise": "job",
    "train_model": "job",
    "Axis": "movie",
    "Movie": "movie",
    "NoiseStatistics": "noise",
    "noise_statistics": "noise",
    "write_report": "report",
    "write_side_by_side": "video",
}

__all__ = [
    "Axis",
    "Health",
    "Interrupted",
    "Model",
    "Movie",
    "NoiseStatistics",
    "Options",
    "Outputs",
    "Result",
    "ShineError",
    "advise",
    "check",
    "denoise",
    "denoise_file",
    "noise_statistics",
    "open_writer",
    "read",
    "train_model",
    "write",
    "write_report",
    "write_side_by_side",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("shine-em")
    if name not in _HOMES:
        raise AttributeError(f"module 'shine_em' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
