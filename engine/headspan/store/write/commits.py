"""Which units are done: one small record a unit, written last and whole, and the unit's moments beside it.

A record is the only proof that its unit's shards are valid. A unit's files wait under temporary names until its
claim, which one writer alone can make, says whose they are; then they get their names, the record last. So a unit
has one content however many writers there are, and whoever comes by finishes what a killed one claimed.

Records and moments of 64 neighbouring units are merged into a group file when all of them are done; sums are
always taken in the order of units, so that the bytes do not depend on when a run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headspan.errors import StoreError, one_line
from headspan.io.local import (
    checksum,
    create_once,
    named,
    new_token,
    refusals,
    stage,
    staged,
    sync_folder,
    write_atomically,
)
from headspan.shards.samples import BadImage, Unit
from headspan.store.moments_file import MergedMoments, pack, unpack
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
    # crc32c over the encoded images in row order, as they were read; None in stores that are older than it.
    source_crc32c: int | None = None


class Commits:
    """The `commits` folder of a store, as the writer of that token meets it."""

    def __init__(self, root: Path, units: int, token: str = "") -> None:
        self._root = root
        self._folder = root / RECORDS / "commits"
        self._units = units
        self._token = token or new_token()

    def records(self) -> list[UnitRecord]:
        """The records of all finished units, in order."""
        found: dict[int, UnitRecord] = {}
        # Units first: one that is merged into its group in between is then found there.
        for listed in (self._unit_files, self._group_records):
            for path in listed():
                found.update({record.unit: record for record in _read_records(path)})
        return [found[unit] for unit in sorted(found)]

    def is_done(self, unit: int) -> bool:
        """Whether the unit is committed."""
        return self._unit_path(unit).is_file() or self._group_path(unit // GROUP_UNITS).is_file()

    def add(self, record: UnitRecord, moments: MergedMoments) -> bool:
        """Commit a unit whose shards are all staged; returns False where another writer's shards count instead.

        Merges the unit's group if it was the last one missing.
        """
        path = self._unit_path(record.unit)
        sizes = {name: size for name, (size, _) in record.files.items()}
        for each, data in ((path.with_suffix(".moments"), pack(moments)), (path, _dump([record]))):
            # In this order the files get their names: the record last.
            sizes[str(each.relative_to(self._root))] = stage(each, [data], self._token)[0]
        claim = json.dumps({"token": self._token, "sizes": sizes}).encode()
        mine = create_once(path.with_suffix(".claim"), claim, self._token)
        # A unit that another writer has committed, whose claim is gone since, stays as it is.
        mine = mine and not self.is_done(record.unit)
        if not mine:
            self._discard(sizes, self._token)
        if not self.settle(record.unit):
            raise StoreError(
                f"{self._root}: files of unit {record.unit} vanished while they were written; leave *.tmp files of a "
                "running precompute alone, and run the same command to go on"
            )
        self._merge_group(record.unit // GROUP_UNITS)
        return mine

    def settle(self, unit: int) -> bool:
        """Give the files of a unit that was claimed their names, and the unit its record; returns whether it is done.

        Several writers may do so at once. A claim on a unit that is done, or whose files are lost, is dropped.
        """
        path = self._unit_path(unit)
        claim = path.with_suffix(".claim")
        try:
            claimed = json.loads(claim.read_bytes())
        except FileNotFoundError:
            return self.is_done(unit)
        except ValueError as error:
            raise StoreError(f"{claim}: this claim is damaged ({one_line(error)}); delete it to go on") from error
        token, sizes = claimed["token"], claimed["sizes"]
        with refusals(self._root):
            *names, last = sizes
            if self.is_done(unit):
                # A late writer's claim, that was killed before it could see so; or one that is settled meanwhile.
                self._discard(sizes, token)
                claim.unlink(missing_ok=True)
                return True
            whole = all(_given_its_name(self._root / name, token, sizes[name]) for name in names)
            for folder in {(self._root / name).parent for name in names}:
                sync_folder(folder)
            if not whole and not self.is_done(unit):
                self._discard(sizes, token)
            elif _given_its_name(self._root / last, token, sizes[last]):
                path.with_suffix(".aside").unlink(missing_ok=True)
            sync_folder(self._folder)
            claim.unlink(missing_ok=True)
        return self.is_done(unit)

    def settle_all(self) -> None:
        """Finish what killed writers claimed."""
        for claim in self._unit_files("claim"):
            self.settle(int(claim.stem.removeprefix("unit-")))

    def replace(self, record: UnitRecord, moments: MergedMoments) -> None:
        """Put staged shards, `record` and moments in the place of those of a committed unit that is damaged.

        Interrupted, it leaves the unit as damaged as it was. Moments that are merged stay as they are: the unit's
        part of them was sound, and is the same but for rounding.
        """
        path = self._unit_path(record.unit)
        if path.is_file():
            write_atomically(path.with_suffix(".moments"), [pack(moments)], self._token)
        else:
            path = self._group_path(record.unit // GROUP_UNITS)
        with refusals(self._root):
            for name in record.files:
                staged(self._root / name, self._token).replace(self._root / name)
                sync_folder((self._root / name).parent)
        records = [record if old.unit == record.unit else old for old in _read_records(path)]
        name, found = str(path.relative_to(self._root)), write_atomically(path, [_dump(records)], self._token)
        if name in (files := self._files("complete.json")):
            self.close({**files, name: found})

    def drop_staged(self, unit: int, token: str) -> None:
        """Delete the record, moments and claim that a writer had staged."""
        path = self._unit_path(unit)
        for each in (path, path.with_suffix(".moments"), path.with_suffix(".claim")):
            staged(each, token).unlink(missing_ok=True)

    def withdraw_damaged(self) -> set[int]:
        """Delete records and moments that are not as they were written; returns their units, unfinished from now on."""
        withdrawn: set[int] = set()
        try:
            recorded = self._files("complete.json")
        except StoreError:
            recorded = {}
            self.reopen()
        lost = {path for name in recorded if (path := self._root / name).match("commits/group-*.json")}
        for path in sorted({*self._unit_files(), *self._group_records(), *lost}):
            pair = (path, path.with_suffix(".moments"))
            try:
                _read_records(path)
                for each in pair:
                    wanted = recorded.get(str(each.relative_to(self._root)))
                    if wanted is not None and checksum(each) != wanted:
                        raise StoreError(f"{each}: not as it was written")
                # A complete store needs no moments but those of its arrays, and older ones kept none.
                if not recorded:
                    unpack(pair[1])
            except (StoreError, FileNotFoundError):
                number = int(path.stem.partition("-")[2])
                withdrawn |= {number} if path.stem.startswith("unit") else set(self._group_units(number))
                # First, since a store whose groups are not all there is not complete.
                self.reopen()
                for each in pair:
                    each.unlink(missing_ok=True)
        return withdrawn

    def reopen(self) -> None:
        """Take back that the moments of all units stand in the arrays."""
        (self._folder / "complete.json").unlink(missing_ok=True)

    def quarantine(self, unit: Unit, tries: int) -> None:
        """Leave a unit out of the run that ended its process so often."""
        note = json.dumps({"unit": unit.index, "first_row": unit.first_row, "rows": unit.rows, "tries": tries})
        write_atomically(self._unit_path(unit.index).with_suffix(".aside"), [note.encode()], self._token)

    def quarantined_units(self) -> list[Unit]:
        """The units that were set aside, in order."""
        notes = [json.loads(path.read_bytes()) for path in self._unit_files("aside")]
        return [Unit(note["unit"], note["first_row"], note["rows"]) for note in notes]

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
        noted = (self._folder / "complete.json").is_file()
        return noted and all(self._group_path(group).is_file() for group in self._groups)

    def merge_groups(self) -> None:
        """Merge every group whose units are all done, and tidy what an interrupted merge left."""
        for group in self._groups:
            self._merge_group(group)

    def note_plan(self, files: Files) -> None:
        """Record the files that the plan wrote: the metadata, the model's matrices and the tables."""
        write_atomically(self._folder / "planned.json", [_dump_files(files)], self._token)

    def close(self, files: Files) -> None:
        """Record the files of the merged moments, and with them that the run is complete."""
        write_atomically(self._folder / "complete.json", [_dump_files(files)], self._token)

    def group_files(self) -> Iterator[Path]:
        """The merged records and moments."""
        for group in self._groups:
            path = self._group_path(group)
            yield from (path, path.with_suffix(".moments"))

    def other_files(self) -> Files:
        """Size and crc32c of the files that belong to no unit."""
        return {**self.planned_files(), **self._files("complete.json")}

    def planned_files(self) -> Files:
        """Those of them that the plan wrote."""
        return self._files("planned.json")

    def _files(self, name: str) -> Files:
        path = self._folder / name
        try:
            files = json.loads(path.read_bytes())
            return {file: (size, crc) for file, (size, crc) in files.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            todo = "run headspan repair" if name == "complete.json" else "restore it from a copy of the store"
            raise StoreError(f"{path}: this record is damaged ({one_line(error)}); {todo}") from error

    @property
    def _groups(self) -> range:
        return range(-(-self._units // GROUP_UNITS))

    def _unit_path(self, unit: int) -> Path:
        return self._folder / f"unit-{unit:08d}.json"

    def _unit_files(self, kind: str = "json") -> list[Path]:
        return named(self._folder, rf"unit-\d{{8}}\.{kind}")

    def _group_records(self) -> list[Path]:
        return named(self._folder, r"group-\d{6}\.json")

    def _group_path(self, group: int) -> Path:
        return self._folder / f"group-{group:06d}.json"

    def _group_units(self, group: int) -> range:
        return range(group * GROUP_UNITS, min((group + 1) * GROUP_UNITS, self._units))

    def _group_moments(self, group: int) -> MergedMoments | None:
        whole = self._group_path(group)
        if not whole.is_file():
            try:
                merged = self._unit_moments(group)
            except FileNotFoundError as error:
                if not whole.is_file():
                    raise StoreError(
                        f"{error.filename}: the moments of a committed unit are missing; run headspan repair"
                    ) from error
            else:
                if not whole.is_file():
                    return merged
        # Whole from the start, or merged by another process while its units were being read.
        try:
            return unpack(whole.with_suffix(".moments"))
        except FileNotFoundError as error:
            raise StoreError(
                f"{error.filename}: the moments of committed units are missing; run headspan repair"
            ) from error

    def _unit_moments(self, group: int) -> MergedMoments | None:
        merged: MergedMoments | None = None
        for unit in self._group_units(group):
            path = self._unit_path(unit)
            if path.is_file():
                part = unpack(path.with_suffix(".moments"))
                merged = part if merged is None else merged + part
        return merged

    def _merge_group(self, group: int) -> None:
        whole = self._group_path(group)
        paths = [self._unit_path(unit) for unit in self._group_units(group)]
        if not whole.is_file():
            if not all(path.is_file() for path in paths):
                return
            moments = self._group_moments(group)
            assert moments is not None, "a group of finished units has moments"
            merged = [record for path in paths for record in _read_records(path)]
            if len(merged) < len(paths):
                # Another writer is merging this group, and takes its parts away.
                return
            write_atomically(whole.with_suffix(".moments"), [pack(moments)], self._token)
            write_atomically(whole, [_dump(merged)], self._token)
        with refusals(whole):
            for path in paths:
                path.with_suffix(".moments").unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _discard(self, names: Iterable[str], token: str) -> None:
        for name in names:
            staged(self._root / name, token).unlink(missing_ok=True)


def _given_its_name(path: Path, token: str, size: int) -> bool:
    """Whether the staged file stands under its name now, given it here or by another writer before."""
    try:
        staged(path, token).replace(path)
    except FileNotFoundError:
        return path.is_file() and path.stat().st_size == size
    return True


def _dump_files(files: Files) -> bytes:
    return (json.dumps(files, sort_keys=True) + "\n").encode()


def _dump(records: Iterable[UnitRecord]) -> bytes:
    return (json.dumps([asdict(record) for record in records], ensure_ascii=False) + "\n").encode()


def _read_records(path: Path) -> list[UnitRecord]:
    try:
        values: list[dict[str, Any]] = json.loads(path.read_bytes())
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
    except FileNotFoundError:
        # Merged into its group since it was listed.
        return []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path}: this commit record is damaged ({one_line(error)}); run headspan repair") from error
