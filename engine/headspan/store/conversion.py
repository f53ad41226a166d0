"""Copy numbers from 16 bits to 32, at the speed of memory where the processor has instructions for it."""

from __future__ import annotations

import numpy as np

try:
    import numkong
except ImportError:
    # Not every processor has a wheel. Without it NumPy converts, more slowly.
    numkong = None  # type: ignore[assignment]


def copy_numbers(values: np.ndarray, out: np.ndarray) -> None:
    """Copy numbers of the stored type to the contiguous `out`, which is of that type or float32."""
    # A view, unless an axis that is read whole is divided into chunks.
    values = values.reshape(out.shape)
    if values.dtype == out.dtype or numkong is None:
        out[...] = values
    else:
        # NumPy's conversion from 16 bits takes twelve times as long.
        numkong.astype(values, "float32", out=out)
