"""The decoder that works on a GPU: JPEGs become pixels there, and are resized there, on several streams."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headspan.config import Preprocess
from headspan.decode.batches import DecodedSpan
from headspan.decode.gpu.nvjpeg import DecodeJpegs, silence
from headspan.decode.gpu.pieces import Piece, PieceReader, cut
from headspan.decode.gpu.rendering import Rendering
from headspan.errors import SourceError
from headspan.shards.images import ImageReader
from headspan.shards.open_images import open_images
from headspan.shards.samples import SampleSpan
from headspan.timing import StageTimes

# Threads that render, each on its own stream: while one waits for the library, others read headers and resize.
STREAMS = 4
# How long a thread keeps the interpreter when another one wants it. The thread that launches kernels gives it up at
# every launch, and Python's 5 ms would then cost more than the launch.
_SWITCH_SECONDS = 2e-4
# Pieces that are rendered or wait for a thread.
_PIECES = STREAMS + 1
# More images in a call decode no faster.
_MOST_IMAGES = 128


@dataclass(frozen=True, slots=True)
class GpuDecoder:
    """Decodes spans of samples on a device, to pixels that stay there.

    On the host, encoded bytes and rasters stay within `in_flight_bytes` together; so do rasters and pixels on the
    device, until a span is yielded. An image that is larger than its share is processed alone.
    """

    decode_jpegs: DecodeJpegs
    preprocess: Preprocess
    device: torch.device
    # The type of the pixels.
    dtype: torch.dtype
    in_flight_bytes: int
    # Threads that decode what the device does not; None means one per core.
    threads: int | None = None
    # Opens the shard that a sample names as its url.
    open_source: Callable[[str], ImageReader] = open_images
    # Receives the seconds of reading and decoding.
    times: StageTimes = field(default_factory=StageTimes)

    @property
    def image_bytes(self) -> int:
        """Memory of one image's pixels, on the device."""
        return self.preprocess.pixel_bytes * self.dtype.itemsize

    def span_images(self, batch_size: int) -> int:
        """How many images a span should have: several batches, or an equal part of one, as far as memory allows."""
        most = max(1, min(_MOST_IMAGES, self.in_flight_bytes // 2 // (_PIECES * self.image_bytes)))
        if batch_size <= most:
            return most // batch_size * batch_size
        parts = -(-batch_size // most)
        return -(-batch_size // parts)

    def decode(self, spans: Iterable[SampleSpan]) -> Generator[DecodedSpan, None, None]:
        """Yield the pixels of each span, in the order of `spans`, as tensors on the device.

        A span comes in parts if memory is short. The caller's thread reads, with one shard open at a time. Closing the
        generator ends the threads.

        Raises SourceError if a shard cannot be read; the spans before the failure are yielded first.
        """
        encoded_bytes = self.in_flight_bytes // 2 // (_PIECES + 1)
        reader = PieceReader(self.open_source, encoded_bytes)
        # `host` is created first: pieces that are being rendered wait for what it decodes.
        host = ThreadPoolExecutor(self.threads or os.cpu_count() or 1, thread_name_prefix="headspan-decode")
        streams = ThreadPoolExecutor(STREAMS, thread_name_prefix="headspan-stream")
        render = _OnStreams(
            Rendering(
                self.decode_jpegs,
                self.preprocess,
                self.device,
                self.dtype,
                self.in_flight_bytes // 2 // STREAMS,
                host,
                self.in_flight_bytes // 2,
            ),
            self.device,
            self.times,
        )
        pending: deque[Future[DecodedSpan]] = deque()
        silence()
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, _SWITCH_SECONDS))
        try:
            for piece in cut(spans, self.span_images(_MOST_IMAGES), encoded_bytes):
                if len(pending) == _PIECES:
                    yield self._handed_over(pending.popleft().result())
                try:
                    with self.times.of("reading"):
                        reader.read(piece)
                except SourceError:
                    # The pieces before it may complete a unit.
                    while pending:
                        yield self._handed_over(pending.popleft().result())
                    raise
                pending.append(streams.submit(render, piece))
                # The threads alone hold the encoded images, and release them once they are decoded.
                del piece
            while pending:
                yield self._handed_over(pending.popleft().result())
        finally:
            sys.setswitchinterval(before)
            reader.close()
            streams.shutdown(wait=True, cancel_futures=True)
            host.shutdown(wait=True, cancel_futures=True)

    def _handed_over(self, span: DecodedSpan) -> DecodedSpan:
        """The span, whose memory is not used again before the work that the current stream has by then is done."""
        if self.device.type == "cuda":
            for part in span.good.parts:
                assert isinstance(part, Tensor)
                part.record_stream(torch.cuda.current_stream(self.device))
        return span


class _OnStreams:
    """Renders on a stream of the calling thread."""

    def __init__(self, render: Rendering, device: torch.device, times: StageTimes) -> None:
        self._render, self._device, self._times = render, device, times
        self._own = threading.local()

    def __call__(self, piece: Piece) -> DecodedSpan:
        with self._stream(), self._times.of("decoding"):
            return self._render(piece)

    def _stream(self) -> torch.cuda.StreamContext | nullcontext[None]:
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)
        return torch.cuda.stream(self._own.stream)
