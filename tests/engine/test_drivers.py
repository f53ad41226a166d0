"""Drivers of sources that raise any error: each becomes one sentence, and temporary errors are retried."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headspan.cli.main import main
from headspan.errors import SourceError
from headspan.io import retry as network
from headspan.shards.describe import describe
from headspan.shards.plan import scan
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand
from tests.engine.troubled_driver import DATA, DriverError, StatusError, Troubled, TroubledFile


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the code asks to wait, without waiting; drivers start without errors."""
    asked: list[float] = []
    monkeypatch.setattr(network.time, "sleep", asked.append)
    monkeypatch.setattr(Troubled, "trouble", {})
    return asked


def keys(url: str) -> list[str]:
    return [sample.key for sample in scan(url, 0, lambda note: None)[1]]


PASSING = [DriverError("busy"), OSError("gone"), TimeoutError(), RuntimeError("loop"), EOFError(), StatusError(503)]
SETTLED = [
    KeyError("size"), TypeError("fo"), AttributeError("no"), IndexError(), AssertionError(), NotImplementedError(),
    ZeroDivisionError(), ValueError("bad"), ImportError("no driver"), PermissionError("no"), StatusError(404),
    StatusError(401),
]  # fmt: skip
PLACES = [("troubled", place) for place in ("init", "info", "open", "seekable", "seek", "read")]
PLACES += [("troubledasync", place) for place in ("info", "cat", "open")]


@pytest.mark.parametrize("error", SETTLED, ids=repr)
@pytest.mark.parametrize(("scheme", "place"), PLACES)
def test_an_error_of_a_driver_becomes_one_sentence_with_the_url(
    scheme: str, place: str, error: Exception, waits: list[float]
) -> None:
    url = f"{scheme}://bucket/a.tar"
    Troubled.trouble = {place: [error] * 99}
    with pytest.raises(SourceError) as found:
        keys(url)
    said = str(found.value)
    assert said.startswith(f"{url}: cannot be read (")
    assert "\n" not in said
    assert type(error).__name__ in said or str(error) in said
    assert waits == []


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize(("scheme", "place"), PLACES)
def test_temporary_errors_are_retried_and_every_row_is_read(
    scheme: str, place: str, error: Exception, waits: list[float]
) -> None:
    Troubled.trouble = {place: [error] * 2}
    assert len(keys(f"{scheme}://bucket/a.tar")) == 30
    assert len(waits) <= 2
    assert Troubled.trouble == {place: []}
    Troubled.trouble = {place: [error] * 99}
    with pytest.raises(SourceError, match=r"a\.tar: (cannot be read|reading failed).*it was tried 6 times"):
        keys(f"{scheme}://bucket/a.tar")


def test_a_stream_whose_driver_fails_half_way_is_read_again(waits: list[float]) -> None:
    Troubled.trouble = {"stream": [], "read": []}
    with open_shard("troubled://bucket/a.tar") as reader:
        assert reader.read_at(0, 100) == DATA[:100]
        Troubled.trouble["read"] = [DriverError("busy")]
        assert reader.read_at(len(DATA) - 9, 9) == DATA[-9:]
        assert reader.read_at(50, 100) == DATA[50:150]
    Troubled.trouble["read"] = [DriverError("busy")] * 99
    with pytest.raises(SourceError, match=r"busy.*it was tried 6 times"):
        keys("troubled://bucket/a.tar")


class Mute(Exception):
    """An error without readable text or status."""

    status = 9**5_000

    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def response(self) -> object:
        raise RuntimeError("no answer")


class Own(BaseException):
    """An error of a driver that is not an Exception."""


