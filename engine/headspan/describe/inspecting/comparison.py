"""Compare inspected descriptions of several models, heads or class sets: one row for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.describe.descriptions.result import Descriptions
from headspan.describe.inspecting.summary import SHARES, InspectionSummary, inspection_summary
from headspan.errors import counted, percent
from headspan.frames import Tabular
from headspan.prune.studies.statistics import SAMPLES, Interval

# The most attributes of a run that `rows` names.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class InspectedRun:
    """The descriptions of one store, and their summary."""

    store: str
    descriptions: Descriptions
    summary: InspectionSummary


@dataclass(frozen=True, slots=True, repr=False)
class InspectionComparison(Tabular):
    """Inspected runs side by side; shares of runs with other judges or classes do not compare."""

    runs: tuple[InspectedRun, ...]

    def __repr__(self) -> str:
        return f"InspectionComparison({counted(len(self.runs), 'run')})"

    @property
    def comparable(self) -> bool:
        """Whether all runs have the same classes and judges."""
        return len({(each.descriptions.classes, frozenset(each.summary.judges)) for each in self.runs}) == 1

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns: dict[str, list[Any]] = {
            "store": [each.store for each in self.runs],
            "run": [each.descriptions.run for each in self.runs],
            "model": [each.descriptions.model for each in self.runs],
            "trained": [each.descriptions.adapter_sha256 is not None for each in self.runs],
            "target": [str(each.descriptions.target) for each in self.runs],
            "classes": [len(each.descriptions.classes) for each in self.runs],
            "texts": [each.summary.every.texts for each in self.runs],
            "times": [each.summary.every.times for each in self.runs],
        }
        for name in SHARES:
            shares = [each.summary.every.shares[name] for each in self.runs]
            columns[name] = [each.value for each in shares]
            columns[f"{name}_low"] = [each.low for each in shares]
            columns[f"{name}_high"] = [each.high for each in shares]
        # What was measured when the descriptions were written, such as their zero-shot accuracy.
        for name in dict.fromkeys(name for each in self.runs for name in each.descriptions.quality):
            columns[name] = [each.descriptions.quality.get(name) for each in self.runs]
        for verdict in self.runs[0].summary.attributes if self.runs else ():
            columns[f"{verdict} attributes"] = [
                ", ".join(f"{name} {count}" for name, count in each.summary.attributes[verdict].items())
                for each in self.runs
            ]
        return columns

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, with its header: what distinguishes runs, shares, and the most frequent attributes."""
        header = ("run", "store", "model", "target", "sampled", *SHARES, "zero-shot", "distinct-1", "attributes")
        return [header, *(_row(each) for each in self.runs)]


def compare_inspections(
    found: Sequence[tuple[str, Descriptions]], samples: int = SAMPLES, seed: int = 0
) -> InspectionComparison:
    """Summarise inspected descriptions, each with the path of its store. Raises as `inspection_summary` does."""
    return InspectionComparison(
        tuple(InspectedRun(store, each, inspection_summary(each, samples, seed)) for store, each in found)
    )


def shown(share: Interval) -> str:
    """A share with its interval, as text."""
    if share.value != share.value:
        return "-"
    if share.low != share.low:
        return percent(share.value)
    return f"{percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _row(each: InspectedRun) -> tuple[str, ...]:
    descriptions, summary = each.descriptions, each.summary
    counts: dict[str, int] = {}
    for attributes in summary.attributes.values():
        for name, count in attributes.items():
            counts[name] = counts.get(name, 0) + count
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    accuracy, distinct = descriptions.quality.get("zero_shot"), descriptions.quality.get("distinct_1")
    return (
        descriptions.run,
        Path(each.store).name,
        Path(descriptions.model).name + (", trained" if descriptions.adapter_sha256 is not None else ""),
        str(descriptions.target),
        f"{summary.every.times:,}",
        *(shown(summary.every.shares[name]) for name in SHARES),
        "-" if accuracy is None else percent(accuracy),
        "-" if distinct is None else f"{distinct:.2f}",
        ", ".join(f"{name} {count}" for name, count in common) or "-",
    )
