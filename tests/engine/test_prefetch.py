"""Tests of prefetch: order, limits, failures and closing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from headspan.decode.prefetch import prefetch
from headspan.errors import SourceError
from tests.waiting import wait_until


@pytest.mark.parametrize("in_flight_bytes", [0, 1, 300, 1 << 40])
@pytest.mark.parametrize("count", [0, 1, 257])
def test_every_item_comes_out_in_order(count: int, in_flight_bytes: int) -> None:
    assert list(prefetch(range(count), lambda item: item, in_flight_bytes)) == list(range(count))


def test_the_thread_runs_ahead_by_the_bytes_allowed_and_no_more() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    items = prefetch(source(), lambda item: 10, in_flight_bytes=35)
    assert not made
    assert next(items) == 0
    # Three wait (30 bytes), and a fourth is made and waits for room.
    wait_until(lambda: len(made) >= 5)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]
    assert next(items) == 1
    wait_until(lambda: len(made) >= 6)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4, 5]
    items.close()


def test_items_are_made_in_another_thread_than_the_consumers() -> None:
    main = threading.get_ident()
    makers: set[int] = set()

    def source() -> Iterator[int]:
        for item in range(5):
            makers.add(threading.get_ident())
            yield item

    assert sum(prefetch(source(), lambda item: 1, 10)) == 10
    assert makers
    assert main not in makers


def test_a_failure_is_raised_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise SourceError("a.tar: truncated")

    items = prefetch(source(), lambda item: 1, 100)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(SourceError, match="truncated"):
        next(items)


def test_a_failure_of_the_size_function_is_raised() -> None:
    with pytest.raises(TypeError):
        list(prefetch([1, None], lambda item: 1 + item, 100))  # type: ignore[operator]


@pytest.mark.parametrize("taken", [1, 2])
def test_closing_stops_the_thread_and_closes_the_source(taken: int) -> None:
    made: list[int] = []
    closed: list[int] = []

    def source() -> Iterator[int]:
        try:
            for item in itertools.count():
                made.append(item)
                yield item
        finally:
            closed.append(threading.get_ident())

    items = prefetch(source(), lambda item: 1, in_flight_bytes=3)
    for item in range(taken):
        assert next(items) == item
    items.close()
    # The ones taken, three that wait, and the one that waits for room.
    assert len(made) <= taken + 4
    assert len(closed) == 1
    assert not any(thread.name == "headspan-prefetch" for thread in threading.enumerate())


def test_a_consumer_that_fails_leaves_no_thread_behind() -> None:
    def consume() -> None:
        for item in prefetch(range(1_000_000), lambda item: 1, in_flight_bytes=3):
            if item == 7:
                raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        consume()
    wait_until(lambda: not any(thread.name == "headspan-prefetch" for thread in threading.enumerate()))
