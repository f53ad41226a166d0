"""Read commit records: which units are finished, with which files, and the moments of those units.

A unit's record is the only proof that its files are valid. Each record has the unit's moments beside it. When all 64
units of a group are finished, their records and moments are merged into two files of the group. Moments are always
added in the order of units, so that their bytes do not depend on interruptions. `store.write.commits` writes what this
module reads.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Bool, Int

from headspan.errors import StoreError, one_line
from headspan.io.remembered import remembered
from headspan.io.storage import Checksum, Storage, named
from headspan.shards.samples import BadImage, Unit
from headspan.store.earlier_words import QUARANTINE_ENDINGS
from headspan.store.moments_file import MergedMoments, unpack
from headspan.store.schema import RECORDS

GROUP_UNITS = 64
# Groups whose files are read at the same time when all moments are added.
_GROUPS_AT_ONCE = 8
# Size in bytes and crc32c of files, by their key.
Files = dict[str, Checksum]
# The reason of an image whose numbers do not fit the store's float16, or overflowed in the model.
NOT_FINITE = "the model's numbers are not finite in 16 bits"
COMMITS = f"{RECORDS}/commits"
_RECORD = re.compile(rf"{COMMITS}/(unit|group)-(\d+)\.json")
PLANNED, COMPLETE = f"{COMMITS}/planned.json", f"{COMMITS}/complete.json"


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What is recorded about a finished unit."""

    unit: int
    first_row: int
    rows: int
    # Images whose numbers are in the arrays.
    images: int
    files: Files
    bad: list[BadImage]
    # crc32c over the encoded images in row order, as they were read; None in older stores, which do not have it.
    source_crc32c: int | None = None


