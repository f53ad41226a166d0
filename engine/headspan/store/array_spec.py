"""The shape of one array of a store, and how it is divided into shards (files) and inner chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: its shape, and the shapes of its shards (files) and inner chunks."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    shard: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of inner chunks of a shard along each axis."""
        return tuple(length // part for length, part in zip(self.shard, self.chunk, strict=True))

    def used_row_chunks(self, first_row: int) -> int:
        """Return how many rows of chunks the shard that begins with `first_row` has; chunks beyond the end of the array
        are omitted."""
        return math.ceil(min(self.shard[0], self.shape[0] - first_row) / self.chunk[0])

    @property
    def fill(self) -> float | int:
        """NaN, or 0 for whole numbers."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    def file(self, row: int) -> str:
        """Return the key of the shard that contains `row`."""
        parts = [str(row // self.shard[0]), *("0" for _ in self.shape[1:])]
        return "/".join([self.name, "c", *parts])
