"""Write the rows of one unit: threads stage its shards while rows arrive, then the unit is committed.

The caller's thread copies nothing. It hands arrays over, and waits only if too many bytes wait. A shard's tasks (copy,
write, checksum, make durable) are done in order; different shards are written at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import numpy as np

from headspan.decompose.moments import Moments
from headspan.errors import StoreError
from headspan.io.storage import Checksum, StagedObject, Storage
from headspan.shards.samples import BadImage, Unit
from headspan.store.array_spec import ArraySpec
from headspan.store.commit_records import UnitRecord
from headspan.store.moments_file import EmbeddingMoments, MergedMoments
from headspan.store.write.commits import Commits
from headspan.store.write.shard import ShardPieces
from headspan.store.write.threads import FileTasks, HandedBatch, UnitTasks, WritingThreads, start_thread
from headspan.timing import StageTimes


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the units of one writer go, and what writes them."""

    storage: Storage
    specs: dict[str, ArraySpec]
    commits: Commits
    threads: WritingThreads = field(default_factory=WritingThreads)
    # Commits of one writer use the same temporary names, so they follow one another.
    committing: threading.Lock = field(default_factory=threading.Lock)

    def drop_staged(self, unit: Unit, token: str) -> None:
        """Delete what the writer `token` has staged for a unit."""
        for spec, first_row in _shards(self.specs, unit):
            self.storage.discard(spec.file(first_row), token)
        self.commits.drop_staged(unit.index, token)


