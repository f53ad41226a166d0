"""Threads that copy, checksum and write the numbers of units, while the model's thread goes on.

The tasks of one file are done in order, by one thread at a time; several files are written at once. A task that fails
ends its unit: the tasks that wait are dropped, and the failure is raised where the unit is handed more.

Ctrl-C can arrive between any two steps of the main thread. So what the cleanup waits for is counted by the threads that
do it, which are never interrupted; and locks and queues are those in C, which Ctrl-C cannot leave half taken.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from headspan.errors import StoreError, one_line
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
    """What is still to be done for one file, in order. A thread has it, or will have it, while it is `queued`."""

    waiting: deque[tuple[Callable[[], None], HandedBatch | None]] = field(default_factory=deque)
    queued: bool = False


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread. Raises StoreError if the system refuses."""
    # Whoever needs the thread's work waits for it; the end of the process need not.
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            # It arrived while `start` took a lock again; the error is only that this lock is not taken.
            raise error.__context__ from None
        raise StoreError(
            f"a thread that writes the store cannot be started ({one_line(error)}); give fewer --workers, or raise the "
            "limit on processes (ulimit -u)"
        ) from error
    return thread


class WritingThreads:
    """The threads of one store's writer. They live while a unit or a `with` block holds them."""

    def __init__(self) -> None:
        # Taken by itself: Ctrl-C could leave a condition's lock taken.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        # Bytes of handed batches that are not yet written.
        self.waiting_bytes = 0
        # A set, so that a second release changes nothing.
        self._holders: set[object] = set()
        # Threads that commit a unit each.
        self._committing: list[threading.Thread] = []
        self._pool: _Pool | None = None

    def hold(self, holder: object) -> None:
        """Keep the threads until `release`. Raises StoreError if no thread can be started."""
        with self.lock:
            self._pool = self._pool or _Pool()
            self._holders.add(holder)

    def release(self, holder: object) -> None:
        """End the threads if nobody else holds them."""
        with self.lock:
            self._holders.discard(holder)
            ended = None if self._holders else self._pool
            if ended is not None:
                self._pool = None
        if ended is not None:
            ended.end()

    def __enter__(self) -> WritingThreads:
        self.hold(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until the units that are being committed have been committed, or have failed, and end the threads."""
        with self.lock:
            committing = list(self._committing)
        for thread in committing:
            thread.join()
        with self.lock:
            # Only a unit that was interrupted while it began or ended can still be among them.
            self._holders.clear()
        self.release(self)

    def wait_for_me(self) -> None:
        """Let the end of the `with` block wait for the thread that calls this."""
        with self.lock:
            others = [thread for thread in self._committing if thread.is_alive()]
            self._committing = [*others, threading.current_thread()]

    def start(self, work: Callable[[], None]) -> None:
        """Let a thread do `work`."""
        assert self._pool is not None, "a unit holds the threads"
        self._pool.works.put(work)


class _Pool:
    """As many writing threads as the system grants, up to `writing_threads()`. Raises StoreError if it grants none."""

    def __init__(self) -> None:
        # None ends the threads.
        self.works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        try:
            for number in range(writing_threads()):
                self._threads.append(start_thread(self._work, f"headspan-write-{number}"))
        except StoreError:
            if not self._threads:
                raise
        except BaseException:
            self.works.put(None)
            raise

    def end(self) -> None:
        """Wait until the works that were begun or wait are done, and end the threads."""
        self.works.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (work := self.works.get()) is not None:
            work()
            # What it holds is free while the thread waits.
            del work
        # For the next thread.
        self.works.put(None)


class UnitTasks:
    """The tasks of one unit's files."""

    def __init__(self, threads: WritingThreads, times: StageTimes) -> None:
        self._threads = threads
        self._times = times
        # How many tasks are not yet done, and how many a thread is doing.
        self._left = self._doing = 0
        self._failure: BaseException | None = None

    def add(self, file: FileTasks, work: Callable[[], None], batch: HandedBatch | None = None) -> None:
        """Do `work` after the earlier tasks of its file; `batch` is what holds the memory that it reads."""
        with self._threads.lock:
            self._left += 1
            if batch is not None:
                self._threads.waiting_bytes += 0 if batch.tasks else batch.size_bytes
                batch.tasks += 1
            file.waiting.append((work, batch))
            if not file.queued:
                self._threads.start(lambda: self._run(file))
                file.queued = True

    def wait_for_earlier(self, batch: HandedBatch) -> None:
        """Wait until few enough bytes wait, not counting those of `batch`. Raises what a task raised."""
        with self._threads.lock:
            self._threads.changed.wait_for(
                lambda: (
                    self._failure is not None
                    or self._threads.waiting_bytes - (batch.size_bytes if batch.tasks else 0) <= WAITING_BYTES
                )
            )
            self._raise()

    def wait(self) -> None:
        """Wait until all tasks are done. Raises what a task raised."""
        with self._threads.lock:
            self._threads.changed.wait_for(lambda: not self._left)
            self._raise()

    def stop(self, failure: BaseException) -> None:
        """Let the threads drop the tasks that wait, and wait for those that are being done."""
        with self._threads.lock:
            self._failure = self._failure or failure
            # Not for all that are left: `add` may have been interrupted after it counted one.
            self._threads.changed.wait_for(lambda: not self._doing)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self, file: FileTasks) -> None:
        while True:
            with self._threads.lock:
                if not file.waiting:
                    file.queued = False
                    return
                work, batch = file.waiting.popleft()
                dropped = self._failure is not None
                self._doing += 1
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
            with self._threads.lock:
                self._failure = self._failure or failure
                self._doing -= 1
                self._left -= 1
                if batch is not None:
                    batch.tasks -= 1
                    self._threads.waiting_bytes -= 0 if batch.tasks else batch.size_bytes
                self._threads.changed.notify_all()
