"""Tests of what a decoding process reads: neighbouring images in one read, exact ranges, a share of the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headspan.config import Preprocess
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.processes.messages import Run as ShardRun
from headspan.decode.processes.messages import SpanFailure, SpanRequest, WorkerSettings
from headspan.decode.processes.reading import EncodedSpan, Reader, _Room
from headspan.decode.processes.ring import Ring
from headspan.decode.processes.worker import _Decoder
from headspan.errors import HeadspanError, SourceError
from headspan.io import ranges
from headspan.io import retry as network
from headspan.io.memory import memory_file
from headspan.io.ranges import ExactRanges
from headspan.io.retry import TransientError
from headspan.shards import sources
from headspan.shards.open_images import open_images
from headspan.shards.plan import scan
from headspan.shards.reader import Place
from headspan.shards.sources import open_place, open_shard
from headspan.shards.tar_images import TarImages, plan_reads
from tests.conftest import encoded_image, write_tar
from tests.engine.decoding import decoded, spans
from tests.engine.test_network_sources import Server, server
from tests.waiting import wait_until

__all__ = ["server"]
SMALL = Preprocess(size=(32, 32))
# Places of members: the gap before each, and its size.
MEMBERS = st.lists(st.tuples(st.sampled_from([0, 1, 512, 65_536, 65_537, -300]), st.integers(0, 9_000)), max_size=20)


def layout(members: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    offsets, end = [], 1_000
    for gap, size in members:
        offsets.append(end + gap)
        end = offsets[-1] + size
    return tuple(offsets), tuple(size for _, size in members)


@given(members=MEMBERS, most=st.sampled_from([0, 1, 5_000, 100_000, 1 << 30]))
def test_reads_cover_every_image_once_in_order_and_stay_within_their_limits(
    members: list[tuple[int, int]], most: int
) -> None:
    offsets, sizes = layout(members)
    reads = list(plan_reads(offsets, sizes, most))
    assert [place for read in reads for place in range(read.first, read.first + read.images)] == list(range(len(sizes)))
    for read in reads:
        places = range(read.first, read.first + read.images)
        if sizes[read.first] == 0:
            # The header of an empty member, which may be a link.
            assert (read.images, read.offset, read.size) == (1, offsets[read.first] - 512, 512)
            continue
        assert read.images == 1 or read.size <= most
        assert read.offset == offsets[places[0]]
        assert read.offset + read.size == offsets[places[-1]] + sizes[places[-1]]
        assert all(read.offset <= offsets[place] for place in places)


def test_neighbouring_images_are_read_together_and_distant_ones_apart() -> None:
    offsets, sizes = layout([(0, 5_000), (1_024, 6_000), (60_000, 7_000), (70_000, 8_000), (-20_000, 100)])
    reads = list(plan_reads(offsets, sizes, 1 << 20))
    assert [(read.first, read.images) for read in reads] == [(0, 3), (3, 1), (4, 1)]


def ring_of(workers: int, encoded_bytes: int = 1 << 20, raster_bytes: int = 1000) -> tuple[WorkerSettings, Ring]:
    settings = WorkerSettings(0, workers, "exact", SMALL, 1, 4, encoded_bytes, raster_bytes)
    settings = replace(settings, ring=memory_file(settings.ring_bytes))
    return settings, Ring(settings)


def test_rasters_of_all_processes_stay_within_their_limit_and_a_larger_one_is_alone() -> None:
    _, ring = ring_of(3)
    with ring.raster(0, 600):
        assert not ring._take(1, 401)
        with ring.raster(1, 400):
            assert not ring._take(2, 1)
        assert not ring._take(1, 5_000)
    with ring.raster(1, 5_000):
        assert not ring._take(0, 1)
    waited: list[int] = []

    def wait_for_room() -> None:
        with ring.raster(2, 5_000):
            waited.append(1)

    with ring.raster(0, 1):
        thread = threading.Thread(target=wait_for_room)
        thread.start()
        thread.join(0.1)
        assert not waited
    thread.join(10)
    assert waited


def test_a_process_that_died_gives_its_memory_back() -> None:
    _, ring = ring_of(2)
    ring.begin(1, 7)
    ring.note_image(1, 3)
    assert ring._take(1, 1_000)
    assert ring.image_of(1) == (7, 3)
    assert not ring._take(0, 1)
    ring.forget(1)
    assert ring._take(0, 1_000)


def test_encoded_images_are_read_ahead_within_the_share(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(12)]
    path = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", content) for number, content in enumerate(contents)])
    samples = scan(str(path), 0, lambda note: None)[1]
    with open_images(str(path)) as reader:
        place = reader.place()
    settings, ring = ring_of(1, encoded_bytes=44_000)
    reads = Reader(settings, ring)
    most = [0]
    take = reads._room.take

    def watched(size: int) -> None:
        take(size)
        most[0] = max(most[0], reads._room._taken)

    reads._room.take = watched  # type: ignore[method-assign]
    request = SpanRequest(
        0, 0, (ShardRun(12, place),), tuple(s.offset for s in samples), tuple(s.size_bytes or 0 for s in samples)
    )
    reads.give(request)
    span = reads.next()
    # The thread reads as much as it may before the first image is taken.
    wait_until(lambda: reads._room._taken > 20_000)
    assert [encoded for _, encoded, _ in span] == contents
    assert most[0] <= 44_000


DATA = bytes(range(256)) * 40


class Remote:
    """Serves DATA at once, after `failures`; counts the requests that nobody has read yet."""

    def __init__(self, failures: list[Exception | int] | None = None) -> None:
        self.requested: list[tuple[int, int]] = []
        self.failures = failures or []
        self.pending = self.most_pending = 0

    def fetch(self, start: int, end: int) -> Future[bytes]:
        self.requested.append((start, end))
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        failure = self.failures.pop(0) if self.failures else None
        remote = self

        class Request(Future[bytes]):
            def result(self, timeout: float | None = None) -> bytes:
                remote.pending -= 1
                if isinstance(failure, Exception):
                    raise failure
                return DATA[start : end + (failure or 0)]

        return Request()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    asked: list[float] = []
    monkeypatch.setattr(network.time, "sleep", asked.append)
    return asked


def test_exact_ranges_request_what_is_needed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 1_000)
    remote = Remote()
    file = ExactRanges(remote.fetch, len(DATA), "https://h/a.tar")
    first, second = file.start(5, 2_300), file.start(9_000, 10)
    # All requests are sent before an answer is read.
    assert remote.requested == [(5, 1_005), (1_005, 2_005), (2_005, 2_305), (9_000, 9_010)]
    assert second() == DATA[9_000:9_010]
    assert first() == DATA[5:2_305]
    assert file.start(len(DATA) - 3, 99)() == DATA[-3:]


@pytest.mark.parametrize("failure", [OSError("gone"), -1])
def test_a_range_that_fails_or_is_short_is_requested_again(failure: Exception | int, waits: list[float]) -> None:
    remote = Remote([failure] * 3)
    assert ExactRanges(remote.fetch, len(DATA), "https://h/a.tar").start(7, 99)() == DATA[7:106]
    assert waits == [1.0, 2.0]
    remote = Remote([failure] * 99)
    with pytest.raises(SourceError, match="it was tried 6 times"):
        ExactRanges(remote.fetch, len(DATA), "https://h/a.tar").start(7, 99)()


def test_a_server_that_fails_gets_fewer_requests_at_once_and_later_more(waits: list[float]) -> None:
    remote = Remote([OSError("busy")])
    file = ExactRanges(remote.fetch, len(DATA), "https://h/a.tar")
    most = []
    for _ in range(30):
        remote.most_pending = 0
        for wait in [file.start(10 * number, 10) for number in range(40)]:
            wait()
        most.append(remote.most_pending)
    assert most[0] == 16
    assert most[1] < 12
    assert most[-1] == 16


@pytest.mark.parametrize("failure", [TransientError("busy"), SourceError("gone")])
def test_requests_that_fail_do_not_count_as_pending(
    failure: SourceError, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 1_000)
    remote = Remote()
    failures: list[SourceError] = []

    def fetch(start: int, end: int) -> Future[bytes]:
        if start == 1_000 and failures:
            raise failures.pop()
        return remote.fetch(start, end)

    file = ExactRanges(fetch, len(DATA), "https://h/a.tar")
    for _ in range(40):
        failures[:] = [failure] * 2
        if isinstance(failure, TransientError):
            assert file.start(0, 3_000)() == DATA[:3_000]
            continue
        with pytest.raises(SourceError, match="gone"):
            file.start(0, 3_000)
    # An answer that cannot be used leaves those after it unread.
    for _ in range(20):
        remote.failures = [1]
        with pytest.raises(SourceError, match="whole files"):
            file.start(2_000, 3_000)()
    remote.requested.clear()
    file.start(2_000, 1_000)
    # It is requested at once.
    assert remote.requested == [(2_000, 3_000)]


def test_an_opening_that_fails_once_is_tried_again(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, failures = sources.open_exact, [TransientError("busy")]

    def opened(url: str, size: int) -> ExactRanges:
        if failures:
            raise failures.pop()
        return plain(url, size)

    monkeypatch.setattr(sources, "open_exact", opened)
    with open_place(Place("https://h/a.tar", None, 9)) as reader:
        assert reader.url == "https://h/a.tar"
    assert waits == [1.0]


@pytest.mark.parametrize(
    ("error", "kind"), [(TransientError("busy"), "SourceError"), (HeadspanError("no"), "HeadspanError")]
)
def test_an_error_of_a_process_is_one_that_users_know(error: HeadspanError, kind: str) -> None:
    settings, ring = ring_of(1)
    span = EncodedSpan(SpanRequest(7, 0, (), (), ()), _Room(1, ring))
    span.end(error)
    assert _Decoder(settings, ring).answer(span) == SpanFailure(7, kind, str(error))


def test_a_server_that_sends_more_than_a_range_is_refused() -> None:
    with pytest.raises(SourceError, match="whole files"):
        ExactRanges(Remote([1]).fetch, len(DATA), "https://h/a.tar").start(7, 99)()


def test_images_of_a_server_are_read_by_the_processes_themselves(server: Server, tmp_path: Path) -> None:
    members = [(f"{number:02d}.jpg", encoded_image(number)) for number in range(12)]
    path = write_tar(server.folder / "a.tar", members)
    wanted = dict(decoded(scan(str(path), 0, pytest.fail)[1], SMALL, []))
    samples = scan(server.url("a.tar"), 0, pytest.fail)[1]
    reader = open_shard(server.url("a.tar"))
    assert reader.place() is not None
    reader.close()
    found = decoded(samples, SMALL, [], 2, 1 << 24, mechanism="processes")
    assert [row for row, _ in found] == list(range(12))
    for row, pixels in found:
        np.testing.assert_array_equal(pixels, wanted[row])


def test_a_server_that_fails_in_a_process_is_an_error_without_its_secrets(server: Server) -> None:
    path = write_tar(server.folder / "a.tar", [(f"{n}.jpg", encoded_image(n)) for n in range(12)])
    samples = scan(server.url("a.tar"), 0, pytest.fail)[1]

    def then_deleted(url: str) -> object:
        reader = TarImages(open_shard(url))
        path.unlink()
        return reader

    decoder = ProcessDecoder("exact", SMALL, 1 << 24, 4, 1, then_deleted)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"a\.tar\?…: cannot be read \(.*check the path") as failure:
        list(decoder.decode(spans(samples)))
    assert "c2lnbmVk" not in str(failure.value)


def places(url: str) -> Iterator[object]:
    with open_shard(url) as reader:
        yield reader.place()


def test_only_files_and_servers_that_every_process_reads_alike_have_a_place(tmp_path: Path, server: Server) -> None:
    from fsspec.config import conf
    from fsspec.implementations.memory import MemoryFileSystem

    path = write_tar(tmp_path / "a.tar", [("0.jpg", encoded_image(0))])
    MemoryFileSystem().pipe_file("/placed.tar", path.read_bytes())
    (server.folder / "a.tar").write_bytes(path.read_bytes())
    assert list(places("memory://placed.tar")) == list(places(f"pipe:cat {path}")) == [None]
    for url in (str(path), server.url("a.tar")):
        (place,) = places(url)
        with open_place(place) as copy, open_shard(url) as reader:  # type: ignore[arg-type]
            assert copy.read_at(512, 300) == reader.read_at(512, 300)
    # Options that the user's program has set are unknown to a new process.
    conf["http"] = {"client_kwargs": {"trust_env": True}}
    try:
        assert list(places(server.url("a.tar"))) == [None]
    finally:
        del conf["http"]
