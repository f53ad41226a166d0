"""Patterns of shards, and reads at any offset from every kind of source, compared with the plain file."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headspan.errors import SourceError
from headspan.shards.describe import describe
from headspan.shards.sources import open_shard
from headspan.shards.stream import zstd
from headspan.shards.urls import expand

CONTENT = os.urandom(3_000_017)


class ForwardOnly(io.RawIOBase):
    """A remote file that cannot seek, and returns fewer bytes than requested."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(memoryview(buffer)[:4097])


class ForwardOnlyFileSystem(MemoryFileSystem):
    protocol = "forward"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("forward://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        with super()._open(path, mode, **options) as file:
            return ForwardOnly(file.read())


fsspec.register_implementation("forward", ForwardOnlyFileSystem, clobber=True)


@pytest.fixture(
    params=[
        "local",
        "file",
        "gzip",
        "pipe",
        "pipe-gzip",
        "memory",
        "memory-gzip",
        "forward",
        "zstd",
        "pipe-zstd",
        "memory-zstd",
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """One url for each kind of source, all with CONTENT."""
    kind = request.param
    # In two frames, the first without a checksum and by another library.
    frames = pa.compress(CONTENT[:1_000_003], "zstd", asbytes=True) + packed_by_zstd(CONTENT[1_000_003:])
    data = gzip.compress(CONTENT, 1) if "gzip" in kind else frames if "zstd" in kind else CONTENT
    path = tmp_path / "a b.tar"
    path.write_bytes(data)
    if kind.startswith(("memory", "forward")):
        name = f"/{uuid.uuid4()}.tar"
        MemoryFileSystem().pipe_file(name, data)
        yield f"{kind.partition('-')[0]}:/{name}"
        MemoryFileSystem().rm_file(name)
    elif kind.startswith("pipe"):
        yield f"pipe:cat '{path}'"
    else:
        yield f"file://{path}" if kind == "file" else str(path)


def test_every_source_gives_the_same_bytes_at_any_offset(url: str) -> None:
    end = len(CONTENT)
    with open_shard(url) as reader:
        for offset, size in ((0, 1), (1, 512), (1_500_001, 70_000), (1_500_000, 3), (0, 17), (end - 7, 7)):
            assert reader.read_at(offset, size) == CONTENT[offset : offset + size]
        assert reader.read_up_to(end - 3, 99) == CONTENT[-3:]
        assert reader.read_up_to(end, 99) == b""
        assert reader.read_at(0, end) == CONTENT


def test_a_short_read_reports_offset_and_end(url: str) -> None:
    end = len(CONTENT)
    with open_shard(url) as reader:
        with pytest.raises(SourceError) as short:
            reader.read_at(end - 3, 512)
        assert str(short.value) == (
            f"{url}: truncated: expected 512 bytes at offset {end - 3}, but the file ends at {end}; "
            "fetch the shard again"
        )
        with pytest.raises(SourceError, match=f"offset {end + 9}, but the file ends at {end}"):
            reader.read_up_to(end + 9, 1)


def test_only_a_stream_without_checksum_cannot_detect_its_truncation(url: str, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["url"]
    with open_shard(url) as reader:
        assert reader.knows_its_end == (kind not in ("pipe", "forward"))


def test_threads_may_share_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    reads = [(offset, 257) for offset in range(0, len(CONTENT) - 257, 9_973)]
    with open_shard(str(tmp_path / "a.tar")) as reader, ThreadPoolExecutor(4) as pool:
        for (offset, size), data in zip(reads, pool.map(lambda read: reader.read_at(*read), reads), strict=True):
            assert data == CONTENT[offset : offset + size]


def test_a_command_that_fails_is_an_error_with_its_status() -> None:
    url = "pipe:head -c 70000 /dev/zero; exit 3"
    with open_shard(url) as reader:
        assert reader.read_at(0, 70_000) == bytes(70_000)
        with pytest.raises(SourceError, match=r"the command ended with status 3 after 70000 bytes; run it"):
            reader.read_up_to(70_000, 512)
    with (
        open_shard("pipe:no-such-command-at-all 2>/dev/null") as reader,
        pytest.raises(SourceError, match="127"),
    ):
        reader.read_at(0, 1)


def test_closing_a_command_early_is_not_an_error_and_does_not_wait() -> None:
    with open_shard("pipe:yes; sleep 600") as reader:
        assert reader.read_at(0, 4) == b"y\ny\n"


def test_a_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(CONTENT, 1)[:-9])
    with open_shard(str(path)) as reader, pytest.raises(SourceError, match=r"reading failed after .*fetch"):
        reader.read_at(0, len(CONTENT) + 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 255]) + data[len(data) // 3 + 1 :],
    ],
)
def test_a_truncated_or_damaged_zstd_is_an_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(damage(packed_by_zstd(CONTENT)))
    with open_shard(str(path)) as reader, pytest.raises(SourceError, match=r"reading failed after .*fetch"):
        reader.read_at(0, len(CONTENT) + 1)


def test_skippable_frames_of_zstd_are_skipped(tmp_path: Path) -> None:
    frame = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skipped"
    (tmp_path / "a.tar.zst").write_bytes(frame + packed_by_zstd(CONTENT) + frame)
    with open_shard(str(tmp_path / "a.tar.zst")) as reader:
        assert reader.read_up_to(0, len(CONTENT) + 9) == CONTENT
        assert not reader.has_trailing_garbage


def packed_by_zstd(data: bytes) -> bytes:
    """One frame with a checksum, as the command zstd writes it."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def test_a_shard_is_described_by_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT[:257])
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    assert describe(str(path)) == describe(f"file://{path}") == (257, 1_700_000_000_123_456_789)
    assert describe("pipe:cat a.tar") == (None, None)
    MemoryFileSystem().pipe_file("/described.tar", CONTENT[:3])
    size, modified_ns = describe("memory://described.tar")
    assert size == 3
    assert modified_ns is not None
    assert modified_ns > 1_700_000_000_000_000_000
    with pytest.raises(SourceError, match=r"memory://none.tar: cannot be read"):
        describe("memory://none.tar")


@pytest.mark.parametrize("url", ["none.tar", "memory://none.tar", "no-such-scheme://bucket/a.tar"])
def test_a_shard_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(SourceError, match=f"{url}: cannot be read"):
        open_shard(url)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("2.tar", "0.tar", "1.tar", "3.tar.gz", "4.tar.zst", "._0.tar", "0.txt"):
        (tmp_path / "data" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "urls"),
    [
        (["data/{2..0}.tar"], ["data/2.tar", "data/1.tar", "data/0.tar"]),
        (["data/{1,0}.tar", "data/2.tar"], ["data/1.tar", "data/0.tar", "data/2.tar"]),
        (["data/*.tar"], ["data/0.tar", "data/1.tar", "data/2.tar"]),
        (["data/[12].tar", "./data/0.tar"], ["data/1.tar", "data/2.tar", "./data/0.tar"]),
        (["data"], ["data/0.tar", "data/1.tar", "data/2.tar", "data/3.tar.gz", "data/4.tar.zst"]),
        (["s3://b/{08..11}.tar"], [f"s3://b/{n:02d}.tar" for n in (8, 9, 10, 11)]),
        (["https://h/a*.tar?x=[1]"], ["https://h/a*.tar?x=[1]"]),
        (
            ["pipe:curl -s http://h/{0..1}.tar"],
            ["pipe:curl -s http://h/0.tar", "pipe:curl -s http://h/1.tar"],
        ),
        (["pipe:cat a\\ b.tar"], ["pipe:cat a\\ b.tar"]),
    ],
)
def test_patterns_become_urls_in_order(folder: Path, patterns: list[str], urls: list[str]) -> None:
    assert expand(patterns, allow_pipe=True) == urls


def test_an_absolute_glob_and_a_file_with_braces_in_its_name_are_found(folder: Path) -> None:
    assert expand([f"{folder}/data/[0-1].tar"]) == [str(folder / "data/0.tar"), str(folder / "data/1.tar")]
    (folder / "odd{0,1}[x].tar").touch()
    assert expand(["odd{0,1}[x].tar"]) == ["odd{0,1}[x].tar"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "no shards were given"),
        (["data/9.tar"], r"^data/9.tar: no such file; check"),
        (["data/{0..3}.tar"], r"^data/3.tar: no such file \(of the pattern data/\{0..3\}.tar\)"),
        (["data/*.zip"], r"^data/\*.zip: the pattern matches no file"),
        (["data/{0..3.tar"], "braces do not match"),
        (["."], r"^\.: no .tar in this directory"),
        (["data", "data/1.tar"], r"^data/1.tar: named twice"),
        (["data/1.tar", "./data/1.tar"], "named twice"),
        (["s3://b/{0,0}.tar"], "named twice"),
    ],
)
def test_invalid_patterns_are_refused(folder: Path, patterns: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        expand(patterns)


def test_a_named_pipe_is_refused_since_its_bytes_come_only_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(SourceError, match=r"a.tar: not a regular file; .*'pipe:"):
        expand([str(tmp_path / "a.tar")])
    with pytest.raises(SourceError, match="not a regular file"):
        open_shard(str(tmp_path / "a.tar"))


def test_local_shards_are_read_without_torch() -> None:
    modules = "headspan.shards.sources, headspan.shards.plan, headspan.decode.decoder"
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
