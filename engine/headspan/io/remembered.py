"""Remember what was read of a storage's small files during one question, and fetch many of them at once.

On an object store a request takes tens of milliseconds. So a question that reads many small files fetches them side by
side, and asks for none twice. What is remembered is as old as the question; a local folder is mostly read as it is.
"""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import google_crc32c

from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage
from headspan.io.storage import Checksum, Storage

_Found = TypeVar("_Found")
# Requests at once. One is answered after 10 to 100 ms, and brings 50 to 100 MB in a second.
REQUESTS = 32
# What a store remembers of all questions, before it forgets everything.
_KEPT_BYTES = 256 << 20


class Remembered(PassingStorage):
    """The storage `inner`, of which every file and folder is read once."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        # None for a file that is missing.
        self._files: dict[str, bytes | None] = {}
        self._folders: dict[str, builtins.list[str]] = {}

    @property
    def taken_bytes(self) -> int:
        """The memory of the files."""
        return sum(len(found or b"") for found in list(self._files.values()))

    def fetch(self, keys: Iterable[str]) -> None:
        """Read files side by side."""
        names = [key for key in dict.fromkeys(keys) if key not in self._files]
        self._files.update(zip(names, self._side_by_side(self._read, names), strict=True))

    def fetch_lists(self, folders: Iterable[str]) -> None:
        """List folders side by side."""
        names = [folder for folder in dict.fromkeys(folders) if folder not in self._folders]
        found = self._side_by_side(lambda folder: list(self.inner.list(folder)), names)
        self._folders.update(zip(names, found, strict=True))

    def _side_by_side(self, call: Callable[[str], _Found], names: Sequence[str]) -> Iterator[_Found]:
        # A local folder answers at once.
        return map(call, names) if isinstance(self.inner, LocalStorage) else request_threads().map(call, names)

    def get(self, key: str) -> bytes:
        found = self._found(key)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.inner}/{key}")
        return found

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return self.get(key)[start : start + size]

    def size(self, key: str) -> int | None:
        found = self._found(key)
        return None if found is None else len(found)

    def checksum(self, key: str) -> Checksum:
        found = self.get(key)
        return len(found), google_crc32c.value(found)

    def list(self, folder: str = "") -> Iterator[str]:
        parent = folder
        while parent and parent not in self._folders:
            parent = parent.rpartition("/")[0]
        if parent not in self._folders:
            parent = folder
            self.fetch_lists([folder])
        return iter([key for key in self._folders[parent] if parent == folder or key.startswith(f"{folder}/")])

    def _found(self, key: str) -> bytes | None:
        if key not in self._files:
            self._files[key] = self._read(key)
        return self._files[key]

    def _read(self, key: str) -> bytes | None:
        try:
            return self.inner.get(key)
        except FileNotFoundError:
            return None


class RemembersStorage(PassingStorage):
    """A storage that may remember what all questions have read, for whoever opens the store again if it changes."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._kept: Remembered | None = None
        self._remembers = False

    def remember(self) -> None:
        """Remember what is read from now on, up to `_KEPT_BYTES`."""
        self._remembers = True

    def question(self) -> Remembered:
        """What a question reads from."""
        if not self._remembers:
            return Remembered(self)
        if self._kept is None or self._kept.taken_bytes > _KEPT_BYTES:
            self._kept = Remembered(self)
        return self._kept


def remembered(
    storage: Storage, keys: Iterable[str] = (), folders: Iterable[str] = (), *, local: bool = False
) -> Storage:
    """The storage for one question, with files and folders in memory that it reads.

    A local folder is read as it is, unless `local` is true, for questions that read the same small files repeatedly.
    """
    if isinstance(storage, LocalStorage) and not local:
        return storage
    found = storage.question() if isinstance(storage, RemembersStorage) else storage
    found = found if isinstance(found, Remembered) else Remembered(found)
    found.fetch_lists(folders)
    found.fetch(keys)
    return found


def request_threads() -> ThreadPoolExecutor:
    """The threads of this process that wait for requests. Their work must not wait for other work of theirs."""
    return _threads(os.getpid())


@lru_cache(1)
def _threads(process: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads and starts its own.
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="headspan-requests")
