"""PTX arithmetic on 32 lanes at once: typed arrays in, a typed array out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LANES = 32
DTYPES: dict[str, Any] = {
    **{f"{kind}8": np.uint8 for kind in "bu"},
    **{f"{kind}16": np.uint16 for kind in "bu"},
    **{f"{kind}32": np.uint32 for kind in "bu"},
    **{f"{kind}64": np.uint64 for kind in "bu"},
    **{"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64},
    **{"f16": np.float16, "f32": np.float32, "f64": np.float64},
}


_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
# For each type its NumPy type, and how many numbers of it fit into 64 bits.
_PIECES = {kind: (np.dtype(dtype), 8 // np.dtype(dtype).itemsize) for kind, dtype in DTYPES.items()}
_PIECES |= {"tf32": _PIECES["f32"], "pred": _PIECES["b8"]}


def to_bits(values: np.ndarray) -> np.ndarray:
    """Numbers as the low bits of 64-bit integers."""
    return values.view(_UNSIGNED[values.dtype.itemsize]).astype(np.uint64)


def from_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    """The low bits of 64-bit integers as numbers of a type; bfloat16 becomes float32."""
    if kind == "bf16":
        return ((bits & 0xFFFF) << 16).astype(np.uint32).view(np.float32)
    dtype, pieces = _PIECES[kind]
    # The lowest bits come first in memory: a view, and no copy.
    return bits.view(dtype)[..., ::pieces]


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as the low bits of 64-bit integers."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint64(0x7FFF), rounded)


def tf32(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it: ten bits of mantissa, the rest cut off."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    # Towards zero, as in C; the result of a division by zero is undefined.
    exact = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return (exact * np.sign(a.astype(np.int64)) * np.sign(b.astype(np.int64))).astype(a.dtype)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _shifted(shift: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def by(a: np.ndarray, count: np.ndarray) -> np.ndarray:
        # A shift by the width or more leaves zero, or only the sign.
        width = 8 * a.dtype.itemsize
        some = shift(a, np.minimum(count, width - 1).astype(a.dtype))
        return np.where((count >= width) & (a >= 0), a.dtype.type(0), some)

    return by


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "fma": _fused,
    "div": _divide,
    "rem": np.fmod,
    "neg": np.negative,
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": _shifted(np.left_shift),
    "shr": _shifted(np.right_shift),
    "sqrt": np.sqrt,
    "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(a.dtype),
    "ex2": np.exp2,
}
COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    # True if either is NaN.
    "neu": np.not_equal,
    "num": lambda a, b: (a == a) & (b == b),
}
