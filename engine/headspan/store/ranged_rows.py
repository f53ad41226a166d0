"""Read rows of an array of a store in an object store: of its shards, only the ranges of bytes that hold them.

What `mapped` says about missing and foreign shards holds here too. Ranges are fetched side by side, and those of the
next shards while one is used.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from headspan.io.ranged import RangedStorage
from headspan.io.sparse_files import Pending, UnexpectedSizeError
from headspan.store.array_spec import ArraySpec
from headspan.store.shard_layout import rows_first, shard_index
from headspan.store.shard_rows import ShardRows, UnmappableError, spans

# Ranges of further shards are fetched ahead, while all that are on their way have at most so many bytes.
_AHEAD_BYTES = 64 << 20
# Places of which rows are fetched at once, for each thread that computes.
_PLACES_BYTES = 4 << 20
_index = lru_cache(32)(shard_index)


class RangedRows(ShardRows):
    """One array of a store."""

    def __init__(self, storage: RangedStorage, spec: ArraySpec) -> None:
        super().__init__(spec)
        self._files = storage.files
        # Shards whose index was compared, by their first row.
        self._compared: set[int] = set()
        self._chunk_bytes = math.prod(spec.chunk) * np.dtype(spec.dtype).itemsize

    def read_ahead(self, first_row: int, end: int, places: np.ndarray) -> None:
        rows = np.arange(first_row, end)
        shards, index = self._items(rows, places)
        for first, stop in spans(shards):
            self._start(int(shards[first]) * self.spec.shard[0], self._of_items(index[first:stop]))

    def expect(self, places: Sequence[Sequence[int]], first_row: int, end: int) -> None:
        for begin in range(first_row // self.spec.shard[0] * self.spec.shard[0], end, self.spec.shard[0]):
            self._start(begin, np.concatenate([self._of_rows(index, begin, first_row, end) for index in places]))

    def places_ahead(self, rows: int) -> int:
        return max(1, _PLACES_BYTES // (rows * self.piece.itemsize))

    def _shards(self, index: Sequence[int], first_row: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        begins = range(first_row // self.spec.shard[0] * self.spec.shard[0], end, self.spec.shard[0])
        return self._fetched((begin, self._of_rows(index, begin, first_row, end)) for begin in begins)

    def _pieces_of(self, shards: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, int, np.ndarray | None]]:
        found = spans(shards)
        asked = ((int(shards[first]) * self.spec.shard[0], self._of_items(index[first:end])) for first, end in found)
        for (first, end), (_, shard) in zip(found, self._fetched(asked), strict=True):
            yield first, end, self._pieces(shard)

    def _fetched(self, asked: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield shards of which the ranges asked for are there, with their first rows."""
        coming: deque[tuple[int, Pending, int]] = deque()
        for first_row, ranges in asked:
            coming.append((first_row, self._start(first_row, ranges), int((ranges[:, 1] - ranges[:, 0]).sum())))
            while coming and sum(size for _, _, size in coming) > _AHEAD_BYTES:
                yield self._arrived(*coming.popleft()[:2])
        while coming:
            yield self._arrived(*coming.popleft()[:2])

    def _start(self, first_row: int, ranges: np.ndarray) -> Pending:
        body, index = self._sizes(first_row)
        if first_row not in self._compared:
            ranges = np.concatenate([ranges, [(body, body + index)]])
        return self._files.start(self.spec.file(first_row), body + index, ranges)

    def _arrived(self, first_row: int, pending: Pending) -> tuple[int, np.ndarray]:
        spec = self.spec
        shape = (spec.used_row_chunks(first_row), *spec.grid[1:], *spec.chunk)
        body, _ = self._sizes(first_row)
        try:
            numbers = pending.wait()
        except FileNotFoundError:
            return first_row, rows_first(np.broadcast_to(np.asarray(spec.fill, spec.dtype), shape))
        except UnexpectedSizeError as error:
            raise UnmappableError from error
        if first_row not in self._compared:
            if numbers[body:].tobytes() != _index(spec, shape[0]):
                raise UnmappableError
            self._compared.add(first_row)
        return first_row, rows_first(numbers[:body].view(spec.dtype).reshape(shape))

    def _sizes(self, first_row: int) -> tuple[int, int]:
        """The bytes of the chunks of a shard, and of its index."""
        used = self.spec.used_row_chunks(first_row)
        return used * math.prod(self.spec.grid[1:]) * self._chunk_bytes, len(_index(self.spec, used))

    def _of_rows(self, index: Sequence[int], begin: int, first_row: int, end: int) -> np.ndarray:
        """The ranges of the shard that begins with the row `begin` that hold the rows from `first_row` to `end`.

        `index` selects from the first axes after the rows.
        """
        spec, axes = self.spec, 1 + len(index)
        first, stop = max(0, first_row - begin), min(end - begin, spec.shard[0])
        row_chunks = np.arange(first // spec.chunk[0], -(-stop // spec.chunk[0]))
        # The chunks at the place of `index` follow one another.
        together = math.prod(spec.grid[axes:])
        place = 0
        for at, length, chunks in zip(index, spec.chunk[1:], spec.grid[1:], strict=False):
            place = place * chunks + at // length
        starts = (row_chunks * math.prod(spec.grid[1:]) + place * together) * self._chunk_bytes
        ranges = np.stack([starts, starts + together * self._chunk_bytes], axis=1)
        if together == 1:
            # One chunk after the other, in which rows follow one another.
            row_bytes = self._chunk_bytes // spec.chunk[0]
            ranges[0, 0] += first % spec.chunk[0] * row_bytes
            if end < spec.shape[0]:
                # The rows beyond the end of the array are read with the last ones.
                ranges[-1, 1] -= -stop % spec.chunk[0] * row_bytes
        return ranges

    def _of_items(self, items: np.ndarray) -> np.ndarray:
        """The ranges of pieces of a shard."""
        starts = items.reshape(-1) * self.piece.itemsize
        return np.stack([starts, starts + self.piece.itemsize], axis=1)
