"""A model as it is used: its first hole alone, and on a movie not its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .brightness import brightness_offset
from .checkpoint import Model
from .compute import pick_device, pick_precision
from .errors import ShineError
from .movie import Movie
from .patches import Normalisation
from .planning import Options, Plan
from .warm_start import BEGINNING, window_of

__all__ = ["applied", "misfit", "refuse_settled", "single_hole"]


def refuse_settled(options: Options, model: Model, *, resumed: bool) -> None:
    """Refuse options that a trained model has settled otherwise.

    Parameters
    ----------
    options
        What was asked for; defaults ask for nothing.
    model
        The model that is to be used as it is, or trained to its end.
    resumed
        Whether it is trained to its end.

    Raises
    ------
    ShineError
        If an option would have no effect.
    """
    settings, usual = model.state.settings, Options()
    settled: dict[str, Any] = {
        "preset": settings.preset, "hole": model.hole, "frames": window_of(model.config),
        "seed": settings.seed, "from_scratch": BEGINNING not in model.provenance,
    }  # fmt: skip
    if not resumed:
        settled |= {"steps": None, "time_budget": None, "register": usual.register}
    elif settings.steps is not None:
        settled |= {"steps": settings.steps, "time_budget": None}
    if model.config.frames == 1:  # of a single frame, whatever window was asked for
        settled["frames"] = options.frames
    names = {"frames": "--window"}
    refused = [
        names.get(name, "--" + name.replace("_", "-"))
        for name, value in settled.items()
        if getattr(options, name) not in (getattr(usual, name), value)
    ]
    if refused and resumed:
        raise ShineError(
            "The interrupted model goes on as it began: leave out "
            f"{', '.join(refused)}, or train anew, without --resume."
        )
    if refused:
        raise ShineError(
            "--model alone does not train: add --fine-tune to train it further on this movie, or "
            f"leave out {', '.join(refused)}."
        )


def single_hole(movie: Movie, plan: Plan, model: Model, device: Any, precision: str) -> Model:
    """Return the model with its first hole alone, in one view."""
    model = replace(
        model, holes=(model.hole,), weights=(1.0,), linear=None, student=None, views=1,
        correction=None,
    )  # fmt: skip
    offset = brightness_offset(
        movie, plan.health, plan.noise, model, device=device, precision=precision
    )
    return replace(model, offset=offset)


def applied(movie: Movie, plan: Plan, options: Options, model: Model) -> Model:
    """Return a model of another movie as it is used on this one.

    What counts as a spike is this movie's business; location and scale are the network's.
    """
    here = Normalisation.of(plan.health)
    normalisation = replace(model.normalisation, floor=here.floor, ceiling=here.ceiling)
    if normalisation != model.normalisation:
        model = replace(model, normalisation=normalisation)
    plain = len(model.holes) == 1 and model.linear is None and model.views == 1
    plain = plain and model.correction is None
    if options.ensemble or plain:
        return model
    device = pick_device(options.device)
    return single_hole(movie, plan, model, device, pick_precision(device, options.precision))


def misfit(movie: Movie, plan: Plan, model: Model) -> tuple[str, ...]:
    """Say where a movie differs from the one that a model was trained on."""
    words = []
    n, h = model.normalisation, plan.health
    if not 0.75 < h.scale / n.scale < 1.33 or abs(h.location - n.location) > 0.5 * n.scale:
        words.append(
            f"This movie's intensities ({h.location:.4g} ± {h.scale:.4g}) are not those of the "
            f"model's movie ({n.location:.4g} ± {n.scale:.4g}): train anew for a result to trust."
        )
    if any(a > b for a, b in zip(plan.noise.hole, model.hole, strict=True)):
        words.append(
            f"This movie's noise asks for a blind spot of {plan.noise.hole[0]}x"
            f"{plan.noise.hole[1]}, the model has {model.hole[0]}x{model.hole[1]}: noise may "
            "survive as structure."
        )
    if model.config.open_slots and set(plan.noise.blinded_lags) - set(model.blinded_lags):
        words.append(
            "This movie's noise is correlated in time, which the model was not made for: train "
            "anew."
        )
    return tuple(words)
