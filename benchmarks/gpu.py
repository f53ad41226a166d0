"""How fast and how exact is the GPU path?

`python -m benchmarks.gpu` takes under 5 minutes on one GPU. It measures ceilings first (copy bandwidth, matrix products
in bf16 and float64), then answers four questions: the tower's contributions against a float64 pass, every fused op
checked and timed beside PyTorch's own, the tower with everything emitted beside its peers, and `precompute` end to end.
`--only ops precompute` answers these two. A row that cannot be measured says why (open_clip may not be installed), and
an op with wrong results is timed too. The exit code is 1 if a question has no answer or a wrong one. It needs torch,
numpy, triton and jaxtyping only; the last question needs all that headspan needs. Each line is appended to
`benchmarks/results/<device>.jsonl` as soon as it is known, and `benchmarks.gpu_switches` switches on what won.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ACCURACY, OPS, TOWER = "GPU: bf16 contributions", "GPU: fused ops", "GPU: ViT-L/14 with all contributions"
PRECOMPUTE = "GPU: precompute end to end"
# Each question's name for `--only`, its module and function, and the seconds that questions before it leave to it.
QUESTIONS = {
    ACCURACY: ("accuracy", "gpu_tower", "accuracy", 0.0),
    OPS: ("ops", "gpu_ops", "run", 80.0),
    TOWER: ("tower", "gpu_tower", "speed", 70.0),
    PRECOMPUTE: ("precompute", "gpu_precompute", "run", 130.0),
}
DEVICE = "cuda"
# The whole command's limit; a peer whose compilation might exceed it is left out and named.
SECONDS = 290.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """A tower and a batch."""

    batch: int = 256
    layers: int = 24
    heads: int = 16
    head_dim: int = 64
    joint: int = 768
    patch: int = 14
    pixels: int = 224
    # Height and width of a photograph as it comes from its JPEG.
    photo: tuple[int, int] = (375, 500)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """The patches and the class token."""
        return (self.pixels // self.patch) ** 2 + 1


# ViT-L/14 at 224 pixels.
SIZES = Sizes()
_NEEDED = ("numpy", "triton", "jaxtyping")
_ENGINE = Path(__file__).parent.parent / "engine"


def main(arguments: Sequence[str] = ()) -> int:
    """Answer the questions; returns the exit code."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="How fast and how exact is the GPU path?")
    names = [name for name, *_ in QUESTIONS.values()]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="the questions to answer")
    chosen = parser.parse_args(arguments).only
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if not torch.cuda.is_available() or missing:
        found = f"{' and '.join(missing)} not installed" if missing else "torch sees none"
        print(f"benchmarks.gpu measures a CUDA GPU, but {found}; run it on a machine that has one", file=sys.stderr)
        return 2
    _make_importable()
    # PyTorch's float32 products must not use TF32 either, even if the environment allows it.
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
    torch.set_float32_matmul_precision("highest")
    # Imported here, since it needs numpy.
    from benchmarks.measure import RESULTS

    here = _circumstances()
    ceilings: dict[str, Any] = {}
    for name, rate in (("copy_tb_s", copy_rate), ("bf16_tflop_s", matmul_rate), ("fp64_tflop_s", float64_rate)):
        ceilings |= or_why_not(lambda name=name, rate=rate: {name: rate()})  # type: ignore[misc]
    say(here["device"], ceilings)

    exit_code = 0
    asked = [(question, *rest) for question, rest in QUESTIONS.items() if rest[0] in chosen]
    for place, (question, _, module, function, _) in enumerate(asked):
        ends = began + SECONDS - sum(seconds for *_, seconds in asked[place + 1 :])

        def left(ends: float = ends) -> float:
            return ends - time.monotonic()

        answer = or_why_not(lambda at=module, name=function: _function(at, name)(ceilings, left))  # type: ignore[misc]
        line = {"question": question, **answer, "ceilings": ceilings, **here}
        text = json.dumps(line, ensure_ascii=False)
        # Written at once, so that an interrupted run has recorded what it measured.
        with (RESULTS / f"{line['device']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        said = or_why_not(lambda text=text: {"verdicts": _function("gpu_switches", "decide")(json.loads(text))})  # type: ignore[misc]
        print(*said.values(), text, sep="\n", flush=True)
        for fault in ("failed", "wrong"):
            if line.get(fault):
                print(f"{question}: {fault}: {line[fault]}", file=sys.stderr)
                exit_code = 1
    return exit_code


def accuracy_table(line: dict[str, Any]) -> list[list[str]]:
    """A row for each type: relative errors, and the lowest cosine."""
    head = ["relative error against float64", "sum of contributions", "heads", "patches", "lowest cosine of the sum"]
    rows = [
        [
            kind,
            *(f"{line[kind][f'{part}_error']:.1e}" for part in ("sum", "heads", "patches")),
            f"{line[kind]['cosine']:.7f}",
        ]
        for kind in ("fp32", "bf16", "fp16")
        if kind in line
    ]
    return [head, *rows, [f"required of 16 bits: {'met' if line['marks_met'] else 'MISSED'}", "1e-2", "", "", "0.9999"]]


def ops_table(line: dict[str, Any]) -> list[list[str]]:
    """A row for each op: its time, that of the best peer, their ratio, and the share of the floor."""
    found = [["op", "fused", "best of PyTorch", "times faster", "share of the floor", ""]]
    for name, row in line["rows"].items():
        peers = {peer: value["ms"] for peer, value in row.items() if isinstance(value, dict) and "ms" in value}
        ours = peers.pop("fused", None)
        best = min(peers, key=lambda peer: peers[peer], default=None)
        times, share = row["times_faster"], row.get("share_of_ceiling")
        faster = "" if row.get("in_use", True) else "faster, not yet in use"
        verdict = "WRONG" if "wrong" in row else faster if row["kept"] else "slower than PyTorch"
        found.append(
            [
                name,
                "failed" if ours is None else f"{ours:.3g} ms",
                "" if best is None else f"{peers[best]:.3g} ms ({best})",
                "" if times is None else f"{times:.2f}",
                "" if share is None else f"{share:.2f} ({row['bound']})",
                verdict,
            ]
        )
    return found


def tower_table(line: dict[str, Any]) -> list[list[str]]:
    """A row for the tower and for each of its peers: milliseconds a batch, and images a second."""
    found = [[f"batch of {line['batch']}", "ms", "images/s", "time over ours"]]
    ours = line["rows"]["ours"]["ms"]
    for name, row in line["rows"].items():
        if "ms" in row:
            rate = f"{line['batch'] / row['ms'] * 1e3:,.0f}"
            found.append([name, f"{row['ms']:.1f}", rate, f"{row['ms'] / ours:.2f}"])
        else:
            found.append([name, "failed", "", ""])
    if line["share_of_bf16"] is not None:
        found.append(["share of the measured bf16 matrix rate", f"{line['share_of_bf16']:.2f}", "", ""])
    return found


def tower_headline(line: dict[str, Any]) -> tuple[str, str]:
    """The README's cells of the tower."""
    times = line["times_open_clip_compiled"]
    return (
        f"ViT-L/14, bf16: {line['images_a_second']:,} images/s with all heads and patches",
        "open_clip's `encode_image`, compiled: "
        + ("not yet measured" if times is None else f"{1 / times:.2f} of that rate"),
    )


def milliseconds(work: Callable[[], object], for_ms: int = 200) -> dict[str, float]:
    """Median, 20th and 80th percentile of `work`'s time on the GPU; the L2 cache is flushed before each run."""
    from triton.testing import do_bench

    low, median, high = do_bench(work, warmup=max(25, for_ms // 4), rep=for_ms, quantiles=[0.2, 0.5, 0.8])
    return {"ms": round(median, 4), "ms_20": round(low, 4), "ms_80": round(high, 4)}


def replayed(work: Callable[[], object], for_ms: int = 200) -> dict[str, float]:
    """The time of the same work as a replayed CUDA graph, which has no launch cost."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return milliseconds(graph.replay, for_ms)


def kernels(work: Callable[[], object], named: int = 12) -> dict[str, float]:
    """Milliseconds of one call by kernel, the longest first; the kernels after the first `named` are one number."""
    work()
    with profile(activities=[getattr(ProfilerActivity, DEVICE.upper())], acc_events=True) as seen:
        work()
    took: dict[str, float] = {}
    for event in seen.events():
        if event.device_type == getattr(DeviceType, DEVICE.upper()):
            # Names of C++ kernels contain whole types.
            name = event.name[:80]
            took[name] = took.get(name, 0.0) + event.time_range.elapsed_us() / 1e3
    ranked = sorted(took.items(), key=lambda item: -item[1])
    shown = {name: round(time, 4) for name, time in ranked[:named]}
    return {**shown, "others": round(sum(time for _, time in ranked[named:]), 4)}


def or_why_not(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row or a line; if it cannot be measured, the reason, so that the rest can still be measured."""
    try:
        return measured()
    # Any error: Triton's share no base class with PyTorch's, and GPU time is too expensive to stop at one row.
    except Exception as problem:
        # Only the end, which names the place: compilers print whole programs in their messages.
        print(traceback.format_exc()[-1500:], file=sys.stderr, flush=True)
        return {"failed": f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0]}"}


def say(name: str, row: dict[str, Any]) -> None:
    """Print a row in one short line at once, so that the log shows what was known before a crash."""
    parts = []
    for key, value in row.items():
        parts.append(f"{key} {value.get('ms', value.get('failed', value)) if isinstance(value, dict) else value}")
    print(f"{name}: {', '.join(parts)}", flush=True)


def copy_rate() -> float:
    """Terabytes a second of a device-to-device copy, bytes read and bytes written."""
    source = torch.randn(SIZES.batch << 22, device=DEVICE)
    target = torch.empty_like(source)
    return _digits(2 * source.nbytes / milliseconds(lambda: target.copy_(source))["ms"] / 1e9)


def matmul_rate(dtype: torch.dtype = torch.bfloat16) -> float:
    """Teraflops of a large matrix product of random numbers."""
    size = 32 * SIZES.batch
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return _digits(2 * size**3 / milliseconds(lambda: a @ b)["ms"] / 1e9)


def float64_rate() -> float:
    """The same in float64."""
    return matmul_rate(torch.float64)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖; NaN exceeds every tolerance."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def _digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _make_importable() -> None:
    """Make the tower importable where zarr is missing, which headspan's own `__init__` would import."""
    sys.path[:0] = [str(_ENGINE), str(_ENGINE.parent / "kernels")]
    if find_spec("zarr") is None:
        package = ModuleType("headspan")
        package.__path__ = [str(_ENGINE / "headspan")]
        sys.modules["headspan"] = package


def _function(module: str, name: str) -> Callable[..., Any]:
    """A function of a question's module; imported late, since importing Triton's kernels may fail."""
    found: Callable[..., Any] = getattr(import_module(f"benchmarks.{module}"), name)
    return found


def _circumstances() -> dict[str, Any]:
    import triton

    from benchmarks.measure import circumstances

    here = circumstances()
    here["device"] = "-".join(torch.cuda.get_device_name().lower().split())
    here["versions"] = {**here["versions"], "triton": triton.__version__, "cuda": torch.version.cuda}
    return here


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
