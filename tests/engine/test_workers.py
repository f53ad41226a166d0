"""Several writers on one store, crashes at any file operation, and units that repeatedly end their process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import headspan as hs
from headspan.decompose.formula import Folded
from headspan.decompose.moments import Moments
from headspan.errors import StoreError
from headspan.io import files
from headspan.io.files import StagedFile, checksum
from headspan.io.local import LocalStorage
from headspan.run import scheduler as work
from headspan.run.scheduler import Pause, Scheduler
from headspan.shards.samples import Sample, Shard, Unit
from headspan.store import commit_records
from headspan.store.commit_records import UnitRecord
from headspan.store.moments_file import MergedMoments
from headspan.store.schema import FORMAT
from headspan.store.worker_states import other_workers
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter
from tests.conftest import relative_files

IMAGES, UNIT_IMAGES, UNITS = 11, 2, 6
ATTRIBUTES: dict[str, Any] = {
    "format": FORMAT,
    "version": "test",
    "model": "none",
    "weights_sha256": "00",
    "precision": "fp32",
    "emit": ["heads"],
    "dimensions": {
        "images": IMAGES,
        "unit_images": UNIT_IMAGES,
        "layers": [0],
        "all_layers": 1,
        "direct_layers": 1,
        "heads": 1,
        "head_dim": 2,
        "tokens": 2,
        "prefix_tokens": 1,
        "joint": 3,
        "terms": 2,
        "through_pool": [],
        "through_pool_heads": 0,
    },
}
SHARDS = [("a.tar", 9_000, 1)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned store of six units without a model, none of them computed."""
    path = tmp_path_factory.mktemp("planned") / "run.zarr"
    folded = Folded(
        head_to_joint=np.ones((1, 1, 2, 3), np.float32),
        head_mean=np.ones((1, 1, 2), np.float32),
        bias_to_joint=np.ones((1, 3), np.float32),
        bias_mean=np.ones(1, np.float32),
        gain=np.ones(3, np.float32),
        shift=np.ones(3, np.float32),
        share_count=np.ones(1, np.float32),
    )
    with NewStore(path) as staged:
        staged.plan((Sample(row, f"{row}", "a.tar", f"{row}.png", 512, 1) for row in range(IMAGES)), UNIT_IMAGES, [])
        assert staged.publish(ATTRIBUTES, [Shard("a.tar", 0, IMAGES, 9_000, 1)], folded)
    return path


def write_unit(store: StoreWriter, unit: Unit, variant: int) -> bool:
    """Compute and commit a unit with the numbers of `variant`. Returns whether this writer committed it."""
    rows = np.arange(unit.first_row, unit.first_row + unit.rows)
    values = (rows + variant / 8).astype(np.float32)
    norm = np.repeat(values[:, None] + 1, 3, axis=1)
    heads = np.repeat(values[:, None], 2, axis=1).reshape(-1, 1, 1, 2)
    moments = Moments.zeros(1, 1, 2, torch.device("cpu"))
    moments.add(torch.from_numpy(heads), torch.from_numpy(norm))
    with store.begin(unit) as writer:
        arrays = {"embedding": norm, "norm": norm, "heads": heads.astype(np.float16)}
        writer.put(rows, np.ones(len(rows), bool), arrays)
        return writer.commit(moments, []) is not None


def variant_of(path: Path, unit: int) -> set[float]:
    """The variants that the rows of a unit contain, over all arrays; more than one if the unit is mixed."""
    store = hs.open(path, include_failed=True)
    rows = np.arange(unit * UNIT_IMAGES, min((unit + 1) * UNIT_IMAGES, IMAGES))
    found = [store.norm[rows] - 1 - rows[:, None], store.head_coordinates(0, 0)[rows] - rows[:, None]]
    return {round(float(value), 3) for each in found for value in each.reshape(-1)}


