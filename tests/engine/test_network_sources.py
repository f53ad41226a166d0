"""Network sources that fail for a while or for ever, and urls with secrets, against a real local server."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import headspan as hs
from headspan.errors import HeadspanError, SourceError
from headspan.io import ranges as blocks
from headspan.io import retry as network
from headspan.redact import redact
from headspan.run.planned_sources import PlannedSources
from headspan.shards.describe import describe, describe_each
from headspan.shards.samples import Shard
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand, stored_names
from tests.conftest import ToyRun, image_members, relative_files, write_tar

pytest.importorskip("aiohttp")

SECRETS = ("s3cret", "hunter2", "c2lnbmVk", "AKIAEXAMPLE")


class Server(ThreadingHTTPServer):
    """Serves one folder, after the failures in `troubles`."""

    # The default queue of five is too short for the concurrent connections; a full queue delays clients for seconds.
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        # What to do with the next requests for data: answer with a status, "cut" the body half-way, declare half of it
        # as all ("short"), or send the "whole" file instead of the requested range.
        self.troubles: list[int | str] = []
        self.requests = 0
        # HEAD requests, or requests for data, are answered when so many are waiting.
        self.heads_together: threading.Barrier | None = None
        self.together: threading.Barrier | None = None
        # More concurrent requests for data are refused; 0 means no limit.
        self.most_at_once = 0
        self._now, self._lock = 0, threading.Lock()
        # Whether the server states sizes and supports ranges.
        self.states_sizes = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may disconnect."""

    def enter(self) -> bool:
        """Count a request for data until `leave`, and take a moment. Returns whether it is within the limit."""
        with self._lock:
            self._now += 1
            room = self._now <= self.most_at_once
        if self.most_at_once and room:
            threading.Event().wait(0.005)
        return room or not self.most_at_once

    def leave(self) -> None:
        """End the count of a request for data."""
        with self._lock:
            self._now -= 1

    def url(self, name: str, secret: bool = True) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/{name}" + ("?X-Sig=c2lnbmVk&key=AKIAEXAMPLE" if secret else "")


