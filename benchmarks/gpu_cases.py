"""The calls that `benchmarks.gpu_ops` measures at ViT-L/14's sizes, with their peers, least bytes and operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks import gpu
from benchmarks.gpu_peers import batched_product, interpolated, through
from headspan_kernels import attention, fused, linear, moments, reference, switches
from headspan_kernels.filters import taps

BF16 = torch.bfloat16
# PyTorch's fast attention kernels.
BACKENDS = {"FlashAttention": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
# Tokens, heads and head dimension of other models.
SHAPES = {
    "50 tokens": (50, 12, 64),
    "197 tokens": (197, 12, 64),
    "577 tokens": (577, 16, 64),
    "730 tokens of 80": (730, 16, 80),
}


# Columns before and after the first linear map of other models' MLPs: ViT-B and ViT-H.
MAPS = ((768, 3072), (1280, 5120))


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
    # The peers that are compiled too; a loop over the images of a batch would take minutes.
    compiles: tuple[str, ...] = ("reference",)
    # Other PyTorch functions for the same work, each with its arguments.
    peers: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=dict)
    # What it must equal, if this is not the op of that name in the reference.
    wanted: Callable[..., object] | None = None
    # The kernel with each cut worth measuring; the fastest right one is the row's. Without any, the op itself is.
    cuts: dict[str, Callable[..., object]] = field(default_factory=dict)
    # What the engine uses on this GPU, and the table of `switches` and the key that decide it; PyTorch computes an op
    # that uses none of its cuts.
    used: str | None = ""
    switch: tuple[str, tuple[Any, ...]] | None = None

    @property
    def exact(self) -> Callable[..., object]:
        """The reference's function."""
        return self.wanted or getattr(reference, self.op)

    @property
    def ways(self) -> dict[str, Callable[..., object]]:
        """What the row's time is measured of, by name."""
        return self.cuts or {"": getattr(fused, self.op)}


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
        starts, weights = taps(source, target, "bicubic")
        count *= min(int(starts[first + side - 1]) + weights.shape[1], source) - int(starts[first])
    return count


def cases(batch: int, dtype: torch.dtype = BF16) -> list[Case]:
    """The calls of a forward pass in a 16-bit type, and with those of bf16 moments and preprocessing."""
    size = gpu.SIZES

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=gpu.DEVICE, dtype=dtype)

    rows = batch * size.tokens
    x, added, weight = draw(batch, size.tokens, size.width), draw(batch, size.tokens, size.width), draw(size.width)
    of_the_pass = [
        *_attention(batch, draw),
        Case("add_layer_norm", "add_layer_norm", (x, added, weight, weight, 1e-5), 8 * rows * size.width, 0),
        Case("layer_norm", "layer_norm", (x, weight, weight, 1e-5), 4 * rows * size.width, 0),
        *_residual_sums(batch, x, draw),
        *_linear_maps(batch, x, draw),
        *_shapes(batch, draw),
    ]
    found = [replace(case, name=case.name + ("" if dtype == BF16 else ", fp16"), dtype=dtype) for case in of_the_pass]
    return found + (_others(batch) if dtype == BF16 else [])


def _attention(batch: int, draw: Callable[..., Tensor]) -> list[Case]:
    """Attention of the tower's size: of all rows with what it emits, and of one row."""
    size = gpu.SIZES
    qkv = draw(batch, size.tokens, 3 * size.width)
    pooling = torch.full((1, size.tokens), 1 / size.tokens, device=gpu.DEVICE)
    patches = torch.empty(batch, size.heads, size.tokens, size.head_dim, dtype=torch.float16, device=gpu.DEVICE)
    one_row = (qkv[:, 0, : size.width].contiguous(), qkv[:, :, size.width :].contiguous(), size.heads)
    return [
        _rows("heads", qkv, size.heads),
        _rows("heads and patches", qkv, size.heads, patches=patches),
        _rows("mean of rows, patches", qkv, size.heads, pooling, patches),
        Case(
            "pooled_attention, patches",
            "pooled_attention",
            (*one_row, True, patches),
            4 * batch * size.tokens * size.width + patches.nbytes + 4 * batch * size.width,
            0,
        ),
    ]


def _rows(name: str, qkv: Tensor, heads: int, pooling: Tensor | None = None, patches: Tensor | None = None) -> Case:
    """Attention of all rows, by several cuts; beside PyTorch's two fast kernels if heads alone are taken."""
    batch, tokens, columns = qkv.shape
    width, head_dim = columns // 3, columns // 3 // heads
    arguments = (qkv, heads, pooling, patches is not None, patches)
    used, tried = attention.cut_in_use(qkv, heads, pooling is not None), attention.candidates(head_dim, BF16, tokens)
    if name not in ("heads", "heads and patches") or qkv.dtype != BF16:
        # Fewer cuts are compiled: the first that keeps all keys, the last that does not, and the one in use.
        kept = [cut for cut in tried if cut.whole]
        first = tried[0] if isinstance(used, str) else used
        tried = tuple(dict.fromkeys((first, *kept[:1], *([] if kept and tokens < 512 else tried[2:3]))))
    cuts = [str(tuple(cut)) for cut in tried]
    emitted = 4 * batch * width + (0 if patches is None else patches.nbytes)
    return Case(
        f"attention_emit, {name}",
        "attention_emit",
        arguments,
        8 * batch * tokens * width + emitted,
        (4 if pooling is None else 6) * batch * tokens**2 * width,
        peers={kind: (partial(through, backend), arguments) for kind, backend in BACKENDS.items() if patches is None},
        cuts={cut: partial(attention.attention_emit_cut, each) for cut, each in zip(cuts, tried, strict=True)},
        used=_name(used),
        switch=("ATTENTION", (*_place(qkv), head_dim, tokens, pooling is not None)),
    )


