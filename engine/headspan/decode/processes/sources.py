"""Open the shards of spans in the launching process: name those that workers can read, and copy what they cannot.

Every shard is opened here before its first image is decoded, so a shard that has changed since the plan is refused as
in any run. A worker opens a local file, or a url of a well-known driver, itself. Any other source (gzip, a `pipe:`
command, a server without ranges, a driver of the user's program) is read here, forwards, one shard at a time, and its
images are copied to a spool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from headspan.decode.one_shard import OneShard
from headspan.io.memory import write_at
from headspan.shards.reader import Place, ShardReader
from headspan.shards.tar_header import BLOCK_BYTES


class Sources:
    """The shards of a run, opened by name."""

    def __init__(self, open_source: Callable[[str], ShardReader]) -> None:
        self._open_source = open_source
        self._places: dict[str, Place | None] = {}
        # The open shard that no other process can read.
        self._shard = OneShard(open_source)

    def place(self, name: str) -> Place | None:
        """Where a worker reads the shard; None if only this process can. Raises SourceError if it cannot be opened."""
        if name not in self._places:
            reader = self._open_source(name)
            self._places[name] = reader.place()
            if self._places[name] is None:
                self._shard.keep(name, reader)
            else:
                reader.close()
        return self._places[name]

    def copy(self, name: str, members: Iterable[tuple[int, int]], descriptor: int) -> Iterator[int]:
        """Copy members (offset and size) of a shard to an empty file, one after another. Yields their new offsets.

        Of an empty member, the header is copied and the offset follows it, as in a tar. Raises SourceError if the shard
        cannot be read.
        """
        reader = self._shard.open(name)
        position = 0
        for offset, size in members:
            header = 0 if size else BLOCK_BYTES
            yield position + header
            data = reader.read_at(offset - header, size + header)
            write_at(descriptor, data, position)
            position += len(data)

    def close(self) -> None:
        """Close the shard that is open."""
        self._shard.close()
