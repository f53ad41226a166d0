"""Thirty-two lanes in step: registers, branches, memory and arithmetic of one warp of a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from random import Random
from typing import Any

import numpy as np

from tests.kernels.emulator import arithmetic, matrices
from tests.kernels.emulator.arithmetic import DTYPES, LANES, bfloat16_bits, from_bits, to_bits
from tests.kernels.emulator.memory import Access, Fault, GlobalMemory, Memory
from tests.kernels.emulator.program import Instruction, Program

_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_FLOAT = re.compile(r"0[dDfF]([0-9A-Fa-f]+)$")
# The mask of an instruction without a guard.
_EVERY = np.ones(LANES, bool)


class Warp:
    """One warp; `run` yields "barrier" where it waits for the others, and "turn" where another may go first."""

    def __init__(
        self,
        program: Program,
        parameters: dict[str, int],
        place: tuple[int, dict[str, int]],
        shared: Memory,
        memory: GlobalMemory,
        block: Any,
        random: Random,
    ) -> None:
        self.index, special = place
        self._program, self._parameters = program, parameters
        self._special = {f"%{name}": np.full(LANES, value, np.uint64) for name, value in special.items()}
        self._special["%tid.x"] = np.arange(LANES, dtype=np.uint64) + np.uint64(LANES * self.index)
        self._shared, self._memory, self._block, self._random = shared, memory, block, random
        self.registers: dict[str, np.ndarray] = {}
        self._constants: dict[str, np.ndarray] = {}
        # What has begun and not arrived: copies, and matrix products; in groups, once these are closed.
        self._copies: tuple[list[Callable[[], None]], list[list[Callable[[], None]]]] = ([], [])
        self._products: tuple[list[Callable[[], None]], list[list[Callable[[], None]]]] = ([], [])

    def run(self) -> Generator[str, None, None]:
        """Go through the program to its end."""
        place = 0
        while True:
            instruction = self._program.instructions[place]
            place += 1
            mask = self._mask(instruction.guard) if instruction.guard else _EVERY
            kind = instruction.parts[0]
            if kind in ("ret", "bra"):
                if mask.all():
                    if kind == "ret":
                        return
                    place = self._program.labels[instruction.operands[0]]
                elif mask.any():
                    raise Fault(f"lanes part: {instruction.text}")
                yield "turn"
            elif kind in ("bar", "barrier"):
                yield "barrier"
            else:
                self._do(instruction, mask)
                if "global" in instruction.parts:
                    yield "turn"

    # Registers.

    def bits(self, operand: str) -> np.ndarray:
        """An operand as 64 bits a lane."""
        if operand in self.registers:
            return self.registers[operand]
        if operand in self._special:
            return self._special[operand]
        if operand not in self._constants:
            if operand.startswith("%"):
                raise Fault(f"register {operand} is read before it is written")
            real = _FLOAT.match(operand)
            # Shared memory begins at 0.
            value = 0 if operand == "global_smem" else int(real[1], 16) if real else int(operand, 0)
            self._constants[operand] = np.full(LANES, value & (1 << 64) - 1, np.uint64)
        return self._constants[operand]

    def value(self, operand: str, kind: str) -> np.ndarray:
        """An operand as numbers of a type."""
        bits = self.bits(operand)
        return bits.astype(bool) if kind == "pred" else from_bits(bits, kind)

    def put(self, register: str, bits: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Set a register in the lanes of `mask`, or in all."""
        if register == "_":
            return
        if mask is not None and mask is not _EVERY and not mask.all():
            bits = np.where(mask, bits, self.registers.get(register, np.zeros(LANES, np.uint64)))
        self.registers[register] = bits

    def access(self, instruction: Instruction) -> Access:
        """This warp, here and now."""
        return Access(self._block.number, self._block.stretch, self.index, instruction.text)

    def address(self, operand: str) -> np.ndarray:
        """`[register + offset]`, a lane each."""
        found = _ADDRESS.fullmatch(operand)
        assert found, operand
        return self.bits(found[1]).astype(np.int64) + int(found[2] or "0", 0)

    def read_shared(self, addresses: np.ndarray, size: int, instruction: Instruction) -> np.ndarray:
        """Bytes `[address, size]` of the program's shared memory."""
        return self._shared.read(addresses, size, self.access(instruction))

    def write_shared(self, addresses: np.ndarray, values: np.ndarray, instruction: Instruction) -> None:
        """Put bytes `[address, size]` there."""
        self._shared.write(addresses, values, self.access(instruction))

    def begin_product(self, work: Callable[[], None]) -> None:
        """A matrix product under way: done at once, or as late as it is waited for."""
        self._products[0].append(work)

    def _mask(self, guard: str) -> np.ndarray:
        mask = self.bits(guard.lstrip("!")).astype(bool)
        return ~mask if guard.startswith("!") else mask

    # Instructions.

    def _do(self, instruction: Instruction, mask: np.ndarray) -> None:
        parts, operands = instruction.parts, instruction.operands
        kind = parts[0]
        special = getattr(self, f"_{kind}", None)
        if special is not None:
            special(instruction, mask)
        elif kind in matrices.INSTRUCTIONS:
            matrices.INSTRUCTIONS[kind](self, instruction)
        elif kind in arithmetic.OPERATIONS:
            self._arithmetic(parts, operands, mask)
        elif kind != "fence":
            raise Fault(f"not known here: {instruction.text}")

    def _arithmetic(self, parts: tuple[str, ...], operands: tuple[str, ...], mask: np.ndarray) -> None:
        kind, operation = parts[-1], arithmetic.OPERATIONS[parts[0]]
        if kind.endswith("x2"):
            halves = []
            for low in (0, 16):
                numbers = [from_bits(self.bits(operand) >> low, kind[:-2]) for operand in operands[1:]]
                halves.append(_rounded(operation(*numbers), kind[:-2]))
            self.put(operands[0], halves[1] << 16 | halves[0], mask)
            return
        if kind == "pred":
            result = operation(*(self.value(operand, "pred") for operand in operands[1:]))
            self.put(operands[0], result.astype(np.uint64), mask)
            return
        # A shift's count has 32 bits whatever is shifted.
        kinds = [kind, "u32"] if parts[0] in ("shl", "shr") else [kind] * 3
        numbers = [self.value(operand, each) for operand, each in zip(operands[1:], kinds, strict=False)]
        if "wide" in parts or "hi" in parts:
            wide = np.dtype(f"{'i' if kind.startswith('s') else 'u'}{2 * numbers[0].dtype.itemsize}")
            product = numbers[0].astype(wide) * numbers[1].astype(wide)
            if "hi" in parts:
                product = (product >> 8 * numbers[0].dtype.itemsize).astype(numbers[0].dtype)
            if parts[0] == "mad":
                product += self.bits(operands[3]).astype(f"u{product.dtype.itemsize}").view(product.dtype)
            self.put(operands[0], to_bits(product), mask)
        else:
            result = operation(*numbers).astype(numbers[0].dtype)
            self.put(operands[0], _rounded(result, kind) if kind == "bf16" else to_bits(result), mask)

    def _mov(self, instruction: Instruction, mask: np.ndarray) -> None:
        target, source = instruction.operands
        size = 1 if instruction.parts[-1] == "pred" else DTYPES[instruction.parts[-1]](0).itemsize
        if target.startswith("{") or source.startswith("{"):
            # Packed, or taken apart, the lowest first.
            pieces = _listed(target if target.startswith("{") else source)
            width = np.uint64(8 * size // len(pieces))
            if target.startswith("{"):
                for place, piece in enumerate(pieces):
                    self.put(piece, self.bits(source) >> width * place & ((1 << int(width)) - 1), mask)
            else:
                joined = [self.bits(piece) << width * place for place, piece in enumerate(pieces)]
                self.put(target, np.bitwise_or.reduce(joined), mask)
        elif instruction.parts[-1] == "pred":
            self.put(target, (self.bits(source) != 0).astype(np.uint64), mask)
        else:
            self.put(target, self.bits(source) & ((1 << 8 * size) - 1), mask)

    def _cvt(self, instruction: Instruction, mask: np.ndarray) -> None:
        parts, operands = instruction.parts, instruction.operands
        target, source = parts[-2:]
        values = [self.value(operand, source) for operand in operands[1:]]
        if target.endswith("x2"):
            # The first operand is the upper half.
            upper, lower = (_rounded(value, target[:-2]) for value in values)
            bits = upper << 16 | lower
        elif target in ("f16", "bf16"):
            bits = _rounded(values[0], target)
        elif target == "tf32":
            # To the nearest, ties away from zero.
            bits = (self.bits(operands[1]) + 0x1000) & 0xFFFFE000
        else:
            value = values[0]
            if value.dtype.kind == "f" and DTYPES[target](0).dtype.kind != "f":
                value = np.trunc(value) if "rzi" in parts else np.rint(value)
            elif "rmi" in parts:
                value = np.floor(value)
            bits = to_bits(value.astype(DTYPES[target]))
        self.put(operands[0], bits, mask)

    def _setp(self, instruction: Instruction, mask: np.ndarray) -> None:
        (_, comparison, *between, kind), operands = instruction.parts, instruction.operands
        if set(between) & {"and", "or", "xor"}:
            raise Fault(f"not known here: {instruction.text}")
        result = arithmetic.COMPARISONS[comparison](*(self.value(operand, kind) for operand in operands[1:]))
        self.put(operands[0], result.astype(np.uint64), mask)

    def _selp(self, instruction: Instruction, mask: np.ndarray) -> None:
        target, yes, no, chosen = instruction.operands
        self.put(target, np.where(self.value(chosen, "pred"), self.bits(yes), self.bits(no)), mask)

    def _bfe(self, instruction: Instruction, mask: np.ndarray) -> None:
        target, source, first, count = instruction.operands
        width = int(count, 0)
        field = self.bits(source) >> int(first, 0) & ((1 << width) - 1)
        if instruction.parts[-1] == "s32":
            sign = np.uint64(1 << width - 1)
            field = to_bits(((field ^ sign).astype(np.int64) - int(sign)).astype(np.int32))
        self.put(target, field, mask)

    def _shfl(self, instruction: Instruction, mask: np.ndarray) -> None:
        target, source, other = instruction.operands[:3]
        lanes = np.arange(LANES)
        if not mask.all() or instruction.parts[2] not in ("bfly", "idx"):
            raise Fault(f"not known here: {instruction.text}")
        by = self.value(other, "s32")
        self.put(target, self.bits(source)[lanes ^ by if instruction.parts[2] == "bfly" else by & LANES - 1])

    def _redux(self, instruction: Instruction, mask: np.ndarray) -> None:
        values = self.value(instruction.operands[1], instruction.parts[-1])
        best = {"min": values.min, "max": values.max}[instruction.parts[2]]()
        self.put(instruction.operands[0], to_bits(np.full(LANES, best)))

    def _ld(self, instruction: Instruction, mask: np.ndarray) -> None:
        space, kind = instruction.parts[1], instruction.parts[-1]
        target, source = instruction.operands
        dtype, registers = np.dtype(DTYPES[kind]), _listed(target)
        if space == "param":
            bits = np.full(LANES, self._parameters[source.strip("[]")], np.uint64)
            data = bits.view(np.uint8).reshape(LANES, 8)
        else:
            size = dtype.itemsize * len(registers)
            data = np.zeros((LANES, size), np.uint8)
            if mask.any():
                addresses, who = self.address(source)[mask], self.access(instruction)
                data[mask] = (self._shared if space == "shared" else self._memory.of(addresses, who)).read(
                    addresses, size, who
                )
        for place, register in enumerate(registers):
            piece = data[:, place * dtype.itemsize : (place + 1) * dtype.itemsize]
            values = np.ascontiguousarray(piece).view(dtype)[:, 0]
            self.put(register, to_bits(values.astype(np.int64) if kind.startswith("s") else values), mask)

    def _st(self, instruction: Instruction, mask: np.ndarray) -> None:
        target, source = instruction.operands
        size = np.dtype(DTYPES[instruction.parts[-1]]).itemsize
        if mask.any():
            data = np.concatenate([_bytes(self.bits(register), size) for register in _listed(source)], axis=1)
            addresses, who = self.address(target)[mask], self.access(instruction)
            memory = self._shared if instruction.parts[1] == "shared" else self._memory.of(addresses, who)
            memory.write(addresses, data[mask], who)

    def _cp(self, instruction: Instruction, mask: np.ndarray) -> None:
        if "commit_group" in instruction.parts or "wait_group" in instruction.parts:
            _close_or_wait(self._copies, instruction)
            return
        target, source, count = instruction.operands[:3]
        size, who = int(count, 0), self.access(instruction)
        # What is not copied is filled with zeros.
        wanted = mask & (self.value(instruction.operands[3], "u32") > 0 if len(instruction.operands) > 3 else True)
        data = np.zeros((LANES, size), np.uint8)
        if wanted.any():
            addresses = self.address(source)[wanted]
            data[wanted] = self._memory.of(addresses, who).read(addresses, size, who)
        if not mask.any():
            return
        places = self.address(target)[mask]
        # Under way from here on, and not to be touched by others.
        self._shared.claim(self._shared.places(places, size, who), who)

        def arrive() -> None:
            self._shared.write(places, data[mask], self.access(instruction))

        if self._random.random() < 0.5:
            arrive()
        else:
            self._copies[0].append(arrive)

    def _wgmma(self, instruction: Instruction, mask: np.ndarray) -> None:
        if "commit_group" in instruction.parts or "wait_group" in instruction.parts:
            _close_or_wait(self._products, instruction)
        elif "fence" not in instruction.parts:
            matrices.multiply_by_warp_group(self, instruction)


def _close_or_wait(flying: tuple[list[Any], list[list[Any]]], instruction: Instruction) -> None:
    """Close the open group, or let all but the last so many arrive."""
    open_group, closed = flying
    if "commit_group" in instruction.parts:
        closed.append(list(open_group))
        open_group.clear()
        return
    while len(closed) > int(instruction.operands[0], 0):
        for work in closed.pop(0):
            work()


def _rounded(values: np.ndarray, kind: str) -> np.ndarray:
    return bfloat16_bits(values.astype(np.float32)) if kind == "bf16" else to_bits(values.astype(np.float16))


def _listed(operand: str) -> list[str]:
    """`{a, b}` or `a`."""
    return [name.strip() for name in operand.strip("{}").split(",")]


def _bytes(bits: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.uint8).reshape(LANES, 8)[:, :size]
