"""Requests are answered in turns, in the order in which they came, and those that wait for a model let others pass."""

from __future__ import annotations

import asyncio
import threading

import pytest
from anyio import to_thread

from headspan.web.state.turns import Turns, without_turn


class Answering:
    """An application that notes how many requests it answers at once."""

    def __init__(self, work) -> None:  # type: ignore[no-untyped-def]
        self._work, self._lock = work, threading.Lock()
        self.now = self.most = 0
        self.order: list[str] = []

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        # Noted here, since two threads may start in another order.
        self.order.append(scope["path"])
        await to_thread.run_sync(self._answer, scope["path"])

    def _answer(self, path: str) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self._work(path)
        finally:
            with self._lock:
                self.now -= 1


def ask(app: Turns, paths: list[str], method: str = "GET") -> None:
    async def one(path: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await app({"type": "http", "method": method, "path": path}, None, None)  # type: ignore[arg-type]

    async def every() -> None:
        await asyncio.gather(*(one(path, number / 200) for number, path in enumerate(paths)))

    asyncio.run(every())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_as_many_requests_as_given_are_answered_at_once_in_their_order(method: str) -> None:
    # Each waits for another one; a third one at the same time would be counted before it is asked to wait.
    together = threading.Barrier(2, timeout=30)
    answering = Answering(lambda path: together.wait())
    paths = [f"/api/{number}" for number in range(10)]
    ask(Turns(answering, "/api/", 2, method), paths, method)
    assert answering.most == 2
    assert answering.order == paths


@pytest.mark.parametrize(("path", "method"), [("/page", "GET"), ("/api/uploads", "POST")])
def test_other_requests_do_not_wait(path: str, method: str) -> None:
    together = threading.Barrier(4, timeout=30)
    ask(Turns(Answering(lambda path: together.wait()), "/api/", 1), [path] * 4, method)
    assert not together.broken


def test_a_request_that_waits_for_something_else_lets_another_one_pass() -> None:
    answered = threading.Event()

    def work(path: str) -> None:
        if path == "/api/slow":
            with without_turn():
                assert answered.wait(30)
        else:
            answered.set()

    ask(Turns(Answering(work), "/api/", 1), ["/api/slow", "/api/quick"])
    assert answered.is_set()


def test_an_error_gives_the_turn_back() -> None:
    def work(path: str) -> None:
        with without_turn():
            raise ValueError(path)

    app = Turns(Answering(work), "/api/", 1)

    async def every() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="/api/1"):
                await asyncio.wait_for(app({"type": "http", "method": "GET", "path": "/api/1"}, None, None), 10)  # type: ignore[arg-type]

    asyncio.run(every())


def test_outside_a_request_nothing_is_given_away() -> None:
    with without_turn():
        pass
