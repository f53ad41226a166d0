"""Every op in plain PyTorch: the specification of faster ops, and the fallback on every device.

Statistics and emitted numbers are float32 whatever the activations' type; moments are float64. Nothing here imports
Triton or knows a model, a file or a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from headspan_kernels.filters import taps

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
    """Rows and their LayerNorm."""

    rows: Float[Tensor, "*rows width"]
    normed: Float[Tensor, "*rows width"]


def linear(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "*rows out"]:
    """`x Wᵀ + b`."""
    return F.linear(x, weight, bias)


def add_linear(
    x: Float[Tensor, "*rows out"],
    y: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
) -> None:
    """Add `y Wᵀ` to `x` in place; where products accumulate in float32, the sum is rounded once."""
    # A view, since a copy would take the sum in place of `x`.
    x.view(-1, x.shape[-1]).addmm_(y.reshape(-1, y.shape[-1]), weight.t())


def linear_act(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str,
    gated: bool = False,
) -> Float[Tensor, "*rows hidden"]:
    """`f(x Wᵀ + b)` with the named activation `f` of `ACTIVATIONS`.

    If `gated`, `f` is applied to the first half of the columns only, which are then multiplied with the second half.
    """
    return activated(linear(x, weight, bias), activation, gated)


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
    shift: Float32[Tensor, " width"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """Normalise `x`, plus `shift` if there is one, over the last axis.

    The sum and the statistics are float32; the result has the type of `x`.
    """
    if shift is None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    shifted = x + shift
    return F.layer_norm(shifted, x.shape[-1:], weight.to(shifted), bias.to(shifted), eps).to(x.dtype)


def add_layer_norm(
    x: Float[Tensor, "*rows width"],
    added: Float[Tensor, "*rows width"] | None,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
) -> Normed:
    """`x + added`, rounded to the type of the residual stream, and the LayerNorm of the sum."""
    rows = x if added is None else x + added
    return Normed(rows, layer_norm(rows, weight, bias, eps))


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


class Placed(NamedTuple):
    """How an image becomes the model's input: resized to `height` and `width`, then cropped or padded.

    `top` and `left` are where in the resized image the input begins; they are negative where it is padded.
    """

    height: int
    width: int
    top: int
    left: int
    # Rows are resampled before columns, as Pillow 13 does in tall images; otherwise columns are first.
    rows_first: bool = False


def preprocess(
    images: Sequence[UInt8[Tensor, "_ _ _"]],
    placed: Sequence[Placed],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
    mode: str = "bicubic",
    fill: int = 0,
) -> Float[Tensor, "batch 3 out_height out_width"]:
    """Antialiased resize, crop or padding to `size` with the grey level `fill`, and the model's normalisation.

    Images are `[channel, height, width]`, with one channel or three, of any strides. `mode` is bicubic or bilinear. The
    arithmetic is Pillow's: each of the two passes rounds to grey levels; sums are float32.
    """
    levels = torch.stack([_render(image, where, size, mode, fill) for image, where in zip(images, placed, strict=True)])
    scale = 255 * torch.tensor(std, device=levels.device)
    shift = 255 * torch.tensor(mean, device=levels.device)
    return ((levels - shift[:, None, None]) / scale[:, None, None]).to(dtype)


def _render(image: Tensor, where: Placed, size: tuple[int, int], mode: str, fill: int) -> Float32[Tensor, "3 _ _"]:
    """The resized and cropped or padded grey levels of one image."""
    levels = image.float()
    offsets = ((2, where.width, where.left, size[1]), (1, where.height, where.top, size[0]))
    passes = [(axis, target, max(offset, 0), min(offset + side, target)) for axis, target, offset, side in offsets]
    for axis, target, first, end in reversed(passes) if where.rows_first else passes:
        starts, weights = taps(levels.shape[axis], target, mode)
        places = starts[first:end, None] + torch.arange(weights.shape[1])
        places = places.clamp(max=levels.shape[axis] - 1).to(levels.device)
        taken = levels.index_select(axis, places.flatten()).unflatten(axis, places.shape)
        shape = [1] * taken.ndim
        shape[axis : axis + 2] = places.shape
        weighted = taken * weights[first:end].to(levels.device).view(shape)
        levels = (weighted.sum(dim=axis + 1) + 0.5).floor().clamp(0, 255)
    beside, above = max(-where.left, 0), max(-where.top, 0)
    padding = (beside, size[1] - beside - levels.shape[2], above, size[0] - above - levels.shape[1])
    return F.pad(levels, padding, value=fill).expand(3, -1, -1)


def activated(y: Float[Tensor, "*rows out"], activation: str, gated: bool) -> Float[Tensor, "*rows hidden"]:
    """The activation in `linear_act`, of the columns or, if `gated`, of their first half, times the second."""
    if not gated:
        return ACTIVATIONS[activation](y)
    gate, y = y.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * y


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
