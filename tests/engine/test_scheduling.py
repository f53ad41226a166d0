"""Leases of workers without locks, the order of units, what scheduling costs, and who works on a store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from benchmarks.counted_bucket import Bucket, CountedStorage
from benchmarks.simulated_run import MOMENTS, SimulatedStore, simulate
from headspan.cli.main import main
from headspan.cli.watch import lines
from headspan.errors import SourceError, StoreError
from headspan.events import Progress, ignore
from headspan.io.locks import LockedLog, last_line, read_log
from headspan.member_names import MemberNames
from headspan.run import plan_processes, scheduler
from headspan.run.plan_ahead import begun_plan
from headspan.run.scheduler import KEPT_SECONDS, TRIES, Pause, Scheduler
from headspan.shards.plan import units
from headspan.shards.samples import Unit
from headspan.shards.urls import stored_names
from headspan.store import contents, opened
from headspan.store.commit_records import UnitRecord
from headspan.store.schema import Dimensions
from headspan.store.watch import watched
from headspan.store.worker_states import BEAT_SECONDS, DEAD_SECONDS, WORKERS, WorkerState, other_workers
from headspan.store.write.workers import WorkerLog
from tests.conftest import image_members, relative_files, write_tar

ROWS = 10


class _KilledError(BaseException):
    pass


class Worker:
    """A worker of a simulated store in a bucket, which commits its units without arrays."""

    def __init__(self, bucket: Bucket, token: str, count: int, images: int | None = None) -> None:
        self.store = SimulatedStore(CountedStorage(bucket, token), units(images or count * ROWS, ROWS))
        self.scheduler = Scheduler(self.store, clock=lambda: bucket.seconds)
        self.scheduler.__enter__()
        self.stream = self._stream()

    def _stream(self) -> Iterator[Unit]:
        for chosen in self.scheduler.passes():
            if isinstance(chosen, Pause):
                self.store.storage.bucket.seconds += chosen.seconds
            else:
                yield from chosen

    def commit(self, unit: Unit) -> bool:
        record = UnitRecord(unit.index, unit.first_row, unit.rows, unit.rows, {}, [])
        mine = self.store.commits.add(record, MOMENTS)
        self.scheduler.finished(unit, mine)
        return mine

    def rest(self) -> list[int]:
        return [unit.index for unit in self.stream if self.commit(unit)]

    def kill(self) -> None:
        self.scheduler.__exit__(_KilledError)


def test_workers_without_locks_share_all_units_and_leave_nothing_behind() -> None:
    bucket = Bucket()
    workers = [Worker(bucket, f"0000000{number}", 257) for number in range(3)]
    done: list[int] = []
    waiting = [next(worker.stream, None) for worker in workers]
    while any(unit is not None for unit in waiting):
        # In flight together, none is in the hands of two, but at the end.
        held = [unit.index for unit in waiting if unit is not None]
        assert len(set(held)) == len(held) or len(done) >= 257 - len(workers)
        for place, unit in enumerate(waiting):
            if unit is not None:
                done += [unit.index] if workers[place].commit(unit) else []
                waiting[place] = next(workers[place].stream, None)
    assert sorted(done) == list(range(257))
    for worker in workers:
        worker.scheduler.__exit__(None)
    # What the workers have in common is deleted when the store is completed.
    assert bucket.folders["records/writers"].keys() == {"records/writers/run.0"}


def test_a_worker_that_says_nothing_for_minutes_of_the_storages_clock_is_dead_and_its_unit_is_computed_alone() -> None:
    bucket = Bucket()
    # The storage's clock is far from that of this computer.
    bucket.seconds = 5e9
    silent, other = Worker(bucket, "aaaaaaaa", 5), Worker(bucket, "bbbbbbbb", 5)
    assert next(silent.stream).index == 0
    (seen,) = other_workers(other.store.storage, "bbbbbbbb")
    assert (seen.alive, seen.in_flight) == (True, (0,))
    bucket.seconds += DEAD_SECONDS + 1
    (seen,) = other_workers(other.store.storage, "bbbbbbbb")
    assert (seen.alive, seen.in_flight) == (False, (0,))
    passes = [[unit.index for unit in chosen if other.commit(unit)] for chosen in other.scheduler.passes()]
    assert passes == [[1, 2, 3, 4], [0]]
    # Its put arrives late: the unit stays as it is, and it goes on.
    record = UnitRecord(0, 0, ROWS, 3, {}, [])
    assert not silent.store.commits.add(record, MOMENTS)
    assert silent.rest() == []
    assert [record.images for record in other.store.commits.records()] == [ROWS] * 5
    for worker in (silent, other):
        worker.scheduler.__exit__(None)


def test_what_a_silent_worker_staged_is_kept_for_an_hour() -> None:
    bucket = Bucket()
    silent = Worker(bucket, "aaaaaaaa", 2)
    unit = next(silent.stream)
    dropped: list[str] = []
    for seconds, expected in ((DEAD_SECONDS + 1, []), (KEPT_SECONDS, ["aaaaaaaa"])):
        bucket.seconds += seconds
        other = Worker(bucket, "bbbbbbbb", 2)
        other.store.drop_staged = lambda unit, token: dropped.append(token)  # type: ignore[method-assign]
        assert unit.index in other.scheduler._suspects()
        other.scheduler.__exit__(None)
        assert dropped == expected
    silent.kill()


def test_a_unit_that_silences_its_workers_is_quarantined_without_locks() -> None:
    bucket = Bucket()
    for number in range(TRIES):
        killed = Worker(bucket, f"aaaaaaa{number}", 3)
        killed.scheduler._log.took(1)
        killed.kill()
        bucket.seconds += DEAD_SECONDS + 1
    worker = Worker(bucket, "bbbbbbbb", 3)
    assert worker.rest() == [0, 2]
    assert [unit.index for unit in worker.store.commits.quarantined_units()] == [1]
    worker.scheduler.__exit__(None)


def test_a_dead_workers_reservation_is_taken_over_by_one_worker_only() -> None:
    bucket = Bucket()
    logs = [WorkerLog(CountedStorage(bucket, token), token) for token in ("aaaaaaaa", "bbbbbbbb", "cccccccc")]
    for log in logs:
        log.__enter__()
    assert logs[0].took(7)
    assert not logs[1].took(7)
    logs[0].__exit__(_KilledError)
    bucket.seconds += DEAD_SECONDS + 1
    for log in logs[1:]:
        log._write()
    assert [log.took(7) for log in logs[1:]] == [True, False]
    assert [key for key in sorted(logs[1]._storage.list(WORKERS)) if "unit-" in key] == [
        f"{WORKERS}/unit-00000007.0",
        f"{WORKERS}/unit-00000007.1",
    ]
    # A lost answer: the worker finds its own reservation.
    logs[1]._reserved._turns.clear()
    assert logs[1].took(7)
    for log in logs[1:]:
        log.__exit__(None)


@pytest.mark.parametrize(("field", "what"), [("version", "headspan"), ("weights_sha256", "the image tower sha256")])
def test_a_worker_with_another_version_or_other_weights_is_refused_by_name(
    field: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()

    class Other(WorkerLog):
        def __enter__(self) -> WorkerLog:
            self.state.host, self.state.process, self.state.device = "node7", 4711, "cuda:1"
            setattr(self.state, field, "99.0")
            return super().__enter__()

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "WorkerLog", Other)
        first = Worker(bucket, "aaaaaaaa", 2)
    bucket.seconds += 1
    with pytest.raises(
        StoreError, match=rf"process 4711 on node7 \(cuda:1\) computes this store with {what} 99\.0, but"
    ):
        Worker(bucket, "bbbbbbbb", 2)
    # The refused one leaves nothing, and the first goes on; a dead one refuses nobody.
    assert [key for key in bucket.folders["records/writers"] if "bbbbbbbb" in key] == []
    bucket.seconds += DEAD_SECONDS + 1
    Worker(bucket, "bbbbbbbb", 2).scheduler.__exit__(None)
    # The run of the version that is there now has the next number, and refuses the other one when it comes back.
    assert {"records/writers/run.0", "records/writers/run.1"} <= bucket.folders["records/writers"].keys()
    first.scheduler.__exit__(None)


def test_a_log_of_replaced_lines_stays_small_and_always_holds_the_last_line(tmp_path: Path) -> None:
    log = LockedLog(tmp_path / "a.log")
    log.open()
    for number in range(1, 600):
        line = WorkerState("host", units=dict.fromkeys(range(number % 7), 1.0)).dump()
        log.replace(line, durably=False)
        found = read_log(tmp_path / "a.log")
        assert found is not None
        assert last_line(found[1]) == line
    assert (tmp_path / "a.log").stat().st_size < 10_000
    log.close(delete=True)


def test_requests_for_each_unit_and_worker_grow_neither_with_the_finished_units_nor_with_the_workers() -> None:
    starts, ends = [], []
    for workers in (2, 8):
        bucket, planned = Bucket(), units(8_000, 10)
        found = simulate(planned, [CountedStorage(bucket, f"{number:08x}") for number in range(workers)], bucket)
        parts = [part["choosing_requests"] for part in found["tenths"]]
        assert len(parts) == 10
        # Reservation, state and two looks for a record, and two listings for a group of units. Later, workers share
        # the last groups.
        assert max(parts[1:6]) < 5.5
        assert max(parts) < 12
        assert found["computed_twice"] == 0
        starts.append(found["start"]["requests"] / workers)
        ends.append(found["end"]["requests"] / workers)
        assert bucket.folders["records/writers"] == {}
    # A listing for claims, one of workers, its state, and the note on version and weights, which the first one writes.
    assert starts == [4.5, 4 + 1 / 8]
    # One worker reads the groups of all units; the others look for what is left a few times.
    assert ends[1] < 80


def test_who_completes_a_store_is_replaced_when_it_dies_and_left_alone_when_it_lives() -> None:
    bucket = Bucket()
    bucket.seconds = 5e9
    first, second, third = (Worker(bucket, token, 3) for token in ("aaaaaaaa", "bbbbbbbb", "cccccccc"))
    assert len(first.rest()) == 3
    assert first.scheduler._log.take_end() is None
    # It lives: it writes its state while the second one waits.
    waits = second.scheduler.finish()
    for _ in range(6):
        if next(waits, None) is None:
            break
        bucket.seconds += 5
        first.scheduler.beat()
    else:
        raise AssertionError("the second worker does not end")
    assert f"process {first.scheduler._log.state.process} on" in second.scheduler.completed_by
    assert not second.store.commits.complete
    # It dies: the third one waits until that is certain, and completes the store.
    first.kill()
    seconds = 0.0
    for pause in third.scheduler.finish():
        bucket.seconds += pause.seconds
        seconds += pause.seconds
    assert third.store.commits.complete
    assert BEAT_SECONDS < seconds < DEAD_SECONDS
    assert third.scheduler.completed_by == ""
    second.scheduler.__exit__(None)
    third.scheduler.__exit__(None)
    # The lease of the killed worker is deleted by who finds it minutes later.
    assert bucket.folders["records/writers"].keys() == {"records/writers/aaaaaaaa.json"}


def test_one_other_worker_computes_a_unit_that_takes_too_long() -> None:
    bucket = Bucket()
    slow, second, third = (Worker(bucket, token, 6) for token in ("aaaaaaaa", "bbbbbbbb", "cccccccc"))
    unit = next(slow.stream)
    for _ in range(5):
        taken = next(second.stream)
        assert taken.index != unit.index
        bucket.seconds += 10
        second.commit(taken)
    # The second worker needs ten seconds for a unit, and the first has had its unit for fifty.
    assert next(second.stream) == unit
    # That unit is in flight for no time in its new worker, so the third one leaves it alone.
    steps = third.scheduler.passes()
    first_pass = next(steps)
    assert not isinstance(first_pass, Pause)
    assert list(first_pass) == []
    assert isinstance(next(steps), Pause)
    assert second.commit(unit)
    assert not slow.commit(unit)
    assert next(steps, None) is None
    for worker in (slow, second, third):
        worker.scheduler.__exit__(None)
    assert bucket.folders["records/writers"].keys() == {"records/writers/run.0"}


def test_watching_shows_rates_stragglers_the_dead_and_what_is_left() -> None:
    bucket = Bucket()
    quick, slow, dead = (Worker(bucket, token, 40) for token in ("aaaaaaaa", "bbbbbbbb", "cccccccc"))
    log = quick.scheduler._log
    log.state.host, log.state.process, log.state.device = "node1", 1, "cuda:0"
    next(dead.stream)
    dead.kill()
    bucket.seconds += DEAD_SECONDS + 1
    slow.scheduler._log.state.units = {39: 0.0}
    slow.scheduler._log._write()
    log._clock, log._offset = time.monotonic, bucket.seconds - time.monotonic()
    for number in range(4):
        log._offset += 10.0
        quick.commit(quick.store.units[number])
    now = log._now()
    log._write()
    bucket.seconds = now
    sizes = Dimensions(395, 10, (0,), 1, 1, 1, 2, 2, 1, 3, 2)
    found = watched(quick.store.storage, sizes)
    assert (found.finished_units, found.finished_images, found.complete) == (4, 40, False)
    # Three units of ten rows in the thirty seconds after the first.
    assert found.images_a_second == pytest.approx(1.0, rel=0.05)
    assert found.remaining_seconds == pytest.approx(355, rel=0.05)
    screen = list(lines("run.zarr", found, 24))
    assert screen[0].startswith("run.zarr: 40 of 395 images (10.1 %)")
    by_name = {worker.token: worker.status for worker in found.workers}
    assert by_name == {"aaaaaaaa": "working", "bbbbbbbb": "straggler", "cccccccc": "dead"}
    assert screen[3].split()[0] == "process"
    assert "dead" in screen[3]
    assert "process 1 on node1 (cuda:0)" in screen[5]
    assert len(list(lines("run.zarr", found, 5))) == 5
    for worker in (quick, slow):
        worker.scheduler.__exit__(None)


def test_watching_a_finished_store_ends(toy_store: hs.Store, capsys: pytest.CaptureFixture[str]) -> None:
    toy_path = toy_store.path
    assert main(["info", str(toy_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert "complete" in shown
    assert main(["info", str(toy_path), "--watch", "--bad"]) == 2
    assert "--watch and --bad: give each in a command of its own" in capsys.readouterr().err


def test_a_large_store_reads_no_record_and_no_row_before_they_are_needed(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_path = toy_copy
    small = hs.open(toy_path)
    assert "_rows" in small.__dict__
    monkeypatch.setattr(opened, "MANY_IMAGES", 63)
    store = hs.open(toy_path)
    assert ("records" in store.contents.__dict__, "_rows" in store.__dict__) == (True, False)
    assert store.images == small.images
    monkeypatch.setattr(contents, "LARGE_UNITS", 0)
    store = hs.open(toy_path)
    assert "records" not in store.contents.__dict__
    assert (store.images, store.complete) == (small.images, small.complete)
    assert store.moments().count == small.moments().count
    assert "records" not in store.contents.__dict__
    assert "_rows" not in store.__dict__
    np.testing.assert_array_equal(store.rows, small.rows)
    assert store.contents.records == small.contents.records
    np.testing.assert_array_equal(store.norm, small.norm)
    # Without the record of the last units, their rows are not shown.
    for record in (toy_path / "records" / "commits").glob("group-*.json"):
        record.unlink()
    store = hs.open(toy_path, include_failed=True)
    assert not store.complete
    assert np.isnan(store.norm[~np.repeat(store.contents.done, store.contents.size.unit_images)[: store.images]]).all()


def test_a_plan_that_processes_read_equals_the_plan_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One tar has no image, one an unused member, and the units end within tars.
    tars = [write_tar(tmp_path / f"{n}.tar", image_members(range(7 * n, 7 * n + n), (2,))) for n in (1, 4, 6)]
    tars.append(write_tar(tmp_path / "none.tar", [("a.txt", b"x")]))
    tars.append(write_tar(tmp_path / "z.tar", [("b.png", b""), ("c.md", b"")]))
    urls = stored_names([str(tar) for tar in tars])
    found = []
    for least in (len(tars), len(tars) + 1):
        monkeypatch.setattr(plan_processes, "LEAST_TARS", least)
        events: list[Progress] = []
        with begun_plan(tmp_path / f"{least}.zarr", urls, 4, MemberNames()) as plan:
            assert plan is not None
            read = plan.result(events.append)
            files = relative_files(plan.staged.folder / "records" / "samples")
        found.append((read.shards, read.notes, read.images, files, events))
    assert found[0] == found[1]
    assert found[0][2] == 12
    tars[2].write_bytes(tars[2].read_bytes()[:-2000])
    monkeypatch.setattr(plan_processes, "LEAST_TARS", len(tars))
    with begun_plan(tmp_path / "s.zarr", urls, 4, MemberNames()) as plan:
        assert plan is not None
        with pytest.raises(SourceError, match=r"6\.tar"):
            plan.result(ignore)
