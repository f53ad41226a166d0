"""Open the bytes of a video as a file: in place where that is possible, else as a copy."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import Protocol, runtime_checkable

from headspan.shards.reader import ShardReader
from headspan.shards.sources import open_shard
from headspan.video.sources import Video

# Up to this size, a copy is held in memory.
_MEMORY_BYTES = 32 << 20
_PIECE_BYTES = 4 << 20


@runtime_checkable
class ReadableFile(Protocol):
    """What is needed of an open file."""

    def read(self, size: int = -1, /) -> bytes | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class _Span(io.RawIOBase):
    """Some bytes of a local file, as a file of their own."""

    def __init__(self, path: str, offset: int, size: int | None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset, self._place = offset, 0
        self._size = os.fstat(self._descriptor).st_size - offset if size is None else size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._size - self._place)]
        count = os.preadv(self._descriptor, [view], self._offset + self._place) if len(view) else 0
        self._place += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Copies:
    """Copies the bytes of videos that cannot be read in place: one pass over each source, if they come in its order.

    A context manager, for one thread.
    """

    def __init__(self) -> None:
        self._reader: ShardReader | None = None

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def of(self, video: Video) -> ReadableFile | None:
        """A copy; None if any thread can read the video in place. Raises SourceError if the source cannot be read."""
        if video.path is not None or video.dead:
            return None
        if self._reader is None or self._reader.url != video.url:
            if self._reader is not None:
                self._reader.close()
            self._reader = open_shard(video.url)
        copy = SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115
        place = 0
        while video.size_bytes is None or place < video.size_bytes:
            wanted = _PIECE_BYTES if video.size_bytes is None else min(_PIECE_BYTES, video.size_bytes - place)
            piece = self._reader.read_up_to(video.offset + place, wanted)
            copy.write(piece)
            place += len(piece)
            if len(piece) < wanted:
                break
        return copy


@contextmanager
def opened(video: Video, copy: ReadableFile | None) -> Iterator[ReadableFile]:
    """The video's bytes as a file, which is closed afterwards. Raises OSError if a local file cannot be opened."""
    assert copy is not None or video.path is not None
    file = _Span(video.path or "", video.offset, video.size_bytes) if copy is None else copy
    try:
        yield file
    finally:
        file.close()
