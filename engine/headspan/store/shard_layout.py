"""The layout of a Zarr shard in its file: inner chunks, then the index and its crc32c.

The format is Zarr v3's `sharding_indexed` codec with uncompressed little-endian chunks and the index at the end.
"""

from __future__ import annotations

import math
from functools import lru_cache

import google_crc32c
import numpy as np

from headspan.store.array_spec import ArraySpec

# The entry of the index for an inner chunk that is missing.
_MISSING = np.uint64(2**64 - 1)


def rows_first(chunks: np.ndarray) -> np.ndarray:
    """Return a view `[row chunk, row in chunk, axis chunk, place in chunk, …]` of the chunks of a shard.

    `chunks` are in the order of the file: `[row chunk, axis chunk, …, row in chunk, place in chunk, …]`.
    """
    axes = chunks.ndim // 2
    return chunks.transpose([axis for i in range(axes) for axis in (i, i + axes)])


def file_order(rows: np.ndarray) -> np.ndarray:
    """Return the view that `rows_first` was called with to give `rows`."""
    return rows.transpose([*range(0, rows.ndim, 2), *range(1, rows.ndim, 2)])


@lru_cache(256)
def undivided(spec: ArraySpec) -> int:
    """Return the first axis from which on an inner chunk holds whole axes; 1 if it holds whole rows."""
    divided = [axis for axis, count in enumerate(spec.grid) if count > 1 and axis > 0]
    return divided[-1] + 1 if divided else 1


def in_row_order(spec: ArraySpec) -> bool:
    """Return whether the rows of a shard lie in its file one after the other, each in the order of C."""
    return all(length == 1 for length in spec.chunk[: undivided(spec) - 1])


def shard_index(spec: ArraySpec, used: int) -> bytes:
    """Return index and crc32c of a shard that contains the first `used` rows of chunks, one after the other."""
    chunk_bytes = math.prod(spec.chunk) * np.dtype(spec.dtype).itemsize
    index = np.full((math.prod(spec.grid), 2), _MISSING, dtype="<u8")
    # In the order of C: the last axis of the grid varies fastest.
    there = index[: used * math.prod(spec.grid[1:])]
    there[:, 0] = np.arange(len(there), dtype=np.uint64) * chunk_bytes
    there[:, 1] = chunk_bytes
    data = index.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")
