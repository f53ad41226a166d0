"""The files of a run that an analysis kept: size and checksum are recorded, and compared with what is there.

A run's record is `records/results/<kind>/<run>.json`. Runs that are older than these records have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from headspan.errors import StoreError, one_line
from headspan.io.local import checksum, faults, named, write_atomically
from headspan.store.reader import Store
from headspan.store.schema import RECORDS

_RECORDS = f"{RECORDS}/results"
# What a run may be called, and what the files of a Zarr group are called: its metadata and its chunks.
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ZARR_FILE = r"zarr\.json|c|[0-9]+"
# The commands that make runs of each kind.
COMMANDS = {
    "texts": "headspan textspan",
    "textspan": "headspan textspan",
    "labels": "headspan label",
    "ccs": "headspan ccs",
    "truth": "headspan demo",
}


def record_path(root: Path, kind: str, run: str) -> Path:
    """Where the record of a run lies."""
    return root / _RECORDS / kind / f"{run}.json"


def recorded(record: Path) -> dict[str, tuple[int, int]]:
    """Size and crc32c of every file of a run, by its path in the store; StoreError where the record is damaged."""
    try:
        return {name: (size, crc) for name, (size, crc) in json.loads(record.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        command = COMMANDS[record.parent.name]
        raise StoreError(f"{record}: this record is damaged ({one_line(error)}); run {command} again") from error


def note(root: Path, kind: str, run: str) -> None:
    """Record the files of a run."""
    paths = [root / kind / "zarr.json", *_files_of(root / kind / run)]
    record = record_path(root, kind, run)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(record, [json.dumps({str(path.relative_to(root)): checksum(path) for path in paths}).encode()])


def _files_of(folder: Path) -> list[Path]:
    """The files of Zarr's in a folder, and none that an operating system or a sync tool left there."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and re.fullmatch(_ZARR_FILE, path.name))


def is_recorded(root: Path, kind: str, run: str, unnamed: Path) -> bool:
    """Whether the files of a run that has no name yet are those that were recorded of the earlier run."""
    try:
        files = recorded(record_path(root, kind, run))
    except (StoreError, OSError):
        return False
    own = f"{kind}/{run}/"
    return {name.removeprefix(own): found for name, found in files.items() if name.startswith(own)} == {
        str(path.relative_to(unnamed)): checksum(path) for path in _files_of(unnamed)
    }


def refuse_damaged(store: Store, kind: str, run: str, metadata_alone: bool = False) -> None:
    """StoreError where the files of a run, or its metadata alone, are not as they were recorded."""
    record = record_path(store.path, kind, run)
    files = recorded(record) if record.is_file() else {}
    wanted = {name: found for name, found in files.items() if not metadata_alone or name.endswith("zarr.json")}
    for _, what in faults(store.path, wanted):
        raise StoreError(f"{store.path}: the {kind} run {run!r} is damaged: {what}; run {COMMANDS[kind]} again")


def damaged(store: Store) -> Iterator[tuple[str, str]]:
    """Files of runs that are not as they were written, by their path in the store: what is wrong, and what to do."""
    for kind, command in COMMANDS.items():
        for record in named(store.path / _RECORDS / kind, rf"{RUN_NAME}\.json"):
            again = f"run {command} again for run {record.stem}"
            if not _vouches(store.path, kind, record):
                continue
            if not (store.path / kind / record.stem).is_dir():
                yield f"{kind}/{record.stem}", f"{kind}/{record.stem} is missing; {again}, or delete {record}"
                continue
            try:
                for name, what in faults(store.path, recorded(record)):
                    yield name, f"{what}; {again}"
            except StoreError as error:
                yield str(record.relative_to(store.path)), str(error)


def _vouches(root: Path, kind: str, record: Path) -> bool:
    """Whether a file that is named like a record is one: of a run that is there, or of files of a run that is lost.

    A sync tool's copy of a record names the files of another run.
    """
    if (root / kind / record.stem).is_dir():
        return True
    with suppress(StoreError):
        return any(name.startswith(f"{kind}/{record.stem}/") for name in recorded(record))
    return False
