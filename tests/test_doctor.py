"""The input doctor: every finding where it belongs, and none on clean movies."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, shift, zoom

from shine_em import doctor, doctor_frames
from shine_em.doctor import Health, check, format_findings
from shine_em.errors import ShineError
from shine_em.movie import LazyFrames, Movie

T, N = 40, 96


def particles(seed=0, *, dose=20.0, t=T, n=N, contrast=-0.6, radius=5.0, k=12, step=1.5):
    """Return the expected counts of round particles in Brownian motion."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    place = rng.uniform(0, n, (k, 2))
    frames = np.ones((t, n, n))
    for frame in frames:
        for cy, cx in place:
            frame += contrast / (1 + np.exp((np.hypot(y - cy, x - cx) - radius) / 0.8))
        place += rng.normal(0, step, place.shape)
    return dose * np.clip(frames, 0.05, None)


def lattice(*, dose=20.0, sigma=1.0, turn=0.01, t=T, n=N):
    """Return the expected counts of a turning lattice of atoms."""
    y, x = np.mgrid[:n, :n] - n / 2
    frames = []
    for i in range(t):
        u = np.cos(turn * i) * x + np.sin(turn * i) * y
        v = -np.sin(turn * i) * x + np.cos(turn * i) * y
        u, v = (a - 9 * np.round(a / 9) for a in (u, v))
        frames.append(0.2 + np.exp(-(u**2 + v**2) / (2 * sigma**2)))
    return dose * np.array(frames)


def counts(expected, seed=0):
    return np.random.default_rng(seed).poisson(expected).astype(np.uint16)


def camera(expected, seed=0):
    """Return what a scintillator camera makes of it: offset, gain, spread and read-out noise."""
    rng = np.random.default_rng(seed)
    electrons = gaussian_filter(rng.poisson(expected).astype(float), (0, 0.6, 0.6))
    return np.round(100 + 8 * electrons + rng.normal(0, 6, electrons.shape)).astype(np.uint16)


def codes(health):
    return {f.code for f in health.findings}


def problems(health):
    return [f for f in health.findings if f.severity != "info"]


def found(health, code):
    matches = [f for f in health.findings if f.code == code]
    assert matches, f"{code} not among {codes(health)}"
    return matches[0]


@pytest.fixture(scope="module")
def clean():
    return counts(particles())


@pytest.fixture(scope="module")
def clean_camera():
    return camera(particles())


# --- clean movies stay clean


@pytest.mark.parametrize("dose", [0.05, 0.6, 20])
@pytest.mark.parametrize(
    "scene",
    [
        lambda dose, seed: np.full((24, N, N), dose),
        lambda dose, seed: particles(seed, t=24, dose=dose),
        lambda dose, seed: particles(seed, t=24, dose=dose, radius=2, contrast=6, k=6, step=0.5),
        lambda dose, seed: particles(seed, t=24, dose=dose, radius=8, k=6, step=15),
        lambda dose, seed: lattice(t=24, dose=dose),
        lambda dose, seed: lattice(t=24, dose=dose, turn=0, sigma=0.8),
        lambda dose, seed: particles(seed, dose=dose, t=3)[:, :97, :63],
    ],
    ids=["noise", "brownian", "bright", "fast", "turning-lattice", "static-lattice", "short"],
)
def test_clean_counts_have_no_problem(scene, dose):
    movie = counts(scene(dose, 3), 3)
    health = check(movie, thorough=True)
    assert not problems(health), format_findings(health)
    assert not health.bad_pixels.any()
    assert not health.blank.any()
    assert not health.segment.any()
    assert health.spike_threshold == np.inf
    assert health.spike_floor == -np.inf
    assert health.location == pytest.approx(movie.mean(), rel=1e-9)
    assert health.scale == pytest.approx(movie.std(), rel=1e-9)
    np.testing.assert_allclose(health.frame_means, movie.mean(axis=(1, 2)))
    np.testing.assert_array_equal(health.duplicate_of, np.arange(len(movie)))


