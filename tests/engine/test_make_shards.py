"""Shards from a folder: what goes in comes out of headspan's plan and of webdataset alike."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from headspan.errors import SourceError
from headspan.plan import list_samples
from headspan.records import BadImage, Sample
from headspan.shard_urls import expand, stored_names
from headspan.sources import open_shard
from tools.make_shards import main, make_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of two classes, with names that are awkward in tars, and files that are no images."""
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


def test_images_come_out_of_the_plan_with_their_bytes_and_classes(folder: Path, tmp_path: Path) -> None:
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


# Webdataset leaves the closing of its shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_finds_the_same_samples(folder: Path, tmp_path: Path) -> None:
    pattern = make_shards(folder, tmp_path / "out", images_per_shard=3)
    with webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False) as dataset:
        found = [(sample["__key__"], json.loads(sample["json"])["file"], int(sample["cls"])) for sample in dataset]
    assert found == [(sample.key, name_of(sample), sample.label) for sample in plan(pattern)]
    gc.collect()


def test_the_same_folder_gives_the_same_bytes_and_a_seed_another_order(folder: Path, tmp_path: Path) -> None:
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


def test_captions_go_to_their_images_and_a_flat_folder_has_no_classes(folder: Path, tmp_path: Path) -> None:
    (folder / "top.jpg").write_bytes(b"at the top")
    (tmp_path / "c.csv").write_text('file,caption\ncat/ü 1.png,"one, two"\ntop.jpg,Grüße\n', encoding="utf-8")
    samples = plan(make_shards(folder, tmp_path / "out", captions=tmp_path / "c.csv"))
    captions = {name_of(sample): sample.caption for sample in samples if sample.caption is not None}
    assert captions == {"cat/ü 1.png": "one, two", "top.jpg": "Grüße"}
    assert {sample.label for sample in samples} == {None}
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_text_files_beside_images_are_their_captions(folder: Path, tmp_path: Path) -> None:
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
        ("file,caption\nno.jpg,x\n", "line 2: no.jpg is no image of the folder"),
        ("file,caption\ndog/z.jpg,x\ndog/z.jpg,y\n", "line 3: dog/z.jpg has a caption already"),
        ("file,caption\ndog/z.jpg,one, two\n", "line 2: not as many values as columns"),
        ("file,caption\ndog/z.jpg\n", "line 2: not as many values as columns"),
    ],
)
def test_captions_that_fit_nothing_are_refused(
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
    assert [note.reason[:47] for note in notes] == ["taken for masks of the images beside them, so n"]
    assert all(sample.caption for sample in samples)
    known = json.loads(samples[6].metadata or "{}")
    assert (known["seed"], known["split"], known["index"], known["side"]) == (3, "held_out", 6, 96)


@pytest.mark.parametrize("arguments", [["out"], ["images", "out", "--world", "7"]])
def test_a_folder_and_the_world_exclude_each_other(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give a folder of images, or --world SCENES without one" in capsys.readouterr().err
