"""Ops for CPUs: linear maps through oneDNN, and bf16 attention as plain products.

    linear, linear_act: x Wᵀ + b and activation(x Wᵀ + b) in one call; W is stored in oneDNN's own block layout
    attention: softmax(q kᵀ / √head_dim) v, for as many images at once as have scores that fit the cache

The reference serves everything else, and also the types for which oneDNN is unavailable or not faster (`serves`).
PyTorch passes float32 products to MKL, which does not use AVX-512 on AMD's processors. For bf16, PyTorch converts the
layout of the weights in every call, and its fused attention is slower than plain products. benchmarks/NOTES.md has the
numbers.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from headspan_kernels import reference
from headspan_kernels.reference import (
    Emitted,
    add_layer_norm,
    add_linear,
    add_moments,
    attention_weights,
    layer_norm,
    pooled_attention,
    preprocess,
)

__all__ = [
    "add_layer_norm",
    "add_linear",
    "add_moments",
    "attention_emit",
    "attention_weights",
    "layer_norm",
    "linear",
    "linear_act",
    "pooled_attention",
    "preprocess",
]

# Activations that oneDNN fuses into the product: its name, and its algorithm.
_FUSED = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
_DTYPES = (torch.float32, torch.bfloat16)
# Bytes of attention scores computed at once; a few megabytes stay in the cache.
_SCORES_BYTES = 8 << 20
# Bytes of float32 `α v` computed at once, likewise.
_NUMBERS_BYTES = 1 << 20
# Number of rows for which weights are laid out, whatever the first call has. The layout decides the order of sums, and
# the bytes of a resumed run must not depend on its first batch.
_ROWS = 1024

_laid_out: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@cache
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN multiplies matrices of this type on this processor; tried once, on one number.

    bf16 needs AVX-512 or AVX-NE-CONVERT.
    """
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    one = torch.ones(1, 1, dtype=dtype)
    try:
        _multiplied(one, _reordered(one), None, None)
    except (AttributeError, RuntimeError):
        # This PyTorch lacks the private ops, or the processor lacks instructions for this type.
        return False
    return True


@cache
def serves(dtype: torch.dtype) -> bool:
    """Whether linear maps of this type go through oneDNN: where it is available and faster than PyTorch's own.

    With AVX2 only, oneDNN takes 0.98 to 1.06 of MKL's time for float32 towers, and a second copy of the weights; with
    AVX-512 it takes 0.5 (AMD) to 0.9 (Intel). The choice depends on the processor and the type, never on timing, so the
    bytes of a run do not vary between runs on one machine.
    """
    if dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    return available(dtype)


def linear(
    x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*rows out"]:
    """As `reference.linear`. A laid-out copy of `weight` lives as long as `weight`, which must not change."""
    if not x.numel() or not serves(x.dtype):
        return reference.linear(x, weight, bias)
    return _multiplied(x, _laid(weight), bias, None)


def linear_act(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str,
    gated: bool = False,
) -> Float[Tensor, "*rows hidden"]:
    """As `reference.linear_act`, with weights as in `linear`."""
    if not x.numel() or not serves(x.dtype):
        return reference.linear_act(x, weight, bias, activation, gated)
    if activation in _FUSED and not gated:
        return _multiplied(x, _laid(weight), bias, activation)
    return reference.activated(_multiplied(x, _laid(weight), bias, None), activation, gated)


def _laid(weight: Tensor) -> Tensor:
    """The laid-out copy of `weight`, made in the first call."""
    packed = _laid_out.get(weight)
    if packed is None:
        packed = _laid_out[weight] = _reordered(weight)
    return packed


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
    """As `reference.attention_emit`; bf16 scores are rounded to bf16, except those from which `α v` is computed."""
    if qkv.dtype not in _DTYPES or pooling is not None or bias is not None:
        return reference.attention_emit(qkv, heads, pooling, with_patches, patches_out, bias)
    if qkv.dtype == torch.float32 or not available(qkv.dtype):
        head_outputs, _ = reference.attention_emit(qkv, heads, None, False)
    else:
        head_outputs = _plain_attention(qkv, heads)
    # A copy, since a view of one row would keep all rows in memory.
    emitted = head_outputs[:, 0].unflatten(-1, (heads, -1)).to(torch.float32, copy=True)
    if not with_patches:
        return head_outputs, Emitted(emitted, None)
    patches = patches_out
    if patches is None:
        patches = torch.empty(len(qkv), heads, qkv.shape[1], emitted.shape[2])
    _write_patches(qkv, heads, emitted, patches)
    # The class token's output becomes exactly the sum of the emitted terms.
    head_outputs[:, 0] = emitted.flatten(1)
    return head_outputs, Emitted(emitted, patches)


def _plain_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention outputs of all rows, `[batch, token, width]`, computed in groups of images."""
    batch, tokens, columns = qkv.shape
    query, key, value = reference.split_heads(qkv, 3, heads)
    head_dim = query.shape[-1]
    head_outputs = torch.empty(batch, tokens, heads, head_dim, dtype=qkv.dtype)
    together = max(1, _SCORES_BYTES // (heads * tokens * tokens * qkv.itemsize))
    for first in range(0, batch, together):
        images = slice(first, first + together)
        weights = torch.softmax((query[images] * head_dim**-0.5) @ key[images].transpose(-1, -2), dim=-1)
        head_outputs[images].transpose(1, 2).copy_(weights @ value[images])
    return head_outputs.view(batch, tokens, columns // 3)


def _write_patches(qkv: Tensor, heads: int, emitted: Tensor, patches: Tensor) -> None:
    """Write row 0's `α v` to `patches` and its sum over tokens to `emitted`: float32 sums, in groups of images."""
    query, key, value = reference.split_heads(qkv, 3, heads)
    together = max(1, _NUMBERS_BYTES // (qkv[0].numel() // 3 * 4))
    for first in range(0, len(qkv), together):
        images = slice(first, first + together)
        weights = reference.softmax_weights(query[images, :, :1], key[images], None)[:, :, 0, :, None]
        own = weights * value[images]
        torch.sum(own, dim=2, out=emitted[images])
        patches[images] = own
