"""Plan many tars with all processes that plan the same store, on one machine or on many.

Each of them reads parts of the tars that no other one has begun. When all parts are there, one of them writes the plan;
the others wait for the store, and then work on it. A part that a killed planner had begun is read by another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

import pyarrow as pa

from headspan.errors import counted
from headspan.events import Listener, Progress
from headspan.io.locations import Location
from headspan.member_names import MemberNames
from headspan.run.plan_processes import TarReaders
from headspan.shards.describe import describe_each
from headspan.shards.kinds import TAR, refuse_unused
from headspan.shards.notes import NO_ROW
from headspan.shards.plan import no_images
from headspan.shards.samples import BadImage, Shard
from headspan.store.tables import ReadShard
from headspan.store.write.plan_parts import PlanParts

# A part takes some requests. As many tars are in memory at once.
PART_TARS = 16
# The least and the most seconds between two looks at what the other planners do.
_LOOK_SECONDS = (0.1, 10.0)


class PlannedElsewhereError(Exception):
    """Another process has planned the store."""


class SharedPlan:
    """This process's share in the plan of a store; a context manager that lasts until the store exists."""

    def __init__(
        self, path: Location, urls: Mapping[str, str], names: MemberNames, is_planned: Callable[[], bool]
    ) -> None:
        """Plan the tars `urls`, by name; `is_planned` tells whether another process has planned the store."""
        self._urls, self._names, self._is_planned = urls, names, is_planned
        tars = list(urls.items())
        self._tars = [tars[first : first + PART_TARS] for first in range(0, len(tars), PART_TARS)]
        self._parts = PlanParts(path, urls, names, len(self._tars))
        self._pause = _LOOK_SECONDS[0]

    def __enter__(self) -> SharedPlan:
        self._parts.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._parts.__exit__(*error)

    def tables(
        self,
        shards: list[Shard],
        notes: list[BadImage],
        on_progress: Listener,
        go_on: Callable[[], None] = lambda: None,
    ) -> Generator[pa.Table, None, None]:
        """Yield the samples of each tar, in order; the shards and the notes on them are added to the lists.

        `go_on` is called for each tar and while this process waits. It may raise an error to end the reading. Raises
        PlannedElsewhereError if another process has planned the store, and otherwise as `list_samples`.
        """
        refuse_unused(self._names, [TAR] * len(self._urls))
        with TarReaders(len(self._urls), self._names) as readers:
            self._read_missing(readers, on_progress, go_on)
            while not self._parts.take_end():
                self._wait(go_on)
            self._refuse_planned()
            images, fields = 0, Counter[str]()
            for shard, table, found, absent in self._all(readers):
                go_on()
                fields.update(absent)
                shards.append(replace(shard, first_row=images))
                notes += (note if note.row == NO_ROW else replace(note, row=note.row + images) for note in found)
                images += shard.images
                yield table
        if len(self._parts.own) < len(self._tars):
            on_progress(Progress("plan", len(self._urls), len(self._urls), counted(images, "image")))
        if images == 0:
            raise no_images(self._urls, self._names, fields)

    def _read_missing(self, readers: TarReaders, on_progress: Listener, go_on: Callable[[], None]) -> None:
        """Read and put parts until all are there."""
        images = 0
        while missing := self._parts.missing():
            done = len(self._urls) - sum(len(self._tars[number]) for number in missing)
            before = len(self._parts.own)
            asked = ((number, tar) for number in self._free(missing) for tar in self._tars[number])
            # Closed in any case, so that no part is taken by an iterator that nobody reads.
            with closing(readers.read(asked)) as read:
                for number, part in groupby(read, itemgetter(0)):
                    found: list[ReadShard] = []
                    for _, tar in part:
                        go_on()
                        found.append(tar)
                        images, done = images + tar[0].images, done + 1
                        note = counted(images, "image")
                        on_progress(Progress("plan", done, len(self._urls), note))
                    self._parts.put(number, found)
            if len(self._parts.own) == before:
                self._wait(go_on)

    def _free(self, missing: Sequence[int]) -> Iterator[int]:
        return (number for number in self._parts.free(missing) if self._parts.take(number))

    def _all(self, readers: TarReaders) -> Iterator[ReadShard]:
        """What was read of all tars, in order. Parts are read again if their tars have changed, or if they are lost."""
        others = [url for number, tars in enumerate(self._tars) if number not in self._parts.own for _, url in tars]
        described = describe_each(others, self._names)
        for number, tars in enumerate(self._tars):
            found = self._parts.read(number)
            if number not in self._parts.own:
                now = [next(described) for _ in tars]
                if found is not None and [(shard.size_bytes, shard.modified_ns) for shard, *_ in found] != now:
                    found = None
            yield from found or (tar for _, tar in readers.read((number, tar) for tar in tars))

    def _wait(self, go_on: Callable[[], None]) -> None:
        go_on()
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LOOK_SECONDS[1])
        self._refuse_planned()

    def _refuse_planned(self) -> None:
        if self._is_planned():
            raise PlannedElsewhereError
