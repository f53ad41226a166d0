"""Read what analyses have added to a store: one group for each run, `<kind>/<run>`.

A run is read only if its files are as they were written (`result_files`). Runs of earlier versions, which recorded no
files, are read as they are. `store.write.analyses` writes runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

from headspan.errors import SettingsError, StoreError, one_line
from headspan.io.remembered import remembered
from headspan.io.storage import Storage, named
from headspan.store.earlier_words import todays_run_settings
from headspan.store.lineage import LINEAGE, SOURCE, Named, sources_of
from headspan.store.opened import OpenStore
from headspan.store.result_files import (
    COMMANDS,
    RUN_NAME,
    hidden,
    making,
    place,
    refuse_damaged,
    run_storage,
)
from headspan.store.schema import UNREADABLE
from headspan.store.zarr_storage import node_at

# Files are named after runs, and file systems accept names of 255 bytes.
_LONGEST_NAME = 100

# The kinds of runs that are made from a run of each kind, under the same name.
_MADE_FROM = {
    "texts": (),
    "textspan": ("labels", "ccs", "truth"),
    "labels": ("ccs", "truth"),
    "ccs": ("truth",),
    "truth": (),
    "prune": (),
    "features": (),
    "uses": (),
    "descriptions": (),
}
# The kind of runs with names of their own that are made from runs of each kind, and record from which; other kinds have
# none. Scores of features record the pool that they are named from.
_RECORDED = {
    "texts": "features",
    **dict.fromkeys(("textspan", "labels", "ccs", "truth"), "prune"),
    "features": "uses",
}

__all__ = [
    "Named",
    "all_settings",
    "as_written",
    "check_run",
    "load",
    "load_settings",
    "made_from",
    "only_run",
    "refusal",
    "runs",
    "sound",
]


def made_from(store: OpenStore, kind: str, run: str) -> list[str]:
    """Return the runs that were made from a run, as `<kind>/<run>`, damaged or not."""
    named = [f"{each}/{run}" for each in _MADE_FROM[kind] if run in runs(store, each)]
    sources = {f"{each}/{run}" for each in (kind, *_MADE_FROM[kind])}
    later = _RECORDED.get(kind)
    return named + [
        f"{later}/{each}"
        for each in (runs(store, later) if later is not None else ())
        if later is not None and sources & sources_of(store.contents.storage, later, each).keys()
    ]


def refusal(store: OpenStore, kind: str, run: str, why: str, replaced: str | None = None) -> StoreError:
    """Return the error for replacing a run without `overwrite`; it names the runs that were made from it.

    `replaced` is what alone would be replaced of the run, such as its names, which no other run is made from.
    """
    if replaced is not None:
        return StoreError(
            f"{store.path}: {why}; give --overwrite (in Python overwrite=True), which replaces {replaced}"
        )
    derived = made_from(store, kind, run)
    elsewhere = "choose another --run" + (", which headspan textspan makes first" if kind in SOURCE else "")
    kept = f"; {', '.join(derived)} would be kept, marked as of an older run" if derived else ""
    return StoreError(
        f"{store.path}: {why}; {elsewhere}, or give --overwrite (in Python overwrite=True), which replaces "
        f"{kind}/{run}{kept}"
    )


def check_run(run: str) -> None:
    """Raise SettingsError if `run` cannot be the name of a run."""
    if not isinstance(run, str):
        raise SettingsError(f"run {run!r}: is not the name of a run, and not the result that this step starts from")
    if len(run) > _LONGEST_NAME:
        raise SettingsError(f"run name {run[:20]}…: has {len(run)} characters; use at most {_LONGEST_NAME}")
    if not re.fullmatch(RUN_NAME, run) or run == "zarr.json":
        raise SettingsError(f"run name {run!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def load(
    store: OpenStore, kind: str, run: str, storage: Storage | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the settings of a run, the settings in today's words.

    Raises StoreError, with the command that makes the run, if it is missing or damaged; SettingsError if no run can
    have that name.
    """
    check_run(run)
    storage = run_storage(storage or store.contents.storage, kind, run)
    refuse_damaged(store, kind, run, storage=storage)
    settings, folder = _settings(store, kind, run, storage), place(storage, kind, run)
    # The folders of arrays, because zarr-python's listing warns about every file that it does not know.
    names = [key.split("/")[-2] for key in named(storage, folder, r"[^/]+/zarr\.json")]
    try:
        return {name: _array(storage, f"{folder}/{name}") for name in names}, settings
    except UNREADABLE as error:
        raise _unreadable(store, kind, run, error) from error


