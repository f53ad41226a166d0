"""Tests of folders of images, Parquet files and lists: the same numbers as from tars, whatever the source."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headspan as hs
from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.errors import HeadspanError, SourceError, StoreError
from headspan.originals.pictures import read_images
from headspan.run.precompute import precompute
from headspan.run.repair import repair
from headspan.run.verify import verify
from headspan.shards import parquet_images
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.shards.urls import expand, stored_names
from tests.conftest import encoded_image, relative_files, write_tar
from tests.engine.image_sources import BROKEN, NAMES, SOURCES, write_folder, write_model, write_sources
from tests.engine.test_network_sources import Server, server

__all__ = ["server"]
NEW = tuple(name for name in SOURCES if name != "tars")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_sources(tmp_path_factory.mktemp("sources"))


def run(shards: list[str], out: Path, model: str, **settings: Any) -> hs.Store:
    given = {"pretrained": "random:0", "layers": "all", "emit": ["heads", "mlps"], "device": "cpu", "workers": 2}
    given |= {"batch_size": 2, "unit_images": 3, "decode": "exact"}
    precompute(PrecomputeSettings.from_dict({"shards": shards, "out": str(out), "model": model, **given, **settings}))
    return hs.open(out, include_failed=True)


@pytest.fixture(scope="module")
def of_tars(made: dict[str, list[str]], model: str, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    return run(made["tars"], tmp_path_factory.mktemp("tars") / "run.zarr", model)


def arrays_of(store: hs.Store) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[...]) for name, array in store.contents.row_arrays()}


def streaming(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Let the row groups of `streamed parquet` count as large ones."""
    if source == "streamed parquet":
        monkeypatch.setattr(parquet_images, "SMALL_GROUP_BYTES", 100)
        monkeypatch.setattr(parquet_images, "_BATCH_IMAGES", 2)


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("source", NEW)
def test_every_source_gives_the_numbers_of_tars_row_by_row(
    source: str,
    processes: bool,
    made: dict[str, list[str]],
    of_tars: hs.Store,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streaming(monkeypatch, source)
    monkeypatch.setattr(choice, "uses_processes", lambda device: processes)
    store = run(made[source], tmp_path / "run.zarr", model)
    wanted, found = arrays_of(of_tars), arrays_of(store)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert values.tobytes() == found[name].tobytes(), name
    mine, theirs = store.samples().to_pydict(), of_tars.samples().to_pydict()
    assert mine["key"] == theirs["key"]
    assert len(set(mine["key"])) == len(NAMES)
    assert [text or "" for text in mine["caption"]] == [text or "" for text in theirs["caption"]]
    bad = [image for record in store.contents.records for image in record.bad]
    assert [image.key for image in bad] == [BROKEN.removesuffix(".jpg")]
    checksums = [record.source_crc32c for record in store.contents.records]
    assert checksums == [record.source_crc32c for record in of_tars.contents.records]
    verdict = verify(store, sources=True)
    assert verdict.problems == ()
    assert verdict.unreached == 0
    # A complete store is resumed without an error.
    assert relative_files(run(made[source], tmp_path / "run.zarr", model).path) == relative_files(store.path)


@pytest.mark.parametrize("source", NEW)
def test_a_damaged_unit_is_repaired_from_every_source(
    source: str, made: dict[str, list[str]], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch, source)
    store = run(made[source], tmp_path / "run.zarr", model)
    before = relative_files(store.path)
    damaged = next(path for path in sorted(store.path.glob("heads/c/**/*")) if path.is_file())
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    repaired = repair(store.path)
    assert repaired.units
    assert repaired.verdict.problems == ()
    assert relative_files(store.path) == before


@pytest.mark.parametrize("source", NEW)
def test_reports_have_pictures_of_every_source(
    source: str, made: dict[str, list[str]], of_tars: hs.Store, model: str, tmp_path: Path
) -> None:
    store = run(made[source], tmp_path / "run.zarr", model)
    found, failed = read_images(store, store.samples().to_pylist())
    wanted, _ = read_images(of_tars, of_tars.samples().to_pylist())
    assert found == wanted
    assert list(failed) == [sorted(NAMES).index(BROKEN)]


def copied(made: dict[str, list[str]], source: str, folder: Path) -> list[str]:
    """The source, copied to another folder with its times of modification."""
    root = Path(made["list"][0]).parent
    shutil.copytree(root, folder)
    return [str(folder / Path(name).relative_to(root)) for name in made[source]]


@pytest.mark.parametrize("source", ["folder", "list"])
def test_verify_names_each_changed_and_missing_file_and_its_row(
    source: str, made: dict[str, list[str]], model: str, tmp_path: Path
) -> None:
    shards = copied(made, source, tmp_path / "copy")
    store = run(shards, tmp_path / "run.zarr", model)
    images = tmp_path / "copy" / "images"
    (images / "z.jpg").write_bytes(encoded_image(99))
    (images / "c/d/e/deep.png").unlink()
    problems = [problem for problem in verify(store, sources=True).problems if problem.rows == 1]
    assert sorted(
        (problem.first_row, problem.what.partition(" ")[0].rpartition("images/")[2]) for problem in problems
    ) == [
        (5, "c/d/e/deep.png"),
        (6, "z.jpg"),
    ]
    assert all(problem.of_source for problem in verify(store, sources=True).problems)
    texts = " ".join(problem.what for problem in problems)
    assert "does not exist any more" in texts
    assert "has changed since precompute read it" in texts


@pytest.mark.parametrize("source", NEW)
def test_bytes_that_changed_without_a_trace_are_found_by_reading_all_sources(
    source: str, made: dict[str, list[str]], model: str, tmp_path: Path
) -> None:
    shards = copied(made, source, tmp_path / "copy")
    store = run(shards, tmp_path / "run.zarr", model)
    path = tmp_path / "copy" / "images" / "z.jpg" if source in ("folder", "list") else Path(shards[0])
    times, data = path.stat(), bytearray(path.read_bytes())
    # In the middle of an image: its bytes have the same length and the same place.
    image = (tmp_path / "copy" / "images" / "z.jpg").read_bytes()
    data[data.find(image) + len(image) - 40] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(store).problems == ()
    (problem,) = verify(store, sources=True).problems
    assert problem.of_source
    assert problem.unit == 2
    assert "have changed" in problem.what or "cannot be read again" in problem.what


@pytest.mark.parametrize("source", ["folder", "list"])
def test_a_resumed_run_refuses_added_and_removed_files_with_their_numbers(
    source: str, made: dict[str, list[str]], model: str, tmp_path: Path
) -> None:
    shards = copied(made, source, tmp_path / "copy")
    run(shards, tmp_path / "run.zarr", model)
    images = tmp_path / "copy" / "images"
    if source == "folder":
        (images / "new.jpg").write_bytes(encoded_image(1))
    else:
        with Path(shards[0]).open("a") as file:
            file.write("images/b.jpg,again,b2\n")
    with pytest.raises(StoreError, match=r"has changed since precompute read it \(8 images now, 7 then\)"):
        run(shards, tmp_path / "run.zarr", model)


def test_a_file_that_changes_while_the_run_reads_is_an_error(tmp_path: Path) -> None:
    from headspan.shards.images import Wanted
    from headspan.shards.open_images import open_images

    folder = write_folder(tmp_path / "images")
    (_, samples) = next(list_samples({"f": str(folder)}, on_note=lambda note: None))
    first = next(iter(samples))
    newest = max(path.stat().st_mtime_ns for path in folder.rglob("*.*"))
    with open_images(str(folder), newest_ns=newest) as reader:
        wanted = Wanted((0,), (first.size_bytes or 0,), (first.member,))
        ((data, reason),) = reader.read(wanted)
        assert (data, reason) == ((folder / first.member).read_bytes(), None)
        os.utime(folder / first.member, ns=(newest + 10**9, newest + 10**9))
        with pytest.raises(SourceError, match="time of modification differs"):
            list(reader.read(wanted))
        (folder / first.member).write_bytes(b"longer" * 1000)
        with pytest.raises(SourceError, match=r"6000 bytes now, \d+ bytes then"):
            list(reader.read(wanted))
        (folder / first.member).unlink()
        with pytest.raises(SourceError, match="does not exist any more"):
            list(reader.read(wanted))


def planned(shards: list[str], **settings: Any) -> tuple[list[Shard], list[Sample], list[BadImage]]:
    names = PrecomputeSettings.from_dict({"shards": shards, "out": "x", **settings}).member_names
    notes: list[BadImage] = []
    found_shards, samples = [], []
    for shard, found in list_samples(stored_names(expand(shards)), on_note=notes.append, names=names):
        found_shards.append(shard)
        samples += found
    return found_shards, samples, notes


def test_a_folder_has_the_keys_captions_classes_and_metadata_of_its_tars(tmp_path: Path) -> None:
    from tools.make_shards import make_shards

    folder = tmp_path / "images"
    write_folder(folder, ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/1.png", "dog/x.y.z.jpg"))
    for name in ("b.txt", "z.txt"):
        (folder / name).unlink()
    (folder / "cat/1.txt").write_text("\ufeff a cat \n")
    (folder / "dog/1.json").write_text('{"size": 3}')
    (folder / "notes.md").write_text("")
    make_shards(folder, tmp_path / "tars", images_per_shard=2)
    _, mine, notes = planned([str(folder)])
    _, tars, _ = planned([str(tmp_path / "tars")])

    def contents(samples: list[Sample]) -> list[Any]:
        return [(one.row, one.key, one.caption, one.label, one.metadata, one.size_bytes) for one in samples]

    assert contents(mine) == contents(tars)
    assert [sample.label for sample in mine] == [0, 0, 1, 1, 1]
    assert any("notes.md" in note.reason for note in notes)
    assert any("2 classes from folders (cat, dog)" in note.reason for note in notes)
    assert {sample.label for sample in planned([str(folder)], classes="none")[1]} == {None}


def test_captions_of_a_folder_may_come_from_a_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images")
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\nb.jpg,from the table\n")
    samples = planned([str(folder)], captions=str(table))[1]
    assert {one.member: one.caption for one in samples if one.caption} == {"b.jpg": "from the table"}
    table.write_text("file,caption\nnone.jpg,x\n")
    with pytest.raises(SourceError, match=r"none\.jpg is not an image of the folder"):
        planned([str(folder)], captions=str(table))


def test_lists_of_every_format_have_the_same_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    names = [f"images/{name}" for name in NAMES]
    (tmp_path / "a.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("file_name,text,label\n" + "".join(f'"{name}",x,3\n' for name in names))
    (tmp_path / "a.tsv").write_text("filepath\tclass\n" + "".join(f"{name}\tcat\n" for name in names))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"path": name, "label": 2, "n": 1.5}) + "\n" for name in names)
    )
    found = {kind: planned([str(tmp_path / f"a.{kind}")])[1] for kind in ("txt", "csv", "tsv", "jsonl")}
    for samples in found.values():
        assert [sample.member for sample in samples] == names
        assert [sample.size_bytes for sample in samples] == [(tmp_path / name).stat().st_size for name in names]
    assert {(one.caption, one.label, one.metadata) for one in found["csv"]} == {("x", 3, None)}
    assert {(one.label, one.metadata) for one in found["tsv"]} == {(None, '{"class_name": "cat"}')}
    assert {(one.label, one.metadata) for one in found["jsonl"]} == {(2, '{"n": 1.5}')}


