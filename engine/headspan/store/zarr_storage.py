"""Let zarr-python read the files of a store in an object store through its `Storage`, and find its metadata there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from headspan.io.local import LocalStorage
from headspan.io.storage import Storage


class StorageStore(Store):
    """The files of `storage` as zarr-python reads them. It writes none."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, storage: Storage) -> None:
        super().__init__(read_only=True)
        self._storage = storage

    def __str__(self) -> str:
        return str(self._storage)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageStore) and other._storage is self._storage

    __hash__ = None  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await asyncio.to_thread(self._read, key, byte_range)
        return None if found is None else (prototype or default_buffer_prototype()).buffer.from_bytes(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, asked) for key, asked in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._storage.size, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:
        for key in self._storage.list():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._storage.list(prefix.rpartition("/")[0]):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.strip("/")
        start = len(folder) + 1 if folder else 0
        for name in dict.fromkeys(key[start:].partition("/")[0] for key in self._storage.list(folder)):
            yield name

    def _read(self, key: str, asked: ByteRequest | None) -> bytes | None:
        storage = self._storage
        try:
            if asked is None:
                return storage.get(key)
            if isinstance(asked, RangeByteRequest):
                return storage.get_range(key, asked.start, asked.end - asked.start)
            if (size := storage.size(key)) is None:
                return None
            start = asked.offset if isinstance(asked, OffsetByteRequest) else max(0, size - _suffix(asked))
            return storage.get_range(key, start, size - start)
        except FileNotFoundError:
            return None


def _suffix(asked: Any) -> int:
    assert isinstance(asked, SuffixByteRequest), asked
    return asked.suffix


def group_at(storage: Storage) -> zarr.Group:
    """Open the root group of a store for reading.

    In a local folder metadata are read as they are used. In a bucket the root's copy of all metadata is used, so that
    one request reads them.
    """
    if isinstance(storage, LocalStorage):
        return zarr.open_group(storage.root, mode="r", use_consolidated=False)
    return zarr.open_group(StorageStore(storage), mode="r", zarr_format=3)


def node_at(storage: Storage, folder: str) -> zarr.Group | zarr.Array[Any] | None:
    """Open what is in a folder of a store for reading, as it is now; None if there is nothing."""
    if isinstance(storage, LocalStorage):
        return group_at(storage).get(folder)
    try:
        return zarr.open(StorageStore(storage), mode="r", path=folder, zarr_format=3)
    except FileNotFoundError:
        return None
