"""A remote file in blocks: every byte, how many are on their way, and what failed is asked for anew."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headspan.errors import SourceError
from headspan.io import ranges as blocks
from headspan.io.ranges import AHEAD, Blocks

SIZE = 64
DATA = bytes(range(256)) * 9 + b"the end"
URL = "https://h/a.tar"


class Remote:
    """Brings spans of DATA when they are waited for, and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        # Asked for, and neither taken nor given up; more than it bears are refused.
        self.on_their_way: set[int] = set()
        self.bears, self.refused = 99, 0
        # Of the next times that a block is asked for.
        self.failures: dict[int, list[Exception]] = {}

    def fetch(self, start: int, end: int) -> Future[bytes]:
        index = start // SIZE
        assert end == min(start + SIZE, len(DATA))
        self.asked.append(index)
        failures, cancelled = self.failures.get(index, []), self.cancelled
        failure = failures.pop() if failures else None
        on_their_way = self.on_their_way
        on_their_way.add(index)
        if len(on_their_way) > self.bears:
            failure = OSError("too many")
            self.refused += 1

        class Coming(Future[bytes]):
            def result(self, timeout: float | None = None) -> bytes:
                on_their_way.discard(index)
                if failure is not None:
                    raise failure
                return DATA[start:end]

            def cancel(self) -> bool:
                on_their_way.discard(index)
                cancelled.append(index)
                return True

        return Coming()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", SIZE)


@given(spans=st.lists(st.tuples(st.integers(0, len(DATA) + 9), st.integers(0, 5 * SIZE)), max_size=12))
def test_any_spans_in_any_order_are_the_files_bytes(spans: list[tuple[int, int]]) -> None:
    # The fixture holds for the whole test, all examples of it alike.
    file = Blocks(Remote().fetch, len(DATA), URL)
    for offset, size in spans:
        assert file.read(offset, size) == DATA[offset : offset + size]


def test_forwards_every_block_is_asked_for_once_and_many_are_on_their_way() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    ahead = []
    for offset in range(0, len(DATA), 10):
        assert file.read(offset, 10) == DATA[offset : offset + 10]
        ahead.append(max(remote.asked) - (offset + 9) // SIZE)
    assert remote.asked == list(range(-(-len(DATA) // SIZE)))
    # One block says nothing of what is wanted next; two in a row do, a little.
    assert ahead[: SIZE // 10] == [0] * (SIZE // 10)
    assert ahead[SIZE // 10] == 3
    assert max(ahead) == AHEAD
    assert set(remote.cancelled) <= set(remote.asked)


def test_what_lies_apart_is_fetched_alone_and_the_rest_is_given_up() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    for index in (9, 3, 20, 5):
        file.read(index * SIZE + 1, 5)
    assert remote.asked == [9, 3, 20, 5]
    file.read(0, 4 * SIZE)
    on_their_way = set(remote.asked) - {9, 20, 5}
    remote.cancelled.clear()
    file.read(30 * SIZE, 1)
    assert on_their_way - {0, 1, 2} <= set(remote.cancelled)
    file.close()
    assert remote.cancelled[-1] == 30


def test_a_block_that_failed_is_asked_for_anew() -> None:
    remote = Remote()
    remote.failures = {2: [OSError("gone")] * 2, 20: [OSError("gone")]}
    file = Blocks(remote.fetch, len(DATA), URL)
    assert file.read(0, 2 * SIZE) == DATA[: 2 * SIZE]
    # One of several that were on their way: once more without a word, then the caller is told.
    with pytest.raises(SourceError, match=r"h/a\.tar: cannot be read \(gone\)"):
        file.read(2 * SIZE, 1)
    assert file.read(2 * SIZE, SIZE) == DATA[2 * SIZE : 3 * SIZE]
    assert remote.asked.count(2) == 3
    with pytest.raises(SourceError, match=r"h/a\.tar: cannot be read \(gone\)"):
        file.read(20 * SIZE, 1)
    assert file.read(20 * SIZE, SIZE) == DATA[20 * SIZE : 21 * SIZE]


def test_a_server_that_bears_few_at_once_is_asked_for_fewer_and_now_and_then_for_one_more() -> None:
    remote = Remote()
    remote.bears = 3
    file = Blocks(remote.fetch, len(DATA), URL)
    most, refused = [], []
    for offset in range(0, len(DATA), SIZE):
        assert file.read(offset, SIZE) == DATA[offset : offset + SIZE]
        most.append(len(remote.on_their_way))
        refused.append(remote.refused)
    # All that were asked for together with the first that failed; later one, now and then.
    assert refused[10] > 10
    assert refused[-1] - refused[10] <= 2
    # What is on its way beside the one that was just taken.
    assert set(most[20:-2]) <= {1, 2}


def test_blocks_far_ahead_are_given_up_after_a_step_back() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    file.read(0, 12 * SIZE)
    remote.cancelled.clear()
    file.read(0, 1)
    assert min(remote.cancelled) == AHEAD + 1


def test_a_file_of_whole_blocks_has_no_block_behind_its_end() -> None:
    asked: list[int] = []

    def fetch(start: int, end: int) -> Future[bytes]:
        asked.append(start)
        assert end > start
        done: Future[bytes] = Future()
        done.set_result(DATA[start:end])
        return done

    assert Blocks(fetch, 6 * SIZE, URL).read(0, len(DATA)) == DATA[: 6 * SIZE]
    assert asked == [index * SIZE for index in range(6)]


def test_a_block_that_is_cut_short_is_not_taken_for_the_end() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA[:40])
    assert Blocks(lambda start, end: done, len(DATA), URL).read(0, 60) == DATA[:40]


def test_more_than_was_asked_for_is_refused() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA)
    with pytest.raises(SourceError, match="whole files"):
        Blocks(lambda start, end: done, len(DATA), URL).read(SIZE, 1)