def test_missing_files_of_a_list_keep_their_rows(tmp_path: Path, model: str) -> None:
    write_folder(tmp_path / "images")
    listed = tmp_path / "list.txt"
    listed.write_text("images/b.jpg\nimages/none.jpg\nimages/z.jpg\n")
    store = run([str(listed)], tmp_path / "run.zarr", model)
    (bad,) = [image for record in store.contents.records for image in record.bad]
    assert (bad.row, bad.key, bad.reason) == (1, "images/none", "there was no such file when the run was planned")
    assert verify(store, sources=True).problems == ()
    listed.write_text("nothing.jpg\n")
    with pytest.raises(SourceError, match=r"none of its 1 file exists \(first: nothing\.jpg\)"):
        run([str(listed)], tmp_path / "other.zarr", model)


def test_rows_of_parquet_without_bytes_are_bad_images_with_the_reason(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.jpg").write_bytes(encoded_image(5))
    images = [
        {"bytes": encoded_image(0), "path": None},
        None,
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "x.jpg"},
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"image": images, "label": [0, 1, 1, 0, None, 7]}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    store = run([str(tmp_path / "a.parquet")], tmp_path / "run.zarr", model)
    bad = {image.row: image.reason for record in store.contents.records for image in record.bad}
    assert sorted(bad) == [1, 3, 4, 5]
    assert "null" in bad[1]
    assert "gone.jpg is no local file" in bad[3]
    samples = store.samples().to_pydict()
    assert samples["label"] == [0, 1, 1, 0, None, 7]
    assert samples["metadata"][:2] == ['{"class_name": "cat"}', '{"class_name": "dog"}']
    assert samples["key"][0] == "a/00000000"
    assert samples["member"][:3] == ["row 0", "row 1", "beside.jpg"]
    assert samples["size_bytes"] == [None] * 6
    assert verify(store, sources=True).problems == ()


