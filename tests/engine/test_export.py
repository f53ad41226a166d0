"""Exported files, read by pandas, polars, DuckDB, NumPy and safetensors, have the numbers of the store."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import headspan as hs
from headspan.cli.main import main
from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.io import targets
from headspan.store.export import choice
from headspan.store.mapped import MappedRows, UnmappableError
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files

EVERY = ("embedding", "heads", "norm", "mlps", "mlp_means", "patches", "contributions", "ok")


@pytest.fixture(params=[1, 1 << 16, 64 << 20], ids=lambda size: f"blocks of {size} bytes")
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of one row, of some, and of all."""
    monkeypatch.setattr(choice, "_BLOCK_BYTES", request.param)
    return int(request.param)


def wanted(store: hs.Store) -> dict[str, np.ndarray]:
    """The numbers of every column, as the store's own calls return them."""
    stored = store.to_xarray()
    found: dict[str, np.ndarray] = {"embedding": store.embedding, "ok": stored["ok"].values}
    for layer in store.layers:
        for head in range(store.heads_per_layer):
            here = stored.sel(layer=layer, head=head)
            found[f"heads_L{layer}_H{head}"] = store.head_coordinates(layer, head)
            found[f"contributions_L{layer}_H{head}"] = store.head(layer, head)
            found[f"patches_L{layer}_H{head}"] = here["patches"].values
    for place, name in enumerate(("mean", "s", "length")):
        found[f"norm_{name}"] = store.norm[:, place]
    for term in range(store.terms):
        found[f"mlps_T{term}"] = stored["mlps"].values[:, term]
        found[f"mlp_means_T{term}"] = stored["mlp_means"].values[:, term]
    return found


def same(found: Any, expected: np.ndarray, name: str) -> None:
    """Equal numbers; contributions of blocks of rows may be rounded in another order."""
    tolerance = 2e-6 if name.startswith("contributions") else 0
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("include_failed", [False, True])
def test_pandas_polars_and_duckdb_read_every_number_and_sample(
    include_failed: bool, block_bytes: int, toy_run: ToyRun, tmp_path: Path
) -> None:
    store = hs.open(toy_run.path, include_failed=include_failed)
    done = hs.export(store, tmp_path / "s.parquet", arrays=EVERY)
    assert (done.format, done.images, done.stored_bytes) == ("parquet", store.images, done.path.stat().st_size)
    samples, columns = store.samples(), wanted(store)
    by_pandas, by_polars = pd.read_parquet(done.path), pl.read_parquet(done.path)
    assert (
        list(by_pandas) == by_polars.columns == [*samples.column_names, *sorted(columns, key=by_polars.columns.index)]
    )
    assert by_polars.select(samples.column_names).to_dicts() == samples.to_pylist()
    by_duckdb = duckdb.sql(f"select * from '{done.path}'").arrow().read_all()
    for name, expected in columns.items():
        same(
            np.array(by_pandas[name].tolist()) if expected.ndim < 3 else np.array(by_polars[name].to_list()),
            expected,
            name,
        )
        same(by_polars[name].to_list(), expected, name)
        same(by_duckdb[name].to_pylist(), expected, name)
    if include_failed:
        assert by_polars.filter(pl.col("ok") == 0)["row"].to_list() == list(BROKEN_ROWS)
        assert np.isnan(by_polars["norm_length"].to_numpy()[list(BROKEN_ROWS)]).all()


def test_duckdb_searches_for_the_nearest_images_in_an_export(toy_store: hs.Store, tmp_path: Path) -> None:
    hs.export(toy_store, tmp_path / "s.parquet", arrays=["contributions"], heads=[(2, 1)])
    column = f"contributions_L2_H1::float[{toy_store.joint}]"
    found = duckdb.sql(
        f"with s as (select row, {column} as v from '{tmp_path}/s.parquet') "
        "select row from s order by array_inner_product(v, (select v from s where row = 7)) desc limit 3"
    ).fetchall()
    ours = hs.explore.nearest_to_image(toy_store, toy_store.rows.tolist().index(7), heads=[(2, 1)], count=3)
    assert [row for (row,) in found] == toy_store.rows[ours.images].tolist()


