"""A bucket in memory that counts its requests, for simulations of runs of many workers and for tests.

It has no locks and a clock of its own, as object stores do. Nothing waits: the time that requests would take follows
from their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import google_crc32c

from headspan.io.storage import Checksum

# Keys in one answer to a listing.
PAGE_KEYS = 1000
_STAGED = "records/staged"


class Bucket:
    """The objects of a bucket by folder and key, with the time when each was written; counts requests by kind."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, tuple[bytes, float]]] = {}
        self.requests: Counter[str] = Counter()
        self.seconds = 0.0

    @property
    def size_bytes(self) -> int:
        """The bytes of all objects."""
        return sum(len(data) for folder in self.folders.values() for data, _ in folder.values())

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.folders.setdefault(key.rpartition("/")[0], {})[key] = (data, self.seconds)

    def find(self, key: str) -> tuple[bytes, float] | None:
        """Return an object and the time when it was written, or None if the object does not exist."""
        return self.folders.get(key.rpartition("/")[0], {}).get(key)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        self.folders.get(key.rpartition("/")[0], {}).pop(key, None)


class _Staged:
    def __init__(self, storage: CountedStorage, key: str) -> None:
        self._storage, self._key = storage, key
        self._parts: list[bytes] = []

    def __enter__(self) -> _Staged:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        pass

    def write(self, part: bytes | memoryview) -> None:
        self._parts.append(bytes(part))

    def finish(self) -> Checksum:
        data = b"".join(self._parts)
        self._storage.count("put")
        self._storage.bucket.put(self._storage.staged_key(self._key, self._storage.token), data)
        return len(data), int(google_crc32c.value(data))

    def close(self) -> None:
        self._parts.clear()


class CountedStorage:
    """Implements `Storage` in a `Bucket`, for one writer."""

    def __init__(self, bucket: Bucket, token: str) -> None:
        self.bucket, self.token = bucket, token

    def __str__(self) -> str:
        return "memory://bucket"

    def count(self, kind: str, requests: int = 1) -> None:
        """Count requests."""
        self.bucket.requests[kind] += requests

    def staged_key(self, key: str, token: str) -> str:
        """The key under which a writer stages a file."""
        return f"{_STAGED}/{token}/{key}"

    def put(self, key: str, parts: Iterable[bytes | memoryview]) -> Checksum:
        data = b"".join(parts)
        self.count("put")
        self.bucket.put(key, data)
        return len(data), int(google_crc32c.value(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.count("put")
        if self.bucket.find(key) is not None:
            return False
        self.bucket.put(key, data)
        return True

    def stage(self, key: str) -> _Staged:
        return _Staged(self, key)

    def publish(self, key: str, token: str) -> bool:
        self.count("copy")
        found = self.bucket.find(self.staged_key(key, token))
        if found is None:
            return False
        self.bucket.put(key, found[0])
        self.discard(key, token)
        return True

    def discard(self, key: str, token: str) -> None:
        self.delete(self.staged_key(key, token))

    def staged(self) -> Iterator[tuple[str, str]]:
        for key in self.list(_STAGED):
            token, _, name = key.removeprefix(f"{_STAGED}/").partition("/")
            yield name, token

    def get(self, key: str) -> bytes:
        self.count("get")
        if (found := self.bucket.find(key)) is None:
            raise FileNotFoundError(key)
        return found[0]

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return self.get(key)[start : start + size]

    def size(self, key: str) -> int | None:
        self.count("head")
        found = self.bucket.find(key)
        return None if found is None else len(found[0])

    def modified(self, key: str) -> float | None:
        self.count("head")
        found = self.bucket.find(key)
        return None if found is None else found[1]

    def now(self) -> float:
        # Not a request: the server is asked once in ten minutes.
        return self.bucket.seconds

    def checksum(self, key: str) -> Checksum:
        data = self.get(key)
        return len(data), int(google_crc32c.value(data))

    def list(self, folder: str = "") -> Iterator[str]:
        inside = f"{folder}/" if folder else ""
        keys = [
            key
            for name, objects in list(self.bucket.folders.items())
            if name == folder or name.startswith(inside)
            for key in list(objects)
        ]
        self.count("list", max(1, -(-len(keys) // PAGE_KEYS)))
        yield from keys

    def times(self, folder: str) -> dict[str, float]:
        found = ((key, self.bucket.find(key)) for key in self.list(folder))
        return {key: each[1] for key, each in found if each is not None}

    def delete(self, key: str) -> None:
        self.count("delete")
        self.bucket.delete(key)

    def move_folder(self, source: str, target: str) -> None:
        raise NotImplementedError("buckets have no folders")

    def folder_age(self, folder: str) -> float:
        return 0.0

    def delete_folder(self, folder: str) -> None:
        for key in list(self.list(folder)):
            self.delete(key)

    def free_bytes(self) -> int:
        return 1 << 62
