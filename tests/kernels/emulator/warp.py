"""A warp: 32 lanes that run a program in step, with registers, addresses and work in flight."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from random import Random
from typing import NamedTuple

import numpy as np

from tests.kernels.emulator import bulk, matrices, scalars, transfers
from tests.kernels.emulator.arithmetic import LANES, from_bits
from tests.kernels.emulator.memory import Access, Fault, GlobalMemory, Memory
from tests.kernels.emulator.program import Instruction, Program

INSTRUCTIONS = {**scalars.INSTRUCTIONS, **transfers.INSTRUCTIONS, **matrices.INSTRUCTIONS, **bulk.INSTRUCTIONS}
_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_FLOAT = re.compile(r"0[dDfF]([0-9A-Fa-f]+)$")
# Instructions that need all lanes.
_OF_WHOLE_WARPS = frozenset({"shfl", "elect", *matrices.INSTRUCTIONS})
# The mask of an instruction without a guard.
_EVERY = np.ones(LANES, bool)
# The value of a register before it is written: NaN in every type.
_UNKNOWN = np.full(LANES, (1 << 64) - 1, np.uint64)


class Block:
    """A program of a launch: its number from 1 on, and its stretch between barriers, counted over all programs."""

    def __init__(self, number: int, stretch: int) -> None:
        self.number, self.stretch = number, stretch


class Around(NamedTuple):
    """The memory and tables that all warps of a program use."""

    program: Program
    parameters: dict[str, int]
    # Special registers such as %ctaid.x.
    special: dict[str, int]
    shared: Memory
    memory: GlobalMemory
    block: Block
    random: Random
    # The matrices that bulk copies move tiles of, by the addresses of their parameters, and barriers in shared memory.
    descriptors: dict[int, bulk.Descriptor]
    barriers: dict[int, bulk.Barrier]


class InFlight:
    """Asynchronous work in flight: the open group, and closed groups, which are waited for in order."""

    def __init__(self) -> None:
        self._open: list[Callable[[], None]] = []
        self._closed: list[list[Callable[[], None]]] = []

    def begin(self, work: Callable[[], None]) -> None:
        """Add work to the open group; it is done when it is waited for, and not before."""
        self._open.append(work)

    def close_or_wait(self, instruction: Instruction) -> bool:
        """Execute `commit_group`, or `wait_group N`, which leaves N groups in flight; False for other instructions."""
        if "commit_group" in instruction.parts:
            self._closed.append(self._open)
            self._open = []
        elif "wait_group" in instruction.parts:
            while len(self._closed) > int(instruction.operands[0], 0):
                for work in self._closed.pop(0):
                    work()
        else:
            return False
        return True


class Warp:
    """One warp; `run` yields "barrier" when it waits for the others, and "turn" when another may run first."""

    def __init__(self, index: int, around: Around) -> None:
        self.index, self.around = index, around
        self.copies, self.products, self.stores = InFlight(), InFlight(), InFlight()
        self._registers: dict[str, np.ndarray] = {}
        self._known = {f"%{name}": np.full(LANES, value, np.uint64) for name, value in around.special.items()}
        self._known["%tid.x"] = np.arange(LANES, dtype=np.uint64) + np.uint64(LANES * index)
        self._known |= {
            name: np.full(LANES, value, np.uint64)
            for name, value in around.parameters.items()
            if value in around.descriptors
        }
        # Shared memory starts at address 0.
        self._known["global_smem"] = np.zeros(LANES, np.uint64)

    def run(self) -> Generator[str, None, None]:
        """Run the program to its end."""
        program, place = self.around.program, 0
        while True:
            instruction = program.instructions[place]
            place += 1
            mask, kind = self._mask(instruction.guard), instruction.parts[0]
            if kind in ("ret", "bra"):
                if mask.all():
                    if kind == "ret":
                        return
                    place = program.labels[instruction.operands[0]]
                elif mask.any():
                    raise Fault(f"lanes part: {instruction.text}")
                yield "turn"
            elif kind == "bar":
                # The lanes of a warp are in step, so there is nothing to wait for.
                if instruction.parts[1] != "warp":
                    if instruction.operands != ("0",) or not mask.all():
                        raise Fault(f"not known here: {instruction.text}")
                    yield "barrier"
            elif kind in INSTRUCTIONS:
                if kind in _OF_WHOLE_WARPS and not mask.all():
                    raise Fault(f"lanes part: {instruction.text}")
                INSTRUCTIONS[kind](self, instruction, mask)
                if "global" in instruction.parts:
                    yield "turn"
            elif kind != "fence":
                raise Fault(f"not known here: {instruction.text}")

    def bits(self, operand: str) -> np.ndarray:
        """An operand as 64 bits a lane."""
        found = self._registers.get(operand)
        if found is None:
            found = self._known.get(operand)
        if found is None:
            if operand.startswith("%"):
                raise Fault(f"register {operand} is read before it is written")
            real = _FLOAT.match(operand)
            value = int(real[1], 16) if real else int(operand, 0)
            found = self._known[operand] = np.full(LANES, value & (1 << 64) - 1, np.uint64)
        return found

    def value(self, operand: str, kind: str) -> np.ndarray:
        """An operand as numbers of a type."""
        bits = self.bits(operand)
        return bits.astype(bool) if kind == "pred" else from_bits(bits, kind)

    def put(self, register: str, bits: np.ndarray, mask: np.ndarray = _EVERY) -> None:
        """Set a register in the lanes of `mask`."""
        if mask is not _EVERY and not mask.all():
            bits = np.where(mask, bits, self._registers.get(register, _UNKNOWN))
        self._registers[register] = bits

    def access(self, instruction: Instruction) -> Access:
        """An access by this warp now."""
        block = self.around.block
        return Access(block.number, block.stretch, self.index, instruction.text)

    def address(self, operand: str) -> np.ndarray:
        """`[register + offset]` for each lane."""
        found = _ADDRESS.fullmatch(operand)
        assert found, operand
        return self.bits(found[1]).astype(np.int64) + int(found[2] or "0", 0)

    def _mask(self, guard: str) -> np.ndarray:
        if not guard:
            return _EVERY
        mask = self.bits(guard.lstrip("!")).astype(bool)
        return ~mask if guard.startswith("!") else mask
