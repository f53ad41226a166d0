"""Benchmarks of several parts that take minutes each: a part runs alone, and is recorded when it is finished.

A recorded line holds all parts that were measured with the same settings on the same machine, so it replaces the line
before it. If a part fails, the finished ones are recorded already.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure

# What a part finds.
Found = Mapping[str, Any]
# A part, which may keep what takes long in a folder.
Part = Callable[[Path | None], Found]
# What parts must have in common to stand in one line.
SETTINGS = ("question", "sizes", "language_model_sha256")


def benchmark_parts(
    question: str,
    settings: Mapping[str, Any],
    parts: Mapping[str, Part],
    arguments: Sequence[str] | None = None,
) -> None:
    """The main function of such a benchmark: run the parts, and print the line with all that are known after each."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--record", action="store_true", help="keep the parts in benchmarks/results")
    parser.add_argument(
        "--only", action="append", choices=[*parts], metavar="PART", help=f"a part; repeatable: {', '.join(parts)}"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep stores and models of parts here")
    flags = parser.parse_args(arguments)
    known: dict[str, Any] = {}
    for name in flags.only or parts:
        known[name] = parts[name](flags.work)
        line = {"question": question, **settings, "parts": known, **measure.circumstances()}
        if flags.record:
            line = record(line)
        print(json.dumps(line, ensure_ascii=False), flush=True)


def record(line: dict[str, Any]) -> dict[str, Any]:
    """Append a line to the machine's results with the parts that are recorded already, and return it.

    The line before it, with the same question and settings, is removed.
    """
    file = measure.RESULTS / f"{measure.device_name()}.jsonl"
    kept: list[str] = []
    parts: dict[str, Any] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        before = json.loads(text)
        if all(before.get(name) == json.loads(json.dumps(line.get(name))) for name in SETTINGS):
            parts |= before["parts"]
        else:
            kept.append(text)
    merged = {**line, "parts": parts | line["parts"]}
    kept.append(json.dumps(merged, ensure_ascii=False))
    file.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
    return merged
