"""Fetch many small files of a store at once, and answer reads of them from memory.

On an object store a request takes tens of milliseconds, so files that are read one after the other are fetched side by
side first. A local folder needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import google_crc32c

from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage
from headspan.io.storage import Checksum, Storage

# Requests at once. One answers in 10 to 100 ms, and carries 50 to 100 MB in a second.
REQUESTS = 32


class Prefetched(PassingStorage):
    """The storage `inner`, with `files` as they were when they were fetched; None stands for a file that is missing."""

    def __init__(self, inner: Storage, files: dict[str, bytes | None]) -> None:
        super().__init__(inner)
        self._files = files

    def get(self, key: str) -> bytes:
        if key not in self._files:
            return self.inner.get(key)
        found = self._files[key]
        if found is None:
            raise FileNotFoundError(2, "no such file", f"{self.inner}/{key}")
        return found

    def get_range(self, key: str, start: int, size: int) -> bytes:
        if key not in self._files:
            return self.inner.get_range(key, start, size)
        return self.get(key)[start : start + size]

    def size(self, key: str) -> int | None:
        if key not in self._files:
            return self.inner.size(key)
        found = self._files[key]
        return None if found is None else len(found)

    def checksum(self, key: str) -> Checksum:
        if key not in self._files:
            return self.inner.checksum(key)
        found = self.get(key)
        return len(found), google_crc32c.value(found)


def prefetched(storage: Storage, keys: Iterable[str]) -> Storage:
    """The storage, with the files `keys` in memory unless it is a local folder. Errors are those of `Storage.get`."""
    if isinstance(storage, LocalStorage):
        return storage

    def fetch(key: str) -> bytes | None:
        try:
            return storage.get(key)
        except FileNotFoundError:
            return None

    names = list(dict.fromkeys(keys))
    return Prefetched(storage, dict(zip(names, request_threads().map(fetch, names), strict=True)))


def request_threads() -> ThreadPoolExecutor:
    """The threads of this process that wait for requests. Their work must not wait for other work of theirs."""
    return _threads(os.getpid())


@lru_cache(1)
def _threads(process: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads and starts its own.
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="headspan-requests")
