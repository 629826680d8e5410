"""Shared fixtures: where the real data lies, and which browser there is."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("shine", deadline=None)
settings.load_profile("shine")

# One test process per core (pytest -n auto), so one thread in each: two that wait for each other on
# a busy core make a short training ten times slower. Must be set before PyTorch is loaded.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

DATA = Path(os.environ.get("SHINE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep numerics reproducible and polite on a shared machine."""
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Let PyTorch use two cores, as on the machines of users."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real movies and vendor files, or skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data not found at {DATA} (set SHINE_DATA to its folder)")
    return DATA


@pytest.fixture(scope="session")
def au_movie_path(data_dir: Path) -> Path:
    """Return the real Au movie of the paper's Fig. 2."""
    return data_dir / "au_glc" / "au_glc_100x512x512.tif"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return a Chromium executable; under CI a missing browser is a failure, elsewhere a skip."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail("no Chromium found: .ci/run must install it (apt-get install chromium)")
    pytest.skip("no Chromium found (Debian: apt-get install chromium)")
