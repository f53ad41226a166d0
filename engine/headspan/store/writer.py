"""A store being made: planned whole before the first image, then filled unit by unit.

Creating is atomic: the metadata, the model's matrices and the plan are written to a folder beside and
renamed. Opening again compares every setting and every shard with what was planned.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from headspan.config import spans
from headspan.emit.moments import Moments
from headspan.emit.shares import Folded
from headspan.errors import StoreError
from headspan.plan import units
from headspan.records import BadImage, Sample, Shard, Unit
from headspan.store.commits import Commits, MergedMoments, UnitRecord
from headspan.store.files import TEMPORARY, checksum, sync_folder, sync_tree
from headspan.store.samples import read_shards, read_unit, write_notes, write_samples, write_shards
from headspan.store.schema import (
    RECORDS,
    ArraySpec,
    create_array,
    dimensions,
    image_bytes,
    moment_arrays,
    open_group,
    row_arrays,
    whole_array,
)
from headspan.store.shard_writer import ShardBuffer, write_array

# Attributes that may differ between two runs that make the same store.
_INCIDENTAL = ("version", "backend")
_MODEL_DIMS = {
    "head_to_joint": ("layer", "head", "head_dim", "joint"),
    "head_mean": ("layer", "head", "head_dim"),
    "bias_to_joint": ("direct_layer", "joint"),
    "bias_mean": ("direct_layer",),
    "gain": ("joint",),
    "shift": ("joint",),
    "share_count": ("scalar",),
}


class StagedStore:
    """A folder beside the store to be, filled by the plan pass and then renamed; removed if anything fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.planning-{secrets.token_hex(4)}")

    def __enter__(self) -> StagedStore:
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out or mend its permissions"
            ) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
    ) -> None:
        """Write metadata and the model's matrices, and give the store its name."""
        size = dimensions(attributes)
        specs = row_arrays(size, emit)
        needed, free = size.images * image_bytes(specs), shutil.disk_usage(self.folder).free
        if needed > free:
            raise StoreError(
                f"{self.path}: the store will take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; "
                "make room, choose another --out, or emit fewer layers"
            )
        write_shards(self.folder, shards)
        files = {
            str(path.relative_to(self.folder)): checksum(path)
            for path in sorted((self.folder / RECORDS).rglob("*.parquet"))
        }
        root = zarr.create_group(store=self.folder, zarr_format=3, attributes={"headspan": attributes})
        for spec in specs.values():
            create_array(root, spec)
        for field in fields(folded):
            values = getattr(folded, field.name)
            spec = whole_array(f"model/{field.name}", _MODEL_DIMS[field.name], values.shape, "float32")
            create_array(root, spec)
            name, size_bytes, crc = write_array(self.folder, spec, values)
            files[name] = (size_bytes, crc)
        for spec in moment_arrays(size).values():
            create_array(root, spec)
        Commits(self.folder, 0).note_plan(files)
        sync_tree(self.folder)
        try:
            self.folder.rename(self.path)
        except OSError as error:
            raise StoreError(
                f"{self.path}: appeared while it was being planned ({error.strerror}); run the same command again"
            ) from error
        sync_folder(self.path.parent)


