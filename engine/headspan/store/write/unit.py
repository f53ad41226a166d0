"""A store being made: filled unit by unit, by any number of writers.

Opening compares every setting and every shard with what was planned. Units are taken one by one, those that
others have in hand last; one that was alone in hand when its process was killed is tried alone, and set aside
after some tries.
"""

from __future__ import annotations

import shutil
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
from headspan.io.local import TEMPORARY, StagedFile, checksum, new_token, staged, token_of
from headspan.shards.plan import units
from headspan.shards.samples import BadImage, Sample, Unit
from headspan.store.identity import MODEL_KEYS, RUN_KEYS, SIZE_KEYS, differences
from headspan.store.moments_file import MergedMoments
from headspan.store.schema import (
    ArraySpec,
    dimensions,
    image_bytes,
    moment_arrays,
    open_group,
    refuse_unlike,
    stored_row_arrays,
)
from headspan.store.tables import read_shards, read_unit
from headspan.store.write.commits import Commits, UnitRecord
from headspan.store.write.shard import ShardPieces, write_array
from headspan.store.write.workers import forget, other_workers
from headspan.timing import StageTimes

# Pieces of shards that may be with the writing thread, the one being written among them.
WAITING_PIECES = 2


class StoreWriter:
    """An existing store, to be filled."""

    def __init__(self, path: Path) -> None:
        root, self.attributes = open_group(path)
        self.path = path
        self.token = new_token()
        self.size = dimensions(self.attributes)
        self.specs = stored_row_arrays(root, self.size, tuple(self.attributes["emit"]))
        self.units = units(self.size.images, self.size.unit_images)
        self.commits = Commits(path, len(self.units), self.token)

    def refuse_other(self, attributes: dict[str, Any], shards: Sequence[tuple[str, int | None, int | None]]) -> None:
        """Raise StoreError where this store was made with other settings or from other shards (name, bytes, time)."""
        for what, mine, wanted in differences(self.attributes, attributes, (*MODEL_KEYS, *RUN_KEYS, *SIZE_KEYS)):
            raise StoreError(
                f"{self.path}: was made with {what} {mine}, this run asks for {wanted}; use the same settings to go "
                "on, or another --out"
            )
        planned = read_shards(self.path)
        if len(planned) != len(shards):
            raise StoreError(
                f"{self.path}: was planned over {counted(len(planned), 'shard')}, this run names {len(shards)}; "
                f"name the same "
                "shards to go on, or use another --out"
            )
        for plan, found in zip(planned, shards, strict=True):
            known = (plan.url, plan.size_bytes, plan.modified_ns)
            parts = ("name", "size", "time of modification")
            others = [part for part, mine, theirs in zip(parts, known, found, strict=True) if mine != theirs]
            if others:
                todo = "name the same shards" if others == ["name"] else "restore it"
                raise StoreError(
                    f"{self.path}: {found[0]} ({found[1]} bytes) is not the shard that was planned ({plan.url}, "
                    f"{plan.size_bytes} bytes): another {' and '.join(others)}; {todo} to go on, or use another --out"
                )

    def unfinished(self) -> list[Unit]:
        """The units without a commit record, in order."""
        done = {record.unit for record in self.commits.records()}
        return [unit for unit in self.units if unit.index not in done]

    def samples(self, unit: Unit) -> Iterator[Sample]:
        """The samples of `unit`, in row order."""
        return read_unit(self.path, unit.index)

    def overflows(self, unit: Unit, rows: np.ndarray) -> list[BadImage]:
        """The images of `unit` at `rows`, set aside because a number of theirs does not fit the store's types."""
        wanted = set(rows.tolist())
        # Nearly always there are none, and then nothing is read.
        return [
            BadImage(sample.row, sample.key, sample.url, "the model's numbers are not finite in 16 bits")
            for sample in (self.samples(unit) if wanted else ())
            if sample.row in wanted
        ]

    def begin(self, unit: Unit, times: StageTimes | None = None) -> UnitWriter:
        """Start a unit; what its shards take to be written is counted in `times`."""
        return UnitWriter(self, unit, times or StageTimes())

    def refuse_damaged_metadata(self) -> None:
        """Raise StoreError where the metadata of an array are damaged: how its units are cut is then not known."""
        refuse_unlike(self.path, self.specs, self.size.unit_images)

    def refuse_full_disk(self) -> None:
        """Raise StoreError where the units that are left do not fit the disk."""
        needed = sum(unit.rows for unit in self.unfinished()) * image_bytes(self.specs)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise StoreError(
                f"{self.path}: the rest of the store will take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
                "free there; make room, then run the same command to go on"
            )

    def drop_staged(self, unit: Unit, token: str) -> None:
        """Delete what a writer had staged of a unit."""
        for spec in self.specs.values():
            for first_row in range(unit.first_row, unit.first_row + unit.rows, spec.shard[0]):
                staged(self.path / spec.file(first_row), token).unlink(missing_ok=True)
        self.commits.drop_staged(unit.index, token)

    def finish(self) -> None:
        """Once every unit is committed: merged moments into the arrays `moments/…`, and nothing else left over."""
        if self.commits.complete or self.unfinished():
            return
        self.commits.merge_groups()
        # Other writers may be at work still, on units that are done: what is theirs they delete themselves.
        alive = {self.token}
        for writer in other_workers(self.path, self.token):
            if writer.alive:
                alive.add(writer.token)
            else:
                forget(self.path, writer.token)
        for path in self.path.rglob(TEMPORARY):
            if token_of(path) not in alive:
                path.unlink(missing_ok=True)
        self.write_moments()

    def write_moments(self) -> None:
        """Add up the moments of all units, write them as arrays, and with that complete the store."""
        moments = self.commits.moments()
        assert moments is not None, "a finished store has units"
        values = {"count": np.array([moments.count]), "sum": moments.total, "gram": moments.gram}
        files = {str(path.relative_to(self.path)): checksum(path) for path in self.commits.group_files()}
        for name, spec in moment_arrays(self.size).items():
            file, size_bytes, crc = write_array(self.path, spec, values[name], self.token)
            files[file] = (size_bytes, crc)
        self.commits.close(files)


