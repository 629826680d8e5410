"""The main job on files: ``movie.dm4`` → ``movie_denoised.tif`` and ``movie_report.html``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from .checkpoint import Model, input_hash, versions
from .drafts import is_taken, refuse_existing
from .errors import ShineError
from .events import Event
from .io import describe, open_writer, read
from .io.writing import keep_source
from .job import Interrupted, Result, history, run
from .movie import Movie
from .planning import Options
from .report import ReportData, write_report
from .report_uncertainty import uncertainty_picture
from .uncertainty import error_history
from .warm_start import BEGINNING, ORIGIN

__all__ = ["FileResult", "Outputs", "denoise_file", "make_folder", "report_data"]


@dataclass(frozen=True)
class Outputs:
    """Where the results go; None for "not wanted"."""

    movie: Path
    report: Path | None
    model: Path | None = None
    video: Path | None = None
    uncertainty: Path | None = None

    @classmethod
    def beside(
        cls,
        source: Path,
        *,
        output: Path | None = None,
        report: bool = True,
        model: bool = False,
        video: bool = False,
        uncertainty: bool = False,
    ) -> Outputs:
        """Name the outputs after the input, beside it or where ``output`` says.

        ``output`` is a folder (existing, or a name without a suffix) or the movie's name, as that
        of a zarr store always is.
        """
        stem = source.name if _is_folder(source) else source.stem
        folder, name = source.parent, f"{stem}_denoised.tif"
        if output is not None:
            if _is_folder(output) or not output.suffix:
                folder = output
            else:
                folder, name = output.parent, output.name
                stem = output.stem.removesuffix("_denoised")
        return cls(
            folder / name,
            folder / f"{stem}_report.html" if report else None,
            folder / f"{stem}_model.safetensors" if model else None,
            folder / f"{stem}_side_by_side.mp4" if video else None,
            folder / f"{stem}_uncertainty{Path(name).suffix}" if uncertainty else None,
        )

    def all(self) -> list[Path]:
        """Return the wanted paths."""
        wanted = (self.movie, self.uncertainty, self.report, self.model, self.video)
        return [p for p in wanted if p is not None]

    def refuse_existing(self) -> None:
        """Raise `ShineError` where a result would replace a file."""
        refuse_existing(*self.all())


@dataclass(frozen=True)
class FileResult:
    """What was done, and where it lies."""

    result: Result
    outputs: Outputs
    clipped: int


def denoise_file(
    movie: Movie,
    outputs: Outputs,
    *,
    options: Options,
    model: Model | None = None,
    resume: Model | None = None,
    dtype: Literal["float32", "same"] = "float32",
    overwrite: bool = False,
    started: float | None = None,
    progress: Callable[[Event], None] | None = None,
) -> FileResult:
    """Denoise a movie frame by frame into a file, and write the report beside it.

    Parameters
    ----------
    movie
        The (lazy) movie, as `shine_em.io.open_movie` gives it.
    outputs
        Where the results go.
    options, model, resume, started, progress
        See `shine_em.job.run`.
    dtype
        Of the written movie: "float32", or "same" as the input's (rounded and clipped).
    overwrite
        Whether existing files may be replaced.

    Raises
    ------
    ShineError
        If a result exists, cannot be written, or the movie cannot be denoised.
    Interrupted
        On Ctrl-C once training has begun, with the model so far.
    """
    if not overwrite:
        outputs.refuse_existing()
    keep_source(movie, outputs.all())
    began = datetime.now(UTC)
    # The history is written first, before it is known how many steps will fit.
    like = replace(movie, history=(*movie.history, _planned(options, model, resume)))
    pixels = float(np.prod(movie.shape, dtype=float))
    writing_s = pixels * 4 / 200e6  # bytes, at a slow disk's speed
    if outputs.video is not None:
        writing_s += pixels / 20e6
    with ExitStack() as files:
        writer = files.enter_context(
            open_writer(outputs.movie, like, dtype=dtype, overwrite=overwrite)
        )

        def sink(_t: int, frame: np.ndarray) -> None:
            writer.append(frame)

        error_sink = None
        options = replace(options, uncertainty=outputs.uncertainty is not None)
        if outputs.uncertainty is not None:
            writing_s += pixels * 4 / 200e6
            what = replace(
                movie, history=(*movie.history, error_history(None if options.fine_tune else model))
            )
            errors = files.enter_context(
                open_writer(outputs.uncertainty, what, overwrite=overwrite)
            )

            def error_sink(_t: int, frame: np.ndarray) -> None:
                errors.append(frame)

        result = run(
            movie, sink, options=options, model=model, resume=resume, started=started,
            writing_s=writing_s, progress=progress, error_sink=error_sink,
        )  # fmt: skip
    warnings = result.warnings
    if writer.clipped:
        warnings += (
            f"{writer.clipped} pixel values did not fit {movie.dtype} and were clipped to its "
            "range; --dtype float32 keeps them.",
        )
        result = replace(result, warnings=warnings)
    tell = progress or (lambda _event: None)
    if outputs.model is not None:
        result.model.save(outputs.model, overwrite=overwrite)
    if outputs.report is not None:
        tell(Event("writing the report", 0, 1))
        trained = model is None or options.fine_tune
        data = report_data(movie, result, outputs, began, trained=trained)
        write_report(outputs.report, data, overwrite=overwrite)
    if outputs.video is not None:
        from .video import write_side_by_side

        tell(Event("writing the video", 0, 1))
        write_side_by_side(outputs.video, movie, read(outputs.movie), overwrite=overwrite)
    return FileResult(result, outputs, writer.clipped)


def make_folder(path: Path) -> None:
    """Make a folder for results, with those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShineError(f"The folder {path} cannot be made ({error.strerror}).") from None


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder to hold files; its name may have dots."""
    return path.is_dir() and path.suffix.lower() != ".zarr"


def _planned(options: Options, model: Model | None, resume: Model | None) -> str:
    if model is not None and not options.fine_tune:
        return history(model)
    preset, steps, seed = options.preset, options.steps, options.seed
    begun = options.fine_tune
    if resume is not None:  # it goes on by its own recipe; holes and best step may still change
        recipe = resume.state.settings
        preset, steps, seed = recipe.preset, recipe.steps, recipe.seed
        begun = ORIGIN in resume.provenance
    how = f"{steps} steps" if steps else "trained on itself"
    if resume is not None:
        how += f", training resumed after step {resume.state.step}"
    if begun:
        how += ", begun from another movie's model"
    elif resume is not None:
        how += ", begun from shipped weights" if BEGINNING in resume.provenance else ""
    elif preset == "lean" and not options.from_scratch:
        how += ", begun from shipped weights where they fit"
    if options.student == "always":
        how += ", a student in one pass where that is as good"
    return f"denoised by shine-em {versions()['shine-em']} ({preset}, {how}, seed {seed})"


def report_data(
    movie: Movie, result: Result, outputs: Outputs, began: datetime, *, trained: bool = True
) -> ReportData:
    """Gather what the report shows; ``trained`` says whether this movie trained the model."""
    state, model = result.model.state, result.model
    provenance = {k: str(v) for k, v in model.provenance.items()}
    if not trained:
        provenance = {
            f"model's {k}" if k.startswith("input") else k: v for k, v in provenance.items()
        } | {"input": str(movie.source or movie.name), "input_hash": input_hash(movie)}
    return ReportData(
        movie=describe(movie),
        noise=result.noise,
        health_findings=result.health.findings,
        observations=result.observations,
        training={}
        if not trained
        else {
            "steps": state.step,
            "seconds": state.seconds,
            "train_loss": state.train_loss,
            "validation_loss": state.validation_loss,
            "best_step": state.best_step,
            "preset": state.settings.preset,
            "frames": state.config.frames,
            "parameters": sum(v.numel() for v in state.best.values()),
            "stopped": state.stopped,
            "batch": state.settings.batch,
            "crop": state.settings.crop,
            "optimiser": state.settings.optimiser,
            "learning_rate": state.settings.learning_rate,
        },
        halves_snr=result.halves,
        warnings=list(result.warnings),
        provenance={
            **provenance,
            "command": " ".join(sys.argv),
            "output": str(outputs.movie),
            "began": began.isoformat(timespec="seconds"),
            "wall time": f"{result.seconds:.1f} s",
        },
        pixel_size_nm=movie.pixel_size_nm,
        frame_time_s=movie.frame_time_s,
        intensity_unit=movie.intensity_unit,
        error=result.error,
        ensemble=result.ensemble,
        denoised_by=result.denoised_by,
        drift=result.drift,
        registered=state.settings.registered,
        uncertainty=None
        if outputs.uncertainty is None
        else uncertainty_picture(read(outputs.movie), read(outputs.uncertainty), result.health),
    )


def save_interrupted(stopped: Interrupted, outputs: Outputs) -> Path:
    """Write an interrupted model beside the outputs.

    Its name is free, and not the one that the trained model is to get.
    """
    stem = outputs.movie.stem.removesuffix("_denoised")
    path = outputs.movie.with_name(f"{stem}_model.safetensors")
    number = 2
    while is_taken(path) or path == outputs.model:
        path = path.with_name(f"{stem}_model_{number}.safetensors")
        number += 1
    return stopped.model.save(path)
