"""Sparse codes of a block of vectors, as the scores add them: only the numbers above 0."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csr_array

# A row is a vector's code, and a column a feature; features of a row are in order, and all stored numbers are above 0.
Codes: TypeAlias = csr_array


def sparse_codes(dense: Float[np.ndarray, "vector feature"]) -> Codes:
    """The codes above 0. Reads the dense numbers once; everything after it costs as many steps as there are codes."""
    vectors, features = dense.shape
    flat = np.ascontiguousarray(dense).reshape(-1)
    places = np.flatnonzero(flat > 0)
    ends = np.searchsorted(places, np.arange(1, vectors + 1) * features)
    indptr = np.concatenate([[0], ends]).astype(np.int64)
    return csr_array((flat[places], places % features, indptr), shape=(vectors, features))


def rows_of(codes: Codes) -> Int64[np.ndarray, " code"]:
    """The row of each number of `codes.data`."""
    return np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))


def sums_by_feature(values: np.ndarray, codes: Codes) -> Float[np.ndarray, " feature"]:
    """The sum of `values`, one for each number of `codes.data`, by feature, in float64."""
    return np.bincount(codes.indices, values, minlength=codes.shape[1])


def weighted_sums(codes: Codes, vectors: Float[np.ndarray, "vector width"]) -> Float[np.ndarray, "feature width"]:
    """For each feature, the sum of the vectors weighted by its codes, in float64 if both are, else in float32."""
    return np.asarray(codes.T @ vectors)


def at_same_places(codes: Codes, other: Codes) -> Float[np.ndarray, " code"]:
    """For each number of `codes.data`, the code of `other` in the same row and for the same feature; 0 without one."""
    width = codes.shape[1]
    if not other.nnz:
        return np.zeros(codes.nnz, codes.data.dtype)
    own = rows_of(codes) * width + codes.indices
    others = rows_of(other) * width + other.indices
    places = np.minimum(np.searchsorted(others, own), len(others) - 1)
    return np.where(others[places] == own, other.data[places], np.zeros((), other.data.dtype))
