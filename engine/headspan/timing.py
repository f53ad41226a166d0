"""Measure the seconds of each stage of a run, over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# The stages of the model's thread, which follow one another, and the stages of other threads at the same time.
IN_TURN = ("waiting for images", "model", "storing")
MEANWHILE = ("reading", "decoding", "writing")


class StageTimes:
    """Seconds by stage. `IN_TURN` sums to nearly the whole run; the stages of `MEANWHILE` are sums over threads."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys((*IN_TURN, *MEANWHILE), 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the time spent in the `with` block to `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def add(self, stage: str, seconds: float) -> None:
        """Add time that was measured elsewhere, such as in another process."""
        with self._lock:
            self._seconds[stage] += seconds

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """`items`; the time spent waiting for each is added to `stage`."""
        stream = iter(items)
        while True:
            with self.of(stage):
                try:
                    item = next(stream)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Seconds so far: since the start (`total`), and by stage."""
        with self._lock:
            return {"total": time.perf_counter() - self._began, **self._seconds}
