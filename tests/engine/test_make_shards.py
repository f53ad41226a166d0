"""Shards from a folder, read back by headspan's plan and by webdataset."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from headspan.errors import SettingsError, SourceError
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand, stored_names
from tools.make_shards import main, make_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of two classes, with names that are awkward in tars, and other files."""
    for number, name in enumerate(
        ["dog/a.b.JPG", "dog/a.c.jpg", "cat/ü 1.png", "cat/deep/x.webp", "cat/a.jpeg", "cat/z.jpg", "dog/z.jpg"]
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image %d" % number * (100 + number))
    for name in ("dog/._a.jpg", ".thumbs/t.jpg", "notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    return tmp_path / "images"


def no_note(note: BadImage) -> None:
    raise AssertionError(note)


def plan(pattern: str, on_note: Callable[[BadImage], None] = no_note) -> list[Sample]:
    return [
        sample for _, samples in list_samples(stored_names(expand([pattern])), on_note=on_note) for sample in samples
    ]


def name_of(sample: Sample) -> str:
    return str(json.loads(sample.metadata or "{}")["file"])


def test_the_plan_has_the_images_with_their_bytes_and_classes(folder: Path, tmp_path: Path) -> None:
    pattern = make_shards(folder, tmp_path / "out", images_per_shard=3)
    assert pattern == f"{tmp_path}/out/{{000000..000002}}.tar"
    samples = plan(pattern)
    assert [name_of(sample) for sample in samples] == [
        "cat/a.jpeg", "cat/deep/x.webp", "cat/z.jpg", "cat/ü 1.png", "dog/a.b.JPG", "dog/a.c.jpg", "dog/z.jpg",
    ]  # fmt: skip
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"
    assert [sample.label for sample in samples] == [0, 0, 0, 0, 1, 1, 1]
    assert [Path(sample.url).name for sample in samples] == ["000000.tar"] * 3 + ["000001.tar"] * 3 + ["000002.tar"]
    for sample in samples:
        with open_shard(sample.url) as reader:
            assert reader.read_at(sample.offset, sample.size_bytes) == (folder / name_of(sample)).read_bytes()


# webdataset leaves the closing of its shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_finds_the_same_samples(folder: Path, tmp_path: Path) -> None:
    pattern = make_shards(folder, tmp_path / "out", images_per_shard=3)
    with webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False) as dataset:
        found = [(sample["__key__"], json.loads(sample["json"])["file"], int(sample["cls"])) for sample in dataset]
    assert found == [(sample.key, name_of(sample), sample.label) for sample in plan(pattern)]
    gc.collect()


def test_the_same_folder_gives_the_same_bytes_and_a_seed_changes_the_order(folder: Path, tmp_path: Path) -> None:
    contents = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2), ("plain", None)):
        make_shards(folder, tmp_path / name, images_per_shard=3, shuffle=seed)
        contents[name] = [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    assert contents["one"] == contents["again"]
    assert contents["one"] != contents["two"]
    assert contents["one"] != contents["plain"]
    shuffled = plan(str(tmp_path / "one"))
    assert sorted(map(name_of, shuffled)) == sorted(map(name_of, plan(str(tmp_path / "plain"))))
    assert all(sample.label == ("dog" in name_of(sample)) for sample in shuffled)


def test_captions_get_to_their_images_and_a_flat_folder_has_no_classes(folder: Path, tmp_path: Path) -> None:
    (folder / "top.jpg").write_bytes(b"at the top")
    (tmp_path / "c.csv").write_text('file,caption\ncat/ü 1.png,"one, two"\ntop.jpg,Grüße\n', encoding="utf-8")
    samples = plan(make_shards(folder, tmp_path / "out", captions=tmp_path / "c.csv"))
    captions = {name_of(sample): sample.caption for sample in samples if sample.caption is not None}
    assert captions == {"cat/ü 1.png": "one, two", "top.jpg": "Grüße"}
    assert {sample.label for sample in samples} == {None}
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_text_files_next_to_images_are_their_captions(folder: Path, tmp_path: Path) -> None:
    (folder / "dog/a.b.txt").write_text("\ufeff  Grüße\n", encoding="utf-8")
    (folder / "of-nothing.txt").write_text("lost")
    samples = plan(make_shards(folder, tmp_path / "out"))
    assert {name_of(sample): sample.caption for sample in samples if sample.caption is not None} == {
        "dog/a.b.JPG": "Grüße"
    }
    (folder / "dog/a.b.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(SourceError, match=r"a\.b\.txt: this caption is not UTF-8"):
        make_shards(folder, tmp_path / "again")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\n", "no column caption; begin"),
        ("", "no column caption nor file"),
        ("file,caption\nno.jpg,x\n", "line 2: no.jpg is not an image of the folder"),
        ("file,caption\ndog/z.jpg,x\ndog/z.jpg,y\n", "line 3: dog/z.jpg has a caption already"),
        ("file,caption\ndog/z.jpg,one, two\n", "line 2: not as many values as columns"),
        ("file,caption\ndog/z.jpg\n", "line 2: not as many values as columns"),
    ],
)
def test_captions_without_an_image_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    (tmp_path / "c.csv").write_text(table)
    assert main([str(folder), str(tmp_path / "out"), "--captions", str(tmp_path / "c.csv")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_to_run_next(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), str(tmp_path / "out")]) == 0
    command = capsys.readouterr().out.split()
    assert command[:3] == ["headspan", "precompute", f"'{tmp_path}/out/000000.tar'"]
    assert "--out" in command
    assert "--pretrained" in command


