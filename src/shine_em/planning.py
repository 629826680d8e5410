"""What to do with a movie: the options, and the plan that follows from what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .checkpoint import Model
from .compute import pick_device, pick_precision
from .distillation import Schooling
from .doctor import Health, check
from .ensemble import CANDIDATES, Ensemble, candidate_holes
from .error_estimate import noise_variance
from .errors import ShineError
from .events import Event, Listener
from .leakage import correlation_to_remember
from .movie import Movie
from .network import LARGEST_HOLE, Hole, NetworkConfig, check_hole
from .noise import NoiseStatistics, noise_of
from .patches import Normalisation, Timeline
from .registration import Drift, measure_drift
from .training_settings import CARD_BATCH, PRESETS, TrainingSettings

__all__ = [
    "Options",
    "Plan",
    "averaged_holes",
    "holes_to_try",
    "is_weak",
    "parse_duration",
    "parse_hole",
    "prepare",
    "training_holes",
    "window_frames",
]

DEFAULT_BUDGET_S = 240.0
WINDOW, LONG_WINDOW = 5, 9  # frames
_WEAK = 0.1  # power of the picture over that of the noise below which more frames help
_LOOKED_AT = 12  # frames


@dataclass(frozen=True)
class Options:
    """How to denoise. The defaults suit most movies.

    Attributes
    ----------
    preset
        "lean", or "paper" for the published network and recipe.
    time_budget
        Seconds of wall time for the whole job. None: 4 minutes (preset "paper": as long as its
        2000 epochs take).
    steps
        Exact number of training steps, for exact repeats; then ``time_budget`` is not used.
    hole
        Blind spot, rows × columns; None to measure it.
    frames
        Frames in a window, odd (the paper: 5); None to choose by `window_frames`.
    ensemble
        Average over several hole sizes, and correct their mean (`shine_em.correction`).
    seed
        Of everything random.
    device, precision
        "auto", or what PyTorch calls it ("cpu", "cuda", "mps"); "auto", "fp32", "bf16", "fp16".
    tile
        Widest tile at inference, px; None to choose.
    student
        Let a student, distilled from the trained ensemble, denoise in one fast pass: "auto" where
        the time budget has no room for the ensemble, "always", or "never". It is used only where
        its estimated error is no larger than that of what it stands in for.
    fine_tune
        Train the model that is given further on this movie, instead of using it as it is; where
        neither ``time_budget`` nor ``steps`` is given, for a fifth of the usual training time.
    from_scratch
        Begin training with random weights, instead of those that shine-em brings along.
    uncertainty
        Whether the standard error of every pixel is wanted, for which time must be kept.
    register
        Displace the neighbours in a window by the scene's drift: "auto" where that brings them
        closer to each other, "always", or "never".
    """

    preset: str = "lean"
    time_budget: float | None = None
    steps: int | None = None
    hole: Hole | None = None
    frames: int | None = None
    ensemble: bool = True
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    register: str = "auto"
    student: str = "auto"
    fine_tune: bool = False
    from_scratch: bool = False
    uncertainty: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ShineError(f"Unknown preset {self.preset!r}: choose {' or '.join(PRESETS)}.")
        if self.time_budget is not None and not 0 < self.time_budget < np.inf:
            raise ShineError("The time budget must be positive, as in 5min or 90s.")
        for name in ("steps", "frames", "seed", "tile"):
            value = getattr(self, name)
            left_open = value is None and name != "seed"
            if not left_open and not isinstance(value, (int, np.integer)):
                raise ShineError(f"{name} must be a whole number, not {value!r}.")
        if self.steps is not None and self.steps < 1:
            raise ShineError(f"The number of steps must be at least 1, not {self.steps}.")
        if self.frames is not None and (self.frames < 1 or self.frames % 2 == 0):
            raise ShineError(f"The number of frames in a window must be odd, not {self.frames}.")
        if not 0 <= self.seed < 2**63:
            raise ShineError(f"The seed must be a whole number from 0, not {self.seed}.")
        if self.hole is not None:
            if not isinstance(self.hole, Sequence) or not all(
                isinstance(n, (int, np.integer)) for n in self.hole
            ):
                raise ShineError(f"hole must be rows and columns, as (3, 3), not {self.hole!r}.")
            check_hole(self.hole)
        if self.register not in ("auto", "always", "never"):
            raise ShineError(f"register must be auto, always or never, not {self.register!r}.")
        if self.student not in ("auto", "always", "never"):
            raise ShineError(f"student must be auto, always or never, not {self.student!r}.")
        if self.from_scratch and self.fine_tune:
            raise ShineError(
                "Fine-tuning begins with a model's weights, --from-scratch with random ones: leave "
                "out one of the two."
            )
        if self.student == "always" and not (self.ensemble and self.preset == "lean"):
            raise ShineError(
                "A student repeats the lean network's ensemble: leave out --student, or --preset "
                "paper and --no-ensemble."
            )

    @property
    def seconds(self) -> float | None:
        """The time budget that applies."""
        if self.steps is not None:
            return None
        if self.time_budget is None and self.preset == "lean":
            return DEFAULT_BUDGET_S
        return self.time_budget


@dataclass(frozen=True)
class Plan:
    """What was measured of a movie, and what is to be done with it.

    Of ``candidates`` at most ``most_holes`` will be chosen by measured error, once the network is
    trained, and the linear prediction beside them if ``with_filter``; ``ensemble`` says which.
    ``holes`` are those to average over as long as nothing was measured, or where nothing is to be
    chosen; several are run in ``views`` mirrored views. A chosen ensemble is corrected if
    ``correct``, unless that does gross harm. ``schooling`` says how a student is to be made,
    ``no_student`` why none is. ``weak`` is what `is_weak` says of the picture.
    """

    health: Health
    noise: NoiseStatistics
    config: NetworkConfig
    settings: TrainingSettings
    holes: tuple[Hole, ...]
    warnings: tuple[str, ...] = ()
    drift: Drift | None = None  # None where it was not measured
    candidates: tuple[Hole, ...] = ()
    most_holes: int = CANDIDATES
    views: int = 1
    with_filter: bool = True
    ensemble: Ensemble | None = None
    correct: bool = True
    schooling: Schooling | None = None
    no_student: str = ""
    weak: bool = False


def parse_duration(text: str | float) -> float:
    """Return seconds from "90s", "5min", "1h30m" or a number of seconds.

    Raises
    ------
    ShineError
        If the text is no duration.

    Examples
    --------
    >>> parse_duration("1h30m")
    5400.0
    """
    if isinstance(text, (int, float)):
        return float(text)
    factors = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
    plain = text.strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|min|m|s|)", plain)
    if not parts or "".join(a + b for a, b in parts) != plain:
        raise ShineError(f"{text!r} is not a duration. Write it like 90s, 5min or 1h30m.")
    return sum(float(number) * factors[unit] for number, unit in parts)


def parse_hole(text: str) -> Hole:
    """Return (rows, columns) from "3x5", or from "3" for a square.

    Raises
    ------
    ShineError
        If the text is no odd × odd hole.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(p.strip().isdecimal() for p in parts):
        raise ShineError(f"The hole {text!r}: write rows x columns, both odd, as in 3x3 or 1x5.")
    return check_hole((int(parts[0]), int(parts[1])))


