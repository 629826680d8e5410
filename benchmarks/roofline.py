"""How close the lean network comes to what this machine can do, operation by operation.

python benchmarks/roofline.py                  # both parts: a few minutes, on an idle machine
python benchmarks/roofline.py --only layers
python benchmarks/roofline.py --only compile   # does torch.compile pay within a job?
python benchmarks/roofline.py --quick          # does it run? no result

An operation can take no less time than its arithmetic at the machine's peak, nor than moving its
inputs and outputs once (S. Williams et al., "Roofline", Commun. ACM 52, 65-76, 2009). Both peaks
are measured here, in the same process and with the same library: a 3×3 convolution with many
channels, and a copy of a large array.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from common import Number

# What only looks at memory in another way.
_VIEWS = (
    "detach", "slice", "select", "view", "alias", "unsqueeze", "squeeze", "expand", "split",
    "permute", "transpose", "t", "as_strided", "_unsafe_view", "unflatten", "lift_fresh",
)  # fmt: skip


def main() -> None:
    """Run the parts that were asked for, print their tables and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("layers", "compile"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--precisions", nargs="+", help="default: fp32, and bf16 where it is fast")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder for JSON")
    a = parser.parse_args()
    if a.quick:
        a.size, a.repeats, a.steps, a.results = 128, 2, 2, None
    described = common.machine()
    print(f"Machine: {common.machine_line(described)}\n", flush=True)
    result: dict[str, Any] = {"machine": described, "size": a.size}
    if a.only != "compile":
        precisions = a.precisions or common.in_own_process(fast_precisions)[0]
        result["layers"] = []
        for precision in precisions:
            found, _ = common.in_own_process(
                time_layers, size=a.size, repeats=a.repeats, precision=precision
            )
            result["layers"].append(found)
            _show_layers(found)
    if a.only != "layers":
        result["compile"], _ = common.in_own_process(time_compile, steps=a.steps)
        _show_compile(result["compile"])
    name = f"roofline-{a.only}.json" if a.only else "roofline.json"
    common.save(a.results and a.results / name, result)


def fast_precisions() -> list[str]:
    """Return fp32, and bf16 where this processor computes in it."""
    import torch

    from shine_em.compute import pick_precision

    best = pick_precision(torch.device("cpu"))
    return ["fp32"] if best == "fp32" else ["fp32", best]


def time_layers(*, size: int, repeats: int, precision: str) -> dict[str, Any]:
    """Time every operation of a pass over one frame, in place: medians over the repeats."""
    import torch

    from shine_em.compute import autocast, keep_freed_memory
    from shine_em.network import NetworkConfig, build

    keep_freed_memory()
    torch.manual_seed(0)
    network = build(NetworkConfig()).to(memory_format=torch.channels_last).eval()
    window = torch.randn(1, 5, size, size).contiguous(memory_format=torch.channels_last)

    def whole() -> None:
        network(window, [(3, 3)])

    passes = []
    seconds = []
    with torch.no_grad(), autocast(torch.device("cpu"), precision):
        for _ in range(3):
            whole()
        for _ in range(repeats):
            begun = time.perf_counter()
            whole()
            seconds.append(time.perf_counter() - begun)
        for _ in range(repeats):
            with _Watch(network) as seen:
                whole()
            passes.append(seen)
    operations = []
    for same in zip(*passes, strict=True):
        median = statistics.median(each["seconds"] for each in same)
        operations.append({**same[0], "seconds": median})
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return {
        "precision": precision, "threads": torch.get_num_threads(), "size": size,
        "repeats": repeats, "pass_s": statistics.median(seconds), "operations": operations,
        "peak_flops": _peak_flops(kind, repeats), "peak_bytes": _peak_bytes(repeats),
    }  # fmt: skip


