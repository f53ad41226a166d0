"""Which head accounts for most of what sets an image apart from the mean image.

An embedding is the sum of its components, so its squared distance from the mean embedding is the sum over components of
`(c − E c) · (e − E e)`. A head's part, as a share, may be negative, and the parts of the heads sum to 1 with those of
the other components.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

from headspan.decompose.formula import head_coordinates
from headspan.store.head_space import Head, stored_heads
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store
from headspan.store.selected_moments import unit_embeddings
from headspan.store.selection import Selection


class StrongestHeads:
    """The strongest stored head of images, beside the mean over all usable images or a selection."""

    def __init__(self, store: Store, selection: Selection | None = None) -> None:
        moments, embedding = store.moments(selection), store.embedding_moments(selection)
        self._contents = store.contents
        self.heads: tuple[Head, ...] = tuple(stored_heads(store))
        self._mean_embedding = embedding.total / embedding.count
        self._means = (moments.total / moments.count).astype(np.float32)
        every = np.stack([store.head_directions(*head) for head in self.heads])
        self._directions = every.reshape(len(store.layers), store.heads_per_layer, *every.shape[1:])

    def of(self, rows: Int64[np.ndarray, " row"]) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, " row"]]:
        """The place in `heads` of the strongest head of usable images, given by their rows, and its share."""
        unit, norm = unit_embeddings(self._contents, rows)
        away = (unit - self._mean_embedding).astype(np.float32)
        size = self._contents.size
        spread = np.broadcast_to(norm[:, None], (len(rows), size.heads, 3))
        shares = np.empty((len(rows), len(size.layers), size.heads), np.float32)
        for place, directions in enumerate(self._directions):
            places = [np.array([place]), np.arange(size.heads), np.arange(size.head_dim)]
            outputs = picked_rows(self._contents, "heads", rows, places, np.dtype(np.float32))[:, 0]
            centred = head_coordinates(outputs, spread, normalised=True) - self._means[place]
            along = (away @ directions.reshape(-1, size.joint).T).reshape(centred.shape)
            shares[:, place] = np.einsum("rhc,rhc->rh", centred, along)
        flat = shares.reshape(len(rows), -1)
        best = flat.argmax(axis=1)
        distance = np.maximum((away**2).sum(axis=1), np.finfo(np.float32).tiny)
        return best.astype(np.int64), flat[np.arange(len(rows)), best] / distance