def prepare(
    movie: Movie,
    options: Options,
    *,
    model: Model | None = None,
    progress: Listener | None = None,
) -> Plan:
    """Check the movie, measure its noise and choose network, holes and recipe.

    Parameters
    ----------
    movie, options
        The movie and how to denoise it.
    model
        A model whose choices are to be taken over instead.
    progress
        Called with an `Event` as the job goes on.
    """
    tell = progress or (lambda _event: None)
    tell(Event("checking the movie", 0, 1))
    health = check(movie)
    tell(Event("measuring the noise", 0, 1))
    noise = noise_of(movie, health)
    weak = is_weak(movie, health, noise)
    warnings = [f"{f.what} {f.meaning}" for f in health.findings if f.severity != "info"]
    warnings += list(noise.warnings)
    if model is not None:
        holes = model.holes if options.ensemble else (model.hole,)
        settings, config = model.state.settings, model.config
        if settings.steps is None:  # interrupted before its speed was known
            settings = replace(settings, steps=options.steps)
    else:
        rows, columns = options.hole or noise.hole
        hole = min(rows, LARGEST_HOLE), min(columns, LARGEST_HOLE)
        if any(a < b for a, b in zip(hole, noise.hole, strict=True)):
            warnings.append(
                f"The blind spot {hole[0]}x{hole[1]} is smaller than the noise correlation asks "
                f"for ({noise.hole[0]}x{noise.hole[1]}): noise may survive as structure."
            )
        frames = options.frames or window_frames(movie, health, weak=weak, preset=options.preset)
        config, lags = _network(options.preset, frames if len(movie) > 1 else 1, noise, hole)
        if noise.blinded_lags and config.kind == "paper":
            warnings.append(
                "The noise is correlated in time, and the published network sees its neighbour "
                "frames whole: it may copy their noise. The lean preset blinds them."
            )
        holes = averaged_holes(hole) if options.ensemble else (hole,)
        settings = replace(
            PRESETS[options.preset], steps=options.steps, holes=training_holes(hole), hole=hole,
            seed=options.seed, blinded_lags=lags,
            correlation=correlation_to_remember(
                noise.difference_correlation, noise.correlation_error
            ),
        )  # fmt: skip
        if options.preset == "paper":
            holes = (hole,)
            # The published recipe has one hole and trusts it.
            settings = replace(settings, holes=holes, correlation=())
            if options.seconds is not None:
                settings = replace(settings, batch=4, crop=128)
        elif _on_card(options):
            settings = replace(settings, batch=CARD_BATCH)
        smallest = min(movie.shape[1:])
        if smallest < settings.crop:
            settings = replace(settings, crop=smallest)
    drift = None
    if _may_register(options, config, model):
        tell(Event("measuring the drift", 0, 1))
        drift = measure_drift(movie, health=health, noise=noise)
        registered = settings.registered if model else drift.helps or options.register == "always"
        settings = replace(settings, registered=registered)
        if registered:
            health = replace(health, path=drift.path)
    candidates = () if model else holes_to_try(options, settings)
    return Plan(
        health, noise, config, settings, holes, tuple(warnings), drift, candidates,
        no_student=_no_student(options, config, noise), weak=weak,
    )  # fmt: skip


