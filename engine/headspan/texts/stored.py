"""Pools and their vectors in a store, as `texts/<name>`: find, read and save them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.errors import counted
from headspan.io.remembered import remembered
from headspan.io.storage import Storage
from headspan.store import results
from headspan.store.reader import Store
from headspan.store.write import analyses
from headspan.texts.pool import Pool


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddedPool:
    """A pool, its texts as unit vectors, and the checksum of the text tower that made them."""

    pool: Pool
    vectors: Float32[np.ndarray, "text joint"]
    # None if it is not known: the first releases did not record it.
    text_sha256: str | None

    def __repr__(self) -> str:
        texts, joint = self.vectors.shape
        return f"EmbeddedPool({self.pool.name!r}: {counted(texts, 'text')}, joint {joint})"


def keep_vectors(store: Store, embedded: EmbeddedPool) -> str:
    """Write a pool and its vectors into the store; returns the name under which the store has them.

    Nothing is written if the store has them already. Raises StoreError if they cannot be written.
    """
    pool = embedded.pool
    name = stored_name(store, pool)
    if not results.sound(store, "texts", name):
        analyses.save(
            store,
            "texts",
            name,
            {"vectors": (embedded.vectors, ("text", "joint"))},
            {
                "pool_sha256": pool.sha256,
                "text_sha256": embedded.text_sha256,
                "texts": list(pool.texts),
                "concepts": pool.concepts and list(pool.concepts),
                "author": pool.author,
            },
        )
    return name


def find_vectors(store: Store, pool: Pool) -> EmbeddedPool | None:
    """The vectors that the store keeps of these texts and concepts, under whatever name; None if it has none."""
    storage = _question(store)
    for name, settings in results.all_settings(store, "texts", storage):
        if settings.get("pool_sha256") == pool.sha256 and results.sound(store, "texts", name, storage=storage):
            with results.as_written(store, "texts", name):
                vectors = results.load(store, "texts", name, storage)[0]["vectors"]
            return EmbeddedPool(_pool(store, name, settings), vectors, settings.get("text_sha256"))
    return None


def kept_text_tower(store: Store) -> str | None:
    """The text tower of the kept vectors, for stores that do not record their own; None if no vectors record one."""
    kept = results.all_settings(store, "texts", _question(store))
    return next((tower for _, settings in kept if (tower := settings.get("text_sha256"))), None)


def stored_name(store: Store, pool: Pool) -> str:
    """The name of `pool` in the store: its own, or its own with its checksum if another pool has that name."""
    # A pool whose settings cannot be read is replaced.
    if not results.sound(store, "texts", pool.name, metadata_alone=True):
        return pool.name
    settings = results.load_settings(store, "texts", pool.name)
    return pool.name if settings.get("pool_sha256") == pool.sha256 else f"{pool.name}-{pool.sha256[:8]}"


def stored_pool(store: Store, name: str) -> Pool:
    """Read the pool `name` from the store. Raises StoreError if it is missing or damaged."""
    return _pool(store, name, results.load_settings(store, "texts", name))


def largest_pool(store: Store) -> Pool | None:
    """The kept pool with the most texts; None if the store keeps none."""
    kept = dict(results.all_settings(store, "texts", _question(store)))
    largest = max(kept, key=lambda name: len(kept[name].get("texts", ())), default=None)
    return None if largest is None else _pool(store, largest, kept[largest])


def _question(store: Store) -> Storage:
    """The store's storage, in which pools are listed once."""
    return remembered(store.contents.storage, folders=["texts"], local=True)


def _pool(store: Store, name: str, settings: dict[str, Any]) -> Pool:
    with results.as_written(store, "texts", name):
        concepts, author = settings["concepts"], settings.get("author")
        return Pool(
            name,
            tuple(map(str, settings["texts"])),
            tuple(map(str, concepts)) if concepts else None,
            author and str(author),
        )
