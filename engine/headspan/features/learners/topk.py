"""TopK: the k largest activations of each vector.

Formula: `z = ReLU(TopK(W_enc (x − b) + c))`, Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv
2406.04093). Settings: the TopK baseline of group-sparse autoencoders on CLIP's embeddings (32 of 16 times the width).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.features.learners.active import Active, largest
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.kinds import TOPK
from headspan.features.learners.learner import IMAGE


class TopK(Autoencoder):
    """Keeps the k largest activations of each vector."""

    kind: ClassVar[str] = TOPK

    def active(self, centred: Float[Tensor, "vector width"]) -> Active:
        return largest(centred, self.W_enc.t(), self.b_enc, self.given.k)

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        activations = torch.addmm(self.b_enc, vectors - self.bias(side), self.W_enc)
        values, features = activations.topk(self.given.k, sorted=False)
        return torch.zeros_like(activations).scatter(1, features, values.relu())