class _Watch:
    """Times every operation that PyTorch carries out, and says in which layer."""

    def __init__(self, network: Any) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        self.seen: list[dict[str, Any]] = []
        self.inside: list[str] = [""]
        watch = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                begun = time.perf_counter()
                out = func(*args, **(kwargs or {}))
                watch.note(func, args, out, time.perf_counter() - begun)
                return out

        self.mode = Mode()
        self.network = network

    def __enter__(self) -> list[dict[str, Any]]:
        self.hooks = []
        for name, module in self.network.named_modules():
            self.hooks += [
                module.register_forward_pre_hook(lambda _m, _i, n=name: self.inside.append(n)),
                module.register_forward_hook(self._leave),
            ]
        self.mode.__enter__()
        return self.seen

    def _leave(self, *_: Any) -> None:
        self.inside.pop()

    def __exit__(self, *failure: Any) -> None:
        self.mode.__exit__(*failure)
        for hook in self.hooks:
            hook.remove()

    def note(self, func: Any, args: Any, out: Any, seconds: float) -> None:
        name = func.overloadpacket.__name__
        if name in _VIEWS:
            return
        tensors = [*_tensors(args), *_tensors([out])]  # one that is changed is read and written
        large = max((t.numel() for t in tensors), default=0)
        flops = 0.0
        if "conv" in name:
            # Two operations for each weight and output pixel; a donut's middle tap is zero.
            flops = 2.0 * args[1][0].numel() * out.numel()
            name = f"convolution {args[1].shape[1]} to {args[1].shape[0]}, " + "×".join(
                str(n) for n in args[1].shape[2:]
            )
        self.seen.append(
            {
                "layer": self.inside[-1], "operation": name, "flops": flops,
                "bytes": sum(t.numel() * t.element_size() for t in tensors),
                "small": large < 4096, "seconds": seconds,
            }
        )  # fmt: skip


def _tensors(values: Any) -> list[Any]:
    import torch

    found = []
    for v in values:
        if isinstance(v, torch.Tensor):
            found.append(v)
        elif isinstance(v, (list, tuple)):
            found += _tensors(v)
    return found


def _fastest(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(max(3, repeats)):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def _peak_flops(kind: Any, repeats: int) -> float:
    """Return operations per second of the fastest of three large convolutions."""
    import torch
    import torch.nn.functional as F

    rates = []
    with torch.inference_mode():
        for channels, edge in ((64, 256), (128, 128), (256, 64)):
            x = torch.randn(1, channels, edge, edge, dtype=kind)
            x = x.contiguous(memory_format=torch.channels_last)
            w = torch.randn(channels, channels, 3, 3, dtype=kind)
            w = w.contiguous(memory_format=torch.channels_last)
            taken = _fastest(lambda x=x, w=w: F.conv2d(x, w, padding=1), repeats)
            rates.append(2 * 9 * channels**2 * edge**2 / taken)
    return max(rates)


def _peak_bytes(repeats: int) -> float:
    """Return bytes per second, read and written, of a copy far larger than the caches."""
    import torch

    source = torch.ones(64 << 20)  # 256 MB
    target = torch.zeros_like(source)
    return 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source), repeats)


