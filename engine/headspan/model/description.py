"""An image tower as data: its weights, and the few flags that distinguish Vision Transformers.

One description serves every family. A part that a family does not have is None. tower.py runs it.
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
# These stay float32 at any precision: everything after the pooled row, and the rotary angles.
_ALWAYS_FLOAT32 = ("ln_post", "projection", "projection_bias", "rope")


@dataclass(frozen=True, slots=True)
class Description:
    """An image tower as data."""

    # The convolutions from pixels to patch rows, in order.
    patch_embed: tuple[Convolution, ...]
    # The rows before the patches: class token and registers, if any.
    prefix: Float[Tensor, "prefix width"]
    pos_embed: Float[Tensor, "token width"]
    # Cosines and sines by which the patches' queries and keys are rotated, pair by pair.
    rope: Float[Tensor, "2 patch trunk_head_dim"] | None
    # None if the model has no norm before its first block.
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    # None if the pooled row is the class token or the mean of the patch rows.
    attention_pool: AttentionPool | None
    # None if the projection directly follows the pooled row.
    ln_post: Norm | None
    projection: Float[Tensor, "pooled_width joint"]
    projection_bias: Float[Tensor, " joint"]
    # Heads of each block; attention pooling has its own number.
    trunk_heads: int
    # Whether the pooled row is the mean of the patch rows.
    mean_pooled: bool
    # Whether the final norm is applied to every row before their mean is taken.
    norm_before_pooling: bool

    @property
    def joint(self) -> int:
        """Dimension of the joint image-text space."""
        return self.projection.shape[1]

    @property
    def layers(self) -> int:
        """Number of attention layers; attention pooling is the last of them."""
        return len(self.blocks) + (self.attention_pool is not None)

    @property
    def direct_layers(self) -> range:
        """The layers whose heads write to the pooled row: all, or only the attention pooling."""
        return range(0 if self.attention_pool is None else len(self.blocks), self.layers)

    @property
    def heads(self) -> int:
        """Heads of a direct layer."""
        return self.trunk_heads if self.attention_pool is None else self.attention_pool.heads

    @property
    def head_dim(self) -> int:
        """Numbers that a head of a direct layer emits: its dimension, plus one if a norm follows its output."""
        if self.attention_pool is not None:
            return self.attention_pool.out_proj.weight.shape[1] // self.attention_pool.heads
        return self.blocks[0].out_proj.weight.shape[1] // self.trunk_heads + (self.blocks[0].norm_output is not None)

    @property
    def tokens(self) -> int:
        """Number of source tokens of a direct layer, with the prefix tokens."""
        return self.pos_embed.shape[0] - (0 if self.attention_pool is None else self.attention_pool.skip)

    @property
    def prefix_tokens(self) -> int:
        """Number of source tokens before the patches."""
        return len(self.prefix) - (0 if self.attention_pool is None else self.attention_pool.skip)

    @property
    def terms(self) -> int:
        """Number of terms besides the heads and biases: initial state and MLPs, or the MLP of the attention pooling."""
        return len(self.blocks) + 1 if self.attention_pool is None else int(self.attention_pool.mlp is not None)

    @property
    def runs_twice(self) -> bool:
        """Whether a plain pass must run first.

        It must if every row is normalised before the mean: each row then counts with the weight `1/s`, and its `s` is
        known only at the end of a pass.
        """
        return self.mean_pooled and self.norm_before_pooling and self.ln_post is not None

    @property
    def dtype(self) -> torch.dtype:
        """The activations' type."""
        return self.pos_embed.dtype

    @property
    def switch_key(self) -> tuple[torch.dtype, int, int, int]:
        """What decides in `headspan_kernels.switches` how the pass runs: type, width, layers and tokens."""
        return self.dtype, self.blocks[0].out_proj.weight.shape[0], len(self.blocks), len(self.pos_embed)

    @property
    def ops(self) -> ModuleType:
        """The ops for the device of the weights."""
        return ops(self.projection.device)

    def to(self: _Kind, device: torch.device, dtype: torch.dtype) -> _Kind:
        """The tower on another device or in another precision. Everything after the pooled row stays float32."""
        moved: dict[str, Any] = {
            f.name: _moved(getattr(self, f.name), device, torch.float32 if f.name in _ALWAYS_FLOAT32 else dtype)
            for f in fields(self)
        }
        return replace(self, **moved)


def parts_of(value: Any, kind: type[_Part]) -> Iterator[_Part]:
    """Every part of that kind in a description, a part or a tuple of parts."""
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
