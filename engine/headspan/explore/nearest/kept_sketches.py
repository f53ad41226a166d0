"""The sketches that this process keeps: of which stores and heads, when they are built, and how much memory they take.

The first query of some heads, or of the embedding, reads all of their numbers. If they are many, the second query
builds a sketch, which takes several times as long, and later queries read the sketch. Sketches are dropped with their
store. Together they stay within `_KEPT_BYTES`: a sketch for which there is no room replaces only sketches that no query
has used for a while, so that queries that alternate between many sets of heads do not build one each time.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from jaxtyping import Float32

from headspan.explore.nearest.scored import Scored
from headspan.explore.nearest.sketch import Sketch, layout_for
from headspan.store.mapped import UnmappableError
from headspan.store.reader import Store

# Fewer bytes are read in well under 0.1 seconds without a sketch.
_LEAST_BYTES = 512 << 20
_KEPT_BYTES = 2 << 30
# A sketch may be replaced if none of so many queries has used it.
_UNUSED_QUERIES = 64
# Stores whose queries are remembered, of each the last ones.
_REMEMBERED = 256


class _Kept:
    """Sketches by store and heads, each with the query that used it last; those last used last."""

    def __init__(self) -> None:
        self._sketches: OrderedDict[Hashable, tuple[Sketch, int]] = OrderedDict()
        self._queries = 0
        self._asked: OrderedDict[Hashable, None] = OrderedDict()
        self._numbers: weakref.WeakKeyDictionary[Store, int] = weakref.WeakKeyDictionary()
        self._stores = 0
        self._lock = threading.RLock()

    def number(self, store: Store) -> int:
        """A number that no other open store of this process has had."""
        with self._lock:
            if store not in self._numbers:
                self._stores += 1
                self._numbers[store] = self._stores
                weakref.finalize(store, self._forget, self._stores)
            return self._numbers[store]

    def get(self, key: Hashable) -> Sketch | None:
        with self._lock:
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

    def put(self, key: Hashable, sketch: Sketch) -> None:
        with self._lock:
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

    def _use(self, key: Hashable, sketch: Sketch) -> None:
        self._sketches[key] = sketch, self._queries
        self._sketches.move_to_end(key)

    def _forget(self, number: int) -> None:
        with self._lock:
            for known in (self._sketches, self._asked):
                for key in [key for key in known if isinstance(key, tuple) and key[0] == number]:
                    del known[key]


_kept = _Kept()


def forget_sketches() -> None:
    """Drop the sketches of this process, to free their memory."""
    _kept.forget()


def sketch_for(
    store: Store, of: Hashable, scored: Scored, query: Float32[np.ndarray, " joint"], sketched: bool | None = None
) -> Sketch | None:
    """A sketch that prunes this query well; None if all numbers are to be read instead.

    `of` says of the store's numbers which ones `scored` reads. By default the second query of them builds a sketch. If
    `sketched` is true, the first one does; if it is false, none is built.
    """
    if sketched is False or scored.bytes < _LEAST_BYTES:
        return None
    key = (_kept.number(store), of)
    sketch = _kept.get(key)
    if sketch is not None and sketch.suits(query):
        return sketch
    if not (sketched or _kept.asked_before(key)):
        return None
    layout = layout_for(scored.axes(), query)
    rows = store.planned_images
    if sketch is not None and sketch.layout.width >= layout.width:
        return sketch
    if not _kept.has_room(key, rows * (layout.width + 4)):
        return sketch
    try:
        sketch = Sketch(scored, layout, rows, store.contents.specs["heads"].chunk[0])
    except UnmappableError:
        return None
    _kept.put(key, sketch)
    return sketch
