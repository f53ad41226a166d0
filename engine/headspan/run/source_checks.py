"""Compare the sources of a store with its plan: sizes and times of modification, and on request all bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import google_crc32c

from headspan.errors import SourceError
from headspan.io.retry import is_remote
from headspan.member_names import MemberNames
from headspan.run.planned_sources import change
from headspan.run.problems import WHOLE_STORE, Problem
from headspan.shards.file_images import image_change
from headspan.shards.image_list import root_of
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.open_images import open_images
from headspan.shards.samples import Shard, wanted
from headspan.shards.urls import local_path
from headspan.store.commit_records import UnitRecord
from headspan.store.reader import Store
from headspan.store.tables import read_unit

# The most bytes of one read of source images.
_READ_BYTES = 2 << 20


def source_problems(
    planned: Sequence[Shard], urls: Mapping[str, str], names: MemberNames, remote_too: bool
) -> tuple[list[Problem], set[str]]:
    """Problems of source shards that are not the planned ones, and the names of the shards that were not compared."""
    problems, unreached = [], set()
    for shard in planned:
        url = urls[shard.url]
        if url.startswith("pipe:") or (is_remote(url) and not remote_too):
            unreached.add(shard.url)
            continue
        try:
            what = change(shard, url, names)
        except SourceError:
            unreached.add(shard.url)
            continue
        if what is not None:
            problems.append(
                Problem(WHOLE_STORE, shard.first_row, shard.images, f"{shard.url} {what}", shard.url, of_source=True)
            )
    return problems, unreached


class SourceImages:
    """The images of units, read again from the source shards."""

    def __init__(
        self, planned: Sequence[Shard], urls: Mapping[str, str], names: MemberNames, reported: set[str]
    ) -> None:
        """`reported` names the shards that the verdict already reports as changed or not compared."""
        self._planned = {shard.url: shard for shard in planned}
        self._urls, self._names, self._reported = urls, names, reported
        # Tars that could not be read; they are not read again for other units.
        self._unreadable: set[str] = set()

    def problems(self, store: Store, record: UnitRecord) -> list[Problem]:
        """The problems of the unit's images: bytes that changed, or a shard that cannot be read."""
        if record.source_crc32c is None:
            return []
        found, read = 0, set()
        for name, samples in groupby(store.contents.samples_of(record), key=lambda sample: sample.url):
            if self._urls[name].startswith("pipe:") or name in self._unreadable:
                return []
            read.add(name)
            try:
                with open_images(self._urls[name], self._names) as reader:
                    for encoded, _ in reader.read(wanted(list(samples), reader.needs_members), _READ_BYTES):
                        found = google_crc32c.extend(found, encoded)
            except SourceError as error:
                # Other files of a folder or a list may be as they were.
                if kind_of(self._urls[name]) not in (FOLDER, LIST):
                    self._unreadable.add(name)
                return [] if name in self._reported else [self._unread(name, error)]
        if found == record.source_crc32c:
            return []
        what = f"the images in {', '.join(sorted(read))} have changed since the unit was computed"
        return [Problem(record.unit, record.first_row, record.rows, what, of_source=True)]

    def _unread(self, name: str, error: SourceError) -> Problem:
        shard = self._planned[name]
        what = f"cannot be read again: {error}"
        return Problem(WHOLE_STORE, shard.first_row, shard.images, what, name, of_source=True)


def changed_files(store: Store, urls: Mapping[str, str], names: MemberNames) -> Iterator[Problem]:
    """The files of folders and lists that have changed or do not exist any more, each with its row.

    Their sizes and times of modification are compared; a list or a folder that does not exist has no such problems.
    """
    planned = {shard.url: shard for shard in store.shards()}
    roots = {
        name: root_of(url)
        for name, url in urls.items()
        if kind_of(url) in (FOLDER, LIST) and Path(local_path(url)).exists()
    }
    for unit in range(store.contents.units) if roots else ():
        for sample in read_unit(store.path, unit):
            if (root := roots.get(sample.url)) is None:
                continue
            newest = planned[sample.url].modified_ns
            what = image_change(root, sample.member, sample.offset, sample.size_bytes or 0, newest)
            if what is not None:
                what = f"{sample.member} {what}"
                yield Problem(WHOLE_STORE, sample.row, 1, what, sample.url, of_source=True)
