"""Recognise JPEG files that every decoder reads alike, by all of a file but its coefficients.

A file that is accepted here is one that PIL opens and decodes: baseline or progressive, 8 bits, grey or YCbCr, with
complete tables and scans, and nothing after its end. Whatever is rarer or doubtful is refused, since the caller has
another way for it. Damaged coefficients are not noticed: PIL decodes them too, to other pixels.

The check takes some ten microseconds a file: segments are looked up, never searched byte by byte.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

# libjpeg refuses longer sides.
_LONGEST_SIDE = 65_500
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOF0, _SOF2, _DHT, _SOS, _DQT, _DRI, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = (
    *(0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE),
)
# Horizontal and vertical samples of luma for one of each chroma: 4:4:4, 4:4:0, 4:2:2, 4:2:0 and 4:1:1.
_LUMA_SAMPLES = (0x11, 0x12, 0x21, 0x22, 0x41)
_YCBCR = 1
# Exif tags of which PIL reads the values when it opens a file, and the type and count that they must have.
_EXIF_RESOLUTION = {0x011A: (5, 1), 0x0128: (3, 1)}


def marker_places(data: bytes) -> list[int]:
    """Where markers may begin in some files' bytes, ascending: not those within coefficients, such as restarts.

    One pass of NumPy over many files, which leaves the interpreter to other threads.
    """
    octets = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(octets[:-1] == 0xFF)
    following = octets[places + 1]
    found: list[int] = places[(following != 0) & (following & 0xF8 != 0xD0)].tolist()
    return found


def sound_size(data: bytes, begin: int, end: int, markers: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the JPEG in `data[begin:end]` by its header; None if it is not plainly sound.

    `markers` are the `marker_places` of `data`.
    """
    if not data.startswith(_SOI, begin, end) or data[max(begin, end - 2) : end] != _EOI:
        return None
    return _File(data, end - 2, markers).size(begin + 2)


class _File:
    """One pass over the segments of a file, whose end marker is at `last`."""

    def __init__(self, data: bytes, last: int, markers: Sequence[int]) -> None:
        self.data, self.last, self.markers = data, last, markers
        self.height = self.width = 0
        self.progressive = False
        self.components: _Components = ()
        # Indices of the quantization tables so far, and class (0 for DC, 16 for AC) plus index of the Huffman tables.
        self.quantization: set[int] = set()
        self.huffman: set[int] = set()
        self.has_exif = False
        # Components whose DC coefficients a scan has begun.
        self.begun: set[int] = set()

    def size(self, at: int) -> tuple[int, int] | None:
        data, last = self.data, self.last
        scanned = False
        while at != last:
            if at + 4 > last or data[at] != 0xFF:
                return None
            marker = data[at + 1]
            start, stop = at + 4, at + 2 + (data[at + 2] << 8 | data[at + 3])
            if not start <= stop <= last:
                return None
            if marker == _SOS:
                if not self._scan(data[start:stop]):
                    return None
                scanned = True
                # The next marker, after the scan's coefficients.
                at = self.markers[bisect_left(self.markers, stop)]
                if at == stop or at > last or (at != last and not self.progressive):
                    return None
                continue
            # Between scans, only tables and the interval of restarts for the next one.
            if (scanned and marker not in (_DHT, _DRI)) or not self._segment(marker, start, stop):
                return None
            at = stop
        complete = scanned and len(self.begun) == len(self.components)
        return (self.height, self.width) if complete else None

    def _segment(self, marker: int, start: int, stop: int) -> bool:
        """Whether a segment between the markers is sound and known; `start` and `stop` enclose its contents."""
        data = self.data
        if marker == _DHT:
            tables = _huffman_tables(data[start:stop])
            self.huffman.update(tables or ())
            return tables is not None
        if marker == _DQT:
            # Tables of 64 bytes, each after its index.
            self.quantization.update(data[start:stop:65])
            return stop > start and (stop - start) % 65 == 0 and max(self.quantization) < 4
        if marker == _APP0:
            return not data.startswith(b"JFIF", start, stop) or (stop - start >= 14 and data[start + 4] == 0)
        if marker == _APP1:
            return not data.startswith(b"Exif\0\0", start, stop) or self._exif(start + 6, stop)
        if marker == _APP2:
            # Colour profiles are ignored, but PIL reads their numbers. MPF announces further images.
            if data.startswith(b"MPF\0", start, stop):
                return False
            return stop - start >= 14 or not data.startswith(b"ICC_PROFILE\0", start, stop)
        if marker == _APP14:
            return not data.startswith(b"Adobe", start, stop) or (stop - start >= 12 and data[start + 11] == _YCBCR)
        if marker in (_SOF0, _SOF2):
            return self._frame(marker, start, stop)
        if marker == _DRI:
            return stop - start == 2
        return _APP0 < marker <= _APP15 or marker == _COM

    def _frame(self, marker: int, start: int, stop: int) -> bool:
        data = self.data
        if self.components or stop - start < 6:
            return False
        precision, self.height, self.width = struct.unpack_from(">BHH", data, start)
        self.progressive = marker == _SOF2
        self.components = _components(data[start + 5 : stop])
        sides = 0 < self.height <= _LONGEST_SIDE and 0 < self.width <= _LONGEST_SIDE
        return precision == 8 and sides and bool(self.components)

    def _scan(self, header: bytes) -> bool:
        """Whether a scan's header is sound, and all of its tables are known."""
        scan = _scan(header, self.components, self.progressive)
        if scan is None or not scan.quantization <= self.quantization or not scan.huffman <= self.huffman:
            return False
        self.begun |= scan.begins
        return True

    def _exif(self, start: int, stop: int) -> bool:
        """Whether PIL can read the resolution; only a single segment is read."""
        order = {b"MM\0*": ">", b"II*\0": "<"}.get(self.data[start : start + 4])
        if self.has_exif or order is None or stop - start < 10:
            return False
        self.has_exif = True
        (offset,) = struct.unpack_from(order + "I", self.data, start + 4)
        begin = start + offset + 2
        if not 8 <= offset <= stop - start - 2:
            return False
        (entries,) = struct.unpack_from(order + "H", self.data, begin - 2)
        if begin + 12 * entries > stop:
            return False
        for tag, kind, count, place in struct.iter_unpack(order + "HHII", self.data[begin : begin + 12 * entries]):
            wanted = _EXIF_RESOLUTION.get(tag)
            if wanted is not None and ((kind, count) != wanted or (kind == 5 and place + 8 > stop - start)):
                return False
        return True


