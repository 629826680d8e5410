"""What this machine can do: device, precision, memory, and how to ask it to do it fast."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from contextlib import AbstractContextManager

import torch

from .errors import ShineError

__all__ = [
    "autocast",
    "keep_freed_memory",
    "peak_memory_bytes",
    "pick_device",
    "pick_precision",
    "return_freed_memory",
]

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
    """Return "fp32", "bf16" or "fp16": the fastest that the device has hardware for."""
    if wanted not in PRECISIONS:
        raise ShineError(f"Unknown precision {wanted!r}: choose one of {', '.join(PRECISIONS)}.")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
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


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed feature maps instead of returning them to the system.

    Mapping and zeroing fresh pages for every feature map takes more time than computing it: this
    halves the time of a pass on Linux CPUs. Elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 512 << 20)
        libc.mallopt(top_pad, 64 << 20)


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
