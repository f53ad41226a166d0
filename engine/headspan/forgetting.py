"""Forget what is kept for an object when the object is deleted, at whatever moment that is.

Python may collect garbage, and call finalizers, in the middle of any code: also in a thread that holds the lock of what
is kept. A finalizer that waited for this lock would wait forever, and one that did not would change a collection while
it is read.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Name = TypeVar("Name")


class Forgetting(Generic[Name]):
    """Calls `forget` with the name of each deleted object, always by a thread that holds `lock`."""

    def __init__(self, lock: threading.Lock, forget: Callable[[Name], object]) -> None:
        self._lock, self._forget = lock, forget
        self._deleted: deque[Name] = deque()

    def watch(self, owner: object, name: Name) -> None:
        """Forget `name` when `owner` is deleted."""
        weakref.finalize(owner, self._ended, name)

    def _ended(self, name: Name) -> None:
        self._deleted.append(name)
        if self._lock.acquire(blocking=False):
            try:
                self.forget_deleted()
            finally:
                self._lock.release()

    def forget_deleted(self) -> None:
        """Forget objects that were deleted while the lock was held; the caller holds it."""
        while self._deleted:
            self._forget(self._deleted.popleft())
