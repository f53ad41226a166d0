"""How many images two stores share, by their keys."""

from __future__ import annotations

import glob
import tempfile

from headspan.errors import StoreError, one_line
from headspan.io.local import LocalStorage
from headspan.store.reader import Store
from headspan.store.tables import SAMPLES, sample_files, scan_samples

# Larger joins are continued in files of a temporary folder.
_MEMORY, _THREADS = "1GB", 2
_COLUMNS = ("row", "key")


def shared_keys(one: Store, other: Store) -> int:
    """The number of different keys that images shown by both stores have, counted in bounded memory.

    Raises StoreError if the samples of one of them cannot be read.
    """
    # Imported here, since it takes a tenth of a second, and few requests need it.
    import duckdb
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="headspan-") as folder, duckdb.connect(":memory:") as connection:
        connection.execute("SET memory_limit = ?", [_MEMORY])
        connection.execute("SET threads = ?", [_THREADS])
        connection.execute("SET temp_directory = ?", [folder])
        queries, files = [], []
        for name, store in (("one", one), ("other", other)):
            storage, units = store.contents.storage, store.contents.units
            if isinstance(storage, LocalStorage):
                query = "SELECT DISTINCT key FROM read_parquet(?)"
                # A path's own brackets and stars are no patterns.
                files.append([glob.escape(f"{store.path / file}") for file in sample_files(units)])
            else:
                query = f"SELECT DISTINCT key FROM samples_{name}"
                schema = pa.schema([SAMPLES.field(column) for column in _COLUMNS])
                batches = scan_samples(storage, units, _COLUMNS)
                connection.register(f"samples_{name}", pa.RecordBatchReader.from_batches(schema, batches))
            if store.images < store.planned_images:
                connection.register(f"shown_{name}", pa.table({"row": store.rows}))
                query += f" WHERE row IN (SELECT row FROM shown_{name})"
            queries.append(query)
        query = f"SELECT count(*) FROM ({queries[0]}) SEMI JOIN ({queries[1]}) USING (key)"
        try:
            ((count,),) = connection.execute(query, files).fetchall()
        except duckdb.Error as error:
            raise StoreError(
                f"{one.path}, {other.path}: the keys of their images cannot be compared ({one_line(error)}); run "
                "headspan verify on both"
            ) from error
    return int(count)
