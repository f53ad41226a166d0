"""Joining members to samples, compared with webdataset on random archives; repeated keys and keys of many images."""

from __future__ import annotations

import io
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, SourceError
from headspan.member_names import MemberNames
from headspan.shards.plan import NO_ROW, list_samples, scan
from headspan.shards.samples import BadImage, Sample
from headspan.shards.urls import stored_names
from tests.conftest import ToyRun, encoded_image, relative_files, write_tar
from tests.engine.tars import tar_bytes

MASKS = ("mask.png", "left.mask.png")
IMAGES = ("jpg", "PNG", "left.jpg", "right.jpg", "input.gif")
OWN = ("txt", "json", "cls")
FIELDS = (*IMAGES, *MASKS, *OWN, "left.txt", "outputs.txt", "npy", "scores.bin")


def members_of(names: Sequence[str]) -> list[tuple[str, bytes]]:
    """Members with distinct contents, each in the format of its extension."""
    members = []
    for number, name in enumerate(names):
        text = {"json": f'{{"n": {number}}}', "cls": str(number)}.get(name.rpartition(".")[2], f"member {number}")
        members.append((name, text.encode()))
    return members


def planned(names: Sequence[str], path: Path, chosen: MemberNames | None = None) -> tuple[list[Sample], list[BadImage]]:
    notes: list[BadImage] = []
    (path / "a.tar").write_bytes(tar_bytes(members_of(names)))
    _, samples = scan(str(path / "a.tar"), 0, notes.append, names=chosen or MemberNames())
    return samples, notes


def captions(names: Sequence[str], path: Path) -> list[tuple[str, str | None]]:
    """Each row's member, and the member with its caption."""
    samples, _ = planned(names, path)
    return [(s.member, names[int(s.caption.split()[1])] if s.caption else None) for s in samples]


def by_webdataset(data: bytes) -> Iterator[dict[str, Any]]:
    """The samples that webdataset finds."""
    members = tar_file_expander(iter([{"url": "a.tar", "stream": io.BytesIO(data)}]))
    yield from group_by_keys(members)


@st.composite
def archives(draw: st.DrawFn) -> list[str]:
    """Names of members in groups of one key with distinct fields; keys may repeat later."""
    names: list[str] = []
    last = ""
    for _ in range(draw(st.integers(1, 6))):
        key = draw(st.sampled_from([key for key in ("a", "b", "d/a", "v1.2/c") if key != last]))
        last = key
        names += [f"{key}.{field}" for field in draw(st.lists(st.sampled_from(FIELDS), min_size=1, unique=True))]
    return names


@settings(max_examples=300, deadline=None)
@given(names=archives())
def test_samples_equal_those_of_webdataset(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.getbasetemp()
    samples, notes = planned(names, path)
    rows = {sample.member: [other for other in samples if other.member == sample.member] for sample in samples}
    fields = Counter(name.lower() for name in names)
    repeated = {base_plus_ext(name)[0] for name in names if fields[name.lower()] > 1}
    met: Counter[str] = Counter()
    for group in by_webdataset((path / "a.tar").read_bytes()):
        key = group["__key__"]
        for field in IMAGES:
            if field.lower() not in group:
                continue
            name = f"{key}.{field}"
            row = rows[name][met[name]]
            met[name] += 1
            # The text with its own name, else the sample's, else the only other one.
            own = f"{field.lower().rpartition('.')[0]}.txt"
            wanted = group.get(own, group.get("txt"))
            if wanted is None and "left.txt" not in group:
                wanted = group.get("outputs.txt")
            # A companion elsewhere in the tar may match a longer part of the image's name.
            elsewhere = {f"{key}.{other}" for other in ("txt", own, "outputs.txt", "left.txt") if other not in group}
            if wanted is not None and not elsewhere & set(names):
                assert row.caption == wanted.decode()
            elif key in repeated and not any(other.endswith("txt") for other in group):
                assert row.caption is None
            for value, companion in ((row.metadata, "json"), (row.label, "cls")):
                if companion in group:
                    assert str(value) == group[companion].decode()
                elif key in repeated:
                    # If a key repeats, companions elsewhere in the tar are not used.
                    assert value is None
    assert met == Counter(sample.member for sample in samples if not sample.member.endswith(MASKS))
    # An image that has no row is reported as a mask.
    masks = Counter(name for name in names if name.endswith(MASKS))
    reported = sum(int(note.reason.split(": ")[1].split(" ")[0]) for note in notes if "masks" in note.reason)
    assert reported == masks.total() - sum(sample.member.endswith(MASKS) for sample in samples)


@settings(max_examples=200, deadline=None)
@given(names=archives(), seed=st.randoms(use_true_random=False))
def test_if_all_names_are_unique_the_order_of_members_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], seed: Any
) -> None:
    path = tmp_path_factory.getbasetemp()
    # One image for each key: companions in a group with an image belong to that image only.
    unique = [name for name in dict.fromkeys(names) if not name.endswith((*IMAGES[1:], *MASKS))]
    wanted = {(s.member, s.caption and unique[int(s.caption.split()[1])]) for s in planned(unique, path)[0]}
    shuffled = list(unique)
    seed.shuffle(shuffled)
    assert {(s.member, s.caption and shuffled[int(s.caption.split()[1])]) for s in planned(shuffled, path)[0]} == wanted


