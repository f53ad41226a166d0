"""Numbers that look random, made of numbers that name things: equal for a thing in whatever block it comes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64

GOLDEN = 0x9E3779B97F4A7C15


def mixed(numbers: Int[np.ndarray, " number"], start: int) -> UInt64[np.ndarray, " number"]:
    """64 bits for each number, others for each `start`: SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014)."""
    # Array arithmetic of unsigned integers wraps around, as the method wants.
    bits = numbers.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(start & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
