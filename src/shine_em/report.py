"""The report of a denoising: one HTML file that holds everything and needs no network."""

from __future__ import annotations

import base64
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .doctor import Finding
from .errors import ShineError
from .noise import NoiseStatistics
from .observing import Observations
from .registration import Drift
from .report_error import error_sentences, error_tile, hole_text
from .report_uncertainty import UncertaintyPicture, uncertainty_figure, uncertainty_text
from .residual import ResidualTest, with_error
from .viewing import block_means, percentile_range, scale_bar, shared_contrast

if TYPE_CHECKING:
    from .ensemble import Ensemble
    from .error_matrix import ErrorEstimate

__all__ = ["ReportData", "methods_text", "write_report"]

PICTURES_MB = 18.0  # of encoded frames in the page; larger pictures are shown smaller
PAPER = (
    "J. Kim et al., Self-supervised machine learning framework for high-throughput electron "
    "microscopy, Science Advances (2025), doi:10.1126/sciadv.ads5552"
)


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a report shows.

    Attributes
    ----------
    movie
        Description of the movie, label → value, shown as a table; "name" is the title.
    noise
        The measured noise statistics.
    observations
        What the `Observer` saw while the frames streamed by.
    training
        ``steps``, ``seconds``, ``train_loss`` and ``validation_loss`` (lists of (step, loss)),
        ``best_step``, ``preset``, ``frames`` (in a window),
        ``parameters``, ``stopped`` (why training stopped). All but the lists may be missing; an
        empty dict means that a trained model was applied.
    health_findings
        What the input doctor found.
    halves_snr
        ``frames``, ``raw`` and ``denoised`` (dB): SNR from two halves of the movie that were
        denoised without sharing a frame; None if it was not measured.
    error, ensemble
        The estimated error of the denoised movie, and how its holes were chosen; None where they
        were not measured.
    warnings
        More that the user should know, in plain sentences.
    provenance
        Versions, seed, command, input hash, times: label → value.
    pixel_size_nm, frame_time_s, intensity_unit
        Calibration; None where it is not known.
    denoised_by
        A sentence: whether the ensemble or a student distilled from it denoised, and why.
    drift, registered
        How the scene drifts, None where that was not measured; and whether neighbouring frames
        were displaced by it.
    uncertainty
        A frame with its uncertainty map, where one was asked for.
    """

    movie: Mapping[str, str]
    noise: NoiseStatistics
    observations: Observations
    training: Mapping[str, Any] = field(default_factory=dict)
    health_findings: Sequence[Finding] = ()
    halves_snr: Mapping[str, Sequence[float]] | None = None
    warnings: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    pixel_size_nm: float | None = None
    frame_time_s: float | None = None
    intensity_unit: str | None = None
    error: ErrorEstimate | None = None
    ensemble: Ensemble | None = None
    denoised_by: str = ""
    drift: Drift | None = None
    registered: bool = False
    uncertainty: UncertaintyPicture | None = None


def write_report(path: str | Path, report: ReportData, *, overwrite: bool = False) -> Path:
    """Write the report as one self-contained HTML file (below 25 MB).

    Parameters
    ----------
    path
        The file to write; it appears only when it is complete.
    report
        What to show.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ShineError
        If the file exists already, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise ShineError(f"{target} exists already: choose another name or allow overwriting.")
    page = _page(report)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(page)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ShineError(f"{target}: the report cannot be written ({error.strerror}).") from None
    return target


