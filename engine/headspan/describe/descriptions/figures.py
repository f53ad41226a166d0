"""Figures of descriptions as a table: a row for each figure, a column for the run and for each of its baselines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from headspan.describe.descriptions.result import Descriptions

# The first column: the descriptions of the run.
OWN = "descriptions"
# Figures in the order of a table: the name in `quality`, in words, and what it is.
_FIGURES = {
    "reward": ("reward", "Mean reward of the sampled descriptions"),
    "kl": ("KL", "Kullback-Leibler divergence from the untrained model, in nats a description"),
    "zero_shot": ("zero-shot accuracy", "Share of the images that prompts classify rightly"),
    "distinct_1": ("distinct words", "Different words, as a share of all words"),
    "distinct_2": ("distinct pairs", "Different pairs of neighbouring words, as a share of all pairs"),
    "distinct_3": ("distinct triples", "Different triples of neighbouring words, as a share of all triples"),
    "cut": ("cut", "Share of the descriptions that filled the context of the vision-language model"),
}
_SHARES = ("zero_shot", "distinct_1", "distinct_2", "distinct_3", "cut")
_BASELINES = {"untrained": "untrained model", "equal_kl": "best of N, equal KL"}
_AFTER = {"names": "class names", "chance": "chance"}
_NAME = re.compile(r"(?:(untrained|best_of_[0-9]+|equal_kl)_)?(.+?)(?:_(names|chance|low|high))?")


@dataclass(frozen=True, slots=True)
class Figure:
    """A row: the figure in words, what it is, and its value for every column; NaN where it was not measured."""

    name: str
    hint: str
    # Whether it is a share, from 0 to 1.
    share: bool
    values: tuple[float, ...]
    # The 95 % interval of the first value; NaN without one.
    interval: tuple[float, float]


def figure_table(descriptions: Descriptions) -> tuple[tuple[str, ...], tuple[Figure, ...]]:
    """The columns that have a figure, the run's own one first, and the rows."""
    found: dict[str, dict[str, float]] = {}
    for key, value in descriptions.quality.items():
        if not math.isfinite(value) or (parts := _NAME.fullmatch(key)) is None:
            continue
        before, name, after = parts[1], parts[2], parts[3]
        found.setdefault(name, {})[_column(before, after)] = value
    names = [*(name for name in _FIGURES if name in found), *(name for name in found if name not in _FIGURES)]
    all_columns = [column for name in names for column in found[name] if column not in ("low", "high")]
    columns = tuple(dict.fromkeys([OWN, *sorted(set(all_columns) - {OWN}, key=_place)])) if names else ()
    return columns, tuple(
        Figure(
            *_FIGURES.get(name, (name.replace("_", " "), "")),
            name in _SHARES,
            tuple(found[name].get(column, math.nan) for column in columns),
            (found[name].get("low", math.nan), found[name].get("high", math.nan)),
        )
        for name in names
    )


def _column(before: str | None, after: str | None) -> str:
    if after is not None:
        return _AFTER.get(after, after)
    if before is None:
        return OWN
    return _BASELINES.get(before, before.replace("_", " "))


def _place(column: str) -> tuple[int, str]:
    """Baselines from language models come first, then those without any."""
    order = [*_BASELINES.values(), *_AFTER.values()]
    # best of N stands between the untrained model and best of N at equal KL.
    return (2 * order.index(column) if column in order else 1, column)