def _no_student(options: Options, config: NetworkConfig, noise: NoiseStatistics) -> str:
    """Return why no student may be made or used, whatever the time allows; empty if one may."""
    if options.student == "never":
        return "none was wanted"
    if config.kind == "paper" or not options.ensemble:
        return "it repeats the lean network's ensemble only"
    if not noise.sigma > 0:
        return "no noise could be measured to judge it by"
    return ""


def _may_register(options: Options, config: NetworkConfig, model: Model | None) -> bool:
    """Return whether neighbours might be displaced by the drift; a model does as it learned."""
    if model is not None:
        return model.state.settings.registered
    if not config.open_slots or options.register == "never":
        return False
    return config.kind == "lean" or options.register == "always"  # the published recipe does not


def _on_card(options: Options) -> bool:
    """Return whether training steps are recorded on a CUDA card: float16's cannot be."""
    device = pick_device(options.device)
    return device.type == "cuda" and pick_precision(device, options.precision) != "fp16"


def training_holes(hole: Hole) -> tuple[Hole, ...]:
    """Return the holes to draw from in training: the measured one and the three next larger.

    What is learned through several holes depends less on the pixels at the rim of any of them,
    where a little of the noise is still correlated with the hidden pixel's. On simulated Au growth,
    four holes instead of two bring 0.2 dB, and 1.4 dB by the authors' min-max protocol.

    Where the noise is correlated along one axis only, the holes grow along that axis first and
    across every second time: 1x5, 1x7, 3x7, 3x9. Across, the rim is white, and a wider hole hides
    pixels for nothing. On simulated STEM (128 px, 200 steps, two seeds) this came 0.2 and 0.1 dB
    closer to the truth than growing along both, little more than the seeds are apart; growing
    across only once (1x5, 1x7, 1x9, 3x7) came 0.25 dB further and 0.1 dB closer.
    """
    across, along = (0, 2, 4, 6), (0, 2, 4, 6)
    if (hole[0] > 1) != (hole[1] > 1):
        across, along = (0, 0, 2, 2), (0, 2, 2, 4)
    rows, columns = (along, across) if hole[0] > hole[1] else (across, along)
    wider = ((hole[0] + m, hole[1] + n) for m, n in zip(rows, columns, strict=True))
    return tuple(h for h in wider if max(h) <= LARGEST_HOLE)


