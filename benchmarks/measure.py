"""Timing, and the JSON line that every benchmark prints last.

A benchmark warms up, repeats, and reports the median with the 20th and 80th percentiles. Its line names the machine,
the instructions that libraries may use, the versions and the commit, so that the number can be measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
# Environment variables that forbid AVX-512 to PyTorch, oneDNN and MKL, with the value that does.
HIDE_AVX512 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# Flags of /proc/cpuinfo that decide how fast matrices are multiplied, and their names here.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_fp16": "AVX-512 fp16",
    "amx_bf16": "AMX bf16",
}


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of repeated runs: the median, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float


def seconds(work: Callable[[], object], repeats: int = 7, warmup: int = 1) -> Seconds:
    """Time `work`, one call a run."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    low, median, high = np.quantile(times, [0.2, 0.5, 0.8])
    return Seconds(float(median), float(low), float(high))


def alternate(works: Mapping[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each of `works` in each of `repeats` rounds.

    Every round runs all works, and every other round runs them in reverse order, so that other load on the machine
    affects all of them alike.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, repeats):
        for name in names[::-1] if number % 2 else names:
            began = time.perf_counter()
            works[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """The time of `name` divided by that of `other`: the median of the ratios of the rounds."""
    return round(float(np.median(np.divide(times[name], times[other]))), 4)


def median(times: Sequence[float]) -> float:
    """The median, to four digits."""
    return float(f"{np.median(times):.4g}")


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """An empty cache folder of this user, in the place of the real one, which may hold what is to be measured."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def benchmark(question: str, run: Callable[[bool], dict[str, Any]], arguments: Sequence[str] | None = None) -> None:
    """The main function of a benchmark module: run it, print the line, and append the line with `--record`."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--toy", action="store_true", help="use sizes that take a second")
    parser.add_argument("--record", action="store_true", help="append the line to benchmarks/results")
    flags = parser.parse_args(arguments)
    line = json.dumps({"question": question, **run(flags.toy), **circumstances()}, ensure_ascii=False)
    print(line)
    if flags.record:
        with (RESULTS / f"{device_name()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def latest_lines() -> dict[tuple[str, str], dict[str, Any]]:
    """The last recorded line for each question and machine, among the lines that hold an answer.

    A machine with AVX-512 hidden counts as a machine of its own, whose name says so.
    """
    latest = {}
    for file in sorted(RESULTS.glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "failed" not in line:
                latest[line["question"], machine(line)] = line
    return latest


def machine(line: Mapping[str, Any]) -> str:
    """The name of the machine of a recorded line."""
    return str(line["device"]) + (" with AVX-512 hidden" if avx512_hidden(line) else "")


def avx512_hidden(line: Mapping[str, Any]) -> bool:
    """Whether a recorded line was measured with AVX-512 forbidden to the libraries."""
    return bool(line.get("cpu", {}).get("avx512_hidden"))


def circumstances() -> dict[str, Any]:
    """Date, machine, instructions, versions and commit."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(),
        "cores": os.cpu_count(),
        "cpu": processor(),
        "versions": {name: _version(name) for name in ("python", "headspan", "numpy", "torch", "zarr")},
        "commit": _commit(),
    }


def processor() -> dict[str, Any]:
    """The processor's model, its instructions for matrices, and whether AVX-512 is hidden from the libraries."""
    flags = _cpuinfo("flags").split()
    hidden = "avx512f" in flags and all(os.environ.get(name) == value for name, value in HIDE_AVX512.items())
    return {
        "model": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [name for flag, name in _INSTRUCTIONS.items() if flag in flags],
        "avx512_hidden": hidden,
    }


def device_name() -> str:
    """A file name for this machine's processor and number of cores."""
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return "-".join([*model.lower().replace("(r)", "").split(), f"{os.cpu_count()}-cores"]).replace("/", "-")


def _cpuinfo(name: str) -> str:
    """The first processor's entry of that name in /proc/cpuinfo; an empty string if it has no such entry."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        print("benchmarks: git finds no commit here, so the line names none", file=sys.stderr)
        return None
