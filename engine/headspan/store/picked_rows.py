"""Copy some rows of an array, in any order: from memory maps, or with Zarr where shards cannot be mapped.

Rows must be committed. `chosen` are the places along each axis after the rows. Those of the first axes, along which
inner chunks divide a row, select its pieces; a piece holds the other axes whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from headspan.store.contents import Contents
from headspan.store.shard_rows import UnmappableError
from headspan.store.shard_rows import pieces_of as pieces_of
from headspan.store.shard_rows import within_pieces as within_pieces


def picked_rows(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], chosen: Sequence[np.ndarray], dtype: np.dtype
) -> np.ndarray:
    """Return `rows` of an array, `[row, *chosen]`; `dtype` is the stored type, or float32 if float16 is stored."""
    maps = contents.maps(name)
    out = np.empty((len(rows), *map(len, chosen[: len(maps.apart)]), *maps.whole), dtype)
    copy_rows(contents, name, rows, chosen, out.reshape(len(rows), -1, *maps.whole))
    return within_pieces(out, len(maps.apart), chosen)


def copy_rows(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], chosen: Sequence[np.ndarray], out: np.ndarray
) -> None:
    """Copy the chosen pieces of rows to `out`, `[row, piece, …]`."""
    try:
        maps = contents.maps(name)
        maps.take(rows, pieces_of(maps.apart, chosen), out)
    except UnmappableError:
        out[...] = rows_with_zarr(contents, name, rows, chosen).reshape(out.shape)


def rows_with_zarr(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], chosen: Sequence[np.ndarray]
) -> np.ndarray:
    """Return rows with the chosen pieces of each, as Zarr reads them."""
    maps = contents.maps(name)
    return contents.outer(name, rows, *chosen[: len(maps.apart)], *map(np.arange, maps.whole))
