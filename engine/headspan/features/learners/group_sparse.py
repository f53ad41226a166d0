"""Group-sparse: TopK that is trained to use the same features for both sides of a pair.

Formula: MGSAE, "Learning Multimodal Dictionary Decompositions with Group-Sparse Autoencoders" (ICLR 2026): shared
weights, an input bias for each side, one random mask of features on both codes of a pair before TopK, and the penalty
`λ Σ_k sqrt(z_k² + w_k²)`, which is smaller where both sides use a feature than where each uses its own. Settings: its
32 of 16 times the width; the sizes of mask and penalty are ours.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.features.learners.active import Active, largest
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.dictionary_learner import Terms
from headspan.features.learners.kinds import GROUP_SPARSE
from headspan.features.learners.rows import group_norms, pair_of
from headspan.features.learners.settings import GroupSparseSettings, Settings


class GroupSparse(Autoencoder):
    """Hides the same random features from both sides of a pair, and penalises features that one side uses alone."""

    kind: ClassVar[str] = GROUP_SPARSE
    settings_type: ClassVar[type[Settings]] = GroupSparseSettings

    def __init__(self, settings: GroupSparseSettings) -> None:
        super().__init__(settings)
        self.group_weight, self.mask_share = settings.group_weight, settings.mask_share

    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        hidden = None
        if self.training and self.mask_share:
            draws = torch.rand(len(centred) // sides, len(self.W_dec), device=centred.device)
            hidden = (draws < self.mask_share).repeat(sides, 1)
        return largest(centred, self.W_enc.t(), self.b_enc, self.k, hidden=hidden)

    def pair_terms(self, codes: Active, pairs: int) -> Terms:
        norms = group_norms(*pair_of(codes, pairs))
        return {"group": self.group_weight * norms.mean() / self.spread.sqrt()}
