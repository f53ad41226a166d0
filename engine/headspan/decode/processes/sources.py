"""Open the shards of spans in the launching process: name those that workers can read, and copy what they cannot.

Every shard is opened here before its first image is decoded, so a shard that has changed since the plan is refused as
in any run. A worker opens a local file, or a url of a well-known driver, itself. Any other source (gzip, a `pipe:`
command, a server without ranges, a driver of the user's program, a Parquet file with large row groups) is read here,
forwards, one shard at a time, and its images are copied to a spool.
"""

from __future__ import annotations

from collections.abc import Callable

from headspan.decode.one_shard import OneShard
from headspan.io.memory import write_at
from headspan.shards.images import ImagePlace, ImageReader
from headspan.shards.samples import SampleSpan


class Sources:
    """The shards of a run, opened by name."""

    def __init__(self, open_source: Callable[[str], ImageReader]) -> None:
        self._open_source = open_source
        self._places: dict[str, ImagePlace | None] = {}
        # The open shard that no other process can read.
        self._shard = OneShard(open_source)

    def place(self, name: str) -> ImagePlace | None:
        """Where a worker reads the shard; None if only this process can. Raises SourceError if it cannot be opened."""
        if name not in self._places:
            reader = self._open_source(name)
            self._places[name] = reader.place()
            if self._places[name] is None:
                self._shard.keep(name, reader)
            else:
                reader.close()
        return self._places[name]

    def copy(
        self, span: SampleSpan, start: int, stop: int, descriptor: int, most_bytes: int
    ) -> tuple[list[int], dict[int, str]]:
        """Copy the images `start` to `stop` of a span, which are of one shard, to an empty file, one after another.

        Returns where they begin and where the last one ends, and by place the reasons why images have no bytes. Stops
        after the image with which there are `most_bytes` or more. Raises SourceError if the shard cannot be read.
        """
        ends, reasons = [0], dict[int, str]()
        for read in self._shard.reads(span, start, stop, 0):
            ((data, reason),) = read.start()().images()
            if reason is not None:
                reasons[len(ends) - 1] = reason
            write_at(descriptor, data, ends[-1])
            ends.append(ends[-1] + len(data))
            if ends[-1] >= most_bytes:
                break
        return ends, reasons

    def close(self) -> None:
        """Close the shard that is open."""
        self._shard.close()
