"""All contents of a store: metadata, commit records, samples and arrays, with every planned row.

`reader.Store` selects the images to show from this. Verification and repair use it directly.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike

from headspan.config import as_ranges
from headspan.decompose.formula import Folded
from headspan.errors import SettingsError, StoreError, counted, one_line
from headspan.io.disk_blocks import DiskBlocks
from headspan.io.local import LocalStorage
from headspan.io.locations import Location
from headspan.io.ranged import RangedStorage, reading_storage
from headspan.shards.samples import Sample
from headspan.store.array_spec import ArraySpec
from headspan.store.commit_records import CommitRecords, Files, UnitRecord
from headspan.store.mapped import MappedRows
from headspan.store.ranged_rows import RangedRows
from headspan.store.schema import UNREADABLE, dimensions, open_group, stored_row_arrays
from headspan.store.shard_rows import ShardRows, UnmappableError, as_range, pieces_of, within_pieces
from headspan.store.tables import read_unit

# Of a store with more units, opening reads no record: it would take longer than a second.
LARGE_UNITS = 8192
# The most bytes that `outer` reads at once, unless a row of chunks is larger.
_BLOCK_BYTES = 64 << 20


class Contents:
    """The files of the store at `path`. Raises StoreError if there is no store or it has another format."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.storage = reading_storage(path)
        self.group, self.attributes = open_group(path, self.storage)
        self.size = dimensions(self.attributes)
        self.units = -(-self.size.images // self.size.unit_images)
        self.commits = CommitRecords(self.storage, self.units)
        # Whether each unit is committed. Rows of the others may be half written, so they are never read.
        self.is_large = self.units > LARGE_UNITS
        self.done = self.commits.done() if self.is_large else np.zeros(self.units, bool)
        if not self.is_large:
            # Records of a small store are read now, which shows whether they are damaged.
            self.done[[record.unit for record in self.records]] = True
        self._maps: dict[str, ShardRows] = {}

    def keep_on_disk(self, blocks: DiskBlocks) -> None:
        """Keep what is read of committed files on disk too, if the store is in a bucket.

        Blocks are named by the files' recorded checksums, so those of a store that is replaced are never read again.
        """
        if isinstance(self.storage, RangedStorage):
            recorded = {**self.commits.planned_files()}
            for record in self.records:
                recorded.update(record.files)
            self.storage.files.disk = blocks
            self.storage.files.content_of = lambda key: _content(self.path, key, recorded)

    @cached_property
    def records(self) -> list[UnitRecord]:
        """The commit records, in order. Raises StoreError if one is damaged."""
        # Units that were committed after a large store was opened are not shown.
        return [record for record in self.commits.records() if not self.is_large or self.done[record.unit]]

    @property
    def good_images(self) -> int:
        """The number of images that could be used; of a large complete store, without reading its records."""
        if self.is_large and "records" not in self.__dict__ and self.commits.complete:
            return int(self.values("moments/count")[0])
        return sum(record.images for record in self.records)

    def committed(self, rows: np.ndarray | slice) -> np.ndarray | bool:
        """Whether the unit of each of `rows`, a list or a range, is committed; True if all units are."""
        if self.done.all():
            return True
        places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return self.done[places // self.size.unit_images]

    @cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """Name on disk, shape, shards and chunks of the arrays that have one row for each image."""
        return stored_row_arrays(self.group, self.size, tuple(self.attributes["emit"]))

    @cached_property
    def folded(self) -> Folded:
        """The model's fixed matrices and biases."""
        names = [f"model/{name}" for name in Folded.__dataclass_fields__]
        for name in names:
            self.expect(name)
        return Folded(**dict(zip(Folded.__dataclass_fields__, map(self.values, names), strict=True)))

    def row_arrays(self) -> Iterator[tuple[str, zarr.Array[Any]]]:
        """List the Zarr arrays that have one row for each planned image, with their names."""
        for name in self.specs:
            yield name, self.array(name)

    def samples_of(self, record: UnitRecord) -> Iterator[Sample]:
        """Read the samples of one unit, in row order."""
        return read_unit(self.storage, record.unit)

    def layer_index(self, layer: int, head: int = 0) -> int:
        """Return the index of `layer` among the stored layers. Raises SettingsError if it, or `head`, is not stored."""
        size = self.size
        if layer < 0:
            raise SettingsError(
                f"{self.path}: layer {layer} does not exist; layers count from 0 to {size.all_layers - 1}, never from "
                "the end"
            )
        if layer in range(size.all_layers - size.direct_layers):
            raise SettingsError(
                f"{self.path}: the heads of layer {layer} write to the embedding only through layer "
                f"{size.all_layers - 1}, the attention pooling; ask for that layer, or call through_pool() for what "
                "came from this one"
            )
        if layer not in size.layers:
            raise SettingsError(
                f"{self.path}: layer {layer} is not stored; stored are {as_ranges(size.layers)} of the model's "
                f"{size.all_layers}, so choose one of them or precompute with --layers all"
            )
        if not 0 <= head < size.heads:
            raise SettingsError(f"{self.path}: head {head} does not exist; a layer's heads are 0 to {size.heads - 1}")
        return size.layers.index(layer)

    def array(self, name: str) -> zarr.Array[Any]:
        """Open an array. Raises SettingsError if it was not emitted, StoreError if its metadata are damaged."""
        stored = self.specs[name].name if name in self.specs else name
        if not self._has_array(stored):
            raise SettingsError(f"{self.path}: holds no {name}; precompute with --emit heads,{name} to store them")
        try:
            array = self.group[stored]
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path}: the metadata of {stored} cannot be read ({one_line(error)}); run headspan repair"
            ) from error
        assert isinstance(array, zarr.Array), stored
        return array

    def _has_array(self, stored: str) -> bool:
        if self.group.metadata.consolidated_metadata is not None:
            return stored in self.group
        return self.storage.size(f"{stored}/zarr.json") is not None

    def read(self, name: str, *index: int, dtype: DTypeLike | None = None) -> np.ndarray:
        """Read all rows of an array at `index` of the axes after the first, as `dtype` or the stored type.

        Rows of units that are not committed are NaN.
        """
        try:
            values = self.maps(name).read(index, dtype)
        except UnmappableError:
            values = self.values(name, slice(None), *index, dtype=dtype)
        return self._filled(name, values, slice(0, self.size.images))

    def row(self, name: str, row: int, *index: int, dtype: DTypeLike | None = None) -> np.ndarray:
        """Read one row like `read`."""
        try:
            values = self.maps(name).row(row, index, dtype)
        except UnmappableError:
            values = self.values(name, row, *index, dtype=dtype)
        return values if self.done[row // self.size.unit_images] else np.full_like(values, self.specs[name].fill)

    def values(self, name: str, *selection: slice | int, dtype: DTypeLike | None = None) -> np.ndarray:
        """Read an array, or a selection of it, with zarr. Raises StoreError if that fails."""
        array = self.array(name)
        if not selection and (rows := self._in_one_shard(name)) is not None:
            with suppress(UnmappableError):
                return np.asarray(rows.read(), dtype)
        try:
            return np.asarray(array[selection or ...], dtype)
        except (ValueError, OSError) as error:
            raise self._unreadable(name, error) from error

    def expect(self, name: str) -> None:
        """Begin to fetch an array that `values` is going to read whole, from an object store."""
        if (rows := self._in_one_shard(name)) is not None:
            rows.expect([()], 0, rows.spec.shape[0])

    def _in_one_shard(self, name: str) -> RangedRows | None:
        """An array of an object store that is one shard, as `schema.whole_array` describes; None for any other."""
        if isinstance(self.storage, LocalStorage):
            return None
        array = self.array(name)
        if not array.shape or array.shards != array.shape:
            return None
        spec = ArraySpec(name, (), array.shape, str(array.dtype), array.shards, array.chunks)
        return RangedRows(self.storage, spec)

    def outer(self, name: str, rows: np.ndarray, *index: np.ndarray) -> np.ndarray:
        """Read `rows` of an array at an outer selection of the axes after the first; not committed rows are NaN.

        `rows` and `index` are lists of places, none negative, in any order.
        """
        spec = self.specs[name]
        found = np.full((len(rows), *map(len, index)), spec.fill, spec.dtype)
        if not found.size:
            return found
        if isinstance(self.storage, RangedStorage):
            # Exactly these rows and places, where they can be found by their ranges.
            with suppress(UnmappableError):
                return self._picked(name, rows, index)
        # Ranges are read, and places picked from them: Zarr reads a list of rows 7 to 25 times as slowly as a range.
        ranges, picks = zip(*map(as_range, index), strict=True) if index else ((), ())
        row_bytes = math.prod(each.stop - each.start for each in ranges) * found.itemsize
        block_rows = max(1, _BLOCK_BYTES // (row_bytes * spec.chunk[0])) * spec.chunk[0]
        order = np.argsort(rows // block_rows, kind="stable")
        borders = np.flatnonzero(np.diff(rows[order] // block_rows)) + 1
        for places in np.split(order, borders):
            here, pick = as_range(rows[places])
            values = self.values(name, here, *ranges)
            for axis, each in enumerate((pick, *picks)):
                values = values if each is None else values.take(each, axis)
            found[places] = values
        return self._filled(name, found, rows)

    def _picked(self, name: str, rows: np.ndarray, index: Sequence[np.ndarray]) -> np.ndarray:
        """As `outer`, by ranges of bytes. Raises UnmappableError."""
        maps, spec = self.maps(name), self.specs[name]
        found = np.empty((len(rows), *map(len, index[: len(maps.apart)]), *maps.whole), spec.dtype)
        maps.take(rows, pieces_of(maps.apart, index), found.reshape(len(rows), -1, *maps.whole))
        found = within_pieces(found, len(maps.apart), index)
        return self._filled(name, found, rows)

    def block(self, name: str, first_row: int, end: int, *index: int) -> np.ndarray:
        """Read the rows from `first_row` to `end` of an array like `read`."""
        spec = self.specs[name]
        begin = first_row - first_row % spec.chunk[0]
        found = np.empty((end - first_row, *spec.shape[1 + len(index) :]), spec.dtype)
        try:
            for chunk in self.maps(name).chunks(index, begin, end):
                # The first chunk may begin before the rows, and the last one end after them.
                inside = slice(max(0, first_row - begin), end - begin)
                part = chunk[inside]
                found[begin + inside.start - first_row :][: len(part)] = part.reshape(len(part), *found.shape[1:])
                begin += len(chunk)
        except UnmappableError:
            found = self.values(name, slice(first_row, end), *index)
        return self._filled(name, found, slice(first_row, end))

    def _filled(self, name: str, values: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """`values` of `rows`, with the fill value where a unit is not committed."""
        if (committed := self.committed(rows)) is not True:
            values[~committed] = self.specs[name].fill
        return values

    def good_rows(self) -> np.ndarray:
        """Return the rows of images that could be used. Raises StoreError if `ok` contradicts the commit records.

        Of a store in a bucket, the commit records say which; `headspan verify` compares `ok` with them.
        """
        if isinstance(self.storage, RangedStorage) and all(
            len({bad.row for bad in record.bad}) == record.rows - record.images for record in self.records
        ):
            good = np.repeat(self.done, self.size.unit_images)[: self.size.images]
            good[[bad.row for record in self.records for bad in record.bad]] = False
            return np.flatnonzero(good)
        good = np.flatnonzero(self.read("ok") == 1)
        recorded = sum(record.images for record in self.records)
        if len(good) != recorded:
            raise StoreError(
                f"{self.path}: ok marks {counted(len(good), 'image')}, but the commit records have {recorded}; "
                "headspan verify says which unit is damaged"
            )
        return good

    def maps(self, name: str) -> ShardRows:
        """Return the shards of an array, mapped or read by ranges. Raises SettingsError if it was not emitted."""
        if name not in self._maps:
            # Raises if it was not emitted.
            self.array(name)
            spec, storage = self.specs[name], self.storage
            self._maps[name] = (
                MappedRows(storage.root, spec) if isinstance(storage, LocalStorage) else RangedRows(storage, spec)
            )
        return self._maps[name]

    def _unreadable(self, name: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path}: {name} cannot be read ({one_line(error)}); headspan verify says which unit is damaged"
        )


def _content(path: Location, key: str, recorded: Files) -> str:
    """A name for the content of a file; empty if no record has its checksum."""
    if key not in recorded:
        return ""
    return hashlib.sha256(json.dumps([str(path), key, *recorded[key]]).encode()).hexdigest()[:32]
