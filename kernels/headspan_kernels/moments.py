"""Sum and uncentred Gram matrix of every head's coordinates, added to in place.

    c[b] = [scale[b] · heads[b], shares[b]],   total += Σ_b c[b],   gram += Σ_b c[b] c[b]ᵀ

A program owns a tile of one head's Gram matrix and goes through the batch, so nothing is atomic and the order of
summation is fixed. Products and sums are float64: at under a billion of them a batch they cost nothing beside the
tower, and the numerical rank that TEXTSPAN cuts at, 2⁻²⁰ of the largest singular value, needs 40 bits of Gram.
The coordinates are never written out.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Float64
from torch import Tensor

# A tile's side, and the images whose loads are in flight together.
TILE = 32
UNROLLED = 4
WARPS = 4


def add_moments(
    heads: Float32[Tensor, "batch layer head head_dim"],
    scale: Float64[Tensor, " batch"],
    shares: Float64[Tensor, "batch share"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """As `reference.add_moments`; `total` and `gram` must be contiguous."""
    batch, layers, count, head_dim = heads.shape
    size = head_dim + shares.shape[1]
    assert total.is_contiguous()
    assert gram.is_contiguous()
    heads, scale, shares = heads.contiguous(), scale.contiguous(), shares.contiguous()
    side = triton.cdiv(size, TILE)
    with torch.cuda.device_of(heads):
        accumulate[(layers * count * side * side,)](
            *(heads, scale, shares, total, gram, batch, layers * count),
            HEAD_DIM=head_dim,
            SHARES=shares.shape[1],
            SIDE=side,
            TILE=TILE,
            UNROLLED=UNROLLED,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=["batch", "heads_each"])
@no_type_check
def accumulate(
    heads,
    scale,
    shares,
    total,
    gram,
    batch,
    heads_each,
    HEAD_DIM: tl.constexpr,
    SHARES: tl.constexpr,
    SIDE: tl.constexpr,
    TILE: tl.constexpr,
    UNROLLED: tl.constexpr,
):
    size: tl.constexpr = HEAD_DIM + SHARES
    head = (tl.program_id(0) // (SIDE * SIDE)).to(tl.int64)
    tile = tl.program_id(0) % (SIDE * SIDE)
    down = tile // SIDE * TILE + tl.arange(0, TILE)
    across = tile % SIDE * TILE + tl.arange(0, TILE)
    sums = tl.zeros([TILE], tl.float64)
    products = tl.zeros([TILE, TILE], tl.float64)
    for start in range(0, batch, UNROLLED):
        for step in tl.static_range(UNROLLED):
            image = start + step
            # [TILE]
            left = _coordinates(heads, scale, shares, image, batch, head, heads_each, down, HEAD_DIM, SHARES)
            right = _coordinates(heads, scale, shares, image, batch, head, heads_each, across, HEAD_DIM, SHARES)
            sums += left
            products += left[:, None] * right[None, :]
    place = gram + head * size * size + down[:, None] * size + across[None, :]
    within = (down < size)[:, None] & (across < size)[None, :]
    tl.store(place, tl.load(place, mask=within, other=0.0) + products, mask=within)
    if tile % SIDE == 0:
        own = total + head * size + down
        tl.store(own, tl.load(own, mask=down < size, other=0.0) + sums, mask=down < size)


@triton.jit
@no_type_check
def _coordinates(
    heads, scale, shares, image, batch, head, heads_each, columns, HEAD_DIM: tl.constexpr, SHARES: tl.constexpr
):
    """A stretch of one image's coordinates, float64; zeros past the batch and for an image of scale 0."""
    # [TILE], all the same number.
    factor = tl.load(scale + image + 0 * columns, mask=(image + 0 * columns) < batch, other=0.0)
    used = factor != 0
    own = tl.load(
        heads + (image * heads_each + head) * HEAD_DIM + columns,
        mask=(columns < HEAD_DIM) & used,
        other=0.0,
    )
    shared = tl.load(
        shares + image * SHARES + columns - HEAD_DIM,
        mask=(columns >= HEAD_DIM) & (columns < HEAD_DIM + SHARES) & used,
        other=0.0,
    )
    return own.to(tl.float64) * factor + shared
