"""Neighbours through a property, and the command `nearest`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import headspan as hs
from headspan.concepts.labels import label_heads
from headspan.errors import SettingsError
from headspan.explore.nearest.neighbours import nearest_through_each, nearest_to_image, nearest_to_text
from headspan.explore.nearest.property_neighbours import property_neighbours, property_neighbours_of_vector
from headspan.explore.nearest.strips import neighbour_strips
from headspan.explore.query.query_image import query_image
from tests.conftest import BROKEN_ROWS, ToyRun, image_members, relative_files
from tests.engine.test_cli import refused
from tests.engine.test_label_commands import run
from tests.engine.test_labels_and_ccs import HEADS, keep

PLACES = [(0, 0), (0, 2), (1, 0)]


@pytest.fixture
def labelled(toy_copy: Path) -> Path:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    label_heads(store, save=True)
    return toy_copy


def ranked(scores: np.ndarray, without: int | None, count: int) -> list[int]:
    order = [image for image in np.argsort(-scores, kind="stable").tolist() if image != without]
    return order[:count]


def dense(store: hs.Store, heads: list[tuple[int, int]] | None) -> np.ndarray:
    if heads is None:
        return store.embedding.astype(np.float64) / np.linalg.norm(store.embedding.astype(np.float64), axis=1)[:, None]
    return np.mean([store.head(*head).astype(np.float64) for head in heads], axis=0)


def test_the_neighbours_through_a_property_stand_beside_those_of_the_embedding_and_of_random_heads(
    labelled: Path,
) -> None:
    store = hs.open(labelled)
    found = property_neighbours(store, 11, "places", count=7, seed=3)
    assert found.label == "places"
    assert found.heads == tuple(PLACES)
    assert [each.name for each in found.columns] == ["property", "embedding", "random 1", "random 2", "random 3"]
    sets = [each.heads for each in found.columns]
    assert sets[:2] == [tuple(PLACES), None]
    for heads in sets[2:]:
        assert heads is not None
        assert len(set(heads)) == 3
        assert not set(heads) & set(PLACES)
    assert len(set(sets)) == 5
    for each in found.columns:
        vectors = dense(store, None if each.heads is None else list(each.heads))
        assert each.neighbours.images.tolist() == ranked(vectors @ vectors[11], 11, 7)
        np.testing.assert_allclose(each.neighbours.scores, np.sort(vectors @ vectors[11])[::-1][1:8], rtol=1e-3)
    again = property_neighbours(store, 11, PLACES, count=7, seed=3)
    assert [each.heads for each in again.columns] == sets
    assert again.label is None
    other = property_neighbours(store, 11, PLACES, count=7, seed=4)
    assert [each.heads for each in other.columns] != sets


def test_random_heads_are_all_others_if_there_are_fewer(labelled: Path) -> None:
    store = hs.open(labelled)
    every = [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]
    found = property_neighbours(store, 0, every[2:])
    assert [each.heads for each in found.columns[2:]] == [tuple(every[:2])]
    assert [each.name for each in property_neighbours(store, 0, every).columns] == ["property", "embedding"]


def test_the_table_of_a_property_has_a_row_for_every_neighbour_of_every_column(labelled: Path) -> None:
    store = hs.open(labelled)
    frame = property_neighbours(store, 11, "places", count=4, draws=1).to_frame()
    assert frame.columns.tolist() == ["through", "heads", "rank", "image", "key", "caption", "score"]
    assert frame["through"].tolist() == ["property"] * 4 + ["embedding"] * 4 + ["random 1"] * 4
    assert frame["heads"][0] == "L0.H0 L0.H2 L1.H0"
    samples = store.samples(frame["image"].to_numpy())
    assert frame["key"].tolist() == samples["key"].to_pylist()
    assert frame["caption"].where(frame["caption"].notna(), None).tolist() == samples["caption"].to_pylist()


def test_neighbours_of_a_text_through_a_property_are_those_of_its_vector(labelled: Path) -> None:
    store = hs.open(labelled)
    (vector,) = hs.text_vectors(store, ["a cat"])
    found = property_neighbours_of_vector(store, vector, "places", count=5, name="a cat")
    for each in found.columns:
        wanted = ranked(dense(store, None if each.heads is None else list(each.heads)) @ vector, None, 5)
        assert each.neighbours.images.tolist() == wanted
    np.testing.assert_array_equal(found.through("embedding").images, nearest_to_text(store, "a cat", count=5).images)


def test_the_neighbours_through_each_head_are_those_of_single_queries(toy_store: hs.Store) -> None:
    found = nearest_through_each(toy_store, 3, count=5)
    assert list(found) == [(layer, head) for layer in range(3) for head in range(3)]
    for head, each in found.items():
        np.testing.assert_array_equal(each.images, nearest_to_image(toy_store, 3, [head], 5).images)
    assert list(nearest_through_each(toy_store, 3, [(2, 1)])) == [(2, 1)]


def test_keys_and_captions_are_those_of_the_images(toy_store: hs.Store) -> None:
    found = nearest_to_image(toy_store, 3, [(1, 1)], 5)
    samples = toy_store.samples(found.images)
    assert list(found.keys) == samples["key"].to_pylist()
    assert list(found.captions) == samples["caption"].to_pylist()
    assert json.loads(found.as_json())[0]["key"] == found.keys[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of row 12 of the toy's shards."""
    path = tmp_path_factory.mktemp("picture") / "dropped.png"
    member = next(each for each in image_members(range(12, 13), BROKEN_ROWS) if not each[0].endswith(".txt"))
    path.write_bytes(member[1])
    return path


