"""Vectors without some of a dictionary's features, or with these alone.

What a dictionary does not explain, the residual, belongs to no feature. It is either kept, so that a vector loses
exactly the directions of the features that are removed, or dropped, so that nothing but features remains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from headspan.features.learners.learner import IMAGE, Learner

# What happens to what the dictionary does not explain.
RESIDUALS = KEPT, DROPPED = "kept", "dropped"
# Vectors that are encoded at once: 128 MB of codes of 8,192 features.
_AT_ONCE = 4096


def filtered(
    learner: Learner,
    vectors: Float[Tensor, "vector width"],
    keep: Bool[Tensor, " feature"],
    residual: str = KEPT,
    side: int = IMAGE,
) -> Float[Tensor, "vector width"]:
    """Unit vectors with the features of `keep` alone, not normalised again; gradients flow through the codes."""
    codes = learner.encode(vectors, side)
    left = learner.decode(codes * keep, side)
    return left + (vectors - learner.decode(codes, side)) if residual == KEPT else left


def each_filtered(
    learner: Learner,
    vectors: Float32[np.ndarray, "vector width"],
    keeps: Bool[np.ndarray, "set feature"],
    residual: str = KEPT,
    side: int = IMAGE,
) -> Iterator[Float32[np.ndarray, "vector width"]]:
    """The unit vectors with each set of features alone, as `filtered` gives them, one set after the other.

    Codes are kept between sets as those above 0 only, so that the memory does not grow with the number of features.
    """
    codes, left = _sparse_codes(learner, vectors, side)
    device = next(learner.parameters()).device
    with torch.no_grad():
        for keep in keeps:
            found = np.empty_like(vectors)
            kept = torch.from_numpy(keep).to(device)
            for first, some in zip(range(0, len(vectors), _AT_ONCE), codes, strict=True):
                rows = learner.decode(some.to_dense() * kept, side).cpu().numpy()
                found[first : first + _AT_ONCE] = rows
            yield found + left if residual == KEPT else found


def mean_squares(
    learner: Learner, vectors: Float32[np.ndarray, "vector width"], side: int = IMAGE
) -> Float64[np.ndarray, " feature"]:
    """The energy of each feature: the mean square of its codes over unit vectors."""
    device = next(learner.parameters()).device
    total: Tensor | None = None
    with torch.no_grad():
        for first in range(0, len(vectors), _AT_ONCE):
            codes = learner.encode(torch.from_numpy(vectors[first : first + _AT_ONCE]).to(device), side)
            own = codes.double().square().sum(dim=0)
            total = own if total is None else total + own
    assert total is not None, "there is at least one vector"
    found: Float64[np.ndarray, " feature"] = (total / len(vectors)).cpu().numpy()
    return found


def _sparse_codes(
    learner: Learner, vectors: Float32[np.ndarray, "vector width"], side: int
) -> tuple[list[Tensor], Float32[np.ndarray, "vector width"]]:
    """The codes of blocks of vectors as sparse tensors, and the residuals."""
    device = next(learner.parameters()).device
    codes, left = [], np.empty_like(vectors)
    with torch.no_grad():
        for first in range(0, len(vectors), _AT_ONCE):
            some = torch.from_numpy(vectors[first : first + _AT_ONCE]).to(device)
            found = learner.encode(some, side)
            left[first : first + _AT_ONCE] = (some - learner.decode(found, side)).cpu().numpy()
            codes.append(found.to_sparse())
    return codes, left
