"""The quality of descriptions as a table: one row for what a run wrote, and one for each of its baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.describe.descriptions.result import Descriptions
from headspan.errors import counted
from headspan.frames import Tabular

# The figures of a row, by column; a baseline lacks some.
FIGURES = (
    *("reward", "reward_low", "reward_high", "kl", "length", "ended", "cut"),
    *("distinct_1", "distinct_2", "distinct_3", "zero_shot"),
)
# The N of best-of-N that descriptions are compared with, a power of 2.
BEST_OF = 64
_BEST, _REWARD = "best_of_", "_reward"


@dataclass(frozen=True, slots=True)
class QualityRow:
    """The figures of one source of descriptions; those that are not known are left out."""

    run: str
    model: str
    target: str
    # `trained`, `untrained`, `best of 64`, or `best of 91.5, equal KL`.
    source: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, repr=False)
class QualityTable(Tabular):
    """The quality of one or several runs of descriptions, beside their baselines.

    Rewards of different models or targets are on different scales, and do not compare.
    """

    rows: tuple[QualityRow, ...]

    def __repr__(self) -> str:
        return f"QualityTable({counted(len(self.rows), 'row')})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            **{name: [getattr(row, name) for row in self.rows] for name in ("run", "model", "target", "source")},
            **{name: [row.figures.get(name) for row in self.rows] for name in FIGURES},
        }


def quality_table(*descriptions: Descriptions, every: bool = False) -> QualityTable:
    """What each run wrote and its baselines, in the order of KL; with `every`, best-of-N for every N that is known."""
    return QualityTable(tuple(row for each in descriptions for row in _rows(each, every)))


def _rows(descriptions: Descriptions, every: bool) -> list[QualityRow]:
    quality = descriptions.quality
    trained = descriptions.adapter_sha256 is not None
    found = {"trained" if trained else "untrained": {name: quality[name] for name in FIGURES if name in quality}}
    if trained and "untrained_reward" in quality:
        start = "untrained_"
        found["untrained"] = {name: quality[start + name] for name in FIGURES if start + name in quality} | {"kl": 0.0}
    counts = sorted(
        int(name.removeprefix(_BEST).removesuffix(_REWARD))
        for name in quality
        if name.startswith(_BEST) and name.endswith(_REWARD)
    )
    for count in counts if every else sorted({*counts[-1:], *({BEST_OF} & {*counts})}):
        found[f"best of {count:,}"] = _best_of(quality, f"{_BEST}{count}") | {"kl": quality[f"{_BEST}{count}_kl"]}
    count_equal = quality.get("equal_kl_n", math.nan)
    if not math.isnan(count_equal):
        found[f"best of {count_equal:,.1f}, equal KL"] = _best_of(quality, "equal_kl") | {"kl": quality["kl"]}
    rows = (
        QualityRow(descriptions.run, descriptions.model, str(descriptions.target), source, figures)
        for source, figures in found.items()
    )
    return sorted(rows, key=lambda row: row.figures.get("kl", 0.0))


def _best_of(quality: Mapping[str, float], start: str) -> dict[str, float]:
    """The figures of best-of-N, whose texts are not chosen one by one, so that only their rewards are known."""
    names = ("reward", "reward_low", "reward_high")
    return {name: quality[f"{start}_{name}"] for name in names if f"{start}_{name}" in quality}
