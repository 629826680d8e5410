"""Draw the README's picture: a raw and a denoised frame, a part of each enlarged, their spectra.

    python docs/figures/make_au_figure.py MOVIE DENOISED

MOVIE and DENOISED are files that `shine_em.read` opens, of one shape and calibrated; the picture is
written beside this script as ``au_glc_before_after.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from shine_em import read
from shine_em.viewing import percentile_range, scale_bar


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("movie", type=Path)
    parser.add_argument("denoised", type=Path)
    parser.add_argument("--frame", type=int, default=10)
    parser.add_argument("--zoom", default="153,161,128", help="y0,x0,width of the part, px")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("au_glc_before_after.png")
    )
    a = parser.parse_args()
    y0, x0, width = (int(v) for v in a.zoom.split(","))
    raw, denoised = read(a.movie), read(a.denoised)
    if raw.shape != denoised.shape or raw.pixel_size_nm is None:
        raise SystemExit("The movies must have one shape, and the raw one a pixel size.")
    draw(
        [movie.frame(a.frame).astype(np.float32) for movie in (raw, denoised)],
        zoom=(y0, x0, width), pixel_size_nm=raw.pixel_size_nm, output=a.output,
    )  # fmt: skip


def draw(
    frames: list[np.ndarray], *, zoom: tuple[int, int, int], pixel_size_nm: float, output: Path
) -> None:
    """Draw raw above denoised: the frame, the enlarged part, the spectrum.

    Parameters
    ----------
    frames
        The raw and the denoised ``(y, x)`` frame, in one unit of intensity.
    zoom
        First row, first column and width of the enlarged part, px.
    pixel_size_nm
        Pixel size, nm.
    output
        The file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    y0, x0, width = zoom
    figure = Figure(figsize=(9.6, 6.6), dpi=110, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(2, 3)
    spectra = [log_power(frame) for frame in frames]
    # One grey scale for both spectra: from the denoised one's faint tail to the peaks.
    faint, strong = np.percentile(spectra[1], 20), np.percentile(spectra[0], 99.97)
    titles = ("one frame", "the marked part, enlarged", "power spectrum (log)")
    for row, (name, frame, spectrum) in enumerate(
        zip(("raw", "denoised"), frames, spectra, strict=True)
    ):
        whole, part, fourier = axes[row]
        # Each row has its own grey scale: in the raw one, denoised frames look flat.
        low, high = percentile_range(frame, 1)
        for ax, image in ((whole, frame), (part, frame[y0 : y0 + width, x0 : x0 + width])):
            ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            bar = scale_bar(image.shape[1], pixel_size_nm)
            draw_bar(ax, image.shape, bar.length_px, bar.label)
        whole.add_patch(
            Rectangle((x0 - 0.5, y0 - 0.5), width, width, fill=False, color="#ffb000", lw=1.2)
        )
        fourier.imshow(spectrum, cmap="gray", vmin=faint, vmax=strong)
        per_pixel = 1 / (frame.shape[1] * pixel_size_nm)  # 1/nm
        draw_bar(fourier, spectrum.shape, 5 / per_pixel, "5 nm⁻¹")
        whole.set_ylabel(name, fontsize=13)
        for ax, title in zip(axes[row], titles, strict=True):
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(title, fontsize=11)
    figure.savefig(output)


def draw_bar(ax: Any, shape: tuple[int, ...], length_px: float, label: str) -> None:
    """Draw a scale bar at the lower left, white with a dark edge."""
    from matplotlib.patheffects import withStroke

    height, width = shape
    edge = [withStroke(linewidth=3.5, foreground="black")]
    x, y = 0.05 * width, 0.94 * height
    ax.plot([x, x + length_px], [y, y], color="white", lw=2.2, path_effects=edge)
    ax.text(
        x + length_px / 2, y - 0.025 * height, label, color="white", fontsize=10, ha="center",
        va="bottom", path_effects=[withStroke(linewidth=2, foreground="black")],
    )  # fmt: skip


def log_power(frame: np.ndarray) -> np.ndarray:
    """Return log10 of the power spectrum of a Hann-windowed frame, zero in the middle."""
    window = np.outer(*(np.hanning(n) for n in frame.shape))
    power = np.abs(np.fft.fft2((frame - frame.mean()) * window)) ** 2
    return np.log10(np.fft.fftshift(power) + 1e-6)


if __name__ == "__main__":
    main()
