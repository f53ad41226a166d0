"""Turn uint8 pixels into the model's input: bicubic resize, centre crop, normalisation, cast.

    out[y,x] = Σ_j w[x,j] pixels[y, first[x]+j]   and the same along y, each rounded to a grey level, then (· − μ) / σ

The resize is antialiased, in two launches like Pillow's two passes. The first resizes columns to uint8, for the source
rows that the crop needs; the second resizes rows, normalises and casts. Only pixels of the crop are computed. The
weights are computed once for a pair of sizes.
"""

from __future__ import annotations

from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from headspan_kernels.reference import bicubic_taps, resize_and_crop

# Output pixels a program, three channels each.
BLOCK = 64
WARPS = 4


def preprocess(
    pixels: UInt8[Tensor, "batch height width 3"],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 out_height out_width"]:
    """As `reference.preprocess`."""
    batch, source_height, source_width, _ = pixels.shape
    (height, width), (top, left) = resize_and_crop((source_height, source_width), size)
    # The first source row that the crop needs, and how many from there on.
    starts, row_weights = bicubic_taps(source_height, height)
    first = int(starts[top])
    rows = min(int(starts[top + size[0] - 1]) + row_weights.shape[1], source_height) - first
    pixels = pixels.contiguous()
    narrowed = torch.empty(batch, rows, size[1], 3, dtype=torch.uint8, device=pixels.device)
    out = torch.empty(batch, 3, *size, dtype=dtype, device=pixels.device)
    column_starts, column_weights, row_starts, row_weights, levels = _tables(
        (source_height, height, top, size[0]), (source_width, width, left, size[1]), mean, std, pixels.device
    )
    blocks = triton.cdiv(size[1], BLOCK)
    with torch.cuda.device_of(pixels):
        resize_columns[(batch * rows * blocks,)](
            *(pixels, narrowed, column_starts, column_weights, source_height, source_width, first, rows, size[1]),
            TAPS=column_weights.shape[1],
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
        resize_rows[(batch * size[0] * blocks,)](
            *(narrowed, out, row_starts, row_weights, levels, first, rows, size[0], size[1]),
            TAPS=row_weights.shape[1],
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    return out


@cache
def _tables(
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Starts and weights of the crop's columns and rows, and means and spreads in grey levels, cached on the device."""
    kept = []
    for source, target, first, count in (columns, rows):
        kept += [table[first : first + count].contiguous().to(device) for table in bicubic_taps(source, target)]
    return kept[0], kept[1], kept[2], kept[3], (255 * torch.tensor([*mean, *std])).to(device)


@triton.jit(do_not_specialize=["height", "width", "first", "rows", "out_width"])
@no_type_check
def resize_columns(
    pixels,
    narrowed,
    starts,
    weights,
    height,
    width,
    first,
    rows,
    out_width,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(out_width, BLOCK)
    line, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    image, row = (line // rows).to(tl.int64), line % rows
    x = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, 4)
    start = tl.load(starts + x, mask=x < out_width, other=0)
    source = pixels + (image * height + first + row) * width * 3
    sums = tl.zeros([BLOCK, 4], tl.float32)
    for tap in range(TAPS):
        weight = tl.load(weights + x * TAPS + tap, mask=x < out_width, other=0.0)
        place = start + tap
        # [BLOCK, 4]; past the edge the weight is zero.
        level = tl.load(
            source + place[:, None] * 3 + channel[None, :],
            mask=(place < width)[:, None] & (channel < 3)[None, :],
            other=0,
        )
        sums += weight[:, None] * level.to(tl.float32)
    level = tl.minimum(tl.maximum(tl.floor(sums + 0.5), 0.0), 255.0)
    tl.store(
        narrowed + (line.to(tl.int64) * out_width + x[:, None]) * 3 + channel[None, :],
        level.to(tl.uint8),
        mask=(x < out_width)[:, None] & (channel < 3)[None, :],
    )


@triton.jit(do_not_specialize=["first", "rows", "out_height", "out_width"])
@no_type_check
def resize_rows(
    narrowed,
    out,
    starts,
    weights,
    levels,
    first,
    rows,
    out_height,
    out_width,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(out_width, BLOCK)
    line, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    image, y = (line // out_height).to(tl.int64), line % out_height
    x = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, 4)
    within = (x < out_width)[:, None] & (channel < 3)[None, :]
    start = tl.load(starts + y) - first
    sums = tl.zeros([BLOCK, 4], tl.float32)
    for tap in range(TAPS):
        weight = tl.load(weights + y * TAPS + tap)
        row = start + tap
        # [BLOCK, 4]; past the edge the weight is zero.
        level = tl.load(
            narrowed + ((image * rows + row) * out_width + x[:, None]) * 3 + channel[None, :],
            mask=within & (row + 0 * x < rows)[:, None],
            other=0,
        )
        sums += weight * level.to(tl.float32)
    level = tl.minimum(tl.maximum(tl.floor(sums + 0.5), 0.0), 255.0)
    middle = tl.load(levels + channel, mask=channel < 3, other=0.0)
    spread = tl.load(levels + 3 + channel, mask=channel < 3, other=1.0)
    tl.store(
        out + ((image * 3 + channel[None, :]) * out_height + y) * out_width + x[:, None],
        ((level - middle[None, :]) / spread[None, :]).to(out.dtype.element_ty),
        mask=within,
    )
