"""Read the images of a tar: neighbouring ones in one read.

An empty member is an empty file or a link without a target. Its header tells which, so the header is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headspan.shards.images import TAR, Encoded, ImagePlace, ImageReader, Read, Wanted
from headspan.shards.reader import ShardReader
from headspan.shards.tar_header import BLOCK_BYTES, dead_link_of

# Bytes between two images, such as captions and headers, that are read with them.
_GAP_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ByteRange:
    """One read of neighbouring members: the places of its images, and where its bytes are in the shard."""

    first: int
    images: int
    offset: int
    size: int


def plan_reads(
    offsets: tuple[int, ...], sizes: tuple[int, ...], most_bytes: int, header_bytes: int = BLOCK_BYTES
) -> Iterator[ByteRange]:
    """The reads of the images, in their order. A read of one image may have more than `most_bytes`.

    The header of an empty member, of `header_bytes`, is read in place of its data.
    """
    first = 0
    while first < len(sizes):
        begin, end = offsets[first], offsets[first] + sizes[first]
        stop = first + 1
        if sizes[first] == 0:
            yield ByteRange(first, 1, begin - header_bytes, header_bytes)
            first = stop
            continue
        while (
            stop < len(sizes)
            and sizes[stop]
            and end <= offsets[stop] <= end + _GAP_BYTES
            and offsets[stop] + sizes[stop] - begin <= most_bytes
        ):
            end = offsets[stop] + sizes[stop]
            stop += 1
        yield ByteRange(first, stop - first, begin, end - begin)
        first = stop


class TarImages(ImageReader):
    """The images of the tar that `reader` reads."""

    def __init__(self, reader: ShardReader, end: int | None = None, header_bytes: int = BLOCK_BYTES) -> None:
        """`end` is the tar's size, if it is known. With 0 `header_bytes`, the file holds images without headers."""
        super().__init__(reader.url)
        self._reader, self._end, self._header_bytes = reader, end, header_bytes

    def place(self) -> ImagePlace | None:
        place = self._reader.place()
        return None if place is None else ImagePlace(TAR, place)

    def close(self) -> None:
        self._reader.close()

    def reads(self, wanted: Wanted, most_bytes: int) -> Iterator[Read]:
        for planned in plan_reads(wanted.offsets, wanted.sizes, most_bytes, self._header_bytes):
            yield Read(planned.images, planned.size, lambda planned=planned: self._start(planned, wanted))  # type: ignore[misc]

    def _start(self, planned: ByteRange, wanted: Wanted) -> Callable[[], Encoded]:
        stop = planned.first + planned.images
        offsets, sizes = wanted.offsets[planned.first : stop], wanted.sizes[planned.first : stop]
        if self._end is not None and planned.offset > self._end:
            raise self._reader.truncated(offsets[0], sizes[0], self._end)
        wait = self._reader.start(planned.offset, planned.size)

        def images() -> Encoded:
            data = wait()
            if sizes[0] == 0:
                if len(data) < planned.size:
                    raise self._reader.truncated(planned.offset, planned.size, planned.offset + len(data))
                return Encoded.one(b"", dead_link_of(data) if data else None)
            begins = [offset - planned.offset for offset in offsets]
            ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
            if ends[-1] > len(data):
                # The images before the first that is missing are lost with it: the run ends here.
                offset, size = next(
                    each for each in zip(offsets, sizes, strict=True) if _end(each, planned) > len(data)
                )
                raise self._reader.truncated(offset, size, planned.offset + len(data))
            return Encoded(data, begins, ends, {})

        return images


def _end(image: tuple[int, int], planned: ByteRange) -> int:
    offset, size = image
    return offset + size - planned.offset
