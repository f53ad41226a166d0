"""Units are written by several threads from the arrays that were handed over, while the caller goes on."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headspan as hs
from headspan.decompose.formula import Folded
from headspan.decompose.moments import Moments
from headspan.decompose.transfer import to_host
from headspan.errors import StoreError
from headspan.io.files import StagedFile
from headspan.io.locations import Location
from headspan.shards.samples import Sample, Shard
from headspan.store import schema
from headspan.store.schema import FORMAT
from headspan.store.write import shard, threads
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter
from tests.conftest import relative_files, zarr_array
from tests.waiting import wait_until

IMAGES, UNIT_IMAGES = 20, 8
SIZE: dict[str, Any] = {
    "images": IMAGES,
    "unit_images": UNIT_IMAGES,
    "layers": [0, 1],
    "all_layers": 2,
    "direct_layers": 2,
    "heads": 3,
    "head_dim": 2,
    "tokens": 5,
    "prefix_tokens": 1,
    "joint": 3,
    "terms": 3,
    "through_pool": [],
    "through_pool_heads": 0,
}
# Of two rows of patches.
SHARD_BYTES = 2 * 2 * 3 * 5 * 2 * 2
CPU = torch.device("cpu")


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    return new_store(tmp_path / "run.zarr")


def new_store(path: Location, may_exist: bool = False) -> Location:
    """Plan a store whose units have four shards of patches, two rows each. It is new unless it `may_exist`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_SHARD_BYTES", SHARD_BYTES)
        assert planned_here(path) or may_exist
    return path


