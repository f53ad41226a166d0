"""A limit on the memory that several threads take together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Bytes that threads take and give back. What is larger than the limit is taken when nothing else is."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until `size` more bytes fit, or until nothing is taken."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self.limit)
            self._taken += size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Hold `size` bytes in the `with` block."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)
