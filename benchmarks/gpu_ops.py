"""Is every fused op right on a GPU at ViT-L/14's sizes, and faster than PyTorch at the same work?

The peers are the reference and, where PyTorch has a faster way, that one, each eager and compiled. Bytes and operations
are the least that the op must move and do; the larger of their two times at the measured ceilings is the floor. An op
counts as kept if it is right and faster than all of its peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu
from headspan_kernels import attention, fused, moments, reference

# Three roundings to bf16, 2⁻⁸ each at most: weights, results, and inputs cast; sums of moments are float64.
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float64: 1e-10}
# Seconds reserved for the tower and for `precompute`, which follow; peers are compiled only while more is left.
RESERVE_SECONDS = 300.0
_BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A row's name, its op, the arguments, and the least bytes and operations of a call."""

    name: str
    op: str
    arguments: tuple[Any, ...]
    bytes: float
    flops: float
    # Whether its products are float64.
    exactly: bool = False
    # Whether the reference is compiled too; a loop over the images of a batch would take minutes.
    compiles: bool = True
    # Other PyTorch functions for the same work, each with its arguments.
    peers: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=dict)


def run(ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """A row for each op: its error if it is wrong, and its time beside its peers'; and two ops' times by their cuts."""
    checks = {case.name: gpu.or_why_not(lambda case=case: {"error": error(case)}) for case in cases(3)}  # type: ignore[misc]
    work = cases(gpu.SIZES.batch)
    rows, wrong = {}, []
    for case in work:
        rows[case.name] = row = measure(case, checks[case.name], ceilings, left)
        gpu.say(case.name, row)
        fault = row.get("wrong", row["fused"].get("failed"))
        if fault is not None:
            wrong.append(f"{case.name}: {fault}")
    with_patches = next(case for case in work if case.op == "attention_emit" and case.arguments[3]).arguments
    cuts = {
        "attention_cuts": {
            str(tuple(cut)): timed(attention.attention_emit_cut, (cut, *with_patches))
            for cut in attention.candidates(gpu.SIZES.head_dim, _BF16)
        },
        "moments_cuts": moments_cuts(next(case for case in work if case.op == "add_moments").arguments),
    }
    for name, found in cuts.items():
        gpu.say(name, found)
    return {"batch": gpu.SIZES.batch, "rows": rows, **cuts, "wrong": wrong}


def moments_cuts(arguments: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """The time of `add_moments` with each of its tiles; tiles whose results differ from the first ones' fail."""
    heads, scale, mean_and_bias, total, gram = arguments
    kept: list[Tensor] = []

    def checked(cut: moments.Tiles) -> dict[str, Any]:
        found = (torch.zeros_like(total), torch.zeros_like(gram))
        moments.add_moments_cut(cut, heads, scale, mean_and_bias, found[0], found[1])
        kept.extend(found[: 2 - len(kept)])
        errors = [gpu.relative_error(got, want) for got, want in zip(found, kept, strict=True)]
        if not max(errors) <= TOLERANCE[torch.float64]:
            return {"failed": f"differs from the first by {max(errors):.1e}"}
        return gpu.milliseconds(lambda: moments.add_moments_cut(cut, heads, scale, mean_and_bias, total, gram))

    return {
        str(tuple(cut)): gpu.or_why_not(lambda cut=cut: checked(cut))  # type: ignore[misc]
        for cut in moments.candidates(gpu.SIZES.head_dim, moments.capability(heads.device))
    }


def error(case: Case) -> float:
    """The largest relative error of the op's results, at real sizes, against the reference in float64."""
    inputs = [value.clone() if isinstance(value, Tensor) else value for value in case.arguments]
    exact = [_exact(value) for value in case.arguments]
    if "attention" in case.op and isinstance(inputs[-1], Tensor):
        # The tensor that receives the patches: a number that is never written stays NaN.
        inputs[-1].fill_(torch.nan)
    # Ops that add in place return nothing; their last two arguments hold the results.
    found = _tensors(getattr(fused, case.op)(*inputs)) or [inputs[-2], inputs[-1]]
    wanted = _tensors(getattr(reference, case.op)(*exact)) or [exact[-2], exact[-1]]
    errors = [gpu.relative_error(got, want) for got, want in zip(found, wanted, strict=True)]
    # A tensor's maximum, since Python's may skip NaN.
    return float(f"{torch.tensor(errors, dtype=torch.float64).max():.3g}")


def timed(work: Callable[..., object], arguments: tuple[Any, ...], compiled: bool = False) -> dict[str, Any]:
    """The time of a call, or the reason why the call failed."""

    def measured() -> dict[str, float]:
        call = torch.compile(work, dynamic=False) if compiled else work
        return gpu.milliseconds(lambda: call(*arguments))

    return gpu.or_why_not(measured)


def measure(case: Case, checked: dict[str, Any], ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """Times of the fused op and of its peers, and the share of its floor; `checked` holds its error."""
    row: dict[str, Any] = {"fused": timed(getattr(fused, case.op), case.arguments)}
    own = (getattr(reference, case.op), case.arguments)
    for name, (work, arguments) in {"reference": own, **case.peers}.items():
        row[name] = timed(work, arguments)
        if left() > RESERVE_SECONDS and (case.compiles or name != "reference"):
            row[f"{name}, compiled"] = timed(work, arguments, compiled=True)
    ours = row["fused"].get("ms")
    best = min((value["ms"] for name, value in row.items() if name != "fused" and "ms" in value), default=None)
    arithmetic = "fp64_tflop_s" if case.exactly else "bf16_tflop_s"
    floors = {
        bound: least / ceilings[ceiling] / 1e9
        for bound, least, ceiling in (("memory", case.bytes, "copy_tb_s"), ("arithmetic", case.flops, arithmetic))
        if ceiling in ceilings
    }
    bound = max(floors, key=lambda name: floors[name], default=None)
    if "failed" in checked:
        row["wrong"] = checked["failed"]
    elif not checked["error"] <= TOLERANCE[torch.float64 if case.exactly else _BF16]:
        row["wrong"] = checked["error"]
    return {
        **row,
        "megabytes": round(case.bytes / 1e6, 1),
        "gigaflops": round(case.flops / 1e9, 2),
        "bound": bound,
        "share_of_ceiling": None if ours is None or bound is None else round(floors[bound] / ours, 3),
        "times_faster": None if ours is None or best is None else round(best / ours, 2),
        "kept": bool("wrong" not in row and ours is not None and best is not None and best > ours),
    }


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


def cases(batch: int) -> list[Case]:
    """The calls of a forward pass, of the moments and of preprocessing."""
    size = gpu.SIZES
    rows, scores = batch * size.tokens, 4 * batch * size.tokens**2 * size.width
    qkv = _draw(batch, size.tokens, 3 * size.width)
    pooling = torch.full((1, size.tokens), 1 / size.tokens, device=gpu.DEVICE)
    x, added, weight = _draw(batch, size.tokens, size.width), _draw(batch, size.tokens, size.width), _draw(size.width)
    patches = torch.empty(batch, size.heads, size.tokens, size.head_dim, dtype=torch.float16, device=gpu.DEVICE)
    emitted = patches.nbytes + 4 * batch * size.width
    heads = torch.randn(batch, size.layers, size.heads, size.head_dim, device=gpu.DEVICE)
    scale, mean_and_bias = torch.rand(batch, device=gpu.DEVICE), torch.randn(batch, 3, device=gpu.DEVICE)
    own = size.head_dim + 3
    total = torch.zeros(size.layers, size.heads, own, dtype=torch.float64, device=gpu.DEVICE)
    gram = torch.zeros(size.layers, size.heads, own, own, dtype=torch.float64, device=gpu.DEVICE)
    photos = torch.randint(0, 256, (batch, 3, *size.photo), dtype=torch.uint8, device=gpu.DEVICE)
    where = cropped(size.photo, size.pixels)
    square, mean, std = (size.pixels, size.pixels), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    levels = [255 * torch.tensor(value, device=gpu.DEVICE)[:, None, None] for value in (mean, std)]
    one_row = (qkv[:, 0, : size.width].contiguous(), qkv[:, :, size.width :].contiguous(), size.heads)
    return [
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
        Case(
            "add_moments",
            "add_moments",
            (heads, scale.double(), mean_and_bias.double(), total, gram),
            heads.nbytes + 2 * (total.nbytes + gram.nbytes),
            # The whole Gram matrix, as a matrix product makes it.
            2 * batch * gram.numel(),
            exactly=True,
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


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, device=gpu.DEVICE, dtype=_BF16)


def _exact(value: Any) -> Any:
    """16-bit tensors as float64; others as copies, since ops add to them in place."""
    if not isinstance(value, Tensor):
        return value
    return value.double() if value.dtype.itemsize == 2 else value.clone()


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in _tensors(part)]
    return []