class UnitWriter:
    """The rows of one unit; a context manager that deletes what was staged if an exception ends the block."""

    def __init__(self, to: Destination, unit: Unit, times: StageTimes) -> None:
        self._to = to
        self._unit = unit
        self._tasks = UnitTasks(to.threads, times)
        self._shards: dict[str, _ShardFile] = {}
        # The shard of each array that rows were put to last.
        self._last: dict[str, _ShardFile] = {}
        # Size and checksum of the finished shards.
        self._files: dict[str, Checksum] = {}
        self._images = 0
        # Whether the unit still has to be committed or abandoned, here and not by the thread of `commit_behind`.
        self._open = True

    def __enter__(self) -> UnitWriter:
        self._to.threads.hold(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        if self._close():
            self._abandon(error or GeneratorExit())

    def put(self, rows: np.ndarray, good: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Write the numbers of the images at `rows` (ascending) that are `good`, and mark these rows in `ok`.

        Returns at once, unless more than WAITING_BYTES of earlier batches wait. Threads read the arrays later, so they
        must not change. Raises what has failed in writing so far.
        """
        values = {**arrays, "ok": np.ones(len(rows), np.uint8)}
        batch = HandedBatch(sum(array.nbytes for array in values.values()))
        for start, end in _runs(rows, good):
            self._images += end - start
            for name, spec in self._to.specs.items():
                for first, last in _within_shards(int(rows[start]), end - start, spec.shard[0]):
                    place = start + first - int(rows[start])
                    self._put_run(spec, first, values[name][place : place + last - first], batch)
        self._tasks.wait_for_earlier(batch)

    def commit(
        self, moments: Moments, bad: list[BadImage], source_crc32c: int | None = None, again: bool = False
    ) -> UnitRecord | None:
        """Stage the rest, then commit the unit. Returns None if another writer has committed it.

        With `again`, the shards and the record replace those of a committed unit that is damaged.
        """
        record = self._commit(*self._ended(moments, bad), source_crc32c, again)
        self._open = False
        self._to.threads.release(self)
        return record

    def commit_behind(
        self, moments: Moments, bad: list[BadImage], source_crc32c: int | None = None, again: bool = False
    ) -> PendingCommit:
        """Do what `commit` does in a thread of its own, and return at once.

        `WritingThreads`, as a context manager, waits for that thread.
        """
        arguments = (*self._ended(moments, bad), source_crc32c, again)
        committed = PendingCommit()

        begun: SimpleQueue[None] = SimpleQueue()

        def work() -> None:
            # If the caller was interrupted before, it abandons the unit.
            with self._to.threads.lock:
                if not self._close():
                    return
                self._to.threads.wait_for_me()
            begun.put(None)
            committed.end_with(lambda: self._commit_or_abandon(*arguments))

        start_thread(work, "headspan-commit")
        # From then on the thread ends the unit, even if an interruption arrives before this returns.
        begun.get()
        return committed

    def _close(self) -> bool:
        """Return whether the unit was open, and let only this caller commit or abandon it."""
        with self._to.threads.lock:
            was_open, self._open = self._open, False
        return was_open

    def _ended(self, moments: Moments, bad: list[BadImage]) -> tuple[MergedMoments, list[BadImage]]:
        """Let the threads finish all shards. Shards without a usable image are written too, full of NaN."""
        for spec, first_row in _shards(self._to.specs, self._unit):
            self._finish(self._shard(spec, first_row))
        merged, of_embeddings = MergedMoments(*moments.arrays()), moments.embedding_arrays()
        if of_embeddings is not None:
            merged = replace(merged, embedding=EmbeddingMoments(merged.count, *of_embeddings))
        return merged, sorted(bad, key=lambda image: image.row)

    def _commit(
        self, moments: MergedMoments, bad: list[BadImage], source_crc32c: int | None, again: bool
    ) -> UnitRecord | None:
        self._tasks.wait()
        unit, files = self._unit, dict(sorted(self._files.items()))
        record = UnitRecord(unit.index, unit.first_row, unit.rows, self._images, files, bad, source_crc32c)
        with self._to.committing:
            if again:
                self._to.commits.replace(record, moments)
                mine = True
            else:
                mine = self._to.commits.add(record, moments)
        return record if mine else None

    def _commit_or_abandon(
        self, moments: MergedMoments, bad: list[BadImage], source_crc32c: int | None, again: bool
    ) -> UnitRecord | None:
        try:
            record = self._commit(moments, bad, source_crc32c, again)
        except BaseException as error:
            self._abandon(error)
            raise
        self._to.threads.release(self)
        return record

    def _abandon(self, error: BaseException) -> None:
        """Stop writing, and delete what was staged."""
        try:
            self._tasks.stop(error)
            for shard in self._shards.values():
                shard.close()
            with suppress(OSError, StoreError), self._to.committing:
                # If it was interrupted after its claim, the unit can be committed.
                self._to.commits.settle(self._unit.index)
                self._to.drop_staged(self._unit, self._to.storage.token)
        finally:
            self._to.threads.release(self)

    def _put_run(self, spec: ArraySpec, row: int, values: np.ndarray, batch: HandedBatch) -> None:
        """Let the threads write consecutive rows of one shard."""
        shard = self._shard(spec, row)
        assert not shard.finishing, "rows come in order"
        if (last := self._last.get(spec.name)) not in (None, shard):
            self._finish(last)
        self._last[spec.name] = shard
        self._tasks.add(shard.tasks, lambda: shard.put(row, values), batch)

    def _shard(self, spec: ArraySpec, row: int) -> _ShardFile:
        first_row = row // spec.shard[0] * spec.shard[0]
        key = spec.file(first_row)
        if key not in self._shards:
            self._shards[key] = _ShardFile(self._to.storage, spec, first_row)
        return self._shards[key]

    def _finish(self, shard: _ShardFile) -> None:
        if not shard.finishing:
            shard.finishing = True
            self._tasks.add(shard.tasks, lambda: self._files.update({shard.key: shard.finish()}))


class PendingCommit:
    """What a thread that commits a unit returns or raises.

    Unlike a Future's condition, its lock cannot be left taken by Ctrl-C, which would stop the thread.
    """

    def __init__(self) -> None:
        self._record: UnitRecord | None = None
        self._error: BaseException | None = None
        # Taken until the thread has ended its work.
        self._working = threading.Lock()
        self._working.acquire()

    def end_with(self, work: Callable[[], UnitRecord | None]) -> None:
        """Do `work`, and keep what it returns or raises."""
        try:
            self._record = work()
        except BaseException as error:
            self._error = error
        finally:
            self._working.release()

    def done(self) -> bool:
        """Return whether `result` returns at once."""
        return not self._working.locked()

    def result(self) -> UnitRecord | None:
        """Wait for the unit's record; None if another writer has committed it. Raises what the commit raised."""
        with self._working:
            pass
        if self._error is not None:
            raise self._error
        return self._record


class _ShardFile:
    """The staged file of one shard, which exists once something is written to it."""

    def __init__(self, storage: Storage, spec: ArraySpec, first_row: int) -> None:
        self.key = spec.file(first_row)
        self.tasks = FileTasks()
        self.finishing = False
        self._storage = storage
        self._pieces = ShardPieces(spec, first_row, self._write)
        self._file: StagedObject | None = None

    def put(self, row: int, values: np.ndarray) -> None:
        self._pieces.put(row, values)

    def finish(self) -> Checksum:
        self._pieces.end()
        assert self._file is not None, "a shard has an index"
        return self._file.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, part: memoryview) -> None:
        if self._file is None:
            self._file = self._storage.stage(self.key)
        self._file.write(part)


def _shards(specs: dict[str, ArraySpec], unit: Unit) -> Iterator[tuple[ArraySpec, int]]:
    """Yield the shards of a unit, each as its array and first row."""
    for spec in specs.values():
        for first_row in range(unit.first_row, unit.first_row + unit.rows, spec.shard[0]):
            yield spec, first_row


def _runs(rows: np.ndarray, good: np.ndarray) -> list[tuple[int, int]]:
    """Return where runs of consecutive rows that are good begin and end in `rows`."""
    places = np.flatnonzero(good)
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(rows[places]) != 1)) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks) if len(run)]


def _within_shards(row: int, count: int, shard_rows: int) -> Iterator[tuple[int, int]]:
    """Divide the rows from `row` on at the borders of shards; yields the first row of each part, and the next one."""
    end = row + count
    while row < end:
        following = min(end, (row // shard_rows + 1) * shard_rows)
        yield row, following
        row = following
