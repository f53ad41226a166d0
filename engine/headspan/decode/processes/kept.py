"""The decoding processes of a run, started while its model is loaded, and kept from one pass over spans to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import numpy as np

from headspan.decode.processes.messages import WorkerSettings
from headspan.decode.processes.pool import Pool, end_all
from headspan.decode.processes.ring import Ring
from headspan.decode.processes.worker_process import Worker
from headspan.io.memory import close_file, memory_file, reserve

# Registers memory for fast transfers to a device; returns what undoes it.
Pin = Callable[[np.ndarray], Callable[[], None]]


class DecodingProcesses:
    """Decoding processes and the memory that they fill; a context manager that ends them."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._early: list[Worker] = []
        self._early_ring = -1
        self._pool: Pool | None = None
        self._ring: Ring | None = None
        # The slots that the consumer of the last pass has not released yet.
        self._lent: Mapping[int, int] = {}
        self._open = ExitStack()

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
        self._early_ring = memory_file()
        for number in range(self.workers):
            self._early.append(Worker(number, self._early_ring))
            self._early[-1].start(route)

    def begin(self, settings: WorkerSettings, pin: Pin | None) -> tuple[Pool, Ring]:
        """Begin a pass over spans; all passes of a run have the same `settings`.

        Raises HeadspanError if memory or processes cannot be had.
        """
        if self._pool is None or self._ring is None or self._lent:
            self._open_pool(settings, pin)
        assert self._pool is not None
        assert self._ring is not None
        self._pool.begin()
        return self._pool, self._ring

    def end(self, lent: Mapping[int, int]) -> None:
        """End a pass over all of its spans; `lent` holds the slots that its consumer has yet to release."""
        self._lent = lent

    def close(self) -> None:
        """End the processes. A pass that begins afterwards starts new ones."""
        end_all(self._early)
        self._early.clear()
        if self._early_ring >= 0:
            close_file(self._early_ring)
        self._early_ring = -1
        self._pool = self._ring = None
        self._lent = {}
        self._open.close()

    def _open_pool(self, settings: WorkerSettings, pin: Pin | None) -> None:
        workers, descriptor = self._early, self._early_ring
        self._early, self._early_ring = [], -1
        self._open.close()
        if not workers:
            descriptor = memory_file()
            workers = [Worker(number, descriptor) for number in range(settings.workers)]
        with ExitStack() as stack:
            stack.callback(close_file, descriptor)
            try:
                reserve(descriptor, settings.ring_bytes)
                ring = Ring(replace(settings, ring=descriptor))
                if pin:
                    stack.callback(pin(ring.memory))
                pool = Pool(workers, ring)
            except BaseException:
                end_all(workers)
                raise
            stack.callback(pool.close)
            for worker in workers:
                worker.configure(settings)
            self._pool, self._ring = pool, ring
            self._open = stack.pop_all()
