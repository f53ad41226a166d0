"""Dot products of queries with the contributions of all images through some heads, and the queries themselves.

Contributions are divided by `‖embedding‖`; several heads are combined by the mean of their contributions. Queries are
projected to each head's coordinates, so the stored numbers are read once and no contribution is formed in joint space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError
from headspan.store.head_space import Head, coordinate_products
from headspan.store.reader import Store


def similarities(
    store: Store, vectors: Float[np.ndarray, "query joint"], heads: Sequence[Head]
) -> Float32[np.ndarray, "query images"]:
    """Dot products of each query with every image's mean contribution through `heads`.

    Contributions are divided by `‖embedding‖`; images that failed have NaN. Raises SettingsError if a head is not
    stored or `vectors` are not rows of the joint dimension.
    """
    refuse_other_vectors(store, vectors)
    heads = distinct(store, heads)
    along = [store.head_directions(layer, head) @ (vectors.T / len(heads)) for layer, head in heads]
    return coordinate_products(store, heads, along)


def mean_contributions(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """The mean of every image's contributions through `heads`, as queries for `similarities`."""
    heads = distinct(store, heads)
    total = np.zeros((store.images, store.joint), np.float32)
    for layer, head in heads:
        total += store.head(layer, head)
    return total / len(heads)


def distinct(store: Store, heads: Sequence[Head]) -> list[Head]:
    """Each head once. Raises SettingsError if there is none, or if they are not pairs (layer, head)."""
    if not all(isinstance(head, Sequence) and len(head) == 2 for head in heads):
        raise SettingsError(f"heads {heads!r}: give a list of pairs (layer, head), as in [(22, 13)]")
    if not heads:
        raise SettingsError(f"{store.path}: the list of heads is empty; name at least one as (layer, head)")
    return list(dict.fromkeys((layer, head) for layer, head in heads))


def refuse_other_vectors(store: Store, vectors: Float[np.ndarray, "text joint"]) -> None:
    """Raise SettingsError if `vectors` are not rows of the store's joint dimension."""
    shape = np.shape(vectors)
    if len(shape) != 2 or shape[1] != store.joint:
        raise SettingsError(
            f"vectors of shape {shape}: give [text, {store.joint}], as text_vectors(store, texts) returns them"
        )
