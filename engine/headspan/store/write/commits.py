"""Commit finished units: stage the files, claim the unit, publish the files, and the record last.

Only one writer can claim a unit. The claim names the writer whose staged files are published. So a unit has one content
for any number of writers, and any process can publish the files of a killed writer that has claimed the unit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict

from headspan.errors import StoreError, one_line
from headspan.io.storage import Storage
from headspan.shards.samples import Unit
from headspan.store.commit_records import (
    COMPLETE,
    PLANNED,
    CommitRecords,
    Files,
    UnitRecord,
    beside,
    group_key,
    group_of,
    unit_key,
)
from headspan.store.earlier_words import QUARANTINE_ENDINGS
from headspan.store.moments_file import MergedMoments, pack

# How often a writer claims a unit. Another claim is in the way once for each killed writer whose files are lost.
CLAIMS = 4


class Commits(CommitRecords):
    """The commit records of a store, for a writer."""

    def __init__(self, storage: Storage, units: int) -> None:
        super().__init__(storage, units)
        self._token = storage.token
        # The units of each group that were not seen to be committed when it was last looked at; the next to look at is
        # the last.
        self._left: dict[int, list[int]] = {}

    def add(self, record: UnitRecord, moments: MergedMoments) -> bool:
        """Commit a unit whose shards are all staged. Returns False if another writer committed or claimed it first.

        Merges the unit's group if this was its last unit.
        """
        key = unit_key(record.unit)
        sizes = {name: size for name, (size, _) in record.files.items()}
        # Files are published in this order: the record last.
        for name, data in ((beside(key, "moments"), pack(moments)), (key, _dump([record]))):
            with self._storage.stage(name) as staged:
                staged.write(data)
                sizes[name], _ = staged.finish()
        claim = json.dumps({"token": self._token, "sizes": sizes}).encode()
        # Again if the claim was that of a killed writer whose staged files are lost.
        for _ in range(CLAIMS):
            mine = self._storage.put_if_absent(beside(key, "claim"), claim)
            # A writer that has committed the unit has deleted its claim, so this claim succeeds. The unit stays.
            mine = mine and not self.is_done(record.unit)
            if self.settle(record.unit):
                break
        else:
            raise self._lost(record.unit)
        if not mine:
            self._discard(sizes, self._token)
        self._merge_group(group_of(record.unit))
        return mine

    def settle(self, unit: int) -> bool:
        """Publish the files of a claimed unit, its record last. Returns whether the unit is committed.

        Several processes may do this at the same time. The claim is deleted. If the unit was committed before, or a
        staged file is lost, the staged files are deleted instead of published.
        """
        key = unit_key(unit)
        claim = beside(key, "claim")
        try:
            claimed = json.loads(self._storage.get(claim))
        except FileNotFoundError:
            return self.is_done(unit)
        except ValueError as error:
            raise StoreError(
                f"{self._storage}/{claim}: this claim is damaged ({one_line(error)}); delete it to continue"
            ) from error
        token, sizes = claimed["token"], claimed["sizes"]
        *names, last = sizes
        if self.is_done(unit):
            # The claim of a late writer that was killed before it saw the record, or one that another process settles.
            self._discard(sizes, token)
        else:
            whole = all(self._published(name, token, sizes[name]) for name in names)
            if not whole and not self.is_done(unit):
                self._discard(sizes, token)
            elif self._published(last, token, sizes[last]):
                self._end_quarantine(unit)
        self._storage.delete(claim)
        return self.is_done(unit)

    def settle_all(self) -> None:
        """Publish what killed writers claimed."""
        for claim in self.unit_files("claim"):
            self.settle(_number_in(claim))

    def replace(self, record: UnitRecord, moments: MergedMoments) -> None:
        """Replace the shards, record and moments of a committed unit that is damaged; the new shards are staged.

        An interruption leaves the unit as damaged as it was. Merged moments do not change: this unit's part of them was
        sound, and equals the new moments up to rounding.
        """
        key = unit_key(record.unit)
        if self._exists(key):
            self._storage.put(beside(key, "moments"), [pack(moments)])
        else:
            key = group_key(group_of(record.unit))
        for name in record.files:
            if not self._storage.publish(name, self._token):
                raise self._lost(record.unit)
        records = [record if old.unit == record.unit else old for old in self.read(key)]
        found = self._storage.put(key, [_dump(records)])
        if key in (files := self.recorded(COMPLETE)):
            self.close({**files, key: found})

    def drop_staged(self, unit: int, token: str) -> None:
        """Delete the record, moments and claim that the writer `token` had staged for a unit."""
        key = unit_key(unit)
        self._discard([key, beside(key, "moments"), beside(key, "claim")], token)

    def withdraw_damaged(self) -> set[int]:
        """Delete damaged records and moments. Returns their units, which count as unfinished from now on."""
        withdrawn: set[int] = set()
        try:
            recorded = self.recorded(COMPLETE)
        except StoreError:
            recorded = {}
            self.reopen()
        lost = {key for group in self.groups if (key := group_key(group)) in recorded}
        for key in sorted({*self.unit_files(), *self.group_records(), *lost}):
            pair = (key, beside(key, "moments"))
            try:
                self.read(key)
                for each in pair:
                    wanted = recorded.get(each)
                    if wanted is not None and self._storage.checksum(each) != wanted:
                        raise StoreError(f"{self._storage}/{each}: not as it was written")
                # A complete store needs only the moments in its arrays, and older complete stores have no others.
                if not recorded:
                    self.unit_moments(key)
            except (StoreError, FileNotFoundError):
                number = _number_in(key)
                withdrawn |= {number} if key == unit_key(number) else set(self.units_of(number))
                # First, because a store that lacks a group is not complete.
                self.reopen()
                for each in pair:
                    self._storage.delete(each)
        return withdrawn

    def reopen(self) -> None:
        """Delete the mark that the moments of all units are in the arrays."""
        self._storage.delete(COMPLETE)

    def quarantine(self, unit: Unit, tries: int) -> None:
        """Quarantine a unit that ended its process `tries` times."""
        note = json.dumps({"unit": unit.index, "first_row": unit.first_row, "rows": unit.rows, "tries": tries})
        self._storage.put(beside(unit_key(unit.index), QUARANTINE_ENDINGS[0]), [note.encode()])

    def merge_groups(self) -> None:
        """Merge every group whose units are all finished, and clean up after an interrupted merge."""
        # Only groups that have files of single units left: a look for each of all groups' files would take long.
        files = [*self.unit_files(), *self.unit_files("moments")]
        for group in sorted({group_of(_number_in(key)) for key in files}):
            self._merge_group(group)

    def note_plan(self, files: Files) -> None:
        """Record the files that the plan wrote: the metadata, the model's matrices and the tables."""
        self._storage.put(PLANNED, [_dump_files(files)])

    def close(self, files: Files) -> None:
        """Record the files of the merged moments; this marks the store as complete."""
        self._storage.put(COMPLETE, [_dump_files(files)])

    def _merge_group(self, group: int) -> None:
        whole, units = group_key(group), self.units_of(group)
        keys = [unit_key(unit) for unit in units]
        if not self._exists(whole):
            # The last one first, since a worker alone goes through a group from its start. Then in a drawn order: where
            # several share the group, few looks find a unit that is not committed.
            if group not in self._left:
                self._left[group] = [*random.sample(units[:-1], len(units) - 1), units[-1]]
            left = self._left[group]
            while left:
                if not self._exists(unit_key(left[-1])):
                    return
                left.pop()
            moments = self.group_moments(group)
            assert moments is not None, "a group of finished units has moments"
            merged = [record for key in keys for record in self.read(key)]
            if len(merged) < len(keys):
                # Another writer is merging this group and deleting its parts.
                return
            self._storage.put(beside(whole, "moments"), [pack(moments)])
            self._storage.put(whole, [_dump(merged)])
        self._left.pop(group, None)
        for key in keys:
            self._storage.delete(beside(key, "moments"))
            self._storage.delete(key)

    def _published(self, key: str, token: str, size: int) -> bool:
        """Return whether the staged file has its final name now, given by this process or another one."""
        return self._storage.publish(key, token) or self._storage.size(key) == size

    def _lost(self, unit: int) -> StoreError:
        return StoreError(
            f"{self._storage}: staged files of unit {unit} were deleted while they were written; do not delete *.tmp "
            "files of a running process, and run the same command to continue"
        )

    def _end_quarantine(self, unit: int) -> None:
        for ending in QUARANTINE_ENDINGS:
            self._storage.delete(beside(unit_key(unit), ending))

    def _discard(self, keys: Iterable[str], token: str) -> None:
        for key in keys:
            self._storage.discard(key, token)


def _number_in(key: str) -> int:
    """Return the index in the key of a unit's or group's file."""
    return int(key.rpartition("-")[2].partition(".")[0])


def _dump_files(files: Files) -> bytes:
    return (json.dumps(files, sort_keys=True) + "\n").encode()


def _dump(records: Iterable[UnitRecord]) -> bytes:
    return (json.dumps([asdict(record) for record in records], ensure_ascii=False) + "\n").encode()
