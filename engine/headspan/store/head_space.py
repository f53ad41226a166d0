"""Products of many images' head coordinates with small matrices, for searches over a whole store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from headspan.decompose.formula import head_coordinates
from headspan.head_names import Head as Head
from headspan.store.mapped import UnmappableError
from headspan.store.opened import OpenStore
from headspan.store.products import summed_products
from headspan.store.reader import Store


def stored_heads(store: OpenStore) -> list[Head]:
    """Layer and head of every stored head, in order."""
    return [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]


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
