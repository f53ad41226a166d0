"""Keep columns of a plan's samples in memory, so that a few samples are found without reading their units again.

A unit's columns are read when one of its samples is first asked for. Those used last are kept, within a bound of bytes:
16,384 samples without their metadata take about 2 MB. Results equal those of `tables.read_rows`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from headspan.store.table_files import Root
from headspan.store.tables import SAMPLES, unit_table

# More rows than this are read by `tables.read_rows`, which handles whole columns at once.
FEW_ROWS = 256


class KeptSamples:
    """Columns of samples by unit and name, at most `most_bytes` of them. Calls may come from several threads."""

    def __init__(self, root: Root, unit_images: int, most_bytes: int) -> None:
        self._root, self._unit_images, self._most_bytes = root, unit_images, most_bytes
        self._columns: OrderedDict[tuple[int, str], pa.Array] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def rows(self, rows: Int[np.ndarray, " row"], columns: Sequence[str]) -> pa.Table:
        """The samples of some rows, in the order given."""
        fields = [SAMPLES.field(name) for name in columns]
        found = [pa.array(each, field.type) for each, field in zip(self.values(rows, columns), fields, strict=True)]
        return pa.Table.from_arrays(found, schema=pa.schema(fields))

    def values(self, rows: Int[np.ndarray, " row"], columns: Sequence[str]) -> list[list[Any]]:
        """For each column its values in some rows, in the order given.

        The first array that pyarrow makes of a list imports pandas, which takes half a second.
        """
        places = [divmod(int(row), self._unit_images) for row in rows]
        units = {unit: self._unit(unit, columns) for unit in dict.fromkeys(unit for unit, _ in places)}
        return [[units[unit][number][place].as_py() for unit, place in places] for number in range(len(columns))]

    def _unit(self, unit: int, columns: Sequence[str]) -> list[pa.Array]:
        with self._lock:
            found = {name: self._columns[unit, name] for name in columns if (unit, name) in self._columns}
            for name in found:
                self._columns.move_to_end((unit, name))
        missing = [name for name in columns if name not in found]
        if missing:
            table = unit_table(self._root, unit, missing)
            read = {name: _compact(table[name].combine_chunks()) for name in missing}
            found |= read
            self._keep({(unit, name): column for name, column in read.items()})
        return [found[name] for name in columns]

    def _keep(self, read: dict[tuple[int, str], pa.Array]) -> None:
        with self._lock:
            for place, column in read.items():
                before = self._columns.pop(place, None)
                self._columns[place] = column
                self.bytes += column.nbytes - (0 if before is None else before.nbytes)
            while self.bytes > self._most_bytes:
                self.bytes -= self._columns.popitem(last=False)[1].nbytes


def _compact(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array; texts that repeat, as the names of shards do, are kept once."""
    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_string(array.type):
        return array
    encoded = pc.dictionary_encode(array)
    return encoded if encoded.nbytes < array.nbytes else array
