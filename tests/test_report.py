"""The report: what it says, that it stays in one file, and that it works in a browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from shine_em import report as report_module
from shine_em.doctor import Finding
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.noise import NoiseStatistics, noise_statistics
from shine_em.observing import Observer
from shine_em.report import ReportData, methods_text, write_report
from shine_em.report_uncertainty import UncertaintyPicture

HOSTILE = "<script>alert('x')</script> & \"movie\" {{ 7*7 }} </title>"
TRAINING = {
    "steps": 1200,
    "seconds": 313.0,
    "train_loss": [(i, 1 + 1 / (1 + i)) for i in range(1, 1200)],
    "validation_loss": [(i, 1 + 1 / (1 + i)) for i in range(50, 1200, 50)],
    "best_step": 1150,
    "preset": "lean",
    "frames": 5,
    "parameters": 124129,
    "stopped": "all steps done",
}


def make(
    *, leftover: float = 0.0, shape: tuple[int, int, int] = (20, 96, 128), **changes
) -> ReportData:
    """Return the report of moving discs under correlated noise, denoised but for a share."""
    rng = np.random.default_rng(0)
    t, y, x = np.indices(shape)
    clean = 100 - 40.0 * (np.hypot(y - shape[1] / 2, x - shape[2] / 3 - t) < 20)
    clean = gaussian_filter(clean, (0, 1, 1))
    noise = gaussian_filter(rng.normal(size=shape), (0, 0.6, 0.6))
    raw = clean + 20 * noise / noise.std()
    mean = clean.mean()
    denoised = (mean + (1 - leftover) * (clean - mean)).astype(np.float32)
    movie = Movie.from_array(raw.astype(np.float32), name="discs")
    observer = Observer(movie)
    for k, frame in enumerate(movie.frames()):
        observer.add(k, frame, denoised[k])
    data = ReportData(
        movie={"name": "discs", "shape": "20 frames"},
        noise=noise_statistics(movie),
        observations=observer.finish(),
        training=TRAINING,
        halves_snr={"frames": [3, 9, 15], "raw": [-6.0, -5.5, -5.8], "denoised": [9.0, 9.4, 9.2]},
        provenance={"shine-em": "0.1.0", "seed": "17"},
        pixel_size_nm=0.05,
        frame_time_s=0.0025,
    )
    return replace(data, noise=replace(data.noise, warnings=()), **changes)


@pytest.fixture(scope="module")
def data() -> ReportData:
    return make()


@pytest.fixture(scope="module")
def page_path(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    warned = replace(
        data,
        movie={**data.movie, "name": HOSTILE},
        warnings=["The dose is not known.", "The dose is not known."],
        health_findings=(
            Finding("hot-pixels", "warning", "Saw 3 hot pixels.", "They are left out.", ()),
            Finding("fine", "info", "No frame is doubled.", "Good.", ()),
        ),
    )
    return write_report(tmp_path_factory.mktemp("report") / "a report.html", warned)


class _Links(HTMLParser):
    """Collects every address and tag of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)


def test_page_holds_everything_itself(page_path: Path) -> None:
    text = page_path.read_text("utf-8")
    links = _Links()
    links.feed(text)
    assert links.addresses
    assert all(a.startswith(("data:image/", "#")) for a in links.addresses)
    assert "link" not in links.tags
    assert links.tags.count("svg") == 10
    assert len(set(links.ids)) == len(links.ids)
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}


