"""Dictionaries whose codes are the largest activations of a linear encoder."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from headspan.features.learners.active import Active, largest
from headspan.features.learners.dictionary_learner import DictionaryLearner
from headspan.features.learners.learner import IMAGE
from headspan.features.learners.settings import SparseSettings


class Autoencoder(DictionaryLearner):
    """Activations `ReLU(W_enc (x − b) + c)`, of which each learner keeps a few.

    The encoder starts as the decoder's transpose, as in Gao et al. (arXiv 2406.04093).
    """

    def __init__(self, settings: SparseSettings) -> None:
        super().__init__(settings)
        # The encoder lies in memory by feature, as the decoder does, so that gradients touch whole rows.
        self.W_enc = nn.Parameter(self.W_dec.detach().clone().t())
        self.b_enc = nn.Parameter(torch.zeros(settings.features))

    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        return largest(centred, self.W_enc.t(), self.b_enc, self.k)

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        activations = self.activations(vectors - self.bias(side))
        values, features = activations.topk(self.k, sorted=False)
        return torch.zeros_like(activations).scatter(1, features, values.relu())

    def activations(self, centred: Float[Tensor, "vector width"]) -> Float[Tensor, "vector feature"]:
        """The activations of all features, before ReLU."""
        return torch.addmm(self.b_enc, centred, self.W_enc)

    def helpers(
        self, centred: Float[Tensor, "vector width"], residual: Float[Tensor, "vector width"], dead: Int64[Tensor, " n"]
    ) -> Active:
        return largest(centred, self.W_enc.t()[dead], self.b_enc[dead], min(self.aux_k, dead.numel()))
