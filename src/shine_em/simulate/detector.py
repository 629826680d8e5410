"""What the camera makes of the electrons that reach it: counts, noise and blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ShineError
from .counting import COINCIDENCE_PIXELS, counted, counting_noise_power, counting_response
from .scene import check_numbers

__all__ = ["CAMERAS", "Camera", "camera_named"]

Blur = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Camera:
    r"""A camera as a cascade: scattering, detection, spread of the signal, digitisation.

    Electrons arrive at random. The camera moves some of them sideways before they are detected
    (``scatter``), misses some (``efficiency``), turns each detected one into a signal of random
    height (``gain_spread``), and spreads that signal over several pixels (``spread``). Scattering
    and spread blur the image alike, but only the spread blurs the noise, because electrons that
    arrive at random are as random after they were moved:

    .. math:: MTF = S K, \quad NTF = K, \quad DQE = DQE_0 \, MTF^2 / NTF^2 = \frac{q}{1 + v} S^2

    with the Fourier transforms :math:`S` of ``scatter`` and :math:`K` of ``spread``, the
    efficiency :math:`q` and the variance :math:`v` of the signal's height over its squared mean.
    An integrating camera is mostly spread, a counting camera mostly scatter.

    Frequencies are in cycles per pixel (Nyquist is 0.5), and all curves are relative to the
    electrons that fall on each pixel: the pixel's own aperture, :math:`\mathrm{sinc}(f)`, belongs
    to the image that is handed to `record`, and multiplies the MTF of measured curves.

    Attributes
    ----------
    name, title
        Short and long name.
    conversion
        Counts per incident electron.
    efficiency
        Fraction :math:`q` of the electrons that is detected; the signal is scaled up by
        :math:`1/q`, so that ``conversion`` stays true.
    gain_spread
        :math:`v`, 0 for a camera that counts. Deposited energies are gamma distributed.
    scatter, spread
        ``((weight, sigma), ...)``: the part ``weight`` of the electrons or signal is spread by a
        Gaussian of the standard deviation ``sigma`` in pixels; the rest stays in its pixel.
    counting_frames
        Number of the internal frames that one recorded frame is counted from; None for a camera
        that integrates. Coincidence loss follows from it: see `shine_em.simulate.counting`.
    dark
        Level that a closed shutter gives, in counts; part of the expected image.
    read_noise
        Standard deviation of the read noise in counts.
    gain_variation
        Standard deviation of what gain correction leaves, relative to the signal: a fixed pattern.
    hot_pixels, dead_pixels
        Fractions of all pixels. A hot pixel adds ``hot_counts`` to each frame, a dead one gives
        the dark level.
    hot_counts
        See ``hot_pixels``.
    pattern_seed
        Seed of the fixed pattern, which is the same in all frames of one size.
    integer
        Round and clip to 16-bit counts; otherwise frames are float32, as gain-corrected ones.

    Raises
    ------
    ShineError
        If a value is impossible; the message names it.

    References
    ----------
    M. Vulović et al., Image formation modeling in cryo-electron microscopy. J. Struct. Biol. 183,
    19-32 (2013), Eq. 7 (the cascade of DQE, Poisson noise and NTF, which clTEM follows as well).
    R. R. Meyer, A. I. Kirkland, Microsc. Res. Tech. 49, 269-280 (2000) (signal and noise transfer).
    G. McMullan, A. R. Faruqi, D. Clare, R. Henderson, Comparison of optimal performance at 300 keV
    of three direct electron detectors. Ultramicroscopy 147, 156-163 (2014).

    Examples
    --------
    >>> camera = CAMERAS["falcon"]
    >>> bool(camera.mtf(0.5) < camera.mtf(0.25) < camera.mtf(0.0) == 1)
    True
    >>> round(float(camera.dqe(0.0)), 2)
    0.5
    """

    name: str
    title: str
    conversion: float = 1.0
    efficiency: float = 1.0
    gain_spread: float = 0.0
    scatter: Blur = ()
    spread: Blur = ()
    counting_frames: int | None = None
    dark: float = 0.0
    read_noise: float = 0.0
    gain_variation: float = 0.0
    hot_pixels: float = 0.0
    dead_pixels: float = 0.0
    hot_counts: float = 1000.0
    pattern_seed: int = 0
    integer: bool = True

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            positive=("conversion", "efficiency"),
            not_negative=(
                "gain_spread", "dark", "read_noise", "gain_variation", "hot_pixels",
                "dead_pixels", "hot_counts", "pattern_seed",
            ),
        )  # fmt: skip
        if self.efficiency > 1:
            raise ShineError(f"efficiency must not be above 1, not {self.efficiency}.")
        if self.hot_pixels + self.dead_pixels > 1:
            raise ShineError("hot_pixels and dead_pixels are fractions: their sum is above 1.")
        for name in ("scatter", "spread"):
            blur = np.asarray(getattr(self, name), float).reshape(-1, 2)
            if (blur < 0).any() or not np.isfinite(blur).all() or blur[:, 0].sum() > 1 + 1e-9:
                raise ShineError(
                    f"{name} needs pairs of a weight and a width in pixels, none negative, the "
                    f"weights' sum not above 1: {getattr(self, name)}."
                )
        if self.counting_frames is not None and self.counting_frames < 1:
            raise ShineError(f"counting_frames must be at least 1, not {self.counting_frames}.")
        if self.counting_frames is not None and self.gain_spread > 0:
            raise ShineError("gain_spread must be 0 for a camera that counts (counting_frames).")
        if self._whole and not (self.conversion / self.efficiency + 1e-9) % 1 < 2e-9:
            raise ShineError(
                f"conversion={self.conversion} with efficiency={self.efficiency} is no whole "
                "number of counts per electron, and rounding would falsify the mean. Choose "
                "another conversion, or integer=False."
            )

    @property
    def _whole(self) -> bool:
        """Whether all recorded values are whole multiples of one electron's counts."""
        return self.integer and not self.spread and self.gain_spread == self.read_noise == 0

    @property
    def border(self) -> int:
        """Pixels on each side from which electrons or their signal can reach the frame."""
        reach = [
            max((_reach(s) for _, s in blur), default=0) for blur in (self.scatter, self.spread)
        ]
        return sum(reach) + (self.counting_frames is not None)

    def record(
        self, electrons: np.ndarray, rng: np.random.Generator, *, bordered: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Record one frame.

        Parameters
        ----------
        electrons
            ``(y, x)`` expected electrons on each pixel.
        rng
            Source of the noise.
        bordered
            ``electrons`` has `border` more pixels on each side, which are cut off in the end.
            Otherwise the image is mirrored at its edges.

        Returns
        -------
        noisy
            ``(y, x)`` uint16 or float32 counts (see ``integer``).
        expected
            ``(y, x)`` float32 counts of a camera without noise and without faulty pixels: the mean
            of endlessly many recordings, but for the fixed pattern and the clipping to 16 bits.

        Raises
        ------
        ShineError
            If an expected number of electrons is negative or not finite, the frame is too small,
            or the counts exceed 16 bits.
        """
        image = np.asarray(electrons, np.float64)
        if image.ndim != 2 or not image.size:
            raise ShineError(f"A camera records (y, x) images, not the shape {image.shape}.")
        if not np.isfinite(image).all() or image.min() < 0:
            raise ShineError("Expected electrons must be finite and not negative.")
        edge = self.border
        if not bordered:
            image = np.pad(image, edge, mode="symmetric")
        elif min(image.shape) <= 2 * edge:
            raise ShineError(f"An image of {image.shape} is too small for a border of {edge}.")
        hits = _blurred(image, self.scatter) * self.efficiency
        if self.counting_frames is None:
            mean = hits
            signal = rng.poisson(hits).astype(np.float64)
            if self.gain_spread > 0:
                signal = rng.gamma(signal / self.gain_spread, self.gain_spread)
        else:
            mean, signal = counted(hits, self.counting_frames, rng)
        gain = self.conversion / self.efficiency
        inner = slice(edge, -edge or None), slice(edge, -edge or None)
        expected = gain * _blurred(mean, self.spread)[inner] + self.dark
        if self.integer and expected.max() > np.iinfo(np.uint16).max:
            raise ShineError(
                f"{self.title}: {expected.max():.0f} counts exceed 16 bits. Lower the dose or the "
                "conversion."
            )
        light = gain * _blurred(signal, self.spread)[inner]
        noisy = self._digitised(light, rng)
        return noisy, expected.astype(np.float32)

    def _digitised(self, light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add what the pixels and the electronics do."""
        if self.gain_variation > 0 or self.hot_pixels > 0 or self.dead_pixels > 0:
            pattern = np.random.default_rng(self.pattern_seed)
            light = light * (1 + self.gain_variation * pattern.normal(size=light.shape))
            fate = pattern.uniform(size=light.shape)
            light[fate < self.dead_pixels] = 0
            light[fate > 1 - self.hot_pixels] += self.hot_counts
        counts = light + self.dark
        if self.read_noise > 0:
            counts += rng.normal(scale=self.read_noise, size=light.shape)
        if not self.integer:
            return counts.astype(np.float32)
        return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16)

    def expected_counts(self, electrons: float) -> float:
        """Return the mean counts of a frame evenly lit by so many electrons per pixel."""
        lost = 1.0
        if self.counting_frames is not None:
            lost = math.exp(
                -COINCIDENCE_PIXELS * self.efficiency * electrons / self.counting_frames
            )
        return self.conversion * electrons * lost + self.dark

    def mtf(self, f: ArrayLike, g: ArrayLike = 0.0) -> np.ndarray:
        """Return the modulation transfer at ``f`` along x and ``g`` along y, cycles per pixel."""
        return _transfer(self.scatter, f, g) * _transfer(self.spread, f, g)

    def ntf(self, f: ArrayLike, g: ArrayLike = 0.0) -> np.ndarray:
        """Return the noise transfer of the signal's spread, 1 at zero frequency."""
        return _transfer(self.spread, f, g)

    def nps(self, f: ArrayLike, electrons: float, g: ArrayLike = 0.0) -> np.ndarray:
        r"""Return the noise power of an evenly lit frame, in square counts per pixel.

        .. math:: NPS(f) = \left(\frac{c}{q}\right)^2 K(f)^2 C(f) + \sigma_r^2 + \frac{1}{12}

        with the conversion :math:`c`, the noise power of the detected electrons :math:`C` and,
        where real numbers are rounded to counts, the 1/12 of rounding. An integrating camera has
        :math:`C = q N (1 + v)`; for a counting one see
        `shine_em.simulate.counting.counting_noise_power`. The mean over all frequencies is the
        variance of a pixel. The fixed pattern is not noise.

        Parameters
        ----------
        f, g
            Cycles per pixel along x and y.
        electrons
            Incident electrons per pixel.
        """
        f, g = np.broadcast_arrays(np.asarray(f, float), np.asarray(g, float))
        hits = self.efficiency * electrons
        if self.counting_frames is None:
            detected = np.full(f.shape, hits * (1 + self.gain_spread))
        else:
            detected = counting_noise_power(hits, self.counting_frames, f, g)
        gain = self.conversion / self.efficiency
        power = gain**2 * detected * _transfer(self.spread, f, g) ** 2 + self.read_noise**2
        if self.integer and not self._whole:
            power = power + 1 / 12
        return power

    def dqe(self, f: ArrayLike, electrons: float | None = None, g: ArrayLike = 0.0) -> np.ndarray:
        """Return the detective quantum efficiency.

        Parameters
        ----------
        f, g
            Cycles per pixel along x and y.
        electrons
            Incident electrons per pixel, on which coincidence loss and read noise depend; None for
            a camera without these.
        """
        f, g = np.broadcast_arrays(np.asarray(f, float), np.asarray(g, float))
        if electrons is None:
            scattered = _transfer(self.scatter, f, g)
            return self.efficiency / (1 + self.gain_spread) * scattered**2
        response = self.conversion * self.mtf(f, g)
        if self.counting_frames is not None:
            hits = self.efficiency * electrons
            response = response * counting_response(hits, self.counting_frames, f, g)
        return response**2 * electrons / self.nps(f, electrons, g)


