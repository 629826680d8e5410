"""Metrics against closed forms and independent implementations; the residual test's error rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, uniform_filter1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from shine_em import metrics
from shine_em.errors import ShineError
from shine_em.movie import Movie
from shine_em.residual import residual_structure


def scene(shape: tuple[int, int] = (96, 80), seed: int = 0) -> np.ndarray:
    """Return a few soft discs between 0 and 1."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    picture = np.zeros(shape)
    for _ in range(shape[0] * shape[1] // 1300):
        centre, radius = rng.uniform(0, 1, 2) * shape, rng.uniform(4, 12)
        picture = np.maximum(picture, np.hypot(y - centre[0], x - centre[1]) < radius)
    return gaussian_filter(picture, 1.2)


# --- PSNR and SSIM ---------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_the_closed_form() -> None:
    truth = np.zeros((20, 30))
    truth[:, 15:] = 8.0
    assert metrics.psnr(truth + 0.5, truth, protocol="range") == pytest.approx(
        20 * np.log10(8 / 0.5)
    )
    assert metrics.psnr(truth + 0.5, truth, protocol="range", data_range=80) == pytest.approx(
        20 * np.log10(80 / 0.5)
    )


def test_psnr_and_ssim_agree_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    truth = scene()
    image = truth + rng.normal(0, 0.2, truth.shape)
    span = truth.max() - truth.min()
    assert metrics.psnr(image, truth, protocol="range") == pytest.approx(
        peak_signal_noise_ratio(truth, image, data_range=span)
    )
    slope, shift = np.polyfit(image.ravel(), truth.ravel(), 1)
    fitted = slope * image + shift
    assert metrics.psnr(image, truth) == pytest.approx(
        peak_signal_noise_ratio(truth, fitted, data_range=span)
    )
    assert metrics.ssim(image, truth) == pytest.approx(
        structural_similarity(
            fitted, truth, data_range=span, win_size=11, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip
    eight = [np.rint(255 * (a - a.min()) / np.ptp(a)).astype(np.uint8) for a in (truth, image)]
    assert metrics.psnr(image, truth, protocol="minmax") == pytest.approx(
        peak_signal_noise_ratio(*eight)
    )


def test_ssim_follows_its_definition_on_one_window() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 11, 11))
    offset = np.arange(-5, 6)
    weight = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weight /= weight.sum()
    ma, mb = (weight * a).sum(), (weight * b).sum()
    va, vb = (weight * a**2).sum() - ma**2, (weight * b**2).sum() - mb**2
    cov = (weight * a * b).sum() - ma * mb
    c1, c2 = (0.01 * 6) ** 2, (0.03 * 6) ** 2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert metrics.ssim(a, b, protocol="range", data_range=6) == pytest.approx(expected, rel=1e-6)


@given(
    gain=st.floats(0.01, 100) | st.floats(-100, -0.01),
    shift=st.floats(-50, 50),
    shape=st.tuples(st.integers(11, 23), st.integers(11, 23)),
    kind=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=25)
def test_affine_ignores_gain_and_offset(gain, shift, shape, kind) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=shape)
    image = truth + rng.normal(0, 0.3, shape)
    moved = (gain * image + shift).astype(kind)
    assert metrics.psnr(moved, truth) == pytest.approx(metrics.psnr(image, truth), abs=0.05)
    if gain > 0:
        assert metrics.psnr(moved, truth, protocol="minmax") == pytest.approx(
            metrics.psnr(image, truth, protocol="minmax"), abs=0.3
        )


def test_movie_psnr_fits_once_so_flicker_counts() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([scene(seed=i) for i in range(4)]) * 50 + 1000
    movie = 3 * (truth + rng.normal(0, 2, truth.shape)) - 7
    steady = metrics.movie_psnr(movie, truth)
    flat = [m.ravel() for m in (movie, truth)]
    fitted = np.polyval(np.polyfit(*flat, 1), movie)
    expected = 10 * np.log10(np.ptp(truth) ** 2 / ((fitted - truth) ** 2).mean((1, 2)))
    np.testing.assert_allclose(steady, expected, rtol=1e-6)
    movie[2] += 30
    assert metrics.movie_psnr(movie, truth)[2] < steady[2] - 3
    assert metrics.psnr(movie[2], truth[2], data_range=np.ptp(truth)) > steady[2] - 0.5


