"""A linear map and the activation after it in one launch, so that the product never reaches memory without it.

    y = f(x Wᵀ + b);   gated: y = f(x Wᵀ + b) · (x Vᵀ + c), where the weight's rows are those of W, then those of V

Sums are float32, and `f` is applied to them: y is rounded once. The programs stay on the GPU and take one tile of y
after the other, so that the next tile's operands arrive while this one's activation is computed. The tensor memory
accelerator moves tiles where the GPU has one (sm_90) and rows begin at multiples of 16 bytes; elsewhere, each thread
loads from addresses of its own. Tiles are taken in groups of rows, whose operands stay in the cache.

The exact GELU is x⁺ − |x|/2 · erfc(|x|/√2), with erfc(z) = p(t) e^(−z²), t = 1 / (1 + 0.3275911 z) and a polynomial p
(Abramowitz and Stegun 7.1.26): within 1.5e-7 of erfc, in a fifth of the instructions of `erff`.

`switches.LINEAR_ACT` says on which GPUs the kernel is used; elsewhere PyTorch computes product and activation apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headspan_kernels import reference, switches
from headspan_kernels.pooled import LOG2_E
from headspan_kernels.switches import Cut

# Tiles of this many blocks of rows are taken together.
_GROUP = 8
# The multiprocessors of an H100, for tensors that are on no GPU.
_PROCESSORS = 132


def candidates(gated: bool = False) -> tuple[Cut, ...]:
    """The cuts worth measuring. None spills registers or exceeds shared memory on sm_90.

    A gated map has two sums for each number, and so takes half as many columns.
    """
    if gated:
        return (Cut(128, 128, 64, 8, 3, 1), Cut(128, 64, 64, 4, 3, 2), Cut(128, 64, 64, 8, 4, 1))
    return (
        Cut(128, 256, 64, 8, 3, 1),
        Cut(128, 128, 64, 4, 3, 2),
        Cut(128, 128, 64, 8, 3, 2),
        Cut(128, 128, 64, 8, 5, 1),
        Cut(256, 128, 64, 8, 3, 1),
    )


def linear_act(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str,
    gated: bool = False,
) -> Float[Tensor, "*rows hidden"]:
    """As `reference.linear_act`; the kernel computes 16-bit maps where `switches` says that it is faster."""
    out = len(weight) // 2 if gated else len(weight)
    by = switches.linear_act_by(x.device, x.dtype, activation, gated, x.shape[-1], out)
    if by is None:
        return reference.linear_act(x, weight, bias, activation, gated)
    if by == "cublaslt":
        return linear_act_cublaslt(x, weight, bias, activation, gated)
    return linear_act_cut(by, x, weight, bias, activation, gated)


def linear_act_cublaslt(
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str,
    gated: bool = False,
) -> Float[Tensor, "*rows out"]:
    """`linear_act` by the only activation that cuBLASLt has, the tanh approximation of GELU.

    In place of the exact GELU it would change results by 3e-4: less than bfloat16's rounding, more than float16's.
    """
    assert activation == "gelu_tanh"
    assert bias is not None
    assert not gated
    y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
    return y.view(*x.shape[:-1], len(weight))


def linear_act_cut(
    cut: Cut,
    x: Float[Tensor, "*rows in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    activation: str,
    gated: bool = False,
) -> Float[Tensor, "*rows hidden"]:
    """`linear_act` by the kernel, with other tiles."""
    assert activation in reference.ACTIVATIONS, activation
    out, inner = weight.shape
    width = out // 2 if gated else out
    rows = x.reshape(-1, inner)
    rows, weight = (each if each.stride(1) == 1 else each.contiguous() for each in (rows, weight))
    y = torch.empty(len(rows), width, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y.view(*x.shape[:-1], width)
    tiles = triton.cdiv(len(rows), cut.rows) * triton.cdiv(width, cut.columns)
    # A tile is stored in two halves, which need half of the shared memory on their way.
    store = [cut.rows, cut.columns // 2]
    blocks = [[cut.rows, cut.inner], [cut.columns, cut.inner], store]
    with_tma = switches.capability(x.device) >= (9, 0) and all(map(_suits_tma, (rows, weight, y)))
    operands: list[Any] = [rows, weight, y]
    if with_tma:
        operands = [TensorDescriptor.from_tensor(*each) for each in zip(operands, blocks, strict=True)]
    with torch.cuda.device_of(x):
        multiply[(min(tiles, cut.programs * _processors(x.device)),)](
            *(*operands, bias, len(rows), rows.stride(0), weight.stride(0)),
            INNER=inner,
            WIDTH=width,
            ACTIVATION=activation,
            GATED=gated,
            WITH_TMA=with_tma,
            BLOCK_ROWS=cut.rows,
            BLOCK_COLUMNS=cut.columns,
            BLOCK_INNER=cut.inner,
            GROUP=_GROUP,
            num_warps=cut.warps,
            num_stages=cut.stages,
            enable_fp_fusion=True,
        )
    return y.view(*x.shape[:-1], width)


def _suits_tma(matrix: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, as the tensor memory accelerator demands."""
    address = 0 if matrix.device.type == "meta" else matrix.data_ptr()
    return address % 16 == 0 and matrix.stride(0) * matrix.itemsize % 16 == 0


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def multiply(
    x,
    weight,
    y,
    bias,
    count,
    x_row,
    weight_row,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    WITH_TMA: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    GROUP: tl.constexpr,
):
    down, across = tl.cdiv(count, BLOCK_ROWS), tl.cdiv(WIDTH, BLOCK_COLUMNS)
    half: tl.constexpr = BLOCK_COLUMNS // 2
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        group = tile // (GROUP * across)
        high = tl.minimum(down - group * GROUP, GROUP)
        place = tile % (GROUP * across)
        row, column = (group * GROUP + place % high) * BLOCK_ROWS, place // high * BLOCK_COLUMNS
        sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        beside = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for start in range(0, INNER, BLOCK_INNER):
            # [BLOCK_ROWS, BLOCK_INNER] and [BLOCK_COLUMNS, BLOCK_INNER]
            left = _block(x, x_row, row, start, count, INNER, WITH_TMA, BLOCK_ROWS, BLOCK_INNER)
            right = _block(weight, weight_row, column, start, WIDTH, INNER, WITH_TMA, BLOCK_COLUMNS, BLOCK_INNER)
            sums = tl.dot(left, tl.trans(right), sums)
            if GATED:
                right = _block(
                    *(weight, weight_row, WIDTH + column, start, 2 * WIDTH, INNER),
                    *(WITH_TMA, BLOCK_COLUMNS, BLOCK_INNER),
                )
                beside = tl.dot(left, tl.trans(right), beside)
        # [BLOCK_ROWS, half] each
        first, second = _halves(sums, BLOCK_ROWS, half)
        beside_first, beside_second = first, second
        if GATED:
            beside_first, beside_second = _halves(beside, BLOCK_ROWS, half)
        _finish(
            *(first, beside_first, y, bias, row, column, count),
            *(WIDTH, ACTIVATION, GATED, WITH_TMA, BLOCK_ROWS, half),
        )
        _finish(
            *(second, beside_second, y, bias, row, column + half, count),
            *(WIDTH, ACTIVATION, GATED, WITH_TMA, BLOCK_ROWS, half),
        )


