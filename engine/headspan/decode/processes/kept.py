"""The decoding processes of a run, started while its model is loaded, and kept from one pass over spans to the next.

A pass runs in a thread that may still work when the run ends, as when a source hangs. Only that thread closes the files
of its pass: a number that is closed may become another file's while the thread writes to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import numpy as np

from headspan.decode.processes.messages import WorkerSettings
from headspan.decode.processes.pool import Pool, end_all
from headspan.decode.processes.ring import Ring
from headspan.decode.processes.worker_process import FILES, Worker
from headspan.io.memory import allow_open_files, close_file, memory_file, reserve

# Registers memory for fast transfers to a device; returns what undoes it.
Pin = Callable[[np.ndarray], Callable[[], None]]


class DecodingProcesses:
    """Decoding processes and the memory that they fill; a context manager that ends them.

    One thread runs a pass over spans, from `begin` to `end` or `abandon`. The consumer of the passes opens and closes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._workers: list[Worker] = []
        self._ring_file = -1
        self._pool: Pool | None = None
        self._ring: Ring | None = None
        # The slots that the consumer of the last pass has not released yet.
        self._lent: Mapping[int, int] = {}
        # Ends the processes and closes their files.
        self._open = ExitStack()
        # Undoes what was pinned. Until `close`, the consumer may begin transfers from it.
        self._pinned = ExitStack()
        # Guards the flags, and what two threads may take to end it.
        self._lock = threading.Lock()
        self._closed = self._passing = False

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_early(self, route: str) -> None:
        """Start the processes before a run has settings for them; they import what `route` needs.

        Raises HeadspanError if they cannot be started.
        """
        self._make_workers(self.workers)
        for worker in self._workers:
            worker.start(route)

    def begin(self, settings: WorkerSettings, pin: Pin | None) -> tuple[Pool, Ring]:
        """Begin a pass over spans; all passes of a run have the same `settings`.

        Raises HeadspanError if memory or processes cannot be had, and RuntimeError after `close`. The pass must then be
        abandoned.
        """
        with self._lock:
            self._refuse_if_closed()
            assert not self._passing, "one pass at a time"
            self._passing = True
        if self._pool is None or self._ring is None or self._lent:
            self._open_pool(settings, pin)
        assert self._pool is not None
        assert self._ring is not None
        self._pool.begin()
        with self._lock:
            self._refuse_if_closed()
        return self._pool, self._ring

    def end(self, lent: Mapping[int, int]) -> None:
        """End a pass over all of its spans; `lent` holds the slots that its consumer has yet to release."""
        self._lent = lent
        with self._lock:
            closed = self._closed
            # A pass that outlived the run is ended by `abandon`.
            self._passing = closed
        if closed:
            self.abandon()

    def abandon(self) -> None:
        """End a pass and its processes. The next pass starts others."""
        self._end_processes()
        with self._lock:
            self._passing = False
            closed = self._closed
        if closed:
            self._unpin()

    def close(self) -> None:
        """End the processes for good. The consumer may begin no transfers afterwards.

        During a pass, its processes are killed, and its thread does the rest when it ends the pass.
        """
        with self._lock:
            self._closed, passing = True, self._passing
        if not passing:
            self._end_processes()
        elif self._pool is not None:
            self._pool.stop()
        else:
            for worker in list(self._workers):
                worker.kill()
        self._unpin()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the decoding processes were closed before this pass over spans began")

    def _end_processes(self) -> None:
        with self._lock:
            opened, self._open = self._open, ExitStack()
            self._workers, self._ring_file, self._pool, self._ring, self._lent = [], -1, None, None, {}
        opened.close()

    def _unpin(self) -> None:
        with self._lock:
            pinned, self._pinned = self._pinned, ExitStack()
        pinned.close()

    def _make_workers(self, count: int) -> None:
        allow_open_files(1 + count * FILES)
        self._ring_file = memory_file()
        self._open.callback(close_file, self._ring_file)
        self._open.callback(end_all, self._workers)
        for number in range(count):
            self._workers.append(Worker(number, self._ring_file))

    def _open_pool(self, settings: WorkerSettings, pin: Pin | None) -> None:
        if self._pool is not None:
            self._end_processes()
        if not self._workers:
            self._make_workers(settings.workers)
        reserve(self._ring_file, settings.ring_bytes)
        ring = Ring(replace(settings, ring=self._ring_file))
        if pin:
            unpin = pin(ring.memory)
            with self._lock:
                self._pinned.callback(unpin)
        pool = Pool(self._workers, ring)
        self._open.callback(pool.close)
        for worker in self._workers:
            worker.configure(settings)
        self._pool, self._ring = pool, ring