@pytest.mark.parametrize("seed", range(2))
def test_clean_camera_and_gaussian_noise_have_no_problem(seed):
    assert not problems(check(camera(particles(seed), seed), thorough=True))
    noise = np.random.default_rng(seed).normal(0, 1, (T, 64, 64)).astype(np.float32)
    assert not problems(check(noise, thorough=True))
    assert not problems(check(gaussian_filter(noise, (0, 1, 1)), thorough=True))


def test_real_movie_has_no_problem(au_movie_path: Path):
    import tifffile

    frames = tifffile.imread(au_movie_path)
    health = check(frames, thorough=True)
    assert not problems(health), format_findings(health)
    assert health.location == pytest.approx(frames.mean())
    assert health.scale == pytest.approx(frames.std())


def test_a_slow_fade_is_neither_blank_nor_jump():
    fade = np.linspace(1, 0.05, T)[:, None, None]
    health = check(counts(particles() * fade))
    assert not problems(health), format_findings(health)
    assert not health.blank.any()


def test_empty_frames_of_a_very_sparse_movie_are_fair_observations():
    movie = counts(np.full((30, 32, 32), 0.002), 1)
    assert (movie.sum(axis=(1, 2)) == 0).any()
    health = check(movie)
    assert not health.blank.any()
    assert not problems(health)


# --- frames


def test_duplicates_at_any_distance(clean):
    movie = clean.copy()
    movie[7], movie[8], movie[30] = movie[6], movie[6], movie[2]
    health = check(movie)
    assert {i: int(health.duplicate_of[i]) for i in (7, 8, 30)} == {7: 6, 8: 6, 30: 2}
    assert (health.duplicate_of == np.arange(T)).sum() == T - 3
    assert found(health, "duplicate-frames").frames == (7, 8, 30)


def test_duplicates_of_a_huge_movie_are_confirmed(clean, monkeypatch):
    monkeypatch.setattr(doctor_frames, "_HUGE_BYTES", 0)
    movie = clean.copy()
    movie[7] = movie[6]
    movie[20] = movie[3]
    movie[20, 1, 1] += 1  # off the pixels that are hashed
    health = check(movie)
    assert np.flatnonzero(health.duplicate_of != np.arange(T)).tolist() == [7]


@pytest.mark.parametrize("where", [[7], [0, 1], [38, 39], [10, 11, 12, 13]], ids=str)
@pytest.mark.parametrize("kind", ["camera", "counts"])
def test_blanked_frames(where, kind, clean, clean_camera):
    dark = np.full((len(where), N, N), 0.0 if kind == "camera" else 0.1)
    movie = (clean_camera if kind == "camera" else clean).copy()
    good = np.delete(movie, where, axis=0)
    movie[where] = camera(dark, 9) if kind == "camera" else counts(dark, 9)
    health = check(movie)
    assert np.flatnonzero(health.blank).tolist() == where
    assert found(health, "beam-blank").frames == tuple(where)
    assert health.location == pytest.approx(good.mean())
    assert health.scale == pytest.approx(good.std())
    assert "intensity-jump" not in codes(health)


def test_constant_and_lost_frames(clean):
    movie = clean.astype(np.float32)
    movie[5] = 0
    movie[9] = np.nan
    health = check(movie)
    assert np.flatnonzero(health.blank).tolist() == [5, 9]
    assert found(health, "constant-frame").frames == (5, 9)
    assert np.isnan(health.frame_means[9])
    assert health.location == pytest.approx(np.delete(clean, [5, 9], axis=0).mean(), rel=1e-6)


@pytest.mark.parametrize("at", [2, 20, 38])
def test_scene_cut(at):
    movie = counts(np.concatenate([particles(1)[:at], particles(2)[at:]]), at)
    health = check(movie)
    assert found(health, "scene-cut").frames == (at,)
    np.testing.assert_array_equal(health.segment, np.arange(T) >= at)


def test_several_cuts_and_a_cut_in_a_noisy_movie():
    health = check(camera(np.concatenate([particles(s, t=10) for s in range(4)])))
    assert found(health, "scene-cut").frames == (10, 20, 30)
    np.testing.assert_array_equal(health.segment, np.repeat(np.arange(4), 10))
    noisy = counts(np.concatenate([particles(s, t=20, dose=0.6) for s in (1, 2)]))
    (at,) = found(check(noisy), "scene-cut").frames
    assert abs(at - 20) <= 1


