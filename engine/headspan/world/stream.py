"""Random draws that are the same on every machine and with every NumPy.

Only PCG64's raw 64-bit words and SeedSequence are used, whose values NumPy promises to keep; the algorithms
of `Generator` and of Python's `random` may change between versions. Speed comes from drawing words in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

_BLOCK = 96
T = TypeVar("T")


class Stream:
    """One endless row of draws, named by whole numbers from 0 on: the same key, the same row."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._left: list[float] = []

    def unit(self) -> float:
        """A number in [0, 1) with 53 random bits."""
        if not self._left:
            words = self._bits.random_raw(_BLOCK)
            self._left = ((words >> np.uint64(11)) * 2.0**-53).tolist()
            self._left.reverse()
        return self._left.pop()

    def between(self, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self.unit()

    def below(self, end: int) -> int:
        """A whole number from 0 to `end` - 1."""
        return int(self.unit() * end)

    def chance(self, share: float) -> bool:
        """True in `share` of all cases."""
        return self.unit() < share

    def choice(self, values: Sequence[T]) -> T:
        """One of `values`, each as likely as the others."""
        return values[int(self.unit() * len(values))]

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """`count` of `values` in random order, none twice."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def noise_bytes(key: int, count: int) -> UInt8[np.ndarray, " count"]:
    """`count` random bytes named by `key`."""
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count]