def _shapes(batch: int, draw: Callable[..., Tensor]) -> list[Case]:
    """Attention of other models with about as many numbers, heads alone: B/32, B/16, L/14 at 336, H/14 at 378."""
    size, found = gpu.SIZES, []
    for name, (tokens, heads, head_dim) in SHAPES.items():
        images = max(1, batch * size.tokens * size.width // (tokens * heads * head_dim))
        case = _rows(f"heads, {name}", draw(images, tokens, 3 * heads * head_dim), heads)
        # Each takes seconds to compile.
        found.append(replace(case, compiles=()))
    return found


def sum_apart(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, norm_weight: Tensor) -> Tensor:
    """The norm of `x + y Wᵀ + b` with the product written apart: the norm reads both, and writes their sum."""
    ops = reference if x.dtype == torch.float64 else fused
    normed: Tensor = ops.add_layer_norm(x, ops.linear(y, weight, bias), norm_weight, norm_weight, 1e-5).normed
    return normed


def sum_in_product(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, norm_weight: Tensor) -> Tensor:
    """The same in place: cuBLAS adds `x` in its epilogue, so that the norm reads one tensor and writes one.

    `shift` is the bias in float32, which the norm adds.
    """
    fused.add_linear(x, y, weight)
    return fused.layer_norm(x, norm_weight, norm_weight, 1e-5, shift)


def _residual_sums(batch: int, x: Tensor, draw: Callable[..., Tensor]) -> list[Case]:
    """The sums after attention and after the MLP, in the product's epilogue beside today's: 6 bytes a number, not 8."""
    size, found = gpu.SIZES, []
    rows, width = batch * size.tokens, size.width
    for name, inner in (("attention", width), ("MLP", 4 * width)):
        weight = draw(width, inner) / inner**0.5
        bias = draw(width)
        arguments = (x.clone(), draw(batch, size.tokens, inner), weight, bias, bias.float(), draw(width))
        found.append(
            Case(
                f"residual sum in the product, {name}",
                "add_linear",
                arguments,
                2 * (rows * (inner + 4 * width) + weight.numel()),
                2 * rows * inner * width,
                wanted=sum_apart,
                compiles=(),
                cuts={"cuBLAS": sum_in_product},
                used=None,
            )
        )
    return found


def _linear_maps(batch: int, x: Tensor, draw: Callable[..., Tensor]) -> list[Case]:
    """The first linear map of an MLP with each activation; gated ones have the hidden width of EVA02's models.

    The exact GELU is measured at the widths of other models, too, with about as many numbers.
    """
    size, found = gpu.SIZES, []
    calls = [
        (x, each, 8 * size.width // 3 // 8 * 8 if each == "silu" else 4 * size.width) for each in reference.ACTIVATIONS
    ]
    for width, out in MAPS:
        calls.append((draw(max(1, batch * size.tokens * size.width // width), width), "gelu", out))
    for x, activation, out in calls:
        gated, width, rows = activation == "silu", x.shape[-1], x.numel() // x.shape[-1]
        columns = 2 * out if gated else out
        tried = linear.candidates(gated)
        # The time of a cut hardly depends on the activation and the width, and each takes a second or two to compile.
        tried = tried if gated or (activation, width) == ("gelu", size.width) else tried[:2]
        cuts: dict[str, Callable[..., object]] = {str(tuple(cut)): partial(linear.linear_act_cut, cut) for cut in tried}
        if activation == "gelu_tanh":
            cuts["cublaslt"] = linear.linear_act_cublaslt
        weight = draw(columns, width) / width**0.5
        found.append(
            Case(
                f"linear_act, {activation}{', gated' if gated else ''}"
                + ("" if width == size.width else f", {width} to {out}"),
                "linear_act",
                (x, weight, draw(columns), activation, gated),
                2 * (rows * (width + out) + columns * width),
                2 * rows * columns * width,
                cuts=cuts,
                used=_name(switches.linear_act_by(x.device, x.dtype, activation, gated, width, out)),
                switch=("LINEAR_ACT", (*_place(x), activation, gated, width, out)),
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
            compiles=("reference", "batched product"),
            cuts={
                str(tuple(cut)): partial(moments.add_moments_cut, cut)
                for cut in moments.candidates(size.head_dim, switches.capability(heads.device))
            },
            used=_name(moments.cut_in_use(heads.device, size.head_dim)),
            switch=("MOMENTS", (switches.capability(heads.device), size.head_dim)),
            peers={"batched product": (batched_product, (heads, scale.double(), mean_and_bias.double(), total, gram))},
        ),
        Case(
            "preprocess",
            "preprocess",
            (list(photos), [where] * batch, square, mean, std, torch.float32),
            3 * batch * (pixels_read(size.photo, size.pixels) + 4 * size.pixels**2),
            0,
            compiles=("F.interpolate",),
            peers={"F.interpolate": (interpolated, (photos, where, square, *levels))},
        ),
    ]


def _place(x: Tensor) -> tuple[Any, str]:
    """The first parts of a key of `switches`."""
    return switches.capability(x.device), switches.name_of(x.dtype)


def _name(cut: tuple[Any, ...] | str | None) -> str | None:
    return cut if cut is None or isinstance(cut, str) else str(tuple(cut))