def methods_text(report: ReportData, *, result: ResidualTest | None = None) -> str:
    """Return a methods paragraph for a paper, filled with this run's numbers.

    Parameters
    ----------
    report
        What is known of the run.
    result
        The residual test's result, where it is at hand; by default it is computed.
    """
    seen, noise, training = report.observations, report.noise, report.training
    n, height, width = seen.shape
    calibration = [
        f"{value:.4g} {unit}"
        for value, unit in (
            (report.pixel_size_nm, "nm per pixel"),
            (report.frame_time_s, "s per frame"),
        )
        if value is not None
    ]
    version = report.provenance.get("shine-em")
    text = [
        f"The movie ({n} frames of {height} × {width} pixels"
        + "".join(f", {c}" for c in calibration)
        + ") was denoised with shine-em"
        + (f" {version}" if version else "")
        + f", a self-supervised blind-spot network, {_taught_by(report)}, after SHINE ({PAPER}).",
    ]
    reach = noise.difference_correlation.shape[0] // 2
    correlation = "could not be measured in frames this small"
    if reach:
        along_x, along_y = noise.difference_correlation[[reach, reach + 1], [reach + 1, reach]]
        correlation = f"is {along_x:.3f} along x and {along_y:.3f} along y"
    where = "from differences of frames" if n > 1 else "in the one frame there is"
    text.append(
        f"The noise (standard deviation {noise.sigma:.3g} in the movie's units) was measured "
        f"{where}; its correlation with the next pixel {correlation}, for which a blind spot of "
        f"{noise.hole[0]} × {noise.hole[1]} pixels (rows × columns) was recommended."
    )
    if training:
        text.append(_training_sentence(training))
    if report.registered and report.drift:
        text.append(
            f"{report.drift.reason} Neighbouring frames were displaced by it, in whole pixels."
        )
    if report.denoised_by:
        text.append(report.denoised_by)
    result = result or _residual_test(report)
    if result is not None and math.isfinite(result.leftover):
        how = "a denoised frame further away in time" if result.apart else "the denoised frame"
        text.append(
            f"Regressed on {how}, the residual (raw − denoised) of {result.frames} frames "
            f"contained {_contrast(result)} of the picture's contrast "
            f"({_power(result)} of its power)."
        )
    text += error_sentences(report.error, report.ensemble)
    if report.halves_snr:
        raw, denoised = (_median(report.halves_snr[k]) for k in ("raw", "denoised"))
        text.append(
            "The signal-to-noise ratio, from the correlation of two halves of the movie denoised "
            f"without sharing a frame, rose from {_db(raw)} to {_db(denoised)} (median of "
            f"{len(report.halves_snr['frames'])} frames)."
        )
    return " ".join(text)


def _taught_by(report: ReportData) -> str:
    other = report.provenance.get("model's input")
    if other and report.provenance["model's input_hash"] != report.provenance["input_hash"]:
        return f"trained on another noisy movie ({Path(other).name})"
    origin = report.provenance.get("fine-tuned from")
    if origin:
        return f"fine-tuned from {origin}"
    begun = report.provenance.get("training began from")
    return "trained on the noisy movie alone" + (f", beginning from {begun}" if begun else "")


def _training_sentence(training: Mapping[str, Any]) -> str:
    words = "The network"
    if training.get("parameters"):
        words += f" ({int(training['parameters']):,} parameters)"
    if training.get("frames"):
        words += f", which sees {int(training['frames'])} frames at a time,"
    words += " was trained"
    if training.get("steps") is not None:
        words += f" for {int(training['steps']):,} steps"
    if training.get("seconds") is not None:
        words += f" in {_duration(float(training['seconds']))}"
    if training.get("preset"):
        words += f" (preset “{training['preset']}”)"
    if training.get("best_step"):
        words += (
            f"; the weights of step {int(training['best_step']):,}, with the lowest validation "
            "loss on held-out pixels, were used"
        )
    return words + "."


