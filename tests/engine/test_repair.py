"""Tests of repair: it computes again what is damaged, nothing else, and the store is then as before the damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.ccs import read_scores
from headspan.concepts.labels import label_heads
from headspan.decode.in_flight import UnitsInFlight
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress
from headspan.run.repair import Repaired, repair
from headspan.run.verify import Verdict, verify
from headspan.shards.samples import SampleSpan
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.lineage import lineage_of
from headspan.store.write import analyses
from tests.conftest import ToyRun, relative_files

COMMITS = Path("records") / "commits"


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were read from the shards."""
    rows: list[int] = []
    spans = UnitsInFlight.spans

    def noted(self: UnitsInFlight) -> Iterator[SampleSpan]:
        for span in spans(self):
            rows.extend(span.rows.tolist())
            yield span

    monkeypatch.setattr(UnitsInFlight, "spans", noted)
    return rows


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


def repaired(store: Path) -> Repaired:
    done = repair(store, workers=2)
    assert done.verdict.problems == ()
    return done


def test_a_sound_store_is_not_changed(toy_copy: Path, read_rows: list[int]) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy_copy.rglob("*")}
    assert repaired(toy_copy).units == ()
    assert read_rows == []
    assert {path: path.stat().st_mtime_ns for path in toy_copy.rglob("*")} == before


@pytest.mark.parametrize(
    ("damage", "units"),
    [
        (lambda s: flip(s / "heads/c/1/0/0/0"), (1,)),
        (lambda s: (s / "ok/c/2").unlink(), (2,)),
        (lambda s: (s / "patches/c/0/0/0/0/0").write_bytes(b""), (0,)),
        (lambda s: [flip(s / f"norm/c/{unit}/0") for unit in (0, 2)], (0, 2)),
    ],
)
def test_exactly_the_damaged_units_are_computed_again_to_the_same_bytes(
    damage: Callable[[Path], Any], units: tuple[int, ...], toy_run: ToyRun, toy_copy: Path, read_rows: list[int]
) -> None:
    damage(toy_copy)
    assert repaired(toy_copy).units == units
    assert sorted(read_rows) == [row for row in range(70) if row // 32 in units]
    assert relative_files(toy_copy) == relative_files(toy_run.path)


@pytest.mark.parametrize(
    "file",
    [
        "heads/zarr.json",
        "model/head_to_joint/c/0/0/0/0",
        "records/samples/00000.parquet",
        "records/notes.parquet",
        "moments/gram/c/0/0/0/0",
        "moments/zarr.json",
    ],
)
def test_files_of_the_plan_and_merged_moments_are_restored_without_computing_a_unit(
    file: str, toy_run: ToyRun, toy_copy: Path, read_rows: list[int]
) -> None:
    (toy_copy / file).unlink()
    (toy_copy / file).write_bytes(b"{")
    assert repaired(toy_copy).units == ()
    assert read_rows == []
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_files_of_the_plan_are_restored_on_a_disk_that_has_no_room_for_a_second_store(
    toy_run: ToyRun, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy_copy / "heads" / "zarr.json").unlink()
    usage = shutil.disk_usage(toy_copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert repaired(toy_copy).files == ("heads/zarr.json",)
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_a_damaged_table_of_shards_is_restored_from_their_names(toy_run: ToyRun, toy_copy: Path) -> None:
    flip(toy_copy / "records" / "shards.parquet", 0.9)
    with pytest.raises(StoreError, match=r"shards\.parquet: this table is damaged .*; run headspan repair and name"):
        repair(toy_copy)
    done = repair(toy_copy, [str(shard) for shard in toy_run.shards])
    assert done.files == ("records/shards.parquet",)
    assert relative_files(toy_copy) == relative_files(toy_run.path)


@pytest.mark.parametrize("file", ["group-000000.json", "group-000000.moments"])
def test_changed_records_are_withdrawn_and_their_units_computed_again(
    file: str, toy_run: ToyRun, toy_copy: Path
) -> None:
    flip(toy_copy / COMMITS / file, 0.3)
    assert repaired(toy_copy).units == (0, 1, 2)
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_a_damaged_complete_record_is_written_again(toy_run: ToyRun, toy_copy: Path, read_rows: list[int]) -> None:
    (toy_copy / COMMITS / "complete.json").write_text("{")
    assert repaired(toy_copy).units == ()
    assert read_rows == []
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_a_unit_of_an_unfinished_store_is_repaired_and_the_rest_is_left_to_precompute(
    toy_run: ToyRun, tmp_path: Path, read_rows: list[int]
) -> None:
    def interrupt(event: Progress) -> None:
        if event.stage == "images" and event.done > 64:
            raise KeyboardInterrupt

    out = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        hs.precompute(out=out, on_progress=interrupt, **toy_run.settings())
    flip(out / "embedding/c/1/0")
    (out / COMMITS / "unit-00000000.moments").unlink()
    read_rows.clear()
    assert repaired(out).units == (0, 1)
    assert sorted(read_rows) == list(range(64))
    assert not hs.open(out).complete
    hs.precompute(out=out, **toy_run.settings())
    assert relative_files(out) == relative_files(toy_run.path)


@pytest.mark.parametrize("name", ["group-000000.json", "group-000000.moments"])
def test_missing_records_are_restored_by_computing_their_units(
    name: str, toy_run: ToyRun, toy_copy: Path, read_rows: list[int]
) -> None:
    (toy_copy / COMMITS / name).unlink()
    assert any(f"{name} is missing" in what for what in whats(verify(hs.open(toy_copy, include_failed=True))))
    assert repaired(toy_copy).units == (0, 1, 2)
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_a_resumed_run_restores_missing_records(toy_run: ToyRun, toy_copy: Path) -> None:
    (toy_copy / COMMITS / "group-000000.json").unlink()
    assert hs.open(toy_copy).images == 0
    assert hs.precompute(out=toy_copy, **toy_run.settings()).images == 67
    assert relative_files(toy_copy) == relative_files(toy_run.path)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "another number"])
