"""Rival methods and our own networks behind one call shape, for `shine benchmark`.

>>> from shine_em.baselines import METHODS
>>> denoised = METHODS["bm3d"].run(movie)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ShineError

if TYPE_CHECKING:
    from ..movie import Movie
    from ..noise import NoiseStatistics

__all__ = ["METHODS", "Denoiser", "Method", "pick"]


class Denoiser(Protocol):
    """The call shape of every method; see `Method.run`."""

    def __call__(  # noqa: D102
        self,
        movie: Movie,
        *,
        noise: NoiseStatistics | None = None,
        hole: tuple[int, int] | None = None,
        time_budget_s: float | None = None,
        seed: int = 0,
        device: str = "cpu",
        progress: Callable[[str, float], None] | None = None,
    ) -> Movie: ...


@dataclass(frozen=True)
class Method:
    """One entry of the benchmark.

    Attributes
    ----------
    name
        As typed on the command line.
    title
        As printed in figures.
    home
        ``"module:function"`` inside this package, imported when the method is first run.
    needs_training
        Whether it learns from the movie, so that a time budget means something.
    on_torch
        Whether it runs on PyTorch, so that a device means something.
    extra
        What to install for it, as pip is asked for it; None where shine-em itself is enough.
    hole
        The blind spot, rows × columns, that the name stands for. None: the caller's, and where he
        gives none, that of the noise statistics.
    hurries
        Whether a time budget makes it take a quicker way though it learns nothing. The movie's
        history tells the way.
    """

    name: str
    title: str
    home: str
    needs_training: bool = False
    on_torch: bool = False
    extra: str | None = None
    hole: tuple[int, int] | None = None
    hurries: bool = False

    @property
    def timed(self) -> bool:
        """Whether a time budget means something to it."""
        return self.needs_training or self.hurries

    def run(
        self,
        movie: Movie,
        *,
        noise: NoiseStatistics | None = None,
        hole: tuple[int, int] | None = None,
        time_budget_s: float | None = None,
        seed: int = 0,
        device: str = "cpu",
        progress: Callable[[str, float], None] | None = None,
    ) -> Movie:
        """Denoise a movie.

        Parameters
        ----------
        movie
            ``(t, y, x)``.
        noise
            The movie's noise statistics; measured here where a method needs them and they are not
            given.
        hole
            Blind spot, rows × columns, px, odd: for methods that have one and whose name does not
            fix it.
        time_budget_s
            Wall time, s, that training may take; None for the method's own schedule. Methods that
            learn nothing from the movie take what they take, or a quicker way (`hurries`).
        seed
            Of all random choices.
        device
            "cpu", "cuda", "mps" or "auto", for methods that run on PyTorch.
        progress
            Called with the name of the stage and the fraction of it that is done, 0 to 1.

        Returns
        -------
        Movie
            float32, of the same shape, axes and unit as ``movie``.

        Raises
        ------
        ShineError
            If an extra is missing, or the movie does not suit the method.
        """
        module, _, function = self.home.partition(":")
        try:
            denoise: Denoiser = getattr(import_module(f".{module}", __name__), function)
            return denoise(
                movie, noise=noise, hole=self.hole or hole, time_budget_s=time_budget_s, seed=seed,
                device=device, progress=progress,
            )  # fmt: skip
        except ModuleNotFoundError as error:
            if self.extra is None or (error.name or "").startswith("shine_em"):
                raise
            raise ShineError(
                f"{self.title} needs the package {error.name}: pip install {self.extra}"
            ) from error


_BM3D: dict[str, Any] = {"extra": '"shine-em[baselines]"', "hurries": True}
# Its dependency list asks for torchvision, which denoising never uses.
_TOPAZ = '--no-deps topaz-em && pip install "shine-em[baselines]"'


def _methods(*rows: tuple[str, str, str, dict[str, Any]]) -> dict[str, Method]:
    return {name: Method(name, title, home, **more) for name, title, home, more in rows}


_TRAINS = {"needs_training": True, "on_torch": True}
_AT_1, _AT_3 = {**_TRAINS, "hole": (1, 1)}, {**_TRAINS, "hole": (3, 3)}

METHODS: dict[str, Method] = _methods(
    ("gaussian", "Gaussian", "filters:gaussian", {}),
    ("bandpass", "Band-pass", "filters:bandpass", {}),
    ("wiener", "Wiener", "filters:wiener", {}),
    ("mean5", "5-frame mean", "filters:mean5", {}),
    ("bm3d", "BM3D", "bm3d:bm3d", _BM3D),
    ("bm3d-correlated", "BM3D, measured spectrum", "bm3d:bm3d_correlated", _BM3D),
    ("n2v", "Noise2Void", "n2v:n2v", _AT_1),
    ("structn2v", "structN2V", "n2v:structn2v", _TRAINS),
    ("udvd", "UDVD", "udvd:udvd", _AT_1),
    ("udvd-star", "UDVD*", "udvd:udvd", _TRAINS),
    ("topaz", "Topaz-Denoise", "topaz:topaz", {"extra": _TOPAZ, "on_torch": True}),
    ("paper-1x1", "SHINE 1×1", "shine:paper", _AT_1),
    ("paper-3x3", "SHINE 3×3", "shine:paper", _AT_3),
    ("paper", "SHINE", "shine:paper", _TRAINS),
    ("lean-1x1", "lean 1×1", "shine:lean", _AT_1),
    ("lean-3x3", "lean 3×3", "shine:lean", _AT_3),
    ("lean", "lean", "shine:lean", _TRAINS),
)


def pick(names: str) -> list[Method]:
    """Return the methods of a comma-separated list; "all" stands for every one.

    Raises
    ------
    ShineError
        If a name is unknown, or none is given.

    Examples
    --------
    >>> [method.title for method in pick("n2v, lean")]
    ['Noise2Void', 'lean']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all"]:
        return list(METHODS.values())
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise ShineError(
            f"Unknown method {', '.join(unknown) or names!r}. Choose from: {', '.join(METHODS)}."
        )
    return [METHODS[name] for name in dict.fromkeys(wanted)]
