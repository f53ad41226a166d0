"""What sparse autoencoders have in common: a linear decoder with unit rows, input biases, and AuxK for dead features.

AuxK and the start of encoder rows as decoder rows are from Gao et al., "Scaling and evaluating sparse autoencoders"
(arXiv 2406.04093): the `aux_k` largest dead features explain what the active ones leave over.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from headspan.features.learners.active import Active, largest
from headspan.features.learners.learner import IMAGE, TEXT, Learner
from headspan.features.learners.settings import SEPARATE, Settings, SparseSettings


class Autoencoder(Learner):
    """Codes `ReLU(W_enc (x − b) + c)` of which a few are kept, decoded by `W_dec` to unit directions, plus `b`."""

    settings_type: ClassVar[type[Settings]] = SparseSettings
    idle_steps: Tensor
    spread: Tensor

    def __init__(self, settings: SparseSettings) -> None:
        super().__init__()
        self.given = settings
        self.settings = settings.as_json()
        width, features = settings.width, settings.features
        rows = normalize(torch.randn(features, width), dim=1)
        # The encoder lies in memory by feature, as the decoder does, so that gradients touch whole rows.
        self.W_enc = nn.Parameter(rows.clone().t())
        self.b_enc = nn.Parameter(torch.zeros(features))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.b_dec_text = nn.Parameter(torch.zeros(width)) if settings.input_bias == SEPARATE else None
        # Steps of training since each feature was active.
        self.register_buffer("idle_steps", torch.zeros(features, dtype=torch.int64))
        # Mean squared distance of vectors from the input bias: the unit of the reconstruction term.
        self.register_buffer("spread", torch.ones(()))

    @abstractmethod
    def active(self, centred: Float[Tensor, "vector width"]) -> Active:
        """The active features of a batch in training, with their gradients."""

    def bias(self, side: int) -> Float[Tensor, " width"]:
        """The input bias of a side."""
        return self.b_dec if side == IMAGE or self.b_dec_text is None else self.b_dec_text

    def decode(self, codes: Float[Tensor, "vector feature"], side: int = IMAGE) -> Float[Tensor, "vector width"]:
        return codes @ self.W_dec + self.bias(side)

    def directions(self) -> Float[Tensor, "feature width"]:
        return normalize(self.W_dec.detach(), dim=1)

    def dead(self) -> Bool[Tensor, " feature"]:
        return self.idle_steps >= self.given.dead_steps

    @torch.no_grad()
    def start(self, images: Float[Tensor, "vector width"], texts: Float[Tensor, "vector width"] | None) -> None:
        sides = [images] if texts is None else [images, texts]
        means = [side.mean(0) for side in sides]
        if self.b_dec_text is None:
            self.b_dec.copy_(torch.stack(means).mean(0))
        else:
            self.b_dec.copy_(means[0])
            self.b_dec_text.copy_(means[-1])
        distances = [(side - self.bias(number)).square().sum(1).mean() for number, side in enumerate(sides)]
        # Vectors that are all equal have nothing to explain; the unit is then 1.
        spread = torch.stack(distances).mean()
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def centred(
        self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None
    ) -> Float[Tensor, "vector width"]:
        """The vectors of both sides without their biases, images first."""
        if texts is None:
            return images - self.bias(IMAGE)
        return torch.cat([images - self.bias(IMAGE), texts - self.bias(TEXT)])

    def loss(
        self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        centred = self.centred(images, texts)
        codes = self.active(centred)
        residual = centred - codes.decode(self.W_dec)
        terms = {"reconstruction": self.per_spread(residual)}
        terms |= self.idle_terms(codes, centred, residual)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def per_spread(self, residual: Float[Tensor, "vector width"]) -> Float[Tensor, ""]:
        """Mean squared length in units of the spread of the vectors: the fraction of variance unexplained."""
        return residual.square().sum() / (residual.shape[0] * self.spread)

    def idle_terms(
        self, codes: Active, centred: Float[Tensor, "vector width"], residual: Float[Tensor, "vector width"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Count idle steps, and the term of the loss that dead features have: none where none is dead."""
        if not (self.training and torch.is_grad_enabled()):
            return {}
        with torch.no_grad():
            used = torch.zeros_like(self.idle_steps, dtype=torch.bool)
            used[codes.features[codes.values > 0]] = True
            self.idle_steps.add_(1).masked_fill_(used, 0)
            dead = self.dead().nonzero().flatten()
        if not (dead.numel() and self.given.aux_weight):
            return {}
        rows, bias = self.W_enc.t()[dead], self.b_enc[dead]
        helpers = largest(centred, rows, bias, min(self.given.aux_k, dead.numel()))
        target = residual.detach()
        left = (target - helpers.decode(self.W_dec[dead])).square().sum() / target.square().sum()
        return {"aux": self.given.aux_weight * left.nan_to_num()}
