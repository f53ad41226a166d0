"""Open the storage of a store: a local folder, or a place in an object store such as `s3://bucket/run.zarr`."""

from __future__ import annotations

from pathlib import Path

from headspan.config import STORE_SCHEMES
from headspan.io.local import LocalStorage
from headspan.io.storage import Storage


def is_object_store(location: str | Path) -> bool:
    """Return whether `location` is the URL of a place in an object store."""
    return isinstance(location, str) and location.partition("://")[0] in STORE_SCHEMES and "://" in location


def storage_at(location: str | Path) -> Storage:
    """Return the storage of the store at `location`, a path or a URL. Nothing is read yet.

    Raises StoreError if the address names no folder in a bucket, or if the libraries that it needs are not installed.
    """
    if is_object_store(location):
        # obstore is an optional package, and its client takes time to import.
        from headspan.io.object_store import ObjectStorage

        return ObjectStorage(str(location))
    return LocalStorage(Path(location))


def storage_to_write(location: str | Path) -> Storage:
    """Return the storage of a store that this process is going to write.

    Raises StoreError if the storage cannot keep the promises of `Storage`, as a bucket without conditional puts.
    """
    storage = storage_at(location)
    if not isinstance(storage, LocalStorage):
        storage.refuse_unfit()  # type: ignore[attr-defined]
    return storage
