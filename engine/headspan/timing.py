"""Where a run's time goes: seconds of its stages, added up by whichever thread works on one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# What the thread that holds the model does, one after the other, and what other threads do meanwhile.
IN_TURN = ("waiting for images", "model", "storing")
MEANWHILE = ("reading", "decoding", "writing")


class StageTimes:
    """Seconds by stage; those of `IN_TURN` are nearly all of the run, those of `MEANWHILE` sums over threads."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys((*IN_TURN, *MEANWHILE), 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count what is done within towards `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - began
            with self._lock:
                self._seconds[stage] += passed

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """`items`; the time until each is there counts towards `stage`."""
        stream = iter(items)
        while True:
            with self.of(stage):
                try:
                    item = next(stream)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Seconds so far: of all (`total`), and by stage."""
        with self._lock:
            return {"total": time.perf_counter() - self._began, **self._seconds}
