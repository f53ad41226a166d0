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
from queue import SimpleQueue

from headspan.decode.processes.messages import SpanRequest, WorkerSettings
from headspan.decode.processes.ring import Ring
from headspan.decode.room import Room
from headspan.errors import HeadspanError
from headspan.shards.images import Encoded, ImagePlace, ImageReader, Read, Wanted
from headspan.shards.open_images import open_images_at, open_spool

# The most bytes of one read.
_READ_BYTES = 2 << 20
# Reads that fit into the memory of encoded bytes, so that one can be decoded while others are on their way.
_READS = 4
# Shards that stay open.
_OPEN_SHARDS = 4


class EncodedSpan:
    """A span whose encoded images arrive; iterate over it once."""

    def __init__(self, request: SpanRequest, room: _Room) -> None:
        self.request = request
        # Time in which the reading thread read, the decoding thread waited for answers, and it waited for either.
        self.reading_seconds = self.answering_seconds = self.waiting_seconds = 0.0
        self._room = room
        self._reads: SimpleQueue[tuple[Read, Callable[[], Encoded]] | Exception | None] = SimpleQueue()

    def add(self, read: Read, wait: Callable[[], Encoded]) -> None:
        """Add a read that has begun, after those before it."""
        self._reads.put((read, wait))

    def end(self, failure: Exception | None = None) -> None:
        """Add nothing more."""
        self._reads.put(failure)

    def __iter__(self) -> Iterator[tuple[int, bytes, str | None]]:
        """Each image's place in the span, its bytes, and None or the reason why there are none.

        Raises SourceError if the shard cannot be read. The rest of the span is then dropped.
        """
        ended = False
        place = 0
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
                read, wait = item
                try:
                    began = time.perf_counter()
                    found = wait()
                    waited = time.perf_counter() - began
                    self.answering_seconds += waited
                    self.waiting_seconds += waited
                    for encoded, reason in found.images():
                        yield place, encoded, reason
                        place += 1
                finally:
                    self._room.give_back(read.size)
        finally:
            while not ended:
                item = self._reads.get()
                ended = not isinstance(item, tuple)
                if isinstance(item, tuple):
                    self._room.give_back(item[0].size)


class Reader:
    """Reads spans in a thread, in the order in which they are given to it."""

    def __init__(self, settings: WorkerSettings, ring: Ring) -> None:
        self._settings = settings
        self._room = _Room(settings.encoded_bytes, ring)
        self._open: OrderedDict[ImagePlace, ImageReader] = OrderedDict()
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
            stop = first + run.images
            wanted = Wanted(request.offsets[first:stop], request.sizes[first:stop], request.members[first:stop])
            first = stop
            if run.place is not None:
                began = time.perf_counter()
                images = self._reader(run.place)
                span.reading_seconds += time.perf_counter() - began
                self._read_run(span, images, wanted)
                continue
            with open_spool(os.dup(self._settings.spools[request.spool])) as images:
                self._read_run(span, images, wanted)

    def _read_run(self, span: EncodedSpan, images: ImageReader, wanted: Wanted) -> None:
        for read in images.reads(wanted, min(_READ_BYTES, self._settings.encoded_bytes // _READS)):
            self._room.take(read.size)
            began = time.perf_counter()
            try:
                wait = read.start()
            except HeadspanError as error:
                # The images before it are decoded first.
                wait = _raising(error)
            span.reading_seconds += time.perf_counter() - began
            span.add(read, wait)

    def _reader(self, place: ImagePlace) -> ImageReader:
        if place in self._open:
            self._open.move_to_end(place)
        else:
            self._open[place] = open_images_at(place)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        return self._open[place]


def _raising(error: Exception) -> Callable[[], Encoded]:
    def wait() -> Encoded:
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
