"""Attention of one query row per image: its head outputs, and `α v` of each token on request.

    head_outputs = Σ_m α[m] v[m],   α[m] = 2^(σ q·k[m] − lse),   σ = log2(e) / √head_dim

The last block, attention pooling and the class token of every block use it. Each head of an image has one program. The
program first reads K for the highest score and the sum of powers, then K and V for `α v`, which it sums and, on
request, stores. Scores come from the tensor cores, as a product with a matrix in which only the first column is not
zero; this replaces a reduction over columns for every key. Both passes compute the same scores, so the weights sum to 1
however large the scores are. Everything else is float32.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from headspan_kernels import reference
from headspan_kernels.reference import Emitted

# Exponents are powers of two.
LOG2_E = tl.constexpr(1.4426950408889634)
# Keys a step: the rows that one warp group multiplies at once. Columns: the fewest that a matrix product takes.
ROW_KEYS = tl.constexpr(64)
ROW_COLUMNS = tl.constexpr(16)
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
    if bias is not None or too_large(query.shape[1] // heads, query.dtype):
        # PyTorch computes relative positions, which few models have.
        return reference.pooled_attention(query, key_value, heads, with_patches, patches_out, bias)
    batch, width = query.shape
    tokens, head_dim = key_value.shape[1], width // heads
    assert query.stride(1) == 1
    assert key_value.stride(2) == 1
    head_outputs = torch.empty(batch, width, dtype=query.dtype, device=query.device)
    emitted = torch.empty(batch, heads, head_dim, dtype=torch.float32, device=query.device)
    patches = patches_buffer(patches_out, with_patches, (batch, heads, tokens, head_dim), query.device)
    if batch:
        with torch.cuda.device_of(query):
            attend_row[(batch * heads,)](
                query,
                key_value,
                head_outputs,
                emitted,
                patches,
                *(tokens, heads, query.stride(0), key_value.stride(0), key_value.stride(1), *patch_strides(patches)),
                HEAD_DIM=head_dim,
                PADDED=padded(head_dim),
                num_warps=WARPS,
                num_stages=2,
                enable_fp_fusion=True,
            )
    return head_outputs, Emitted(emitted, patches)


def too_large(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether PyTorch computes these heads: in float32, those of more than 64 dimensions would spill registers."""
    return head_dim > 64 and dtype == torch.float32


def padded(head_dim: int) -> int:
    """The power of two to which a head's columns are padded; a matrix product takes at least 16."""
    return max(16, triton.next_power_of_2(head_dim))


def patches_buffer(
    given: Tensor | None, wanted: bool, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor | None:
    """The tensor that receives `α v`: the caller's, a new float32 one, or None."""
    if not wanted:
        return None
    if given is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    assert given.stride(3) == 1
    return given


def patch_strides(patches: Tensor | None) -> tuple[int, int, int]:
    """Strides of images, heads and tokens; zeros without a tensor."""
    return (0, 0, 0) if patches is None else (patches.stride(0), patches.stride(1), patches.stride(2))


@triton.jit(do_not_specialize=["tokens", "heads"])
@no_type_check
def attend_row(
    query,
    key_value,
    head_outputs,
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
):
    pair = tl.program_id(0)
    image, head = (pair // heads).to(tl.int64), pair % heads
    place = pair.to(tl.int64) * HEAD_DIM
    compute_row(
        query + image * query_image + head * HEAD_DIM,
        key_value + image * kv_image + head * HEAD_DIM,
        heads * HEAD_DIM,
        head_outputs + place,
        emitted + place,
        patches,
        image * patches_image + head.to(tl.int64) * patches_head,
        tokens,
        kv_token,
        patches_token,
        HEAD_DIM,
        PADDED,
    )


@triton.jit
@no_type_check
def compute_row(
    query,
    key,
    width,
    head_outputs,
    emitted,
    patches,
    patches_place,
    tokens,
    row_stride,
    patches_token,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One row of one head: `query` and `key` point at the head's columns, and the values are `width` columns later."""
    columns, ones = tl.arange(0, PADDED), tl.arange(0, ROW_COLUMNS)
    inside = columns < HEAD_DIM
    # [PADDED, ROW_COLUMNS], zeros except in the first column.
    q = tl.load(query + columns[:, None] + 0 * ones[None, :], mask=inside[:, None] & (ones == 0)[None, :], other=0.0)
    # A maximum and a sum for each lane of keys, combined at the end: the loop has no reduction over keys.
    top = tl.full([ROW_KEYS], float("-inf"), tl.float32)
    total = tl.zeros([ROW_KEYS], tl.float32)
    for start in range(0, tokens, ROW_KEYS):
        scores = _row_scores(q, key, start, tokens, row_stride, HEAD_DIM, PADDED)
        higher = tl.maximum(top, scores)
        present = start + tl.arange(0, ROW_KEYS) < tokens
        total = total * tl.exp2(top - higher) + tl.where(present, tl.exp2(scores - higher), 0.0)
        top = higher
    highest = tl.max(top, axis=0)
    share = 1 / tl.sum(total * tl.exp2(top - highest), axis=0)
    # Keys that one thread holds are summed at once.
    sums = tl.zeros([ROW_KEYS // 4, PADDED], tl.float32)
    for start in range(0, tokens, ROW_KEYS):
        weights = tl.exp2(_row_scores(q, key, start, tokens, row_stride, HEAD_DIM, PADDED) - highest) * share
        keys = start + tl.arange(0, ROW_KEYS)
        within = inside[None, :] & (keys < tokens)[:, None]
        # [ROW_KEYS, PADDED]
        v = tl.load(key + width + keys[:, None] * row_stride + columns[None, :], mask=within, other=0.0)
        taken = weights[:, None] * v.to(tl.float32)
        sums += tl.sum(tl.reshape(taken, [4, ROW_KEYS // 4, PADDED]), axis=0)
        if patches is not None:
            tl.store(
                patches + patches_place + keys[:, None] * patches_token + columns[None, :],
                taken.to(patches.dtype.element_ty),
                mask=within,
            )
    output = tl.sum(sums, axis=0)
    tl.store(head_outputs + columns, output.to(head_outputs.dtype.element_ty), mask=inside)
    tl.store(emitted + columns, output, mask=inside)


@triton.jit
@no_type_check
def _row_scores(q, key, start, tokens, row_stride, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
    """Base-2 exponents of a block of keys; past the end far below any score but finite, since -inf − -inf is NaN."""
    keys, columns = start + tl.arange(0, ROW_KEYS), tl.arange(0, PADDED)
    # [ROW_KEYS, PADDED]
    k = tl.load(
        key + keys[:, None] * row_stride + columns[None, :],
        mask=(columns < HEAD_DIM)[None, :] & (keys < tokens)[:, None],
        other=0.0,
    )
    scale: tl.constexpr = LOG2_E * HEAD_DIM**-0.5
    scores = tl.sum(tl.dot(k, q, input_precision="tf32x3"), axis=1) * scale
    return tl.where(keys < tokens, scores, -1.0e38)
