"""The parts of a tower as data: weights, and the flags in which Vision Transformers differ.

LayerScales are folded into the linear map before them, batch norms into the convolution before them. What a
model does not have is None, or zeros where that costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Norm(NamedTuple):
    """A LayerNorm's parameters."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float


class Linear(NamedTuple):
    """A linear map's parameters, `x Wᵀ + b`."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]


class Convolution(NamedTuple):
    """A step of the stem, without padding; most stems are one step, the patch embedding."""

    # In, height and width side by side: where patches do not overlap, a step is a linear map.
    weight: Float[Tensor, "out patch"]
    bias: Float[Tensor, " out"] | None
    # Height and width.
    kernel: tuple[int, int]
    stride: tuple[int, int]
    activation: str | None


class Mlp(NamedTuple):
    """A block's MLP with its norms: before it, between its two maps, and behind it (residual post-norm)."""

    norm: Norm | None
    fc1: Linear
    activation: str
    # `expand` gives twice the hidden numbers, and the activated first half is multiplied with the second.
    gated: bool
    norm_hidden: Norm | None
    fc2: Linear
    norm_output: Norm | None


class Block(NamedTuple):
    """A transformer block."""

    # None where the norm stands behind the attention.
    norm_attention: Norm | None
    # Queries, keys and values side by side.
    qkv: Linear
    # What relative positions add to the scores.
    position_bias: Float[Tensor, "head token token"] | None
    # Over all heads' head_outputs of a row, before the output projection (EVA02).
    norm_heads: Norm | None
    out_proj: Linear
    # Over what attention adds to a row (EVA02-E).
    norm_output: Norm | None
    mlp: Mlp

    @property
    def emits_plainly(self) -> bool:
        """Whether no norm stands between the heads' head_outputs and the stream."""
        return self.norm_heads is None and self.norm_output is None


class AttentionPool(NamedTuple):
    """A last attention layer with one query, the same for every image, and nothing added to its output but an MLP."""

    # The latent query after its own norm and projection: a constant.
    query: Float[Tensor, " pooled_width"]
    # Over every row, before keys and values.
    norm: Norm
    key_value: Linear
    out_proj: Linear
    mlp: Mlp | None
    heads: int
    # How many rows, the first ones, are left out.
    skip: int
