"""The command line, as a stranger would use it."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small import model as random_model
from small import noisy, scene

import shine_em as shine
from shine_em.cli import main
from shine_em.display import _print_snr

QUICK = ("--steps", "12")


@functools.cache
def server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shine_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _stop_server() -> Iterator[None]:
    yield
    server().communicate()
    server.cache_clear()


def shine_command(
    *arguments: str | Path,
    folder: Path,
    timeout: int = 600,
    largest_file: int = 0,
    stop_at: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run ``shine`` in a process of its own, which need not load PyTorch anew."""
    process = server()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as words:
        out, err = Path(words, "out"), Path(words, "err")
        command = {
            "arguments": [str(a) for a in arguments], "folder": str(folder), "stdout": str(out),
            "stderr": str(err), "timeout": timeout, "largest_file": largest_file,
            "stop_at": stop_at,
        }  # fmt: skip
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def made(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """Write a small calibrated movie."""
    path = tmp_path / "movie.tif"
    shine.write(
        shine.Movie.from_array(noisy(12, 48, 40), pixel_size_nm=0.25, frame_time_s=0.5),
        path, dtype="same",
    )  # fmt: skip
    return path


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert one or two clear lines, no traceback, exit code 2."""
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
    for word in words:
        assert word in done.stderr


def test_denoise_writes_movie_and_report_beside_the_input(movie: Path) -> None:
    done = shine_command("denoise", movie, *QUICK, folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert made(movie.parent) == {"movie.tif", "movie_denoised.tif", "movie_report.html"}
    raw, out = shine.read(movie), shine.read(movie.with_name("movie_denoised.tif"))
    assert out.shape == raw.shape
    assert out.dtype == np.float32
    assert out.pixel_size_nm == pytest.approx(0.25)
    assert out.frame_time_s == pytest.approx(0.5)
    assert any("denoised by shine-em" in line for line in out.history)
    assert "movie_denoised.tif" in done.stdout
    # Means are kept, and the picture is closer to the truth than the raw movie is.
    truth = scene(12, 48, 40)
    for t in range(12):
        mean = float(raw.frame(t).mean())
        assert abs(float(out.frame(t).mean()) - mean) <= max(0.005 * mean, 0.02 * 5)
    error = np.mean((np.asarray(out.data[:]) - truth) ** 2)
    assert error < 0.5 * np.mean((np.asarray(raw.data[:]) - truth) ** 2)


def test_results_are_never_replaced_unasked(movie: Path, untrained: Path) -> None:
    report = movie.with_name("movie_report.html")
    report.write_text("mine")
    refused(shine_command("denoise", movie, *QUICK, folder=movie.parent), "exists", "--overwrite")
    assert report.read_text() == "mine"
    assert made(movie.parent) == {"movie.tif", "movie_report.html"}
    done = shine_command("denoise", movie, "--model", untrained, "--overwrite", folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert "<html" in report.read_text()


def test_parts_calibration_format_and_type_can_be_chosen(movie: Path) -> None:
    done = shine_command(
        "denoise", movie, *QUICK, "-o", "out/small.mrc", "--frames", "2:12:2", "--crop",
        "8:40,4:36", "--pixel-size", "0.5", "--no-report", "--quiet", folder=movie.parent,
    )  # fmt: skip
    refused(done, "out", "does not exist")
    (movie.parent / "out").mkdir()
    done = shine_command(
        "denoise", movie, *QUICK, "-o", "out/small.mrc", "--frames", "2:12:2", "--crop",
        "8:40,4:36", "--pixel-size", "0.5", "--no-report", "--quiet", "--keep-model",
        folder=movie.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert made(movie.parent / "out") == {"small.mrc", "small_model.safetensors"}
    out = shine.read(movie.parent / "out" / "small.mrc")
    assert out.shape == (5, 32, 32)
    assert out.pixel_size_nm == pytest.approx(0.5)
    assert "training" not in done.stdout
    done = shine_command(
        "denoise", movie, "--model", "out/small_model.safetensors", "-o", "folder/", "--dtype",
        "same", "--no-report", folder=movie.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shine.read(movie.parent / "folder" / "movie_denoised.tif").dtype == np.uint16


def test_the_same_seed_and_steps_give_the_same_movie(movie: Path) -> None:
    for name in ("a", "b"):
        done = shine_command(
            "denoise", movie, *QUICK, "--seed", "3", "--no-report", "-o", f"{name}.npy",
            folder=movie.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    a, b = (np.load(movie.parent / f"{n}.npy") for n in "ab")
    np.testing.assert_array_equal(a, b)


def stopped(movie: Path, sign: signal.Signals, *options: str, after: float) -> str:
    """Run ``shine denoise`` until it trains, stop it, and return what it says."""
    program = Path(sys.executable).with_name("shine")
    process = subprocess.Popen(
        [str(program), "denoise", movie.name, *options],
        cwd=movie.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("training"):
            break
    time.sleep(after)
    process.send_signal(sign)
    _, words = process.communicate(timeout=300)
    assert process.returncode == 130, words
    assert "Traceback" not in words
    return words


def test_ctrl_c_keeps_the_model_and_resuming_equals_not_stopping(movie: Path) -> None:
    folder = movie.parent
    how = ("--frames", "1:11", "--no-report", "-o", "a.npy")
    words = stopped(movie, signal.SIGINT, "--steps", "120", *how, after=0.4)
    assert made(folder) == {"movie.tif", "a_model.safetensors"}
    assert 0 < shine.Model.load(folder / "a_model.safetensors").state.step < 120
    # It says how to go on; the interrupted model is of that movie alone.
    (command,) = [line for line in words.splitlines() if "--resume" in line]
    program, *arguments = shlex.split(command.partition(":")[2])
    assert program == "shine"
    other = [a if a != "1:11" else "0:10" for a in arguments]
    refused(shine_command(*other, folder=folder), "other pixels")
    done = shine_command(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    done = shine_command("denoise", movie, "--steps", "120", *how[:-1], "b.npy", folder=folder)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(folder / "a.npy"), np.load(folder / "b.npy"))


def interrupted(*arguments: str | Path, folder: Path) -> str:
    """Run ``shine``, press Ctrl-C at its first step of training, and return what it says."""
    done = shine_command(*arguments, folder=folder, stop_at="training")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def told(words: str, option: str) -> list[str]:
    """Return the arguments of the command with this option that was told."""
    (line,) = [line for line in words.splitlines() if option in line]
    return shlex.split(line)[shlex.split(line).index("shine") + 1 :]


def test_the_commands_told_after_ctrl_c_work_as_they_are(movie: Path) -> None:
    folder = movie.parent
    how = ("--keep-model", "--register", "never", "--no-report")
    words = interrupted("denoise", movie, *how, "--time-budget", "9h", folder=folder)
    assert made(folder) == {"movie.tif", "movie_model_2.safetensors"}
    assert shine.Model.load(folder / "movie_model_2.safetensors").state.step == 1
    finish = told(words, "--resume")
    # How many steps there are to be, nobody knows yet.
    assert finish[finish.index("--time-budget") + 1] == "9h"
    again = interrupted(*finish, folder=folder)
    assert "movie_model_3.safetensors" in again
    done = shine_command(*told(words, "--model"), folder=folder)
    assert done.returncode == 0, done.stderr
    assert made(folder) >= {"movie_denoised.tif", "movie_model.safetensors"}


def test_a_fixed_number_of_steps_is_resumed_without_a_budget(movie: Path) -> None:
    how = ("--steps", "9", "--time-budget=2h", "-o", "m.safetensors")
    finish = told(interrupted("train", movie, *how, folder=movie.parent), "--resume")
    assert "--steps" not in finish
    assert "--time-budget=2h" not in finish
    done = shine_command(*finish, folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert shine.Model.load(movie.with_name("m.safetensors")).state.step == 9


def test_a_resumed_movie_tells_no_history_of_the_interrupted_model(movie: Path) -> None:
    how = ("--steps", "6", "--seed", "3", "--no-report")
    finish = told(interrupted("denoise", movie, *how, folder=movie.parent), "--resume")
    done = shine_command(*finish, folder=movie.parent)
    assert done.returncode == 0, done.stderr
    (line,) = (h for h in shine.read(movie.with_name("movie_denoised.tif")).history if "shine" in h)
    assert "(lean, 6 steps, training resumed after step 1, " in line


def test_ctrl_c_ends_the_demo_in_plain_words(tmp_path: Path) -> None:
    how = ("--frames", "8", "--size", "48", "--time-budget", "9h")
    words = interrupted("demo", *how, folder=tmp_path)
    assert "nothing was left half-written" in words
    assert not list(tmp_path.glob("demo/*denoised*"))


def test_a_job_that_a_cluster_ends_keeps_its_model_as_well(movie: Path) -> None:
    words = stopped(movie, signal.SIGTERM, "--steps", "100000", after=0.0)
    assert "--resume" in words
    assert made(movie.parent) == {"movie.tif", "movie_model.safetensors"}


def test_a_budget_that_cannot_hold_the_movie_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "long.npy"
    np.save(path, noisy(400, 64, 64))
    done = shine_command("denoise", path, "--time-budget", "8s", folder=tmp_path)
    if done.returncode == 0:  # a quick machine: it must have kept its word
        assert shine.read(tmp_path / "long_denoised.tif").shape == (400, 64, 64)
    else:
        refused(done, "--time-budget")
        assert made(tmp_path) == {"long.npy"}


def test_train_then_denoise_another_movie(movie: Path) -> None:
    folder = movie.parent
    done = shine_command("train", movie, *QUICK, "-o", "m.safetensors", folder=folder)
    assert done.returncode == 0, done.stderr
    np.save(folder / "other.npy", noisy(5, 33, 57, seed=4))
    done = shine_command("denoise", "other.npy", "--model", "m.safetensors", folder=folder)
    assert done.returncode == 0, done.stderr
    assert shine.read(folder / "other_denoised.tif").shape == (5, 33, 57)
    np.save(folder / "bright.npy", noisy(5, 33, 57, dose=2000.0))
    done = shine_command(
        "denoise", "bright.npy", "--model", "m.safetensors", "--no-report", folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert "train anew" in done.stdout


def test_noise_info_and_their_files(movie: Path) -> None:
    folder = movie.parent
    done = shine_command("noise", movie, "--json", "n.json", "--figure", "n.png", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "n.json").read_text())["hole"] == [1, 1]
    assert (folder / "n.png").read_bytes()[:4] == b"\x89PNG"
    refused(shine_command("noise", movie, "--json", "n.json", folder=folder), "exists")
    done = shine_command("info", movie, "--check", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "12 frames of 48×40" in done.stdout
    assert "0.25 nm" in done.stdout


def test_a_log_file_that_knows_few_characters(movie: Path) -> None:
    dosed = shine.Movie.from_array(noisy(3, 24, 24), dose_e_per_A2=2.0)
    shine.write(dosed, movie.with_name("dosed.tif"))
    done = subprocess.run(
        [sys.executable, "-m", "shine_em.cli", "info", "dosed.tif"], cwd=movie.parent,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"2 e?/" in done.stdout


def test_noise_of_two_frames_shows_no_gaps(movie: Path) -> None:
    done = shine_command("noise", movie, "--frames", "0:2", folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout


@pytest.mark.parametrize(
    ("option", "name", "word"),
    [
        ("--figure", "n.foo", ".png, .svg or .pdf"),
        ("--figure", "absent/n.png", "absent does not exist"),
        ("--json", "absent/n.json", "absent does not exist"),
    ],
)
def test_what_noise_cannot_write_is_told_before_it_reads(
    tmp_path: Path, option: str, name: str, word: str
) -> None:
    refused(shine_command("noise", "missing.tif", option, name, folder=tmp_path), word, name)


@pytest.mark.parametrize(
    ("results", "word"),
    [
        (("--json", "movie.tif"), "the movie itself"),
        (("--json", "n.png", "--figure", "./n.png"), "two results have this name"),
    ],
)
def test_noise_replaces_neither_its_movie_nor_its_other_result(
    movie: Path, results: tuple[str, ...], word: str
) -> None:
    before = movie.read_bytes()
    refused(shine_command("noise", movie, *results, "--overwrite", folder=movie.parent), word)
    assert movie.read_bytes() == before
    assert made(movie.parent) == {"movie.tif"}


def test_a_link_to_a_file_that_is_no_more_is_not_replaced_unasked(
    movie: Path, untrained: Path
) -> None:
    link = movie.with_name("movie_report.html")
    link.symlink_to("gone.html")
    done = shine_command("denoise", movie, "--model", untrained, folder=movie.parent)
    refused(done, "movie_report.html exists", "--overwrite")
    assert link.is_symlink()
    refused(shine_command("noise", movie, "--json", link, folder=movie.parent), "exists")


def test_results_of_a_pattern_are_named_after_its_folder(tmp_path: Path, untrained: Path) -> None:
    folder = tmp_path / "run [5 kV]"
    folder.mkdir()
    for t, frame in enumerate(noisy(3, 24, 24)):
        shine.write(shine.Movie.from_array(frame), folder / f"f_{t}.tif")
    how = ("--model", untrained, "--no-report")
    done = shine_command("denoise", "run [5 kV]/f_*.tif", *how, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path) == {"run [5 kV]", "run [5 kV]_denoised.tif"}


@pytest.mark.parametrize("arguments", [("a" * 300,), ("m.npy", "-o", "a" * 300 + ".tif")])
def test_names_too_long_for_the_disk(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    np.save(tmp_path / "m.npy", noisy(3, 24, 24))
    refused(shine_command("denoise", *arguments, folder=tmp_path), "aaa", "too long")


def test_a_demo_that_has_no_time_begins_nothing(tmp_path: Path) -> None:
    refused(shine_command("demo", "--time-budget", "0s", folder=tmp_path), "positive")
    assert made(tmp_path) == set()


def test_simulate_and_demo(tmp_path: Path) -> None:
    done = shine_command(
        "simulate", "au-growth", "--frames", "3", "--size", "48", "-o", "s", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "s") == {
        "noisy.tif", "truth.tif", "unblurred.tif", "parameters.json", "coordinates.npz"
    }  # fmt: skip
    results = ("noisy.tif", "truth.tif", "noisy_denoised.tif", "noisy_report.html")
    (tmp_path / "d").mkdir()
    for name in results:  # of an earlier run: the demo replaces its own results
        (tmp_path / "d" / name).write_text("old")
    done = shine_command(
        "demo", "--frames", "8", "--size", "64", "--time-budget", "25s", "-o", "d",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PSNR" in done.stdout
    assert "SSIM" in done.stdout
    assert all((tmp_path / "d" / name).stat().st_size > 1000 for name in results)


@pytest.mark.parametrize("command", ["", "denoise", "train", "noise", "info", "simulate", "demo"])
def test_help_has_an_example(command: str, tmp_path: Path) -> None:
    done = shine_command(*command.split(), "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--hole", "4x4"), "odd"),
        (("--hole", "17x17"), "15"),
        (("--hole", "round"), "3x3"),
        (("--frames", "9:3"), "empty"),
        (("--frames", "a:b"), "a:b"),
        (("--crop", "0:900,0:10"), "crop"),
        (("--time-budget", "soon"), "5min"),
        (("--time-budget", "0s"), "positive"),
        (("--steps", "0"), "at least 1"),
        (("--window", "4"), "odd"),
        (("--device", "abacus"), "device"),
        (("--model", "none.safetensors"), "none.safetensors"),
        (("--output", "x.jpg"), ".jpg"),
        (("--colour",), "colour"),
        (("--preset", "magic"), "magic"),
        (("--seed", "-1"), "seed"),
        (("--hole", "²x²"), "3x3"),
        (("--crop", "0:10"), "rows and columns"),
        (("--frames", "::0"), "step"),
        (("--pixel-size", "-1"), "pixel size"),
        (("--dtype", "int8"), "int8"),
        (("--model", "movie.tif"), "not a readable model"),
        (("--resume", "movie.tif"), "not a readable model"),
        (("--model", "m", "--resume", "m"), "give one"),
        (("--overwrite", "-o", "movie.tif"), "the movie itself"),
        (("--output", "absent/x.tif"), "absent"),
        (("--output", "movie.tif/x.tif"), "movie.tif"),
        (("another.tif",), "another.tif"),
    ],
)
def test_bad_options_are_told_in_plain_words(
    movie: Path, arguments: tuple[str, ...], word: str
) -> None:
    refused(shine_command("denoise", movie, *arguments, folder=movie.parent), word)
    assert made(movie.parent) == {"movie.tif"}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with random weights: quick to have, and of no use for pictures."""
    return random_model().save(tmp_path_factory.mktemp("model") / "untrained.safetensors")


def test_a_model_as_it_is_takes_no_options_of_training(movie: Path, untrained: Path) -> None:
    how = ("denoise", movie, "--model", untrained, "--steps", "4", "--window", "7")
    refused(shine_command(*how, folder=movie.parent), "does not train", "--window, --steps")
    assert made(movie.parent) == {"movie.tif"}


def test_a_zarr_store_is_named_like_a_file(movie: Path, untrained: Path) -> None:
    how = ("denoise", movie, "--model", untrained, "--no-report", "-o", "o.zarr")
    assert shine_command(*how, folder=movie.parent).returncode == 0
    refused(shine_command(*how, folder=movie.parent), "o.zarr exists", "--overwrite")
    inside = made(movie.parent / "o.zarr")
    done = shine_command(*how, "--frames", "0:3", "--overwrite", folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert made(movie.parent) == {"movie.tif", "o.zarr"}
    assert made(movie.parent / "o.zarr") == inside
    assert shine.read(movie.parent / "o.zarr").shape == (3, 48, 40)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("plate.zarr/0", "plate.zarr"),
        ("plate.zarr", "plate.zarr/0"),
        ("plate.zarr", "plate.zarr/b.tif"),
        ("frames_in", "frames_in/f_1.tif"),
        ("frames_in/*.tif", "frames_in/f_1.tif"),
    ],
)
def test_a_movie_of_several_files_is_not_replaced_either(
    tmp_path: Path, untrained: Path, source: str, output: str
) -> None:
    shine.write(shine.Movie.from_array(noisy(3, 24, 24)), tmp_path / "plate.zarr")
    (tmp_path / "frames_in").mkdir()
    for t, frame in enumerate(noisy(3, 24, 24)):
        shine.write(shine.Movie.from_array(frame), tmp_path / "frames_in" / f"f_{t}.tif")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    done = shine_command(
        "denoise", source, "--model", untrained, "--no-report", "--overwrite", "-o", output,
        folder=tmp_path,
    )  # fmt: skip
    refused(done, output, "the movie itself")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("suffix", [".tif", ".mrc", ".zarr", ".npy", ".hspy"])