def test_movie_functions_take_movies_and_frames_one_by_one() -> None:
    truth = np.stack([scene(seed=i) for i in range(3)])
    noisy = truth + np.random.default_rng(0).normal(0, 0.1, truth.shape)
    a, b = Movie.from_array(noisy), Movie.from_array(truth)
    for protocol in ("affine", "range", "minmax"):
        np.testing.assert_allclose(
            metrics.movie_psnr(a, b, protocol=protocol),
            metrics.movie_psnr(noisy, truth, protocol=protocol),
        )
    single = [metrics.ssim(x, y, protocol="minmax") for x, y in zip(noisy, truth, strict=True)]
    np.testing.assert_allclose(metrics.movie_ssim(a, b, protocol="minmax"), single)
    assert np.isinf(metrics.movie_psnr(truth, truth, protocol="range")).all()


def test_movie_ssim_agrees_with_scikit_image_after_one_fit_and_one_peak() -> None:
    rng = np.random.default_rng(3)
    truth = np.stack([(1 + i) * scene(seed=i) for i in range(3)])  # each frame has its own range
    movie = 5 * (truth + rng.normal(0, 0.15, truth.shape)) + 40
    fitted = np.polyval(np.polyfit(movie.ravel(), truth.ravel(), 1), movie)
    how = {"win_size": 11, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    peak = float(np.ptp(truth))
    for protocol, images in (("affine", fitted), ("range", movie)):
        expected = [
            structural_similarity(y, x, data_range=peak, **how)
            for x, y in zip(images, truth, strict=True)
        ]
        found = metrics.movie_ssim(movie, truth, protocol=protocol)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    eight = [np.rint(255 * (a - a.min()) / np.ptp(a)) for a in (truth[1], movie[1])]
    assert metrics.ssim(movie[1], truth[1], protocol="minmax") == pytest.approx(
        structural_similarity(*eight, data_range=255, **how)
    )


def test_psnr_of_gaussian_noise_is_range_over_sigma() -> None:
    rng = np.random.default_rng(0)
    truth = 7 * scene((256, 256))
    image = truth + rng.normal(0, 0.35, truth.shape)
    expected = 20 * np.log10(np.ptp(truth) / 0.35)
    assert metrics.psnr(image, truth, protocol="range") == pytest.approx(expected, abs=0.05)
    # The best line shrinks the image by s / (s + n): what remains of the error is n s / (s + n).
    signal, noise = truth.var(), 0.35**2
    expected = 10 * np.log10(np.ptp(truth) ** 2 * (signal + noise) / (signal * noise))
    assert metrics.psnr(image, truth) == pytest.approx(expected, abs=0.05)


def test_bad_pairs_are_refused_in_plain_words() -> None:
    image = np.zeros((12, 12))
    with pytest.raises(ShineError, match="different shapes"):
        metrics.psnr(image, image[:5])
    with pytest.raises(ShineError, match="truth is constant"):
        metrics.psnr(image, image)
    with pytest.raises(ShineError, match="Unknown protocol"):
        metrics.psnr(image, image, protocol="best")  # type: ignore[arg-type]
    with pytest.raises(ShineError, match="11×11"):
        metrics.ssim(np.eye(8), np.eye(8))


# --- SNR -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.float64])
def test_correlation_is_pearson_s_also_far_from_zero(kind: type) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40, 30))
    a, b = (
        (50_000 + 300 * (shared + rng.normal(0, 0.8, shared.shape))).astype(kind) for _ in range(2)
    )
    expected = np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]
    assert metrics.correlation(a, b) == pytest.approx(expected, abs=1e-10)
    assert metrics.correlation(a, -3.0 * a.astype(float)) == pytest.approx(-1)
    assert metrics.correlation(a, a) <= 1
    with pytest.raises(ShineError, match="different shapes"):
        metrics.correlation(a, b[1:])


def test_snr_of_equation_5() -> None:
    assert metrics.snr_from_correlation(0.5) == 0
    assert metrics.snr_from_correlation(10 / 11) == pytest.approx(10)
    values = metrics.snr_from_correlation([-0.2, 0, 1, 1 + 1e-16, np.nan])
    np.testing.assert_array_equal(values, [-np.inf, -np.inf, np.inf, np.inf, np.nan])


def test_snr_of_two_measurements_is_the_true_ratio() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(256, 256))
    a, b = (signal + rng.normal(0, 0.5, signal.shape) for _ in range(2))
    assert metrics.snr(a, 5 * b + 100) == pytest.approx(10 * np.log10(4), abs=0.1)
    np.testing.assert_allclose(metrics.frame_snr([a, b, a]), [metrics.snr(a, b)] * 2)
    assert np.isnan(metrics.snr(a, np.ones_like(a)))
    assert metrics.frame_snr(a[None]).shape == (0,)


# --- Fourier ring correlation ----------------------------------------------------------------


