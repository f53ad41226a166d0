"""What a weighted mean of rows takes from each source token, from the saved sums of attention's rows.

    patches[m] = Σ_n pooling[n] α[n,m] v[m],   α[n,m] = 2^(σ q[n]·k[m] − lse[n]),   σ = log2(e) / √head_dim

`attention.attention_emit_cut` launches it after the rows, which save `lse`. A program sums the columns of α of a block
of keys over all rows. Statistics are float32.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from headspan_kernels.pooled import LOG2_E


@triton.jit(do_not_specialize=["tokens", "heads"])
@no_type_check
def pool_patches(
    qkv,
    log_sums,
    pooling,
    patches,
    tokens,
    heads,
    qkv_image,
    qkv_token,
    pooling_image,
    patches_image,
    patches_head,
    patches_token,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """`Σ_n pooling[n] α[n,m] v[m]` of a block of keys m, over all rows n."""
    key_blocks = tl.cdiv(tokens, BLOCK_KEYS)
    pair, block = tl.program_id(0) // key_blocks, tl.program_id(0) % key_blocks
    image, head = (pair // heads).to(tl.int64), pair % heads
    width = heads * HEAD_DIM
    query = qkv + image * qkv_image + head * HEAD_DIM
    keys = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    columns = tl.arange(0, PADDED)
    within = (columns < HEAD_DIM)[None, :] & (keys < tokens)[:, None]
    places = keys[:, None] * qkv_token + columns[None, :]
    # [BLOCK_KEYS, PADDED]
    k = tl.load(query + width + places, mask=within, other=0.0)
    scale: tl.constexpr = LOG2_E * HEAD_DIM**-0.5
    seen = tl.zeros([BLOCK_KEYS], tl.float32)
    for start in range(0, tokens, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        # [BLOCK_ROWS, PADDED]
        q = tl.load(
            query + rows[:, None] * qkv_token + columns[None, :],
            mask=(columns < HEAD_DIM)[None, :] & (rows < tokens)[:, None],
            other=0.0,
        )
        log_sum = tl.load(log_sums + pair.to(tl.int64) * tokens + rows, mask=rows < tokens, other=0.0)
        row_weights = tl.load(pooling + image * pooling_image + rows, mask=rows < tokens, other=0.0)
        # [BLOCK_ROWS, BLOCK_KEYS]; scores of rows past the end are 0, and so is their weight.
        weights = tl.exp2(tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale - log_sum[:, None])
        seen += tl.sum(row_weights[:, None] * weights, axis=0)
    v = tl.load(query + 2 * width + places, mask=within, other=0.0).to(tl.float32)
    tl.store(
        patches
        + image * patches_image
        + head.to(tl.int64) * patches_head
        + keys[:, None] * patches_token
        + columns[None, :],
        (seen[:, None] * v).to(patches.dtype.element_ty),
        mask=within,
    )
