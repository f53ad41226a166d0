"""Keep the shard that was read last open, since samples of one shard follow one another."""

from __future__ import annotations

from collections.abc import Callable

from headspan.shards.reader import ShardReader


class OneShard:
    """Opens shards with `open_source`, and closes each when another one is opened."""

    def __init__(self, open_source: Callable[[str], ShardReader]) -> None:
        self._open_source = open_source
        self._url = ""
        self._reader: ShardReader | None = None

    def open(self, url: str) -> ShardReader:
        """The reader of a shard. Raises SourceError if the shard cannot be opened."""
        if self._reader is None or self._url != url:
            self.close()
            self.keep(url, self._open_source(url))
        assert self._reader is not None
        return self._reader

    def keep(self, url: str, reader: ShardReader) -> None:
        """Keep a reader that is open already; the one before it is closed."""
        self.close()
        self._url, self._reader = url, reader

    def close(self) -> None:
        """Close the shard that is open."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None