# Where the curves come from; all after division by the pixel's sinc, up to Nyquist.
#
# k2: the DQE and NTF tables that the simulator clTEM has for the K2 (its index 512 read as
# Nyquist), within 0.013.
# k2-counting: the same DQE, all of its fall by scattering, as of a camera that counts. This MTF
# differs by up to 0.11 from the one that RELION ships for the K2 (mtf_k2_300kV.star). Efficiency
# 0.8 and 400 internal frames, a second of the K2's, are of that camera's order and no fit.
# falcon: the MTF that RELION ships for the Falcon II (mtf_falcon2_300kV.star), within 0.025. How it
# divides into scatter and spread is a guess. A DQE of 0.5 at zero frequency is about what the
# spread of the deposited energies leaves of a direct detector that integrates (McMullan et al.).
# ccd: clTEM's tables of a Gatan Orius, within 0.02.
#
# Conversions, dark levels and read noise are round numbers of such cameras' order.
_K2_SCATTER = ((0.143, 1.40), (0.134, 6.03))
CAMERAS: dict[str, Camera] = {
    "ideal": Camera(name="ideal", title="Ideal camera"),
    "k2": Camera(
        name="k2",
        title="K2-like camera",
        efficiency=0.73,
        scatter=_K2_SCATTER,
        spread=((0.332, 0.827), (0.124, 4.25)),
        integer=False,
    ),
    "k2-counting": Camera(
        name="k2-counting",
        title="K2-like camera, electron counting",
        conversion=0.8,
        efficiency=0.8,
        scatter=_K2_SCATTER,
        counting_frames=400,
    ),
    "falcon": Camera(
        name="falcon",
        title="Falcon-like camera, integrating",
        conversion=30.0,
        gain_spread=1.0,
        scatter=((0.08, 3.0),),
        spread=((0.693, 1.146), (0.194, 5.226)),
        dark=50.0,
        read_noise=5.0,
    ),
    "ccd": Camera(
        name="ccd",
        title="CCD behind a scintillator",
        conversion=10.0,
        efficiency=0.8,
        gain_spread=1.0,
        scatter=((0.86, 0.568), (0.14, 2.23)),
        spread=((0.637, 1.18), (0.236, 4.95)),
        dark=100.0,
        read_noise=3.0,
    ),
}