class StoreWriter:
    """An existing store, to be filled."""

    def __init__(self, path: Path) -> None:
        _, self.attributes = open_group(path)
        self.path = path
        self.size = dimensions(self.attributes)
        self.specs = row_arrays(self.size, tuple(self.attributes["emit"]))
        self.units = units(self.size.images, self.size.unit_images)
        self.commits = Commits(path, len(self.units))

    def refuse_other(self, attributes: dict[str, Any], shards: Sequence[tuple[str, int | None, int | None]]) -> None:
        """Raise StoreError where this store was made with other settings or from other shards (url, bytes, time)."""
        mine, wanted = _settings(self.attributes), _settings(attributes)
        for key in wanted:
            if mine.get(key) != wanted[key]:
                raise StoreError(
                    f"{self.path}: was made with {key} {_brief(mine.get(key))}, this run asks for "
                    f"{_brief(wanted[key])}; use the same settings to go on, or another --out"
                )
        planned = read_shards(self.path)
        if len(planned) != len(shards):
            raise StoreError(
                f"{self.path}: was planned over {len(planned)} shards, this run names {len(shards)}; name the same "
                "shards to go on, or use another --out"
            )
        for plan, found in zip(planned, shards, strict=True):
            if (plan.url, plan.size_bytes, plan.modified_ns) != found:
                raise StoreError(
                    f"{self.path}: {found[0]} ({found[1]} bytes) is not the shard that was planned ({plan.url}, "
                    f"{plan.size_bytes} bytes, by its time too); restore it to go on, or use another --out"
                )

    def unfinished(self) -> list[Unit]:
        """The units without a commit record, in order."""
        done = {record.unit for record in self.commits.records()}
        return [unit for unit in self.units if unit.index not in done]

    def samples(self, units: Iterable[Unit]) -> Iterator[Sample]:
        """The samples of `units`, in row order."""
        for unit in units:
            yield from read_unit(self.path, unit)

    def overflows(self, unit: Unit, rows: np.ndarray) -> list[BadImage]:
        """The images of `unit` at `rows`, set aside because a number of theirs does not fit the store's types."""
        wanted = set(rows.tolist())
        # Nearly always there are none, and then nothing is read.
        return [
            BadImage(sample.row, sample.key, sample.url, "the model's numbers are not finite in 16 bits")
            for sample in (read_unit(self.path, unit) if wanted else ())
            if sample.row in wanted
        ]

    def begin(self, unit: Unit) -> UnitWriter:
        """Start a unit."""
        return UnitWriter(self, unit)

    def finish(self) -> None:
        """Once every unit is committed: merged moments into the arrays `moments/…`, and nothing else left over."""
        if not self.commits.complete:
            self.commits.merge_groups()
            moments = self.commits.moments()
            assert moments is not None, "a finished store has units"
            values = {"count": np.array([moments.count]), "sum": moments.total, "gram": moments.gram}
            files = {}
            for name, spec in moment_arrays(self.size).items():
                file, size_bytes, crc = write_array(self.path, spec, values[name])
                files[file] = (size_bytes, crc)
            # Nobody writes any more: these are of runs that were killed in the middle of a file.
            for path in self.path.rglob(TEMPORARY):
                path.unlink(missing_ok=True)
            self.commits.close(files)
        self.commits.drop_moments()


class UnitWriter:
    """The shards of one unit; each is written as soon as its last row has come."""

    def __init__(self, store: StoreWriter, unit: Unit) -> None:
        self._store = store
        self._unit = unit
        self._buffers: dict[str, ShardBuffer] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._images = 0

    def put(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Place the numbers of images at `rows` (ascending), and mark them as good."""
        values = {**arrays, "ok": np.ones(len(rows), np.uint8)}
        for name, spec in self._store.specs.items():
            for row, value in zip(rows.tolist(), values[name], strict=True):
                self._buffer(spec, row).put(row, value[None])
        self._images += len(rows)

    def commit(self, moments: Moments, bad: list[BadImage]) -> UnitRecord:
        """Write what is left, then the commit record; from then on the unit is done."""
        end = self._unit.first_row + self._unit.rows
        for buffer in self._buffers.values():
            self._write(buffer)
        for spec in self._store.specs.values():
            # Shards whose images all failed exist too: full of NaN, not missing.
            for first_row in range(self._unit.first_row, end, spec.shard[0]):
                if spec.file(first_row) not in self._files:
                    self._write(ShardBuffer(spec, first_row))
        record = UnitRecord(
            unit=self._unit.index,
            first_row=self._unit.first_row,
            rows=self._unit.rows,
            images=self._images,
            files=dict(sorted(self._files.items())),
            bad=sorted(bad, key=lambda image: image.row),
        )
        self._store.commits.add(record, MergedMoments(*moments.arrays()))
        return record

    def _buffer(self, spec: ArraySpec, row: int) -> ShardBuffer:
        first_row = row // spec.shard[0] * spec.shard[0]
        buffer = self._buffers.get(spec.name)
        if buffer is None or buffer.first_row != first_row:
            if buffer is not None:
                self._write(buffer)
            buffer = self._buffers[spec.name] = ShardBuffer(spec, first_row)
        return buffer

    def _write(self, buffer: ShardBuffer) -> None:
        file, size, checksum = buffer.write(self._store.path)
        self._files[file] = (size, checksum)


def _settings(attributes: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one store must agree on, as JSON has it, the sizes each by its name."""
    settings = json.loads(json.dumps(attributes))
    sizes = settings.pop("dimensions")
    return {**{key: value for key, value in settings.items() if key not in _INCIDENTAL}, **sizes}


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return spans(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
