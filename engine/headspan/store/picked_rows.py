"""Copy some rows of an array, in any order: from memory maps, or with Zarr where shards cannot be mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from headspan.store.contents import Contents
from headspan.store.mapped import MappedRows, UnmappableError

# Gives an array of that shape and type, whose numbers are not set.
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


def picked_rows(
    contents: Contents,
    name: str,
    rows: Int64[np.ndarray, " row"],
    chosen: Sequence[np.ndarray],
    dtype: np.dtype,
    allocate: Allocate = np.empty,
) -> np.ndarray:
    """Return `rows` of an array, `[row, *chosen]`, at the places `chosen` along each axis after the rows.

    `dtype` is the stored type, or float32 if float16 is stored. The rows must be committed.
    """
    return assembled(
        contents.maps(name), len(rows), chosen, dtype, lambda out: _copy(contents, name, rows, chosen, out), allocate
    )


def assembled(
    maps: MappedRows,
    rows: int,
    chosen: Sequence[np.ndarray],
    dtype: np.dtype,
    copy: Callable[[np.ndarray], None],
    allocate: Allocate = np.empty,
) -> np.ndarray:
    """Return what `picked_rows` returns, from rows that `copy` copies to an array `[row, piece, …]`."""
    pieces = pieces_of(maps.apart, chosen)
    out = allocate((rows, *map(len, chosen[: len(maps.apart)]), *maps.whole), dtype)
    copy(out.reshape(rows, len(pieces), *maps.whole))
    for axis in range(len(maps.apart), len(chosen)):
        # Pieces hold the whole axis, and not all of it may be wanted.
        if not np.array_equal(chosen[axis], np.arange(out.shape[1 + axis])):
            out = out.take(chosen[axis], 1 + axis)
    return out


def _copy(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], chosen: Sequence[np.ndarray], out: np.ndarray
) -> None:
    maps = contents.maps(name)
    try:
        maps.take(rows, pieces_of(maps.apart, chosen), out)
    except UnmappableError:
        out[...] = rows_by_zarr(contents, name, rows, chosen).reshape(out.shape)


def rows_by_zarr(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], chosen: Sequence[np.ndarray]
) -> np.ndarray:
    """Return rows of an array whose shards cannot be mapped, with the whole of each axis that pieces hold whole."""
    maps = contents.maps(name)
    return contents.outer(name, rows, *chosen[: len(maps.apart)], *map(np.arange, maps.whole))


def pieces_of(apart: tuple[int, ...], chosen: Sequence[np.ndarray]) -> Int64[np.ndarray, " piece"]:
    """Return which pieces of a row hold the places `chosen`, as indices into the axes `apart` in the order of C."""
    pieces = np.zeros(1, np.int64)
    for length, each in zip(apart, chosen, strict=False):
        pieces = (pieces[:, None] * length + each).reshape(-1)
    return pieces
