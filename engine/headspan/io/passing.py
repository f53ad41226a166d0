"""A storage that passes every call to another one, for classes that change some of the calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headspan.io.storage import Checksum, StagedObject, Storage


class PassingStorage:
    """Implements `Storage` by the storage `inner`; `io.storage` describes the methods."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.token = inner.token

    def __str__(self) -> str:
        return str(self.inner)

    def put(self, key: str, parts: Iterable[bytes | memoryview]) -> Checksum:
        return self.inner.put(key, parts)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.inner.put_if_absent(key, data)

    def stage(self, key: str) -> StagedObject:
        return self.inner.stage(key)

    def publish(self, key: str, token: str) -> bool:
        return self.inner.publish(key, token)

    def discard(self, key: str, token: str) -> None:
        self.inner.discard(key, token)

    def staged(self) -> Iterator[tuple[str, str]]:
        return self.inner.staged()

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return self.inner.get_range(key, start, size)

    def size(self, key: str) -> int | None:
        return self.inner.size(key)

    def modified(self, key: str) -> float | None:
        return self.inner.modified(key)

    def now(self) -> float:
        return self.inner.now()

    def checksum(self, key: str) -> Checksum:
        return self.inner.checksum(key)

    def list(self, folder: str = "") -> Iterator[str]:
        return self.inner.list(folder)

    def times(self, folder: str) -> dict[str, float]:
        return self.inner.times(folder)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def move_folder(self, source: str, target: str) -> None:
        self.inner.move_folder(source, target)

    def folder_age(self, folder: str) -> float:
        return self.inner.folder_age(folder)

    def delete_folder(self, folder: str) -> None:
        self.inner.delete_folder(folder)

    def free_bytes(self) -> int:
        return self.inner.free_bytes()
