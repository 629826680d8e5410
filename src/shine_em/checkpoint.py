"""A trained model in one safetensors file: weights as tensors, everything else as JSON.

Loading runs no code. The file also holds what is needed to go on training.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .correction import Correction
from .drafts import refuse_existing, write_whole
from .errors import ShineError
from .linear import LinearPrediction
from .movie import Movie
from .network import VIEWS, Hole, NetworkConfig, build, check_hole
from .patches import Normalisation
from .student import Student
from .training import TrainedState
from .training_settings import TrainingSettings

__all__ = ["Choice", "Model", "input_hash", "require_unfinished", "versions"]

FORMAT = 1
_HASH_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Choice:
    """What may be chosen once a network is trained, as there is time for it (see `Plan`)."""

    candidates: tuple[Hole, ...]
    most_holes: int
    with_filter: bool
    correct: bool

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Choice:
        """Rebuild what `dataclasses.asdict` gave, by way of JSON."""
        candidates = tuple(check_hole((int(m), int(n))) for m, n in values["candidates"])
        return cls(
            candidates, int(values["most_holes"]), bool(values["with_filter"]),
            bool(values["correct"]),
        )  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A network that can denoise, and all that is known of how it came to be.

    Attributes
    ----------
    state
        Weights, recipe, losses, and what resuming needs.
    normalisation
        Of the movie it was trained on.
    holes, weights
        The holes whose predictions are averaged (the ensemble), and their weights, which sum to 1;
        equal ones where none are given.
    offset
        Mean of raw − denoised over the training movie, normalised units: added to every output,
        so that intensities are not biased.
    noise
        The movie's noise statistics, as `NoiseStatistics.to_dict` gives them.
    provenance
        Versions, seed, input file and hash.
    student
        The network that repeats the ensemble in one pass, where one was made and found as good;
        it is what denoises then.
    linear
        The linear prediction that has a share in the mean, where it has one.
    views
        Mirrored views that each hole's prediction is averaged over (see `shine_em.network.VIEWS`).
    correction
        Of the ensemble's mean, where it has one (see `shine_em.correction`).
    choice
        What was planned for the time after training, in case that training goes on.
    """

    state: TrainedState
    normalisation: Normalisation
    holes: tuple[Hole, ...]
    offset: float = 0.0
    noise: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    student: Student | None = None
    linear: LinearPrediction | None = None
    views: int = 1
    correction: Correction | None = None
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if not self.weights:
            equal = (1 / len(self.holes),) * len(self.holes)
            object.__setattr__(self, "weights", equal)
        if len(self.weights) != len(self.holes) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights {self.weights} for the holes {self.holes}")
        if not 1 <= self.views <= len(VIEWS):
            raise ValueError(f"{self.views} mirrored views")
        if self.linear is not None and self.linear.weights.shape[1] != self.config.frames:
            raise ValueError("a linear prediction for windows of another length")

    @property
    def config(self) -> NetworkConfig:
        """The network's layout."""
        return self.state.config

    @property
    def hole(self) -> Hole:
        """The blind spot it was made for, rows × columns."""
        return self.state.settings.hole

    @property
    def averaged(self) -> str:
        """What is averaged: "3x3 (0.60), 1x1 (0.35), linear filter (0.05), in 2 mirrored views"."""
        share = 0.0 if self.linear is None else self.linear.share
        holes = zip(self.holes, self.weights, strict=True)
        parts = {f"{m}x{n}": (1 - share) * w for (m, n), w in holes} | {"linear filter": share}
        named = [(name, w) for name, w in parts.items() if w > 0]
        views = f", in {self.views} mirrored views" if self.views > 1 and share < 1 else ""
        more = views + (", corrected" if self.correction is not None else "")
        if len(named) == 1:
            return named[0][0] + more
        return ", ".join(f"{name} ({w:.2f})" for name, w in named) + more

    @property
    def blinded_lags(self) -> tuple[int, ...]:
        """Frame lags whose neighbours are blinded (see `NoiseStatistics.blinded_lags`)."""
        return self.state.settings.blinded_lags

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the checkpoint whole, or not at all.

        Raises
        ------
        ShineError
            If the file exists and ``overwrite`` is False, or cannot be written.
        """
        from safetensors.torch import save

        path = Path(path).expanduser()
        if not overwrite:
            refuse_existing(path)
        s = self.state
        tensors: dict[str, Tensor] = {}
        for group in ("best", "current", "average", "optimiser"):
            tensors |= {f"{group}:{k}": v for k, v in getattr(s, group).items()}
        if self.student is not None:
            tensors |= {f"student:{k}": v for k, v in self.student.weights.items()}
        if self.linear is not None:
            tensors["linear:weights"] = self.linear.weights
        if self.correction is not None:
            tensors["correction:weights"] = self.correction.weights
        header = {
            "format": FORMAT,
            "network": s.config.to_dict(),
            "settings": s.settings.to_dict(),
            "training": {
                "step": s.step, "best_step": s.best_step, "best_loss": _finite(s.best_loss),
                "train_loss": [(i, v) for i, v in s.train_loss if np.isfinite(v)],
                "validation_loss": [(i, _finite(v)) for i, v in s.validation_loss],
                "recent": s.recent, "seconds": s.seconds, "stopped": s.stopped,
            },
            "normalisation": self.normalisation.to_dict(),
            "holes": self.holes, "weights": self.weights, "offset": self.offset,
            "noise": self.noise, "provenance": self.provenance,
            "student": None if self.student is None else self.student.to_dict(),
            "linear": None if self.linear is None else self.linear.to_dict(),
            "views": self.views,
            "correction": None if self.correction is None else self.correction.to_dict(),
            "choice": None if self.choice is None else asdict(self.choice),
        }  # fmt: skip
        # Not `save_file`: it makes files that only their owner may read.
        content = save(tensors, {"shine": json.dumps(header, allow_nan=False)})
        write_whole(path, lambda draft: draft.write_bytes(content))
        return path

    @classmethod
    def load(cls, path: str | Path, *, resuming: bool = False) -> Model:
        """Read a checkpoint.

        Parameters
        ----------
        path
            The file.
        resuming
            Whether its training is to go on, for which more must be there than its best weights.

        Raises
        ------
        ShineError
            If the file is missing, is no checkpoint of shine, comes from a newer version, or its
            weights do not fit the network that its header describes.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        if not path.is_file():
            raise ShineError(f"{path}: no such model file.")
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("shine")
                if text is None:
                    raise ShineError(f"{path} is a safetensors file, but not a model of shine.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ShineError(
                f"{path} is not a readable model ({error}). Train it anew with: shine train"
            ) from None
        try:
            model = cls._from(json.loads(text), tensors)
            if resuming:
                require_unfinished(model.state)
            return model
        except ShineError as error:
            raise ShineError(f"{path}: {error}") from None
        except (
            LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError
        ) as error:  # fmt: skip
            raise ShineError(f"{path}: the model's header is damaged ({error!r}).") from None

    @classmethod
    def _from(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
        if header["format"] > FORMAT:
            raise ShineError(
                f"written by a newer shine-em (format {header['format']}, this one reads "
                f"{FORMAT}); update shine-em."
            )
        config = NetworkConfig.from_dict(header["network"])
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, key = name.partition(":")
            groups.setdefault(group, {})[key] = tensor
        expected = {k: tuple(v.shape) for k, v in build(config).state_dict().items()}
        found = {k: tuple(v.shape) for k, v in groups.get("best", {}).items()}
        if expected != found:
            raise ShineError("the weights do not fit the network that the header describes.")
        t = header["training"]
        state = TrainedState(
            config, TrainingSettings.from_dict(header["settings"]), best=groups["best"],
            step=t["step"], best_step=t["best_step"],
            best_loss=np.inf if t["best_loss"] is None else t["best_loss"],
            train_loss=[(int(i), float(v)) for i, v in t["train_loss"]],
            validation_loss=[
                (int(i), np.nan if v is None else float(v)) for i, v in t["validation_loss"]
            ],
            seconds=t["seconds"], stopped=t["stopped"], current=groups.get("current", {}),
            average=groups.get("average", {}), optimiser=groups.get("optimiser", {}),
            recent=[float(v) for v in t.get("recent", [])],
        )  # fmt: skip
        normalisation = Normalisation.from_dict(header["normalisation"])
        holes = tuple(check_hole((int(m), int(n))) for m, n in header["holes"])
        check_hole(state.settings.hole)
        known = (normalisation.location, normalisation.scale, float(header["offset"]))
        if not np.isfinite(known).all() or not normalisation.scale > 0 or not holes:
            raise ValueError("no scale, no offset or no holes")
        student, linear, correction, choice = (  # older files: none
            header.get(name) for name in ("student", "linear", "correction", "choice")
        )
        return cls(
            state, normalisation, holes, float(header["offset"]),
            dict(header["noise"]), dict(header["provenance"]),
            tuple(float(w) for w in header.get("weights", ())),  # older files: equal
            None if student is None else Student.from_dict(student, groups.get("student", {})),
            None if linear is None
            else LinearPrediction.from_dict(linear, groups["linear"]["weights"]),
            int(header.get("views", 1)),  # older files: one
            None if correction is None
            else Correction.from_dict(correction, groups["correction"]["weights"]),
            None if choice is None else Choice.from_dict(choice),
        )  # fmt: skip


def require_unfinished(state: TrainedState) -> None:
    """Check that a training can go on from a state.

    Raises
    ------
    ShineError
        Where it holds weights only.
    """
    shapes = {k: v.shape for k, v in state.best.items()}
    whole = all(
        {k: v.shape for k, v in kept.items()} == shapes for kept in (state.current, state.average)
    )
    named = {name.rpartition("/")[0] for name in state.optimiser}
    begun = state.step > 0  # an optimiser that made no step remembers nothing
    if not whole or (begun and not named) or not named <= set(shapes):
        raise ShineError(
            "holds no training that could go on, only weights: use it with --model, or train anew."
        )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def input_hash(movie: Movie) -> str:
    """Return a BLAKE2b hash of shape, type and pixels; past 1 GB, of evenly spread frames."""
    digest = hashlib.blake2b(f"{movie.shape} {movie.dtype.str}".encode(), digest_size=16)
    frame_bytes = movie.shape[1] * movie.shape[2] * movie.dtype.itemsize
    most = max(3, int(_HASH_BYTES // frame_bytes))
    n = len(movie)
    picked = range(n) if n <= most else np.unique(np.linspace(0, n - 1, min(most, 32)).astype(int))
    for t in picked:
        digest.update(np.ascontiguousarray(movie.frame(int(t))).data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("shine-em", "torch", "numpy", "scipy")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version(), "system": platform.platform(terse=True)}
