"""Training that does not begin from nothing: from shipped weights, or from another movie's model.

The weights alone are taken over. What a movie's own statistics decide (check, normalisation,
noise, hole, ensemble, offset) is measured on the new movie, and the optimiser begins afresh.
The shipped weights were taught on simulated movies (``scripts/make_starting_point.py``), and are
always trained further on the user's movie. Measured in docs/warm_start.md.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Model
from .errors import ShineError
from .network import NetworkConfig
from .patches import Timeline
from .planning import Options, Plan
from .training_settings import CARD_BATCH

__all__ = [
    "BEGINNING",
    "FEWEST_PIXELS",
    "FINE_TUNING_SHARE",
    "ORIGIN",
    "beginning",
    "fine_tuning_s",
    "shipped_weights",
    "window_of",
]

# What a fine-tuned network needs of the training that one from nothing gets.
FINE_TUNING_SHARE = 0.2

# Under which name a model's provenance tells what its training began with.
ORIGIN = "fine-tuned from"
BEGINNING = "training began from"

_SHIPPED = "starting_point.safetensors"
# A movie with fewer pixels to learn from begins with random weights: able ones learn its noise by
# heart. Of nothing but noise on 12 × 96 × 96 pixels, 6 % were left after 300 steps, 3 % from
# random weights; on 20 × 128 × 128 pixels, 2 % (docs/warm_start.md).
FEWEST_PIXELS = 300_000
# Peak learning rate of a training that begins with them: half the usual one restores as much, and
# learns less of a short movie's noise by heart. The larger batches of a card take the usual one.
_RATE = 1.5e-3


def beginning(
    plan: Plan, options: Options, *, model: Model | None, resume: Model | None, name: str
) -> tuple[dict[str, Tensor] | None, Plan, dict[str, str]]:
    """Return what training begins with.

    Parameters
    ----------
    plan, options
        What is to be done with this movie.
    model
        The model of another movie, to be fine-tuned.
    resume
        An interrupted model of this movie, to be trained on.
    name
        Of this movie, for errors.

    Returns
    -------
    weights : dict or None
        The weights to begin with: the given model's or the shipped ones. None for random ones (as
        where there are fewer than `FEWEST_PIXELS`), or those of ``resume``.
    plan : Plan
        With the recipe that suits such a beginning.
    provenance : dict
        What the new model's provenance is to tell of it.

    Raises
    ------
    ShineError
        If there is no model to fine-tune, or the network that this movie is to get has another
        shape than the model's.
    """
    if resume is not None:
        known = (ORIGIN, BEGINNING)
        return None, plan, {k: v for k, v in resume.provenance.items() if k in known}
    if model is None:
        if options.fine_tune:
            raise ShineError("Fine-tuning trains a model further: say which one, with --model.")
        few = options.from_scratch or _pixels(plan) < FEWEST_PIXELS
        weights = None if few else shipped_weights(plan.config)
        if weights is None:
            return None, plan, {}
        settings = plan.settings
        if settings.batch < CARD_BATCH:
            settings = replace(settings, learning_rate=_RATE)
        said = {BEGINNING: "weights taught on simulated movies"}
        return weights, replace(plan, settings=settings), said
    if reason := _misfit(model.config, plan.config):
        raise ShineError(f"{name}: the model cannot be fine-tuned on this movie. {reason}")
    usual = plan.settings.epochs
    epochs = usual and max(1, round(FINE_TUNING_SHARE * usual))
    settings = replace(plan.settings, epochs=epochs)
    origin = {ORIGIN: f"the model of {_movie_of(model)}"}
    config = replace(plan.config, slope=model.config.slope)
    return model.state.best, replace(plan, config=config, settings=settings), origin


def _pixels(plan: Plan) -> int:
    """Return how many pixels there are to learn from."""
    frames = Timeline(len(plan.health.blank), plan.health).targets()
    return len(frames) * int(np.asarray(plan.health.bad_pixels).size)


def shipped_weights(config: NetworkConfig) -> dict[str, Tensor] | None:
    """Return the weights that training begins with; None for a network of another layout.

    Parameters
    ----------
    config
        Of the network that is to be trained. The weights are those of a lean network that sees
        five frames, all neighbours whole; in a longer window the frames further away begin with 0.
    """
    usual = NetworkConfig(paper_radius=config.paper_radius)  # which a lean network does not have
    seen = tuple(i for i in range(config.frames) if i != config.centre)
    if config.frames < usual.frames or config != replace(
        usual, frames=config.frames, open_slots=seen
    ):
        return None
    from safetensors.torch import load

    weights = load(resources.files(__package__).joinpath(_SHIPPED).read_bytes())
    return _widened(weights, (config.frames - usual.frames) // 2)


def _widened(weights: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """Return the weights of a network that sees ``by`` more frames on either side and ignores them.

    A stem's inputs are frames and, last, the mask. Its changes are stacked by the number of
    neighbours out of place: the outermost come first, so that the old ones move back by ``by``.
    """
    out = dict(weights)
    for stem in ("stem", "open.enter"):
        for name in (f"{stem}.conv.weight", f"{stem}.changes"):
            frames, mask = weights[name][:, :-1], weights[name][:, -1:]
            none = torch.zeros_like(frames[:, :1]).expand(-1, by, -1, -1)
            out[name] = torch.cat((none, frames, none, mask), dim=1)
        unchanged = torch.zeros_like(out[f"{stem}.conv.weight"]).repeat(by, 1, 1, 1)
        out[f"{stem}.changes"] = torch.cat((unchanged, out[f"{stem}.changes"]))
    return out


def fine_tuning_s(seconds: float, options: Options) -> float:
    """Return the seconds to fine-tune for, of those that training could have.

    All of them where the user gave a time budget, else a fifth.
    """
    return seconds if options.time_budget is not None else FINE_TUNING_SHARE * seconds


def window_of(config: NetworkConfig) -> int:
    """Return the ``--window`` that led to a network, before frames were added for blinded ones."""
    blinded = _blinded(config)
    return config.frames - (2 * max(blinded) if blinded and config.open_slots else 0)


def _movie_of(model: Model) -> str:
    """Return the name of the movie that a model was trained on, with the hash of its pixels."""
    known = model.provenance
    return f"{Path(known.get('input', 'unknown')).name} ({known.get('input_hash', 'no hash')})"


def _misfit(old: NetworkConfig, new: NetworkConfig) -> str:
    """Return why a network's weights cannot be used in another, and what to do; empty if they can.

    A lean network's weights do not depend on the hole; the published one's neighbour branch does.
    """
    if old.kind != new.kind:
        return f"It is a {old.kind} network: add --preset {old.kind}."
    if new.frames == 1 < old.frames:
        return (
            f"It sees {old.frames} frames at a time, here is only one: take a model of single "
            "images, or train from scratch, without --model."
        )
    was, now = _blinded(old), _blinded(new)
    if was != now:
        return (
            f"It blinds {_spoken(was)}, as its movie's noise asked for, this movie's noise asks to "
            f"blind {_spoken(now)}: train from scratch, without --model."
        )
    if old.frames != new.frames:
        return (
            f"It sees {old.frames} frames at a time, here {new.frames} were wanted: give --window "
            f"{window_of(old)}, or train from scratch, without --model."
        )
    if old.kind == "paper" and old.paper_radius != new.paper_radius:
        edge = 2 * old.paper_radius + 1
        return (
            f"Its neighbour branch was made for a hole of {edge}x{edge}: give --hole {edge}x{edge} "
            "if this movie's noise allows it, or train from scratch, without --model."
        )
    if old.channels != new.channels:
        return f"It has {old.channels} channels, not {new.channels}: train from scratch."
    return ""


def _blinded(config: NetworkConfig) -> tuple[int, ...]:
    """Return the distances in time, in frames, at which a network's neighbours are blinded."""
    lags = {abs(i - config.centre) for i in range(config.frames) if i not in config.open_slots}
    return tuple(sorted(lags - {0}))


def _spoken(lags: tuple[int, ...]) -> str:
    return f"the neighbours ±{', ±'.join(map(str, lags))}" if lags else "no neighbour"
