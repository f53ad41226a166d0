"""Score images by their unit embeddings in which the contributions of some heads are at their means.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024 (mean ablation). Embeddings are divided by the original `‖embedding‖`
and not normalised again, as those of `prune.mean_ablated`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.explore.nearest.scored import Scored, ScoredEmbedding, ScoredHeads
from headspan.store.head_space import Head
from headspan.store.kept_means import head_means
from headspan.store.reader import Store


class ScoredAblated(Scored):
    """Every image's unit embedding, with the contributions of `heads` replaced by their means over all good images."""

    def __init__(self, store: Store, heads: Sequence[Head]) -> None:
        self._whole, self._removed = ScoredEmbedding(store), ScoredHeads(store, heads)
        # `ScoredHeads` divides by the number of heads.
        self._count = len(heads)
        self._mean = mean_of_heads(store, heads)
        self.heads = list(heads)

    @property
    def bytes(self) -> int:
        return self._whole.bytes + self._removed.bytes

    def constant(self, query: Float32[np.ndarray, " joint"]) -> float:
        """What the heads' means add to every score."""
        return float(self._mean @ query.astype(np.float64))

    def scores(self, query: Float32[np.ndarray, " joint"]) -> Float32[np.ndarray, " images"]:
        found = self._whole.scores(query)
        found -= np.float32(self._count) * self._removed.scores(query)
        found += np.float32(self._mean @ query)
        return found

    def exact(
        self, query: Float32[np.ndarray, " joint"], images: Int[np.ndarray, " some"]
    ) -> Float64[np.ndarray, " some"]:
        removed = self._count * self._removed.exact(query, images)
        return self._whole.exact(query, images) - removed + self.constant(query)

    def rounding(self, query: Float32[np.ndarray, " joint"]) -> float:
        """The sum of the roundings of both parts; that of their difference is far below these bounds."""
        return self._whole.rounding(query) + self._count * self._removed.rounding(query)


def mean_of_heads(store: Store, heads: Sequence[Head]) -> Float64[np.ndarray, " joint"]:
    """The sum, over `heads`, of the mean contribution over all good images."""
    found = np.zeros(store.joint)
    for head, mean in zip(heads, head_means(store, heads), strict=True):
        found += mean @ store.head_directions(*head).astype(np.float64)
    return found