class Handler(BaseHTTPRequestHandler):
    """GET with ranges, and HEAD."""

    server: Server

    def do_HEAD(self) -> None:
        if self.server.heads_together is not None:
            self.server.heads_together.wait(timeout=30)
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.server.folder / self.path.partition("?")[0].strip("/")
        trouble = self.server.troubles.pop(0) if with_body and self.server.troubles else None
        self.server.requests += with_body
        try:
            if with_body and not self.server.enter():
                self.send_error(503)
            else:
                self._answer_now(path, trouble, with_body)
        finally:
            if with_body:
                self.server.leave()

    def _answer_now(self, path: Path, trouble: int | str | None, with_body: bool) -> None:
        if isinstance(trouble, int) or not path.is_file():
            self.send_error(trouble if isinstance(trouble, int) else 404)
            return
        if with_body and self.server.together is not None:
            self.server.together.wait(timeout=30)
        data = path.read_bytes()
        start, end = 0, len(data) - 1
        asked = None if trouble == "whole" or not self.server.states_sizes else self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        body = data[start : end + 1]
        if trouble == "short":
            body = body[: len(body) // 2]
        if self.server.states_sizes:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if trouble == "cut" else body)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks so small that files of a few kilobytes have many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were requested; none is executed."""
    asked: list[float] = []
    monkeypatch.setattr(network.time, "sleep", asked.append)
    return asked


def test_a_source_that_fails_for_a_while_gives_every_byte(server: Server, waits: list[float]) -> None:
    data = bytes(range(256)) * 5_000
    (server.folder / "a.tar").write_bytes(data)
    server.troubles = [503, 429, "cut", 500]
    with open_shard(server.url("a.tar")) as reader:
        assert reader.read_at(70_001, 600_000) == data[70_001:670_001]
        assert reader.read_at(0, len(data)) == data
    assert server.troubles == []
    # Waits grow.
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_source_that_keeps_failing_is_an_error_after_six_tries(server: Server, waits: list[float]) -> None:
    (server.folder / "a.tar").write_bytes(bytes(9_000))
    server.troubles = [503] * 99
    with pytest.raises(SourceError, match=r"a\.tar\?…: cannot be read \(503.*it was tried 6 times"):
        open_shard(server.url("a.tar"))
    assert waits == list(network.RETRY_SECONDS)


@pytest.mark.usefixtures("small_blocks")
def test_a_connection_that_breaks_during_read_ahead_loses_no_byte(server: Server, waits: list[float]) -> None:
    data = bytes(range(256)) * 500
    (server.folder / "a.tar").write_bytes(data)
    found = b""
    with open_shard(server.url("a.tar")) as reader:
        for troubles in ([], [503, "cut", 500, "cut", 503], ["cut"], [429, 500]):
            server.troubles = list(troubles)
            for _ in range(40):
                found += reader.read_at(len(found), 700)
            assert server.troubles == []
    assert found == data[: len(found)]
    # Nearly all blocks were requested together, and are requested again at once.
    assert len(waits) <= 4


@pytest.mark.parametrize("size", [0, 2, 999, 1000, 1001, 9_000])
@pytest.mark.usefixtures("small_blocks")
def test_a_server_without_range_requests_is_read_from_the_beginning(
    size: int, server: Server, waits: list[float]
) -> None:
    data = bytes(range(250)) * 36
    (server.folder / "a.tar").write_bytes(data[:size])
    server.troubles = ["whole"] * 99
    with open_shard(server.url("a.tar")) as reader:
        for offset in (0, 1, 998, 5_000, 8_990, 3):
            if offset <= size:
                assert reader.read_up_to(offset, 1_500) == data[offset : min(offset + 1_500, size)]
        with pytest.raises(SourceError, match="truncated"):
            reader.read_at(max(0, size - 1), 2)
    assert waits == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_server_that_states_no_size_is_read_from_the_beginning(packed: bool, server: Server) -> None:
    data = bytes(range(250)) * 36
    (server.folder / "a.tar").write_bytes(gzip.compress(data) if packed else data)
    server.states_sizes = False
    with open_shard(server.url("a.tar")) as reader:
        assert [reader.read_at(offset, 500) for offset in (0, 700, 40)] == [
            data[offset : offset + 500] for offset in (0, 700, 40)
        ]


@pytest.mark.usefixtures("small_blocks")
def test_blocks_that_are_read_sequentially_are_requested_together(server: Server) -> None:
    data = bytes(range(250)) * 100
    (server.folder / "a.tar").write_bytes(data)
    with open_shard(server.url("a.tar")) as reader:
        assert reader.read_at(0, 2_500) == data[:2_500]
        # So many of the next blocks are requested before the first arrives.
        server.together = threading.Barrier(5)
        assert reader.read_at(2_500, 6_500) == data[2_500:9_000]
        server.together.reset()
        server.together = None


@pytest.mark.usefixtures("small_blocks")
def test_a_server_that_answers_few_requests_at_once_gets_fewer(
    server: Server, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(250)) * 400
    (server.folder / "a.tar").write_bytes(data)
    server.most_at_once = 2

    def sleep(seconds: float) -> None:
        # A tenth of the wait, so that cancelled requests have left the server.
        waits.append(seconds)
        threading.Event().wait(seconds / 10)

    monkeypatch.setattr(network.time, "sleep", sleep)
    with open_shard(server.url("a.tar")) as reader:
        assert b"".join(reader.read_at(offset, 500) for offset in range(0, len(data), 500)) == data
    assert sum(waits) < 10


@pytest.mark.parametrize("troubles", [["short"], ["short", "cut", "short"]])
@pytest.mark.usefixtures("small_blocks")
def test_half_an_answer_is_not_mistaken_for_the_end(troubles: list[int | str], server: Server) -> None:
    data = bytes(range(250)) * 16
    (server.folder / "a.tar").write_bytes(data)
    with open_shard(server.url("a.tar")) as reader:
        server.troubles = list(troubles)
        assert reader.read_at(1_100, 2_600) == data[1_100:3_700]
    assert server.troubles == []


def test_many_shards_are_described_at_once_and_in_their_order(server: Server, tmp_path: Path) -> None:
    for number in range(40):
        (server.folder / f"{number}.tar").write_bytes(bytes(number))
    (tmp_path / "local.tar").write_bytes(bytes(99))
    urls = [server.url(f"{number}.tar") for number in range(40)] + [str(tmp_path / "local.tar")]
    server.heads_together = threading.Barrier(8)
    found = describe_each(urls)
    assert [size for size, _ in found] == [*range(40), 99]
    server.heads_together = None
    answers = describe_each([urls[3], server.url("none.tar"), urls[4]])
    assert next(answers) == (3, None)
    with pytest.raises(SourceError, match=r"none\.tar.*cannot be read"):
        next(answers)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_permanent_error_is_not_retried(status: int, server: Server, waits: list[float]) -> None:
    (server.folder / "a.tar").write_bytes(bytes(9_000))
    server.troubles = [status] * 99
    with pytest.raises(SourceError, match="cannot be read"):
        open_shard(server.url("a.tar"))
    assert waits == []


def test_a_local_file_is_not_retried(tmp_path: Path, waits: list[float]) -> None:
    for ask in (describe, open_shard):
        with pytest.raises(SourceError, match="cannot be read"):
            ask(str(tmp_path / "none.tar"))
    assert waits == []


def test_a_run_over_a_flaky_server_makes_the_store_of_a_good_one_and_keeps_no_secret(
    server: Server, toy_run: ToyRun, tmp_path: Path
) -> None:
    write_tar(server.folder / "a.tar", [*image_members(range(5), (2,)), ("b.txt", b"alone")])
    url = server.url("a.tar")
    settings: dict[str, Any] = toy_run.settings(shards=[url], emit=("heads",), unit_images=2)
    hs.precompute(out=tmp_path / "good.zarr", **settings)
    server.troubles = [500, "cut", 503, 500, "cut"]
    summary = hs.precompute(out=tmp_path / "flaky.zarr", **settings)
    assert server.troubles == []
    wanted, found = relative_files(tmp_path / "good.zarr"), relative_files(tmp_path / "flaky.zarr")
    assert found == wanted
    for name, data in found.items():
        assert not [secret for secret in SECRETS if secret.encode() in data], name
    store = hs.open(tmp_path / "flaky.zarr")
    told = f"{summary} {store.bad_images()} {store.notes()} {store.samples().to_pylist()} {store.shards()}"
    assert not [secret for secret in SECRETS if secret in told]
    assert server.url("a.tar", secret=False) + "?…" in told
    # The signature in the URL is renewed, and the run continues.
    renewed = {**settings, "shards": [url.replace("c2lnbmVk", "bmV3")]}
    assert hs.precompute(out=tmp_path / "flaky.zarr", **renewed).skipped == 5


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://me:hunter2@h.org/a.tar?sig=c2lnbmVk&x=1: cannot", "https://h.org/a.tar?…: cannot"),
        ("s3://AKIAEXAMPLE:s3cret@bucket/a.tar", "s3://bucket/a.tar"),
        ("(url='https://h/a.tar?sig=c2lnbmVk', status=403)", "(url='https://h/a.tar?…', status=403)"),
        ("https://h/a.tar#token=s3cret.", "https://h/a.tar?…."),
        ("pipe:curl -H 'Authorization: Bearer s3cret' https://h/a.tar?k=hunter2", "pipe:curl -H … https://h/a.tar?…"),
        ("pipe:curl -u me:hunter2 https://h/a.tar", "pipe:curl -u … https://h/a.tar"),
        ("pipe:TOKEN=s3cret aws s3 cp s3://b/a.tar -", "pipe:TOKEN=… aws s3 cp s3://b/a.tar -"),
        ("pipe:curl --oauth2-bearer s3cret https://h/a.tar", "pipe:curl --oauth2-bearer … https://h/a.tar"),
        ("data/a?b.tar and a@b.tar stay", "data/a?b.tar and a@b.tar stay"),
        ("https://h:8080/a@b.tar stays", "https://h:8080/a@b.tar stays"),
    ],
)
def test_secrets_are_removed_and_the_rest_stays(text: str, left: str) -> None:
    assert redact(text) == left
    assert redact(redact(text)) == left
    assert str(HeadspanError(text)) == left


def test_urls_that_differ_only_in_their_secrets_get_distinct_names() -> None:
    urls = ["https://h/get?id=1", "https://h/get?id=2", "local?.tar"]
    assert stored_names(urls) == {
        "https://h/get?…": urls[0],
        "https://h/get?… (2)": urls[1],
        "local?.tar": urls[2],
    }


def test_an_error_shows_no_secret_even_in_its_traceback(server: Server) -> None:
    with pytest.raises(SourceError) as failure:
        open_shard(server.url("none.tar"))
    seen: BaseException | None = failure.value
    while seen is not None:
        assert not [secret for secret in SECRETS if secret in repr(seen)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def test_a_command_is_refused_unless_it_is_allowed(tmp_path: Path, toy_run: ToyRun) -> None:
    marker = tmp_path / "ran"
    shard = f"pipe:touch {marker}; cat {toy_run.shards[1]}"
    with pytest.raises(SourceError, match=r"pipe:touch .*: is a command, .*--allow-pipe"):
        hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[shard]))
    assert not marker.exists()
    with pytest.raises(SourceError, match="--allow-pipe"):
        expand(["pipe:cat {a,b}.tar"])
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[shard], allow_pipe=True))
    assert marker.exists()


def test_a_store_cannot_run_commands(tmp_path: Path) -> None:
    command = Shard(f"pipe:touch {tmp_path / 'ran'}", 0, 1, None, None)
    with pytest.raises(SourceError, match="is not among the shards of this run"):
        PlannedSources([command], {}).open(command.url)
    assert not (tmp_path / "ran").exists()
