"""HAADF STEM of single Pt atoms that hop on a MoS₂ monolayer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ShineError
from ..movie import Movie
from .frames import run_frames
from .haadf import REACH_NM, THERMAL_NM, atom_profile, scattered_fraction
from .multislice import Optics
from .scan import Scan, StemDetector, pixel_of, record_scan, response_correlation, visited
from .scene import Scene, check_numbers, check_plan, simulated_movie

__all__ = ["stem_mos2"]

#: In-plane lattice constant of 2H-MoS₂, nm (Wyckoff).
LATTICE_NM = 0.3160
# Where Pt sits: above Mo, above the S pair, above the hollow of the hexagon.
_SITES = ("Mo", "S", "hollow")
_SITE_WEIGHTS = np.array([1.0, 0.1, 0.02])
_ELEMENTARY_CHARGE = 1.602176634e-19


def stem_mos2(
    *,
    frames: int = 20,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    pixel_size_nm: float = 0.0133,
    dwell_time_s: float = 5e-6,
    beam_current_pA: float = 25.0,
    energy_kV: float = 200.0,
    probe_mrad: float = 19.0,
    detector_mrad: tuple[float, float] = (68.0, 280.0),
    source_size_nm: float = 0.06,
    rotation_deg: float = 12.0,
    pt_per_nm2: float = 0.35,
    hop_probability: float = 0.1,
    pt_wobble_nm: float = 0.015,
    drift_nm_per_s: tuple[float, float] = (0.02, 0.045),
    jitter_nm: tuple[float, float] = (0.003, 0.005),
    flyback_s: float = 500e-6,
    settling_nm: float = 0.03,
    settling_s: float = 60e-6,
    response_time_s: float = 3e-6,
    conversion: float = 40.0,
    pulse_spread: float = 0.4,
    black_level: float = 100.0,
    read_noise: float = 4.0,
    drift_correction: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scene:
    r"""Simulate a time series of HAADF STEM images of Pt atoms on a MoS₂ monolayer.

    The optics of the paper's Fig. 5: 200 kV, 19 mrad probe, 68-280 mrad detector, 0.133 Å per
    pixel, 5 or 10 µs per pixel.

    **Picture.** High-angle scattering of a monolayer is incoherent: the detected fraction of the
    beam is the sum of the atoms' own profiles, each a function of the probe's distance from the
    atom, which `atom_profile` takes from an abTEM multislice calculation of one atom and blurs by
    the thermal motion and the effective source. It is evaluated where the probe really was: drift
    shears each frame, jitter tears its lines, and the probe settles after each flyback
    (see `shine_em.simulate.scan`).

    **Noise.** Each detected electron (Poisson) gives a pulse of random height that decays with
    ``response_time_s``, so bright atoms streak and the noise is correlated along the lines, more so
    at 5 µs (0.38, 0.07) than at 10 µs (0.20, 0.01), and not at all across them. This is why the
    noise is asymmetric here. The paper blames its asymmetric heatmap on drift: its heatmap counts
    the picture, which drift shears; and a series aligned by sub-pixel interpolation has smeared its
    noise along the drift (``drift_correction``).

    **Pt atoms** sit mainly above Mo, hop to a free site nearby from one frame to the next with
    ``hop_probability``, and wobble about it (Li et al.). Within a frame they rest.

    Parameters
    ----------
    frames
        Number of frames.
    size
        Height and width in pixels; one number for a square.
    seed
        The same seed gives the same movie, whatever the number of workers.
    pixel_size_nm
        Distance of neighbouring probe positions.
    dwell_time_s
        Time that the probe spends on each pixel; the paper's were 5e-6 and 10e-6.
    beam_current_pA
        The probe's current; the default is typical of such an instrument (the paper gives none).
        25 pA and 5 µs are 780 electrons per pixel.
    energy_kV
        Acceleration voltage.
    probe_mrad
        Convergence semi-angle of the probe.
    detector_mrad
        Inner and outer collection semi-angle.
    source_size_nm
        Full width at half maximum of the effective source at the specimen.
    rotation_deg
        Angle of the lattice's a axis against the lines.
    pt_per_nm2
        Pt atoms per nm² of the film.
    hop_probability
        Chance of each Pt atom to hop, per frame.
    pt_wobble_nm
        Standard deviation of a Pt atom's place about its site along each axis, drawn each frame.
    drift_nm_per_s
        Velocity of the specimen, y then x.
    jitter_nm
        Standard deviation of each line's displacement, y then x.
    flyback_s
        Time from the end of a line to the beginning of the next.
    settling_nm
        How far the probe still is behind its course when a line begins, towards larger x.
    settling_s
        Time constant with which the probe settles when a line begins.
    response_time_s
        Time constant of the exponential decay of an electron's signal in the detector; 0 for none.
    conversion
        Mean counts per detected electron.
    pulse_spread
        Standard deviation over mean of the pulse heights of single electrons; 0 counts all alike.
    black_level
        Counts without any electron.
    read_noise
        Standard deviation of the electronics' noise in counts.
    drift_correction
        Align the recorded frames by their known drift: whole pixels by shifting the scan, the
        rest by linear interpolation (then the movie is float32).
    workers
        Threads; None for one per processor, up to eight.
    progress
        Called as ``progress(done, total)`` after each frame.
    cache
        Folder that keeps finished frames until all are there, to go on after an interruption.

    Returns
    -------
    Scene
        ``coordinates``: ``pt_px``, ``mo_px`` and ``s_px`` ``(t, atom, 2)``, where in each frame the
        atoms appear (y then x, without the lines' jitter); ``pt_nm`` ``(t, atom, 2)``, ``mo_nm``
        and ``s_nm`` ``(atom, 2)``, where they are on the specimen; ``pt_site`` ``(t, atom)``: 0
        above Mo, 1 above S, 2 above the hollow. Atoms that never come into the frame are left out.

    Raises
    ------
    ShineError
        If a parameter is impossible (the message names it), or abTEM is missing.

    References
    ----------
    SHINE, Science Advances (2025), Fig. 5. H. Li et al., Atomic structure and dynamics of single
    platinum atom interactions with monolayer MoS2. ACS Nano 11, 3392-3403 (2017).
    """
    shape = check_plan(frames=frames, size=size, seed=seed, workers=workers)
    parameters: dict[str, Any] = {
        "scene": "stem-mos2",
        "frames": frames,
        "size": list(shape),
        "seed": seed,
        "pixel_size_nm": pixel_size_nm,
        "dwell_time_s": dwell_time_s,
        "beam_current_pA": beam_current_pA,
        "energy_kV": energy_kV,
        "probe_mrad": probe_mrad,
        "detector_mrad": list(detector_mrad),
        "source_size_nm": source_size_nm,
        "rotation_deg": rotation_deg,
        "pt_per_nm2": pt_per_nm2,
        "hop_probability": hop_probability,
        "pt_wobble_nm": pt_wobble_nm,
        "drift_nm_per_s": list(drift_nm_per_s),
        "jitter_nm": list(jitter_nm),
        "flyback_s": flyback_s,
        "settling_nm": settling_nm,
        "settling_s": settling_s,
        "response_time_s": response_time_s,
        "conversion": conversion,
        "pulse_spread": pulse_spread,
        "black_level": black_level,
        "read_noise": read_noise,
        "drift_correction": drift_correction,
    }
    _check(parameters)
    scan = Scan(
        pixel_size_nm=pixel_size_nm,
        dwell_time_s=dwell_time_s,
        flyback_s=flyback_s,
        drift_nm_per_s=drift_nm_per_s,
        jitter_nm=jitter_nm,
        settling_nm=settling_nm,
        settling_s=settling_s,
    )
    # Interpolation needs one more pixel at the lower and right edges.
    recorded = (shape[0] + 1, shape[1] + 1) if drift_correction else shape
    scan.check_motion(recorded[1])
    detector = StemDetector(
        conversion=conversion,
        pulse_spread=pulse_spread,
        response_time_s=response_time_s,
        black_level=black_level,
        read_noise=read_noise,
    )
    lead = detector.lead(dwell_time_s)
    profiles = {
        element: atom_profile(
            element,
            energy_kV=energy_kV,
            probe_mrad=probe_mrad,
            detector_mrad=(float(detector_mrad[0]), float(detector_mrad[1])),
            source_size_nm=source_size_nm,
        )
        for element in THERMAL_NM
    }
    electrons_per_pixel = beam_current_pA * 1e-12 * dwell_time_s / _ELEMENTARY_CHARGE
    brightest = electrons_per_pixel * sum(profile[0] for profile in profiles.values())
    if black_level + 2 * conversion * brightest > np.iinfo(np.uint16).max:
        raise ShineError(
            f"conversion={conversion} saturates the 16-bit digitiser: the brightest atoms scatter "
            f"{brightest:.0f} electrons per pixel. Lower conversion, beam current or dwell time."
        )
    movement_seed, *frame_seeds = np.random.SeedSequence(seed).spawn(frames + 1)
    starts = np.arange(frames) * scan.frame_time_s(recorded)
    moved_px = starts[:, None] * np.asarray(drift_nm_per_s) / pixel_size_nm
    steered_px = np.floor(moved_px) if drift_correction else np.zeros_like(moved_px)
    region = _region(scan, recorded, starts, steered_px * pixel_size_nm)
    rng = np.random.default_rng(movement_seed)
    mo, sulphur, sites = _lattice(region, math.radians(rotation_deg))
    pt_site, pt_nm = _hopping(rng, sites, region, frames, pt_per_nm2, hop_probability)
    pt_nm = pt_nm + rng.normal(scale=pt_wobble_nm, size=pt_nm.shape)

    series = _Series(
        scan=scan,
        detector=detector,
        lead=lead,
        shape=recorded,
        starts=starts,
        steered_nm=steered_px * pixel_size_nm,
        shift_px=moved_px - steered_px if drift_correction else None,
        electrons_per_pixel=electrons_per_pixel,
        profiles=profiles,
        mo=mo,
        sulphur=sulphur,
        pt=pt_nm,
        seeds=tuple(frame_seeds),
    )
    stacks = run_frames(
        series.record,
        frames,
        identity=parameters,
        workers=workers,
        progress=progress,
        cache=cache,
    )
    frame_time_s = scan.frame_time_s(recorded)
    dose = electrons_per_pixel / (10 * pixel_size_nm) ** 2
    correlation = response_correlation(dwell_time_s, response_time_s)
    parameters["electrons_per_pixel"] = electrons_per_pixel
    parameters["dose_e_per_A2"] = dose
    parameters["frame_time_s"] = frame_time_s
    parameters["noise_correlation_along_lines"] = correlation.tolist()
    parameters["peak_fraction"] = {k: float(v[0]) for k, v in profiles.items()}

    def movie(name: str, did: str) -> Movie:
        return simulated_movie(
            stacks[name],
            name=name,
            did=did + (", aligned by interpolation" if drift_correction else ""),
            parameters=parameters,
            pixel_size_nm=pixel_size_nm,
            frame_time_s=frame_time_s,
            dose_e_per_A2=dose,
        )

    return Scene(
        name="stem-mos2",
        noisy=movie("noisy", "scanned with noise"),
        truth=movie("truth", "expected counts at the places that the probe visited"),
        parameters=parameters,
        coordinates=_coordinates(series, shape, pt_site),
    )


@dataclass(frozen=True)
class _Series:
    """All that a frame needs; every frame is recorded by itself."""

    scan: Scan
    detector: StemDetector
    lead: int
    shape: tuple[int, int]
    starts: np.ndarray
    steered_nm: np.ndarray
    shift_px: np.ndarray | None
    electrons_per_pixel: float
    profiles: dict[str, np.ndarray]
    mo: np.ndarray
    sulphur: np.ndarray
    pt: np.ndarray
    seeds: tuple[np.random.SeedSequence, ...]

    def record(self, t: int) -> dict[str, np.ndarray]:
        """Return the noisy and the expected counts of frame ``t``, ``(y, x)`` each."""
        rng = np.random.default_rng(self.seeds[t])
        places = visited(self.scan, self.shape, start_s=self.starts[t], lead=self.lead, rng=rng)
        places += self.steered_nm[t]
        # S stands for two atoms above each other, which scatter incoherently: twice one.
        kinds = (("Mo", 1, self.mo), ("S", 2, self.sulphur), ("Pt", 1, self.pt[t]))
        fraction = np.zeros(places.shape[:2])
        for element, count, atoms in kinds:
            fraction += scattered_fraction(
                places,
                atoms,
                count * self.profiles[element],
                pixel_size_nm=self.scan.pixel_size_nm,
            )
        counts, expected = record_scan(
            self.electrons_per_pixel * fraction,
            rng,
            detector=self.detector,
            dwell_time_s=self.scan.dwell_time_s,
            lead=self.lead,
        )
        counts = np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max)
        if self.shift_px is None:
            return {"noisy": counts.astype(np.uint16), "truth": expected}
        shift = self.shift_px[t]
        return {"noisy": _interpolated(counts, shift), "truth": _interpolated(expected, shift)}


def _interpolated(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return ``image[i + shift]`` by linear interpolation, one row and column smaller."""
    y, x = shift.astype(np.float32)
    rows = (1 - y) * image[:-1] + y * image[1:]
    return (1 - x) * rows[:, :-1] + x * rows[:, 1:]


def _region(
    scan: Scan, shape: tuple[int, int], starts: np.ndarray, steered_nm: np.ndarray
) -> np.ndarray:
    """Return the lower and upper corner (nm) of all that the movie shows, with a margin."""
    margin = 2 * REACH_NM + 6 * max(scan.jitter_nm) + scan.settling_nm
    drift = np.asarray(scan.drift_nm_per_s)
    times = np.concatenate([starts, starts + scan.frame_time_s(shape)])
    corners = np.concatenate([steered_nm, steered_nm]) - times[:, None] * drift
    extent = np.asarray(shape) * scan.pixel_size_nm
    return np.stack([corners.min(axis=0) - margin, corners.max(axis=0) + extent + margin])


def _lattice(
    region: np.ndarray, rotation: float
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return the Mo and S₂ columns and the three kinds of sites in a region, nm, y then x."""
    reach = float(np.linalg.norm(region[1] - region[0])) / 2
    count = math.ceil(reach / (LATTICE_NM * math.sqrt(3) / 2)) + 2
    i, j = np.mgrid[-count : count + 1, -count : count + 1].reshape(2, -1, 1)
    cosine, sine = math.cos(rotation), math.sin(rotation)
    a = LATTICE_NM * np.array([sine, cosine])
    b = LATTICE_NM * np.array([math.sin(rotation + math.pi / 3), math.cos(rotation + math.pi / 3)])
    cells = region.mean(axis=0) + i * a + j * b
    sites = []
    for third in range(3):
        places = cells + third * (a + b) / 3
        sites.append(places[((places >= region[0]) & (places <= region[1])).all(axis=1)])
    return sites[0], sites[1], sites


def _hopping(
    rng: np.random.Generator,
    sites: list[np.ndarray],
    region: np.ndarray,
    frames: int,
    pt_per_nm2: float,
    hop_probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of site ``(t, atom)`` and the place ``(t, atom, 2)`` of each Pt atom."""
    from scipy.spatial import cKDTree

    places = np.concatenate(sites)
    kind = np.repeat(np.arange(3), [len(s) for s in sites])
    weight = _SITE_WEIGHTS[kind]
    tree = cKDTree(places)
    # A site is free if neither it nor a site closer than the lattice constant is taken.
    near = tree.query_ball_point(places, 0.99 * LATTICE_NM)
    in_reach = tree.query_ball_point(places, 1.2 * LATTICE_NM)
    taken = np.zeros(len(places), int)

    wanted = round(pt_per_nm2 * float(np.prod(region[1] - region[0])))
    at: list[int] = []
    for site in rng.choice(len(places), len(places), replace=False, p=weight / weight.sum()):
        if len(at) == wanted:
            break
        if not taken[site]:
            at.append(int(site))
            taken[near[site]] += 1
    path = np.empty((frames, len(at)), int)
    for t in range(frames):
        if t:
            for k in np.flatnonzero(rng.random(len(at)) < hop_probability):
                taken[near[at[k]]] -= 1
                free = [s for s in in_reach[at[k]] if not taken[s] and s != at[k]]
                if free:
                    at[k] = int(rng.choice(free, p=weight[free] / weight[free].sum()))
                taken[near[at[k]]] += 1
        path[t] = at
    return kind[path], places[path]


def _coordinates(
    series: _Series, shape: tuple[int, int], pt_site: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the atoms' places, without those that never come into the frame."""

    def seen(t: int, places: np.ndarray) -> np.ndarray:
        pixels = pixel_of(
            series.scan,
            places - series.steered_nm[t],
            series.shape,
            start_s=series.starts[t],
            lead=series.lead,
        )
        return pixels if series.shift_px is None else pixels - series.shift_px[t]

    found: dict[str, np.ndarray] = {}
    shown = {"mo": series.mo, "s": series.sulphur, "pt": series.pt}
    for name, places in shown.items():
        still = places.ndim == 2
        pixels = np.stack(
            [seen(t, places if still else places[t]) for t in range(len(series.starts))]
        )
        inside = (pixels > -0.5) & (pixels < np.asarray(shape) - 0.5)
        ever = inside.all(axis=2).any(axis=0)
        found[f"{name}_px"] = pixels[:, ever]
        found[f"{name}_nm"] = places[ever] if still else places[:, ever]
        if not still:
            found[f"{name}_site"] = pt_site[:, ever]
    return found


def _check(p: dict[str, Any]) -> None:
    check_numbers(
        p,
        positive=("pixel_size_nm", "beam_current_pA", "energy_kV", "probe_mrad"),
        not_negative=("source_size_nm", "pt_per_nm2", "pt_wobble_nm"),
        finite=("rotation_deg",),
    )
    inner, outer = p["detector_mrad"]
    if not 0 < inner < outer or not math.isfinite(outer):
        raise ShineError(f"detector_mrad must rise from above 0, not {p['detector_mrad']}.")
    if inner <= p["probe_mrad"]:
        raise ShineError(
            f"detector_mrad begins at {inner} mrad, inside the probe of {p['probe_mrad']} mrad: "
            "that is no dark field. Choose a larger inner angle."
        )
    if not 0 <= p["hop_probability"] <= 1:
        raise ShineError(f"hop_probability must lie from 0 to 1, not {p['hop_probability']}.")
    if p["pt_per_nm2"] > 3:
        raise ShineError(
            f"pt_per_nm2={p['pt_per_nm2']} is no film of single atoms any more: choose up to 3."
        )
    resolved = 0.061 * Optics(voltage_kV=p["energy_kV"]).wavelength_A / (1e-3 * p["probe_mrad"])
    coarsest = max(resolved, 0.05)
    if p["pixel_size_nm"] > coarsest:
        raise ShineError(
            f"pixel_size_nm={p['pixel_size_nm']} is too coarse for the probe: atoms would fall "
            f"between the pixels. Choose up to {math.floor(1e3 * coarsest) / 1e3:g} nm."
        )
