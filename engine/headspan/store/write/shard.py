"""Write one Zarr shard as one file, piece by piece while rows arrive: inner chunks, index, crc32c.

Rows are copied straight into their inner chunks, and rows of chunks are written as soon as they are full. So no shard
is ever whole in memory. The format is Zarr v3's `sharding_indexed` with uncompressed little-endian chunks and the index
at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headspan.io.storage import Storage
from headspan.store.array_spec import ArraySpec
from headspan.store.shard_layout import rows_first, shard_index

# Bytes written at once, unless a row of chunks is larger.
_PIECE_BYTES = 8 << 20

Write = Callable[[memoryview], None]


class ShardPieces:
    """The shard of one array that begins with `first_row`, passed to `write` in the order of the file.

    Rows that are not put get the fill value.
    """

    def __init__(self, spec: ArraySpec, first_row: int, write: Write) -> None:
        assert first_row % spec.shard[0] == 0, "a shard begins at a multiple of its rows"
        self.spec = spec
        self.first_row = first_row
        self._write = write
        self._used = spec.used_row_chunks(first_row)
        # The next row, counted from the shard's first row, and the piece that is being filled.
        self._row = 0
        self._piece_rows = piece_rows(spec)
        self._piece: np.ndarray | None = None

    def put(self, row: int, values: np.ndarray) -> None:
        """Add consecutive rows that begin with `row`, after all rows that were put before."""
        assert row - self.first_row >= self._row, "rows come in order"
        self._place_nothing(row - self.first_row)
        self._place(values)

    def end(self) -> None:
        """Write the rest: the last chunks, the index and its crc32c."""
        self._place_nothing(self._used * self.spec.chunk[0])
        self._write(memoryview(shard_index(self.spec, self._used)))

    def _place_nothing(self, row: int) -> None:
        """Fill the rows before `row`, counted from the shard's first row."""
        tail = self.spec.shape[1:]
        self._place(np.broadcast_to(np.asarray(self.spec.fill, self.spec.dtype), (row - self._row, *tail)))

    def _place(self, values: np.ndarray) -> None:
        chunk_rows = self.spec.chunk[0]
        done = 0
        while done < len(values):
            if self._piece is None:
                self._piece = self._next_piece()
            by_row = rows_first(self._piece)
            chunk, inside = divmod(self._row % self._piece_rows, chunk_rows)
            count = min(chunk_rows - inside, len(values) - done)
            by_row[chunk, inside : inside + count] = values[done : done + count].reshape(count, *by_row.shape[2:])
            done += count
            self._row += count
            if chunk + 1 == len(by_row) and inside + count == chunk_rows:
                self._write(self._piece.reshape(-1).view(np.uint8).data)
                self._piece = None

    def _next_piece(self) -> np.ndarray:
        """Return memory for the next rows of chunks, `[row chunk, axis chunk, …, row in chunk, place in chunk, …]`."""
        left = self._used - self._row // self.spec.chunk[0]
        chunks = min(self._piece_rows // self.spec.chunk[0], left)
        return np.empty([chunks, *self.spec.grid[1:], *self.spec.chunk], dtype=self.spec.dtype)


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
