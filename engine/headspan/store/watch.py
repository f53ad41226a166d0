"""Who works on a store, how fast, and how long the rest will take, from the store alone.

Rates are those of the last few units of each living worker. A straggler is a worker that has had a unit in flight for
more than three times as long as the workers usually need.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headspan.io.storage import Storage
from headspan.shards.samples import Unit
from headspan.store.commit_records import CommitRecords
from headspan.store.schema import Dimensions
from headspan.store.worker_states import OtherWorker, WorkerState, other_workers

_STRAGGLER_TIMES = 3


@dataclass(frozen=True, slots=True)
class WorkingOn:
    """A worker as `headspan info --watch` shows it. Times are in seconds."""

    token: str
    name: str
    version: str
    # `working`, `straggler` or `dead`.
    status: str
    # Its units in flight, with the time since each was begun.
    units: tuple[tuple[int, float], ...]
    images_a_second: float
    finished_units: int
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Watched:
    """The state of a run: what is finished, who works on the rest, and what is quarantined."""

    complete: bool
    units: int
    finished_units: int
    images: int
    finished_images: int
    quarantined: tuple[Unit, ...]
    workers: tuple[WorkingOn, ...]

    @property
    def images_a_second(self) -> float:
        """The rate of all living workers together."""
        return sum(worker.images_a_second for worker in self.workers)

    @property
    def remaining_seconds(self) -> float | None:
        """The time that the rest takes at this rate; None if no worker has finished a unit."""
        left = self.images - self.finished_images - sum(unit.rows for unit in self.quarantined)
        return max(0, left) / self.images_a_second if self.images_a_second else None


def watched(storage: Storage, size: Dimensions) -> Watched:
    """Read the state of the run that writes the store: three listings, and a read for each worker."""
    units = -(-size.images // size.unit_images)
    commits = CommitRecords(storage, units)
    # Workers first: a unit that is finished meanwhile then counts as finished.
    workers, now = list(other_workers(storage)), storage.now()
    done = commits.done()
    finished = int(done.sum())
    # The last unit may be smaller.
    short = units * size.unit_images - size.images if units and done[-1] else 0
    return Watched(
        commits.complete,
        units,
        finished,
        size.images,
        finished * size.unit_images - short,
        tuple(commits.quarantined_units()),
        tuple(_shown(workers, done, now)),
    )


def _shown(workers: Sequence[OtherWorker], done: np.ndarray, now: float) -> list[WorkingOn]:
    usual = [seconds for worker in workers if worker.alive and (seconds := _unit_seconds(worker.state))]
    limit = _STRAGGLER_TIMES * statistics.median(usual) if usual else float("inf")
    shown = []
    for worker in workers:
        state = worker.state or WorkerState()
        units = [
            (unit, max(0.0, now - state.units.get(unit, now)))
            for unit in worker.in_flight
            if not (unit < len(done) and done[unit])
        ]
        # Several units in flight are computed one after the other, so the oldest tells.
        slow = max((seconds for _, seconds in units), default=0.0) > limit * max(1, len(units))
        status = "dead" if not worker.alive else "straggler" if slow else "working"
        rate = _rate(state, now) if worker.alive else 0.0
        shown.append(
            WorkingOn(
                worker.token,
                state.name if worker.state else "a process of an earlier version of headspan",
                state.version,
                status,
                tuple(units),
                rate,
                state.finished,
                worker.silent_seconds,
            )
        )
    return shown


def _unit_seconds(state: WorkerState | None) -> float | None:
    """The mean seconds between the ends of a worker's last units; None before its second unit."""
    if state is None or len(state.recent) < 2:
        return None
    return (state.recent[-1][0] - state.recent[0][0]) / (len(state.recent) - 1)


def _rate(state: WorkerState, now: float) -> float:
    """Images a second over the worker's last units. It falls when the next unit takes longer than those."""
    if not state.recent:
        return 0.0
    each = _unit_seconds(state)
    if each is None:
        first, counted = state.began, state.recent
    else:
        first, counted = state.recent[0][0], state.recent[1:]
    last = counted[-1][0]
    # A worker that has said nothing for the time of two units has become slower, or has stopped.
    end = now if now - last > 2 * (last - first) / len(counted) else last
    return sum(rows for _, rows in counted) / max(end - first, 1e-3)
