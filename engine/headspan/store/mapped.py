"""Read arrays through memory maps of their shards, at the speed of the disk.

An uncompressed shard contains its inner chunks one after the other, as `ShardPieces` writes them. So a part of a shard
is a view into its file, and values are copied or converted straight from the file. A missing shard reads as the fill
value. A shard with another index is damaged or was written by another program; it raises UnmappableError, and the
caller reads with Zarr.
"""

from __future__ import annotations

import errno
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

import numpy as np

from headspan.errors import StoreError
from headspan.io.files import memory_map, read_ahead, read_parts
from headspan.store.array_spec import ArraySpec
from headspan.store.shard_layout import rows_first, shard_index, undivided
from headspan.store.shard_rows import ShardRows, spans
from headspan.store.shard_rows import UnmappableError as UnmappableError

# Linux allows a process some 65,000 maps by default.
_MAPS = 32_768
# Python's maps keep their files open, and a process has other files too.
_SHARE_OF_OPEN_FILES = 1 / 2
# Rows are copied by spans of neighbours if these are at least so long on average.
_NEIGHBOURS = 16
# The system has no more descriptors, or no more maps.
_TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# All shards of an array but the last have the same index.
_index = lru_cache(32)(shard_index)


class MappedRows(ShardRows):
    """One array of a store. Shards stay mapped, those last used if the process may not keep all of its stores open."""

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        super().__init__(spec)
        self._root = root
        self.reference = weakref.ref(self)
        # By first row. Only these hold a map, so that the maps of a store are closed when it is dropped.
        self.mapped: dict[int, np.ndarray] = {}
        self._kept_pieces: dict[int, np.ndarray] = {}

    def drop(self, first_row: int) -> None:
        """Close the map of a shard."""
        self.mapped.pop(first_row, None)
        self._kept_pieces.pop(first_row, None)

    def copy_pieces(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Copy the pieces at `places` of rows, in ascending order, to `out`: `[place, row]`, items of type `piece`.

        Pieces that are neighbours in their file are read from it together, which costs less than mapping its pages.
        Raises UnmappableError, and StoreError if a file cannot be read.
        """
        item, numbers = self.piece, out.view(np.uint8)
        shards, index = self._items(rows, places)
        for first, end, pieces in self._pieces_of(shards, index):
            neighbours = spans(index[first:end, 0] - np.arange(end - first))
            if pieces is None:
                out[:, first:end] = self._missing
            elif len(neighbours) * _NEIGHBOURS > end - first:
                out[:, first:end] = pieces.take(index[first:end].T)
            else:
                parts = [
                    (int(start) * item.itemsize, out_of_place[begin * item.itemsize : stop * item.itemsize])
                    for begin, stop in neighbours
                    for start, out_of_place in zip(
                        index[first + begin], numbers[:, first * item.itemsize :], strict=True
                    )
                ]
                read_parts(f"{self._root}/{self.spec.file(int(rows[first]))}", parts)

    def _pieces_of(self, shards: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, int, np.ndarray | None]]:
        found = spans(shards)
        first_rows = (shards[[first for first, _ in found]] * self.spec.shard[0]).tolist()
        for (first, end), first_row in zip(found, first_rows, strict=True):
            yield first, end, self._pieces_at(first_row)

    def _pieces_at(self, first_row: int) -> np.ndarray | None:
        """Return the pieces of the shard that begins with `first_row`, and keep them as long as its map."""
        shard = self._shard(first_row)
        pieces = self._kept_pieces.get(first_row)
        if pieces is None:
            pieces = self._pieces(shard)
            if pieces is not None:
                self._kept_pieces[first_row] = pieces
        return pieces

    def read_ahead(self, first_row: int, end: int, places: np.ndarray) -> None:
        """Ask the system to read what `take` would copy of the rows from `first_row` to `end`, without waiting."""
        spec, apart = self.spec, undivided(self.spec)
        row_bytes = math.prod(spec.chunk[1:]) * np.dtype(spec.dtype).itemsize
        pieces = math.prod(spec.grid[1:apart])
        row = first_row
        while row < end:
            # The part of the rows that is in one row of chunks.
            stop = min(end, (row // spec.chunk[0] + 1) * spec.chunk[0])
            row_chunk, place = divmod(row % spec.shard[0], spec.chunk[0])
            starts = ((row_chunk * pieces + places) * spec.chunk[0] + place) * row_bytes
            read_ahead(f"{self._root}/{spec.file(row)}", starts.tolist(), (stop - row) * row_bytes)
            row = stop

    def expect(self, places: Sequence[Sequence[int]], first_row: int, end: int) -> None:
        """Do nothing, since the system reads pages of maps ahead."""

    def places_ahead(self, rows: int) -> int:
        return 1 << 30

    def _shards(self, index: Sequence[int], first_row: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        for begin in range(first_row // self.spec.shard[0] * self.spec.shard[0], end, self.spec.shard[0]):
            yield begin, self._shard(begin)

    def _shard(self, first_row: int) -> np.ndarray:
        """Return the shard that begins with `first_row`, `[row chunk, row in chunk, chunk, place in chunk, …]`."""
        found = self.mapped.get(first_row)
        if found is None:
            found = self.mapped[first_row] = self._map(first_row)
        _OPEN.used(self, first_row)
        return found

    def _map(self, first_row: int) -> np.ndarray:
        spec = self.spec
        shape = (spec.used_row_chunks(first_row), *spec.grid[1:], *spec.chunk)
        body_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
        index = _index(spec, shape[0])
        try:
            mapped = _opened(f"{self._root}/{spec.file(first_row)}")
        except FileNotFoundError:
            return rows_first(np.broadcast_to(np.asarray(spec.fill, spec.dtype), shape))
        if len(mapped) != body_bytes + len(index) or mapped[body_bytes:].tobytes() != index:
            raise UnmappableError
        return rows_first(mapped[:body_bytes].view(spec.dtype).reshape(shape))


class _OpenMaps:
    """The maps of all stores that this process keeps, in the order of their last use.

    A map that is dropped here stays valid for whoever still has a view of it.
    """

    def __init__(self) -> None:
        # Maps of arrays that were dropped are closed; they stay here until it is their turn.
        self._order: OrderedDict[tuple[weakref.ref[MappedRows], int], None] = OrderedDict()
        self._lock = threading.Lock()

    def used(self, rows: MappedRows, first_row: int) -> None:
        """Put a map last, and drop the first ones if there are too many."""
        key = (rows.reference, first_row)
        with self._lock:
            if key in self._order:
                self._order.move_to_end(key)
            else:
                self._order[key] = None
                # The limit of open files is asked for only when there is one more.
                self._drop_to(_most_maps())

    def clear(self) -> None:
        """Drop all maps."""
        with self._lock:
            self._drop_to(0)

    def _drop_to(self, most: int) -> None:
        while len(self._order) > most:
            (rows, first_row), _ = self._order.popitem(last=False)
            if (array := rows()) is not None:
                array.drop(first_row)


_OPEN = _OpenMaps()


def _opened(path: str) -> np.ndarray:
    """Map a file. Raises FileNotFoundError, and StoreError if this process has too many files or maps."""
    try:
        return memory_map(path)
    except OSError as error:
        if error.errno not in _TOO_MANY:
            raise
    _OPEN.clear()
    try:
        return memory_map(path)
    except OSError as error:
        if error.errno not in _TOO_MANY:
            raise
        raise StoreError(
            f"{path}: cannot be mapped into memory ({error.strerror}); close other files, or raise the limit on open "
            "files (ulimit -n)"
        ) from error


def _most_maps() -> int:
    """Return how many shards may stay mapped."""
    soft, _ = getrlimit(RLIMIT_NOFILE)
    return _MAPS if soft == RLIM_INFINITY else max(1, min(_MAPS, int(soft * _SHARE_OF_OPEN_FILES)))
