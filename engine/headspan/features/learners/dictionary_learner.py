"""What sparse autoencoders have in common: a linear decoder with unit rows, input biases, and AuxK for dead features.

AuxK is from Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): the `aux_k` largest dead
features explain what the active ones leave over.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from headspan.features.learners.active import Active
from headspan.features.learners.learner import IMAGE, TEXT, Learner
from headspan.features.learners.settings import NO_BIAS, SEPARATE, Settings, SparseSettings

Terms = dict[str, Float[Tensor, ""]]


class DictionaryLearner(Learner):
    """Codes that are decoded by `W_dec`, whose rows have unit length, plus an input bias."""

    settings_type: ClassVar[type[Settings]] = SparseSettings
    W_dec: nn.Parameter
    b_dec: Tensor
    b_dec_text: Tensor | None
    spread: Tensor

    def __init__(self, settings: SparseSettings) -> None:
        super().__init__(settings)
        width = settings.width
        self.k, self.aux_k, self.aux_weight = settings.k, settings.aux_k, settings.aux_weight
        self.W_dec = nn.Parameter(normalize(torch.randn(settings.features, width), dim=1))
        if settings.input_bias == NO_BIAS:
            self.register_buffer("b_dec", torch.zeros(width))
        else:
            self.b_dec = nn.Parameter(torch.zeros(width))
        self.b_dec_text = nn.Parameter(torch.zeros(width)) if settings.input_bias == SEPARATE else None
        # Mean squared length of vectors without their bias: the unit of the reconstruction term.
        self.register_buffer("spread", torch.ones(()))

    @abstractmethod
    def active(self, centred: Float[Tensor, "vector width"], sides: int) -> Active:
        """The active features of a batch in training, with their gradients. It holds as many vectors of each side."""

    @abstractmethod
    def helpers(
        self, centred: Float[Tensor, "vector width"], residual: Float[Tensor, "vector width"], dead: Int64[Tensor, " n"]
    ) -> Active:
        """The dead features that best explain the residual, numbered by their place in `dead`."""

    def bias(self, side: int) -> Float[Tensor, " width"]:
        """The input bias of a side."""
        return self.b_dec if side == IMAGE or self.b_dec_text is None else self.b_dec_text

    def decode(self, codes: Float[Tensor, "vector feature"], side: int = IMAGE) -> Float[Tensor, "vector width"]:
        return codes @ self.W_dec + self.bias(side)

    def directions(self) -> Float[Tensor, "feature width"]:
        return normalize(self.W_dec.detach(), dim=1)

    @torch.no_grad()
    def start(self, images: Float[Tensor, "vector width"], texts: Float[Tensor, "vector width"] | None) -> None:
        sides = [images] if texts is None else [images, texts]
        means = [side.mean(0) for side in sides]
        if self.b_dec_text is not None:
            self.b_dec.copy_(means[0])
            self.b_dec_text.copy_(means[-1])
        elif isinstance(self.b_dec, nn.Parameter):
            self.b_dec.copy_(torch.stack(means).mean(0))
        lengths = [(side - self.bias(number)).square().sum(1).mean() for number, side in enumerate(sides)]
        # Vectors that are all equal have nothing to explain; the unit is then 1.
        spread = torch.stack(lengths).mean()
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

    def loss(self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None) -> Terms:
        centred = self.centred(images, texts)
        codes = self.active(centred, 1 if texts is None else 2)
        residual, terms = self.reconstruction(centred, codes)
        if texts is not None:
            terms |= self.pair_terms(codes, len(images))
        if self.training and torch.is_grad_enabled():
            self.count_idle(codes)
            terms |= self.aux_terms(centred, residual.detach())
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def reconstruction(
        self, centred: Float[Tensor, "vector width"], codes: Active
    ) -> tuple[Float[Tensor, "vector width"], Terms]:
        """What the codes leave over of the vectors, and the terms of the loss for it."""
        residual = centred - codes.decode(self.W_dec)
        return residual, {"reconstruction": self.unexplained(residual)}

    def pair_terms(self, codes: Active, pairs: int) -> Terms:
        """The terms of the loss that compare the codes of images, which come first, with those of their texts."""
        return {}

    def unexplained(self, residual: Float[Tensor, "vector width"]) -> Float[Tensor, ""]:
        """The fraction of the vectors' squared length, or variance about the bias, that is left over."""
        return residual.square().sum() / (residual.shape[0] * self.spread)

    def aux_terms(self, centred: Float[Tensor, "vector width"], residual: Float[Tensor, "vector width"]) -> Terms:
        """The term of the loss that dead features have; none where no feature is dead."""
        dead = self.dead().nonzero().flatten()
        if not (dead.numel() and self.aux_weight):
            return {}
        explained = self.helpers(centred, residual, dead).decode(self.W_dec[dead])
        left = (residual - explained).square().sum() / residual.square().sum()
        return {"aux": self.aux_weight * left.nan_to_num()}

    @torch.no_grad()
    def count_idle(self, codes: Active) -> None:
        """Count a step for features that are not active in it."""
        self.count_used(codes.features[codes.values > 0])