def _array(storage: Storage, folder: str) -> np.ndarray:
    array = node_at(storage, folder)
    assert isinstance(array, zarr.Array), folder
    return np.asarray(array[...])


def load_settings(store: OpenStore, kind: str, run: str, storage: Storage | None = None) -> dict[str, Any]:
    """Return the settings of a run without reading its arrays. Raises as `load` does."""
    check_run(run)
    storage = run_storage(storage or store.contents.storage, kind, run, metadata_alone=True)
    refuse_damaged(store, kind, run, metadata_alone=True, storage=storage)
    return _settings(store, kind, run, storage)


def all_settings(store: OpenStore, kind: str, storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and settings of every run of a kind whose settings are undamaged.

    `storage` is from `remembered`, with local folders, so that the runs are listed once.
    """
    for run in runs(store, kind, storage):
        if sound(store, kind, run, metadata_alone=True, storage=storage):
            yield run, _settings(store, kind, run, storage)


@contextmanager
def as_written(store: OpenStore, kind: str, run: str) -> Iterator[None]:
    """Turn errors in reading a run's settings into a StoreError about settings that headspan does not write."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{store.path}: the {kind} run {run!r} holds settings that headspan does not write ({one_line(error)}); "
            f"run {COMMANDS[kind]} again, with --overwrite where it has that flag"
        ) from error


def _attributes(store: OpenStore, kind: str, run: str, storage: Storage) -> dict[str, Any] | None:
    """Return the attributes of a run's group; None if there is none, or if writing it was interrupted."""
    try:
        # zarr-python takes milliseconds to open a group.
        metadata = json.loads(storage.get(f"{place(storage, kind, run)}/zarr.json"))
        return (metadata.get("attributes") or None) if metadata["node_type"] == "group" else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (*UNREADABLE, AttributeError) as error:
        raise _unreadable(store, kind, run, error) from error


def _settings(store: OpenStore, kind: str, run: str, storage: Storage) -> dict[str, Any]:
    found = _attributes(store, kind, run, storage)
    if found is None:
        raise StoreError(
            f"{store.path}: holds no {kind} run {run!r} (has {_listed(runs(store, kind))}); run {making(kind, run)}"
        )
    return {name: value for name, value in todays_run_settings(found).items() if name != LINEAGE}


def _unreadable(store: OpenStore, kind: str, run: str, error: Exception) -> StoreError:
    return StoreError(
        f"{store.path}: the {kind} run {run!r} is damaged ({one_line(error)}); run {COMMANDS[kind]} again"
    )


def runs(store: OpenStore, kind: str, storage: Storage | None = None) -> list[str]:
    """Return the names of the runs of one kind, including damaged runs, which `load` refuses."""
    storage = remembered(storage or store.contents.storage, folders=[kind], local=True)
    parts = {tuple(key.split("/")) for key in storage.list(kind)}
    folders = {names[1] for names in parts if len(names) > 2 and not names[1].startswith(".")}
    folders |= {name for folder, name in hidden(storage, kind).items() if place(storage, kind, name) == folder}
    found = []
    for name in sorted(folders):
        try:
            there = _attributes(store, kind, name, storage) is not None
        except StoreError:
            there = True
        if there:
            found.append(name)
    return found


def sound(store: OpenStore, kind: str, run: str, metadata_alone: bool = False, storage: Storage | None = None) -> bool:
    """Return whether the run is there and its files are as they were written."""
    storage = run_storage(storage or store.contents.storage, kind, run, metadata_alone)
    try:
        refuse_damaged(store, kind, run, metadata_alone, storage)
        return _attributes(store, kind, run, storage) is not None
    except StoreError:
        return False


def only_run(store: OpenStore, kind: str, run: str | None) -> str:
    """Return `run`, or the only run of that kind. Raises StoreError if there is none or more than one."""
    if run is not None:
        check_run(run)
        return run
    found = runs(store, kind)
    if len(found) != 1:
        todo = f"run {COMMANDS[kind]}" if not found else "name one with --run, in Python with run="
        there = f"the {kind} runs {_listed(found)}" if found else f"no {kind} run"
        raise StoreError(f"{store.path}: has {there}; {todo}")
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
