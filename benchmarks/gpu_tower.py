"""How exact and how fast is ViT-L/14 at 224 pixels with all contributions on a GPU, beside its peers?

Weights and pixels are random, and no store is written. If open_clip is installed, the weights are those of its model,
which is then a peer; the same tower on PyTorch's ops, heads alone, is always a peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu, gpu_switches
from benchmarks.precision import FLOAT32_ERROR, Exact, marks_met, pytorchs_ops
from benchmarks.random_towers import random_tower
from headspan.model.layers import Linear, Mlp, Norm
from headspan.model.steps import Steps
from headspan.model.tower import PooledRow, Tower
from headspan_kernels import reference, switches

OPEN_CLIP = "open_clip encode_image, bf16"
OPEN_CLIP_COMPILED = f"{OPEN_CLIP}, compiled"
BEFORE = "ours, before what is switched on"
LINEAR_ACT = "ours, linear_act by the kernel"
IN_PRODUCTS = "ours, residual sums in the products"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Images whose contributions are compared with a float64 pass.
COMPARED = 4
# Errors of two passes that differ only in their roundings differ by less (up to 5 % were seen).
MORE_ERROR = 1.2
# Seconds that compiling a peer of 24 layers may take.
COMPILE_SECONDS = 40.0


def accuracy(ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """Contributions of the fused tower in float32 and 16 bits against a float64 pass on PyTorch's ops."""
    pixels = _pixels(COMPARED)
    exact = Exact(random_tower(), pixels)
    found: dict[str, Any] = {"images": len(pixels), "wrong": []}
    for name, dtype in (("fp32", torch.float32), *HALVES.items()):
        found[name] = gpu.or_why_not(lambda dtype=dtype: exact.errors(dtype))  # type: ignore[misc]
        gpu.say(name, found[name])
        if "failed" in found[name]:
            found["failed"] = f"{name}: {found[name]['failed']}"
    if "failed" not in found:
        found["marks_met"] = all(marks_met(found[name]) for name in HALVES)
        if not all(found["fp32"][key] <= FLOAT32_ERROR for key in ("sum_error", "heads_error", "patches_error")):
            found["wrong"].append(f"fp32: {found['fp32']}")
    return found


