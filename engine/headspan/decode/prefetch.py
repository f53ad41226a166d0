"""Run a stage ahead of its consumer in a thread, within a limit of bytes.

Order is preserved. An exception of the source is raised after the items before it. Items are passed on unchanged.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

CLOSING_SECONDS = 2.0


@runtime_checkable
class Interruptible(Protocol):
    """A source that may wait for its consumer, and that any thread can make stop."""

    def interrupt(self) -> None:
        """Let the thread that waits for the next item see the end of the source."""


def prefetch(items: Iterable[T], size_bytes: Callable[[T], int], in_flight_bytes: int) -> Generator[T, None, None]:
    """`items`, computed by a thread that may be ahead by `in_flight_bytes`, and always by one item.

    The thread starts with the first `next`. Closing the generator stops the thread, interrupts `items` if it can be
    interrupted, closes it if it is a generator, and returns when the current item is finished. It waits for that item
    for CLOSING_SECONDS at most, since a source may hang.
    """
    waiting: deque[tuple[T, int]] = deque()
    waiting_bytes = 0
    failures: list[BaseException] = []
    finished = stopped = False
    changed = threading.Condition()

    def has_room(size: int) -> bool:
        return stopped or not waiting or waiting_bytes + size <= in_flight_bytes

    def run_ahead() -> None:
        nonlocal waiting_bytes, finished
        source = iter(items)
        try:
            for item in source:
                size = size_bytes(item)
                with changed:
                    changed.wait_for(lambda size=size: has_room(size))  # type: ignore[misc]
                    if stopped:
                        break
                    waiting.append((item, size))
                    waiting_bytes += size
                    changed.notify_all()
            if isinstance(source, Generator):
                source.close()
        # The consumer raises it.
        except BaseException as error:
            failures.append(error)
        finally:
            with changed:
                finished = True
                changed.notify_all()

    # A daemon thread, so that a generator that is never closed does not keep the interpreter alive.
    thread = threading.Thread(target=run_ahead, name="headspan-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: bool(waiting) or finished)
                if not waiting:
                    break
                item, size = waiting.popleft()
                waiting_bytes -= size
                changed.notify_all()
            yield item
        if failures:
            raise failures[0]
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        if isinstance(items, Interruptible):
            items.interrupt()
        thread.join(CLOSING_SECONDS)