@pytest.mark.parametrize("mapped", [True, False])
def test_numpy_maps_every_array_and_export_json_names_its_axes(
    mapped: bool, block_bytes: int, toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mapped:
        # Blocks of one row take long where files are not mapped, and are read in the test of the other case.
        monkeypatch.setattr(choice, "_BLOCK_BYTES", max(block_bytes, 1 << 15))

        def refuse(*ignored: object) -> None:
            raise UnmappableError

        monkeypatch.setattr(MappedRows, "chunks", refuse)
    done = hs.export(toy_store.path, tmp_path / "s", format="npy", arrays=EVERY)
    about = json.loads((done.path / "export.json").read_bytes())["arrays"]
    stored, columns = toy_store.to_xarray(), wanted(toy_store)
    assert pl.read_parquet(done.path / "samples.parquet").to_dicts() == toy_store.samples().to_pylist()
    assert set(about) == set(EVERY)
    for name, known in about.items():
        found = np.load(done.path / known["file"], mmap_mode="r")
        assert isinstance(found, np.memmap)
        axes = [axis["name"] for axis in known["axes"]]
        assert ([*found.shape], str(found.dtype)) == (known["shape"], known["dtype"])
        if name == "contributions":
            assert axes == ["image", "layer", "head", "joint"]
            for layer, head in np.ndindex(3, 3):
                same(found[:, layer, head], columns[f"contributions_L{layer}_H{head}"], name)
            continue
        assert (tuple(axes), found.dtype) == (stored[name].dims, stored[name].dtype)
        np.testing.assert_array_equal(found, stored[name].values, name)
        for axis in known["axes"][1:]:
            assert axis.get("values", []) == (stored[axis["name"]].values.tolist() if "values" in axis else [])


def test_chosen_layers_and_heads_are_exported_alone(toy_store: hs.Store, tmp_path: Path) -> None:
    hs.export(toy_store, tmp_path / "a.parquet", arrays=["heads"], layers="last2")
    names = [name for name in pq.read_schema(tmp_path / "a.parquet").names if name.startswith("heads")]
    assert names == [f"heads_L{layer}_H{head}" for layer in (1, 2) for head in range(3)]
    hs.export(toy_store, tmp_path / "b", format="npy", arrays=["heads"], heads=[(2, 1), (0, 2)])
    found = np.load(tmp_path / "b" / "heads.npy")
    np.testing.assert_array_equal(found[:, 0], toy_store.head_coordinates(0, 2, np.float16))
    np.testing.assert_array_equal(found[:, 1], toy_store.head_coordinates(2, 1, np.float16))
    about = json.loads((tmp_path / "b" / "export.json").read_bytes())
    assert about["arrays"]["heads"]["axes"][1] == {"name": "head", "values": ["L0.H2", "L2.H1"]}


def test_safetensors_hold_the_matrices_by_layer_and_head(toy_store: hs.Store, tmp_path: Path) -> None:
    done = hs.export(toy_store, tmp_path / "m.safetensors", layers=[2])
    with safe_open(done.path, "np") as found:
        names = set(found.keys())
        matrix = found.get_tensor("head_to_joint.L2.H1")
        bias = found.get_tensor("bias_to_joint.L2")
        assert found.metadata()["weights_sha256"] == toy_store.attributes["weights_sha256"]
    assert names == {
        *(f"{name}.L2.H{head}" for name in ("head_to_joint", "head_mean") for head in range(3)),
        *("bias_to_joint.L2", "bias_mean.L2", "gain", "shift", "share_count"),
    }
    # In convention per_term, the first rows of the directions are the centred matrix.
    mean = toy_store.contents.folded.head_mean[2, 1]
    gain = toy_store.contents.folded.gain
    directions = toy_store.head_directions(2, 1, "per_term")[: toy_store.head_dim]
    np.testing.assert_allclose(matrix - mean[:, None] * gain, directions, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bias, toy_store.contents.folded.bias_to_joint[2])


def test_csv_has_the_tables(toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.store.export.fixed._ROWS", 7)
    done = hs.export(toy_store, tmp_path / "tables", format="csv")
    with (done.path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in toy_store.samples().to_pylist()
    ]
    assert rows == text
    assert pd.read_csv(done.path / "shards.csv")["images"].tolist() == [31, 1, 38]
    assert pl.read_csv(done.path / "notes.csv").columns == ["row", "key", "url", "reason"]


def test_images_of_unfinished_units_are_left_out(toy_copy: Path, tmp_path: Path) -> None:
    for path in (toy_copy / "records" / "commits").iterdir():
        if path.name != "planned.json":
            path.unlink()
    assert hs.export(toy_copy, tmp_path / "s.parquet").images == 0
    assert pd.read_parquet(tmp_path / "s.parquet").shape[0] == 0
    hs.export(toy_copy, tmp_path / "s", format="npy")
    assert np.load(tmp_path / "s" / "heads.npy").shape == (0, 3, 3, 16)


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_memory_does_not_grow_with_the_number_of_images(
    kind: str, toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, peaks = ["contributions", "patches"], []
    store = hs.open(toy_run.path, include_failed=True)
    hs.export(store, tmp_path / "warm", format=kind, arrays=arrays)
    monkeypatch.setattr(choice, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(choice, "_CHUNK_ROWS", 1)
    for images in (21, 70):
        monkeypatch.setattr(store, "_rows", np.arange(images))
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        hs.export(store, tmp_path / f"{images}", format=kind, arrays=arrays)
        peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before)
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


REFUSED: list[tuple[dict[str, Any], type[HeadspanError], str]] = [
    (
        {"to": "x"},
        SettingsError,
        r"--to .*x: the name does not tell the format; end it in .parquet or .safetensors, or",
    ),
    (
        {"to": "x", "format": "zip"},
        SettingsError,
        "--format zip is unknown; choose from parquet, npy, safetensors, csv",
    ),
    ({"to": "x.npy", "format": "npy"}, SettingsError, "--format npy writes a folder; name one, such as x"),
    (
        {"to": "x.parquet", "arrays": ["pixels"]},
        SettingsError,
        "--arrays pixels: .* choose from ok, embedding, norm, heads",
    ),
    ({"to": "x.safetensors", "arrays": ["heads"]}, SettingsError, "safetensors holds no arrays of images"),
    ({"to": "x", "format": "csv", "layers": "all"}, SettingsError, "csv holds tables, not heads"),
    ({"to": "x.parquet", "layers": [7]}, SettingsError, "layer 7 is not stored"),
    ({"to": "x.parquet", "heads": [(1, 3)]}, SettingsError, "head 3 does not exist; a layer's heads are 0 to 2"),
    ({"to": "x.parquet", "heads": [(1, 0)], "layers": [1]}, SettingsError, "--layers and --head both choose heads"),
    ({"to": "copy.zarr/x.parquet"}, StoreError, "is in the store itself; choose another --to"),
    ({"to": ""}, StoreError, "is not the name of a file or folder"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED)
def test_what_cannot_be_exported_is_refused_in_a_sentence(
    settings: dict[str, Any], kind: type[HeadspanError], message: str, toy_copy: Path, tmp_path: Path
) -> None:
    to = settings["to"] and tmp_path / settings["to"]
    with pytest.raises(kind, match=message):
        hs.export(toy_copy, **{**settings, "to": to})
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]


def test_an_export_is_replaced_on_request_only_and_nothing_else_ever(toy_store: hs.Store, tmp_path: Path) -> None:
    for to, kind in (("s.parquet", None), ("s", "npy")):
        hs.export(toy_store, tmp_path / to, format=kind)
        with pytest.raises(StoreError, match=r"already exists; give --overwrite \(in Python overwrite=True\)"):
            hs.export(toy_store, tmp_path / to, format=kind, arrays=["norm"])
        hs.export(toy_store, tmp_path / to, format=kind, arrays=["norm"], overwrite=True)
    assert "norm_length" in pq.read_schema(tmp_path / "s.parquet").names
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"norm.npy", "samples.parquet", "export.json"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(StoreError, match="exists and is not an export of this format, so it is never replaced"):
        hs.export(toy_store, mine, format="npy", overwrite=True)
    assert (mine / "thesis.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"s.parquet", "s", "mine"}


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors", "csv"])
def test_files_that_cannot_be_written_are_an_error_that_leaves_the_earlier_export(
    kind: str, toy_store: hs.Store, tmp_path: Path
) -> None:
    hs.export(toy_store, tmp_path / "s", format=kind)
    before = relative_files(tmp_path)
    # The system refuses files of more than a kilobyte, as a full disk does.
    command = (
        f"ulimit -f 1; exec {sys.executable} -m headspan export {toy_store.path} --to s --format {kind} --overwrite"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("headspan: s: cannot be written (File too large); free disk space, ")
    assert relative_files(tmp_path) == before


def test_an_export_that_cannot_get_its_name_leaves_the_earlier_one(
    toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hs.export(toy_store, tmp_path / "s", format="npy")
    before, move, moved = relative_files(tmp_path), targets.move, []

    def refuse_second(source: Path, target: Path) -> None:
        moved.append(target)
        if len(moved) == 2:
            raise OSError(errno.EIO, "Input/output error")
        move(source, target)

    monkeypatch.setattr(targets, "move", refuse_second)
    with pytest.raises(StoreError, match=r"cannot be written \(Input/output error\)"):
        hs.export(toy_store, tmp_path / "s", format="npy", arrays=["norm"], overwrite=True)
    assert relative_files(tmp_path) == before


def test_the_command_exports_and_refuses(toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, to = str(toy_run.path), str(tmp_path / "s.parquet")
    heads = ["--head", "L2.H1", "--head", "L0.H0"]
    assert main(["export", store, "--to", to, "--arrays", "contributions,norm", *heads]) == 0
    assert f"67 images, {Path(to).stat().st_size / 1e6:,.1f} MB written to {to}" in capsys.readouterr().out
    names = pq.read_schema(to).names[9:]
    assert names == ["contributions_L0_H0", "contributions_L2_H1", "norm_mean", "norm_s", "norm_length"]
    assert main(["export", store, "--to", to]) == 2
    assert "already exists; give --overwrite" in capsys.readouterr().err
    assert main(["export", store, "--to", to, "--overwrite", "--include-failed", "--layers", "last1"]) == 0
    assert pq.read_metadata(to).num_rows == 70
    assert main(["export", store, "--to", to, "--overwrite", "--head", "L9.H1"]) == 2
    assert "--head L9.H1: there is no such head" in capsys.readouterr().err