@given(shape=st.tuples(st.integers(8, 61), st.integers(8, 61)))
@settings(max_examples=25)
def test_frc_of_an_image_with_itself_is_one_in_every_ring(shape) -> None:
    image = np.random.default_rng(0).normal(size=shape)
    frc = metrics.fourier_ring_correlation(image, 3 * image + 2)
    np.testing.assert_allclose(frc.correlation, 1, atol=1e-9)
    assert frc.frequency.shape == frc.counts.shape == (min(shape) // 2,)
    assert frc.frequency[-1] == pytest.approx(min(shape) // 2 / min(shape))
    assert (frc.counts > 0).all()
    assert frc.resolution() == pytest.approx(1 / frc.frequency[-1])


def test_frc_counts_and_values_agree_with_a_full_fft() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 30, 44)) + scene((30, 44))
    frc = metrics.fourier_ring_correlation(a, b, taper=0)
    fa, fb = np.fft.fft2(a - a.mean()), np.fft.fft2(b - b.mean())
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(30), np.fft.fftfreq(44), indexing="ij"))
    for k, f in enumerate(frc.frequency):
        ring = np.rint(radius * 30) == k + 1
        assert f == pytest.approx((k + 1) / 30)
        assert frc.counts[k] == ring.sum()
        expected = np.vdot(fb[ring], fa[ring]).real / (
            np.linalg.norm(fa[ring]) * np.linalg.norm(fb[ring])
        )
        assert frc.correlation[k] == pytest.approx(expected)


def test_frc_resolution_is_where_signal_meets_noise() -> None:
    rng = np.random.default_rng(0)
    n, sigma = 256, 2.0
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    # The signal's power over the noise's is 1e3·exp(-(4πσf)²/4): FRC = s/(1+s) in closed form.
    transfer = np.sqrt(1e3) * np.exp(-((np.pi * sigma * frequency) ** 2))
    white = np.fft.rfft2(rng.normal(size=(n, n)))
    signal = np.fft.irfft2(white * transfer, s=(n, n))
    a, b = (signal + rng.normal(size=(n, n)) for _ in range(2))
    frc = metrics.fourier_ring_correlation(a, b, pixel_size_nm=0.05)
    ratio = 1e3 * np.exp(-2 * (np.pi * sigma * frc.frequency * 0.05) ** 2)
    np.testing.assert_allclose(frc.correlation[8:], (ratio / (1 + ratio))[8:], atol=0.13)
    wanted = np.sqrt(np.log(1e3 * 6) / 2) / (np.pi * sigma)  # FRC = 1/7 where the ratio is 1/6
    assert frc.resolution(1 / 7) == pytest.approx(0.05 / wanted, rel=0.06)
    assert frc.calibrated
    assert frc.resolution("half-bit") > frc.resolution(1 / 7)


def test_frc_of_independent_noise_is_below_the_half_bit_curve() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 128, 100))
    frc = metrics.fourier_ring_correlation(a, b)
    assert (frc.correlation[5:] < frc.threshold("half-bit")[5:]).all()


def test_the_half_bit_curve_has_its_published_limits() -> None:
    # van Heel and Schatz (2005): an SNR of 0.2071 in each half set; with one pixel nothing is safe.
    n = np.array([1, 10, 10**12])
    frc = metrics.FRC(np.array([0.1, 0.2, 0.5]), np.ones(3), n)
    snr = 0.2071
    assert frc.threshold("half-bit")[0] == pytest.approx(1, abs=1e-3)
    assert frc.threshold("half-bit")[2] == pytest.approx(snr / (1 + snr), abs=1e-5)
    root = 2 * np.sqrt(snr / 10)  # signal and noise are correlated by chance among 10 pixels
    between = (snr + root + 1 / np.sqrt(10)) / (1 + snr + root)
    assert frc.threshold("half-bit")[1] == pytest.approx(between, abs=1e-3)
    np.testing.assert_array_equal(frc.threshold(0.143), [0.143] * 3)


# --- residual test ---------------------------------------------------------------------------

NOISES = ("white", "correlated", "along rows", "wide", "row offsets", "shot")


