"""Create a store: metadata, the model's matrices and the plan, written beside it and then renamed.

So a store exists completely or not at all. The next planner of the same store removes what a killed planner left. The
plan of a store in a bucket is written to the folder of temporary files, and copied by `plan_claim`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import zarr

from headspan.decompose.formula import Folded
from headspan.errors import StoreError
from headspan.io.files import new_token, sync_folder, sync_tree
from headspan.io.local import LocalStorage
from headspan.io.locations import Location
from headspan.io.locks import alone
from headspan.io.stores import storage_to_write
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.store.consolidated import RECORDS_GROUP, ROOT, records_group, with_copy
from headspan.store.coordinates import coordinates, write_coordinates
from headspan.store.earlier_words import arrays_as_stored, todays_attributes
from headspan.store.file_checks import plain
from headspan.store.schema import (
    RECORDS,
    ROOT_COPY,
    create_array,
    dimensions,
    image_bytes,
    moment_arrays,
    row_arrays,
    whole_array,
)
from headspan.store.tables import (
    NOTES_FILE,
    SHARDS_FILE,
    sample_files,
    write_notes,
    write_shards,
)
from headspan.store.worker_states import other_workers
from headspan.store.write.commits import Commits
from headspan.store.write.plan_claim import publish_plan
from headspan.store.write.plan_parts import remove_unused_parts
from headspan.store.write.sample_tables import divide_samples, write_samples, write_tables
from headspan.store.write.shard import write_array
from headspan.store.write.workers import WorkerLog, forget

_MODEL_DIMS = {
    "head_to_joint": ("layer", "head", "head_dim", "joint"),
    "head_mean": ("layer", "head", "head_dim"),
    "bias_to_joint": ("direct_layer", "joint"),
    "bias_mean": ("direct_layer",),
    "gain": ("joint",),
    "shift": ("joint",),
    "share_count": ("scalar",),
}


class NewStore:
    """A folder beside the new store, which the plan pass fills and then renames; it is removed if anything fails."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self._token = new_token()
        # The store's name, in the folder where the plan is written.
        self._place = path if isinstance(path, Path) else Path(tempfile.gettempdir()) / "headspan"
        self.folder = self._place.with_name(f"{self._prefix}{self._token}")
        self._beside = LocalStorage(self._place.parent, self._token)
        self.storage = LocalStorage(self.folder, self._token)
        self._log = WorkerLog(self.storage, self._token)

    @property
    def _prefix(self) -> str:
        return f".{self._place.name}.planning-"

    def __enter__(self) -> NewStore:
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            # Another planner would remove a folder whose log is not locked yet.
            with alone(self._place.parent):
                self._remove_abandoned()
                self.folder.mkdir()
                self._log.__enter__()
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out or correct its permissions"
            ) from error
        return self

    def _remove_abandoned(self) -> None:
        """Remove the folders of planners that were killed."""
        for folder in list(self._place.parent.iterdir()):
            if folder.name.startswith(self._prefix) and not any(
                writer.alive for writer in other_workers(LocalStorage(folder))
            ):
                self._beside.delete_folder(folder.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._log.__exit__(kind, error, trace)
        self._beside.delete_folder(self.folder.name)
        if isinstance(self.path, Path):
            remove_unused_parts(self.path)
        if isinstance(error, OSError):
            raise StoreError(
                f"{self.path}: the plan cannot be written ({error.strerror}); free disk space or choose another --out"
            ) from error

    def plan(self, samples: Iterable[Sample], unit_images: int, notes: list[BadImage]) -> int:
        """Write the sample of every row, and `notes` about what could not be used. Returns the number of samples."""
        images = write_samples(self.folder, samples, unit_images)
        write_notes(self.folder, notes)
        return images

    def plan_tables(self, tables: Iterable[pa.Table], unit_images: int, notes: list[BadImage]) -> int:
        """As `plan`, from tables of samples."""
        images = write_tables(self.folder, tables, unit_images)
        write_notes(self.folder, notes)
        return images

    def divide_units(self, images: int, planned: int, unit_images: int) -> None:
        """Divide the plan's units of `planned` images into units of `unit_images`, which divides `planned`."""
        divide_samples(self.folder, images, planned, unit_images)

    def publish(self, attributes: dict[str, Any], shards: Sequence[Shard], folded: Folded) -> bool:
        """Write the rest, and give the store its name. Returns False if another process has created that store."""
        if isinstance(self.path, Path):
            self._refuse_full_disk(attributes)
        self.write(attributes, shards, folded)
        if not isinstance(self.path, Path):
            # But not the log of the planner.
            keys = [key for key in self.storage.list() if not key.startswith(f"{RECORDS}/writers/")]
            return publish_plan(storage_to_write(self.path), self.storage, keys)
        sync_tree(self.folder)
        try:
            self._beside.move_folder(self.folder.name, self._place.name)
        except FileExistsError:
            return False
        forget(LocalStorage(self._place), self._token)
        sync_folder(self._place.parent)
        return True

    def _refuse_full_disk(self, attributes: dict[str, Any]) -> None:
        size = dimensions(attributes)
        needed = size.images * image_bytes(row_arrays(size, tuple(attributes["emit"])))
        free = self.storage.free_bytes()
        if needed > free:
            raise StoreError(
                f"{self.path}: the store will take {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are available; "
                "free disk space, choose another --out, or store fewer --layers"
            )

    def write(self, attributes: dict[str, Any], shards: Sequence[Shard], folded: Folded) -> None:
        """Write metadata, coordinates, the model's matrices, the table of shards, and the record of the plan's files.

        `attributes` are stored as they are; those of an earlier version keep its words, and so do its arrays.
        """
        today = todays_attributes(attributes)
        size = dimensions(today)
        specs = arrays_as_stored(row_arrays(size, tuple(today["emit"])), attributes)
        write_shards(self.folder, shards)
        root = zarr.create_group(store=self.folder, zarr_format=3, attributes={"headspan": attributes})
        arrays = [*specs.values(), *moment_arrays(size).values()]
        files = {
            ROOT,
            ROOT_COPY,
            RECORDS_GROUP,
            SHARDS_FILE,
            NOTES_FILE,
            *sample_files(-(-size.images // size.unit_images)),
        }
        for field in fields(folded):
            values = getattr(folded, field.name)
            spec = whole_array(f"model/{field.name}", _MODEL_DIMS[field.name], values.shape, "float32")
            write_array(self.storage, spec, values)
            arrays.append(spec)
            files.add(spec.file(0))
        for spec in arrays:
            create_array(root, spec)
            # The metadata of the array, and of its group, if it is in one.
            files |= {f"{place}/zarr.json" for place in (spec.name, spec.name.rpartition("/")[0]) if place}
        files.update(write_coordinates(root, coordinates(size, (dim for spec in specs.values() for dim in spec.dims))))
        self.storage.put(RECORDS_GROUP, [records_group()])
        for name in (ROOT, ROOT_COPY):
            self.storage.put(name, [plain(self.storage.get(ROOT))])
        # By name, because an operating system or a sync tool may have put other files there.
        Commits(self.storage, 0).note_plan({name: self.storage.checksum(name) for name in sorted(files)})
        # Its checksum is recorded without the copy.
        self.storage.put(ROOT, [with_copy(self.storage, files)])
