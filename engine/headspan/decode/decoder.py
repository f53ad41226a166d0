"""The Decoder interface: spans of samples go in, and their pixels come out in the same order."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol, runtime_checkable

from headspan.decode.batches import DecodedSpan
from headspan.shards.samples import SampleSpan


@runtime_checkable
class Decoder(Protocol):
    """Reads the samples of spans and decodes them; an image that cannot be decoded is returned with its reason."""

    @property
    def image_bytes(self) -> int:
        """Memory of one image's pixels."""

    def span_images(self, batch_size: int) -> int:
        """How many samples a span should have for batches of `batch_size` images."""

    def decode(self, spans: Iterable[SampleSpan]) -> Generator[DecodedSpan, None, None]:
        """Yield the pixels of each span, in the order of `spans`. A span has at least one sample.

        The consumer calls `release` of a span's batch late: it computes one batch, has the next one launched, and
        collects spans for a third one. So memory that is used again must hold three batches and the spans in flight,
        or the decoder yields copies. `release` may be called from another thread than the one that iterates.

        Closing the generator ends the threads and processes that decode. Raises SourceError if a shard cannot be read;
        the spans before the failure are yielded first.
        """
