"""``shine simulate``: every scene's options, what it writes, and what Ctrl-C leaves."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shine_em.cli_simulate import app, frame_progress, named_by_option, parameter_help
from shine_em.errors import ShineError
from shine_em.events import Event
from shine_em.io import read
from shine_em.simulate import SCENES

SPARSE = ("sparse-counting", "--frames", "2", "--size", "70x80", "--largest-diameter", "3")


def shine_simulate(*arguments: str | Path) -> None:
    app([str(a) for a in arguments], exit_on_error=False, print_error=False, result_action="return_value")  # noqa: E501  # fmt: skip


def test_every_scene_is_a_command_with_all_its_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shine_simulate("--help")
    overview = capsys.readouterr().out
    for name, function in SCENES.items():
        assert name in overview
        shine_simulate(name, "--help")
        shown = capsys.readouterr().out
        assert f"shine simulate {name} --frames" in shown
        options = {word for word in shown.replace(",", " ").split() if word.startswith("--")}
        own = set(inspect.signature(function).parameters) - {"progress", "cache"}
        flags = {o for o in options if o.startswith("--no-")}
        extra = {"--output", "--overwrite", "--quiet"}
        assert len(options - flags - extra) == len(own), (options, own)
        described = parameter_help(inspect.getdoc(function) or "")
        assert own <= set(described)
        # A flag's other name stands between the lines of its description.
        words = shown.replace("│", " ").split()
        flat = " ".join(word for word in words if not word.startswith("--no-"))
        for parameter in own - {"frames", "size", "seed", "workers"}:
            assert described[parameter] in flat, parameter
        # No two parameters share a description: each has a text of its own.
        assert len({described[p] for p in own}) == len(own)


def test_a_scene_is_written_with_its_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scene"
    shine_simulate(
        *SPARSE, "--seed", "3", "--dose", "1.5", "--smallest-diameter", "2.5", "--quiet", "-o", out
    )
    names = {"noisy.tif", "truth.tif", "unblurred.tif", "parameters.json", "coordinates.npz"}
    assert {p.name for p in out.iterdir()} == names
    parameters = json.loads((out / "parameters.json").read_text())
    assert parameters["dose_e_per_A2"] == 1.5
    assert parameters["size"] == [70, 80]
    assert parameters["seed"] == 3
    noisy = read(out / "noisy.tif")
    assert noisy.shape == (2, 70, 80)
    same = SCENES["sparse-counting"](
        frames=2, size=(70, 80), seed=3, dose_e_per_A2=1.5, smallest_diameter_nm=2.5,
        largest_diameter_nm=3.0,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(noisy.data), same.noisy.data)
    shown = capsys.readouterr().out
    assert "noise (SD)" in shown
    assert "simulating" not in shown


def test_existing_scenes_are_kept_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "truth.tif").write_text("mine")
    with pytest.raises(ShineError, match=r"truth\.tif"):
        shine_simulate(*SPARSE, "-o", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["truth.tif"]
    assert (tmp_path / "truth.tif").read_text() == "mine"
    shine_simulate(*SPARSE, "--overwrite", "-o", tmp_path)
    assert read(tmp_path / "truth.tif").shape == (2, 70, 80)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("au-growth", "--dose", "-3"), "^--dose must be a positive number, not -3"),
        (("au-growth", "--size", "big"), "300x400"),
        (("au-growth", "--size", "0"), "^--size must"),
        (
            ("au-growth", "--size", "16"),
            "^--final-diameter: .* Choose smaller particles or a larger",
        ),
        (("au-growth", "--conversion", "900"), "^--dose 20.0 saturates"),
        (("stem-mos2", "--detector", "10", "280"), "^--detector begins at 10.0 mrad"),
        (("pt-water", "--aperture", "60"), "^--aperture 60 lies .* needs --sampling of 0.0082"),
        (("sparse-counting", "--camera", "k9"), "^--camera 'k9' is not known.*k2-counting"),
        (("sparse-counting", "--frames", "0"), "^--frames must"),
    ],
)
def test_impossible_options_are_named_and_leave_nothing(
    arguments: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    with pytest.raises(ShineError, match=word):
        shine_simulate(*arguments, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_takes_the_description_of_each_parameter() -> None:
    text = """Do it.

    Parameters
    ----------
    one_nm, two
        Widths of :math:`D_p` in ``a``. More is said here.

        Even more.
    three
        A `Scan`.

    Returns
    -------
    four
        Not a parameter.
    """
    assert parameter_help(inspect.cleandoc(text)) == {
        "one_nm": "Widths of D_p in a. More is said here. Even more",
        "two": "Widths of D_p in a. More is said here. Even more",
        "three": "A Scan",
    }


def test_errors_name_options_and_leave_plain_words_alone() -> None:
    options = {"dose_e_per_A2": "--dose", "particles": "--particles", "size": "--size"}
    for text, expected in (
        ("dose_e_per_A2=3 is too much (dose_e_per_A2).", "--dose 3 is too much (--dose)."),
        ("particles must be 1.", "--particles must be 1."),
        ("Smaller particles, or a larger size.", "Smaller particles, or a larger size."),
        ("my_dose_e_per_A2 and size_nm=3", "my_dose_e_per_A2 and size_nm=3"),
    ):
        assert str(named_by_option(ShineError(text), options)) == expected


# A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from shine_em.cli import main; main()"
)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_keeps_the_finished_frames_and_the_same_command_goes_on(tmp_path: Path) -> None:
    # Many frames, one at a time: the interruption falls between the first and the last.
    command = [
        sys.executable, "-c", INTERRUPTIBLE, "simulate", "au-growth", "--frames", "40",
        "--size", "256", "--workers", "1", "-o", "out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("out/unfinished/*/frame_000001.npz")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "goes on" in told
    assert "Traceback" not in told
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"unfinished"}
    kept = len(list(tmp_path.glob("out/unfinished/*/frame_*.npz")))
    assert 2 <= kept < 40
    shine_simulate(*command[4:-1], tmp_path / "out")
    assert "noisy.tif" in {p.name for p in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "unfinished").exists()
    whole = SCENES["au-growth"](frames=40, size=256)
    saved = read(tmp_path / "out" / "noisy.tif")
    np.testing.assert_array_equal(np.asarray(saved.data), whole.noisy.data)


def test_time_left_is_reckoned_from_new_frames_only() -> None:
    seen: list[Event] = []
    report = frame_progress(seen.append, "simulating")
    for done in range(1, 9):
        if done > 3:  # the first three were kept from an earlier run
            time.sleep(0.1)
        report(done, 8)
    assert [event.seconds_left for event in seen[:4]] == [None] * 4
    assert all((e.seconds_left or 0) >= 0.1 * (8 - e.done) for e in seen[4:])
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (8, 8, 0)


@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_while_saving_never_mixes_two_scenes(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shine_em import io

    out = tmp_path / "scene"
    if earlier:
        shine_simulate(*SPARSE, "--seed", "1", "--quiet", "-o", out)
    before = {p.name: p.read_bytes() for p in out.glob("*")}
    whole, written = io.write, []

    def interrupted(*arguments: Any, **options: Any) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(whole(*arguments, **options))
        return written[0]

    command = (*SPARSE, "--seed", "2", "--quiet", "-o", out, *["--overwrite"] * earlier)
    monkeypatch.setattr(io, "write", interrupted)
    with pytest.raises(SystemExit, match="130"):
        shine_simulate(*command)
    monkeypatch.undo()
    left = {p.name: p.read_bytes() for p in out.iterdir() if p.name != "unfinished"}
    assert left == before
    shine_simulate(*command)
    assert json.loads((out / "parameters.json").read_text())["seed"] == 2
    assert not (out / "unfinished").exists()
