"""The Storage interface: the file operations through which a store is read and written.

A file is named by its key, its path in the store with `/` between folders. The commit algorithm is written once above
this interface, in `store.write.commits`: stage files, claim the unit with `put_if_absent`, publish the files, and
publish the record last. Zarr and pyarrow open the arrays and tables themselves, by path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

_PART_BYTES = 8 << 20
# What `free_bytes` returns where there is no limit.
UNLIMITED = sys.maxsize
# Size in bytes and crc32c.
Checksum = tuple[int, int]


@runtime_checkable
class StagedObject(Protocol):
    """A file that is being written and does not have its final name yet.

    Methods raise StoreError if the file cannot be written; no part of it is then left. As a context manager, it also
    deletes what was written when an exception ends the block.
    """

    def __enter__(self) -> StagedObject: ...

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None: ...

    def write(self, part: bytes | memoryview) -> None:
        """Append `part`."""

    def finish(self) -> Checksum:
        """Make the file durable, still without its final name."""

    def close(self) -> None:
        """Stop writing and keep what was written, for `Storage.discard` to delete."""


@runtime_checkable
class Storage(Protocol):
    """Reads and writes the files of one store for one writer. `str(storage)` names the store in messages.

    Everything written is durable when the method returns. Methods that write raise StoreError if a file cannot be
    written.
    """

    # Identifies this writer. The names of its staged files contain the token, so that others know whose they are.
    token: str

    def put(self, key: str, parts: Iterable[bytes | memoryview]) -> Checksum:
        """Write a file, replacing an earlier one. Readers see the earlier file or the whole new one."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless it exists; only one of several writers succeeds. Returns whether it was written."""

    def stage(self, key: str) -> StagedObject:
        """Begin to write a file that `publish` later gives its final name."""

    def publish(self, key: str, token: str) -> bool:
        """Give the file that the writer `token` staged its final name, replacing an earlier file.

        Returns False if that writer has no such file staged, as when another process has published it. In both cases
        the file that now has the name `key` is durable.
        """

    def discard(self, key: str, token: str) -> None:
        """Delete the file that the writer `token` staged, if it exists."""

    def staged(self) -> Iterator[tuple[str, str]]:
        """List the key and token of every staged file."""

    def get(self, key: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError if it does not exist."""

    def get_range(self, key: str, start: int, size: int) -> bytes:
        """Read `size` bytes of a file from `start` on, fewer if it ends before. Raises FileNotFoundError without it."""

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""

    def modified(self, key: str) -> float | None:
        """Return when a file was written, in seconds by the storage's own clock, or None if it does not exist."""

    def now(self) -> float:
        """Return the time of the storage's own clock, which `modified` uses; computers' clocks may disagree."""

    def checksum(self, key: str) -> Checksum:
        """Read a file, and return its size and crc32c. Raises FileNotFoundError if it does not exist."""

    def list(self, folder: str = "") -> Iterator[str]:
        """List the keys of all files below `folder`, in no order; none if there is no such folder.

        Raises StoreError if the folder cannot be listed.
        """

    def times(self, folder: str) -> dict[str, float]:
        """List the keys of all files below `folder`, each with when it was written, as `modified` returns it."""

    def delete(self, key: str) -> None:
        """Delete a file, if it exists."""

    def move_folder(self, source: str, target: str) -> None:
        """Rename a folder. Raises FileExistsError if `target` contains files, and OSError if it fails otherwise."""

    def folder_age(self, folder: str) -> float:
        """Return the seconds since a folder was created or moved; 0 if it does not exist."""

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with its files, if it exists; errors are ignored."""

    def free_bytes(self) -> int:
        """Return how many bytes can still be written; UNLIMITED if there is no limit."""


def parts_of(storage: Storage, key: str) -> Iterator[bytes]:
    """Read a file in parts of 8 MiB."""
    start, size = 0, storage.size(key) or 0
    while start < size and (part := storage.get_range(key, start, _PART_BYTES)):
        yield part
        start += len(part)


def total_bytes(storage: Storage) -> int:
    """Return the bytes of all files. A file that is deleted or renamed meanwhile may count as nothing."""
    return sum(storage.size(key) or 0 for key in storage.list())


def named(storage: Storage, folder: str, pattern: str) -> list[str]:
    """Return the keys directly in `folder` whose last part matches the whole regular expression, sorted.

    Copies that operating systems and sync tools create (`._name`, `name (1)`, `name~`) do not match planned names.
    """
    return sorted(key for key in storage.list(folder) if re.fullmatch(f"{re.escape(folder)}/{pattern}", key))
