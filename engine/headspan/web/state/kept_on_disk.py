"""Open a store for the explorer: what is read of a store in a bucket is kept on disk, within a bound of bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from headspan.io.disk_blocks import DiskBlocks, blocks_folder
from headspan.io.ranged import RangedStorage
from headspan.store.reader import Store, open_store


def opened_with_cache(path: str | Path, cache_bytes: int) -> Store:
    """The store at `path`, with at most `cache_bytes` of all stores in buckets on disk. Raises as `open_store`."""
    store = open_store(path)
    if isinstance(storage := store.contents.storage, RangedStorage):
        # The explorer opens the store again if its results change, and writes none itself.
        storage.remember()
    if cache_bytes:
        # A user without a home folder has no cache.
        with suppress(RuntimeError):
            store.contents.keep_on_disk(DiskBlocks(blocks_folder(), cache_bytes))
    return store
