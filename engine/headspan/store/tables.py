"""The plan on disk: row, key, source and caption of every image, as Parquet files beside the arrays.

Each unit of work is one row group, so that the samples of one unit can be read alone. A file has some hundred units.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from headspan.io.ranged import reading_storage
from headspan.shards.samples import BadImage, Sample, SampleSpan, Shard
from headspan.store.schema import RECORDS
from headspan.store.table_files import Root, opened_table

SHARDS_FILE, NOTES_FILE = f"{RECORDS}/shards.parquet", f"{RECORDS}/notes.parquet"
UNITS_PER_FILE = 128
# Rows of samples that a scan holds in memory at once.
_SCANNED_ROWS = 1 << 15
# Of more keys, each unit is likely to hold one.
_FEW_KEYS = 16
SAMPLES = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size_bytes", pa.int64()),
        ("caption", pa.string()),
        ("label", pa.int64()),
        ("metadata", pa.string()),
    ]
)
# What a span needs of every sample.
_SPAN_COLUMNS = ("row", "key", "url", "offset", "size_bytes")
_SHARDS = pa.schema(
    [
        ("url", pa.string()),
        ("first_row", pa.int64()),
        ("images", pa.int64()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)
# A shard that was read for a plan: its samples, the notes on it, and, if it has no image, the fields of its members.
ReadShard = tuple[Shard, pa.Table, Sequence[BadImage], Mapping[str, int]]
_NOTES = pa.schema([("row", pa.int64()), ("key", pa.string()), ("url", pa.string()), ("reason", pa.string())])


def read_unit(root: Root, unit: int) -> Iterator[Sample]:
    """Read the samples of the unit with that index, in row order."""
    for row in unit_table(root, unit).to_pylist():
        yield Sample(**row)


def read_spans(root: Root, unit: int, images: int) -> Iterator[SampleSpan]:
    """Read the samples of the unit with that index, in row order, in spans of `images` samples.

    Images whose sizes are not known get the mean size of their shard's.
    """
    table = unit_table(root, unit, list(_SPAN_COLUMNS)).combine_chunks()
    urls = pc.run_end_encode(table["url"].chunk(0))
    # The urls of the unit with the rows of the unit where they end; those before a span's first row are removed.
    ends = deque(zip(urls.values.to_pylist(), urls.run_ends.to_pylist(), strict=True))
    if table["size_bytes"].null_count:
        table = table.set_column(_SPAN_COLUMNS.index("size_bytes"), "size_bytes", _with_estimates(root, table))
    rows, offsets, sizes = (table[name].to_numpy() for name in ("row", "offset", "size_bytes"))
    keys = table["key"]

    @cache
    def members() -> pa.ChunkedArray:
        return unit_table(root, unit, ["member"])["member"]

    for first in range(0, len(rows), images):
        span = slice(first, min(first + images, len(rows)))
        runs, begin = [], first
        while begin < span.stop:
            name, end = ends[0]
            runs.append((name, min(end, span.stop) - begin))
            begin = min(end, span.stop)
            if end == begin:
                ends.popleft()
        yield SampleSpan(
            rows=rows[span],
            runs=tuple(runs),
            offsets=offsets[span],
            sizes=sizes[span],
            key_of=lambda place, first=first: keys[first + place].as_py(),  # type: ignore[misc]
            members_of=lambda start, stop, first=first: members()[first + start : first + stop].to_pylist(),  # type: ignore[misc]
        )


def _with_estimates(root: Root, table: pa.Table) -> pa.ChunkedArray:
    """The sizes of samples; where one is not known, the mean of its shard."""
    means = {shard.url: (shard.size_bytes or 0) // max(1, shard.images) for shard in read_shards(root)}
    urls = table["url"].combine_chunks().dictionary_encode()
    estimates = pa.array([means.get(url, 0) for url in urls.dictionary.to_pylist()], pa.int64())
    return pc.coalesce(table["size_bytes"], pa.chunked_array([estimates.take(urls.indices)]))


def read_rows(
    root: Root, rows: Int[np.ndarray, " row"], unit_images: int, columns: Sequence[str] = tuple(SAMPLES.names)
) -> pa.Table:
    """Return the samples of some rows, in the order given. Only the units with these rows are read."""
    wanted, place = np.unique(rows, return_inverse=True)
    units = wanted // unit_images
    tables = [
        _picked(unit_table(root, unit, list(columns)), wanted[units == unit] - unit * unit_images)
        for unit in np.unique(units).tolist()
    ]
    return _picked(pa.concat_tables([SAMPLES.empty_table().select(columns), *tables]), place)


def rows_of_keys(root: Root, units: int, keys: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each row that has one of `keys`, with its key, in row order.

    `units` is the number of units of the plan. Only the keys of one unit are in memory at a time; units whose smallest
    and largest keys exclude all of `keys` are not read.
    """
    wanted, first_row, storage = pa.array(keys, pa.string()), 0, reading_storage(root)
    for name in sample_files(units):
        with opened_table(storage, name) as table:
            for group in range(table.metadata.num_row_groups):
                if not _may_hold(table.metadata.row_group(group), keys):
                    first_row += table.metadata.row_group(group).num_rows
                    continue
                column = table.group(group, ["key"])["key"]
                for place in np.flatnonzero(pc.is_in(column, wanted)).tolist():
                    yield first_row + place, column[place].as_py()
                first_row += len(column)


