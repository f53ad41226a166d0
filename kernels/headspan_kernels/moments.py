"""Add a batch to the sum and the uncentred Gram matrix of every head's coordinates, in place.

    c[b] = [scale[b] · heads[b], mean_and_bias[b]],   total += Σ_b c[b],   gram += Σ_b c[b] c[b]ᵀ

A program owns a tile of one head's Gram matrix, on or above the diagonal, and loops over the batch. A tile above the
diagonal is stored twice, the second time transposed. A program on the diagonal also multiplies its tile's coordinates
by the few mean-and-bias terms and by a column of ones, whose products are the sum. Nothing is atomic, so the order of
summation is fixed and the same input gives the same bits.

Products and sums are float64, on the tensor cores: TEXTSPAN's numerical rank is cut at 2⁻²⁰ of the largest singular
value, which takes 40 bits in the Gram matrix. The coordinates are never written to memory.
"""

from __future__ import annotations

from typing import Literal, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Float64
from torch import Tensor

from headspan_kernels import reference, switches
from headspan_kernels.switches import Tiles


def candidates(head_dim: int, capability: tuple[int, int] = (9, 0)) -> tuple[Tiles, ...]:
    """The tiles worth measuring on a GPU of that compute capability, those in use first.

    None spills registers, except that 168 are one too few under Triton 3.6.
    """
    if head_dim <= 16:
        return (Tiles(16, 16, 1, 2, 255),)
    small = (Tiles(32, 16, 4, 2, 255), Tiles(32, 32, 4, 2, 255), Tiles(32, 16, 2, 2, 255))
    # From sm_100 on, Triton 3.6 sends products of 64 rows to tensor cores that know no float64, and fails.
    if head_dim <= 32 or capability >= (10, 0):
        return small
    if head_dim <= 64:
        # One tile reads the head outputs once. With 168 registers, three programs fit a multiprocessor, and all 384
        # heads of ViT-L/14 run at once: 0.065 ms on an H200, against 0.088 ms or more with more registers.
        large = (Tiles(64, 16, 4, 2, 168), Tiles(64, 16, 4, 2, 255), Tiles(64, 16, 4, 3, 255), Tiles(64, 32, 8, 2, 255))
        return (*large, *small)
    # Small tiles pad 80 to 96 instead of 128; with four warps, large ones spill registers.
    return (*small, Tiles(64, 16, 8, 2, 255))


