"""A remote file in blocks: every byte, how many are on their way, and what failed is asked for anew."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headspan import blocks
from headspan.blocks import AHEAD, Blocks

SIZE = 64
DATA = bytes(range(256)) * 9 + b"the end"


class Remote:
    """Brings spans of DATA when they are waited for, and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.failures: dict[int, Exception] = {}

    def fetch(self, start: int, end: int) -> Future[bytes]:
        index = start // SIZE
        assert end == min(start + SIZE, len(DATA))
        self.asked.append(index)
        remote = self

        class Coming(Future[bytes]):
            def result(self, timeout: float | None = None) -> bytes:
                if index in remote.failures:
                    raise remote.failures.pop(index)
                return DATA[start:end]

            def cancel(self) -> bool:
                remote.cancelled.append(index)
                return True

        return Coming()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", SIZE)


@given(spans=st.lists(st.tuples(st.integers(0, len(DATA) + 9), st.integers(0, 5 * SIZE)), max_size=12))
def test_any_spans_in_any_order_are_the_files_bytes(spans: list[tuple[int, int]]) -> None:
    # The fixture holds for the whole test, all examples of it alike.
    file = Blocks(Remote().fetch, len(DATA))
    for offset, size in spans:
        assert file.read(offset, size) == DATA[offset : offset + size]


def test_forwards_every_block_is_asked_for_once_and_many_are_on_their_way() -> None:
    remote = Remote()
    file = Blocks(remote.fetch, len(DATA))
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
    file = Blocks(remote.fetch, len(DATA))
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
    remote.failures = {2: OSError("gone"), 7: OSError("gone")}
    file = Blocks(remote.fetch, len(DATA))
    assert file.read(0, 2 * SIZE) == DATA[: 2 * SIZE]
    for block in (2, 7):
        offset = block * SIZE
        with pytest.raises(OSError, match="gone"):
            file.read(offset - SIZE, 2 * SIZE)
        assert file.read(offset - SIZE, 2 * SIZE) == DATA[offset - SIZE : offset + SIZE]


def test_a_block_that_is_cut_short_is_not_taken_for_the_end() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA[:40])
    assert Blocks(lambda start, end: done, len(DATA)).read(0, 60) == DATA[:40]


def test_more_than_was_asked_for_is_refused() -> None:
    done: Future[bytes] = Future()
    done.set_result(DATA)
    with pytest.raises(ValueError, match="whole files"):
        Blocks(lambda start, end: done, len(DATA)).read(SIZE, 1)