def test_the_suffix_chooses_the_format(movie: Path, untrained: Path, suffix: str) -> None:
    done = shine_command(
        "denoise", movie, "--model", untrained, "-o", f"o{suffix}", "--no-report",
        "--frames", "2:12:2", "--crop", "8:40,4:36", "--pixel-size", "0.5", "--frame-time", "0.2",
        folder=movie.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert made(movie.parent) == {"movie.tif", f"o{suffix}"}
    out = shine.read(movie.parent / f"o{suffix}")
    assert out.shape == (5, 32, 32)
    assert out.dtype == np.float32
    if suffix != ".npy":
        assert out.pixel_size_nm == pytest.approx(0.5)
    if suffix in (".tif", ".zarr", ".hspy"):
        assert out.frame_time_s == pytest.approx(0.4)  # every other frame
        assert [line for line in out.history if "2:12:2" in line]


def test_the_input_type_is_kept_and_clipping_is_told(movie: Path, untrained: Path) -> None:
    np.save(movie.with_name("dark.npy"), noisy(4, 32, 32, dose=3.0).astype(np.uint8))
    done = shine_command(
        "denoise", "dark.npy", "--model", untrained, "--dtype", "same", "--mp4",
        folder=movie.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "did not fit uint8" in done.stdout
    out = shine.read(movie.with_name("dark_denoised.tif"))
    assert out.dtype == np.uint8
    assert out.frame(0).min() == 0
    assert b"ftyp" in movie.with_name("dark_side_by_side.mp4").read_bytes()[:32]
    # The report is of this movie, and says whose model was used.
    report = movie.with_name("dark_report.html").read_text()
    assert "dark.npy" in report


def test_quiet_shows_only_the_results(movie: Path, untrained: Path) -> None:
    done = shine_command("denoise", movie, "--model", untrained, "-q", folder=movie.parent)
    assert done.returncode == 0, done.stderr
    assert "denoising" not in done.stdout.lower()
    assert "movie_denoised.tif" in done.stdout


def test_names_of_files_and_folders_are_respected(tmp_path: Path, untrained: Path) -> None:
    raw = shine.Movie.from_array(noisy(3, 24, 24))
    (tmp_path / "2025.05.11").mkdir()
    for t in range(3):
        frame = shine.Movie.from_array(noisy(3, 24, 24)[t])
        shine.write(frame, tmp_path / "2025.05.11" / f"f{t}.tif", dtype="same")
    shine.write(raw, tmp_path / "run [old].tif", dtype="same")
    for name in ("2025.05.11", "run [old].tif"):
        done = shine_command("denoise", name, "--model", untrained, "--no-report", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert made(tmp_path) == {
        "2025.05.11", "run [old].tif", "2025.05.11_denoised.tif", "run [old]_denoised.tif",
    }  # fmt: skip
    assert "run [old]_denoised.tif" in done.stdout
    done = shine_command(
        "denoise", ".", "--model", untrained, "--no-report", "-o", "new/er",
        folder=tmp_path / "2025.05.11",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "2025.05.11" / "new" / "er") == {"2025.05.11_denoised.tif"}


def test_a_full_disk_leaves_nothing_behind(movie: Path, untrained: Path) -> None:
    done = shine_command(
        "denoise", movie, "--model", untrained, folder=movie.parent, largest_file=50_000
    )
    refused(done, "disk")
    assert made(movie.parent) == {"movie.tif"}


def test_no_folder_is_made_for_what_cannot_be_read(tmp_path: Path) -> None:
    refused(shine_command("denoise", "missing.tif", "-o", "new/", folder=tmp_path), "missing.tif")
    assert made(tmp_path) == set()


def test_a_model_is_written_where_it_belongs(movie: Path) -> None:
    folder = movie.parent
    refused(shine_command("train", movie, *QUICK, "-o", "m.pt", folder=folder), "safetensors")
    (folder / "models").mkdir()
    done = shine_command("train", movie, *QUICK, "-o", "models", folder=folder)
    assert done.returncode == 0, done.stderr
    assert made(folder / "models") == {"movie_model.safetensors"}
    refused(
        shine_command("train", movie, *QUICK, "-o", "models", folder=folder),
        "exists",
        "--overwrite",
    )


@pytest.mark.parametrize(
    ("raw", "denoised", "said"),
    [
        ([math.nan, 1.0, 2.0], [math.nan, 8.0], "SNR, halves: 1.5 → 8.0 dB"),
        ([-math.inf], [8.0], "SNR, halves: no signal → 8.0 dB"),
        ([-math.inf], [-math.inf], "SNR, halves: no signal → no signal"),
        ([1.0], [math.inf], "SNR, halves: 1.0 → ∞ dB"),
        ([math.nan], [math.nan], ""),
    ],
)
def test_an_snr_without_a_number_is_told_in_words(
    raw: list[float], denoised: list[float], said: str
) -> None:
    console = Console(file=io.StringIO(), width=200)
    _print_snr(console, "halves:", raw, denoised)
    assert console.file.getvalue().strip() == said  # type: ignore[attr-defined]


def test_one_frame_has_no_neighbour_and_no_snr(movie: Path, untrained: Path) -> None:
    done = shine_command(
        "denoise", movie, "--frames", "0:1", "--model", untrained, folder=movie.parent
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    assert "Done in" in done.stdout


def test_a_model_is_named_after_a_folder_with_a_dot_as_well(tmp_path: Path) -> None:
    (tmp_path / "run.1").mkdir()
    (tmp_path / "run.1_model.safetensors").write_text("an earlier one")
    refused(
        shine_command("train", "run.1", folder=tmp_path), "run.1_model.safetensors", "--overwrite"
    )


def test_training_within_no_time_is_refused(movie: Path) -> None:
    refused(shine_command("train", movie, "--time-budget", "0.1s", folder=movie.parent), "budget")
    assert made(movie.parent) == {"movie.tif"}


def _bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.tif"
    shine.write(shine.Movie.from_array(noisy(4, 32, 32)), good, dtype="same")
    files = {name: folder / name for name in ("zero.tif", "text.tif", "text.mrc", "cut.tif")}
    files["zero.tif"].write_bytes(b"")
    files["text.tif"].write_text("this is no movie\n" * 100)
    files["text.mrc"].write_text("this is no movie\n" * 100)
    files["cut.tif"].write_bytes(good.read_bytes()[:-3000])
    np.save(folder / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((4, 32, 32), np.nan, np.float32))
    np.save(folder / "complex.npy", np.zeros((4, 32, 32), complex))
    np.save(folder / "spectrum.npy", np.zeros(64))
    np.save(folder / "constant.npy", np.full((4, 32, 32), 7, np.uint8))
    header = np.zeros(1024, np.uint8)
    header[:16] = np.array([2**30, 2**30, 2**30, 2], "<i4").view(np.uint8)
    header[208:216] = np.frombuffer(b"MAP DD\0\0", np.uint8)
    (folder / "absurd.mrc").write_bytes(header.tobytes())
    for name in (
        "objects.npy", "nan.npy", "complex.npy", "spectrum.npy", "constant.npy", "absurd.mrc",
    ):  # fmt: skip
        files[name] = folder / name
    files["missing.tif"] = folder / "missing.tif"
    files["empty"] = folder / "empty"
    files["empty"].mkdir()
    return files


@pytest.mark.parametrize(
    "name",
    [
        "zero.tif", "text.tif", "text.mrc", "cut.tif", "objects.npy", "nan.npy", "complex.npy",
        "spectrum.npy", "constant.npy", "absurd.mrc", "missing.tif", "empty",
    ],
)  # fmt: skip
def test_bad_files_are_told_in_plain_words(tmp_path: Path, name: str) -> None:
    path = _bad_files(tmp_path)[name]
    before = made(tmp_path)
    refused(shine_command("denoise", path, *QUICK, folder=tmp_path), name.partition(".")[0])
    assert made(tmp_path) == before


def test_where_memory_runs_out_the_trained_model_is_kept_and_the_words_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    movie, kept = tmp_path / "movie.npy", tmp_path / "movie_model.safetensors"
    np.save(movie, noisy(8, 32, 32))
    monkeypatch.setattr("shine_em.job.SmearDetector.add", full)
    for more, words in (
        (["--steps", "3"], "Out of memory after 3 steps. The best model so far is"),
        (["--model", str(kept)], "shine: Out of memory. Take a part of the movie with --frames"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["denoise", str(movie), *more])
        assert done.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert shine.Model.load(kept).state.step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["movie.npy", kept.name]
