"""A remote file in blocks, several of them on their way at once while it is read forwards.

A server answers a request after tens of milliseconds and gives one connection tens of megabytes a second, so block
after block a GPU would wait. What lies apart is fetched a block at a time, and nothing ahead of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

BLOCK_BYTES = 4 << 20
# Blocks on their way, behind the one that is read: after the second in a row, and from the third on.
_AHEAD_AT_FIRST, AHEAD = 3, 15
# What a file that is read forwards holds at most.
MOST_BYTES = (AHEAD + 1) * BLOCK_BYTES

Fetch = Callable[[int, int], Future[bytes]]


class Blocks:
    """A file of `size` bytes, read by one thread; `fetch(start, end)` begins to bring a span of it."""

    def __init__(self, fetch: Fetch, size: int, ahead: int = AHEAD) -> None:
        self._fetch, self.size, self._most_ahead = fetch, size, ahead
        self._coming: dict[int, Future[bytes]] = {}
        # The last block that was read, and how many in a row were read before it.
        self._last, self._in_a_row = -2, 0

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer only at the end, or where a server gives less of a block than was asked for.

        Raises what `fetch` does; the same call may be made again.
        """
        end = min(offset + size, self.size)
        parts = []
        while offset < end:
            index, begin = divmod(offset, BLOCK_BYTES)
            part = self._block(index)[begin : begin + end - offset]
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Ask for nothing more of what is still on its way."""
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()

    def _block(self, index: int) -> bytes:
        if index != self._last:
            self._in_a_row = self._in_a_row + 1 if index == self._last + 1 else 0
            self._last = index
        ahead = min((0, _AHEAD_AT_FIRST, self._most_ahead)[min(self._in_a_row, 2)], self._most_ahead)
        for passed in [known for known in self._coming if not index <= known <= index + self._most_ahead]:
            self._coming.pop(passed).cancel()
        for wanted in range(index, index + 1 + ahead):
            start = wanted * BLOCK_BYTES
            if wanted not in self._coming and start < self.size:
                self._coming[wanted] = self._fetch(start, min(start + BLOCK_BYTES, self.size))
        try:
            data = self._coming[index].result()
        except BaseException:
            # Asked for anew by the next call.
            self._coming.pop(index).cancel()
            raise
        if len(data) > BLOCK_BYTES:
            raise ValueError("the server sends whole files where parts were asked for")
        return data


def fetching(file_system: Any, path: str) -> tuple[Fetch, int]:
    """How an fsspec driver brings a span of `path`, and how many spans it is worth asking for ahead.

    Drivers for networks are coroutines on a thread of fsspec's own, by the names of their methods after an underscore;
    the others bring one span at a time.
    """
    if file_system.async_impl:

        def begin(start: int, end: int) -> Future[bytes]:
            return asyncio.run_coroutine_threadsafe(file_system._cat_file(path, start=start, end=end), file_system.loop)

        return begin, AHEAD

    def at_once(start: int, end: int) -> Future[bytes]:
        done: Future[bytes] = Future()
        done.set_result(file_system.cat_file(path, start=start, end=end))
        return done

    return at_once, 0
