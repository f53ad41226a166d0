"""The calls that `benchmarks.gpu_ops` measures at ViT-L/14's sizes, with their peers, least bytes and operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu
from headspan_kernels import fused, linear, reference, switches

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A row's name, its op, the arguments, and the least bytes and operations of a call."""

    name: str
    op: str
    arguments: tuple[Any, ...]
    bytes: float
    flops: float
    # The type of its products.
    dtype: torch.dtype = BF16
    # Whether the reference is compiled too; a loop over the images of a batch would take minutes.
    compiles: bool = True
    # Other PyTorch functions for the same work, each with its arguments.
    peers: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=dict)
    # The kernel with each cut worth measuring; the fastest right one is the row's. Without any, the op itself is.
    cuts: dict[str, Callable[..., object]] = field(default_factory=dict)
    # Whether the engine uses the kernel on this GPU.
    in_use: bool = True

    @property
    def ways(self) -> dict[str, Callable[..., object]]:
        """What the row's time is measured of, by name."""
        return self.cuts or {"": getattr(fused, self.op)}


def interpolated(
    pixels: Tensor, where: reference.Placed, size: tuple[int, int], shift: Tensor, spread: Tensor
) -> Tensor:
    """`preprocess` of images of one size by PyTorch's antialiased resize, which does not round to grey levels."""
    levels = F.interpolate(pixels.float(), (where.height, where.width), mode="bicubic", antialias=True)
    kept = levels[:, :, where.top : where.top + size[0], where.left : where.left + size[1]]
    return (kept.clamp(0, 255) - shift) / spread


def batched_product(heads: Tensor, scale: Tensor, mean_and_bias: Tensor, total: Tensor, gram: Tensor) -> None:
    """`add_moments` as one float64 product per head of rows that are padded to a multiple of 8.

    A column of ones gives the sum; heads are read where they are, without a transposed copy.
    """
    _, layers, count, _ = heads.shape
    size = gram.shape[-1]
    padding = -(size + 1) % 8
    used = scale != 0
    terms = torch.where(used[:, None], F.pad(mean_and_bias, (0, 1), value=1.0), 0.0)
    scaled = torch.where(used[:, None, None, None], heads.double() * scale[:, None, None, None], 0.0)
    beside = F.pad(terms, (0, padding))[:, None, None].expand(-1, layers, count, -1)
    rows = torch.cat([scaled, beside], dim=-1).flatten(1, 2).transpose(0, 1)
    products = torch.bmm(rows.transpose(1, 2), rows)
    total += products[:, size, :size].view_as(total)
    gram += products[:, :size, :size].view_as(gram)


def cropped(photo: tuple[int, int], side: int) -> reference.Placed:
    """A photograph with its short side resized to `side`, of which the square in the middle is kept."""
    long = int(side * max(photo) / min(photo))
    height, width = (long, side) if photo[1] <= photo[0] else (side, long)
    return reference.Placed(height, width, (height - side) // 2, (width - side) // 2)


def pixels_read(photo: tuple[int, int], side: int) -> int:
    """Source pixels of a photograph that its crop needs."""
    where = cropped(photo, side)
    count = 1
    for source, target, first in ((photo[0], where.height, where.top), (photo[1], where.width, where.left)):
        starts, weights = reference.taps(source, target, "bicubic")
        count *= min(int(starts[first + side - 1]) + weights.shape[1], source) - int(starts[first])
    return count


def cases(batch: int, dtype: torch.dtype = BF16) -> list[Case]:
    """The calls of a forward pass in a 16-bit type; with those of bf16, the moments and preprocessing."""
    size = gpu.SIZES

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=gpu.DEVICE, dtype=dtype)

    rows, scores = batch * size.tokens, 4 * batch * size.tokens**2 * size.width
    qkv = draw(batch, size.tokens, 3 * size.width)
    pooling = torch.full((1, size.tokens), 1 / size.tokens, device=gpu.DEVICE)
    x, added, weight = draw(batch, size.tokens, size.width), draw(batch, size.tokens, size.width), draw(size.width)
    patches = torch.empty(batch, size.heads, size.tokens, size.head_dim, dtype=torch.float16, device=gpu.DEVICE)
    emitted = patches.nbytes + 4 * batch * size.width
    one_row = (qkv[:, 0, : size.width].contiguous(), qkv[:, :, size.width :].contiguous(), size.heads)
    of_the_pass = [
        Case("attention_emit, heads", "attention_emit", (qkv, size.heads, None, False), 8 * rows * size.width, scores),
        Case(
            "attention_emit, heads and patches",
            "attention_emit",
            (qkv, size.heads, None, True, patches),
            8 * rows * size.width + emitted,
            scores,
        ),
        Case(
            "attention_emit, mean of rows, patches",
            "attention_emit",
            (qkv, size.heads, pooling, True, patches),
            8 * rows * size.width + emitted,
            1.5 * scores,
        ),
        Case(
            "pooled_attention, patches",
            "pooled_attention",
            (*one_row, True, patches),
            4 * rows * size.width + emitted,
            0,
        ),
        Case("add_layer_norm", "add_layer_norm", (x, added, weight, weight, 1e-5), 8 * rows * size.width, 0),
        Case("layer_norm", "layer_norm", (x, weight, weight, 1e-5), 4 * rows * size.width, 0),
        *_linear_maps(batch, x, draw),
    ]
    found = [replace(case, name=case.name + ("" if dtype == BF16 else ", fp16"), dtype=dtype) for case in of_the_pass]
    return found + (_others(batch) if dtype == BF16 else [])


