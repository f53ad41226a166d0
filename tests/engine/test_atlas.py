"""Maps of images for embedding-atlas: positions, neighbours, pictures and texts, against dense float64 computations."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import cdist, pdist

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress, ignore
from headspan.explore.atlas import export as atlas
from headspan.explore.atlas import nearest_graph
from headspan.explore.atlas.nearest_graph import nearest_graph as graph_of
from headspan.explore.atlas.space import principal_space
from headspan.explore.atlas.strongest_heads import StrongestHeads
from headspan.store.selection import selection_of
from tests import tolerances
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files
from tests.tolerances import relative_error

TEXTS = [f"a {what} in {where}" for what in ("dog", "red car", "tree", "5 cups") for where in ("rain", "Rome", "a box")]
HEADS = (None, (0, 1), (2, 2))


def dense(store: hs.Store, head: tuple[int, int] | None) -> np.ndarray:
    """The vectors that a map is of, in joint space."""
    if head is None:
        return store.embedding.astype(np.float64) / store.norm[:, 2:]
    return store.head(*head).astype(np.float64)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("some", [False, True])
def test_positions_are_the_principal_components_of_contributions_in_joint_space(
    toy_store: hs.Store, head: tuple[int, int] | None, some: bool
) -> None:
    images = np.arange(1, 50, 2) if some else np.arange(toy_store.images)
    space = principal_space(toy_store, head, selection_of(toy_store, images) if some else None)
    centred = dense(toy_store, head)[images]
    centred -= centred.mean(axis=0)
    left, lengths, right = np.linalg.svd(centred, full_matrices=False)
    found = space.plane(toy_store.rows[images])
    for axis in range(2):
        sign = np.sign(right[axis, np.abs(right[axis]).argmax()])
        assert relative_error(found[:, axis], sign * left[:, axis] * lengths[axis]) < 2 * tolerances.FLOAT16_STORE
    np.testing.assert_allclose(space.shares[:5], (lengths**2 / (lengths**2).sum())[:5], rtol=1e-2)
    # All directions together keep every distance.
    distances = pdist(space.vectors(toy_store.rows[images]).astype(np.float64))
    assert relative_error(distances, pdist(centred)) < tolerances.FLOAT32_SUM


def test_raw_coordinates_of_a_head_would_give_another_map(toy_store: hs.Store) -> None:
    raw = toy_store.head_coordinates(2, 2).astype(np.float64) / (toy_store.norm[:, 1:2] * toy_store.norm[:, 2:])
    wrong = pdist(raw - raw.mean(axis=0))
    right = pdist(principal_space(toy_store, (2, 2)).vectors(toy_store.rows).astype(np.float64))
    assert np.corrcoef(wrong, right)[0, 1] < 0.999


@pytest.mark.parametrize("head", HEADS)
def test_texts_along_a_map_are_dot_products_with_centred_contributions(
    toy_store: hs.Store, head: tuple[int, int] | None
) -> None:
    vectors = np.random.default_rng(3).standard_normal((5, toy_store.joint)).astype(np.float32)
    centred = dense(toy_store, head)
    found = principal_space(toy_store, head).along(toy_store.rows, vectors)
    assert relative_error(found, (centred - centred.mean(axis=0)) @ vectors.T) < tolerances.FLOAT16_STORE


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    points=st.integers(2, 70),
    dimensions=st.integers(1, 6),
    count=st.integers(1, 69),
    distinct=st.integers(1, 70),
    sizes=st.tuples(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80)),
    kept=st.booleans(),
)
def test_neighbours_are_those_of_all_distances(
    seed: int, points: int, dimensions: int, count: int, distinct: int, sizes: tuple[int, int, int], kept: bool
) -> None:
    generator, count = np.random.default_rng(seed), min(count, points - 1)
    # Points that occur several times have neighbours at no distance.
    vectors = generator.standard_normal((distinct, dimensions))[generator.integers(0, distinct, points)]
    vectors = vectors.astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_QUERIES", "_TOGETHER", "_OTHERS"), sizes, strict=True):
            patch.setattr(nearest_graph, name, size)
        patch.setattr(nearest_graph, "_KEPT_BYTES", 1 << 20 if kept else 0)
        blocks = list(graph_of(vectors.__getitem__, points, dimensions, count, ignore))
    places, distances = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    every = cdist(vectors.astype(np.float64), vectors.astype(np.float64))
    np.testing.assert_allclose(distances, np.take_along_axis(every, places, 1), rtol=1e-6, atol=1e-7)
    np.fill_diagonal(every, np.inf)
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :count], rtol=1e-5, atol=1e-6)
    assert (places != np.arange(points)[:, None]).all()
    assert all(len(set(row)) == count for row in places.tolist())


@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=pytest.mark.full_size)])
def test_neighbours_of_many_points_take_bounded_memory(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_graph, "_KEPT_BYTES", 11e6 if kept else 0)
    points = 40_000

    def read(places: np.ndarray) -> np.ndarray:
        assert len(places) < 16_000
        # As if from a store, in which 40,000 points take 10 MB.
        return np.stack([np.sin(places * factor) for factor in range(1, 65)], axis=1).astype(np.float32)

    tracemalloc.start()
    places, _ = next(graph_of(read, points, 64, 3, ignore))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert places.shape == (16_384, 3)
    # All distances of a block would take 5 GB in float64, and all 2.6 GB in float32.
    assert peak < 200e6


@pytest.mark.parametrize("some", [False, True])
def test_the_strongest_head_has_the_largest_part_of_the_distance_from_the_mean(toy_store: hs.Store, some: bool) -> None:
    images = np.arange(3, 60, 4) if some else np.arange(toy_store.images)
    strongest = StrongestHeads(toy_store, selection_of(toy_store, images) if some else None)
    away = dense(toy_store, None)[images]
    away -= away.mean(axis=0)
    parts = []
    for head in strongest.heads:
        contributions = dense(toy_store, head)[images]
        parts.append(((contributions - contributions.mean(axis=0)) * away).sum(axis=1) / (away**2).sum(axis=1))
    found, shares = strongest.of(toy_store.rows[images])
    wanted = np.array(parts)
    np.testing.assert_allclose(shares, wanted.max(axis=0), atol=tolerances.FLOAT16_STORE)
    np.testing.assert_allclose(wanted[found, np.arange(len(images))], wanted.max(axis=0), atol=tolerances.FLOAT16_STORE)


@pytest.fixture(scope="module")
def described(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """The toy store with a TEXTSPAN run and labels."""
    path = tmp_path_factory.mktemp("described") / "s.zarr"
    shutil.copytree(toy_run.path, path)
    store = hs.open(path)
    pool = hs.Pool("annotated", tuple(TEXTS), tuple(text.split(" in ")[0] for text in TEXTS))
    hs.concepts.label_heads(store, hs.textspan(store, pool, 5, draws=0, run="one"), save=True)
    return store


def test_an_atlas_of_a_head_has_all_columns_in_the_order_of_the_store(described: hs.Store, tmp_path: Path) -> None:
    before = relative_files(described.path)
    done = hs.explore.export_atlas(described, tmp_path / "a.parquet", (2, 1), neighbours=4)
    assert (done.images, done.format, done.stored_bytes) == (67, "atlas", done.path.stat().st_size)
    assert relative_files(described.path) == before
    table, samples = pd.read_parquet(done.path), described.samples()
    assert list(table) == ["row", "key", "caption", "class", "x", "y", "text", "image", "neighbors"]
    for name in ("row", "key", "caption"):
        assert table[name].tolist() == samples[name].to_pylist()
    assert table["class"].isna().all()
    plane = principal_space(described, (2, 1)).plane(described.rows)
    np.testing.assert_array_equal(table[["x", "y"]].to_numpy(), plane.astype(np.float32))
    # Ids are places in the file, as embedding-atlas counts them.
    distances = cdist(*[dense(described, (2, 1))] * 2)
    np.fill_diagonal(distances, np.inf)
    for place, found in enumerate(table["neighbors"]):
        assert sorted(found["ids"].tolist()) == sorted(distances[place].argsort()[:4].tolist())
        np.testing.assert_allclose(found["distances"], np.sort(distances[place])[:4], rtol=1e-4)
    spans = hs.spans.read_spans(described, "one")
    vectors = hs.text_vectors(described, spans.texts(2, 1, 5))
    centred = dense(described, (2, 1))
    along = (centred - centred.mean(axis=0)) @ vectors.T
    assert table["text"].tolist() == np.array(spans.texts(2, 1, 5))[along.argmax(axis=1)].tolist()
    about = json.loads(pq.read_schema(done.path).metadata[b"headspan"])
    assert (about["map_of"], about["run"], about["images"]) == ("L2.H1", "one", "all images")


def test_an_atlas_of_the_embedding_names_the_strongest_head_and_its_label(described: hs.Store, tmp_path: Path) -> None:
    chosen = described.select(words="caption").images(described)[5:40]
    done = hs.explore.export_atlas(described, tmp_path / "a.parquet", images=chosen, pictures=False)
    table = pl.read_parquet(done.path)
    assert table.columns == [*("row", "key", "caption", "class", "x", "y", "head", "head_share", "label"), "neighbors"]
    assert table["row"].to_list() == described.rows[chosen].tolist()
    strongest = StrongestHeads(described, selection_of(described, chosen))
    places, shares = strongest.of(described.rows[chosen])
    labels = hs.concepts.read_labels(described, "one")
    assert table["head"].to_list() == ["L{}.H{}".format(*strongest.heads[place]) for place in places]
    assert table["label"].to_list() == [labels.name(*strongest.heads[place]) for place in places]
    np.testing.assert_array_equal(table["head_share"].to_numpy(), shares)
    assert table["neighbors"].struct.field("ids").list.len().to_list() == [15] * 35


def test_pictures_are_those_that_read_pictures_returns(toy_store: hs.Store, tmp_path: Path) -> None:
    done = hs.explore.export_atlas(toy_store, tmp_path / "a.parquet", (0, 0), images=[3, 40], neighbours=0)
    table = pq.read_table(done.path).to_pylist()
    assert set(table[0]["image"]) == {"bytes", "path"}
    for row, wanted in zip(table, hs.read_pictures(toy_store, [3, 40]), strict=True):
        assert row["image"]["path"] == toy_store.samples([3, 40])["member"].to_pylist()[table.index(row)]
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert image.format == "WEBP"
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), wanted)
    # No TEXTSPAN run, so no text.
    assert set(table[0]) == {"row", "key", "caption", "class", "x", "y", "image"}


@pytest.mark.parametrize("block", [1, 16])
def test_blocks_of_rows_change_nothing(
    described: hs.Store, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hs.explore.export_atlas(described, tmp_path / "whole.parquet", neighbours=3)
    monkeypatch.setattr(atlas, "_BLOCK_ROWS", block)
    monkeypatch.setattr(nearest_graph, "_QUERIES", 16)
    parts = hs.explore.export_atlas(described, tmp_path / "parts.parquet", neighbours=3)
    one, other = pq.read_table(whole.path), pq.read_table(parts.path)
    assert pq.ParquetFile(parts.path).num_row_groups == -(-67 // block)
    exact = ["row", "key", "caption", "class", "head", "label", "image"]
    assert one.select(exact).equals(other.select(exact))
    for name in ("x", "y", "head_share"):
        np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=1e-4, atol=1e-6)


def test_a_shard_that_is_gone_leaves_its_pictures_out_and_says_so(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [Path(shutil.copy(shard, tmp_path)) for shard in toy_run.shards]
    path = tmp_path / "s.zarr"
    hs.precompute(out=path, **toy_run.settings(shards=list(map(str, shards)), emit=("heads",)))
    shards[2].unlink()
    notes: list[str] = []
    done = hs.explore.export_atlas(path, tmp_path / "a.parquet", on_progress=lambda event: notes.append(event.note))
    images = pq.read_table(done.path)["image"].to_pylist()
    assert [image is None for image in images] == [row >= 32 for row in hs.open(path).rows]
    gone, note = filter(None, notes)
    assert gone.startswith("1 of 3 shards was not found: ")
    assert note.startswith("36 images could not be read and have no picture (first: ")
    assert main(["export", str(path), "--to", str(tmp_path / "b.parquet"), "--atlas"]) == 0
    shown = capsys.readouterr()
    assert "36 images could not be read and have no picture" in shown.err
    assert f"open it with embedding-atlas {tmp_path}/b.parquet --x x --y y --text caption --image image" in shown.out
    # A shard that is named and not there is a mistake in the call.
    assert main(["export", str(path), "--to", str(tmp_path / "c.parquet"), "--atlas", "--shards", str(shards[2])]) == 2
    assert not (tmp_path / "c.parquet").exists()


def test_failed_images_are_left_out_even_of_a_store_that_shows_them(toy_run: ToyRun, tmp_path: Path) -> None:
    store = hs.open(toy_run.path, include_failed=True)
    done = hs.explore.export_atlas(store, tmp_path / "a.parquet", pictures=False, neighbours=0)
    assert set(range(70)) - set(pq.read_table(done.path)["row"].to_pylist()) == set(BROKEN_ROWS)


def test_neighbours_of_many_images_are_found_only_on_request(
    toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "NEIGHBOURS_UP_TO", 66)
    notes: list[Progress] = []
    for number, (asked, has) in enumerate(((None, False), (5, True), (0, False))):
        done = hs.explore.export_atlas(
            *(toy_store, tmp_path / f"{number}.parquet"), pictures=False, neighbours=asked, on_progress=notes.append
        )
        assert ("neighbors" in pq.read_schema(done.path).names) is has
    (note,) = filter(None, (event.note for event in notes))
    assert note == (
        "no neighbours are written: to find them, every pair of 67 images is compared; --neighbours 15 does so"
    )


def test_several_runs_are_named_and_none_is_written(described: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(described.path, path)
    store, notes = hs.open(path), []
    hs.textspan(store, TEXTS, 3, draws=0, run="two")
    done = hs.explore.export_atlas(
        *(store, tmp_path / "a.parquet", (0, 0)), pictures=False, on_progress=lambda event: notes.append(event.note)
    )
    assert "text" not in pq.read_schema(done.path).names
    assert "no texts are written: name one of the textspan runs (one, two) with --run" in notes
    named = hs.explore.export_atlas(store, tmp_path / "b.parquet", (0, 0), pictures=False, run="two")
    assert set(pq.read_table(named.path)["text"].to_pylist()) <= set(hs.spans.read_spans(store, "two").texts(0, 0))
    with pytest.raises(StoreError, match="holds no textspan run 'three'"):
        hs.explore.export_atlas(store, tmp_path / "c.parquet", (0, 0), run="three")
    assert not (tmp_path / "c.parquet").exists()


def test_maps_that_cannot_be_written_are_refused_before_any_work(toy_store: hs.Store, tmp_path: Path) -> None:
    there = tmp_path / "there.parquet"
    there.write_bytes(b"mine")
    refusals = (
        ({"to": tmp_path / "a.csv"}, SettingsError, "an atlas is a Parquet file, so end its name in .parquet"),
        ({"to": there}, StoreError, "already exists; give --overwrite"),
        ({"to": toy_store.path / "a.parquet"}, StoreError, "is in the store itself"),
        ({"to": tmp_path / "a.parquet", "head": (0, 9)}, SettingsError, "head 9 does not exist"),
        ({"to": tmp_path / "a.parquet", "head": (7, 0)}, SettingsError, "layer 7 is not stored"),
        (
            {"to": tmp_path / "a.parquet", "images": [5]},
            SettingsError,
            "the embeddings do not vary over 1 of",
        ),
        ({"to": tmp_path / "a.parquet", "images": [5], "head": (0, 1)}, SettingsError, "L0.H1 does not vary over 1 of"),
        ({"to": tmp_path / "a.parquet", "images": []}, SettingsError, "the list of images is empty"),
        ({"to": tmp_path / "a.parquet", "neighbours": 67}, SettingsError, "67 neighbours among 67 images"),
        ({"to": tmp_path / "a.parquet", "neighbours": -1}, SettingsError, "-1 neighbours among 67 images"),
    )
    for given_, error, message in refusals:
        with pytest.raises(error, match=message):
            hs.explore.export_atlas(toy_store, **given_)
    assert [path.name for path in tmp_path.iterdir()] == ["there.parquet"]
    hs.explore.export_atlas(toy_store, there, pictures=False, images=[3, 4], overwrite=True)
    assert pq.read_table(there)["row"].to_pylist() == toy_store.rows[[3, 4]].tolist()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--atlas", "--arrays", "heads"], "--arrays and --atlas: a map has columns of its own"),
        (["--atlas", "--layers", "last2"], "--layers and --atlas"),
        (["--atlas", "--format", "npy"], "--format and --atlas"),
        (["--atlas", "--include-failed"], "--include-failed and --atlas"),
        (["--atlas", "--head", "L0.H0", "--head", "L0.H1"], "--atlas is a map of one head"),
        (["--words", "caption"], "--words belongs to a map of images: add --atlas"),
        (["--class", "3"], "--class belongs to a map of images: add --atlas"),
        (["--neighbours", "0"], "--neighbours belongs to a map of images: add --atlas"),
        (["--run", "x"], "--run belongs to a map of images: add --atlas"),
    ],
)
def test_flags_that_contradict_one_another_are_refused(
    toy_run: ToyRun, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(toy_run.path), "--to", str(tmp_path / "a.parquet"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_maps_a_head_over_selected_images(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("00001\n00040\n00041\n")
    command = ["export", str(toy_run.path), "--to", str(tmp_path / "a.parquet"), "--atlas", "--head", "L2.H0"]
    assert main([*command, "--keys", str(keys), "--no-pictures", "--neighbours", "2"]) == 0
    assert "3 images, 0.0 MB written to" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["key"].to_pylist() == ["00001", "00040", "00041"]
    assert [sorted(found["ids"]) for found in table["neighbors"].to_pylist()] == [[1, 2], [0, 2], [0, 1]]
