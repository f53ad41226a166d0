"""Read the encoded images of spans, neighbouring ones in one read, ahead of their decoding.

A thread reads, and the process's main thread decodes. Encoded bytes that are read or requested, but not yet decoded,
stay within a limit; an image that is larger is read alone, in one process at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from headspan.decode.processes.messages import SpanRequest, WorkerSettings
from headspan.decode.processes.ring import Ring
from headspan.decode.room import Room
from headspan.errors import HeadspanError
from headspan.shards.reader import Place, ShardReader
from headspan.shards.sources import open_place, read_spool
from headspan.shards.tar_header import BLOCK_BYTES, dead_link_of

# Bytes between two images, such as captions and headers, that are read with them.
_GAP_BYTES = 64 << 10
# The most bytes of one read.
_READ_BYTES = 2 << 20
# Reads that fit into the memory of encoded bytes, so that one can be decoded while others are on their way.
_READS = 4
# Shards that stay open.
_OPEN_SHARDS = 4


@dataclass(frozen=True, slots=True)
class Read:
    """One read of neighbouring members: the places of its images, and where its bytes are in the shard."""

    first: int
    images: int
    offset: int
    size: int


def plan_reads(offsets: tuple[int, ...], sizes: tuple[int, ...], places: range, most_bytes: int) -> Iterator[Read]:
    """The reads of the images at `places`, in their order. A read of one image may have more than `most_bytes`.

    The header of an empty member is read in place of its data, since it tells a link from an empty file.
    """
    first = places.start
    while first < places.stop:
        begin, end = offsets[first], offsets[first] + sizes[first]
        stop = first + 1
        if sizes[first] == 0:
            yield Read(first, 1, begin - BLOCK_BYTES, BLOCK_BYTES)
            first = stop
            continue
        while (
            stop < places.stop
            and sizes[stop]
            and end <= offsets[stop] <= end + _GAP_BYTES
            and offsets[stop] + sizes[stop] - begin <= most_bytes
        ):
            end = offsets[stop] + sizes[stop]
            stop += 1
        yield Read(first, stop - first, begin, end - begin)
        first = stop


class EncodedSpan:
    """A span whose encoded images arrive; iterate over it once."""

    def __init__(self, request: SpanRequest, room: _Room) -> None:
        self.request = request
        # Time in which the reading thread read, the decoding thread waited for answers, and it waited for either.
        self.reading_seconds = self.answering_seconds = self.waiting_seconds = 0.0
        self._room = room
        self._reads: SimpleQueue[tuple[Read, ShardReader, Callable[[], bytes]] | Exception | None] = SimpleQueue()

    def add(self, read: Read, reader: ShardReader, wait: Callable[[], bytes]) -> None:
        """Add a read that has begun."""
        self._reads.put((read, reader, wait))

    def end(self, failure: Exception | None = None) -> None:
        """Add nothing more."""
        self._reads.put(failure)

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        """Each image's place in the span, its bytes, and for a link without a target the sentence that says so.

        Raises SourceError if the shard cannot be read. The rest of the span is then dropped.
        """
        ended = False
        try:
            while True:
                began = time.perf_counter()
                item = self._reads.get()
                self.waiting_seconds += time.perf_counter() - began
                ended = not isinstance(item, tuple)
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                read, reader, wait = item
                try:
                    began = time.perf_counter()
                    data = wait()
                    waited = time.perf_counter() - began
                    self.answering_seconds += waited
                    self.waiting_seconds += waited
                    yield from self._images(read, reader, data)
                finally:
                    self._room.give_back(read.size)
        finally:
            while not ended:
                item = self._reads.get()
                ended = not isinstance(item, tuple)
                if isinstance(item, tuple):
                    self._room.give_back(item[0].size)

    def _images(self, read: Read, reader: ShardReader, data: bytes) -> Iterator[tuple[int, bytes, str | None]]:
        if self.request.sizes[read.first] == 0:
            if len(data) < read.size:
                raise reader.truncated(read.offset, read.size, read.offset + len(data))
            yield read.first, b"", dead_link_of(data)
            return
        for place in range(read.first, read.first + read.images):
            offset, size = self.request.offsets[place], self.request.sizes[place]
            begin = offset - read.offset
            if begin + size > len(data):
                raise reader.truncated(offset, size, read.offset + len(data))
            yield place, data[begin : begin + size], None


class Reader:
    """Reads spans in a thread, in the order in which they are given to it."""

    def __init__(self, settings: WorkerSettings, ring: Ring) -> None:
        self._settings = settings
        self._room = _Room(settings.encoded_bytes, ring)
        self._open: OrderedDict[Place, ShardReader] = OrderedDict()
        self._requests: SimpleQueue[SpanRequest] = SimpleQueue()
        self._spans: SimpleQueue[EncodedSpan] = SimpleQueue()
        threading.Thread(target=self._run, name="headspan-read", daemon=True).start()

    def give(self, request: SpanRequest) -> None:
        """Read this span after the ones before it."""
        self._requests.put(request)

    def next(self) -> EncodedSpan:
        """The next span, as soon as its reading begins."""
        return self._spans.get()

    def _run(self) -> None:
        while True:
            request = self._requests.get()
            span = EncodedSpan(request, self._room)
            self._spans.put(span)
            try:
                self._read(span)
            # The thread that decodes raises it.
            except Exception as error:
                span.end(error)
            else:
                span.end()

    def _read(self, span: EncodedSpan) -> None:
        request, first = span.request, 0
        for run in request.runs:
            places = range(first, first + run.images)
            first = places.stop
            if run.place is not None:
                began = time.perf_counter()
                reader = self._reader(run.place)
                span.reading_seconds += time.perf_counter() - began
                self._read_run(span, places, reader, run.place.size_bytes)
                continue
            with read_spool(os.dup(self._settings.spools[request.spool])) as reader:
                self._read_run(span, places, reader, None)

    def _read_run(self, span: EncodedSpan, places: range, reader: ShardReader, end: int | None) -> None:
        """Read the images at `places` from a shard that ends at `end`."""
        request = span.request
        most_bytes = min(_READ_BYTES, self._settings.encoded_bytes // _READS)
        for read in plan_reads(request.offsets, request.sizes, places, most_bytes):
            self._room.take(read.size)
            began = time.perf_counter()
            try:
                if end is not None and read.offset > end:
                    raise reader.truncated(request.offsets[read.first], request.sizes[read.first], end)
                wait = reader.start(read.offset, read.size)
            except HeadspanError as error:
                # The images before it are decoded first.
                wait = _raising(error)
            span.reading_seconds += time.perf_counter() - began
            span.add(read, reader, wait)

    def _reader(self, place: Place) -> ShardReader:
        if place in self._open:
            self._open.move_to_end(place)
        else:
            self._open[place] = open_place(place)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        return self._open[place]


def _raising(error: Exception) -> Callable[[], bytes]:
    def wait() -> bytes:
        raise error

    return wait


class _Room(Room):
    """The encoded bytes that this process holds; of all processes, one at a time holds an image that is larger."""

    def __init__(self, limit: int, ring: Ring) -> None:
        super().__init__(limit)
        self._ring = ring

    def take(self, size: int) -> None:
        super().take(size)
        if size > self.limit:
            self._ring.lock_large()

    def give_back(self, size: int) -> None:
        if size > self.limit:
            self._ring.unlock_large()
        super().give_back(size)
