"""Our Noise2Void against that of its authors, the package n2v, at equal settings and steps.

python benchmarks/n2v_compare.py --python n2v-env/bin/python            # about an hour
python benchmarks/n2v_compare.py --python n2v-env/bin/python --quick    # does it run? no result

n2v needs TensorFlow and an old NumPy, hence an environment of its own (Python 3.11):

    python3.11 -m venv n2v-env
    n2v-env/bin/pip install n2v==0.3.3 tensorflow-cpu==2.15.1 "numpy<2" "setuptools<80"

Movies of the same scene: that of the simulator, whose noise is correlated, so that both can
only fit it, and the truth with white Gaussian noise. Both programs take as many threads, patches
per step, steps, epochs (a hundredth of the steps) and held-out patches; the rest is what each does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import Number

MASKED = 0.198  # %, as in shine_em.baselines.n2v
NAMES = {"ours": "ours", "theirs": "n2v"}


def main() -> None:
    """Run all trainings, each in its own process, print their table and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--python", required=True, help="interpreter that has n2v")
    parser.add_argument("--folder", type=Path, help="noisy.tif and truth.tif instead of Au growth")
    parser.add_argument("--frames", type=int, default=24, help="the first ones of the movie")
    parser.add_argument("--size", type=int, default=256, help="of the simulated movie")
    parser.add_argument("--noise", nargs="+", default=["own", "0.2", "0.5"], help=(
        "own, or the white noise's standard deviation as a share of the truth's range"
    ))  # fmt: skip
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--batch", type=int, default=8, help="patches per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.frames, a.size, a.noise, a.steps, a.batch, a.seeds = 4, 128, ["0.5"], [10], 4, [0]
        a.results = None
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="shine-n2v-") as scratch:
        folder = a.folder or Path(scratch) / "movie"
        if a.folder is None:
            common.simulate(folder, frames=a.frames, size=a.size, seed=3)
        for noise in a.noise:
            files = Path(scratch) / noise
            truth, noisy = _movie(folder, a.frames, noise, files)
            untouched = _psnr(noisy, truth)
            for steps in a.steps:
                for seed in a.seeds:
                    row = {"noise": noise, "steps": steps, "seed": seed, "noisy": untouched}
                    for name in NAMES:
                        settings = {k: str(v) for k, v in {
                            "who": name, "files": files, "steps": steps, "batch": a.batch,
                            "seed": seed, "threads": a.threads,
                        }.items()}  # fmt: skip
                        python = a.python if name == "theirs" else sys.executable
                        row |= _train(python, settings, truth)
                    common.say(f"{row}")
                    rows.append(row)
    print(common.table(
        ["noise", "steps", "seed", "noisy, dB", *(f"{n}, dB" for n in NAMES.values()),
         "ours − n2v, dB", *(f"{n}, s" for n in NAMES.values())],
        [[r["noise"], r["steps"], r["seed"],
          *(Number(r[k], 2) for k in ("noisy", "ours", "theirs")),
          Number(r["ours"] - r["theirs"], 2), *(Number(r[f"{k}_s"], 0) for k in NAMES)]
         for r in rows],
    ))  # fmt: skip
    left_out = ("results", "python", "folder")
    common.save(
        a.results and a.results / "n2v-compare.json",
        {"machine": described, "rows": rows,
         "setup": {k: v for k, v in vars(a).items() if k not in left_out}},
    )  # fmt: skip


def work(who: str, files: Path, steps: int, batch: int, seed: int, threads: int) -> None:
    """Train on ``noisy.npy``, write ``{who}.npy`` beside it; in either environment."""
    import numpy as np

    noisy = np.load(files / "noisy.npy")
    if who == "ours":
        result = ours(noisy, steps, batch, seed, threads)
    else:
        result = theirs(noisy, files, steps, batch, seed, threads)
    np.save(files / f"{who}.npy", np.stack(result).astype(np.float32))


def ours(noisy: Any, steps: int, batch: int, seed: int, threads: int) -> list[Any]:
    """Denoise with this project's Noise2Void."""
    import torch

    from shine_em.baselines.n2v import fit

    torch.set_num_threads(threads)
    fitted = fit(noisy, steps=steps, batch=batch, seed=seed)
    common.say(f"ours: validation loss {min(v for _, v in fitted.validation_loss):.4f}")
    return [fitted.denoise(frame) for frame in noisy]


def theirs(noisy: Any, files: Path, steps: int, batch: int, seed: int, threads: int) -> list[Any]:
    """Denoise with the package n2v, set to what our implementation does.

    Parameters
    ----------
    noisy
        ``(t, y, x)`` float32; its sides are multiples of 64, else n2v leaves the rest out.
    files
        Folder that takes n2v's own.
    steps, batch, seed, threads
        Gradient steps, patches in each, seed and threads of the training.
    """
    import numpy as np
    import tensorflow as tf
    from n2v.internals.N2V_DataGenerator import N2V_DataGenerator
    from n2v.models import N2V, N2VConfig

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    np.random.seed(seed)  # noqa: NPY002  # what n2v draws from
    tf.random.set_seed(seed)
    cutter = N2V_DataGenerator()
    shape = (64, 64)
    patches = cutter.generate_patches(noisy[..., None], shape=shape, augment=False)  # shuffled
    held_out = round(0.1 * len(patches))
    known = cutter.generate_patches(patches[held_out:], shape=shape, augment=True)
    epoch = max(10, steps // 100)
    config = N2VConfig(
        noisy[..., None], unet_kern_size=3, train_loss="mse", train_batch_size=batch,
        train_epochs=steps // epoch, train_steps_per_epoch=epoch, train_tensorboard=False,
        n2v_perc_pix=MASKED, n2v_patch_shape=shape,
    )  # fmt: skip
    model = N2V(config, f"n2v-{steps}-{seed}", basedir=str(files))
    history = model.train(known, patches[:held_out])
    common.say(f"n2v: validation loss {min(history.history['val_loss']):.4f}")
    return [model.predict(frame, axes="YX") for frame in noisy]


def _movie(folder: Path, frames: int, noise: str, out: Path) -> tuple[Any, Any]:
    import numpy as np

    from shine_em import read

    def first(name: str) -> Any:
        movie = read(folder / name)
        return np.stack([movie.frame(t) for t in range(min(frames, len(movie)))]).astype(np.float32)

    truth = first("truth.tif")
    if noise == "own":
        noisy = first("noisy.tif")
    else:
        drawn = np.random.default_rng(0).standard_normal(truth.shape, np.float32)
        noisy = truth + float(noise) * np.ptp(truth) * drawn
    out.mkdir()
    np.save(out / "noisy.npy", noisy)
    return truth, noisy


def _psnr(movie: Any, truth: Any) -> float:
    """Return the affine PSNR over all frames at once, of the truth's range."""
    from shine_em.metrics import psnr

    # One tall picture: one fit and one peak.
    width = truth.shape[-1]
    return psnr(movie.reshape(-1, width), truth.reshape(-1, width))


def _train(python: str, settings: dict[str, str], truth: Any) -> dict[str, float]:
    import numpy as np

    begun = time.monotonic()
    common.run([python, __file__, "--work", *settings.values()])
    who = settings["who"]
    found = np.load(Path(settings["files"]) / f"{who}.npy")
    return {who: _psnr(found, truth), f"{who}_s": time.monotonic() - begun}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        _, _, who, files, *numbers = sys.argv
        work(who, Path(files), *map(int, numbers))
    else:
        main()
