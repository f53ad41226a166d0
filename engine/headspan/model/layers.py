"""The parts of a tower as named tuples: norms, linear maps, MLPs, blocks and attention pooling.

A LayerScale is folded into the linear map before it, a batch norm into the convolution before it. A part that a model
lacks is None, or zeros where that costs nothing.
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
    """One convolution of the patch embedding, without padding. Most models have only one."""

    # Input channels, height and width side by side: if patches do not overlap, the convolution is a linear map.
    weight: Float[Tensor, "out patch"]
    bias: Float[Tensor, " out"] | None
    # Height and width.
    kernel: tuple[int, int]
    stride: tuple[int, int]
    activation: str | None


class Mlp(NamedTuple):
    """A block's MLP with its norms: before it, between its two linear maps, and after it (residual post-norm)."""

    norm: Norm | None
    fc1: Linear
    activation: str
    # `fc1` has twice the hidden width; the activated first half is multiplied with the second.
    gated: bool
    norm_hidden: Norm | None
    fc2: Linear
    norm_output: Norm | None


class Block(NamedTuple):
    """A transformer block."""

    # None if the norm comes after the attention.
    norm_attention: Norm | None
    # Queries, keys and values side by side.
    qkv: Linear
    # Relative positions, added to the attention scores.
    position_bias: Float[Tensor, "head token token"] | None
    # Over all head outputs of a row, before the output projection (EVA02).
    norm_heads: Norm | None
    out_proj: Linear
    # Over what attention adds to a row (EVA02-E).
    norm_output: Norm | None
    mlp: Mlp

    @property
    def is_pre_norm(self) -> bool:
        """Whether norms stand before attention and MLP only, so that their outputs are linear maps' products."""
        has_both = self.norm_attention is not None and self.mlp.norm is not None
        return has_both and self.norm_output is None and self.mlp.norm_output is None

    @property
    def has_output_norms(self) -> bool:
        """Whether a norm stands between the head outputs and the residual stream."""
        return self.norm_heads is not None or self.norm_output is not None


class AttentionPool(NamedTuple):
    """A last attention layer with one query, the same for every image, and without a residual connection."""

    # The latent query after its own norm and projection: a constant.
    query: Float[Tensor, " pooled_width"]
    # Over every row, before keys and values.
    norm: Norm
    key_value: Linear
    out_proj: Linear
    mlp: Mlp | None
    heads: int
    # The number of rows at the beginning that are not attended to.
    skip: int
