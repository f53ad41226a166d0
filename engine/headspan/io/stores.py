"""Open the storage of a store: a local folder, or a place in an object store such as `s3://bucket/run.zarr`."""

from __future__ import annotations

from pathlib import Path

from headspan.io.local import LocalStorage
from headspan.io.storage import Storage

# Object stores, by the scheme of their URLs.
SCHEMES = ("s3", "gs", "az", "r2")


def is_object_store(location: str | Path) -> bool:
    """Return whether `location` is the URL of a place in an object store."""
    return isinstance(location, str) and location.partition("://")[0] in SCHEMES and "://" in location


def storage_at(location: str | Path) -> Storage:
    """Return the storage of the store at `location`, a path or a URL. Nothing is read yet.

    Raises StoreError if the address names no folder in a bucket, or if the libraries that it needs are not installed.
    """
    if is_object_store(location):
        # obstore is an optional package, and its client takes time to import.
        from headspan.io.object_store import ObjectStorage

        return ObjectStorage(str(location))
    return LocalStorage(Path(location))
