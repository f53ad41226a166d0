"""Means over all good images of a store: of heads' coordinates, of embeddings, and of the MLPs' contributions.

Each is computed once for each open store, which shows the same images for as long as it is open. They take some hundred
kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float64

from headspan.decompose.formula import mlp_contributions
from headspan.head_names import Head
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store

# Images that give the means of the MLPs' contributions, of which stores hold no moments; and how many are read at once.
TERM_IMAGES = 4096
_BLOCK_ROWS = 256

_heads: WeakKeyDictionary[Store, Float64[np.ndarray, "layer head coordinate"]] = WeakKeyDictionary()
_embeddings: WeakKeyDictionary[Store, Float64[np.ndarray, " joint"]] = WeakKeyDictionary()
_terms: WeakKeyDictionary[Store, Float64[np.ndarray, "term joint"]] = WeakKeyDictionary()


def head_means(store: Store, heads: Sequence[Head]) -> list[Float64[np.ndarray, " coordinate"]]:
    """The mean of each head's normalised coordinates, from the store's moments.

    Raises SettingsError if a head is not stored, and StoreError if no unit is finished.
    """
    if not heads:
        return []
    if store not in _heads:
        # A float32 sum over rows drifts by 1e-5 at millions of images and stops growing at tens of millions.
        moments = store.moments()
        _heads[store] = moments.total / moments.count
    return [_heads[store][store.contents.layer_index(layer, head), head] for layer, head in heads]


def embedding_mean(store: Store) -> Float64[np.ndarray, " joint"]:
    """The mean unit embedding. Raises StoreError if no unit is finished."""
    if store not in _embeddings:
        moments = store.embedding_moments()
        _embeddings[store] = moments.total / moments.count
    return _embeddings[store]


def term_means(store: Store) -> Float64[np.ndarray, "term joint"]:
    """The mean contributions of the initial state and the MLPs, divided by `‖embedding‖`.

    They are over at most 4,096 images, evenly spaced. Raises SettingsError if the store does not hold `mlps`.
    """
    if store not in _terms:
        contents, size = store.contents, store.contents.size
        good = contents.good_rows()
        rows = good[np.unique(np.linspace(0, len(good) - 1, min(TERM_IMAGES, len(good))).astype(np.int64))]
        total, every, single = np.zeros((size.terms, size.joint)), np.arange(size.terms), np.dtype(np.float32)
        for first in range(0, len(rows), _BLOCK_ROWS):
            here = rows[first : first + _BLOCK_ROWS]
            centred = picked_rows(contents, "mlps", here, [every, np.arange(size.joint)], single)
            means = picked_rows(contents, "mlp_means", here, [every], single)
            norm = picked_rows(contents, "norm", here, [np.arange(3)], single)
            found = mlp_contributions(centred, means, norm, contents.folded, "uniform", normalised=True)
            total += found.sum(axis=0, dtype=np.float64)
        _terms[store] = total / max(1, len(rows))
    return _terms[store]
