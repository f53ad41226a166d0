"""Drivers of sources that raise whatever they like: one sentence each, asked again where that may help."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headspan import network
from headspan.cli import main
from headspan.errors import SourceError
from headspan.plan import scan
from headspan.shard_urls import expand
from headspan.sources import describe, open_shard
from tests.engine.troubled_driver import DATA, DriverError, StatusError, Troubled


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, none of them waited; and drivers without trouble."""
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
def test_what_a_driver_raises_is_one_sentence_that_names_the_url(
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
def test_what_may_pass_is_asked_again_and_gives_every_row(
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


@pytest.mark.parametrize("error", [KeyError("x"), NotImplementedError(), TypeError("x"), ValueError("x")], ids=repr)
def test_a_driver_that_tells_no_times_has_none(error: Exception) -> None:
    Troubled.trouble = {"modified": [error]}
    assert describe("troubled://bucket/a.tar") == (len(DATA), None)


def test_an_interruption_is_no_failure_of_a_driver() -> None:
    Troubled.trouble = {"info": [KeyboardInterrupt()]}
    with pytest.raises(KeyboardInterrupt):
        describe("troubled://bucket/a.tar")


def test_a_mistake_of_headspan_is_not_taken_for_a_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*arguments: object) -> bool:
        raise AssertionError("ours")

    MemoryFileSystem().pipe_file("/mistake.tar", DATA)
    monkeypatch.setattr("headspan.blocks.OpenFile.read", mistaken)
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
        ("~nobody-of-that-name/a.tar", "no such user; write the path out"),
        ("x" * 5_000 + ".tar", r"cannot be read \(.*too long"),
        ("data/**.tar", "cannot be read|matches no file"),
        ("[z-a].tar", "matches no file|cannot be read"),
        ("a\0b.tar", "no such file|cannot be read"),
    ],
)
def test_names_that_python_cannot_look_up_are_one_sentence(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=said):
        expand([name])
