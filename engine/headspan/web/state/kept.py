"""What the server computed from stores and keeps: bounded in bytes, dropped when a store shows other images or results.

Requests that come at once for the same thing wait for the one that computes it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

_BYTES = 512 << 20
# What a thing counts whose size is not given: much more than lists of names and numbers of heads take.
_SMALL_BYTES = 1 << 20
T = TypeVar("T")
_Key = tuple[str, Hashable]


@dataclass(slots=True)
class _Entry:
    """A thing of one version of a store, or the place where it will be."""

    version: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Any = None
    done: bool = False
    bytes: int = 0


class Kept:
    """Things by the store's name and a key, those used last; a thing of another version is computed again."""

    def __init__(self, most_bytes: int = _BYTES) -> None:
        self._most = most_bytes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        store: str,
        version: str,
        key: Hashable,
        make: Callable[[], T],
        size: Callable[[T], int] = lambda thing: _SMALL_BYTES,
    ) -> T:
        """The thing of `key`, computed by `make` unless it is kept; `size` says how many bytes it takes.

        What `make` raises is raised, and nothing is kept.
        """
        entry = self._entry((store, key), version)
        with entry.lock:
            if not entry.done:
                entry.value = make()
                entry.bytes, entry.done = size(entry.value), True
                self._drop_others((store, key))
        return cast(T, entry.value)

    @property
    def bytes(self) -> int:
        """The bytes of everything that is kept."""
        with self._lock:
            return sum(entry.bytes for entry in self._entries.values())

    def _entry(self, key: _Key, version: str) -> _Entry:
        with self._lock:
            found = self._entries.get(key)
            if found is None or found.version != version:
                found = self._entries[key] = _Entry(version)
            self._entries.move_to_end(key)
            return found

    def _drop_others(self, last: _Key) -> None:
        """Drop what was not used for longest, until the rest fits; `last` was used last."""
        with self._lock:
            total = sum(entry.bytes for entry in self._entries.values())
            for key in list(self._entries):
                if total <= self._most:
                    return
                if key != last:
                    total -= self._entries.pop(key).bytes
