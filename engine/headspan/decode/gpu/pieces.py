"""Cut spans into pieces that fit the memory in flight, and read the encoded images of a piece in few reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
from jaxtyping import Int64

from headspan.decode.one_shard import OneShard
from headspan.shards.images import ImageReader
from headspan.shards.samples import BadImage, SampleSpan


@dataclass(frozen=True, slots=True)
class Read:
    """The bytes of one read; its images begin with the one at `place` of the piece, and each has a begin and an end."""

    place: int
    data: bytes
    begins: Sequence[int]
    ends: Sequence[int]


@dataclass(slots=True)
class Piece:
    """The images `start` to `stop` of a span, and their encoded bytes once they are read."""

    span: SampleSpan
    start: int
    stop: int
    reads: list[Read] = field(default_factory=list)
    # By place in the piece, the reason why an image has no bytes.
    without_bytes: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> Int64[np.ndarray, " sample"]:
        """The rows of the images."""
        return self.span.rows[self.start : self.stop]

    @property
    def encoded_bytes(self) -> int:
        """The length of the encoded images together, once they are read."""
        return sum(sum(read.ends) - sum(read.begins) for read in self.reads)

    def bad_image(self, place: int, reason: str) -> BadImage:
        """The image at a place of the piece as a bad image."""
        return self.span.bad_image(self.start + place, reason)

    def crc32c(self) -> int:
        """The checksum of the encoded images, one after another."""
        found = 0
        for read in self.reads:
            # Arrays are sliced without copies.
            octets = np.frombuffer(read.data, np.uint8)
            for begin, end in zip(read.begins, read.ends, strict=True):
                found = google_crc32c.extend(found, octets[begin:end])
        return found


def cut(spans: Iterable[SampleSpan], images: int, encoded_bytes: int) -> Iterator[Piece]:
    """The spans in pieces of at most `images` and `encoded_bytes`; an image with more bytes is alone."""
    for span in spans:
        ends, start = np.cumsum(span.sizes), 0
        while start < len(span):
            before = int(ends[start - 1]) if start else 0
            fitting = int(np.searchsorted(ends, before + encoded_bytes, side="right"))
            stop = min(max(fitting, start + 1), start + images)
            yield Piece(span, start, stop)
            start = stop


class PieceReader:
    """Reads pieces in order, and keeps the shard of the last one open."""

    def __init__(self, open_source: Callable[[str], ImageReader], most_bytes: int) -> None:
        """One read has at most `most_bytes`, unless an image has more."""
        self._shards, self._most_bytes = OneShard(open_source), most_bytes

    def read(self, piece: Piece) -> None:
        """Read the encoded images of `piece`. Raises SourceError if the shard cannot be read."""
        place = 0
        for read in self._shards.reads(piece.span, piece.start, piece.stop, self._most_bytes):
            found = read.start()()
            piece.without_bytes |= {place + each: reason for each, reason in found.reasons.items()}
            piece.reads.append(Read(place, found.data, found.begins, found.ends))
            place += read.images

    def close(self) -> None:
        """Close the shard."""
        self._shards.close()
