"""Stores of earlier versions open, verify, resume and repair; zarr-python alone reads every store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.labels import label_heads, read_labels
from headspan.errors import SettingsError, StoreError
from headspan.run.repair import repair
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.identity import RUN_KEYS, SIZE_KEYS, differences
from headspan.store.lineage import lineage_of
from tests.conftest import ToyRun, relative_files, zarr_array

DATA = Path(__file__).resolve().parents[1] / "data"
# The time of modification of the old stores' shards, in seconds.
WRITTEN = 1_700_000_000


@pytest.fixture
def format_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that headspan 0.1.0 wrote in the first version of format 1, in a folder with its model and shards."""
    with zipfile.ZipFile(DATA / "format-1.zip") as archive:
        archive.extractall(tmp_path)
    for shard in tmp_path.glob("*.tar"):
        os.utime(shard, (WRITTEN, WRITTEN))
    # The store names its shards and model relative to this folder.
    monkeypatch.chdir(tmp_path)
    return tmp_path / "format-1.zarr"


def test_a_store_of_format_1_opens_verifies_and_is_repaired(format_1: Path) -> None:
    store = hs.open(format_1)
    assert store.attributes["format"] == 1
    assert (store.images, store.layers, store.complete) == (4, (0, 1), True)
    assert store.samples()["key"].to_pylist() == ["000", "002", "003", "004"]
    assert [(bad.row, bad.key) for bad in store.bad_images()] == [(1, "001")]
    assert store.moments().count == 4
    verdict = hs.verify(hs.open(format_1, include_failed=True), sources=True)
    assert (verdict.problems, verdict.unreached) == ((), 0)
    assert verdict.largest_error is not None
    # The command that made it finds nothing to do.
    made = {"model": "headspan-tiny.json", "pretrained": "random:0", "layers": "all", "emit": "heads,patches,mlps"}
    with pytest.raises(StoreError, match='was made with decode "exact", but this run asks for "fast"'):
        hs.precompute(["0.tar", "1.tar"], format_1, device="cpu", batch_size=2, **made)
    made["decode"] = "exact"
    assert hs.precompute(["0.tar", "1.tar"], format_1, device="cpu", batch_size=2, **made).skipped == 5
    before, embedding = relative_files(format_1), store.embedding
    (format_1 / "embedding" / "c" / "1" / "0").unlink()
    done = repair(format_1, batch_size=2)
    assert (done.units, done.verdict.problems) == ((1,), ())
    # Other versions of the libraries may round differently.
    np.testing.assert_allclose(hs.open(format_1).embedding, embedding, rtol=1e-4, atol=1e-5)
    assert set(relative_files(format_1)) == set(before)


