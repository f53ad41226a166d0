"""A store as a lazy xarray Dataset: the stored arrays, with names and numbers along their axes.

Values are read when they are used, for the selected part only. Arrays have the stored types and scales: `heads` is
`Σ_n α v` in head coordinates. `Store.head` turns it into contributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headspan.errors import HeadspanError
from headspan.store.contents import Contents
from headspan.store.coordinates import coordinates
from headspan.store.earlier_words import todays_axes

if TYPE_CHECKING:
    import xarray as xr

# Attributes of the store that the Dataset has too.
_ATTRIBUTES = ("model", "pretrained", "weights_sha256", "precision", "format")


def dataset(contents: Contents, rows: np.ndarray, samples: pa.Table) -> xr.Dataset:
    """Return the arrays of a store at `rows`, whose samples are `samples`, as a lazy Dataset.

    Dimension coordinates are `image` (keys), `layer` and `through_pool_layer` (the model's numbers), `head`, `token`,
    `term`, `trunk_head` and `statistic`. `row`, `label` and `caption` are further coordinates along `image`, the last
    two if a sample has one. Rows of units that are not committed are NaN. Raises HeadspanError if xarray is not
    installed.
    """
    try:
        import xarray as xr
        from xarray.core.indexing import LazilyIndexedArray

        from headspan.store.lazy_rows import LazyRows
    except ImportError as error:
        raise HeadspanError("to_xarray needs xarray, which is not installed; pip install 'headspan[xarray]'") from error

    variables = {
        name: xr.Variable(todays_axes(spec.dims), LazilyIndexedArray(LazyRows(contents, name, rows)))
        for name, spec in contents.specs.items()
    }
    used = {dim for spec in contents.specs.values() for dim in todays_axes(spec.dims)}
    along = {"image": np.array(samples["key"].to_pylist(), object), **coordinates(contents.size, used)}
    of_images = {"row": rows, **_of_images(samples)}
    return xr.Dataset(
        variables,
        coords={**along, **{name: ("image", values) for name, values in of_images.items()}},
        attrs={name: contents.attributes[name] for name in _ATTRIBUTES if contents.attributes.get(name) is not None},
    )


def _of_images(samples: pa.Table) -> dict[str, np.ndarray]:
    """Return further columns of the samples that at least one of them has."""
    columns = {name: samples[name] for name in ("label", "caption")}
    return {
        name: np.array(column.to_pylist(), object) if name == "caption" else column.to_numpy()
        for name, column in columns.items()
        if column.null_count < len(column)
    }
