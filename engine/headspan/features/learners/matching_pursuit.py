"""Matching pursuit: the atom nearest to what is left over, k times.

Formula: MpSAE of `overcomplete`, as the code of "Cross-Modal Redundancy and the Geometry of Vision-Language Embeddings"
(arXiv 2602.06218) uses it: each step adds the largest product of residual and atom to the code, and takes that multiple
of the atom from the residual. Steps with a negative product add nothing here, so that codes are non-negative. There is
no encoder: `W_enc` and `b_enc` do not exist. Settings: 20 steps without input bias, as published.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from headspan.features.learners.active import Active
from headspan.features.learners.dictionary_learner import DictionaryLearner
from headspan.features.learners.kinds import MATCHING_PURSUIT
from headspan.features.learners.learner import IMAGE
from headspan.features.learners.settings import PursuitSettings, Settings


class MatchingPursuit(DictionaryLearner):
    """Explains a vector step by step; an atom may be taken more than once."""

    kind: ClassVar[str] = MATCHING_PURSUIT
    settings_type: ClassVar[type[Settings]] = PursuitSettings

    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        return pursuit(centred, self.W_dec, self.k)

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        return pursuit(vectors - self.bias(side), self.W_dec, self.k).dense(len(self.W_dec))

    def helpers(
        self, centred: Float[Tensor, "vector width"], residual: Float[Tensor, "vector width"], dead: Int64[Tensor, " n"]
    ) -> Active:
        return pursuit(residual, self.W_dec[dead], min(self.aux_k, self.k, dead.numel()))


def pursuit(vectors: Float[Tensor, "vector width"], atoms: Float[Tensor, "feature width"], steps: int) -> Active:
    """The atoms that matching pursuit takes, and by how much.

    Gradients flow through the products and residuals of all steps; the choice of atoms has none.
    """
    atoms = normalize(atoms, dim=1)
    with torch.no_grad():
        chosen = _choose(vectors, atoms, steps)
    taken = atoms[chosen]
    residual, values = vectors, []
    for step in range(steps):
        value = (residual * taken[:, step]).sum(1).relu()
        residual = residual - value[:, None] * taken[:, step]
        values.append(value)
    return Active.of_rows(chosen, torch.stack(values, dim=1))


def _choose(
    vectors: Float[Tensor, "vector width"], atoms: Float[Tensor, "feature width"], steps: int
) -> Int64[Tensor, "vector step"]:
    """The atom of each step."""
    residual, chosen = vectors, []
    for _ in range(steps):
        value, atom = (residual @ atoms.t()).max(1)
        residual = residual - value.relu()[:, None] * atoms[atom]
        chosen.append(atom)
    return torch.stack(chosen, dim=1)
