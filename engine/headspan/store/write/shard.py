"""One Zarr shard as one file: inner chunks, index, crc32c, given out piece by piece while rows come.

Rows are put straight into their inner chunks, and whole rows of chunks go as soon as they are full, so that writing
copies nothing and no shard is ever whole in memory. The format is Zarr v3's `sharding_indexed` with uncompressed
little-endian chunks and the index at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from headspan.io.local import write_atomically
from headspan.store.schema import ArraySpec
from headspan.store.shard_layout import rows_first, shard_index

# Bytes that are given out at once, if a row of chunks is not larger.
_PIECE_BYTES = 8 << 20

Write = Callable[[memoryview], None]


class ShardPieces:
    """The rows `first_row …` of one array, up to one shard of them, given to `write` in the order of the file.

    Rows that are not put are NaN.
    """

    def __init__(self, spec: ArraySpec, first_row: int, write: Write) -> None:
        assert first_row % spec.shard[0] == 0, "a shard begins at a multiple of its rows"
        self.spec = spec
        self.first_row = first_row
        self._write = write
        self._used = spec.used_row_chunks(first_row)
        # The next row, counted from the shard's first, and the piece being filled.
        self._row = 0
        self._piece_rows = piece_rows(spec)
        self._piece: np.ndarray | None = None

    def put(self, row: int, values: np.ndarray) -> None:
        """Place consecutive rows, the first of them `row`, behind those that were put before."""
        assert row - self.first_row >= self._row, "rows come in order"
        self._place_nothing(row - self.first_row)
        self._place(values)

    def end(self) -> None:
        """Give out what is left: the last chunks, the index and its crc32c."""
        self._place_nothing(self._used * self.spec.chunk[0])
        self._write(memoryview(shard_index(self.spec, self._used)))

    def _place_nothing(self, row: int) -> None:
        """Fill the rows before `row`, counted from the shard's first."""
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
        """Room for the next rows of chunks, `[row chunk, axis chunk, …, row in chunk, place in chunk, …]`."""
        left = self._used - self._row // self.spec.chunk[0]
        chunks = min(self._piece_rows // self.spec.chunk[0], left)
        return np.empty([chunks, *self.spec.grid[1:], *self.spec.chunk], dtype=self.spec.dtype)


def piece_rows(spec: ArraySpec) -> int:
    """How many rows of an array are given out at once: a whole number of its chunks."""
    chunks = min(spec.shard[0] // spec.chunk[0], _PIECE_BYTES // (spec.chunk[0] * spec.row_bytes))
    return max(1, chunks) * spec.chunk[0]


def write_array(root: Path, spec: ArraySpec, values: np.ndarray, token: str = "") -> tuple[str, int, int]:
    """Write a whole array of one shard under the store `root`; returns its path there, its size and its crc32c.

    Until it is whole, its name holds the writer's `token`, by which other writers know whose it is.
    """
    parts: list[memoryview] = []
    pieces = ShardPieces(spec, 0, parts.append)
    pieces.put(0, values)
    pieces.end()
    name = spec.file(0)
    return name, *write_atomically(root / name, parts, token)