def test_the_roots_metadata_are_restored_from_their_copy(
    damage: str, toy_run: ToyRun, toy_copy: Path, read_rows: list[int]
) -> None:
    root = toy_copy / "zarr.json"
    good = root.read_text()
    root.write_text({"empty": "", "cut": good[:-9], "another number": good.replace("70", "71")}.get(damage, good))
    if damage == "gone":
        root.unlink()
    if damage != "another number":
        with pytest.raises(StoreError, match=r"zarr\.json: is (missing|damaged .*); run headspan repair"):
            hs.open(toy_copy)
    assert repaired(toy_copy).files == ("zarr.json",)
    assert read_rows == []
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_moved_shards_are_read_where_they_are_named(toy_run: ToyRun, tmp_path: Path) -> None:
    for shard in toy_run.shards[:2]:
        (tmp_path / "first").mkdir(exist_ok=True)
        shutil.copy2(shard, tmp_path / "first")
    names = [shard.name for shard in toy_run.shards[:2]]
    store = tmp_path / "s.zarr"
    hs.precompute(out=store, **toy_run.settings(shards=[str(tmp_path / "first" / name) for name in names]))
    wanted = relative_files(store)
    (tmp_path / "first").rename(tmp_path / "second")
    flip(store / "heads/c/0/0/0/0")
    with pytest.raises(StoreError, match=r"000\.tar does not exist any more; name all shards after the store"):
        repair(store)
    flip(next((store / "records" / "samples").glob("*.parquet")))
    moved = [str(tmp_path / "second" / name) for name in names]
    with pytest.raises(StoreError, match=r"another name.*restore it"):
        hs.precompute(out=store, **toy_run.settings(shards=moved[::-1]))
    with pytest.raises(StoreError, match=r"is not the shard that was planned .*: it has another (size and )?time"):
        repair(store, moved[::-1])
    verdict = repair(store, moved).verdict
    assert (verdict.problems, verdict.unreached) == ((), 0)
    assert relative_files(store) == wanted


