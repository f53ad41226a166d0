"""Bookkeeping for units in flight between reading and commit.

The decoding thread asks for spans and reports what it read; the model's thread takes the decoded spans, unit by unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from headspan.decode.batches import DecodedSpan
from headspan.io.crc32c import combined
from headspan.shards.samples import BadImage, SampleSpan, Unit


class UnitsInFlight:
    """The units that are being read and computed, each with a checksum of its encoded images and its bad images."""

    def __init__(self, chosen: Iterable[Unit], spans_of: Callable[[Unit], Iterable[SampleSpan]]) -> None:
        """A unit is taken from `chosen` only when the first of its spans is requested."""
        self._chosen = chosen
        self._spans_of = spans_of
        self._units: deque[Unit] = deque()
        self._crc32c: dict[int, int] = {}
        self._bad: dict[int, list[BadImage]] = {}

    def spans(self) -> Iterator[SampleSpan]:
        """The spans of the units, in order; no span crosses the border of a unit."""
        for unit in self._chosen:
            # Before its first span is read, so that the unit is known when that span arrives.
            self._units.append(unit)
            yield from self._spans_of(unit)

    def by_unit(self, spans: Iterable[DecodedSpan]) -> Iterator[tuple[Unit, Iterator[DecodedSpan]]]:
        """Yield each unit with its decoded spans, which must be consumed before the next unit is requested."""
        stream = iter(spans)
        for first in stream:
            unit = self._units.popleft()
            yield unit, self._of_one(unit, first, stream)

    def _of_one(self, unit: Unit, span: DecodedSpan, stream: Iterator[DecodedSpan]) -> Iterator[DecodedSpan]:
        self._crc32c[unit.index], self._bad[unit.index] = 0, []
        self._note(unit, span)
        yield span
        while span.last_row < unit.first_row + unit.rows - 1:
            span = next(stream)
            self._note(unit, span)
            yield span

    def _note(self, unit: Unit, span: DecodedSpan) -> None:
        self._crc32c[unit.index] = combined(self._crc32c[unit.index], span.crc32c, span.encoded_bytes)
        self._bad[unit.index] += span.bad

    def read_of(self, unit: Unit) -> tuple[int, list[BadImage]]:
        """The crc32c of the unit's encoded images, and its bad images; complete once all its spans are consumed."""
        return self._crc32c.pop(unit.index), self._bad.pop(unit.index)