class UnitWriter:
    """The shards of one unit, staged by a thread while their rows come.

    A context manager: it ends the thread, and left by an exception it deletes what was staged.
    """

    def __init__(self, store: StoreWriter, unit: Unit, times: StageTimes) -> None:
        self._store = store
        self._unit = unit
        self._times = times
        self._open: dict[str, tuple[ShardPieces, StagedFile]] = {}
        self._begun: set[str] = set()
        # Of the finished ones, size and checksum.
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
                # Interrupted after its claim, a unit is as good as done.
                self._store.commits.settle(self._unit.index)
                self._store.drop_staged(self._unit, self._store.token)

    def put(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Place the numbers of images at `rows` (ascending), and mark them as good."""
        values = {**arrays, "ok": np.ones(len(rows), np.uint8)}
        for name, spec in self._store.specs.items():
            for start, end in _runs(rows, spec.shard[0]):
                row = int(rows[start])
                self._pieces(spec, row).put(row, values[name][start:end])
        self._images += len(rows)

    def commit(
        self, moments: Moments, bad: list[BadImage], source_crc32c: int | None = None, again: bool = False
    ) -> UnitRecord | None:
        """Stage what is left, then commit; None where another writer has committed the unit.

        `again` puts the shards and the record in the place of those of a committed unit that is damaged.
        """
        end = self._unit.first_row + self._unit.rows
        for spec in self._store.specs.values():
            # Shards whose images all failed exist too: full of NaN, not missing.
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
        """The shard that holds `row`, begun if it is not; the one before it is closed."""
        first_row = row // spec.shard[0] * spec.shard[0]
        if spec.name in self._open and self._open[spec.name][0].first_row != first_row:
            self._close(spec.name)
        if spec.name not in self._open:
            assert spec.file(first_row) not in self._begun, "rows come in order"
            self._begun.add(spec.file(first_row))
            file = StagedFile(self._store.path / spec.file(first_row), self._store.token)
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
        """Have the thread do it after what it has to do already; waits where that is much, and raises what it met."""
        self._settle(WAITING_PIECES - 1)
        self._waiting.append(self._thread.submit(self._timed, work))

    def _timed(self, work: Callable[[], None]) -> None:
        with self._times.of("writing"):
            work()

    def _settle(self, left: int) -> None:
        """Wait until no more than so many pieces are left to the thread."""
        while len(self._waiting) > left:
            self._waiting.popleft().result()


def _runs(rows: np.ndarray, shard_rows: int) -> list[tuple[int, int]]:
    """Where runs of consecutive rows of one shard begin and end in `rows`."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(rows // shard_rows) != 0)) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return list(pairwise(edges)) if len(rows) else []