def holes_to_try(options: Options, settings: TrainingSettings) -> tuple[Hole, ...]:
    """Return the holes to choose from after training; none without an ensemble."""
    if not options.ensemble or settings.preset == "paper":
        return ()  # the published recipe has one
    return candidate_holes(settings.hole)


def averaged_holes(hole: Hole) -> tuple[Hole, ...]:
    """Return the holes to average over where nothing can be measured: the next smaller one as well.

    The network is never trained with the smaller one, so that it has not learned to copy what
    noise it lets through; it restores what the larger one blurs (S. Chen et al., "Exploring
    asymmetric tunable blind-spots", CVPR 2024). On simulated Au growth the mean is 0.6 dB closer
    to the truth than the measured hole alone. For white noise there is none smaller, and the next
    larger takes its place.
    """
    smaller = (max(1, hole[0] - 2), max(1, hole[1] - 2))
    return (hole, smaller) if smaller != hole else training_holes(hole)[:2]


def is_weak(movie: Movie, health: Health, noise: NoiseStatistics) -> bool:
    """Return whether the picture has less than a tenth of the noise's power."""
    targets = Timeline(len(movie), health).targets()
    if not targets or not noise.sigma > 0:
        return False
    normalisation, bad = Normalisation.of(health), np.asarray(health.bad_pixels, bool)
    picked = np.linspace(0, len(targets) - 1, _LOOKED_AT).round().astype(int)
    whole = disturbed = 0.0
    for raw in (movie.frame(targets[i]) for i in picked):
        good = raw[normalisation.trusted(raw, bad)].astype(np.float64)
        if len(good):
            whole += float(good.var())
            disturbed += float(noise_variance(noise, good.mean(), floor=False))
    return whole - disturbed < _WEAK * disturbed


def window_frames(movie: Movie, health: Health, *, weak: bool, preset: str = "lean") -> int:
    """Return how many frames the network is to see at a time.

    Five, as in the paper; nine where the picture is weak and the scenes are long enough. So weak a
    picture is found by averaging over more frames or not at all: on simulated Au growth at
    1 e⁻/Å² this comes 1.0 dB closer to the truth in the same time, 0.1 dB where the particles move
    fast. A clear picture gains nothing from frames so far away, and a lattice that drifts loses
    0.4 dB (docs/benchmarks.md).

    Parameters
    ----------
    movie, health
        The movie and its input check.
    weak
        What `is_weak` says.
    preset
        The published network has five.
    """
    targets = Timeline(len(movie), health).targets()
    scenes = np.asarray(health.segment)[targets]
    length = np.median(np.bincount(scenes)[scenes]) if targets else 0  # of the usual frame's scene
    return LONG_WINDOW if weak and preset != "paper" and length >= 3 * LONG_WINDOW else WINDOW


def _network(
    kind: str, frames: int, noise: NoiseStatistics, hole: Hole
) -> tuple[NetworkConfig, tuple[int, ...]]:
    """Return the network's layout, and the lags at which neighbours are blinded."""
    radius = max(hole) // 2
    lags = tuple(noise.blinded_lags)
    channels = NetworkConfig.channels if kind == "lean" else 64
    if not lags or kind == "paper" or frames == 1:
        half = frames // 2
        slots = tuple(i for i in range(frames) if i != half)
        return NetworkConfig(kind, frames, slots, channels, radius), ()
    reach = max(lags)
    if noise.fixed_pattern or reach >= 3:
        # Nothing near in time is independent: all neighbours are blinded.
        return NetworkConfig(kind, frames, (), channels, radius), tuple(range(1, frames // 2 + 1))
    # Beyond the correlated lags stand as many open neighbours as asked for.
    frames += 2 * reach
    half = frames // 2
    slots = tuple(i for i in range(frames) if abs(i - half) > reach)
    return NetworkConfig(kind, frames, slots, channels, radius), tuple(range(1, reach + 1))
