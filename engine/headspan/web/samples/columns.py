"""Columns of a store's metadata: which there are, their frequent values, and the value of every image as a code.

Metadata are one JSON object for each image. A column is the path of a value in it: `style`, or `objects/0/shape` for
the first of a list of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.store.tables import unit_table
from headspan.web.samples.database import SAMPLES, samples_of
from headspan.web.samples.metadata import metadata_of

# Values that are named; the others share a code.
SHOWN = 20
NONE = 255
# Samples that columns are looked for in, and those that say which values are frequent.
_LOOKED_AT, _SAMPLED = 256, 20_000
# Columns that are offered, and how deep they may lie.
_COLUMNS, _DEPTH = 40, 4
# A column is offered if so much of the sample has one of its frequent values.
_LEAST_SHARE = 0.5
_VALUE = "TRY(json_extract_string(metadata, $path))"
_TOP = f"""
    SELECT {_VALUE} AS value, count(*) AS images FROM {{table}}
    GROUP BY value HAVING value IS NOT NULL ORDER BY images DESC, value LIMIT {SHOWN + 1}
"""
_CODES = f"""
    SELECT row, (CASE WHEN value IS NULL THEN {NONE} ELSE coalesce(list_position($values, value) - 1, $other) END)
    ::UTINYINT AS code FROM (SELECT row, {_VALUE} AS value FROM {SAMPLES})
"""
_MATCHING = f"SELECT row FROM {SAMPLES} WHERE {_VALUE} = $value"


@dataclass(frozen=True, eq=False)
class Column:
    """A column's frequent values, most frequent first, and the value of every image shown."""

    values: list[str]
    # Whether there are values that are not listed; their code is the number of those that are.
    more: bool
    codes: UInt8[np.ndarray, " image"]


def sampled(store: Store, columns: list[str], most: int) -> pa.Table:
    """Some columns of about `most` samples, from units that are spread evenly over the plan."""
    unit_images = store.contents.size.unit_images
    units = np.flatnonzero(store.contents.done) if store.images else np.zeros(0, np.int64)
    chosen = units[
        np.unique(np.linspace(0, len(units) - 1, min(len(units), max(1, -(-most // unit_images)))).astype(int))
    ]
    tables = [unit_table(store.contents.storage, int(unit), columns) for unit in chosen]
    if not tables:
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    # Of large units, some rows each, so that the sample is bounded whatever a unit is.
    each = max(1, most // len(tables))
    return pa.concat_tables([table.slice(0, each) for table in tables])


def read_columns(store: Store) -> dict[str, list[str]]:
    """The columns whose values tell images apart, each with its frequent values in a sample of the images."""
    table = sampled(store, ["metadata"], _SAMPLED)
    texts = table["metadata"].drop_null()
    paths: dict[str, None] = {}
    for text in texts[:_LOOKED_AT].to_pylist():
        paths |= dict.fromkeys(_paths_of(text))
    found = {}
    for path in list(paths)[: 4 * _COLUMNS]:
        rows = samples_of(store).of_table(_TOP.format(table="part"), table, {"path": f"/{path}"})
        values = [str(value) for value, _ in rows[:SHOWN]]
        share = sum(images for _, images in rows[:SHOWN]) / max(1, len(texts))
        if len(values) > 1 and share >= _LEAST_SHARE:
            found[path] = values
        if len(found) == _COLUMNS:
            break
    return found


def read_column(store: Store, path: str) -> Column:
    """The values of one column over all images. Raises SettingsError if no image has one."""
    database = samples_of(store)
    top = database.rows(_TOP.format(table=SAMPLES), {"path": f"/{path}"})
    values = [str(value) for value in top["value"][:SHOWN].tolist()]
    if not values:
        raise SettingsError(f"{store.path}: no image has metadata {path!r}; the facets list the columns")
    more = len(top["value"]) > SHOWN
    found = database.rows(_CODES, {"path": f"/{path}", "values": values, "other": len(values)})
    codes = np.full(store.planned_images, NONE, np.uint8)
    codes[found["row"]] = found["code"]
    return Column(values, more, codes[store.rows])


def rows_with_value(store: Store, path: str, value: str) -> Bool[np.ndarray, " row"]:
    """Whether each planned row has this value in a column."""
    mask = np.zeros(store.planned_images, bool)
    mask[samples_of(store).rows(_MATCHING, {"path": f"/{path}", "value": value})["row"]] = True
    return mask


def _paths_of(text: str) -> Iterator[str]:
    yield from _leaves(metadata_of(text), "", 1)


def _leaves(values: Mapping[str, Any], before: str, depth: int) -> Iterator[str]:
    for name, value in values.items():
        # As a JSON pointer writes names.
        path = before + name.replace("~", "~0").replace("/", "~1")
        if isinstance(value, list):
            path, value = f"{path}/0", value[0] if value else None
        if isinstance(value, dict):
            if depth < _DEPTH:
                yield from _leaves(value, f"{path}/", depth + 1)
        elif not isinstance(value, list) and value is not None:
            yield path