class CommitRecords:
    """The commit records of a store that was planned with `units` units."""

    def __init__(self, storage: Storage, units: int) -> None:
        self._storage = storage
        self._units = units

    def records(self) -> list[UnitRecord]:
        """Return the records of all finished units, in order. Raises StoreError if one is damaged."""
        found: dict[int, UnitRecord] = {}
        # Units first: a unit that is merged into its group between the two listings is then found in the group.
        for listed in (self.unit_files, self.group_records):
            keys = listed()
            there = CommitRecords(remembered(self._storage, keys), self._units)
            for key in keys:
                found.update({record.unit: record for record in there.read(key)})
        return [found[unit] for unit in sorted(found)]

    def done(self) -> Bool[np.ndarray, " unit"]:
        """Return whether each unit is committed, from one listing.

        A unit that is merged into its group meanwhile may be missed, and a record that is damaged counts.
        """
        found = np.zeros(self._units, bool)
        for key in self._storage.list(COMMITS):
            # Half of the keys are those of moments, and there may be many.
            if key.endswith(".json") and (match := _RECORD.fullmatch(key)):
                number = int(match[2])
                units = range(number, number + 1) if match[1] == "unit" else self.units_of(number)
                found[units.start : units.stop] = True
        return found

    def is_done(self, unit: int) -> bool:
        """Return whether the unit is committed."""
        return self._exists(unit_key(unit)) or self._exists(group_key(group_of(unit)))

    @property
    def complete(self) -> bool:
        """Whether all units are finished and their moments are in the arrays `moments/…`."""
        return self._exists(COMPLETE) and set(self.group_records()).issuperset(map(group_key, self.groups))

    def moments(self) -> MergedMoments | None:
        """Return the moments of all finished units; None if no unit is finished."""
        merged: MergedMoments | None = None
        for group in self.groups:
            part = self.group_moments(group)
            if part is not None:
                merged = part if merged is None else merged + part
        return merged

    def quarantined_units(self) -> list[Unit]:
        """Return the quarantined units, in order."""
        found = {}
        for key in self.unit_files(f"(?:{'|'.join(QUARANTINE_ENDINGS)})"):
            # Another process may have committed the unit and deleted the note after it was listed.
            with suppress(FileNotFoundError):
                note = json.loads(self._storage.get(key))
                found[note["unit"]] = Unit(note["unit"], note["first_row"], note["rows"])
        return [found[unit] for unit in sorted(found)]

    def other_files(self) -> Files:
        """Return size and crc32c of the recorded files that belong to no unit."""
        return {**self.planned_files(), **self.recorded(COMPLETE)}

    def planned_files(self) -> Files:
        """Return size and crc32c of the files that the plan wrote."""
        return self.recorded(PLANNED)

    def recorded(self, key: str) -> Files:
        """Return the files listed in a record of files; none without a record. Raises StoreError if it is damaged."""
        try:
            files = json.loads(self._storage.get(key))
            return {file: (size, crc) for file, (size, crc) in files.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            todo = "run headspan repair" if key == COMPLETE else "restore it from a copy of the store"
            raise StoreError(f"{self._storage}/{key}: this record is damaged ({one_line(error)}); {todo}") from error

    def read(self, key: str) -> list[UnitRecord]:
        """Return the records in one file; none if it does not exist. Raises StoreError if it is damaged."""
        try:
            values: list[dict[str, Any]] = json.loads(self._storage.get(key))
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
            # It was merged into its group after it was listed.
            return []
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"{self._storage}/{key}: this commit record is damaged ({one_line(error)}); run headspan repair"
            ) from error

    @property
    def groups(self) -> range:
        """The indices of all groups."""
        return range(-(-self._units // GROUP_UNITS))

    def units_of(self, group: int) -> range:
        """Return the indices of the units of a group."""
        return range(group * GROUP_UNITS, min((group + 1) * GROUP_UNITS, self._units))

    def unit_files(self, ending: str = "json") -> list[str]:
        """Return the keys of the single units' files with that ending, in the order of units."""
        return named(self._storage, COMMITS, rf"unit-\d{{8}}\.{ending}")

    def group_records(self) -> list[str]:
        """Return the keys of the groups' records, in order."""
        return named(self._storage, COMMITS, r"group-\d{6}\.json")

    def merged(self) -> tuple[MergedMoments, Files]:
        """Return the sum of the moments of all groups, which are merged, and size and crc32c of the groups' files.

        Each file is read once, and those of some groups at a time.
        """
        merged: MergedMoments | None = None
        files: Files = {}
        for first in range(0, len(self.groups), _GROUPS_AT_ONCE):
            records = [group_key(group) for group in self.groups[first : first + _GROUPS_AT_ONCE]]
            keys = [key for record in records for key in (record, beside(record, "moments"))]
            there = remembered(self._storage, keys)
            for key in keys:
                try:
                    data = there.get(key)
                except FileNotFoundError as error:
                    raise StoreError(
                        f"{self._storage}/{key}: records and moments of committed units are missing; run headspan "
                        "repair"
                    ) from error
                files[key] = len(data), google_crc32c.value(data)
                if key.endswith(".moments"):
                    part = unpack(data, f"{self._storage}/{key}")
                    merged = part if merged is None else merged + part
        assert merged is not None, "a finished store has units"
        return merged, files

    def group_moments(self, group: int) -> MergedMoments | None:
        """Return the moments of the finished units of a group; None if there are none."""
        whole = group_key(group)
        if not self._exists(whole):
            try:
                merged = self._sum_of_units(group)
            except FileNotFoundError as error:
                if not self._exists(whole):
                    raise StoreError(
                        f"{error.filename}: the moments of a committed unit are missing; run headspan repair"
                    ) from error
            else:
                if not self._exists(whole):
                    return merged
        # The group was merged before, or by another process while its units were being read.
        try:
            return self.unit_moments(whole)
        except FileNotFoundError as error:
            raise StoreError(
                f"{error.filename}: the moments of committed units are missing; run headspan repair"
            ) from error

    def unit_moments(self, record: str) -> MergedMoments:
        """Return the moments beside a record of a unit or group."""
        key = beside(record, "moments")
        return unpack(self._storage.get(key), f"{self._storage}/{key}")

    def _sum_of_units(self, group: int) -> MergedMoments | None:
        merged: MergedMoments | None = None
        for unit in self.units_of(group):
            if self._exists(unit_key(unit)):
                part = self.unit_moments(unit_key(unit))
                merged = part if merged is None else merged + part
        return merged

    def _exists(self, key: str) -> bool:
        return self._storage.size(key) is not None


def group_of(unit: int) -> int:
    """Return the index of the group that a unit is in."""
    return unit // GROUP_UNITS


def groups_with(units: Bool[np.ndarray, " unit"]) -> Int[np.ndarray, " group"]:
    """Return the indices of the groups of the marked units, in order."""
    return np.unique(np.flatnonzero(units) // GROUP_UNITS)


def unit_key(unit: int) -> str:
    """Return the key of a unit's record."""
    return f"{COMMITS}/unit-{unit:08d}.json"


def group_key(group: int) -> str:
    """Return the key of a group's record."""
    return f"{COMMITS}/group-{group:06d}.json"


def beside(record: str, ending: str) -> str:
    """Return the key of the file beside a record that has another ending: `moments`, `claim`, `quarantined`."""
    return f"{record.removesuffix('.json')}.{ending}"
