"""Simulate a run: workers whose encoder does nothing take turns in one process, by a clock of the simulation."""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.counted_bucket import Bucket
from headspan.io.storage import Storage
from headspan.run.scheduler import Pause, Scheduler
from headspan.shards.samples import Unit
from headspan.store.commit_records import Files, UnitRecord
from headspan.store.moments_file import MergedMoments
from headspan.store.worker_states import BEAT_SECONDS
from headspan.store.write.commits import Commits
from headspan.store.write.unit import StoreWriter

_PARTS = 10
# By the simulation's clock: a unit takes 15 to 30 seconds.
_UNIT_SECONDS = (15.0, 30.0)
MOMENTS = MergedMoments(1, np.ones((1, 1, 4)), np.ones((1, 1, 4, 4)))


# Adding up the moments of all units takes so many times the interval in which a worker shows that it is alive.
_FINISHING_BEATS = 3


class SimulatedStore(StoreWriter):
    """A store without arrays, whose units are given."""

    def __init__(self, storage: Storage, planned: list[Unit]) -> None:
        self.storage, self.units, self.path = storage, planned, Path("simulated")
        self.token = storage.token
        self.attributes = {"weights_sha256": "0"}
        self.commits = Commits(storage, len(planned))
        # Called while the moments are added up.
        self.meanwhile: Callable[[], None] = lambda: None

    def write_moments(self) -> Files:
        """Add the moments of all units; there are no arrays to write."""
        moments, files = self.commits.merged()
        self.meanwhile()
        assert moments.count == len(self.units) * MOMENTS.count, "every unit is added once"
        return files


class _Run:
    """Workers that take turns: each event is the moment when one of them finishes its unit or has waited."""

    def __init__(self, planned: list[Unit], storages: Sequence[Storage], bucket: Bucket | None) -> None:
        self._bucket, self._draw = bucket, random.Random(0)
        self.units = len(planned)
        self._stores = [SimulatedStore(storage, planned) for storage in storages]
        self._schedulers = [Scheduler(store, clock=self._seconds) for store in self._stores]
        began = time.process_time()
        for scheduler in self._schedulers:
            scheduler.__enter__()
        self.start = {"requests": self._requests(), "seconds": time.process_time() - began}
        self._streams = [steps_of(scheduler) for scheduler in self._schedulers]
        for place, store in enumerate(self._stores):
            store.meanwhile = partial(self._finishing, place)
        # The moment, the worker, and the unit that it finishes then, if it does.
        self._events: list[tuple[float, int, Unit | None]] = [
            (self._draw.random(), place, None) for place in range(len(self._stores))
        ]
        heapq.heapify(self._events)
        self._now = 0.0
        self._in_flight: Counter[int] = Counter()
        # Since the last part ended: seconds and requests of choosing and of committing.
        self._seconds_of: dict[str, float] = dict.fromkeys(("choosing", "committing", "ending"), 0.0)
        self._requests_of = Counter[str]()
        self.parts: list[dict[str, float]] = []
        self.computed = self.committed = self.twice = self.finished = 0

    def go_on(self, until: float = math.inf) -> None:
        """Carry out the events until a moment; all without one."""
        while self._events and self._events[0][0] <= until:
            self._now, place, unit = heapq.heappop(self._events)
            self._set_clock(self._now)
            if unit is not None:
                with self._counted("committing"):
                    record = UnitRecord(unit.index, unit.first_row, unit.rows, unit.rows, {}, [])
                    mine = self._stores[place].commits.add(record, MOMENTS)
                    self._schedulers[place].finished(unit, mine)
                self.committed += mine
                self.computed += 1
                self._in_flight[unit.index] -= 1
                if self.committed * _PARTS >= self.units * (len(self.parts) + 1):
                    self.parts.append(self._part(self.units / _PARTS))
            with self._counted("choosing"):
                step = next(self._streams[place], None)
            if isinstance(step, Pause):
                heapq.heappush(self._events, (self._now + step.seconds, place, None))
            elif step is not None:
                self.twice += self._in_flight[step.index] > 0
                self._in_flight[step.index] += 1
                heapq.heappush(self._events, (self._now + self._draw.uniform(*_UNIT_SECONDS), place, step))

    def end(self) -> dict[str, float]:
        """What was needed after the last unit was committed: waiting, completing the store, and ending."""
        with self._counted("ending"):
            for scheduler in self._schedulers:
                scheduler.__exit__(None)
        return {"requests": self._requests_of.total(), "seconds": sum(self._seconds_of.values())}

    def _finishing(self, place: int) -> None:
        """Let the others go on while one adds up the moments, and shows that it is alive."""
        self.finished += 1
        for _ in range(_FINISHING_BEATS):
            now = self._now + BEAT_SECONDS
            self.go_on(now)
            self._now = now
            self._set_clock(now)
            self._schedulers[place].beat()

    def _part(self, units: float) -> dict[str, float]:
        kinds = ("choosing", "committing")
        part = {f"{what}_ms": 1e3 * self._seconds_of[what] / units for what in kinds}
        part |= {f"{what}_requests": self._requests_of[what] / units for what in kinds}
        self._seconds_of = dict.fromkeys(self._seconds_of, 0.0)
        self._requests_of.clear()
        return part

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        began, before = time.process_time(), self._requests()
        counted = self._requests_of.total(), sum(self._seconds_of.values())
        yield
        # But what others did meanwhile is counted already.
        self._requests_of[what] += self._requests() - before - (self._requests_of.total() - counted[0])
        self._seconds_of[what] += time.process_time() - began - (sum(self._seconds_of.values()) - counted[1])

    def _requests(self) -> int:
        return self._bucket.requests.total() if self._bucket is not None else 0

    def _seconds(self) -> float:
        return time.monotonic() if self._bucket is None else self._bucket.seconds

    def _set_clock(self, seconds: float) -> None:
        if self._bucket is not None:
            self._bucket.seconds = seconds


def simulate(planned: list[Unit], storages: Sequence[Storage], bucket: Bucket | None) -> dict[str, Any]:
    """Let a worker for each of `storages` compute the units together; returns what each tenth of the units cost."""
    run = _Run(planned, storages, bucket)
    run.go_on()
    assert run.committed == len(planned), "every unit is committed once"
    assert run.finished == 1, "one worker completes the store"
    return {
        "units": len(planned),
        "workers": len(storages),
        "tenths": run.parts,
        # Of all workers together: before their first unit, and after the last unit was committed.
        "start": run.start,
        "end": run.end(),
        "computed_twice": run.computed - len(planned),
        "in_flight_twice": run.twice,
    }


def steps_of(scheduler: Scheduler) -> Iterator[Unit | Pause]:
    """The units of all passes, and the moments when the worker waits; at the end, the store is completed."""
    for chosen in scheduler.passes():
        if isinstance(chosen, Pause):
            yield chosen
        else:
            yield from chosen
    yield from scheduler.finish()
