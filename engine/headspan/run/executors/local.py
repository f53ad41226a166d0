"""Compute the units of a run in this process, one after the other.

Any number of processes may do so on one store at once: the scheduler gives each unit to one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from headspan.run.run import Run
from headspan.run.scheduler import Pause, Scheduler
from headspan.shards.samples import Unit
from headspan.store.write.commits import UnitRecord

# Computes and commits units; yields each with its record, or with None if another worker committed it first.
Compute = Callable[[Run, Iterator[Unit]], Generator[tuple[Unit, UnitRecord | None], None, None]]


def run_units(run: Run, scheduler: Scheduler, compute: Compute) -> Generator[UnitRecord, None, None]:
    """Compute the units that `scheduler` chooses; yields the record of each unit that was committed here.

    Raises HeadspanError if the metadata of an array are damaged, and whatever `compute` raises.
    """
    run.store.refuse_damaged_metadata()
    # Reported before the first batch too, so that the rate that is shown includes its time.
    run.progress.begin()
    for units in scheduler.passes():
        if isinstance(units, Pause):
            time.sleep(units.seconds)
            continue
        # Closed in any case, so that no thread outlives a failure.
        with closing(compute(run, units)) as computed:
            for unit, record in computed:
                scheduler.finished(unit, mine=record is not None)
                run.progress.finish(unit.rows, record)
                if record is not None:
                    yield record