def test_cuts_of_a_long_movie_are_found_in_little_memory(monkeypatch):
    rng = np.random.default_rng(0)
    scenes = rng.normal(0, 5, (2, 32, 32))
    movie = np.repeat(scenes, 3000, axis=0) + rng.normal(100, 1, (6000, 32, 32))
    table = doctor_frames.read_table(Movie.from_array(movie.astype(np.float32)))
    usable = np.arange(6000)
    tracemalloc.start()
    found = doctor_frames.find_cuts(table, usable)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == [3000]
    assert peak < 2 * table.thumbnail.nbytes
    monkeypatch.setattr(doctor_frames, "_AT_ONCE", 7000)
    assert doctor_frames.find_cuts(table, usable).tolist() == [3000]


def test_a_cut_hidden_by_a_blank_still_separates():
    movie = counts(np.concatenate([particles(s, t=10) for s in (1, 2)]))
    movie[9] = counts(np.full((N, N), 0.1))
    health = check(movie)
    assert health.blank.tolist() == [i == 9 for i in range(20)]
    np.testing.assert_array_equal(health.segment, np.arange(20) >= 10)


@pytest.mark.parametrize("factor", [0.3, 0.7, 0.9, 2])
@pytest.mark.parametrize("record", [counts, camera])
def test_intensity_jump(factor, record):
    gain = np.where(np.arange(T) < 17, 1.0, factor)[:, None, None]
    health = check(record(particles() * gain))
    assert found(health, "intensity-jump").frames == (17,)
    assert not health.blank.any()
    assert not health.segment.any()


def test_intensity_jump_across_a_blank_frame():
    movie = counts(particles() * np.where(np.arange(T) < 17, 1.0, 0.5)[:, None, None])
    movie[16] = 0
    (jump,) = [f for f in check(movie).findings if f.code == "intensity-jump"]
    assert jump.frames == (17,)
    before, after = (np.median(movie[a:b].mean((1, 2))) for a, b in ((13, 16), (17, 20)))
    told = [float(x) for x in re.findall(r"from (\S+) to (\S+) at", jump.what)[0]]
    assert told == pytest.approx([before, after], rel=0.05)


# --- pixels


@pytest.mark.parametrize("scene", [particles, lattice])
@pytest.mark.parametrize("factor", [2.5, 10])
def test_hot_pixels(scene, factor):
    rng = np.random.default_rng(5)
    expected = scene()
    y, x = rng.integers(0, N, (2, 20))
    expected[:, y, x] = expected.mean() * factor + expected[:, y, x].mean(axis=0) * factor
    movie = counts(expected)
    health = check(movie)
    truth = np.zeros((N, N), bool)
    truth[y, x] = True
    np.testing.assert_array_equal(health.bad_pixels, truth)
    assert found(health, "hot-pixels").severity == "warning"
    good = movie[:, ~truth]
    assert health.location == pytest.approx(good.mean())
    assert health.scale == pytest.approx(good.std())
    np.testing.assert_allclose(health.frame_means, good.mean(axis=1))


def test_hot_pixels_of_sparse_and_of_short_movies():
    rng = np.random.default_rng(5)
    y, x = rng.integers(0, N, (2, 8))
    sparse = particles(dose=0.05)
    sparse[:, y, x] = 1.5
    truth = np.zeros((N, N), bool)
    truth[y, x] = True
    np.testing.assert_array_equal(check(counts(sparse)).bad_pixels, truth)
    short = camera(particles(t=3))
    assert not check(short).bad_pixels.any()
    short[:, y, x] = 5000
    assert check(short).bad_pixels[y, x].all()
    single = check(short[:1])
    assert not single.bad_pixels.any()


@pytest.mark.parametrize(
    ("sigma", "dose", "seed"),
    [(0.65, 0.6, 0), (0.65, 0.6, 1), (0.65, 0.6, 3), (0.6, 20, 1), (0.5, 5, 1), (0.5, 0.6, 0)],
)
def test_atoms_hardly_wider_than_a_pixel_are_not_hot(sigma, dose, seed):
    movie = counts(lattice(dose=dose, sigma=sigma, turn=0), seed)
    assert not check(movie).bad_pixels.any()