def test_the_command_refuses_in_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.tar").touch()
    (tmp_path / "bare").mkdir()
    for arguments, message in (
        ([folder, tmp_path / "full"], "exists and is not an empty directory"),
        ([tmp_path / "bare", tmp_path / "out"], "no image in this folder"),
        ([tmp_path / "none", tmp_path / "out"], "not a directory"),
        ([folder, tmp_path / "out", "--images-per-shard", "0"], "--images-per-shard 0 is too small"),
        ([folder, tmp_path / "out", "--captions", tmp_path / "none.csv"], "cannot be read"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["old.tar"]
    assert not (tmp_path / "out").exists()


def test_scenes_of_the_world_are_written_with_captions_masks_and_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--world", "7", str(tmp_path / "out"), "--seed", "3", "--split", "held_out", "--side", "96"]) == 0
    command = capsys.readouterr().out
    assert "--model reference --out" in command
    notes: list[BadImage] = []
    samples = plan(command.split("'")[1], notes.append)
    assert len(samples) == 7
    assert [note.reason[:46] for note in notes] == ["treated as masks of the images beside them, so"]
    assert all(sample.caption for sample in samples)
    known = json.loads(samples[6].metadata or "{}")
    assert (known["seed"], known["split"], known["index"], known["side"]) == (3, "held_out", 6, 96)


@pytest.mark.parametrize("arguments", [["out"], ["images", "out", "--world", "7"]])
def test_a_folder_and_the_world_exclude_each_other(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give a folder of images, or --world SCENES without one" in capsys.readouterr().err


def test_an_images_path_is_its_key_and_keys_are_unique(folder: Path, tmp_path: Path) -> None:
    for name in ("dog/a_b.jpg", "dog/a.b.png", "__cat__/x.jpg", "dog/a_b_2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    samples = plan(make_shards(folder, tmp_path / "out"))
    keys = {name_of(sample): sample.key for sample in samples}
    assert len(set(keys.values())) == len(keys) == 11
    assert (keys["cat/ü 1.png"], keys["dog/a.b.JPG"], keys["__cat__/x.jpg"]) == ("cat/ü 1", "dog/a_b", "0__cat__/x")


def test_numbered_folders_are_classes_only_on_request(tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("00000/000000000.jpg", "00001/000010000.jpg"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"image")
    make_shards(tmp_path / "files", tmp_path / "auto", say=said.append)
    assert {sample.label for sample in plan(str(tmp_path / "auto"))} == {None}
    assert "no classes, since the folders are numbered (00000, 00001); --classes folders uses them" in said[0]
    make_shards(tmp_path / "files", tmp_path / "folders", classes="folders", say=said.append)
    assert [sample.label for sample in plan(str(tmp_path / "folders"))] == [0, 1]
    assert "2 classes from folders (00000, 00001); --classes none ignores them" in said[1]
    (tmp_path / "files" / "top.jpg").write_bytes(b"image")
    with pytest.raises(SettingsError, match="--classes folders, but not every image is in a folder"):
        make_shards(tmp_path / "files", tmp_path / "more", classes="folders")


@pytest.mark.parametrize(
    "names",
    [
        ("00000", "00001"), ("shard-0003", "shard-0004"), ("part_00012",), ("part-0", "part-1"), ("Batch 1", "chunk.2"),
        ("train-00000-of-00016", "validation-00000-of-00002"), ("train_shard_7", "split12"), ("2019", "2020"),
    ],
)  # fmt: skip
def test_folders_named_like_shards_are_not_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(b"image")
    make_shards(tmp_path / "in", tmp_path / "out")
    assert {sample.label for sample in plan(str(tmp_path / "out"))} == {None}


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1", "9"), ("cat", "dog"), ("00", "01"), ("n01440764", "cat"), ("n01440764", "n01443537", "n02102040"),
        ("id0001", "id0002"), ("car1234", "shard-0001"),
    ],
)  # fmt: skip
def test_other_folders_are_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(b"image")
    make_shards(tmp_path / "in", tmp_path / "out")
    assert [sample.label for sample in plan(str(tmp_path / "out"))] == list(range(len(names)))


def test_companions_of_an_image_are_kept_in_upper_and_lower_case(folder: Path, tmp_path: Path) -> None:
    metadata = b'{"url": "https://example.org/1.jpg"}\n'
    (folder / "cat/z.JSON").write_bytes(metadata)
    (folder / "cat/z.TXT").write_text("a cat")
    (folder / "cat/z.Cls").write_text("7")
    samples = {sample.key: sample for sample in plan(make_shards(folder, tmp_path / "out"))}
    assert (samples["cat/z"].caption, samples["cat/z"].label) == ("a cat", 7)
    assert samples["cat/z"].metadata == metadata.decode().strip()
    # Classes from files and classes from folders are not mixed.
    assert samples["dog/z"].label is None


@pytest.mark.parametrize("extension", ["bmp", "tiff", "TIF", "gif", "avif", "jfif", "jpe", "dib"])
def test_every_format_that_is_decoded_is_included(extension: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/a.{extension}").write_bytes(b"image")
    assert [sample.member for sample in plan(make_shards(tmp_path / "in", tmp_path / "out"))] == [
        f"a.{extension.lower()}"
    ]


def test_all_files_that_are_left_out_are_counted_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        (folder / f"cat/{number:02d}.heic").write_bytes(b"")
    (folder / "dog/a.b.txt").write_text("taken")
    (folder / "dog/a.b.TXT").write_text("again")
    (folder / "dog/gone.jpg").symlink_to("nowhere.jpg")
    assert main([str(folder), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    # Four from the fixture, and those above.
    assert "17 left out (.thumbs, cat/00.heic, cat/01.heic, " in said.err
    assert "and 7 more)" in said.err
    lines = (tmp_path / "out" / "left-out.txt").read_text().splitlines()
    assert len(lines) == 17
    assert [line for line in lines if "heic" not in line] == [
        ".thumbs\ta hidden folder",
        "dog/._a.jpg\ta hidden file",
        "dog/a.b.txt\tdog/a.b.TXT is used as the .txt of the same image",
        "dog/gone.jpg\ta link to a missing file",
        "notes.txt\tneither an image nor a .txt, .json or .cls file with the name of one",
    ]


def test_links_are_followed_once_and_loops_end(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "cat").symlink_to(folder / "cat")
    (links / "kitten").symlink_to("../images/cat")
    (links / "self").symlink_to(".")
    (links / "up").symlink_to("..")
    (links / "dogs").mkdir()
    (links / "dogs/b.jpg").symlink_to("../../images/dog/z.jpg")
    (folder / "cat" / "back").symlink_to(links)
    samples = plan(make_shards(links, tmp_path / "out"))
    assert [sample.key for sample in samples] == ["cat/a", "cat/deep/x", "cat/z", "cat/ü 1", "dogs/b"]
    left = [line.split("\t")[0] for line in (tmp_path / "out" / "left-out.txt").read_text().splitlines()]
    assert left == ["cat/back", "kitten", "self", "up"]


@pytest.mark.parametrize(
    ("classes", "labels", "said"),
    [
        ("folders", {"cat/z": 0, "dog/z": 1}, "2 classes from folders (cat, dog)"),
        ("none", {"cat/z": None, "dog/z": None}, "no classes"),
        ("auto", {"cat/z": 7, "dog/z": None}, "classes from the .cls files of 1 image"),
    ],
)
def test_the_requested_classes_are_used_and_unused_cls_files_are_listed(
    folder: Path, tmp_path: Path, classes: str, labels: dict[str, int | None], said: str
) -> None:
    (folder / "cat/z.cls").write_text("7")
    heard: list[str] = []
    samples = plan(make_shards(folder, tmp_path / "out", classes=classes, say=heard.append))
    assert {sample.key: sample.label for sample in samples if sample.key in labels} == labels
    assert said in heard[0]
    lines = (tmp_path / "out" / "left-out.txt").read_text().splitlines()
    assert (f"cat/z.cls\t--classes {classes} was given" in lines) == (classes != "auto")


def test_cls_files_of_a_flat_folder_are_classes_and_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"image")
    (tmp_path / "in/a.cls").write_text("3")
    heard: list[str] = []
    assert [sample.label for sample in plan(make_shards(tmp_path / "in", tmp_path / "out", say=heard.append))] == [3]
    assert "classes from the .cls files of 1 image" in heard[0]


def test_text_files_that_a_table_of_captions_replaces_are_counted_and_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "cat/z.txt").write_text("beside")
    (tmp_path / "c.csv").write_text("file,caption\ncat/a.jpeg,from the table\n")
    heard: list[str] = []
    samples = plan(make_shards(folder, tmp_path / "out", captions=tmp_path / "c.csv", say=heard.append))
    assert {sample.key: sample.caption for sample in samples if sample.caption} == {"cat/a": "from the table"}
    assert "4 left out (.thumbs, cat/z.txt, " in heard[1]
    assert "cat/z.txt\t--captions was given" in (tmp_path / "out" / "left-out.txt").read_text().splitlines()


@pytest.mark.parametrize("links", [{"a": "d", "b": "d/e"}, {"a": "d/e", "b": "d"}, {"a": "d/e", "b": "d", "c": "d"}])
def test_a_folder_that_several_links_lead_to_is_read_once(links: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "store/d/e").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    for name in ("in/1.jpg", "store/d/2.jpg", "store/d/e/3.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(Path("../store") / target)
    samples = plan(make_shards(tmp_path / "in", tmp_path / "out"))
    assert sorted(Path(sample.key).name for sample in samples) == ["1", "2", "3"]
    # The second path to a folder is listed. It is a link, or the folder itself within another.
    assert len((tmp_path / "out" / "left-out.txt").read_text().splitlines()) == len(links) - 1


def test_a_link_to_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "in/.cache/images").mkdir(parents=True)
    (tmp_path / "in/.cache/images/a.jpg").write_bytes(b"image")
    (tmp_path / "in/cat").symlink_to(".cache/images")
    assert [sample.key for sample in plan(make_shards(tmp_path / "in", tmp_path / "out"))] == ["cat/a"]


def test_names_with_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("new\nclass/a.jpg", "red\x1b[31m/b.jpg", "red\x1b[31m/tab\tand\nline.heic"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"image")
    assert main([str(tmp_path / "in"), str(tmp_path / "out\x1b[2J")]) == 0
    assert main([str(tmp_path / "in"), str(tmp_path / "out\x1b[2J")]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert (said.out.count("\n"), said.err.count("\n")) == (1, 3)
    out = tmp_path / "out\x1b[2J"
    assert (out / "classes.txt").read_text().splitlines() == ["new\\nclass", "red\\x1b[31m"]
    (line,) = (out / "left-out.txt").read_text().splitlines()
    assert line.split("\t")[0] == "red\\x1b[31m/tab\\tand\\nline.heic"


def test_a_name_that_is_not_utf8_is_written_escaped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.jpg", b"caf\xe9.pdf"):
        Path(os.fsdecode(bytes(tmp_path / "in") + b"/" + name)).write_bytes(b"image")
    (sample,) = plan(make_shards(tmp_path / "in", tmp_path / "out"))
    assert (sample.key, name_of(sample)) == ("caf\\udce9", "caf\\udce9.jpg")
    assert (tmp_path / "out" / "left-out.txt").read_text().startswith("caf\\udce9.pdf\t")
