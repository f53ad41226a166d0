"""What a worker writes about itself: its state, a lease where there are no locks, and a reservation of each unit.

When a worker takes a unit it

1. writes the unit's reservation, which only one of several workers can do;
2. writes its state, which now names the unit, before anything else is done for the unit;
3. deletes the reservation when the unit is committed, and names the unit no longer the next time it writes its state.

So a unit takes three requests, whatever the number of units and workers. `store.write.reservations` describes how a
unit is taken over from a worker that is dead. A unit that a living worker has had in flight for too long is taken over
in the same way, so that one other worker computes it, and not all that are idle.

In a local folder the state is in a log that the worker locks. Elsewhere a thread writes the state every BEAT_SECONDS,
and a worker whose state is older than DEAD_SECONDS counts as dead. If it lives, it notices nothing: its next state
shows that it is alive. Where two workers have computed a unit, the commit's claim decides which content is discarded.

A worker that ends normally deletes its reservations and then its state. The guarantees of the store do not depend on
any of this.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from headspan.errors import HeadspanError, StoreError
from headspan.io.local import LocalStorage
from headspan.io.locks import LockedLog
from headspan.io.storage import Storage
from headspan.store.worker_states import (
    BEAT_SECONDS,
    END,
    RECENT_UNITS,
    OtherWorker,
    WorkerState,
    state_key,
    unit_name,
)
from headspan.store.write.reservations import Reservations

# Without locks, who completes the store counts as dead after this silence.
_END_SECONDS = 2.5 * BEAT_SECONDS


class WorkerLog:
    """This process's state; a context manager that deletes it unless an unexpected error ends the block."""

    def __init__(
        self,
        storage: Storage,
        token: str,
        *,
        device: str = "",
        weights_sha256: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is written yet. `clock` tells seconds; nobody sets it."""
        self._storage, self._token = storage, token
        self.state = WorkerState(platform.node(), os.getpid(), device, version("headspan"), weights_sha256)
        self._lock = LockedLog(storage.root / state_key(storage, token)) if isinstance(storage, LocalStorage) else None
        self._reserved = Reservations(storage, token)
        # How long the last units were in flight.
        self._seconds: deque[float] = deque(maxlen=RECENT_UNITS)
        # Seconds of the storage's clock at time 0 of this process's clock.
        self._clock, self._offset = clock, 0.0
        # Held while the state is changed and written, so that the last one written is the last one.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> WorkerLog:
        self._offset = self._storage.now() - self._clock()
        self.state.began = self._now()
        if self._lock is not None:
            self._lock.open()
        self._write()
        if self._lock is None:
            self._heart = threading.Thread(target=self._beat, name="headspan-lease", daemon=True)
            self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        # The state stays after an unexpected error, such as a failing device, since the unit may have caused it. It did
        # not cause an interruption or a HeadspanError.
        delete = kind is None or issubclass(kind, HeadspanError | KeyboardInterrupt | GeneratorExit)
        try:
            if delete:
                self._reserved.release_all()
                if self._lock is None:
                    self._storage.delete(state_key(self._storage, self._token))
        finally:
            if self._lock is not None:
                self._lock.close(delete)

    @property
    def in_flight(self) -> frozenset[int]:
        """The units that this worker has taken and not finished."""
        return frozenset(self.state.units)

    @property
    def usual_seconds(self) -> float | None:
        """How long this worker's units are in flight; None before it has finished one."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    def took(self, unit: int, even_if_reserved: bool = False) -> bool:
        """Take a unit, before anything else is done for it. Returns False if another living worker has it in flight.

        With `even_if_reserved`, the unit is taken in any case.
        """
        return (self._reserved.take(unit_name(unit)) is None or even_if_reserved) and self._began(unit)

    def took_turn(self, unit: int, turn: int = 0) -> bool:
        """Take one turn of a unit. Returns False, after one request, if another worker, dead or alive, has that turn.

        Turn 0 is that of a unit which nobody has in flight. The next turn takes it over from whoever has it in flight.
        """
        return self._reserved.take_turn(unit_name(unit), turn) and self._began(unit)

    def is_abandoned(self, unit: int, turn: int) -> bool:
        """Whether a unit is reserved by nobody who is known, or by a process of this computer that has ended."""
        try:
            holder = self._reserved.holder(unit_name(unit), turn)
        except FileNotFoundError:
            return False
        return holder is None or holder.ended_here

    def _began(self, unit: int) -> bool:
        with self._writing:
            self.state.units[unit] = self._now()
            self._write()
        return True

    def finished(self, unit: int, rows: int = 0) -> None:
        """Note that the unit is committed, by this process, which computed its `rows`, or by another one (0)."""
        with self._writing:
            began = self.state.units.pop(unit, None)
            if rows:
                self._seconds.append(self._now() - (began or self._now()))
                self.state.finished += 1
                self.state.rows += rows
                self.state.recent = [*self.state.recent, (self._now(), rows)][-RECENT_UNITS:]
            # A lease is written with the next unit.
            if self._lock is not None:
                self._write(durably=False)
        self._reserved.release(unit_name(unit))

    def drop(self, unit: int) -> None:
        """Take back `took`: the unit was committed by another worker meanwhile, and is not begun."""
        self.finished(unit)

    def take_end(self) -> OtherWorker | None:
        """Reserve the end of the run. Returns the living worker that has reserved it, if there is one.

        Without locks, it counts as dead sooner than a worker that computes: two that complete a store do no harm.
        """
        return self._reserved.take(END, self._completes)

    def release_end(self) -> None:
        """Delete the reservation of the end of the run."""
        self._reserved.release(END)

    def beat(self) -> None:
        """Write the state again, which shows that this worker is alive."""
        with self._writing:
            self._write()

    def _completes(self, worker: OtherWorker) -> bool:
        if self._lock is not None:
            return worker.alive
        return worker.silent_seconds < _END_SECONDS and not worker.ended_here

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # If the storage cannot be reached for long, others count this worker as dead, and nothing is lost by that.
            with suppress(StoreError, OSError):
                self.beat()

    def _write(self, durably: bool = True) -> None:
        if self._lock is not None:
            self._lock.replace(self.state.dump(), durably)
        else:
            self._storage.put(state_key(self._storage, self._token), [self.state.dump().encode()])

    def _now(self) -> float:
        return self._offset + self._clock()


def forget(storage: Storage, token: str) -> None:
    """Delete the state of a worker that is dead."""
    storage.delete(state_key(storage, token))
