"""Measure by how much a process's own memory grows, without files that it maps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def growth() -> Iterator[Callable[[], int]]:
    """A function that says, after the block, by how much anonymous memory grew at most within it."""
    before = peak = _anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: peak - before
    finally:
        done.set()
        watcher.join()
        peak = max(peak, _anonymous_bytes())


def _anonymous_bytes() -> int:
    """Resident memory of this process that belongs to no file."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status names no anonymous memory")
