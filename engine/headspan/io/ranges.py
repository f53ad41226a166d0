"""Read a remote file in blocks, with read-ahead of several blocks while it is read sequentially.

A server answers a request after tens of milliseconds and sends tens of megabytes per second over one connection, so a
GPU would wait for blocks that are fetched one by one. Reads that are far apart fetch single blocks without read-ahead.
If a server refuses many requests at once, fewer are sent.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fsspec.asyn import AsyncFileSystem

from headspan.errors import SourceError
from headspan.io.retry import calling_driver, close_quietly

BLOCK_BYTES = 4 << 20
# Read-ahead depth in blocks: after the second sequential read, and from the third on.
_AHEAD_AT_FIRST, AHEAD = 3, 15
# After so many blocks without a failure, the depth grows by one again.
_BLOCKS_TO_RECOVER = 16
# The most memory that a file needs while it is read sequentially: a block arrives in pieces, which are then joined.
MOST_BYTES = 2 * (AHEAD + 1) * BLOCK_BYTES

Fetch = Callable[[int, int], Future[bytes]]


class Blocks:
    """The file `url` of `size` bytes, read by one thread; `fetch(start, end)` requests its bytes from start to end."""

    def __init__(self, fetch: Fetch, size: int, url: str) -> None:
        self._fetch, self.size, self._url, self._most_ahead = fetch, size, url, AHEAD
        self._requests: dict[int, Future[bytes]] = {}
        # The block that was read last, and how many in sequence were read before it.
        self._last, self._sequential = -2, 0
        self._blocks_since_failure = 0

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer only at the end, or if the server sends less of a block than requested.

        Raises SourceError if a request fails. The same call may then be repeated.
        """
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            index, begin = divmod(offset, BLOCK_BYTES)
            part = self._block(index)[begin : begin + end - offset]
            if not part:
                # The next call requests the block again.
                self._cancel(index)
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Cancel all requests that have not been answered."""
        for index in list(self._requests):
            self._cancel(index)

    def _block(self, index: int) -> bytes:
        if index != self._last:
            self._sequential = self._sequential + 1 if index == self._last + 1 else 0
            self._last = index
            self._blocks_since_failure += 1
            if self._blocks_since_failure % _BLOCKS_TO_RECOVER == 0:
                self._most_ahead = min(self._most_ahead + 1, AHEAD)
        for unneeded in [known for known in self._requests if not index <= known <= index + self._most_ahead]:
            self._cancel(unneeded)
        was_requested = index in self._requests
        ahead = min((0, _AHEAD_AT_FIRST, AHEAD)[min(self._sequential, 2)], self._most_ahead)
        for each in range(index, index + 1 + ahead):
            self._request(each)
        try:
            return self._result(index)
        except SourceError:
            # The server may refuse many requests at once: send fewer for a while. Repeat a request that was read ahead.
            self._most_ahead, self._blocks_since_failure = self._most_ahead // 2, 0
            self.close()
            if not was_requested:
                raise
        self._request(index)
        return self._result(index)

    def _request(self, index: int) -> None:
        start = index * BLOCK_BYTES
        if index not in self._requests and start < self.size:
            self._requests[index] = self._fetch(start, min(start + BLOCK_BYTES, self.size))

    def _result(self, index: int) -> bytes:
        request = self._requests[index]
        try:
            with calling_driver(self._url):
                data = _bytes(request.result())
        except BaseException:
            self._cancel(index)
            raise
        if len(data) > BLOCK_BYTES:
            raise SourceError(
                f"{self._url}: cannot be read (the server sends whole files instead of the requested parts); fetch the "
                "shard to a file and name that"
            )
        return data

    def _cancel(self, index: int) -> None:
        self._requests.pop(index).cancel()


class OpenFile:
    """A driver's file object that can seek, with the methods of `Blocks`."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url
        with calling_driver(url):
            self.size = _size(file)

    def read(self, offset: int, size: int) -> bytes:
        """As `Blocks.read`."""
        with calling_driver(self._url):
            self._file.seek(offset)
            requested = max(0, min(size, self.size - offset))
            data = _bytes(self._file.read(requested))
            if len(data) > requested:
                raise ValueError(f"{len(data)} bytes came where {requested} were requested")
            return data

    def close(self) -> None:
        """Close the file."""
        close_quietly(self._file)


def open_in_parts(file_system: Any, path: str, url: str) -> Blocks | OpenFile | None:
    """Open `path` with an fsspec driver for reads at any offset; None if it can only be read from its beginning.

    The methods of network drivers are coroutines that run on fsspec's own thread; their names begin with an underscore.
    Raises SourceError, which names `url`, for everything that the driver raises.
    """
    if not isinstance(file_system, AsyncFileSystem):
        with calling_driver(url):
            plain = open_forwards(file_system, path)
            seeks = plain.seekable()
            if not seeks:
                plain.close()
        return OpenFile(plain, url) if seeks else None
    with calling_driver(url), file_system.open(path, "rb", cache_type="none") as file:
        try:
            size = _size(file)
            if size > BLOCK_BYTES:
                # Request one byte after the first block. If the server ignores the range, fsspec raises ValueError.
                file.seek(BLOCK_BYTES)
                file.read(1)
        except ValueError:
            return None

    def fetch(start: int, end: int) -> Future[bytes]:
        with calling_driver(url):
            request = file_system._cat_file(path, start=start, end=end)
            return asyncio.run_coroutine_threadsafe(request, file_system.loop)

    return Blocks(fetch, size, url)


def open_forwards(file_system: Any, path: str) -> Any:
    """`path` as a file object, which may be unable to seek."""
    whole = {"block_size": 0} if isinstance(file_system, AsyncFileSystem) else {}
    return file_system.open(path, "rb", **whole)


def _size(file: Any) -> int:
    """The size of a driver's file. Raises TypeError if the driver states none."""
    size = file.seek(0, io.SEEK_END)
    if type(size) is not int or size < 0:
        raise TypeError(f"the driver states the file's size as {size!r}")
    return size


def _bytes(data: Any) -> bytes:
    """A driver's data as bytes. Raises TypeError if it is not bytes."""
    return data if type(data) is bytes else bytes(memoryview(data))
