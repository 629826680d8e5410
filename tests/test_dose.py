"""The dose advisor: lower doses as they would have been recorded, and what they are found to be."""

from __future__ import annotations

import io
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import model as random_model
from small import noisy, scene

import shine_em as shine
from shine_em import dose
from shine_em.cli import main
from shine_em.denoising import Denoiser
from shine_em.dose import _part, _possible_skips, advise
from shine_em.dose_advice import Advice, Criterion
from shine_em.dose_figure import plot_dose
from shine_em.dose_measures import Halves, measure_halves, particle_measure, ratio_of_means
from shine_em.dose_thinning import ElectronNoise, electron_noise, slower, thin
from shine_em.events import Event
from shine_em.movie import LazyFrames
from shine_em.planning import Options
from shine_em.simulate.detector import Camera, camera_named

CAMERA = Camera(
    name="ccd", title="CCD", conversion=8.0, spread=((0.6, 0.7),), dark=100.0, read_noise=25.0,
    integer=False,
)  # fmt: skip


def recorded(electrons: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy and expected frames of the test camera."""
    rng = np.random.default_rng(seed)
    both = [CAMERA.record(frame, rng) for frame in electrons]
    return np.stack([n for n, _ in both]), np.stack([e for _, e in both])


def known(movie: shine.Movie, **given: float) -> tuple[ElectronNoise, shine.Health]:
    health = shine.check(movie)
    noise = shine.noise_statistics(movie, bad_pixels=health.bad_pixels)
    return electron_noise(movie, health, noise, **given), health


def neighbours(noise: np.ndarray) -> float:
    """Return the correlation of horizontal neighbours."""
    noise = noise - noise.mean((1, 2), keepdims=True)
    return float((noise[:, :, 1:] * noise[:, :, :-1]).mean() / (noise**2).mean())


def test_thinned_counts_are_distributed_as_counts_of_a_lower_dose() -> None:
    movie = shine.Movie.from_array(noisy(16, 64, 64), dose_e_per_A2=4.0)
    electrons, health = known(movie)
    assert electrons.quantum == 1
    thinned = thin(movie, 0.15, noise=electrons, health=health)
    low = np.asarray(thinned.data[:])
    assert low.dtype == np.uint16
    assert (low <= np.asarray(movie.data)).all()
    assert thinned.dose_e_per_A2 == pytest.approx(0.6)
    expected = 0.15 * scene(16, 64, 64)
    # Pearson's χ² over pixels, and the share of empty ones: a Poisson distribution has both.
    chi2 = ((low - expected) ** 2 / expected).mean()
    assert abs(chi2 - 1) < 5 * np.sqrt(2.4 / low.size)
    empty = np.exp(-expected)
    assert abs((low == 0).mean() - empty.mean()) < 5 * np.sqrt(empty.mean() / low.size)
    assert abs(neighbours(low - expected)) < 5 / np.sqrt(low.size)
    np.testing.assert_array_equal(thinned.frame(3), low[3])
    other = thin(movie, 0.15, noise=electrons, health=health, seed=1)
    assert (other.frame(3) != low[3]).any()


def test_electrons_of_several_counts_stay_whole() -> None:
    movie = shine.Movie.from_array(7 * noisy(12, 64, 64))
    electrons, health = known(movie)
    assert electrons.quantum == 7
    low = np.asarray(thin(movie, 0.5, noise=electrons, health=health).data[:])
    assert not (low % 7).any()
    assert low.mean() == pytest.approx(0.5 * np.asarray(movie.data).mean(), rel=0.01)


def ramp(t: int = 20, side: int = 96) -> np.ndarray:
    """Return expected electrons: a wide range of signals, still, with a few soft steps."""
    x = np.linspace(0, 1, side)
    frame = 40 + 360 * x[None, :] ** 2 + 60 * (np.sin(9 * x)[:, None] > 0)
    return np.repeat(frame[None], t, 0)


@pytest.mark.parametrize("given", [{"gain": 3.01, "dark": 100.0}, {"dark": 100.0}])
def test_a_camera_at_a_lower_dose(given: dict[str, float]) -> None:
    raw, _ = recorded(ramp(), seed=1)
    really, expected = recorded(0.2 * ramp(), seed=2)
    movie = shine.Movie.from_array(raw)
    found, health = known(movie, **given)
    assert found.quantum is None
    low = np.asarray(thin(movie, 0.2, noise=found, health=health).data[:])
    error, true_error = low - expected, really - expected
    assert abs(error.mean()) < 5 * error.std() * 2 / np.sqrt(error.size)
    bright = expected > np.median(expected)
    for where in (bright, ~bright):
        assert error[where].var() == pytest.approx(true_error[where].var(), rel=0.08)
    assert neighbours(error) == pytest.approx(neighbours(true_error), abs=0.03)
    assert np.corrcoef(error[:-1].ravel(), error[1:].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_copies_stay_copies_blanks_stay_blank_and_holes_do_not_spread() -> None:
    raw = recorded(ramp(12, 64), seed=4)[0]
    raw[5] = raw[4]
    raw[8] = 0
    raw[2, 10, 10] = np.nan
    movie = shine.Movie.from_array(raw)
    found, health = known(movie, gain=3.0, dark=100.0)
    low = thin(movie, 0.5, noise=found, health=health)
    np.testing.assert_array_equal(low.frame(5), low.frame(4))
    np.testing.assert_array_equal(low.frame(8), 0)
    np.testing.assert_array_equal(np.argwhere(np.isnan(low.frame(2))), [[10, 10]])
    again = shine.check(low)
    assert again.duplicate_of[5] == 4
    assert np.flatnonzero(again.blank).tolist() == [8]


def test_unknown_and_impossible_noise_is_refused() -> None:
    rng = np.random.default_rng(0)
    flat = shine.Movie.from_array(rng.normal(500, 20, (10, 64, 64)).astype(np.float32))
    with pytest.raises(shine.ShineError, match=r"--gain.*--dark"):
        known(flat)
    assert known(flat, dark=100.0)[0].gain == pytest.approx(400 / 400, rel=0.05)
    assert known(flat, gain=0.5)[0].read_noise == pytest.approx(np.sqrt(400 - 250), rel=0.1)
    for wrong, word in (({"gain": 2.0}, "gain of 2"), ({"dark": 600.0}, "below the movie's mean")):
        with pytest.raises(shine.ShineError, match=word):
            known(flat, **wrong)
    for dark in (np.nan, np.inf):
        with pytest.raises(shine.ShineError, match=f"--dark .* not {dark}"):
            known(flat, dark=dark)
    # Half a standard error off, the gain that was given is the one that is used and told.
    kept = known(flat, gain=0.9)[0]
    assert (kept.gain, kept.read_noise) == (0.9, 0.0)
    assert "gain 0.9 (given)" in kept.note
    found, health = known(flat, dark=0.0)
    with pytest.raises(shine.ShineError, match="above 0"):
        thin(flat, 1.5, noise=found, health=health)


def test_coincidence_loss_is_all_that_is_missing_from_thinned_counts() -> None:
    # A K2 that counts 8 electrons per pixel and second, thinned to a tenth.
    camera = camera_named("k2-counting")
    rng = np.random.default_rng(0)

    def recording(electrons: float) -> np.ndarray:
        frames = [camera.record(np.full((96, 96), electrons), rng)[0] for _ in range(8)]
        return np.stack(frames)[:, 16:-16, 16:-16]

    movie = shine.Movie.from_array(recording(8.0))
    found, health = known(movie)
    assert found.quantum == 1
    assert "exact without coincidence loss" in found.note
    thinned = np.asarray(thin(movie, 0.1, noise=found, health=health).data[:]).mean()
    lost = 1 - np.asarray(movie.data).mean() / (10 * (low := recording(0.8).mean()))
    assert 0.05 < lost < 0.1
    assert thinned == pytest.approx(low * (1 - lost), rel=0.02)


def test_frame_rates_alone_need_no_model_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    raw = (scene(14, 48, 48) + rng.normal(0, 2, (14, 48, 48))).astype(np.float32)
    movie = shine.Movie.from_array(raw)
    with pytest.raises(shine.ShineError, match="--gain"):
        known(movie)
    found = advise(
        movie, fractions=[1], skips=[1, 2],
        options=Options(steps=2, ensemble=False), measure=lambda frame: {"SD": float(frame.std())},
    )  # fmt: skip
    assert [level.skip for level in found.levels] == [1, 2]
    assert found.electrons == {}


def test_doubled_frames_are_refused_before_any_training() -> None:
    told: list[Event] = []
    doubled = shine.Movie.from_array(np.repeat(noisy(12, 32, 32), 2, axis=0), name="export")
    with pytest.raises(shine.ShineError, match=r"export: no two of the 12 .* --frames ::2"):
        advise(doubled, skips=[1], options=Options(steps=2), progress=told.append)
    assert "training" not in {event.stage for event in told}


def lasting() -> shine.Movie:
    """Return a movie whose noise lives on for a frame."""
    raw = np.random.default_rng(0).normal(0, 4, (14, 64, 64))
    raw[1:] = 0.8 * raw[1:] + 0.6 * raw[:-1]
    return shine.Movie.from_array((scene(14, 64, 64) + raw).astype(np.float32), name="lag")


@pytest.mark.parametrize("criterion", ["snr", "frc"])
def test_noise_shared_by_the_halves_is_refused_before_any_training(criterion: Criterion) -> None:
    told: list[Event] = []
    with pytest.raises(shine.ShineError, match=rf"lag: .* {criterion} .* --measure particles"):
        advise(
            lasting(), fractions=[1], skips=[1, 2], criterion=criterion, progress=told.append,
            options=Options(steps=2, ensemble=False),
        )  # fmt: skip
    assert "training" not in {event.stage for event in told}


def test_particles_are_measured_where_halves_share_the_noise() -> None:
    found = advise(
        lasting(), fractions=[1], skips=[1, 2], criterion="particles",
        options=Options(steps=2, ensemble=False), measure=lambda frame: {"SD": float(frame.std())},
    )  # fmt: skip
    full, _ = found.levels
    assert full.halves.frames.size == 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["levels"][0]["snr_db"] is None
    assert full.name in found.table()
    plot_dose(found).savefig(io.BytesIO())


def test_a_level_whose_halves_share_the_noise_is_left_out(
    counted: shine.Movie, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([[], [()]])  # the full dose, then the lower one
    compare = dose.measure_halves

    def halves(denoiser: Denoiser, movie: shine.Movie, *rest: Any, **how: Any) -> Halves:
        if next(measured):
            lags = {"blinded_lags": [1]}
            denoiser = Denoiser(replace(denoiser.model, noise=lags))
        return compare(denoiser, movie, *rest, **how)

    monkeypatch.setattr(dose, "measure_halves", halves)
    found = advise(
        counted, fractions=[0.5], skips=[1], options=Options(steps=2, ensemble=False),
        measure=lambda frame: {"SD": float(frame.std())},
    )  # fmt: skip
    assert [level.name for level in found.levels] == ["full dose"]
    assert any("Not tested: 50 % dose" in note for note in found.notes)


def test_lower_frame_rates_keep_time_and_dose_true() -> None:
    raw = noisy(9, 16, 16)
    movie = shine.Movie.from_array(raw, frame_time_s=0.5, dose_e_per_A2=2.0)
    dropped = slower(movie, 4)
    np.testing.assert_array_equal(np.asarray(dropped.data[:]), raw[[0, 4, 8]])
    assert (dropped.frame_time_s, dropped.dose_e_per_A2) == (2.0, 2.0)
    summed = slower(movie, 4, skipping="sum")
    expected = [raw[:4].sum(0, dtype=float), raw[4:8].sum(0, dtype=float)]
    np.testing.assert_array_equal(np.asarray(summed.data[:]), expected)
    assert (summed.frame_time_s, summed.dose_e_per_A2) == (2.0, 8.0)
    assert summed.axes[0].offset == pytest.approx(0.75)


def test_hot_pixels_are_no_signal() -> None:
    clean = noisy(9, 64, 64)
    raw = clean.copy()
    raw[:, 10, 12] = raw[:, 50, 7] = 4000
    movies = [shine.Movie.from_array(frames) for frames in (clean, raw)]
    denoiser = Denoiser(random_model())
    one, two = (measure_halves(denoiser, m, shine.check(m)).raw_snr for m in movies)
    assert two == pytest.approx(one, abs=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_particles_are_counted_and_sized(sign: int) -> None:
    y, x = np.mgrid[:96, :96]
    frame = np.zeros((96, 96))
    for cy in (16, 48, 80):
        for cx in (16, 48, 80):
            frame += np.hypot(y - cy, x - cx) < 6
    frame[2, 40] = 1  # a speck
    frame = 50 + sign * 20 * frame + np.random.default_rng(0).normal(0, 1, frame.shape)
    measure = particle_measure([frame], pixel_size_nm=0.5)
    found = measure(frame)
    assert found["count"] == 9
    assert found["diameter"] == pytest.approx(6.0, rel=0.03)
    assert measure(np.full((32, 32), 3.0))["count"] == 0


def test_what_is_kept_of_a_quantity() -> None:
    reference = np.array([10.0, 12.0, 8.0, 10.0])
    kept, error = ratio_of_means(0.8 * reference, reference)
    assert kept == pytest.approx(0.8)
    assert error == pytest.approx(0)
    assert ratio_of_means(1.25 * reference, reference)[0] == pytest.approx(0.8)
    scattered = reference + np.array([1.0, -1.0, 1.0, -1.0])
    assert ratio_of_means(scattered, reference)[1] == pytest.approx(0.058, abs=0.003)
    assert ratio_of_means(np.full(4, np.nan), reference)[0] == 0


@pytest.fixture(scope="module")
def counted() -> shine.Movie:
    return shine.Movie.from_array(
        noisy(14, 48, 48), pixel_size_nm=0.2, frame_time_s=0.5, dose_e_per_A2=4.0, name="counted"
    )


@pytest.fixture(scope="module")
def told(counted: shine.Movie) -> tuple[Advice, list[Event]]:
    """Return advice on a movie of 14 frames and what was told meanwhile."""
    seen: list[Event] = []
    advice = advise(
        counted, fractions=[0.1], skips=[1, 2], keep=0.9, options=Options(steps=8, ensemble=False),
        measure=lambda frame: {"mean": float(frame.mean()), "SD": float(frame.std())},
        progress=seen.append,
    )  # fmt: skip
    return advice, seen


@pytest.fixture(scope="module")
def advice(told: tuple[Advice, list[Event]]) -> Advice:
    return told[0]


def test_levels_are_measured_in_units_of_the_full_dose(advice: Advice) -> None:
    full, low, slow = advice.levels
    assert [v.name for v in advice.levels] == ["full dose", "10 % dose", "every 2nd frame"]
    assert [v.frames for v in advice.levels] == [14, 14, 7]
    mean = scene(14, 48, 48).mean()
    for level in advice.levels:
        assert level.values["mean"] == pytest.approx(mean, rel=0.02)
        assert level.picture.raw.mean() == pytest.approx(mean, rel=0.05)
    assert full.difference == 0
    assert 0 < advice.uncertainty < 1
    # 10 dB less, as the noise of a tenth of the electrons has it, within the pairs' scatter.
    assert full.halves.raw_snr - low.halves.raw_snr == pytest.approx(10, abs=2.5)
    assert slow.halves.raw_snr == pytest.approx(full.halves.raw_snr, abs=2)
    assert low.kept["snr"] < 0.9
    assert low.difference > 0.1


def test_the_advice_says_where_it_fails(advice: Advice) -> None:
    assert advice.lowest(advice.doses())[0] is advice.levels[0]
    said = advice.sentences()
    assert len(said) == 2
    assert "could not drop as far as to 10 % (0.4 of 4 e⁻/Å²)" in said[0]
    assert "frame rate" in said[1]
    assert "1/2 (1 of 2 frames/s)" in said[1]
    easy = replace(advice, keep=1e-6)
    assert "could drop to 10 % (0.4 of 4 e⁻/Å²) or further" in easy.sentences()[0]
    unknown = replace(easy, movie=replace(advice.movie, dose_e_per_A2=None))
    assert "could drop to 10 % or further" in unknown.sentences()[0]
    steps = replace(advice.levels[1], fraction=0.5, name="50 % dose", kept={"snr": 0.95})
    between = replace(advice, levels=(advice.levels[0], steps, advice.levels[1]))
    assert "could drop to 50 % (2 of 4 e⁻/Å²) before the SNR" in between.sentences()[0]
    rows = advice.table().splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("10 % dose")
    assert rows[2].endswith("fails")
    numbers = json.loads(json.dumps(advice.to_dict(), allow_nan=False))
    assert [v["passes"] for v in numbers["levels"]][:2] == [True, False]
    assert numbers["electrons"]["quantum"] == 1


def test_progress_names_the_level_and_only_grows(told: tuple[Advice, list[Event]]) -> None:
    _, seen = told
    for number in (1, 2, 3):
        level = [e for e in seen if e.stage.startswith(f"{number} of 3")]
        done = [e.done for e in level]
        assert done == sorted(done)
        assert done[-1] == 90
        assert number == 1 or all(e.seconds_left is not None for e in level)


def test_the_figure_shows_every_level(advice: Advice) -> None:
    titles = [axis.get_title() for axis in plot_dose(advice).get_axes()]
    assert {"kept of SNR, %", "mean", "SD", "full dose", "10 % dose: fails"} <= set(titles)


@pytest.mark.parametrize(
    ("chosen", "word"),
    [
        ({"fractions": [0.0]}, "above 0"),
        ({"skips": [1, 3]}, "--skip 3 leaves 4"),
        ({"skips": [0]}, "whole numbers"),
        ({"keep": 1.5}, "--keep"),
        ({"criterion": "beauty"}, "choose from"),
        ({"fractions": [1], "skips": [1]}, "Nothing to compare"),
        ({"time_budget": 10.0}, "too short"),
    ],
)
def test_impossible_levels_are_refused(
    counted: shine.Movie, chosen: dict[str, object], word: str
) -> None:
    with pytest.raises(shine.ShineError, match=word):
        advise(counted, **chosen)  # type: ignore[arg-type]


def test_short_movies_are_refused_or_tested_at_fewer_rates() -> None:
    with pytest.raises(shine.ShineError, match="too few"):
        advise(shine.Movie.from_array(noisy(5, 32, 32)))
    skips, notes = _possible_skips(shine.Movie.from_array(noisy(12, 32, 32)), None)
    assert skips == (1, 2)
    assert "every 4th frame" in notes[0]


def test_of_a_large_movie_as_much_is_used_as_the_time_allows() -> None:
    movie = shine.Movie(LazyFrames(lambda _t: np.zeros((192, 256)), (40, 192, 256), np.float32))
    # At a microsecond per pixel a third of the time must do for all pixels, and for the halves'.
    whole = 3e-6 * (40 + 32 + 2 * 5) * 192 * 256
    assert _part(movie, 1.01 * whole, 1e-6, 2) == (movie, ())
    part, notes = _part(movie, 0.91 * whole, 1e-6, 2)
    assert part.shape == (32, 192, 256)
    assert "Measured on frames 4:36, rows 0:192," in notes[0]
    part, _ = _part(movie, 0.91 * whole, 1e-6, 3)  # 36 frames, for 12 at the lowest frame rate
    assert part.shape[0] == 36
    assert 180 <= part.shape[1] < 192
    assert _part(movie, 0.01 * whole, 1e-4, 1)[0].shape == (24, 128, 128)


@pytest.fixture
def file(tmp_path: Path, counted: shine.Movie) -> Path:
    path = tmp_path / "movie.tif"
    shine.write(counted, path, dtype="same")
    return path


def run(*arguments: str | Path) -> int:
    """Run ``shine dose`` here and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["dose", *map(str, arguments)])
    return int(str(stopped.value.code))


