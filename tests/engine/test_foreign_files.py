"""Stores in which other programs have put files, or whose metadata they have consolidated."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

import headspan as hs
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.labels import label_heads
from headspan.events import Progress
from headspan.run.repair import repair
from headspan.spans.saved import read_spans
from headspan.store.write import create as staged
from tests.conftest import ToyRun, image_members, relative_files, write_tar

POOL = hs.Pool(
    "pool", ("a cat", "a dog", "one", "two", "red", "blue"), ("animals",) * 2 + ("numbers",) * 2 + ("colours",) * 2
)

# Names of files that appear next to a file: macOS on exFAT and network folders, editors, browsers, sync tools.
BESIDE = (
    lambda name: f"._{name}",
    lambda name: f"{name}~",
    lambda name: f"{Path(name).stem} (1){Path(name).suffix}",
    lambda name: f"{Path(name).stem}.sync-conflict-20261126-101500-ABCDEFG{Path(name).suffix}",
    lambda name: f"{Path(name).stem} (conflicted copy 2026-11-26){Path(name).suffix}",
)
# Files that appear in a folder.
WITHIN = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory", ".nfs000000000001")
RUBBISH = b"\0\5\x16\7\0\2\0\0" + bytes(100)


def leave_foreign_files(root: Path) -> int:
    """Put every kind of foreign file next to every file and into every folder below `root`. Returns their number."""
    files = [path for path in root.rglob("*") if path.is_file()]
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    left = [path.with_name(beside(path.name)) for path in [*files, *folders[1:]] for beside in BESIDE]
    left += [folder / name for folder in folders for name in WITHIN]
    for path in left:
        path.write_bytes(RUBBISH)
    return len(left)


def analysed(store: hs.Store) -> None:
    hs.textspan(store, POOL, texts_per_head=5, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)


@pytest.fixture
def begun(toy_run: ToyRun, tmp_path: Path) -> Path:
    """A store of which only the first unit is committed."""

    class Enough(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.stage == "images" and event.done >= 64:
            raise Enough

    with pytest.raises(Enough):
        hs.precompute(out=tmp_path / "begun.zarr", on_progress=stop, **toy_run.settings())
    return tmp_path / "begun.zarr"


def test_foreign_files_do_not_change_what_is_read_from_a_store(toy_copy: Path) -> None:
    analysed(hs.open(toy_copy))
    clean = hs.open(toy_copy)
    expected = (clean.samples(), clean.notes(), clean.shards(), clean.embedding, read_scores(clean).scores)
    assert leave_foreign_files(toy_copy) > 1000
    store = hs.open(toy_copy)
    assert hs.verify(hs.open(toy_copy, include_failed=True)).problems == ()
    assert store.samples().equals(expected[0])
    assert (store.notes(), store.shards()) == expected[1:3]
    np.testing.assert_array_equal(store.embedding, expected[3])
    np.testing.assert_array_equal(read_scores(store).scores, expected[4])
    assert repair(toy_copy).units == ()
    # A new run works too.
    assert hs.textspan(store, ["a cat", "a dog"], texts_per_head=2, run="after").run == "after"
    assert read_spans(store, "after").indices.shape[2] == 2


def test_a_run_is_resumed_among_foreign_files(begun: Path, toy_run: ToyRun) -> None:
    leave_foreign_files(begun)
    summary = hs.precompute(out=begun, **toy_run.settings())
    assert (summary.skipped, hs.open(begun).complete) == (32, True)
    foreign = {name for name, data in relative_files(begun).items() if data == RUBBISH}
    assert len(foreign) > 500
    for name, data in relative_files(toy_run.path).items():
        # Tables of the plan have the same rows, but their bytes may differ between releases of Parquet.
        if "/c/" in name:
            assert (begun / name).read_bytes() == data, name


def test_foreign_files_that_appear_during_planning_are_not_recorded(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards = staged.write_shards

    def littered(root: Path, shards: object) -> None:
        write_shards(root, shards)  # type: ignore[arg-type]
        leave_foreign_files(root)

    monkeypatch.setattr(staged, "write_shards", littered)
    shard = write_tar(tmp_path / "0.tar", image_members(range(2)))
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=str(shard)))
    for path in (tmp_path / "s.zarr").rglob("*"):
        if path.is_file() and path.read_bytes() == RUBBISH:
            path.unlink()
    assert hs.verify(hs.open(tmp_path / "s.zarr", include_failed=True)).problems == ()


def test_consolidated_metadata_do_not_count_as_damage_and_hide_no_later_run(toy_copy: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(toy_copy)
        assert "consolidated_metadata" in (toy_copy / "zarr.json").read_text()
        analysed(hs.open(toy_copy))
        zarr.consolidate_metadata(toy_copy, path="textspan/pool")
        zarr.consolidate_metadata(toy_copy)
    assert hs.verify(hs.open(toy_copy, include_failed=True)).problems == ()
    assert read_scores(hs.open(toy_copy)).labels.run == "pool"
    assert repair(toy_copy).files == ()
    assert "consolidated_metadata" in (toy_copy / "zarr.json").read_text()


def test_adding_or_replacing_a_run_leaves_no_stale_consolidated_metadata(toy_copy: Path) -> None:
    analysed(hs.open(toy_copy))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(toy_copy)
        zarr.consolidate_metadata(toy_copy, path="textspan")
    hs.textspan(hs.open(toy_copy), POOL, texts_per_head=2, overwrite=True, save=True)
    group = zarr.open_group(toy_copy, mode="r")
    assert group["textspan/pool"].attrs["texts_per_head"] == 2
    assert np.asarray(group["textspan/pool/indices"][...]).shape == (3, 3, 2)
    assert hs.verify(hs.open(toy_copy, include_failed=True)).problems == ()


def test_other_changes_to_consolidated_metadata_count_as_damage(toy_copy: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(toy_copy)
    root = toy_copy / "zarr.json"
    root.write_text(root.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    (problem,) = hs.verify(hs.open(toy_copy, include_failed=True)).problems
    assert problem.where == "zarr.json"
    assert repair(toy_copy).files == ("zarr.json",)
