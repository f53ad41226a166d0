"""Simulate a run: workers whose encoder does nothing take turns in one process, by a clock of the simulation."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.counted_bucket import Bucket
from headspan.io.storage import Storage
from headspan.run.scheduler import Scheduler
from headspan.shards.samples import Unit
from headspan.store.commit_records import UnitRecord
from headspan.store.moments_file import MergedMoments
from headspan.store.write.commits import Commits
from headspan.store.write.unit import StoreWriter

_PARTS = 10
# By the simulation's clock: a unit takes 15 to 30 seconds.
_UNIT_SECONDS = (15.0, 30.0)
MOMENTS = MergedMoments(1, np.ones((1, 1, 4)), np.ones((1, 1, 4, 4)))


class SimulatedStore(StoreWriter):
    """A store without arrays, whose units are given."""

    def __init__(self, storage: Storage, planned: list[Unit]) -> None:
        self.storage, self.units, self.path = storage, planned, Path("simulated")
        self.token = storage.token
        self.attributes = {"weights_sha256": "0"}
        self.commits = Commits(storage, len(planned))


class _Clock:
    """Seconds of the simulation, which a bucket shows as its own."""

    def __init__(self, bucket: Bucket | None) -> None:
        self._bucket = bucket

    def set(self, seconds: float) -> None:
        """Go on to a moment."""
        if self._bucket is not None:
            self._bucket.seconds = seconds


def simulate(planned: list[Unit], storages: Sequence[Storage], bucket: Bucket | None) -> dict[str, Any]:
    """Let a worker for each of `storages` compute the units together; returns what each tenth of the units cost."""
    clock, draw = _Clock(bucket), random.Random(0)
    stores = [SimulatedStore(storage, planned) for storage in storages]
    schedulers = [Scheduler(store) for store in stores]
    began = time.process_time()
    for scheduler in schedulers:
        scheduler.__enter__()
    start = {"requests": _requests(bucket), "seconds": time.process_time() - began}
    streams = [units_of(scheduler) for scheduler in schedulers]
    parts: list[dict[str, float]] = []
    choosing = committing = 0.0
    choosing_requests = committing_requests = computed = committed = 0
    # All requests until the last one was counted for choosing or committing.
    before = _requests(bucket)
    # The moment when each worker finishes its unit; None before its first.
    events: list[tuple[float, int, Unit | None]] = [(draw.random(), place, None) for place in range(len(stores))]
    heapq.heapify(events)
    in_flight: dict[int, int] = {}
    twice = 0
    while events:
        now, place, unit = heapq.heappop(events)
        clock.set(now)
        if unit is not None:
            began = time.process_time()
            record = UnitRecord(unit.index, unit.first_row, unit.rows, unit.rows, {}, [])
            committed += (mine := stores[place].commits.add(record, MOMENTS))
            schedulers[place].finished(unit, mine)
            in_flight[unit.index] -= 1
            computed += 1
            committing += time.process_time() - began
            committing_requests += _requests(bucket) - before
            before = _requests(bucket)
        began = time.process_time()
        chosen = next(streams[place], None)
        choosing += time.process_time() - began
        choosing_requests += _requests(bucket) - before
        before = _requests(bucket)
        if chosen is not None:
            twice += in_flight.get(chosen.index, 0) > 0
            in_flight[chosen.index] = in_flight.get(chosen.index, 0) + 1
            heapq.heappush(events, (now + draw.uniform(*_UNIT_SECONDS), place, chosen))
        if committed * _PARTS >= len(planned) * (len(parts) + 1) and unit is not None:
            each = len(planned) / _PARTS
            parts.append(
                {
                    "choosing_ms": 1e3 * choosing / each,
                    "committing_ms": 1e3 * committing / each,
                    "choosing_requests": choosing_requests / each,
                    "committing_requests": committing_requests / each,
                }
            )
            choosing = committing = 0.0
            choosing_requests = committing_requests = 0
    end = {"requests": choosing_requests + committing_requests, "seconds": choosing + committing}
    for scheduler in schedulers:
        scheduler.__exit__(None)
    assert committed == len(planned), "every unit is committed once"
    return {
        "units": len(planned),
        "workers": len(stores),
        "tenths": parts,
        # Of all workers together: before their first unit, and after the last unit was committed.
        "start": start,
        "end": end,
        "computed_twice": computed - len(planned),
        "in_flight_twice": twice,
    }


def units_of(scheduler: Scheduler) -> Iterator[Unit]:
    """The units of all passes."""
    for chosen in scheduler.passes():
        yield from chosen


def _requests(bucket: Bucket | None) -> int:
    return bucket.requests.total() if bucket is not None else 0
