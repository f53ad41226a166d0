"""Decode spans of samples into pixels, in order, with a pool of threads.

The caller works per span: it passes samples and receives an array of pixels. Reading and decoding single images stays
in this module. An image that cannot be decoded is returned with its reason; none is dropped silently.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
from PIL import Image

from headspan.config import Preprocess
from headspan.decode.batches import Batch, DecodedSpan
from headspan.decode.exact import Undecodable, open_image, raster_bytes
from headspan.decode.one_shard import OneShard
from headspan.decode.routes import Route
from headspan.errors import SourceError
from headspan.shards.images import ImageReader
from headspan.shards.open_images import open_images
from headspan.shards.samples import SampleSpan
from headspan.timing import StageTimes

# Images that may be read ahead per thread: enough to work around a slow image, few enough for an early first span.
_IMAGES_PER_THREAD = 16
# At least this many spans fit the memory in flight, so that one is filled while others are decoded and returned.
_SPANS_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class ThreadDecoder:
    """Reads spans of samples in the caller's thread, and decodes them on a pool of threads.

    Encoded bytes, rasters (full size and resized, four bytes per pixel, by the image's header) and the pixels of spans
    that are not yet returned stay within `in_flight_bytes` together. An image or a span that is larger is processed
    alone.
    """

    route: Route
    preprocess: Preprocess
    in_flight_bytes: int
    # Threads that decode; None means one per core.
    threads: int | None = None
    # Opens the shard that a sample names as its url.
    open_source: Callable[[str], ImageReader] = open_images
    # Receives the seconds of reading and decoding.
    times: StageTimes = field(default_factory=StageTimes)

    @property
    def image_bytes(self) -> int:
        """Memory of one image's pixels."""
        return self.preprocess.pixel_bytes

    def span_images(self, batch_size: int) -> int:
        """How many images a span should have: a batch, or an equal part of one if memory is short."""
        most = max(1, self.in_flight_bytes // (_SPANS_IN_FLIGHT * self.image_bytes))
        parts = -(-batch_size // most)
        return -(-batch_size // parts)

    def decode(self, spans: Iterable[SampleSpan]) -> Generator[DecodedSpan, None, None]:
        """Yield the pixels of each span, in the order of `spans`. A span has at least one sample.

        The caller's thread reads the images, in order, with one shard open at a time. Closing the generator ends the
        threads.

        Raises SourceError if a shard cannot be read; the spans before the failure are yielded first.
        """
        threads = self.threads or os.cpu_count() or 1
        budget = _Budget(self.in_flight_bytes)
        filling: deque[_FillingSpan] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="headspan-decode")
        shards = OneShard(self.open_source)

        def take_first() -> DecodedSpan:
            span = filling.popleft()
            decoded = span.result()
            budget.give_back(span.pixels.nbytes)
            return decoded

        def make_room(size: int) -> Generator[DecodedSpan, None, None]:
            """Wait until `size` more bytes fit, or until nothing else is left in flight but the span being filled."""
            while not budget.has_room(size):
                if len(filling) > 1:
                    yield take_first()
                elif not filling[-1].wait_for_one():
                    break

        def work(span: _FillingSpan, place: int, encoded: bytes, image: Image.Image, transient_bytes: int) -> None:
            try:
                with self.times.of("decoding"):
                    self.route(encoded, image, self.preprocess, span.pixels[place])
            except Undecodable as error:
                span.reasons[place] = str(error)
            finally:
                budget.give_back(transient_bytes)

        try:
            for samples in spans:
                size = len(samples) * self.image_bytes
                most_spans = 1 + -(-threads * _IMAGES_PER_THREAD // len(samples))
                while filling and (len(filling) >= most_spans or not budget.has_room(size + int(samples.sizes[0]))):
                    yield take_first()
                budget.take(size)
                span = _FillingSpan(samples, self.preprocess.size)
                filling.append(span)
                reads = shards.reads(samples, 0, len(samples), 0)
                for place, size_bytes in enumerate(samples.sizes.tolist()):
                    yield from make_room(size_bytes)
                    try:
                        with self.times.of("reading"):
                            ((encoded, no_bytes),) = next(reads).start()().images()
                    except SourceError:
                        # This span is incomplete; the spans before it may complete a unit.
                        filling.pop()
                        while filling:
                            yield take_first()
                        raise
                    span.crc32c = google_crc32c.extend(span.crc32c, encoded)
                    span.encoded_bytes += len(encoded)
                    try:
                        if no_bytes is not None:
                            raise Undecodable(no_bytes)
                        image = open_image(encoded, self.preprocess)
                    except Undecodable as error:
                        span.reasons[place] = str(error)
                        continue
                    transient_bytes = len(encoded) + raster_bytes(image, self.preprocess)
                    yield from make_room(transient_bytes)
                    budget.take(transient_bytes)
                    span.pending.append(pool.submit(work, span, place, encoded, image, transient_bytes))
                    # The pool alone holds the image, and releases it once it is decoded.
                    del encoded, image
            while filling:
                yield take_first()
        finally:
            shards.close()
            pool.shutdown(wait=True, cancel_futures=True)


class _FillingSpan:
    """A span whose pixels the threads are filling."""

    def __init__(self, samples: SampleSpan, size: tuple[int, int]) -> None:
        self.samples = samples
        # Of the images that have been read so far.
        self.crc32c = self.encoded_bytes = 0
        self.pixels = np.empty((len(samples), *size, 3), np.uint8)
        # Why an image cannot be used, by its place in the span; None for a good one.
        self.reasons: list[str | None] = [None] * len(samples)
        self.pending: deque[Future[None]] = deque()

    def wait_for_one(self) -> bool:
        """Wait for the image that was submitted first; False if none is pending."""
        if self.pending:
            self.pending.popleft().result()
            return True
        return False

    def result(self) -> DecodedSpan:
        """The span once all of its images are decoded or failed."""
        while self.wait_for_one():
            pass
        good = [place for place, reason in enumerate(self.reasons) if reason is None]
        # If an image is bad, the pixels of the good ones are copied together.
        pixels = self.pixels if len(good) == len(self.samples) else self.pixels[good]
        return DecodedSpan(
            Batch(self.samples.rows[good], (pixels,)),
            tuple(
                self.samples.bad_image(place, reason) for place, reason in enumerate(self.reasons) if reason is not None
            ),
            int(self.samples.rows[-1]),
            self.encoded_bytes,
            self.crc32c,
        )


class _Budget:
    """Bytes in flight, counted by several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()

    def has_room(self, size: int) -> bool:
        with self._lock:
            return self._taken + size <= self._limit

    def take(self, size: int) -> None:
        with self._lock:
            self._taken += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self._taken -= size
