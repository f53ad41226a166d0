"""The parts of a study as JSON values, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from headspan.prune.choice.groups import HeadGroup
from headspan.prune.studies.effects import GroupEffect, TaskEffects
from headspan.prune.studies.statistics import Interval, RankCorrelation
from headspan.prune.studies.study_plan import HeadSet
from headspan.store.head_space import Head


def as_json(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON values. NaN, which JSON lacks, is null."""
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def set_from_json(found: Mapping[str, Any]) -> HeadSet:
    """A set of heads. Raises LookupError, TypeError or ValueError if it is not one, as all functions below do."""
    return HeadSet(found["kind"], found["of"], _heads(found["heads"]))


def group_from_json(found: Mapping[str, Any]) -> HeadGroup:
    """A group of heads."""
    return HeadGroup(found["name"], _heads(found["heads"]), found["why_empty"])


def task_from_json(found: Mapping[str, Any]) -> TaskEffects:
    """The effects on a task."""
    correlations = {
        name: RankCorrelation(
            each["heads"], *(_number(each[key]) for key in ("rho", "p", "within_layers", "p_within_layers"))
        )
        for name, each in found["correlations"].items()
    }
    groups = {
        name: GroupEffect(
            _numbers(each["figures"]), Interval(*(_number(each["change"][key]) for key in ("value", "low", "high")))
        )
        for name, each in found["groups"].items()
    }
    margins, greedy = found["margin_losses"], found["greedy"]
    return TaskEffects(
        **{
            **found,
            "whole": _numbers(found["whole"]),
            "values": tuple(map(_number, found["values"])),
            "lost": None if found["lost"] is None else tuple(found["lost"]),
            "gained": None if found["gained"] is None else tuple(found["gained"]),
            "groups": groups,
            "margin_losses": None if margins is None else tuple(map(_number, margins)),
            "correlations": correlations,
            "greedy": None if greedy is None else tuple((layer, head, _number(value)) for layer, head, value in greedy),
        }
    )


def _heads(found: Sequence[Sequence[int]]) -> tuple[Head, ...]:
    return tuple((layer, head) for layer, head in found)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}
