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

from benchmarks.gpu import BATCH, milliseconds
from headspan_kernels import fused, reference
from headspan_kernels.attention import attention_emit_cut, candidates

TOKENS, HEADS, HEAD_DIM, LAYERS, JOINT, TEXTS = 257, 16, 64, 24, 768, 64
WIDTH = HEADS * HEAD_DIM
# bf16 inputs and one bf16 rounding of weights and results; float32 sums (tests/tolerances.py has the arithmetic).
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float32: 1e-5}
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


def run(ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Correctness of every op, then every op's row."""
    wrong = check()
    if wrong:
        return {"wrong": wrong}
    rows = {case.name: measure(case, ceilings, left) for case in cases(BATCH)}
    qkv = _draw(BATCH, TOKENS, 3 * WIDTH)
    patches = torch.empty(BATCH, HEADS, TOKENS, HEAD_DIM, dtype=torch.float16, device="cuda")
    cuts = {
        str(tuple(cut)): milliseconds(lambda cut=cut: attention_emit_cut(cut, qkv, HEADS, None, True, patches))["ms"]  # type: ignore[misc]
        for cut in candidates(HEAD_DIM, _BF16)
    }
    return {"batch": BATCH, "rows": rows, "attention_cuts_ms": cuts, "wrong": []}


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
            if not error <= TOLERANCE[torch.float32 if case.op == "add_moments" else _BF16]:
                wrong.append(f"{case.name}: {error:.2e}")
    return wrong


def measure(case: Case, ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Time of the fused op and of its peers, and what share of its ceiling it reaches."""
    ours = milliseconds(lambda: getattr(fused, case.op)(*case.arguments))
    peer = getattr(reference, case.op)
    row: dict[str, Any] = {"fused": ours, "eager": milliseconds(lambda: peer(*case.arguments))}
    if left() > RESERVE_SECONDS:
        compiled = torch.compile(peer, dynamic=False)
        row["compiled"] = milliseconds(lambda: compiled(*case.arguments))
    floors = {
        "memory": case.bytes / ceilings["copy_tb_s"] / 1e9,
        "arithmetic": case.flops / ceilings["bf16_tflop_s"] / 1e9,
    }
    bound = max(floors, key=lambda name: floors[name])
    best = min(value["ms"] for name, value in row.items() if name != "fused")
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
    rows, scores = batch * TOKENS, 4 * batch * HEADS * TOKENS * TOKENS * HEAD_DIM
    qkv = _draw(batch, TOKENS, 3 * WIDTH)
    pooling = torch.full((1, TOKENS), 1 / TOKENS, device="cuda")
    x, added, weight = _draw(batch, TOKENS, WIDTH), _draw(batch, TOKENS, WIDTH), _draw(WIDTH)
    patches = torch.empty(batch, HEADS, TOKENS, HEAD_DIM, dtype=torch.float16, device="cuda")
    emitted = patches.nbytes + 4 * batch * WIDTH
    heads = torch.randn(batch, LAYERS, HEADS, HEAD_DIM, device="cuda")
    scale, shares = torch.rand(batch, device="cuda"), torch.randn(batch, 3, device="cuda")
    directions, carried = _draw(LAYERS * HEADS, HEAD_DIM + 3, JOINT), _draw(HEADS, HEAD_DIM + 3, TEXTS)
    mixes = _draw(batch, HEADS, TOKENS, HEAD_DIM).half()
    size = HEAD_DIM + 3
    total = torch.zeros(LAYERS, HEADS, size, dtype=torch.float64, device="cuda")
    gram = torch.zeros(LAYERS, HEADS, size, size, dtype=torch.float64, device="cuda")
    sums = heads.flatten(1, 2)[:, :, None]
    one_row = (qkv[:, 0, :WIDTH].contiguous(), qkv[:, :, WIDTH:].contiguous(), HEADS)
    return [
        Case("attention_emit, heads", "attention_emit", (qkv, HEADS, None, False), 8 * rows * WIDTH, scores),
        Case(
            "attention_emit, heads and patches",
            "attention_emit",
            (qkv, HEADS, None, True, patches),
            8 * rows * WIDTH + emitted,
            scores,
        ),
        Case(
            "attention_emit, mean of rows, patches",
            "attention_emit",
            (qkv, HEADS, pooling, True, patches),
            8 * rows * WIDTH + emitted,
            1.5 * scores,
        ),
        Case("pooled_attention, patches", "pooled_attention", (*one_row, True, patches), 4 * rows * WIDTH + emitted, 0),
        Case("add_layer_norm", "add_layer_norm", (x, added, weight, weight, 1e-5), 8 * rows * WIDTH, 0),
        Case("layer_norm", "layer_norm", (x, weight, weight, 1e-5), 4 * rows * WIDTH, 0),
        Case(
            "add_moments",
            "add_moments",
            (heads, scale.double(), shares.double(), total, gram),
            heads.nbytes + 2 * (total.nbytes + gram.nbytes),
            0,
        ),
        Case(
            "head_project",
            "head_project",
            (sums, scale, shares, directions),
            sums.nbytes + directions.nbytes + 4 * batch * LAYERS * HEADS * JOINT,
            2 * batch * LAYERS * HEADS * size * JOINT,
        ),
        Case(
            "text_maps",
            "text_maps",
            (mixes, scale, shares, carried),
            mixes.nbytes + carried.nbytes + 4 * rows * TEXTS,
            2 * rows * HEADS * size * TEXTS,
        ),
    ]


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=_BF16)


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
