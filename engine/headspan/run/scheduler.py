"""Unit scheduling: unclaimed units first, suspected crashers one at a time, other workers' units last.

A unit is a suspect while it is not committed and was in flight when a worker was killed. Suspects are computed alone,
so that the unit that ends its process is known. A unit that ended TRIES processes while computed alone is quarantined,
and the other units are finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from headspan.shards.samples import Unit
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog, forget, other_workers

TRIES = 3


class Scheduler:
    """Chooses the units of one worker; a context manager, in which the worker's log exists in the store."""

    def __init__(self, store: StoreWriter, only: Iterable[Unit] | None = None) -> None:
        """Choose among all unfinished units; or choose `only` these, finished or not, one at a time."""
        self._store = store
        self._only = None if only is None else list(only)
        self._log = WorkerLog(store.storage, store.token)
        self._claimed_by_others: list[Unit] = []

    def __enter__(self) -> Scheduler:
        self._store.commits.settle_all()
        self._log.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._log.__exit__(kind, *error)

    def passes(self) -> Iterator[Iterator[Unit]]:
        """Passes of units: those of one pass may be in flight together. A unit is chosen when it is asked for."""
        if self._only is not None:
            for unit in self._only:
                self._log.took(unit.index)
                yield iter([unit])
            return
        alone = self._clean_up_after_killed_workers()
        units = self._store.unfinished()
        quarantined = {unit.index for unit in self._store.commits.quarantined_units()}
        yield self._take([unit for unit in units if unit.index not in alone and unit.index not in quarantined])
        suspects = [unit for unit in units if unit.index in alone and unit.index not in quarantined]
        for unit in sorted(suspects, key=lambda unit: alone[unit.index]):
            if alone[unit.index] < TRIES:
                yield self._take([unit])
            elif not self._store.commits.is_done(unit.index):
                self._store.commits.quarantine(unit, alone[unit.index])
        # From the end, so that two workers that have the same units left meet half-way.
        yield self._take(reversed(self._claimed_by_others), even_if_claimed=True)

    def finished(self, unit: Unit) -> None:
        """Write to the log that the unit is committed."""
        self._log.finished(unit.index)

    def _take(self, units: Iterable[Unit], even_if_claimed: bool = False) -> Iterator[Unit]:
        for unit in units:
            if self._store.commits.is_done(unit.index):
                continue
            # Processes that begin at the same time would otherwise all choose the same unit.
            with self._log.alone():
                chosen = even_if_claimed or not self._is_claimed(unit)
                if chosen:
                    self._log.took(unit.index)
            if chosen:
                yield unit
            else:
                self._claimed_by_others.append(unit)

    def _is_claimed(self, unit: Unit) -> bool:
        return any(
            worker.alive and unit.index in worker.in_flight
            for worker in other_workers(self._store.storage, self._store.token)
        )

    def _clean_up_after_killed_workers(self) -> Counter[int]:
        """Delete what killed workers staged; returns the units that they had in flight and did not commit.

        Each unit comes with the number of workers that were killed while it was their only one in flight.
        """
        alone: Counter[int] = Counter()
        for worker in other_workers(self._store.storage, self._store.token):
            if worker.alive:
                continue
            units = [self._store.units[unit] for unit in worker.in_flight]
            for unit in units:
                self._store.drop_staged(unit, worker.token)
            if all(self._store.commits.is_done(unit.index) for unit in units):
                forget(self._store.storage, worker.token)
                continue
            alone.update({unit.index: int(len(units) == 1) for unit in units})
        # Zeros are kept: such a unit is a suspect too. Units that are done are no longer suspects.
        return Counter({unit: count for unit, count in alone.items() if not self._store.commits.is_done(unit)})