def test_an_image_with_a_repeated_key_gets_the_companion_next_to_it(tmp_path: Path) -> None:
    for name in "AB":
        own = name.encode()
        members = [("0.jpg", b"1"), ("0.txt", own), ("1.txt", b"late " + own), ("1.jpg", b"2"), ("2.jpg", b"3")]
        write_tar(tmp_path / f"{name}.tar", [*members, *([("2.txt", own)] if name == "A" else [])])
    subprocess.run(["tar", "-A", "-f", "A.tar", "B.tar"], cwd=tmp_path, check=True)
    notes: list[BadImage] = []
    _, samples = scan(str(tmp_path / "A.tar"), 0, notes.append)
    assert [(s.key, s.caption) for s in samples] == [
        ("0", "A"), ("1", "late A"), ("2", "A"), ("0", "B"), ("1", "late B"), ("2", None),
    ]  # fmt: skip
    assert [note.reason for note in notes if note.row != NO_ROW] == [
        "no caption, because the key repeats in the tar and no caption certainly belongs to this image"
    ]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        # The second 0 has no caption next to it, so it gets none.
        ("0.jpg 0.txt 1.jpg 0.jpg", {0: 1}),
        ("0.jpg 1.jpg 0.jpg 0.txt", {2: 3}),
        # A key that repeats immediately.
        ("0.jpg 0.txt 0.jpg 0.txt", {0: 1, 2: 3}),
        ("0.txt 0.jpg 0.txt 0.jpg", {1: 0, 3: 2}),
        ("0.txt 0.jpg 0.jpg 0.txt", {1: 0, 2: 3}),
        ("0.txt 0.jpg 0.txt 0.png 0.txt 0.jpg", {1: 0, 3: 2, 5: 4}),
        ("0.jpg 0.txt 0.png 0.jpg 0.txt 0.png", {0: 1, 2: 1, 3: 4, 5: 4}),
        # One of the samples with a repeated key has no caption, and the order of the fields does not show which.
        ("0.jpg 0.txt 0.jpg 1.jpg", {}),
        ("0.jpg 0.txt 0.jpg 0.txt 0.jpg", {}),
        ("0.txt 0.jpg 0.jpg 0.txt 0.jpg", {}),
        ("0.jpg 0.txt 0.png 0.txt 0.jpg", {}),
        ("0.jpg 0.txt 0.png 0.txt 0.jpg 0.png", {}),
        ("0.txt 0.png 0.jpg 0.txt", {}),
        ("0.left.jpg 0.txt 0.left.jpg 0.txt 0.left.jpg", {}),
        # The same key later, in a complete sample.
        ("0.jpg 0.txt 0.jpg 1.jpg 0.txt 0.jpg", {5: 4}),
        # A caption that was appended to replace the first.
        ("0.jpg 0.txt 1.jpg 0.txt", {0: 1}),
        # It cannot be known to which images these belong.
        ("0.jpg 0.jpg 0.txt 0.txt", {}),
        ("0.jpg 0.txt 0.png 0.txt", {}),
        ("0.jpg 1.jpg 0.jpg 0.txt 0.txt", {}),
        ("0.jpg 1.jpg 0.jpg 2.jpg 0.txt", {}),
        ("0.jpg 1.jpg 0.txt 2.jpg 0.txt", {}),
        # Another image with the same name, whose sample has no caption.
        ("0.jpg 1.jpg 0.png 0.txt", {2: 3}),
        # All images first, then all captions; images in two formats.
        ("0.jpg 1.jpg 0.png 1.png 0.txt 1.txt", {0: 4, 1: 5, 2: 4, 3: 5}),
        # Names with dots that repeat.
        ("i.0.jpg i.0.txt i.1.jpg i.0.jpg i.0.txt i.1.jpg i.1.txt", {0: 1, 3: 4, 5: 6}),
    ],
)
def test_no_image_gets_the_companion_of_another_sample(names: str, wanted: dict[int, int], tmp_path: Path) -> None:
    members = names.split()
    samples, notes = planned(members, tmp_path)
    images = [place for place, name in enumerate(members) if not name.endswith("txt")]
    found = {place: sample.caption for place, sample in zip(images, samples, strict=True) if sample.caption is not None}
    assert found == {place: f"member {text}" for place, text in wanted.items()}
    # Each image has a note if its caption is elsewhere in the tar or may belong to another image.
    captioned = {name.rpartition(".")[0] for name in members if name.endswith("txt")}
    lost = [
        sample.row for sample in samples
        if sample.caption is None and captioned & {sample.key, sample.key.partition(".")[0]}
    ]  # fmt: skip
    assert [note.row for note in notes if note.row != NO_ROW] == lost


