"""What an image tower is: its weights, and the few flags in which Vision Transformers differ, as data.

One description serves every family; what a family has more than another is a part that the other leaves None.
How it runs is in tower.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.model.layers import AttentionPool, Block, Convolution, Mlp, Norm
from headspan_kernels import ops

_Kind = TypeVar("_Kind", bound="Description")
_Part = TypeVar("_Part", Norm, Mlp)
# What a change of precision leaves in float32: what follows the pooled row, and the angles.
_ALWAYS_FLOAT32 = ("ln_post", "projection", "projection_bias", "rope")


@dataclass(frozen=True, slots=True)
class Description:
    """An image tower as data."""

    # From pixels to patch rows, one after the other.
    patch_embed: tuple[Convolution, ...]
    # The rows before the patches: class token and registers, or none.
    prefix: Float[Tensor, "prefix width"]
    pos_embed: Float[Tensor, "token width"]
    # Cosines and sines by which the patches' queries and keys are turned, pair by pair.
    rope: Float[Tensor, "2 patch trunk_head_dim"] | None
    # None where the model has no norm before its first block.
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    # None where the class token or the mean of the patch rows is the pooled row.
    attention_pool: AttentionPool | None
    # None where the projection follows the pooled row at once.
    ln_post: Norm | None
    projection: Float[Tensor, "pooled_width joint"]
    projection_bias: Float[Tensor, " joint"]
    # Heads of each block; the pooling layer has its own number.
    trunk_heads: int
    # Mean of the patch rows instead of the class token.
    mean_pooled: bool
    # Whether the final norm is applied to every row before their mean is taken.
    norm_before_pooling: bool

    @property
    def joint(self) -> int:
        """Dimension of the joint image-text space."""
        return self.projection.shape[1]

    @property
    def layers(self) -> int:
        """Number of attention layers; an attention pooling is the last of them."""
        return len(self.blocks) + (self.attention_pool is not None)

    @property
    def direct_layers(self) -> range:
        """The layers whose heads write to the pooled row: all, or the attention pooling alone."""
        return range(0 if self.attention_pool is None else len(self.blocks), self.layers)

    @property
    def heads(self) -> int:
        """Heads of a direct layer."""
        return self.trunk_heads if self.attention_pool is None else self.attention_pool.heads

    @property
    def head_dim(self) -> int:
        """Numbers that a head of a direct layer emits: its dimension, and one more where a norm follows its output."""
        if self.attention_pool is not None:
            return self.attention_pool.out_proj.weight.shape[1] // self.attention_pool.heads
        return self.blocks[0].out_proj.weight.shape[1] // self.trunk_heads + (self.blocks[0].norm_output is not None)

    @property
    def tokens(self) -> int:
        """Number of source tokens of a direct layer, those that are no patches included."""
        return self.pos_embed.shape[0] - (0 if self.attention_pool is None else self.attention_pool.skip)

    @property
    def prefix_tokens(self) -> int:
        """Number of source tokens, the first ones, that are no patches."""
        return len(self.prefix) - (0 if self.attention_pool is None else self.attention_pool.skip)

    @property
    def terms(self) -> int:
        """Number of terms beside the heads and biases: initial state and MLPs, or the pooling layer's MLP."""
        return len(self.blocks) + 1 if self.attention_pool is None else int(self.attention_pool.mlp is not None)

    @property
    def runs_twice(self) -> bool:
        """Whether a pass needs a plain one before it: each row is normed before their mean, by a scale of its own that
        is known only at the end, and what the mean took from every head is weighted by it."""
        return self.mean_pooled and self.norm_before_pooling and self.ln_post is not None

    @property
    def dtype(self) -> torch.dtype:
        """The activations' type."""
        return self.pos_embed.dtype

    @property
    def ops(self) -> ModuleType:
        """The ops of the device on which the weights lie."""
        return ops(self.projection.device)

    def to(self: _Kind, device: torch.device, dtype: torch.dtype) -> _Kind:
        """The same tower elsewhere or in another precision; what follows the pooled row stays float32."""
        moved: dict[str, Any] = {
            f.name: _moved(getattr(self, f.name), device, torch.float32 if f.name in _ALWAYS_FLOAT32 else dtype)
            for f in fields(self)
        }
        return replace(self, **moved)


def parts_of(value: Any, kind: type[_Part]) -> Iterator[_Part]:
    """Every part of that kind within a description, a part or a tuple of parts."""
    if isinstance(value, kind):
        yield value
    if isinstance(value, tuple):
        for item in value:
            yield from parts_of(item, kind)
    elif isinstance(value, Description):
        for field in fields(value):
            yield from parts_of(getattr(value, field.name), kind)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    if isinstance(value, tuple):
        moved = [_moved(item, device, dtype) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value
