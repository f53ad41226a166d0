"""Moments of some images of a store, computed from their rows: what `moments/` holds for all of them.

Rows are read in blocks, on all cores. Sums are accumulated in float64 from the stored numbers. These were rounded to
float16 after the run had added them to the store's own moments, so the moments of all images agree with those only
within that rounding.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Float64, Int64
from threadpoolctl import threadpool_limits

from headspan.decompose.formula import EXTRA_COORDINATES, head_coordinates
from headspan.store.contents import Contents
from headspan.store.moments_file import EmbeddingMoments, MergedMoments
from headspan.store.picked_rows import picked_rows

# Images that a thread reads at once, and heads: some 20 MB of coordinates in float64.
_BLOCK_ROWS = 2048
_HEADS = 12
_SINGLE = np.dtype(np.float32)


def moments_of_rows(contents: Contents, rows: Int64[np.ndarray, " row"]) -> MergedMoments:
    """Return the moments of usable images, given by their rows, and of their unit embeddings."""
    size = contents.size
    layers, heads, width = len(size.layers), size.heads, size.head_dim + EXTRA_COORDINATES
    total, gram = np.zeros((layers, heads, width)), np.zeros((layers, heads, width, width))
    norm = picked_rows(contents, "norm", rows, [np.arange(3)], _SINGLE).astype(np.float64)
    threads = os.cpu_count() or 1
    together = max(1, min(_HEADS, layers * heads // threads))

    def add(layer: int, first: int) -> None:
        """Add all rows to the moments of some heads of a layer."""
        chosen = np.arange(first, min(first + together, heads))
        for block in range(0, len(rows), _BLOCK_ROWS):
            here = slice(block, block + _BLOCK_ROWS)
            places = [np.array([layer]), chosen, np.arange(size.head_dim)]
            outputs = picked_rows(contents, "heads", rows[here], places, _SINGLE)[:, 0].swapaxes(0, 1)
            spread = np.broadcast_to(norm[here], (len(chosen), outputs.shape[1], 3))
            coordinates = head_coordinates(outputs.astype(np.float64), spread, normalised=True)
            total[layer, chosen] += coordinates.sum(axis=1)
            gram[layer, chosen] += coordinates.swapaxes(1, 2) @ coordinates

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        embedding = pool.submit(embedding_moments_of_rows, contents, rows)
        tasks = [pool.submit(add, layer, first) for layer in range(layers) for first in range(0, heads, together)]
        for task in tasks:
            task.result()
        return MergedMoments(len(rows), total, gram, embedding.result())


def embedding_moments_of_rows(contents: Contents, rows: Int64[np.ndarray, " row"]) -> EmbeddingMoments:
    """Return the moments of the unit embeddings of usable images, given by their rows, in bounded memory."""
    joint = contents.size.joint
    total, gram = np.zeros(joint), np.zeros((joint, joint))
    for block in range(0, len(rows), _BLOCK_ROWS):
        unit, _ = unit_embeddings(contents, rows[block : block + _BLOCK_ROWS])
        total += unit.sum(axis=0)
        gram += unit.T @ unit
    return EmbeddingMoments(len(rows), total, gram)


def unit_embeddings(
    contents: Contents, rows: Int64[np.ndarray, " row"]
) -> tuple[Float64[np.ndarray, "row joint"], Float32[np.ndarray, "row 3"]]:
    """Return the embeddings of usable images, given by their rows, divided by their lengths; and their `norm`."""
    norm = picked_rows(contents, "norm", rows, [np.arange(3)], _SINGLE)
    embedding = picked_rows(contents, "embedding", rows, [np.arange(contents.size.joint)], _SINGLE)
    return embedding.astype(np.float64) / norm[:, 2:], norm
