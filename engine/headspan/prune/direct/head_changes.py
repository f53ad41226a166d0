"""Add changes of heads' contributions to embeddings, for many variants in one reading of the stored numbers.

A variant gives each of some heads a matrix from its coordinates to joint space. To an image's embedding it adds the
sum, over these heads, of the deviation of the image's coordinates from their mean, times the matrix. Numbers are read
in blocks, on all cores; what two variants share is multiplied once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float, Float32, Int64
from threadpoolctl import threadpool_limits

from headspan.decompose.formula import head_coordinates
from headspan.store.head_space import Head
from headspan.store.kept_means import head_means
from headspan.store.picked_rows import picked_rows
from headspan.store.products import over_spans
from headspan.store.reader import Store

Matrices = Mapping[Head, Float[np.ndarray, "coordinate joint"]]

# Images of a block: its products stay in a core's cache.
_BLOCK_ROWS = 256
# The most bytes of embeddings of variants that are computed in one reading.
_TOGETHER_BYTES = 1 << 30


def changed_embeddings(
    store: Store,
    images: Int64[np.ndarray, " images"],
    base: Float32[np.ndarray, "images joint"],
    variants: Sequence[Matrices],
) -> Iterator[Float32[np.ndarray, "images joint"]]:
    """Yield `base` plus what each variant adds to it, for the store's `images`.

    Variants are computed together, as many as 1 GiB holds; each group of them reads the numbers of its heads once.
    Raises StoreError if no unit is finished.
    """
    together = max(1, _TOGETHER_BYTES // max(1, base.nbytes))
    for first in range(0, len(variants), together):
        group = variants[first : first + together]
        results = [base.copy() for _ in group]
        _add(store, images, group, results)
        # Given up one by one, so that the caller decides how many stay in memory.
        results.reverse()
        while results:
            yield results.pop()


def outputs_of_heads(
    store: Store, heads: Sequence[Head], rows: Int64[np.ndarray, " row"]
) -> Iterator[Float32[np.ndarray, "row head_dim"]]:
    """Yield the stored outputs of each head at some rows of the store's arrays.

    Heads of one layer that follow one another are read together.
    """
    contents = store.contents
    for layer, of_layer in groupby(heads, key=lambda head: head[0]):
        chosen = np.array([head for _, head in of_layer])
        index = [np.array([contents.layer_index(layer)]), chosen, np.arange(store.head_dim)]
        yield from picked_rows(contents, "heads", rows, index, np.dtype(np.float32))[:, 0].swapaxes(0, 1)


def _add(
    store: Store,
    images: Int64[np.ndarray, " images"],
    variants: Sequence[Matrices],
    results: Sequence[Float32[np.ndarray, "images joint"]],
) -> None:
    """Add to `results` what the variants add, in place."""
    # In the store's order, so that a sum does not depend on the order of a set or on the other variants.
    heads = sorted({head for variant in variants for head in variant})
    means = head_means(store, heads)
    rows, norm = store.rows[images], store.norm[images]
    # For each head, every matrix and the variants that use it.
    uses: list[list[tuple[np.ndarray, list[int]]]] = []
    for head in heads:
        shared: dict[int, tuple[np.ndarray, list[int]]] = {}
        for number, variant in enumerate(variants):
            if head in variant:
                matrix = variant[head]
                shared.setdefault(id(matrix), (matrix.astype(np.float32), []))[1].append(number)
        uses.append(list(shared.values()))

    def add(first_row: int, end: int) -> None:
        for first in range(first_row, end, _BLOCK_ROWS):
            here = slice(first, min(first + _BLOCK_ROWS, end))
            outputs = outputs_of_heads(store, heads, rows[here])
            for own, mean, matrices in zip(outputs, means, uses, strict=True):
                coordinates = head_coordinates(own, norm[here], normalised=True) - mean.astype(np.float32)
                for matrix, numbers in matrices:
                    product = coordinates @ matrix
                    for number in numbers:
                        results[number][here] += product

    with threadpool_limits(1, "blas"):
        over_spans(len(rows), _BLOCK_ROWS, add)
