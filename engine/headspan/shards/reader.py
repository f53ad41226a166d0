"""The interface for reading a shard: bytes at an offset, with an error where the shard ends early."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

from headspan.errors import SourceError


class Place(NamedTuple):
    """Where any process can read a shard's bytes at any offset: a local file, or a url on a server."""

    # As messages name it.
    url: str
    # The absolute path of a local file; None for a url.
    path: str | None
    size_bytes: int
    # Of a local file: device, inode, and time of modification in nanoseconds.
    identity: tuple[int, int, int] | None = None


class ShardReader(ABC):
    """The bytes of one shard, decompressed if it is gzip or zstd. Close it, or use it as a context manager."""

    # False if a truncated stream looks like a complete one, as with a pipe.
    knows_its_end = True
    # How the shard is packed, if it is: `gzip` or `zstd`.
    packing = "gzip"
    # Whether bytes that are not packed so follow the end of the packed stream. Known when the end has been read.
    has_trailing_garbage = False

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def size_bytes(self) -> int | None:
        """The size of a shard that can be read at any offset; None for a stream."""
        return None

    @abstractmethod
    def read_up_to(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer only at the end. Raises SourceError if the shard ends before `offset`."""

    @abstractmethod
    def close(self) -> None:
        """Release the file, the connection or the command."""

    def start(self, offset: int, size: int) -> Callable[[], bytes]:
        """Begin to read as `read_up_to` does. Returns a function that waits for the bytes."""
        data = self.read_up_to(offset, size)
        return lambda: data

    def place(self) -> Place | None:
        """Where other processes can read the same bytes; None if only this reader can."""
        return None

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`. Raises SourceError if the shard ends before them."""
        data = self.read_up_to(offset, size)
        if len(data) < size:
            raise self.truncated(offset, size, offset + len(data))
        return data

    def truncated(self, offset: int, size: int, end: int) -> SourceError:
        """The error for `size` bytes at `offset` of a shard that ends at `end`."""
        return SourceError(
            f"{self.url}: truncated: expected {size} bytes at offset {offset}, but the file ends at {end}; "
            "fetch the shard again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
