"""What the report says of the estimated error, and of the holes that were chosen by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ensemble import Ensemble
    from .error_matrix import ErrorEstimate

__all__ = ["error_sentences", "error_tile", "hole_text"]


def error_sentences(error: ErrorEstimate | None, ensemble: Ensemble | None) -> list[str]:
    """Return sentences for the methods paragraph; none for what was not measured."""
    text = []
    if ensemble is not None:
        alone = ", ".join(
            f"{hole_text(h)}: {_rms(e)}"
            for h, e in zip(ensemble.candidates, ensemble.errors, strict=True)
        )
        text.append(
            "Holes and weights are those with the least estimated error (root mean square of each "
            f"hole alone, in the movie's units: {alone})."
        )
        if ensemble.share and ensemble.linear_error is not None:
            text.append(
                f"{100 * ensemble.share:.0f} % of the result is the best linear blind prediction, "
                "a filter measured on the movie that needs no training (alone: "
                f"{_rms(ensemble.linear_error)})"
                + ("." if ensemble.share == 1 else "; the rest is the network's.")
            )
        if ensemble.corrected_from is not None:
            text.append(
                "Their mean was then corrected by the residual and by its own detail, with weights "
                "that best restore the denoised movie after noise is added to it and it is "
                "denoised once more."
            )
    if error is not None:
        text.append(
            "The root-mean-square error of the denoised frames, estimated without a reference "
            "(Stein's unbiased risk estimate with a probe of the measured noise correlation) in "
            f"{len(error.frames)} frames, is {_rms(error)} in the movie's units."
        )
    return text


def error_tile(error: ErrorEstimate) -> tuple[str, str, str]:
    """Return label, value and small print of the key number."""
    share = math.sqrt(max(error.mse, 0.0) / error.noise_variance)
    return (
        "Estimated error",
        _rms(error),
        f"root mean square per pixel, {share:.2f} of the noise's; from the movie alone",
    )


def hole_text(hole: Any) -> str:
    """Return "3 × 5" for (3, 5)."""
    if isinstance(hole, Sequence) and not isinstance(hole, str):
        return " × ".join(str(int(n)) for n in hole)
    return str(hole)


def _rms(error: ErrorEstimate) -> str:
    """Return the root mean square error with its uncertainty."""
    if error.mse <= 2 * error.uncertainty:
        return f"below {math.sqrt(max(error.mse, 0.0) + 2 * error.uncertainty):.2g}"
    root = math.sqrt(error.mse)
    uncertain = error.uncertainty / (2 * root)
    decimals = max(0, 1 - math.floor(math.log10(uncertain)))
    if decimals > 6:
        return f"{root:.3g} ± {uncertain:.2g}"
    return f"{root:.{decimals}f} ± {uncertain:.{decimals}f}"
