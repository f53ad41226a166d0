"""Every Triton kernel compiles for sm_80, sm_90 and sm_100 without a GPU, and fits the GPU.

Towers run on the meta device, at real sizes without memory; each launch is compiled and its binary kept. Registers,
stack, local and shared memory, and instructions are read from the binary. A program must fit the shared memory of its
GPU and spill no registers, and on sm_90 it must multiply matrices on tensor cores.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.gpu import Sizes
from benchmarks.random_towers import tower_of
from headspan.model.tower import Tower
from tests.kernels.tritons import DEPRECATIONS, why_not_compiled

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")
if reason := why_not_compiled():
    pytest.skip(reason, allow_module_level=True)

from triton import knobs

from benchmarks import gpu_cases, gpu_ops
from headspan_kernels import fused, linear, moments, reference
from headspan_kernels.attention import attention_emit_cut, candidates
from headspan_kernels.filters import SUPPORT
from headspan_kernels.switches import Blocks, Cut
from headspan_kernels.whole_heads import shared_bytes
from tests.kernels.compiling import hand_launches_on

pytestmark = DEPRECATIONS
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Bytes of shared memory that one program may take (CUDA C++ programming guide, technical specifications).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
# The tensor-core instructions on sm_90: of a warp group, or in float64 of a warp.
TENSOR_CORES = {
    **dict.fromkeys(("attend", "attend_heads", "attend_row", "pool_patches", "multiply"), "HGMMA"),
    "accumulate": "DMMA",
}


class Resources(NamedTuple):
    """Registers, and bytes of stack and local memory, for each thread; bytes of shared memory for a program."""

    registers: int
    stack: int
    local: int
    shared: int


@dataclass(frozen=True)
class Launcher:
    """Binaries compiled for an architecture, by kernel name."""

    architecture: int
    made: dict[str, list[Any]]


@pytest.fixture
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    launcher = Launcher(request.param, {})
    hand_launches_on(
        monkeypatch, launcher.architecture, lambda name, binary, *_: launcher.made.setdefault(name, []).append(binary)
    )
    monkeypatch.setattr("headspan.model.description.ops", lambda device: fused)
    return launcher


def resources(binary: Any, folder: Path) -> Resources:
    """The resources that a binary needs, read from it."""
    text = dumped(binary, "--dump-resource-usage", folder)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    registers, stack, static, local = map(int, found.groups())
    return Resources(registers, stack, local, static + binary.metadata.shared)


def dumped(binary: Any, what: str, folder: Path) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, what, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check(launcher: Launcher, folder: Path) -> dict[str, int]:
    """Look at every compiled kernel; returns the most registers that each takes."""
    assert launcher.made
    registers: dict[str, int] = {}
    for name, binaries in launcher.made.items():
        for binary in {id(binary): binary for binary in binaries}.values():
            found = resources(binary, folder)
            print(f"sm_{launcher.architecture} {name}: {found}")
            registers[name] = max(found.registers, registers.get(name, 0))
            assert 0 < found.registers <= 255
            assert found.shared <= SHARED_LIMIT[launcher.architecture], f"{name}: {found}"
            assert (found.stack, found.local) == (0, 0), f"{name} spills: {found}"
            if launcher.architecture == 90 and name in TENSOR_CORES:
                in_float32 = binary.src.signature.get("qkv") == "*fp32"
                wanted = "HG?MMA" if in_float32 else TENSOR_CORES[name]
                assert re.search(wanted, dumped(binary, "--dump-sass", folder)), name
    return registers


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def tower(heads: int, head_dim: int, dtype: torch.dtype, mean_pooled: bool) -> Tower:
    """The first and the last block of a tower at 224 pixels in patches of 14; weights take no memory."""
    size = Sizes(layers=2, heads=heads, head_dim=head_dim)
    return tower_of(size, lambda *shape, **_: meta(*shape), mean_pooled).to(torch.device("meta"), dtype)


def run_tower(heads: int, head_dim: int, dtype: torch.dtype, mean_pooled: bool) -> None:
    whole = tower(heads, head_dim, dtype, mean_pooled)
    whole.forward(meta(3, 3, 224, 224), (0, 1), with_patches=True, patches_dtype=torch.float16)


def attention(cut: Blocks, tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    """With a class token, whose `α v` is stored as runs do: in float32, the same cuts may spill a few bytes."""
    patches = meta(3, 16, tokens, head_dim, dtype=FP16)
    attention_emit_cut(cut, meta(3, tokens, 3 * 16 * head_dim, dtype=dtype), 16, None, True, patches)


def add_moments(head_dim: int, capability: tuple[int, int] = (9, 0), cuts: int = 1) -> None:
    size, double = head_dim + 3, torch.float64
    scale, mean_and_bias = meta(3, dtype=double), meta(3, 3, dtype=double)
    heads, total, gram = (
        meta(3, 4, 16, head_dim),
        meta(4, 16, size, dtype=double),
        meta(4, 16, size, size, dtype=double),
    )
    # Tiles whose registers are limited may spill a few bytes under some Tritons.
    tiles = [cut for cut in moments.candidates(head_dim, capability) if cut.registers == 255]
    for cut in tiles[:cuts]:
        moments.add_moments_cut(cut, heads, scale, mean_and_bias, total, gram)


def linear_act(cut: Cut, gated: bool, dtype: torch.dtype = BF16) -> None:
    weight = meta(2048 if gated else 1024, 1024, dtype=dtype)
    linear.linear_act_cut(
        cut, meta(3, 257, 1024, dtype=dtype), weight, meta(len(weight), dtype=dtype), "silu" if gated else "gelu", gated
    )


def shifted_norm(dtype: torch.dtype, width: int = 1024) -> None:
    weight, shift = meta(width, dtype=dtype), meta(width)
    fused.layer_norm(meta(3, 257, width, dtype=dtype), weight, weight, 1e-5, shift)


def preprocess() -> None:
    images = [meta(3, 480, 640, dtype=torch.uint8), meta(1, 1, 2, dtype=torch.uint8)]
    placed = [reference.Placed(224, 298, 0, 37), reference.Placed(224, 224, 0, 0, rows_first=True)]
    for mode in SUPPORT:
        fused.preprocess(images, placed, (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), BF16, mode)


# ViT-L has heads of 64, ViT-H of 80, ViT-g of 88, ViT-bigG of 104; EVA-8B of 128.
# Those marked full_size differ from others in a constant; run them when block sizes or Tritons change.
slow, by_hand = pytest.mark.slow, pytest.mark.full_size
TOWERS = [
    (90, 64, BF16, False),
    (80, 64, BF16, False),
    (100, 64, BF16, False),
    pytest.param(90, 64, FP16, False, marks=slow),
    pytest.param(90, 64, FP32, False, marks=slow),
    pytest.param(90, 64, BF16, True, marks=slow),
    # Heads that are padded, as 80 and 104 are.
    pytest.param(90, 88, BF16, True, marks=slow),
    *(pytest.param(90, size, FP16, False, marks=by_hand) for size in (80, 88, 104, 128)),
    *(pytest.param(90, 64, dtype, True, marks=by_hand) for dtype in (FP16, FP32)),
    pytest.param(90, 88, BF16, False, marks=by_hand),
    *(pytest.param(90, size, BF16, pooled, marks=by_hand) for size in (80, 104, 128) for pooled in (False, True)),
    *(pytest.param(architecture, 64, FP32, False, marks=by_hand) for architecture in (80, 100)),
    *(pytest.param(architecture, 64, BF16, True, marks=by_hand) for architecture in (80, 100)),
    *(pytest.param(architecture, 128, BF16, False, marks=by_hand) for architecture in (80, 100)),
]


@pytest.mark.parametrize(("launcher", "head_dim", "dtype", "mean_pooled"), TOWERS, indirect=["launcher"])
def test_the_kernels_of_a_tower_fit_the_gpu(
    launcher: Launcher, head_dim: int, dtype: torch.dtype, mean_pooled: bool, tmp_path: Path
) -> None:
    run_tower(16, head_dim, dtype, mean_pooled)
    wanted = {"normalise_rows", "attend", "pool_patches"} if mean_pooled else {"normalise_rows", "attend", "attend_row"}
    assert set(launcher.made) == wanted
    found = check(launcher, tmp_path)
    if (launcher.architecture, head_dim, dtype) == (90, 64, BF16):
        # ViT-L/14 on an H100, whose multiprocessors have 65,536 registers: 16 warps of 32 threads run at once.
        assert found["attend"] <= 65536 // (16 * 32)


@pytest.mark.parametrize("launcher", [90], indirect=True)
@pytest.mark.parametrize("dtype", [BF16, pytest.param(FP16, marks=pytest.mark.full_size)])
def test_two_programs_that_keep_all_keys_fit_a_multiprocessor(
    launcher: Launcher, dtype: torch.dtype, tmp_path: Path
) -> None:
    """ViT-L/14 on an H100, whose multiprocessors have 65,536 registers and 228 kB of shared memory, 1 kB a program."""
    cut = next(cut for cut in candidates(64, dtype, 257) if cut.whole)
    attention(cut, 257, 64, dtype)
    check(launcher, tmp_path)
    found = resources(launcher.made["attend_heads"][0], tmp_path)
    assert 2 * 32 * cut.warps * found.registers <= 65536
    assert 2 * (found.shared + 1024) <= 228 << 10
    # What `fits` reckons with, and reductions.
    assert found.shared <= shared_bytes(257, 64, cut.rows, cut.keys, cut.stages) + 2048


@pytest.mark.parametrize(
    ("launcher", "work"),
    [
        (90, lambda: add_moments(64)),
        (90, preprocess),
        (90, lambda: shifted_norm(BF16)),
        (90, lambda: shifted_norm(FP16)),
        (90, lambda: linear_act(linear.candidates()[0], False)),
        (90, lambda: linear_act(linear.candidates(gated=True)[0], True, FP16)),
        (100, lambda: add_moments(64, (10, 0))),
        pytest.param(90, lambda: add_moments(104), marks=by_hand),
        pytest.param(80, lambda: add_moments(64), marks=by_hand),
    ],
    indirect=["launcher"],
)
def test_the_kernels_beside_the_tower_fit_the_gpu(launcher: Launcher, work: Callable[[], None], tmp_path: Path) -> None:
    work()
    check(launcher, tmp_path)


@pytest.mark.full_size
@pytest.mark.parametrize("launcher", [90], indirect=True)
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("gated", [False, True])
def test_every_tile_of_a_linear_map_that_a_benchmark_tries_fits_the_gpu(
    launcher: Launcher, gated: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    for cut in linear.candidates(gated):
        linear_act(cut, gated, dtype)
    check(launcher, tmp_path)


@pytest.mark.full_size
@pytest.mark.parametrize("launcher", [90], indirect=True)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tokens", [50, 197, 257, 577])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_block_size_that_a_benchmark_tries_fits_the_gpu(
    launcher: Launcher, head_dim: int, tokens: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    for cut in candidates(head_dim, dtype, tokens)[0 if tokens > 257 else 1 :]:
        if cut.whole or tokens == 257:
            attention(cut, tokens, head_dim, dtype)
    if dtype == BF16 and tokens == 257:
        add_moments(head_dim, cuts=7)
    check(launcher, tmp_path)


def test_the_benchmark_compiles_in_parallel_what_it_launches_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cases at toy sizes; one of them fails, and the others are compiled."""
    launched: list[str] = []
    hand_launches_on(monkeypatch, 90, lambda name, *_: launched.append(name), binaries=False)
    heard: list[bool] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda cache_hit, **_: heard.append(cache_hit))
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    x, weight = meta(2, 5, 24, dtype=BF16), meta(24, dtype=BF16)
    norm = gpu_cases.Case("norm", "layer_norm", (x, weight, weight, 1e-5), 0, 0)
    sums = gpu_cases.Case("sums", "add_layer_norm", (x, x, weight, weight, 1e-5), 0, 0)
    wrong = gpu_cases.Case("wrong", "layer_norm", (x, weight), 0, 0)
    found = gpu_ops.compile_ahead([norm, wrong, sums], threads=2)
    assert found["launches"] == len(launched) == 2
    assert heard == [False, False]
    for case in (norm, sums):
        case.ways[""](*case.arguments)
    assert len(launched) == 4
    assert len(heard) == 2