def test_the_nearest_image_to_a_copy_of_an_image_is_that_image(toy_run: ToyRun, picture: Path) -> None:
    store = hs.open(toy_run.path)
    key = Path(next(iter(image_members(range(12, 13), BROKEN_ROWS)))[0]).stem
    image = store.image_of_key(key)
    for heads in (None, [(2, 0), (1, 1)]):
        found = nearest_to_image(store, picture, heads, count=5)
        wanted = nearest_to_image(store, image, heads, count=4)
        assert image in found.images
        others = [each for each in found.images.tolist() if each != image]
        assert others[:3] == wanted.images.tolist()[:3]
    asked = query_image(store, picture)
    assert nearest_to_image(store, asked, None, 1).images.tolist() == [image]
    assert nearest_to_image(store, asked, None, 1).scores[0] > 0.999


def test_an_image_that_failed_is_refused_as_a_query(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path, include_failed=True)
    with pytest.raises(SettingsError, match="could not be used by precompute"):
        nearest_to_image(store, min(BROKEN_ROWS))


def test_the_command_prints_keys_scores_and_captions(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hs.open(labelled)
    wanted = nearest_to_image(store, 4, [(1, 2), (0, 1)], 3)
    out, _ = run(capsys, "nearest", str(labelled), "--image", "4", "--head", "L1.H2", "--head", "L0.H1", "--count", "3")
    lines = out.splitlines()
    sample = store.samples([4], ["key", "caption"]).to_pylist()[0]
    assert lines[0] == f"query: {sample['key']}" + (f": {sample['caption']}" if sample["caption"] else "")
    assert lines[1] == "through L0.H1 L1.H2"
    assert [line.split()[:3] for line in lines[3:]] == [
        [str(rank), str(image), key]
        for rank, (image, key) in enumerate(zip(wanted.images, wanted.keys, strict=True), 1)
    ]
    assert f"{wanted.scores[0]:.4g}" in lines[3]
    shown = [line[lines[2].index("caption") :] for line in lines[3:]]
    assert shown == [caption or "-" for caption in wanted.captions]

    out, _ = run(capsys, "nearest", str(labelled), "--text", "a cat", "--count", "3", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    cat = nearest_to_text(store, "a cat", count=3)
    assert [row["key"] for row in rows] == list(cat.keys)
    assert [float(row["score"]) for row in rows] == [float(score) for score in cat.scores]


def test_the_command_shows_a_property_beside_the_embedding_and_random_heads(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, strip, table = hs.open(labelled), tmp_path / "strip.png", tmp_path / "table.parquet"
    flags = ["--label", "places", "--count", "4", "--draws", "2", "--seed", "5"]
    out, err = run(
        capsys, "nearest", str(labelled), "--image", "4", *flags, "--out", str(strip), "--parquet", str(table)
    )
    wanted = property_neighbours(store, 4, "places", 4, 5, draws=2)
    lines = out.splitlines()
    assert lines[1:3] == ["property: L0.H0 L0.H2 L1.H0", "embedding: the whole embedding"]
    assert [line.split(":")[0] for line in lines[3:5]] == ["random 1", "random 2"]
    assert lines[5].split() == [
        "property",
        "score",
        "embedding",
        "score",
        "random",
        "1",
        "score",
        "random",
        "2",
        "score",
    ]
    first = lines[6].split()
    assert first[1::2] == [each.neighbours.keys[0] for each in wanted.columns]
    assert pq.read_table(table)["key"].to_pylist() == list(wanted._columns()["key"])
    assert "picture written to" in err
    with Image.open(strip) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.int16)
    # The query, and four columns of four pictures each.
    assert pixels.shape[1] > 5 * 160
    assert pixels.shape[0] > 4 * 160
    assert np.array_equal(pixels, np.asarray(neighbour_strips(wanted, 4).convert("RGB"), np.int16))


def test_pictures_of_a_shard_that_is_gone_are_said_and_the_rest_is_answered(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [Path(shutil.copy(shard, tmp_path)) for shard in toy_run.shards]
    store, strip = tmp_path / "run.zarr", tmp_path / "strip.png"
    hs.precompute(out=store, **toy_run.settings(shards=[str(shard) for shard in shards], emit=("heads",)))
    shards[0].unlink()
    capsys.readouterr()
    out, err = run(capsys, "nearest", str(store), "--image", "40", "--count", "66", "--out", str(strip))
    assert out.splitlines()[68].split()[0] == "66"
    notes = [line for line in err.splitlines() if "cannot be shown" in line]
    assert len(notes) == 1
    assert "30 of 67 pictures cannot be shown, but neighbours are complete: 1 of 3 shards was not found: " in notes[0]
    with Image.open(strip) as opened:
        assert opened.width > 66 * 160


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "nearest needs a query: give either --image or --text"),
        (("--image", "1", "--text", "a cat"), "nearest needs a query: give either --image or --text"),
        (("--image", "1", "--head", "L9.H0"), "--head L9.H0: there is no such head"),
        (("--image", "1", "--label", "dogs"), "no head has the label 'dogs'"),
        (("--image", "no such"), "--image no such: is neither an index"),
        (("--image", "1", "--count", "0"), "--count 0 is too small; give at least 1"),
        (("--image", "1", "--draws", "-1"), "--draws -1 is too small; give at least 0"),
        (("--image", "1", "--out", "/dev/null/a.png"), "the picture cannot be written there"),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(
    labelled: Path, flags: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(capsys, "nearest", str(labelled), *flags)


def test_a_file_that_is_no_image_is_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no image")
    assert "is no image" in refused(capsys, "nearest", str(labelled), "--image", str(file))


def test_a_store_that_may_only_be_read_answers_and_stays_as_it_was(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {
            name: ((labelled / name).stat().st_mtime_ns, (labelled / name).stat().st_size)
            for name in relative_files(labelled)
        }

    before = state()
    folders = [labelled, *(path for path in labelled.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        run(
            capsys,
            "nearest",
            str(labelled),
            "--image",
            "4",
            "--label",
            "places",
            "--out",
            os.fspath(tmp_path / "a.png"),
        )
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert state() == before
