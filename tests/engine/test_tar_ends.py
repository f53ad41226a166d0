"""The ends of tars: zeros that are padding, zeros that are damage, and bytes after the end."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headspan.errors import SourceError
from headspan.shards.plan import NO_ROW, scan
from headspan.shards.samples import BadImage, Sample
from headspan.shards.stream import zstd
from tests.engine.tars import header, pairs, tar_bytes

RECORD = 10_240


def planned(data: bytes, folder: Path, pipe: bool = False) -> tuple[list[Sample], list[str]]:
    """The samples and the remarks on the tar; no other note is expected."""
    path = folder / "a.tar"
    path.write_bytes(data)
    notes: list[BadImage] = []
    _, samples = scan(f"pipe:cat {path}" if pipe else str(path), 0, notes.append)
    assert {(note.row, note.key) for note in notes} <= {(NO_ROW, "")}
    return samples, [note.reason for note in notes]


def end_of(data: bytes) -> int:
    """The offset at which the last member ends. Its data must not end with zeros."""
    return -(-len(data.rstrip(b"\0")) // 512) * 512


@pytest.mark.parametrize("blocks", [1, 2, 3, 10, 20, 64, 128, 2048])
@pytest.mark.parametrize("pipe", [False, True])
def test_padding_to_records_of_gnu_tar_is_not_damage(blocks: int, pipe: bool, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(b"x" * (5_000 + n))
    command = ["tar", "-b", str(blocks), "-cf", "padded.tar", "0.jpg", "1.jpg", "2.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    samples, remarks = planned((tmp_path / "padded.tar").read_bytes(), tmp_path, pipe)
    assert [sample.key for sample in samples] == ["0", "1", "2"]
    # More padding than tar writes by default gets a remark.
    assert [remark.partition(" bytes of zeros")[1] for remark in remarks] == [" bytes of zeros"] * (blocks > 20)


@pytest.mark.parametrize(
    "zeros", [0, 512, 1024, 1025, 1100, 1535, 1536, 5_120, RECORD, RECORD + 512],
)  # fmt: skip
def test_zeros_up_to_a_record_are_read(zeros: int, tmp_path: Path) -> None:
    whole = tar_bytes(pairs(3))
    samples, remarks = planned(whole[: end_of(whole)] + bytes(zeros), tmp_path)
    assert len(samples) == 3
    assert len(remarks) == (zeros == 0 or (zeros >= 1536 and zeros % RECORD != 1536))


@pytest.mark.parametrize("more", [RECORD * 2, RECORD * 2 + 512, 30_001, 1 << 20, (1 << 20) + 512, 5 << 20])
def test_too_many_zeros_are_damage_with_their_offset(more: int, tmp_path: Path) -> None:
    whole = tar_bytes(pairs(3))
    for data in (whole + bytes(more), gzip.compress(whole + bytes(more))):
        with pytest.raises(SourceError, match=rf"a\.tar: damaged: zeros from offset {end_of(whole)} to .*; fetch"):
            planned(data, tmp_path)
    with pytest.raises(SourceError, match=f"damaged: zeros from offset {end_of(whole)} to"):
        planned(whole + bytes(more), tmp_path, pipe=True)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 60),
    size=st.integers(1, 3_000),
    keep=st.floats(0, 1),
    exactly=st.booleans(),
)
def test_an_end_that_was_never_written_is_refused_or_gets_a_remark(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, keep: float, exactly: bool
) -> None:
    # A file of full length whose end is zeros, from between two members or from anywhere.
    data = tar_bytes([(f"{n}.jpg", bytes([1 + n % 250]) * size) for n in range(count)])
    member = 512 + -(-size // 512) * 512
    cut = int(keep * count) * member if exactly else int(keep * count * member)
    spoilt = data[:cut] + bytes(len(data) - cut)
    try:
        samples, remarks = planned(spoilt, tmp_path_factory.getbasetemp())
    except SourceError as error:
        assert re.search(r"damaged: |not a tar: ", str(error))  # noqa: PT017
        return
    # It may equal a tar that was written with fewer members in its last record.
    end = len(samples) * member
    assert len(samples) == count or remarks or -(-(end + 1024) // RECORD) * RECORD == len(data)


@pytest.mark.parametrize("size", [20_480, 1 << 20, 3 << 20])
def test_a_file_of_zeros_is_not_a_tar(size: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.tar: not a tar: zeros from offset 0 to"):
        planned(bytes(size), tmp_path)


def test_an_empty_tar_is_valid_and_gets_a_remark(tmp_path: Path) -> None:
    samples, remarks = planned(tar_bytes([]), tmp_path)
    assert samples == []
    assert remarks == ["an archive of 10,240 bytes at offset 0 contains only zeros and no member"]


@settings(max_examples=100, deadline=None)
@given(
    tail=st.binary(min_size=1, max_size=3_000).filter(lambda tail: tail[0] != 0),
    packed=st.booleans(),
    pipe=st.booleans(),
)
def test_bytes_after_the_end_get_a_remark_and_lose_no_image(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, packed: bool, pipe: bool
) -> None:
    data = tar_bytes(pairs(3)) + tail
    samples, remarks = planned(gzip.compress(data, 1) if packed else data, tmp_path_factory.getbasetemp(), pipe)
    assert [sample.caption for sample in samples] == ["caption 0", "caption 1", "caption 2"]
    assert remarks == [
        f"{len(tail):,} bytes that are not a tar follow the end of the tar, from offset {len(data) - len(tail)} on; "
        "they were not read"
    ]


def test_bytes_after_the_end_of_a_gzip_stream_get_a_remark(tmp_path: Path) -> None:
    packed = gzip.compress(tar_bytes(pairs(40)))
    samples, remarks = planned(packed + b"\n", tmp_path)
    assert len(samples) == 40
    assert remarks == ["bytes that are not gzip follow the end of the gzip stream; they were not read"]
    # Zeros are gzip's own padding.
    assert planned(packed + bytes(700), tmp_path)[1] == []
    with pytest.raises(SourceError, match="reading failed"):
        planned(packed[:-9], tmp_path)


def test_bytes_after_the_end_of_a_zstd_stream_get_a_remark(tmp_path: Path) -> None:
    packed = zstd.compress(tar_bytes(pairs(40)))
    for tail in (b"\n", b"garbage at the end", bytes(700)):
        samples, remarks = planned(packed + tail, tmp_path)
        assert [sample.caption for sample in samples] == [f"caption {n}" for n in range(40)]
        assert remarks == ["bytes that are not zstd follow the end of the zstd stream; they were not read"]
    assert planned(packed, tmp_path, pipe=True)[1] == []
    with pytest.raises(SourceError, match="reading failed"):
        planned(packed[:-9], tmp_path)


def test_members_after_zeros_and_garbage_are_damage(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(pairs(9, size=9_000)))
    third = planned(bytes(data), tmp_path)[0][3].offset - 512
    # A page was never written: the header of the fourth image and the beginning of its data.
    data[third : third + 4096] = bytes(4096)
    with pytest.raises(
        SourceError, match=rf"damaged: 4,096 bytes of zeros at offset {third} and no tar header at {third + 4096}"
    ):
        planned(bytes(data), tmp_path)


def test_zeros_between_members_get_a_remark(tmp_path: Path) -> None:
    members = header(b"a.jpg", b"00000000003\0") + b"abc".ljust(512, b"\0")
    samples, remarks = planned(members + bytes(1024) + members + bytes(1024), tmp_path)
    assert len(samples) == 2
    assert [remark[:75] for remark in remarks] == [
        "1,024 bytes of zeros stand between members, from offset 1024 to 2048; they "
    ]
    # Two concatenated tars get no remark, however long their padding is.
    assert planned(tar_bytes(pairs(9)) + tar_bytes([(f"b/{name}", data) for name, data in pairs(2)]), tmp_path)[1] == []


def test_a_file_without_an_end_marker_is_read_and_gets_a_remark(tmp_path: Path) -> None:
    whole = tar_bytes(pairs(3))
    samples, remarks = planned(whole[: end_of(whole)], tmp_path)
    assert len(samples) == 3
    assert remarks == [
        f"the tar has no end marker at offset {end_of(whole)}, so it may be truncated there; all members before it "
        "were read"
    ]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cat {}; yes", "more than 0 MiB that are not a tar follow the end of the tar, from offset"),
        ("gzip -c {}; cat /dev/zero", "bytes in a row decompress to no data"),
        ("(cat {}; yes) | gzip", "more than 0 MiB that are not a tar follow the end of the tar, from offset"),
    ],
)
def test_the_error_about_a_source_that_never_ends_is_one_sentence(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headspan.shards.tar_end._MOST_TRAILING_BYTES", 1 << 19)
    monkeypatch.setattr("headspan.shards.stream._MOST_PADDING_BYTES", 1 << 21)
    (tmp_path / "a.tar").write_bytes(tar_bytes(pairs(3)))
    with pytest.raises(SourceError, match=said):
        scan(f"pipe:{command.format(tmp_path / 'a.tar')}", 0, lambda note: None)