def test_a_late_writer_cannot_overwrite_a_committed_unit_with_other_bytes(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    fast, slow = StoreWriter(path), StoreWriter(path)
    assert write_unit(fast, fast.units[3], 1)
    before = relative_files(path)
    assert not write_unit(slow, slow.units[3], 2)
    assert relative_files(path) == before
    assert variant_of(path, 3) == {0.125}


def test_a_late_writer_does_not_change_a_unit_whose_record_is_merged(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_records, "GROUP_UNITS", 2)
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    fast, slow = StoreWriter(path), StoreWriter(path)
    assert write_unit(fast, fast.units[2], 1)
    assert write_unit(fast, fast.units[3], 1)
    assert list((path / "records" / "commits").glob("unit-*")) == []
    before = relative_files(path)
    assert not write_unit(slow, slow.units[3], 2)
    assert relative_files(path) == before


def test_a_late_writer_that_is_killed_after_its_claim_changes_nothing(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    fast, slow = StoreWriter(path), StoreWriter(path)
    assert write_unit(fast, fast.units[3], 1)
    before = relative_files(path)
    # The claim is linked, and the process ends before the first file is deleted after that.
    with crash_at(slow, 0, of="unlink"), pytest.raises(Killed):
        write_unit(slow, slow.units[3], 2)
    assert list(path.rglob("*.claim"))
    StoreWriter(path).commits.settle_all()
    found = relative_files(path)
    leftover = {name for name in found if name.endswith(".tmp")}
    # Only the staged claim is left. Finishing the store deletes it.
    assert len(leftover) == 1
    assert {name: data for name, data in found.items() if name not in leftover} == before
    assert variant_of(path, 3) == {0.125}


def test_another_writer_publishes_what_a_killed_writer_claimed(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    killed, other = StoreWriter(path), StoreWriter(path)
    with crash_at(killed, 1, of="publish"), pytest.raises(Killed):
        write_unit(killed, killed.units[1], 1)
    assert not other.commits.is_done(1)
    # The claim names the killed writer, so its files count.
    assert not write_unit(other, other.units[1], 2)
    assert variant_of(path, 1) == {0.125}
    assert list(path.rglob(".*.tmp")) == []


def test_finishing_a_store_deletes_the_claims_of_writers_that_were_killed_after_their_unit_was_committed(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_before_a_claim_is_deleted(storage: LocalStorage, key: str) -> None:
        if key.endswith(".claim"):
            raise Killed

    whole, path = (Path(shutil.copytree(planned, tmp_path / name)) for name in ("whole.zarr", "s.zarr"))
    first, killed, other = StoreWriter(whole), StoreWriter(path), StoreWriter(path)
    for unit in first.units:
        write_unit(first, unit, 1)
    first.finish()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", killed_before_a_claim_is_deleted)
        with pytest.raises(Killed):
            write_unit(killed, killed.units[2], 1)
    for unit in other.units:
        if unit.index != 2:
            write_unit(other, unit, 1)
    assert len(list(path.rglob("*.claim"))) == 1
    other.finish()
    assert relative_files(path) == relative_files(whole)


def test_a_claim_whose_files_are_lost_is_deleted_and_its_unit_computed_again(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    killed, other = StoreWriter(path), StoreWriter(path)
    with crash_at(killed, 1, of="publish"), pytest.raises(Killed):
        write_unit(killed, killed.units[1], 1)
    for temporary in path.rglob(".*.tmp"):
        temporary.unlink()
    with Scheduler(other) as jobs:
        left = [unit.index for unit in units_of(jobs) if write_unit(other, unit, 2)]
    assert left == list(range(UNITS))
    assert variant_of(path, 1) == {0.25}


def test_a_unit_that_a_writer_claimed_before_it_was_killed_is_committed_by_one_that_runs_already(
    planned: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    killed, other = StoreWriter(path), StoreWriter(path)
    found = []
    with Scheduler(other) as jobs:
        passes = jobs.passes()
        first = next(passes)
        its = Scheduler(killed).__enter__()
        its._log.took(1)
        with crash_at(killed, 1, of="publish"), pytest.raises(Killed):
            write_unit(killed, killed.units[1], 1)
        its.__exit__(Killed)
        for units in chain([first], passes):
            for unit in units:
                assert write_unit(other, unit, 2)
                jobs.finished(unit)
                found.append(unit.index)
        other.finish()
    assert sorted(found) == [0, 2, 3, 4, 5]
    assert variant_of(path, 1) == {0.125}
    assert [name for name in relative_files(path) if "writers" in name or name.endswith((".tmp", ".claim"))] == []


def test_a_claim_whose_files_are_lost_meanwhile_does_not_stop_the_unit_from_being_committed(
    planned: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    killed, other = StoreWriter(path), StoreWriter(path)
    with crash_at(killed, 1, of="publish"), pytest.raises(Killed):
        write_unit(killed, killed.units[1], 1)
    for temporary in path.rglob(".*.tmp"):
        temporary.unlink()
    assert write_unit(other, other.units[1], 2)
    assert variant_of(path, 1) == {0.25}
    assert [name for name in relative_files(path) if name.endswith((".tmp", ".claim"))] == []


def test_a_unit_is_refused_if_its_own_staged_files_are_lost(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    store = StoreWriter(path)
    add = store.commits.add

    def tidied(record: UnitRecord, moments: MergedMoments) -> bool:
        for temporary in path.rglob("heads/**/.*.tmp"):
            temporary.unlink()
        return add(record, moments)

    monkeypatch.setattr(store.commits, "add", tidied)
    with pytest.raises(StoreError, match="staged files of unit 1 were deleted"):
        write_unit(store, store.units[1], 1)
    assert not store.commits.is_done(1)
    assert [name for name in relative_files(path) if name.endswith((".tmp", ".claim"))] == []


def test_replacing_a_unit_is_refused_if_its_staged_files_are_lost(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    store = StoreWriter(path)
    assert write_unit(store, store.units[1], 1)
    before = relative_files(path)
    replace = store.commits.replace

    def tidied(record: UnitRecord, moments: MergedMoments) -> None:
        for temporary in path.rglob("heads/**/.*.tmp"):
            temporary.unlink()
        replace(record, moments)

    monkeypatch.setattr(store.commits, "replace", tidied)
    with pytest.raises(StoreError, match="staged files of unit 1 were deleted"), store.begin(store.units[1]) as writer:
        writer.commit(Moments.zeros(1, 1, 2, torch.device("cpu")), [], again=True)
    record = "records/commits/unit-00000001.json"
    # The record still proves that the shards that were replaced are not as they were.
    assert relative_files(path)[record] == before[record]
    assert list(path.rglob(".*.tmp")) == []


def test_a_note_of_quarantine_that_another_process_deletes_is_skipped(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    store = StoreWriter(path)
    for unit in store.units[1:3]:
        store.commits.quarantine(unit, work.TRIES)
    get = store.storage.get

    def committed_meanwhile(key: str) -> bytes:
        if "00000001" in key:
            store.storage.delete(key)
        return get(key)

    monkeypatch.setattr(store.storage, "get", committed_meanwhile)
    assert store.commits.quarantined_units() == [store.units[2]]


def test_two_writers_share_the_units_and_both_end_with_a_finished_store(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    done: dict[int, list[int]] = {0: [], 1: []}
    stores = [StoreWriter(path), StoreWriter(path)]
    with Scheduler(stores[0]) as first, Scheduler(stores[1]) as second:
        jobs, streams = (first, second), [units_of(first), units_of(second)]
        # In turns; each writer has its next unit in flight while the other works.
        waiting = [next(stream, None) for stream in streams]
        while any(waiting):
            for place, unit in enumerate(waiting):
                if unit is not None:
                    if write_unit(stores[place], unit, place):
                        done[place].append(unit.index)
                    jobs[place].finished(unit)
                    waiting[place] = next(streams[place], None)
        for store in stores:
            store.finish()
    assert sorted(done[0] + done[1]) == list(range(UNITS))
    assert min(len(done[0]), len(done[1])) >= 2
    assert hs.open(path).complete
    assert hs.open(path).moments().count == IMAGES


def test_finishing_does_not_delete_the_staged_files_of_a_living_writer(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    alive, store = StoreWriter(path), StoreWriter(path)
    temporary = path / "norm" / "c" / f".0.{alive.token}.tmp"
    dead = path / "norm" / "c" / ".0.0badcafe.tmp"
    with Scheduler(alive):
        for unit in store.units:
            write_unit(store, unit, 0)
        temporary.write_bytes(b"half")
        dead.write_bytes(b"half")
        store.finish()
        assert temporary.exists()
        assert not dead.exists()


def units_of(jobs: Scheduler) -> Iterator[Unit]:
    """The units of all passes."""
    for chosen in jobs.passes():
        if isinstance(chosen, Pause):
            time.sleep(chosen.seconds)
        else:
            yield from chosen


def killed_with(path: Path, units: list[int]) -> None:
    """Start `units` in a writer, and kill it."""
    jobs = Scheduler(StoreWriter(path)).__enter__()
    for unit in units:
        jobs._log.took(unit)
    jobs.__exit__(Killed)


def order_of(path: Path, variant: int = 0) -> list[int]:
    """Compute and commit all units in a new writer. Returns them in its order."""
    store = StoreWriter(path)
    found = []
    with Scheduler(store) as jobs:
        for unit in units_of(jobs):
            write_unit(store, unit, variant)
            jobs.finished(unit)
            found.append(unit.index)
        store.finish()
    return found


def test_units_in_flight_when_a_writer_was_killed_come_last_and_one_at_a_time(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    killed_with(path, [1, 2])
    killed_with(path, [2])
    store = StoreWriter(path)
    with Scheduler(store) as jobs:
        passes = []
        for units in jobs.passes():
            passes.append([unit.index for unit in units])
    assert passes == [[0, 3, 4, 5], [1], [2]]


def test_a_unit_that_keeps_killing_its_worker_is_quarantined_and_the_others_are_finished(
    planned: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    # With several units in flight, a death says little about each.
    killed_with(path, [1, 2, 3])
    for _ in range(work.TRIES):
        killed_with(path, [2])
    assert order_of(path) == [0, 4, 5, 1, 3]
    store = hs.open(path)
    assert [unit.index for unit in store.quarantined_units()] == [2]
    assert not store.complete
    assert store.rows.tolist() == [row for row in range(IMAGES) if row not in (4, 5)]
    # The same command skips it.
    assert order_of(path) == []
    # Once it is committed, it is no longer quarantined, and the logs of the killed writers are deleted.
    writer = StoreWriter(path)
    assert write_unit(writer, writer.units[2], 0)
    assert hs.open(path).quarantined_units() == []
    assert order_of(path) == []
    assert hs.open(path).complete
    assert list(other_workers(LocalStorage(path))) == []


def test_an_interrupted_writer_leaves_no_log_and_a_failed_one_does(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    for error, left in ((KeyboardInterrupt, 0), (StoreError, 0), (RuntimeError, 1)):
        jobs = Scheduler(StoreWriter(path)).__enter__()
        jobs._log.took(0)
        jobs.__exit__(error)
        assert len(list(other_workers(LocalStorage(path)))) == left


def test_units_in_flight_in_a_living_writer_come_last(planned: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    with Scheduler(StoreWriter(path)) as live:
        live._log.took(0)
        live._log.took(1)
        assert [writer.alive for writer in other_workers(LocalStorage(path))] == [True]
        order = order_of(path)
        assert set(order[:4]) == {2, 3, 4, 5}
        # From the end, where the other worker comes last, once they are late.
        assert order[4:] == [1, 0]


def test_a_read_only_disk_is_refused_before_any_work(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    plain_open = os.open

    def read_only(name: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return plain_open(name, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\); .* run the same command"):
        Scheduler(StoreWriter(path)).__enter__()


def test_resuming_is_refused_if_the_rest_does_not_fit_the_disk(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    store = StoreWriter(path)
    for unit in store.units[:-1]:
        write_unit(store, unit, 0)
    usage = shutil.disk_usage(path)
    row_bytes = 1 + 3 * 4 + 3 * 4 + 2 * 2
    for free, fits in ((row_bytes, True), (row_bytes - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            store.refuse_full_disk()
        else:
            with pytest.raises(StoreError, match=r"the rest of the store will take .* free disk space"):
                store.refuse_full_disk()


class Killed(BaseException):
    """The process has ended: it does nothing after this."""


class crash_at:  # noqa: N801
    """End `store`'s process at file operation `moment` (from 0), of all or of one kind, without cleaning up."""

    def __init__(self, store: StoreWriter, moment: int, of: str = "") -> None:
        self._left = moment
        self._of = of
        self._dead = False
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for owner, name in (
            (os, "fsync"),
            (os, "link"),
            (Path, "replace"),
            (Path, "unlink"),
            (LocalStorage, "publish"),
        ):
            self._patch.setattr(owner, name, self._around(name, getattr(owner, name)))

    def __exit__(self, *error: object) -> None:
        self._patch.undo()

    def _around(self, name: str, action: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if not self._dead and name.startswith(self._of):
                self._left -= 1
            if self._dead or self._left < 0:
                self._dead = True
                raise Killed
            # No power failure is simulated.
            return None if name == "fsync" else action(*args, **kwargs)

        return operation


class Session:
    """A writer: its store, its position in the passes, its unit in flight."""

    def __init__(self, path: Path, variant: int) -> None:
        self.store = StoreWriter(path)
        self.variant = variant
        self.work = Scheduler(self.store)
        self.work.__enter__()
        self._units = self._stream()
        self.unit: Unit | None = None

    def _stream(self) -> Iterator[Unit | None]:
        for units in self.work.passes():
            if isinstance(units, Pause):
                yield None
            else:
                yield from units

    def take(self) -> None:
        if self.unit is None:
            self.unit = next(self._units, None)

    def commit(self) -> None:
        if self.unit is not None:
            write_unit(self.store, self.unit, self.variant)
            self.work.finished(self.unit)
            self.unit = None

    def end(self, kind: type[BaseException] | None = None) -> None:
        self.work.__exit__(kind, None, None)


class WrittenStore(RuleBasedStateMachine):
    """Two writers with different numbers append, crash at any file operation, and resume."""

    planned: Path
    folder: Path
    number = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).number += 1
        self.path = Path(shutil.copytree(self.planned, self.folder / f"{type(self).number}.zarr"))
        self.sessions: list[Session | None] = [None, None]
        # The files of every committed unit, as they were when it was first found committed.
        self.seen: dict[int, dict[str, bytes]] = {}
        self.crashes = 0

    @rule(place=st.integers(0, 1))
    def resume(self, place: int) -> None:
        if self.sessions[place] is None:
            self.sessions[place] = Session(self.path, place + 1)

    @rule(place=st.integers(0, 1))
    def take(self, place: int) -> None:
        if session := self.sessions[place]:
            session.take()

    @rule(place=st.integers(0, 1))
    def append(self, place: int) -> None:
        if session := self.sessions[place]:
            session.take()
            session.commit()

    @rule(place=st.integers(0, 1), moment=st.integers(0, 45))
    def crash(self, place: int, moment: int) -> None:
        if session := self.sessions[place]:
            session.take()
            try:
                with crash_at(session.store, moment):
                    session.commit()
                    session.store.finish()
                    # Killed between two operations.
                    raise Killed
            except Killed:
                session.end(Killed)
            self.sessions[place] = None
            self.crashes += 1

    @rule(place=st.integers(0, 1))
    def stop(self, place: int) -> None:
        if session := self.sessions[place]:
            session.end(KeyboardInterrupt)
            self.sessions[place] = None

    @rule(place=st.integers(0, 1))
    def finish(self, place: int) -> None:
        if session := self.sessions[place]:
            session.store.finish()

    @rule(setting=st.sampled_from(["weights_sha256", "precision", "emit", "shards"]))
    def changed_settings(self, setting: str) -> None:
        before = relative_files(self.path)
        attributes, shards = dict(ATTRIBUTES), list(SHARDS)
        if setting == "shards":
            shards = [("a.tar", 9_001, 1)]
        else:
            attributes[setting] = "another"
        with pytest.raises(StoreError, match=r"use the same settings|restore it to continue"):
            StoreWriter(self.path).refuse_other(attributes, shards)
        StoreWriter(self.path).refuse_other(ATTRIBUTES, SHARDS)
        assert relative_files(self.path) == before

    @invariant()
    def what_is_committed_stays_as_it_is(self) -> None:
        records = {record.unit: record for record in StoreWriter(self.path).commits.records()}
        assert set(self.seen) <= set(records)
        for unit, record in records.items():
            found = {name: (self.path / name).read_bytes() for name in record.files}
            assert found == self.seen.setdefault(unit, found)
            for name, recorded in record.files.items():
                assert checksum(self.path / name) == recorded
            assert variant_of(self.path, unit) in ({0.125}, {0.25})
        if records:
            assert hs.open(self.path).moments().count == sum(record.images for record in records.values())

    @precondition(lambda self: self.crashes > 0)
    @rule()
    def all_crash(self) -> None:
        for place, session in enumerate(self.sessions):
            if session is not None:
                session.end(Killed)
                self.sessions[place] = None

    def teardown(self) -> None:
        for session in self.sessions:
            if session is not None:
                session.end(KeyboardInterrupt)
        order_of(self.path, variant=1)
        store = StoreWriter(self.path)
        if quarantined := store.commits.quarantined_units():
            with Scheduler(store, only=quarantined) as jobs:
                for unit in units_of(jobs):
                    write_unit(store, unit, 1)
                store.finish()
        self.what_is_committed_stays_as_it_is()
        reader = hs.open(self.path)
        assert reader.complete
        assert reader.images == reader.moments().count == IMAGES
        names = set(relative_files(self.path))
        unstaged = {name for name in names if not name.endswith((".tmp", ".claim", ".quarantined", ".log"))}
        assert names == unstaged
        assert json.loads((self.path / "records" / "commits" / "complete.json").read_text())
        shutil.rmtree(self.path)


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.full_size)])
def test_any_sequence_of_appends_crashes_and_resumes_of_two_writers_keeps_committed_units(
    examples: int, planned: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_records, "GROUP_UNITS", 2)
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)
    WrittenStore.planned, WrittenStore.folder = planned, tmp_path_factory.mktemp("machine")
    hypothesis_run = settings(
        max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(WrittenStore, settings=hypothesis_run)


@pytest.mark.parametrize("step", ["write", "finish"])
def test_a_refused_write_at_any_point_of_a_unit_leaves_none_of_its_files(
    step: str, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(planned, tmp_path / "s.zarr"))
    store = StoreWriter(path)
    before, action = relative_files(path), getattr(StagedFile, step)
    refused = 0
    while True:
        left = [refused]

        def refusing(file: StagedFile, *part: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == -1:
                # Raised inside the file's own clean-up, as an error of the disk would be.
                with file._or_discarded():
                    raise OSError(28, "No space left on device")
            return action(file, *part)

        with monkeypatch.context() as patch:
            patch.setattr(StagedFile, step, refusing)
            try:
                assert write_unit(store, store.units[0], 1)
                break
            except StoreError:
                pass
        assert relative_files(path) == before
        refused += 1
    # Four arrays, moments, record and claim. Each array is written in two parts: its chunks and its index.
    assert refused >= {"write": 11, "finish": 7}[step]
    assert variant_of(path, 0) == {0.125}
