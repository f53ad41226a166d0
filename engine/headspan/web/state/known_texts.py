"""Texts whose vectors are known without the model: those of the pools that a store keeps, and the user's cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32

from headspan.errors import HeadspanError
from headspan.store import results
from headspan.store.reader import Store
from headspan.texts.stored import stored_pool
from headspan.texts.vectors import cached_vectors, known_vectors

# Memory of the pools' vectors of one store; further pools are not indexed.
_MOST_BYTES = 128 << 20


@dataclass(frozen=True)
class Stored:
    """Texts of the pools that a store keeps, in the order of the pools, with their vectors."""

    texts: tuple[str, ...]
    vectors: Float32[np.ndarray, "text joint"]
    places: dict[str, int]


class KnownTexts:
    """The known texts of open stores. Threads may share it."""

    def __init__(self) -> None:
        # By the open store, so that pools that are saved later are found when the store is opened again.
        self._indexed: WeakKeyDictionary[Store, Stored] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def stored(self, store: Store) -> Stored:
        """The texts of all pools that the store keeps."""
        with self._lock:
            if store not in self._indexed:
                self._indexed[store] = _index(store)
            return self._indexed[store]

    def vectors(self, store: Store, texts: Sequence[str]) -> dict[str, Float32[np.ndarray, " joint"]]:
        """The known vectors of `texts`, by text; texts without one are left out."""
        stored = self.stored(store)
        found = {text: stored.vectors[stored.places[text]] for text in texts if text in stored.places}
        others = [text for text in dict.fromkeys(texts) if text not in found]
        return {**found, **cached_vectors(store, others)} if others else found


def _index(store: Store) -> Stored:
    found: dict[str, np.ndarray] = {}
    left = _MOST_BYTES
    for name in results.runs(store, "texts"):
        # A damaged pool, or one of another text tower, is not known.
        with suppress(HeadspanError):
            pool = stored_pool(store, name)
            needed = 4 * store.joint * len(pool.texts)
            if needed <= left and (embedded := known_vectors(store, pool)) is not None:
                left -= needed
                for text, vector in zip(pool.texts, embedded.vectors, strict=True):
                    found.setdefault(text, vector)
    vectors = np.array(list(found.values()), np.float32).reshape(len(found), store.joint)
    return Stored(tuple(found), vectors, {text: place for place, text in enumerate(found)})
