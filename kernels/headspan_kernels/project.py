"""Head coordinates times fixed directions: into the joint space, or along texts, head by head or summed.

    out[b,h,n] = scale[b] · (head_outputs[b,h,n] D[h,:k]) + mean_and_bias[b] D[h,k:]

With the joint space's directions that is `head_project`; with texts carried to the head, and summed over heads in
the accumulator, `text_maps`, which forms nothing in the joint space. Products have the directions' type, sums are
float32; float32 operands are multiplied as three TF32 products, which together keep float32's digits. The scale
and the mean and bias terms are applied to the product of one image's rows, so `head_outputs` is read as it was stored.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from headspan_kernels.pooled import padded


def head_project(
    head_outputs: Float[Tensor, "batch head token head_dim"],
    scale: Float32[Tensor, " batch"],
    mean_and_bias: Float32[Tensor, "batch share"],
    directions: Float[Tensor, "head coordinate joint"],
) -> Float32[Tensor, "batch head token joint"]:
    """As `reference.head_project`."""
    batch, heads, tokens, _ = head_outputs.shape
    out = torch.empty(batch, heads, tokens, directions.shape[2], dtype=torch.float32, device=head_outputs.device)
    _launch(head_outputs, scale, mean_and_bias, directions, out, summed=False)
    return out


def text_maps(
    head_outputs: Float[Tensor, "batch head token head_dim"],
    scale: Float32[Tensor, " batch"],
    mean_and_bias: Float32[Tensor, "batch share"],
    carried: Float[Tensor, "head coordinate text"],
) -> Float32[Tensor, "batch token text"]:
    """As `reference.text_maps`."""
    batch, _, tokens, _ = head_outputs.shape
    out = torch.empty(batch, tokens, carried.shape[2], dtype=torch.float32, device=head_outputs.device)
    _launch(head_outputs, scale, mean_and_bias, carried, out, summed=True)
    return out


def cut_for(head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows (tokens of images) and output columns a program, and its warps: what keeps the operands in registers."""
    if dtype == torch.float32:
        return (32, 64, 8) if head_dim <= 64 else (16, 32, 4)
    return 64, 64, 4 if head_dim <= 64 else 8


def _launch(
    head_outputs: Tensor, scale: Tensor, mean_and_bias: Tensor, directions: Tensor, out: Tensor, summed: bool
) -> None:
    batch, heads, tokens, head_dim = head_outputs.shape
    columns = directions.shape[2]
    directions = directions.contiguous()
    rows, out_columns, warps = cut_for(head_dim, directions.dtype)
    grid = triton.cdiv(batch * tokens, rows) * triton.cdiv(columns, out_columns) * (1 if summed else heads)
    if not grid:
        return
    with torch.cuda.device_of(head_outputs):
        project[(grid,)](
            *(
                head_outputs,
                scale.contiguous(),
                mean_and_bias.contiguous(),
                directions,
                out,
                batch,
                heads,
                tokens,
                columns,
            ),
            *head_outputs.stride(),
            HEAD_DIM=head_dim,
            SHARES=mean_and_bias.shape[1],
            PADDED=padded(head_dim),
            BLOCK_ROWS=rows,
            BLOCK_OUT=out_columns,
            SUMMED=summed,
            num_warps=warps,
            num_stages=2,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=["batch", "heads", "tokens"])
@no_type_check
def project(
    head_outputs,
    scale,
    mean_and_bias,
    directions,
    out,
    batch,
    heads,
    tokens,
    out_columns,
    mixes_image,
    mixes_head,
    mixes_token,
    mixes_column,
    HEAD_DIM: tl.constexpr,
    SHARES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SUMMED: tl.constexpr,
):
    # Programs of the same rows lie side by side, so that the rows are read from the cache but once.
    out_blocks = tl.cdiv(out_columns, BLOCK_OUT)
    row_blocks = tl.cdiv(batch * tokens, BLOCK_ROWS)
    block = tl.program_id(0) % out_blocks
    row_block = tl.program_id(0) // out_blocks % row_blocks
    first = tl.program_id(0) // out_blocks // row_blocks
    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    present = rows < batch * tokens
    image, token = (rows // tokens).to(tl.int64), rows % tokens
    columns = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    wanted = columns < out_columns
    inner = tl.arange(0, PADDED)
    place = head_outputs + image * mixes_image + token.to(tl.int64) * mixes_token
    # [BLOCK_ROWS]
    scales = tl.load(scale + image, mask=present, other=0.0)
    products = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    shared = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    place += first.to(tl.int64) * mixes_head
    own = directions + first.to(tl.int64) * (HEAD_DIM + SHARES) * out_columns
    for _ in range(heads if SUMMED else 1):
        # [BLOCK_ROWS, PADDED]
        mix = tl.load(
            place[:, None] + inner[None, :] * mixes_column,
            mask=present[:, None] & (inner < HEAD_DIM)[None, :],
            other=0.0,
        )
        # [PADDED, BLOCK_OUT]
        along = tl.load(
            own + inner[:, None] * out_columns + columns[None, :],
            mask=(inner < HEAD_DIM)[:, None] & wanted[None, :],
            other=0.0,
        )
        products = tl.dot(mix.to(along.dtype), along, products, input_precision="tf32x3")
        for share in tl.static_range(SHARES):
            # [BLOCK_OUT] and [BLOCK_ROWS]
            direction = tl.load(own + (HEAD_DIM + share) * out_columns + columns, mask=wanted, other=0.0)
            weight = tl.load(mean_and_bias + image * SHARES + share, mask=present, other=0.0)
            shared += weight[:, None] * direction.to(tl.float32)[None, :]
        place += mixes_head
        own += (HEAD_DIM + SHARES) * out_columns
    start = rows.to(tl.int64) if SUMMED else (image * heads + first) * tokens + token
    tl.store(
        out + start[:, None] * out_columns + columns[None, :],
        products * scales[:, None] + shared,
        mask=present[:, None] & wanted[None, :],
    )
