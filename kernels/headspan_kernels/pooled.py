"""Attention of one query row an image, the last block's form.

    mixed = Σ_m α[m] v[m],   α[m] = 2^(σ q·k[m] − lse),   σ = log2(e) / √head_dim

One program a head of an image, everything in float32: with one row a matrix product would be idle, and the time
is that of reading K and V once. `α v` takes a second loop over them, from the cache.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from headspan_kernels import reference
from headspan_kernels.attention import LOG2_E, padded, patch_strides, patches_buffer, write_patches
from headspan_kernels.reference import Emitted

# Keys a step, and warps: 64 rows of 64 columns in two loads of 16 bytes a thread.
BLOCK_KEYS = 64
WARPS = 4


def pooled_attention(
    query: Float[Tensor, "batch width"],
    key_value: Float[Tensor, "batch token kv_width"],
    heads: int,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
    bias: Float[Tensor, "head token"] | None = None,
) -> tuple[Float[Tensor, "batch width"], Emitted]:
    """As `reference.pooled_attention`; last axes must be contiguous."""
    if bias is not None:
        # Relative positions, which few models have: left to PyTorch.
        return reference.pooled_attention(query, key_value, heads, with_patches, patches_out, bias)
    batch, width = query.shape
    tokens, head_dim = key_value.shape[1], width // heads
    assert query.stride(1) == 1
    assert key_value.stride(2) == 1
    mixed = torch.empty(batch, width, dtype=query.dtype, device=query.device)
    emitted = torch.empty(batch, heads, head_dim, dtype=torch.float32, device=query.device)
    patches = patches_buffer(patches_out, with_patches, (batch, heads, tokens, head_dim), query.device)
    if batch:
        with torch.cuda.device_of(query):
            attend_row[(batch * heads,)](
                query,
                key_value,
                mixed,
                emitted,
                patches,
                *(tokens, heads, query.stride(0), key_value.stride(0), key_value.stride(1), *patch_strides(patches)),
                HEAD_DIM=head_dim,
                PADDED=padded(head_dim),
                BLOCK_KEYS=BLOCK_KEYS,
                num_warps=WARPS,
                enable_fp_fusion=True,
            )
    return mixed, Emitted(emitted, patches)


@triton.jit(do_not_specialize=["tokens", "heads"])
@no_type_check
def attend_row(
    query,
    key_value,
    mixed,
    emitted,
    patches,
    tokens,
    heads,
    query_image,
    kv_image,
    kv_token,
    patches_image,
    patches_head,
    patches_token,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    pair = tl.program_id(0)
    image, head = (pair // heads).to(tl.int64), pair % heads
    width = heads * HEAD_DIM
    columns = tl.arange(0, PADDED)
    inside = columns < HEAD_DIM
    # [PADDED]
    q = tl.load(query + image * query_image + head * HEAD_DIM + columns, mask=inside, other=0.0).to(tl.float32)
    key = key_value + image * kv_image + head * HEAD_DIM
    scale: tl.constexpr = LOG2_E * HEAD_DIM**-0.5
    # Running maximum and sums a lane of keys, joined at the end: no reduction over keys inside the loop.
    top = tl.full([BLOCK_KEYS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_KEYS], tl.float32)
    sums = tl.zeros([BLOCK_KEYS, PADDED], tl.float32)
    for start in range(0, tokens, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        within = inside[None, :] & (keys < tokens)[:, None]
        places = keys[:, None] * kv_token + columns[None, :]
        # [BLOCK_KEYS, PADDED]
        k = tl.load(key + places, mask=within, other=0.0).to(tl.float32)
        v = tl.load(key + width + places, mask=within, other=0.0).to(tl.float32)
        # Far below any score, and finite: a lane that never holds a key must not make NaN of -inf − -inf.
        scores = tl.where(keys < tokens, tl.sum(q[None, :] * k, axis=1) * scale, -1.0e38)
        higher = tl.maximum(top, scores)
        fade, weights = tl.exp2(top - higher), tl.exp2(scores - higher)
        weights = tl.where(keys < tokens, weights, 0.0)
        sums = sums * fade[:, None] + weights[:, None] * v
        total = total * fade + weights
        top = higher
    highest = tl.max(top, axis=0)
    share = tl.exp2(top - highest)
    whole = tl.sum(total * share, axis=0)
    taken = tl.sum(sums * share[:, None], axis=0) / whole
    place = pair.to(tl.int64) * HEAD_DIM + columns
    tl.store(mixed + place, taken.to(mixed.dtype.element_ty), mask=inside)
    tl.store(emitted + place, taken, mask=inside)
    if patches is not None:
        write_patches(
            q,
            highest,
            whole,
            key,
            patches + image * patches_image + head.to(tl.int64) * patches_head,
            tokens,
            kv_token,
            width,
            patches_token,
            HEAD_DIM,
            PADDED,
            BLOCK_KEYS,
        )
