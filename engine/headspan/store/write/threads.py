"""Threads that copy, checksum and write the numbers of units, while the model's thread goes on.

The tasks of one file are done in order, by one thread at a time; several files are written at once. A task that fails
ends its unit: the tasks that wait are dropped, and the failure is raised where the unit is handed more.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from headspan.timing import StageTimes

# Bytes of batches that may wait when another batch has been handed over, over all units.
WAITING_BYTES = 128 << 20
_MOST_THREADS = 8


def writing_threads() -> int:
    """Return how many threads write: half of the cores, from 2 to 8. A thread often waits for the disk."""
    return max(2, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))


@dataclass(slots=True)
class HandedBatch:
    """Arrays that were handed over together. Their memory is held until the last of `tasks` is done."""

    size_bytes: int
    tasks: int = 0


@dataclass(slots=True)
class FileTasks:
    """What is still to be done for one file, in order."""

    waiting: deque[tuple[Callable[[], None], HandedBatch | None]] = field(default_factory=deque)
    running: bool = False


class WritingThreads:
    """The threads of one store's writer. They live while a unit or a `with` block holds them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        # Bytes of handed batches that are not yet written.
        self.waiting_bytes = 0
        self._holders = 0
        self._pool: ThreadPoolExecutor | None = None

    def hold(self) -> None:
        """Keep the threads until `release`."""
        with self.changed:
            self._holders += 1
            self._pool = self._pool or ThreadPoolExecutor(writing_threads(), thread_name_prefix="headspan-write")

    def release(self) -> None:
        """End the threads if nobody else holds them."""
        with self.changed:
            self._holders -= 1
            self.changed.notify_all()
            ended = None if self._holders else self._pool
            if ended is not None:
                self._pool = None
        if ended is not None:
            ended.shutdown()

    def __enter__(self) -> WritingThreads:
        self.hold()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until the units that are being committed have been committed, or have failed, and end the threads."""
        with self.changed:
            self.changed.wait_for(lambda: self._holders == 1)
        self.release()

    def start(self, work: Callable[[], None]) -> None:
        """Let a thread do `work`."""
        assert self._pool is not None, "a unit holds the threads"
        self._pool.submit(work)


class UnitTasks:
    """The tasks of one unit's files."""

    def __init__(self, threads: WritingThreads, times: StageTimes) -> None:
        self._threads = threads
        self._times = times
        self._left = 0
        self._failure: BaseException | None = None
        threads.hold()

    def add(self, file: FileTasks, work: Callable[[], None], batch: HandedBatch | None = None) -> None:
        """Do `work` after the earlier tasks of its file; `batch` is what holds the memory that it reads."""
        with self._threads.changed:
            file.waiting.append((work, batch))
            self._left += 1
            if batch is not None:
                self._threads.waiting_bytes += 0 if batch.tasks else batch.size_bytes
                batch.tasks += 1
            if not file.running:
                file.running = True
                self._threads.start(lambda: self._run(file))

    def wait_for_earlier(self, batch: HandedBatch) -> None:
        """Wait until few enough bytes wait, not counting those of `batch`. Raises what a task raised."""
        with self._threads.changed:
            self._threads.changed.wait_for(
                lambda: (
                    self._failure is not None
                    or self._threads.waiting_bytes - (batch.size_bytes if batch.tasks else 0) <= WAITING_BYTES
                )
            )
            self._raise()

    def wait(self) -> None:
        """Wait until all tasks are done. Raises what a task raised."""
        with self._threads.changed:
            self._threads.changed.wait_for(lambda: not self._left)
            self._raise()

    def stop(self, failure: BaseException) -> None:
        """Drop the tasks that wait, and wait for those that are being done."""
        with self._threads.changed:
            self._failure = self._failure or failure
            self._threads.changed.wait_for(lambda: not self._left)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self, file: FileTasks) -> None:
        while True:
            with self._threads.changed:
                if not file.waiting:
                    file.running = False
                    return
                work, batch = file.waiting.popleft()
                dropped = self._failure is not None
            try:
                if not dropped:
                    with self._times.of("writing"):
                        work()
            except BaseException as error:
                failure: BaseException | None = error
            else:
                failure = None
            # The memory that it reads is free before the waiting thread goes on.
            del work
            with self._threads.changed:
                self._failure = self._failure or failure
                self._left -= 1
                if batch is not None:
                    batch.tasks -= 1
                    self._threads.waiting_bytes -= 0 if batch.tasks else batch.size_bytes
                self._threads.changed.notify_all()
