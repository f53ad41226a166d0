"""Plan the images of a Parquet file. Metadata and the small columns are read, but no image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from headspan.errors import SourceError
from headspan.member_names import MemberNames
from headspan.shards.columns import Columns, said, text_of, values_of
from headspan.shards.notes import NO_ROW
from headspan.shards.parquet_file import PATH, ParquetSource, class_names, has_paths, is_binary
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.shards.sources import open_shard

_BATCH_ROWS = 1024


def plan_parquet(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str,
    described: tuple[int | None, int | None],
    names: MemberNames,
    on_member: Callable[[], None],
) -> tuple[Shard, Iterator[Sample]]:
    """The file as a shard, and its samples: one for each row. `described` is the result of `describe`.

    Raises SourceError if it is not a complete Parquet file, or if it is not clear which column holds the images.
    """
    with open_shard(url) as reader:
        source = ParquetSource(reader)
        columns = source.choose(names)
        rows = source.rows
    if sentence := said(columns, names):
        on_note(BadImage(NO_ROW, "", called, sentence))
    shard = Shard(called, first_row, rows, *described)
    return shard, _samples(url, first_row, called, columns, on_member)


def _samples(
    url: str, first_row: int, called: str, columns: Columns, on_member: Callable[[], None]
) -> Iterator[Sample]:
    stem = PurePosixPath(called.partition("?")[0]).name.removesuffix(".parquet")
    with open_shard(url) as reader:
        source = ParquetSource(reader)
        schema = source.schema
        others = tuple(name for name in columns.others if _is_scalar(schema.field(name).type))
        columns = replace(columns, others=others)
        chosen = [name for name in (columns.caption, columns.label, columns.key) if name is not None]
        with_paths = has_paths(schema.field(columns.image).type)
        wanted = [*others, *chosen, *([f"{columns.image}.{PATH}"] if with_paths else [])]
        names = class_names(schema, columns.label) if columns.label is not None else ()
        row = 0
        for values in _rows(source, wanted):
            on_member()
            path = (values.get(columns.image) or {}).get(PATH) if with_paths else None
            key, read = values_of(columns, values, names)
            member = text_of(path) or f"row {row}"
            yield Sample(first_row + row, key or f"{stem}/{row:08d}", called, member, row, None, **read)  # type: ignore[arg-type]
            row += 1
        if row != source.rows:
            raise SourceError(f"{url}: has {row} rows, but its metadata state {source.rows}; fetch the file again")


def _rows(source: ParquetSource, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The values of some columns in each row."""
    if not columns:
        yield from ({} for _ in range(source.rows))
        return
    with source.reading():
        batches = source.file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
    while True:
        with source.reading():
            batch = next(batches, None)
            if batch is None:
                return
            rows = batch.to_pylist()
        yield from rows


def _is_scalar(kind: pa.DataType) -> bool:
    """Whether values of a type fit a line of metadata."""
    return not (is_binary(kind) or pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind))