def speed(ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """Time of a batch with every head and patch emitted, times of its peers, and the share of the bf16 matrix rate.

    The share counts `flops`, the operations that are computed; `tflop_s` counts `nominal_flops`, those of open_clip.
    """
    loaded = gpu.or_why_not(lambda: {"visual": _open_clip()})
    made = loaded if "failed" in loaded else gpu.or_why_not(lambda: {"tower": _to_tower(loaded["visual"])})
    whole = random_tower() if "failed" in made else made["tower"]
    half = whole.to(torch.device(gpu.DEVICE), torch.bfloat16)
    pixels = _pixels(gpu.SIZES.batch).bfloat16()

    def emit() -> PooledRow:
        return _emit(half, pixels)

    def heads_alone() -> PooledRow:
        return half.forward(pixels, range(gpu.SIZES.layers))

    left_out: list[str] = []

    def measured(works: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
        found = {}
        for name, work in works.items():
            if "compiled" in name and left() < COMPILE_SECONDS:
                left_out.append(name)
            else:
                found[name] = gpu.or_why_not(work)
                gpu.say(name, found[name])
        return found

    sums = measured(_residual_sums(whole, pixels))
    # So that “ours” runs on all that this run switches on.
    gpu_switches.use_what_won(sums)
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: _profiled(emit),
        "ours, heads alone": lambda: _timed(heads_alone),
        BEFORE: lambda: _timed(emit, switches.without_entries()),
        LINEAR_ACT: lambda: _timed(emit, _linear_act_by_the_kernel()),
        "ours, as a CUDA graph": lambda: gpu.replayed(emit, 1000),
        "same tower on PyTorch's ops, heads alone": lambda: _timed(heads_alone, pytorchs_ops()),
        OPEN_CLIP: lambda: _peer(loaded, pixels, compiled=False),
        OPEN_CLIP_COMPILED: lambda: _peer(loaded, pixels, compiled=True),
        "ours, norms and MLPs compiled by PyTorch": lambda: _timed(emit, _compiled_mlps(half)),
    }
    missing = {"ours, with open_clip's weights": made} if "failed" in made else {}
    rows = {**missing, **measured(works), **sums}
    counts = {"batch": gpu.SIZES.batch, "flops": flops_done(), "nominal_flops": flops()}
    if "failed" in rows["ours"]:
        return {**counts, "rows": rows, "left_out": left_out, "failed": f"ours: {rows['ours']['failed']}"}
    rate = gpu.SIZES.batch / rows["ours"]["ms"] * 1e3
    ceiling, compiled = ceilings.get("bf16_tflop_s"), rows.get(OPEN_CLIP_COMPILED, {}).get("ms")
    return {
        **counts,
        "rows": rows,
        "left_out": left_out,
        "images_a_second": round(rate),
        "tflop_s": round(flops() * rate / 1e12, 1),
        "share_of_bf16": None if ceiling is None else round(flops_done() * rate / 1e12 / ceiling, 3),
        "times_open_clip_compiled": None if compiled is None else round(compiled / rows["ours"]["ms"], 3),
    }


def flops(size: gpu.Sizes | None = None) -> int:
    """Floating-point operations of encoding one image, every row of every block; a product and its sum count as two."""
    size = size or gpu.SIZES
    linear = size.tokens * size.width * (3 * size.width + size.width + 8 * size.width)
    attention = 2 * size.tokens * size.tokens * size.width
    return 2 * (size.layers * (linear + attention) + (size.tokens - 1) * 3 * size.patch**2 * size.width)


def flops_done(size: gpu.Sizes | None = None) -> int:
    """The operations that headspan computes: in the last block, keys and values of every row, the rest of one row."""
    size = size or gpu.SIZES
    query_output_mlp = size.width * (size.width + size.width + 8 * size.width)
    attention = 2 * size.tokens * size.width
    return flops(size) - 2 * (size.tokens - 1) * (query_output_mlp + attention)


def _pixels(images: int) -> Tensor:
    return torch.randn(images, 3, gpu.SIZES.pixels, gpu.SIZES.pixels, device=gpu.DEVICE)


def _emit(tower: Tower, pixels: Tensor) -> PooledRow:
    return tower.forward(pixels, range(gpu.SIZES.layers), True, patches_dtype=torch.float16)


@contextmanager
def _compiled_mlps(tower: Tower) -> Iterator[None]:
    """Within it, torch.compile compiles what is between attention and the second linear map of an MLP."""

    @torch.compile
    def compiled(x: Tensor, added: Tensor, norm: Norm, expand: Linear) -> tuple[Tensor, Tensor]:
        normed = reference.add_layer_norm(x, added, *norm)
        return normed.rows, F.gelu(F.linear(normed.normed, *expand))

    def hidden(self: Steps, mlp: Mlp, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mlp.norm is not None
        assert added is not None
        return compiled(x, added, mlp.norm, mlp.fc1)

    plain = Tower.hidden
    Tower.hidden = hidden  # type: ignore[method-assign]
    try:
        with _sums_in_products(tower, False):
            yield
    finally:
        Tower.hidden = plain  # type: ignore[method-assign]


@contextmanager
def _linear_act_by_the_kernel() -> Iterator[None]:
    """Within it, the kernel computes the MLPs' first linear maps, whether or not it is in use."""
    # Here, since Triton's wheels exist for Linux only.
    from headspan_kernels.linear import candidates

    width = gpu.SIZES.width
    key = (switches.capability(torch.device(gpu.DEVICE)), "bfloat16", "gelu", False, width, 4 * width)
    with switches.restored():
        switches.LINEAR_ACT.setdefault(key, candidates()[0])
        yield


@contextmanager
def _sums_in_products(tower: Tower, on: bool) -> Iterator[None]:
    """Within it, the products of towers of this shape add to the residual stream, or are written apart."""
    with switches.restored():
        switches.switch("SUMS_IN_PRODUCTS", switches.tower_key(tower.projection.device, *tower.switch_key), on)
        yield


def _residual_sums(whole: Tower, pixels: Tensor) -> dict[str, Callable[[], dict[str, Any]]]:
    """The tower in both 16-bit types with the residual sums apart, and in the products if that is as exact."""

    @cache
    def exact() -> Exact:
        return Exact(random_tower(), _pixels(COMPARED))

    def time(tower: Tower, on: bool) -> dict[str, float]:
        given = pixels.to(tower.dtype)
        return _timed(lambda: _emit(tower, given), _sums_in_products(tower, on))

    def errors(tower: Tower, on: bool) -> dict[str, float]:
        with _sums_in_products(tower, on):
            return exact().errors(tower.dtype)

    def apart(dtype: torch.dtype) -> dict[str, Any]:
        return time(whole.to(torch.device(gpu.DEVICE), dtype), False)

    def in_products(dtype: torch.dtype, plain: str) -> dict[str, Any]:
        tower = whole.to(torch.device(gpu.DEVICE), dtype)
        took, before, after = time(tower, True), errors(tower, False), errors(tower, True)
        found = {
            **took,
            "errors_apart": before,
            "errors": after,
            **gpu_switches.decides("SUMS_IN_PRODUCTS", tower, plain),
        }
        worse = [name for name in before if name != "cosine" and not after[name] <= MORE_ERROR * before[name]]
        return {**found, "less_exact": ", ".join(worse)} if worse else found

    works: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, dtype in HALVES.items():
        plain = f"ours, residual sums apart, {name}"
        works[plain] = lambda dtype=dtype: apart(dtype)  # type: ignore[misc]
        works[f"{IN_PRODUCTS}, {name}"] = lambda dtype=dtype, plain=plain: in_products(dtype, plain)  # type: ignore[misc]
    return works


def _timed(work: Callable[[], object], within: AbstractContextManager[None] | None = None) -> dict[str, float]:
    with within or nullcontext():
        return gpu.milliseconds(work, 1000)


def _profiled(work: Callable[[], object]) -> dict[str, Any]:
    """The time, the peak memory, and the time by kernel."""
    torch.cuda.reset_peak_memory_stats()
    took = gpu.milliseconds(work, 1000)
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return {**took, "peak_gb": peak, "kernels": gpu.or_why_not(lambda: gpu.kernels(work))}


def _open_clip() -> Any:
    """open_clip's ViT-L-14 image tower with random weights."""
    import open_clip

    return open_clip.create_model("ViT-L-14", pretrained=None).visual


def _peer(loaded: dict[str, Any], pixels: Tensor, compiled: bool) -> dict[str, Any]:
    """open_clip's tower with weights in bf16, which is faster than autocast: that casts the weights in every pass."""
    if "failed" in loaded:
        return loaded
    visual = loaded["visual"].to(gpu.DEVICE).bfloat16().eval()
    work = torch.compile(visual) if compiled else visual
    with torch.inference_mode():
        return _profiled(lambda: work(pixels))


def _to_tower(visual: Any) -> Tower:
    from headspan.model.convert import to_tower

    return to_tower(visual, "ViT-L-14").to(torch.device(gpu.DEVICE), torch.float32)
