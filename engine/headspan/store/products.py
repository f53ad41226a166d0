"""Multiply the head coordinates of all images by a few columns in one pass, on all cores.

SIMD kernels multiply the stored float16 numbers in place and add in float32, without a float32 copy. Each column is
passed to the kernel as two float16 columns, so it has the precision of float32 relative to its largest number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from headspan.store.shard_rows import ShardRows, UnmappableError

try:
    import numkong
except ImportError:
    numkong = None  # type: ignore[assignment]

# The products that a thread computes before it adds mean and bias; they stay in its core's cache.
_BLOCK_BYTES = 1 << 19
# Columns of a pass. Of 32, 64, 128 and all at once, 64 and 128 are fastest: twice as fast as 512 at once.
_COLUMNS = 64
_FINER = np.float32(2.0**11)


def summed_products(
    maps: ShardRows,
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    places: Sequence[tuple[int, int]],
    matrices: Sequence[Float[np.ndarray, "coordinate column"]],
) -> Float32[np.ndarray, "column rows"]:
    """Multiply the normalised coordinates of the heads at `places` of `maps` by each head's matrix; return the sum.

    `mean_and_bias` are the `mean_and_bias_terms` of every row; rows where they are NaN give NaN. Raises UnmappableError
    if the shards cannot be mapped or this processor has no kernels; the caller then multiplies in NumPy.
    """
    if numkong is None:
        raise UnmappableError("numkong is not installed")
    stacked = np.stack(matrices).astype(np.float32)
    sums = np.empty((stacked.shape[2], mean_and_bias.shape[1]), np.float32)
    for first in range(0, len(sums), _COLUMNS):
        _pass(maps, mean_and_bias, places, stacked[..., first : first + _COLUMNS], sums[first : first + _COLUMNS])
    return sums


def _pass(
    maps: ShardRows,
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    places: Sequence[tuple[int, int]],
    stacked: Float32[np.ndarray, "head coordinate column"],
    sums: Float32[np.ndarray, "column rows"],
) -> None:
    """Compute `sums` for some of the columns."""
    own, common = stacked[:, : -len(mean_and_bias)], stacked[:, -len(mean_and_bias) :].sum(axis=0)
    packed, scale = _packed(own)
    rows, columns, chunk_rows = mean_and_bias.shape[1], own.shape[2], maps.spec.chunk[0]
    block_rows = min(max(1, _BLOCK_BYTES // (8 * columns * chunk_rows)) * chunk_rows, _span_rows(rows, chunk_rows))

    def multiply(first_row: int, end: int) -> None:
        """The rows from `first_row`, which begins a chunk, to `end`, block by block."""
        # The sum over heads, and the product of one further head.
        buffers = np.empty((min(2, len(places)), block_rows, 2 * columns), np.float32)
        total, part = buffers[0], buffers[-1]
        outs = [
            [numkong.from_dlpack(buffer[row : row + chunk_rows]) for row in range(0, block_rows, chunk_rows)]
            for buffer in buffers
        ]
        for row in range(first_row, end, block_rows):
            count = min(end - row, block_rows)
            ahead = maps.places_ahead(count)
            for number, (place, both) in enumerate(zip(places, packed, strict=True)):
                if number % ahead == 0:
                    maps.expect(places[number : number + 2 * ahead], row, row + count)
                # Listed first, so that a thread hardly needs the interpreter's lock between its products.
                chunks = [
                    # Copies only if the shard is missing.
                    np.ascontiguousarray(chunk.reshape(chunk_rows, -1))
                    for chunk in maps.chunks(place, row, row + count)
                ]
                for chunk, out in zip(chunks, outs[number > 0], strict=False):
                    numkong.dots_packed(chunk, both, out=out)
                if number:
                    total[:count] += part[:count]
            here = slice(row, row + count)
            for column, out in enumerate(sums[:, here]):
                # One column after the other, because NumPy would otherwise iterate along the shorter axis.
                pair = slice(2 * column, 2 * column + 2)
                np.matmul(total[:count, pair], scale[pair], out=out)
                _add_mean_and_bias(mean_and_bias[:, here], common[:, column], out)

    over_spans(rows, chunk_rows, multiply)


def over_spans(rows: int, multiple: int, work: Callable[[int, int], None]) -> None:
    """Call `work(first_row, end)` for one span of rows for each core, side by side.

    Spans begin at multiples of `multiple`. This thread works on the first span before it waits for the others.
    """
    span_rows = _span_rows(rows, multiple)
    others = [
        _threads(os.getpid(), os.cpu_count() or 1).submit(work, first_row, min(first_row + span_rows, rows))
        for first_row in range(span_rows, rows, span_rows)
    ]
    work(0, min(span_rows, rows))
    for other in others:
        other.result()


def _span_rows(rows: int, multiple: int) -> int:
    return max(1, -(-rows // ((os.cpu_count() or 1) * multiple))) * multiple


@lru_cache(1)
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of this process. They are reused, because starting them takes a tenth of a search's time.

    A forked process has none of its parent's threads and starts its own.
    """
    return ThreadPoolExecutor(count, thread_name_prefix="headspan-products")


def _add_mean_and_bias(
    mean_and_bias: Float32[np.ndarray, "3 rows"],
    common: Float32[np.ndarray, "3"],
    products: Float32[np.ndarray, " rows"],
) -> None:
    """Turn products of head outputs into products of all normalised coordinates, in place."""
    over_s, mean, one = mean_and_bias
    products += common[0]
    products *= over_s
    products += common[1] * mean
    products += common[2] * one


def _packed(
    own: Float32[np.ndarray, "head head_dim column"],
) -> tuple[list[numkong.PackedMatrix], Float32[np.ndarray, " two_columns"]]:
    """Return each head's columns for the kernel, and the factors for the products; NaN for an infinite column.

    A number is the sum of two scaled float16 numbers: its rounded value, and the remainder.
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
