"""Timing and the JSON line that every benchmark ends with.

Warm-up, then the median and the 20th and 80th percentiles of repeated runs. A line names the machine, the
versions and the commit, so that a number can be made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of repeated runs: median, and 20th and 80th percentile."""

    median: float
    low: float
    high: float


def seconds(work: Callable[[], object], repeats: int = 7, warmup: int = 1) -> Seconds:
    """Time `work`, called once a run."""
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

    A round runs every one of them, every other round backwards, so that what else the machine does meets all alike.
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
    """The time of `name` over that of `other`: the median of the rounds' own ratios."""
    return round(float(np.median(np.divide(times[name], times[other]))), 4)


def median(times: Sequence[float]) -> float:
    """The median, to four digits."""
    return float(f"{np.median(times):.4g}")


def benchmark(question: str, run: Callable[[bool], dict[str, Any]], arguments: Sequence[str] | None = None) -> None:
    """The main function of a benchmark module: run it, print the line, and append it with `--record`."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--toy", action="store_true", help="sizes that take a second")
    parser.add_argument("--record", action="store_true", help="append the line to benchmarks/results")
    flags = parser.parse_args(arguments)
    line = json.dumps({"question": question, **run(flags.toy), **circumstances()}, ensure_ascii=False)
    print(line)
    if flags.record:
        with (RESULTS / f"{device_name()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def latest_lines() -> dict[tuple[str, str], dict[str, Any]]:
    """The last recorded line of each question and device, of those that hold an answer."""
    latest = {}
    for file in sorted(RESULTS.glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "failed" not in line:
                latest[line["question"], line["device"]] = line
    return latest


def circumstances() -> dict[str, Any]:
    """Date, machine, versions and commit."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(),
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in ("python", "headspan", "numpy", "torch", "zarr")},
        "commit": _commit(),
    }


def device_name() -> str:
    """A file name for this machine's processor and number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return "-".join([*model.lower().replace("(r)", "").split(), f"{os.cpu_count()}-cores"]).replace("/", "-")


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
        print("no git commit to name", file=sys.stderr)
        return None
