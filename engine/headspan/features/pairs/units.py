"""Vectors divided by their lengths."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

_LEAST_LENGTH = 1e-30


def units(vectors: Float[np.ndarray, "vector width"]) -> Float32[np.ndarray, "vector width"]:
    """Each vector divided by its length, in the precision of `vectors`; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _LEAST_LENGTH), np.float32)
