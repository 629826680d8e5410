"""What this machine can do: device, precision, memory, and how to ask it to do it fast."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Self, TypeVar

import torch

from .errors import ShineError

__all__ = [
    "Lanes",
    "autocast",
    "in_this_thread",
    "keep_freed_memory",
    "memory_format",
    "peak_memory_bytes",
    "pick_device",
    "pick_precision",
    "return_freed_memory",
    "shared_evenly",
]

Item = TypeVar("Item")
Made = TypeVar("Made")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device to compute on: CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ShineError
        If a device was named that this machine or this build of PyTorch does not have.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ShineError(
            f"The device {wanted!r} cannot be used here ({reason}). Leave out --device, or use cpu."
        ) from None
    return device


def pick_precision(device: torch.device, wanted: str = "auto") -> str:
    """Return "fp32", "bf16" or "fp16": the fastest that the device has hardware for.

    On a CUDA card this also settles that "fp32" is that from now on in this process, and not the
    TF32 that PyTorch convolves with if it is not told.
    """
    if wanted not in PRECISIONS:
        raise ShineError(f"Unknown precision {wanted!r}: choose one of {', '.join(PRECISIONS)}.")
    if device.type == "cuda":
        if wanted == "auto":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
            wanted = "bf16" if fast else "fp16"
        torch.backends.cudnn.allow_tf32 = wanted != "fp32"
    if wanted != "auto":
        return wanted
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16"
    return "fp32"


def _cpu_has_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which the network is run."""
    if precision == "fp32":
        return contextlib.nullcontext()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=kind)


def memory_format(device: torch.device) -> torch.memory_format:
    """Return how feature maps lie in memory: channels last, but on Apple's MPS."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def shared_evenly(most: int) -> int:
    """Return the most lanes, up to ``most``, that share this processor's cores evenly."""
    if not torch.backends.openmp.is_available():  # elsewhere threads cannot be told their share
        return 1
    cores = torch.get_num_threads()
    return max(n for n in range(1, max(1, min(most, cores)) + 1) if cores % n == 0)


_WATCHED: list[object] = []  # not empty within `in_this_thread`


@contextlib.contextmanager
def in_this_thread() -> Iterator[None]:
    """Have lanes work in their caller's thread: what counts operations sees one thread only."""
    _WATCHED.append(None)
    try:
        yield
    finally:
        _WATCHED.pop()


class Lanes:
    """Threads that compute side by side, each with an equal share of the cores.

    A network with few channels does not keep several cores busy at once: two frames side by side,
    each on half of the cores, are done sooner than one after the other on all of them, and what
    the caller does with finished frames goes on meanwhile.

    Parameters
    ----------
    count
        Lanes; with one, everything is done in the caller's thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.count > 1:
            cores = torch.get_num_threads()
            ready = threading.Barrier(self.count + 1)

            def begin() -> None:
                torch.set_num_threads(max(1, cores // self.count))
                torch.get_num_threads()  # takes this for good: it is looked up once per thread
                ready.wait()

            self._pool = ThreadPoolExecutor(self.count, "lane", initializer=begin)
            for _ in range(self.count):
                self._pool.submit(int)
            ready.wait()
            torch.set_num_threads(cores)  # what is set in one thread is what new ones begin with
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """Yield ``function(item)`` in order, having begun as many further ones as there are lanes.

        Items are taken in the caller's thread, when there is a lane for them. Within
        `in_this_thread` all is done there.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        begun: deque[Future[Made]] = deque()
        for item in items:
            if _WATCHED:
                begun.append(Future())
                begun[-1].set_result(function(item))
            else:
                begun.append(self._pool.submit(function, item))
            if len(begun) > self.count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed feature maps instead of returning them to the system.

    Mapping and zeroing fresh pages for every feature map takes more time than computing it: this
    halves the time of a pass on Linux CPUs. Elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 512 << 20)
        libc.mallopt(top_pad, 64 << 20)
        libc.mallopt(arena_max, 1)  # one store for all lanes, instead of one for each


def return_freed_memory() -> None:
    """Give back to the system what glibc kept for reuse, where `keep_freed_memory` told it so.

    Kept memory is torn into pieces by and by: a long job that calls this now and then does not
    grow.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_bytes() -> int | None:
    """Return the process's peak resident memory, or None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
