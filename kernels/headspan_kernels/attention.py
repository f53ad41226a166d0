"""Attention of every token, and what the pooled row takes from each head, in one or two launches.

    head_outputs[n] = Σ_m α[n,m] v[m],   α[n,m] = 2^(σ q[n]·k[m] − lse[n]),   σ = log2(e) / √head_dim

`lse[n]` is the base-2 logarithm of the row's sum, computed online (Milakov and Gimelshein 2018). σ is part of the
exponent's multiply-add, where it costs nothing; in 16-bit weights it would be rounded. Queries, keys and values are
read in place, side by side as the linear map wrote them. float32 operands are multiplied as three TF32 products, which
keep the precision of float32.

A class token is handled separately. Without it, 256 patches fill whole blocks; one more row and key would add a block
of rows and a block of keys to every head. The class token's key starts the patches' online softmax. Its row, which is
emitted, has a program of its own that runs while K and V are in the cache. For a weighted mean of rows, a second kernel
sums the columns of α with the saved `lse`.

The same input gives the same bits: there are no float atomics, and blocks are chosen by shape and type, never by
timing. A resumed run thus ends with the bytes of one that was not interrupted. `switches.ATTENTION` names the shapes at
which other blocks are faster on a GPU, or programs that keep all keys and values of a head (`whole_heads`).
"""

from __future__ import annotations

from typing import Literal, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from headspan_kernels import reference, switches
from headspan_kernels.mean_of_rows import pool_patches
from headspan_kernels.pooled import LOG2_E, compute_row, padded, patch_strides, patches_buffer, too_large
from headspan_kernels.reference import Emitted
from headspan_kernels.switches import Blocks
from headspan_kernels.whole_heads import attend_heads, shared_bytes, tiles

# Bytes of shared memory that a program may take on sm_90; reductions need a few.
_SHARED = 226 << 10


def candidates(head_dim: int, dtype: torch.dtype, tokens: int = 0) -> tuple[Blocks, ...]:
    """The blocks worth measuring, those in use without an entry in `switches` first, for any number of tokens or one.

    None spills registers on sm_90 if `α v` is stored in 16 bits, as runs store it; nor does the first one on sm_80 and
    sm_100.
    """
    if dtype == torch.float32:
        # The operands of three TF32 products, split in two, fill the registers.
        return (Blocks(32, 32, 4, 1),)
    streamed: tuple[Blocks, ...]
    kept: tuple[Blocks, ...]
    if head_dim <= 64:
        # Blocks of 64 by 64 need about 130 registers per thread; limited to 128, they spill under some Tritons.
        streamed = (Blocks(64, 32, 4, 3), Blocks(64, 32, 4, 2), Blocks(128, 32, 4, 3))
        # With 128 registers, 16 warps fit a multiprocessor; tiles of 64 keys would then spill under Triton 3.6.
        kept = (Blocks(128, 32, 8, 1, True, 128), Blocks(64, 64, 4, 1, True, 168), Blocks(128, 64, 8, 1, True))
    else:
        streamed = (Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 3), Blocks(128, 32, 8, 2))
        kept = (Blocks(128, 64, 8, 1, True),)
    # One block has all of a few rows, and a program of many keys does not share its multiprocessor.
    if tokens <= 64:
        kept = tuple(cut for cut in kept if cut.rows == 64)
    elif tokens > 320:
        kept = kept[-1:]
    return (*streamed, *(cut for cut in kept if tokens and fits(cut, tokens, head_dim)))


def fits(cut: Blocks, tokens: int, head_dim: int) -> bool:
    """Whether a multiprocessor of sm_90 can keep keys and values of a head as this cut demands."""
    return shared_bytes(tokens, padded(head_dim), cut.rows, cut.keys, cut.stages) < _SHARED


def attention_emit(
    qkv: Float[Tensor, "batch token qkv_width"],
    heads: int,
    pooling: Float[Tensor, "pool_batch token"] | None,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
    bias: Float[Tensor, "head token token"] | None = None,
) -> tuple[Float[Tensor, "batch token width"], Emitted]:
    """As `reference.attention_emit`; `qkv`'s last axis must be contiguous, and so must `patches_out`'s."""
    head_dim = qkv.shape[2] // 3 // heads
    if bias is not None or too_large(head_dim, qkv.dtype):
        # PyTorch computes relative positions, which few models have.
        return reference.attention_emit(qkv, heads, pooling, with_patches, patches_out, bias)
    cut = cut_in_use(qkv, heads, pooling is not None)
    if isinstance(cut, str):
        return reference.attention_emit(qkv, heads, pooling, with_patches, patches_out)
    return attention_emit_cut(cut, qkv, heads, pooling, with_patches, patches_out)


