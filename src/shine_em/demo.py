"""The demonstration: simulate, denoise, compare with the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .events import Event
from .files import Outputs, denoise_file
from .io import read
from .metrics import psnr, ssim
from .planning import Options
from .simulate import au_growth, save

__all__ = ["Demo", "run_demo"]


@dataclass(frozen=True)
class Demo:
    """What the demonstration measured."""

    psnr_before: float
    psnr_after: float
    ssim_before: float
    ssim_after: float
    seconds: float
    outputs: Outputs

    def lines(self) -> list[str]:
        """Return what to print."""
        return [
            f"PSNR (affine)  {self.psnr_before:6.2f} → {self.psnr_after:6.2f} dB",
            f"SSIM           {self.ssim_before:6.3f} → {self.ssim_after:6.3f}",
            f"Denoised in    {self.seconds:.0f} s",
            f"Movie          {self.outputs.movie}",
            f"Report         {self.outputs.report}",
        ]


def run_demo(
    folder: Path,
    *,
    budget_s: float,
    frames: int,
    size: int,
    seed: int = 0,
    simulating: Callable[[int, int], None] | None = None,
    progress: Callable[[Event], None] | None = None,
) -> Demo:
    """Simulate Au growth in ``folder``, denoise it there and compare; replaces earlier results."""
    options = Options(time_budget=budget_s, seed=seed)  # refused before anything is simulated
    scene = au_growth(frames=frames, size=size, seed=seed, progress=simulating)
    paths = save(scene, folder, overwrite=True)
    outputs = Outputs.beside(paths["noisy"])
    started = time.monotonic()
    denoise_file(
        read(paths["noisy"]), outputs, options=options, overwrite=True, started=started,
        progress=progress,
    )  # fmt: skip
    seconds = time.monotonic() - started
    denoised = read(outputs.movie)
    picked = np.unique(np.linspace(0, frames - 1, 8).astype(int))
    scores = []
    for t in picked:
        truth = scene.truth.frame(t).astype(float)
        pair = (scene.noisy.frame(t).astype(float), denoised.frame(t).astype(float))
        scores.append(
            [psnr(a, truth, protocol="affine") for a in pair]
            + [ssim(a, truth, protocol="affine") for a in pair]
        )
    before, after, ssim_before, ssim_after = np.mean(scores, axis=0)
    return Demo(
        float(before), float(after), float(ssim_before), float(ssim_after), seconds, outputs
    )