# The components of a frame: id, and index of the quantization table.
_Components: TypeAlias = tuple[tuple[int, int], ...]


class _Scan(NamedTuple):
    """The tables that a scan needs, and the components that it begins, by their places in the frame."""

    quantization: frozenset[int]
    huffman: frozenset[int]
    begins: frozenset[int]


# What follows is the same in most files of an encoder.
@lru_cache(maxsize=4096)
def _components(contents: bytes) -> _Components:
    """The components of a frame, from their number on; none if they are not plainly grey or YCbCr."""
    count, samples = contents[0], contents[2::3]
    if len(contents) != 1 + 3 * count:
        return ()
    components = tuple(zip(contents[1::3], contents[3::3], strict=True))
    if count == 1:
        return components if samples == b"\x11" else ()
    # Other ids may mean other colours.
    known = count == 3 and contents[1::3] == b"\1\2\3" and samples[0] in _LUMA_SAMPLES and samples[1:] == b"\x11\x11"
    return components if known else ()


@lru_cache(maxsize=4096)
def _scan(header: bytes, components: _Components, progressive: bool) -> _Scan | None:
    """What a scan needs and begins; None if its header is not sound."""
    count = header[0] if header else 0
    if not 1 <= count <= len(components) or len(header) != 4 + 2 * count:
        return None
    first, last, bits = header[-3:]
    high, low = bits >> 4, bits & 15
    ids = [each for each, _ in components]
    places = [ids.index(each) if each in ids else -1 for each in header[1:-3:2]]
    if -1 in places or places != sorted(set(places)):
        return None
    if progressive:
        # DC alone, or AC of one component; each refinement adds a bit.
        if (last != 0) if first == 0 else (not first <= last <= 63 or count > 1):
            return None
        if low > 13 or (high and low != high - 1):
            return None
    elif (first, last, bits) != (0, 63, 0) or count != len(ids):
        return None
    begins = first == 0 and high == 0
    tables = header[2:-3:2]
    return _Scan(
        frozenset(components[place][1] for place in places),
        frozenset([table >> 4 for table in tables if begins] + [(table & 15) + 16 for table in tables if last]),
        frozenset(places if begins else ()),
    )


@lru_cache(maxsize=4096)
def _huffman_tables(contents: bytes) -> frozenset[int] | None:
    """Class (0 for DC, 16 for AC) plus index of the tables in a segment; None if one is broken."""
    found, start = set(), 0
    while start < len(contents):
        kind, counts, start = contents[start], contents[start + 1 : start + 17], start + 17
        symbols = contents[start : start + sum(counts)]
        if len(symbols) < sum(counts) or kind & 0xEC or not _is_prefix_code(counts):
            return None
        # DC tables hold numbers of bits.
        if kind < 16 and max(symbols) > 15:
            return None
        found.add(kind)
        start += len(symbols)
    return frozenset(found)


def _is_prefix_code(counts: bytes) -> bool:
    """Whether numbers of codes of 1 to 16 bits fit a code without the one of ones alone, and are not all zero."""
    code = 0
    for bits, count in enumerate(counts, start=1):
        code = 2 * code + count
        if count and code >= 1 << bits:
            return False
    return len(counts) == 16 and code > 0
