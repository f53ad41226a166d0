"""Autoencoders of other libraries as learners that encode and decode, but are not trained further."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from headspan.errors import SettingsError
from headspan.features.learners.learner import IMAGE, Learner
from headspan.features.learners.settings import Settings, at_least, one_of

STANDARD, TOPK, JUMPRELU, GATED = "standard", "topk", "jumprelu", "gated"
NO_NORM, CONSTANT_NORM, LAYER_NORM = "none", "constant_norm_rescale", "layer_norm"
_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ForeignSettings(Settings):
    """What another library's configuration says about its autoencoder."""

    # The library and its architecture.
    library: str
    architecture: str
    # Active features of `topk`; 0 for others.
    k: int = 0
    # Whether the decoder's bias is taken from vectors first.
    input_bias: bool = True
    # What is done to a vector first: nothing, its length is made √width, or its numbers get mean 0 and spread 1.
    normalises: str = NO_NORM

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("architecture", self.architecture, (STANDARD, TOPK, JUMPRELU, GATED))
        one_of("normalize_activations", self.normalises, (NO_NORM, CONSTANT_NORM, LAYER_NORM))
        if self.architecture == TOPK:
            at_least("k", self.k, 1)
            if self.k > self.features:
                raise SettingsError(f"k is {self.k}, but the dictionary has {self.features} features")


class Foreign(Learner):
    """ReLU, TopK, JumpReLU and gated autoencoders.

    Codes are those of the library. Decoded vectors are those of a unit vector, whose numbers have mean 0, where the
    library would use the length, mean and spread of the vector that it encoded last.
    """

    kind: ClassVar[str] = "foreign"
    settings_type: ClassVar[type[Settings]] = ForeignSettings
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, settings: ForeignSettings, weights: dict[str, Tensor]) -> None:
        super().__init__(settings)
        self.given = settings
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)

    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        found = self._normalised(vectors)
        if self.given.input_bias:
            found = found - self.b_dec
        if self.given.architecture == GATED:
            products = found @ self.W_enc
            magnitudes = products * self.get_buffer("r_mag").exp() + self.get_buffer("b_mag")
            return magnitudes.relu() * (products + self.get_buffer("b_gate") > 0)
        activations = found @ self.W_enc + self.get_buffer("b_enc")
        if self.given.architecture == TOPK:
            values, places = activations.topk(self.given.k, sorted=False)
            return torch.zeros_like(activations).scatter(1, places, values.relu())
        codes = activations.relu()
        if self.given.architecture == JUMPRELU:
            codes = codes * (activations > self.get_buffer("threshold"))
        return codes

    def decode(self, codes: Float[Tensor, "vector feature"], side: int = IMAGE) -> Float[Tensor, "vector width"]:
        found = codes @ self.W_dec + self.b_dec
        width = self.given.width
        if self.given.normalises == CONSTANT_NORM:
            return found / math.sqrt(width)
        return found / math.sqrt(max(1, width - 1)) if self.given.normalises == LAYER_NORM else found

    def directions(self) -> Float[Tensor, "feature width"]:
        return normalize(self.W_dec, dim=1)

    def loss(
        self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        raise SettingsError("dictionaries of other libraries are not trained further; train one with a learner")

    def _normalised(self, vectors: Float[Tensor, "vector width"]) -> Float[Tensor, "vector width"]:
        if self.given.normalises == CONSTANT_NORM:
            return normalize(vectors, dim=1) * math.sqrt(self.given.width)
        if self.given.normalises == LAYER_NORM:
            centred = vectors - vectors.mean(dim=1, keepdim=True)
            vectors = centred / (centred.std(dim=1, keepdim=True) + _EPSILON)
        return vectors
