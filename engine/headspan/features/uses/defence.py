"""A classifier that keeps some features of an embedding, and ways for an attack to see through it.

Where a dictionary keeps the k largest activations, a feature that is not among them has no gradient, and an attack that
follows gradients is blind to it. That makes a classifier look robust that is not (Athalye, Carlini, Wagner,
"Obfuscated Gradients Give a False Sense of Security", ICML 2018). So an adaptive attack tries each of `GRADIENTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from headspan.features.learners.learner import IMAGE, Learner
from headspan.features.uses.filtered import KEPT, filtered
from headspan.features.uses.live_model import LiveModel

# The gradient of the codes as they are; of all activations above 0, as if none were dropped by their rank; and of no
# filter at all.
GRADIENTS = EXACT, STRAIGHT_THROUGH, IDENTITY = "exact", "straight-through", "identity"


@dataclass(frozen=True, slots=True, eq=False)
class Defence:
    """Zero-shot classification by an image's features of `keep` alone; without `keep`, by the whole embedding."""

    model: LiveModel
    classes: Float[Tensor, "class joint"]
    learner: Learner | None = None
    keep: Bool[Tensor, " feature"] | None = None
    residual: str = KEPT
    gradient: str = EXACT

    def through(self, gradient: str) -> Defence:
        """The same classifier with another gradient."""
        return replace(self, gradient=gradient)

    def __call__(self, pixels: Float[Tensor, "image 3 height width_px"]) -> Float[Tensor, "image class"]:
        """The cosines with all classes; with the gradient of `gradient`."""
        vectors = functional.normalize(self.model.embed(pixels), dim=1)
        return self.cosines(vectors)

    def cosines(self, vectors: Float[Tensor, "image joint"]) -> Float[Tensor, "image class"]:
        """The cosines of unit embeddings, after the filter, with all classes."""
        if self.learner is not None and self.keep is not None:
            vectors = self._filtered(self.learner, vectors, self.keep)
        return functional.normalize(vectors, dim=1, eps=1e-12) @ self.classes.T

    def _filtered(
        self, learner: Learner, vectors: Float[Tensor, "image joint"], keep: Bool[Tensor, " feature"]
    ) -> Float[Tensor, "image joint"]:
        found = filtered(learner, vectors, keep, self.residual)
        if not torch.is_grad_enabled() or self.gradient == EXACT:
            return found
        smooth = vectors if self.gradient == IDENTITY else _all_active(learner, vectors, keep, self.residual)
        return smooth + (found - smooth).detach()


def _all_active(
    learner: Learner, vectors: Float[Tensor, "image joint"], keep: Bool[Tensor, " feature"], residual: str
) -> Float[Tensor, "image joint"]:
    """What `filtered` would give if every activation above 0 were kept, whatever its rank."""
    encoder, bias = learner.get_parameter("W_enc"), learner.get_parameter("b_enc")
    codes = torch.relu((vectors - learner.decode(vectors.new_zeros(1, len(keep)), IMAGE)) @ encoder + bias)
    left = learner.decode(codes * keep, IMAGE)
    return left + (vectors - learner.decode(codes, IMAGE)) if residual == KEPT else left
