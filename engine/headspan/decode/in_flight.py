"""Bookkeeping for units in flight between reading and commit.

The decoding thread asks for spans and reports what it read; the model's thread takes the decoded spans, unit by unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import google_crc32c

from headspan.decode.batches import DecodedSpan
from headspan.shards.samples import BadImage, Sample, Unit


class UnitsInFlight:
    """The units that are being read and computed, each with a checksum of its encoded images and its bad images."""

    def __init__(self, chosen: Iterable[Unit], samples_of: Callable[[Unit], Iterable[Sample]]) -> None:
        """A unit is taken from `chosen` only when the first of its spans is requested."""
        self._chosen = chosen
        self._samples_of = samples_of
        self._units: deque[Unit] = deque()
        self._reading = -1
        self._crc32c: dict[int, int] = {}
        self._bad: dict[int, list[BadImage]] = {}

    def spans(self, images: int) -> Iterator[tuple[Sample, ...]]:
        """The samples of the units, in spans of at most `images`; no span crosses the border of a unit."""
        for unit in self._chosen:
            self._reading = unit.index
            self._crc32c[unit.index] = 0
            # Before its first span is read, so that the unit is known when that span arrives.
            self._units.append(unit)
            samples = iter(self._samples_of(unit))
            while span := tuple(islice(samples, images)):
                yield span

    def note_read(self, sample: Sample, encoded: bytes) -> None:
        """Add a sample's bytes to the checksum of its unit; samples come in row order."""
        self._crc32c[self._reading] = google_crc32c.extend(self._crc32c[self._reading], encoded)

    def by_unit(self, spans: Iterable[DecodedSpan]) -> Iterator[tuple[Unit, Iterator[DecodedSpan]]]:
        """Yield each unit with its decoded spans, which must be consumed before the next unit is requested."""
        stream = iter(spans)
        for first in stream:
            unit = self._units.popleft()
            yield unit, self._spans_of(unit, first, stream)

    def _spans_of(self, unit: Unit, span: DecodedSpan, stream: Iterator[DecodedSpan]) -> Iterator[DecodedSpan]:
        bad = self._bad[unit.index] = list(span.bad)
        yield span
        while span.last_row < unit.first_row + unit.rows - 1:
            span = next(stream)
            bad += span.bad
            yield span

    def read_of(self, unit: Unit) -> tuple[int, list[BadImage]]:
        """The crc32c of the unit's encoded images, and its bad images; complete once all its spans are consumed."""
        return self._crc32c.pop(unit.index), self._bad.pop(unit.index)
