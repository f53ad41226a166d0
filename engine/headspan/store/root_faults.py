"""Say what is wrong where a store should be: nothing is there, or its root's metadata are missing or damaged."""

from __future__ import annotations

from pathlib import Path

from headspan.errors import StoreError, one_line
from headspan.io.local import LocalStorage
from headspan.io.locations import Location
from headspan.io.storage import Storage

# The one folder of a store outside the Zarr hierarchy: Parquet tables and commit records.
RECORDS = "records"
# A copy of the root's metadata, which is needed to read anything else.
ROOT_COPY = f"{RECORDS}/root.json"


def root_fault(path: Location, storage: Storage, error: Exception) -> StoreError:
    """Return the error for the store at `path` whose root could not be opened because of `error`."""
    missing = isinstance(error, FileNotFoundError)
    if _has_records(storage):
        what = "is missing" if missing else f"is damaged ({one_line(error)})"
        return StoreError(f"{path / 'zarr.json'}: {what}; {todo(storage)}")
    if missing:
        return StoreError(
            f"{path}: {_what_is_there(path, storage)}; give the path that `headspan precompute --out` wrote"
        )
    return StoreError(f"{path}: is not a Zarr group ({one_line(error)}); give the path of a headspan store")


def todo(storage: Storage) -> str:
    """What to do about damaged metadata of the root."""
    kept = storage.size(ROOT_COPY) is not None
    return "run headspan repair" if kept else "restore it from a copy of the store"


def _has_records(storage: Storage) -> bool:
    if isinstance(storage, LocalStorage):
        return (storage.root / RECORDS).is_dir()
    return any(True for _ in storage.list(RECORDS))


def _what_is_there(path: Location, storage: Storage) -> str:
    """What is in the place of a store, in words."""
    if isinstance(path, Path):
        return "no such folder" if not path.exists() else "is not a headspan store"
    return "is not a headspan store" if any(True for _ in storage.list()) else "holds no files"
