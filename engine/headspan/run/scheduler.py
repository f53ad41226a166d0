"""Unit scheduling: unclaimed units first, suspected crashers one at a time, other workers' late units last.

A worker goes through groups of 64 units. It begins at a place of its own and prefers groups in which no other worker
is. When there are none, it takes half of what others have left of a group. Each unit is reserved before it is begun,
so no two living workers compute it at once. The store's folder of records is listed once a group, never for each unit,
and nothing that grows with the finished units is read; of other workers, only the dead are.

At the end, a worker that has nothing left waits for the units that others have in flight. It computes a unit that
takes much longer than its own did, in case the other worker is slow or hangs. One worker completes the store.

A unit is a suspect while it is not committed and was in flight when a worker was killed. Suspects are computed alone,
so that the unit that ends its process is known. A unit that ended TRIES processes while computed alone is quarantined,
and the other units are finished.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headspan.errors import StoreError
from headspan.shards.samples import Unit
from headspan.store.commit_records import group_of, groups_with
from headspan.store.worker_states import (
    BEAT_SECONDS,
    OtherWorker,
    Seen,
    delete_reservations,
    has_locks,
    look,
    other_workers,
)
from headspan.store.write.same_run import unlike
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog, forget

TRIES = 3
# A worker without locks that counts as dead may still write. What it has staged is deleted only after this time.
KEPT_SECONDS = 3600.0
# A unit is late after so many times the seconds that this worker's units take; after LATE_SECONDS, if it has had none.
LATE_TIMES, LATE_SECONDS = 2.0, 60.0
# The least and the most seconds between two looks at the units that others have in flight.
_LOOK_SECONDS = (0.05, 10.0)
# After so many units that others were quicker to take, the units to take are chosen anew.
_MISSES = 3
# A worker that has computed nothing looks whose the last units are, if there are so few.
_FEW = 16


@dataclass(frozen=True, slots=True)
class Pause:
    """What a scheduler yields when other workers must be waited for: the caller waits, then asks again."""

    seconds: float


class Scheduler:
    """Chooses the units of one worker; a context manager, in which the worker's state exists in the store."""

    def __init__(
        self,
        store: StoreWriter,
        only: Iterable[Unit] | None = None,
        device: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Choose among all unfinished units; or choose `only` these, finished or not, one at a time.

        `device` is what `headspan info --watch` shows of the worker. `clock` tells seconds.
        """
        self._store = store
        self._only = None if only is None else list(only)
        weights = str(store.attributes.get("weights_sha256", ""))
        self._log = WorkerLog(store.storage, store.token, device=device, weights_sha256=weights, clock=clock)
        self._draw = random.Random(store.token)
        # The living worker that completes the store, in words, if it is not this one.
        self.completed_by = ""
        # The dead workers whose units are known as suspects.
        self._dead: set[str] = set()
        # The group where this worker begins: drawn, so that workers that begin together do not meet.
        self._place = self._draw.randrange(max(1, len(store.commits.groups)))

    def __enter__(self) -> Scheduler:
        self._store.commits.settle_all()
        self._log.__enter__()
        try:
            seen = look(self._store.storage)
            # Begin with the first group if no other worker is alive.
            if not any(worker.alive for worker in self._others(seen)):
                self._place = 0
            self._refuse_unlike(seen)
        except BaseException as error:
            self._log.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._log.__exit__(kind, *error)

    def passes(self) -> Iterator[Iterator[Unit] | Pause]:
        """Passes of units: those of one pass may be in flight together. A unit is chosen when it is asked for."""
        if self._only is not None:
            for unit in self._only:
                self._log.took(unit.index, even_if_reserved=True)
                yield iter([unit])
            return
        while True:
            yield self._free_units(self._quarantined() | set(self._suspects()))
            # Again, since workers may have been killed meanwhile.
            suspects, quarantined = self._suspects(), self._quarantined()
            for index in sorted(suspects, key=lambda unit: (suspects[unit], unit)):
                unit = self._store.units[index]
                if index in quarantined or index in self._log.in_flight or self._store.commits.is_done(index):
                    continue
                if suspects[index] >= TRIES:
                    self._store.commits.quarantine(unit, suspects[index])
                    quarantined.add(index)
                else:
                    yield self._taken([unit])
            if (yield from self._waits_for_others(quarantined)):
                return
            yield self._pause

    def finished(self, unit: Unit, mine: bool = True) -> None:
        """Note that the unit is committed, by this worker if it is `mine`."""
        self._log.finished(unit.index, unit.rows if mine else 0)

    def beat(self) -> None:
        """Show that this worker is alive; without locks, a thread does so in a run."""
        self._log.beat()

    def finish(self) -> Iterator[Pause]:
        """Complete the store if all units are committed, unless another living worker does; `completed_by` names it.

        Without locks, a worker is known to live once it has written its state again.
        """
        if self._store.unfinished():
            return
        written: float | None = None
        while not self._store.commits.complete:
            if (other := self._log.take_end()) is None:
                try:
                    self._store.finish()
                finally:
                    self._log.release_end()
                return
            now = self._store.storage.now() - other.silent_seconds
            if has_locks(self._store.storage) or (written is not None and now > written + BEAT_SECONDS / 2):
                self.completed_by = other.state.name if other.state else "another process"
                return
            written = now if written is None else written
            yield Pause(BEAT_SECONDS / 4)
        # What this worker has noted of the run may have come after the store was completed.
        delete_reservations(self._store.storage)

    def _free_units(self, apart: set[int]) -> Iterator[Unit]:
        """The units that no worker has begun, but those of `apart`, by groups."""
        while chosen := self._next_units(apart):
            misses = 0
            for unit in chosen:
                if not self._log.took_turn(unit):
                    misses += 1
                elif self._store.commits.is_done(unit):
                    # Another worker is in this group too, and has done more of these units by now.
                    self._log.drop(unit)
                    break
                else:
                    misses = 0
                    yield self._store.units[unit]
                if misses == _MISSES:
                    break

    def _taken(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """Those of `units` that can be taken and are not committed."""
        return self._not_done(unit.index for unit in units if self._log.took(unit.index))

    def _taken_over(self, units: Sequence[int], seen: Seen) -> Iterator[Unit]:
        """Those of `units` that this worker is the first to take over."""
        return self._not_done(unit for unit in units if self._log.took_turn(unit, seen.begun[unit][0] + 1))

    def _not_done(self, taken: Iterable[int]) -> Iterator[Unit]:
        for unit in taken:
            # Another worker may have committed it before it was reserved.
            if self._store.commits.is_done(unit):
                self._log.drop(unit)
            else:
                yield self._store.units[unit]

    def _next_units(self, apart: set[int]) -> Sequence[int]:
        """The units of the next group in their order; or of a group with other workers, the last half of what is left.

        Two listings. Empty if no unit is left that is neither done, begun nor in `apart`.
        """
        commits = self._store.commits
        begun = look(self._store.storage).begun.keys()
        free = ~commits.done()
        free[list(begun | apart | self._log.in_flight)] = False
        left = groups_with(free)
        if not len(left):
            return []
        # From this worker's place on, and then from the beginning.
        left = np.roll(left, -int(np.searchsorted(left, self._place)))
        occupied = {group_of(unit) for unit in begun - apart - self._log.in_flight}
        alone = next((group for group in left.tolist() if group not in occupied), None)
        if alone is not None:
            self._place = alone
            return [unit for unit in commits.units_of(alone) if free[unit]]
        # From a drawn place on, so that the many workers that share the last groups do not all choose the same units.
        group = group_of(self._draw.choice(np.flatnonzero(free).tolist()))
        self._place = group
        units = [unit for unit in commits.units_of(group) if free[unit]]
        units = units[len(units) // 2 :]
        first = self._draw.randrange(len(units))
        return units[first:] + units[:first]

    def _waits_for_others(self, quarantined: set[int]) -> Generator[Iterator[Unit] | Pause, None, bool]:
        """Wait until every unit is committed that others have in flight, and compute those that are late.

        Returns whether every unit is committed; otherwise units have become free, or a worker has died.
        """
        dead, begun, left = self._dead, None, list[int]()
        while True:
            seen = look(self._store.storage)
            if begun != seen.begun.keys():
                begun, left = seen.begun.keys(), self._left(quarantined)
            if not left:
                return True
            deaths = {worker.token for worker in self._others(seen) if not worker.alive} - dead
            if deaths or any(unit not in seen.begun for unit in left):
                return False
            usual = self._log.usual_seconds
            # Of few units, those of a process that was killed here a moment ago need not be waited for.
            late = left if usual is None and len(left) <= _FEW else []
            late = [unit for unit in late if self._log.is_abandoned(unit, seen.begun[unit][0])]
            limit = LATE_SECONDS if usual is None else max(LATE_TIMES * usual, _LOOK_SECONDS[0])
            # From the end, which other workers reach last.
            late = late or [unit for unit in left[::-1] if seen.now - seen.begun[unit][1] > limit]
            if late:
                yield self._taken_over(late, seen)
                begun = None
            else:
                yield self._pause

    @property
    def _pause(self) -> Pause:
        usual = self._log.usual_seconds
        least, most = _LOOK_SECONDS
        return Pause(1.0 if usual is None else min(max(usual / 4, least), most))

    def _left(self, quarantined: set[int]) -> list[int]:
        apart = quarantined | self._log.in_flight
        return [unit for unit in np.flatnonzero(~self._store.commits.done()).tolist() if unit not in apart]

    def _quarantined(self) -> set[int]:
        return {unit.index for unit in self._store.commits.quarantined_units()}

    def _suspects(self) -> Counter[int]:
        """The units that killed workers had in flight and did not commit; deletes what those workers staged.

        Each unit comes with the number of workers that were killed while it was their only one in flight; zeros count.
        """
        suspects: Counter[int] = Counter()
        for worker in self._others(look(self._store.storage)):
            if worker.alive:
                continue
            self._dead.add(worker.token)
            units = [self._store.units[unit] for unit in worker.in_flight]
            for unit in units:
                # It may have claimed the unit. Then its staged files are the unit's, and are published, not deleted.
                self._store.commits.settle(unit.index)
            undone = [unit for unit in units if not self._store.commits.is_done(unit.index)]
            if has_locks(self._store.storage) or worker.silent_seconds > KEPT_SECONDS:
                for unit in units:
                    self._store.drop_staged(unit, worker.token)
            if not undone:
                forget(self._store.storage, worker.token)
            suspects.update({unit.index: int(len(units) == 1) for unit in undone})
        return suspects

    def _others(self, seen: Seen) -> Iterator[OtherWorker]:
        return other_workers(self._store.storage, self._store.token, seen, states=False)

    def _refuse_unlike(self, seen: Seen) -> None:
        """Raise StoreError if a living worker of this run has another version or other weights."""
        difference = unlike(self._store.storage, self._store.token, self._log.state, seen, begins=self._only is None)
        if difference is not None:
            raise StoreError(
                f"{self._store.path}: {difference}; use the same on all machines, or wait until that process ends"
            )
