"""What a worker writes about itself: its state, a lease where there are no locks, and a reservation of each unit.

When a worker takes a unit it

1. writes the unit's reservation, which only one of several workers can do;
2. writes its state, which now names the unit, before anything else is done for the unit;
3. deletes the reservation when the unit is committed, and names the unit no longer the next time it writes its state.

So a unit takes three requests, whatever the number of units and workers. If a reservation exists, the worker that it
names is looked up. If that worker is dead, the unit is taken over by writing the reservation of the next turn, which
again only one can do. Reservations of the dead stay until their unit is committed, so that no turn is given twice.

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
from contextlib import suppress
from importlib.metadata import version

from headspan.errors import HeadspanError, StoreError
from headspan.io.local import LocalStorage
from headspan.io.locks import LockedLog, reserve
from headspan.io.storage import Storage
from headspan.store.worker_states import (
    BEAT_SECONDS,
    RECENT_UNITS,
    OtherWorker,
    WorkerState,
    other_workers,
    reservation_key,
    reservations,
    state_key,
    worker_of,
)

__all__ = ["OtherWorker", "WorkerLog", "delete_reservations", "forget", "other_workers"]

# More than enough to write eight bytes.
_MOMENT_SECONDS = 0.05


class WorkerLog:
    """This process's state; a context manager that deletes it unless an unexpected error ends the block."""

    def __init__(self, storage: Storage, token: str, *, device: str = "", weights_sha256: str = "") -> None:
        self._storage, self._token = storage, token
        self.state = WorkerState(platform.node(), os.getpid(), device, version("headspan"), weights_sha256)
        self._lock = LockedLog(storage.root / state_key(storage, token)) if isinstance(storage, LocalStorage) else None
        # The turn of each reservation that this worker holds.
        self._turns: dict[int, int] = {}
        # Seconds of the storage's clock at time 0 of this process's clock, which nobody sets.
        self._clock = 0.0
        # Held while the state is changed and written, so that the last one written is the last one.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> WorkerLog:
        self._clock = self._storage.now() - time.monotonic()
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
                for unit in list(self._turns):
                    self._release(unit)
                if self._lock is None:
                    self._storage.delete(state_key(self._storage, self._token))
        finally:
            if self._lock is not None:
                self._lock.close(delete)

    @property
    def in_flight(self) -> frozenset[int]:
        """The units that this worker has taken and not finished."""
        return frozenset(self.state.units)

    def took(self, unit: int, even_if_reserved: bool = False) -> bool:
        """Take a unit, before anything else is done for it. Returns False if another living worker has it in flight.

        With `even_if_reserved`, the unit is taken in any case.
        """
        if not self._reserve(unit) and not even_if_reserved:
            return False
        with self._writing:
            self.state.units[unit] = self._now()
            self._write()
        return True

    def finished(self, unit: int, rows: int = 0) -> None:
        """Note that the unit is committed, by this process, which computed its `rows`, or by another one (0)."""
        with self._writing:
            self.state.units.pop(unit, None)
            if rows:
                self.state.finished += 1
                self.state.rows += rows
                self.state.recent = [*self.state.recent, (self._now(), rows)][-RECENT_UNITS:]
            # A lease is written with the next unit.
            if self._lock is not None:
                self._write(durably=False)
        self._release(unit)

    def drop(self, unit: int) -> None:
        """Take back `took`: the unit was committed by another worker meanwhile, and is not begun."""
        self.finished(unit)

    def _reserve(self, unit: int) -> bool:
        turn = 0
        while True:
            key = reservation_key(unit, turn)
            if self._put_if_absent(key):
                self._turns[unit] = turn
                return True
            try:
                holder = self._storage.get(key).decode(errors="replace")
            except FileNotFoundError:
                # It was released meanwhile.
                continue
            if not holder:
                # In a local folder it may be written in this moment, or its writer was killed then.
                time.sleep(_MOMENT_SECONDS)
                with suppress(FileNotFoundError):
                    holder = self._storage.get(key).decode(errors="replace")
            if holder == self._token:
                # The answer to an earlier request was lost.
                self._turns[unit] = turn
                return True
            worker = worker_of(self._storage, holder)
            if worker is not None and worker.alive:
                return False
            turn += 1

    def _release(self, unit: int) -> None:
        turn = self._turns.pop(unit, None)
        if turn is not None:
            self._storage.delete(reservation_key(unit, turn))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # If the storage cannot be reached for long, others count this worker as dead, and nothing is lost by that.
            with suppress(StoreError, OSError), self._writing:
                self._write()

    def _put_if_absent(self, key: str) -> bool:
        token = self._token.encode()
        if isinstance(self._storage, LocalStorage):
            # Without waiting for the disk: if the power fails, no worker is left that could hold it.
            return reserve(self._storage.root / key, token)
        return self._storage.put_if_absent(key, token)

    def _write(self, durably: bool = True) -> None:
        if self._lock is not None:
            self._lock.replace(self.state.dump(), durably)
        else:
            self._storage.put(state_key(self._storage, self._token), [self.state.dump().encode()])

    def _now(self) -> float:
        return self._clock + time.monotonic()


def forget(storage: Storage, token: str) -> None:
    """Delete the state of a worker that is dead."""
    storage.delete(state_key(storage, token))


def delete_reservations(storage: Storage) -> None:
    """Delete all reservations, once every unit is committed."""
    for unit, turn in reservations(storage):
        storage.delete(reservation_key(unit, turn))
