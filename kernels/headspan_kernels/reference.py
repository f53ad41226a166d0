"""Every op in plain PyTorch: the specification that faster ones are held against, and the CPU path.

Statistics and emitted numbers are float32 whatever the activations' type; moments are float64.
Nothing here imports Triton or knows a model, a file or a store.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor


class Emitted(NamedTuple):
    """What the pooled row took from each head: `Σ_n α v`, and `α v` per source token where asked for."""

    heads: Float[Tensor, "batch head head_dim"]
    patches: Float[Tensor, "batch head token head_dim"] | None


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
) -> Float[Tensor, "*rows width"]:
    """Normalise over the last axis; statistics are float32, the result has the type of `x`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def attention_emit(
    qkv: Float[Tensor, "batch token qkv_width"],
    heads: int,
    pooling: Float[Tensor, "pool_batch token"] | None,
    with_patches: bool,
    bias: Float[Tensor, "head token token"] | None = None,
) -> tuple[Float[Tensor, "batch token width"], Emitted]:
    """Attention of every token, and what the pooled row took from each head.

    `qkv` holds queries, keys and values side by side. `pooling` holds the weights of the rows whose mean
    is the pooled row (its first axis is 1 or the batch); None means that row 0, the class token, is it.
    `bias` is added to the scores.
    """
    query, key, value = _split_heads(qkv, 3, heads)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    if pooling is None:
        emitted_heads = mixed[:, :, 0].float()
    else:
        emitted_heads = torch.einsum("bhnk,bn->bhk", mixed.float(), pooling.expand(len(qkv), -1))
    emitted_patches = None
    if with_patches:
        rows = query[:, :, :1] if pooling is None else query
        row_bias = bias if bias is None or pooling is not None else bias[:, :1]
        weights = _attention_weights(rows, key, row_bias)
        if pooling is None:
            weights = weights[:, :, 0]
        else:
            weights = torch.einsum("bhnm,bn->bhm", weights, pooling.expand(len(qkv), -1))
        emitted_patches = weights[..., None] * value.float()
    return _join_heads(mixed), Emitted(emitted_heads, emitted_patches)


def pooled_attention(
    query: Float[Tensor, "batch width"],
    key_value: Float[Tensor, "batch token kv_width"],
    heads: int,
    with_patches: bool,
    bias: Float[Tensor, "head token"] | None = None,
) -> tuple[Float[Tensor, "batch width"], Emitted]:
    """Attention of one query row an image, as in the last block, where no other row is needed.

    `bias` is added to the scores.
    """
    batch, width = query.shape
    row_bias = None if bias is None else bias[:, None]
    key, value = _split_heads(key_value, 2, heads)
    rows = query.view(batch, heads, 1, width // heads)
    if with_patches:
        emitted_patches = _attention_weights(rows, key, row_bias)[:, :, 0, :, None] * value.float()
        emitted_heads = emitted_patches.sum(dim=2)
        mixed = emitted_heads.to(query.dtype)
    else:
        emitted_patches = None
        mixed = F.scaled_dot_product_attention(rows, key, value, attn_mask=row_bias)[:, :, 0]
        emitted_heads = mixed.float()
    return mixed.reshape(batch, width), Emitted(emitted_heads, emitted_patches)


def attention_weights(
    query: Float[Tensor, "batch width"], key: Float[Tensor, "batch token width"], heads: int
) -> Float[Tensor, "batch head token"]:
    """How much of every token each head of one query row an image takes; sums to 1 over tokens, float32."""
    (keys,) = _split_heads(key, 1, heads)
    rows = query.view(len(query), heads, 1, -1)
    return _attention_weights(rows, keys, None)[:, :, 0]


def add_moments(
    coordinates: Float64[Tensor, "batch layer head coordinate"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """Add a batch's sum and uncentred Gram matrix of every head to `total` and `gram`, in place."""
    batch, layers, heads, size = coordinates.shape
    columns = coordinates.reshape(batch, layers * heads, size).transpose(0, 1).contiguous()
    total += columns.sum(dim=1).view_as(total)
    gram.view(layers * heads, size, size).baddbmm_(columns.transpose(1, 2), columns)


def _split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[batch, token, parts · width]` to `parts` views `[batch, head, token, head_dim]`."""
    batch, tokens, _ = x.shape
    return x.view(batch, tokens, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _join_heads(x: Tensor) -> Tensor:
    batch, _, tokens, _ = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, -1)


def _attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = query.shape[-1] ** -0.5 * (query.float() @ key.float().transpose(-1, -2))
    return torch.softmax(scores if bias is None else scores + bias.float(), dim=-1)
