"""Fill a planned store unit by unit, from any number of processes.

A writer refuses settings and shards other than those that the store was planned with. The shards of a unit are staged
while its rows arrive, and committed together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from headspan.errors import StoreError, counted
from headspan.io.locations import Location
from headspan.io.object_store import ObjectStorage
from headspan.io.storage import UNLIMITED
from headspan.io.stores import storage_to_write
from headspan.shards.plan import units
from headspan.shards.samples import BadImage, Sample, SampleSpan, Unit
from headspan.store.commit_records import NOT_FINITE, Files
from headspan.store.identity import MODEL_KEYS, RUN_KEYS, SIZE_KEYS, differences
from headspan.store.schema import (
    EMBEDDING_MOMENTS,
    dimensions,
    image_bytes,
    moment_arrays,
    open_group,
    refuse_unlike,
    stored_row_arrays,
)
from headspan.store.tables import read_shards, read_spans, read_unit
from headspan.store.worker_states import delete_reservations, other_workers
from headspan.store.write.commits import Commits
from headspan.store.write.rows import Destination, UnitWriter
from headspan.store.write.shard import write_array
from headspan.store.write.threads import WritingThreads
from headspan.store.write.workers import forget
from headspan.timing import StageTimes


class StoreWriter:
    """An existing store that one process writes to. Raises StoreError if there is none, or one of another format."""

    def __init__(self, path: Location) -> None:
        self.storage = storage_to_write(path)
        root, self.attributes = open_group(path)
        self.path = path
        # As they are on disk, in the words of the version that planned the store.
        self.stored_attributes: Any = root.attrs["headspan"]
        self.token = self.storage.token
        self.size = dimensions(self.attributes)
        self.specs = stored_row_arrays(root, self.size, tuple(self.attributes["emit"]))
        self.units = units(self.size.images, self.size.unit_images)
        self.commits = Commits(self.storage, len(self.units))
        self._destination = Destination(self.storage, self.specs, self.commits)

    @property
    def has_embedding_moments(self) -> bool:
        """Whether the store was planned with the arrays of embeddings' moments; those of earlier versions were not."""
        specs = moment_arrays(self.size)
        return all(self.storage.size(f"{specs[name].name}/zarr.json") is not None for name in EMBEDDING_MOMENTS)

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
        # Twice, since a unit that is merged into its group during the first listing is found in the second.
        done = self.commits.done()
        if not done.all():
            done |= self.commits.done()
        return [self.units[index] for index in np.flatnonzero(~done).tolist()]

    @property
    def finished_rows(self) -> int:
        """The number of rows whose units are committed, from one listing."""
        return self.size.images - sum(unit.rows for unit in self.unfinished())

    def samples(self, unit: Unit) -> Iterator[Sample]:
        """Read the samples of `unit`, in row order."""
        return read_unit(self.path, unit.index)

    def spans(self, unit: Unit, images: int) -> Iterator[SampleSpan]:
        """Read the samples of `unit`, in row order, in spans of `images` samples."""
        return read_spans(self.path, unit.index, images)

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
        return UnitWriter(self._destination, unit, times or StageTimes())

    def writing(self) -> WritingThreads:
        """Keep the writing threads for a `with` block, which ends when units that are being committed are committed."""
        return self._destination.threads

    def refuse_damaged_metadata(self) -> None:
        """Raise StoreError if the metadata of an array are damaged, because its shards are then unknown."""
        refuse_unlike(self.path, self.specs, self.size.unit_images)

    def refuse_full_disk(self) -> None:
        """Raise StoreError if the unfinished units do not fit the disk."""
        free = self.storage.free_bytes()
        if free == UNLIMITED:
            return
        needed = sum(unit.rows for unit in self.unfinished()) * image_bytes(self.specs)
        if needed > free:
            raise StoreError(
                f"{self.path}: the rest of the store will take {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are "
                "available; free disk space, then run the same command to continue"
            )

    def drop_staged(self, unit: Unit, token: str) -> None:
        """Delete what the writer `token` has staged for a unit."""
        self._destination.drop_staged(unit, token)

    def remove_abandoned(self, living: Collection[str] = ()) -> None:
        """Delete what writers of a bucket staged over an hour ago and did not commit, but those of `living` tokens."""
        if isinstance(self.storage, ObjectStorage):
            self.storage.remove_abandoned(living)

    def finish(self) -> None:
        """If every unit is committed, write the arrays `moments/…` and delete what killed writers left.

        That completes the store. Several processes may do this at the same time, with the same result; of the workers
        of a run, `Scheduler.finish` lets one do it.
        """
        if self.commits.complete or self.unfinished():
            return
        # A writer that was killed after the last file of a unit was published has left its claim.
        self.commits.settle_all()
        self.commits.merge_groups()
        # Listed before the logs: a living process locks its log before it stages a file, so its log is then found.
        staged = list(self.storage.staged())
        # Other processes may still be computing units that are committed. They delete their own files.
        alive = {self.token}
        for writer in other_workers(self.storage, self.token, states=False):
            if writer.alive:
                alive.add(writer.token)
            else:
                forget(self.storage, writer.token)
        for key, token in staged:
            if token not in alive:
                self.storage.discard(key, token)
        self.remove_abandoned(alive)
        files = self.write_moments()
        # Before the store counts as complete: the same command would not look for them later.
        delete_reservations(self.storage)
        self.commits.close(files)

    def write_moments(self) -> Files:
        """Add the moments of all units, and write them as arrays. Returns the files that belong to no unit."""
        moments, files = self.commits.merged()
        values = {"count": np.array([moments.count]), "sum": moments.total, "gram": moments.gram}
        # Missing if an earlier version, which does not accumulate them, planned the store or computed a unit.
        if (embedding := moments.embedding) is not None:
            values |= zip(EMBEDDING_MOMENTS, (embedding.total, embedding.gram), strict=True)
        for name, spec in moment_arrays(self.size).items():
            if name in values:
                file, size_bytes, crc = write_array(self.storage, spec, values[name])
                files[file] = (size_bytes, crc)
            else:
                self.storage.delete(spec.file(0))
        return files
