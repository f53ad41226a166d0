"""Record size and checksum of the files of an analysis's run, and compare the files with the record.

The record of a run is `records/results/<kind>/<run>.json`. Runs of earlier versions have none. A process that is killed
while it replaces a run may leave the recorded run under a hidden name; `place` finds it there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from headspan.errors import StoreError, one_line
from headspan.io.remembered import Remembered, remembered
from headspan.io.storage import Checksum, Storage, named
from headspan.store.file_checks import faults
from headspan.store.opened import OpenStore
from headspan.store.schema import RECORDS

_RECORDS = f"{RECORDS}/results"
# Valid names of runs, and the names of a Zarr group's files: its metadata and its chunks.
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ZARR_FILE = r"zarr\.json|c|[0-9]+"
# The command that makes runs of each kind.
COMMANDS = {
    "texts": "headspan textspan",
    "textspan": "headspan textspan",
    "labels": "headspan label",
    "ccs": "headspan ccs",
    "truth": "headspan demo",
    "prune": "headspan prune",
    "features": "headspan features score",
    "uses": "headspan features use",
    "descriptions": "headspan describe write",
}
# The kinds of runs that a command names itself.
_NAMED = ("textspan", "labels", "ccs", "prune", "features", "uses", "descriptions")


def making(kind: str, run: str) -> str:
    """Return the command that makes the run `<kind>/<run>`."""
    return COMMANDS[kind] + (f" --run {run}" if kind in _NAMED else "")


def record_key(kind: str, run: str) -> str:
    """Return the key of the record of a run."""
    return f"{_RECORDS}/{kind}/{run}.json"


def recorded(storage: Storage, kind: str, run: str) -> dict[str, Checksum]:
    """Return size and crc32c of every file of a run, by its key; nothing if there is no record.

    Raises StoreError if the record is damaged.
    """
    key = record_key(kind, run)
    try:
        found = json.loads(storage.get(key))
        # Earlier versions wrote the files alone.
        return {name: (size, crc) for name, (size, crc) in found.get("files", found).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{storage}/{key}: this record is damaged ({one_line(error)}); run {COMMANDS[kind]} again"
        ) from error


def made_at(storage: Storage, kind: str, run: str) -> str | None:
    """Return when a run was saved, as an ISO time in UTC; None if that is not recorded, or not readable."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(storage.get(record_key(kind, run))).get("made_at")
        return found if isinstance(found, str) else None
    return None


def note(storage: Storage, kind: str, run: str, made: str | None = None) -> None:
    """Record the files of a run, and when they were `made`. The same files keep the time that is recorded."""
    keys = [f"{kind}/zarr.json", *files_of(storage, f"{kind}/{run}")]
    files = {key: storage.checksum(key) for key in keys}
    with suppress(StoreError, OSError):
        if recorded(storage, kind, run) == files:
            made = made_at(storage, kind, run)
    content: dict[str, Any] = {"files": files, **({} if made is None else {"made_at": made})}
    storage.put(record_key(kind, run), [json.dumps(content).encode()])


def files_of(storage: Storage, folder: str) -> list[str]:
    """Return the keys of Zarr's files in a folder, without files that an operating system or a sync tool put there."""
    # In the order of paths, in which a folder's files come before those of its subfolders' later names.
    keys = (key for key in storage.list(folder) if re.fullmatch(_ZARR_FILE, key.rpartition("/")[2]))
    return sorted(keys, key=lambda key: key.split("/"))


def is_recorded(storage: Storage, kind: str, run: str, folder: str) -> bool:
    """Return whether the run in `folder` has the files that are recorded under the name `run`."""
    try:
        files = recorded(storage, kind, run)
    except (StoreError, OSError):
        return False
    own = f"{kind}/{run}/"
    return bool(files) and {name.removeprefix(own): found for name, found in files.items() if name.startswith(own)} == {
        key.removeprefix(f"{folder}/"): storage.checksum(key) for key in files_of(storage, folder)
    }


def hidden(storage: Storage, kind: str, run: str | None = None) -> dict[str, str]:
    """Return the hidden folders of runs, or of one run: folder and name of the run."""
    folders = {"/".join(key.split("/")[:2]) for key in storage.list(kind) if key.startswith(f"{kind}/.")}
    found = {folder: re.fullmatch(rf"{kind}/\.({RUN_NAME})\.[0-9a-f]{{8}}", folder) for folder in sorted(folders)}
    return {folder: name[1] for folder, name in found.items() if name is not None and run in (None, name[1])}


def place(storage: Storage, kind: str, run: str) -> str:
    """Return the folder of a run: `<kind>/<run>`, or the hidden one in which a killed process left the recorded run."""
    own = f"{kind}/{run}"
    others = hidden(storage, kind, run)
    if not others or is_recorded(storage, kind, run, own):
        return own
    return next((folder for folder in others if is_recorded(storage, kind, run, folder)), own)


def run_storage(storage: Storage, kind: str, run: str, metadata_alone: bool = False) -> Storage:
    """Return the storage for reading one run, or only its metadata: in a bucket, with its files in memory."""
    found = remembered(storage, folders=[kind])
    if found is not storage or isinstance(found, Remembered):
        own = (f"{kind}/{run}/", f"{kind}/.{run}.")
        keys = [key for key in found.list(kind) if key.startswith(own)]
        wanted = [key for key in keys if not metadata_alone or key.endswith("zarr.json")]
        remembered(found, [record_key(kind, run), f"{kind}/zarr.json", *wanted])
    return found


def refuse_damaged(
    store: OpenStore, kind: str, run: str, metadata_alone: bool = False, storage: Storage | None = None
) -> None:
    """Raise StoreError if the files of a run, or only its metadata, differ from its record."""
    storage = storage or store.contents.storage
    if place(storage, kind, run) != f"{kind}/{run}":
        # It is hidden, and as it was recorded.
        return
    files = recorded(storage, kind, run)
    wanted = {name: found for name, found in files.items() if not metadata_alone or name.endswith("zarr.json")}
    for _, what in faults(storage, wanted):
        raise StoreError(f"{store.path}: the {kind} run {run!r} is damaged: {what}; run {COMMANDS[kind]} again")


def damaged(store: OpenStore) -> Iterator[tuple[str, str]]:
    """List the files of runs that differ from their record: the key, and what is wrong and what to do."""
    storage = store.contents.storage
    for kind, command in COMMANDS.items():
        for record in named(storage, f"{_RECORDS}/{kind}", rf"{RUN_NAME}\.json"):
            run = record.rpartition("/")[2].removesuffix(".json")
            again = f"run {command} again for run {run}"
            if place(storage, kind, run) != f"{kind}/{run}":
                continue
            present = any(True for _ in storage.list(f"{kind}/{run}"))
            if not present and not _namesfiles_of(storage, kind, run):
                # A sync tool's copy of a record: it names the files of another run.
                continue
            if not present:
                yield f"{kind}/{run}", f"{kind}/{run} is missing; {again}, or delete {storage}/{record}"
                continue
            try:
                for name, what in faults(storage, recorded(storage, kind, run)):
                    yield name, f"{what}; {again}"
            except StoreError as error:
                yield record, str(error)


def _namesfiles_of(storage: Storage, kind: str, run: str) -> bool:
    """Return whether the record called `run` names files of that run."""
    with suppress(StoreError):
        return any(name.startswith(f"{kind}/{run}/") for name in recorded(storage, kind, run))
    return False
