"""Instructions on registers: moves, conversions, comparisons, selections, shuffles and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tests.kernels.emulator import arithmetic
from tests.kernels.emulator.arithmetic import DTYPES, LANES, bfloat16_bits, from_bits, to_bits
from tests.kernels.emulator.memory import Fault
from tests.kernels.emulator.program import Instruction, listed

if TYPE_CHECKING:
    from tests.kernels.emulator.warp import Warp


def _arithmetic(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    parts, operands = instruction.parts, instruction.operands
    kind, operation = parts[-1], arithmetic.OPERATIONS[parts[0]]
    form = _form(parts)
    if form == "unknown":
        raise Fault(f"not known here: {instruction.text}")
    if form == "plain":
        result = operation(*[from_bits(warp.bits(operand), kind) for operand in operands[1:]])
        warp.put(operands[0], to_bits(result), mask)
        return
    if kind in ("f16x2", "bf16x2"):
        halves = []
        for low in (0, 16):
            numbers = [from_bits(warp.bits(operand) >> low, kind[:-2]) for operand in operands[1:]]
            halves.append(_rounded(operation(*numbers), kind[:-2]))
        warp.put(operands[0], halves[1] << 16 | halves[0], mask)
        return
    if kind == "pred":
        result = operation(*(warp.value(operand, "pred") for operand in operands[1:]))
        warp.put(operands[0], result.astype(np.uint64), mask)
        return
    # A shift's count has 32 bits, whatever the type.
    kinds = [kind, "u32"] if parts[0] in ("shl", "shr") else [kind] * 3
    numbers = [warp.value(operand, each) for operand, each in zip(operands[1:], kinds, strict=False)]
    if "wide" in parts or "hi" in parts:
        wide = np.dtype(f"{'i' if kind.startswith('s') else 'u'}{2 * numbers[0].dtype.itemsize}")
        product = numbers[0].astype(wide) * numbers[1].astype(wide)
        if "hi" in parts:
            product = (product >> 8 * numbers[0].dtype.itemsize).astype(numbers[0].dtype)
        if parts[0] == "mad":
            product += warp.bits(operands[3]).astype(f"u{product.dtype.itemsize}").view(product.dtype)
        warp.put(operands[0], to_bits(product), mask)
    else:
        result = operation(*numbers).astype(numbers[0].dtype)
        warp.put(operands[0], _rounded(result, kind) if kind == "bf16" else to_bits(result), mask)


def _mov(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    target, source = instruction.operands
    size = 1 if instruction.parts[-1] == "pred" else DTYPES[instruction.parts[-1]](0).itemsize
    if target.startswith("{") or source.startswith("{"):
        # Packed or unpacked, the lowest part first.
        pieces = listed(target if target.startswith("{") else source)
        width = np.uint64(8 * size // len(pieces))
        if target.startswith("{"):
            for place, piece in enumerate(pieces):
                warp.put(piece, warp.bits(source) >> width * place & ((1 << int(width)) - 1), mask)
        else:
            joined = [warp.bits(piece) << width * place for place, piece in enumerate(pieces)]
            warp.put(target, np.bitwise_or.reduce(joined), mask)
    elif instruction.parts[-1] == "pred":
        warp.put(target, (warp.bits(source) != 0).astype(np.uint64), mask)
    else:
        warp.put(target, warp.bits(source) & ((1 << 8 * size) - 1), mask)


def _cvt(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    parts, operands = instruction.parts, instruction.operands
    target, source = parts[-2:]
    between = set(parts[1:-2]) - {"ftz"}
    # Rounding is to the nearest, unless one of these modifiers says otherwise; others are refused.
    if between - {"rn"} and (target, between) not in (("tf32", {"rna"}), ("f32", {"rmi"}), ("u16", {"rzi"})):
        raise Fault(f"not known here: {instruction.text}")
    values = [warp.value(operand, source) for operand in operands[1:]]
    if target in ("f16x2", "bf16x2"):
        # The first operand is the upper half.
        upper, lower = (_rounded(value, target[:-2]) for value in values)
        bits = upper << 16 | lower
    elif target in ("f16", "bf16"):
        bits = _rounded(values[0], target)
    elif target == "tf32":
        # To the nearest, ties away from zero.
        bits = (warp.bits(operands[1]) + 0x1000) & 0xFFFFE000
    else:
        value = values[0]
        if value.dtype.kind == "f" and DTYPES[target](0).dtype.kind != "f":
            value = np.trunc(value) if "rzi" in between else np.rint(value)
            # Outside the type's range, and for NaN, a GPU's result differs from NumPy's.
            limits = np.iinfo(DTYPES[target])
            if not ((value >= limits.min) & (value <= limits.max) | ~mask).all():
                raise Fault(f"not known here, of such a number: {instruction.text}")
        elif "rmi" in between:
            value = np.floor(value)
        bits = to_bits(value.astype(DTYPES[target]))
    warp.put(operands[0], bits, mask)


def _setp(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    (_, comparison, *between, kind), operands = instruction.parts, instruction.operands
    if between or comparison not in arithmetic.COMPARISONS:
        raise Fault(f"not known here: {instruction.text}")
    result = arithmetic.COMPARISONS[comparison](*(warp.value(operand, kind) for operand in operands[1:]))
    warp.put(operands[0], result.astype(np.uint64), mask)


def _selp(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    target, yes, no, chosen = instruction.operands
    warp.put(target, np.where(warp.value(chosen, "pred"), warp.bits(yes), warp.bits(no)), mask)


def _bfe(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    target, source, first, count = instruction.operands
    if instruction.parts[-1] not in ("s32", "u32") or first.startswith("%") or count.startswith("%"):
        raise Fault(f"not known here: {instruction.text}")
    width = int(count, 0)
    field = warp.bits(source) >> int(first, 0) & ((1 << width) - 1)
    if instruction.parts[-1] == "s32":
        sign = np.uint64(1 << width - 1)
        field = to_bits(((field ^ sign).astype(np.int64) - int(sign)).astype(np.int32))
    warp.put(target, field, mask)


def _shfl(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    target, source, other, *whole = instruction.operands
    lanes = np.arange(LANES)
    if whole != ["31", "-1"] or instruction.parts[2] not in ("bfly", "idx"):
        raise Fault(f"not known here: {instruction.text}")
    by = warp.value(other, "s32")
    warp.put(target, warp.bits(source)[lanes ^ by if instruction.parts[2] == "bfly" else by & LANES - 1])


def _cvta(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """A parameter's address in the generic space, which is the same number here."""
    target, source = instruction.operands
    if instruction.parts[1] != "param":
        raise Fault(f"not known here: {instruction.text}")
    warp.put(target, warp.bits(source), mask)


@cache
def _form(parts: tuple[str, ...]) -> str:
    """By its modifiers, whether arithmetic is "plain" (operands and result of one type), "other" or "unknown"."""
    if not set(parts[1:-1]) <= {"lo", "hi", "wide", "rn", "approx", "full", "ftz"}:
        return "unknown"
    plain = parts[0] not in ("shl", "shr") and not {"wide", "hi"} & set(parts)
    return "plain" if plain and parts[-1] in DTYPES else "other"


def _rounded(values: np.ndarray, kind: str) -> np.ndarray:
    return bfloat16_bits(values.astype(np.float32)) if kind == "bf16" else to_bits(values.astype(np.float16))


INSTRUCTIONS: dict[str, Callable[[Warp, Instruction, np.ndarray], None]] = {
    **dict.fromkeys(arithmetic.OPERATIONS, _arithmetic),
    "mov": _mov,
    "cvt": _cvt,
    "setp": _setp,
    "selp": _selp,
    "bfe": _bfe,
    "shfl": _shfl,
    "cvta": _cvta,
}
