"""Words of earlier versions that stores may contain, and today's words for them.

Stores of format 1 open for ever, so what reads a store's metadata translates these words first. A store keeps its own
words on disk: a resumed or repaired store adds to the array `carried` if its first unit was written there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headspan.store.array_spec import ArraySpec

# Emissions and the array of that name, the sizes and the parts of the sum in a store's attributes.
_ATTRIBUTES = {"carried": "through_pool", "carried_heads": "through_pool_heads"}
# The axis of an array by the name that the array has on disk.
_AXES = {"carried": {"through_pool_layer": "carried_layer"}}
# Values of a setting in the attributes of runs.
_RUN_SETTINGS = {"convention": {"even": "uniform", "own": "per_term"}}
# Endings of the notes about quarantined units, today's first.
QUARANTINE_ENDINGS = ("quarantined", "aside")


def todays_attributes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a store's attributes in today's words."""
    found = dict(stored)
    for name in ("dimensions", "sum"):
        if name in found:
            found[name] = {_ATTRIBUTES.get(key, key): value for key, value in found[name].items()}
    if "emit" in found:
        found["emit"] = [_ATTRIBUTES.get(name, name) if isinstance(name, str) else name for name in found["emit"]]
    return found


def arrays_as_stored(specs: Mapping[str, ArraySpec], stored: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """Give arrays the names and axes of the store with the attributes `stored`; the keys stay today's words."""
    names = {today: earlier for earlier, today in _ATTRIBUTES.items() if earlier in stored.get("emit", ())}
    found = {}
    for key, spec in specs.items():
        name = names.get(key, key)
        axes = _AXES.get(name, {})
        found[key] = replace(spec, name=name, dims=tuple(axes.get(dim, dim) for dim in spec.dims))
    return found


def todays_axes(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Return the axes of a stored array in today's words."""
    todays = {earlier: today for axes in _AXES.values() for today, earlier in axes.items()}
    return tuple(todays.get(dim, dim) for dim in dims)


def todays_run_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of an analysis in today's words."""
    return {
        name: _RUN_SETTINGS[name].get(value, value) if name in _RUN_SETTINGS and isinstance(value, str) else value
        for name, value in stored.items()
    }
