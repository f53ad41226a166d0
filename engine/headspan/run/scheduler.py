"""Unit scheduling: unclaimed units first, suspected crashers one at a time, other workers' units last.

A worker goes through groups of 64 units. It begins at a place of its own and prefers groups in which no other worker
is. When there are none, it takes half of what another has left of a group, from the end. Each unit is reserved before
it is begun, so no two living workers compute it at once. The store's folder of records is listed once a group, never
for each unit, and nothing that grows with the finished units is read. At the end, a worker that has nothing left
computes the units that others have in flight, in case they are slow or die.

A unit is a suspect while it is not committed and was in flight when a worker was killed. Suspects are computed alone,
so that the unit that ends its process is known. A unit that ended TRIES processes while computed alone is quarantined,
and the other units are finished.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from headspan.errors import StoreError
from headspan.shards.samples import Unit
from headspan.store.commit_records import group_of, groups_with
from headspan.store.worker_states import OtherWorker, has_locks, other_workers, reservations
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog, forget

TRIES = 3
# A worker without locks that counts as dead may still write. What it has staged is deleted only after this time.
KEPT_SECONDS = 3600.0


class Scheduler:
    """Chooses the units of one worker; a context manager, in which the worker's state exists in the store."""

    def __init__(self, store: StoreWriter, only: Iterable[Unit] | None = None, device: str = "") -> None:
        """Choose among all unfinished units; or choose `only` these, finished or not, one at a time.

        `device` is what `headspan info --watch` shows of the worker.
        """
        self._store = store
        self._only = None if only is None else list(only)
        weights = str(store.attributes.get("weights_sha256", ""))
        self._log = WorkerLog(store.storage, store.token, device=device, weights_sha256=weights)
        self._draw = random.Random(store.token)
        # The group where this worker begins: drawn, so that workers that begin together do not meet.
        self._place = self._draw.randrange(max(1, len(store.commits.groups)))

    def __enter__(self) -> Scheduler:
        self._store.commits.settle_all()
        self._log.__enter__()
        try:
            self._meet_others()
        except BaseException as error:
            self._log.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._log.__exit__(kind, *error)

    def passes(self) -> Iterator[Iterator[Unit]]:
        """Passes of units: those of one pass may be in flight together. A unit is chosen when it is asked for."""
        if self._only is not None:
            for unit in self._only:
                self._log.took(unit.index, even_if_reserved=True)
                yield iter([unit])
            return
        suspects = dict(self._suspects())
        apart = {unit.index for unit in self._store.commits.quarantined_units()} | set(suspects)
        yield self._free_units(apart)
        # Again, since workers may have been killed meanwhile.
        suspects.update(self._suspects())
        quarantined = {unit.index for unit in self._store.commits.quarantined_units()}
        for index in sorted(suspects, key=lambda unit: (suspects[unit], unit)):
            unit = self._store.units[index]
            if index in quarantined or index in self._log.in_flight or self._store.commits.is_done(index):
                continue
            if suspects[index] >= TRIES:
                self._store.commits.quarantine(unit, suspects[index])
                quarantined.add(index)
            else:
                yield self._taken([unit])
        # From the end, so that two workers that have the same units left meet half-way.
        yield self._taken(self._left(quarantined), even_if_reserved=True)

    def finished(self, unit: Unit, mine: bool = True) -> None:
        """Note that the unit is committed, by this worker if it is `mine`."""
        self._log.finished(unit.index, unit.rows if mine else 0)

    def _free_units(self, apart: set[int]) -> Iterator[Unit]:
        """The units that no worker has begun, but those of `apart`, by groups."""
        while chosen := self._next_units(apart):
            yield from self._taken([self._store.units[index] for index in chosen])

    def _taken(self, units: Iterable[Unit], even_if_reserved: bool = False) -> Iterator[Unit]:
        """Those of `units` that can be taken and are not committed."""
        for unit in units:
            if even_if_reserved and self._store.commits.is_done(unit.index):
                continue
            if self._log.took(unit.index, even_if_reserved):
                # Another worker may have committed it before it was reserved.
                if self._store.commits.is_done(unit.index):
                    self._log.drop(unit.index)
                else:
                    yield unit

    def _next_units(self, apart: set[int]) -> Sequence[int]:
        """The units of the next group in their order; or of a group with other workers, the last half of what is left.

        Two listings. Empty if no unit is left that is neither done, begun nor in `apart`.
        """
        commits = self._store.commits
        begun = {unit for unit, _ in reservations(self._store.storage)}
        free = ~commits.done()
        free[list(begun | apart | self._log.in_flight)] = False
        left = groups_with(free)
        if not len(left):
            return []
        # From this worker's place on, and then from the beginning.
        left = np.roll(left, -int(np.searchsorted(left, self._place)))
        occupied = {group_of(unit) for unit in begun - apart - self._log.in_flight}
        alone = next((group for group in left.tolist() if group not in occupied), None)
        group = self._draw.choice(left.tolist()) if alone is None else alone
        self._place = group
        units = [unit for unit in commits.units_of(group) if free[unit]]
        return units if alone is not None else units[len(units) // 2 :][::-1]

    def _left(self, quarantined: set[int]) -> Iterator[Unit]:
        left = np.flatnonzero(~self._store.commits.done())[::-1].tolist()
        return (self._store.units[unit] for unit in left if unit not in quarantined and unit not in self._log.in_flight)

    def _suspects(self) -> Counter[int]:
        """The units that killed workers had in flight and did not commit; deletes what those workers staged.

        Each unit comes with the number of workers that were killed while it was their only one in flight; zeros count.
        """
        suspects: Counter[int] = Counter()
        for worker in self._others():
            if worker.alive:
                continue
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

    def _others(self) -> Iterator[OtherWorker]:
        return other_workers(self._store.storage, self._store.token)

    def _meet_others(self) -> None:
        """Begin with the first group if no other worker is alive.

        Raises StoreError if a living worker that began before this one has another version or other weights.
        """
        mine, others = self._log.state, list(self._others())
        if not any(worker.alive for worker in others):
            self._place = 0
        for worker in others:
            other = worker.state
            if other is None or not worker.alive or (other.began, worker.token) > (mine.began, self._store.token):
                continue
            for what, theirs, own in (
                ("headspan", other.version, mine.version),
                ("the image tower sha256", other.weights_sha256[:12], mine.weights_sha256[:12]),
            ):
                if theirs and own and theirs != own:
                    raise StoreError(
                        f"{self._store.path}: {other.name} computes this store with {what} {theirs}, but this process "
                        f"has {own}; use the same on all machines, or wait until that process ends"
                    )
