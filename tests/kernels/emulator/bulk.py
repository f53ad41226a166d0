"""Copies of whole tiles by the tensor memory accelerator, and the barriers in shared memory that count their bytes.

A load arrives while someone waits for it, and at the latest then; its bytes may be read only by warps that waited, and
by all after the next barrier of the program. A store reads shared memory when it is waited for, or at once. Descriptors
are those of the launch's arguments, with the box and the swizzle that Triton compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.kernels.emulator.arithmetic import LANES
from tests.kernels.emulator.memory import Fault, Flight
from tests.kernels.emulator.program import Instruction, listed

if TYPE_CHECKING:
    from tests.kernels.emulator.warp import Warp

# Descriptors are parameters, whose addresses the program takes: numbers that are no address of anything else.
FIRST_HANDLE = 1 << 30
_ELECTED = 5
# Bytes after which a swizzled tile's rows repeat, by the number in Triton's metadata.
_SWIZZLE_BYTES = {0: 16, 1: 32, 2: 64, 3: 128}


class Descriptor(NamedTuple):
    """A matrix in global memory, and the tile that one copy moves."""

    start: int
    shape: tuple[int, int]
    row_bytes: int
    item: int
    box: tuple[int, int]
    swizzle: int

    @classmethod
    def of(cls, argument: Any, compiled: dict[str, Any]) -> Descriptor:
        """From a launch's `TensorDescriptor` and Triton's metadata of it."""
        base = argument.base
        return cls(
            start=base.data_ptr(),
            shape=tuple(argument.shape),
            row_bytes=argument.strides[0] * base.element_size(),
            item=base.element_size(),
            box=tuple(compiled["block_size"]),
            swizzle=_SWIZZLE_BYTES[compiled["swizzle"]],
        )

    @property
    def box_bytes(self) -> int:
        """Bytes of a tile, with those past the matrix's end."""
        return self.box[0] * self.box[1] * self.item

    def inside(self, row: int, column: int) -> np.ndarray:
        """Which of a tile's numbers are in the matrix."""
        rows, columns = row + np.arange(self.box[0]), column + np.arange(self.box[1])
        in_rows, in_columns = ((at >= 0) & (at < end) for at, end in zip((rows, columns), self.shape, strict=True))
        return np.asarray(in_rows[:, None] & in_columns[None, :])

    def addresses(self, row: int, column: int) -> np.ndarray:
        """The tile's numbers in global memory."""
        rows, columns = row + np.arange(self.box[0]), column + np.arange(self.box[1])
        return np.asarray(self.start + rows[:, None] * self.row_bytes + columns[None, :] * self.item)

    def places(self, first: int) -> np.ndarray:
        """The tile's numbers in shared memory."""
        rows, columns = np.arange(self.box[0]), np.arange(self.box[1])
        places = first + rows[:, None] * self.box[1] * self.item + columns[None, :] * self.item
        return np.asarray(places ^ ((places >> 7 & self.swizzle // 16 - 1) << 4))


@dataclass(slots=True)
class Barrier:
    """A barrier in shared memory: what it waits for, its phase, and the copies on their way."""

    count: int
    arrivals: int
    missing: int = 0
    phase: int = 0
    coming: list[Callable[[], None]] = field(default_factory=list)
    # The copies of this phase, and those of the phase before.
    flights: list[Flight] = field(default_factory=list)
    landed: list[Flight] = field(default_factory=list)

    def advance(self) -> None:
        """Begin the next phase if all have arrived."""
        if self.arrivals == 0 and self.missing == 0:
            self.phase ^= 1
            self.arrivals = self.count
            self.landed, self.flights = self.flights, []


def _mbarrier(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    barriers, parts, operands = warp.around.barriers, instruction.parts, instruction.operands
    if parts[1] == "try_wait":
        target, where, parity = operands
        barrier = _barrier(warp, where, instruction, mask)
        if barrier.coming and warp.around.random.random() < 0.5:
            barrier.coming.pop(warp.around.random.randrange(len(barrier.coming)))()
            barrier.advance()
        done = barrier.phase != int(warp.value(parity, "u32")[0])
        if done:
            for flight in barrier.landed:
                flight.seen.add(warp.index)
        warp.put(target, np.full_like(warp.bits(where.strip("[]")), done))
        return
    if not mask.any():
        return
    if mask.sum() != 1:
        raise Fault(f"not known here, by several lanes: {instruction.text}")
    if parts[1] == "init":
        count = int(operands[1], 0)
        barriers[_one(warp.address(operands[0]), mask)] = Barrier(count, count)
    elif parts[1] == "inval":
        del barriers[_one(warp.address(operands[0]), mask)]
    elif parts[1:3] == ("arrive", "expect_tx"):
        barrier = _barrier(warp, operands[1], instruction, mask)
        barrier.arrivals -= 1
        barrier.missing += int(warp.value(operands[2], "u32")[0])
        barrier.advance()
    else:
        raise Fault(f"not known here: {instruction.text}")


def copy(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """`cp.async.bulk`: a tile's load or store, by one lane, or the groups of stores."""
    if warp.stores.close_or_wait(instruction) or not mask.any():
        return
    if mask.sum() != 1 or instruction.parts[3:5] != ("tensor", "2d"):
        raise Fault(f"not known here: {instruction.text}")
    target, source = instruction.operands[:2]
    begin = _begin_store if instruction.parts[5] == "global" else _begin_load
    begin(warp, instruction, mask, target, source)


def _begin_load(warp: Warp, instruction: Instruction, mask: np.ndarray, target: str, source: str) -> None:
    descriptor, row, column = _tile(warp, source, mask)
    barrier = _barrier(warp, instruction.operands[2], instruction, mask)
    shared, who = warp.around.shared, warp.access(instruction)
    places = descriptor.places(_aligned(_one(warp.address(target), mask), instruction))
    inside, content = descriptor.inside(row, column), np.zeros((places.size, descriptor.item), np.uint8)
    if inside.any():
        addresses = descriptor.addresses(row, column)[inside]
        content[inside.ravel()] = warp.around.memory.of(addresses, who).read(addresses, descriptor.item, who)
    flight = shared.take_off(shared.places(places.ravel(), descriptor.item, who), who)
    barrier.flights.append(flight)

    def arrive() -> None:
        shared.land(flight, content)
        barrier.missing -= descriptor.box_bytes

    if warp.around.random.random() < 0.5:
        arrive()
        barrier.advance()
    else:
        barrier.coming.append(arrive)


def _begin_store(warp: Warp, instruction: Instruction, mask: np.ndarray, target: str, source: str) -> None:
    descriptor, row, column = _tile(warp, target, mask)
    places = descriptor.places(_aligned(_one(warp.address(source), mask), instruction))
    inside, addresses = descriptor.inside(row, column), descriptor.addresses(row, column)

    def work() -> None:
        # In the stretch in which the store happens to run.
        who = warp.access(instruction)
        content = warp.around.shared.read(places[inside], descriptor.item, who)
        if inside.any():
            warp.around.memory.of(addresses[inside], who).write(addresses[inside], content, who)

    if warp.around.random.random() < 0.5:
        work()
    else:
        warp.stores.begin(work)


def _tile(warp: Warp, operand: str, mask: np.ndarray) -> tuple[Descriptor, int, int]:
    """The descriptor, row and column of `[descriptor, {column, row}]`."""
    name, _, places = operand.strip("[] ").partition(",")
    handle = _one(warp.bits(name.strip()), mask)
    column, row = (_one(warp.value(place, "s32"), mask) for place in listed(places.strip()))
    return warp.around.descriptors[handle], row, column


def _barrier(warp: Warp, operand: str, instruction: Instruction, mask: np.ndarray) -> Barrier:
    found = warp.around.barriers.get(_one(warp.address(operand), mask))
    if found is None:
        raise Fault(f"no barrier there: {instruction.text}")
    return found


def _aligned(place: int, instruction: Instruction) -> int:
    if place % 128:
        raise Fault(f"shared memory: misaligned by 128 bytes: {instruction.text}")
    return place


def _one(values: np.ndarray, mask: np.ndarray) -> int:
    """The number of the first lane that takes part."""
    return int(values[int(np.argmax(mask))])


def _elect(warp: Warp, instruction: Instruction, mask: np.ndarray) -> None:
    """Choose one lane: `lane|predicate`. Which one is unknown, but always the same."""
    lane, predicate = instruction.operands[0].split("|")
    warp.put(lane, np.full(LANES, _ELECTED, np.uint64))
    warp.put(predicate, (np.arange(LANES) == _ELECTED).astype(np.uint64))


INSTRUCTIONS: dict[str, Callable[[Warp, Instruction, np.ndarray], None]] = {"mbarrier": _mbarrier, "elect": _elect}
