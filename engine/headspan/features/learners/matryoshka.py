"""Matryoshka: one dictionary whose k, 2k, 4k, … largest activations each reconstruct the vector.

This is the variant with nested numbers of active features (MSAE, "Interpreting CLIP with Hierarchical Sparse
Autoencoders"), not the one with nested groups of features. Formula and weightings: its public code. Codes at inference
have the smallest of the nested numbers. The published numbers go on to all features; ours end at the width, since a
vector has no more independent directions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.features.learners.active import Active, largest
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.dictionary_learner import Terms
from headspan.features.learners.kinds import MATRYOSHKA
from headspan.features.learners.settings import REVERSED, MatryoshkaSettings, Settings


class Matryoshka(Autoencoder):
    """Reconstructs with nested numbers of the largest activations."""

    kind: ClassVar[str] = MATRYOSHKA
    settings_type: ClassVar[type[Settings]] = MatryoshkaSettings

    def __init__(self, settings: MatryoshkaSettings) -> None:
        super().__init__(settings)
        self.levels = settings.levels()
        count = len(self.levels)
        weights = [count - level if settings.weighting == REVERSED else 1 for level in range(count)]
        self.shares = [weight / sum(weights) for weight in weights]

    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        # Sorted, so that the features of each level come before those that the next adds.
        return largest(centred, self.W_enc.t(), self.b_enc, self.levels[-1], ordered=True)

    def reconstruction(
        self, centred: Float[Tensor, "vector width"], codes: Active
    ) -> tuple[Float[Tensor, "vector width"], Terms]:
        features = codes.features.view(len(centred), -1)
        values = codes.values.view(len(centred), -1)
        residual, parts = centred, []
        for share, (begin, end) in zip(self.shares, pairwise([0, *self.levels]), strict=True):
            added = Active.of_rows(features[:, begin:end], values[:, begin:end])
            residual = residual - added.decode(self.W_dec)
            parts.append(share * self.unexplained(residual))
        return residual, {"reconstruction": torch.stack(parts).sum()}
