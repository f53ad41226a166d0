"""Write a run with zarr: in a local store, or in a temporary folder that is copied to a store in a bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zarr

from headspan.io.local import LocalStorage
from headspan.io.storage import Storage, parts_of
from headspan.store.consolidated import ROOT
from headspan.store.schema import UNREADABLE


@contextmanager
def group_of_kind(storage: Storage, kind: str) -> Iterator[zarr.Group]:
    """Yield the group of a kind's runs, in which a run may be created. Its files are in the store after the block.

    The group's metadata contain no settings; if they are damaged, they are replaced.
    """
    if isinstance(storage, LocalStorage):
        root = zarr.open_group(storage.root, mode="r+", use_consolidated=False)
        yield _required(root, kind, storage)
        return
    with tempfile.TemporaryDirectory(prefix="headspan-") as folder:
        yield zarr.create_group(folder, zarr_format=3).require_group(kind)
        written, own = LocalStorage(Path(folder)), f"{kind}/{ROOT}"
        # A folder's metadata last, so that it is a group when its files are there.
        for key in sorted(written.list(kind), key=lambda key: (key.endswith(ROOT), -key.count("/"), key)):
            if key != own or not _equal(storage, own, written.get(own)):
                storage.put(key, parts_of(written, key))


def _required(root: zarr.Group, kind: str, storage: Storage) -> zarr.Group:
    try:
        return root.require_group(kind)
    except UNREADABLE:
        storage.delete(f"{kind}/{ROOT}")
        return root.require_group(kind)


def _equal(storage: Storage, key: str, content: bytes) -> bool:
    try:
        return storage.get(key) == content
    except FileNotFoundError:
        return False