@triton.jit
@no_type_check
def _block(
    matrix,
    stride,
    row,
    column,
    rows,
    COLUMNS: tl.constexpr,
    WITH_TMA: tl.constexpr,
    HEIGHT: tl.constexpr,
    BREADTH: tl.constexpr,
):
    """A block of a matrix; zeros past its end."""
    if WITH_TMA:
        block = matrix.load([row, column])
    else:
        down, across = row + tl.arange(0, HEIGHT), column + tl.arange(0, BREADTH)
        block = tl.load(
            matrix + down.to(tl.int64)[:, None] * stride + across[None, :],
            mask=(down < rows)[:, None] & (across < COLUMNS)[None, :],
            other=0.0,
        )
    return block


@triton.jit
@no_type_check
def _halves(sums, HEIGHT: tl.constexpr, BREADTH: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(sums, [HEIGHT, 2, BREADTH]), [0, 2, 1]))


@triton.jit
@no_type_check
def _finish(
    sums,
    beside,
    y,
    bias,
    row,
    column,
    count,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    WITH_TMA: tl.constexpr,
    HEIGHT: tl.constexpr,
    BREADTH: tl.constexpr,
):
    """Add the bias, apply the activation, multiply with what is gated, and store."""
    across = column + tl.arange(0, BREADTH)
    if bias is not None:
        # [BREADTH]
        sums += tl.load(bias + across, mask=across < WIDTH, other=0.0).to(tl.float32)[None, :]
    found = _activated(sums, ACTIVATION)
    if GATED:
        if bias is not None:
            # [BREADTH]
            beside += tl.load(bias + WIDTH + across, mask=across < WIDTH, other=0.0).to(tl.float32)[None, :]
        found *= beside
    if WITH_TMA:
        y.store([row, column], found.to(y.dtype))
    else:
        down = row + tl.arange(0, HEIGHT)
        tl.store(
            y + down.to(tl.int64)[:, None] * WIDTH + across[None, :],
            found.to(y.dtype.element_ty),
            mask=(down < count)[:, None] & (across < WIDTH)[None, :],
        )


@triton.jit
@no_type_check
def _activated(x, ACTIVATION: tl.constexpr):
    """The activation of that name in `reference.ACTIVATIONS`."""
    if ACTIVATION == "gelu":
        size = tl.abs(x)
        t = _inverse(1 + 0.23164189 * size)
        # Half of p(t).
        p = t * (0.127414796 + t * (-0.142248368 + t * (0.710706871 + t * (-0.726576014 + t * 0.530702715))))
        y = tl.maximum(x, 0.0) - size * (p * tl.exp2(x * x * (-0.5 * LOG2_E)))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh z) / 2 = 1 / (1 + e^(−2 z))
        y = x * _inverse(1 + tl.exp2((x + 0.044715 * x * x * x) * (-1.5957691216057308 * LOG2_E)))
    else:
        tl.static_assert(ACTIVATION == "quick_gelu" or ACTIVATION == "silu")
        scale: tl.constexpr = LOG2_E * (-1.702 if ACTIVATION == "quick_gelu" else -1.0)
        y = x * _inverse(1 + tl.exp2(x * scale))
    return y


@triton.jit
@no_type_check
def _inverse(x):
    """`1 / x` of positive numbers in two instructions; a division takes seven. Zero if x² is infinite."""
    return tl.rsqrt(x * x)
