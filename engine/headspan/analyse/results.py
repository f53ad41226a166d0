"""What analyses add to a store: one group a run, `<kind>/<run>`, its arrays, and its settings as attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from headspan.errors import SettingsError, StoreError
from headspan.store.reader import Store

# What is made from a run of each kind, under the same name.
_MADE_FROM = {
    "texts": (),
    "textspan": ("labels", "ccs", "truth"),
    "labels": ("ccs", "truth"),
    "ccs": ("truth",),
    "truth": (),
}
_COMMANDS = {
    "texts": "headspan textspan",
    "textspan": "headspan textspan",
    "labels": "headspan label",
    "ccs": "headspan ccs",
    "truth": "headspan demo",
}
# An array with the names of its axes.
Named = tuple[np.ndarray, tuple[str, ...]]


def save(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
) -> None:
    """Write arrays and settings in place of an earlier run of that name, and drop what was made from that run."""
    check_run(run)
    try:
        root = zarr.open_group(store.path, mode="r+")
        for later in _MADE_FROM[kind]:
            if f"{later}/{run}" in root:
                del root[f"{later}/{run}"]
        group = root.require_group(kind).create_group(run, overwrite=True)
        for name, (values, dims) in arrays.items():
            group.create_array(name, data=values, dimension_names=list(dims))
        # Last, since a group without settings counts as none: it was interrupted while being written.
        group.attrs.update(settings)
    except OSError as error:
        raise StoreError(
            f"{store.path}/{kind}/{run}: cannot be written ({error.strerror}); make room or mend its permissions"
        ) from error


def check_run(run: str) -> None:
    """Raise SettingsError where `run` cannot be the name of a run."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise SettingsError(f"run name {run!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def load(store: Store, kind: str, run: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and settings of a run. StoreError where it is not there, naming the command that makes it."""
    node = _open(store, kind, run)
    return {name: np.asarray(array[...]) for name, array in node.arrays()}, dict(node.attrs)


def load_settings(store: Store, kind: str, run: str) -> dict[str, Any]:
    """The settings of a run alone, without reading its arrays; StoreError as in `load`."""
    return dict(_open(store, kind, run).attrs)


def _open(store: Store, kind: str, run: str) -> zarr.Group:
    node = zarr.open_group(store.path, mode="r").get(f"{kind}/{run}")
    if not isinstance(node, zarr.Group) or not node.attrs:
        raise StoreError(
            f"{store.path}: holds no {kind} run {run!r} (has {_listed(runs(store, kind))}); run {_COMMANDS[kind]}"
        )
    return node


def runs(store: Store, kind: str) -> list[str]:
    """The names of the runs of one kind."""
    node = zarr.open_group(store.path, mode="r").get(kind)
    return sorted(name for name, group in node.groups() if group.attrs) if isinstance(node, zarr.Group) else []


def only_run(store: Store, kind: str, run: str | None) -> str:
    """`run`, or the one run of that kind there is. StoreError where there is none or a choice."""
    if run is not None:
        return run
    found = runs(store, kind)
    if len(found) != 1:
        todo = f"run {_COMMANDS[kind]}" if not found else "name one with --run"
        raise StoreError(f"{store.path}: has {_listed(found)} as {kind} runs; {todo}")
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
