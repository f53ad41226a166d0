"""Show on one screen who works on a store, and refresh it until the store is complete."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

from headspan.cli.tables import aligned
from headspan.cli.terminal import redraw
from headspan.config import as_ranges
from headspan.errors import StoreError, counted, percent
from headspan.io.locations import location_of
from headspan.io.stores import storage_at
from headspan.store.schema import dimensions, open_group
from headspan.store.watch import Watched, WorkingOn, watched
from headspan.store.worker_states import has_locks

# Between two screens. In a bucket, each worker costs two requests.
LOCAL_SECONDS, REMOTE_SECONDS = 2.0, 10.0
_UNITS_SHOWN = 3
# Dead workers first, then stragglers, then the slowest.
_ORDER = ("dead", "straggler", "working")


def watch(location: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the store at `location`, a path or a URL, until it is complete. Raises StoreError if there is none."""
    place = location_of(location, StoreError)
    size, storage = dimensions(open_group(place)[1]), storage_at(place)
    seconds = LOCAL_SECONDS if has_locks(storage) else REMOTE_SECONDS
    while True:
        found = watched(storage, size)
        redraw(list(lines(location, found, shutil.get_terminal_size().lines - 1)))
        if found.complete:
            return
        sleep(seconds)


def lines(name: str, found: Watched, height: int) -> Iterator[str]:
    """The screen, in at most `height` lines."""
    share = percent(found.finished_images / max(1, found.images), 1)
    yield (
        f"{name}: {found.finished_images:,} of {counted(found.images, 'image')} ({share}), "
        f"{found.finished_units:,} of {counted(found.units, 'unit')}"
    )
    alive = sum(worker.status != "dead" for worker in found.workers)
    if found.complete:
        yield "complete"
    elif found.remaining_seconds is not None:
        rate = f"{found.images_a_second:,.1f} images/s"
        yield f"{counted(alive, 'worker')}, {rate}, {_time(found.remaining_seconds)} left"
    elif alive:
        yield f"{counted(alive, 'worker')}; no unit is finished yet, so there is no rate"
    else:
        yield "no worker is alive; run the same precompute command to continue"
    if found.quarantined:
        units = as_ranges([unit.index for unit in found.quarantined])
        yield f"quarantined: {units}, which `headspan repair` tries again"
    if not found.workers:
        return
    used = 4 if found.quarantined else 3
    shown = sorted(found.workers, key=lambda each: (_ORDER.index(each.status), each.images_a_second, each.token))
    room = max(1, height - used)
    cut = len(shown) > room
    shown_now = shown[: room - 1] if cut else shown
    rows: list[tuple[str, ...]] = [("worker", "status", "images/s", "units", "in flight", "last sign", "headspan")]
    rows += [_row(worker) for worker in shown_now]
    yield from aligned(rows)
    if cut:
        yield f"and {counted(len(shown) - len(shown_now), 'more worker')}"


def _row(worker: WorkingOn) -> tuple[str, ...]:
    units = ", ".join(f"{unit} for {_time(seconds)}" for unit, seconds in worker.units[:_UNITS_SHOWN])
    more = len(worker.units) - _UNITS_SHOWN
    return (
        worker.name,
        worker.status,
        f"{worker.images_a_second:,.1f}",
        f"{worker.finished_units:,}",
        (units or "none") + (f" and {more} more" if more > 0 else ""),
        f"{_time(worker.silent_seconds)} ago",
        worker.version or "unknown",
    )


def _time(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
