"""Values in memory up to a number of bytes; those that were used least recently are dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Bounded(Generic[_Value]):
    """Values by key. Threads may share it. The last value stays, however large it is."""

    def __init__(self, most_bytes: int, size: Callable[[_Value], int]) -> None:
        """`size` tells the bytes of a value."""
        self._most_bytes, self._size = most_bytes, size
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> _Value | None:
        """The value of `key`; None if it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: _Value) -> None:
        """Keep `value` for `key`."""
        with self._lock:
            if key in self._values:
                self._bytes -= self._size(self._values.pop(key))
            self._values[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._most_bytes and len(self._values) > 1:
                self._bytes -= self._size(self._values.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._values)
