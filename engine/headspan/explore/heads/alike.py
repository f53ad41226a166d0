"""How alike heads are: the overlap of the covariances of their contributions in the joint space.

The overlap of two heads is `tr(A B) / (‖A‖ ‖B‖)`, where A and B are the covariances of their contributions over the
images, in the joint space: 1 if both vary along the same directions in the same proportions, 0 if their directions are
orthogonal. It says that two heads write along the same directions, not that they do so for the same images: this is not
CKA over images, which needs cross moments of pairs of heads, and those are not stored.

No matrix of the joint dimension is made. A contribution is `z D` with the head's coordinates z, whose covariance has a
root R: `Rᵀ R`. With `W = R D`, `A = Wᵀ W` and `tr(A B) = ‖W W'ᵀ‖²`, a product of a row for each coordinate.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from headspan.spans.algorithm import VARIANCE_TOLERANCE
from headspan.store.head_space import Head, stored_heads
from headspan.store.moments_file import MergedMoments, covariance_of
from headspan.store.reader import Store


def covariance_roots(store: Store) -> Float32[np.ndarray, "layer head direction joint"]:
    """The roots W of the covariances of all stored heads, for many calls of `covariance_overlaps`.

    Raises as `Store.moments` does.
    """
    moments, found = store.moments(), None
    for layer, number in stored_heads(store):
        at = store.contents.layer_index(layer, number), number
        written = _written(store, moments, at)
        if found is None:
            found = np.empty((len(store.layers), store.heads_per_layer, *written.shape), np.float32)
        found[at] = written
    assert found is not None, "a store holds heads"
    return found


def covariance_overlaps(
    store: Store, head: Head, roots: Float32[np.ndarray, "layer head direction joint"] | None = None
) -> Float64[np.ndarray, "layer head"]:
    """The overlap of one head with every stored head, itself included; NaN where one of the two does not vary.

    Contributions are those of convention `uniform`, divided by `‖embedding‖`, over all usable images. `roots` are what
    `covariance_roots` returned. Raises SettingsError if the head is not stored, and as `Store.moments` does.
    """
    place = store.contents.layer_index(*head), head[1]
    roots = covariance_roots(store) if roots is None else roots
    written = roots[place]
    found = np.empty(roots.shape[:2])
    for at in np.ndindex(*found.shape):
        others = roots[at]
        # `‖W W'ᵀ‖²` is `tr(A B)` for the roots `A = Wᵀ W`.
        lengths = np.linalg.norm(written @ written.T) * np.linalg.norm(others @ others.T)
        found[at] = ((written @ others.T) ** 2).sum() / lengths if lengths > 0 else np.nan
    return found


def effective_ranks(store: Store) -> Float64[np.ndarray, "layer head"]:
    """`(tr Σ)² / tr Σ²` of every stored head's contributions: how many directions share the variance; NaN without any.

    Raises as `Store.moments` does.
    """
    moments = store.moments()
    found = np.empty((len(store.layers), store.heads_per_layer))
    for layer, number in stored_heads(store):
        at = store.contents.layer_index(layer, number), number
        directions = store.head_directions(layer, number).astype(np.float64)
        products = directions @ directions.T
        # Σ is `Dᵀ C D` for coordinates with the covariance C, so its traces are those of `C D Dᵀ`.
        covariance = covariance_of(moments.total[at], moments.gram[at], moments.count) @ products
        variance, squares = np.trace(covariance), (covariance * covariance.T).sum()
        varies = variance > VARIANCE_TOLERANCE * ((moments.gram[at] / moments.count) * products).sum()
        found[at] = variance**2 / squares if varies and squares > 0 else np.nan
    return found


def _written(store: Store, moments: MergedMoments, at: tuple[int, int]) -> Float64[np.ndarray, "direction joint"]:
    """A root W of the covariance of a head's contributions, `Wᵀ W`; zeros if they do not vary."""
    directions = store.head_directions(store.layers[at[0]], at[1]).astype(np.float64)
    covariance = covariance_of(moments.total[at], moments.gram[at], moments.count)
    variances, vectors = np.linalg.eigh(covariance)
    # Rounding may make a variance of 0 negative.
    written: Float64[np.ndarray, "direction joint"] = (np.sqrt(variances.clip(0))[:, None] * vectors.T) @ directions
    square = float(((moments.gram[at] / moments.count) * (directions @ directions.T)).sum())
    return written if (written**2).sum() > VARIANCE_TOLERANCE * square else np.zeros_like(written)
