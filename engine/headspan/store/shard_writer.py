"""One Zarr shard, assembled in memory and written as one file: inner chunks, index, crc32c.

Rows are put straight into their inner chunks, so that writing copies nothing. The format is Zarr v3's
`sharding_indexed` with uncompressed little-endian chunks and the index at the end.
"""

from __future__ import annotations

import math
from pathlib import Path

import google_crc32c
import numpy as np

from headspan.store.files import stage, write_atomically
from headspan.store.schema import ArraySpec

# What the index holds for an inner chunk that is not there.
_MISSING = np.uint64(2**64 - 1)


class ShardBuffer:
    """The rows `first_row …` of one array, up to one shard of them, NaN until they are put."""

    def __init__(self, spec: ArraySpec, first_row: int) -> None:
        assert first_row % spec.shard[0] == 0, "a shard begins at a multiple of its rows"
        self.spec = spec
        self.first_row = first_row
        self.rows = min(spec.shard[0], spec.shape[0] - first_row)
        grid = [length // part for length, part in zip(spec.shard, spec.chunk, strict=True)]
        self._chunks = np.full([*grid, *spec.chunk], spec.fill, dtype=spec.dtype)
        # The same memory as [row chunk, row in chunk, axis chunk, place in chunk, …].
        order = [axis for i in range(len(grid)) for axis in (i, i + len(grid))]
        self._by_row = self._chunks.transpose(order)

    def put(self, row: int, values: np.ndarray) -> None:
        """Place consecutive rows, the first of them `row`."""
        tail = self._by_row.shape[2:]
        start, chunk_rows = row - self.first_row, self.spec.chunk[0]
        done = 0
        while done < len(values):
            chunk, inside = divmod(start + done, chunk_rows)
            count = min(chunk_rows - inside, len(values) - done)
            self._by_row[chunk, inside : inside + count] = values[done : done + count].reshape(count, *tail)
            done += count

    def write(self, root: Path, token: str = "") -> tuple[str, int, int]:
        """Write the shard under the store `root`; returns its path there, its size and its crc32c.

        Until it is whole, its name holds the writer's `token`, by which other writers know whose it is.
        """
        name = self.spec.file(self.first_row)
        return name, *write_atomically(root / name, self._parts(), token)

    def stage(self, root: Path, token: str) -> tuple[str, int, int]:
        """As `write`, but the shard is only staged: on disk, and not yet under its name."""
        name = self.spec.file(self.first_row)
        return name, *stage(root / name, self._parts(), token)

    def _parts(self) -> list[bytes | memoryview]:
        """Inner chunks, index and its crc32c."""
        # Whole inner chunks beyond the array's end are left out; the last axis grid runs fastest.
        used_rows = math.ceil(self.rows / self.spec.chunk[0])
        per_row = math.prod(self._chunks.shape[1 : len(self.spec.chunk)])
        chunk_bytes = math.prod(self.spec.chunk) * self._chunks.itemsize
        index = np.full((len(self._chunks) * per_row, 2), _MISSING, dtype="<u8")
        used = used_rows * per_row
        index[:used, 0] = np.arange(used, dtype=np.uint64) * chunk_bytes
        index[:used, 1] = chunk_bytes
        index_bytes = index.tobytes()
        crc = google_crc32c.value(index_bytes).to_bytes(4, "little")
        body = self._chunks[:used_rows].reshape(-1).view(np.uint8).data
        return [body, index_bytes, crc]


def write_array(root: Path, spec: ArraySpec, values: np.ndarray, token: str = "") -> tuple[str, int, int]:
    """Write a whole array of one shard."""
    buffer = ShardBuffer(spec, 0)
    buffer.put(0, values)
    return buffer.write(root, token)
