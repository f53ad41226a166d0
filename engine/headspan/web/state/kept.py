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

_BYTES = 512 << 20
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
    bytes: int = 0
    # The bytes that are counted: none before it is there.
    counted: int = 0


class Kept:
    """Things by the store's name and a key, those used last; all of a store's are dropped when it was opened again."""

    def __init__(self, most_bytes: int = _BYTES) -> None:
        self._most = most_bytes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0
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
                entry.bytes, entry.done = _ENTRY_BYTES + size(entry.value), True
                self._count((name, key), entry)
        return cast(T, entry.value)

    @property
    def bytes(self) -> int:
        """The bytes of everything that is kept."""
        return self._bytes

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
                    self._bytes -= self._entries.pop(other).counted
                self._last[name] = number
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            return entry

    def _drop(self, key: _Key, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]

    def _count(self, key: _Key, entry: _Entry) -> None:
        """Count a thing that is there now, and drop what was not used for longest until the rest fits."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            entry.counted = entry.bytes
            self._bytes += entry.counted
            self._entries.move_to_end(key)
            while self._bytes > self._most and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1].counted
