"""The emulated GPU finds faults, and computes what PTX specifies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.tritons import DEPRECATIONS, why_not_compiled

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")
if reason := why_not_compiled():
    pytest.skip(reason, allow_module_level=True)

import triton
import triton.language as tl

from headspan_kernels import fused, linear, reference
from headspan_kernels.switches import Cut
from tests import tolerances
from tests.kernels.compiling import hand_launches_on
from tests.kernels.emulator.launch import run
from tests.kernels.emulator.memory import Fault
from tests.tolerances import relative_error

pytestmark = DEPRECATIONS
# Runs of a wrong kernel, at least one of which must be noticed: a random order may happen to be right.
TRIES = 20


@triton.jit
def copy(source, target, offset, step, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + tl.program_id(0) * step + tl.arange(0, BLOCK), tl.load(source + places + offset))


@triton.jit
def sum_from_one(source, target, size, STEP: tl.constexpr):
    tl.store(target + tl.arange(0, STEP), summed(source, size, 1, STEP))


@triton.jit
def sum_from_true(source, target, size, STEP: tl.constexpr):
    tl.store(target + tl.arange(0, STEP), summed(source, size, True, STEP))


@triton.jit
def summed(source, size, FIRST: tl.constexpr, STEP: tl.constexpr):
    total = tl.zeros([STEP], tl.float32)
    for start in range(FIRST, size, STEP):
        total += tl.load(source + start + tl.arange(0, STEP))
    return total


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch, random: torch.Generator) -> Callable[..., None]:
    """Let launches run on the emulator, with their PTX changed by `change`."""
    choices = Random(random.initial_seed())
    torch.manual_seed(random.initial_seed())

    def begin(change: Callable[[str], str] = lambda ptx: ptx) -> None:
        def launched(name: str, binary: Any, arguments: dict[str, Any], grid: Sequence[int]) -> None:
            changed = SimpleNamespace(asm={"ptx": change(binary.asm["ptx"])}, src=binary.src, metadata=binary.metadata)
            run(changed, arguments, grid, choices)

        hand_launches_on(monkeypatch, 90, launched, binaries=False)

    return begin


def without(instruction: str) -> Callable[[str], str]:
    def change(ptx: str) -> str:
        lines = ptx.splitlines()
        kept = [line for line in lines if not line.strip().startswith(instruction)]
        assert len(kept) < len(lines)
        return "\n".join(kept)

    return change


def test_reading_past_the_end_is_a_fault(emulate: Callable[..., None]) -> None:
    emulate()
    source, target = torch.arange(256.0), torch.zeros(256)
    copy[(2,)](source, target, 0, 128, BLOCK=128, enable_fp_fusion=True)
    assert torch.equal(source, target)
    for offset in (-1, 1):
        with pytest.raises(Fault, match=r"out of bounds.*ld\.global"):
            copy[(2,)](source, target, offset, 128, BLOCK=128, enable_fp_fusion=True)


def test_programs_of_a_launch_that_access_the_same_bytes_are_a_fault(emulate: Callable[..., None]) -> None:
    emulate()
    both = torch.arange(384.0)
    copy[(2,)](both, both, 0, 128, BLOCK=128, enable_fp_fusion=True)
    with pytest.raises(Fault, match="another program"):
        copy[(2,)](both, both, 128, 128, BLOCK=128, enable_fp_fusion=True)
    with pytest.raises(Fault, match="writes what another program touched"):
        copy[(2,)](torch.arange(256.0), torch.zeros(128), 0, 0, BLOCK=128, enable_fp_fusion=True)


def test_a_loop_that_starts_at_a_constant_true_starts_at_minus_one_as_on_a_gpu(emulate: Callable[..., None]) -> None:
    emulate()
    source, target = torch.arange(65.0), torch.zeros(16)
    sum_from_one[(1,)](source, target, 65, STEP=16, enable_fp_fusion=True)
    assert target.sum() == source[1:].sum()
    with pytest.raises(Fault, match="out of bounds"):
        sum_from_true[(1,)](source, target, 65, STEP=16, enable_fp_fusion=True)


def attention() -> tuple[torch.Tensor, torch.Tensor]:
    """The compiled kernel's attention of 70 tokens, and the reference's."""
    qkv = torch.randn(1, 70, 3 * 16).bfloat16()
    return fused.attention_emit(qkv, 1, None, True)[0], reference.attention_emit(qkv, 1, None, True)[0]


def is_wrong(work: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether the emulated kernel's numbers are not the reference's, or it did something that may not be done."""
    try:
        found, wanted = work()
    except Fault:
        return True
    return not relative_error(found.float(), wanted.float()) < 0.1


@pytest.mark.parametrize("instruction", ["bar.sync", "cp.async.wait_group", "wgmma.wait_group"])
def test_a_kernel_that_does_not_wait_is_noticed(emulate: Callable[..., None], instruction: str) -> None:
    emulate()
    found, wanted = attention()
    assert relative_error(found.float(), wanted.float()) < 3 * tolerances.BFLOAT16_ROUNDING
    emulate(without(instruction))
    assert any(is_wrong(attention) for _ in range(TRIES))


def linear_act() -> tuple[torch.Tensor, torch.Tensor]:
    """The compiled kernel's linear map with its activation, two halves of a tile, and the reference's."""
    x, weight = torch.randn(64, 96).bfloat16(), torch.randn(32, 96).bfloat16()
    found = linear.linear_act_cut(Cut(64, 32, 32, 4, 2, 1), x, weight, None, "quick_gelu")
    return found, reference.linear_act(x, weight, None, "quick_gelu")