def test_a_binary_column_is_found_by_its_name_or_named(tmp_path: Path) -> None:
    table = pa.table({"jpg": [b"1", b"2"], "caption": ["a", "b"], "key": [7, 8], "url": ["u", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    _, samples, notes = planned([str(tmp_path / "a.parquet")])
    assert [(one.key, one.caption, one.metadata) for one in samples] == [
        ("7", "a", '{"url": "u"}'),
        ("8", "b", '{"url": null}'),
    ]
    assert notes[0].reason == (
        "columns: images from `jpg`, captions from `caption`, keys from `key`; --image-column and --caption-column and "
        "--key-column name others"
    )
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match=r"several columns may hold image bytes; name one with --image-column; its"):
        planned([str(tmp_path / "two.parquet")])
    assert len(planned([str(tmp_path / "two.parquet")], image_column="right")[1]) == 1
    with pytest.raises(SourceError, match=r"no column middle, which --image-column names; its columns are left \(bin"):
        planned([str(tmp_path / "two.parquet")], image_column="middle")


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_parquet_on_a_server_gives_the_same_numbers(
    processes: bool,
    server: Server,
    made: dict[str, list[str]],
    of_tars: hs.Store,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "uses_processes", lambda device: processes)
    shutil.copy(made["parquet"][0], server.folder / "all.parquet")
    store = run([server.url("all.parquet")], tmp_path / "run.zarr", model)
    for name, values in arrays_of(of_tars).items():
        assert values.tobytes() == arrays_of(store)[name].tobytes(), name
    assert store.samples()["key"].to_pylist() == of_tars.samples()["key"].to_pylist()


def test_a_folder_with_several_kinds_is_read_in_a_fixed_order_and_said(tmp_path: Path) -> None:
    write_folder(tmp_path)
    notes: list[str] = []
    assert expand([str(tmp_path)], on_note=notes.append) == [str(tmp_path)]
    assert notes == []
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "data" / "train-0.parquet")
    assert expand([str(tmp_path)], on_note=notes.append) == [str(tmp_path / "data" / "train-0.parquet")]
    assert "1 Parquet file in this directory will be read, but not the 2 images beside" in notes[0]
    write_tar(tmp_path / "a.tar", [])
    assert expand([str(tmp_path)], on_note=notes.append) == [str(tmp_path / "a.tar")]
    assert "1 tar in this directory will be read, but not the 1 Parquet file nor the 2 images beside" in notes[1]


def test_kinds_can_be_mixed_in_one_run(made: dict[str, list[str]], model: str, tmp_path: Path) -> None:
    store = run([*made["parquet"], *made["folder"], *made["list"], *made["tars"]], tmp_path / "run.zarr", model)
    assert store.planned_images == 4 * len(NAMES)
    embedding = np.asarray(dict(store.contents.row_arrays())["embedding"][...]).reshape(4, len(NAMES), -1)
    for part in embedding[1:]:
        # Batches differ, so sums are rounded differently.
        np.testing.assert_allclose(part, embedding[0], rtol=1e-4, atol=1e-6)
    assert verify(store, sources=True).problems == ()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.parquet", b"PAR1 and nothing", "not a complete Parquet file"),
        ("a.csv", b"what,else\n1,2\n", r"name one with --image-column; its columns are what \(text\), else \(text\)"),
        ("a.csv", b"path,text\na.jpg\n", "line 2: not as many values as columns"),
        ("a.jsonl", b"{\n", "a.jsonl, line 1: is not JSON"),
        ("a.jpg", b"\xff\xd8", "is an image; name the folder that holds the images"),
        ("a.csv", b"path\n\xff\n", "a.csv: cannot be read"),
    ],
)
def test_unusable_sources_are_refused_with_the_reason(name: str, content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadspanError, match=text):
        planned([str(tmp_path / name)])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.md").write_text("")
    with pytest.raises(SourceError, match=r"no \.tar in this directory, no \.parquet, and no image in it or below"):
        expand([str(tmp_path)])