def noise(kind: str, rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Return noise of unit variance (on average over the frame)."""
    white = rng.normal(size=picture.shape)
    if kind == "row offsets":
        return (white + 0.7 * rng.normal(size=(picture.shape[0], 1))) / 1.22
    if kind == "shot":
        return white * np.sqrt(0.4 + 2 * picture) / np.sqrt(0.4 + 2 * picture.mean())
    width = {"white": 0, "correlated": 0.7, "along rows": (0, 2), "wide": 2}[kind]
    smooth = gaussian_filter(white, width) if width else white
    return smooth / smooth.std()


@pytest.mark.parametrize("kind", NOISES)
def test_residual_of_pure_noise_raises_no_alarm(kind: str) -> None:
    rng = np.random.default_rng(7)
    outcomes, z = [], []
    for seed in range(25):
        picture = scene((96, 112), seed)
        frames = [noise(kind, rng, picture) for _ in range(6)]
        result = residual_structure(frames, [picture] * 6)
        outcomes.append(result.outcome)
        z.append(result.z)
    assert set(outcomes) <= {"clear", "undecided"}
    assert 0.3 < np.std(z) < 1.4  # a standard normal number, or safer


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("kind", ["white", "correlated", "shot"])
def test_residual_with_leftover_particles_is_found_and_measured(kind: str, share: float) -> None:
    rng = np.random.default_rng(1)
    hits = []
    for seed in range(3):
        picture = scene((256, 256), seed)
        denoised = (1 - share) * picture
        frames = [picture + noise(kind, rng, picture) - denoised for _ in range(24)]
        result = residual_structure(frames, [denoised] * 24)
        hits.append(result.outcome == "structure")
        expected = share / (1 - share)
        assert abs(result.leftover - expected) < 4 * result.leftover_error
        assert "holds" in result.verdict or not hits[-1]
    assert sum(hits) >= 2


def test_structure_that_the_denoised_picture_lost_shows_in_the_autocorrelation() -> None:
    rng = np.random.default_rng(0)
    lattice = 0.6 * np.cos(2 * np.pi * np.indices((128, 128)).sum(0) / 6)
    picture = scene((128, 128))
    clean = [noise("correlated", rng, picture) for _ in range(8)]
    wanted = residual_structure(clean, [picture] * 8, _correlation(clean))
    assert wanted.outcome != "structure"
    assert abs(wanted.autocorrelation_excess or 0) < 0.02
    lost = residual_structure([n + lattice for n in clean], [picture] * 8, _correlation(clean))
    assert lost.outcome == "structure"
    assert "correlated" in lost.verdict


def test_exaggerated_contrast_and_empty_pictures_are_named() -> None:
    rng = np.random.default_rng(0)
    picture = scene((128, 128))
    frames = [noise("white", rng, picture) for _ in range(16)]
    boosted = 1.3 * picture
    result = residual_structure([n + picture - boosted for n in frames], [boosted] * 16)
    assert result.outcome == "exaggerated"
    empty = residual_structure(frames, np.zeros((16, 128, 128)))
    assert empty.outcome == "undecided"
    with pytest.raises(ShineError, match="same frames"):
        residual_structure(frames, [picture])
    with pytest.raises(ShineError, match="odd side"):
        residual_structure(frames, [picture] * 16, np.ones((4, 4)))


@pytest.mark.parametrize(
    ("kept", "outcomes"), [(1.0, {"clear", "undecided"}), (0.8, {"faint"}), (0.5, {"structure"})]
)
def test_noise_of_the_frame_itself_is_not_taken_for_picture(
    kept: float, outcomes: set[str]
) -> None:
    rng = np.random.default_rng(4)
    picture = 0.25 * gaussian_filter(scene((128, 128)), 2)
    raw = np.array([picture + noise("white", rng, picture) for _ in range(40)])
    # A plain filter that keeps the whole picture (for kept = 1) and some of each frame's noise.
    denoised = kept * gaussian_filter(uniform_filter1d(raw, 5, axis=0), (0, 1, 1))
    result = residual_structure(raw - denoised, denoised)
    assert result.apart
    assert result.same_frame > (1 - kept) / kept + 0.1
    # The blur takes its own small share.
    lost, error = result.contrast
    assert -4 * error < lost - (1 - kept) < 0.03 + 4 * error
    assert result.outcome in outcomes, result.verdict
    assert result.power == pytest.approx(lost**2, rel=1e-6) or lost < 0
    assert f"{100 * result.power:.1f} ± {100 * result.power_error:.1f} %" in result.verdict
    alone = residual_structure((raw - denoised)[:4], denoised[:4])
    assert not alone.apart  # no frame far enough away: the slope counts the noise as well
    assert alone.leftover == alone.same_frame


def _correlation(frames: list[np.ndarray], reach: int = 8) -> np.ndarray:
    """Return the correlation map of noise by shifting, the slow way."""
    total = np.zeros((2 * reach + 1, 2 * reach + 1))
    for frame in frames:
        padded = np.pad(frame, reach)
        height, width = frame.shape
        for i in range(2 * reach + 1):
            for j in range(2 * reach + 1):
                total[i, j] += (frame * padded[i : i + height, j : j + width]).mean()
    return total / total[reach, reach]


@pytest.mark.parametrize("taper", [0.0, 0.25, 0.5, 1.0])
def test_the_tukey_window_is_scipys(taper: float) -> None:
    from scipy.signal.windows import tukey

    for shape in ((8, 9), (64, 37), (1, 16)):
        expected = np.multiply.outer(*(tukey(n, taper) for n in shape))
        np.testing.assert_allclose(metrics.tukey_window(shape, taper), expected, atol=1e-12)
