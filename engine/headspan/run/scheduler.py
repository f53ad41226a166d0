"""Which unit next: those that nobody has in hand, then the suspects one by one, then those of other writers.

A unit is suspect while it is open and was in hand when a writer was killed. Suspects are done alone, so that the
one that kills is known: after TRIES deaths alone it is set aside, and the others are finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from headspan.shards.samples import Unit
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog, forget, other_workers

TRIES = 3


class Scheduler:
    """The units that are left, for one writer; a context manager, in which its log stands beside the store."""

    def __init__(self, store: StoreWriter, only: Iterable[Unit] | None = None) -> None:
        """All unfinished units; or `only` these, finished or not, each alone."""
        self._store = store
        self._only = None if only is None else list(only)
        self._log = WorkerLog(store.path, store.token)
        self._others: list[Unit] = []

    def __enter__(self) -> Scheduler:
        self._store.commits.settle_all()
        self._log.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._log.__exit__(kind, *error)

    def passes(self) -> Iterator[Iterator[Unit]]:
        """Units that may be in hand together, pass by pass; each is chosen when it is asked for."""
        if self._only is not None:
            for unit in self._only:
                self._log.took(unit.index)
                yield iter([unit])
            return
        alone = self._tidy_after_the_killed()
        units = self._store.unfinished()
        aside = {unit.index for unit in self._store.commits.quarantined_units()}
        yield self._take([unit for unit in units if unit.index not in alone and unit.index not in aside])
        suspects = [unit for unit in units if unit.index in alone and unit.index not in aside]
        for unit in sorted(suspects, key=lambda unit: alone[unit.index]):
            if alone[unit.index] < TRIES:
                yield self._take([unit])
            elif not self._store.commits.is_done(unit.index):
                self._store.commits.quarantine(unit, alone[unit.index])
        # From the end, so that two writers that are left with the same units meet half-way.
        yield self._take(reversed(self._others), whoever=True)

    def finished(self, unit: Unit) -> None:
        """Note that the unit is committed."""
        self._log.finished(unit.index)

    def _take(self, units: Iterable[Unit], whoever: bool = False) -> Iterator[Unit]:
        for unit in units:
            if self._store.commits.is_done(unit.index):
                continue
            if not whoever and any(
                writer.alive and unit.index in writer.in_flight
                for writer in other_workers(self._store.path, self._store.token)
            ):
                self._others.append(unit)
                continue
            self._log.took(unit.index)
            yield unit

    def _tidy_after_the_killed(self) -> Counter[int]:
        """The open units that killed writers had in hand, each with how often it was the only one."""
        alone: Counter[int] = Counter()
        for writer in other_workers(self._store.path, self._store.token):
            if writer.alive:
                continue
            units = [self._store.units[unit] for unit in writer.in_flight]
            for unit in units:
                self._store.drop_staged(unit, writer.token)
            if all(self._store.commits.is_done(unit.index) for unit in units):
                forget(self._store.path, writer.token)
                continue
            alone.update({unit.index: int(len(units) == 1) for unit in units})
        # A Counter keeps zeros; units that are done are no suspects any more.
        return Counter({unit: count for unit, count in alone.items() if not self._store.commits.is_done(unit)})
