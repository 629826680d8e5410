"""Simulated movies whose truth is known, for demonstrations, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import ClassVar

from .au_growth import au_growth
from .scene import Scene, refuse_existing, save

__all__ = ["SCENES", "Scene", "au_growth", "refuse_existing", "save"]


class _Scenes(Mapping[str, Callable[..., Scene]]):
    """The functions by the name of their scene; each module is imported when first asked for."""

    _modules: ClassVar = {
        "au-growth": "au_growth",
        "pt-water": "pt_water",
        "pt-ceria": "pt_ceria",
        "stem-mos2": "stem_mos2",
        "sparse-counting": "sparse",
    }

    def __getitem__(self, name: str) -> Callable[..., Scene]:
        module = import_module(f".{self._modules[name]}", __name__)
        return getattr(module, name.replace("-", "_"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


SCENES: Mapping[str, Callable[..., Scene]] = _Scenes()
