"""Decide from recorded rows which kernels are in use, and write `headspan_kernels/switched_on.json`.

`python -m benchmarks.gpu` does both after each question, and prints a verdict for each row: on, off, or open if
something that would decide was not measured. The tower is measured after the ops, with and without what won.
`python -m benchmarks.gpu_switches` writes the file from the lines in benchmarks/results alone.
The latest line decides that has a row for a call on GPUs of a compute capability. A way to compute a call is switched
on if it is right and at least 2 % faster than what would be used without an entry, and than each of its peers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks import gpu, measure
from headspan.model.description import Description
from headspan_kernels import switches

# Times of repeated runs on one GPU differ by less.
MARGIN = 1.02
ON, OFF, OPEN = "on", "off", "open"
# What computes a call of a table that has no entry for it.
_PYTORCH, _PLAIN_PASS = "PyTorch", "the plain pass"


class Verdict(NamedTuple):
    """The decision about a call: on, off or open, the reason, and, if it is on, the entry of `switched_on.json`."""

    table: str
    key: tuple[Any, ...]
    word: str
    why: str
    entry: dict[str, Any] | None = None

    def __str__(self) -> str:
        capability, *rest = self.key
        name = " ".join(str(part) for part in rest)
        return f"{self.table} sm_{capability[0]}{capability[1]} {name}: {self.word}, {self.why}"


def verdicts(line: dict[str, Any]) -> list[Verdict]:
    """The verdicts of a recorded line, a verdict for each key of a table; none if its rows have no keys."""
    if line["question"] == gpu.PRECOMPUTE:
        return [verdict for rows in line["models"].values() for verdict in _passes(rows, line)]
    if line["question"] == gpu.TOWER:
        return [*_passes(line["rows"], line)]
    calls: dict[tuple[str, tuple[Any, ...]], dict[str, dict[str, Any]]] = {}
    if line["question"] == gpu.OPS:
        for name, row in line["rows"].items():
            if row.get("switch"):
                table, key = row["switch"]
                calls.setdefault((table, switches.key_of(key)), {})[name] = row
    return [_of_call(table, key, rows, line) for (table, key), rows in calls.items()]


def _of_call(table: str, key: tuple[Any, ...], rows: dict[str, dict[str, Any]], line: dict[str, Any]) -> Verdict:
    """The verdict on a call from its rows: what it emits may differ, and the sum of the times counts."""
    missing = sorted({peer for row in rows.values() for peer in row["left_out"]})
    if missing:
        return Verdict(table, key, OPEN, f"no time was left to measure {', '.join(missing)}")
    times = {name: sum(row["cuts"][name]["ms"] for row in rows.values()) for name in _right_everywhere(rows)}
    if not times:
        return Verdict(table, key, OPEN, "no cut was right in every row")
    best = min(times, key=lambda name: times[name])
    peers = [_peers(row) for row in rows.values()]
    if not all(peers):
        return Verdict(table, key, OPEN, "no peer was measured")
    # PyTorch at its best in each row; and what the engine can call of it.
    fastest, reference = (sum(map(choose, peers)) for choose in (_least, _reference))
    words = f"{_milliseconds(times[best])} by {best}"
    if table == "LINEAR_ACT":
        # Without an entry, PyTorch computes it.
        if times[best] * MARGIN > fastest:
            return Verdict(table, key, OFF, f"{words}, {_milliseconds(fastest)} by PyTorch")
        return _on(table, key, best, times[best], _PYTORCH, fastest, rows, line)
    usual = _usual(table, key)
    if reference * MARGIN <= times[best]:
        return _on(table, key, "reference", reference, best, times[best], rows, line)
    if usual not in times:
        return Verdict(table, key, OPEN, f"{usual}, which is used without an entry, was not right in every row")
    if best == usual or times[best] * MARGIN > times[usual]:
        than = f"{_milliseconds(times[usual])} by {usual}, which is used without an entry"
        return Verdict(table, key, OFF, f"{words}, {than}; {_milliseconds(fastest)} by PyTorch at its best")
    return _on(table, key, best, times[best], usual, times[usual], rows, line)


def without_switch(line: dict[str, Any]) -> Iterable[str]:
    """A sentence on each op of a line that no entry switches on or off: it is always in use, or not in the engine."""
    for name, row in line["rows"].items() if line["question"] == gpu.OPS else ():
        if row.get("switch"):
            continue
        used = "in use" if row.get("in_use") else "not in use"
        peers, ours = _peers(row), row["fused"].get("ms")
        if ours is None or "wrong" in row or not peers:
            yield f"{name}: {used}, not measured, or wrong"
        else:
            times = f"{_milliseconds(ours)}, {_milliseconds(_least(peers))} by PyTorch at its best"
            yield f"{name}: {used}, {'faster' if row['kept'] else 'not faster'}: {times}"


def decides(table: str, tower: Description, plain: str) -> dict[str, Any]:
    """The fields by which a row decides whether a table has an entry for `tower`, beside the row `plain`."""
    return {"switch": (table, switches.tower_key(tower.projection.device, *tower.switch_key)), "plain": plain}


def _passes(rows: dict[str, dict[str, Any]], line: dict[str, Any]) -> Iterable[Verdict]:
    """The verdicts on other ways to run a whole pass."""
    for name, row in rows.items():
        if not row.get("switch"):
            continue
        table, key, plain = row["switch"][0], switches.key_of(row["switch"][1]), rows.get(row["plain"], {})
        word, why = _judged(row, plain)
        if word != ON:
            yield Verdict(table, key, word, why)
        else:
            yield _on(table, key, True, row["ms"], _PLAIN_PASS, plain["ms"], {name: row}, line)


def _judged(row: dict[str, Any], plain: dict[str, Any]) -> tuple[str, str]:
    """On, off or open, and why, for another way to run a pass than the plain one."""
    if "ms" not in row or "ms" not in plain:
        return OPEN, "the pass was not measured in both ways"
    if row.get("less_exact"):
        return OFF, f"less exact than the plain pass: {row['less_exact']}"
    why = f"{_milliseconds(row['ms'])} with it, {_milliseconds(plain['ms'])} without"
    return OFF if row["ms"] * MARGIN > plain["ms"] else ON, why


def use_what_won(rows: dict[str, dict[str, Any]]) -> None:
    """Switch what these rows of passes decide on or off at once, for the rows that the same run measures later."""
    for row in rows.values():
        if row.get("switch"):
            (table, key), (word, _) = row["switch"], _judged(row, rows.get(row["plain"], {}))
            if word != OPEN:
                switches.switch(table, key, word == ON)


def _on(
    table: str,
    key: tuple[Any, ...],
    value: str | bool,
    took: float,
    than: str,
    others: float,
    rows: dict[str, dict[str, Any]],
    line: dict[str, Any],
) -> Verdict:
    entry = {
        "table": table,
        "key": [list(key[0]), *key[1:]],
        # Cuts are named by their numbers.
        "value": [*_numbers(value)] if isinstance(value, str) and value.startswith("(") else value,
        "rows": sorted(rows),
        "ms": round(took, 4),
        "instead_of": than,
        "instead_of_ms": round(others, 4),
        **{name: line[name] for name in ("device", "date", "commit")},
    }
    why = f"{_milliseconds(took)} by {value}, {_milliseconds(others)} by {than}"
    return Verdict(table, key, ON, why, entry)


def _numbers(cut: str) -> list[Any]:
    """The numbers of a cut's name, `(64, 32, 4, 3, False, 255)`."""
    found: list[Any] = json.loads(cut.replace("(", "[").replace(")", "]").lower())
    return found


