"""Open a Parquet file through a shard's reader, local or remote, and find its column of images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from headspan.errors import HeadspanError, SourceError, one_line
from headspan.member_names import MemberNames
from headspan.shards.columns import Columns, choose
from headspan.shards.reader import ShardReader

# The fields of Hugging Face's type for images.
BYTES, PATH = "bytes", "path"
# How much is read at once of a column that is streamed.
_BUFFER_BYTES = 1 << 20


class ParquetSource:
    """A Parquet file that `reader` reads."""

    def __init__(self, reader: ShardReader) -> None:
        """Raises SourceError if it is not a complete Parquet file, or if `reader` cannot read at any offset."""
        self.url, self._reader = reader.url, reader
        size = reader.size_bytes
        if size is None:
            raise SourceError(
                f"{self.url}: this source can only be read forwards, and Parquet needs reads at any offset; fetch the "
                "file and name that"
            )
        with self.reading():
            self.file = pq.ParquetFile(_File(reader, size), buffer_size=_BUFFER_BYTES, pre_buffer=False)
        self.schema: pa.Schema = self.file.schema_arrow
        metadata = self.file.metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        # The rows where the row groups begin, and where the last one ends.
        self.starts = [0]
        for group in groups:
            self.starts.append(self.starts[-1] + group.num_rows)

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.starts[-1]

    def group_bytes(self, column: str) -> list[int]:
        """The size of the column in each row group, decompressed, in bytes."""
        metadata = self.file.metadata
        found = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            parts = [group.column(place) for place in range(group.num_columns)]
            found.append(
                sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column)
            )
        return found

    def choose(self, names: MemberNames) -> Columns:
        """The columns of images, captions, classes and keys. Raises SourceError if it is not clear which are images."""
        fields = {field.name: field.type for field in self.schema}
        words = {name: str(kind) for name, kind in fields.items()}
        return choose(self.url, words, names, lambda name: holds_images(fields[name]), "image bytes")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn an error of pyarrow into a SourceError."""
        try:
            yield
        except HeadspanError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SourceError(
                f"{self.url}: not a complete Parquet file ({one_line(error)}); fetch the file again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self.file.close(force=True)
        self._reader.close()


def holds_images(kind: pa.DataType) -> bool:
    """Whether values of a column's type may be encoded images."""
    if pa.types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return BYTES in names and is_binary(kind.field(names.index(BYTES)).type)
    return is_binary(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def has_paths(kind: pa.DataType) -> bool:
    """Whether a struct of images also has their paths."""
    return pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0


def class_names(schema: pa.Schema, column: str) -> Sequence[str]:
    """The names of a column's classes, if Hugging Face's datasets wrote the file and the column is a ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


class _File(io.RawIOBase):
    """A shard as a file object for pyarrow."""

    def __init__(self, reader: ShardReader, size: int) -> None:
        self._reader, self._size, self._position = reader, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """The size in bytes."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        wanted = self._size - self._position if size is None or size < 0 else size
        wanted = max(0, min(wanted, self._size - self._position))
        data = self._reader.read_at(self._position, wanted) if wanted else b""
        self._position += len(data)
        return data