QUICK = ("--steps", "2", "--fractions", "1,0.5", "--skip", "1")


def test_the_command_writes_figure_and_numbers(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, *QUICK, "--keep", "0.01", "--dose", "8") == 0
    shown = capsys.readouterr().out
    assert {p.name for p in file.parent.iterdir()} == {
        "movie.tif", "movie_dose.png", "movie_dose.json",
    }  # fmt: skip
    assert "2 of 2: 50 % dose" in shown
    assert "The dose could drop to 50 % (4 of 8 e⁻/Å²)" in shown
    assert "counted electrons, taken out one by one (exact without coincidence loss)" in shown
    numbers = json.loads(file.with_name("movie_dose.json").read_text("utf-8"))
    assert numbers["advice"][0] in shown
    assert run("--help") == 0
    assert "shine dose movie.dm4 --measure frc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--frames", "0:4"), "too few"),
        (("--fractions", "half"), "write numbers with commas"),
        (("-o", "figure.jpg"), "ends in .png"),
        (("--gain", "1000"), "--gain"),
    ],
)
def test_mistakes_are_told_in_a_line(
    file: Path, arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, *arguments) == 2
    said = capsys.readouterr().err
    assert word in said
    assert len(said.strip().splitlines()) <= 2
    assert [p.name for p in file.parent.iterdir()] == ["movie.tif"]


def test_results_are_not_replaced_unasked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = file.with_name("movie_dose.json")
    mine.write_text("mine")
    assert run(file, *QUICK) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"


class _Impatient(io.StringIO):
    """A terminal whose user presses Ctrl-C once training is shown."""

    def write(self, text: str) -> int:
        if "training" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_leaves_nothing_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An event is shown at most every 15 s: with a new stage for each level, training is not shown
    # in time, unless every event is.
    monkeypatch.setattr("shine_em.display._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stdout", _Impatient())
    assert run(file, "--steps", "400") == 130
    assert [p.name for p in file.parent.iterdir()] == ["movie.tif"]
