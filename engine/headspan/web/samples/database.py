"""SQL over the samples of a store's plan, by DuckDB, which can read nothing else.

Parameters are bound and never part of a query's text. The database may open the store's tables of samples alone, writes
no files, and cannot be configured by a query.
"""

from __future__ import annotations

import glob
import re
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from headspan.errors import SettingsError, StoreError, one_line
from headspan.io.local import LocalStorage
from headspan.store.reader import Store
from headspan.store.tables import SAMPLES as SCHEMA
from headspan.store.tables import sample_files, scan_samples

_MEMORY, _THREADS = "512MB", 2
# The table of samples in a query.
SAMPLES = "read_parquet($files)"
_open: WeakKeyDictionary[Store, SampleDatabase] = WeakKeyDictionary()
_lock = threading.Lock()


class SampleDatabase:
    """The samples of one store. Queries may come from several threads at once."""

    def __init__(self, store: Store) -> None:
        # Imported here, since the server starts without it.
        import duckdb

        self._path, self._storage, self._units = store.path, store.contents.storage, store.contents.units
        self._local = isinstance(self._storage, LocalStorage)
        files = [f"{store.path / name}" for name in sample_files(self._units)] if self._local else []
        # A path's own brackets and stars are no patterns.
        self._files = list(map(glob.escape, files))
        self._connection = duckdb.connect(":memory:")
        for name, value in (
            ("memory_limit", _MEMORY),
            ("threads", _THREADS),
            ("temp_directory", ""),
            # DuckDB asks for a pattern before it is resolved, and for the file that it finds.
            ("allowed_paths", [*files, *self._files]),
            ("enable_external_access", False),
            ("lock_configuration", True),
        ):
            # Names and values are of this list; paths are quoted.
            self._connection.execute(f"SET {name} = {_quoted(value)}")

    def rows(self, query: str, parameters: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The columns of a query's result. `parameters` stand for `$name` in it, and `SAMPLES` for the samples.

        Raises SettingsError if the query takes too much memory, and StoreError if the samples cannot be read.
        """
        import duckdb

        bound = {**(parameters or {}), **({"files": self._files} if SAMPLES in query and self._local else {})}
        try:
            with closing(self._connection.cursor()) as cursor:
                if SAMPLES in query and not self._local:
                    query = self._streamed(cursor, query)
                columns = cursor.execute(query, bound).fetchnumpy()
        except duckdb.OutOfMemoryException as error:
            raise SettingsError(
                f"{self._path}: this question takes more than {_MEMORY} of memory; ask about fewer images"
            ) from error
        except duckdb.Error as error:
            raise StoreError(
                f"{self._path}: the samples cannot be read ({one_line(error)}); run headspan verify {self._path}"
            ) from error
        return {name: np.asarray(values) for name, values in columns.items()}

    def _streamed(self, cursor: Any, query: str) -> str:
        """Let a query read the samples of a bucket as a stream of the columns that it names; return its text."""
        assert query.count(SAMPLES) == 1, "a stream is read once"
        columns = [name for name in SCHEMA.names if re.search(rf"\b{name}\b", query)]
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        batches = scan_samples(self._storage, self._units, columns)
        cursor.register("samples", pa.RecordBatchReader.from_batches(schema, batches))
        return query.replace(SAMPLES, "samples")

    def of_table(self, query: str, table: pa.Table, parameters: Mapping[str, Any] | None = None) -> list[tuple]:
        """The rows of a query's result over an Arrow table, which is called `part` in it."""
        with closing(self._connection.cursor()) as cursor:
            cursor.register("part", table)
            return list(cursor.execute(query, dict(parameters or {})).fetchall())


def samples_of(store: Store) -> SampleDatabase:
    """The database of a store's samples, opened once for each open store."""
    with _lock:
        if store not in _open:
            _open[store] = SampleDatabase(store)
        return _open[store]


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower()
