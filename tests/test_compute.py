"""Device, precision and memory: what is offered works, what is not there is refused plainly."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from shine_em.compute import (
    PRECISIONS,
    Lanes,
    autocast,
    keep_freed_memory,
    peak_memory_bytes,
    pick_device,
    pick_precision,
    shared_evenly,
)
from shine_em.errors import ShineError

CPU = torch.device("cpu")


def test_the_chosen_device_computes() -> None:
    device = pick_device()
    assert float(torch.ones(3, device=device).sum()) == 3
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["banana", "", "cuda:99", "xpu:99"])
def test_devices_that_are_not_there_are_refused(wanted: str) -> None:
    with pytest.raises(ShineError, match="cannot be used here") as caught:
        pick_device(wanted)
    assert repr(wanted) in str(caught.value)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_the_reason_stays_short() -> None:
    with pytest.raises(ShineError) as caught:
        pick_device("mps")
    assert len(str(caught.value)) < 300


def test_a_device_without_data_is_refused() -> None:
    with pytest.raises(ShineError):
        pick_device("meta")


def test_the_chosen_precision_computes() -> None:
    device = pick_device()
    precision = pick_precision(device)
    assert precision in PRECISIONS[1:]
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1).to(device)
    with torch.inference_mode(), autocast(device, precision):
        assert torch.isfinite(convolution(torch.ones(1, 1, 8, 8, device=device)).float()).all()


@pytest.mark.parametrize("wanted", PRECISIONS[1:])
def test_a_named_precision_is_taken(wanted: str) -> None:
    assert pick_precision(CPU, wanted) == wanted


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ShineError, match="fp32, bf16, fp16"):
        pick_precision(CPU, "fp8")


def test_autocast_sets_the_type_of_products() -> None:
    a = torch.ones(4, 4)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for precision, dtype in expected.items():
        with autocast(CPU, precision):
            assert (a @ a).dtype == dtype


def test_peak_memory_grows_with_what_is_held() -> None:
    """In a process of its own, since a peak never falls."""
    code = """
import numpy as np
from shine_em.compute import keep_freed_memory, peak_memory_bytes
keep_freed_memory()
before = peak_memory_bytes()  # Linux starts with the peak of the process that forked
held = np.ones((before + 200_000_000) // 8)
print(before, peak_memory_bytes())
"""
    if peak_memory_bytes() is None:
        pytest.skip("this system does not tell")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    before, after = map(int, done.stdout.split())
    assert 20e6 < before < 20e9  # bytes, not kilobytes
    assert after - before > 100e6  # importing may have peaked above what it left


def test_keeping_freed_memory_is_harmless_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lanes_keep_the_order_and_look_little_ahead(count: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(9):
            taken.append(n)
            yield n

    with Lanes(count) as lanes:
        for k, made in enumerate(lanes.map(lambda n: n * n, numbers())):
            assert made == k * k
            assert len(taken) <= k + count + 1
    assert taken == list(range(9))


def test_lanes_share_the_cores_and_leave_other_threads_theirs(two_cores: None) -> None:
    def cores(_: object = None) -> int:
        return torch.get_num_threads()

    assert (shared_evenly(1), shared_evenly(2), shared_evenly(3)) == (1, 2, 2)
    before = threading.active_count()
    with Lanes(2) as lanes:
        assert list(lanes.map(cores, range(6))) == [1] * 6
        assert cores() == 2
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(cores()))
        other.start()
        other.join()
        assert found == [2]
    assert threading.active_count() == before


def test_an_error_in_a_lane_reaches_the_caller(two_cores: None) -> None:
    def fail(n: int) -> int:
        return 1 // n

    with pytest.raises(ZeroDivisionError), Lanes(2) as lanes:
        list(lanes.map(fail, [2, 1, 0, 1]))
    assert not [t for t in threading.enumerate() if t.name.startswith("lane")]