@pytest.mark.parametrize(("sigma", "dose"), [(0.65, 0.6), (0.8, 20)])
def test_hot_pixels_among_sharp_static_atoms_are_found(sigma, dose):
    expected = lattice(dose=dose, sigma=sigma, turn=0)
    truth = np.zeros((N, N), bool)
    y, x = np.random.default_rng(5).integers(0, N, (2, 12))
    truth[y, x] = True
    truth &= expected[0] < 0.5 * dose  # on an atom no one could tell
    expected[:, truth] += 6 * dose
    np.testing.assert_array_equal(check(counts(expected)).bad_pixels, truth)


def test_a_pixel_that_turns_hot_midway_is_found_and_an_atom_that_hops_is_not():
    expected = particles()
    expected[15:, 20, 31] += 200
    assert np.argwhere(check(counts(expected)).bad_pixels).tolist() == [[20, 31]]
    y, x = np.mgrid[:N, :N]
    hopping = np.full((T, N, N), 5.0)
    for t in range(T):
        cy, cx = (20, 31) if t < 12 else (60, 50)
        hopping[t] += 30 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 0.6**2))
    assert not check(counts(hopping)).bad_pixels.any()


def test_dead_and_stuck_pixels(clean, clean_camera):
    movie = clean.copy()
    movie[:, 3, 5] = movie[:, 90, 40] = 0
    health = check(movie)
    assert np.argwhere(health.bad_pixels).tolist() == [[3, 5], [90, 40]]
    assert "dead-pixels" in codes(health)
    movie = clean_camera.copy()
    movie[:, :, 50] = 255  # a column stuck at an ordinary value
    movie[:, 7, 9] = 65535
    health = check(movie)
    assert health.bad_pixels[:, 50].all()
    assert health.bad_pixels[7, 9]
    assert health.bad_pixels.sum() == N + 1
    assert {"hot-pixels", "dead-pixels"} <= codes(health)


def test_a_pixel_that_never_fired_in_a_sparse_movie_is_not_dead():
    movie = counts(particles(dose=0.05))
    assert (movie.sum(axis=0) == 0).any()
    assert not check(movie).bad_pixels.any()


