"""Which units are done: one small record a unit, written last and whole, and the unit's moments beside it.

A record is the only proof that its unit's shards are valid. Records and moments of 64 neighbouring
units are merged into a group file when all of them are done, and all moments into the arrays
`moments/…` when the run is; sums are always taken in the order of units, so that the bytes do not
depend on when a run was interrupted.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headspan.errors import StoreError
from headspan.records import BadImage
from headspan.store.files import write_atomically
from headspan.store.schema import RECORDS

GROUP_UNITS = 64
# Size in bytes and crc32c of files, by their path in the store.
Files = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What is known of a finished unit."""

    unit: int
    first_row: int
    rows: int
    # Images whose numbers are in the arrays.
    images: int
    files: Files
    bad: list[BadImage]


@dataclass(frozen=True, slots=True)
class MergedMoments:
    """Count, and sum `[layer, head, coordinate]` and Gram `[layer, head, coordinate, coordinate]`, float64."""

    count: int
    total: np.ndarray
    gram: np.ndarray

    def __add__(self, other: MergedMoments) -> MergedMoments:
        return MergedMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)


class Commits:
    """The `commits` folder of a store."""

    def __init__(self, root: Path, units: int) -> None:
        self._folder = root / RECORDS / "commits"
        self._units = units

    def records(self) -> list[UnitRecord]:
        """The records of all finished units, in order."""
        found: dict[int, UnitRecord] = {}
        # Units first: one that is merged into its group in between is then found there.
        for path in sorted(self._folder.glob("unit-*.json")):
            for record in _read_records(path):
                found[record.unit] = record
        for path in sorted(self._folder.glob("group-*.json")):
            for record in _read_records(path):
                found[record.unit] = record
        return [found[unit] for unit in sorted(found)]

    def add(self, record: UnitRecord, moments: MergedMoments) -> None:
        """Commit a unit whose shards are all on disk, and merge its group if it was the last one missing."""
        name = f"unit-{record.unit:08d}"
        write_atomically(self._folder / f"{name}.moments", [_pack(moments)])
        write_atomically(self._folder / f"{name}.json", [_dump([record])])
        self._merge_group(record.unit // GROUP_UNITS)

    def moments(self) -> MergedMoments | None:
        """Moments of all finished units; None where there is no unit yet."""
        merged: MergedMoments | None = None
        for group in self._groups:
            part = self._group_moments(group)
            if part is not None:
                merged = part if merged is None else merged + part
        return merged

    @property
    def complete(self) -> bool:
        """Whether the whole run is finished and its moments stand in the store's arrays."""
        return (self._folder / "complete.json").is_file()

    def merge_groups(self) -> None:
        """Merge every group whose units are all done, and tidy what an interrupted merge left."""
        for group in self._groups:
            self._merge_group(group)

    def note_plan(self, files: Files) -> None:
        """Record the files that the plan wrote: the model's matrices and the tables."""
        write_atomically(self._folder / "planned.json", [_dump_files(files)])

    def close(self, files: Files) -> None:
        """Record the files of the merged moments, and with them that the run is complete."""
        write_atomically(self._folder / "complete.json", [_dump_files(files)])

    def other_files(self) -> Files:
        """Size and crc32c of the files that belong to no unit."""
        found: Files = {}
        for name in ("planned.json", "complete.json"):
            path = self._folder / name
            if path.is_file():
                found.update({file: (size, crc) for file, (size, crc) in json.loads(path.read_bytes()).items()})
        return found

    def drop_moments(self) -> None:
        """Delete the groups' moments, once they stand in the store's arrays."""
        for path in self._folder.glob("group-*.moments"):
            path.unlink(missing_ok=True)

    @property
    def _groups(self) -> range:
        return range(-(-self._units // GROUP_UNITS))

    def _group_units(self, group: int) -> range:
        return range(group * GROUP_UNITS, min((group + 1) * GROUP_UNITS, self._units))

    def _group_moments(self, group: int) -> MergedMoments | None:
        whole = self._folder / f"group-{group:06d}.moments"
        if not whole.with_suffix(".json").is_file():
            try:
                merged = self._unit_moments(group)
            except FileNotFoundError as error:
                if not whole.with_suffix(".json").is_file():
                    raise StoreError(
                        f"{error.filename}: the moments of a committed unit are missing; delete its record and run "
                        "precompute again"
                    ) from error
            else:
                if not whole.with_suffix(".json").is_file():
                    return merged
        # Whole from the start, or merged by another process while its units were being read.
        return _unpack(whole)

    def _unit_moments(self, group: int) -> MergedMoments | None:
        merged: MergedMoments | None = None
        for unit in self._group_units(group):
            path = self._folder / f"unit-{unit:08d}.moments"
            if path.with_suffix(".json").is_file():
                part = _unpack(path)
                merged = part if merged is None else merged + part
        return merged

    def _merge_group(self, group: int) -> None:
        name = f"group-{group:06d}"
        records = [self._folder / f"unit-{unit:08d}.json" for unit in self._group_units(group)]
        if not (self._folder / f"{name}.json").is_file():
            if not all(path.is_file() for path in records):
                return
            moments = self._group_moments(group)
            assert moments is not None, "a group of finished units has moments"
            merged = [record for path in records for record in _read_records(path)]
            write_atomically(self._folder / f"{name}.moments", [_pack(moments)])
            write_atomically(self._folder / f"{name}.json", [_dump(merged)])
        for path in records:
            path.with_suffix(".moments").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _dump_files(files: Files) -> bytes:
    return (json.dumps(files, sort_keys=True) + "\n").encode()


def _dump(records: Iterable[UnitRecord]) -> bytes:
    return (json.dumps([asdict(record) for record in records], ensure_ascii=False) + "\n").encode()


def _read_records(path: Path) -> list[UnitRecord]:
    try:
        values: list[dict[str, Any]] = json.loads(path.read_bytes())
    except FileNotFoundError:
        # Merged into its group since it was listed.
        return []
    except ValueError as error:
        raise StoreError(
            f"{path}: this commit record is damaged ({error}); delete it and run precompute again"
        ) from error
    return [
        UnitRecord(
            **{
                **value,
                "files": {name: (size, crc) for name, (size, crc) in value["files"].items()},
                "bad": [BadImage(**bad) for bad in value["bad"]],
            }
        )
        for value in values
    ]


def _pack(moments: MergedMoments) -> bytes:
    """Count, sum and the Gram matrices' upper triangles: they are symmetric."""
    upper = np.triu_indices(moments.gram.shape[-1])
    buffer = io.BytesIO()
    np.savez(buffer, count=moments.count, total=moments.total, upper=moments.gram[..., upper[0], upper[1]])
    return buffer.getvalue()


def _unpack(path: Path) -> MergedMoments:
    try:
        # Opened here, since NumPy leaves a file open that is none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            count, total, packed_upper = int(packed["count"]), packed["total"], packed["upper"]
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path}: these moments are damaged ({error}); delete the record of the same name and run precompute again"
        ) from error
    size = total.shape[-1]
    upper = np.triu_indices(size)
    gram = np.empty((*total.shape, size))
    gram[..., upper[0], upper[1]] = packed_upper
    gram[..., upper[1], upper[0]] = packed_upper
    return MergedMoments(count, total, gram)
