"""Free texts and directions of the mean gap between images and texts, so that they can be compared by their cosines.

Unit vectors of images and of texts crowd around two different means. With `g` the unit vector from the pool's mean
vector `m` to the images' mean unit embedding, a direction `d` becomes `d − (d·g) g`, and a text `t` becomes
`(t − m) − ((t − m)·g) g`, both divided by their lengths.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64

from headspan.store.moments_file import EmbeddingMoments

# What is left of a text or direction after the gap is removed is rounding below this length.
_LEAST_LENGTH = 1e-6


def freed_texts(
    vectors: Float32[np.ndarray, "text joint"], embedding: EmbeddingMoments
) -> tuple[Float64[np.ndarray, "text joint"], Float64[np.ndarray, " joint"]]:
    """Unit vectors of texts without their mean and without the gap's direction; and that direction, a unit vector."""
    exact = vectors.astype(np.float64)
    mean = exact.mean(axis=0)
    gap = unit_rows((embedding.total / embedding.count - mean)[None])[0]
    return without_gap(exact - mean, gap), gap


def without_gap(
    vectors: Float64[np.ndarray, "vector joint"], gap: Float64[np.ndarray, " joint"]
) -> Float64[np.ndarray, "vector joint"]:
    """Unit vectors without their part along `gap`; zeros if nothing else is left."""
    return unit_rows(vectors - np.outer(vectors @ gap, gap))


def unit_rows(rows: Float[np.ndarray, "row joint"]) -> Float64[np.ndarray, "row joint"]:
    """The rows divided by their lengths; zeros where a row is shorter than rounding."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64[np.ndarray, "row joint"] = rows / np.where(lengths > _LEAST_LENGTH, lengths, np.inf)
    return unit
