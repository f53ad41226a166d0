"""Read rows of an array from its shards: all rows of one head, one row, any rows in any order, or chunk by chunk.

An uncompressed shard contains its inner chunks one after the other, so a part of a shard is a view into its bytes.
`mapped` and `ranged_rows` bring the bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from headspan.store.array_spec import ArraySpec
from headspan.store.conversion import as_float32, copy_numbers
from headspan.store.shard_layout import file_order, undivided

# What `take` copies at once: these numbers stay in a core's cache until they are placed.
_TAKEN_BYTES = 512 << 10


class UnmappableError(Exception):
    """The fast path cannot be used: a shard has another layout than headspan writes, or numkong is not installed."""


class ShardRows(ABC):
    """One array of a store."""

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec

    @abstractmethod
    def _shards(self, index: Sequence[int], first_row: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the shards with the rows from `first_row` to `end`: the first row and the shard.

        A shard is `[row chunk, row in chunk, chunk, place in chunk, …]`. Of its numbers, those of these rows are there,
        at `index` of the first axes after the rows. Raises UnmappableError.
        """

    @abstractmethod
    def _pieces_of(self, shards: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """Yield each span of rows that are in one shard, with the shard's pieces: first, end, `_pieces`.

        `shards` and `index` are those of `_items`; of the pieces, those that `index` names are there.
        """

    @abstractmethod
    def read_ahead(self, first_row: int, end: int, places: np.ndarray) -> None:
        """Begin to read what `take` would copy of the rows from `first_row` to `end`, without waiting."""

    @abstractmethod
    def expect(self, places: Sequence[Sequence[int]], first_row: int, end: int) -> None:
        """Begin to read what `chunks` would return of these rows at each of `places`, without waiting."""

    @abstractmethod
    def places_ahead(self, rows: int) -> int:
        """Of how many places of the first axes `expect` is best told at once, each with so many rows."""

    @property
    def apart(self) -> tuple[int, ...]:
        """The lengths of the first axes after the rows, up to the last one along which inner chunks divide a row."""
        return self.spec.shape[1 : undivided(self.spec)]

    @property
    def whole(self) -> tuple[int, ...]:
        """The lengths of the axes after `apart`, which every inner chunk holds whole."""
        return self.spec.shape[undivided(self.spec) :]

    def read(self, index: Sequence[int] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """Return a copy of all rows at `index` of the axes after the first. Raises UnmappableError.

        `dtype` may be float32 if float16 is stored.
        """
        spec = self.spec
        values = np.empty((spec.shape[0], *spec.shape[1 + len(index) :]), dtype or spec.dtype)
        if all(chunks == 1 for chunks in spec.grid[1:]):
            places: tuple[slice | int, ...] = (slice(None), *self._places(index))
            # Rows follow one another in the whole shard, so its chunks need not be copied one by one.
            for first_row, shard in self._shards(index, 0, len(values)):
                rows = values[first_row : first_row + spec.shard[0]]
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
        ((begin, shard),) = self._shards(index, row, row + 1)
        copy_numbers(shard[(*divmod(row - begin, self.spec.chunk[0]), *self._places(index))], values)
        return values

    def take(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Copy rows, in any order, to `out`: `[row, place, …]`, contiguous, of the stored type or float32.

        `places` selects from the axes `apart`, as indices into them in the order of C. Raises UnmappableError.
        """
        if not out.size:
            return
        # In the order of the file, so that pieces that are copied one after the other share pages.
        order = np.argsort(rows, kind="stable")
        ascending = bool((order == np.arange(len(rows))).all())
        shards, index = self._items(rows[order], places)
        in_place = ascending and out.dtype == self.spec.dtype
        if in_place:
            taken = out.reshape(len(rows), index.shape[1], -1).view(self.piece)[:, :, 0]
        else:
            # Rows of several shards, before they are placed together, since each of NumPy's calls takes a microsecond.
            at_once = max(1, _TAKEN_BYTES // (index.shape[1] * self.piece.itemsize))
            taken = np.empty((min(at_once, len(rows)), index.shape[1]), self.piece)
        begin = 0
        for first, end, pieces in self._pieces_of(shards, index):
            while first < end:
                stop = min(end, begin + len(taken))
                here = taken[first - begin : stop - begin]
                if pieces is None:
                    here[...] = self._missing
                else:
                    # Other threads run meanwhile. The indices are within the shard; with the default mode, it would
                    # copy twice.
                    pieces.take(index[first:stop], out=here, mode="clip")
                first = stop
                if not in_place and stop in (begin + len(taken), len(rows)):
                    where = slice(begin, stop) if ascending else order[begin:stop]
                    self._place(taken[: stop - begin], where, out)
                    begin = stop

    def _place(self, taken: np.ndarray, where: slice | np.ndarray, out: np.ndarray) -> None:
        """Copy pieces, `[row, place]`, to rows of `out`, of the stored type or float32."""
        numbers = taken.view(self.spec.dtype).reshape(len(taken), *out.shape[1:])
        if isinstance(where, slice):
            copy_numbers(numbers, out[where])
            return
        if numbers.dtype != out.dtype:
            numbers = as_float32(numbers)
        # Each row as one item, so that rows are assigned by single copies.
        item = np.dtype((np.void, out[:1].nbytes))
        out.reshape(len(out), -1).view(item)[where, 0] = numbers.reshape(len(numbers), -1).view(item)[:, 0]

    def copy_pieces(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Copy the pieces at `places` of rows, in ascending order, to `out`: `[place, row]`, items of type `piece`.

        Raises UnmappableError, and StoreError if a file cannot be read.
        """
        shards, index = self._items(rows, places)
        for first, end, pieces in self._pieces_of(shards, index):
            out[:, first:end] = self._missing if pieces is None else pieces.take(index[first:end].T)

    @property
    def _missing(self) -> np.void:
        """A piece of a missing shard."""
        numbers = np.full(self.spec.chunk, self.spec.fill, self.spec.dtype)
        piece: np.void = numbers.reshape(-1).view(self.piece)[0]
        return piece

    def chunks(self, index: Sequence[int] = (), first_row: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Return the inner chunks with the rows from `first_row` to `end`, as views `[row, chunk, place in chunk, …]`.

        A chunk must begin at `first_row`. `index` selects one place of each of the first axes after the rows. Each of
        the other axes becomes two: chunk and place in the chunk. The array's last chunk may contain rows beyond its
        end. Raises UnmappableError.
        """
        rows, chunk_rows = self.spec.shape[0], self.spec.chunk[0]
        end = rows if end is None else end
        where: tuple[slice | int, ...] = (slice(None), slice(None), *self._places(index))
        for begin, shard in self._shards(index, first_row, end):
            first, last = max(0, first_row - begin) // chunk_rows, -(-(end - begin) // chunk_rows)
            yield from shard[where][first:last]

    def _pieces(self, shard: np.ndarray) -> np.ndarray | None:
        """Return the pieces of a shard in the order of its file; None if the shard is missing."""
        chunks = file_order(shard)
        return chunks.reshape(-1).view(self.piece) if chunks.flags.c_contiguous else None

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

    def _places(self, index: Sequence[int]) -> list[int]:
        """Return, for each axis that `index` selects from, the chunk and the place in the chunk."""
        return [
            part for place, length in zip(index, self.spec.chunk[1:], strict=False) for part in divmod(place, length)
        ]


def spans(values: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each span of equal values."""
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(borders)) if len(values) else []


def pieces_of(apart: tuple[int, ...], chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Return which pieces of a row are chosen, as indices into the axes `apart` in the order of C."""
    pieces = np.zeros(1, np.int64)
    for length, each in zip(apart, chosen, strict=False):
        pieces = (pieces[:, None] * length + each).reshape(-1)
    return pieces


def within_pieces(out: np.ndarray, apart: int, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Return the chosen places along the axes that pieces hold whole; `apart` is the number of the axes before them."""
    for axis in range(apart, len(chosen)):
        if not np.array_equal(chosen[axis], np.arange(out.shape[1 + axis])):
            out = out.take(chosen[axis], 1 + axis)
    return out


def as_range(places: np.ndarray) -> tuple[slice, np.ndarray | None]:
    """Return the range that contains `places`, and where they are in it; None if they are the whole range in order."""
    first, last = int(places.min()), int(places.max())
    whole = len(places) == last - first + 1 and bool((np.diff(places) == 1).all())
    return slice(first, last + 1), None if whole else places - first
