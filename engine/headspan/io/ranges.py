"""Read a remote file in blocks with read-ahead while it is read sequentially, or in exact ranges that are known before.

A server answers a request after tens of milliseconds and sends tens of megabytes per second over one connection, so a
GPU would wait for blocks that are fetched one by one. Reads that are far apart fetch single blocks without read-ahead.
If a server refuses many requests at once, fewer are sent.

A process that decodes parts of a file knows which ranges it needs; `ExactRanges` requests these, several at once, and
nothing else.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.config import conf, conf_dir, set_conf_env, set_conf_files

from headspan.errors import SourceError
from headspan.io.retry import TransientError, calling_driver, close_quietly, file_system, retry

BLOCK_BYTES = 4 << 20
# Read-ahead depth in blocks: after the second sequential read, and from the third on.
_AHEAD_AT_FIRST, AHEAD = 3, 15
# After so many blocks without a failure, the depth grows by one again.
_BLOCKS_TO_RECOVER = 16
# The most memory that a file needs while it is read sequentially: a block arrives in pieces, which are then joined.
MOST_BYTES = 2 * (AHEAD + 1) * BLOCK_BYTES

# The drivers that every process finds for http, s3, gs and az urls. The user's program may have registered others.
SHARED_DRIVERS = (
    "fsspec.implementations.http.HTTPFileSystem",
    "s3fs.core.S3FileSystem",
    "gcsfs.core.GCSFileSystem",
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem",
    "adlfs.spec.AzureBlobFileSystem",
)

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
            raise _sends_whole_files(self._url)
        return data

    def _cancel(self, index: int) -> None:
        self._requests.pop(index).cancel()


class ExactRanges:
    """The file `url` of `size` bytes, read in ranges that are requested before they are needed."""

    def __init__(self, fetch: Fetch, size: int, url: str) -> None:
        self._fetch, self.size, self._url = fetch, size, url
        # The requests that may be pending at once, and those that are; two threads count them.
        self._most_pending, self._pending = AHEAD + 1, 0
        self._answers_since_failure = 0
        self._lock = threading.Lock()

    def start(self, offset: int, size: int) -> Callable[[], bytes]:
        """Request `size` bytes at `offset`, fewer only at the end. Returns a function that waits for them.

        That function raises SourceError if the requests fail, and fail again when they are repeated as `retry` does.
        """
        end = min(offset + size, self.size)
        parts = [(start, min(start + BLOCK_BYTES, end)) for start in range(offset, end, BLOCK_BYTES)]
        requests: deque[Future[bytes] | None] = deque()
        try:
            requests.extend(self._request(*part) for part in parts)
        except BaseException:
            self._drop(requests)
            raise

        def wait() -> bytes:
            try:
                return b"".join([self._answer(requests.popleft(), part) for part in parts])
            except TransientError:
                with self._lock:
                    self._most_pending, self._answers_since_failure = max(1, self._most_pending // 2), 0
            finally:
                self._drop(requests)
            # One request at a time.
            return retry(lambda: b"".join([self._answer(None, part) for part in parts]))

        return wait

    def _request(self, start: int, end: int) -> Future[bytes] | None:
        """Send a request; None if as many are pending as the server seems to bear, or if it must be tried again."""
        with self._lock:
            if self._pending >= self._most_pending:
                return None
            self._pending += 1
        try:
            return self._fetch(start, end)
        except BaseException as error:
            with self._lock:
                self._pending -= 1
            if not isinstance(error, TransientError):
                raise
        return None

    def _drop(self, requests: Iterable[Future[bytes] | None]) -> None:
        """Cancel requests whose answers nobody will read."""
        for request in filter(None, requests):
            request.cancel()
            with self._lock:
                self._pending -= 1

    def _answer(self, request: Future[bytes] | None, part: tuple[int, int]) -> bytes:
        start, end = part
        try:
            with calling_driver(self._url):
                data = _bytes((request or self._fetch(start, end)).result())
        finally:
            if request is not None:
                with self._lock:
                    self._pending -= 1
        if len(data) > end - start:
            raise _sends_whole_files(self._url)
        if len(data) < end - start:
            raise TransientError(
                f"{self._url}: truncated: expected {end - start} bytes at offset {start}, but {len(data)} came; fetch "
                "the shard again"
            )
        with self._lock:
            self._answers_since_failure += 1
            if self._answers_since_failure % _BLOCKS_TO_RECOVER == 0:
                self._most_pending = min(self._most_pending + 1, AHEAD + 1)
        return data


def _sends_whole_files(url: str) -> SourceError:
    return SourceError(
        f"{url}: cannot be read (the server sends whole files instead of the requested parts); fetch the shard to a "
        "file and name that"
    )


def open_exact(url: str, size: int) -> ExactRanges:
    """The file of `size` bytes at `url`, which a driver of SHARED_DRIVERS reads; nothing is requested yet."""
    driver, path = file_system(url)
    return ExactRanges(_fetch_of(driver, path, url), size, url)


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


def open_in_parts(driver: Any, path: str, url: str) -> Blocks | OpenFile | None:
    """Open `path` with an fsspec driver for reads at any offset; None if it can only be read from its beginning.

    The methods of network drivers are coroutines that run on fsspec's own thread; their names begin with an underscore.
    Raises SourceError, which names `url`, for everything that the driver raises.
    """
    if not isinstance(driver, AsyncFileSystem):
        with calling_driver(url):
            plain = open_forwards(driver, path)
            seeks = plain.seekable()
            if not seeks:
                plain.close()
        return OpenFile(plain, url) if seeks else None
    with calling_driver(url), driver.open(path, "rb", cache_type="none") as file:
        try:
            size = _size(file)
            if size > BLOCK_BYTES:
                # Request one byte after the first block. If the server ignores the range, fsspec raises ValueError.
                file.seek(BLOCK_BYTES)
                file.read(1)
        except ValueError:
            return None
    return Blocks(_fetch_of(driver, path, url), size, url)


def _fetch_of(driver: AsyncFileSystem, path: str, url: str) -> Fetch:
    def fetch(start: int, end: int) -> Future[bytes]:
        with calling_driver(url):
            return asyncio.run_coroutine_threadsafe(driver._cat_file(path, start=start, end=end), driver.loop)

    return fetch


def is_shared_driver(driver: Any) -> bool:
    """Whether a new process finds the same driver for a url as this one, with the same options."""
    options: dict[str, Any] = {}
    set_conf_env(options)
    set_conf_files(conf_dir, options)
    name = f"{type(driver).__module__}.{type(driver).__qualname__}"
    return name in SHARED_DRIVERS and options == conf


def open_forwards(driver: Any, path: str) -> Any:
    """`path` as a file object, which may be unable to seek."""
    return driver.open(path, "rb", **({"block_size": 0} if isinstance(driver, AsyncFileSystem) else {}))


def _size(file: Any) -> int:
    """The size of a driver's file. Raises TypeError if the driver states none."""
    size = file.seek(0, io.SEEK_END)
    if type(size) is not int or size < 0:
        raise TypeError(f"the driver states the file's size as {size!r}")
    return size


def _bytes(data: Any) -> bytes:
    """A driver's data as bytes. Raises TypeError if it is not bytes."""
    return data if type(data) is bytes else bytes(memoryview(data))
