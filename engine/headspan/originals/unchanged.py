"""The shards of some of a store's images, opened only if they hold the images that the store was made from.

A shard of the planned size and time of modification counts as unchanged. Of any other, the images of each unit are read
and compared with the unit's checksum before they are used. Stores may come from other people: a command (`pipe:`) that
a store names is never run, and a network address is read only if the caller names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from headspan.errors import SourceError
from headspan.originals.encoded_image import open_planned, refuse_unnamed
from headspan.originals.find_shards import find_shards, missing_note
from headspan.run.planned_sources import change
from headspan.run.source_checks import SourceImages
from headspan.shards.images import ImageReader
from headspan.store.commit_records import UnitRecord
from headspan.store.reader import Store
from headspan.store.schema import member_names


class UnchangedShards:
    """The shards with the images at some rows of a store."""

    def __init__(self, store: Store, rows: Int64[np.ndarray, " row"], shards: Sequence[str] = ()) -> None:
        """`shards` name all shards, in the order of the run, if they have moved.

        Raises SourceError if one with such images is missing, or may not be read.
        """
        self._store, self._names = store, member_names(store.attributes)
        self._urls, missing = find_shards(store, shards)
        self._given = list(self._urls.values()) if shards else []
        planned = store.shards()
        ends = np.searchsorted(rows, [(shard.first_row, shard.first_row + shard.images) for shard in planned])
        self._planned = {shard.url: shard for shard, (first, end) in zip(planned, ends, strict=True) if first < end}
        gone = [name for name in missing if name in self._planned]
        if gone:
            raise SourceError(
                f"{store.path}: {missing_note(gone, len(planned))}; say with shards= where all of them are"
            )
        for name in self._planned:
            refuse_unnamed(self._urls[name], self._given)
        self._changed = {
            name: what
            for name, shard in self._planned.items()
            if (what := change(shard, self._urls[name], self._names)) is not None
        }
        self._again = SourceImages(planned, self._urls, self._names, set())

    def open(self, name: str) -> ImageReader:
        """A reader of the shard. Raises SourceError if it has another size than when it was planned."""
        return open_planned(self._planned[name], self._urls[name], self._names, self._given)

    def check(self, record: UnitRecord) -> None:
        """Raise SourceError if the images of a unit have changed, or cannot be compared."""
        end = record.first_row + record.rows
        for name, what in self._changed.items():
            shard = self._planned[name]
            if shard.first_row >= end or shard.first_row + shard.images <= record.first_row:
                continue
            if record.source_crc32c is None:
                raise SourceError(f"{self._urls[name]}: {what}; restore it")
            if problems := self._again.problems(self._store, record):
                raise SourceError(f"{self._store.path}: {problems[0].what}; restore the shards")
            return
