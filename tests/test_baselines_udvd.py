"""UDVD: blindness by gradient, what it sees beside, and that it learns from the movie alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import health, noisy, scene

from shine_em.baselines import METHODS
from shine_em.baselines import udvd as home
from shine_em.baselines.udvd import FRAMES, UDVD, udvd
from shine_em.metrics import movie_psnr
from shine_em.movie import Movie
from shine_em.noise import noise_statistics
from shine_em.patches import Normalisation


def visible(network: UDVD, shape: tuple[int, int], y: int, x: int) -> np.ndarray:
    """Return where input pixels change output pixel (y, x), as (frames, h, w) bool."""
    dtype = next(network.parameters()).dtype
    window = torch.randn(1, FRAMES, *shape, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(window)[0, y, x], window)
    return (gradient[0] != 0).numpy()


@given(
    shape=st.tuples(st.integers(17, 34), st.integers(17, 34)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    hole=st.tuples(st.sampled_from([1, 3, 5, 9]), st.sampled_from([1, 3, 7])),
)
@settings(max_examples=6)
def test_no_pixel_inside_the_hole_is_seen_and_every_other_one_may_be(shape, place, hole) -> None:
    torch.manual_seed(0)
    network = UDVD(hole, width=6).double()
    y, x = (min(n - 1, int(p * n)) for p, n in zip(place, shape, strict=True))
    seen = visible(network, shape, y, x)
    rows = slice(max(0, y - hole[0] // 2), y + hole[0] // 2 + 1)
    columns = slice(max(0, x - hole[1] // 2), x + hole[1] // 2 + 1)
    assert not seen[:, rows, columns].any()
    # The four half planes together leave out nothing but the hole.
    hidden = ~seen.any(axis=0)
    hidden[rows, columns] = False
    assert not hidden.any()


def test_the_published_network_is_blind_at_even_odd_and_edge_positions() -> None:
    torch.manual_seed(0)
    network = UDVD((1, 1))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.12e6, rel=0.01)
    window = torch.randn(1, FRAMES, 18, 17, requires_grad=True)
    predicted = network(window)[0]
    for y, x in ((0, 16), (11, 12)):
        (gradient,) = torch.autograd.grad(predicted[y, x], window, retain_graph=True)
        assert (gradient[0, :, y, x] == 0).all()
        assert (gradient[0] != 0).any(dim=(1, 2)).all()  # every one of the five frames counts


def test_the_halo_of_a_tile_covers_all_that_a_pixel_sees() -> None:
    torch.manual_seed(0)
    network = UDVD((9, 9), width=6).double()
    for shape, place in (((360, 20), (181, 9)), ((20, 360), (9, 182))):
        seen = np.nonzero(visible(network, shape, *place).any(axis=0))
        reach = max(np.abs(where - at).max() for where, at in zip(seen, place, strict=True))
        assert 20 < reach <= home._HALO


def test_tiles_and_shared_triples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = noisy(3, 9, 560, seed=3)
    movie, sound = Movie.from_array(data), health(data.shape)
    torch.manual_seed(0)
    network = UDVD((3, 3), width=6).eval()
    normalisation = Normalisation.of(sound)
    found = []
    for tile in (1024, 520):
        monkeypatch.setattr(home, "_TILE", tile)
        out = np.empty(data.shape, np.float32)
        home._denoise(network, movie, sound, normalisation, out, torch.device("cpu"), "fp32", None)
        found.append(out)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
    # Without anything shared between frames; the movie's end mirrors in time.
    window = torch.from_numpy(normalisation.apply(data))[[0, 1, 2, 1, 0]][None]
    with torch.inference_mode():
        alone = normalisation.invert(network(window)[0].numpy())
    np.testing.assert_allclose(found[0][2], alone, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def learned() -> tuple[Movie, Movie, np.ndarray]:
    """Return a noisy movie, what UDVD makes of it, and its truth."""
    movie = Movie.from_array(noisy(12, 33, 38, dose=10), pixel_size_nm=0.1, intensity_unit="counts")
    return movie, udvd(movie, hole=(1, 1), steps=30, width=12), scene(12, 33, 38, dose=10)


def test_it_learns_from_the_noisy_movie_alone(learned) -> None:
    movie, clean, truth = learned
    assert clean.shape == movie.shape
    assert clean.dtype == np.float32
    assert clean.pixel_size_nm == movie.pixel_size_nm
    assert "1x1" in clean.history[-1]
    gain = movie_psnr(clean, truth, protocol="range") - movie_psnr(movie, truth, protocol="range")
    assert gain.min() > 2
    assert abs(np.mean(clean.data) - np.mean(movie.data)) < 0.02 * np.mean(movie.data)


def test_the_same_seed_gives_the_same_movie_and_another_one_another() -> None:
    movie = Movie.from_array(noisy(6, 24, 24))
    runs = [udvd(movie, hole=(3, 3), steps=3, width=6, seed=seed).data for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[2] - runs[0]).max() > 1e-3


def test_udvd_star_takes_its_hole_from_the_noise() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(10, 64, 66))
    along_rows = 100 + white[..., :-2] + white[..., 1:-1] + white[..., 2:]
    movie = Movie.from_array(along_rows.astype(np.float32))
    stats = noise_statistics(movie)
    assert stats.hole[1] > stats.hole[0]
    rows, columns = stats.hole
    for noise in (None, stats):
        clean = udvd(movie, noise=noise, steps=1, width=6)
        assert f"{rows}x{columns}" in clean.history[-1]
    assert METHODS["udvd"].hole == (1, 1)
    assert METHODS["udvd-star"].hole is None


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_short_movies_with_a_blank_frame_pass(frames: int) -> None:
    data = noisy(frames, 40, 40).astype(np.float32)
    if frames == 4:
        data[2] = 0
    clean = udvd(Movie.from_array(data), hole=(1, 1), steps=2, width=6)
    assert np.isfinite(clean.data).all()
    if frames == 4:  # it holds no picture, so nothing is invented
        np.testing.assert_array_equal(clean.data[2], data[2])
