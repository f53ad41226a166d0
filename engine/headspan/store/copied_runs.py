"""Copy pieces of shards that follow one another as slices of bytes, one for each run of them.

A slice costs half a microsecond. NumPy needs a dozen calls for each shard, so it takes longer for a few rows of many
shards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# So many runs of each shard cost as much as NumPy's calls for it.
_MOST_OF_SHARD = 96


class Runs:
    """Which pieces of which shards follow one another, in the order in which they are wanted."""

    def __init__(self, shards: np.ndarray, index: np.ndarray) -> None:
        """`index` is `[row, place]`: the number of a piece in the row's shard, of `shards`."""
        pieces, of = index.reshape(-1), np.repeat(shards, index.shape[1])
        borders = np.flatnonzero((np.diff(pieces) != 1) | (np.diff(of) != 0)) + 1
        first = np.concatenate([np.zeros(1, np.int64), borders])
        self._shards, self._starts = of[first], pieces[first]
        self._lengths = np.diff(first, append=len(pieces))

    @property
    def are_few(self) -> bool:
        """Whether slices take less time than NumPy's calls for each shard."""
        return len(self._starts) < _MOST_OF_SHARD * len(np.unique(self._shards))

    def copy(self, bytes_of: Callable[[int], memoryview | None], item: int, fill: bytes, out: np.ndarray) -> None:
        """Copy the pieces, of `item` bytes each, to the contiguous `out`; `bytes_of` a missing shard are None."""
        target, place = out.reshape(-1).view(np.uint8).data, 0
        sources: dict[int, memoryview | None] = {}
        parts = (each.tolist() for each in (self._shards, self._starts * item, self._lengths * item))
        for shard, start, length in zip(*parts, strict=True):
            if shard not in sources:
                sources[shard] = bytes_of(shard)
            source = sources[shard]
            if source is None:
                target[place : place + length] = fill * (length // len(fill))
            else:
                target[place : place + length] = source[start : start + length]
            place += length
