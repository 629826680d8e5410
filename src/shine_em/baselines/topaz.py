"""Topaz-Denoise: a U-Net trained on thousands of cryo-EM micrographs, as its authors ship it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pickle import UnpicklingError
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from ..noise import NoiseStatistics
from .filters import map_frames

__all__ = ["topaz"]

_WEIGHTS = "unet_L2_v0.2.2.sav"  # "unet", the default of `topaz denoise`
_PATCH, _PADDING = 1024, 500  # defaults of `topaz denoise`, px
_STRIDE = 32  # five 2×2 poolings


def topaz(
    movie: Movie,
    *,
    noise: NoiseStatistics | None = None,
    hole: tuple[int, int] | None = None,
    time_budget_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Movie:
    """Denoise every frame with the pretrained general model of Topaz-Denoise.

    The network and its weights come from the package topaz-em (GPL-3.0-or-later); frames are
    standardised, and cut into patches of 1024 pixels, as its own command does by default. The file
    of weights is a pickle; it is read with PyTorch's `weights_only`, which runs no code.

    Parameters are those of `shine_em.baselines.Method.run`; ``noise``, ``hole``, ``time_budget_s``
    and ``seed`` have no effect.

    Raises
    ------
    ShineError
        If frames are smaller than 32 pixels, or topaz-em ships other weights than expected.

    References
    ----------
    T. Bepler et al., Topaz-Denoise: general deep denoising models for cryoEM and cryoET.
    Nat. Commun. 11, 5208 (2020).
    """
    if min(movie.shape[1:]) < _STRIDE:
        raise ShineError(
            f"{movie.name}: Topaz-Denoise needs frames of {_STRIDE} px and more, "
            f"not {movie.shape[1]}×{movie.shape[2]}."
        )
    model = _model(device)

    def denoise(frame: np.ndarray) -> np.ndarray:
        if frame.std() == 0:
            return frame
        return np.asarray(model.denoise(frame, patch_size=_PATCH, padding=_PADDING))

    return map_frames(movie, denoise, did=f"Topaz-Denoise ({_WEIGHTS})", progress=progress)


def _model(device: str) -> Any:
    from topaz.denoise import Denoise
    from topaz.denoising.models import UDenoiseNet
    from torch import load, nn

    from ..compute import pick_device

    network = UDenoiseNet(base_width=11, top_width=5)
    resource = files("topaz").joinpath("pretrained", "denoise", _WEIGHTS)
    try:
        with resource.open("rb") as file:
            network.load_state_dict(load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ShineError(
            f"The installed topaz-em has no usable weights {_WEIGHTS} ({error}). "
            "Install a newer one: pip install --no-deps -U topaz-em"
        ) from error
    return Denoise(nn.Sequential(network.to(pick_device(device))))
