"""The plan of shards, compared with Python's tarfile, and all the ways in which samples are lost elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headspan.errors import SourceError
from headspan.events import Progress
from headspan.shards.plan import COMPANION_BYTES, NO_ROW, list_samples, scan, units
from headspan.shards.samples import BadImage, Sample, Unit
from headspan.shards.stream import zstd
from headspan.shards.urls import stored_names
from tests.engine.tars import header, pairs, tar_bytes


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def unexpected(note: BadImage) -> None:
    """For tests of other things: no image may have a note."""
    assert note.row == NO_ROW, note


def plan(data: bytes, path: Path, notes: list[BadImage] | None = None) -> list[Sample]:
    on_note = unexpected if notes is None else notes.append
    shard, samples = scan(write(path / "a.tar", data), 0, on_note)
    assert shard.images == len(samples)
    assert [sample.row for sample in samples] == list(range(len(samples)))
    return samples


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_and_names_equal_those_of_tarfile(tmp_path: Path, form: int) -> None:
    long = "d" * 60 + "/" + "e" * 70
    names = ["a.jpg", "sub/b.PNG", f"{long}/c.webp", "ünï/ç.jpeg", "ends at block.jpg", "empty.jpg"]
    sizes = [1, 511, 512, 513, 1024, 0]
    if form != tarfile.USTAR_FORMAT:
        names.append("x/" * 400 + "very long.jpg")
        sizes.append(3)
    members = [(name, bytes([65 + i]) * size) for i, (name, size) in enumerate(zip(names, sizes, strict=True))]
    samples = plan(tar_bytes(members, form), tmp_path)
    with tarfile.open(tmp_path / "a.tar") as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(s.member, s.offset, s.size_bytes) for s in samples] == wanted
    assert [s.key for s in samples] == [name.rpartition(".")[0] for name in names]
    for sample, (_, data) in zip(samples, members, strict=True):
        assert (tmp_path / "a.tar").read_bytes()[sample.offset :][: sample.size_bytes] == data


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/."), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(NAMES, max_size=9, unique=True),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    sizes=st.lists(st.integers(0, 20_000), min_size=9, max_size=9),
)  # fmt: skip
def test_any_names_and_sizes_equal_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], form: int, sizes: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp()
    data = tar_bytes([(f"{name}.jpg", bytes(size)) for name, size in zip(names, sizes, strict=False)], form)
    samples = plan(data, path)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(s.member, s.offset, s.size_bytes) for s in samples] == wanted


def test_companions_belong_to_the_image_of_their_key(tmp_path: Path) -> None:
    metadata = b'{"url": "http://x", "n": [1, 2]}\n'
    samples = plan(
        tar_bytes([
            ("a.jpg", b"1"), ("a.txt", "\ufeff Zwei Hündchen\n".encode()), ("a.json", metadata),
            ("a.cls", b" 7\n"), ("b.jpg", b"2"), ("c.TXT", b"of c"), ("c.cls", b"-1"), ("c.PnG", b"3"),
            ("d.txt", b"of no image"),
        ]),
        tmp_path,
    )  # fmt: skip
    assert [s.key for s in samples] == ["a", "b", "c"]
    assert samples[0].caption == "Zwei Hündchen"
    assert samples[0].metadata is not None
    assert json.loads(samples[0].metadata) == {"url": "http://x", "n": [1, 2]}
    assert samples[0].label == 7
    assert (samples[1].caption, samples[1].metadata, samples[1].label) == (None, None, None)
    assert (samples[2].caption, samples[2].label) == ("of c", -1)


def test_companions_far_from_their_images_are_found(tmp_path: Path) -> None:
    # WebDataset makes 100 incomplete samples of these 50.
    members = pairs(50)
    samples = plan(tar_bytes(members[0::2] + members[:0:-2]), tmp_path)
    assert [(s.key, s.caption) for s in samples] == [(f"{n:06d}", f"caption {n}") for n in range(50)]


def test_dots_in_names_do_not_join_images(tmp_path: Path) -> None:
    # WebDataset makes one sample of these 50.
    members = [(f"img.{name}", data) for name, data in pairs(50)]
    samples = plan(tar_bytes(members), tmp_path)
    assert [(s.key, s.caption) for s in samples] == [(f"img.{n:06d}", f"caption {n}") for n in range(50)]


def test_a_mask_gets_a_row_only_if_its_image_is_missing(tmp_path: Path) -> None:
    members = [
        ("a.mask.png", b"1"), ("a.jpg", b"2"), ("a.mask.depth.png", b"3"), ("b.mask.png", b"4"), ("v1.2/c.jpg", b"5"),
        ("v1.jpg", b"6"), ("v1.2/.d.jpg", b"7"),
    ]  # fmt: skip
    assert [s.key for s in plan(tar_bytes(members), tmp_path)] == ["a", "b.mask", "v1.2/c", "v1", "v1.2/.d"]


def test_each_of_several_images_with_one_key_gets_a_row(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.png", b"22"), ("a.txt", b"both"), ("b.jpg", b"333"), ("b.jpg", b"4444")]
    samples = plan(tar_bytes(members), tmp_path)
    assert [(s.key, s.member, s.size_bytes, s.caption) for s in samples] == [
        ("a", "a.jpg", 1, "both"),
        ("a", "a.png", 2, "both"),
        ("b", "b.jpg", 3, None),
        ("b", "b.jpg", 4, None),
    ]


def test_only_images_get_rows(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE), ("soft.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE),
            ("fifo.jpg", tarfile.FIFOTYPE), ("a.jpg", tarfile.REGTYPE), ("._a.jpg", tarfile.REGTYPE),
            ("__MACOSX/x.jpg", tarfile.REGTYPE), ("sub/__MACOSX/x.jpg", tarfile.REGTYPE), (".jpg", tarfile.REGTYPE),
            ("jpg", tarfile.REGTYPE), ("a.jpg.exe", tarfile.REGTYPE), ("b.heic", tarfile.REGTYPE),
            ("../../etc/x.jpg", tarfile.REGTYPE), ("old.jpg", tarfile.AREGTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info)
    notes: list[BadImage] = []
    samples = plan(file.getvalue(), tmp_path, notes)
    # Both links lead to an empty file.
    assert [(s.key, s.size_bytes) for s in samples] == [
        ("soft", 0), ("hard", 0), ("a", 0), ("../../etc/x", 0), ("old", 0),
    ]  # fmt: skip
    assert [(note.row, note.key, note.reason) for note in notes] == [
        (NO_ROW, name, "is neither an image nor a member that belongs to one") for name in (".jpg", "jpg", "b.heic")
    ]


def test_a_hard_link_to_an_image_is_an_image_with_the_data_of_its_target(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"data of both")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            tar.add(folder / name, name)
        assert tar.getmember("b.jpg").islnk()
    first, second = scan(str(tmp_path / "a.tar"), 0, unexpected)[1]
    assert (second.key, second.offset, second.size_bytes) == ("b", first.offset, len(b"data of both"))


def test_numbers_after_a_dot_number_images_and_words_name_companions(tmp_path: Path) -> None:
    members = [("photo.jpg", b"1"), ("photo.1.jpg", b"2"), ("photo.2.jpg", b"3"), ("photo.mask.png", b"4")]
    assert [s.key for s in plan(tar_bytes(members), tmp_path)] == ["photo", "photo.1", "photo.2"]


def test_members_whose_key_has_no_image_are_reported(tmp_path: Path) -> None:
    notes: list[BadImage] = []
    members = [
        ("a.jpg", b"1"),
        ("a.npy", b"part of the sample"),
        ("b.heic", b"2"),
        ("c.txt", b"of no image"),
        ("README", b""),
    ]
    assert [s.key for s in plan(tar_bytes(members), tmp_path, notes)] == ["a"]
    assert [note.key for note in notes] == ["b.heic", "c.txt", "README"]


def test_companions_that_cannot_be_read_are_reported_and_their_image_is_kept(tmp_path: Path) -> None:
    notes: list[BadImage] = []
    members = [
        ("a.jpg", b"1"), ("a.txt", b"caf\xe9"), ("a.json", b"{'no': 1}"), ("a.cls", b"cat"),
        ("b.jpg", b"2"), ("b.json", b"[" * 100_000), ("b.cls", b"9" * 30), ("b.txt", b"good"),
    ]  # fmt: skip
    samples = plan(tar_bytes(members), tmp_path, notes)
    assert [(s.caption, s.metadata, s.label) for s in samples] == [(None, None, None), ("good", None, None)]
    assert [(note.row, note.key, note.reason) for note in notes] == [
        (0, "a", "caption is not UTF-8"),
        (0, "a", "metadata is not JSON"),
        (0, "a", "label is not an integer"),
        (1, "b", "metadata is not JSON"),
        (1, "b", "label is not an integer"),
    ]
    assert {note.url for note in notes} == {str(tmp_path / "a.tar")}


def test_a_companion_that_is_too_large_is_reported(tmp_path: Path) -> None:
    notes: list[BadImage] = []
    plan(tar_bytes([("a.jpg", b"1"), ("a.txt", bytes(COMPANION_BYTES + 1))]), tmp_path, notes)
    assert [note.reason for note in notes] == ["caption is not UTF-8 of at most 16 MiB"]


def test_a_name_that_is_not_utf8_can_be_stored_as_text(tmp_path: Path) -> None:
    data = tar_bytes([("caf\udce9.jpg", b"1"), ("caf\udce9.txt", b"one")], encoding="utf-8", errors="surrogateescape")
    (sample,) = plan(data, tmp_path)
    assert (sample.key, sample.caption) == ("caf\\xe9", "one")
    assert sample.key.encode()


def test_concatenated_tars_are_all_read_each_with_its_own_captions(tmp_path: Path) -> None:
    first, second = (
        tar_bytes(pairs(3)),
        tar_bytes([("000001.txt", b"other"), ("000001.jpg", b"9"), ("000002.jpg", b"8")]),
    )
    notes: list[BadImage] = []
    samples = plan(first + second, tmp_path, notes)
    assert [(s.key, s.caption) for s in samples] == [
        ("000000", "caption 0"), ("000001", "caption 1"), ("000002", "caption 2"),
        ("000001", "other"), ("000002", None),
    ]  # fmt: skip
    reason = "no caption, because the key repeats in the tar and no caption certainly belongs to this image"
    assert [(note.row, note.reason) for note in notes] == [(4, reason)]


def test_a_missing_end_marker_is_accepted_on_a_block_boundary_of_a_file(tmp_path: Path) -> None:
    whole = tar_bytes(pairs(3))
    end = len(whole.rstrip(b"\0")) + 511 & ~511
    assert len(plan(whole[:end], tmp_path)) == 3
    assert len(plan(whole[: end + 512], tmp_path)) == 3
    # Zeros after the marker need not fill a block.
    assert len(plan(whole[: end + 1024] + bytes(100), tmp_path)) == 3


def test_a_stream_without_an_end_marker_is_refused(tmp_path: Path) -> None:
    whole = tar_bytes(pairs(3))
    third = plan(whole, tmp_path)[2].offset - 512
    write(tmp_path / "cut.tar", whole[:third])
    assert len(scan(f"pipe:cat {tmp_path / 'a.tar'}", 0, unexpected)[1]) == 3
    with pytest.raises(SourceError, match=f"the stream ends at offset {third} without a tar's end marker"):
        scan(f"pipe:cat {tmp_path / 'cut.tar'}", 0, unexpected)


def test_garbage_in_the_middle_is_reported_with_its_offset(tmp_path: Path) -> None:
    # WebDataset returns 120 of these 150 samples, without an error.
    data = bytearray(tar_bytes(pairs(150)))
    offset = plan(bytes(data), tmp_path)[120].offset - 512
    data[offset : offset + 512] = b"\xa5" * 512
    with pytest.raises(SourceError, match=rf"a.tar: damaged: found no tar header .* at offset {offset}, .*; fetch"):
        plan(bytes(data), tmp_path)


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 700])
def test_a_truncated_tar_is_reported_with_its_offset(tmp_path: Path, cut: int) -> None:
    data = tar_bytes([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)])
    last = 512 + 1024
    with pytest.raises(SourceError, match=rf"a.tar: truncated: .* the file ends at {last + cut}; fetch"):
        plan(data[: last + cut], tmp_path)


def test_truncation_anywhere_never_loses_an_image_silently(tmp_path: Path) -> None:
    data = tar_bytes(pairs(3, size=300), tarfile.PAX_FORMAT)
    whole = plan(data, tmp_path)
    starts = {sample.offset - 512 for sample in whole} | {
        end for sample in whole for end in (sample.offset + 512, sample.offset + 1536)
    }
    silent = 0
    for size in range(1, len(data), 101):
        try:
            found = plan(data[:size], tmp_path)
        except SourceError:
            continue
        assert size in starts or size >= whole[-1].offset + 1536
        silent += len(found) == 3
    assert silent > 0


def test_a_long_name_without_its_member_is_truncation(tmp_path: Path) -> None:
    data = tar_bytes([("a.jpg", b"1"), ("n" * 200 + ".jpg", b"2")])
    second = 1024
    assert data[second + 156 : second + 157] == b"L"
    with pytest.raises(SourceError, match="truncated"):
        plan(data[: second + 1024], tmp_path)


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    # WebDataset returns 125 of these 150 samples, and continues with the next shard.
    data = tar_bytes(pairs(150))
    path = tmp_path / "b.tar"
    path.write_bytes(data)
    boundary = plan(data, tmp_path)[125].offset - 512
    for size in (boundary, boundary + 100):
        with pytest.raises(SourceError, match=f"the command ended with status 9 after {size} bytes"):
            scan(f"pipe:head -c {size} {path}; exit 9", 0, unexpected)
    # A command that fails after a complete tar is an error too.
    with pytest.raises(SourceError, match="status 9"):
        scan(f"pipe:cat {path}; exit 9", 0, unexpected)


@pytest.mark.parametrize(
    ("block", "member", "size"),
    [
        (header(b"a.jpg", b"00000000003\0"), "a.jpg", 3),
        (header(b"a.jpg", b"3          \0"), "a.jpg", 3),
        (header(b"a.jpg", b"000000000003"), "a.jpg", 3),
        (header(b"a.jpg", b"\x80" + bytes(10) + b"\x03"), "a.jpg", 3),
        (header(b"a.jpg", b"00000000003\0", kind=b"\0", magic=bytes(8)), "a.jpg", 3),
        (header(b"a.jpg", b"00000000003\0", kind=b"7"), "a.jpg", 3),
        (header(b"a.jpg", b"00000000003\0", prefix=b"p/q"), "p/q/a.jpg", 3),
        # GNU tar keeps times where ustar has the prefix.
        (header(b"a.jpg", b"00000000003\0", prefix=b"14471", magic=b"ustar  \0"), "a.jpg", 3),
        (header(b"a\xc3\xa4.jpg" + b"x" * 91 + b".jpg", b"00000000003\0"), "aä.jpg" + "x" * 91, None),
    ],
)
def test_headers_of_all_tar_formats_are_read(tmp_path: Path, block: bytes, member: str, size: int | None) -> None:
    samples = plan(block + b"abc" + bytes(509) + header(b"z.jpg", b"00000000000\0"), tmp_path)
    if size is not None:
        assert [(s.member, s.size_bytes) for s in samples] == [(member, size), ("z.jpg", 0)]


def test_a_member_of_more_than_eight_gigabytes_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    size = 9 << 30
    with path.open("wb") as file:
        file.write(header(b"film.mp4", b"\x80" + size.to_bytes(11, "big")))
        # A hole in the file: nothing is written to the disk.
        file.seek(size, io.SEEK_CUR)
        file.write(tar_bytes([("a.jpg", b"1")]))
    (sample,) = scan(str(path), 0, unexpected)[1]
    assert sample.offset == 512 + size + 512


def test_a_pax_size_and_a_global_header_are_applied(tmp_path: Path) -> None:
    path_record, size_record = b"22 path=long/name.jpg\n", b"10 size=3\n"
    own = path_record + size_record
    data = (
        header(b"g", b"00000000015\0", kind=b"g") + b"13 comment=x\n".ljust(512, b"\0")
        + header(b"p", b"%011o\0" % len(own), kind=b"x") + own.ljust(512, b"\0")
        + header(b"short.jpg", b"00000000000\0") + b"abc".ljust(512, b"\0")
        + header(b"z.jpg", b"00000000000\0")
    )  # fmt: skip
    assert [(s.member, s.size_bytes) for s in plan(data, tmp_path)] == [("long/name.jpg", 3), ("z.jpg", 0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a.tar: empty \(0 bytes\), but a tar was expected; fetch"),
        (b"<html>" * 200, "not a tar: found no tar header .* at offset 0;"),
        (b"PK\x03\x04", "a.tar: not a tar: 4 bytes, but a header alone takes 512; give .tar"),
        (header(b"a.jpg", b"\xff" * 12), "not a tar: .* a member of -1 bytes"),
        (header(b"a.jpg", b"00000000000\0") + header(b"L", b"77777777777\0", kind=b"L"), "a name or pax .* offset 512"),
        (header(b"a.jpg", b"00000000003\0", kind=b"S") + bytes(512), "found a.jpg, a sparse file that .* at offset 0"),
        (header(b"p", b"00000000007\0", kind=b"x") + b"9 a=b\n".ljust(512), "records have wrong lengths"),
        (header(b"p", b"00000000014\0", kind=b"x") + b"12 size=-12\n".ljust(512, b"\0") + header(b"a.jpg", b"0\0"),
         "a pax header with size '-12'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_a_complete_tar_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        plan(data, tmp_path)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 6 * 512 - 1), st.integers(0, 255)), max_size=6),
    size=st.integers(1, 20_000),
)
def test_damaged_tars_give_samples_or_a_source_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(tar_bytes([("n" * 120 + ".jpg", b"1"), *pairs(2)], tarfile.PAX_FORMAT))
    for where, value in changes:
        data[where] = value
    notes: list[BadImage] = []
    try:
        assert len(plan(bytes(data[:size]), tmp_path_factory.getbasetemp(), notes)) <= 3
    except SourceError as error:
        assert str(error).startswith(str(tmp_path_factory.getbasetemp()))  # noqa: PT017


def test_gzip_zstd_and_pipes_give_the_same_plan_as_the_file(tmp_path: Path) -> None:
    data = tar_bytes(pairs(37, size=9_000))
    wanted = [(s.row, s.key, s.offset, s.caption) for s in plan(data, tmp_path)]
    packed = write(tmp_path / "a.tar.gz", gzip.compress(data))
    for url in (
        packed,
        write(tmp_path / "a.tar.zst", zstd.compress(data)),
        f"pipe:cat {tmp_path / 'a.tar'}",
        f"pipe:cat {packed}",
        f"file://{tmp_path / 'a.tar'}",
    ):
        shard, samples = scan(url, 0, unexpected)
        assert [(s.row, s.key, s.offset, s.caption) for s in samples] == wanted
        assert {s.url for s in samples} == {url}
        assert shard.size_bytes == (
            None if url.startswith("pipe:") else Path(url.removeprefix("file://")).stat().st_size
        )


def test_rows_continue_over_shards_and_progress_is_reported(tmp_path: Path) -> None:
    urls = [write(tmp_path / f"{n}.tar", tar_bytes(pairs(count))) for n, count in enumerate((3, 0, 1, 257))]
    events: list[Progress] = []
    found = list(list_samples(stored_names(urls), on_note=unexpected, on_progress=events.append))
    assert [(shard.url, shard.first_row, shard.images) for shard, _ in found] == [
        (urls[0], 0, 3), (urls[1], 3, 0), (urls[2], 3, 1), (urls[3], 4, 257),
    ]  # fmt: skip
    assert [s.row for _, samples in found for s in samples] == list(range(261))
    assert all(shard.size_bytes == Path(shard.url).stat().st_size for shard, _ in found)
    assert all(shard.modified_ns == Path(shard.url).stat().st_mtime_ns for shard, _ in found)
    assert events == [
        Progress("plan", done, 4, f"{images} images") for done, images in ((1, 3), (2, 3), (3, 4), (4, 261))
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_shards_without_any_image_are_an_error(tmp_path: Path, count: int) -> None:
    urls: Sequence[str] = [write(tmp_path / f"{n}.tar", tar_bytes([("a.txt", b"x")])) for n in range(count)]
    with pytest.raises(
        SourceError, match=rf"no image in {count} shards? \(first: .*\*.jpeg, \*.jpg, .*, \*.png.*dot: .*; check"
    ):
        list(list_samples(stored_names(urls), on_note=unexpected))


@pytest.mark.parametrize("images", [0, 1, 256, 257, 1000])
@pytest.mark.parametrize("unit_images", [1, 256, 2000])
def test_units_cover_each_row_once(images: int, unit_images: int) -> None:
    found = units(images, unit_images)
    assert [row for unit in found for row in range(unit.first_row, unit.first_row + unit.rows)] == list(range(images))
    assert [unit.index for unit in found] == list(range(len(found)))
    assert all(unit.rows == unit_images for unit in found[:-1])
    assert units(5, 4) == [Unit(0, 0, 4), Unit(1, 4, 1)]
