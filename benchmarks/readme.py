"""The README's table of numbers, from the recorded lines; `python -m benchmarks.readme` rewrites it.

Of every question the latest line of each device counts; a question without one says "not yet measured".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    bench_decode,
    bench_dense,
    bench_encode,
    bench_growth,
    bench_memory,
    bench_neighbours,
    bench_pipeline,
    bench_precision,
    bench_shards,
    bench_store_bytes,
    bench_store_io,
    bench_textspan,
    gpu,
)
from benchmarks.measure import latest_lines

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: python -m benchmarks.readme -->", "<!-- end of benchmarks -->"

MODULES = (
    bench_shards,
    bench_encode,
    bench_dense,
    bench_precision,
    bench_decode,
    bench_pipeline,
    bench_store_io,
    bench_store_bytes,
    bench_textspan,
    bench_neighbours,
    bench_memory,
    bench_growth,
)
# The question's name, its command, and how its line reads: the number, and what it is held against.
_ROWS: tuple[tuple[str, str, Callable[[dict[str, Any]], tuple[str, str]]], ...] = (
    *((module.QUESTION, module.__name__.rpartition(".")[2], module.words) for module in MODULES),
    (gpu.TOWER, "gpu", gpu.tower_words),
    (gpu.OPS, "gpu", gpu.ops_words),
    (gpu.ACCURACY, "gpu", gpu.accuracy_words),
)


def table() -> str:
    """The table in Markdown."""
    lines = ["| question | measured | against | where |", "|---|---|---|---|"]
    latest = latest_lines()
    for question, module, words in _ROWS:
        found = [(device, line) for (asked, device), line in sorted(latest.items()) if asked == question]
        for device, line in found:
            number, against = words(line)
            where = f"{device}, {line['date']}, commit {line['commit']}"
            lines.append(f"| [{question}](benchmarks/{module}.py) | {number} | {against} | {where} |")
        if not found:
            lines.append(f"| [{question}](benchmarks/{module}.py) | not yet measured | | |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README's text with the table brought up to date."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
