"""Coordinates of heads over a whole store: their means, and their products with small matrices."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Float32, Float64

from headspan.decompose.formula import head_coordinates
from headspan.head_names import Head as Head
from headspan.store.mapped import UnmappableError
from headspan.store.opened import OpenStore
from headspan.store.products import summed_products
from headspan.store.reader import Store

# A few hundred kB for each open store. An open store shows the same images for as long as it is open.
_means: WeakKeyDictionary[Store, Float64[np.ndarray, "layer head coordinate"]] = WeakKeyDictionary()


def stored_heads(store: OpenStore) -> list[Head]:
    """Layer and head of every stored head, in order."""
    return [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]


def head_means(store: Store, heads: Sequence[Head]) -> list[Float64[np.ndarray, " coordinate"]]:
    """The mean of each head's normalised coordinates over all good images, from the store's moments.

    They are read once for each open store. Raises StoreError if no unit is finished.
    """
    if not heads:
        return []
    if store not in _means:
        # A float32 sum over rows drifts by 1e-5 at millions of images and stops growing at tens of millions.
        moments = store.moments()
        _means[store] = moments.total / moments.count
    return [_means[store][store.contents.layer_index(layer, head), head] for layer, head in heads]


def coordinate_products(
    store: Store, heads: Sequence[Head], matrices: Sequence[Float[np.ndarray, "coordinate column"]]
) -> Float32[np.ndarray, "column images"]:
    """Multiply the normalised coordinates of each of `heads`, (layer, head), by that head's matrix; return the sum.

    Reads the stored numbers once, on all cores. Neither a dense form nor a float32 copy of them is in memory.
    """
    contents = store.contents
    places = [(contents.layer_index(layer, head), head) for layer, head in heads]
    try:
        products = summed_products(contents.maps("heads"), store.mean_and_bias, places, matrices)
    except UnmappableError:
        products = np.zeros((matrices[0].shape[1], store.images), np.float32)
        for (layer, head), matrix in zip(heads, matrices, strict=True):
            own = store.head_coordinates(layer, head)
            products += (head_coordinates(own, store.norm, normalised=True) @ matrix).T
        return products
    return products if store.images == store.planned_images else products[:, store.rows]
