"""Read a shard that cannot seek: pipes, gzip, zstd, and servers that only send whole files.

A later offset is reached by reading the bytes before it, an earlier one by opening the source again. A command that
fails, or a stream that stops early, raises SourceError.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from typing import Any

from headspan.errors import SourceError
from headspan.io.retry import (
    TransientError,
    calling_driver,
    close_quietly,
    error_text,
    is_transient,
    shown_cause,
)
from headspan.shards.reader import ShardReader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A zstd file may begin with frames that hold no data, as those of pzstd do. The first byte's lower half varies.
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
MAGIC_BYTES = 4
_SKIPPED_BYTES = 1 << 20
# The most bytes of padding or empty gzip streams that are read after the data. A command or a server may never stop.
_MOST_PADDING_BYTES = 16 << 20
# Exit statuses of a command that was stopped because nothing reads its output: the shell's and the system's SIGPIPE.
_BROKEN_PIPE = (141, -13)


class Stream(ShardReader):
    """A source that is read forwards; `opener` opens it at its beginning."""

    def __init__(self, url: str, opener: Callable[[], Any]) -> None:
        super().__init__(url)
        self._opener = opener
        self._open()

    def _open(self) -> None:
        self._position = 0
        self._ended = False
        with calling_driver(self.url):
            self._source = self._opener()
            self._raw = _Raw(self._source)
            buffered = io.BufferedReader(self._raw, _SKIPPED_BYTES)
            packing = packing_of(buffered.peek(MAGIC_BYTES)[:MAGIC_BYTES])
        # Both mark their end; gzip proves it with a checksum, and zstd usually does.
        self.knows_its_end = packing is not None
        self._stream: io.BufferedReader[Any] | gzip.GzipFile | zstd.ZstdFile = buffered
        if packing is not None:
            self.packing = packing
            self._stream = gzip.GzipFile(fileobj=buffered) if packing == "gzip" else zstd.ZstdFile(buffered)

    def read_up_to(self, offset: int, size: int) -> bytes:
        if offset < self._position:
            self.close()
            self._open()
        while self._position < offset:
            skipped = len(self._read(min(_SKIPPED_BYTES, offset - self._position)))
            if skipped == 0:
                raise self.truncated(offset, size, self._position)
        parts = []
        while size > 0 and (part := self._read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        if self._ended:
            return b""
        try:
            # Returns the bytes that came before a failure, which `read` would lose.
            data = self._stream.read1(size)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not self._is_trailing_garbage(error):
                self._finish()
                kind = TransientError if is_transient(self.url, error) else SourceError
                raise kind(
                    f"{self.url}: reading failed after {self._position} bytes ({error_text(self.url, error)}); fetch "
                    "the shard again"
                ) from shown_cause(self.url, error)
            self.has_trailing_garbage, data = True, b""
        self._raw.given = 0
        self._position += len(data)
        if not data:
            self._finish()
            self._ended = True
        return data

    def _is_trailing_garbage(self, error: BaseException) -> bool:
        """Whether a packed stream has ended validly, and bytes that are not packed in the same way follow it."""
        said = {gzip.BadGzipFile: "Not a gzipped file", zstd.ZstdError: "Unknown frame descriptor"}
        return self._position > 0 and any(type(error) is kind and text in str(error) for kind, text in said.items())

    def _finish(self) -> None:
        """Close the source. Raises SourceError if it is a command that failed."""
        process = getattr(self._source, "proc", None)
        if process is None:
            with calling_driver(self.url):
                self._source.close()
            return
        self._source.stream.close()
        status = process.wait()
        if status != 0 and status not in _BROKEN_PIPE:
            raise SourceError(
                f"{self.url}: the command ended with status {status} after {self._position} bytes; "
                "run it by hand to see why"
            )

    def close(self) -> None:
        if process := getattr(self._source, "proc", None):
            # The reader stops here, so the command's status says nothing about the bytes that were read.
            if process.poll() is None:
                process.terminate()
            self._source.stream.close()
            process.wait()
        else:
            close_quietly(self._source)


def packing_of(first: bytes) -> str | None:
    """How a shard that begins with these MAGIC_BYTES is packed: `gzip`, `zstd`, or None."""
    if first.startswith(GZIP_MAGIC):
        return "gzip"
    is_skippable = first[1:] == _SKIPPABLE_MAGIC and first[0] & 0xF0 == 0x50
    return "zstd" if first == ZSTD_MAGIC or is_skippable else None


class _Raw(io.RawIOBase):
    """A raw stream of anything with `read(size)`, so that a buffer can peek into it. It never closes its source."""

    def __init__(self, source: Any) -> None:
        self._source = source
        # Bytes since the buffer last returned any data.
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # gopen's pipe raises on the command's status before its last bytes are read; its stream does not.
        data = getattr(self._source, "stream", self._source).read(len(buffer))
        buffer[: len(data)] = data
        self.given += len(data)
        if self.given > _MOST_PADDING_BYTES:
            raise ValueError(f"{self.given:,} bytes in a row decompress to no data")
        return len(data)
