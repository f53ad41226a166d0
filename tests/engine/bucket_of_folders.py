"""Local folders behind addresses of buckets, which count the requests that reading takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage

BUCKET = "s3://bucket"


class Requests(list[tuple[str, str, int]]):
    """What was requested: the kind of request, the key or folder, and the bytes of the answer."""

    @property
    def bytes(self) -> int:
        return sum(size for *_, size in self)


class CountingStorage(PassingStorage):
    """The folder `run.zarr` as `s3://bucket/run.zarr`."""

    def __init__(self, url: str, folder: Path, requests: Requests) -> None:
        super().__init__(LocalStorage(folder / url.removeprefix(f"{BUCKET}/")))
        self._url, self._requests = url, requests

    def __str__(self) -> str:
        return self._url

    def get(self, key: str) -> bytes:
        return self._count("get", key, self.inner.get(key))

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return self._count("range", key, self.inner.get_range(key, start, size))

    def checksum(self, key: str) -> tuple[int, int]:
        found = self.inner.checksum(key)
        self._requests.append(("get", key, found[0]))
        return found

    def size(self, key: str) -> int | None:
        self._requests.append(("head", key, 0))
        return self.inner.size(key)

    def list(self, folder: str = "") -> Iterator[str]:
        self._requests.append(("list", folder, 0))
        return self.inner.list(folder)

    def listed(self, folder: str = "") -> Any:
        return [{"path": key, "size": self.inner.size(key)} for key in self.list(folder)]

    def _count(self, kind: str, key: str, found: bytes) -> bytes:
        self._requests.append((kind, key, len(found)))
        return found


def folder_as_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Let `s3://bucket/NAME` be the folder NAME in `folder`. Returns the requests that are made from now on."""
    requests = Requests()
    monkeypatch.setattr("headspan.io.object_store.ObjectStorage", lambda url: CountingStorage(url, folder, requests))
    return requests
