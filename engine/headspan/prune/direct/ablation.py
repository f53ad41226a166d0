"""Mean ablation: embeddings in which the contributions of some heads are replaced by their means.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024: a head's direct contribution is replaced by its mean over
images. This removes the direct effect only; what later layers computed from the head is unchanged. Contributions follow
the published convention (`uniform`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from headspan.config import as_ranges
from headspan.decompose.formula import mlp_contributions
from headspan.errors import SettingsError
from headspan.explore.nearest.similarities import distinct
from headspan.prune.direct.head_changes import changed_embeddings
from headspan.store.head_space import Head, stored_heads
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images

# Bytes of the MLPs' numbers that are read at once.
_BLOCK_BYTES = 64 << 20


def mean_ablated(
    store: Store, heads: Sequence[Head], images: Images | None = None, *, mlps: bool = False, earlier: bool = False
) -> Float32[np.ndarray, "images joint"]:
    """Embeddings divided by the original `‖embedding‖`, with the contributions of `heads` at their means.

    They are not normalised again. The one-set case of `direct_effect`, whose arguments and errors it has.
    """
    return next(direct_effect(store, [heads], images, mlps=mlps, earlier=earlier))


def direct_effect(
    store: Store,
    sets: Sequence[Sequence[Head]],
    images: Images | None = None,
    *,
    mlps: bool = False,
    earlier: bool = False,
) -> Iterator[Float32[np.ndarray, "images joint"]]:
    """Yield, for each set of heads, the embeddings with the contributions of its heads at their means.

    Embeddings are divided by the original `‖embedding‖` and not normalised again. Means are over all good images of the
    store, from its float64 moments. An empty set gives the whole model's embeddings. The sets share their reading of
    the stored numbers: as many as 1 GiB holds are computed together.

    Args:
        store: The store. It is not changed.
        sets: Sets of heads, (layer, head); a head that is named twice counts once.
        images: The images to compute, as in `store.moments`: a selection, indices or a mask; by default all that the
            store shows. The result has them in the store's order.
        mlps: Replace the initial state and the MLPs by their means too.
        earlier: Replace the attention of the layers that are not stored by its mean too. With attention pooling there
            are none, since only the pooling's heads write to the embedding.

    With `mlps` and `earlier` together, or neither, any store will do: what is left is the sum of the stored heads, or
    what is removed is. With one of them, the store must hold `mlps` or the heads of all layers.

    Raises SettingsError if a head or an image is not in the store, or if the store does not hold what is needed;
    StoreError if no unit is finished.
    """
    chosen = [distinct(store, heads) if heads else [] for heads in sets]
    for layer, head in {head for heads in chosen for head in heads}:
        store.contents.layer_index(layer, head)
    if mlps != earlier and len(store.layers) < store.direct_layers:
        _refuse_without_mlps(store)
    return _direct_effect(store, chosen, chosen_images(store, images), mlps, earlier)


def _direct_effect(
    store: Store, sets: Sequence[Sequence[Head]], images: Int64[np.ndarray, " images"], mlps: bool, earlier: bool
) -> Iterator[Float32[np.ndarray, "images joint"]]:
    all_stored = len(store.layers) == store.direct_layers
    removes = not mlps and (not earlier or all_stored)
    if removes or (mlps and not earlier and not all_stored):
        base, sign = unit_embeddings(store, images), -1
        if mlps:
            base -= term_deviations(store, images)
    else:
        # What is left is the mean embedding plus the deviations of what is kept.
        base, sign = mean_embeddings(store, images), 1
        if not mlps:
            base += term_deviations(store, images)
        every = stored_heads(store)
        sets = [[head for head in every if head not in heads] for heads in map(set, sets)]
    matrices = {head: sign * store.head_directions(*head) for head in {head for heads in sets for head in heads}}
    yield from changed_embeddings(store, images, base, [{head: matrices[head] for head in heads} for heads in sets])


def ablated_products(
    store: Store,
    products: Float32[np.ndarray, "images vector"],
    vectors: Float32[np.ndarray, "vector joint"],
    heads: Sequence[Head],
    images: Int64[np.ndarray, " images"],
) -> Float32[np.ndarray, "images vector"]:
    """Dot products of some images' embeddings, as `mean_ablated` gives them, with a few vectors.

    `products` are those of the images' `unit_embeddings`, of which no ablated ones are formed. Raises as `mean_ablated`
    does.
    """
    chosen = distinct(store, heads) if heads else []
    matrices = {head: -(store.head_directions(*head) @ vectors.T) for head in chosen}
    return next(changed_embeddings(store, images, products, [matrices]))


def unit_embeddings(store: Store, images: Int64[np.ndarray, " images"]) -> Float32[np.ndarray, "images joint"]:
    """The embeddings of some images, in the store's order, divided by their lengths."""
    if len(images) < store.images:
        # Only these are read.
        chosen = [np.arange(store.joint)]
        embedding = picked_rows(store.contents, "embedding", store.rows[images], chosen, np.dtype(np.float32))
    else:
        embedding = store.embedding
    found: Float32[np.ndarray, "images joint"] = embedding / store.norm[images, 2:]
    return found


def mean_embeddings(store: Store, images: Int64[np.ndarray, " images"]) -> Float32[np.ndarray, "images joint"]:
    """The mean unit embedding of all good images, once for each of `images`; NaN for images that failed."""
    moments = store.embedding_moments()
    mean = (moments.total / moments.count).astype(np.float32)
    failed = ~np.isfinite(store.norm[images, 2])
    found = np.tile(mean, (len(images), 1))
    found[failed] = np.nan
    return found


def term_deviations(store: Store, images: Int64[np.ndarray, " images"]) -> Float32[np.ndarray, "images joint"]:
    """The sum of the contributions of the initial state and the MLPs, less its mean over all good images.

    Raises SettingsError if the store does not hold them.
    """
    _refuse_without_mlps(store)
    good = store.contents.good_rows()
    rows = store.rows[images]
    sums = _term_sums(store, rows)
    over = sums if np.array_equal(rows, good) else _term_sums(store, good)
    return sums - over.mean(axis=0, dtype=np.float64).astype(np.float32)


def _refuse_without_mlps(store: Store) -> None:
    if store.terms and "mlps" not in store.contents.specs:
        raise SettingsError(
            f"{store.path}: holds the heads of layers {as_ranges(store.layers)} of {store.all_layers} and no mlps, so "
            "attention of earlier layers and MLPs cannot be told apart; precompute with --emit heads,mlps, or with "
            "--layers all"
        )


def _term_sums(store: Store, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row joint"]:
    """The sum of the normalised contributions of all terms, at some rows of the arrays."""
    contents, size = store.contents, store.contents.size
    sums = np.zeros((len(rows), size.joint), np.float32)
    if not size.terms:
        return sums
    every = np.arange(size.terms)
    step = max(1, _BLOCK_BYTES // (4 * size.terms * size.joint))
    for first in range(0, len(rows), step):
        here = rows[first : first + step]
        centred = contents.outer("mlps", here, every, np.arange(size.joint)).astype(np.float32)
        means = contents.outer("mlp_means", here, every)
        norm = contents.outer("norm", here, np.arange(3))
        found = mlp_contributions(centred, means, norm, contents.folded, "uniform", normalised=True)
        found.sum(axis=1, out=sums[first : first + step])
    return sums
