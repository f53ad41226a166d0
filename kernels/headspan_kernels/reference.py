"""Every op in plain PyTorch: the specification of faster ops, and the fallback on every device.

Statistics and emitted numbers are float32 whatever the activations' type; moments are float64. Nothing here imports
Triton or knows a model, a file or a store.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int32, UInt8
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class Emitted(NamedTuple):
    """What the pooled row takes from each head: `Σ_n α v`, and `α v` for each source token on request."""

    heads: Float[Tensor, "batch head head_dim"]
    patches: Float[Tensor, "batch head token head_dim"] | None


class Normed(NamedTuple):
    """Rows, their LayerNorm, and on request its float32 mean and `1 / sqrt(var + eps)`."""

    rows: Float[Tensor, "*rows width"]
    normed: Float[Tensor, "*rows width"]
    mean: Float32[Tensor, "*rows"] | None
    rstd: Float32[Tensor, "*rows"] | None


def linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str | None = None,
) -> Float[Tensor, "*rows out"]:
    """`x Wᵀ + b`, followed by the named activation of `ACTIVATIONS`, if any."""
    y = F.linear(x, weight, bias)
    return y if activation is None else ACTIVATIONS[activation](y)


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
) -> Float[Tensor, "*rows width"]:
    """Normalise over the last axis; statistics are float32, the result has the type of `x`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_layer_norm(
    x: Float[Tensor, "*rows width"],
    added: Float[Tensor, "*rows width"] | None,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
    with_statistics: bool = False,
) -> Normed:
    """`x + added`, rounded to the type of the residual stream, and the LayerNorm of the sum."""
    rows = x if added is None else x + added
    mean = rstd = None
    if with_statistics:
        exact = rows.float()
        mean = exact.mean(dim=-1)
        rstd = torch.rsqrt(exact.var(dim=-1, correction=0) + eps)
    return Normed(rows, layer_norm(rows, weight, bias, eps), mean, rstd)


def attention_emit(
    qkv: Float[Tensor, "batch token qkv_width"],
    heads: int,
    pooling: Float[Tensor, "pool_batch token"] | None,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
    bias: Float[Tensor, "head token token"] | None = None,
) -> tuple[Float[Tensor, "batch token width"], Emitted]:
    """Attention of every token, and what the pooled row takes from each head.

    `qkv` holds queries, keys and values side by side. `pooling` holds the weights of the rows whose weighted mean is
    the pooled row (its first axis is 1 or the batch); without it, row 0, the class token, is the pooled row.
    `with_patches` asks for `α v`: written to `patches_out`, in its type, or returned as float32 without it. `bias` is
    added to the scores.
    """
    query, key, value = split_heads(qkv, 3, heads)
    head_outputs = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    if pooling is None:
        emitted_heads = head_outputs[:, :, 0].float()
    else:
        emitted_heads = torch.einsum("bhnk,bn->bhk", head_outputs.float(), pooling.expand(len(qkv), -1))
    emitted_patches = None
    if with_patches:
        rows = query[:, :, :1] if pooling is None else query
        row_bias = bias if bias is None or pooling is not None else bias[:, :1]
        weights = softmax_weights(rows, key, row_bias)
        if pooling is None:
            weights = weights[:, :, 0]
        else:
            weights = torch.einsum("bhnm,bn->bhm", weights, pooling.expand(len(qkv), -1))
        emitted_patches = _written(weights[..., None] * value.float(), patches_out)
    return _join_heads(head_outputs), Emitted(emitted_heads, emitted_patches)