def test_damaged_results_of_an_analysis_are_found_and_the_analysis_replaces_them(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    vectors = np.random.default_rng(0).standard_normal((9, store.joint)).astype(np.float32)
    analyses.save(store, "texts", "pool", {"vectors": (vectors, ("text", "joint"))}, {"names": list("abcdefghi")})
    files = sorted(
        path for folder in ("texts", "records/results") for path in (toy_copy / folder).rglob("*") if path.is_file()
    )
    assert len(files) >= 5
    for path in files:
        good = path.read_bytes()
        for bad in (b"", good[:-1], bytes([good[0] ^ 4]) + good[1:], None):
            path.unlink() if bad is None else path.write_bytes(bad)
            if bad is None and path.parent.parent.name == "results":
                # Without its record it is like a run of an earlier version.
                path.write_bytes(good)
                continue
            found = verify(store)
            assert found.problems
            assert not any(problem.of_store for problem in found.problems)
            assert all("run headspan textspan again" in problem.what for problem in found.problems)
            with pytest.raises(StoreError, match=r"damaged.*run headspan textspan again"):
                results.load(store, "texts", "pool")
            path.write_bytes(good)
    (toy_copy / "texts" / "zarr.json").write_bytes(b"")
    files[0].write_bytes(b"")
    analyses.save(store, "texts", "pool", {"vectors": (vectors, ("text", "joint"))}, {"names": []})
    assert verify(store).problems == ()
    assert np.array_equal(results.load(store, "texts", "pool")[0]["vectors"], vectors)


def test_textspan_replaces_a_damaged_pool_of_texts(toy_copy: Path) -> None:
    texts = ["a dog", "red", "three", "on the left", "a photo"]
    wanted = hs.textspan(hs.open(toy_copy), texts, texts_per_head=2, run="r").texts(0, 0)
    files = [path for path in toy_copy.rglob("*") if path.is_file() and "texts" in path.relative_to(toy_copy).parts]
    assert len(files) >= 4
    for path in files:
        flip(path, 0.0)
        assert hs.textspan(hs.open(toy_copy), texts, texts_per_head=2, run="r").texts(0, 0) == wanted
        assert verify(hs.open(toy_copy, include_failed=True)).problems == ()


def test_a_complete_store_needs_only_the_moments_in_its_arrays(toy_copy: Path) -> None:
    wanted = hs.open(toy_copy).moments()
    (toy_copy / COMMITS / "group-000000.moments").unlink()
    assert np.array_equal(hs.open(toy_copy).moments().gram, wanted.gram)
    (toy_copy / COMMITS / "complete.json").unlink()
    with pytest.raises(StoreError, match=r"group-000000\.moments: the moments .* run headspan repair"):
        hs.open(toy_copy).moments()


class Step:
    """A function whose call number `fails_at` raises `error`: instead of the call, or `after` it."""

    def __init__(self, function: Any, fails_at: int, error: BaseException, after: bool) -> None:
        self.function, self.fails_at, self.error, self.after, self.calls = function, fails_at, error, after, 0

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        self.calls += 1
        if self.calls == self.fails_at and not self.after:
            raise self.error
        found = self.function(*arguments, **settings)
        if self.calls == self.fails_at:
            raise self.error
        return found


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (KeyboardInterrupt(), True),
        (OSError(28, "No space left on device"), False),
        pytest.param(KeyboardInterrupt(), False, marks=pytest.mark.full_size),
        pytest.param(OSError(28, "No space left on device"), True, marks=pytest.mark.full_size),
    ],
)
@pytest.mark.parametrize(
    ("name", "fails_at"),
    [
        ("group_of_kind", 1),
        ("is_recorded", 1),
        ("rename", 1),
        ("rename", 2),
        ("note_sources", 1),
        ("note", 1),
        ("discard", 1),
    ],
)
def test_replacing_a_run_loses_nothing_wherever_it_is_interrupted(
    name: str, fails_at: int, error: BaseException, after: bool, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)

    def save(value: int, kind: str = "ccs") -> None:
        arrays = {each: (np.full(3, value), ("x",)) for each in ("a", "b")}
        analyses.save(store, kind, "r", arrays, {"value": value}, overwrite=True)

    save(1)
    save(1, "truth")
    with monkeypatch.context() as patch:
        holder, attribute = {"rename": (Path, "rename"), "discard": (analyses, "_discard")}.get(name, (analyses, name))
        step = Step(getattr(holder, attribute), fails_at, error, after)
        patch.setattr(holder, attribute, lambda *arguments: step(*arguments))
        with pytest.raises((KeyboardInterrupt, StoreError)):
            save(2)
    assert step.calls >= fails_at
    # Once the new run is recorded it stays. What was made from the earlier run stays too, and says so.
    replaced = name == "discard" or (name == "note" and after)
    for kind, kept in (("ccs", 2 if replaced else 1), ("truth", 1)):
        assert results.runs(store, kind) == ["r"]
        arrays, settings = results.load(store, kind, "r")
        assert settings == {"value": kept}
        assert {each: set(values.tolist()) for each, values in arrays.items()} == {"a": {kept}, "b": {kept}}
    assert lineage_of(store, "truth", "r").older == ("ccs/r" if replaced else None)
    if name != "discard":
        assert verify(store).problems == ()
        assert not list(toy_copy.glob("*/.r.*"))
    save(3)
    assert results.load(store, "ccs", "r")[1] == {"value": 3}
    assert results.load(store, "truth", "r")[1] == {"value": 1}
    assert lineage_of(store, "truth", "r").older == "ccs/r"


