"""The parts of a study from their JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headspan.prune.choice.groups import HeadGroup
from headspan.prune.studies.effects import GroupEffect, TaskEffects
from headspan.prune.studies.statistics import Interval, RankCorrelation
from headspan.prune.studies.study_plan import HeadSet
from headspan.store.head_space import Head
from headspan.store.result_values import number_from_json, numbers_from_json


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
            each["heads"], *(number_from_json(each[key]) for key in ("rho", "p", "within_layers", "p_within_layers"))
        )
        for name, each in found["correlations"].items()
    }
    groups = {
        name: GroupEffect(
            numbers_from_json(each["figures"]),
            Interval(*(number_from_json(each["change"][key]) for key in ("value", "low", "high"))),
        )
        for name, each in found["groups"].items()
    }
    margins, greedy = found["margin_losses"], found["greedy"]
    return TaskEffects(
        **{
            **found,
            "whole": numbers_from_json(found["whole"]),
            "values": tuple(map(number_from_json, found["values"])),
            "lost": None if found["lost"] is None else tuple(found["lost"]),
            "gained": None if found["gained"] is None else tuple(found["gained"]),
            "groups": groups,
            "margin_losses": None if margins is None else tuple(map(number_from_json, margins)),
            "correlations": correlations,
            "greedy": None
            if greedy is None
            else tuple((layer, head, number_from_json(value)) for layer, head, value in greedy),
        }
    )


def _heads(found: Sequence[Sequence[int]]) -> tuple[Head, ...]:
    return tuple((layer, head) for layer, head in found)
