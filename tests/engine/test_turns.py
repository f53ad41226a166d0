"""Requests are answered in turns, slow ones a little earlier, and those that wait for a model let others pass."""

from __future__ import annotations

import asyncio
import threading

import pytest
from anyio import to_thread

from headspan.web.state import turns
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
    # Each request waits for another one, so two are answered at once; `most` would also count a third one.
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


class Clock:
    """A clock that only the test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("slow_seconds", "apart", "order"),
    [
        (0.2, 0.1, ["first", "slow", "quick"]),
        (0.2, 0.3, ["first", "quick", "slow"]),
        # A request does not wait for those that come much later, however long they take.
        (60.0, 0.4, ["first", "slow", "quick"]),
        (60.0, 0.6, ["first", "quick", "slow"]),
    ],
)
def test_a_request_begins_earlier_by_the_time_that_requests_of_its_kind_have_taken(
    slow_seconds: float, apart: float, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, begun = Clock(), []
    monkeypatch.setattr(turns, "time", clock)

    async def every() -> None:
        go_on = asyncio.Event()

        async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            name = scope["path"].split("/")[-1]
            begun.append(name)
            if name == "first":
                await go_on.wait()
            if name == "slow":
                clock.now += slow_seconds

        def request(name: str) -> asyncio.Task[None]:
            scope = {"type": "http", "method": "GET", "path": f"/api/run/{name}"}
            return asyncio.ensure_future(asked(scope, None, None))  # type: ignore[arg-type]

        asked = Turns(app, "/api/", 1)
        # Both kinds are known.
        await request("slow")
        await request("quick")
        begun.clear()
        waiting = []
        for name in ("first", "quick", "slow"):
            waiting.append(request(name))
            await asyncio.sleep(0)
            clock.now += apart
        go_on.set()
        await asyncio.gather(*waiting)

    asyncio.run(every())
    assert begun == order


def test_time_in_which_a_request_waits_for_something_else_is_not_time_that_its_kind_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)

    def work(path: str) -> None:
        clock.now += 1
        with without_turn():
            clock.now += 10

    app = Turns(Answering(work), "/api/", 1)
    ask(app, ["/api/run/images"])
    assert app._places.seconds == {("images",): 1.0}


@pytest.mark.parametrize("first", ["the turn is given", "the request is given up"])
def test_a_request_that_is_given_up_while_it_waits_keeps_no_turn(first: str) -> None:
    async def every() -> None:
        places = turns._Places(1)
        await places.acquire(0.0, ())
        given_up, last = (asyncio.ensure_future(places.acquire(number, ())) for number in (1.0, 2.0))
        await asyncio.sleep(0)
        # Both happen before the request itself goes on.
        for happens in [places.release, given_up.cancel][:: 1 if first == "the turn is given" else -1]:
            happens()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.wait_for(last, 10)
        places.release()
        assert places._free == 1

    asyncio.run(every())


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
