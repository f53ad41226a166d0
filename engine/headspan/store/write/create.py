"""A store before it has its name: metadata, the model's matrices and the plan, in a folder beside.

The folder is renamed when all of it is on disk, so a store is there whole or not at all. What a planner that was
killed left is removed by the next.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import zarr

from headspan.decompose.formula import Folded
from headspan.errors import StoreError
from headspan.io.local import checksum, new_token, sync_folder, sync_tree
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.store.schema import (
    ROOT_COPY,
    create_array,
    dimensions,
    image_bytes,
    moment_arrays,
    row_arrays,
    whole_array,
)
from headspan.store.tables import NOTES_FILE, SHARDS_FILE, sample_files, write_notes, write_samples, write_shards
from headspan.store.write.commits import Commits
from headspan.store.write.shard import write_array
from headspan.store.write.workers import WorkerLog, alone, forget, other_workers

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
    """A folder beside the store to be, filled by the plan pass and then renamed; removed if anything fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = new_token()
        self.folder = path.with_name(f"{self._prefix}{self._token}")
        self._log = WorkerLog(self.folder, self._token)

    @property
    def _prefix(self) -> str:
        return f".{self.path.name}.planning-"

    def __enter__(self) -> NewStore:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A folder whose log is not locked yet would look abandoned to another planner.
            with alone(self.path.parent):
                self._remove_abandoned()
                self.folder.mkdir()
                self._log.__enter__()
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out or mend its permissions"
            ) from error
        return self

    def _remove_abandoned(self) -> None:
        """Remove the folders of planners that were killed."""
        for folder in list(self.path.parent.iterdir()):
            if folder.name.startswith(self._prefix) and not any(writer.alive for writer in other_workers(folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._log.__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{self.path}: the plan cannot be written ({error.strerror}); make room or choose another --out"
            ) from error

    def plan(self, samples: Iterable[Sample], unit_images: int, notes: list[BadImage]) -> int:
        """Write every image's row, and `notes` on what beside the images could not be read; returns their number."""
        images = write_samples(self.folder, samples, unit_images)
        write_notes(self.folder, notes)
        return images

    def publish(
        self, attributes: dict[str, Any], shards: Sequence[Shard], folded: Folded, emit: tuple[str, ...]
    ) -> bool:
        """Write the rest, and give the store its name; returns False where that was taken meanwhile."""
        self.write(attributes, shards, folded, emit)
        sync_tree(self.folder)
        try:
            self.folder.rename(self.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        forget(self.path, self._token)
        sync_folder(self.path.parent)
        return True

    def write(self, attributes: dict[str, Any], shards: Sequence[Shard], folded: Folded, emit: tuple[str, ...]) -> None:
        """Write metadata, the model's matrices, the table of shards, and the record of all files of the plan."""
        size = dimensions(attributes)
        specs = row_arrays(size, emit)
        needed, free = size.images * image_bytes(specs), shutil.disk_usage(self.folder).free
        if needed > free:
            raise StoreError(
                f"{self.path}: the store will take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there; "
                "make room, choose another --out, or emit fewer layers"
            )
        write_shards(self.folder, shards)
        root = zarr.create_group(store=self.folder, zarr_format=3, attributes={"headspan": attributes})
        arrays = [*specs.values(), *moment_arrays(size).values()]
        files = {"zarr.json", ROOT_COPY, SHARDS_FILE, NOTES_FILE, *sample_files(-(-size.images // size.unit_images))}
        for field in fields(folded):
            values = getattr(folded, field.name)
            spec = whole_array(f"model/{field.name}", _MODEL_DIMS[field.name], values.shape, "float32")
            write_array(self.folder, spec, values, self._token)
            arrays.append(spec)
            files.add(spec.file(0))
        for spec in arrays:
            create_array(root, spec)
            # The metadata of the array, and of the group that it is in, if any.
            files |= {f"{place}/zarr.json" for place in (spec.name, spec.name.rpartition("/")[0]) if place}
        (self.folder / ROOT_COPY).write_bytes((self.folder / "zarr.json").read_bytes())
        # By their names: what else lies there, an operating system or a sync tool may have left.
        Commits(self.folder, 0).note_plan({name: checksum(self.folder / name) for name in sorted(files)})
