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
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

import numpy as np
from numpy.typing import DTypeLike

from headspan.errors import StoreError
from headspan.io.files import memory_map, read_ahead, read_parts
from headspan.store.array_spec import ArraySpec
from headspan.store.conversion import copy_numbers
from headspan.store.shard_layout import file_order, rows_first, shard_index, undivided

# Linux allows a process some 65,000 maps by default.
_MAPS = 32_768
# Python's maps keep their files open, and a process has other files too.
_SHARE_OF_OPEN_FILES = 1 / 2
# What `take` copies at once: these numbers stay in a core's cache until they are placed.
_TAKEN_BYTES = 512 << 10
# Fewer pieces of a shard on average are copied one by one.
_FEW_OF_SHARD = 96
# Rows are copied by spans of neighbours if these are at least so long on average.
_NEIGHBOURS = 16
# The system has no more descriptors, or no more maps.
_TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# All shards of an array but the last have the same index.
_index = lru_cache(32)(shard_index)


class UnmappableError(Exception):
    """The fast path cannot be used: a shard has another layout than headspan writes, or numkong is not installed."""


class MappedRows:
    """One array of a store. Shards stay mapped, those last used if the process may not keep all of its stores open."""

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        self._root = root
        self.spec = spec
        # By first row. Only these hold a map, so that the maps of a store are closed when it is dropped.
        self.mapped: dict[int, np.ndarray] = {}
        self._bytes: dict[int, memoryview] = {}

    def drop(self, first_row: int) -> None:
        """Close the map of a shard."""
        self.mapped.pop(first_row, None)
        self._bytes.pop(first_row, None)

    def read(self, index: Sequence[int] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """Return a copy of all rows at `index` of the axes after the first. Raises UnmappableError.

        `dtype` may be float32 if float16 is stored.
        """
        spec = self.spec
        values = np.empty((spec.shape[0], *spec.shape[1 + len(index) :]), dtype or spec.dtype)
        if all(chunks == 1 for chunks in spec.grid[1:]):
            places: tuple[slice | int, ...] = (slice(None), *self._places(index))
            # Rows follow one another in the whole shard, so its chunks need not be copied one by one.
            for first_row in range(0, len(values), spec.shard[0]):
                rows = values[first_row : first_row + spec.shard[0]]
                shard = self._shard(first_row)
                whole = shard.reshape(-1, *shard.shape[2:])[: len(rows)]
                copy_numbers(whole[places], rows)
            return values
        for first_row, chunk in zip(range(0, len(values), spec.chunk[0]), self.chunks(index), strict=True):
            rows = values[first_row : first_row + len(chunk)]
            copy_numbers(chunk[: len(rows)], rows)
        return values

    def row(self, row: int, index: Sequence[int] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """Return a copy of one row, as `read` does for all. Raises UnmappableError."""
        values = np.empty(self.spec.shape[1 + len(index) :], dtype or self.spec.dtype)
        begin = row - row % self.spec.shard[0]
        where = (*divmod(row - begin, self.spec.chunk[0]), *self._places(index))
        copy_numbers(self._shard(begin)[where], values)
        return values

    @property
    def apart(self) -> tuple[int, ...]:
        """The lengths of the first axes after the rows, up to the last one along which inner chunks divide a row."""
        return self.spec.shape[1 : undivided(self.spec)]

    @property
    def whole(self) -> tuple[int, ...]:
        """The lengths of the axes after `apart`, which every inner chunk holds whole."""
        return self.spec.shape[undivided(self.spec) :]

    def take(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Copy rows, in any order, to `out`: `[row, place, …]`, contiguous, of the stored type or float32.

        `places` selects from the axes `apart`, as indices into them in the order of C. Raises UnmappableError.
        """
        spec, item = self.spec, self.piece
        if not out.size:
            return
        shards, index = self._items(rows, places)
        if index.size < _FEW_OF_SHARD * (1 + int(shards.max()) - int(shards.min())):
            self._take_few(shards, index, out)
            return
        # Each row of `out` as one item, so that rows are assigned by single copies.
        placed = out.reshape(len(rows), -1).view(np.dtype((np.void, out[:1].nbytes))).reshape(-1)
        # In the order of the file, so that pieces that are copied one after the other share pages.
        order = np.argsort(rows, kind="stable")
        shards, index = shards[order], index[order]
        step = max(1, _TAKEN_BYTES // max(1, index.shape[1] * item.itemsize))
        for first, end in _spans(shards):
            pieces = self._pieces(int(shards[first]))
            if pieces is None:
                out[order[first:end]] = spec.fill
                continue
            for begin in range(first, end, step):
                some = slice(begin, min(begin + step, end))
                taken = pieces.reshape(-1).take(index[some]).view(spec.dtype).reshape(-1, *out.shape[1:])
                if taken.dtype != out.dtype:
                    converted = np.empty(taken.shape, out.dtype)
                    copy_numbers(taken, converted)
                    taken = converted
                placed[order[some]] = taken.reshape(len(taken), -1).view(placed.dtype).reshape(-1)

    def _take_few(self, shards: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
        """As `take`, piece by piece: a slice of bytes costs less than a NumPy call, of which each shard needs many."""
        taken = out if out.dtype == self.spec.dtype else np.empty(out.shape, self.spec.dtype)
        target, item, place = memoryview(taken.reshape(-1).view(np.uint8)), self.piece.itemsize, 0
        sources: dict[int, memoryview | None] = {}
        for row, (shard, starts) in enumerate(zip(shards.tolist(), (index * item).tolist(), strict=True)):
            if shard not in sources:
                sources[shard] = self._bytes_of(shard)
            source = sources[shard]
            if source is None:
                taken[row] = self.spec.fill
                place += item * len(starts)
                continue
            for start in starts:
                target[place : place + item] = source[start : start + item]
                place += item
        if taken is not out:
            copy_numbers(taken, out)

    def _bytes_of(self, shard: int) -> memoryview | None:
        """Return the bytes of a shard's pieces; None if the shard is missing."""
        first_row = shard * self.spec.shard[0]
        chunks = self._shard(first_row)
        found = self._bytes.get(first_row)
        if found is None:
            whole = file_order(chunks)
            if not whole.flags.c_contiguous:
                return None
            found = self._bytes[first_row] = memoryview(whole.reshape(-1).view(np.uint8))
        return found

    def copy_pieces(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Copy the pieces at `places` of rows, in ascending order, to `out`: `[place, row]`, items of type `piece`.

        Pieces that are neighbours in their file are read from it together, which costs less than mapping its pages.
        Raises UnmappableError, and StoreError if a file cannot be read.
        """
        item, numbers = self.piece, out.view(np.uint8)
        shards, index = self._items(rows, places)
        for first, end in _spans(shards):
            pieces = self._pieces(int(shards[first]))
            neighbours = _spans(index[first:end, 0] - np.arange(end - first))
            if pieces is None:
                out[:, first:end] = np.full(self.spec.chunk, self.spec.fill, self.spec.dtype).reshape(-1).view(item)[0]
            elif len(neighbours) * _NEIGHBOURS > end - first:
                out[:, first:end] = pieces.reshape(-1).take(index[first:end].T)
            else:
                parts = [
                    (int(start) * item.itemsize, out_of_place[begin * item.itemsize : stop * item.itemsize])
                    for begin, stop in neighbours
                    for start, out_of_place in zip(
                        index[first + begin], numbers[:, first * item.itemsize :], strict=True
                    )
                ]
                read_parts(f"{self._root}/{self.spec.file(int(rows[first]))}", parts)

    # Asked for once for each shard that rows are taken from.
    @cached_property
    def piece(self) -> np.dtype:
        """The numbers of a row that follow one another in a file, as one item."""
        numbers = math.prod(self.spec.chunk[undivided(self.spec) :])
        return np.dtype((np.void, numbers * np.dtype(self.spec.dtype).itemsize))

    def _items(self, rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each row's shard, and `[row, place]`: which piece of the shard it is."""
        spec, apart = self.spec, undivided(self.spec)
        if any(length != 1 for length in spec.chunk[1:apart]):
            raise UnmappableError
        # At once for all rows, since each of NumPy's calls takes microseconds.
        shards, within = np.divmod(rows, spec.shard[0])
        row_chunk, row = np.divmod(within, spec.chunk[0])
        pieces = math.prod(spec.grid[1:apart])
        return shards, ((row_chunk * pieces)[:, None] + places) * spec.chunk[0] + row[:, None]

    def _pieces(self, shard: int) -> np.ndarray | None:
        """Return the pieces of a shard, `[row chunk, piece, row in chunk]`; None if the shard is missing."""
        chunks = file_order(self._shard(shard * self.spec.shard[0]))
        if not chunks.flags.c_contiguous:
            return None
        return chunks.reshape(-1).view(self.piece).reshape(len(chunks), -1, self.spec.chunk[0])

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

    def chunks(self, index: Sequence[int] = (), first_row: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Return the inner chunks with the rows from `first_row` to `end`, as views `[row, chunk, place in chunk, …]`.

        A chunk must begin at `first_row`. `index` selects one place of each of the first axes after the rows. Each of
        the other axes becomes two: chunk and place in the chunk. The array's last chunk may contain rows beyond its
        end. Raises UnmappableError.
        """
        rows, shard_rows, chunk_rows = self.spec.shape[0], self.spec.shard[0], self.spec.chunk[0]
        end = rows if end is None else end
        where: tuple[slice | int, ...] = (slice(None), slice(None), *self._places(index))
        for begin in range(first_row // shard_rows * shard_rows, end, shard_rows):
            first, last = max(0, first_row - begin) // chunk_rows, -(-(end - begin) // chunk_rows)
            yield from self._shard(begin)[where][first:last]

    def _places(self, index: Sequence[int]) -> list[int]:
        """Return, for each axis that `index` selects from, the chunk and the place in the chunk."""
        return [
            part for place, length in zip(index, self.spec.chunk[1:], strict=False) for part in divmod(place, length)
        ]

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
        key = (weakref.ref(rows), first_row)
        with self._lock:
            known = key in self._order
            self._order[key] = None
            self._order.move_to_end(key)
            # The limit of open files is asked for only when there is one more.
            if not known:
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


def _spans(values: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each span of equal values."""
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(borders)) if len(values) else []


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
