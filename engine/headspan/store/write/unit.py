"""Fill a planned store unit by unit, from any number of processes.

A writer refuses settings and shards other than those that the store was planned with. The shards of a unit are staged
while its rows arrive, and committed together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from headspan.decompose.moments import Moments
from headspan.errors import StoreError, counted
from headspan.io.local import LocalStorage
from headspan.io.storage import StagedObject
from headspan.shards.plan import units
from headspan.shards.samples import BadImage, Sample, Unit
from headspan.store.array_spec import ArraySpec
from headspan.store.commit_records import NOT_FINITE, UnitRecord
from headspan.store.identity import MODEL_KEYS, RUN_KEYS, SIZE_KEYS, differences
from headspan.store.moments_file import MergedMoments
from headspan.store.schema import (
    dimensions,
    image_bytes,
    moment_arrays,
    open_group,
    refuse_unlike,
    stored_row_arrays,
)
from headspan.store.tables import read_shards, read_unit
from headspan.store.write.commits import Commits
from headspan.store.write.shard import ShardPieces, write_array
from headspan.store.write.workers import forget, other_workers
from headspan.timing import StageTimes

# Pieces of shards that may wait for the writing thread, including the one that is being written.
WAITING_PIECES = 2


class StoreWriter:
    """An existing store that one process writes to. Raises StoreError if there is none, or one of another format."""

    def __init__(self, path: Path) -> None:
        root, self.attributes = open_group(path)
        self.path = path
        # As they are on disk, in the words of the version that planned the store.
        self.stored_attributes: Any = root.attrs["headspan"]
        self.storage = LocalStorage(path)
        self.token = self.storage.token
        self.size = dimensions(self.attributes)
        self.specs = stored_row_arrays(root, self.size, tuple(self.attributes["emit"]))
        self.units = units(self.size.images, self.size.unit_images)
        self.commits = Commits(self.storage, len(self.units))

    def refuse_other(self, attributes: dict[str, Any], shards: Sequence[tuple[str, int | None, int | None]]) -> None:
        """Raise StoreError if this store was made with other settings or from other shards (name, bytes, time)."""
        for what, mine, wanted in differences(self.attributes, attributes, (*MODEL_KEYS, *RUN_KEYS, *SIZE_KEYS)):
            raise StoreError(
                f"{self.path}: was made with {what} {mine}, but this run asks for {wanted}; use the same settings "
                "to continue, or choose another --out"
            )
        planned = read_shards(self.path)
        if len(planned) != len(shards):
            raise StoreError(
                f"{self.path}: was planned over {counted(len(planned), 'shard')}, but this run names {len(shards)}; "
                "name the same shards to continue, or choose another --out"
            )
        for plan, found in zip(planned, shards, strict=True):
            known = (plan.url, plan.size_bytes, plan.modified_ns)
            parts = ("name", "size", "time of modification")
            others = [part for part, mine, theirs in zip(parts, known, found, strict=True) if mine != theirs]
            if others:
                todo = "name the same shards" if others == ["name"] else "restore it"
                raise StoreError(
                    f"{self.path}: {found[0]} ({found[1]} bytes) is not the shard that was planned ({plan.url}, "
                    f"{plan.size_bytes} bytes): it has another {' and '.join(others)}; {todo} to continue, or choose "
                    "another --out"
                )

    def unfinished(self) -> list[Unit]:
        """Return the units without a commit record, in order."""
        done = {record.unit for record in self.commits.records()}
        return [unit for unit in self.units if unit.index not in done]

    def samples(self, unit: Unit) -> Iterator[Sample]:
        """Read the samples of `unit`, in row order."""
        return read_unit(self.path, unit.index)

    def overflows(self, unit: Unit, rows: np.ndarray) -> list[BadImage]:
        """Return the images of `unit` at `rows`, whose numbers are not finite in 16 bits."""
        wanted = set(rows.tolist())
        # Usually there are none, and then nothing is read.
        return [
            BadImage(sample.row, sample.key, sample.url, NOT_FINITE)
            for sample in (self.samples(unit) if wanted else ())
            if sample.row in wanted
        ]

    def begin(self, unit: Unit, times: StageTimes | None = None) -> UnitWriter:
        """Begin to write a unit; the time that writing takes is added to `times`."""
        return UnitWriter(self, unit, times or StageTimes())

    def refuse_damaged_metadata(self) -> None:
        """Raise StoreError if the metadata of an array are damaged, because its shards are then unknown."""
        refuse_unlike(self.path, self.specs, self.size.unit_images)

    def refuse_full_disk(self) -> None:
        """Raise StoreError if the unfinished units do not fit the disk."""
        needed = sum(unit.rows for unit in self.unfinished()) * image_bytes(self.specs)
        free = self.storage.free_bytes()
        if needed > free:
            raise StoreError(
                f"{self.path}: the rest of the store will take {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are "
                "available; free disk space, then run the same command to continue"
            )

    def drop_staged(self, unit: Unit, token: str) -> None:
        """Delete what the writer `token` has staged for a unit."""
        for spec in self.specs.values():
            for first_row in range(unit.first_row, unit.first_row + unit.rows, spec.shard[0]):
                self.storage.discard(spec.file(first_row), token)
        self.commits.drop_staged(unit.index, token)

    def finish(self) -> None:
        """If every unit is committed, write the arrays `moments/…` and delete what killed writers left.

        That completes the store.
        """
        if self.commits.complete or self.unfinished():
            return
        self.commits.merge_groups()
        # Listed before the logs: a living process locks its log before it stages a file, so its log is then found.
        staged = list(self.storage.staged())
        # Other processes may still be computing units that are committed. They delete their own files.
        alive = {self.token}
        for writer in other_workers(self.path, self.token):
            if writer.alive:
                alive.add(writer.token)
            else:
                forget(self.path, writer.token)
        for key, token in staged:
            if token not in alive:
                self.storage.discard(key, token)
        self.write_moments()

    def write_moments(self) -> None:
        """Add the moments of all units, write them as arrays, and mark the store as complete."""
        moments = self.commits.moments()
        assert moments is not None, "a finished store has units"
        values = {"count": np.array([moments.count]), "sum": moments.total, "gram": moments.gram}
        files = {key: self.storage.checksum(key) for key in self.commits.group_files()}
        for name, spec in moment_arrays(self.size).items():
            file, size_bytes, crc = write_array(self.storage, spec, values[name])
            files[file] = (size_bytes, crc)
        self.commits.close(files)


class UnitWriter:
    """The shards of one unit, which a thread stages while their rows arrive.

    A context manager that ends the thread, and deletes what was staged if an exception ends the block.
    """

    def __init__(self, store: StoreWriter, unit: Unit, times: StageTimes) -> None:
        self._store = store
        self._unit = unit
        self._times = times
        self._open: dict[str, tuple[ShardPieces, StagedObject]] = {}
        self._begun: set[str] = set()
        # Size and checksum of the finished shards.
        self._files: dict[str, tuple[int, int]] = {}
        self._images = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headspan-write")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        for _, file in self._open.values():
            file.close()
        if kind is not None:
            with suppress(OSError, StoreError):
                # If it was interrupted after its claim, the unit can be committed.
                self._store.commits.settle(self._unit.index)
                self._store.drop_staged(self._unit, self._store.token)

    def put(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Write the numbers of the images at `rows` (ascending), and mark these rows in `ok`."""
        values = {**arrays, "ok": np.ones(len(rows), np.uint8)}
        for name, spec in self._store.specs.items():
            for start, end in _runs(rows, spec.shard[0]):
                row = int(rows[start])
                self._pieces(spec, row).put(row, values[name][start:end])
        self._images += len(rows)

    def commit(
        self, moments: Moments, bad: list[BadImage], source_crc32c: int | None = None, again: bool = False
    ) -> UnitRecord | None:
        """Stage the rest, then commit the unit. Returns None if another writer has committed it.

        With `again`, the shards and the record replace those of a committed unit that is damaged.
        """
        end = self._unit.first_row + self._unit.rows
        for spec in self._store.specs.values():
            # Shards without a usable image are written too, full of NaN.
            for first_row in range(self._unit.first_row, end, spec.shard[0]):
                if spec.file(first_row) not in self._begun:
                    self._pieces(spec, first_row)
            self._close(spec.name)
        self._settle(0)
        record = UnitRecord(
            unit=self._unit.index,
            first_row=self._unit.first_row,
            rows=self._unit.rows,
            images=self._images,
            files=dict(sorted(self._files.items())),
            bad=sorted(bad, key=lambda image: image.row),
            source_crc32c=source_crc32c,
        )
        packed = MergedMoments(*moments.arrays())
        if again:
            self._store.commits.replace(record, packed)
            return record
        return record if self._store.commits.add(record, packed) else None

    def _pieces(self, spec: ArraySpec, row: int) -> ShardPieces:
        """Return the shard that contains `row`. If it is new, begin it and close the one before it."""
        first_row = row // spec.shard[0] * spec.shard[0]
        if spec.name in self._open and self._open[spec.name][0].first_row != first_row:
            self._close(spec.name)
        if spec.name not in self._open:
            assert spec.file(first_row) not in self._begun, "rows come in order"
            self._begun.add(spec.file(first_row))
            file = self._store.storage.stage(spec.file(first_row))
            pieces = ShardPieces(spec, first_row, lambda piece: self._later(lambda: file.write(piece)))
            self._open[spec.name] = pieces, file
        return self._open[spec.name][0]

    def _close(self, name: str) -> None:
        pieces, file = self._open[name]
        pieces.end()
        path = pieces.spec.file(pieces.first_row)

        def finish() -> None:
            self._files[path] = file.finish()

        self._later(finish)
        del self._open[name]

    def _later(self, work: Callable[[], None]) -> None:
        """Give the thread a task. Waits while it has too many, and raises what an earlier one raised."""
        self._settle(WAITING_PIECES - 1)
        self._waiting.append(self._thread.submit(self._timed, work))

    def _timed(self, work: Callable[[], None]) -> None:
        with self._times.of("writing"):
            work()

    def _settle(self, left: int) -> None:
        """Wait until the thread has at most `left` tasks."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()


def _runs(rows: np.ndarray, shard_rows: int) -> list[tuple[int, int]]:
    """Return where runs of consecutive rows of one shard begin and end in `rows`."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(rows // shard_rows) != 0)) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return list(pairwise(edges)) if len(rows) else []
