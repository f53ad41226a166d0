"""Tensor-core instructions: matrix fragments in registers, tiles in shared memory, and their products.

Layouts are those of the PTX ISA, sections on `mma`, `ldmatrix`, `stmatrix` and `wgmma` with its matrix descriptors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tests.kernels.emulator.arithmetic import DTYPES, LANES, from_bits, tf32, to_bits
from tests.kernels.emulator.program import Instruction, listed

if TYPE_CHECKING:
    from tests.kernels.emulator.warp import Warp

_LANE = np.arange(LANES)
# A lane's group of four, which is a row or a column, and its index in the group.
_GROUP, _PLACE = _LANE >> 2, _LANE & 3
_NARROW = ("bf16", "f16")
# Bytes after which a swizzled tile's rows repeat, by the descriptor's last bits.
_SWIZZLE_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}


def _mma(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """A warp's product of small matrices: in float64, TF32 or 16 bits."""
    shape = re.fullmatch(r"m(\d+)n8k(\d+)", instruction.parts[3])
    assert shape, instruction.text
    rows, inner, kind = int(shape[1]), int(shape[2]), instruction.parts[7]
    target, *operands = map(listed, instruction.operands)
    left, right, added = ([warp.bits(register) for register in registers] for registers in operands)
    sums = np.zeros((rows, 8))
    places = [(_GROUP + 8 * (place // 2), 2 * _PLACE + place % 2) for place in range(len(target))]
    for where, bits in zip(places, added, strict=True):
        sums[where] = from_bits(bits, instruction.parts[-1])
    product = (_left(left, rows, inner, kind) @ _right(right, inner, kind) + sums).astype(DTYPES[instruction.parts[-1]])
    for where, register in zip(places, target, strict=True):
        warp.put(register, to_bits(product[where]))


def _left(registers: list[np.ndarray], rows: int, inner: int, kind: str) -> np.ndarray:
    """The left matrix `[rows, inner]` from registers; a register holds two 16-bit numbers."""
    a = np.zeros((rows, inner))
    for place, bits in enumerate(registers):
        down, block = _GROUP + 8 * (place % (rows // 8)), place // (rows // 8)
        if kind in _NARROW:
            for half in range(2):
                a[down, 2 * _PLACE + half + 8 * block] = from_bits(bits >> 16 * half, kind)
        else:
            a[down, _PLACE + 4 * block] = _operand(bits, kind)
    return a


def _right(registers: list[np.ndarray], inner: int, kind: str) -> np.ndarray:
    """The right matrix `[inner, 8]` from registers, likewise."""
    b = np.zeros((inner, 8))
    for place, bits in enumerate(registers):
        if kind in _NARROW:
            for half in range(2):
                b[2 * _PLACE + half + 8 * place, _GROUP] = from_bits(bits >> 16 * half, kind)
        else:
            b[_PLACE + 4 * place, _GROUP] = _operand(bits, kind)
    return b


def _ldmatrix(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """Load tiles of 8 × 8 16-bit numbers, one row from the address of each of 8 lanes; two numbers a lane."""
    registers = listed(instruction.operands[0])
    addresses = warp.address(instruction.operands[1])[: 8 * len(registers)]
    tiles = (
        warp.around.shared.read(addresses, 16, warp.access(instruction)).view(np.uint16).reshape(len(registers), 8, 8)
    )
    for register, tile in zip(registers, tiles, strict=True):
        numbers = tile.T if "trans" in instruction.parts else tile
        lower, upper = (numbers[_GROUP, 2 * _PLACE + half].astype(np.uint64) for half in range(2))
        warp.put(register, upper << 16 | lower)


def _stmatrix(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    registers = listed(instruction.operands[1])
    tiles = np.zeros((len(registers), 8, 8), np.uint16)
    for register, tile in zip(registers, tiles, strict=True):
        numbers = tile.T if "trans" in instruction.parts else tile
        for half in range(2):
            numbers[_GROUP, 2 * _PLACE + half] = (warp.bits(register) >> 16 * half & 0xFFFF).astype(np.uint16)
    addresses = warp.address(instruction.operands[0])[: 8 * len(registers)]
    warp.around.shared.write(addresses, tiles.reshape(-1, 8).view(np.uint8), warp.access(instruction))


def _wgmma(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """Compute this warp's 16 of a warp group's 64 rows; the result arrives when it is waited for."""
    if warp.products.close_or_wait(instruction) or "fence" in instruction.parts:
        return
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", instruction.parts[4])
    assert shape
    columns, inner, kind = int(shape[1]), int(shape[2]), instruction.parts[6]
    target, left, right, add, *flags = instruction.operands
    # Negated operands are not supported; the last flags say which operands are transposed.
    assert flags[:2] == ["1", "1"], instruction.text
    in_registers = left.startswith("{")
    transposed = [flag == "1" for flag in flags[2:]]
    right_transposed = bool(transposed) and transposed[-1]
    # Descriptors are read now; matrices, also those in registers, may change until the product has arrived.
    left_bits = [] if in_registers else [warp.bits(left)]
    right_bits, adds = warp.bits(right), bool(warp.bits(add)[0])
    places = [
        (_GROUP + 8 * (place % 4 // 2), 8 * (place // 4) + 2 * _PLACE + place % 2) for place in range(columns // 2)
    ]

    def work() -> None:
        if in_registers:
            a = _left([warp.bits(register) for register in listed(left)], 16, inner, kind)
        else:
            first = 16 * (warp.index % 4)
            a = _tile(warp, left_bits[0], range(first, first + 16), inner, transposed[0], kind, instruction)
        b = _tile(warp, right_bits, range(columns), inner, right_transposed, kind, instruction)
        sums = np.zeros((16, columns))
        for where, register in zip(places, listed(target), strict=True):
            sums[where] = from_bits(warp.bits(register), "f32") if adds else 0
        product = (a @ b.T + sums).astype(np.float32)
        for where, register in zip(places, listed(target), strict=True):
            warp.put(register, to_bits(product[where]))

    warp.products.begin(work)


def _tile(
    warp: Warp, bits: np.ndarray, rows: range, inner: int, transposed: bool, kind: str, instruction: Instruction
) -> np.ndarray:
    """A matrix `[row, inner]` from shared memory, by its descriptor."""
    descriptor = int(bits[0])
    assert (bits == descriptor).all(), instruction.text
    size = 4 if kind == "tf32" else 2
    words, where = _tile_words(descriptor, rows, inner, transposed, size)
    content = warp.around.shared.read(words, 4, warp.access(instruction))
    numbers = content.view(np.uint32 if size == 4 else np.uint16).ravel()[where]
    return _operand(numbers.astype(np.uint64), kind)


@cache
def _tile_words(descriptor: int, rows: range, inner: int, transposed: bool, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct addresses of a matrix's four-byte words, and the index of each number in them."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    swizzle = _SWIZZLE_BYTES[descriptor >> 62]
    row, column = np.array(rows)[:, None], np.arange(inner)[None, :]
    if transposed:
        along, across = size * row, column
    else:
        along, across = size * column, row
    offset = along // swizzle * leading + along % swizzle + across // 8 * stride + across % 8 * swizzle
    places = start + offset
    # The swizzle xors bits 4 to 6 of the address with bits 7 to 9, as many as the width has.
    places ^= (places >> 7 & swizzle // 16 - 1) << 4
    words = np.unique(places & ~3)
    return words, np.searchsorted(words, places & ~3) * (4 // size) + (places & 3) // size


def _operand(bits: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as the tensor cores multiply them."""
    values = from_bits(bits, kind)
    return tf32(values) if kind == "tf32" else values


INSTRUCTIONS: dict[str, Callable[[Warp, Instruction, np.ndarray], None]] = {
    "mma": _mma,
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "wgmma": _wgmma,
}