def test_a_run_without_a_record_gets_one_when_it_is_saved_again(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    arrays = {"a": (np.arange(3), ("x",))}
    analyses.save(store, "ccs", "r", arrays, {"value": 1})
    record = next((toy_copy / "records" / "results" / "ccs").glob("r.json"))
    wanted = json.loads(record.read_bytes())
    assert wanted.pop("made_at").endswith("+00:00")
    record.unlink()
    analyses.save(store, "ccs", "r", arrays, {"value": 1})
    # Nobody knows when it was made.
    assert json.loads(record.read_bytes()) == wanted


@pytest.mark.parametrize(
    ("name", "wrong"), [("x" * 300, "300 characters; use at most 100"), ("../../six", "use letters, digits"), ("", "")]
)
def test_an_impossible_run_name_is_refused_by_every_function(name: str, wrong: str, toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    for use in (
        lambda: read_spans(store, name),
        lambda: read_scores(store, name),
        lambda: label_heads(store, name, save=True),
        lambda: hs.textspan(store, ["a", "b"], texts_per_head=1, run=name, save=True),
        lambda: results.load(store, "textspan", name),
        lambda: results.load_settings(store, "textspan", name),
    ):
        with pytest.raises(SettingsError, match=rf"run name .*{wrong}"):
            use()


def test_an_interrupted_repair_leaves_the_store_no_worse_and_can_be_repeated(toy_run: ToyRun, toy_copy: Path) -> None:
    flip(toy_copy / "heads/c/0/0/0/0")
    flip(toy_copy / "heads/c/1/0/0/0")

    def interrupt(event: Progress) -> None:
        if event.stage == "images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(toy_copy, on_progress=interrupt)
    assert {problem.unit for problem in verify(hs.open(toy_copy, include_failed=True)).problems} == {0, 1}
    assert repaired(toy_copy).units == (0, 1)
    assert relative_files(toy_copy) == relative_files(toy_run.path)


def test_a_repair_with_another_batch_size_verifies(toy_copy: Path) -> None:
    flip(toy_copy / "heads/c/1/0/0/0")
    assert repair(toy_copy, batch_size=3).verdict.problems == ()


def test_repair_is_refused_where_a_shard_has_changed(toy_run: ToyRun, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(toy_run.shards[0].read_bytes())
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(shard)]))
    flip(tmp_path / "s.zarr" / "heads/c/0/0/0/0")
    os.utime(shard, ns=(1, 1))
    with pytest.raises(StoreError, match=r"a\.tar .*is not the shard that was planned"):
        repair(tmp_path / "s.zarr")


