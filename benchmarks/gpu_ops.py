"""Every fused op on a GPU at ViT-L/14's sizes: is it right, and does it beat PyTorch at the same work?

Its peer is the reference, eager and compiled. Bytes and operations are the least that the op must move and do; the
larger of the two times at the measured ceilings is the floor. An op is kept where it beats both peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from headspan_kernels import fused, reference
from headspan_kernels.attention import attention_emit_cut, candidates

# Three roundings to bf16, 2⁻⁸ each at most: weights, results, and inputs cast; sums of moments are float64.
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float64: 1e-10}
# Seconds kept for the tower behind the ops: their peers are compiled only as long as that is left.
RESERVE_SECONDS = 200.0
_BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """An op's name there and here, its arguments, and the least bytes and operations of a call."""

    name: str
    op: str
    arguments: tuple[Any, ...]
    bytes: float
    flops: float
    # Whether PyTorch's compiler is a peer too: it would unroll TEXTSPAN's rounds, one by one.
    compiles: bool = True
    exactly: bool = False


def run(ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Correctness of every op, then every op's row."""
    wrong = check()
    if wrong:
        return {"wrong": wrong}
    work = cases(gpu.SIZES.batch)
    rows = {case.name: measure(case, ceilings, left) for case in work}
    attention = next(case for case in work if case.op == "attention_emit" and case.arguments[3]).arguments
    cuts = {
        str(tuple(cut)): gpu.milliseconds(lambda cut=cut: attention_emit_cut(cut, *attention))["ms"]  # type: ignore[misc]
        for cut in candidates(gpu.SIZES.head_dim, _BF16)
    }
    return {"batch": gpu.SIZES.batch, "rows": rows, "attention_cuts_ms": cuts, "wrong": []}


def check() -> list[str]:
    """The ops whose results, at real sizes and fresh random inputs, are not those of the reference in float64."""
    wrong = []
    for case in cases(3):
        inputs = [value.clone() if isinstance(value, Tensor) else value for value in case.arguments]
        exact = [_exact(value) for value in case.arguments]
        if "attention" in case.op and isinstance(inputs[-1], Tensor):
            # What receives the patches, so that a number never written shows.
            inputs[-1].fill_(torch.nan)
        # Sums in place are compared as what they added to.
        found = _tensors(getattr(fused, case.op)(*inputs)) or [inputs[-2], inputs[-1]]
        wanted = _tensors(getattr(reference, case.op)(*exact)) or [exact[-2], exact[-1]]
        for got, want in zip(found, wanted, strict=True):
            error = float((got.double() - want.double()).norm() / want.double().norm())
            if not error <= TOLERANCE[torch.float64 if case.exactly else _BF16]:
                wrong.append(f"{case.name}: {error:.2e}")
    return wrong


def measure(case: Case, ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Time of the fused op and of its peers, and what share of its ceiling it reaches."""
    ours = gpu.milliseconds(lambda: getattr(fused, case.op)(*case.arguments))
    peer = getattr(reference, case.op)
    row: dict[str, Any] = {"fused": ours, "eager": gpu.milliseconds(lambda: peer(*case.arguments))}
    if case.compiles and left() > RESERVE_SECONDS:
        compiled = torch.compile(peer, dynamic=False)
        row["compiled"] = gpu.or_why_not(lambda: gpu.milliseconds(lambda: compiled(*case.arguments)))
    floors = {
        "memory": case.bytes / ceilings["copy_tb_s"] / 1e9,
        "arithmetic": case.flops / ceilings["bf16_tflop_s"] / 1e9,
    }
    bound = max(floors, key=lambda name: floors[name])
    best = min(value["ms"] for name, value in row.items() if name != "fused" and "ms" in value)
    return {
        **row,
        "megabytes": round(case.bytes / 1e6, 1),
        "gigaflops": round(case.flops / 1e9, 2),
        "bound": bound,
        "share_of_ceiling": round(floors[bound] / ours["ms"], 3),
        "times_faster": round(best / ours["ms"], 2),
        "kept": bool(best > ours["ms"]),
    }


def cases(batch: int) -> list[Case]:
    """The calls of a forward pass and of what comes behind it."""
    size = gpu.SIZES
    rows, scores = batch * size.tokens, 4 * batch * size.tokens**2 * size.width
    qkv = _draw(batch, size.tokens, 3 * size.width)
    pooling = torch.full((1, size.tokens), 1 / size.tokens, device=gpu.DEVICE)
    x, added, weight = _draw(batch, size.tokens, size.width), _draw(batch, size.tokens, size.width), _draw(size.width)
    patches = torch.empty(batch, size.heads, size.tokens, size.head_dim, dtype=torch.float16, device=gpu.DEVICE)
    emitted = patches.nbytes + 4 * batch * size.width
    heads = torch.randn(batch, size.layers, size.heads, size.head_dim, device=gpu.DEVICE)
    scale, shares = torch.rand(batch, device=gpu.DEVICE), torch.randn(batch, 3, device=gpu.DEVICE)
    directions, carried = (
        _draw(size.layers * size.heads, size.head_dim + 3, size.joint),
        _draw(size.heads, size.head_dim + 3, size.texts),
    )
    mixes = _draw(batch, size.heads, size.tokens, size.head_dim).half()
    own = size.head_dim + 3
    total = torch.zeros(size.layers, size.heads, own, dtype=torch.float64, device=gpu.DEVICE)
    gram = torch.zeros(size.layers, size.heads, own, own, dtype=torch.float64, device=gpu.DEVICE)
    sums = heads.flatten(1, 2)[:, :, None]
    photos = torch.randint(0, 256, (batch, *size.photo, 3), dtype=torch.uint8, device=gpu.DEVICE)
    pool = torch.randn(4 * size.heads, size.pool, own, dtype=torch.float64, device=gpu.DEVICE)
    root = torch.randn(4 * size.heads, own, own, dtype=torch.float64, device=gpu.DEVICE)
    covariance = root @ root.transpose(1, 2)
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
            (heads, scale.double(), shares.double(), total, gram),
            heads.nbytes + 2 * (total.nbytes + gram.nbytes),
            0,
            exactly=True,
        ),
        Case(
            "head_project",
            "head_project",
            (sums, scale, shares, directions),
            sums.nbytes + directions.nbytes + 4 * batch * size.layers * size.heads * size.joint,
            2 * batch * size.layers * size.heads * own * size.joint,
        ),
        Case(
            "text_maps",
            "text_maps",
            (mixes, scale, shares, carried),
            mixes.nbytes + carried.nbytes + 4 * rows * size.texts,
            2 * rows * size.heads * own * size.texts,
        ),
        Case(
            "preprocess",
            "preprocess",
            (photos, (size.pixels, size.pixels), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), torch.float32),
            photos.nbytes + 12 * batch * size.pixels**2,
            0,
        ),
        Case(
            "textspan_rounds",
            "textspan_rounds",
            (pool, covariance, size.rounds, 1e-12),
            # A round reads every text once.
            size.rounds * pool.nbytes,
            0,
            compiles=False,
            exactly=True,
        ),
    ]


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, device=gpu.DEVICE, dtype=_BF16)


def _exact(value: Any) -> Any:
    """16 bits to float64; what is float32 stays, and is copied, since sums are taken in place."""
    if not isinstance(value, Tensor):
        return value
    return value.double() if value.dtype.itemsize == 2 else value.clone()


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in _tensors(part)]
    return []