def single_key(*samples: str) -> list[tuple[str, bytes]]:
    """Members with one key. A sample is given by its fields; their data is the sample's number."""
    return [(f"s.{name}", b"%d" % number) for number, names in enumerate(samples, 1) for name in names.split()]


@pytest.mark.parametrize(
    ("samples", "labels", "metadata"),
    [
        # Fields in alphabetical order, as webdataset writes them; the first sample has no class.
        (("jpg", "cls jpg", "cls jpg", "cls jpg"), [None] * 4, [None] * 4),
        (("cls jpg", "jpg", "cls jpg"), [None] * 3, [None] * 3),
        (("jpg json", "cls jpg json", "cls jpg json"), [None] * 3, ["1", "2", "3"]),
        (("cls jpg", "cls jpg json", "cls jpg json"), [1, 2, 3], [None] * 3),
        (("cls jpg json", "cls jpg json", "cls jpg json"), [1, 2, 3], ["1", "2", "3"]),
    ],
)
@pytest.mark.parametrize("joined_by_cat", [False, True])
def test_consecutive_samples_with_one_key_keep_a_field_only_if_all_have_it(
    samples: tuple[str, ...], labels: list[int | None], metadata: list[str | None], joined_by_cat: bool, tmp_path: Path
) -> None:
    data = tar_bytes(single_key(*samples))
    # In another archive the samples are complete, and keep their fields.
    data += tar_bytes(single_key("cls jpg json", "cls jpg json")) if joined_by_cat else b""
    (tmp_path / "a.tar").write_bytes(data)
    notes: list[BadImage] = []
    _, found = scan(str(tmp_path / "a.tar"), 0, notes.append)
    more = 2 * joined_by_cat
    assert [sample.label for sample in found] == [*labels, *range(1, more + 1)]
    assert [sample.metadata for sample in found] == [*metadata, *map(str, range(1, more + 1))]
    lost = [values for name, values in (("cls", labels), ("json", metadata)) if any(name in each for each in samples)]
    assert sum(note.row != NO_ROW for note in notes) >= sum(values.count(None) for values in lost)


