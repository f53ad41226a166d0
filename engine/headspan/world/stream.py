"""Random numbers that are the same on every machine and with every version of NumPy.

They come from PCG64's raw 64-bit words and from SeedSequence, whose values NumPy promises not to change. The algorithms
of `Generator` and of Python's `random` may change between versions. Words are drawn in blocks for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

_BLOCK = 96
T = TypeVar("T")


class Stream:
    """An endless sequence of random numbers that is determined by its key, a tuple of non-negative integers."""

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
        """A uniform number from `low` to `high`."""
        return low + (high - low) * self.unit()

    def below(self, end: int) -> int:
        """A uniform integer from 0 to `end` - 1."""
        return int(self.unit() * end)

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self.unit() < share

    def choice(self, values: Sequence[T]) -> T:
        """One of `values`, all equally likely."""
        return values[int(self.unit() * len(values))]

    def sample(self, values: Sequence[T], count: int) -> list[T]:
        """`count` of `values` in random order, without repetition."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def noise_bytes(key: int, count: int) -> UInt8[np.ndarray, " count"]:
    """`count` random bytes that are determined by `key`."""
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count]
