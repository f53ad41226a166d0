"""Compare the codes of pairs by their active features alone, without their zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headspan.features.learners.active import Active

# Below this a square root has no useful gradient.
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Codes of one side: as many listed features for each vector. A feature may be listed more than once."""

    features: Int64[Tensor, "vector k"]
    values: Float[Tensor, "vector k"]

    def same(self, other: Rows) -> Bool[Tensor, "vector k k"]:
        """Which listed features of a vector are which of its partner."""
        return self.features[:, :, None] == other.features[:, None, :]

    def product(self, other: Rows) -> Float[Tensor, " vector"]:
        """The product of the codes of each pair."""
        return torch.einsum("vj,vjk,vk->v", self.values, self.same(other).to(self.values.dtype), other.values)

    def without(self, features: Int64[Tensor, "vector other"]) -> Rows:
        """The same codes with the value 0 for these features of each vector."""
        left_out = (self.features[:, :, None] == features[:, None, :]).any(2)
        return Rows(self.features, self.values.masked_fill(left_out, 0))

    def strongest(self) -> Int64[Tensor, "vector 1"]:
        """The feature with the largest value in each code."""
        sums = (self.same(self) * self.values.detach()[:, None, :]).sum(2)
        return self.features.gather(1, sums.argmax(1, keepdim=True))


def pair_of(codes: Active, pairs: int) -> tuple[Rows, Rows]:
    """The codes of images, which come first, and of their texts."""
    features = codes.features.view(2 * pairs, -1)
    values = codes.values.view(2 * pairs, -1)
    return Rows(features[:pairs], values[:pairs]), Rows(features[pairs:], values[pairs:])


def cosines(one: Rows, other: Rows) -> Float[Tensor, " vector"]:
    """The cosine of the codes of each pair; 0 where a code is empty."""
    lengths = (one.product(one) * other.product(other)).clamp_min(_TINY).sqrt()
    return one.product(other) / lengths


def group_norms(one: Rows, other: Rows) -> Float[Tensor, " vector"]:
    """`Σ_k sqrt(z_k² + w_k²)` of each pair. No feature may be listed twice."""
    same = one.same(other)
    beside = (same * other.values[:, None, :]).sum(2)
    alone = other.values.masked_fill(same.any(1), 0)
    return (one.values.square() + beside.square()).clamp_min(_TINY).sqrt().sum(1) + alone.sum(1)