def _may_hold(group: pq.RowGroupMetaData, keys: Sequence[str]) -> bool:
    """Whether one of a few keys lies between the smallest and the largest key of a unit."""
    if len(keys) > _FEW_KEYS:
        return True
    found = group.column(SAMPLES.get_field_index("key")).statistics
    # Python compares strings in the order of their UTF-8 bytes, as Parquet does.
    return found is None or not found.has_min_max or any(found.min <= key <= found.max for key in keys)


def _picked(table: pa.Table, places: Int[np.ndarray, " row"]) -> pa.Table:
    """Return the rows at `places`; without a copy if they follow one another."""
    first = int(places[0]) if len(places) else 0
    if np.array_equal(places, np.arange(first, first + len(places))):
        return table.slice(first, len(places))
    return table.take(places)


def unit_table(root: Root, unit: int, columns: list[str] | None = None) -> pa.Table:
    """Return the samples of the unit with that index, or some of their columns, in row order."""
    with opened_table(root, samples_file(unit)) as table:
        return table.group(unit % UNITS_PER_FILE, columns)


def read_table(root: Root, units: int, columns: Sequence[str] = tuple(SAMPLES.names)) -> pa.Table:
    """Return all samples of a plan with that number of units, in the order of the arrays' rows."""
    storage = reading_storage(root)
    return pa.concat_tables([_read(storage, name, columns) for name in sample_files(units)])


def scan_samples(root: Root, units: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of all samples of a plan with that number of units, in row order, in bounded memory."""
    storage = reading_storage(root)
    for name in sample_files(units):
        with opened_table(storage, name) as table:
            yield from table.batches(_SCANNED_ROWS, columns)


def filled_columns(root: Root, units: int) -> frozenset[str]:
    """The columns of the samples, of a plan with that number of units, in which at least one sample has a value.

    Only the ends of the files are read, where Parquet counts the missing values of each row group.
    """
    found: set[str] = set()
    storage = reading_storage(root)
    for name in sample_files(units):
        with opened_table(storage, name) as table:
            metadata = table.metadata
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    statistics = column.statistics
                    if statistics is None or not statistics.has_null_count or statistics.null_count < group.num_rows:
                        found.add(column.path_in_schema)
        if len(found) == len(SAMPLES):
            break
    return frozenset(found)


def sample_files(units: int) -> list[str]:
    """Return the keys of the tables of samples of a plan with that number of units."""
    return [samples_file(unit) for unit in range(0, units, UNITS_PER_FILE)]


def samples_file(unit: int) -> str:
    """Return the key of the table with the samples of a unit."""
    return f"{RECORDS}/samples/{unit // UNITS_PER_FILE:05d}.parquet"


def write_shards(root: Path, shards: Sequence[Shard]) -> None:
    """Write the table of the shards of the plan."""
    pq.write_table(table_of(shards, _SHARDS), root / SHARDS_FILE, compression="zstd")


def write_notes(root: Path, notes: Sequence[BadImage]) -> None:
    """Write the plan's notes about captions, metadata, labels and members that could not be used."""
    pq.write_table(table_of(notes, _NOTES), root / NOTES_FILE, compression="zstd")


def read_notes(root: Root) -> list[BadImage]:
    """Return the notes that `write_notes` wrote."""
    return [BadImage(**row) for row in notes_table(root).to_pylist()]


def notes_table(root: Root) -> pa.Table:
    """Return the table of the notes."""
    return _read(root, NOTES_FILE)


def read_shards(root: Root) -> list[Shard]:
    """Return the shards of the plan."""
    return [Shard(**row) for row in shards_table(root).to_pylist()]


def shards_table(root: Root) -> pa.Table:
    """Return the table of the shards of the plan."""
    return _read(root, SHARDS_FILE)


def _read(root: Root, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    # `pq.read_table` would import pyarrow's datasets, which takes longer than the reading.
    with opened_table(root, key) as table:
        return table.whole(columns)


def table_of(records: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Return the table of records that have an attribute for each column."""
    columns = {name: [getattr(record, name) for record in records] for name in schema.names}
    return pa.table(columns, schema=schema)