@pytest.mark.parametrize("instruction", ["@!complete bra", "cp.async.bulk.wait_group.read", "bar.sync"])
def test_a_kernel_that_does_not_wait_for_bulk_copies_is_noticed(emulate: Callable[..., None], instruction: str) -> None:
    emulate()
    found, wanted = linear_act()
    assert relative_error(found.float(), wanted.float()) < 3 * tolerances.BFLOAT16_ROUNDING
    emulate(without(instruction))
    assert any(is_wrong(linear_act) for _ in range(TRIES))


def test_two_values_written_to_one_address_are_a_fault() -> None:
    with pytest.raises(Fault, match="two values to one byte"):
        run_small("mov.b32 %r3, %r1;\n\tst.global.b32 [%rd1], %r3;", torch.zeros(32, dtype=torch.int32))


def test_an_unknown_instruction_is_a_fault(emulate: Callable[..., None]) -> None:
    emulate(lambda ptx: ptx.replace("ld.global", "popc.global"))
    with pytest.raises(Fault, match=r"not known here: .*popc"):
        copy[(1,)](torch.zeros(128), torch.zeros(128), 0, 128, BLOCK=128, enable_fp_fusion=True)


@pytest.mark.parametrize(("store", "load"), [("shared", "shared::cta"), ("shared::cta", "shared")])
def test_both_names_of_shared_memory_in_ptx_are_known(store: str, load: str) -> None:
    data = torch.arange(32, dtype=torch.int32)
    move = f"shl.b32 %r4, %r1, 2;\n\tst.{store}.b32 [%r4], %r2;\n\tld.{load}.b32 %r5, [%r4];"
    run_small(f"{move}\n\tadd.s32 %r3, %r5, 1;", data)
    assert torch.equal(data, torch.arange(1, 33, dtype=torch.int32))


@pytest.mark.parametrize("space", ["local", "shared::cluster", "const"])
def test_an_unknown_state_space_is_a_fault(space: str) -> None:
    with pytest.raises(Fault, match=f"state space not known here: .*{space}"):
        run_small(f"ld.{space}.b32 %r3, [%rd1];", torch.zeros(32, dtype=torch.int32))


PTX = """.visible .entry small(
	.param .u64 small_param_0
)
{{
	ld.param.b64 %rd1, [small_param_0];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
	ld.global.b32 %r2, [%rd3];
	{instruction}
	st.global.b32 [%rd3], %r3;
	ret;
}}
"""
NUMBERS = np.array([*range(-8, 8), *(np.random.default_rng(0).integers(-(2**31), 2**31, 16))], np.int32)
FLOATS = np.concatenate([np.random.default_rng(1).standard_normal(28) * 1e3, [np.nan, np.inf, -0.0, 2.5]]).astype("f4")


def run_small(instruction: str, data: torch.Tensor) -> None:
    """Run one warp on 32 numbers: %r2 is the lane's number, and %r3 replaces it."""
    binary = SimpleNamespace(
        asm={"ptx": PTX.format(instruction=instruction)},
        src=SimpleNamespace(signature={"data": "*i32"}),
        metadata=SimpleNamespace(shared=128, num_warps=1),
    )
    run(binary, {"data": data}, (1,), Random(0))


@pytest.mark.parametrize(
    ("instruction", "numbers", "wanted"),
    [
        ("div.s32 %r3, %r2, 3;", NUMBERS, np.trunc(NUMBERS / 3)),
        ("shr.s32 %r3, %r2, 40;", NUMBERS, NUMBERS >> 31),
        ("shl.b32 %r3, %r2, 32;", NUMBERS, NUMBERS * 0),
        ("bfe.s32 %r3, %r2, 1, 3;", NUMBERS, ((NUMBERS >> 1 & 7) ^ 4) - 4),
        ("shfl.sync.bfly.b32 %r3, %r2, 5, 31, -1;", NUMBERS, NUMBERS[np.arange(32) ^ 5]),
        (
            "mul.wide.s32 %rd4, %r2, -7;\n\tshr.s64 %rd5, %rd4, 32;\n\tcvt.u32.u64 %r3, %rd5;",
            NUMBERS,
            NUMBERS.astype(np.int64) * -7 >> 32,
        ),
        ("mul.hi.s32 %r3, %r2, 1000003;", NUMBERS, NUMBERS.astype(np.int64) * 1000003 >> 32),
        ("cvt.rna.tf32.f32 %r3, %r2;", FLOATS[:28], None),
        ("max.f32 %r3, %r2, 0f3F800000;", FLOATS, np.fmax(FLOATS, 1)),
        ("fma.rn.f32 %r3, %r2, %r2, %r2;", FLOATS, (FLOATS.astype(float) ** 2 + FLOATS).astype("f4")),
        ("cvt.rn.bf16x2.f32 %r3, %r2, 0f00000000;", FLOATS[:28], torch.from_numpy(FLOATS[:28]).bfloat16().float()),
        ("setp.neu.f32 %p1, %r2, %r2;\n\tselp.b32 %r3, 1, 2, %p1;", FLOATS, np.where(np.isnan(FLOATS), 1, 2)),
    ],
)
def test_instructions_compute_what_the_ptx_manual_specifies(instruction: str, numbers: np.ndarray, wanted: Any) -> None:
    data = torch.zeros(32, dtype=torch.int32)
    data[: len(numbers)] = torch.from_numpy(numbers.view(np.int32))
    run_small(instruction, data)
    found = data.numpy()[: len(numbers)]
    if wanted is None:
        # TF32 has ten bits of mantissa.
        error = np.abs(found.view(np.float32) / numbers - 1)
        assert 2**-13 < error.max() <= 2**-11
        assert (found & 0x1FFF == 0).all()
    elif numbers.dtype == np.float32 and "selp" not in instruction:
        np.testing.assert_array_equal(found.view(np.float32), wanted)
    else:
        np.testing.assert_array_equal(found, np.asarray(wanted).astype(np.int32))
