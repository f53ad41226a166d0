"""ViT-L/14 at 224 pixels with all contributions, on a GPU: how exact, and how fast beside its peers.

Random weights, random pixels, nothing of a store. Where open_clip is installed the weights are those of one of its
models, which is a peer; the same tower on PyTorch's ops, heads alone, is a peer everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu
from headspan.model import description
from headspan.model.layers import Block, Convolution, Linear, Mlp, Norm
from headspan.model.tower import PooledRow, Tower
from headspan_kernels import reference

# The marks for bf16: sum of contributions against the exact embedding.
SUM_ERROR, COSINE = 1e-2, 0.9999
# float32 against the float64 pass: 24 layers of roundings make some 1e-5; TF32, which errs by 1e-3, would show.
FLOAT32_ERROR = 1e-4
# Seconds that compiling a peer of 24 layers may take.
COMPILE_SECONDS = 100.0


def accuracy(ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Contributions of the fused tower in float32 and bf16 against a float64 pass on PyTorch's ops."""
    exact = random_tower()
    pixels = _pixels(4)
    with _pytorchs_ops():
        wanted = _emit(_double(exact), pixels.double(), torch.float32, with_terms=True)
    embedding = _embedding(wanted.state.double(), wanted, exact)
    found: dict[str, Any] = {"images": len(pixels), "wrong": []}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        row = _emit(exact.to(torch.device(gpu.DEVICE), dtype), pixels.to(dtype), torch.float32, with_terms=True)
        total = _embedding(_sum_of_terms(row, exact), row, exact)
        assert row.patches is not None
        assert wanted.patches is not None
        found[name] = {
            "sum_error": _error(total, embedding),
            "cosine": float(torch.cosine_similarity(total, embedding).min()),
            "heads_error": _error(row.heads, wanted.heads),
            "patches_error": _error(row.patches, wanted.patches),
        }
    found["marks_met"] = bool(found["bf16"]["sum_error"] <= SUM_ERROR and found["bf16"]["cosine"] >= COSINE)
    if not max(found["fp32"][key] for key in ("sum_error", "heads_error", "patches_error")) <= FLOAT32_ERROR:
        found["wrong"].append("fp32")
    return found


def speed(ceilings: dict[str, float], left: Callable[[], float]) -> dict[str, Any]:
    """Time of a batch with every head and patch emitted, of its peers, and the share of the bf16 matrix rate."""
    visual = _open_clip()
    whole = random_tower() if visual is None else _to_tower(visual)
    half = whole.to(torch.device(gpu.DEVICE), torch.bfloat16)
    pixels = _pixels(gpu.SIZES.batch).bfloat16()
    torch.cuda.reset_peak_memory_stats()
    ours = gpu.milliseconds(lambda: _emit(half, pixels, torch.float16), 2000)
    peak_bytes = torch.cuda.max_memory_allocated()
    rate = flops() * gpu.SIZES.batch / ours["ms"] / 1e9
    rows: dict[str, Any] = {"ours": ours}
    rows["ours, heads alone"] = gpu.milliseconds(lambda: half.forward(pixels, range(gpu.SIZES.layers)), 1000)
    rows["ours, as a CUDA graph"] = gpu.or_why_not(lambda: _graphed(half, pixels))
    with _compiled_mlps():
        rows["ours, norms and MLPs compiled by PyTorch"] = gpu.or_why_not(
            lambda: gpu.milliseconds(lambda: _emit(half, pixels, torch.float16), 1000)
        )
    with _pytorchs_ops():
        rows["same tower on PyTorch's ops, heads alone"] = gpu.milliseconds(
            lambda: half.forward(pixels, range(gpu.SIZES.layers)), 1000
        )
    peers: dict[str, Callable[[Tensor], Tensor]] = {}
    if visual is not None:
        # Weights and all in bf16: faster than autocast, which casts the weights in every pass.
        visual = visual.cuda().bfloat16().eval()
        peers["open_clip encode_image, bf16"] = visual
        peers["open_clip encode_image, bf16, compiled"] = torch.compile(visual)
    left_out = []
    for name, work in peers.items():
        if "compiled" in name and left() < COMPILE_SECONDS:
            left_out.append(name)
        else:
            with torch.inference_mode():
                rows[name] = gpu.or_why_not(lambda work=work: gpu.milliseconds(lambda: work(pixels), 1000))  # type: ignore[misc]
    compiled = rows.get("open_clip encode_image, bf16, compiled", {}).get("ms")
    return {
        "batch": gpu.SIZES.batch,
        "rows": rows,
        "images_a_second": round(gpu.SIZES.batch / ours["ms"] * 1e3),
        "tflop_s": round(rate, 1),
        "share_of_bf16": round(rate / ceilings["bf16_tflop_s"], 3),
        "times_open_clip_compiled": None if compiled is None else round(compiled / ours["ms"], 3),
        "left_out": left_out,
        "peak_gb": round(peak_bytes / 1e9, 1),
    }


def flops(size: gpu.Sizes | None = None) -> int:
    """Floating-point operations of one image's encoding, a product and a sum apart, every row of every block."""
    size = size or gpu.SIZES
    linear = size.tokens * size.width * (3 * size.width + size.width + 8 * size.width)
    attention = 2 * size.tokens * size.tokens * size.width
    return 2 * (size.layers * (linear + attention) + (size.tokens - 1) * 3 * size.patch**2 * size.width)