def _show_layers(found: dict[str, Any]) -> None:
    flops, moved = found["peak_flops"], found["peak_bytes"]

    def least(o: dict[str, Any]) -> float:
        return max(o["flops"] / flops, o["bytes"] / moved)

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for o in found["operations"]:
        if o["small"]:
            key = ("", "small tensors: weights, kernels")
        elif o["flops"]:
            key = (o["layer"], o["operation"])
        else:
            key = ("", o["operation"])
        groups.setdefault(key, []).append(o)
    rows = []
    for (layer, name), several in groups.items():
        seconds = sum(o["seconds"] for o in several)
        bound = sum(least(o) for o in several)
        work, size = sum(o["flops"] for o in several), sum(o["bytes"] for o in several)
        limit = "arithmetic" if work / flops > size / moved else "memory"
        rows.append(
            (
                layer or "all", name + (f" ({len(several)})" if len(several) > 1 else ""),
                Number(work / 1e9, 2), Number(size / 1e6, 1), Number(1e3 * bound, 2),
                Number(1e3 * seconds, 2), limit, Number(100 * bound / seconds, 0),
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -float(row[5]))
    total = sum(o["seconds"] for o in found["operations"])
    bound = sum(least(o) for o in found["operations"])
    conv = [o for o in found["operations"] if o["flops"]]
    rows.append(
        (
            "sum", "", Number(sum(o["flops"] for o in conv) / 1e9, 2),
            Number(sum(o["bytes"] for o in found["operations"]) / 1e6, 1), Number(1e3 * bound, 2),
            Number(1e3 * total, 2), "", Number(100 * bound / total, 0),
        )
    )  # fmt: skip
    print(
        f"Lean network, one {found['size']}×{found['size']} frame, hole 3×3, {found['precision']}, "
        f"{found['threads']} threads, medians of {found['repeats']}; peaks measured here: "
        f"{flops / 1e9:.0f} GFLOP/s, {moved / 1e9:.1f} GB/s. A whole pass, not taken apart: "
        f"{1e3 * found['pass_s']:.1f} ms.\n"
    )
    head = (
        "layer", "operation", "GFLOP", "MB", "least, ms", "measured, ms", "bound by",
        "of the attainable, %",
    )  # fmt: skip
    print(common.table(head, rows), "\n", flush=True)
    arithmetic = sum(o["seconds"] for o in conv)
    print(
        f"Convolutions: {100 * arithmetic / total:.0f} % of the time, "
        f"{sum(o['flops'] for o in conv) / arithmetic / 1e9:.0f} GFLOP/s.\n",
        flush=True,
    )


def time_compile(*, steps: int) -> dict[str, Any]:
    """Time training steps as they are and compiled, and the compiling."""
    import torch

    from shine_em.compute import autocast, keep_freed_memory, pick_precision
    from shine_em.network import NetworkConfig, build
    from shine_em.planning import training_holes
    from shine_em.training_settings import PRESETS

    keep_freed_memory()
    where = torch.device("cpu")
    precision = pick_precision(where)
    settings = PRESETS["lean"]
    torch.manual_seed(0)
    network = build(NetworkConfig()).to(memory_format=torch.channels_last)
    window = torch.randn(settings.batch, 5, settings.crop, settings.crop)
    window = window.contiguous(memory_format=torch.channels_last)

    def step(model: Any) -> None:
        with autocast(where, precision):
            predicted = model(window, [(3, 3)], 0)[0]
        (predicted.float() - window[:, 2]).square().mean().backward()

    def timed(model: Any) -> list[float]:
        times = []
        for _ in range(steps):
            begun = time.perf_counter()
            step(model)
            times.append(time.perf_counter() - begun)
        return times

    for _ in range(3):
        step(network)
    eager = timed(network)
    torch._dynamo.reset()
    compiled = torch.compile(network, dynamic=False)
    begun = time.perf_counter()
    step(compiled)
    compiling = time.perf_counter() - begun
    fast = timed(compiled)
    # Each hole and each number of neighbours out of place is a graph of its own.
    graphs = len(training_holes((3, 3))) * (1 + NetworkConfig().frames // 2)
    return {
        "precision": precision, "threads": torch.get_num_threads(), "graphs": graphs,
        "eager_s": eager, "compiled_s": fast, "compiling_s": compiling,
    }  # fmt: skip


def _show_compile(found: dict[str, Any]) -> None:
    eager, compiled = (statistics.median(found[k]) for k in ("eager_s", "compiled_s"))
    saved = eager - compiled
    print(
        f"Training step (forward and backward, {found['precision']}, {found['threads']} threads): "
        f"{1e3 * eager:.1f} ms, compiled {1e3 * compiled:.1f} ms; compiling one graph takes "
        f"{found['compiling_s']:.1f} s, and a training needs {found['graphs']}."
    )
    if saved > 0:
        needed = found["graphs"] * found["compiling_s"] / saved
        print(f"It pays after {needed:.0f} steps, {needed * eager / 60:.1f} min of training.\n")
    else:
        print("It never pays.\n")


if __name__ == "__main__":
    if not common.serve(globals()):
        sys.exit(main())
