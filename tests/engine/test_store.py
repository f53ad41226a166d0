"""Read stores: shapes and alignment of arrays, unfinished and damaged stores, and error messages."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from zarr.core.metadata import ArrayV3Metadata

import headspan as hs
from headspan.decompose.moments import Moments
from headspan.errors import SettingsError, StoreError
from headspan.shards.samples import BadImage, Sample, SampleSpan
from headspan.store import reader
from headspan.store.schema import FORMAT
from headspan.store.tables import read_spans, rows_of_keys
from headspan.store.write.sample_tables import divide_samples, write_samples
from tests import tolerances
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files, zarr_array
from tests.tolerances import relative_error

IMAGES, PLANNED, LAYERS, HEADS, HEAD_DIM, TOKENS, JOINT = 67, 70, 3, 3, 16, 17, 24
GOOD_ROWS = [row for row in range(PLANNED) if row not in BROKEN_ROWS]
COMMITS = Path("records") / "commits"


@pytest.fixture
def unfinished(toy_copy: Path) -> Path:
    """The toy store before its middle unit (rows 32 to 63) got its record; its shards are there."""
    commits = toy_copy / COMMITS
    (commits / "complete.json").unlink()
    (group,) = commits.glob("group-*.json")
    records = json.loads(group.read_text())
    group.unlink()
    good = np.asarray(zarr_array(toy_copy, "ok")[...]) == 1
    for record in records:
        if record["unit"] != 1:
            rows = np.arange(record["first_row"], record["first_row"] + record["rows"])
            rows = rows[good[rows]]
            moments = Moments.zeros(LAYERS, HEADS, HEAD_DIM, torch.device("cpu"))
            heads, norm = (np.asarray(zarr_array(toy_copy, name)[...])[rows] for name in ("heads", "norm"))
            moments.add(torch.from_numpy(heads).float(), torch.from_numpy(norm))
            count, total, gram = moments.arrays()
            upper = np.triu_indices(gram.shape[-1])
            name = f"unit-{record['unit']:08d}"
            with (commits / f"{name}.moments").open("wb") as file:
                np.savez(file, count=count, total=total, upper=gram[..., upper[0], upper[1]])
            (commits / f"{name}.json").write_text(json.dumps([record]))
    return toy_copy


def test_a_store_is_read_without_torch(toy_run: ToyRun) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'open_clip', 'triton', 'torchvision'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import headspan as hs\n"
        "store = hs.open(sys.argv[1])\n"
        "parts = [store.head(2, 1), store.patches(0, 2), store.mlps('per_term'), store.biases(), store.embedding]\n"
        "print(store.images, store.moments().count, store.samples().num_rows, *(part.ndim for part in parts))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(toy_run.path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["67", "67", "67", "2", "3", "3", "3", "2"]


def test_every_public_number_has_its_shape_and_type(toy_store: hs.Store) -> None:
    assert (toy_store.images, toy_store.planned_images) == (IMAGES, PLANNED)
    assert (toy_store.layers, toy_store.all_layers, toy_store.heads_per_layer) == ((0, 1, 2), LAYERS, HEADS)
    assert (toy_store.head_dim, toy_store.tokens, toy_store.joint) == (HEAD_DIM, TOKENS, JOINT)
    assert toy_store.complete
    shapes = {
        "embedding": (toy_store.embedding, (IMAGES, JOINT)),
        "norm": (toy_store.norm, (IMAGES, 3)),
        "heads": (toy_store.head(2, 2), (IMAGES, JOINT)),
        "heads per_term": (toy_store.head(0, 0, convention="per_term", normalised=False), (IMAGES, JOINT)),
        "head_coordinates": (toy_store.head_coordinates(1, 2), (IMAGES, HEAD_DIM)),
        "head_directions": (toy_store.head_directions(1, 2), (HEAD_DIM + 3, JOINT)),
        "head_directions per_term": (toy_store.head_directions(1, 2, "per_term"), (HEAD_DIM + 3, JOINT)),
        "patches": (toy_store.patches(66, 1), (TOKENS, HEADS, JOINT)),
        "patch_coordinates": (toy_store.patch_coordinates(0, 1), (TOKENS, HEADS, HEAD_DIM)),
        "mlps": (toy_store.mlps(), (IMAGES, LAYERS + 1, JOINT)),
        "mlps per_term": (toy_store.mlps("per_term", normalised=False), (IMAGES, LAYERS + 1, JOINT)),
        "biases": (toy_store.biases(), (IMAGES, LAYERS + 1, JOINT)),
    }
    for name, (values, shape) in shapes.items():
        assert values.shape == shape, name
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name
    moments = toy_store.moments()
    assert moments.total.shape == (LAYERS, HEADS, HEAD_DIM + 3)
    assert moments.gram.shape == (LAYERS, HEADS, HEAD_DIM + 3, HEAD_DIM + 3)
    assert moments.total.dtype == moments.gram.dtype == np.float64
    assert "67 images, layers 0-2, 3 heads of 16, joint 24" in repr(toy_store)


def test_rows_samples_and_arrays_count_the_same_images(toy_run: ToyRun) -> None:
    for include_failed, rows in ((False, GOOD_ROWS), (True, list(range(PLANNED)))):
        store = hs.open(toy_run.path, include_failed=include_failed)
        assert store.rows.tolist() == rows
        assert store.samples()["row"].to_pylist() == rows
        asked = [[5, 0, 69], [-1, PLANNED, 66]]
        wanted = [[rows.index(row) if row in rows else -1 for row in line] for line in asked]
        assert store.images_of_rows(np.array(asked)).tolist() == wanted
        assert store.images_of_rows(store.rows[::-1]).tolist() == list(range(len(rows)))[::-1]
        assert store.samples()["caption"].to_pylist() == [f"caption {row}" for row in rows]
        assert [int(key) for key in store.samples()["key"].to_pylist()] == rows
        assert len(store.embedding) == len(store.head(0, 0)) == len(store.mlps()) == store.images == len(rows)


def test_samples_reads_only_the_named_images_in_the_order_given(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    every = store.samples()
    for images in ([], [66], [40, 3, 3, -1], range(67)):
        assert store.samples(images).equals(every.take(np.array(images, np.int64) % 67))
    mask = np.arange(67) % 30 == 4
    assert store.samples(mask).equals(every.filter(pa.array(mask)))
    read: list[int] = []
    plain = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
        read.append(group)
        return plain(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    store.samples([66, 65])
    # Only the last of three units of 32.
    assert read == [2]
    for other in ([67], np.ones(66, bool)):
        with pytest.raises(SettingsError, match=r"do not all exist .*; count from 0 to 66, or give a mask"):
            store.samples(other)


def test_the_numbers_of_each_image_are_its_own(toy_store: hs.Store, toy_exact: dict[str, np.ndarray]) -> None:
    # Only the same batches would give the same bits.
    assert relative_error(toy_store.embedding, toy_exact["embedding"]) < tolerances.FLOAT32_SUM
    assert relative_error(toy_store.norm, toy_exact["norm"]) < tolerances.FLOAT32_SUM
    for image in (0, 4, 5, 31, 32, 66):
        assert relative_error(toy_store.embedding[image], toy_exact["embedding"][image]) < tolerances.FLOAT32_SUM
        found = toy_store.patch_coordinates(image, 1).swapaxes(0, 1)
        assert relative_error(found, toy_exact["patches"][image, 1]) < tolerances.FLOAT16_STORE
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        found = toy_store.head_coordinates(layer, head)
        assert relative_error(found, toy_exact["heads"][:, layer, head]) < tolerances.FLOAT16_STORE


@pytest.mark.parametrize("convention", ["uniform", "per_term"])
@pytest.mark.parametrize("normalised", [True, False])
def test_all_terms_sum_to_the_embeddings(toy_store: hs.Store, convention: str, normalised: bool) -> None:
    total = toy_store.mlps(convention, normalised).sum(axis=1)
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        total += toy_store.head(layer, head, convention, normalised)
    if convention == "per_term":
        total += toy_store.biases(normalised).sum(axis=1)
    wanted = toy_store.embedding / toy_store.norm[:, 2:] if normalised else toy_store.embedding
    assert relative_error(total, wanted) < tolerances.FLOAT16_STORE


@pytest.mark.parametrize("convention", ["uniform", "per_term"])
def test_patches_sum_to_their_heads(toy_store: hs.Store, convention: str) -> None:
    for image, layer in ((0, 0), (5, 2), (66, 1)):
        patches = toy_store.patches(image, layer, convention)
        heads = np.stack([toy_store.head(layer, head, convention)[image] for head in range(HEADS)])
        assert relative_error(patches.sum(axis=0), heads) < tolerances.FLOAT16_STORE


def test_images_can_be_counted_from_the_end(toy_store: hs.Store) -> None:
    assert (toy_store.patches(-1, 2) == toy_store.patches(66, 2)).all()


def test_images_that_failed_are_nan_rows_on_request(toy_run: ToyRun, toy_store: hs.Store) -> None:
    store = hs.open(toy_run.path, include_failed=True)
    failed = list(BROKEN_ROWS)
    for values in (store.embedding, store.norm, store.head(1, 1), store.mlps(), store.biases()):
        # The final norm's bias is the same for all images, but is not shown for failed ones.
        assert np.isnan(values[failed]).reshape(len(failed), -1).any(axis=1).all()
        assert np.isfinite(values[GOOD_ROWS]).all()
    assert np.isnan(store.patches(5, 0)).all()
    assert (store.head_coordinates(1, 1)[GOOD_ROWS] == toy_store.head_coordinates(1, 1)).all()
    # A product with more rows may be added in another order.
    assert relative_error(store.head(1, 1)[GOOD_ROWS], toy_store.head(1, 1)) < tolerances.FLOAT32_SUM
    assert store.moments().count == IMAGES


def test_moments_equal_those_of_float32_numbers_and_are_close_to_those_of_stored_ones(
    toy_store: hs.Store, toy_exact: dict[str, np.ndarray]
) -> None:
    moments = toy_store.moments()
    assert moments.count == IMAGES
    mu, s, length = toy_store.norm.astype(np.float64).T
    mean_and_bias = np.stack([1 / s, mu / s, np.ones_like(s)], axis=1) / length[:, None]
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        from_float32 = toy_exact["heads"][:, layer, head].astype(np.float64) / (s * length)[:, None]
        from_float16 = toy_store.head_coordinates(layer, head).astype(np.float64) / (s * length)[:, None]
        for heads, tolerance in (
            (from_float32, tolerances.FLOAT32_SUM),
            (from_float16, tolerances.FLOAT16_STORE),
        ):
            rows = np.concatenate([heads, mean_and_bias], axis=1)
            assert relative_error(moments.total[layer, head], rows.sum(axis=0)) < tolerance
            assert relative_error(moments.gram[layer, head], rows.T @ rows) < tolerance


def test_the_mean_contribution_follows_from_the_moments(toy_store: hs.Store) -> None:
    moments = toy_store.moments()
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        mean = moments.total[layer, head] / moments.count @ toy_store.head_directions(layer, head)
        assert relative_error(mean, toy_store.head(layer, head).mean(axis=0)) < tolerances.FLOAT16_STORE


def test_zarr_alone_reads_the_group_and_its_attributes(toy_run: ToyRun, toy_config: Path) -> None:
    dims = {
        "ok": ("image",),
        "embedding": ("image", "joint"),
        "norm": ("image", "statistic"),
        "heads": ("image", "layer", "head", "head_dim"),
        "patches": ("image", "layer", "head", "token", "head_dim"),
        "mlps": ("image", "term", "joint"),
        "mlp_means": ("image", "term"),
        "moments/sum": ("layer", "head", "coordinate"),
        "moments/gram": ("layer", "head", "coordinate", "coordinate_2"),
        "moments/embedding_sum": ("joint",),
        "moments/embedding_gram": ("joint", "joint_2"),
        "model/head_to_joint": ("layer", "head", "head_dim", "joint"),
    }
    for name, names in dims.items():
        array = zarr_array(toy_run.path, name)
        assert isinstance(array.metadata, ArrayV3Metadata)
        assert array.metadata.dimension_names == names
        assert len(names) == array.ndim
    assert all(zarr_array(toy_run.path, name).dtype == np.float16 for name in ("heads", "patches", "mlps"))
    assert zarr_array(toy_run.path, "heads").shape == (PLANNED, LAYERS, HEADS, HEAD_DIM)
    assert np.flatnonzero(np.asarray(zarr_array(toy_run.path, "ok")[...]) == 0).tolist() == list(BROKEN_ROWS)
    about: Any = zarr.open_group(toy_run.path, mode="r").attrs["headspan"]
    assert about["format"] == FORMAT
    assert about["model"] == str(toy_config)
    assert len(about["weights_sha256"]) == 64
    assert about["preprocess"]["size"] == [32, 32]
    assert about["precision"] == "fp32"
    assert about["emit"] == ["heads", "patches", "mlps"]
    assert set(about["units"]) >= {"heads", "patches", "mlps", "norm", "embedding"}


def test_a_finished_store_contains_no_stray_files(toy_run: ToyRun) -> None:
    names = [path.name for path in toy_run.path.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(".")]
    assert sorted(path.name for path in (toy_run.path / COMMITS).iterdir()) == [
        "complete.json",
        "group-000000.json",
        "group-000000.moments",
        "planned.json",
    ]
    assert [path for path in toy_run.path.parent.iterdir() if path != toy_run.path] == []


def test_a_commit_record_names_the_files_of_its_unit(toy_run: ToyRun, toy_store: hs.Store) -> None:
    rows = [(record.unit, record.first_row, record.rows, record.images) for record in toy_store.contents.records]
    assert rows == [(0, 0, 32, 31), (1, 32, 32, 31), (2, 64, 6, 5)]
    named = [name for record in toy_store.contents.records for name in record.files]
    assert len(named) == len(set(named))
    arrays = ("ok", "embedding", "norm", "heads", "patches", "mlps", "mlp_means")
    there = [str(path.relative_to(toy_run.path)) for name in arrays for path in (toy_run.path / name).rglob("c/*/**/*")]
    files = {name for name in there if (toy_run.path / name).is_file()}
    files |= {f"ok/c/{path.name}" for path in (toy_run.path / "ok" / "c").iterdir()}
    assert files == set(named)
    for record in toy_store.contents.records:
        for name, (size, _) in record.files.items():
            assert (toy_run.path / name).stat().st_size == size


def test_bad_images_are_listed_with_shard_key_and_reason(toy_run: ToyRun, toy_store: hs.Store) -> None:
    bad = toy_store.bad_images()
    assert [image.row for image in bad] == list(BROKEN_ROWS)
    urls = [str(toy_run.shards[n]) for n in (0, 2, 2)]
    assert [image.url for image in bad] == urls
    assert [image.key for image in bad] == [f"{row:05d}" for row in BROKEN_ROWS]
    assert all(isinstance(image, BadImage) and image.reason for image in bad)


def test_an_unfinished_store_shows_only_committed_rows(unfinished: Path, toy_store: hs.Store) -> None:
    store = hs.open(unfinished)
    rows = [row for row in GOOD_ROWS if not 32 <= row < 64]
    assert store.rows.tolist() == rows
    assert not store.complete
    assert store.samples()["row"].to_pylist() == rows
    kept = np.isin(toy_store.rows, rows)
    assert (store.head_coordinates(2, 1) == toy_store.head_coordinates(2, 1)[kept]).all()
    assert relative_error(store.head(2, 1), toy_store.head(2, 1)[kept]) < tolerances.FLOAT32_SUM
    assert [image.row for image in store.bad_images()] == [5, 69]


def test_the_moments_of_an_unfinished_store_cover_its_committed_rows(unfinished: Path) -> None:
    store = hs.open(unfinished)
    moments = store.moments()
    assert moments.count == store.images == 36
    mean = moments.total[1, 2] / moments.count @ store.head_directions(1, 2)
    assert relative_error(mean, store.head(1, 2).mean(axis=0)) < tolerances.FLOAT16_STORE


def test_rows_of_an_uncommitted_unit_are_nan_even_if_its_shards_have_numbers(unfinished: Path) -> None:
    store = hs.open(unfinished, include_failed=True)
    assert store.images == PLANNED
    assert np.isnan(store.embedding[32:64]).all()
    assert np.isnan(store.head_coordinates(0, 0)[32:64]).all()


def test_a_store_without_finished_units_is_empty_and_has_no_moments(unfinished: Path) -> None:
    for path in (unfinished / COMMITS).iterdir():
        path.unlink()
    store = hs.open(unfinished)
    assert store.images == 0
    assert not store.complete
    assert store.head(0, 0).shape == (0, JOINT)
    assert store.images_of_rows(np.array([0, -1])).tolist() == [-1, -1]
    assert store.samples().num_rows == 0
    with pytest.raises(StoreError, match=r"copy\.zarr: no unit is finished yet; run the same precompute command"):
        store.moments()
    with pytest.raises(SettingsError, match=r"copy\.zarr"):
        store.patches(0, 0)


def test_the_error_about_a_truncated_array_of_usable_images_names_the_check(toy_copy: Path) -> None:
    (toy_copy / "ok" / "c" / "1").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"copy\.zarr: ok cannot be read .*; headspan verify says which unit"):
        hs.open(toy_copy)


def test_the_error_about_a_damaged_commit_record_names_it(unfinished: Path) -> None:
    record = unfinished / COMMITS / "unit-00000000.json"
    record.write_text(record.read_text()[:50])
    with pytest.raises(StoreError, match=r"unit-00000000\.json: this commit record is damaged .*; run headspan repair"):
        hs.open(unfinished)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip"])
def test_the_error_about_damaged_moments_names_their_file(unfinished: Path, damage: bytes) -> None:
    (unfinished / COMMITS / "unit-00000000.moments").write_bytes(damage)
    with pytest.raises(StoreError, match=r"unit-00000000\.moments: these moments are damaged"):
        hs.open(unfinished).moments()


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (3, r"toy\.zarr: layer 3 is not stored; stored are 0-2 of the model's 3"),
        (-1, r"toy\.zarr: layer -1 does not exist; layers count from 0 to 2, never from the end"),
    ],
)
def test_the_error_about_a_missing_layer_lists_the_stored_ones(layer: int, wanted: str, toy_store: hs.Store) -> None:
    asks: list[Callable[[], object]] = [
        lambda: toy_store.head(layer, 0),
        lambda: toy_store.heads([0, layer]),
        lambda: toy_store.head_coordinates(layer, 0),
        lambda: toy_store.head_directions(layer, 0),
        lambda: toy_store.patches(0, layer),
    ]
    for ask in asks:
        with pytest.raises(SettingsError, match=wanted):
            ask()


def test_heads_returns_what_head_returns_for_each_head(toy_store: hs.Store) -> None:
    found = toy_store.heads([2, 0], convention="per_term", normalised=False)
    assert (found.shape, found.dtype) == ((toy_store.images, 2, HEADS, JOINT), np.float32)
    for place, layer in enumerate((2, 0)):
        for head in range(HEADS):
            wanted = toy_store.head(layer, head, "per_term", normalised=False)
            np.testing.assert_array_equal(found[:, place, head], wanted)
    assert toy_store.heads().shape == (toy_store.images, 3, HEADS, JOINT)
    total = toy_store.heads().sum(axis=(1, 2)) + toy_store.mlps().sum(axis=1)
    unit = toy_store.embedding / toy_store.norm[:, 2:]
    np.testing.assert_allclose(total, unit, rtol=0, atol=tolerances.FLOAT16_STORE)


def test_the_error_about_too_many_heads_says_how_large_they_are(
    toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * toy_store.images * 2 * HEADS * JOINT
    monkeypatch.setattr(reader, "memory_bytes", lambda: needed)
    assert toy_store.heads([0, 1]).nbytes == needed
    monkeypatch.setattr(reader, "memory_bytes", lambda: needed - 1)
    with pytest.raises(SettingsError, match=r"6 heads to 67 images take .* GB.* call head\(layer, head\)"):
        toy_store.heads([0, 1])


def test_a_notebook_shows_a_store_as_a_table(toy_store: hs.Store) -> None:
    page = toy_store._repr_html_()
    for wanted in ("<td>67 of 70 planned</td>", "<td>0-2 of 3</td>", "<td>ok, embedding, norm, heads, patches, mlps"):
        assert wanted in page


@pytest.mark.parametrize("head", [3, -1, 257])
def test_the_error_about_a_head_out_of_range_gives_the_range(toy_store: hs.Store, head: int) -> None:
    with pytest.raises(SettingsError, match=rf"toy\.zarr: head {head} does not exist; a layer's heads are 0 to 2"):
        toy_store.head(0, head)


@pytest.mark.parametrize("image", [67, -68])
def test_the_error_about_an_image_out_of_range_gives_the_range(toy_store: hs.Store, image: int) -> None:
    with pytest.raises(SettingsError, match=rf"toy\.zarr: image {image} does not exist; images count from 0 to 66"):
        toy_store.patches(image, 0)


def test_an_unknown_convention_is_refused(toy_store: hs.Store) -> None:
    for ask in (
        lambda: toy_store.head(0, 0, "odd"),
        lambda: toy_store.mlps("odd"),
        lambda: toy_store.patches(0, 0, "odd"),
    ):
        with pytest.raises(SettingsError, match=r"convention 'odd' is unknown; use 'uniform'"):
            ask()


def test_the_error_about_a_missing_array_names_the_flag_that_emits_it(toy_run: ToyRun, tmp_path: Path) -> None:
    hs.precompute(out=tmp_path / "heads.zarr", **toy_run.settings(emit=("heads",), layers="1"))
    store = hs.open(tmp_path / "heads.zarr")
    with pytest.raises(SettingsError, match=r"heads\.zarr: holds no patches; precompute with --emit heads,patches"):
        store.patches(0, 1)
    with pytest.raises(SettingsError, match=r"heads\.zarr: holds no mlps; precompute with --emit heads,mlps"):
        store.mlps()
    with pytest.raises(SettingsError, match=r"layer 2 is not stored; stored are 1 of the model's 3"):
        store.head(2, 0)
    # The biases depend only on the model.
    assert store.biases().shape == (IMAGES, LAYERS + 1, JOINT)
    assert "patches" not in store.group


def test_a_store_of_one_layer_has_the_numbers_of_a_store_of_all(
    toy_run: ToyRun, toy_store: hs.Store, tmp_path: Path
) -> None:
    hs.precompute(out=tmp_path / "some.zarr", **toy_run.settings(layers="0,2", emit=("patches",)))
    store = hs.open(tmp_path / "some.zarr")
    assert store.layers == (0, 2)
    for layer, convention in itertools.product((0, 2), ("uniform", "per_term")):
        assert relative_error(store.head(layer, 1, convention), toy_store.head(layer, 1, convention)) < 1e-6
        assert relative_error(store.patches(3, layer, convention), toy_store.patches(3, layer, convention)) < 1e-6


@pytest.mark.parametrize("kind", ["missing", "file", "folder", "foreign group", "array of a store"])
def test_the_error_about_a_path_without_a_store_is_one_sentence(kind: str, toy_run: ToyRun, tmp_path: Path) -> None:
    path, wanted = tmp_path / "it", r"is not a headspan store; give the path that"
    if kind == "missing":
        wanted = r"no such folder; give the path that `headspan precompute --out` wrote"
    elif kind == "file":
        path.write_text("x")
    elif kind == "folder":
        path.mkdir()
    elif kind == "foreign group":
        zarr.create_group(store=path, zarr_format=3)
        wanted = r"is a Zarr group, but not a headspan store"
    else:
        shutil.copytree(toy_run.path / "heads", path)
        wanted = r"headspan"
    with pytest.raises(StoreError, match=rf"it: .*{wanted}|it: {wanted}"):
        hs.open(path)


def test_the_error_about_a_newer_format_names_the_version_that_wrote_it(toy_copy: Path) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    metadata["attributes"]["headspan"] |= {"format": FORMAT + 1, "version": "9.1"}
    (toy_copy / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(
        StoreError,
        match=rf"copy\.zarr: format {FORMAT + 1}, this headspan reads {FORMAT}; precompute again or use headspan 9\.1",
    ):
        hs.open(toy_copy)


def test_a_missing_shard_of_a_committed_unit_reads_as_nan(toy_copy: Path) -> None:
    (toy_copy / "embedding" / "c" / "1" / "0").unlink()
    store = hs.open(toy_copy)
    second = (store.rows >= 32) & (store.rows < 64)
    assert np.isnan(store.embedding[second]).all()
    assert np.isfinite(store.embedding[~second]).all()


def test_pyarrow_alone_reads_the_samples(toy_run: ToyRun) -> None:
    (file,) = (toy_run.path / "records" / "samples").glob("*.parquet")
    with pq.ParquetFile(file) as parquet:
        assert parquet.metadata.num_rows == PLANNED
        assert [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)] == [32, 32, 6]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pretrained", 5),
        ("model", None),
        ("model_config", "x"),
        ("model_config", None),
        ("preprocess", [1]),
        ("made_with", "x"),
        ("dimensions", []),
        ("emit", "heads"),
        ("image_size", "224"),
        ("weights_sha256", {"a": "b" * 100}),
    ],
)
def test_the_error_about_an_attribute_of_another_type_is_one_sentence(name: str, value: object, toy_copy: Path) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    metadata["attributes"]["headspan"][name] = value
    (toy_copy / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(
        StoreError, match=rf"zarr\.json: the attribute {name} is .*, which headspan does not write; run head"
    ):
        hs.open(toy_copy)


@pytest.mark.parametrize("images", [1, 3, 5, 32, 999])
def test_spans_have_the_samples_of_a_unit_and_their_shards(tmp_path: Path, images: int) -> None:
    samples = [
        Sample(
            row,
            f"key {row}",
            "a.tar" if row < 4 else "b.tar" if row < 20 else "c.tar",
            f"{row}.jpg",
            row * 512,
            row % 7,
        )
        for row in range(41)
    ]
    write_samples(tmp_path, samples, 32)
    for unit, unit_samples in enumerate((samples[:32], samples[32:])):
        found = list(read_spans(tmp_path, unit, images))
        assert [len(span) for span in found[:-1]] == [images] * (len(found) - 1)
        rows = [row for span in found for row in span.rows.tolist()]
        assert rows == [sample.row for sample in unit_samples]
        images_found = [
            (url, *image)
            for span in found
            for url, first, end in span.parts(0, len(span))
            for image in zip(*span.wanted(first, end, with_members=True), strict=True)
        ]
        assert images_found == [(s.url, s.offset, s.size_bytes, s.member) for s in unit_samples]
        bad = [span.bad_image(place, "why") for span in found for place in range(len(span))]
        assert [(image.row, image.key, image.url) for image in bad] == [(s.row, s.key, s.url) for s in unit_samples]
        for span in found:
            assert SampleSpan.of([samples[row] for row in span.rows.tolist()]).runs == span.runs


@pytest.mark.parametrize("images", [1, 64, 65, 16_384, 20_001])
def test_divided_samples_are_the_files_that_smaller_units_would_have_had(tmp_path: Path, images: int) -> None:
    # Captions and labels are missing here and there, and in all of some units.
    samples = [
        Sample(
            row,
            f"key {row}",
            f"{row // 999}.tar",
            "x",
            row * 512,
            row % 7,
            None if row % 3 else f"caption {row % 50}",
            row if 200 < row < 300 else None,
        )
        for row in range(images)
    ]
    write_samples(tmp_path / "divided", samples, 16_384)
    divide_samples(tmp_path / "divided", images, 16_384, 64)
    write_samples(tmp_path / "small", samples, 64)
    assert relative_files(tmp_path / "divided") == relative_files(tmp_path / "small")


def test_keys_are_found_without_reading_units_that_cannot_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beyond the first plane of Unicode, the orders of UTF-8 and UTF-16 differ.
    letters = ["a", "b", "é", "\uffee", "\U0001f600"]
    keys = [f"{letter}{number:03d}" for letter in letters for number in range(100)]
    write_samples(tmp_path, (Sample(row, key, "a.tar", key, 0, 1) for row, key in enumerate(keys)), 64)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **some: (read.append(group), whole(self, group, **some))[1],
    )
    for row in (0, 63, 64, 257, 399, 400, 499):
        read.clear()
        assert list(rows_of_keys(tmp_path, 8, [keys[row]])) == [(row, keys[row])]
        assert len(read) <= 2
    assert list(rows_of_keys(tmp_path, 8, keys)) == list(enumerate(keys))
    assert not list(rows_of_keys(tmp_path, 8, ["0", "\U0001f601", "b0005"]))
