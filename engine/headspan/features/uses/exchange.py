"""Exchange features between embeddings: the source's vector with some features as strong as they are in the donor.

The vector has the source's codes, the donor's for the features that are exchanged, and the source's residual if it is
kept. A donor may be a text, whose codes come from the text side of the dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional

from headspan.features.learners.learner import IMAGE, Learner
from headspan.features.uses.filtered import KEPT


@dataclass(frozen=True, slots=True, eq=False)
class Exchanger:
    """Sources and donors, one donor for each source, as unit vectors and as codes."""

    learner: Learner
    sources: Float[Tensor, "pair width"]
    source_codes: Float[Tensor, "pair feature"]
    donor_codes: Float[Tensor, "pair feature"]
    residual: str

    @classmethod
    def of(
        cls,
        learner: Learner,
        sources: Float32[np.ndarray, "pair width"],
        donors: Float32[np.ndarray, "pair width"],
        residual: str,
        donor_side: int = IMAGE,
    ) -> Exchanger:
        """From unit vectors."""
        device = next(learner.parameters()).device
        own, others = (torch.from_numpy(np.array(each, np.float32)).to(device) for each in (sources, donors))
        with torch.no_grad():
            return cls(learner, own, learner.encode(own, IMAGE), learner.encode(others, donor_side), residual)

    def energies(self) -> np.ndarray:
        """The energy of each feature in an exchange: the mean squares of what is taken away and of what is put in."""
        total = self.source_codes.double().square().mean(dim=0) + self.donor_codes.double().square().mean(dim=0)
        return total.cpu().numpy()

    def exchanged(self, features: Bool[np.ndarray, " feature"]) -> Float32[np.ndarray, "pair width"]:
        """The sources with these features of the donors, as unit vectors."""
        taken = torch.from_numpy(features).to(self.sources.device)
        with torch.no_grad():
            found = self.learner.decode(torch.where(taken, self.donor_codes, self.source_codes), IMAGE)
            if self.residual == KEPT:
                found = found + self.sources - self.learner.decode(self.source_codes, IMAGE)
            return functional.normalize(found, dim=1, eps=1e-12).cpu().numpy()

    def each(self, sets: Iterable[Bool[np.ndarray, " feature"]]) -> Iterator[Float32[np.ndarray, "pair width"]]:
        """The same for each set of features."""
        return map(self.exchanged, sets)
