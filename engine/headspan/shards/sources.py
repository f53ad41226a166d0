"""Urls to bytes at an offset, and to sizes and times.

Local files are read in place, remote ones through fsspec, `pipe:` commands through webdataset's gopen;
what cannot seek (pipes, gzip) is read forwards and opened again to go back. A short read, a command that
fails, a stream that stops early or whatever a driver raises is a SourceError, never an early end. What comes over a
network is asked for again, after longer and longer waits, where another try may help. What the bytes mean is not known
here.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from headspan.errors import SourceError
from headspan.io.ranges import Blocks, OpenFile, open_forwards, open_in_parts
from headspan.io.retry import (
    LOCAL_ERRORS,
    PassingError,
    again,
    asking_driver,
    close_quietly,
    file_system,
    is_remote,
    may_pass,
    shown_cause,
    told,
    unreadable,
)
from headspan.shards.urls import local_path, not_a_file

_GZIP_MAGIC = b"\x1f\x8b"
_DISCARD_BYTES = 1 << 20
# A server takes tens of milliseconds for each, and a plan may have tens of thousands.
_ASKED_AT_ONCE = 16
# Padding behind a gzip stream, and empty gzip streams, may take so much: a command or a server may go on for ever.
_MOST_PADDING_BYTES = 16 << 20
# A command that is told to stop because nobody reads on: the shell's and the system's way to say SIGPIPE.
_CUT_SHORT = (141, -13)


def describe(url: str) -> tuple[int | None, int | None]:
    """Size in bytes and modification time in nanoseconds of the shard as stored; None where unknown.

    Raises SourceError where there is no such file.
    """
    if url.startswith("pipe:"):
        return None, None
    if is_remote(url):
        return again(lambda: _describe_remote(url))
    try:
        found = Path(local_path(url)).stat()
    except LOCAL_ERRORS as error:
        raise unreadable(url, error) from error
    return found.st_size, found.st_mtime_ns


def describe_each(urls: Iterable[str]) -> Iterator[tuple[int | None, int | None]]:
    """`describe` of each, in their order; servers are asked about several at once."""
    asked: deque[Future[tuple[int | None, int | None]]] = deque()
    for url in urls:
        if len(asked) == _ASKED_AT_ONCE:
            yield asked.popleft().result()
        asked.append(_asked(url))
    while asked:
        yield asked.popleft().result()


def _asked(url: str) -> Future[tuple[int | None, int | None]]:
    answer: Future[tuple[int | None, int | None]] = Future()

    def ask() -> None:
        try:
            answer.set_result(describe(url))
        # Handed over, not handled: whoever takes the answer raises it.
        except BaseException as error:
            answer.set_exception(error)

    if is_remote(url):
        # A daemon, so that a server that does not answer cannot keep the interpreter from ending.
        threading.Thread(target=ask, name="headspan-describe", daemon=True).start()
    else:
        try:
            answer.set_result(describe(url))
        except SourceError as error:
            answer.set_exception(error)
    return answer


def _describe_remote(url: str) -> tuple[int | None, int | None]:
    fs, path = file_system(url)
    with asking_driver(url):
        size = _whole(fs.info(path).get("size"))
    try:
        modified_ns = _whole(int(fs.modified(path).timestamp() * 1e9))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if may_pass(url, error):
            raise unreadable(url, error) from shown_cause(url, error)
        # The driver knows no times.
        modified_ns = None
    return size, modified_ns


def _whole(number: object) -> int | None:
    """A driver's number, if it is a count that a table can hold."""
    return number if type(number) is int and 0 <= number < 1 << 63 else None


