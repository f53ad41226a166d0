"""Write one Zarr shard as one file, piece by piece while rows arrive: inner chunks, index, crc32c.

Rows are copied straight into their inner chunks, and rows of chunks are written as soon as they are full. So no shard
is ever whole in memory. Where the chunks of a row lie one after the other in the file, as those of patches do, large
runs of rows are written from the caller's memory, without a copy. The format is Zarr v3's `sharding_indexed` with
uncompressed little-endian chunks and the index at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from headspan.io.storage import Storage
from headspan.store.array_spec import ArraySpec
from headspan.store.shard_layout import in_row_order, rows_first, shard_index, undivided

# Bytes written at once, unless a row of chunks is larger.
_PIECE_BYTES = 8 << 20
# Fewer bytes are copied and written with those that follow, since each write costs a call of the system.
_UNCOPIED_BYTES = 1 << 20

Write = Callable[[memoryview], None]


class ShardPieces:
    """The shard of one array that begins with `first_row`, passed to `write` in the order of the file.

    Rows that are not put get the fill value. `write` may get memory of the caller of `put`, which must not change
    before `write` returns.
    """

    def __init__(self, spec: ArraySpec, first_row: int, write: Write) -> None:
        assert first_row % spec.shard[0] == 0, "a shard begins at a multiple of its rows"
        self.spec = spec
        self.first_row = first_row
        self._write = write
        self._used = spec.used_row_chunks(first_row)
        self._in_row_order = in_row_order(spec)
        # Axes from here on are the same in a row and in a chunk; their numbers are copied as one item, which NumPy does
        # several times as fast as number by number.
        self._axes = 1 if self._in_row_order else undivided(spec)
        # The next row, counted from the shard's first row; the piece that is being filled, and its first row.
        self._row = 0
        self._piece: np.ndarray | None = None
        self._piece_row = 0

    def put(self, row: int, values: np.ndarray) -> None:
        """Add consecutive rows that begin with `row`, after all rows that were put before."""
        assert row - self.first_row >= self._row, "rows come in order"
        self._place_nothing(row - self.first_row)
        values = np.ascontiguousarray(values, self.spec.dtype)
        if self._in_row_order and values.nbytes >= _UNCOPIED_BYTES:
            self._flush()
            step = max(1, _PIECE_BYTES // self.spec.row_bytes)
            for start in range(0, len(values), step):
                self._write(_bytes_of(values[start : start + step]))
            self._row += len(values)
        elif len(values):
            self._place(self._items(values))

    def end(self) -> None:
        """Write the rest: the last chunks, the index and its crc32c."""
        self._place_nothing(self._used * self.spec.chunk[0])
        self._flush()
        self._write(memoryview(shard_index(self.spec, self._used)))

    def _place_nothing(self, row: int) -> None:
        """Fill the rows before `row`, counted from the shard's first row."""
        if row == self._row:
            return
        fill = self._items(np.full((1, *self.spec.shape[1:]), self.spec.fill, self.spec.dtype))
        self._place(np.broadcast_to(fill, (row - self._row, *fill.shape[1:])))

    def _place(self, items: np.ndarray) -> None:
        """Copy rows into pieces, and write the pieces that are full."""
        done = 0
        while done < len(items):
            if self._piece is None:
                self._piece, self._piece_row = self._next_piece(), self._row
            by_row = rows_first(self._piece)
            chunk, inside = divmod(self._row - self._piece_row, by_row.shape[1])
            count = min(by_row.shape[1] - inside, len(items) - done)
            by_row[chunk, inside : inside + count] = items[done : done + count].reshape(count, *by_row.shape[2:])
            done += count
            self._row += count
            if self._row - self._piece_row == by_row.shape[0] * by_row.shape[1]:
                self._flush()

    def _flush(self) -> None:
        """Write the rows of the piece that is being filled."""
        if self._piece is not None:
            filled = self._piece[:, : self._row - self._piece_row] if self._in_row_order else self._piece
            self._write(_bytes_of(filled))
            self._piece = None

    def _items(self, values: np.ndarray) -> np.ndarray:
        """Return contiguous rows with the axes that chunks do not divide joined to one item."""
        shape = values.shape[: self._axes]
        return values.reshape(*shape, -1).view(self._item)[..., 0]

    @property
    def _item(self) -> np.dtype[np.void]:
        tail = self.spec.shape[self._axes :]
        return np.dtype((np.void, math.prod(tail) * np.dtype(self.spec.dtype).itemsize))

    def _next_piece(self) -> np.ndarray:
        """Return memory for the next rows, `[row chunk, axis chunk, …, row in chunk, place in chunk, …]`.

        In row order a piece may begin and end at any row, so it is as if it had one row of chunks.
        """
        most, chunk_rows = piece_rows(self.spec), self.spec.chunk[0]
        rows = min(most, self._used * chunk_rows - self._row)
        if self._in_row_order:
            return np.empty([1, rows], dtype=self._item)
        grid, chunk = self.spec.grid[1 : self._axes], self.spec.chunk[: self._axes]
        return np.empty([rows // chunk_rows, *grid, *chunk], dtype=self._item)


def _bytes_of(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def piece_rows(spec: ArraySpec) -> int:
    """Return how many rows of an array are written at once, a whole number of chunks."""
    chunks = min(spec.shard[0] // spec.chunk[0], _PIECE_BYTES // (spec.chunk[0] * spec.row_bytes))
    return max(1, chunks) * spec.chunk[0]


def write_array(storage: Storage, spec: ArraySpec, values: np.ndarray) -> tuple[str, int, int]:
    """Write an array that is one shard. Returns its key, its size and its crc32c."""
    parts: list[memoryview] = []
    pieces = ShardPieces(spec, 0, parts.append)
    pieces.put(0, values)
    pieces.end()
    name = spec.file(0)
    return name, *storage.put(name, parts)
