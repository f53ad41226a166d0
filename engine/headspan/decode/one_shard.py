"""Keep the shard that was read last open, since samples of one shard follow one another, and read spans from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headspan.shards.images import ImageReader, Read
from headspan.shards.samples import SampleSpan


class OneShard:
    """Opens shards with `open_source`, and closes each when another one is opened."""

    def __init__(self, open_source: Callable[[str], ImageReader]) -> None:
        self._open_source = open_source
        self._url = ""
        self._reader: ImageReader | None = None

    def open(self, url: str) -> ImageReader:
        """The reader of a shard. Raises SourceError if the shard cannot be opened."""
        if self._reader is None or self._url != url:
            self.close()
            self.keep(url, self._open_source(url))
        assert self._reader is not None
        return self._reader

    def keep(self, url: str, reader: ImageReader) -> None:
        """Keep a reader that is open already; the one before it is closed."""
        self.close()
        self._url, self._reader = url, reader

    def reads(self, span: SampleSpan, start: int, stop: int, most_bytes: int) -> Iterator[Read]:
        """The reads of the images `start` to `stop` of a span, each of at most `most_bytes` or of a single image.

        Raises SourceError if a shard cannot be opened.
        """
        for url, first, end in span.parts(start, stop):
            reader = self.open(url)
            yield from reader.reads(span.wanted(first, end, reader.needs_members), most_bytes)

    def close(self) -> None:
        """Close the shard that is open."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None
