"""Write the plan's tables of samples, unit by unit; `store.tables` describes and reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headspan.io.files import delete_folder, move
from headspan.shards.samples import Sample
from headspan.store.schema import RECORDS
from headspan.store.tables import SAMPLES, UNITS_PER_FILE, samples_file, table_of, unit_table


def write_samples(root: Path, samples: Iterable[Sample], unit_images: int) -> int:
    """Write all samples in row order. Returns their number. Only one unit is in memory at a time."""
    stream = iter(samples)
    groups = iter(lambda: list(islice(stream, unit_images)), [])
    return _write_units(root, (table_of(group, SAMPLES) for group in groups), unit_images)


def write_tables(root: Path, tables: Iterable[pa.Table], unit_images: int) -> int:
    """Write the samples of `tables`, in order, as `write_samples` does; their rows are numbered anew.

    One unit and one table are in memory at a time.
    """
    return _write_units(root, _as_units(tables, unit_images), unit_images)


def _as_units(tables: Iterable[pa.Table], unit_images: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    rows = first = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        while rows >= unit_images:
            whole = pa.concat_tables(waiting)
            yield _numbered(whole.slice(0, unit_images), first)
            waiting = [whole.slice(unit_images)]
            rows, first = rows - unit_images, first + unit_images
    if rows:
        yield _numbered(pa.concat_tables(waiting), first)


def _numbered(table: pa.Table, first: int) -> pa.Table:
    # In one piece, so that the file does not depend on where tables began.
    rows = pa.array(np.arange(first, first + len(table)))
    return table.combine_chunks().set_column(0, SAMPLES.field("row"), rows)


def divide_samples(root: Path, images: int, planned: int, unit_images: int) -> None:
    """Divide the units that `write_samples` wrote, of `planned` images each, into units of `unit_images`.

    `unit_images` divides `planned`. The files are then those that `write_samples` writes for such units.
    """
    assert planned % unit_images == 0, "each unit is divided evenly"
    whole = root / "undivided"
    (whole / RECORDS).mkdir(parents=True)
    move(root / RECORDS / "samples", whole / RECORDS / "samples")
    tables = (unit_table(whole, unit) for unit in range(-(-images // planned)))
    parts = (table.slice(start, unit_images) for table in tables for start in range(0, len(table), unit_images))
    _write_units(root, parts, unit_images)
    delete_folder(whole)


def _write_units(root: Path, units: Iterable[pa.Table], unit_images: int) -> int:
    """Write the tables of the units, in order. Returns the number of their rows."""
    (root / RECORDS / "samples").mkdir(parents=True)
    total, writer = 0, None
    try:
        for unit, table in enumerate(units):
            if unit % UNITS_PER_FILE == 0:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(root / samples_file(unit), SAMPLES, compression="zstd")
            assert writer is not None
            writer.write_table(table, row_group_size=unit_images)
            total += len(table)
    finally:
        if writer is not None:
            writer.close()
    return total
