"""The sketches that this process keeps: of which stores and heads, when they are built, and how much memory they take.

The first query of some heads, or of the embedding, reads all of their numbers, and so does the second one, which also
has a sketch built: by one thread of low priority, one sketch after the other, while further queries read all numbers.
Later queries read the sketch. Sketches are dropped with their store. Together they stay within `_KEPT_BYTES`: a sketch
for which there is no room replaces only sketches that no query has used for a while, so that queries that alternate
between many sets of heads do not build one each time. Copies of the embeddings in eight bits, and the lists of the
nearest images of texts, are kept alike.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import cast

import numpy as np
from jaxtyping import Float32

from headspan.background import finish, later
from headspan.errors import HeadspanError
from headspan.explore.nearest.eight_bits import EightBits
from headspan.explore.nearest.nearest_lists import NearestLists
from headspan.explore.nearest.scored import ScoredEmbedding, Sketchable
from headspan.explore.nearest.shared import in_shared_memory
from headspan.explore.nearest.sketch import Sketch
from headspan.forgetting import Forgetting
from headspan.store.mapped import UnmappableError
from headspan.store.reader import Store, memory_bytes

# Fewer bytes are read in some milliseconds without a sketch.
_LEAST_BYTES = 64 << 20
# A part of the machine's memory; of 1,000,000 images, 48 heads of 64 numbers take 3.2 GB.
_KEPT_BYTES = memory_bytes() // 4
# A sketch may be replaced if none of so many queries has used it.
_UNUSED_QUERIES = 256
# Stores whose queries are remembered, of each the last ones.
_REMEMBERED = 256
# With more multiplications than this, lists would take one core more than some minutes.
_MOST_PRODUCTS = 4e12
_Kind = Sketch | EightBits | NearestLists


class _Kept:
    """Sketches by store and heads, each with the query that used it last; those last used last."""

    def __init__(self) -> None:
        self._sketches: OrderedDict[Hashable, tuple[_Kind, int]] = OrderedDict()
        self._queries = 0
        self._asked: OrderedDict[Hashable, None] = OrderedDict()
        self._numbers: weakref.WeakKeyDictionary[Store, int] = weakref.WeakKeyDictionary()
        self._stores = 0
        self._lock = threading.Lock()
        self._deleted = Forgetting(self._lock, self._forget)

    def number(self, store: Store) -> int:
        """A number that no other open store of this process has had."""
        with self._lock:
            if store not in self._numbers:
                self._stores += 1
                self._numbers[store] = self._stores
                self._deleted.watch(store, self._stores)
            return self._numbers[store]

    def get(self, key: Hashable) -> _Kind | None:
        with self._lock:
            self._deleted.forget_deleted()
            self._queries += 1
            if key not in self._sketches:
                return None
            sketch, _ = self._sketches[key]
            self._use(key, sketch)
            return sketch

    def has_room(self, key: Hashable, size_bytes: int) -> bool:
        """Whether a sketch of that size has room beside those that were used lately."""
        with self._lock:
            lately = self._queries - _UNUSED_QUERIES
            kept = (each.bytes for of, (each, used) in self._sketches.items() if of != key and used > lately)
            return sum(kept) + size_bytes <= _KEPT_BYTES

    def put(self, key: Hashable, sketch: _Kind) -> None:
        with self._lock:
            self._deleted.forget_deleted()
            self._use(key, sketch)
            while self.bytes > _KEPT_BYTES:
                self._sketches.popitem(last=False)

    def asked_before(self, key: Hashable) -> bool:
        with self._lock:
            before = key in self._asked
            self._asked[key] = None
            self._asked.move_to_end(key)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            return before

    def forget(self) -> None:
        with self._lock:
            self._sketches.clear()
            self._asked.clear()

    @property
    def bytes(self) -> int:
        """The memory of all sketches."""
        return sum(each.bytes for each, _ in self._sketches.values())

    def _use(self, key: Hashable, sketch: _Kind) -> None:
        self._sketches[key] = sketch, self._queries
        self._sketches.move_to_end(key)

    def _forget(self, number: int) -> None:
        for known in (self._sketches, self._asked):
            for key in [key for key in known if isinstance(key, tuple) and key[0] == number]:
                del known[key]


_kept = _Kept()
_in_shared_memory = False


def share_sketches() -> None:
    """Keep sketches that are built from now on in memory files, so that other processes can read them."""
    global _in_shared_memory
    _in_shared_memory = True


def forget_sketches() -> None:
    """Drop the sketches of this process, to free their memory."""
    finish()
    _kept.forget()


def sketch_for(store: Store, scored: Sketchable, sketched: bool | None = None) -> Sketch | None:
    """A sketch of the numbers that `scored` reads; None if there is none yet, so that all of them are to be read.

    By default the second query of them has a sketch built in the background. If `sketched` is true, this query builds
    it first; if it is false, none is built.
    """
    rows = store.planned_images
    if sketched is False or scored.bytes < _LEAST_BYTES:
        return None
    key = (_kept.number(store), scored.of)
    most_bytes = Sketch.most_bytes(rows, scored.coordinates)
    found = _kept_or_built(key, most_bytes, lambda: _placed(Sketch(scored, rows)), sketched)
    # Keys tell which of both it is.
    return cast("Sketch | None", found)


def eight_bits_of(store: Store, scored: ScoredEmbedding, sketched: bool | None = None) -> EightBits | None:
    """All numbers of `scored` in eight bits; None if they are not kept yet. `sketched` is as in `sketch_for`."""
    rows = store.planned_images
    if sketched is False or scored.bytes < _LEAST_BYTES:
        return None
    key = (_kept.number(store), scored.of, "eight bits")
    most_bytes = EightBits.most_bytes(rows, store.joint)
    found = _kept_or_built(key, most_bytes, lambda: _placed(EightBits(scored, rows)), sketched)
    return cast("EightBits | None", found)


def lists_of(
    store: Store, vectors: Float32[np.ndarray, "text joint"], listed: bool | None = None
) -> NearestLists | None:
    """The nearest images by embedding of each of many texts; None if there are none yet, or they would take too long.

    `listed` is as `sketched` in `sketch_for`. One list is kept for each store: that of the texts of the first call.
    """
    scored, rows = ScoredEmbedding(store), store.planned_images
    if listed is False or scored.bytes < _LEAST_BYTES or vectors.size * float(rows) > _MOST_PRODUCTS:
        return None
    key, size_bytes = (_kept.number(store), "nearest of texts"), NearestLists.most_bytes(len(vectors))
    return cast(
        "NearestLists | None", _kept_or_built(key, size_bytes, lambda: NearestLists(scored, rows, vectors), listed)
    )


def _kept_or_built(key: Hashable, most_bytes: int, build: Callable[[], _Kind], at_once: bool | None) -> _Kind | None:
    """What is kept for `key`; if nothing is, it is built, at once or soon, unless there is no room or it is new."""
    kept = _kept.get(key)
    if kept is not None or not (at_once or _kept.asked_before(key)) or not _kept.has_room(key, most_bytes):
        return kept
    if not at_once:
        later(key, lambda: _build(key, build))
        return None
    return _build(key, build)


def _build(key: Hashable, build: Callable[[], _Kind]) -> _Kind | None:
    try:
        built = build()
    # The store's shards have another layout, or this processor has no kernels; then every query reads all numbers.
    except UnmappableError:
        return None
    _kept.put(key, built)
    return built


def _placed(built: _Kind) -> _Kind:
    """Move a sketch to shared memory if `share_sketches` was called and the memory is available."""
    if _in_shared_memory:
        with suppress(HeadspanError):
            return in_shared_memory(built)
    return built