def test_repair_asks_for_the_shards_whose_secrets_are_not_stored(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headspan.run import repair as module

    flip(toy_copy / "heads/c/0/0/0/0")
    shard = hs.open(toy_copy).shards()[0]
    monkeypatch.setattr(module, "read_shards", lambda path: [type(shard)("https://h/a.tar?…", 0, 1, 1, 1)])
    with pytest.raises(StoreError, match=r"records https://h/a\.tar\?… without its secrets, .*name all shards"):
        repair(toy_copy)


def test_a_quarantined_unit_is_tried_again(toy_run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"

    def bug(event: Progress) -> None:
        # An error that headspan does not raise, as when a device fails.
        if event.stage == "images" and event.done > 64:
            raise RuntimeError("device-side assert")

    # At the first death the unit before it was being committed; then the unit was alone three times.
    for _ in range(4):
        with pytest.raises(RuntimeError, match="device-side"):
            hs.precompute(out=out, on_progress=bug, **toy_run.settings())
    # The next run skips it.
    summary = hs.precompute(out=out, on_progress=bug, **toy_run.settings())
    assert [(unit.index, unit.first_row, unit.rows) for unit in summary.quarantined] == [(2, 64, 6)]
    assert not hs.open(out).complete
    (problem,) = verify(hs.open(out, include_failed=True)).problems
    assert (problem.unit, problem.what) == (2, "is quarantined, because its process repeatedly crashed")
    assert repaired(out).units == (2,)
    assert relative_files(out) == relative_files(toy_run.path)


def whats(verdict: Verdict) -> list[str]:
    return [problem.what for problem in verdict.problems]


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_verify_finds_a_source_tar_that_has_changed_since_the_plan(
    change: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(toy_run.shards[0].read_bytes())
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(shard)], emit=("heads",)))
    store = hs.open(tmp_path / "s.zarr", include_failed=True)
    assert verify(store).problems == ()
    if change == "bytes":
        shard.write_bytes(shard.read_bytes() + bytes(512))
    else:
        os.utime(shard, ns=(1, 1))
    (problem,) = verify(store).problems
    assert (problem.unit, problem.first_row, problem.rows, problem.of_source) == (-1, 0, 31, True)
    assert problem.what.startswith(f"{shard} has changed since precompute read it")
    shard.unlink()
    verdict = verify(store)
    assert (verdict.problems, verdict.unreached) == ((), 1)


def test_on_request_every_image_is_compared_with_its_checksum(toy_run: ToyRun, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(toy_run.shards[2].read_bytes())
    stat = shard.stat()
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(shard)], emit=("heads",), unit_images=16))
    store = hs.open(tmp_path / "s.zarr", include_failed=True)
    assert verify(store, sources=True).problems == ()
    # Change one bit of an image of the second unit, and restore the times.
    sample = next(sample for sample in store.contents.samples_of(store.contents.records[1]) if sample.row == 20)
    data = bytearray(shard.read_bytes())
    data[sample.offset + 30] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify(store).problems == ()
    (problem,) = verify(store, sources=True).problems
    assert (problem.unit, problem.of_source) == (1, True)
    assert problem.what == f"the images in {shard} have changed since the unit was computed"


def test_a_shard_that_changes_during_the_run_ends_it(toy_run: ToyRun, tmp_path: Path) -> None:
    shards = [tmp_path / f"{n}.tar" for n in range(2)]
    for n, shard in enumerate(shards):
        shard.write_bytes(toy_run.shards[2 * n].read_bytes())

    def change(event: Progress) -> None:
        if event.stage == "planned":
            os.utime(shards[1], ns=(1, 1))

    with pytest.raises(
        hs.HeadspanError, match=r"1\.tar: has changed since precompute read it .*; restore it to continue"
    ):
        hs.precompute(
            out=tmp_path / "s.zarr", on_progress=change, **toy_run.settings(shards=[str(shard) for shard in shards])
        )


def test_a_changed_bit_in_any_file_of_a_store_is_found(toy_copy: Path) -> None:
    """Flip a bit in each file in turn: verify reports it, or the store does not open."""
    unnoticed = []
    for path in sorted(path for path in toy_copy.rglob("*") if path.is_file()):
        good = path.read_bytes()
        flip(path, 0.6)
        try:
            if not verify(hs.open(toy_copy, include_failed=True)).problems:
                unnoticed.append(path.name)
        except hs.HeadspanError:
            pass
        path.write_bytes(good)
    assert unnoticed == []


def test_records_that_disagree_with_the_arrays_are_found(toy_copy: Path) -> None:
    path = toy_copy / COMMITS / "group-000000.json"
    records = json.loads(path.read_text())
    records[1]["images"] -= 1
    path.write_text(json.dumps(records))
    assert any(what.startswith("ok marks") for what in whats(verify(hs.open(toy_copy, include_failed=True))))