def camera_named(name: str) -> Camera:
    """Return a camera of `CAMERAS`, or raise a `ShineError` that lists them."""
    if name not in CAMERAS:
        raise ShineError(f"camera={name!r} is not known. There are: {', '.join(CAMERAS)}.")
    return CAMERAS[name]


def _reach(sigma: float) -> int:
    return math.ceil(4 * sigma)


def _gaussian(sigma: float) -> np.ndarray:
    reach = _reach(sigma)
    distance = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (distance / sigma) ** 2) if sigma > 0 else np.ones(1)
    return weights / weights.sum()


def _blurred(image: np.ndarray, blur: Blur) -> np.ndarray:
    from scipy.ndimage import correlate1d

    result = image * (1 - sum(weight for weight, _ in blur))
    for weight, sigma in blur:
        kernel = _gaussian(sigma)
        result += weight * correlate1d(correlate1d(image, kernel, axis=0), kernel, axis=1)
    # Weights that add up to one leave rounding errors below zero in empty fields.
    return np.maximum(result, 0)


def _transfer(blur: Blur, f: ArrayLike, g: ArrayLike) -> np.ndarray:
    f, g = np.broadcast_arrays(np.asarray(f, float), np.asarray(g, float))
    total = np.full(f.shape, 1 - sum(weight for weight, _ in blur))
    for weight, sigma in blur:
        kernel = _gaussian(sigma)
        distance = np.arange(len(kernel)) - len(kernel) // 2
        along_x, along_y = (
            (kernel * np.cos(2 * np.pi * h[..., None] * distance)).sum(axis=-1) for h in (f, g)
        )
        total = total + weight * along_x * along_y
    return total
