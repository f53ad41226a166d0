"""Save the result of an analysis in a store as a run: arrays and settings in the group `<kind>/<run>`.

A run is replaced or deleted only on request. Saving the same content again changes nothing, and other content under the
same name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

from headspan.errors import StoreError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.files import new_token
from headspan.io.storage import Storage
from headspan.store.file_checks import drop_consolidated
from headspan.store.reader import Store
from headspan.store.result_files import is_recorded, note, record_key
from headspan.store.results import Named, check_run, load, load_settings, made_from, refusal, sound
from headspan.store.schema import UNREADABLE

# A hidden run that is older was left by a killed process.
_LEFT_SECONDS = 3600


def save(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> None:
    """Write arrays and settings as a run.

    If the run exists with the same content, nothing changes, and `on_progress` receives a remark. Other content is
    refused with a StoreError unless `overwrite` is true: then the run is replaced, and the runs made from it are
    deleted. A damaged run is replaced; the runs made from it stay if the new files equal the recorded ones.

    After an interruption or an error everything is as before. Raises StoreError if the run cannot be written.
    """
    check_run(run)
    storage = store.contents.storage
    existed = _exists(storage, f"{kind}/{run}")
    same = _holds(store, kind, run, arrays, settings)
    if same and not _older(store, kind, run, arrays, settings):
        if storage.size(record_key(kind, run)) is None:
            # Its writer was killed before it could record the files.
            with _refusals(store, kind, run):
                note(storage, kind, run)
        on_progress(Progress(NOTE, 1, 1, f"{kind}/{run} already has the same content; it is unchanged"))
        return
    if not same and sound(store, kind, run) and not overwrite:
        raise refusal(store, kind, run, f"{_said(store, kind, run)} already exists with other content")
    with _refusals(store, kind, run):
        for folder in ("", kind):
            # Otherwise Zarr would keep reading the earlier metadata that `zarr.consolidate_metadata` copied there.
            drop_consolidated(storage, folder)
        # First under a hidden name, so that a run exists completely or not at all.
        unnamed = _hidden(storage, kind, run)
        try:
            group = _group_of(store, kind).create_group(unnamed.split("/")[1])
            for name, (values, dims) in arrays.items():
                group.create_array(name, data=values, dimension_names=list(dims))
            group.attrs.update(settings)
            changed = not (same or is_recorded(storage, kind, run, unnamed))
            dependents = _dependents(store, kind, run, overwrite) if changed else []
            # If the run exists now but did not before, another process has written it, and this one is refused.
            _swap(storage, kind, run, unnamed, [f"{kind}/{run}"] * existed + dependents)
        finally:
            storage.delete_folder(unnamed)
    if dependents:
        on_progress(Progress(NOTE, 1, 1, f"deleted {', '.join(dependents)}, made from the earlier {kind}/{run}"))
    if existed and changed:
        on_progress(Progress(NOTE, 1, 1, f"replaced the earlier {kind}/{run}"))


@contextmanager
def _refusals(store: Store, kind: str, run: str) -> Iterator[None]:
    """Turn an OSError in writing a run into a StoreError."""
    try:
        yield
    except FileExistsError as error:
        raise StoreError(
            f"{store.path}/{kind}/{run}: another process has just written this run; run one command at a time"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{store.path}/{kind}/{run}: cannot be written ({error.strerror}); free disk space or correct its "
            "permissions"
        ) from error


def _swap(storage: Storage, kind: str, run: str, unnamed: str, leaving: list[str]) -> None:
    """Give the new run in the folder `unnamed` its name, record its files, and delete the runs of `leaving`.

    After any exception, either all runs are as they were before, or the new one is in place and recorded.
    """
    final = f"{kind}/{run}"
    hidden = {folder: _hidden(storage, folder.split("/")[0], run) for folder in leaving}
    try:
        for folder, place in hidden.items():
            if _exists(storage, folder):
                storage.move_folder(folder, place)
        storage.move_folder(unnamed, final)
        note(storage, kind, run)
    except BaseException:
        if not _exists(storage, unnamed):
            if is_recorded(storage, kind, run, final):
                _discard(storage, kind, run, hidden)
                raise
            storage.move_folder(final, unnamed)
        for folder, place in hidden.items():
            if _exists(storage, place):
                storage.move_folder(place, folder)
        raise
    _discard(storage, kind, run, hidden)


def _discard(storage: Storage, kind: str, run: str, hidden: Mapping[str, str]) -> None:
    """Delete runs that were hidden, and the records of those that the new run does not replace."""
    for folder in hidden:
        if (other := folder.split("/")[0]) != kind:
            storage.delete(record_key(other, run))
    for place in hidden.values():
        storage.delete_folder(place)


def _dependents(store: Store, kind: str, run: str, overwrite: bool) -> list[str]:
    """Return the runs made from an earlier run. Raises StoreError if there are some and `overwrite` is false."""
    dependents = made_from(store, kind, run)
    if dependents and not overwrite:
        raise refusal(store, kind, run, f"{kind} run {run!r} is damaged or missing, and its new content would differ")
    return dependents


def _holds(store: Store, kind: str, run: str, arrays: Mapping[str, Named], settings: dict[str, Any]) -> bool:
    """Return whether there is a sound run, and all its arrays and settings are among these, with equal values."""
    if not sound(store, kind, run):
        return False
    kept_arrays, kept = load(store, kind, run)
    # As JSON, NaN equals NaN, and a tuple equals a list.
    return all(
        name in arrays and np.array_equal(np.asarray(arrays[name][0]), values) for name, values in kept_arrays.items()
    ) and all(name in settings and _as_json(settings[name]) == _as_json(value) for name, value in kept.items())


def _older(store: Store, kind: str, run: str, arrays: Mapping[str, Named], settings: dict[str, Any]) -> bool:
    """Return whether a run by an earlier version lacks some of these arrays or settings."""
    kept_arrays, kept = load(store, kind, run)
    return not (arrays.keys() <= kept_arrays.keys() and settings.keys() <= kept.keys())


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _said(store: Store, kind: str, run: str) -> str:
    """Return a run in words, with who made it if its settings say so."""
    source = load_settings(store, kind, run).get("source")
    return f"{kind} run {run!r}" + (f" (by {source})" if source else "")


def _hidden(storage: Storage, kind: str, run: str) -> str:
    """Return a new hidden name for a run. Deletes hidden runs that a killed process left over an hour ago."""
    for folder in {"/".join(key.split("/")[:2]) for key in storage.list(kind)}:
        if folder.startswith(f"{kind}/.{run}.") and storage.folder_age(folder) > _LEFT_SECONDS:
            storage.delete_folder(folder)
    return f"{kind}/.{run}.{new_token()}"


def _exists(storage: Storage, folder: str) -> bool:
    """Return whether a folder contains files."""
    return any(True for _ in storage.list(folder))


def _group_of(store: Store, kind: str) -> zarr.Group:
    """Return the group of a kind's runs. Its metadata contain no settings; if they are damaged, they are replaced."""
    root = zarr.open_group(store.path, mode="r+", use_consolidated=False)
    try:
        return root.require_group(kind)
    except UNREADABLE:
        store.contents.storage.delete(f"{kind}/zarr.json")
        return root.require_group(kind)
