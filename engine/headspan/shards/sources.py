"""Open a shard by its url: a local file, a url that fsspec reads, or a `pipe:` command.

Local files are read in place. Sources that cannot seek are streams (stream.py). Network reads that fail are retried
where that may help. A short read, or an exception of a driver, raises SourceError; it never looks like the end of the
shard.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headspan.errors import SourceError
from headspan.io.ranges import Blocks, ExactRanges, OpenFile, is_shared_driver, open_exact, open_forwards, open_in_parts
from headspan.io.retry import LOCAL_ERRORS, TransientError, file_system, is_remote, retry, unreadable
from headspan.shards.reader import Place, ShardReader
from headspan.shards.stream import MAGIC_BYTES, Stream, packing_of
from headspan.shards.urls import local_path, not_a_file


def open_shard(url: str) -> ShardReader:
    """A reader of the shard at `url`. Threads may share the reader of a local, uncompressed file.

    Raises SourceError if the shard cannot be opened.
    """
    if url.startswith("pipe:"):
        return Stream(url, lambda: _open_pipe(url))
    if is_remote(url):
        return _RetryingReader(url)
    try:
        path = local_path(url)
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise not_a_file(url)
        local = _LocalFile(url, os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
        if packing_of(local.read_up_to(0, MAGIC_BYTES)) is None:
            return local
        local.close()
        return Stream(url, lambda: Path(path).open("rb"))
    except LOCAL_ERRORS as error:
        raise unreadable(url, error) from error


def open_place(place: Place) -> ShardReader:
    """A reader of the shard that another process has opened.

    Raises SourceError if the shard cannot be opened, or if its file is not the one that the other process opened.
    """
    if place.path is None:
        return _ExactReader(place.url, retry(lambda: open_exact(place.url, place.size_bytes)))
    try:
        reader = _LocalFile(place.url, os.open(place.path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    except LOCAL_ERRORS as error:
        raise unreadable(place.url, error) from error
    if reader.place() != place:
        reader.close()
        raise SourceError(
            f"{place.url}: has changed since this run opened it; restore it to continue, or choose another --out"
        )
    return reader


def read_spool(descriptor: int) -> ShardReader:
    """A reader of a file that is open already, as a copy of what another process reads. Closing it closes the file."""
    return _LocalFile("spool", descriptor)


class _LocalFile(ShardReader):
    def __init__(self, url: str, descriptor: int) -> None:
        super().__init__(url)
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        self._size = self._status.st_size

    @property
    def size_bytes(self) -> int:
        return self._size

    def place(self) -> Place | None:
        found = self._status
        path = str(Path(local_path(self.url)).absolute())
        return Place(self.url, path, self._size, (found.st_dev, found.st_ino, found.st_mtime_ns))

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset > self._size:
            raise self.truncated(offset, size, self._size)
        # One call may return less than requested: Linux stops at 2 GiB.
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class _SeekableReader(ShardReader):
    """A remote file that is read at any offset."""

    def __init__(self, url: str, file: Blocks | OpenFile, shared: bool) -> None:
        super().__init__(url)
        self._file, self._shared = file, shared

    @property
    def size_bytes(self) -> int:
        return self._file.size

    def place(self) -> Place | None:
        return Place(self.url, None, self._file.size) if self._shared else None

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset > self._file.size:
            raise self.truncated(offset, size, self._file.size)
        data = self._file.read(offset, size)
        if len(data) < min(size, self._file.size - offset):
            # The server stated a larger size than it sent.
            raise TransientError(str(self.truncated(offset, size, offset + len(data))))
        return data

    def close(self) -> None:
        self._file.close()


class _ExactReader(ShardReader):
    """A remote file, of which only exact ranges are requested."""

    def __init__(self, url: str, file: ExactRanges) -> None:
        super().__init__(url)
        self._file = file

    @property
    def size_bytes(self) -> int:
        return self._file.size

    def start(self, offset: int, size: int) -> Callable[[], bytes]:
        if offset > self._file.size:
            raise self.truncated(offset, size, self._file.size)
        return self._file.start(offset, size)

    def read_up_to(self, offset: int, size: int) -> bytes:
        return self.start(offset, size)()

    def close(self) -> None:
        """Nothing is open between requests."""


class _RetryingReader(ShardReader):
    """A network source. A failed read is retried at the same offset; a failed stream is opened again first."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._reader: ShardReader | None = retry(lambda: _open_remote(url))
        self.knows_its_end = self._reader.knows_its_end

    def read_up_to(self, offset: int, size: int) -> bytes:
        return retry(lambda: self._try(offset, size))

    @property
    def size_bytes(self) -> int | None:
        return None if self._reader is None else self._reader.size_bytes

    def place(self) -> Place | None:
        return None if self._reader is None else self._reader.place()

    def _try(self, offset: int, size: int) -> bytes:
        if self._reader is None:
            self._reader = _open_remote(self.url)
        try:
            return self._reader.read_up_to(offset, size)
        except TransientError:
            if not isinstance(self._reader, _SeekableReader):
                self.close()
            raise

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


def _open_remote(url: str) -> ShardReader:
    fs, path = file_system(url)
    file = open_in_parts(fs, path, url)
    if file is None:
        return Stream(url, lambda: open_forwards(fs, path))
    if packing_of(file.read(0, MAGIC_BYTES)) is None:
        return _SeekableReader(url, file, isinstance(file, Blocks) and is_shared_driver(fs))
    file.close()
    return Stream(url, lambda: fs.open(path, "rb"))


def _open_pipe(url: str) -> Any:
    # Imported here because webdataset imports torch, and only pipes need it.
    from webdataset.gopen import gopen

    return gopen(url, "rb")
