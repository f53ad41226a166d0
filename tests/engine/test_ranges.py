"""Remote files in blocks: every byte is read, blocks are read ahead, and failed requests are repeated."""

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
    """Serves parts of DATA when their results are read, and records the requests."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self.cancelled: list[int] = []
        # Requests that are neither read nor cancelled. More than `bears` are refused.
        self.pending: set[int] = set()
        self.bears, self.refused = 99, 0
        # For each block, the failures of its next requests.
        self.failures: dict[int, list[Exception]] = {}

    def fetch(self, start: int, end: int) -> Future[bytes]:
        index = start // SIZE
        assert end == min(start + SIZE, len(DATA))
        self.requested.append(index)
        failures, cancelled = self.failures.get(index, []), self.cancelled
        failure = failures.pop() if failures else None
        pending = self.pending
        pending.add(index)
        if len(pending) > self.bears:
            failure = OSError("too many")
            self.refused += 1

        class Request(Future[bytes]):
            def result(self, timeout: float | None = None) -> bytes:
                pending.discard(index)
                if failure is not None:
                    raise failure
                return DATA[start:end]

            def cancel(self) -> bool:
                pending.discard(index)
                cancelled.append(index)
                return True

        return Request()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", SIZE)


@given(reads=st.lists(st.tuples(st.integers(0, len(DATA) + 9), st.integers(0, 5 * SIZE)), max_size=12))
def test_reads_in_any_order_give_the_bytes_of_the_file(reads: list[tuple[int, int]]) -> None:
    # The fixture applies to the whole test, so all examples share it.
    file = Blocks(Remote().fetch, len(DATA), URL)
    for offset, size in reads:
        assert file.read(offset, size) == DATA[offset : offset + size]


def test_sequential_reads_request_every_block_once_with_read_ahead() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    ahead = []
    for offset in range(0, len(DATA), 10):
        assert file.read(offset, 10) == DATA[offset : offset + 10]
        ahead.append(max(remote.requested) - (offset + 9) // SIZE)
    assert remote.requested == list(range(-(-len(DATA) // SIZE)))
    # One read starts no read-ahead; a second sequential read starts a little.
    assert ahead[: SIZE // 10] == [0] * (SIZE // 10)
    assert ahead[SIZE // 10] == 3
    assert max(ahead) == AHEAD
    assert set(remote.cancelled) <= set(remote.requested)


def test_reads_far_apart_fetch_single_blocks_and_cancel_other_requests() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    for index in (9, 3, 20, 5):
        file.read(index * SIZE + 1, 5)
    assert remote.requested == [9, 3, 20, 5]
    file.read(0, 4 * SIZE)
    pending = set(remote.requested) - {9, 20, 5}
    remote.cancelled.clear()
    file.read(30 * SIZE, 1)
    assert pending - {0, 1, 2} <= set(remote.cancelled)
    file.close()
    assert remote.cancelled[-1] == 30


def test_a_failed_block_is_requested_again() -> None:
    remote = Remote()
    remote.failures = {2: [OSError("gone")] * 2, 20: [OSError("gone")]}
    file = Blocks(remote.fetch, len(DATA), URL)
    assert file.read(0, 2 * SIZE) == DATA[: 2 * SIZE]
    # It was one of several requests, so it is repeated once silently, then the error is raised.
    with pytest.raises(SourceError, match=r"h/a\.tar: cannot be read \(gone\)"):
        file.read(2 * SIZE, 1)
    assert file.read(2 * SIZE, SIZE) == DATA[2 * SIZE : 3 * SIZE]
    assert remote.requested.count(2) == 3
    with pytest.raises(SourceError, match=r"h/a\.tar: cannot be read \(gone\)"):
        file.read(20 * SIZE, 1)
    assert file.read(20 * SIZE, SIZE) == DATA[20 * SIZE : 21 * SIZE]


def test_a_server_that_refuses_many_requests_gets_fewer_and_later_one_more() -> None:
    remote = Remote()
    remote.bears = 3
    file = Blocks(remote.fetch, len(DATA), URL)
    most, refused = [], []
    for offset in range(0, len(DATA), SIZE):
        assert file.read(offset, SIZE) == DATA[offset : offset + SIZE]
        most.append(len(remote.pending))
        refused.append(remote.refused)
    # At first all requests that were sent with the first failure are refused; later only one, now and then.
    assert refused[10] > 10
    assert refused[-1] - refused[10] <= 2
    # The requests that are pending after each read.
    assert set(most[20:-2]) <= {1, 2}


def test_read_ahead_is_cancelled_after_a_step_back() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA), URL)
    file.read(0, 12 * SIZE)
    remote.cancelled.clear()
    file.read(0, 1)
    assert min(remote.cancelled) == AHEAD + 1


def test_no_block_after_the_end_is_requested() -> None:
    asked: list[int] = []

    def fetch(start: int, end: int) -> Future[bytes]:
        asked.append(start)
        assert end > start
        done: Future[bytes] = Future()
        done.set_result(DATA[start:end])
        return done

    assert Blocks(fetch, 6 * SIZE, URL).read(0, len(DATA)) == DATA[: 6 * SIZE]
    assert asked == [index * SIZE for index in range(6)]


def test_a_block_that_is_too_short_is_not_mistaken_for_the_end() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA[:40])
    assert Blocks(lambda start, end: done, len(DATA), URL).read(0, 60) == DATA[:40]


def test_a_server_that_sends_more_than_requested_is_refused() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA)
    with pytest.raises(SourceError, match="whole files"):
        Blocks(lambda start, end: done, len(DATA), URL).read(SIZE, 1)