def cut_in_use(
    qkv: Float[Tensor, "batch token qkv_width"], heads: int, mean_pooled: bool
) -> Blocks | Literal["reference"]:
    """The blocks of these heads, or PyTorch: what `switches` names, or the blocks for any number of tokens."""
    head_dim = qkv.shape[2] // 3 // heads
    measured = switches.attention_by(qkv.device, qkv.dtype, head_dim, qkv.shape[1], mean_pooled)
    return measured or candidates(head_dim, qkv.dtype)[0]


def attention_emit_cut(
    cut: Blocks,
    qkv: Float[Tensor, "batch token qkv_width"],
    heads: int,
    pooling: Float[Tensor, "pool_batch token"] | None,
    with_patches: bool,
    patches_out: Float[Tensor, "batch head token head_dim"] | None = None,
) -> tuple[Float[Tensor, "batch token width"], Emitted]:
    """`attention_emit` with other blocks."""
    batch, tokens, columns = qkv.shape
    head_dim = columns // 3 // heads
    assert qkv.stride(2) == 1
    apart = 1 if pooling is None else 0
    row_blocks = triton.cdiv(tokens - apart, cut.rows)
    head_outputs = torch.empty(batch, tokens, columns // 3, dtype=qkv.dtype, device=qkv.device)
    # For a mean of rows, one partial sum for each query block that has a program of its own.
    sums = row_blocks if pooling is not None and not cut.whole else 1
    parts = torch.empty(batch, heads, sums, head_dim, dtype=torch.float32, device=qkv.device)
    patches = patches_buffer(patches_out, with_patches, (batch, heads, tokens, head_dim), qkv.device)
    log_sums = None
    if pooling is not None and patches is not None:
        log_sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=qkv.device)
    if not batch:
        return head_outputs, Emitted(parts.sum(dim=2), patches)
    shape = {"HEAD_DIM": head_dim, "PADDED": padded(head_dim), "BLOCK_ROWS": cut.rows, "BLOCK_KEYS": cut.keys}
    # Fusion of products and sums is explicit, since Triton 3.10 changes its default. `maxnreg` allows all registers
    # that a thread can have; otherwise ptxas uses fewer and spills (Triton 3.6 on sm_100).
    launch = {"num_warps": cut.warps, "num_stages": cut.stages, "maxnreg": cut.registers, "enable_fp_fusion": True}
    pool_stride = 0 if pooling is None or len(pooling) == 1 else pooling.stride(0)
    strides = (qkv.stride(0), qkv.stride(1))
    arguments = (
        qkv,
        head_outputs,
        parts,
        log_sums,
        None if pooling is None else pooling.contiguous(),
        patches if pooling is None else None,
        *(tokens, heads, *strides, pool_stride, *patch_strides(patches)),
    )
    with torch.cuda.device_of(qkv):
        if cut.whole:
            whole, rest = tiles(tokens, cut.keys)
            if pooling is not None:
                # A few registers more would spill.
                launch["maxnreg"] = 255
            attend_heads[(batch * heads,)](*arguments, **shape, TILES=whole, REST=rest, APART=apart, **launch)
        else:
            attend[(batch * heads * (row_blocks + apart),)](*arguments, **shape, APART=apart, **launch)
        if log_sums is not None and patches is not None and pooling is not None:
            # Blocks in use for any number of tokens: these programs keep no keys.
            if cut.whole:
                cut = candidates(head_dim, qkv.dtype)[0]
                shape |= {"BLOCK_ROWS": cut.rows, "BLOCK_KEYS": cut.keys}
                launch |= {"num_warps": cut.warps, "num_stages": cut.stages}
            pool_patches[(batch * heads * triton.cdiv(tokens, cut.keys),)](
                qkv,
                log_sums,
                pooling.contiguous(),
                patches,
                *(tokens, heads, *strides, pool_stride, *patch_strides(patches)),
                **shape,
                **launch,
            )
    return head_outputs, Emitted(parts[:, :, 0] if pooling is None else parts.sum(dim=2), patches)


