"""Non-negative contrastive learning: features that tell a pair from the other pairs of its batch.

Formula: NCL, "Non-negative Contrastive Learning" (ICLR 2024), on pairs of image and text: codes are unit
`ReLU(MLP(x))`, and the loss is InfoNCE in both directions. Backward, ReLU has the gradient of GELU, so that no feature
dies (`rep_relu` of the public code). There is no decoder: a feature's direction is the mean of vectors weighted by its
codes. Settings: the public code's temperature, and hidden layer of one of its projectors in proportion to the width.
"""

from __future__ import annotations

import math
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear, normalize

from headspan.errors import SettingsError
from headspan.features.learners.kinds import NON_NEGATIVE
from headspan.features.learners.learner import IMAGE, Learner
from headspan.features.learners.settings import ContrastiveSettings, Settings


class NonNegative(Learner):
    """One hidden layer, non-negative codes of unit length, and a contrastive loss."""

    kind: ClassVar[str] = NON_NEGATIVE
    settings_type: ClassVar[type[Settings]] = ContrastiveSettings
    decodes: ClassVar[bool] = False
    needs_texts: ClassVar[bool] = True

    def __init__(self, settings: ContrastiveSettings) -> None:
        super().__init__(settings)
        self.temperature = settings.temperature
        self.W_hidden = nn.Parameter(_drawn(settings.width, settings.hidden))
        self.b_hidden = nn.Parameter(torch.zeros(settings.hidden))
        self.W_enc = nn.Parameter(_drawn(settings.hidden, settings.features))
        self.b_enc = nn.Parameter(torch.zeros(settings.features))

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        hidden = linear(vectors, self.W_hidden.t(), self.b_hidden).relu()
        return normalize(_relu_with_gradient_of_gelu(linear(hidden, self.W_enc.t(), self.b_enc)), dim=1)

    def decode(self, codes: Float[Tensor, "vector feature"], side: int = IMAGE) -> NoReturn:
        raise SettingsError(
            f"the learner {self.kind} has no decoder, so that its codes cannot be turned back into vectors; train"
            " another learner for this use"
        )

    def directions(self) -> None:
        return None

    def loss(
        self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        if texts is None:
            raise SettingsError(
                f"the learner {self.kind} learns from pairs of image and text, but there are no texts; choose another"
                " learner, or a space that texts are in"
            )
        codes = self.encode(torch.cat([images, texts]))
        if self.training and torch.is_grad_enabled():
            self.count_used((codes > 0).any(0).nonzero().flatten())
        logits = codes[: len(images)] @ codes[len(images) :].t() / self.temperature
        right = torch.arange(len(images), device=logits.device)
        contrast = (cross_entropy(logits, right) + cross_entropy(logits.t(), right)) / 2
        return {"total": contrast, "contrast": contrast}


def _drawn(inputs: int, outputs: int) -> Float[Tensor, "input output"]:
    """Weights before a ReLU that keep the size of what passes."""
    return torch.randn(inputs, outputs) * math.sqrt(2 / inputs)


def _relu_with_gradient_of_gelu(activations: Float[Tensor, "vector feature"]) -> Float[Tensor, "vector feature"]:
    soft: Tensor = gelu(activations)
    # What is added is 0, but has the gradient of GELU.
    mixed: Tensor = activations.detach().relu() + (soft - soft.detach())
    return mixed
