"""Add a batch to the sum and the uncentred Gram matrix of every head's coordinates, in place.

    c[b] = [scale[b] · heads[b], mean_and_bias[b]],   total += Σ_b c[b],   gram += Σ_b c[b] c[b]ᵀ

A program owns a tile of one head's Gram matrix and loops over the batch. Nothing is atomic, so the order of summation
is fixed and the same input gives the same bits. Products and sums are float64, on the tensor cores: TEXTSPAN's
numerical rank is cut at 2⁻²⁰ of the largest singular value, which takes 40 bits in the Gram matrix. The coordinates are
never written to memory.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Float64
from torch import Tensor

# Rows and columns of a tile, and images per step.
ROWS, COLUMNS, IMAGES = 16, 128, 16
WARPS = 4


def add_moments(
    heads: Float32[Tensor, "batch layer head head_dim"],
    scale: Float64[Tensor, " batch"],
    mean_and_bias: Float64[Tensor, "batch term"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """As `reference.add_moments`; `total` and `gram` must be contiguous."""
    batch, layers, count, head_dim = heads.shape
    size = head_dim + mean_and_bias.shape[1]
    assert total.is_contiguous()
    assert gram.is_contiguous()
    heads, scale, mean_and_bias = heads.contiguous(), scale.contiguous(), mean_and_bias.contiguous()
    with torch.cuda.device_of(heads):
        accumulate[(layers * count, triton.cdiv(size, ROWS), triton.cdiv(size, COLUMNS))](
            *(heads, scale, mean_and_bias, total, gram, batch),
            HEAD_DIM=head_dim,
            TERMS=mean_and_bias.shape[1],
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            IMAGES=IMAGES,
            num_warps=WARPS,
            num_stages=2,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=["batch"])
@no_type_check
def accumulate(
    heads,
    scale,
    mean_and_bias,
    total,
    gram,
    batch,
    HEAD_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    size: tl.constexpr = HEAD_DIM + TERMS
    head = tl.program_id(0).to(tl.int64)
    down = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    across = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    own, image_stride = heads + head * HEAD_DIM, tl.num_programs(0) * HEAD_DIM
    sum_place = total + head * size + down
    gram_place = gram + head * size * size + down[:, None] * size + across[None, :]
    within = (down < size)[:, None] & (across < size)[None, :]
    # One program per row adds its sum.
    first = down + tl.program_id(2) * size < size
    sums = tl.load(sum_place, mask=first, other=0.0)
    products = tl.load(gram_place, mask=within, other=0.0)
    for start in range(0, batch, IMAGES):
        images = start + tl.arange(0, IMAGES)
        # [IMAGES, ROWS] and [IMAGES, COLUMNS]
        left = _coordinates(own, scale, mean_and_bias, images, batch, image_stride, down, HEAD_DIM, TERMS)
        right = _coordinates(own, scale, mean_and_bias, images, batch, image_stride, across, HEAD_DIM, TERMS)
        sums += tl.sum(left, axis=0)
        products = tl.dot(tl.trans(left), right, products, out_dtype=tl.float64)
    tl.store(gram_place, products, mask=within)
    tl.store(sum_place, sums, mask=first)


@triton.jit
@no_type_check
def _coordinates(
    own, scale, mean_and_bias, images, batch, image_stride, columns, HEAD_DIM: tl.constexpr, TERMS: tl.constexpr
):
    """Coordinates of some images at `columns`, float64; zeros past the batch and for images of scale 0."""
    factor = tl.load(scale + images, mask=images < batch, other=0.0)
    used, place = (factor != 0)[:, None], columns - HEAD_DIM
    head_outputs = tl.load(
        own + images.to(tl.int64)[:, None] * image_stride + columns[None, :],
        mask=used & (columns < HEAD_DIM)[None, :],
        other=0.0,
    )
    terms = tl.load(
        mean_and_bias + images[:, None] * TERMS + place[None, :],
        mask=used & ((place >= 0) & (place < TERMS))[None, :],
        other=0.0,
    )
    return head_outputs.to(tl.float64) * factor[:, None] + terms
