"""Limit how many requests are answered at once, and begin requests that take long earlier.

Many threads that compute at once take turns of milliseconds, so all of them end late, and each evicts the numbers of
the others from the caches. Requests therefore wait for a turn. Their order is that of their arrival, but each request
counts as if it had arrived earlier by the time that requests of its kind took lately. The time from arrival to answer
is then similar for all kinds of requests. A request that waits for the model's process gives its turn to another one.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

# A request overtakes only requests that arrived less than this before it.
_MOST_SECONDS = 0.5
# The weight of the last request in the mean of its kind, and the number of kinds whose means are kept.
_NEWEST, _KINDS = 1 / 8, 256
_Kind = tuple[str, ...]


class _Places:
    """A limited number of turns. Only the thread of the event loop calls its methods."""

    def __init__(self, free: int) -> None:
        self._free = free
        # The time of arrival and the kind of each request that waits, in the order of their arrival.
        self._waiting: dict[asyncio.Future[None], tuple[float, _Kind]] = {}
        # The moving mean of the seconds that requests of each kind take.
        self.seconds: dict[_Kind, float] = {}

    async def acquire(self, arrived: float, kind: _Kind) -> None:
        """Wait for a turn."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = arrived, kind
        try:
            await turn
        except asyncio.CancelledError:
            # The request may already have a turn.
            if self._waiting.pop(turn, None) is None and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a turn to the next request."""
        while self._waiting:
            turn = min(self._waiting, key=self._due)
            del self._waiting[turn]
            # The request may have been cancelled meanwhile.
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def note(self, kind: _Kind, seconds: float) -> None:
        """Update the mean of a kind."""
        if kind in self.seconds:
            self.seconds[kind] += _NEWEST * (seconds - self.seconds[kind])
        elif len(self.seconds) < _KINDS:
            self.seconds[kind] = seconds

    def _due(self, turn: asyncio.Future[None]) -> float:
        arrived, kind = self._waiting[turn]
        return arrived - min(self.seconds.get(kind, 0.0), _MOST_SECONDS)


@dataclass(slots=True)
class _Turn:
    """The turn of a request that is being answered."""

    loop: asyncio.AbstractEventLoop
    places: _Places
    # How long other requests had the turn.
    waited_seconds: float = 0.0


_turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)


class Turns:
    """An application in front of another one, whose requests of one method below `path` are answered in turns."""

    def __init__(self, app: ASGIApp, path: str, at_once: int | None = None, method: str = "GET") -> None:
        """By default, `at_once` is the number of cores plus two: cores stay busy while requests are read and sent."""
        self._app, self._path, self._method = app, path, method
        self._places = _Places(at_once or (os.cpu_count() or 1) + 2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != self._method or not scope["path"].startswith(self._path):
            await self._app(scope, receive, send)
            return
        # The kind of `run/images/7/bars` is ("images", "bars"), without the names of the store and of the image.
        kind = tuple(scope["path"].removeprefix(self._path).split("/")[1::2])
        await self._places.acquire(time.monotonic(), kind)
        began, turn = time.monotonic(), _Turn(asyncio.get_running_loop(), self._places)
        # Threads that answer the request inherit it.
        before = _turn.set(turn)
        try:
            await self._app(scope, receive, send)
        finally:
            _turn.reset(before)
            self._places.note(kind, time.monotonic() - began - turn.waited_seconds)
            self._places.release()


@contextmanager
def without_turn() -> Iterator[None]:
    """While a thread that answers a request waits for something else, another request has its turn."""
    turn = _turn.get()
    if turn is None:
        yield
        return
    began = time.monotonic()
    turn.loop.call_soon_threadsafe(turn.places.release)
    try:
        yield
    finally:
        # It is answered before the requests that have not had a turn yet.
        asyncio.run_coroutine_threadsafe(turn.places.acquire(-math.inf, ()), turn.loop).result()
        turn.waited_seconds += time.monotonic() - began