@pytest.mark.parametrize("hits", [1, 8, 25])
@pytest.mark.parametrize("dose", [0.05, 20])
def test_x_ray_spikes(hits, dose):
    rng = np.random.default_rng(hits)
    movie = counts(particles(dose=dose))
    clean_mean, clean_sd, top = movie.mean(), movie.std(), movie.max()
    places = rng.choice(movie.size, hits, replace=False)
    movie.flat[places] = (max(top, 10) * rng.uniform(4, 30, hits)).astype(np.uint16)
    health = check(movie)
    finding = found(health, "x-ray-spikes")
    assert set(finding.frames) == {int(p) // (N * N) for p in places}
    masked = movie > health.spike_threshold
    assert set(np.flatnonzero(masked)) == set(places)
    assert health.location == pytest.approx(clean_mean, rel=2e-3)
    assert health.scale == pytest.approx(clean_sd, rel=2e-3)


def test_negative_spikes(clean_camera):
    movie = clean_camera.astype(np.float32)
    movie[5, 10, 10], movie[9, 50, 60] = -3000, -4000
    health = check(movie)
    assert found(health, "negative-spikes").frames == (5, 9)
    assert -3000 < health.spike_floor < movie[movie > 0].min()


def test_heavy_tails_and_bright_particles_are_no_spikes():
    rng = np.random.default_rng(0)
    electrons = rng.poisson(particles(dose=0.6))
    energy = rng.gamma(3.0, 7.0, electrons.shape) * electrons
    energy += (
        (rng.random(electrons.shape) < 0.02) * (electrons > 0) * rng.exponential(80, energy.shape)
    )
    assert check(energy.astype(np.uint16)).spike_threshold == np.inf
    dots = particles(3, k=2, radius=1.2, contrast=40, step=3)
    assert check(counts(dots)).spike_threshold == np.inf


def test_non_finite_values(clean):
    movie = clean.astype(np.float32)
    movie[:, 9, 9] = np.nan
    movie[3, 4, 4] = np.inf
    health = check(movie)
    assert np.argwhere(health.bad_pixels).tolist() == [[9, 9]]
    assert {"non-finite", "non-finite-pixels"} <= codes(health)
    assert np.isfinite(health.frame_means).all()
    assert health.location == pytest.approx(clean.mean(), rel=1e-3)


def test_saturation_and_clipping(clean, clean_camera):
    assert found(check(np.minimum(clean, 24)), "saturation").severity == "warning"
    dark = np.clip(clean_camera.astype(int) - 220, 0, None).astype(np.uint16)
    assert "lowest value, 0." in found(check(dark), "clipped-low").what
    bright = np.clip(clean_camera / 300.0, 0, 1).astype(np.float32)
    assert "saturation" in codes(check(bright))


def test_fixed_pattern():
    gain = np.random.default_rng(2).normal(1, 0.1, (N, N))
    health = check((counts(particles()) * gain).astype(np.float32))
    assert found(health, "fixed-pattern").severity == "warning"
    assert "fixed-pattern" not in codes(check(counts(lattice(turn=0))))


# --- signs of earlier processing


def signs(movie):
    return codes(check(movie, thorough=True))


def test_drift_correction_leaves_borders():
    rng = np.random.default_rng(1)
    frames = counts(particles(t=16))
    shifts = rng.integers(-4, 5, (16, 2))
    for mode in ("constant", "nearest"):
        moved = [shift(f, s, order=0, mode=mode) for f, s in zip(frames, shifts, strict=True)]
        assert "drift-corrected" in signs(np.stack(moved))
    framed = np.pad(frames, ((0, 0), (4, 4), (4, 4)))
    assert "empty-border" in signs(framed)
    assert "drift-corrected" not in signs(framed)


@pytest.mark.parametrize("order", [1, 3])
def test_sub_pixel_shifts_are_seen_without_borders(order):
    rng = np.random.default_rng(1)
    frames = counts(particles(t=24)).astype(np.float32)
    moved = [shift(f, rng.uniform(-2, 2, 2), order=order, mode="grid-wrap") for f in frames]
    assert "interpolated" in signs(np.stack(moved))


@pytest.mark.parametrize(("factor", "order"), [(1.3, 1), (0.7, 1), (1.5, 3)])
def test_resampling(factor, order):
    frames = counts(particles(t=12, n=160)).astype(np.float32)
    assert "interpolated" in signs(zoom(frames, (1, factor, factor), order=order))


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampling_and_binning(factor):
    frames = counts(particles(t=12, n=96))
    assert "upsampled" in signs(frames.repeat(factor, 1).repeat(factor, 2))
    m = 96 // factor
    binned = frames.reshape(12, m, factor, m, factor).mean(axis=(2, 4)).astype(np.float32)
    assert f"1/{factor**2}" in found(check(binned, thorough=True), "binned").what


@pytest.mark.parametrize("quality", [50, 90])
def test_jpeg(quality):
    from imagecodecs import jpeg_decode, jpeg_encode

    frames = counts(particles(t=12))
    eight_bit = np.clip(frames * 5.0, 0, 255).astype(np.uint8)
    assert "lossy-compression" not in signs(eight_bit)
    packed = [jpeg_decode(jpeg_encode(f, level=quality)) for f in eight_bit]
    assert "lossy-compression" in signs(np.stack(packed))


def test_grey_levels(clean_camera):
    assert "4th" in found(check(counts(particles()) * 4, thorough=True), "grey-level-gaps").what
    stretched = np.round(np.clip(clean_camera - 100.0, 0, 255) * 1.4).astype(np.uint16)
    assert "grey-level-gaps" in signs(stretched)
    converted = np.clip((clean_camera - 200.0) * 2.5, 0, 255).astype(np.uint8)
    assert "8-bit-conversion" in signs(converted)


def test_frame_rate_conversion(clean):
    index = np.repeat(np.arange(T), np.where(np.arange(T) % 4 == 3, 2, 1))
    health = check(clean[index], thorough=True)
    assert "5th" in found(health, "frame-rate-conversion").what
    assert not health.segment.any()


# --- the interface


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "?"]),
    thorough=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_type(shape, dtype, thorough, seed):
    movie = np.random.default_rng(seed).poisson(3, shape).astype(dtype)
    if (movie == movie[:, :1, :1]).all():
        with pytest.raises(ShineError, match="no frame of this movie can be used"):
            check(movie, thorough=thorough)
        return
    health = check(movie, thorough=thorough)
    t, y, x = shape
    assert health.duplicate_of.shape == health.blank.shape == health.segment.shape == (t,)
    assert health.bad_pixels.shape == (y, x)
    assert np.isfinite([health.location, health.scale]).all()
    again = Health.from_dict(json.loads(json.dumps(health.to_dict())))
    assert again.findings == health.findings
    for name in ("duplicate_of", "blank", "segment", "bad_pixels", "frame_means"):
        np.testing.assert_array_equal(getattr(again, name), getattr(health, name))


