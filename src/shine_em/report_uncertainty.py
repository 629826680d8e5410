"""What the report shows of the uncertainty map: one frame of it, beside the denoised frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .doctor import Health
from .movie import Movie
from .uncertainty import WITHIN_68, WITHIN_95
from .viewing import fitted_into, percentile_range

__all__ = ["UncertaintyPicture", "uncertainty_figure", "uncertainty_picture", "uncertainty_text"]

_SIDE = 512  # px: larger pictures are averaged down


@dataclass(frozen=True, eq=False)
class UncertaintyPicture:
    """A frame with its uncertainty map.

    Attributes
    ----------
    frame
        Its number, from 0.
    denoised, error
        ``(y, x)`` the denoised frame and its standard error, in the movie's units.
    unit
        Of the intensity; empty where it is not known.
    """

    frame: int
    denoised: np.ndarray
    error: np.ndarray
    unit: str = ""


def uncertainty_picture(
    denoised: Movie, errors: Movie, health: Health
) -> UncertaintyPicture | None:
    """Return the middle frame with its map, of the movies that were written.

    Parameters
    ----------
    denoised, errors
        The denoised movie and its standard errors.
    health
        The movie's input check; of blank frames there is no map.

    Returns
    -------
    UncertaintyPicture or None
        None where all frames are blank.
    """
    usable = np.flatnonzero(~np.asarray(health.blank, bool))
    if not len(usable):
        return None
    t = int(usable[np.abs(usable - len(denoised) // 2).argmin()])
    return UncertaintyPicture(
        t, np.asarray(denoised.frame(t), np.float64), np.asarray(errors.frame(t), np.float64),
        denoised.intensity_unit or "",
    )  # fmt: skip


def uncertainty_figure(picture: UncertaintyPicture) -> str:
    """Draw the denoised frame and its map side by side, each with a colour bar, as SVG."""
    from .report_figures import SvgFigure

    height, width = picture.error.shape
    # Inches: bars and margins beside two pictures of the frame's shape.
    side = 3.6 * min(1.0, width / height)
    tall = side * height / width
    size = (2 * side + 2.2, tall + 0.3)
    unit = picture.unit or "the movie's units"
    with SvgFigure("uncertainty", "Denoised frame and standard error of its pixels", size=size) as (
        figure,
        first,
    ):
        for k, (axes, image, colours, label) in enumerate(
            (
                (first, picture.denoised, "gray", f"denoised / {unit}"),
                (figure.add_axes((0, 0, 1, 1)), picture.error, "viridis", f"± / {unit}"),
            )
        ):
            image = fitted_into(image, _SIDE)
            low, high = percentile_range(image, 0.5)
            left = 0.05 + k * (side + 1.1)
            axes.set_position((left / size[0], 0.15 / size[1], side / size[0], tall / size[1]))
            drawn = axes.imshow(image, cmap=colours, vmin=low, vmax=high, aspect="auto")
            axes.set_axis_off()
            place = (left + side + 0.08) / size[0], 0.15 / size[1], 0.12 / size[0], tall / size[1]
            bar = figure.colorbar(drawn, cax=figure.add_axes(place))
            bar.set_label(label)
            bar.outline.set_linewidth(0.4)
    return str(figure.svg)


def uncertainty_text(picture: UncertaintyPicture) -> str:
    """Return in words what the intervals mean, in a figure's caption."""
    return (
        f"Right: the standard error of every pixel of frame {picture.frame}. About 68 of 100 "
        f"pixels should lie within ± {WITHIN_68:g} and 95 within ± {WITHIN_95:g} times this of the "
        "picture without noise, as far as the noisy movie alone can tell; neighbouring pixels err "
        "together."
    )