def _page(report: ReportData) -> str:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from . import report_figures as figures

    seen, noise = report.observations, report.noise
    result = _residual_test(report)
    kind, verdict = _verdict(report, result)
    here = files("shine_em")
    # Autoescape stays on: names of movies and their metadata come from anywhere. Only what this
    # package itself has drawn or written is marked as safe.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    plots: dict[str, str | None] = {
        "raw_map": figures.noise_map(
            noise.raw_correlation,
            name="rawmap",
            label="Correlation of a raw frame",
            hole=noise.hole,
        ),
        "difference_map": figures.noise_map(
            noise.difference_correlation,
            name="noisemap",
            label="Noise correlation",
            hole=noise.hole,
        ),
        "temporal": figures.temporal_correlation(noise),
        "variance": figures.mean_variance(noise),
        "loss": figures.loss_curve(report.training) if report.training.get("train_loss") else None,
        "snr": None if np.isnan(seen.snr_raw).all() else figures.snr_curve(seen, report.halves_snr),
        "means": figures.frame_means(seen),
        "histogram": figures.histogram(seen, unit=report.intensity_unit or ""),
        "drift": figures.drift_curve(report.drift)
        if report.drift is not None and report.drift.path.any()
        else None,
        "residual_map": None,
        "profile": None,
    }
    if seen.residual is not None and seen.residual.frames:
        own = seen.residual.autocorrelation
        plots["residual_map"] = figures.noise_map(
            own, name="residualmap", label="Autocorrelation of the residual"
        )
        plots["profile"] = figures.residual_profile(own, noise.difference_correlation)
    nyquist = 0.5 / report.pixel_size_nm if report.pixel_size_nm else 0.5
    return environment.from_string(here.joinpath("report.html.jinja").read_text("utf-8")).render(
        css=Markup(here.joinpath("report.css").read_text("utf-8")),
        js=Markup(here.joinpath("report.js").read_text("utf-8")),
        title=report.movie.get("name", "movie"),
        kind=kind,
        verdict=verdict,
        warnings=_warnings(report, result),
        tiles=_tiles(report, result),
        player=_player(report),
        plots={name: Markup(svg) if svg else None for name, svg in plots.items()},
        spectra=_spectra(report),
        spectrum_frame=seen.spectrum.frame,
        nyquist=f"{nyquist:.3g} {'1/nm' if report.pixel_size_nm else '1/px'}",
        residual=result,
        frames=seen.shape[0],
        noise=noise,
        findings=report.health_findings,
        movie=report.movie,
        methods=methods_text(report, result=result),
        paper=PAPER,
        provenance=report.provenance,
        training=report.training,
        halves=report.halves_snr,
        drift=report.drift,
        registered=report.registered,
        uncertainty=(off := report.uncertainty)
        and (Markup(uncertainty_figure(off)), uncertainty_text(off)),
    )


def _residual_test(report: ReportData) -> ResidualTest | None:
    spectra = report.observations.residual
    return None if spectra is None else spectra.test(report.noise.difference_correlation)


def _verdict(report: ReportData, result: ResidualTest | None) -> tuple[str, str]:
    """Return "good", "caution" or "bad", and the line at the top of the page."""
    if any(f.severity == "error" for f in report.health_findings):
        return "bad", "The movie has problems that denoising cannot mend. Read them first."
    if result is not None and result.outcome in ("structure", "exaggerated"):
        return "bad", "Look twice: the residual is not only noise."
    cautions = len(_warnings(report, result))
    if cautions:
        return "caution", "Usable with care: " + (
            "there is a warning." if cautions == 1 else f"there are {cautions} warnings."
        )
    return "good", "Nothing speaks against this result: what was removed looks like noise."


def _warnings(report: ReportData, result: ResidualTest | None) -> list[str]:
    """Return every warning once, the gravest first."""
    found = [
        f"{f.what} {f.meaning}"
        for level in ("error", "warning")
        for f in report.health_findings
        if f.severity == level
    ]
    if result is None:
        found.append("The frames are too small to test the residual for leftover picture.")
    elif result.outcome != "clear":
        found.append(result.verdict)
    return list(dict.fromkeys([*found, *report.noise.warnings, *report.warnings]))


