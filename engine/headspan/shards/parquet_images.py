"""Read the images of a Parquet file: row groups of its image column, each decoded once.

Small row groups are decoded as a whole, and the last one is kept. Of large ones, a stream of batches is read forwards,
by one process only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from headspan.io.retry import LOCAL_ERRORS, is_remote
from headspan.member_names import MemberNames
from headspan.shards.images import PARQUET, Encoded, ImagePlace, ImageReader, Read, Wanted
from headspan.shards.parquet_file import BYTES, PATH, ParquetSource
from headspan.shards.reader import ShardReader
from headspan.shards.urls import local_path

# Row groups of more bytes of images are streamed. Hugging Face's have 100 to 1000 images.
SMALL_GROUP_BYTES = 64 << 20
# Images in a batch of a stream; a batch is in memory as a whole.
_BATCH_IMAGES = 32
_NULL = "the Parquet file holds no image in this row (null)"


class ParquetImages(ImageReader):
    """The images in a column of the Parquet file that `reader` reads, by their rows in the file."""

    def __init__(self, reader: ShardReader, column: str) -> None:
        """Raises SourceError if it is not a complete Parquet file."""
        super().__init__(reader.url)
        self._reader, self._column = reader, column
        try:
            self._source = ParquetSource(reader)
        except BaseException:
            reader.close()
            raise
        self.is_streamed = max(self._source.group_bytes(column), default=0) > SMALL_GROUP_BYTES
        # The rows in memory: the first one, and the column from there on.
        self._first, self._images = 0, pa.chunked_array([], pa.null())
        # The batches of a row group that follow, if it is streamed.
        self._stream: Iterator[Any] = iter(())
        self._group = -1

    @classmethod
    def choosing(cls, reader: ShardReader, names: MemberNames) -> ParquetImages:
        """The images in the column that `names` or its own name selects."""
        try:
            column = ParquetSource(reader).choose(names).image
        except BaseException:
            reader.close()
            raise
        return cls(reader, column)

    def place(self) -> ImagePlace | None:
        place = None if self.is_streamed else self._reader.place()
        return None if place is None else ImagePlace(PARQUET, place, self._column)

    def close(self) -> None:
        self._stream = iter(())
        self._source.close()

    def reads(self, wanted: Wanted, most_bytes: int) -> Iterator[Read]:
        for row, size in zip(wanted.offsets, wanted.sizes, strict=True):
            yield Read(1, size, lambda row=row: self._start(row))  # type: ignore[misc]

    def _start(self, row: int) -> Callable[[], Encoded]:
        with self._source.reading():
            self._load(row)
            value = self._images[row - self._first].as_py()
        found = self._encoded(value)
        return lambda: found

    def _load(self, row: int) -> None:
        """Let the rows in memory include `row`."""
        if self._first <= row < self._first + len(self._images):
            return
        source = self._source
        group = bisect_right(source.starts, row) - 1
        if not 0 <= group < len(source.starts) - 1:
            raise IndexError(f"row {row} of {source.rows}")
        columns = [self._column]
        if not self.is_streamed:
            table = source.file.read_row_group(group, columns=columns, use_threads=False)
            self._first, self._images = source.starts[group], table.column(0)
            return
        if group != self._group or row < self._first:
            self._group = group
            self._first, self._images = source.starts[group], pa.chunked_array([], pa.null())
            self._stream = source.file.iter_batches(
                batch_size=_BATCH_IMAGES, row_groups=[group], columns=columns, use_threads=False
            )
        while row >= self._first + len(self._images):
            self._first += len(self._images)
            self._images = next(self._stream).column(0)

    def _encoded(self, value: Any) -> Encoded:
        if not isinstance(value, dict):
            return Encoded.one(b"", _NULL) if value is None else Encoded.one(value)
        if value.get(BYTES) is not None:
            return Encoded.one(value[BYTES])
        path = value.get(PATH)
        if not path:
            return Encoded.one(b"", _NULL)
        try:
            if is_remote(self.url) or is_remote(path):
                raise FileNotFoundError
            # Beside the Parquet file, unless the path is absolute.
            return Encoded.one(Path(local_path(self.url)).parent.joinpath(path).read_bytes())
        except LOCAL_ERRORS:
            return Encoded.one(b"", f"the Parquet file holds no bytes in this row, and {path} is no local file")
