"""Memory whose accesses are checked for bounds, alignment, and races with other warps and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Offsets of an access's bytes from its first byte.
_ARANGE = np.arange(64)
# Marks a byte that several have read.
_MANY = -1


class Fault(Exception):
    """An access that a GPU would refuse, or whose result would be random."""


@dataclass(frozen=True, slots=True)
class Access:
    """The source of an access: warp, program, stretch between barriers, and the instruction's text."""

    program: int
    stretch: int
    warp: int
    text: str


@dataclass(slots=True, eq=False)
class Flight:
    """A bulk copy to shared memory: the bytes that it writes, whether it has landed, and the warps that know."""

    places: np.ndarray
    landed: bool
    seen: set[int]


class Memory:
    """A piece of memory, and who accessed each byte last."""

    def __init__(self, name: str, start: int, data: np.ndarray) -> None:
        self.name, self.start, self.data = name, start, data
        size = len(data)
        self._written_in, self._writer, self._read_in, self._readers = np.zeros((4, size), np.int64)
        self._writing_program, self._reading_program = np.zeros((2, size), np.int64)
        # The last bulk copy to each byte, as an index from 1 on, and those that not every warp knows to have landed.
        self._flight_of = np.zeros(size, np.int64)
        self._flights: dict[int, Flight] = {}
        self._taken_off = 0

    def read(self, addresses: np.ndarray, size: int, who: Access) -> np.ndarray:
        """`size` bytes at each of the addresses, `[address, size]`."""
        places = self.places(addresses, size, who)
        self._check_flights(places, "reads", who)
        others = (self._written_in[places] == who.stretch) & (self._writer[places] != who.warp)
        self._refuse(others, "reads what another warp wrote since the last barrier", who)
        foreign = (self._writing_program[places] != 0) & (self._writing_program[places] != who.program)
        self._refuse(foreign, "reads what another program of the launch wrote", who)
        before = np.where(self._read_in[places] == who.stretch, self._readers[places], 0)
        self._readers[places], self._read_in[places] = before | 1 << who.warp, who.stretch
        known = self._reading_program[places]
        self._reading_program[places] = np.where((known == 0) | (known == who.program), who.program, _MANY)
        return self.data[places]

    def write(self, addresses: np.ndarray, values: np.ndarray, who: Access) -> None:
        """Write `values` `[address, size]`. Any warp may write the value that a byte already holds."""
        places = self.places(addresses, values.shape[1], who)
        changed = places[self.data[places] != values]
        self.data[places] = values
        self._refuse(self.data[places] != values, "writes two values to one byte", who)
        self.claim(changed, who)

    def claim(self, places: np.ndarray, who: Access) -> None:
        """Check a write to those bytes against all other accesses."""
        self._check_flights(places, "writes", who)
        others = (self._written_in[places] == who.stretch) & (self._writer[places] != who.warp)
        self._refuse(others, "writes what another warp wrote since the last barrier", who)
        readers = np.where(self._read_in[places] == who.stretch, self._readers[places], 0)
        self._refuse(readers & ~(1 << who.warp) != 0, "writes what another warp read since the last barrier", who)
        for touched in (self._writing_program[places], self._reading_program[places]):
            self._refuse((touched != 0) & (touched != who.program), "writes what another program touched", who)
        self._written_in[places], self._writer[places] = who.stretch, who.warp
        self._writing_program[places] = who.program

    def take_off(self, places: np.ndarray, who: Access) -> Flight:
        """Begin a bulk copy to those bytes, which others must not access until they know that it has landed."""
        self.claim(places, who)
        flight = Flight(places, False, set())
        self._taken_off += 1
        self._flights[self._taken_off] = flight
        self._flight_of[places] = self._taken_off
        return flight

    def land(self, flight: Flight, content: np.ndarray) -> None:
        """Write what a bulk copy brings."""
        self.data[flight.places] = content
        # Waiting for the copy orders reads after it, as a barrier does.
        self._written_in[flight.places] = 0
        flight.landed = True

    def meet(self) -> None:
        """At a barrier, what one warp knows becomes known to all."""
        self._flights = {number: flight for number, flight in self._flights.items() if not flight.seen}

    def _check_flights(self, places: np.ndarray, what: str, who: Access) -> None:
        if not self._flights:
            return
        for number in np.unique(self._flight_of[places]):
            flight = self._flights.get(int(number))
            if flight is not None and who.warp not in flight.seen:
                raise Fault(
                    f"{self.name}: warp {who.warp} of program {who.program} {what} bytes of a copy that it has not "
                    f"waited for: {who.text}"
                )

    def places(self, addresses: np.ndarray, size: int, who: Access) -> np.ndarray:
        """The bytes' indices, `[address, size]`."""
        if (addresses & size - 1).any():
            raise Fault(f"{self.name}: misaligned by {size} bytes: {who.text}")
        first = addresses - self.start
        if (first < 0).any() or (first + size > len(self.data)).any():
            raise Fault(f"{self.name}: out of bounds, at {first.min()} to {first.max() + size}: {who.text}")
        return first[:, None] + _ARANGE[:size]

    def _refuse(self, wrong: np.ndarray, what: str, who: Access) -> None:
        if wrong.any():
            raise Fault(f"{self.name}: warp {who.warp} of program {who.program} {what}: {who.text}")


class GlobalMemory:
    """Several pieces, found by address."""

    def __init__(self, pieces: Sequence[Memory]) -> None:
        self._pieces = pieces

    def of(self, addresses: np.ndarray, who: Access) -> Memory:
        """The piece that contains the first address, and must contain all of them."""
        for piece in self._pieces:
            if piece.start <= addresses[0] < piece.start + len(piece.data):
                return piece
        raise Fault(f"out of bounds, at {addresses[0]:#x}: {who.text}")
