"""Arrays of rows read through memory maps of their shards, at the disk's speed.

Uncompressed shards hold their inner chunks one after the other, as `ShardBuffer` wrote them, so a part of one is a
view into the file. A shard of another size or with a damaged index is for Zarr to read, or to refuse; one that is
missing reads as the fill value.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np

from headspan.store.schema import ArraySpec

# A process may hold some 65,000 maps in all, by Linux's default.
_MAPS = 4096


class UnmappableError(Exception):
    """A shard that is not as this package writes them."""


class MappedRows:
    """One array of a store; its maps are made once, and kept as long as it is used."""

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        self._root = root
        self.spec = spec
        self._chunks = lru_cache(_MAPS)(self._map)

    def read(self, index: Sequence[int] = ()) -> np.ndarray:
        """All rows, copied, at one place of each of the first axes behind them. Raises UnmappableError."""
        spec = self.spec
        values = np.empty((spec.shape[0], *spec.shape[1 + len(index) :]), spec.dtype)
        for first_row in range(0, spec.shape[0], spec.shard[0]):
            shard = self.shard(first_row, index)
            rows = values[first_row : first_row + spec.shard[0]]
            for number, start in enumerate(range(0, len(rows), spec.chunk[0])):
                part = rows[start : start + spec.chunk[0]]
                part[...] = shard[number].reshape(-1, *part.shape[1:])[: len(part)]
        return values

    def row(self, row: int, index: Sequence[int] = ()) -> np.ndarray:
        """One row, copied. Raises UnmappableError."""
        spec = self.spec
        first_row = row // spec.shard[0] * spec.shard[0]
        chunk, inside = divmod(row - first_row, spec.chunk[0])
        return self.shard(first_row, index)[chunk, inside].reshape(spec.shape[1 + len(index) :]).copy()

    def shard(self, first_row: int, index: Sequence[int] = ()) -> np.ndarray:
        """The shard that begins with `first_row`, `[row chunk, row in chunk, chunk, place in chunk, …]`, where it lies.

        `index` picks one place of each of the first axes behind the rows; of the others, each has two. The last chunk
        may hold rows beyond the array's end. Raises UnmappableError.
        """
        # [row chunk, chunk along each axis …, row in chunk, place in chunk along each axis …]
        chunks = self._chunks(first_row)
        left = len(self.spec.shape) - 1
        for axis, place in enumerate(index):
            chunk, inside = divmod(place, self.spec.chunk[1 + axis])
            # The axis of chunks is the first that is left, its counterpart in the chunk the first behind the rows.
            chunks = chunks[:, chunk][(slice(None),) * (left + 1) + (inside,)]
            left -= 1
        order = [0, left + 1, *(axis for i in range(left) for axis in (1 + i, left + 2 + i))]
        return chunks.transpose(order)

    def _map(self, first_row: int) -> np.ndarray:
        spec = self.spec
        grid = [length // part for length, part in zip(spec.shard, spec.chunk, strict=True)]
        rows = min(spec.shard[0], spec.shape[0] - first_row)
        shape = (math.ceil(rows / spec.chunk[0]), *grid[1:], *spec.chunk)
        body_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
        index_bytes = 16 * math.prod(grid)
        try:
            with (self._root / spec.file(first_row)).open("rb") as file:
                if os.fstat(file.fileno()).st_size != body_bytes + index_bytes + 4:
                    raise UnmappableError
                mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except FileNotFoundError:
            return np.broadcast_to(np.asarray(spec.fill, spec.dtype), shape)
        index = mapped[body_bytes : body_bytes + index_bytes].tobytes()
        if google_crc32c.value(index).to_bytes(4, "little") != mapped[-4:].tobytes():
            raise UnmappableError
        return mapped[:body_bytes].view(spec.dtype).reshape(shape)
