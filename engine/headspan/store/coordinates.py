"""The coordinates of the arrays' axes: the name or number of each position, as arrays of the store that xarray reads.

Keys, captions and classes of images are not among them; they are in the Parquet tables beside the arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr

from headspan.store.schema import Dimensions

# The second axis of `norm`: the final norm's mean μ, its s, and the embedding's length.
_STATISTICS = ("mean", "s", "length")


def coordinates(size: Dimensions, axes: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the coordinates of those of `axes` that have some; `image`, `joint` and `head_dim` have none.

    Layers have their numbers in the model, the axis of `norm` has names, and the others count from 0.
    """
    known = {
        "layer": np.array(size.layers, np.int64),
        "head": np.arange(size.heads),
        "token": np.arange(size.tokens),
        "term": np.arange(size.terms),
        "through_pool_layer": np.array(size.through_pool, np.int64),
        "trunk_head": np.arange(size.through_pool_heads),
        "statistic": np.array(_STATISTICS),
    }
    axes = set(axes)
    return {axis: values for axis, values in known.items() if axis in axes}


def write_coordinates(root: zarr.Group, found: dict[str, np.ndarray]) -> list[str]:
    """Write coordinates as arrays that are named like their axes; return the keys of their files."""
    for axis, values in found.items():
        text = values.dtype.kind == "U"
        array: zarr.Array[Any] = root.create_array(
            axis,
            shape=values.shape,
            chunks=values.shape,
            dtype=str if text else values.dtype,
            compressors=None,
            filters="auto",
            dimension_names=[axis],
            # The coordinate of a single head is 0, the fill value; it is written nevertheless.
            config={"write_empty_chunks": True},
        )
        array[...] = values
    return [f"{axis}/{file}" for axis in found for file in ("zarr.json", "c/0")]