def test_large_numbers_keep_their_precision():
    movie = counts(particles(t=8)).astype(np.uint32) + np.uint32(4_000_000_000)
    health = check(movie)
    assert health.scale == pytest.approx(movie.std())
    assert [f.code for f in problems(health)] == ["rounding"]  # in the network, not here


@pytest.mark.parametrize(
    ("dtype", "offset", "told"),
    [
        ("u4", 10**6, False),  # every whole number up to 2**24 is a float32
        ("i4", 3 * 10**7, True),
        ("i8", 10**12, True),
        ("f8", 10**9, True),
        ("f8", 10**4, False),
        ("f4", 10**9, False),  # what the file itself has rounded, nothing rounds again
    ],
)
def test_rounding_is_told_where_it_matters(clean, dtype, offset, told):
    movie = Movie.from_array((clean.astype("f8") + offset).astype(dtype))
    assert ("rounding" in [f.code for f in check(movie).findings]) == told
    if told:  # 100 times the contrast at the same level
        loud = (clean.astype("f8") * 4 * np.spacing(np.float32(offset)) + offset).astype(dtype)
        assert "rounding" not in [f.code for f in check(Movie.from_array(loud)).findings]


@pytest.mark.parametrize(
    ("movie", "words"),
    [
        (counts(lattice(t=4)).astype("i8") + 2**60, "subtract a constant"),
        (counts(lattice(t=4)).astype("f8") * 1e-300, "multiply them by a constant"),
    ],
)
def test_numbers_that_float32_cannot_tell_apart(movie, words):
    with pytest.raises(ShineError, match=words):
        check(movie)


def test_json_keeps_masks_and_thresholds(clean):
    movie = clean.copy()
    movie[:, 3, 5] = 4000
    movie[11, 60, 60] = 60000
    movie[20] = 0
    health = check(movie)
    again = Health.from_dict(json.loads(json.dumps(health.to_dict())))
    assert again.spike_threshold == health.spike_threshold < np.inf
    assert again.spike_floor == -np.inf
    assert again.bad_pixels[3, 5]
    assert again.blank[20]
    np.testing.assert_array_equal(again.bad_pixels, health.bad_pixels)


def test_frames_are_read_one_by_one(clean):
    asked = []

    def read(i):
        asked.append(i)
        return clean[i]

    health = check(Movie(LazyFrames(read, clean.shape, clean.dtype)))
    assert asked[:T] == list(range(T))
    assert max(asked.count(i) for i in range(T)) <= 3
    assert health.location == pytest.approx(clean.mean())


def test_odd_sizes(clean):
    rng = np.random.default_rng(0)
    movie = rng.poisson(5, (2, 959, 927)).astype(np.uint16)
    assert not problems(check(movie))
    assert not problems(check(clean[:, :16, :16]))


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_nothing_usable(value, tmp_path):
    movie = Movie.from_array(np.full((3, 8, 8), value, np.float32), name="flat.mrc")
    with pytest.raises(ShineError, match=r"flat\.mrc: no frame of this movie can be used"):
        check(movie)


def test_words_for_the_terminal(clean):
    assert format_findings(check(clean)) == "No problems found."
    movie = clean.copy()
    movie[3:6] = movie[2]
    text = format_findings(check(movie))
    assert "WARNING duplicate-frames: 3 of 40 frames" in text
    assert "(frames 3-5)" in text
    assert doctor.list_frames([9, 1, 2, 3]) == "1-3, 9"