def random_tower() -> Tower:
    """ViT-L/14 with random weights, float32, on the GPU; every parameter is off its trivial value."""

    def draw(*shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
        return torch.randn(shape, device=gpu.DEVICE) * spread + centre

    return tower_of(gpu.SIZES, draw)


def tower_of(size: gpu.Sizes, draw: Callable[..., Tensor], mean_pooled: bool = False) -> Tower:
    """A tower of `size` with parameters from `draw(*shape, spread=…, centre=…)`; its final norm every row's, or one."""
    width = size.width

    def norm() -> Norm:
        return Norm(draw(width, spread=0.2, centre=1.0), draw(width, spread=0.1), 1e-5)

    def linear(out: int, columns: int) -> Linear:
        return Linear(draw(out, columns, spread=columns**-0.5), draw(out, spread=0.1))

    def block() -> Block:
        return Block(
            norm_attention=norm(),
            qkv=linear(3 * width, width),
            bias=None,
            norm_mixed=None,
            output=linear(width, width),
            norm_output=None,
            mlp=Mlp(
                norm=norm(),
                expand=linear(4 * width, width),
                activation="gelu",
                gated=False,
                norm_hidden=None,
                shrink=linear(width, 4 * width),
                norm_output=None,
            ),
        )

    patch = draw(width, 3, size.patch, size.patch, spread=(3 * size.patch**2) ** -0.5)
    return Tower(
        stem=(Convolution(patch.flatten(1), None, (size.patch, size.patch), (size.patch, size.patch), None),),
        prefix=draw(1, width),
        positions=draw(size.tokens, width, spread=0.3),
        rotary=None,
        norm_before=norm(),
        blocks=tuple(block() for _ in range(size.layers)),
        pool=None,
        norm_after=norm(),
        projection=draw(width, size.joint, spread=width**-0.5),
        projection_bias=draw(size.joint, spread=0.1),
        trunk_heads=size.heads,
        mean_pooled=mean_pooled,
        norm_rows=mean_pooled,
    )


def _pixels(images: int) -> Tensor:
    return torch.randn(images, 3, gpu.SIZES.pixels, gpu.SIZES.pixels, device=gpu.DEVICE)


def _emit(tower: Tower, pixels: Tensor, patches_dtype: torch.dtype, with_terms: bool = False) -> PooledRow:
    return tower.forward(pixels, range(gpu.SIZES.layers), True, with_terms, patches_dtype=patches_dtype)


@contextmanager
def _pytorchs_ops() -> Iterator[None]:
    """The tower on the reference within."""
    fused, description.ops = description.ops, lambda device: reference
    try:
        yield
    finally:
        description.ops = fused


@contextmanager
def _compiled_mlps() -> Iterator[None]:
    """The tower with everything between attention and the next block left to torch.compile, within."""

    @torch.compile
    def compiled(x: Tensor, added: Tensor, norm: Norm, expand: Linear, shrink: Linear) -> tuple[Tensor, Tensor]:
        normed = reference.add_layer_norm(x, added, *norm)
        return normed.rows, F.linear(F.gelu(F.linear(normed.normed, *expand)), *shrink)

    def mlp(self: Tower, mlp: Mlp, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mlp.norm is not None
        assert added is not None
        return compiled(x, added, mlp.norm, mlp.expand, mlp.shrink)

    plain = Tower._mlp
    Tower._mlp = mlp  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tower._mlp = plain  # type: ignore[method-assign]


def _double(tower: Tower) -> Tower:
    """All of it in float64, the final norm and the projection too."""
    moved = tower.to(torch.device(gpu.DEVICE), torch.float64)
    assert tower.norm_after is not None
    weight, bias, eps = tower.norm_after
    return replace(
        moved,
        norm_after=Norm(weight.double(), bias.double(), eps),
        projection=tower.projection.double(),
        projection_bias=tower.projection_bias.double(),
    )


def _sum_of_terms(row: PooledRow, tower: Tower) -> Tensor:
    """The pooled row as the sum of what is emitted, float64, by the exact weights."""
    assert row.terms is not None
    total = row.terms.double().sum(dim=1)
    for layer, block in enumerate(tower.blocks):
        mixes = row.heads[:, layer].flatten(1).double()
        total += mixes @ block.output.weight.double().T + block.output.bias.double()
    return total


def _embedding(state: Tensor, row: PooledRow, tower: Tower) -> Tensor:
    """A pooled row through the final norm, with the run's own spread, and the projection."""
    assert tower.norm_after is not None
    weight, bias, _ = tower.norm_after
    mean = state.mean(dim=1, keepdim=True)
    normed = (state - mean) / row.std.double()[:, None] * weight.double() + bias.double()
    return normed @ tower.projection.double() + tower.projection_bias.double()


def _error(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖; NaN is an error that no mark forgives."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def _graphed(tower: Tower, pixels: Tensor) -> dict[str, float]:
    """The same pass captured once and replayed: what launching costs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _emit(tower, pixels, torch.float16)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _emit(tower, pixels, torch.float16)
    return gpu.milliseconds(graph.replay, 1000)


def _open_clip() -> Any:
    """open_clip's ViT-L-14 image tower with random weights, or None where open_clip is not installed."""
    if find_spec("open_clip") is None:
        return None
    import open_clip

    return open_clip.create_model("ViT-L-14", pretrained=None).visual


def _to_tower(visual: Any) -> Tower:
    from headspan.model.convert import to_tower

    return to_tower(visual, "ViT-L-14").to(torch.device(gpu.DEVICE), torch.float32)
