"""Work that makes later answers faster, done by one thread of low priority, one piece after the other.

A piece that is waiting or being done is not added again. If too many pieces are waiting, a further one is dropped, and
a later call may add it. Errors that headspan raises on purpose are ignored: later answers only take longer.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress

from headspan.errors import HeadspanError

# Pieces that wait.
_WAITING = 64
_NICENESS = 10


class _Background:
    """The thread of this process, and the pieces of work that wait for it."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Hashable, Callable[[], object]]] = queue.Queue(_WAITING)
        self._keys: set[Hashable] = set()
        self._lock = threading.Lock()
        self._process = 0

    def later(self, key: Hashable, work: Callable[[], object]) -> None:
        with self._lock:
            if self._process != os.getpid():
                # A forked process has none of its parent's threads.
                self._process, self._waiting, self._keys = os.getpid(), queue.Queue(_WAITING), set()
                threading.Thread(target=self._work, args=(self._waiting,), daemon=True, name="headspan-later").start()
            if key not in self._keys and not self._waiting.full():
                self._keys.add(key)
                self._waiting.put((key, work))

    def finish(self) -> None:
        self._waiting.join()

    def _work(self, waiting: queue.Queue[tuple[Hashable, Callable[[], object]]]) -> None:
        if sys.platform == "linux":
            # Of this thread alone.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            key, work = waiting.get()
            try:
                with suppress(HeadspanError):
                    work()
            finally:
                # So that a store can be closed while this thread waits.
                del work
                with self._lock:
                    self._keys.discard(key)
                waiting.task_done()


_background = _Background()


def later(key: Hashable, work: Callable[[], object]) -> None:
    """Do `work` soon, unless work of that key is waiting or being done, or too much is waiting."""
    _background.later(key, work)


def finish() -> None:
    """Wait until no work is waiting or being done."""
    _background.finish()
