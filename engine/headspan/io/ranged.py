"""Open the storage of a store for reading: a local folder, or an object store whose large files are read by ranges."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from headspan.io.local import LocalStorage
from headspan.io.remembered import RemembersStorage
from headspan.io.sparse_files import SparseFiles
from headspan.io.storage import Storage, total_bytes
from headspan.io.stores import storage_at

# Files that one request lists.
_LISTED_AT_ONCE = 1000


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

    def listed(self, folder: str = "", without: Collection[str] = ()) -> list[dict[str, Any]]: ...


def bytes_of(storage: Storage, recorded: Iterable[tuple[str, int]] = ()) -> int:
    """Return the bytes of all files, as `total_bytes`.

    `recorded` are keys and sizes of files that are known. In a bucket, folders with many of them are not listed.
    """
    inner = storage.inner if isinstance(storage, RangedStorage) else storage
    if not isinstance(inner, ListsSizes):
        return total_bytes(storage)
    sizes: dict[str, list[int]] = {}
    for key, size in recorded:
        # `heads/c`, the folder of the array's shards.
        sizes.setdefault("/".join(key.split("/")[:2]), []).append(size)
    known = {folder: sum(each) for folder, each in sizes.items() if len(each) >= _LISTED_AT_ONCE}
    return sum(known.values()) + sum(each["size"] for each in inner.listed(without=[*known]))


def reading_storage(location: str | Path | Storage) -> LocalStorage | RangedStorage:
    """The storage of the store at `location`, for reading. Nothing is read yet. Raises as `storage_at`."""
    found = storage_at(location) if isinstance(location, str | Path) else location
    return found if isinstance(found, LocalStorage | RangedStorage) else RangedStorage(found)