def _tiles(report: ReportData, result: ResidualTest | None) -> list[tuple[str, str, str]]:
    """Return the key numbers: label, value, small print."""
    noise, training = report.noise, report.training
    tiles = [
        (
            "Blind spot",
            hole_text(noise.hole) + " px",
            f"recommended from the noise, confidence {noise.confidence}",
        ),
        ("Noise σ", f"{noise.sigma:.3g}", "per pixel, in the movie's units"),
    ]
    if result is not None and math.isfinite(result.leftover):
        tiles.append(
            (
                "Picture in the residual",
                _power(result),
                f"of its power ({_contrast(result)} of its contrast); 0 is right",
            )
        )
    if report.error is not None:
        tiles.append(error_tile(report.error))
    if report.halves_snr:
        raw, denoised = (_median(report.halves_snr[k]) for k in ("raw", "denoised"))
        tiles.append(
            (
                "SNR, two halves",
                f"{_db(raw)} → {_db(denoised)}".replace(" dB →", " →"),
                "raw → denoised",
            )
        )
    if training.get("seconds") is not None:
        steps = f"{int(training['steps']):,} steps" if training.get("steps") is not None else ""
        stopped = str(training.get("stopped") or "")
        small = "; ".join(s for s in (steps, stopped) if s)
        tiles.append(("Training", _duration(float(training["seconds"])), small))
    return tiles


def _player(report: ReportData) -> dict[str, Any]:
    """Return what the page's player needs, as plain JSON values."""
    from . import report_figures as figures

    seen = report.observations
    stored = {
        "raw": percentile_range(seen.sample_raw, 0.05),
        "denoised": percentile_range(seen.sample_denoised, 0.05),
    }
    own = {
        "raw": percentile_range(seen.sample_raw, 0.5),
        "denoised": percentile_range(seen.sample_denoised, 0.2),
    }
    stacks = {"raw": seen.raw, "denoised": seen.denoised}
    middle = sum(len(_data_url(figures.png(v[len(v) // 2], *stored[k]))) for k, v in stacks.items())
    shrink = max(1, math.ceil(math.sqrt(middle * len(seen.kept) / 1e6 / PICTURES_MB)))
    while True:
        pictures = {k: [block_means(image, shrink) for image in v] for k, v in stacks.items()}
        urls = {
            kind: [_data_url(figures.png(image, *stored[kind])) for image in images]
            for kind, images in pictures.items()
        }
        # One frame is a quick guess, not a bound: blank frames are small files, noisy ones large.
        total = sum(len(url) for kind in urls.values() for url in kind) / 1e6
        if total <= PICTURES_MB:
            break
        shrink = max(shrink + 1, math.ceil(shrink * math.sqrt(total / PICTURES_MB)))
    height, width = pictures["raw"][0].shape
    pixel = seen.shrink * shrink
    bar = scale_bar(width * pixel, report.pixel_size_nm)
    return {
        "frames": [
            {"index": int(t), "raw": a, "denoised": b}
            for t, a, b in zip(seen.kept, urls["raw"], urls["denoised"], strict=True)
        ],
        "total": seen.shape[0],
        "width": width,
        "height": height,
        "stored": stored,
        "own": own,
        "shared": shared_contrast(seen.sample_raw, seen.sample_denoised),
        "sigma": seen.residual_sigma or 1.0,
        "bar": {"share": bar.length_px / (width * pixel), "label": bar.label},
        "seconds": report.frame_time_s,
    }


def _spectra(report: ReportData) -> list[tuple[str, str]]:
    """Return title and PNG of the three power spectra, in one contrast."""
    from . import report_figures as figures

    spectrum = report.observations.spectrum
    low = float(np.percentile(spectrum.residual, 1))
    high = float(np.percentile(spectrum.raw, 99.97))
    low = min(low, high - 0.1)
    return [
        (title, _data_url(figures.spectrum_png(power, low, high)))
        for title, power in (
            ("Raw", spectrum.raw),
            ("Denoised", spectrum.denoised),
            ("Residual", spectrum.residual),
        )
    ]


def _data_url(encoded: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded).decode("ascii")


def _contrast(result: ResidualTest) -> str:
    return with_error(*result.contrast)


def _power(result: ResidualTest) -> str:
    return with_error(result.power, result.power_error)


def _median(values: Sequence[float]) -> float:
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(np.median(array)) if array.size else float("nan")


def _db(value: float) -> str:
    if value == math.inf:
        return "∞ dB"
    return f"{value:.1f} dB".replace("-", "−") if math.isfinite(value) else "no signal"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