@triton.jit(do_not_specialize=["tokens", "heads"])
@no_type_check
def attend(
    qkv,
    head_outputs,
    parts,
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
    APART: tl.constexpr,
):
    programs = tl.cdiv(tokens - APART, BLOCK_ROWS) + APART
    pair, block = tl.program_id(0) // programs, tl.program_id(0) % programs
    image, head = (pair // heads).to(tl.int64), pair % heads
    width = heads * HEAD_DIM
    query = qkv + image * qkv_image + head * HEAD_DIM
    head_outputs += image * tokens * width + head * HEAD_DIM
    parts += pair.to(tl.int64) * (1 if APART else programs) * HEAD_DIM
    if APART:
        if block == 0:
            compute_row(
                query,
                query + width,
                width,
                head_outputs,
                parts,
                patches,
                image * patches_image + head.to(tl.int64) * patches_head,
                tokens,
                qkv_token,
                patches_token,
                HEAD_DIM,
                PADDED,
            )
        else:
            rows = 1 + (block - 1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            _compute_rows(
                query, head_outputs, rows, tokens, qkv_token, width, HEAD_DIM, PADDED, BLOCK_ROWS, BLOCK_KEYS, APART
            )
    else:
        rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        sums, log_sum = _compute_rows(
            query, head_outputs, rows, tokens, qkv_token, width, HEAD_DIM, PADDED, BLOCK_ROWS, BLOCK_KEYS, APART
        )
        weights = tl.load(pooling + image * pooling_image + rows, mask=rows < tokens, other=0.0)
        columns = tl.arange(0, PADDED)
        # [PADDED]
        part = tl.sum(weights[:, None] * sums, axis=0)
        tl.store(parts + block * HEAD_DIM + columns, part, mask=columns < HEAD_DIM)
        if log_sums is not None:
            tl.store(log_sums + pair.to(tl.int64) * tokens + rows, log_sum, mask=rows < tokens)


@triton.jit
@no_type_check
def _compute_rows(
    query,
    head_outputs,
    rows,
    tokens,
    row_stride,
    width,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    APART: tl.constexpr,
):
    """Compute and store a block of one head's rows; return them in float32 with the logarithms of their sums."""
    columns = tl.arange(0, PADDED)
    inside = columns < HEAD_DIM
    within = (rows < tokens)[:, None] & inside[None, :]
    key = query + width
    # [BLOCK_ROWS, PADDED]
    q = tl.load(query + rows[:, None] * row_stride + columns[None, :], mask=within, other=0.0)
    scale: tl.constexpr = LOG2_E * HEAD_DIM**-0.5
    if APART:
        # [PADDED]
        k = tl.load(key + columns, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(key + width + columns, mask=inside, other=0.0).to(tl.float32)
        top = tl.sum(q.to(tl.float32) * k[None, :], axis=1) * scale
        total = tl.full([BLOCK_ROWS], 1.0, tl.float32)
        sums = tl.zeros([BLOCK_ROWS, PADDED], tl.float32) + v[None, :]
    else:
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        sums = tl.zeros([BLOCK_ROWS, PADDED], tl.float32)
    whole = APART + (tokens - APART) // BLOCK_KEYS * BLOCK_KEYS
    # The partial block of keys at the end comes first. After the loop, Triton 3.6 would move the loop's sums into the
    # registers of this product before they have arrived.
    if whole < tokens:
        sums, top, total = _step(
            sums, top, total, q, key, whole, tokens, row_stride, width, scale, HEAD_DIM, PADDED, BLOCK_KEYS, True
        )
    for start in range(APART, whole, BLOCK_KEYS):
        sums, top, total = _step(
            sums, top, total, q, key, start, tokens, row_stride, width, scale, HEAD_DIM, PADDED, BLOCK_KEYS, False
        )
    sums = sums / total[:, None]
    place = rows[:, None] * width + columns[None, :]
    tl.store(head_outputs + place, sums.to(head_outputs.dtype.element_ty), mask=within)
    return sums, top + tl.log2(total)


@triton.jit
@no_type_check
def _step(
    sums,
    top,
    total,
    q,
    key,
    start,
    tokens,
    row_stride,
    width,
    scale: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Add one block of keys and values to the online softmax; only the last one may reach past the end."""
    keys = start + tl.arange(0, BLOCK_KEYS)
    columns = tl.arange(0, PADDED)
    within = (columns < HEAD_DIM)[None, :]
    if LAST:
        within = within & (keys < tokens)[:, None]
    # [BLOCK_KEYS, PADDED]
    places = keys[:, None] * row_stride + columns[None, :]
    k = tl.load(key + places, mask=within, other=0.0)
    v = tl.load(key + width + places, mask=within, other=0.0)
    # [BLOCK_ROWS, BLOCK_KEYS]
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    if LAST:
        scores = tl.where((keys < tokens)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    fade = tl.exp2(top - higher)
    sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="tf32x3")
    return sums, higher, total * fade + tl.sum(weights, axis=1)
