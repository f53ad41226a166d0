"""Copy some rows of an array, in any order: from memory maps, or with Zarr where shards cannot be mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from headspan.store.contents import Contents
from headspan.store.mapped import UnmappableError

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
    maps = contents.maps(name)
    whole = contents.specs[name].shape[1 + len(maps.apart) :]
    pieces = pieces_of(maps.apart, chosen)
    out = allocate((len(rows), *map(len, chosen[: len(maps.apart)]), *whole), dtype)
    try:
        maps.take(rows, pieces, out.reshape(len(rows), len(pieces), *whole))
    except UnmappableError:
        everywhere = [np.arange(length) for length in whole]
        out[...] = contents.outer(name, rows, *chosen[: len(maps.apart)], *everywhere)
    for axis in range(len(maps.apart), len(chosen)):
        # Pieces hold the whole axis, and not all of it may be wanted.
        if len(chosen[axis]) != out.shape[1 + axis] or (np.diff(chosen[axis]) != 1).any():
            out = out.take(chosen[axis], 1 + axis)
    return out


def pieces_of(apart: tuple[int, ...], chosen: Sequence[np.ndarray]) -> Int64[np.ndarray, " piece"]:
    """Return which pieces of a row hold the places `chosen`, as indices into the axes `apart` in the order of C."""
    pieces = np.zeros(1, np.int64)
    for length, each in zip(apart, chosen, strict=False):
        pieces = (pieces[:, None] * length + each).reshape(-1)
    return pieces