@settings(max_examples=80, deadline=None)
@given(
    order=st.permutations(["jpg", "cls", "json", "npy"]),
    samples=st.lists(st.sets(st.sampled_from(["cls", "json", "npy"])), min_size=2, max_size=5),
)
def test_in_any_order_of_fields_a_repeated_key_gets_no_companion_of_another_sample(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], samples: list[set[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "a.tar"
    written = [" ".join(field for field in order if field == "jpg" or field in sample) for sample in samples]
    path.write_bytes(tar_bytes(single_key(*written)))
    _, found = scan(str(path), 0, lambda note: None)
    everywhere = set.intersection(*samples)
    for number, sample in enumerate(found, 1):
        assert sample.label == (number if "cls" in everywhere else None)
        assert sample.metadata == (str(number) if "json" in everywhere else None)


def test_companions_that_no_image_gets_are_reported_once_per_shard(tmp_path: Path) -> None:
    names = [f"{key}.{number}.txt" for key in "ab" for number in range(7)]
    samples, notes = planned(["a.jpg", *names[:7], "b.jpg", *names[7:], "c.jpg", "c.txt"], tmp_path)
    assert [sample.caption for sample in samples] == [None, None, "member 17"]
    assert [(note.row, note.reason) for note in notes] == [
        (
            NO_ROW,
            "members that are not used, because no image with their key has their name: 14 "
            f"({', '.join(names[:10])} and 4 more); select a caption with --caption-member",
        )
    ]
    chosen, notes = planned(["a.jpg", *names[:7]], tmp_path, MemberNames(caption="3.txt"))
    assert ([sample.caption for sample in chosen], notes) == (["member 4"], [])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["k.input.jpg", "k.outputs.txt"], ["k.outputs.txt"]),
        (["k.left.jpg", "k.right.jpg", "k.txt"], ["k.txt", "k.txt"]),
        (["k.left.jpg", "k.left.txt", "k.right.jpg", "k.txt"], ["k.left.txt", "k.txt"]),
        (["k.0.jpg", "k.1.jpg", "k.txt"], ["k.txt", "k.txt"]),
        (["k.left.cam1.jpg", "k.left.txt", "k.txt"], ["k.left.txt"]),
        (["k.jpg", "k.ocr.txt", "k.txt"], ["k.txt"]),
        # The companion of another image.
        (["k.left.jpg", "k.left.txt", "k.right.jpg"], ["k.left.txt", None]),
        (["p.rome.jpg", "p.rome.txt", "p.oslo.jpg", "p.bern.txt"], ["p.rome.txt", None]),
        (["i.0001.jpg", "i.0002.txt"], [None]),
        # Several possible companions.
        (["k.jpg", "k.one.txt", "k.two.txt"], [None]),
    ],
)
def test_companions_of_a_key_go_to_all_its_images(names: list[str], wanted: list[str | None], tmp_path: Path) -> None:
    assert [companion for _, companion in captions(names, tmp_path)] == wanted


def test_several_possible_companions_are_reported_with_the_flag(tmp_path: Path) -> None:
    _, notes = planned(["k.jpg", "k.one.txt", "k.two.txt"], tmp_path)
    assert [(note.row, note.reason) for note in notes] == [
        (0, "no caption, because it may be any of k.one.txt, k.two.txt; select one with --caption-member")
    ]


@pytest.mark.parametrize(
    ("names", "rows", "masks"),
    [
        (["photo.jpg", "photo.final.jpg", "photo.v1.2.png"], ["photo", "photo.final", "photo.v1.2"], 0),
        (["a.jpg", "a.mask.png", "a.mask_1.png", "a.left.depth.tiff"], ["a"], 3),
        (["a.jpg", "a.mask.png", "a.mask.txt"], ["a", "a.mask"], 0),
        (["b.mask.png", "c.depth.png"], ["b.mask", "c.depth"], 0),
        (["a.input.jpg", "a.seg.png"], ["a.input"], 1),
        (["i.1.jpg", "i.2.mask.png", "i.1.mask.png"], ["i.1", "i.2.mask"], 1),
        (["masks/a.png", "mask.png", "depth.map.jpg"], ["masks/a", "mask", "depth.map"], 0),
        (["a.jpg", "b.jpg", "a.mask.png"], ["a", "b"], 1),
        (["a.jpg", "a.gif", "a.tiff"], ["a", "a", "a"], 0),
    ],
)
def test_an_image_gets_a_row_unless_it_is_a_mask_of_another(
    names: list[str], rows: list[str], masks: int, tmp_path: Path
) -> None:
    samples, notes = planned(names, tmp_path)
    assert [sample.key for sample in samples] == rows
    assert len(notes) == (masks > 0)
    if masks:
        assert f"{masks} (" in notes[0].reason
        assert all(name in notes[0].reason for name in names if name.rpartition(".")[0] not in rows)


def test_every_format_that_is_decoded_has_an_image_extension_of_pil() -> None:
    from PIL import Image

    from headspan.decode.exact import FORMATS
    from headspan.shards.members import IMAGE_EXTENSIONS

    Image.init()
    assert {end[1:] for end, name in Image.registered_extensions().items() if name in FORMATS} <= IMAGE_EXTENSIONS


@pytest.mark.parametrize(
    ("chosen", "wanted", "others"),
    [
        (MemberNames(image="input.jpg"), [("k.input", "member 2")], 3),
        (MemberNames(image="*.jpg", caption="outputs.txt"), [("k.input", "member 4"), ("k.target", "member 4")], 2),
        (MemberNames(image="INPUT.JPG, jpg"), [("k", "member 2"), ("k.input", "member 2")], 2),
        (MemberNames(image="photo"), [("k", "member 2")], 4),
        (MemberNames(image="jpg", caption="words"), [("k", "member 6")], 3),
        (MemberNames(image="jpg", caption_json="n"), [("k", None)], 3),
    ],
)
def test_the_flags_select_images_and_captions(
    chosen: MemberNames, wanted: list[tuple[str, str | None]], others: int, tmp_path: Path
) -> None:
    names = ["k.jpg", "k.input.jpg", "k.txt", "k.target.jpg", "k.outputs.txt", "k.png", "k.words", "k.photo", "k.json"]
    samples, notes = planned(names, tmp_path, chosen)
    assert [(sample.key, sample.caption) for sample in samples] == wanted
    counts = [note.reason.split(": ")[1] for note in notes if "does not select" in note.reason]
    assert [each[: len(str(others))] for each in counts] == [str(others)]