def planned_here(path: Location) -> bool:
    """Plan the store of these tests; returns whether it is new."""
    random = np.random.default_rng(0)
    shapes = {"head_to_joint": (2, 3, 2, 3), "head_mean": (2, 3, 2), "bias_to_joint": (2, 3), "bias_mean": (2,)}
    folded = Folded(
        **{name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        gain=np.ones(3, np.float32),
        shift=np.ones(3, np.float32),
        share_count=np.ones(1, np.float32),
    )
    attributes = {"format": FORMAT, "version": "test", "emit": ["heads", "patches"], "dimensions": SIZE}
    with NewStore(path) as staged:
        staged.plan((Sample(row, f"{row}", "a.tar", f"{row}.png", 512, 1) for row in range(IMAGES)), UNIT_IMAGES, [])
        return staged.publish(attributes, [Shard("a.tar", 0, IMAGES, 9_000, 1)], folded)


def numbers(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays whose numbers name their row, and differ within it."""

    def of(shape: tuple[int, ...], kind: type) -> np.ndarray:
        inside = np.arange(np.prod(shape)).reshape(shape) / 64
        return (rows.reshape(-1, *(1 for _ in shape)) + inside).astype(kind)

    return {
        "embedding": of((3,), np.float32),
        "norm": of((3,), np.float32),
        "heads": of((2, 3, 2), np.float16),
        "patches": of((2, 3, 5, 2), np.float16),
    }


def moments() -> Moments:
    return Moments.zeros(2, 3, 2, CPU)


def writing_threads() -> list[threading.Thread]:
    names = ("headspan-write", "headspan-commit")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


class Gate:
    """Holds the writing threads back before they write, and counts how many are there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.inside: list[StagedFile] = []
        write: Callable[[StagedFile, memoryview], None] = StagedFile.write

        def held(file: StagedFile, part: memoryview) -> None:
            self.inside.append(file)
            assert self.opened.wait(20)
            write(file, part)

        monkeypatch.setattr(StagedFile, "write", held)


@pytest.mark.parametrize("uncopied", [1, 10**6], ids=["without copies", "with copies"])
def test_rows_that_are_not_good_and_gaps_between_batches_are_nan_in_every_array(
    uncopied: int, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_UNCOPIED_BYTES", uncopied)
    store = StoreWriter(planned)
    for unit in store.units:
        rows = np.arange(unit.first_row, unit.first_row + unit.rows)
        rows = rows[rows % 7 != 3]
        with store.begin(unit) as writer:
            for batch in np.split(rows, [3, 4]):
                writer.put(batch, batch % 5 != 2, numbers(batch))
            record = writer.commit(moments(), [])
        assert record is not None
        assert record.images == sum(row % 5 != 2 for row in rows.tolist())
    store.finish()
    every = np.arange(IMAGES)
    stored = (every % 7 != 3) & (every % 5 != 2)
    assert np.array_equal(np.asarray(zarr_array(planned, "ok")[...]), stored)
    for name, values in numbers(every).items():
        wanted = np.where(stored.reshape(-1, *(1 for _ in values.shape[1:])), values, np.nan)
        assert np.array_equal(np.asarray(zarr_array(planned, name)[...]), wanted, equal_nan=True), name
    assert writing_threads() == []


def test_the_caller_goes_on_while_several_files_are_written(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "writing_threads", lambda: 3)
    gate, store, rows = Gate(monkeypatch), StoreWriter(planned), np.arange(UNIT_IMAGES)
    with store.begin(store.units[0]) as writer:
        writer.put(rows, np.ones(UNIT_IMAGES, bool), numbers(rows))
        wait_until(lambda: len(gate.inside) >= 3)
        # Each thread writes a file of its own.
        assert len(set(map(id, gate.inside))) == 3
        gate.opened.set()
        assert writer.commit(moments(), []) is not None


def test_the_caller_waits_while_too_many_bytes_of_earlier_batches_wait(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, store = Gate(monkeypatch), StoreWriter(planned)
    batches = np.split(np.arange(UNIT_IMAGES), 4)
    size = sum(array.nbytes for array in numbers(batches[0]).values()) + len(batches[0])
    monkeypatch.setattr(threads, "WAITING_BYTES", size)
    handed: list[int] = []

    with store.begin(store.units[0]) as writer:

        def hand_over() -> None:
            for number, rows in enumerate(batches):
                writer.put(rows, np.ones(2, bool), numbers(rows))
                handed.append(number)

        caller = threading.Thread(target=hand_over)
        caller.start()
        caller.join(0.5)
        # One batch may wait besides the one that is handed over.
        assert handed == [0, 1]
        gate.opened.set()
        caller.join(20)
        assert handed == [0, 1, 2, 3]
        assert writer.commit(moments(), []) is not None


def test_memory_of_a_batch_is_kept_until_it_is_written_and_no_longer(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_UNCOPIED_BYTES", 1)
    gate, store, rows = Gate(monkeypatch), StoreWriter(planned), np.arange(UNIT_IMAGES)
    arrays = numbers(rows)
    transfer = to_host({name: torch.from_numpy(array) for name, array in arrays.items()}, CPU)
    # A tensor's memory, which is this array's, is free once nothing reads it. An allocator of pinned memory then gives
    # it to the next batch.
    gone = threading.Event()
    weakref.finalize(arrays["patches"], gone.set)
    with store.begin(store.units[0]) as writer:
        writer.put(rows, np.ones(UNIT_IMAGES, bool), transfer.arrays())
        del transfer, arrays
        gc.collect()
        assert not gone.is_set()
        gate.opened.set()
        # Before the unit ends.
        assert gone.wait(20)
        assert writer.commit(moments(), []) is not None
    store.finish()
    found = np.asarray(zarr_array(planned, "patches")[:UNIT_IMAGES])
    assert np.array_equal(found, numbers(rows)["patches"])


@pytest.mark.parametrize("step", ["put", "commit", "commit_behind"])
def test_a_failure_in_a_writing_thread_is_raised_to_the_caller_and_leaves_no_file(
    step: str, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, before = StoreWriter(planned), relative_files(planned)
    batches = np.split(np.arange(UNIT_IMAGES), 4)
    monkeypatch.setattr(threads, "WAITING_BYTES", 0 if step == "put" else 10**9)

    def full(file: StagedFile, part: memoryview) -> None:
        with file._or_discarded():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(StagedFile, "write", full)

    def write() -> None:
        with store.writing(), store.begin(store.units[0]) as writer:
            for rows in batches:
                writer.put(rows, np.ones(2, bool), numbers(rows))
            assert step != "put"
            if step == "commit":
                writer.commit(moments(), [])
            else:
                writer.commit_behind(moments(), []).result()

    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free disk space"):
        write()
    assert relative_files(planned) == before
    assert writing_threads() == []


def test_a_unit_is_committed_while_rows_of_the_next_one_arrive(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, store = Gate(monkeypatch), StoreWriter(planned)
    first, second, third = store.units
    with store.writing():
        pending = []
        for unit in (first, second):
            rows = np.arange(unit.first_row, unit.first_row + unit.rows)
            with store.begin(unit) as writer:
                writer.put(rows, np.ones(len(rows), bool), numbers(rows))
                pending.append(writer.commit_behind(moments(), []))
        assert not any(each.done() or store.commits.is_done(index) for index, each in enumerate(pending))
        gate.opened.set()
    # The block ends when both are committed.
    assert [record.unit for each in pending if each.done() and (record := each.result())] == [0, 1]
    assert store.unfinished() == [third]
    assert writing_threads() == []
    assert np.array_equal(hs.open(planned).norm[:], numbers(np.arange(16))["norm"])


def test_an_interruption_between_two_units_keeps_the_one_that_is_being_committed(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreWriter(planned)
    rows = np.arange(UNIT_IMAGES)

    def write() -> None:
        with store.writing():
            with store.begin(store.units[0]) as writer:
                writer.put(rows, np.ones(UNIT_IMAGES, bool), numbers(rows))
                writer.commit_behind(moments(), [])
            with store.begin(store.units[1]) as writer:
                writer.put(rows + UNIT_IMAGES, np.ones(UNIT_IMAGES, bool), numbers(rows))
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert store.commits.is_done(0)
    assert [unit.index for unit in store.unfinished()] == [1, 2]
    assert not any(".tmp" in name for name in relative_files(planned))
    assert writing_threads() == []


def interrupted_at(
    target: object, name: str, number: int, after: bool, main: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let Ctrl-C arrive before, or after, call `number` of a function by the thread `main`."""
    original = getattr(target, name)
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += threading.current_thread() is main
        mine = threading.current_thread() is main and calls == number
        if mine and not after:
            raise KeyboardInterrupt
        result = original(*arguments)
        if mine:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(target, name, call)


STEPS: dict[str, tuple[object, str, int]] = {
    # The writing threads are begun when the block begins, so that the fourth thread is the one that commits.
    "a writing thread starts": (threading.Thread, "start", 2),
    "the committing thread starts": (threading.Thread, "start", 4),
    "a unit holds the threads": (threads.WritingThreads, "hold", 2),
    "the first file is queued": (threads.WritingThreads, "start", 1),
    "a later file is queued": (threads.WritingThreads, "start", 6),
    "a batch is handed over": (threads.UnitTasks, "wait_for_earlier", 2),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_at_any_step_of_a_unit_ends_all_threads_and_leaves_a_whole_unit_or_none(
    step: str, after: bool, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "writing_threads", lambda: 3)
    store, ended, before = StoreWriter(planned), threading.Event(), relative_files(planned)
    target, name, number = STEPS[step]

    def write() -> None:
        with store.writing(), store.begin(store.units[0]) as writer:
            for rows in np.split(np.arange(UNIT_IMAGES), 4):
                writer.put(rows, np.ones(2, bool), numbers(rows))
            writer.commit_behind(moments(), [])

    def write_and_end() -> None:
        with pytest.raises(KeyboardInterrupt):
            write()
        ended.set()

    # A thread, so that the test fails instead of waiting forever.
    main = threading.Thread(target=write_and_end, daemon=True)
    start = main.start
    interrupted_at(target, name, number, after, main, monkeypatch)
    start()
    assert ended.wait(20)
    for thread in writing_threads():
        thread.join(20)
    assert writing_threads() == []
    assert not any(".tmp" in name for name in relative_files(planned))
    assert store.commits.is_done(0) or relative_files(planned) == before


@pytest.mark.parametrize("name", ["headspan-write", "headspan-commit"])
def test_a_thread_that_the_system_refuses_is_one_sentence_and_leaves_no_file(
    name: str, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    store, rows, before = StoreWriter(planned), np.arange(UNIT_IMAGES), relative_files(planned)

    def write() -> None:
        with store.writing(), store.begin(store.units[0]) as writer:
            writer.put(rows, np.ones(UNIT_IMAGES, bool), numbers(rows))
            writer.commit_behind(moments(), [])

    with pytest.raises(
        StoreError, match=r"cannot be started \(can't start new thread\); give fewer --workers, or .*-u\)"
    ):
        write()
    assert relative_files(planned) == before
    assert writing_threads() == []


def test_fewer_threads_write_if_the_system_refuses_more(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("headspan-write") and writing_threads():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    store, rows = StoreWriter(planned), np.arange(UNIT_IMAGES)
    with store.begin(store.units[0]) as writer:
        writer.put(rows, np.ones(UNIT_IMAGES, bool), numbers(rows))
        assert writer.commit(moments(), []) is not None
    assert writing_threads() == []
