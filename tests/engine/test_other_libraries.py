"""Other libraries open a store without a warning, find the names of its axes, and read what headspan reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import tensorstore
import xarray as xr
import zarr

import headspan as hs
from headspan.concepts.labels import label_heads
from headspan.io.local import LocalStorage
from headspan.store.consolidated import ROOT, consolidate
from tests.conftest import ToyRun, relative_files

OPENERS: dict[str, Any] = {
    "open_zarr": xr.open_zarr,
    "open_zarr, not consolidated": lambda path: xr.open_zarr(path, consolidated=False),
    "open_zarr, consolidated": lambda path: xr.open_zarr(path, consolidated=True),
    "open_dataset": lambda path: xr.open_dataset(path, engine="zarr"),
    "open_dataset, guessed": xr.open_dataset,
    "open_datatree": lambda path: xr.open_datatree(path, engine="zarr").to_dataset(),
}


@pytest.fixture(scope="module")
def analysed(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy store with runs: of all layers, of two, and labels."""
    path = Path(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("analysed") / "s.zarr"))
    pool = path.with_name("pool.tsv")
    pool.write_text(
        "".join(f"a {thing}\t{kind}\n" for kind in ("red", "blue") for thing in (f"{kind} {n}" for n in "abc"))
    )
    store = hs.open(path)
    hs.textspan(store, pool, texts_per_head=5, draws=0, run="every")
    hs.textspan(store, pool, texts_per_head=5, draws=0, layers=[2, 0], run="some")
    label_heads(store, "every", save=True)
    return path


@pytest.mark.parametrize("opener", OPENERS)
def test_xarray_finds_the_axes_and_coordinates_of_to_xarray(opener: str, analysed: Path) -> None:
    with OPENERS[opener](analysed) as found:
        ours = hs.open(analysed, include_failed=True).to_xarray()
        assert set(found.variables) == {*ours.variables} - {"image", "row", "caption"}
        for name in found.variables:
            assert found[name].dims == ours[name].dims, name
            np.testing.assert_array_equal(found[name].values.astype(ours[name].dtype), ours[name].values, name)
        assert set(found.coords) == {"layer", "head", "token", "term", "statistic"}
        chosen = {"layer": 2, "head": 1}
        np.testing.assert_array_equal(found["heads"].sel(chosen), ours["heads"].sel(chosen))
        np.testing.assert_array_equal(found["norm"].sel(statistic="length"), ours["norm"][:, 2])


def test_a_store_of_some_layers_shows_their_numbers(toy_run: ToyRun, tmp_path: Path) -> None:
    hs.precompute(
        out=tmp_path / "s.zarr", **toy_run.settings(layers="0,2", emit="heads", shards=str(toy_run.shards[1]))
    )
    with xr.open_zarr(tmp_path / "s.zarr") as found:
        assert found["layer"].values.tolist() == [0, 2]
        assert found["head"].values.tolist() == [0, 1, 2]
        assert set(found.coords) == {"layer", "head", "statistic"}


def test_xarray_opens_every_group_of_results(analysed: Path) -> None:
    with xr.open_datatree(analysed, engine="zarr") as tree:
        spans = tree["textspan/every"]
        assert spans["explained"].dims == ("layer", "head", "text")
        assert spans["layer"].values.tolist() == [0, 1, 2]
        assert tree["textspan/some/explained"].dims == ("run_layer", "head", "text")
        assert tree["labels/every/consistent"].dims == ("layer", "head", "text")
        matrices = hs.open(analysed).contents.folded
        np.testing.assert_array_equal(tree["model/head_to_joint"].sel(layer=1), matrices.head_to_joint[1])
    with xr.open_zarr(analysed, group="textspan/every") as spans:
        assert spans.sizes["text"] == 5


def test_zarr_python_lists_arrays_and_axes_with_and_without_the_copy_of_metadata(analysed: Path) -> None:
    for use_consolidated in (None, False):
        group = zarr.open_group(analysed, mode="r", use_consolidated=use_consolidated)
        assert {"heads", "layer", "statistic", "model", "moments", "textspan"} <= set(group)
        heads = group["heads"]
        assert isinstance(heads, zarr.Array)
        assert heads.metadata.dimension_names == ("image", "layer", "head", "head_dim")
    assert "textspan" in str(zarr.open_group(analysed, mode="r").tree())


def test_the_copy_of_metadata_is_the_one_that_zarr_python_writes(analysed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(analysed, tmp_path / "s.zarr"))
    written = json.loads((path / ROOT).read_bytes())
    # Only its own metadata make a Zarr group of the folder of records; nothing in it is an array.
    shutil.rmtree(path / "records")
    with warnings.catch_warnings():
        # zarr-python warns that such copies are not part of Zarr's specification.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    assert written == json.loads((path / ROOT).read_bytes())


