"""Is every fused op right on a GPU at ViT-L/14's sizes, and faster than PyTorch at the same work?

The peers are the reference and, where PyTorch has a faster way, that one, each eager and compiled. Bytes and operations
are the least that the op must move and do; the larger of their two times at the measured ceilings is the floor. An op
counts as kept if it is right and faster than all of its peers. Where several cuts are timed, the fastest right one is
the row's, and `benchmarks.gpu_switches` switches it on if it wins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

from benchmarks import gpu
from benchmarks.gpu_cases import Case, cases
from headspan_kernels.attention import attend

# Three roundings of 2⁻⁸ (bf16) or 2⁻¹¹ (fp16) each at most: weights, results, and inputs cast. Moments are float64.
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float64: 1e-10}
# The types of the forward pass.
DTYPES = (torch.bfloat16, torch.float16)
# Seconds that compiling a peer may take; peers are compiled only while more is left.
COMPILE_SECONDS = 15.0


def run(ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """A row for each op: its error if it is wrong, and its time beside its peers', by its cuts if it has several."""
    few, work = ([case for dtype in DTYPES for case in cases(batch, dtype)] for batch in (3, gpu.SIZES.batch))
    gpu.say("compiled ahead", gpu.or_why_not(lambda: compile_ahead(few)))
    checks = {
        case.name: {
            name: gpu.or_why_not(lambda case=case, way=way: {"error": error(case, way)})  # type: ignore[misc]
            for name, way in case.ways.items()
        }
        for case in few
    }
    rows, wrong = {}, []
    for case in work:
        rows[case.name] = row = measure(case, checks[case.name], ceilings, left)
        gpu.say(case.name, row)
        fault = row.get("wrong", row["fused"].get("failed"))
        if fault is not None:
            wrong.append(f"{case.name}: {fault}")
    return {"batch": gpu.SIZES.batch, "rows": rows, "wrong": wrong}


def compile_ahead(cases: Sequence[Case], threads: int | None = None) -> dict[str, Any]:
    """Compile what the cases launch in parallel; Triton would compile one kernel after the other, a second each."""
    # Interpreted kernels are not compiled.
    if not isinstance(attend, JITFunction):
        return {"launches": 0}
    run, began, launches = JITFunction.run, time.perf_counter(), 0

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        nonlocal launches
        launches += 1
        return run(kernel, *arguments, grid=grid, warmup=True, **settings)

    JITFunction.run = compile_only
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True):
            for case in cases:
                for way in case.ways.values():
                    # It fails again, with a row that says so, when it is checked.
                    gpu.or_why_not(lambda way=way, case=case: {"": way(*case.arguments)})  # type: ignore[misc]
    finally:
        JITFunction.run = run
    return {"launches": launches, "seconds": round(time.perf_counter() - began, 1)}


def error(case: Case, way: Callable[..., object]) -> float:
    """The largest relative error of the results of `way`, at real sizes, against the reference in float64."""
    inputs = [value.clone() if isinstance(value, Tensor) else value for value in case.arguments]
    exact = [_exact(value) for value in case.arguments]
    if "attention" in case.op and isinstance(inputs[-1], Tensor):
        # The tensor that receives the patches: a number that is never written stays NaN.
        inputs[-1].fill_(torch.nan)
    # Ops that add in place return nothing; their last two arguments hold the results.
    found = _tensors(way(*inputs)) or [inputs[-2], inputs[-1]]
    wanted = _tensors(case.exact(*exact)) or [exact[-2], exact[-1]]
    errors = [gpu.relative_error(got, want) for got, want in zip(found, wanted, strict=True)]
    # A tensor's maximum, since Python's may skip NaN.
    return float(f"{torch.tensor(errors, dtype=torch.float64).max():.3g}")


def timed(work: Callable[..., object], arguments: tuple[Any, ...], compiled: bool = False) -> dict[str, Any]:
    """The time of a call, or the reason why the call failed."""

    def measured() -> dict[str, float]:
        call = torch.compile(work, dynamic=False) if compiled else work
        return gpu.milliseconds(lambda: call(*arguments))

    return gpu.or_why_not(measured)


def measure(
    case: Case, checked: dict[str, dict[str, Any]], ceilings: dict[str, Any], left: Callable[[], float]
) -> dict[str, Any]:
    """Times of the fused op and of its peers, and the share of its floor.

    `checked` holds the error of each way to compute the op. The fastest of those that are right counts.
    """
    tolerance = TOLERANCE[case.dtype]
    # Comparing so, NaN is wrong.
    faults = {
        name: found.get("failed", found.get("error"))
        for name, found in checked.items()
        if "failed" in found or not found["error"] <= tolerance
    }
    times = {name: timed(way, case.arguments) for name, way in case.ways.items()}
    right = [name for name, time in times.items() if name not in faults and "ms" in time]
    best_way = min(right, key=lambda name: times[name]["ms"], default=next(iter(times)))
    row: dict[str, Any] = {"fused": times[best_way]}
    own, left_out = (case.exact, case.arguments), []
    for name, (work, arguments) in {"reference": own, **case.peers}.items():
        row[name] = timed(work, arguments)
        if name not in case.compiles:
            continue
        if left() > COMPILE_SECONDS:
            row[f"{name}, compiled"] = timed(work, arguments, compiled=True)
        else:
            left_out.append(f"{name}, compiled")
    ours = row["fused"].get("ms")
    best = min((value["ms"] for name, value in row.items() if name != "fused" and "ms" in value), default=None)
    arithmetic = "fp64_tflop_s" if case.dtype == torch.float64 else "bf16_tflop_s"
    floors = {
        bound: least / ceilings[ceiling] / 1e9
        for bound, least, ceiling in (("memory", case.bytes, "copy_tb_s"), ("arithmetic", case.flops, arithmetic))
        if ceiling in ceilings
    }
    bound = max(floors, key=lambda name: floors[name], default=None)
    if best_way in faults:
        row["wrong"] = faults[best_way]
    if case.cuts:
        row["cut"] = best_way
        row["cuts"] = {name: {"failed": faults[name]} if name in faults else time for name, time in times.items()}
    if case.switch is not None:
        row |= {"switch": case.switch, "used": case.used}
    return {
        **row,
        "left_out": left_out,
        "megabytes": round(case.bytes / 1e6, 1),
        "gigaflops": round(case.flops / 1e9, 2),
        "bound": bound,
        "share_of_ceiling": None if ours is None or bound is None else round(floors[bound] / ours, 3),
        "times_faster": None if ours is None or best is None else round(best / ours, 2),
        "kept": bool("wrong" not in row and ours is not None and best is not None and best > ours),
        "in_use": best_way == case.used,
    }


def _exact(value: Any) -> Any:
    """16-bit tensors as float64; others as copies, since ops add to them in place."""
    if not isinstance(value, Tensor):
        return value
    return value.double() if value.dtype.itemsize == 2 else value.clone()


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in _tensors(part)]
    return []