def _right_everywhere(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The cuts that were right, and timed, in all of the rows."""
    first, *others = ([name for name, cut in row["cuts"].items() if "ms" in cut] for row in rows.values())
    return [name for name in first if all(name in names for names in others)]


def _peers(row: dict[str, Any]) -> dict[str, float]:
    """The times of PyTorch's ways to compute a row."""
    return {
        name: value["ms"]
        for name, value in row.items()
        if name not in ("fused", "cuts") and isinstance(value, dict) and "ms" in value
    }


def _least(peers: dict[str, float]) -> float:
    return min(peers.values())


def _reference(peers: dict[str, float]) -> float:
    """The time of the reference as the engine calls it, which compiles nothing."""
    return peers.get("reference", float("inf"))


def _usual(table: str, key: tuple[Any, ...]) -> str:
    """The cut of a call that has no entry."""
    # Here, since Triton's wheels exist for Linux only.
    import torch

    from headspan_kernels import attention, moments

    if table == "MOMENTS":
        return str(tuple(moments.candidates(key[1], key[0])[0]))
    entry = switches.BY_HAND.get(key)
    return str(tuple(entry or attention.candidates(key[2], getattr(torch, key[1]))[0]))


def _milliseconds(time: float) -> str:
    return f"{time:.4g} ms"


def entries(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that recorded lines allow; of lines with a verdict on a key, the latest counts."""
    latest: dict[tuple[Any, ...], dict[str, Any] | None] = {}
    for line in sorted(lines, key=lambda line: str(line["date"])):
        for verdict in verdicts(line):
            if verdict.word != OPEN:
                latest[verdict.table, verdict.key] = verdict.entry
    return [latest[place] for place in sorted(latest, key=str) if latest[place] is not None]  # type: ignore[misc]


def recorded() -> list[dict[str, Any]]:
    """The recorded lines of the GPU benchmark, in the order of their files."""
    lines = [
        json.loads(text)
        for file in sorted(measure.RESULTS.glob("*.jsonl"))
        for text in file.read_text(encoding="utf-8").splitlines()
    ]
    asked = (gpu.OPS, gpu.TOWER, gpu.PRECOMPUTE)
    return [line for line in lines if line["question"] in asked and "failed" not in line]


def decide(*lines: dict[str, Any]) -> str:
    """Switch on what all recorded lines allow, here and in `switched_on.json`; returns the verdicts of `lines`."""
    allowed = entries(recorded())
    switches.switch_on(allowed)
    rows = ",\n".join(json.dumps(entry) for entry in allowed)
    switches.SWITCHED_ON.write_text(f"[\n{rows}\n]\n" if allowed else "[]\n", encoding="utf-8")
    answers = [line for line in lines if "failed" not in line]
    found = [str(verdict) for line in answers for verdict in (*verdicts(line), *without_switch(line))]
    return "\n".join([*found, f"{len(allowed)} entries in {switches.SWITCHED_ON}"])


if __name__ == "__main__":
    # Older lines have no keys, and ops that were deleted.
    print(decide(*(line for line in recorded() if verdicts(line))))
    sys.exit(0)
