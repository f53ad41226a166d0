"""A remote file in blocks, several of them on their way at once while it is read forwards.

A server answers a request after tens of milliseconds and gives one connection tens of megabytes a second, so block
after block a GPU would wait. What lies apart is fetched a block at a time, and nothing ahead of it; a server that
refuses so many at once is asked for fewer.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fsspec.asyn import AsyncFileSystem

from headspan.errors import SourceError
from headspan.io.retry import asking_driver, close_quietly

BLOCK_BYTES = 4 << 20
# Blocks on their way, behind the one that is read: after the second in a row, and from the third on.
_AHEAD_AT_FIRST, AHEAD = 3, 15
# After so many without a failure, one more may be on its way again.
_CALM_BLOCKS = 16
# What a file that is read forwards holds at most: a block that comes in is held in pieces, then joined.
MOST_BYTES = 2 * (AHEAD + 1) * BLOCK_BYTES

Fetch = Callable[[int, int], Future[bytes]]


class Blocks:
    """The file `url` of `size` bytes, read by one thread; `fetch(start, end)` begins to bring a span of it."""

    def __init__(self, fetch: Fetch, size: int, url: str) -> None:
        self._fetch, self.size, self._url, self._most_ahead = fetch, size, url, AHEAD
        self._coming: dict[int, Future[bytes]] = {}
        # The last block that was read, and how many in a row were read before it.
        self._last, self._in_a_row = -2, 0
        # Blocks since the last failure.
        self._calm = 0

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer only at the end, or where a server gives less of a block than was asked for.

        Raises SourceError for whatever a span that `fetch` began ends with; the same call may be made again.
        """
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            index, begin = divmod(offset, BLOCK_BYTES)
            part = self._block(index)[begin : begin + end - offset]
            if not part:
                # Asked for anew by the next call.
                self._give_up(index)
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Ask for nothing more of what is still on its way."""
        for index in list(self._coming):
            self._give_up(index)

    def _block(self, index: int) -> bytes:
        if index != self._last:
            self._in_a_row = self._in_a_row + 1 if index == self._last + 1 else 0
            self._last = index
            self._calm += 1
            if self._calm % _CALM_BLOCKS == 0:
                self._most_ahead = min(self._most_ahead + 1, AHEAD)
        for passed in [known for known in self._coming if not index <= known <= index + self._most_ahead]:
            self._give_up(passed)
        was_asked_for = index in self._coming
        ahead = min((0, _AHEAD_AT_FIRST, AHEAD)[min(self._in_a_row, 2)], self._most_ahead)
        for wanted in range(index, index + 1 + ahead):
            self._ask_for(wanted)
        try:
            return self._arrived(index)
        except SourceError:
            # Perhaps too many at once: fewer for a while, and this one again, if it was one of several.
            self._most_ahead, self._calm = self._most_ahead // 2, 0
            self.close()
            if not was_asked_for:
                raise
        self._ask_for(index)
        return self._arrived(index)

    def _ask_for(self, index: int) -> None:
        start = index * BLOCK_BYTES
        if index not in self._coming and start < self.size:
            self._coming[index] = self._fetch(start, min(start + BLOCK_BYTES, self.size))

    def _arrived(self, index: int) -> bytes:
        coming = self._coming[index]
        try:
            with asking_driver(self._url):
                data = _bytes(coming.result())
        except BaseException:
            self._give_up(index)
            raise
        if len(data) > BLOCK_BYTES:
            raise SourceError(
                f"{self._url}: cannot be read (the server sends whole files where parts were asked for); fetch the "
                "shard to a file and name that"
            )
        return data

    def _give_up(self, index: int) -> None:
        self._coming.pop(index).cancel()


class OpenFile:
    """The same of a file object that can seek, as it comes."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url
        with asking_driver(url):
            self.size = _size(file)

    def read(self, offset: int, size: int) -> bytes:
        """As `Blocks.read`."""
        with asking_driver(self._url):
            self._file.seek(offset)
            asked = max(0, min(size, self.size - offset))
            data = _bytes(self._file.read(asked))
            if len(data) > asked:
                raise ValueError(f"{len(data)} bytes came where {asked} were asked for")
            return data

    def close(self) -> None:
        """Close the file."""
        close_quietly(self._file)


def open_in_parts(file_system: Any, path: str, url: str) -> Blocks | OpenFile | None:
    """`path`, to be read anywhere, by an fsspec driver; None where a server gives it from its beginning alone.

    Drivers for networks are coroutines on a thread of fsspec's own, by the names of their methods after an underscore.
    Raises SourceError for whatever the driver raises; errors name `url`.
    """
    if not isinstance(file_system, AsyncFileSystem):
        with asking_driver(url):
            plain = open_forwards(file_system, path)
            seeks = plain.seekable()
            if not seeks:
                plain.close()
        return OpenFile(plain, url) if seeks else None
    with asking_driver(url), file_system.open(path, "rb", cache_type="none") as file:
        try:
            size = _size(file)
            if size > BLOCK_BYTES:
                # A byte beyond the first block; where a server sends the whole file instead, it is not read.
                file.seek(BLOCK_BYTES)
                file.read(1)
        except ValueError:
            return None

    def fetch(start: int, end: int) -> Future[bytes]:
        with asking_driver(url):
            coming = file_system._cat_file(path, start=start, end=end)
            return asyncio.run_coroutine_threadsafe(coming, file_system.loop)

    return Blocks(fetch, size, url)


def open_forwards(file_system: Any, path: str) -> Any:
    """`path` as a file object that need not be able to seek."""
    whole = {"block_size": 0} if isinstance(file_system, AsyncFileSystem) else {}
    return file_system.open(path, "rb", **whole)


def _size(file: Any) -> int:
    """The size of a driver's file; TypeError where the driver tells none."""
    size = file.seek(0, io.SEEK_END)
    if type(size) is not int or size < 0:
        raise TypeError(f"the file's size was told as {size!r}")
    return size


def _bytes(data: Any) -> bytes:
    """What a driver gave as bytes; TypeError where it is no such thing."""
    return data if type(data) is bytes else bytes(memoryview(data))