def _linear_maps(batch: int, x: Tensor, draw: Callable[..., Tensor]) -> list[Case]:
    """The first linear map of an MLP with each activation; gated ones have the hidden width of EVA02's models."""
    size, found = gpu.SIZES, []
    rows, width, hidden = batch * size.tokens, size.width, 4 * size.width
    gated_hidden = 8 * size.width // 3 // 8 * 8
    for activation in reference.ACTIVATIONS:
        gated = activation == "silu"
        out, columns = (gated_hidden, 2 * gated_hidden) if gated else (hidden, hidden)
        tried = linear.candidates(gated)
        # The time of a cut hardly depends on the activation, and each takes a second or two to compile.
        tried = tried if gated or activation == "gelu" else tried[:2]
        cuts: dict[str, Callable[..., object]] = {str(tuple(cut)): partial(linear.linear_act_cut, cut) for cut in tried}
        if activation == "gelu_tanh":
            cuts["cublaslt"] = linear.linear_act_cublaslt
        weight = draw(columns, width) / width**0.5
        found.append(
            Case(
                f"linear_act, {activation}{', gated' if gated else ''}",
                "linear_act",
                (x, weight, draw(columns), activation, gated),
                2 * (rows * (width + out) + columns * width),
                2 * rows * columns * width,
                cuts=cuts,
                in_use=switches.linear_act_by(x.device, activation, gated) is not None,
            )
        )
    return found


def _others(batch: int) -> list[Case]:
    """The calls outside the forward pass: moments and preprocessing."""
    size = gpu.SIZES
    heads = torch.randn(batch, size.layers, size.heads, size.head_dim, device=gpu.DEVICE)
    scale, mean_and_bias = torch.rand(batch, device=gpu.DEVICE), torch.randn(batch, 3, device=gpu.DEVICE)
    own = size.head_dim + 3
    total = torch.zeros(size.layers, size.heads, own, dtype=torch.float64, device=gpu.DEVICE)
    gram = torch.zeros(size.layers, size.heads, own, own, dtype=torch.float64, device=gpu.DEVICE)
    photos = torch.randint(0, 256, (batch, 3, *size.photo), dtype=torch.uint8, device=gpu.DEVICE)
    where = cropped(size.photo, size.pixels)
    square, mean, std = (size.pixels, size.pixels), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    levels = [255 * torch.tensor(value, device=gpu.DEVICE)[:, None, None] for value in (mean, std)]
    return [
        Case(
            "add_moments",
            "add_moments",
            (heads, scale.double(), mean_and_bias.double(), total, gram),
            heads.nbytes + 2 * (total.nbytes + gram.nbytes),
            # The whole Gram matrix, as a matrix product makes it.
            2 * batch * gram.numel(),
            dtype=torch.float64,
            peers={"batched product": (batched_product, (heads, scale.double(), mean_and_bias.double(), total, gram))},
        ),
        Case(
            "preprocess",
            "preprocess",
            (list(photos), [where] * batch, square, mean, std, torch.float32),
            3 * batch * (pixels_read(size.photo, size.pixels) + 4 * size.pixels**2),
            0,
            compiles=False,
            peers={"F.interpolate": (interpolated, (photos, where, square, *levels))},
        ),
    ]
