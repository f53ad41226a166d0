"""Open the storage of a store for reading: a local folder, or an object store whose large files are read by ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from headspan.io.local import LocalStorage
from headspan.io.remembered import RemembersStorage
from headspan.io.sparse_files import SparseFiles
from headspan.io.storage import Storage, total_bytes
from headspan.io.stores import storage_at


class RangedStorage(RemembersStorage):
    """The storage `inner`, with parts of its large `files`, which never change, in memory."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.files = SparseFiles(inner)
        # What has been read of files once: their key, and their size and parsed ends.
        self.ends: dict[str, tuple[int, Any]] = {}


@runtime_checkable
class ListsSizes(Protocol):
    """A storage that lists files with their sizes, by a request for a thousand of them."""

    def listed(self, folder: str = "") -> list[dict[str, Any]]: ...


def bytes_of(storage: Storage) -> int:
    """Return the bytes of all files, as `total_bytes`."""
    inner = storage.inner if isinstance(storage, RangedStorage) else storage
    return sum(each["size"] for each in inner.listed()) if isinstance(inner, ListsSizes) else total_bytes(storage)


def reading_storage(location: str | Path | Storage) -> LocalStorage | RangedStorage:
    """The storage of the store at `location`, for reading. Nothing is read yet. Raises as `storage_at`."""
    found = storage_at(location) if isinstance(location, str | Path) else location
    return found if isinstance(found, LocalStorage | RangedStorage) else RangedStorage(found)
