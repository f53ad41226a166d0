"""Reserve units, and the end of the run, for one worker: an object for each that only one of several workers can write.

If a reservation exists, the worker that it names is looked up. If that worker is dead, what it reserved is taken over
by writing the reservation of the next turn, which again only one worker can do. Reservations of the dead stay until
their unit is committed, so that no turn is given twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from headspan.io.local import LocalStorage
from headspan.io.locks import reserve
from headspan.io.storage import Storage
from headspan.store.worker_states import OtherWorker, reservation_key, worker_of

# More than enough to write eight bytes.
_MOMENT_SECONDS = 0.05


class Reservations:
    """What one worker has reserved, by name."""

    def __init__(self, storage: Storage, token: str) -> None:
        self._storage, self._token = storage, token
        self._turns: dict[str, int] = {}

    def take(self, name: str, lives: Callable[[OtherWorker], bool] = lambda worker: worker.alive) -> OtherWorker | None:
        """Reserve `name`, after the dead that reserved it. Returns the worker that has reserved it and `lives`, if any.

        What the dead have reserved is taken over.
        """
        turn = 0
        while not self.take_turn(name, turn):
            try:
                worker = self.holder(name, turn)
            except FileNotFoundError:
                # It was released meanwhile.
                continue
            if worker is not None and worker.token == self._token:
                # The answer to an earlier request was lost.
                self._turns[name] = turn
                break
            if worker is not None and lives(worker):
                return worker
            turn += 1
        return None

    def holder(self, name: str, turn: int) -> OtherWorker | None:
        """Return the worker that has reserved a turn of `name`; None if nothing is known of that worker.

        Raises FileNotFoundError if nobody has.
        """
        key = reservation_key(name, turn)
        holder = self._storage.get(key)
        if not holder:
            # In a local folder it may be written in this moment, or its writer was killed then.
            time.sleep(_MOMENT_SECONDS)
            holder = self._storage.get(key)
        return worker_of(self._storage, holder.decode(errors="replace"))

    def take_turn(self, name: str, turn: int = 0) -> bool:
        """Reserve one turn of `name`: one request. Returns False if another worker has that turn, dead or alive."""
        key, token = reservation_key(name, turn), self._token.encode()
        if isinstance(self._storage, LocalStorage):
            # Without waiting for the disk: if the power fails, no worker is left that could hold it.
            mine = reserve(self._storage.root / key, token)
        else:
            mine = self._storage.put_if_absent(key, token)
        if mine:
            self._turns[name] = turn
        return mine

    def release(self, name: str) -> None:
        """Delete this worker's reservation of `name`, if it has one."""
        turn = self._turns.pop(name, None)
        if turn is not None:
            self._storage.delete(reservation_key(name, turn))

    def release_all(self) -> None:
        """Delete all reservations of this worker."""
        for name in list(self._turns):
            self.release(name)