def test_a_run_with_other_columns_is_refused(made: dict[str, list[str]], model: str, tmp_path: Path) -> None:
    run(made["list"], tmp_path / "run.zarr", model)
    with pytest.raises(StoreError, match='was made with --caption-column none, but this run asks for "id"'):
        run(made["list"], tmp_path / "run.zarr", model, caption_column="id")


@pytest.mark.parametrize(
    ("source", "settings", "text"),
    [
        ("tars", {"captions": "a.csv"}, "--captions is for folders of images, but no shard is one"),
        ("parquet", {"classes": "folders"}, "--classes is for folders of images"),
        ("folder", {"key_column": "id"}, "--key-column is for Parquet files and lists"),
        ("folder", {"classes": "subfolders"}, "--classes subfolders is unknown; choose from auto, folders, none"),
        ("folder", {"classes": "folders"}, "--classes folders, but not every image is in a folder below it"),
    ],
)
def test_settings_for_other_kinds_of_sources_are_refused(
    source: str, settings: dict[str, str], text: str, made: dict[str, list[str]]
) -> None:
    with pytest.raises(HeadspanError, match=text):
        planned(made[source], **settings)


@pytest.mark.parametrize("source", ["parquet", "streamed parquet"])
def test_parquet_is_decoded_in_processes_when_memory_is_short(
    source: str,
    made: dict[str, list[str]],
    of_tars: hs.Store,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streaming(monkeypatch, source)
    monkeypatch.setattr(choice, "uses_processes", lambda device: True)
    store = run(made[source], tmp_path / "run.zarr", model, in_flight_bytes=10_000)
    for name, values in arrays_of(of_tars).items():
        assert values.tobytes() == arrays_of(store)[name].tobytes(), name
