"""The README's table of numbers, from the recorded lines; `python -m benchmarks.readme` rewrites it.

Of every question the latest line of each device counts; a question without one says "not yet measured".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import bench_decode, bench_memory, bench_store_bytes, bench_textspan, gpu
from benchmarks.measure import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: python -m benchmarks.readme -->", "<!-- end of benchmarks -->"

# The question's name, its command, and how its line reads: the number, and what it is held against.
_ROWS: tuple[tuple[str, str, Callable[[dict[str, Any]], tuple[str, str]]], ...] = (
    (
        bench_textspan.QUESTION,
        "bench_textspan",
        lambda line: (
            f"{line['heads']} heads × {line['texts']:,} texts × {line['rounds']} rounds: {line['seconds']:.2f} s",
            f"published procedure, dense, {line['images']:,} images: {line['published_seconds_a_head']:.1f} s a head, "
            f"so {line['times_faster']:,.0f}× slower; same picks: {'yes' if line['same_picks'] else 'NO'}",
        ),
    ),
    (
        bench_store_bytes.QUESTION,
        "bench_store_bytes",
        lambda line: (
            f"{line['bytes_an_image']:,.0f} (last 4 layers of ViT-L/14, {line['images']:,} images, everything counted)",
            f"dense float32 contributions of the same heads: {line['dense_float32_bytes_an_image']:,}, "
            f"so {line['times_smaller']:.1f}× larger",
        ),
    ),
    (
        bench_memory.QUESTION,
        "bench_memory",
        lambda line: (
            f"{line['peak_bytes'] / 1e6:,.0f} MB at {line['images']:,} images",
            f"{line['peak_bytes_at_10_times'] / 1e6:,.0f} MB at {10 * line['images']:,} images, "
            f"{line['growth']:.2f}× of it",
        ),
    ),
    (bench_decode.QUESTION, "bench_decode", bench_decode.words),
    (gpu.TOWER, "gpu", gpu.tower_words),
    (gpu.OPS, "gpu", gpu.ops_words),
    (gpu.ACCURACY, "gpu", gpu.accuracy_words),
)


def table() -> str:
    """The table in Markdown."""
    lines = ["| question | measured | against | where |", "|---|---|---|---|"]
    latest = _latest()
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


def _latest() -> dict[tuple[str, str], dict[str, Any]]:
    latest = {}
    for file in sorted(RESULTS.glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            latest[line["question"], line["device"]] = line
    return latest


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