def test_captions_come_from_a_key_of_the_metadata(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [
        ("a.jpg", b""), ("a.json", b'{"text": " a dog "}'), ("a.txt", b"no"), ("b.jpg", b""),
        ("b.json", b'{"text": 3}'), ("c.jpg", b""), ("c.json", b'["text"]'), ("d.jpg", b""),
    ])  # fmt: skip
    notes: list[BadImage] = []
    _, samples = scan(str(tar), 0, notes.append, names=MemberNames(caption_json="text"))
    assert [sample.caption for sample in samples] == ["a dog", None, None, None]
    assert [(note.row, note.reason) for note in notes] == [
        (row, "metadata has no text under the key text, so there is no caption") for row in (1, 2)
    ]


def test_a_caption_that_is_not_valid_unicode_is_stored_escaped(toy_run: ToyRun, tmp_path: Path) -> None:
    metadata = b'{"text": "\\ud83d cut emoji"}'
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", encoded_image(1)), ("a.json", metadata)])
    hs.precompute(
        out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(shard)], emit=("heads",), caption_json="text")
    )
    table = hs.open(tmp_path / "s.zarr").samples()
    assert table["caption"].to_pylist() == ["\\ud83d cut emoji"]
    assert table["metadata"].to_pylist() == [metadata.decode()]


def test_a_selected_member_that_no_shard_has_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.txt", b""), ("b.jpg", b"")])
    with pytest.raises(SourceError, match=r"--image-member inputs.jpg .*: jpg 2 times, txt 1 time; check"):
        list(list_samples(stored_names([str(tar)]), on_note=lambda note: None, names=MemberNames(image="inputs.jpg")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"caption_member": "txt", "caption_json": "text"}, "--caption-member txt and --caption-json text name two"),
        ({"image_member": ""}, "--image-member : write the part of"),
        ({"image_member": "a/b.jpg"}, "--image-member a/b.jpg: write the part of"),
        ({"caption_member": "txt,"}, "--caption-member txt,: write the part of"),
        # A byte that is not UTF-8, as Python has it from the command line.
        ({"caption_json": "caf\udce9"}, r"--caption-json caf\\udce9 is not UTF-8; write"),
    ],
)
def test_invalid_member_names_are_refused(given: dict[str, str], said: str, toy_run: ToyRun) -> None:
    with pytest.raises(SettingsError, match=said):
        hs.precompute(out="s.zarr", **toy_run.settings(**given))


def test_selected_members_are_stored_and_used_again_by_resume_and_repair(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        (f"{n}.{field}", encoded_image(n) if field.endswith("jpg") else b"words %d" % n)
        for n in range(3)
        for field in ("input.jpg", "target.jpg", "words")
    ]
    shard = write_tar(tmp_path / "a.tar", members)
    path = tmp_path / "s.zarr"
    chosen = {"image_member": "input.jpg", "caption_member": "words"}
    settings_ = toy_run.settings(shards=[str(shard)], emit=("heads",), **chosen)
    hs.precompute(out=path, **settings_)
    assert hs.precompute(out=path, **settings_).skipped == 3
    table = hs.open(path).samples()
    assert table["key"].to_pylist() == ["0.input", "1.input", "2.input"]
    assert table["caption"].to_pylist() == ["words 0", "words 1", "words 2"]
    assert main(["info", str(path)]) == 0
    assert "--image-member input.jpg --caption-member words" in capsys.readouterr().out
    with pytest.raises(
        hs.HeadspanError, match=r'was made with --image-member "input\.jpg", but this run asks for none;'
    ):
        hs.precompute(out=path, **{**settings_, "image_member": None})
    wanted = relative_files(path)
    (path / "records" / "samples" / "00000.parquet").write_bytes(b"lost")
    assert hs.repair(path).files == ("records/samples/00000.parquet",)
    assert relative_files(path)["records/samples/00000.parquet"] == wanted["records/samples/00000.parquet"]
