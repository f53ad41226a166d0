"""Links in tars: read if their files are in the tar, and reported if not."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from headspan.config import Preprocess
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage, Sample
from tests.conftest import encoded_image
from tests.engine.decoding import decoded

MISSING = "a symbolic link to a file that is not in this tar; pack with tar -h"


def tar_of(members: list[tuple[str, bytes | str]], hard: bool = False) -> bytes:
    """A tar of files (bytes) and links (the text is the target)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def planned(data: bytes, folder: Path, name: str = "a.tar") -> tuple[list[Sample], list[BadImage]]:
    notes: list[BadImage] = []
    (folder / name).write_bytes(data)
    return scan(str(folder / name), 0, notes.append)[1], notes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        # Links before and after their files, to folders above and below, and through other links and linked folders.
        [("real/a.jpg", b"data"), ("real/a.txt", b"words"), ("b/k.jpg", "../real/a.jpg"), ("b/k.txt", "../real/a.txt")],
        [("k.jpg", "real/a.jpg"), ("k.txt", "real/a.txt"), ("real/a.jpg", b"data"), ("real/a.txt", b"words")],
        [("k.jpg", "k2"), ("k2", "k3"), ("k3", "./real/../real/a.jpg"), ("real/a.jpg", b"data"), ("k.txt", "t"),
         ("t", b"words")],
        [("folder", "real"), ("k.jpg", "folder/a.jpg"), ("k.txt", "folder/a.txt"), ("real/a.jpg", b"data"),
         ("real/a.txt", b"words")],
        [("./k.jpg", "/real/a.jpg"), ("./k.txt", "real/a.txt"), ("./real/a.jpg", b"data"), ("./real/a.txt", b"words")],
    ],
)  # fmt: skip
def test_links_stand_for_the_files_that_they_lead_to(
    members: list[tuple[str, bytes | str]], packed: bool, tmp_path: Path
) -> None:
    data = tar_of(members)
    samples, notes = planned(gzip.compress(data) if packed else data, tmp_path)
    (sample,) = [sample for sample in samples if sample.key.endswith("k")]
    assert data[sample.offset :][: sample.size_bytes] == b"data"
    assert sample.caption == "words"
    # Files that only links lead to may be reported as companions of no image; linked folders are not files.
    assert {note.key for note in notes} <= {"k2", "k3", "t"}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("target", ["captions/a.txt", "a.0.txt"])
def test_a_member_that_a_link_uses_is_not_reported_as_unused(hard: bool, target: str, tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [(target, b"the words"), ("a.jpg", b"1"), ("a.txt", target)]
    members += [("captions/b.txt", b"of no image")]
    samples, notes = planned(tar_of(members, hard=hard), tmp_path)
    assert [sample.caption for sample in samples] == ["the words"]
    assert [(note.key, note.reason) for note in notes] == [
        ("captions/b.txt", "is neither an image nor a member that belongs to one")
    ]


@pytest.mark.parametrize("between", [0, 1, 9])
def test_a_hard_linked_caption_is_read_wherever_its_file_stands(between: int, tmp_path: Path) -> None:
    # Data that came shortly before has left the window, and must not be read from it.
    members: list[tuple[str, bytes | str]] = [("a.jpg", b"1"), ("a.txt", b"the words")]
    members += [(f"{n}.txt", b"other text") for n in range(between)]
    samples, _ = planned(tar_of([*members, ("b.jpg", b"2"), ("b.txt", "a.txt")], hard=True), tmp_path)
    assert [sample.caption for sample in samples] == ["the words", "the words"]


def test_links_to_files_outside_the_tar_are_reported(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("a.jpg", "../elsewhere/a.jpg"), ("a.txt", "../elsewhere/a.txt"), ("b.jpg", encoded_image(1)), ("b.json", "no"),
        ("b.npy", "no.npy"), ("round1.jpg", "round2.jpg"), ("round2.jpg", "round1.jpg"), ("cat", "../classes/cat"),
        ("empty.jpg", b""), ("d.jpg", "d.jpg/d.jpg"), ("real/e.txt", b"alone"), ("to", "real"), ("f.txt", "real"),
        ("f.jpg", encoded_image(2)),
    ]  # fmt: skip
    samples, notes = planned(tar_of(members), tmp_path)
    linked = [(note.key, note.reason) for note in notes if "neither an image" not in note.reason]
    assert linked == [
        ("a", f"caption is {MISSING}"), ("b", f"metadata is {MISSING}"), ("f", f"caption is {MISSING}"),
        ("b.npy", MISSING), ("cat", MISSING),
    ]  # fmt: skip
    assert [sample.caption for sample in samples] == [None] * 7
    bad: list[BadImage] = []
    good = decoded(samples, Preprocess(size=(8, 8)), bad, 1, 1 << 20)
    assert [samples[row].key for row, _ in good] == ["b", "f"]
    assert [(image.key, image.reason) for image in bad] == [
        ("a", MISSING), ("round1", MISSING), ("round2", MISSING), ("empty", "empty (0 bytes)"), ("d", MISSING),
    ]  # fmt: skip


def test_a_hard_link_to_a_file_outside_the_tar_is_reported(tmp_path: Path) -> None:
    samples, _ = planned(tar_of([("a.jpg", "real/a.jpg")], hard=True), tmp_path)
    bad: list[BadImage] = []
    assert decoded(samples, Preprocess(size=(8, 8)), bad, 1, 1 << 20) == []
    assert bad[0].reason == "a hard link to a file that is not in this tar; pack with tar --hard-dereference"


def test_a_link_to_a_name_of_two_files_leads_to_the_one_in_its_archive_or_to_none(tmp_path: Path) -> None:
    one: list[tuple[str, bytes | str]] = [("k.jpg", "real/a.jpg"), ("real/a.jpg", b"one")]
    two: list[tuple[str, bytes | str]] = [("k.jpg", "real/a.jpg"), ("real/a.jpg", b"two")]
    data = tar_of(one) + tar_of(two)
    samples, _ = planned(data, tmp_path)
    assert [data[s.offset :][: s.size_bytes] for s in samples if s.key == "k"] == [b"one", b"two"]
    samples, notes = planned(tar_of([*one, *two]), tmp_path)
    assert [s.size_bytes for s in samples if s.key == "k"] == [0, 0]
    assert [(note.row, note.reason) for note in notes] == [
        (row, "a symbolic link to a file that occurs several times in this tar; pack with tar -h") for row in (0, 2)
    ]
