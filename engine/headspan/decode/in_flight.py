"""The units between reading and committing: the decoding thread fills them, the model's thread takes them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import google_crc32c

from headspan.decode.images import DecodedImage
from headspan.shards.samples import BadImage, Sample, Unit


class UnitsInFlight:
    """Units as they are chosen, with what was read of each: a checksum of its encoded images, and the bad ones."""

    def __init__(self, chosen: Iterable[Unit], samples_of: Callable[[Unit], Iterable[Sample]]) -> None:
        """Nothing is chosen before `samples` is asked for more."""
        self._chosen = chosen
        self._samples_of = samples_of
        self._units: list[Unit] = []
        self._read_crc32c = 0
        self._crc32c: dict[int, int] = {}
        self._bad: deque[BadImage] = deque()

    def samples(self) -> Iterator[Sample]:
        """The samples of the units, chosen one by one."""
        for unit in self._chosen:
            self._read_crc32c = 0
            # Known before its first image is, so that whoever has an image knows the unit.
            self._units.append(unit)
            yield from self._samples_of(unit)
            # Asked for more, the reader has read the last one.
            self._crc32c[unit.index] = self._read_crc32c

    def note_read(self, sample: Sample, encoded: bytes) -> None:
        """Take in a sample's bytes, in row order."""
        self._read_crc32c = google_crc32c.extend(self._read_crc32c, encoded)

    def note_bad(self, image: BadImage) -> None:
        """Take in an image that was set aside."""
        self._bad.append(image)

    def by_unit(self, images: Iterable[DecodedImage]) -> Iterator[tuple[Unit, Iterator[DecodedImage]]]:
        """Each unit with its own images, which may be none; they must be taken before the next unit."""
        stream = iter(images)
        ahead = next(stream, None)

        def members(unit: Unit) -> Iterator[DecodedImage]:
            nonlocal ahead
            while ahead is not None and unit.first_row <= ahead.row < unit.first_row + unit.rows:
                yield ahead
                ahead = next(stream, None)

        # Grows meanwhile: an image that is ahead is of a unit that is in it.
        for unit in self._units:
            yield unit, members(unit)

    def read_of(self, unit: Unit) -> tuple[int, list[BadImage]]:
        """The crc32c of the unit's encoded images, and the bad ones among them; known once its images are taken."""
        # In the order of units and rows, as the images are.
        bad: list[BadImage] = []
        while self._bad and unit.first_row <= self._bad[0].row < unit.first_row + unit.rows:
            bad.append(self._bad.popleft())
        return self._crc32c.pop(unit.index), bad