def test_names_from_outside_stay_text(page_path: Path) -> None:
    text = page_path.read_text("utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "{{ 7*7 }}" in text


def test_warnings_come_once_and_gravest_first(page_path: Path) -> None:
    text = page_path.read_text("utf-8")
    block = text[text.index('id="warnings"') : text.index("</ul>")]
    items = re.findall(r"<li>(.*?)</li>", block)
    assert items == ["Saw 3 hot pixels. They are left out.", "The dose is not known."]
    assert "there are 2 warnings" in text
    assert "No frame is doubled." in text


def test_verdict_follows_the_evidence(data: ReportData) -> None:
    def verdict(report: ReportData) -> tuple[str, str]:
        return report_module._verdict(report, report_module._residual_test(report))

    assert verdict(data)[0] == "good"
    assert verdict(replace(data, warnings=["a"]))[0] == "caution"
    assert verdict(make(leftover=0.2)) == ("bad", "Look twice: the residual is not only noise.")
    broken = Finding("blank", "error", "All blank.", "Nothing to do.", ())
    assert verdict(replace(data, health_findings=(broken,)))[0] == "bad"


def test_methods_paragraph_holds_the_numbers(data: ReportData) -> None:
    text = methods_text(data)
    hole = " × ".join(map(str, data.noise.hole))
    reach = data.noise.difference_correlation.shape[0] // 2
    for wanted in (
        "20 frames of 96 × 128 pixels", "0.05 nm per pixel", "0.0025 s per frame",
        "shine-em 0.1.0", "10.1126/sciadv.ads5552", f"{data.noise.sigma:.3g}",
        f"{data.noise.difference_correlation[reach, reach + 1]:.3f}", f"blind spot of {hole}",
        "124,129 parameters", "sees 5 frames", "1,200 steps in 5 min", "step 1,150",
        "from −5.8 dB to 9.2 dB", "median of 3 frames",
    ):  # fmt: skip
        assert wanted in text, wanted
    short = methods_text(
        replace(
            data, training={}, halves_snr=None, provenance={}, pixel_size_nm=None, frame_time_s=None
        )
    )
    assert "steps" not in short
    assert "nm" not in short.replace("shine-em", "")
    assert "None" not in short + text
    assert "nan" not in short + text


@pytest.mark.parametrize("shape", [(3, 1, 64), (3, 64, 1), (3, 2, 2), (1, 3, 40)])
def test_frames_too_small_for_a_neighbour_have_a_report(tmp_path, shape) -> None:
    movie = Movie.from_array(np.random.default_rng(0).poisson(9, shape).astype(np.float32))
    observer = Observer(movie)
    for t, frame in enumerate(movie.frames()):
        observer.add(t, frame, np.full(shape[1:], 9.0, np.float32))
    report = ReportData({}, noise_statistics(movie), observer.finish())
    assert "with the next pixel could not be measured in frames this small" in methods_text(report)
    write_report(tmp_path / "r.html", report)


@pytest.mark.parametrize(
    ("value", "said"),
    [(-5.81, "−5.8 dB"), (np.inf, "∞ dB"), (-np.inf, "no signal"), (np.nan, "no signal")],
)
def test_an_snr_in_words(data: ReportData, value: float, said: str) -> None:
    halves = {"frames": [3], "raw": [value], "denoised": [9.2]}
    assert f"from {said} to 9.2 dB" in methods_text(replace(data, halves_snr=halves))


def test_no_snr_is_drawn_where_no_frames_are_neighbours(tmp_path, data: ReportData) -> None:
    nothing = np.full(20, np.nan)
    seen = replace(data.observations, snr_raw=nothing, snr_denoised=nothing)
    lonely = replace(data, observations=seen, halves_snr=None)
    text = write_report(tmp_path / "r.html", lonely).read_text("utf-8")
    assert "SNR of each frame" not in text


def test_the_residual_view_is_scaled_by_what_the_observer_measured(data: ReportData) -> None:
    seen = replace(data.observations, residual_sigma=7.5)
    assert report_module._player(replace(data, observations=seen))["sigma"] == 7.5
    flat = replace(data.observations, residual_sigma=0.0)
    assert report_module._player(replace(data, observations=flat))["sigma"] == 1
    shown = data.observations.raw - data.observations.denoised
    assert data.observations.residual_sigma == pytest.approx(shown.std(), rel=1e-4)


def test_an_unreliable_gain_has_both_its_reasons(tmp_path, data: ReportData) -> None:
    curve = replace(data.noise.mean_variance, reliable=False)
    noise = replace(data.noise, mean_variance=curve)
    text = write_report(tmp_path / "r.html", replace(data, noise=noise)).read_text("utf-8")
    assert "the signal varies too little, or moves too fast" in text


def test_the_gain_is_told_and_where_it_was_measured(tmp_path, data: ReportData) -> None:
    curve = replace(data.noise.mean_variance, gain=24.36, reliable=True, removed=True)
    for one, gained, removed in (
        (curve, True, True),
        (replace(curve, removed=False), True, False),
        (replace(curve, reliable=False), False, True),
    ):
        noise = replace(data.noise, mean_variance=one)
        text = write_report(tmp_path / "r.html", replace(data, noise=noise)).read_text("utf-8")
        assert ("by 24.4 for each unit" in text) == gained
        assert ("here it does not" in text) != gained
        assert ("Measured in what was removed" in text) == removed
        (tmp_path / "r.html").unlink()


@pytest.mark.parametrize("shape", [(1, 40, 40), (2, 17, 33), (3, 12, 12)])
def test_small_movies_without_anything_known(tmp_path, data: ReportData, shape) -> None:
    movie = Movie.from_array(np.random.default_rng(0).poisson(5, shape).astype(np.uint8))
    observer = Observer(movie)
    for t, frame in enumerate(movie.frames()):
        observer.add(t, frame, np.full(shape[1:], 5.0, np.float32))
    bare = ReportData({}, data.noise, observer.finish())
    text = write_report(tmp_path / "r.html", bare).read_text("utf-8")
    assert 'id="player"' in text
    assert ("SNR of each frame" in text) == (shape[0] > 1)
    assert ">nan" not in text
    assert "None" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_unmeasurable_noise_is_shown_as_it_is(tmp_path, data: ReportData) -> None:
    gone = replace(
        data.noise,
        temporal_correlation=np.full(5, np.nan),
        temporal_error=np.full(5, np.nan),
        mean_variance=replace(
            data.noise.mean_variance, gain=np.nan, means=np.empty(0), variances=np.empty(0)
        ),
    )
    assert isinstance(gone, NoiseStatistics)
    assert write_report(tmp_path / "r.html", replace(data, noise=gone)).stat().st_size > 1e5


def test_large_frames_are_shown_smaller_to_bound_the_file(data, monkeypatch) -> None:
    monkeypatch.setattr(report_module, "PICTURES_MB", 0.05)
    player = report_module._player(data)
    assert player["width"] <= 64
    assert sum(len(f["raw"]) + len(f["denoised"]) for f in player["frames"]) < 60_000
    # The scale bar still means the same length, 20 of the movie's pixels.
    assert player["bar"]["label"] == "1 nm"
    assert player["bar"]["share"] * player["width"] * round(128 / player["width"]) == (
        pytest.approx(20)
    )


def test_file_stays_below_25_mb_for_the_noisiest_movie(data, page_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(16, 300, 300)).astype(np.float32)
    seen = replace(
        data.observations, shape=(16, 300, 300), raw=noisy, denoised=noisy[::-1],
        kept=np.arange(16), sample_raw=noisy[0].ravel(), sample_denoised=noisy[0].ravel(),
    )  # fmt: skip
    monkeypatch.setattr(report_module, "PICTURES_MB", 2.0)
    pictures = len(json.dumps(report_module._player(replace(data, observations=seen)))) / 1e6
    assert 0.5 < pictures < 2.1
    monkeypatch.undo()
    # The rest of the page does not depend on the frames' size but for three 512-pixel spectra.
    rest = (page_path.stat().st_size - len(json.dumps(_player(page_path)))) / 1e6
    assert 1.05 * report_module.PICTURES_MB + rest + 3 * 0.4 < 25


@pytest.mark.parametrize("kind", ["raw", "denoised"])
def test_blank_frames_do_not_hide_how_large_the_others_are(data, monkeypatch, kind):
    frames = np.random.default_rng(0).normal(size=(16, 300, 300)).astype(np.float32)
    frames[[0, 8]] = 0
    seen = replace(
        data.observations, shape=(16, 300, 300), kept=np.arange(16),
        sample_raw=frames[1].ravel(), sample_denoised=frames[1].ravel(),
        **{"raw": np.zeros_like(frames), "denoised": np.zeros_like(frames), kind: frames},
    )  # fmt: skip
    monkeypatch.setattr(report_module, "PICTURES_MB", 0.5)
    pictures = len(json.dumps(report_module._player(replace(data, observations=seen)))) / 1e6
    assert 0.1 < pictures < 0.52


def test_nothing_is_overwritten_or_left_behind(tmp_path, data, monkeypatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(ShineError, match="exists already"):
        write_report(path, data)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module.os, "replace", full)
    with pytest.raises(ShineError, match="No space left"):
        write_report(path, data, overwrite=True)
    monkeypatch.undo()
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    write_report(path, data, overwrite=True)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(chromium: str):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield running
        running.close()


@pytest.fixture
def page(browser, page_path: Path):
    """Open the report; whatever the page complains of or asks the network for is a failure."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url),
    )
    opened.on("dialog", lambda dialog: problems.append("dialog"))
    opened.goto(page_path.as_uri())
    opened.wait_for_selector("canvas[data-shown]")
    yield opened
    opened.close()
    assert problems == []


def _player(path: Path) -> dict:
    text = path.read_text("utf-8")
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL).group(1))


def _pixels(page) -> np.ndarray:
    values, width = page.evaluate(
        """() => { const c = document.getElementById('picture');
        const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return [Array.from(p).filter((_, i) => i % 4 == 0), c.width]; }"""
    )
    return np.array(values).reshape(-1, width)


def _shown(page, words: str) -> None:
    page.wait_for_selector(f'canvas[data-shown="{words}"]', timeout=20_000)


def test_picture_is_the_movie_and_the_wipe_moves(page, page_path, data) -> None:
    _shown(page, "8 wipe shared 50")
    # A middle frame comes first: the first ones of a movie have neighbours on one side only.
    assert page.locator("#slider").input_value() == "8"
    pixels = _pixels(page)
    low, high = _player(page_path)["shared"]
    seen = data.observations
    wanted = np.clip((seen.denoised[8] - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(pixels[:, 64:], wanted[:, 64:], atol=3)
    raw = np.clip((seen.raw[8] - low) / (high - low) * 255, 0, 255)
    assert np.abs(pixels[:, :64] - raw[:, :64]).mean() < 2
    box = page.locator("#picture").bounding_box()
    handle = page.locator("#handle").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    _shown(page, "8 wipe shared 80")
    assert np.abs(_pixels(page)[:, :100] - raw[:, :100]).mean() < 2
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 60)
    _shown(page, "8 wipe shared 25")
    page.locator("#handle").focus()
    for key, shown in (
        ("ArrowRight", 30), ("ArrowUp", 35), ("PageUp", 60), ("End", 100), ("PageDown", 75),
        ("Home", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        _shown(page, f"8 wipe shared {shown}")


@pytest.mark.parametrize("height", [900, 500])
def test_bar_and_handle_lie_on_the_picture_where_the_window_is_low(
    browser, data, tmp_path, height: int
) -> None:
    side = 1024
    picture = np.zeros((1, side, side), np.float32)
    seen = replace(
        data.observations, shape=(1, side, side), raw=picture, denoised=picture, kept=np.arange(1)
    )
    path = write_report(tmp_path / "r.html", replace(data, observations=seen))
    opened = browser.new_page(viewport={"width": 1280, "height": height})
    opened.goto(path.as_uri())
    opened.wait_for_selector("canvas[data-shown]")
    box = opened.locator("#picture").bounding_box()
    assert box["height"] == pytest.approx(box["width"], abs=1)
    assert box["height"] < 0.7 * height
    bar = opened.locator("#bar").bounding_box()
    assert opened.locator("#bar-label").inner_text() == "10 nm"
    assert bar["width"] / box["width"] == pytest.approx(200 / side, rel=0.01)
    handle = opened.locator("#handle").bounding_box()
    middle = box["x"] + box["width"] / 2
    assert handle["x"] + handle["width"] / 2 == pytest.approx(middle, abs=1)
    opened.close()


def test_slider_keyboard_and_play_change_the_frame(page, page_path) -> None:
    frames = _player(page_path)["frames"]
    page.locator("#slider").fill("5")
    _shown(page, "5 wipe shared 50")
    index = frames[5]["index"]
    assert page.locator("#where").inner_text() == f"frame {index} / 19, {index * 0.0025:g} s"
    page.locator("h1").click()
    for key in ("r", "ArrowRight", " "):  # elsewhere on the page they do what they always do
        page.keyboard.press(key)
    _shown(page, "5 wipe shared 50")
    left_alone = (
        "dispatchEvent(new KeyboardEvent('keydown', {key: ' ', bubbles: true, cancelable: true}))"
    )
    assert page.evaluate(f"document.body.{left_alone}")  # whether the page then scrolls is its own
    page.locator("#player").focus()
    page.keyboard.press("ArrowRight")
    _shown(page, "6 wipe shared 50")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    _shown(page, "4 wipe shared 50")
    page.keyboard.press("r")
    _shown(page, "4 residual shared 50")
    assert page.locator("#tag-left").inner_text() == "residual: raw − denoised"
    assert abs(_pixels(page).mean() - 127.5) < 3
    page.keyboard.press("r")
    page.keyboard.press("c")
    _shown(page, "4 wipe own 50")
    page.keyboard.press(" ")
    page.wait_for_selector('canvas:not([data-shown^="4 "])', timeout=20_000)
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-label") == "Play"


def test_own_contrast_differs_and_the_cursor_follows(page) -> None:
    box = page.locator("#picture").bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 60)
    _shown(page, "8 wipe shared 10")
    shared = _pixels(page)
    page.locator("#contrast-own").click()
    _shown(page, "8 wipe own 10")
    own = _pixels(page)
    assert own[:, 20:].std() > 1.2 * shared[:, 20:].std()
    assert own[:, :10].std() < shared[:, :10].std()
    before = page.locator('[id="snr-cursor"]').bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(50)
    plot = page.locator("svg", has=page.locator('[id="snr-cursor"]'))
    moved = page.locator('[id="snr-cursor"]').bounding_box()["x"] - before
    assert 0 < moved < plot.bounding_box()["width"] / 10


def test_what_the_reader_sees(page, data) -> None:
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.title().startswith(HOSTILE)
    assert page.locator("#bar-label").inner_text() == "1 nm"
    bar = page.locator("#bar").bounding_box()["width"]
    picture = page.locator("#picture").bounding_box()["width"]
    assert bar / picture == pytest.approx(20 / 128, rel=0.02)  # 1 nm = 20 of 128 pixels
    assert "hot pixels" in page.locator("#warnings").inner_text()
    assert "124,129 parameters" in page.locator("#methods").inner_text()
    assert "No picture found" in page.locator("#residual-verdict").inner_text()


@pytest.mark.parametrize("width", [1280, 700, 360])
def test_no_sideways_scrolling(page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_uncalibrated_movies_have_a_bar_in_pixels(browser, data, tmp_path) -> None:
    path = write_report(tmp_path / "r.html", replace(data, pixel_size_nm=None, frame_time_s=None))
    opened = browser.new_page()
    opened.goto(path.as_uri())
    opened.wait_for_selector("canvas[data-shown]")
    assert opened.locator("#bar-label").inner_text() == "20 px"
    assert opened.locator("#where").inner_text() == f"frame {data.observations.kept[8]} / 19"
    opened.close()


def test_the_uncertainty_map_is_shown_where_it_was_asked_for(data, page_path, browser, tmp_path):
    frame = data.observations.denoised[3].astype(float)
    error = 1 + np.indices(frame.shape)[1] / 10
    picture = UncertaintyPicture(3, frame, error, "counts")
    path = write_report(tmp_path / "r.html", replace(data, uncertainty=picture))
    opened = browser.new_page()
    opened.goto(path.as_uri())
    section = opened.locator("#uncertainty")
    words = section.inner_text()
    assert "frame 3" in words
    assert "± 1 and 95 within ± 2.4 times" in words
    drawn = section.locator("svg").inner_html()
    assert drawn.count("<image") == 4  # two pictures and their colour bars
    assert "± / counts" in section.locator("svg").text_content()
    box = section.locator("svg").bounding_box()
    assert box["width"] > 300
    opened.close()
    assert 'id="uncertainty"' not in page_path.read_text("utf-8")
