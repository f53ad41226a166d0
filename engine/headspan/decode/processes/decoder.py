"""The decoder that works in processes: it divides the memory in flight and starts a pass over spans.

The launching process does work per span only, so its interpreter is free for the thread that launches kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from headspan.config import Preprocess
from headspan.decode.processes.decoding import KEPT_SLOTS, Decoding
from headspan.decode.processes.kept import DecodingProcesses, Pin
from headspan.decode.processes.messages import WorkerSettings
from headspan.decode.processes.sources import Sources
from headspan.decode.processes.worker_process import DEPTH
from headspan.io.cores import cores
from headspan.shards.images import ImageReader
from headspan.shards.open_images import open_images
from headspan.shards.samples import SampleSpan
from headspan.timing import StageTimes

# More images in a span save little time of the launching process.
_SPAN_IMAGES = 32
# Shares of the memory in flight: an eighth each for the encoded images that workers hold and for those in spools, a
# quarter for rasters, and half for pixels.
_ENCODED, _RASTERS, _PIXELS = 8, 4, 2
# The consumer may hold two batches while it gathers a third.
_HELD_BATCHES = 3


@dataclass(frozen=True, slots=True)
class ProcessDecoder:
    """Decodes spans of samples in processes.

    Encoded bytes, rasters (full size and resized, four bytes per pixel, by the image's header) and pixels stay within
    `in_flight_bytes` together, beside the pixels of the three batches that the consumer may hold. Of the images that
    are larger than the share of their kind, one at a time is processed; the pixels have room for two spans in any case.
    """

    # `exact` or `fast`.
    route: str
    preprocess: Preprocess
    in_flight_bytes: int
    # The images of the batches that the spans are joined to.
    batch_size: int
    # Processes that decode; None means one per core but one, and at least one.
    processes: int | None = None
    # Opens the shard that a span names.
    open_source: Callable[[str], ImageReader] = open_images
    # Receives the seconds of reading and decoding.
    times: StageTimes = field(default_factory=StageTimes)
    # Makes transfers of the pixels to a device fast.
    pin: Pin | None = None
    # The run's processes, which remain after a pass over spans. Without them, each pass has its own.
    kept: DecodingProcesses | None = None

    @property
    def image_bytes(self) -> int:
        """Memory of one image's pixels."""
        return self.preprocess.pixel_bytes

    @property
    def workers(self) -> int:
        """How many processes decode."""
        return self.processes or default_workers()

    def span_images(self, batch_size: int) -> int:
        """How many images a span should have: an equal part of a batch, of at most 32 images, fewer if memory is short.

        Every worker has two spans.
        """
        spans = DEPTH * self.workers
        most = max(1, min(_SPAN_IMAGES, self.in_flight_bytes // _PIXELS // (spans * self.image_bytes)))
        parts = -(-batch_size // most)
        return -(-batch_size // parts)

    @property
    def slots(self) -> int:
        """How many spans the ring holds: those that the consumer may hold, and those in flight."""
        images = self.span_images(self.batch_size)
        held = -(-_HELD_BATCHES * self.batch_size // images)
        return held + max(KEPT_SLOTS, self.in_flight_bytes // _PIXELS // (images * self.image_bytes))

    @property
    def most_bytes(self) -> int:
        """Memory that images take at most: encoded ones and rasters, and the whole ring of pixels."""
        ring = self.slots * self.span_images(self.batch_size) * self.image_bytes
        return self.in_flight_bytes - self.in_flight_bytes // _PIXELS + ring

    def decode(self, spans: Iterable[SampleSpan]) -> Decoding:
        """Yield the pixels of each span, in the order of `spans`, as views that are valid until they are released.

        A span has at least one sample. It comes in parts if it has more images than `span_images` says, or if only this
        process can read its source and memory is short. Closing the generator ends the processes.

        Raises SourceError if a shard cannot be read; the spans before the failure are yielded first. Raises
        HeadspanError if memory or processes cannot be had.
        """
        settings = WorkerSettings(
            worker=0,
            workers=self.workers,
            route=self.route,
            preprocess=self.preprocess,
            slots=self.slots,
            slot_images=self.span_images(self.batch_size),
            encoded_bytes=self.in_flight_bytes // _ENCODED // self.workers,
            raster_bytes=self.in_flight_bytes // _RASTERS,
        )
        return Decoding(
            spans,
            settings,
            Sources(self.open_source),
            self.times,
            _HELD_BATCHES * self.batch_size,
            self.in_flight_bytes // _ENCODED,
            self.pin,
            self.kept,
        )


def default_workers(devices: int = 1) -> int:
    """Of the cores, which `devices` launching processes share: each one's part but its own core, and at least one."""
    return max(1, cores() // devices - 1)
