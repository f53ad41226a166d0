"""The interface for reading the encoded images of a shard of any kind: tar, folder, list, Parquet file.

Neighbouring images come in one read, and several reads can be on their way at once. An image without bytes comes with
the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from headspan.shards.reader import Place

# The kinds of readers that any process can open at an `ImagePlace`.
TAR, FILES, PARQUET = "tar", "files", "parquet"
# The offset of a file that did not exist when the run was planned.
MISSING = -1


class ImagePlace(NamedTuple):
    """Where any process can read a shard's images."""

    # TAR, FILES or PARQUET.
    kind: str
    # Of the tar or the Parquet file. For FILES, of the folder that paths are relative to.
    place: Place
    # The column of a Parquet file that holds the images.
    column: str = ""
    # For FILES: the time in nanoseconds after which no file was modified when the run was planned; None for any.
    newest_ns: int | None = None

    @property
    def needs_members(self) -> bool:
        """Whether images are found by their members' paths."""
        return self.kind == FILES


class Wanted(NamedTuple):
    """Images of one shard, as columns: what their Samples have as `offset`, `size_bytes` and `member`."""

    offsets: tuple[int, ...]
    # Estimates, if the shard does not state sizes.
    sizes: tuple[int, ...]
    # Empty for readers that do not need them.
    members: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """Encoded images that were read together: where each begins and ends in `data`."""

    data: bytes
    begins: Sequence[int]
    ends: Sequence[int]
    # By place, the reason why an image has no bytes.
    reasons: Mapping[int, str]

    def images(self) -> Iterator[tuple[bytes, str | None]]:
        """Each image's bytes, and None or the reason why there are none."""
        for place, (begin, end) in enumerate(zip(self.begins, self.ends, strict=True)):
            yield self.data[begin:end], self.reasons.get(place)

    @classmethod
    def one(cls, data: bytes, reason: str | None = None) -> Encoded:
        """A single image."""
        return cls(data, (0,), (len(data),), {} if reason is None else {0: reason})


class Read(NamedTuple):
    """A read that can be started: how many images, about how many bytes, and what starts it.

    `start` returns a function that waits for the images. Both raise SourceError if the shard cannot be read.
    """

    images: int
    size: int
    start: Callable[[], Callable[[], Encoded]]


class ImageReader(ABC):
    """The encoded images of one shard. Close it, or use it as a context manager."""

    # Whether `Wanted` must have members.
    needs_members = False

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def reads(self, wanted: Wanted, most_bytes: int) -> Iterator[Read]:
        """The reads of the images `wanted`, in their order, each of at most `most_bytes` or of a single image."""

    @abstractmethod
    def close(self) -> None:
        """Release the file, the connection or the command."""

    def place(self) -> ImagePlace | None:
        """Where other processes can read the same images; None if only this reader can."""
        return None

    def read(self, wanted: Wanted, most_bytes: int = 0) -> Iterator[tuple[bytes, str | None]]:
        """Each image's bytes, and None or the reason why there are none. Raises SourceError as `Read` does."""
        for read in self.reads(wanted, most_bytes):
            yield from read.start()().images()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
