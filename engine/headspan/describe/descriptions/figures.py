"""Figures of descriptions for pages: a row for each figure, a column for the run and for each of its baselines.

`quality_table` has the same figures the other way round, and without zero-shot accuracy by other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from headspan.describe.descriptions.quality_table import BEST_OF, quality_table
from headspan.describe.descriptions.result import Descriptions

# Each figure by its name in `quality`: in words, what it is, and whether it is a share from 0 to 1.
_FIGURES = {
    "reward": ("reward", "Mean reward of the sampled descriptions, with its 95 % interval", False),
    "gain": (
        "gain over it",
        "How much larger the reward of the descriptions of this run is, with its 95 % interval",
        False,
    ),
    "kl": ("KL", "Kullback-Leibler divergence from the untrained model, in nats a description", False),
    "zero_shot": ("zero-shot accuracy", "Share of the images that the texts as prompts classify rightly", True),
    "zero_shot_unseen": ("the same, other images", "Over the images that no reward was computed from", True),
    "distinct_1": ("distinct words", "Different words, as a share of all words", True),
    "distinct_2": ("distinct pairs", "Different pairs of neighbouring words, as a share of all pairs", True),
    "distinct_3": ("distinct triples", "Different triples of neighbouring words, as a share of all triples", True),
    "length": ("tokens", "Mean number of tokens of a description", False),
    "ended": ("ended", "Share of the descriptions that the language model ended by itself", True),
    "cut": ("cut", "Share of the descriptions that filled the context of the vision-language model", True),
}
_OTHER_PROMPTS = {"names": "class names", "photo": "“a photo of a …”", "chance": "chance"}


@dataclass(frozen=True, slots=True)
class Value:
    """A figure with the ends of its 95 % interval; NaN where it was not measured."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Figure:
    """A row: the figure in words, what it is, and its value for every column."""

    name: str
    hint: str
    # Whether it is a share, from 0 to 1.
    share: bool
    values: tuple[Value, ...]


def figure_table(descriptions: Descriptions) -> tuple[tuple[str, ...], tuple[Figure, ...]]:
    """The columns, the run's own one first, and the rows; without figures, both are empty."""
    columns: dict[str, dict[str, Value]] = {}
    trained = descriptions.adapter_sha256 is not None
    own = "trained" if trained else "untrained"
    rows = sorted(quality_table(descriptions).rows, key=lambda row: row.source != own)
    for row in rows:
        columns[row.source] = {name: _value(row.figures, name) for name in _FIGURES if name in row.figures}
    quality = descriptions.quality
    for source, found in columns.items():
        for kind in (name for name in ("zero_shot_unseen",) if source in ("trained", "untrained")):
            key = kind if source == own else f"untrained_{kind}"
            if key in quality:
                found[kind] = _value(quality, key)
        gain = _gain(source, trained)
        if gain is not None and gain in quality:
            found["gain"] = _value(quality, gain)
    for name, column in _OTHER_PROMPTS.items():
        keys = {"zero_shot": f"zero_shot_{name}", "zero_shot_unseen": f"zero_shot_{name}_unseen"}
        if known := {kind: _value(quality, key) for kind, key in keys.items() if key in quality}:
            columns[column] = known
    return tuple(columns) if quality else (), tuple(
        Figure(*words, tuple(found.get(name, Value()) for found in columns.values()))
        for name, words in _FIGURES.items()
        if any(name in found for found in columns.values())
    )


def _gain(source: str, trained: bool) -> str | None:
    """The name of what the descriptions are better by than a baseline."""
    if source.endswith("equal KL"):
        return "gain_equal_kl"
    if source == f"best of {BEST_OF}":
        return f"gain_best_of_{BEST_OF}"
    return "gain" if trained and source == "untrained" else None


def _value(figures: Mapping[str, float], name: str) -> Value:
    return Value(*(figures.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high")))
