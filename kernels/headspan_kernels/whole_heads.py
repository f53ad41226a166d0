"""Attention with one program for each head of an image, which keeps all keys and values of the head.

    head_outputs[n] = Σ_m α[n,m] v[m],   α[n,m] = 2^(σ q[n]·k[m] − lse[n]),   σ = log2(e) / √head_dim

`attention.attend` reads K and V of a head once for every block of rows; for 257 tokens that is five times, four fifths
of what it moves from the L2 cache. Here they are read once, and stay in shared memory while blocks of rows pass. Keys
are taken in tiles by an online softmax; what is left after whole tiles is a smaller tile, 16 keys for the one key that
256 patches and a class token leave. A class token's row comes first, as products with K on the tensor cores, and its
`α v` is written from the values that the program holds anyway. Operands are 16-bit.

`attention.attention_emit_cut` launches it, and `switches.ATTENTION` says for which shapes it is used.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from headspan_kernels.pooled import LOG2_E


def tiles(tokens: int, keys: int) -> tuple[int, int]:
    """Whole tiles of `keys` keys, and the size of the tile for the rest; 0 if nothing is left."""
    whole, rest = divmod(tokens, keys)
    return whole, max(16, triton.next_power_of_2(rest)) if rest else 0


def shared_bytes(tokens: int, padded: int, rows: int, keys: int, stages: int) -> int:
    """Shared memory of a program: keys and values, blocks of queries in flight, and a block of rows to be stored."""
    whole, rest = tiles(tokens, keys)
    return 2 * padded * (2 * (whole * keys + rest) + rows * (stages + (stages > 1)))


@triton.jit(do_not_specialize=["tokens", "heads"])
@no_type_check
def attend_heads(
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
    TILES: tl.constexpr,
    REST: tl.constexpr,
    APART: tl.constexpr,
):
    pair = tl.program_id(0)
    image, head = (pair // heads).to(tl.int64), pair % heads
    width = heads * HEAD_DIM
    query = qkv + image * qkv_image + head * HEAD_DIM
    head_outputs += image * tokens * width + head * HEAD_DIM
    parts += pair.to(tl.int64) * HEAD_DIM
    if patches is not None:
        patches += image * patches_image + head.to(tl.int64) * patches_head
    columns = tl.arange(0, PADDED)
    inside = columns < HEAD_DIM
    keys, values = (), ()
    for tile in tl.static_range(TILES):
        place = query + width + tile * BLOCK_KEYS * qkv_token
        keys += (_keys(place, tokens, qkv_token, HEAD_DIM, PADDED, BLOCK_KEYS, False),)
        values += (_values(place + width, tokens, qkv_token, HEAD_DIM, PADDED, BLOCK_KEYS, False),)
    left = tokens - TILES * BLOCK_KEYS
    if REST > 0:
        place = query + width + TILES * BLOCK_KEYS * qkv_token
        keys += (_keys(place, left, qkv_token, HEAD_DIM, PADDED, REST, True),)
        values += (_values(place + width, left, qkv_token, HEAD_DIM, PADDED, REST, True),)
    scale: tl.constexpr = LOG2_E * HEAD_DIM**-0.5
    if APART:
        _class_token(
            query,
            keys,
            values,
            head_outputs,
            parts,
            patches,
            tokens,
            left,
            patches_token,
            HEAD_DIM,
            PADDED,
            BLOCK_KEYS,
            TILES,
        )
    else:
        part = tl.zeros([PADDED], tl.float32)
    for start in range(APART, tokens, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        within = (rows < tokens)[:, None] & inside[None, :]
        # [BLOCK_ROWS, PADDED]
        q = tl.load(query + rows[:, None] * qkv_token + columns[None, :], mask=within, other=0.0)
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        sums = tl.zeros([BLOCK_ROWS, PADDED], tl.float32)
        for tile in tl.static_range(len(keys)):
            # [BLOCK_ROWS, BLOCK_KEYS or REST]
            scores = tl.dot(q, keys[tile])
            if tile == TILES:
                scores = tl.where((tl.arange(0, REST) < left)[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
            weights = tl.exp2(scores * scale - higher[:, None])
            fade = tl.exp2(top - higher)
            total = total * fade + tl.sum(weights, axis=1)
            # Sums are positive, so the lesser of one and -3e38 changes nothing, but a tile's sum must now be finished
            # before its product. Otherwise ptxas puts all sums off to the end, and keeps all weights in registers.
            fade = tl.maximum(fade, tl.minimum(total, -3e38))
            sums = tl.dot(weights.to(q.dtype), values[tile], sums * fade[:, None])
            top = higher
        sums = sums / total[:, None]
        tl.store(
            head_outputs + rows[:, None] * width + columns[None, :],
            sums.to(head_outputs.dtype.element_ty),
            mask=within,
        )
        if not APART:
            row_weights = tl.load(pooling + image * pooling_image + rows, mask=rows < tokens, other=0.0)
            part += tl.sum(row_weights[:, None] * sums, axis=0)
            if log_sums is not None:
                tl.store(log_sums + pair.to(tl.int64) * tokens + rows, top + tl.log2(total), mask=rows < tokens)
    if not APART:
        tl.store(parts + columns, part, mask=inside)


@triton.jit
@no_type_check
def _class_token(
    query,
    keys,
    values,
    head_outputs,
    parts,
    patches,
    tokens,
    left,
    patches_token,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The row of the class token: its head outputs, and its `α v` on request. Sums are float32."""
    columns = tl.arange(0, PADDED)
    inside = columns < HEAD_DIM
    # [PADDED]
    q = tl.load(query + columns, mask=inside, other=0.0).to(tl.float32) * (LOG2_E * HEAD_DIM**-0.5)
    # Whole tiles are combined number by number, so that each reduction over keys happens once.
    scores = ()
    highest = float("-inf")
    peaks = tl.full([BLOCK_KEYS], float("-inf"), tl.float32)
    for tile in tl.static_range(len(keys)):
        found = tl.sum(_rounded(tl.trans(keys[tile]).to(tl.float32) * q[None, :]), axis=1)
        if tile < TILES:
            peaks = tl.maximum(peaks, found)
        else:
            found = tl.where(tl.arange(0, found.shape[0]) < left, found, float("-inf"))
            highest = tl.max(found, axis=0)
        scores += (found,)
    if TILES > 0:
        highest = tl.maximum(highest, tl.max(peaks, axis=0))
    powers = ()
    total = 0.0
    totals = tl.zeros([BLOCK_KEYS], tl.float32)
    for tile in tl.static_range(len(keys)):
        power = tl.exp2(scores[tile] - highest)
        if tile < TILES:
            totals += power
        else:
            total = tl.sum(power, axis=0)
        powers += (power,)
    if TILES > 0:
        total += tl.sum(totals, axis=0)
    share = 1 / total
    output = tl.zeros([PADDED], tl.float32)
    sums = tl.zeros([BLOCK_KEYS, PADDED], tl.float32)
    for tile in tl.static_range(len(keys)):
        # [BLOCK_KEYS, PADDED], or the tile for the rest
        taken = (powers[tile] * share)[:, None] * values[tile].to(tl.float32)
        if tile < TILES:
            sums += taken
        else:
            output = tl.sum(_rounded(taken), axis=0)
        if patches is not None:
            places = tile * BLOCK_KEYS + tl.arange(0, taken.shape[0])
            within = inside[None, :] & (places < tokens)[:, None]
            tl.store(
                patches + places[:, None] * patches_token + columns[None, :],
                taken.to(patches.dtype.element_ty),
                mask=within,
            )
    if TILES > 0:
        output += tl.sum(sums, axis=0)
    tl.store(head_outputs + columns, output.to(head_outputs.dtype.element_ty), mask=inside)
    tl.store(parts + columns, output, mask=inside)


@triton.jit
@no_type_check
def _rounded(products):
    """Products that are about to be summed over lanes, added to zero.

    Where a lane's own product was fused with the sum, lanes would differ in the last bit.
    """
    return products + tl.zeros(products.shape, tl.float32)


@triton.jit
@no_type_check
def _keys(
    first, count, row_stride, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr, LAST: tl.constexpr
):
    """`[PADDED, KEYS]` keys, transposed as they are loaded: so they are stored in shared memory once."""
    keys, columns = tl.arange(0, KEYS), tl.arange(0, PADDED)
    within = (columns < HEAD_DIM)[:, None]
    if LAST:
        within = within & (keys < count)[None, :]
    return tl.load(first + keys[None, :] * row_stride + columns[:, None], mask=within, other=0.0)


@triton.jit
@no_type_check
def _values(
    first, count, row_stride, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr, LAST: tl.constexpr
):
    """`[KEYS, PADDED]` values."""
    keys, columns = tl.arange(0, KEYS), tl.arange(0, PADDED)
    within = (columns < HEAD_DIM)[None, :]
    if LAST:
        within = within & (keys < count)[:, None]
    return tl.load(first + keys[:, None] * row_stride + columns[None, :], mask=within, other=0.0)