ODD = [asyncio.CancelledError(), GeneratorExit(), SystemExit(3), Own("own"), Mute()]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["init", "info", "open", "seekable", "seek", "read", "stream"])
def test_unusual_errors_become_one_sentence_wherever_they_are_raised(place: str, error: BaseException) -> None:
    Troubled.trouble = {place: [error] * 99}
    if place == "stream":
        Troubled.trouble = {"stream": [], "read": [error] * 99}
    with pytest.raises(SourceError, match=rf"^troubled://bucket/a\.tar: cannot be read \({type(error).__name__}"):
        keys("troubled://bucket/a.tar")


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_unusual_errors_in_the_middle_of_a_stream_become_one_sentence(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headspan.shards.stream._SKIPPED_BYTES", 512)
    Troubled.trouble = {"stream": [], "read": []}
    with open_shard("troubled://bucket/a.tar") as reader:
        Troubled.trouble["read"] = [error] * 99
        with pytest.raises(SourceError, match=r"a\.tar: (cannot be read|reading failed)"):
            reader.read_at(len(DATA) - 9, 9)


def test_a_long_message_is_cut_after_a_word_and_shows_no_part_of_a_secret() -> None:
    for before in range(480, 500):
        Troubled.trouble = {"info": [KeyError("w" * before + " QQQQQQQQQQ " + "word " * 20_000)]}
        with pytest.raises(SourceError) as found:
            describe("troubled://me:QQQQQQQQQQ@bucket/a.tar")
        assert len(str(found.value)) < 620
        assert " …); check" in str(found.value)
        assert "Q" not in str(found.value)


@pytest.mark.parametrize("size", [True, -5, 3.5, "x", 10**30, float("nan")])
def test_a_size_that_is_not_a_whole_number_counts_as_unknown(size: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Troubled, "info", lambda self, path, **options: {"size": size})
    assert describe("troubled://bucket/a.tar") == (None, None)


@pytest.mark.parametrize("given", ["text", None, 5, b"x" * 10_000])
def test_a_driver_that_returns_something_other_than_bytes_is_refused(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TroubledFile, "read", lambda self, size=-1: given)
    with pytest.raises(SourceError, match=r"^troubled://bucket/a\.tar: cannot be read \("):
        keys("troubled://bucket/a.tar")


@pytest.mark.parametrize("error", [KeyError("x"), NotImplementedError(), ValueError("x"), SystemExit(3)], ids=repr)
def test_a_shard_has_no_time_if_its_driver_reports_none(error: BaseException) -> None:
    Troubled.trouble = {"modified": [error]}
    assert describe("troubled://bucket/a.tar") == (len(DATA), None)


def test_an_interruption_is_not_reported_as_an_error_of_a_driver() -> None:
    Troubled.trouble = {"info": [KeyboardInterrupt()]}
    with pytest.raises(KeyboardInterrupt):
        describe("troubled://bucket/a.tar")


def test_a_bug_of_headspan_is_not_reported_as_an_error_of_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*arguments: object) -> bool:
        raise AssertionError("ours")

    MemoryFileSystem().pipe_file("/mistake.tar", DATA)
    monkeypatch.setattr("headspan.io.ranges.OpenFile.read", mistaken)
    with pytest.raises(AssertionError, match="ours"):
        keys("memory://mistake.tar")


def test_the_command_ends_with_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("reference://x", "troubled://b/a.tar", "zip://a.tar::memory://none.zip", "nosuch://x"):
        Troubled.trouble = {"info": [KeyError("size")]}
        assert main(["precompute", url, "--model", "reference", "--out", str(tmp_path / "s.zarr")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if line.startswith(f"headspan: {url}: cannot be read (")]) == 1, said
        assert "Traceback" not in str(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("~nobody-of-that-name/a.tar", "no such user; write the full path"),
        ("x" * 5_000 + ".tar", r"cannot be read \(.*too long"),
        ("data/**.tar", "cannot be read|matches no file"),
        ("[z-a].tar", "matches no file|cannot be read"),
        ("a\0b.tar", "no such file|cannot be read"),
    ],
)
def test_host_names_that_python_cannot_encode_give_one_sentence(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=said):
        expand([name])