class ShardReader(ABC):
    """The bytes of one shard, unpacked where it is gzip'd; close it, or use it as a context manager."""

    # False where a stream that stops early looks like one that is finished: a pipe, say.
    knows_its_end = True
    # Whether bytes that are no gzip lie behind the end of a gzip stream; known when the end has been read.
    has_garbage_behind = False

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def read_up_to(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer only at the end; SourceError where the end lies before `offset`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file, the connection or the command."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; SourceError where the shard ends before them."""
        data = self.read_up_to(offset, size)
        if len(data) < size:
            raise self._truncated(offset, size, offset + len(data))
        return data

    def _truncated(self, offset: int, size: int, end: int) -> SourceError:
        return SourceError(
            f"{self.url}: truncated: wanted {size} bytes at offset {offset}, the file ends at {end}; "
            "fetch the shard again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_shard(url: str) -> ShardReader:
    """A reader of the shard at `url`; of a local, uncompressed file one that threads may share.

    Raises SourceError where it cannot be opened.
    """
    if url.startswith("pipe:"):
        return _Stream(url, lambda: _open_pipe(url))
    if is_remote(url):
        return _Persistent(url)
    try:
        path = local_path(url)
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise not_a_file(url)
        local = _LocalFile(url, os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
        if local.read_up_to(0, 2) != _GZIP_MAGIC:
            return local
        local.close()
        return _Stream(url, lambda: Path(path).open("rb"))
    except LOCAL_ERRORS as error:
        raise unreadable(url, error) from error


def _open_remote(url: str) -> ShardReader:
    fs, path = file_system(url)
    file = open_in_parts(fs, path, url)
    if file is None:
        return _Stream(url, lambda: open_forwards(fs, path))
    if file.read(0, 2) != _GZIP_MAGIC:
        return _Seekable(url, file)
    file.close()
    return _Stream(url, lambda: fs.open(path, "rb"))


class _Persistent(ShardReader):
    """A network source, read from the same place again where a try fails, and opened again where it is a stream."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._reader: ShardReader | None = again(lambda: _open_remote(url))
        self.knows_its_end = self._reader.knows_its_end

    def read_up_to(self, offset: int, size: int) -> bytes:
        return again(lambda: self._try(offset, size))

    def _try(self, offset: int, size: int) -> bytes:
        if self._reader is None:
            self._reader = _open_remote(self.url)
        try:
            return self._reader.read_up_to(offset, size)
        except PassingError:
            if not isinstance(self._reader, _Seekable):
                self.close()
            raise

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


class _LocalFile(ShardReader):
    def __init__(self, url: str, descriptor: int) -> None:
        super().__init__(url)
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset > self._size:
            raise self._truncated(offset, size, self._size)
        # One call may return less than asked for: Linux stops at 2 GiB.
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class _Seekable(ShardReader):
    def __init__(self, url: str, file: Blocks | OpenFile) -> None:
        super().__init__(url)
        self._file = file

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset > self._file.size:
            raise self._truncated(offset, size, self._file.size)
        data = self._file.read(offset, size)
        if len(data) < min(size, self._file.size - offset):
            # The server knows of more than it gave.
            raise PassingError(str(self._truncated(offset, size, offset + len(data))))
        return data

    def close(self) -> None:
        self._file.close()


class _Stream(ShardReader):
    """Forward only: a later offset is reached by reading on, an earlier one by opening again."""

    def __init__(self, url: str, opener: Callable[[], Any]) -> None:
        super().__init__(url)
        self._opener = opener
        self._open()

    def _open(self) -> None:
        self._position = 0
        self._ended = False
        with asking_driver(self.url):
            self._source = self._opener()
            self._raw = _Raw(self._source)
            buffered = io.BufferedReader(self._raw, _DISCARD_BYTES)
            packed = buffered.peek(2)[:2] == _GZIP_MAGIC
        # gzip says where it ends, and proves it with a checksum.
        self.knows_its_end = packed
        self._stream: io.BufferedReader[Any] | gzip.GzipFile = gzip.GzipFile(fileobj=buffered) if packed else buffered

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset < self._position:
            self.close()
            self._open()
        while self._position < offset:
            skipped = len(self._read(min(_DISCARD_BYTES, offset - self._position)))
            if skipped == 0:
                raise self._truncated(offset, size, self._position)
        parts = []
        while size > 0 and (part := self._read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        if self._ended:
            return b""
        try:
            # What came before a failure is handed out first, which `read` would lose.
            data = self._stream.read1(size)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not self._is_garbage_behind(error):
                self._finish()
                kind = PassingError if may_pass(self.url, error) else SourceError
                raise kind(
                    f"{self.url}: reading failed after {self._position} bytes ({told(self.url, error)}); fetch the "
                    "shard again"
                ) from shown_cause(self.url, error)
            self.has_garbage_behind, data = True, b""
        self._raw.given = 0
        self._position += len(data)
        if not data:
            self._finish()
            self._ended = True
        return data

    def _is_garbage_behind(self, error: BaseException) -> bool:
        """Whether a gzip stream has ended, its checksum right, and what comes behind it is no gzip stream."""
        return type(error) is gzip.BadGzipFile and self._position > 0 and str(error).startswith("Not a gzipped file")

    def _finish(self) -> None:
        """Close the source, and ask a command how it ended."""
        process = getattr(self._source, "proc", None)
        if process is None:
            with asking_driver(self.url):
                self._source.close()
            return
        self._source.stream.close()
        status = process.wait()
        if status != 0 and status not in _CUT_SHORT:
            raise SourceError(
                f"{self.url}: the command ended with status {status} after {self._position} bytes; "
                "run it by hand to see why, then try again"
            )

    def close(self) -> None:
        if process := getattr(self._source, "proc", None):
            # Nobody reads on: how the command ends now says nothing about the bytes that were read.
            if process.poll() is None:
                process.terminate()
            self._source.stream.close()
            process.wait()
        else:
            close_quietly(self._source)


class _Raw(io.RawIOBase):
    """Anything with `read(size)` as a raw stream, to be peeked into; closing it closes nothing."""

    def __init__(self, source: Any) -> None:
        self._source = source
        # Bytes since the reader above it was given any.
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # gopen's pipe raises on the command's status before its last bytes are read; its stream does not.
        data = getattr(self._source, "stream", self._source).read(len(buffer))
        buffer[: len(data)] = data
        self.given += len(data)
        if self.given > _MOST_PADDING_BYTES:
            raise ValueError(f"{self.given:,} bytes of padding came, and nothing that unpacks to data")
        return len(data)


def _open_pipe(url: str) -> Any:
    # Imported here, since webdataset brings torch with it, and only pipes need it.
    from webdataset.gopen import gopen

    return gopen(url, "rb")
