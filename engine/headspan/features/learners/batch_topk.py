"""BatchTopK: the k·n largest activations of a batch of n vectors, so that a vector may have more or fewer than k.

Formula: Bussmann et al., "BatchTopK Sparse Autoencoders" (arXiv 2412.06410). At inference, activations above a
threshold are kept, so that a code depends on its vector alone; the threshold is a running mean of the smallest
activation kept in training, with the momentum 0.9 of `overcomplete`. Settings: as TopK's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.features.learners.active import Active, of_activations
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.kinds import BATCH_TOPK
from headspan.features.learners.learner import IMAGE
from headspan.features.learners.settings import SparseSettings

MOMENTUM = 0.9


class BatchTopK(Autoencoder):
    """Keeps the k·n largest activations of n vectors; at inference, those above a running threshold."""

    kind: ClassVar[str] = BATCH_TOPK
    threshold: Tensor

    def __init__(self, settings: SparseSettings) -> None:
        super().__init__(settings)
        # Below 0 until the first step of training.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        rows = self.W_enc.t()
        with torch.no_grad():
            activations = self.activations(centred).relu_()
            count = min(self.k * centred.shape[0], activations.numel())
            chosen, least = largest_of_all(activations, count)
            if self.training:
                self._follow(least)
        return of_activations(centred, rows, self.b_enc, chosen)

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        activations = self.activations(vectors - self.bias(side)).relu()
        return activations * (activations >= self.threshold)

    def _follow(self, least: Float[Tensor, ""]) -> None:
        moved = MOMENTUM * self.threshold + (1 - MOMENTUM) * least
        self.threshold.copy_(torch.where(self.threshold < 0, least, moved))


def largest_of_all(activations: Float[Tensor, "vector feature"], count: int) -> tuple[Active, Float[Tensor, ""]]:
    """The `count` largest activations of all vectors, and the least of them. Of equal activations, any are taken.

    Choosing among all at once is slow, so each vector's largest are candidates first: four times as many as it has on
    average. Where a vector has more than that among the largest, all activations are candidates.
    """
    vectors, features = activations.shape
    candidates = min(features, -(-4 * count // vectors))
    values, places = activations.topk(candidates, sorted=False)
    largest, chosen = values.flatten().topk(count, sorted=False)
    least = largest.min()
    if candidates < features and bool((values.min(1).values > least).any()):
        values, places = activations, torch.arange(features, device=activations.device).expand_as(activations)
        largest, chosen = values.flatten().topk(count, sorted=False)
        least = largest.min()
    # In the order of vectors, as lists of active features are.
    chosen, order = chosen.sort()
    per_vector = torch.bincount(chosen // values.shape[1], minlength=vectors)
    return Active(per_vector.cumsum(0) - per_vector, places.flatten()[chosen], largest[order]), least
