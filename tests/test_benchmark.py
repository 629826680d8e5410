"""The benchmark: scores, resume, failures, and what it writes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from small import noisy, scene

from shine_em import benchmark, metrics
from shine_em.benchmark import Benchmark, Outcome
from shine_em.benchmark_figures import plot_input_frames
from shine_em.benchmark_meter import Meter
from shine_em.benchmark_methods import choose, training_seconds
from shine_em.benchmark_movies import Case
from shine_em.benchmark_tables import below_ceiling, csv_text, markdown_text
from shine_em.benchmark_worker import own_peak_memory, score, work
from shine_em.compute import Lanes
from shine_em.errors import ShineError
from shine_em.io import read, write
from shine_em.movie import Movie

SHAPE = (8, 40, 48)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as ``shine simulate`` writes it, and a movie without a truth beside it."""
    folder = tmp_path_factory.mktemp("movies")
    made = folder / "little"
    made.mkdir()
    movie = Movie.from_array(noisy(*SHAPE), pixel_size_nm=0.1)
    write(movie, made / "noisy.tif", dtype="same")
    write(Movie.from_array(scene(*SHAPE).astype(np.float32)), made / "truth.tif")
    write(movie, folder / "real.mrc")
    return folder


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Return a benchmark of two filters, and of a network with a hole that it cannot have."""
    out = tmp_path_factory.mktemp("bench") / "out"
    return benchmark.run(
        [place / "little", place / "real.mrc"], "gaussian,mean5,lean,supervised",
        out=out, time_budget_s=0.1, hole=(17, 17), halves=True,
    )  # fmt: skip


def by_name(found: Benchmark, movie: str) -> dict[str, Outcome]:
    return {o.method: o for o in found.outcomes if o.movie == movie}


def test_scores_are_those_of_the_written_movie_in_every_protocol(
    done: Benchmark, place: Path
) -> None:
    found = by_name(done, "little")
    truth = read(place / "little" / "truth.tif")
    for name in ("gaussian", "mean5"):
        outcome = found[name]
        assert outcome.output is not None
        clean = read(outcome.output)
        assert clean.pixel_size_nm == pytest.approx(0.1)
        for protocol in ("affine", "range", "minmax"):
            expected = metrics.movie_psnr(clean, truth, protocol=protocol)
            np.testing.assert_allclose(outcome.scores[f"psnr_{protocol}"], expected, atol=1e-4)
        for protocol in ("affine", "minmax"):
            expected = metrics.movie_ssim(clean, truth, protocol=protocol)
            np.testing.assert_allclose(outcome.scores[f"ssim_{protocol}"], expected, atol=1e-4)
        assert outcome.seconds is not None
        assert outcome.seconds > 0
        assert outcome.peak_mb is not None
        assert 20 < outcome.peak_mb < 4000
        assert np.mean(outcome.scores["psnr_affine"]) > np.mean(
            found["noisy"].scores["psnr_affine"]
        )


def test_a_failing_method_ends_nothing_and_says_why(done: Benchmark) -> None:
    for movie in ("little", "real"):
        failed = by_name(done, movie)["lean"]
        assert failed.status == "failed"
        assert "from 1x1 to 15x15" in failed.reason
        assert failed.output is None
        assert by_name(done, movie)["mean5"].status == "done"
    text = done.markdown()
    assert "- 5-frame mean: mean of 5 frames" in text  # how each method worked
    assert "| lean | failed |" in text
    assert "lean failed: The hole must be odd" in text


def test_a_movie_without_truth_is_judged_without_reference(done: Benchmark) -> None:
    found = by_name(done, "real")
    raw, mean = found["noisy"], found["mean5"]
    assert not any(name.startswith(("psnr", "ssim")) for name in mean.scores)
    expected = metrics.frame_snr(read(mean.output))  # type: ignore[arg-type]
    np.testing.assert_allclose(mean.scores["snr_neighbours"], expected, atol=1e-4)
    movie = Movie.from_array(noisy(*SHAPE))
    pairs = zip(movie.data[0::2], movie.data[1::2], strict=True)
    np.testing.assert_allclose(
        raw.scores["snr_halves"], [metrics.snr(a, b) for a, b in pairs], atol=1e-4
    )
    assert "residual" in mean.record
    assert "residual" not in raw.record
    value, error = mean.record["estimated"]
    assert error > 0
    assert abs(value) < 1
    assert "estimated" not in raw.record
    assert "estimated error / noise variance" in done.markdown()
    assert "supervised" not in found  # no truth, no ceiling
    assert "supervised" in by_name(done, "little")


def test_the_ceiling_is_scored_only_where_it_was_not_taught(done: Benchmark) -> None:
    ceiling = by_name(done, "little")["supervised"]
    assert ceiling.status == "done"
    assert 0 < len(ceiling.frames) < SHAPE[0] / 2
    assert len(ceiling.scores["psnr_affine"]) == len(ceiling.frames)
    assert "held out" in done.markdown()


def test_tables_and_figures_lie_in_the_folder(done: Benchmark) -> None:
    names = {path.name for path in done.files}
    assert {"results.md", "results.csv", "panels-little.png", "scores-real.png"} <= names
    assert {"noise-little.png", "ceiling-little.png"} <= names
    assert all(path.stat().st_size > 0 for path in done.files)
    with (done.folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done.outcomes)
    row = next(r for r in rows if r["movie"] == "little" and r["method"] == "mean5")
    values = by_name(done, "little")["mean5"].scores["psnr_affine"]
    assert float(row["psnr_affine"]) == pytest.approx(np.mean(values), abs=1e-4)
    assert float(row["psnr_affine_sd"]) == pytest.approx(np.std(values), abs=1e-4)
    assert not list(done.folder.rglob("*.partial"))


def test_what_is_finished_is_not_done_again_unless_something_changed(
    done: Benchmark, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done.folder, out)
    movie = tmp_path / "little"
    shutil.copytree(place / "little", movie)
    answers = out / "results" / "little"

    def times(**changed: object) -> dict[str, int]:
        settings = {"time_budget_s": 0.01, "hole": (17, 17), "figures": False} | changed
        benchmark.run([movie], "gaussian,mean5", out=out, **settings)  # type: ignore[arg-type]
        return {n: (answers / f"{n}.json").stat().st_mtime_ns for n in ("gaussian", "mean5")}

    first = times()
    assert times() == first
    assert times(time_budget_s=5.0) == first  # a filter does not train
    (answers / "mean5.tif").unlink()  # a lost movie is made again, the other one is kept
    again = times()
    assert again["gaussian"] == first["gaussian"]
    assert again["mean5"] > first["mean5"]
    (answers / "mean5.json").write_text("{ damaged")
    assert times()["gaussian"] == first["gaussian"]
    with tifffile.TiffFile(movie / "noisy.tif") as file:
        data = file.asarray()
    data[0, 0, 0] += 1
    write(Movie.from_array(data), movie / "noisy.tif", dtype="same", overwrite=True)
    assert times()["gaussian"] > first["gaussian"]


def test_a_failure_keeps_what_was_done_with_other_settings(place: Path, tmp_path: Path) -> None:
    movie, out = tmp_path / "little", tmp_path / "out"
    shutil.copytree(place / "little", movie)

    def statuses(**how: object) -> set[str]:
        found = benchmark.run([movie], "gaussian", out=out, figures=False, **how)  # type: ignore[arg-type]
        return {o.status for o in found.outcomes if o.method == "gaussian"}

    def kept() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (out / "results/little").glob("gaussian.*")}

    assert statuses() == {"done"}
    first = kept()
    with pytest.raises(ShineError, match="device 'gpu' cannot be used"):
        statuses(device="gpu")
    assert kept() == first
    pixels = (movie / "noisy.tif").read_bytes()
    write(Movie.from_array(noisy(*SHAPE, seed=1)), movie / "noisy.tif", overwrite=True)
    assert statuses(limit_s=1e-3) == {"failed"}
    assert first.items() <= kept().items()
    (movie / "noisy.tif").write_bytes(pixels)
    assert statuses() == {"done"}
    assert kept() == first


def test_the_device_matters_only_on_pytorch(place: Path, tmp_path: Path) -> None:
    case = Case("little", place / "little/noisy.tif", place / "little/truth.tif", "0123")

    def settings(device: str) -> dict[str, object]:
        common = {"hole": None, "device": device, "halves": False}
        chosen = choose("all,default,supervised", None)
        return {
            task["method"]: task["settings"]
            for task in benchmark._tasks(case, tmp_path, chosen, common, 0, 1, ())
        }

    cpu, cuda = settings("cpu"), settings("cuda")
    assert {name for name in cpu if cpu[name] == cuda[name]} == {
        "noise", "noisy", "gaussian", "bandpass", "wiener", "mean5", "bm3d", "bm3d-correlated",
    }  # fmt: skip


def test_a_method_that_takes_too_long_is_stopped(place: Path, tmp_path: Path) -> None:
    found = benchmark.run(
        [place / "little"], "gaussian", out=tmp_path / "out", limit_s=1e-3, figures=False
    )
    assert {o.status for o in found.outcomes} == {"failed"}
    assert all("time limit" in o.reason for o in found.outcomes)
    again = benchmark.run([place / "little"], "gaussian", out=tmp_path / "out", figures=False)
    assert {o.status for o in again.outcomes} == {"done"}


def test_seeds_and_input_frames_make_runs_of_their_own(place: Path, tmp_path: Path) -> None:
    found = benchmark.run(
        [place / "little"], "lean,gaussian", out=tmp_path / "out", time_budget_s=0.01, seeds=2,
        frames_in=(1, 5),
    )  # fmt: skip
    runs = [(o.method, o.seed, o.frames_in) for o in found.outcomes if o.method != "noisy"]
    assert sorted(runs, key=str) == sorted(
        [("lean", 0, None), ("lean", 1, None), ("lean", 0, 1), ("lean", 1, 1),
         ("lean", 0, 5), ("lean", 1, 5), ("gaussian", 0, None)], key=str,
    )  # fmt: skip
    assert {o.status for o in found.outcomes} == {"done"}
    assert (tmp_path / "out" / "input-frames.png").exists()


def test_bad_input_is_told_in_plain_words(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong, words in (
        ({"movies": ["nowhere"]}, "no scene of this name"),
        ({"movies": []}, "at least one movie"),
        ({"methods": "n2v,best"}, "Unknown method .best"),
        ({"time_budget_s": -1.0}, "^time_budget_s must"),
        ({"seeds": 0}, "^seeds must"),
        ({"limit_s": 0.0}, "^limit_s must"),
        ({"methods": "mean5,paper@3h"}, "SHINE, 180 min: limit_s must be above"),
        ({"methods": "lean", "limit_s": 60.0}, "lean: limit_s must be above"),
        ({"methods": "lean", "frames_in": (1, 4)}, "odd"),
        ({"methods": "bm3d", "frames_in": (1, 3)}, "paper and lean"),
    ):
        how: dict[str, object] = {"movies": [place / "little"], "methods": "gaussian"} | wrong
        with pytest.raises(ShineError, match=words):
            benchmark.run(how.pop("movies"), how.pop("methods"), out=out, **how)  # type: ignore
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    with pytest.raises(ShineError, match="holds other files"):
        benchmark.run([place / "little"], "gaussian", out=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_budgets_stand_with_the_names() -> None:
    chosen = choose("mean5, lean@90s,lean@5min, paper, bm3d@1min,n2v@none,default,supervised", 7.0)
    assert [(c.stem, c.budget_s, c.title) for c in chosen] == [
        ("mean5", 7.0, "5-frame mean"), ("lean@90s", 90.0, "lean, 90 s"),
        ("lean@5min", 300.0, "lean, 5 min"), ("paper", 7.0, "SHINE"),
        ("bm3d@60s", 60.0, "BM3D, 60 s"), ("n2v@ownschedule", None, "Noise2Void, own schedule"),
        ("default", 7.0, "shine denoise"), ("supervised", 7.0, "supervised on the truth"),
    ]  # fmt: skip
    assert training_seconds(chosen, seeds=3) == 3 * (90 + 300 + 7 + 7) + 7
    assert [c.stem for c in choose("lean@60s,lean@1min", None)] == ["lean@60s"]
    for wrong, words in (
        ("gaussian@60s", "leave the budget @60s out"), ("lean@soon", "not a duration"),
        ("lean@0s", "must be positive"), ("best@60s", "Unknown method .best"),
        (" ,", "Choose from"),
    ):  # fmt: skip
        with pytest.raises(ShineError, match=words):
            choose(wrong, None)


def test_the_default_job_is_the_job_itself(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shine_em import job

    def quick(movie: Movie, **options: object) -> job.Result:
        assert options.pop("time_budget") == 60.0  # seconds are no good in a test: steps
        # The network alone: after three steps the ensemble might be the filter.
        return whole(movie, steps=3, ensemble=False, **options)  # type: ignore[arg-type]

    whole = job.denoise
    monkeypatch.setattr(job, "denoise", quick)
    answer, output = tmp_path / "default.json", tmp_path / "default.tif"
    work(
        {"kind": "job", "method": "default", "noisy": str(place / "real.mrc"), "truth": None,
         "noise": None, "answer": str(answer), "failure": "", "output": str(output),
         "settings": {}, "hole": None,
         "time_budget_s": 60.0, "seed": 0, "frames_in": None, "device": "cpu", "halves": False},
        None,
    )  # fmt: skip
    found = json.loads(answer.read_text("utf-8"))
    assert found["status"] == "done", found
    assert read(output).shape == SHAPE
    assert 0 < found["training_s"] < found["seconds"]
    assert 0 < found["frame_s"] * SHAPE[0] < found["seconds"]
    assert 0.05 < found["gflop"] < 5  # about 10 for 512×512
    assert found["did"].startswith("denoised by shine-em")
    value, error = found["estimated"]  # a part of the noise variance
    assert 0 < error < 1
    assert value < 5


def test_operations_of_frames_side_by_side_are_counted(two_cores: None) -> None:
    import torch

    layer = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    with Meter(24, lambda *_: None) as meter, Lanes(2) as lanes:
        for k, _ in enumerate(lanes.map(layer, [torch.zeros(1, 1, 16, 16)] * 24), start=1):
            meter("denoising", k / 24)
    assert meter.cost()["gflop"] == pytest.approx(2 * 16 * 16 * 9 * 2 / 1e9)


def test_operations_and_seconds_are_those_of_the_denoising_alone() -> None:
    import time

    import torch

    layer = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    picture = torch.zeros(1, 1, 16, 16)
    heard = []
    with Meter(12, lambda stage, fraction: heard.append((stage, fraction))) as meter:
        for k in range(5):
            layer(picture)
            meter("training", k / 5)
        time.sleep(0.2)
        for k in range(12):
            layer(picture)
            meter("denoising", (k + 1) / 12)
    cost = meter.cost()
    assert len(heard) == 17
    assert cost["gflop"] == pytest.approx(2 * 16 * 16 * 9 * 2 / 1e9)
    assert cost["training_s"] is not None
    assert cost["training_s"] > 0.15  # less what a frame takes, which varies on a busy machine
    assert cost["frame_s"] is not None
    assert cost["seconds"] is not None
    assert cost["training_s"] + cost["frame_s"] < cost["seconds"]
    with Meter(12, lambda stage, fraction: None) as silent:
        pass
    assert silent.cost()["frame_s"] is None


def test_the_distance_to_the_ceiling_is_on_the_frames_it_was_not_taught() -> None:
    def outcome(method: str, frames: list[int], psnr: list[float | None], movie: str) -> Outcome:
        return Outcome(
            movie, method, method, 0, None, "done", "", 1.0, 1.0, None, {"psnr_affine": psnr},
            frames, None, {},
        )  # fmt: skip

    lean = outcome("lean", [0, 1, 2, 3], [10.0, 30.0, 32.0, 10.0], "m")
    ceiling = outcome("supervised", [1, 2], [35.0, 36.0], "m")
    other = outcome("lean", [0, 1], [20.0, 20.0], "another")
    every = [lean, ceiling, other]
    assert below_ceiling(lean, every) == pytest.approx(4.5)
    assert below_ceiling(ceiling, every) is None
    assert below_ceiling(other, every) is None
    assert "| lean | 20.50 | 4.50 |" in markdown_text(every)


def outcome_of(method: str, **more: Any) -> Outcome:
    values: dict[str, Any] = {
        "movie": "m", "method": method, "title": method, "seed": 0, "frames_in": None,
        "status": "done", "reason": "", "seconds": 1.0, "peak_mb": 500.0, "gpu_peak_mb": None,
        "scores": {"psnr_affine": [30.0]}, "frames": [0], "output": None, "record": {},
    }  # fmt: skip
    return Outcome(**values | more)


def test_the_finished_ceiling_with_the_largest_budget_counts() -> None:
    def ceiling(budget: float | None, psnr: float, status: str = "done") -> Outcome:
        scores = {"psnr_affine": [psnr]} if status == "done" else {}
        return outcome_of("supervised", status=status, scores=scores, budget_s=budget)

    lean = outcome_of("lean")
    short, good = ceiling(10.0, 31.0), ceiling(1200.0, 36.0)
    for every in ([short, good], [good, short], [ceiling(10.0, 0, "failed"), good],
                  [good, ceiling(None, 0, "failed")]):  # fmt: skip
        assert below_ceiling(lean, every) == pytest.approx(6.0)
    assert below_ceiling(lean, [good, ceiling(None, 37.0)]) == pytest.approx(7.0)
    assert below_ceiling(lean, [ceiling(10.0, 0, "failed")]) is None


def test_memory_of_process_and_gpu_stand_apart() -> None:
    host = outcome_of("mean5")
    gpu = outcome_of("lean", gpu_peak_mb=70.0)
    assert "GPU" not in markdown_text([host])
    _, head, _, first, second = (
        line.split(" | ") for line in markdown_text([host, gpu]).split("## m")[1].split("\n")[1:6]
    )
    assert head[-2:] == ["peak memory, MB", "on the GPU, MB |"]
    assert first[-2:] == ["500", " |"]
    assert second[-2:] == ["500", "70 |"]


def test_input_frames_are_compared_budget_by_budget() -> None:
    every = [
        outcome_of("lean", title=title, frames_in=width, scores={"psnr_affine": [psnr]})
        for title, width, psnr in (
            ("lean, 60 s", None, 31.0), ("lean, 60 s, 1 frames", 1, 25.0),
            ("lean, 60 s, 5 frames", 5, 30.0), ("lean, 5 min, 1 frames", 1, 35.0),
            ("lean, 5 min, 5 frames", 5, 36.0),
        )
    ]  # fmt: skip
    axes = plot_input_frames([*every, outcome_of("mean5")]).axes
    legend = axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["lean, 60 s", "lean, 5 min"]
    drawn = [np.asarray(line.lines[0].get_ydata()).tolist() for line in axes[0].containers]
    assert drawn == [[25.0, 30.0], [35.0, 36.0]]


def test_results_that_are_no_pictures_are_refused() -> None:
    movie = Movie.from_array(noisy(*SHAPE))
    with pytest.raises(ShineError, match="shape"):
        score(movie.select(slice(0, 3)), movie, None)
    broken = np.asarray(movie.data, np.float32).copy()
    broken[2, 3, 4] = np.nan
    with pytest.raises(ShineError, match="no finite"):
        score(Movie.from_array(broken), movie, None)


def test_the_table_gives_the_spread_over_seeds() -> None:
    def outcome(seed: int, psnr: list[float | None], status: str = "done") -> Outcome:
        return Outcome(
            "m", "n2v", "Noise2Void", seed, None, status, "it broke" * (status != "done"), 10.0,
            500.0, None, {"psnr_affine": psnr} if status == "done" else {}, [0, 1], None, {},
        )  # fmt: skip

    several = [outcome(0, [20.0, 22.0]), outcome(1, [24.0, None]), outcome(2, [], "failed")]
    text = markdown_text(several)
    assert "| Noise2Void | 22.50 ± 2.12 |" in text  # of 21 and 24
    assert "Noise2Void (seed 2) failed: it broke" in text
    rows = list(csv.DictReader(csv_text(several).splitlines()))
    assert [r["psnr_affine"] for r in rows] == ["21.0", "24.0", ""]
    assert [r["status"] for r in rows] == ["done", "done", "failed"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_the_process_s_own() -> None:
    # The parent is large, the child small: the child must not report the parent's size.
    ballast = np.ones(60_000_000 // 8)
    code = (
        "from shine_em.benchmark_worker import own_peak_memory as peak; import numpy as np\n"
        "a = peak()['peak_mb']; big = np.ones(30_000_000); print(a, peak()['peak_mb'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ
    ).stdout.split()
    before, after = map(float, said)
    mine = own_peak_memory()["peak_mb"]
    assert mine is not None
    assert before < mine - ballast.nbytes / 2e6
    assert after - before == pytest.approx(240, abs=40)


def test_the_command_line_prints_the_table(place: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "shine_em.cli", "benchmark", place / "little",
        "--methods", "mean5", "-o", tmp_path / "out", "--no-figures", "--device", "cpu", "-q",
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "| 5-frame mean |" in said
    answer = tmp_path / "out" / "results" / "little" / "mean5.json"
    assert json.loads(answer.read_text("utf-8"))["status"] == "done"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seeds", "0"), "^--seeds must"),
        (("--time-budget", "0s"), "^--time-budget must"),
        (("--frames-in", "2"), "^--frames-in must"),
        (("--frames", "0"), "with --frames 0, --size 512: --frames must"),
        (("--size", "16"), "--size 16: final_diameter_nm: .* a larger size"),
        (("nowhere",), "no scene of this name"),
    ],
)
def test_the_command_line_names_its_options(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    from shine_em.cli import app

    command = ["benchmark", "au-growth", *options, "--methods", "lean", "-o", str(tmp_path / "out")]
    with pytest.raises(ShineError, match=words):
        app(command, exit_on_error=False, print_error=False)
