"""Open Parquet tables of a store: local files, or files of an object store of which only the asked parts are fetched.

Of a table in an object store, its end is read once, which says where its columns are. The columns of a row group are
then fetched together, before pyarrow reads them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headspan.errors import StoreError, one_line
from headspan.io.local import LocalStorage
from headspan.io.range_file import RangeFile
from headspan.io.ranged import RangedStorage, reading_storage
from headspan.io.storage import Storage

# Where the tables of a store are: its location, or its storage.
Root = str | Path | Storage
# Tables whose ends stay in memory. One of 128 units takes a megabyte.
_ENDS = 16


@contextmanager
def opened_table(root: Root, key: str) -> Iterator[Table]:
    """Open a table. Errors in reading it become a StoreError."""
    storage = reading_storage(root)
    try:
        if isinstance(storage, LocalStorage):
            with pq.ParquetFile(storage.root / key) as parquet:
                yield Table(parquet)
        else:
            file, metadata = _remote(storage, key)
            # A part of a column is read from memory.
            with pq.ParquetFile(file, metadata=metadata) as parquet:
                storage.ends[key] = file.size(), parquet.metadata
                yield Table(parquet, file)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{storage}/{key}: this table is damaged ({one_line(error)}); run headspan repair and name the shards"
        ) from error


def _remote(storage: RangedStorage, key: str) -> tuple[RangeFile, pq.FileMetaData | None]:
    """The file of a table, and what its end says if that was read before."""
    kept = storage.ends.get(key)
    if kept is not None:
        return RangeFile(storage.files, key, kept[0]), kept[1]
    size = storage.size(key)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{storage}/{key}")
    for other in list(storage.ends)[: len(storage.ends) + 1 - _ENDS]:
        storage.ends.pop(other, None)
    return RangeFile(storage.files, key, size), None


class Table:
    """An open table."""

    def __init__(self, parquet: pq.ParquetFile, file: RangeFile | None = None) -> None:
        self._parquet, self._file = parquet, file

    @property
    def metadata(self) -> pq.FileMetaData:
        """Rows, row groups, columns, and what is known of their values."""
        return self._parquet.metadata

    def group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some columns of one row group."""
        self._expect([group], columns)
        return self._parquet.read_row_group(group, columns=None if columns is None else list(columns))

    def whole(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some columns of all row groups."""
        self._expect(range(self.metadata.num_row_groups), columns)
        return self._parquet.read(None if columns is None else list(columns))

    def batches(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns in batches of at most `rows` rows."""
        if self._file is None:
            yield from self._parquet.iter_batches(rows, columns=list(columns))
            return
        groups = range(self.metadata.num_row_groups)
        for group in groups:
            # The next one too.
            self._expect(groups[group : group + 2], columns)
            yield from self._parquet.iter_batches(rows, row_groups=[group], columns=list(columns))

    def _expect(self, groups: Sequence[int], columns: Sequence[str] | None) -> None:
        """Begin to fetch what is going to be read, if the table is in an object store."""
        if self._file is None:
            return
        ranges = []
        for group in map(self.metadata.row_group, groups):
            for column in map(group.column, range(group.num_columns)):
                if columns is None or column.path_in_schema in columns:
                    start = column.data_page_offset
                    if column.has_dictionary_page:
                        start = min(start, column.dictionary_page_offset)
                    ranges.append((start, start + column.total_compressed_size))
        self._file.expect(ranges)
