"""Head coordinates of all images times a few columns: one pass over the memory maps, on all cores.

SIMD kernels multiply the stored float16 numbers where they lie and sum in float32; there is no float32 copy of them.
A column is two float16 ones to the kernel, so it keeps float32's precision beside its largest number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from headspan.store.mapped import MappedRows, UnmappableError

try:
    import numkong
except ImportError:
    numkong = None  # type: ignore[assignment]

# Products that a thread has in hand before it adds the mean_and_bias stay in its core's cache.
_BLOCK_BYTES = 1 << 19
# Columns of a pass: of 32, 64 and 128, and all at once, 64 and 128 are the fastest, twice as fast as 512 at once.
_COLUMNS = 64
_FINER = np.float32(2.0**11)


def summed_products(
    maps: MappedRows,
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    places: Sequence[tuple[int, int]],
    matrices: Sequence[Float[np.ndarray, "coordinate column"]],
) -> Float32[np.ndarray, "column rows"]:
    """Normalised coordinates of the heads at `places` of `maps`, times each head's matrix, summed over the heads.

    `mean_and_bias` holds every row's `mean_and_bias_terms`; rows where it is NaN give NaN. Raises UnmappableError if
    the shards cannot be mapped or this processor has no kernels; the caller then multiplies in NumPy.
    """
    if numkong is None:
        raise UnmappableError("numkong is not installed")
    stacked = np.stack(matrices).astype(np.float32)
    sums = np.empty((stacked.shape[2], mean_and_bias.shape[1]), np.float32)
    for first in range(0, len(sums), _COLUMNS):
        _pass(maps, mean_and_bias, places, stacked[..., first : first + _COLUMNS], sums[first : first + _COLUMNS])
    return sums


def _pass(
    maps: MappedRows,
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    places: Sequence[tuple[int, int]],
    stacked: Float32[np.ndarray, "head coordinate column"],
    sums: Float32[np.ndarray, "column rows"],
) -> None:
    """Fill `sums` for some of the columns."""
    own, common = stacked[:, : -len(mean_and_bias)], stacked[:, -len(mean_and_bias) :].sum(axis=0)
    packed, scale = _packed(own)
    rows, columns, chunk_rows = mean_and_bias.shape[1], own.shape[2], maps.spec.chunk[0]
    threads = os.cpu_count() or 1
    # One span of rows for each thread.
    span_rows = -(-rows // (threads * chunk_rows)) * chunk_rows
    block_rows = min(max(1, _BLOCK_BYTES // (8 * columns * chunk_rows)) * chunk_rows, span_rows)

    def multiply(first_row: int, end: int) -> None:
        """The rows from `first_row`, which begins a chunk, to `end`, block by block."""
        # The sum over heads, and what a further head adds to it.
        buffers = np.empty((min(2, len(places)), block_rows, 2 * columns), np.float32)
        total, part = buffers[0], buffers[-1]
        outs = [
            [numkong.from_dlpack(buffer[row : row + chunk_rows]) for row in range(0, block_rows, chunk_rows)]
            for buffer in buffers
        ]
        for row in range(first_row, end, block_rows):
            count = min(end - row, block_rows)
            for number, (place, both) in enumerate(zip(places, packed, strict=True)):
                # Listed first: between its products, a thread then hardly needs the interpreter's lock.
                chunks = [
                    # Copied where the shard is missing alone.
                    np.ascontiguousarray(chunk.reshape(chunk_rows, -1))
                    for chunk in maps.chunks(place, row, row + count)
                ]
                for chunk, out in zip(chunks, outs[number > 0], strict=False):
                    numkong.dots_packed(chunk, both, out=out)
                if number:
                    total[:count] += part[:count]
            here = slice(row, row + count)
            for column, out in enumerate(sums[:, here]):
                # A column after the other, since NumPy would else walk along the shorter axis.
                pair = slice(2 * column, 2 * column + 2)
                np.matmul(total[:count, pair], scale[pair], out=out)
                _add_shares(mean_and_bias[:, here], common[:, column], out)

    firsts = range(0, rows, span_rows)
    others = [
        _threads(os.getpid(), threads).submit(multiply, first_row, min(first_row + span_rows, rows))
        for first_row in firsts[1:]
    ]
    # This thread has nothing to wait for before its own span is done.
    multiply(0, min(span_rows, rows))
    for other in others:
        other.result()


@lru_cache(1)
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """The process's threads, kept between searches: beginning them takes as long as a tenth of one.

    A process that was forked has none of its parent's, and begins its own.
    """
    return ThreadPoolExecutor(count, thread_name_prefix="headspan-products")


def _add_shares(
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    common: Float32[np.ndarray, "3"],
    products: Float32[np.ndarray, " rows"],
) -> None:
    """Make products of heads' own numbers those of all normalised coordinates, in place."""
    over_s, mean, one = mean_and_bias
    products += common[0]
    products *= over_s
    products += common[1] * mean
    products += common[2] * one


def _packed(
    own: Float32[np.ndarray, "head head_dim column"],
) -> tuple[list[numkong.PackedMatrix], Float32[np.ndarray, " two_columns"]]:
    """Each head's columns as the kernel takes them, and what to multiply the products by; NaN for an infinite column.

    A number is the sum of two float16 ones, the second what the first leaves over, both made large.
    """
    scale = np.abs(own).max(axis=(0, 1))
    scale[scale == 0] = 1
    with np.errstate(invalid="ignore"):
        scaled = own / scale
    coarse = scaled.astype(np.float16)
    fine = ((scaled - coarse) * _FINER).astype(np.float16)
    # [head, two columns, head_dim]
    both = np.stack([coarse, fine], axis=-1).reshape(*own.shape[:2], -1).swapaxes(1, 2)
    packed = [numkong.dots_pack(np.ascontiguousarray(columns)) for columns in both]
    return packed, np.stack([scale, scale / _FINER], axis=-1).reshape(-1)