def pooled_attention(
    query: Float[Tensor, "batch width"],
    key_value: Float[Tensor, "batch token kv_width"],
    heads: int,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
    bias: Float[Tensor, "head token"] | None = None,
) -> tuple[Float[Tensor, "batch width"], Emitted]:
    """Attention of one query row per image, as in the last block, which needs no other row.

    `patches_out` and `bias` as in `attention_emit`.
    """
    batch, width = query.shape
    row_bias = None if bias is None else bias[:, None]
    key, value = split_heads(key_value, 2, heads)
    rows = query.view(batch, heads, 1, width // heads)
    if with_patches:
        emitted_patches = softmax_weights(rows, key, row_bias)[:, :, 0, :, None] * value.float()
        emitted_heads = emitted_patches.sum(dim=2)
        emitted_patches = _written(emitted_patches, patches_out)
        head_outputs = emitted_heads.to(query.dtype)
    else:
        emitted_patches = None
        head_outputs = F.scaled_dot_product_attention(rows, key, value, attn_mask=row_bias)[:, :, 0]
        emitted_heads = head_outputs.float()
    return head_outputs.reshape(batch, width), Emitted(emitted_heads, emitted_patches)


def attention_weights(
    query: Float[Tensor, "batch width"], key: Float[Tensor, "batch token width"], heads: int
) -> Float[Tensor, "batch head token"]:
    """The weight of every token in each head of one query row per image, float32; sums to 1 over tokens."""
    (keys,) = split_heads(key, 1, heads)
    rows = query.view(len(query), heads, 1, -1)
    return softmax_weights(rows, keys, None)[:, :, 0]


def add_moments(
    heads: Float32[Tensor, "batch layer head head_dim"],
    scale: Float64[Tensor, " batch"],
    mean_and_bias: Float64[Tensor, "batch term"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """Add a batch's sum and uncentred Gram matrix of every head's coordinates to `total` and `gram`, in place.

    An image's coordinates are its `head_dim` numbers times its `scale`, followed by its `mean_and_bias`. An image whose
    scale is 0 adds nothing, even if its numbers are NaN or infinite.
    """
    batch, layers, count, _ = heads.shape
    scaled = torch.where(scale[:, None, None, None] == 0, 0, heads.double() * scale[:, None, None, None])
    mean_and_bias = torch.where(scale[:, None] == 0, 0, mean_and_bias)
    coordinates = torch.cat([scaled, mean_and_bias[:, None, None].expand(batch, layers, count, -1)], dim=-1)
    size = coordinates.shape[-1]
    columns = coordinates.reshape(batch, layers * count, size).transpose(0, 1).contiguous()
    total += columns.sum(dim=1).view_as(total)
    gram.view(layers * count, size, size).baddbmm_(columns.transpose(1, 2), columns)


def preprocess(
    pixels: UInt8[Tensor, "batch height width 3"],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 out_height out_width"]:
    """Antialiased bicubic resize of the short side, centre crop to `size`, and the model's normalisation.

    Pillow's arithmetic: columns first, rounded to grey levels, then rows, rounded again; sums are float32. Pillow 13
    resizes rows first in tall images, where it differs by one or two grey levels.
    """
    (height, width), (top, left) = resize_and_crop((pixels.shape[1], pixels.shape[2]), size)
    levels = pixels.float()
    for axis, target, first, count in ((2, width, left, size[1]), (1, height, top, size[0])):
        starts, weights = bicubic_taps(pixels.shape[axis], target)
        places = starts[first : first + count, None] + torch.arange(weights.shape[1])
        places = places.clamp(max=pixels.shape[axis] - 1).to(pixels.device)
        taken = levels.index_select(axis, places.flatten()).unflatten(axis, places.shape)
        shape = [1] * taken.ndim
        shape[axis : axis + 2] = places.shape
        weighted = taken * weights[first : first + count].to(pixels.device).view(shape)
        levels = (weighted.sum(dim=axis + 1) + 0.5).floor().clamp(0, 255)
    scale = 255 * torch.tensor(std, device=pixels.device)
    shift = 255 * torch.tensor(mean, device=pixels.device)
    return ((levels - shift) / scale).permute(0, 3, 1, 2).to(dtype)


def resize_and_crop(source: tuple[int, int], target: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width after resizing the short side to the square `target`'s, the long side rounded down; and the top
    and left of the centre crop."""
    long = int(target[0] * max(source) / min(source))
    height, width = (long, target[1]) if source[1] <= source[0] else (target[0], long)
    return (height, width), (round((height - target[0]) / 2), round((width - target[1]) / 2))


@cache
def bicubic_taps(source: int, target: int) -> tuple[Int32[Tensor, " target"], Float32[Tensor, "target tap"]]:
    """For every target pixel its first source pixel and the weights from there on, padded with zeros.

    As Pillow's `precompute_coeffs` with its bicubic kernel (a = -1/2), stretched by the ratio if that is above 1.
    """
    ratio = source / target
    stretch = max(ratio, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
    starts = (centres - 2 * stretch + 0.5).clamp(min=0).floor()
    ends = (centres + 2 * stretch + 0.5).floor().clamp(max=source)
    places = starts[:, None] + torch.arange(int((ends - starts).max()), dtype=torch.float64)
    x = ((places - centres[:, None] + 0.5) / stretch).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (places < ends[:, None])
    return starts.int(), (weights / weights.sum(dim=1, keepdim=True)).float()


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[batch, token, parts · width]` to `parts` views `[batch, head, token, head_dim]`."""
    batch, tokens, _ = x.shape
    return x.view(batch, tokens, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _join_heads(x: Tensor) -> Tensor:
    batch, _, tokens, _ = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, -1)


def _written(values: Tensor, out: Tensor | None) -> Tensor:
    return values if out is None else out.copy_(values)


def softmax_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Float32 attention weights of query rows over tokens; inputs are `[batch, head, row or token, head_dim]`."""
    scores = query.shape[-1] ** -0.5 * (query.float() @ key.float().transpose(-1, -2))
    return torch.softmax(scores if bias is None else scores + bias.float(), dim=-1)