def add_moments(
    heads: Float32[Tensor, "batch layer head head_dim"],
    scale: Float64[Tensor, " batch"],
    mean_and_bias: Float64[Tensor, "batch term"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """As `reference.add_moments`; `total` and `gram` must be contiguous."""
    cut = cut_in_use(heads.device, heads.shape[3])
    if isinstance(cut, str):
        reference.add_moments(heads, scale, mean_and_bias, total, gram)
    else:
        add_moments_cut(cut, heads, scale, mean_and_bias, total, gram)


def cut_in_use(device: torch.device, head_dim: int) -> Tiles | Literal["reference"]:
    """The tiles for such heads, or PyTorch: what `switches` names, or the first of the candidates."""
    return switches.moments_by(device, head_dim) or candidates(head_dim, switches.capability(device))[0]


def add_moments_cut(
    cut: Tiles,
    heads: Float32[Tensor, "batch layer head head_dim"],
    scale: Float64[Tensor, " batch"],
    mean_and_bias: Float64[Tensor, "batch term"],
    total: Float64[Tensor, "layer head coordinate"],
    gram: Float64[Tensor, "layer head coordinate coordinate"],
) -> None:
    """`add_moments` with other tiles."""
    batch, layers, count, head_dim = heads.shape
    terms = mean_and_bias.shape[1]
    assert total.is_contiguous()
    assert gram.is_contiguous()
    heads, scale, mean_and_bias = heads.contiguous(), scale.contiguous(), mean_and_bias.contiguous()
    blocks = triton.cdiv(head_dim, cut.side)
    with torch.cuda.device_of(heads):
        accumulate[(layers * count, blocks, blocks)](
            *(heads, scale, mean_and_bias, total, gram, batch),
            HEAD_DIM=head_dim,
            TERMS=terms,
            # The terms and the ones; 16 is the least width of a product.
            EXTRA=max(16, triton.next_power_of_2(terms + 1)),
            SIDE=cut.side,
            BLOCKS=blocks,
            IMAGES=cut.images,
            num_warps=cut.warps,
            num_stages=cut.stages,
            maxnreg=cut.registers,
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
    EXTRA: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    size: tl.constexpr = HEAD_DIM + TERMS
    head, down, across = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    own, image_stride = heads + head * HEAD_DIM, tl.num_programs(0) * HEAD_DIM
    total += head * size
    gram += head * size * size
    if BLOCKS == 1:
        _add_diagonal(
            own, image_stride, scale, mean_and_bias, total, gram, batch, 0, HEAD_DIM, TERMS, EXTRA, SIDE, IMAGES
        )
    elif down == across:
        _add_diagonal(
            own, image_stride, scale, mean_and_bias, total, gram, batch, down, HEAD_DIM, TERMS, EXTRA, SIDE, IMAGES
        )
    elif down < across:
        _add_above(own, image_stride, scale, gram, batch, down, across, HEAD_DIM, size, SIDE, IMAGES)


@triton.jit
@no_type_check
def _add_diagonal(
    own,
    image_stride,
    scale,
    mean_and_bias,
    total,
    gram,
    batch,
    block,
    HEAD_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    EXTRA: tl.constexpr,
    SIDE: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Add a tile on the diagonal, the products of its coordinates with the terms, and its sums."""
    size: tl.constexpr = HEAD_DIM + TERMS
    columns, extra = block * SIDE + tl.arange(0, SIDE), tl.arange(0, EXTRA)
    inside = columns < HEAD_DIM
    square_place, square_mask = gram + columns[:, None] * size + columns[None, :], inside[:, None] & inside[None, :]
    # Only these sums start from what is stored: the others are stored twice, or are few.
    square = tl.load(square_place, mask=square_mask, other=0.0)
    beside = tl.zeros([SIDE, EXTRA], tl.float64)
    corner = tl.zeros([EXTRA, EXTRA], tl.float64)
    for start in range(0, batch, IMAGES):
        images = start + tl.arange(0, IMAGES)
        factor = tl.load(scale + images, mask=images < batch, other=0.0)
        # [IMAGES, SIDE] and [IMAGES, EXTRA]
        coordinates = _coordinates(own, image_stride, factor, images, batch, columns, HEAD_DIM)
        terms = tl.load(
            mean_and_bias + images[:, None] * TERMS + extra[None, :],
            mask=(images < batch)[:, None] & (extra < TERMS)[None, :],
            other=1.0,
        )
        terms = tl.where((factor != 0)[:, None] & (extra <= TERMS)[None, :], terms, 0.0)
        square = tl.dot(tl.trans(coordinates), coordinates, square, out_dtype=tl.float64)
        beside = tl.dot(tl.trans(coordinates), terms, beside, out_dtype=tl.float64)
        corner = tl.dot(tl.trans(terms), terms, corner, out_dtype=tl.float64)
    tl.store(square_place, square, mask=square_mask)
    of_term, of_one = (extra < TERMS)[None, :], (extra == TERMS)[None, :]
    # Compared as a tensor: a comparison of constants is no mask to the interpreter of every release.
    first = ((extra < TERMS) & (block + 0 * extra == 0))[:, None]
    last = HEAD_DIM + extra
    _add(gram + columns[:, None] * size + last[None, :], beside, inside[:, None] & of_term)
    _add(gram + last[None, :] * size + columns[:, None], beside, inside[:, None] & of_term)
    _add(total + columns[:, None] + 0 * extra[None, :], beside, inside[:, None] & of_one)
    _add(gram + last[:, None] * size + last[None, :], corner, first & of_term)
    _add(total + last[:, None] + 0 * extra[None, :], corner, first & of_one)


@triton.jit
@no_type_check
def _add_above(
    own,
    image_stride,
    scale,
    gram,
    batch,
    down,
    across,
    HEAD_DIM: tl.constexpr,
    size: tl.constexpr,
    SIDE: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Add a tile above the diagonal, and its transpose below."""
    rows, columns = down * SIDE + tl.arange(0, SIDE), across * SIDE + tl.arange(0, SIDE)
    products = tl.zeros([SIDE, SIDE], tl.float64)
    for start in range(0, batch, IMAGES):
        images = start + tl.arange(0, IMAGES)
        factor = tl.load(scale + images, mask=images < batch, other=0.0)
        # [IMAGES, SIDE] each
        left = _coordinates(own, image_stride, factor, images, batch, rows, HEAD_DIM)
        right = _coordinates(own, image_stride, factor, images, batch, columns, HEAD_DIM)
        products = tl.dot(tl.trans(left), right, products, out_dtype=tl.float64)
    # Only the last block of columns may reach past the head's own.
    inside = (columns < HEAD_DIM)[None, :]
    _add(gram + rows[:, None] * size + columns[None, :], products, inside)
    _add(gram + columns[None, :] * size + rows[:, None], products, inside)


@triton.jit
@no_type_check
def _coordinates(own, image_stride, factor, images, batch, columns, HEAD_DIM: tl.constexpr):
    """A head's numbers of some images at `columns`, scaled, float64; zeros for images of scale 0 and past the batch."""
    head_outputs = tl.load(
        own + images.to(tl.int64)[:, None] * image_stride + columns[None, :],
        mask=(images < batch)[:, None] & (columns < HEAD_DIM)[None, :],
        other=0.0,
    )
    used = tl.where((factor != 0)[:, None], head_outputs, 0.0)
    return used.to(tl.float64) * factor[:, None]


@triton.jit
@no_type_check
def _add(places, values, mask):
    tl.store(places, tl.load(places, mask=mask, other=0.0) + values, mask=mask)
