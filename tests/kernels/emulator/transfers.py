"""Loads, stores and asynchronous copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.kernels.emulator import bulk
from tests.kernels.emulator.arithmetic import DTYPES, LANES, to_bits
from tests.kernels.emulator.memory import Access, Fault, Memory
from tests.kernels.emulator.program import Instruction, listed

if TYPE_CHECKING:
    from tests.kernels.emulator.warp import Warp


def _ld(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    space, kind = instruction.parts[1], instruction.parts[-1]
    target, source = instruction.operands
    dtype, registers = np.dtype(DTYPES[kind]), listed(target)
    if space == "param":
        bits = np.full(LANES, warp.around.parameters[source.strip("[]")], np.uint64)
        data = bits.view(np.uint8).reshape(LANES, 8)
    else:
        size = dtype.itemsize * len(registers)
        data = np.zeros((LANES, size), np.uint8)
        if mask.any():
            addresses, who = warp.address(source)[mask], warp.access(instruction)
            data[mask] = _memory(warp, space, addresses, who).read(addresses, size, who)
    for place, register in enumerate(registers):
        piece = data[:, place * dtype.itemsize : (place + 1) * dtype.itemsize]
        values = np.ascontiguousarray(piece).view(dtype)[:, 0]
        warp.put(register, to_bits(values.astype(np.int64) if kind.startswith("s") else values), mask)


def _st(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    target, source = instruction.operands
    size = np.dtype(DTYPES[instruction.parts[-1]]).itemsize
    if mask.any():
        data = np.concatenate([_bytes(warp.bits(register), size) for register in listed(source)], axis=1)
        addresses, who = warp.address(target)[mask], warp.access(instruction)
        _memory(warp, instruction.parts[1], addresses, who).write(addresses, data[mask], who)


def _cp(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    if "bulk" in instruction.parts:
        bulk.copy(warp, instruction, mask)
        return
    if warp.copies.close_or_wait(instruction):
        return
    target, source, count = instruction.operands[:3]
    size, who = int(count, 0), warp.access(instruction)
    # Either all bytes are copied, or none and zeros are written.
    given = warp.value(instruction.operands[3], "u32") if len(instruction.operands) > 3 else np.full(LANES, size)
    if (mask & (given != 0) & (given != size)).any():
        raise Fault(f"not known here: {instruction.text}")
    wanted = mask & (given == size)
    data = np.zeros((LANES, size), np.uint8)
    if wanted.any():
        addresses = warp.address(source)[wanted]
        data[wanted] = warp.around.memory.of(addresses, who).read(addresses, size, who)
    if not mask.any():
        return
    places = warp.address(target)[mask]
    # The copy is in flight from here on, and others must not access its bytes.
    warp.around.shared.claim(warp.around.shared.places(places, size, who), who)

    def arrive() -> None:
        warp.around.shared.write(places, data[mask], warp.access(instruction))

    if warp.around.random.random() < 0.5:
        arrive()
    else:
        warp.copies.begin(arrive)


def _memory(warp: Warp, space: str, addresses: np.ndarray, who: Access) -> Memory:
    """The memory of a state space."""
    if space == "shared":
        return warp.around.shared
    if space == "global":
        return warp.around.memory.of(addresses, who)
    raise Fault(f"state space not known here: {who.text}")


def _bytes(bits: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.uint8).reshape(LANES, 8)[:, :size]


INSTRUCTIONS: dict[str, Callable[[Warp, Instruction, np.ndarray], None]] = {"ld": _ld, "st": _st, "cp": _cp}
