"""What `shine info` prints."""

from pathlib import Path

import numpy as np

from shine_em.io import describe, read
from shine_em.movie import Axis, Movie


def test_real_movie(au_movie_path: Path) -> None:
    told = describe(read(au_movie_path))
    assert told["shape"] == "100 frames of 512×512 pixels (y×x)"
    assert told["dtype"] == "uint16"
    assert told["pixel size"] == "0.0317 nm"
    assert told["field of view"].startswith("16.23 nm × 16.23 nm")
    assert told["frame time"] == "2.5 ms"
    assert told["duration"] == "0.25 s"
    assert told["size"].startswith("52.4 MB")
    assert told["dose"] == "unknown"


def test_microscope_facts(data_dir: Path) -> None:
    formats = data_dir / "formats"
    velox = describe(read(formats / "velox_tem_stack.emd"))
    assert (velox["voltage"], velox["microscope"]) == ("300 kV", "Titan")
    assert velox["detector"] == "BM-Ceta"
    stem = describe(read(formats / "stem_image.dm3"))
    assert (stem["voltage"], stem["detector"]) == ("200 kV", "DigiScan")
    tia = describe(read(formats / "64x64x5_TEM_preview.emi"))
    assert tia["voltage"] == "200 kV"
    assert tia["magnification"].startswith("19500")


def test_a_bare_array_says_what_is_not_known() -> None:
    told = describe(Movie.from_array(np.zeros((4, 5, 6), "f4")))
    assert told["pixel size"] == told["frame time"] == "not calibrated"
    assert told["file"] == "none (in memory)"
    assert told["history"] == "none"
    assert told["size"] == "480 bytes uncompressed"


def test_pixels_that_are_not_square_and_dose() -> None:
    axes = (Axis("t", "s", 2.0), Axis("y", "nm", 0.2), Axis("x", "nm", 0.1))
    told = describe(Movie(np.zeros((4, 5, 6)), axes=axes, dose_e_per_A2=2.5))
    assert told["pixel size"] == "0.2 nm × 0.1 nm (y×x)"
    assert told["dose"] == "2.5 e⁻/Å² per frame, 10 e⁻/Å² in all"
    assert told["duration"] == "8 s"


def test_frames_are_not_read(tmp_path: Path) -> None:
    class Untouchable:
        shape, dtype = (10**6, 4096, 4096), np.dtype("u2")

        def __getitem__(self, key: object) -> None:
            raise AssertionError("a frame was read")

    assert describe(Movie(Untouchable()))["size"] == "33.6 TB uncompressed"


def test_every_value_is_text(data_dir: Path) -> None:
    for file in sorted((data_dir / "formats").glob("*.*m[dr34]*")):
        told = describe(read(file))
        assert all(isinstance(value, str) and value for value in told.values()), file.name