def test_the_copy_of_metadata_lists_new_runs_and_no_removed_ones(analysed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(analysed, tmp_path / "s.zarr"))
    hs.remove_runs(path, "textspan/some")
    assert set(zarr.open_group(path, mode="r")["textspan"]) == {"every"}
    assert hs.verify(path).problems == ()
    # A process that is killed while it saves leaves no copy; the next one writes the same again.
    whole = (path / ROOT).read_bytes()
    (path / ROOT).write_bytes((path / "records" / "root.json").read_bytes())
    assert hs.verify(path).problems == ()
    consolidate(LocalStorage(path))
    assert (path / ROOT).read_bytes() == whole


def test_a_changed_copy_of_metadata_is_found_and_restored_without_the_model(analysed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(analysed, tmp_path / "s.zarr"))
    whole = (path / ROOT).read_text()
    for before, after in (('"float16"', '"float32"'), ('"run_layer"', '"layer"')):
        assert before in whole
        (path / ROOT).write_text(whole.replace(before, after))
        assert [problem.where for problem in hs.verify(path).problems] == [ROOT]
        repaired = hs.repair(path, weights="nowhere")
        assert (repaired.files, repaired.verdict.problems) == ((ROOT,), ())
        assert (path / ROOT).read_text() == whole


def test_a_damaged_coordinate_is_found_and_restored(toy_copy: Path) -> None:
    before = relative_files(toy_copy)
    (toy_copy / "layer" / "c" / "0").write_bytes(np.arange(1, 4).tobytes())
    (toy_copy / "statistic" / "c" / "0").unlink()
    found = {problem.where for problem in hs.verify(toy_copy).problems}
    assert found == {"layer/c/0", "statistic/c/0"}
    (toy_copy / "zarr.json").write_bytes(b"{}")
    repaired = hs.repair(toy_copy, batch_size=7)
    assert set(repaired.files) == {"zarr.json", "layer/c/0", "statistic/c/0"}
    assert relative_files(toy_copy) == before


@pytest.mark.parametrize("name", ["ok", "embedding", "norm", "heads", "mlps", "patches", "layer", "head", "token"])
def test_tensorstore_reads_every_array_with_the_names_of_its_axes(name: str, toy_store: hs.Store) -> None:
    kvstore = {"driver": "file", "path": f"{toy_store.path}/{name}/"}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    ours = hs.open(toy_store.path, include_failed=True).to_xarray()[name]
    assert opened.domain.labels == ours.dims
    np.testing.assert_array_equal(opened.read().result(), ours.values)


TABLES = ("samples", "shards", "notes")


def parquet_files(store: hs.Store, table: str) -> str:
    """The pattern of the files of a table."""
    return str(store.path / "records" / ("samples/*.parquet" if table == "samples" else f"{table}.parquet"))


@pytest.mark.parametrize("table", TABLES)
def test_duckdb_pandas_and_polars_read_the_tables(table: str, toy_store: hs.Store) -> None:
    store = hs.open(toy_store.path, include_failed=True)
    if table == "samples":
        wanted = store.samples().to_pylist()
    else:
        names = {"shards": "url first_row images size_bytes modified_ns", "notes": "row key url reason"}[table].split()
        wanted = [{name: getattr(each, name) for name in names} for each in getattr(store, table)()]
    pattern = parquet_files(store, table)
    assert pl.read_parquet(pattern).to_dicts() == wanted
    relation = duckdb.sql(f"select * from read_parquet('{pattern}')")
    assert [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()] == wanted
    frames = [pd.read_parquet(path) for path in sorted(Path(pattern).parent.glob(Path(pattern).name))]
    frame = pd.concat(frames).astype(object)
    assert frame.where(frame.notna(), None).to_dict("records") == wanted


def test_duckdb_finds_images_by_their_captions(toy_store: hs.Store) -> None:
    pattern = parquet_files(toy_store, "samples")
    found = duckdb.sql(
        f"select row, key from read_parquet('{pattern}') where caption like '%7' order by row"
    ).fetchall()
    assert found == [(row, f"{row:05d}") for row in range(7, 70, 10)]


WITHOUT_HEADSPAN = """
import sys, warnings
warnings.simplefilter("error")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("headspan", "headspan_kernels", "torch"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import xarray as xr
print(xr.open_zarr(sys.argv[1])["heads"].sel(layer=2, head=1).dims)
"""


def test_xarray_alone_opens_a_store_in_a_process_of_its_own(toy_store: hs.Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEADSPAN, str(toy_store.path)], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout) == ("", "('image', 'head_dim')\n")