@pytest.fixture
def of_78a7b61(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of three stores that commit 78a7b61 wrote, with their models and shards.

    `whole.zarr` has all emissions and a run of every analysis, `begun.zarr` is of the same model and images and was
    interrupted after two units of five, `pooled.zarr` is of a model that pools by attention and emits `carried`, which
    is called `through_pool` today. Image 3 of nine is broken.
    """
    with zipfile.ZipFile(DATA / "commit-78a7b61.zip") as archive:
        archive.extractall(tmp_path)
    for shard in tmp_path.glob("*.tar"):
        os.utime(shard, (WRITTEN, WRITTEN))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of_78a7b61(name: str) -> dict[str, Any]:
    pooled = name == "pooled.zarr"
    emit = {"whole.zarr": "heads,patches,mlps", "begun.zarr": "heads", "pooled.zarr": "heads,mlps,through_pool"}[name]
    model = "headspan-pooled.json" if pooled else "headspan-tiny-2.json"
    return {"model": model, "pretrained": "random:0", "layers": "all", "emit": emit, "device": "cpu", "batch_size": 2}


@pytest.mark.parametrize("name", ["whole.zarr", "begun.zarr", "pooled.zarr"])
def test_a_store_of_commit_78a7b61_opens_verifies_resumes_and_is_repaired(name: str, of_78a7b61: Path) -> None:
    store = hs.open(of_78a7b61 / name)
    done = 3 if name == "begun.zarr" else 8
    assert (store.images, store.complete) == (done, name != "begun.zarr")
    assert hs.verify(hs.open(store.path, include_failed=True), sources=True).problems == ()
    summary = hs.precompute(["0.tar", "1.tar"], store.path, **settings_of_78a7b61(name))
    assert (summary.images, summary.skipped) == (8 - done, 9 if done == 8 else 4)
    whole = hs.open(store.path)
    assert whole.complete
    assert whole.samples()["caption"].to_pylist() == [f"caption {row}" for row in range(9) if row != 3]
    before = {array: whole.contents.read(array)[whole.rows] for array in whole.contents.specs}
    for spec in whole.contents.specs.values():
        # The second unit: rows 2 and 3.
        (store.path / spec.file(2)).unlink()
    repaired = repair(store.path, batch_size=2)
    assert (repaired.units, repaired.verdict.problems) == ((1,), ())
    for array, values in before.items():
        # Other versions of the libraries may round differently.
        np.testing.assert_allclose(
            hs.open(store.path).contents.read(array)[whole.rows], values, rtol=2e-3, atol=2e-3, err_msg=array
        )


def test_resuming_a_store_of_commit_78a7b61_gives_the_numbers_of_its_finished_store(of_78a7b61: Path) -> None:
    hs.precompute(["0.tar", "1.tar"], "begun.zarr", **settings_of_78a7b61("begun.zarr"))
    begun, whole = hs.open("begun.zarr"), hs.open("whole.zarr")
    np.testing.assert_allclose(begun.embedding, whole.embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(begun.moments().gram, whole.moments().gram, rtol=1e-4, atol=1e-6)


def test_the_analyses_of_commit_78a7b61_are_read_and_can_be_repeated(of_78a7b61: Path) -> None:
    store = hs.open("whole.zarr")
    spans = read_spans(store)
    assert (spans.run, spans.indices.shape, spans.pool.concepts) == (
        "pool",
        (2, 2, 6),
        hs.read_pool("pool.tsv").concepts,
    )
    assert read_scores(store).scores.shape == (2, 2)
    again = hs.textspan(store, "pool.tsv", texts_per_head=6, run="again")
    np.testing.assert_array_equal(again.indices, spans.indices)


def test_an_older_store_keeps_its_array_carried_which_is_read_as_through_pool(of_78a7b61: Path) -> None:
    store = hs.open("pooled.zarr")
    assert store.attributes["emit"] == ["heads", "mlps", "through_pool"]
    assert store.through_pool_layers == (0, 1)
    stored = np.asarray(zarr_array(store.path, "carried")[...])[store.rows]
    for place, layer in enumerate(store.through_pool_layers):
        wanted = stored[:, place, 1].astype(np.float32) / store.norm[:, 2:]
        np.testing.assert_array_equal(store.through_pool(layer, 1), wanted)
    found = store.to_xarray()["through_pool"]
    assert found.dims == ("image", "through_pool_layer", "trunk_head", "joint")
    np.testing.assert_array_equal(found.sel(through_pool_layer=1), stored[:, 1])
    metadata = {name: Path("pooled.zarr", name) for name in ("carried/zarr.json", "records/root.json")}
    written = {name: path.read_bytes() for name, path in metadata.items()}
    for path in metadata.values():
        path.unlink()
    repaired = repair("pooled.zarr", batch_size=2)
    assert (sorted(repaired.files), repaired.verdict.problems) == (sorted(metadata), ())
    assert {name: path.read_bytes() for name, path in metadata.items()} == written
    assert not Path("pooled.zarr", "through_pool").exists()


def test_a_new_store_has_the_current_names_and_the_identity_of_an_older_store(of_78a7b61: Path) -> None:
    hs.precompute(["0.tar", "1.tar"], "new.zarr", unit_images=2, **settings_of_78a7b61("pooled.zarr"))
    new, old = hs.open("new.zarr"), hs.open("pooled.zarr")
    assert zarr_array(new.path, "through_pool").metadata.dimension_names == new.contents.specs["through_pool"].dims
    assert b"carried" not in Path("new.zarr", "zarr.json").read_bytes()
    assert list(differences(new.attributes, old.attributes, (*RUN_KEYS, *SIZE_KEYS))) == []
    np.testing.assert_allclose(new.through_pool(1, 0), old.through_pool(1, 0), rtol=2e-3, atol=2e-3)


def test_a_run_that_records_even_is_the_same_as_one_that_records_uniform(of_78a7b61: Path) -> None:
    store, said = hs.open("whole.zarr"), []
    assert json.loads(Path("whole.zarr/textspan/pool/zarr.json").read_text())["attributes"]["convention"] == "even"
    labels = {path: path.read_bytes() for path in Path("whole.zarr/labels").rglob("*") if path.is_file()}
    for overwrite in (False, True):
        hs.textspan(store, "pool.tsv", texts_per_head=6, run="pool", overwrite=overwrite, on_progress=said.append)
        assert results.load_settings(store, "textspan", "pool")["convention"] == "uniform"
    assert any("was already made with the same settings" in progress.note for progress in said)
    # Nothing that was made from the run is marked.
    assert not any("marked" in progress.note for progress in said)
    assert read_labels(store).older is None
    assert labels
    assert {path: path.read_bytes() for path in labels} == labels


def test_labels_and_scores_of_commit_78a7b61_are_the_same_when_they_are_made_again(of_78a7b61: Path) -> None:
    before = relative_files(Path("whole.zarr"))
    store = hs.open("whole.zarr")
    about, checksum = results.load_settings(store, "ccs", "pool"), lineage_of(store, "ccs", "pool").checksum
    assert label_heads(store, save=True).run == "pool"
    assert concept_consistency(store, save=True).labels.run == "pool"
    after = relative_files(Path("whole.zarr"))
    changed = {name for name in after if after[name] != before.get(name)}
    # Scores now include the labels that they count, and what they were made from.
    assert changed == {"ccs/pool/zarr.json", "records/results/ccs/pool.json"}
    again = results.load_settings(store, "ccs", "pool")
    assert {name: again[name] for name in about} == about
    assert set(again) - set(about) == {"labels", "labels_free"}
    # They count as the same run, of the present labels.
    assert lineage_of(store, "ccs", "pool").checksum == checksum
    assert lineage_of(store, "ccs", "pool").older is None


def test_labels_of_commit_78a7b61_are_marked_when_their_text_spans_are_replaced(of_78a7b61: Path) -> None:
    store = hs.open("whole.zarr")
    labels, scores = read_labels(store), read_scores(store)
    assert labels.older is scores.older is None
    hs.textspan(store, "pool.tsv", texts_per_head=5, run="pool", overwrite=True)
    assert read_labels(store).older == read_scores(store).older == "textspan/pool"
    assert read_labels(store).names == labels.names
    for use in (
        lambda: concept_consistency(store),
        lambda: hs.concepts.read_votes(store),
        lambda: hs.concepts.compare([store]),
    ):
        with pytest.raises(
            StoreError, match=r"is of an older textspan/pool, which was replaced since; run headspan la"
        ):
            use()
    label_heads(store, save=True, overwrite=True)
    # The scores of that version do not include the labels that they count.
    with pytest.raises(StoreError, match=r"of an older labels/pool, which was replaced since; run headspan ccs --run"):
        read_scores(store)
    concept_consistency(store, save=True, overwrite=True)
    assert read_scores(store).older is None


def test_damaged_notes_of_another_wording_are_restored_with_a_new_checksum(of_78a7b61: Path) -> None:
    planned = Path("whole.zarr/records/commits/planned.json")
    recorded = json.loads(planned.read_bytes())
    # The notes had another wording when they were written, so today's notes have another checksum.
    recorded["records/notes.parquet"] = [1234, 5678]
    planned.write_text(json.dumps(recorded))
    notes = Path("whole.zarr/records/notes.parquet")
    notes.write_bytes(b"damaged")
    repaired = repair("whole.zarr", batch_size=2)
    assert (repaired.files, repaired.units, repaired.verdict.problems) == (("records/notes.parquet",), (), ())
    assert hs.open("whole.zarr").notes() == []
    assert repair("whole.zarr", batch_size=2).files == ()


def test_a_note_of_an_earlier_version_quarantines_its_unit(of_78a7b61: Path) -> None:
    note = Path("begun.zarr/records/commits/unit-00000003.aside")
    note.write_text(json.dumps({"unit": 3, "first_row": 6, "rows": 2, "tries": 3}))
    summary = hs.precompute(["0.tar", "1.tar"], "begun.zarr", **settings_of_78a7b61("begun.zarr"))
    assert [unit.index for unit in summary.quarantined] == [3]
    assert not hs.open("begun.zarr").complete
    repaired = repair("begun.zarr", batch_size=2)
    assert (repaired.units, repaired.verdict.problems) == ((3,), ())
    assert hs.open("begun.zarr").complete
    assert not note.exists()


def test_the_earlier_name_of_an_emission_is_refused_with_the_current_name(of_78a7b61: Path) -> None:
    settings = {**settings_of_78a7b61("pooled.zarr"), "emit": "heads,carried"}
    with pytest.raises(SettingsError, match=r"--emit carried: .* through_pool now; write --emit heads,through_pool"):
        hs.precompute(["0.tar", "1.tar"], "new.zarr", **settings)


ZARR_ALONE = """
import sys
import numpy as np, zarr

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("headspan", "headspan_kernels", "torch"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
group = zarr.open_group(sys.argv[1], mode="r")
ok = group["ok"][:] == 1
norm, embedding, heads = (group[name][:][ok] for name in ("norm", "embedding", "heads"))
assert np.isfinite(embedding).all() and np.isnan(group["embedding"][:][~ok]).all()
# One head's contribution in the published convention without mean and bias terms, from arrays alone.
share = heads[:, 1, 0].astype(np.float32) @ group["model/head_to_joint"][1, 0] / norm[:, 1:2] / norm[:, 2:3]
count, total = int(group["moments/count"][0]), group["moments/sum"][:]
scale = norm[:, 1].astype(np.float64) * norm[:, 2]
assert count == ok.sum()
assert np.allclose(total[1, 0, : heads.shape[-1]], (heads[:, 1, 0] / scale[:, None]).sum(axis=0), rtol=1e-2, atol=1e-3)
about = group.attrs["headspan"]
np.save(sys.argv[2], np.concatenate([embedding, share], axis=1))
print(about["format"], about["emit"], group["patches"].shape, group["mlps"].shape)
"""


def test_zarr_alone_reads_every_number(toy_run: ToyRun, tmp_path: Path) -> None:
    saved = tmp_path / "found.npy"
    done = subprocess.run(
        [sys.executable, "-c", ZARR_ALONE, str(toy_run.path), str(saved)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "1 ['heads', 'patches', 'mlps'] (70, 3, 3, 17, 16) (70, 4, 24)\n"
    store = hs.open(toy_run.path)
    found = np.load(saved)
    np.testing.assert_array_equal(found[:, : store.joint], store.embedding)
    own = (
        store.head_coordinates(1, 0)
        / store.norm[:, 1:2]
        / store.norm[:, 2:3]
        @ store.contents.folded.head_to_joint[1, 0]
    )
    np.testing.assert_allclose(found[:, store.joint :], own, rtol=1e-4, atol=1e-6)


def test_no_file_of_a_store_is_a_pickle(toy_run: ToyRun) -> None:
    # A pickle begins with its protocol, and object arrays of NumPy say so in their header.
    for name, data in relative_files(toy_run.path).items():
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
        assert b"'descr': '|O'" not in data, name
