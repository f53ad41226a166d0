"""Tar members to uint8 pixels, in the order of the samples; the bad ones set aside and counted.

An image that cannot be used goes to `on_bad` with its reason; none is dropped in silence. What the pixels
are is pixels.py's, or fast_pixels.py's, which needs torch and is loaded when it is asked for.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.config import Preprocess
from headspan.decode.exact import PIXELS_LIMIT, Undecodable, open_image, raster_bytes, render
from headspan.decode.images import DecodedImage
from headspan.errors import SettingsError, SourceError, one_line
from headspan.shards.reader import ShardReader
from headspan.shards.samples import BadImage, Sample
from headspan.shards.sources import open_shard
from headspan.shards.tar_header import BLOCK_BYTES, dead_link_of
from headspan.timing import StageTimes

# Encoded image, the same with its header read, and what the model wants; raises Undecodable.
Renderer = Callable[[bytes, Image.Image, Preprocess], UInt8[np.ndarray, "height width 3"]]

# Images of the queue per thread: enough to work around a slow one, few enough for an early first result.
_QUEUE_PER_WORKER = 16


def exact_pixels(encoded: bytes, image: Image.Image, preprocess: Preprocess) -> UInt8[np.ndarray, "height width 3"]:
    """`pixels.render`, which needs no more than the opened image."""
    return render(image, preprocess)


def renderer(name: str) -> Renderer:
    """How `--decode` of that name makes pixels. Raises SettingsError where its library cannot be loaded."""
    if name == "exact":
        return exact_pixels
    try:
        # Imported here, since only `fast` needs simplejpeg.
        from headspan.decode.fast import render_fast
    except ImportError as error:
        raise SettingsError(
            f"--decode fast takes simplejpeg, which cannot be loaded here ({one_line(error)}); pip install simplejpeg, "
            "or give --decode exact"
        ) from error
    return render_fast


def decode(
    samples: Iterable[Sample],
    preprocess: Preprocess,
    on_bad: Callable[[BadImage], None],
    workers: int | None,
    in_flight_bytes: int,
    open_source: Callable[[str], ShardReader] = open_shard,
    on_read: Callable[[Sample, bytes], None] | None = None,
    times: StageTimes | None = None,
    to_pixels: Renderer = exact_pixels,
) -> Generator[DecodedImage, None, None]:
    """The samples' pixels, in their order whatever the number of threads; `workers` None means one a core.

    Members are read by the caller's thread, shard after shard, one open at a time. Encoded bytes, rasters
    (full size and resized, four bytes a pixel, as the image's header says) and finished pixels that are not
    yet yielded stay within `in_flight_bytes` together; an image larger than that passes alone. `on_bad` is
    called in row order, before the next good image is yielded; `on_read` in row order too, with each member's
    bytes as they were read. `open_source` opens what a sample names as its url, `to_pixels` renders it; `times` takes
    reading and decoding.

    Raises SourceError where a shard cannot be read, after the images before it. Closing the generator ends its threads.
    """
    workers, times = workers or os.cpu_count() or 1, times or StageTimes()
    queue: deque[tuple[Sample, Future[UInt8[np.ndarray, "height width 3"] | str]]] = deque()
    budget = _Budget(in_flight_bytes)
    height, width = preprocess.size
    finished_bytes = height * width * 3

    def take_first() -> Generator[DecodedImage, None, None]:
        sample, future = queue.popleft()
        result = future.result()
        budget.give_back(finished_bytes)
        if isinstance(result, str):
            on_bad(BadImage(sample.row, sample.key, sample.url, result))
        else:
            yield DecodedImage(sample.row, result)

    def work(encoded: bytes, image: Image.Image, transient_bytes: int) -> UInt8[np.ndarray, "height width 3"] | str:
        try:
            with times.of("decoding"):
                return to_pixels(encoded, image, preprocess)
        except Undecodable as error:
            return str(error)
        finally:
            budget.give_back(transient_bytes)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="headspan-decode")
    shards = _OneShard(open_source)
    try:
        for sample in samples:
            while queue and (
                len(queue) >= workers * _QUEUE_PER_WORKER or not budget.has_room(sample.size_bytes + finished_bytes)
            ):
                yield from take_first()
            try:
                with times.of("reading"):
                    encoded, link = shards.read(sample)
            except SourceError:
                # What was read before is good, and may complete a unit.
                while queue:
                    yield from take_first()
                raise
            if on_read is not None:
                on_read(sample, encoded)
            try:
                if link is not None:
                    raise Undecodable(link)
                image = open_image(encoded, preprocess, PIXELS_LIMIT)
            except Undecodable as error:
                failed: Future[UInt8[np.ndarray, "height width 3"] | str] = Future()
                failed.set_result(str(error))
                budget.take(finished_bytes)
                queue.append((sample, failed))
                continue
            transient_bytes = len(encoded) + raster_bytes(image, preprocess)
            while queue and not budget.has_room(transient_bytes + finished_bytes):
                yield from take_first()
            budget.take(transient_bytes + finished_bytes)
            queue.append((sample, pool.submit(work, encoded, image, transient_bytes)))
            # The queue alone holds the image, and lets go of it once it is rendered.
            del encoded, image
        while queue:
            yield from take_first()
    finally:
        shards.close()
        pool.shutdown(wait=True, cancel_futures=True)


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


class _OneShard:
    """Reads members, keeping the shard of the last one open."""

    def __init__(self, open_source: Callable[[str], ShardReader]) -> None:
        self._open_source = open_source
        self._url = ""
        self._reader: ShardReader | None = None

    def read(self, sample: Sample) -> tuple[bytes, str | None]:
        """The member's bytes; where there are none since it is a link to nothing, the sentence that says so."""
        if self._reader is None or self._url != sample.url:
            self.close()
            self._reader, self._url = self._open_source(sample.url), sample.url
        if sample.size_bytes == 0:
            # The header in front tells a link from an empty file.
            return b"", dead_link_of(self._reader.read_at(sample.offset - BLOCK_BYTES, BLOCK_BYTES))
        return self._reader.read_at(sample.offset, sample.size_bytes), None

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None
