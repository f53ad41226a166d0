"""Answer two requests more at once than the machine has cores; the others wait, in the order in which they came.

Many threads that compute at once take turns of milliseconds, so that all of them end late, and each evicts the numbers
of the others from the caches. A request that waits for the model's process gives its turn to another one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

_turn: ContextVar[tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None] = ContextVar("turn", default=None)


class Turns:
    """An application in front of another one, whose requests of one method below `path` are answered in turns."""

    def __init__(self, app: ASGIApp, path: str, at_once: int | None = None, method: str = "GET") -> None:
        """`at_once` is by default the number of cores and two, so that no core waits while answers are read and sent."""
        self._app, self._path, self._method = app, path, method
        self._free = asyncio.Semaphore(at_once or (os.cpu_count() or 1) + 2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != self._method or not scope["path"].startswith(self._path):
            await self._app(scope, receive, send)
            return
        async with self._free:
            # Threads that answer the request inherit it.
            before = _turn.set((asyncio.get_running_loop(), self._free))
            try:
                await self._app(scope, receive, send)
            finally:
                _turn.reset(before)


@contextmanager
def without_turn() -> Iterator[None]:
    """While a thread that answers a request waits for something else, another request has its turn."""
    turn = _turn.get()
    if turn is None:
        yield
        return
    loop, free = turn
    loop.call_soon_threadsafe(free.release)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(free.acquire(), loop).result()
