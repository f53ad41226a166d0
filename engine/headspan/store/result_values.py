"""A result's dataclass as the arrays and JSON numbers of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from headspan.store.results import Named


def arrays_of(result: Any) -> dict[str, Named]:
    """The arrays among a dataclass's fields, with the names of their axes, which are those of the annotations."""
    found: dict[str, Named] = {}
    for each in fields(result):
        values = getattr(result, each.name)
        if isinstance(values, np.ndarray):
            found[each.name] = (values, _axes(str(each.type)))
    return found


def as_json(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON values. NaN, which JSON lacks, is null."""
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def json_number(value: float) -> float | None:
    """A number as JSON has it; null if it is not finite."""
    return float(value) if math.isfinite(value) else None


def json_numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Named numbers as JSON has them."""
    return {name: json_number(value) for name, value in values.items()}


def number_from_json(value: Any) -> float:
    """A number from what `json_number` gave; null is NaN."""
    return math.nan if value is None else float(value)


def numbers_from_json(values: Any) -> dict[str, float]:
    """Named numbers from what `json_numbers` gave; null is NaN. Raises AttributeError, TypeError or ValueError."""
    return {str(name): number_from_json(value) for name, value in values.items()}


def _axes(annotation: str) -> tuple[str, ...]:
    """The names of an array's axes in its annotation, such as `Float64[np.ndarray, "feature 2"]`.

    The axis of two numbers is that of an interval's ends.
    """
    shape = re.search(r"['\"]([^'\"]*)['\"]", annotation)
    assert shape is not None, annotation
    return tuple("end" if name.isdigit() else name for name in shape[1].split())
