"""The ops of a CPU: oneDNN's linear maps with weights laid out once, bf16 attention as plain products.

    linear:    activation(x Wᵀ + b) in one call, W in oneDNN's own blocks
    attention: softmax(q kᵀ / √head_dim) v by images, as many at once as the scores of fit a cache

Everything else is the reference's, and so is a type of numbers that oneDNN does not multiply on this processor:
bf16 needs AVX-512 or AVX-NE-CONVERT. PyTorch takes float32 products to MKL, which on AMD's processors leaves AVX-512
alone, and lays bf16 weights out anew in every call; its fused attention is slower than plain products in bf16.
benchmarks/NOTES.md has the numbers.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from headspan_kernels import reference
from headspan_kernels.reference import (
    ACTIVATIONS,
    Emitted,
    add_layer_norm,
    add_moments,
    attention_weights,
    layer_norm,
    pooled_attention,
    preprocess,
)

__all__ = [
    "add_layer_norm",
    "add_moments",
    "attention_emit",
    "attention_weights",
    "layer_norm",
    "linear",
    "pooled_attention",
    "preprocess",
]

# What oneDNN applies on the way out: its name, and its algorithm.
_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
_DTYPES = (torch.float32, torch.bfloat16)
# Scores of the images that are mixed together; a few megabytes stay in the cache.
_SCORES_BYTES = 8 << 20
# `α v` of the images that are written together, as float32.
_NUMBERS_BYTES = 1 << 20
# Rows for which weights are laid out, whatever the first call has: blocks decide the order of sums, and the bytes of a
# run must not depend on the batch that it was resumed with.
_ROWS = 1024

_laid_out: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@cache
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN multiplies matrices of this type on this processor. It is tried once, on a single number."""
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    one = torch.ones(1, 1, dtype=dtype)
    try:
        _multiplied(one, _reordered(one), None, None)
    except (AttributeError, RuntimeError):
        # This PyTorch lacks the private ops, or the processor lacks instructions for this type.
        return False
    return True


def linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str | None = None,
) -> Float[Tensor, "*rows out"]:
    """As `reference.linear`. The laid-out copy of `weight` lives as long as `weight`, which must not be changed."""
    if not x.numel() or not available(x.dtype):
        return reference.linear(x, weight, bias, activation)
    packed = _laid_out.get(weight)
    if packed is None:
        packed = _laid_out[weight] = _reordered(weight)
    if activation is None or activation in _FUSED:
        return _multiplied(x, packed, bias, activation)
    return ACTIVATIONS[activation](_multiplied(x, packed, bias, None))


def _reordered(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)


def _multiplied(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    name, algorithm = _FUSED[activation]
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, name, [], algorithm)


def attention_emit(
    qkv: Float[Tensor, "batch token qkv_width"],
    heads: int,
    pooling: Float[Tensor, "pool_batch token"] | None,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
    bias: Float[Tensor, "head token token"] | None = None,
) -> tuple[Float[Tensor, "batch token width"], Emitted]:
    """As `reference.attention_emit`; scores of bf16 are bf16, but for those that become `α v`."""
    if qkv.dtype not in _DTYPES or pooling is not None or bias is not None:
        return reference.attention_emit(qkv, heads, pooling, with_patches, patches_out, bias)
    if qkv.dtype == torch.float32 or not available(qkv.dtype):
        mixed, _ = reference.attention_emit(qkv, heads, None, False)
    else:
        mixed = _mixed(qkv, heads)
    # A copy: a view of one row would keep all rows in memory.
    emitted = mixed[:, 0].unflatten(-1, (heads, -1)).to(torch.float32, copy=True)
    if not with_patches:
        return mixed, Emitted(emitted, None)
    patches = patches_out
    if patches is None:
        patches = torch.empty(len(qkv), heads, qkv.shape[1], emitted.shape[2])
    _write_patches(qkv, heads, emitted, patches)
    # Of one kind: what the class token takes on is the sum of what is emitted.
    mixed[:, 0] = emitted.flatten(1)
    return mixed, Emitted(emitted, patches)


def _mixed(qkv: Tensor, heads: int) -> Tensor:
    """`[batch, token, width]`: every row's mix, by as many images at once as their scores fit a cache."""
    batch, tokens, columns = qkv.shape
    query, key, value = reference.split_heads(qkv, 3, heads)
    head_dim = query.shape[-1]
    mixed = torch.empty(batch, tokens, heads, head_dim, dtype=qkv.dtype)
    together = max(1, _SCORES_BYTES // (heads * tokens * tokens * qkv.itemsize))
    for first in range(0, batch, together):
        images = slice(first, first + together)
        weights = torch.softmax((query[images] * head_dim**-0.5) @ key[images].transpose(-1, -2), dim=-1)
        mixed[images].transpose(1, 2).copy_(weights @ value[images])
    return mixed.view(batch, tokens, columns // 3)


def _write_patches(qkv: Tensor, heads: int, emitted: Tensor, patches: Tensor) -> None:
    """Row 0's `α v` and its sum over tokens, float32 until it is stored, by as many images at once as fit a cache."""
    query, key, value = reference.split_heads(qkv, 3, heads)
    together = max(1, _NUMBERS_BYTES // (qkv[0].numel() // 3 * 4))
    for first in range(0, len(qkv), together):
        images = slice(first, first + together)
        weights = reference.softmax_weights(query[images, :, :1], key[images], None)[:, :, 0, :, None]
        own = weights * value[images]
        torch.sum(own, dim=2, out=emitted[images])
        patches[images] = own
