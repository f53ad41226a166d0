"""Arrays of rows read through memory maps of their shards, at the disk's speed.

Uncompressed shards hold their inner chunks one after the other, as `ShardPieces` gives them out, so a part of one is a
view into the file, and what is read is copied, or converted, straight out of it. A shard whose index is another one,
since it is damaged or another program wrote it, is for Zarr to read, or to refuse; one that is missing reads as the
fill value.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from headspan.store.schema import ArraySpec
from headspan.store.shard_layout import rows_first, shard_index

try:
    import numkong
except ImportError:
    # There is no wheel for every processor; NumPy then converts, more slowly.
    numkong = None  # type: ignore[assignment]

# A process may hold some 65,000 maps in all, by Linux's default.
_MAPS = 4096


class UnmappableError(Exception):
    """A shard that is not as this package writes them."""


class MappedRows:
    """One array of a store; its maps are made once, and kept as long as it is used."""

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        self._root = root
        self.spec = spec
        self._shards = lru_cache(_MAPS)(self._map)

    def read(self, index: Sequence[int] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """All rows, copied, at one place of each of the first axes behind them. Raises UnmappableError.

        `dtype` may be float32 where float16 is stored.
        """
        spec = self.spec
        values = np.empty((spec.shape[0], *spec.shape[1 + len(index) :]), dtype or spec.dtype)
        for first_row, chunk in zip(range(0, len(values), spec.chunk[0]), self.chunks(index), strict=True):
            rows = values[first_row : first_row + len(chunk)]
            _copy(chunk[: len(rows)], rows)
        return values

    def row(self, row: int, index: Sequence[int] = (), dtype: DTypeLike | None = None) -> np.ndarray:
        """One row, copied as by `read`. Raises UnmappableError."""
        values = np.empty(self.spec.shape[1 + len(index) :], dtype or self.spec.dtype)
        begin = row - row % self.spec.shard[0]
        where = (*divmod(row - begin, self.spec.chunk[0]), *self._places(index))
        _copy(self._shards(begin)[where], values)
        return values

    def chunks(self, index: Sequence[int] = (), first_row: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """The inner chunks with rows from `first_row`, which begins one, to `end`; `[row, chunk, place in chunk, …]`.

        They are views of where they lie. `index` picks one place of each of the first axes behind the rows; of the
        others, each has two. The array's last chunk may hold rows beyond its end. Raises UnmappableError.
        """
        rows, shard_rows, chunk_rows = self.spec.shape[0], self.spec.shard[0], self.spec.chunk[0]
        end = rows if end is None else end
        where: tuple[slice | int, ...] = (slice(None), slice(None), *self._places(index))
        for begin in range(first_row // shard_rows * shard_rows, end, shard_rows):
            first, last = max(0, first_row - begin) // chunk_rows, -(-(end - begin) // chunk_rows)
            yield from self._shards(begin)[where][first:last]

    def _places(self, index: Sequence[int]) -> list[int]:
        """Chunk and place in it along each of the axes behind the rows that `index` has a place of."""
        return [
            part for place, length in zip(index, self.spec.chunk[1:], strict=False) for part in divmod(place, length)
        ]

    def _map(self, first_row: int) -> np.ndarray:
        """The shard that begins with `first_row`, `[row chunk, row in chunk, chunk, place in chunk, …]`."""
        spec = self.spec
        shape = (spec.used_row_chunks(first_row), *spec.grid[1:], *spec.chunk)
        body_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
        index = shard_index(spec, shape[0])
        try:
            with (self._root / spec.file(first_row)).open("rb") as file:
                if os.fstat(file.fileno()).st_size != body_bytes + len(index):
                    raise UnmappableError
                mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except FileNotFoundError:
            return rows_first(np.broadcast_to(np.asarray(spec.fill, spec.dtype), shape))
        if mapped[body_bytes:].tobytes() != index:
            raise UnmappableError
        return rows_first(mapped[:body_bytes].view(spec.dtype).reshape(shape))


def _copy(values: np.ndarray, out: np.ndarray) -> None:
    """Write numbers that lie in inner chunks to the contiguous `out`."""
    # A view, but where chunks cut an axis that is read whole.
    values = values.reshape(out.shape)
    if values.dtype == out.dtype or numkong is None:
        out[...] = values
    else:
        # NumPy's own conversion from 16 bits takes twelve times as long.
        numkong.astype(values, "float32", out=out)
