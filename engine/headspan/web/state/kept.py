"""What the server computed from stores and keeps: bounded in bytes, dropped when a store shows other images or results.

Requests that come at once for the same thing wait for the one that computes it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from headspan.store.reader import Store

# Of large things, such as planes, and of small ones, such as answers, or colourings of 1,000,000 images, which fill the
# bound within a thousand requests. A plane never replaces hundreds of answers.
_BYTES, _SMALL_BYTES = 768 << 20, 128 << 20
# What a thing counts whose size is not given: much more than lists of names and numbers of heads take.
SMALL_BYTES = 1 << 20
# What every thing takes beside its own bytes.
_ENTRY_BYTES = 1 << 10
T = TypeVar("T")
_Key = tuple[str, Hashable]


@dataclass(slots=True)
class _Entry:
    """A thing, or the place where it will be."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Any = None
    done: bool = False
    # The bytes that are counted: none before it is there.
    counted: int = 0
    # Whether it is counted among the small things.
    small: bool = True


class Kept:
    """Things by the store's name and a key, those used last; all of a store's are dropped when it was opened again."""

    def __init__(self, most_bytes: int = _BYTES, most_small_bytes: int = _SMALL_BYTES) -> None:
        """Keep large things of `most_bytes` together, and small ones of `most_small_bytes`."""
        self._most = {True: most_small_bytes, False: most_bytes}
        self._entries: dict[_Key, _Entry] = {}
        # The keys of small things and of large ones, those last used last. What is not there yet is small.
        self._orders: dict[bool, OrderedDict[_Key, None]] = {True: OrderedDict(), False: OrderedDict()}
        self._bytes = {True: 0, False: 0}
        # The order in which Store objects were first seen, and the last one by name.
        self._numbers: WeakKeyDictionary[Store, int] = WeakKeyDictionary()
        self._last: dict[str, int] = {}
        self._seen = 0
        self._lock = threading.Lock()

    def get(
        self,
        name: str,
        store: Store,
        key: Hashable,
        make: Callable[[], T],
        size: Callable[[T], int] = lambda thing: SMALL_BYTES,
    ) -> T:
        """The thing of `key`, computed by `make` unless it is kept; `size` says how many bytes it takes.

        `store` is the open store of that name. What `make` raises is raised, and nothing is kept.
        """
        entry = self._entry((name, key), store)
        if entry is None:
            return make()
        with entry.lock:
            if not entry.done:
                try:
                    entry.value = make()
                except BaseException:
                    self._drop((name, key), entry)
                    raise
                entry.done = True
                self._count((name, key), entry, _ENTRY_BYTES + size(entry.value))
        return cast(T, entry.value)

    def known(self, name: str, store: Store, key: Hashable) -> Any:
        """The thing of `key` if it is kept; None if it is not, or not yet."""
        with self._lock:
            entry = self._entries.get((name, key))
            if entry is None or not entry.done or self._numbers.get(store) != self._last.get(name):
                return None
            self._orders[entry.small].move_to_end((name, key))
            return entry.value

    @property
    def bytes(self) -> int:
        """The bytes of everything that is kept."""
        return sum(self._bytes.values())

    def _entry(self, key: _Key, store: Store) -> _Entry | None:
        """The place of a thing; None if it is of a store that has been opened again since."""
        name, _ = key
        with self._lock:
            if store not in self._numbers:
                self._seen += 1
                self._numbers[store] = self._seen
            number, last = self._numbers[store], self._last.get(name, 0)
            if number < last:
                return None
            if number > last:
                for other in [other for other in self._entries if other[0] == name]:
                    self._remove(other)
                self._last[name] = number
            entry = self._entries.setdefault(key, _Entry())
            order = self._orders[entry.small]
            order[key] = None
            order.move_to_end(key)
            return entry

    def _drop(self, key: _Key, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                self._remove(key)

    def _remove(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        del self._orders[entry.small][key]
        self._bytes[entry.small] -= entry.counted

    def _count(self, key: _Key, entry: _Entry, size_bytes: int) -> None:
        """Count a thing that is there now, and drop what was not used for longest until the rest fits."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._remove(key)
            entry.counted, entry.small = size_bytes, size_bytes <= _ENTRY_BYTES + SMALL_BYTES
            self._entries[key] = entry
            order = self._orders[entry.small]
            order[key] = None
            self._bytes[entry.small] += entry.counted
            while self._bytes[entry.small] > self._most[entry.small] and len(order) > 1:
                self._remove(next(iter(order)))
