"""Tests of units in flight: each unit's checksum and bad images, and when a unit is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
import pytest

from headspan.decode.batches import Batch, DecodedSpan
from headspan.decode.in_flight import UnitsInFlight
from headspan.decode.prefetch import prefetch
from headspan.shards.samples import Sample, SampleSpan, Unit

# 17 rows in units of five; the last unit has two.
UNITS = [Unit(0, 0, 5), Unit(1, 5, 5), Unit(2, 10, 5), Unit(3, 15, 2)]
BAD = (4, 5, 6, 7, 8, 9, 16)


def content(row: int) -> bytes:
    return f"image {row}".encode()


def spans_of(images: int) -> Callable[[Unit], Iterator[SampleSpan]]:
    def of_unit(unit: Unit) -> Iterator[SampleSpan]:
        rows = range(unit.first_row, unit.first_row + unit.rows)
        samples = [Sample(row, f"{row}", "a.tar", f"{row}.jpg", 512, len(content(row))) for row in rows]
        for first in range(0, len(samples), images):
            yield SampleSpan.of(samples[first : first + images])

    return of_unit


def decode(in_flight: UnitsInFlight) -> Iterator[DecodedSpan]:
    """What a decoder yields for the spans; rows of BAD are bad."""
    for span in in_flight.spans():
        rows = span.rows.tolist()
        good = [row for row in rows if row not in BAD]
        bad = tuple(span.bad_image(place, "bad") for place, row in enumerate(rows) if row in BAD)
        pixels = np.zeros((len(good), 1, 1, 3), np.uint8)
        encoded = b"".join(map(content, rows))
        checksum = google_crc32c.value(encoded)
        yield DecodedSpan(Batch(np.array(good, np.int64), (pixels,)), bad, rows[-1], len(encoded), checksum)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 257])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [3, 1, 0], [1]])
def test_each_unit_has_its_own_images_checksum_and_bad_images(chosen: list[int], images: int) -> None:
    in_flight = UnitsInFlight([UNITS[index] for index in chosen], spans_of(images))
    found = []
    # Spans are requested by another thread, before their units are computed.
    for unit, spans in in_flight.by_unit(prefetch(decode(in_flight), lambda span: 1, 3)):
        rows = [row for span in spans for row in span.good.rows.tolist()]
        crc32c, bad = in_flight.read_of(unit)
        expected = range(unit.first_row, unit.first_row + unit.rows)
        assert rows == [row for row in expected if row not in BAD]
        assert [image.row for image in bad] == [row for row in expected if row in BAD]
        assert crc32c == google_crc32c.value(b"".join(map(content, expected)))
        found.append(unit.index)
    assert found == chosen


def test_a_unit_is_chosen_only_when_one_of_its_spans_is_asked_for() -> None:
    chosen: list[int] = []

    def units() -> Iterator[Unit]:
        for unit in UNITS:
            chosen.append(unit.index)
            yield unit

    spans = UnitsInFlight(units(), spans_of(3)).spans()
    assert chosen == []
    next(spans)
    next(spans)
    assert chosen == [0]
    next(spans)
    assert chosen == [0, 1]
