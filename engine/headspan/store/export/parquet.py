"""Write the chosen series of a store as one Parquet file: a row for each image, a column for each series.

Columns are fixed-size lists, or numbers where a series has one for each image. Numbers of 16 bits become 32 bits, which
is exact, since not every reader of Parquet has lists of the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headspan.events import Listener, Progress
from headspan.store.export.choice import Choice, Series, blocks, values
from headspan.store.reader import Store
from headspan.store.tables import SAMPLES, read_rows


def write_parquet(store: Store, choices: Sequence[Choice], target: Path, on_progress: Listener) -> None:
    """Write `target`. A block of rows at a time is in memory, and becomes a row group."""
    series = [each for choice in choices for each in choice.series]
    schema = pa.schema([*SAMPLES, *(pa.field(each.name, _type(each)) for each in series)])
    with samples_writer(target, schema, [_leaf(each) for each in series if _is_float(each)]) as writer:
        done = 0
        for rows in blocks(store, choices, float32=True):
            samples = read_rows(store.contents.storage, rows, store.contents.size.unit_images)
            columns = [*samples.columns, *(_array(each, values(each, rows)) for each in series)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))
            done += len(rows)
            on_progress(Progress("export", done, store.images))


def samples_writer(target: Path, schema: pa.Schema, floats: Sequence[str] = ()) -> pq.ParquetWriter:
    """Return a writer of samples, and of the leaves `floats`, whose bytes are split so that they compress."""
    names = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=names,
        write_statistics=[field.name for field in SAMPLES],
        use_byte_stream_split=list(floats) or False,
    )


def _is_float(series: Series) -> bool:
    return series.dtype.kind == "f"


def _type(series: Series) -> pa.DataType:
    kind = pa.float32() if _is_float(series) else pa.from_numpy_dtype(series.dtype)
    for length in reversed(series.shape):
        kind = pa.list_(kind, length)
    return kind


def _leaf(series: Series) -> str:
    return series.name + ".list.element" * len(series.shape)


def _array(series: Series, found: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(found, np.float32 if _is_float(series) else None).reshape(-1)
    array = pa.array(flat)
    for length in reversed(series.shape):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array
