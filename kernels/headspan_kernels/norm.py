"""LayerNorm of rows, with the residual sum before it.

    r = x + added,   μ = mean(r),   s⁻¹ = 1 / √(mean((r − μ)²) + ε),   y = (r − μ) s⁻¹ γ + β

Each row has one program and stays in registers: x and `added` are read once, r and y written once. r is rounded to the
residual stream's type before its float32 statistics are computed, since later layers see the rounded one. A `shift` is
the same for all rows and float32; r = x + shift is neither rounded nor written.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from headspan_kernels.reference import Normed


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
    shift: Float32[Tensor, " width"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """As `reference.layer_norm`."""
    return _launch(_rows(x), weight, bias, eps, shift=shift).view(x.shape)


def add_layer_norm(
    x: Float[Tensor, "*rows width"],
    added: Float[Tensor, "*rows width"] | None,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
) -> Normed:
    """As `reference.add_layer_norm`."""
    if added is None:
        return Normed(x, layer_norm(x, weight, bias, eps))
    summed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = _launch(_rows(x), weight, bias, eps, added=_rows(added), summed=summed)
    return Normed(summed, normed.view(x.shape))


def warps_for(width: int) -> int:
    """Warps per row: eight numbers per thread at ViT-L's width."""
    return 4 if width <= 1024 else 8


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix whose rows are contiguous; the row stride may be larger than the width."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    added: Tensor | None = None,
    summed: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Return the norm of rows. The kernel writes the sum of `x` and `added` to `summed`, which is contiguous."""
    count, width = x.shape
    normed = torch.empty(count, width, dtype=x.dtype, device=x.device)
    if not count:
        return normed
    with torch.cuda.device_of(x):
        normalise_rows[(count,)](
            *(x, added, shift, weight, bias, summed, normed),
            *(x.stride(0), 0 if added is None else added.stride(0), normed.stride(0), eps),
            WIDTH=width,
            PADDED=triton.next_power_of_2(width),
            num_warps=warps_for(width),
            enable_fp_fusion=True,
        )
    return normed


@triton.jit
@no_type_check
def normalise_rows(
    x,
    added,
    shift,
    weight,
    bias,
    summed,
    normed,
    x_row,
    added_row,
    out_row,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    # [PADDED]
    values = tl.load(x + row * x_row + columns, mask=inside, other=0.0)
    if added is not None:
        # [PADDED]
        more = tl.load(added + row * added_row + columns, mask=inside, other=0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(summed + row * out_row + columns, values, mask=inside)
    exact = values.to(tl.float32)
    if shift is not None:
        # [PADDED]
        exact += tl.load(shift + columns, mask=inside, other=0.0)
    middle = tl.sum(exact, axis=0) / WIDTH
    centred = tl.where(inside, exact - middle, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    # [PADDED]
    gamma = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        normed + row * out_row + columns,
        (centred * inverse * gamma + beta).to(normed.dtype.element_ty),
        mask=inside,
    )
