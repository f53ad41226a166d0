"""The copy of all metadata in the root's metadata, with which zarr-python and xarray open a store in one read.

The copy is that of `zarr.consolidate_metadata`. It is an extension that other readers may ignore. It does not count
among the root's metadata: records hold the checksum without it. The copy is removed before metadata below it change and
written again afterwards. So it is never out of date, but a process that is killed meanwhile leaves none, and then
zarr-python lists folders. Stores of earlier versions have no copy, unless a user has made one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from headspan.errors import StoreError
from headspan.io.local import LocalStorage
from headspan.io.locks import alone
from headspan.io.storage import Storage
from headspan.store.commit_records import CommitRecords
from headspan.store.file_checks import faults, plain
from headspan.store.result_files import COMMANDS, recorded
from headspan.store.schema import RECORDS

ROOT = "zarr.json"
# Makes a group of the folder that holds tables and records, so that zarr-python finds no foreign folder in the store.
RECORDS_GROUP = f"{RECORDS}/{ROOT}"
_COPY = "consolidated_metadata"
# How often the copy is written at most if others write it at the same time.
_TRIES = 3
_KIND = {"kind": "inline", "must_understand": False}


@contextmanager
def unconsolidated(storage: Storage, kind: str) -> Iterator[None]:
    """Keep the metadata of a store without a copy while a run of `kind` is written or removed.

    A copy in the group of the kind, which only a user makes, is not written again.
    """
    try:
        for folder in ("", kind):
            _drop(storage, folder)
        yield
    finally:
        consolidate(storage)


def consolidate(storage: Storage) -> None:
    """Write the copy in the root of a store, if it was planned with one.

    Nothing but the speed of other readers depends on it, so if it cannot be written, the store stays without one.
    """
    with suppress(StoreError, OSError, ValueError), _one_at_a_time(storage):
        planned = CommitRecords(storage, 0).planned_files()
        if RECORDS_GROUP not in planned:
            return
        # Without locks it is compared once more, since another process may have written its run meanwhile.
        for _ in range(1 if isinstance(storage, LocalStorage) else _TRIES):
            written = storage.get(ROOT)
            data = with_copy(storage, _keys(storage, planned))
            if data == written:
                return
            storage.put(ROOT, [data])


def _one_at_a_time(storage: Storage) -> AbstractContextManager[None]:
    """Let one process at a time run the block, so that no copy lacks the run of another process, if there are locks."""
    return alone(storage.root) if isinstance(storage, LocalStorage) else nullcontext()


def copy_differs(storage: Storage) -> bool:
    """Return whether the copy in the root differs from the metadata that it copies.

    A user's copy may have further entries. If the metadata themselves are damaged, that is another problem.
    """
    try:
        copy = json.loads(storage.get(ROOT)).get(_COPY)
        planned = CommitRecords(storage, 0).planned_files()
        if copy is None or RECORDS_GROUP not in planned:
            return False
        keys = _keys(storage, planned)
        runs = {(kind, run) for kind, run, *_ in (f"{key}//".split("/") for key in keys) if kind in COMMANDS}
        written = {key: found for each in runs for key, found in recorded(storage, *each).items()} | planned
        if any(faults(storage, {key: found for key, found in written.items() if key.endswith(f"/{ROOT}")})):
            return False
        own = json.loads(with_copy(storage, keys))[_COPY]
    except (StoreError, OSError, ValueError, TypeError, AttributeError):
        return False
    return not _includes(copy, own)


def _includes(found: Any, own: Any) -> bool:
    """Return whether `found` has everything that the JSON value `own` has."""
    if isinstance(own, dict):
        return isinstance(found, dict) and all(name in found and _includes(found[name], own[name]) for name in own)
    return bool(found == own)


def _keys(storage: Storage, planned: Iterable[str]) -> list[str]:
    """Return the keys of the plan's files and of those of all runs."""
    return [*planned, *(key for kind in COMMANDS for key in storage.list(kind) if not _is_hidden(key))]


def with_copy(storage: Storage, keys: Iterable[str]) -> bytes:
    """Return the root's metadata with a copy of the metadata among the files `keys`.

    Raises ValueError if some are damaged, OSError if one cannot be read.
    """
    root = json.loads(plain(storage.get(ROOT)))
    found: dict[str, Any] = {}
    for key in sorted(keys):
        folder, _, name = key.rpartition("/")
        if folder and name == ROOT and not key.startswith(f"{RECORDS}/"):
            found[folder] = json.loads(plain(storage.get(key)))
            if found[folder].get("node_type") == "group":
                # As zarr-python writes it: the copy is that of the root alone.
                found[folder][_COPY] = {**_KIND, "metadata": {}}
    return json.dumps({**root, _COPY: {**_KIND, "metadata": found}}, indent=2).encode()


def records_group() -> bytes:
    """Return the metadata of RECORDS_GROUP."""
    return json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


def _drop(storage: Storage, folder: str) -> None:
    """Remove the copy from the metadata of a group. Raises OSError if they cannot be written."""
    key = f"{folder}/{ROOT}" if folder else ROOT
    try:
        written = storage.get(key)
        without = plain(written) if _COPY in json.loads(written) else written
    except (OSError, ValueError, TypeError):
        # There is no such group, or it is damaged.
        return
    if without != written:
        try:
            storage.put(key, [without])
        except StoreError as error:
            # The caller says what could not be written: a run.
            raise error.__cause__ or error from None


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))
