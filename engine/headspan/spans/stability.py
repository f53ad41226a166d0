"""How far the first texts of a head depend on the images that happen to be in the store: a bootstrap over images.

Images are resampled, and the greedy rounds are repeated on the moments of the resampled images. A store keeps only the
sum of its images' moments, so this reads the stored head outputs once; no image is computed again. At most
`MOST_IMAGES` are read, evenly spread over the stores, in blocks of which one moment matrix each is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64
from threadpoolctl import threadpool_limits

from headspan.decompose.formula import head_coordinates
from headspan.errors import counted, percent
from headspan.spans.algorithm import Principal
from headspan.spans.greedy import greedy
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store

# The texts that are compared; heads are labelled by as many.
FIRST_TEXTS = 5
# With 20 resamplings and five texts the number of a head has a standard error of at most 0.05, if texts leave alone.
RESAMPLINGS = 20
MOST_IMAGES = 5_000
_BLOCKS = 100
# Below ten images a direction, or if more than half of the first texts change, the images are too few.
_IMAGES_PER_DIRECTION = 10
_LEAST_STABILITY = 0.5


def stability_of(
    stores: Sequence[Store],
    layers: Sequence[int],
    heads: Sequence[Principal],
    vectors: Float[np.ndarray, "pool joint"],
    chosen: Int[np.ndarray, "head text"],
    images: int,
    seed: int,
    selected: Int64[np.ndarray, " selected"] | None = None,
) -> Float64[np.ndarray, " head"]:
    """The mean share of each head's first five texts that are among the first five of resampled images.

    `heads` and `chosen` follow layers and heads, and are of `images` images; `selected` are their indices in the only
    store, or None for all images. The value is NaN for a head
    without texts, and for a pool without other texts, since no text can give way.
    Synonyms in the pool lower the share: a text that gives way to its synonym counts as lost.
    """
    pool = np.asarray(vectors, np.float64)
    each = stores[0].heads_per_layer
    found = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        for place, layer in enumerate(layers):
            sample = sampled_heads(stores, layer, selected=selected)
            numbers = range(place * each, (place + 1) * each)

            def share(
                number: int, layer: int = layer, sample: Float32[np.ndarray, "image head coordinate"] = sample
            ) -> float:
                directions = stores[0].head_directions(layer, number % each).astype(np.float64)
                own = sample[:, number % each] @ (directions @ heads[number].basis)
                return kept_share(own, heads[number], pool, chosen[number], images, seed)

            found += list(threads.map(share, numbers))
    return np.array(found)


def sampled_heads(
    stores: Sequence[Store], layer: int, most: int = MOST_IMAGES, selected: Int64[np.ndarray, " selected"] | None = None
) -> Float32[np.ndarray, "image head coordinate"]:
    """The normalised coordinates of a layer's heads for at most about `most` images, evenly spread over the stores.

    `selected` are the images to sample from, of the only store; None for all.
    """
    images = sum(store.images for store in stores) if selected is None else len(selected)
    return np.concatenate(list(_sampled(stores, layer, images, most, selected)))


def _sampled(
    stores: Sequence[Store], layer: int, images: int, most: int, selected: Int64[np.ndarray, " selected"] | None
) -> Iterator[Float32[np.ndarray, "image head coordinate"]]:
    for store in stores:
        own = np.arange(store.images) if selected is None else selected
        if images > most:
            own = own[np.linspace(0, len(own), max(1, most * len(own) // images), endpoint=False, dtype=np.int64)]
        # A store opened with `include_failed` shows images that its moments leave out.
        own = own[np.isfinite(store.norm[own]).all(axis=1)]
        index, size = np.array([store.contents.layer_index(layer)]), store.contents.size
        places = [index, np.arange(size.heads), np.arange(size.head_dim)]
        outputs = picked_rows(store.contents, "heads", store.rows[own], places, np.dtype(np.float32))[:, 0]
        norm = np.broadcast_to(store.norm[own, None], (*outputs.shape[:2], 3))
        yield head_coordinates(outputs, norm, normalised=True)


def kept_share(
    contributions: Float[np.ndarray, "image rank"],
    head: Principal,
    pool: Float64[np.ndarray, "pool joint"],
    chosen: Int[np.ndarray, " text"],
    images: int,
    seed: int,
) -> float:
    """The mean share of the first five of `chosen` that resampled images choose among their first five.

    `contributions` are along the head's basis, of a sample of the `images` that its moments are of. The deviation of a
    resampled covariance is scaled by the root of the sample's share, to be that of all images.
    """
    first = chosen[:FIRST_TEXTS]
    first = first[first >= 0]
    if not len(first) or len(pool) <= len(first):
        return float("nan")
    covariances = head.covariance + np.sqrt(min(1.0, len(contributions) / images)) * _deviations(contributions, seed)
    picks, _ = greedy((pool @ head.basis)[None], covariances, len(chosen[:FIRST_TEXTS]))
    return float(np.isin(picks, first).sum(axis=1).mean() / len(first))


def _deviations(
    contributions: Float[np.ndarray, "image rank"], seed: int
) -> Float64[np.ndarray, "resampling rank rank"]:
    """Covariances of resampled images minus that of the sample. Blocks of every so many-th image are resampled."""
    exact = np.asarray(contributions, np.float64)
    # Far from zero a mean costs digits.
    exact -= exact.mean(axis=0)
    blocks = [exact[start::_BLOCKS] for start in range(min(_BLOCKS, len(exact)))]
    counts = np.array([len(block) for block in blocks], np.float64)
    sums = np.stack([block.sum(axis=0) for block in blocks])
    grams = np.stack([block.T @ block for block in blocks])
    generator = np.random.default_rng([seed, 2])
    times = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), RESAMPLINGS).astype(np.float64)
    total, mean = times @ counts, times @ sums
    gram = np.tensordot(times, grams, axes=1)
    resampled = (gram - mean[:, :, None] * (mean / total[:, None])[:, None, :]) / (total - 1)[:, None, None]
    return resampled - grams.sum(axis=0) / (len(exact) - 1)


def few_images(
    images: int, ranks: Int[np.ndarray, "layer head"], stability: Float[np.ndarray, "layer head"] | None
) -> str | None:
    """A sentence if images are fewer than ten times the largest rank, or if half of the heads are not stable."""
    found = np.empty(0) if stability is None else stability[~np.isnan(stability)]
    median, largest = float(np.median(found)) if len(found) else float("nan"), int(ranks.max())
    if images >= _IMAGES_PER_DIRECTION * largest and not median < _LEAST_STABILITY:
        return None
    kept = f"; resampled images keep {percent(median, 0)} of a head's first {FIRST_TEXTS} texts (median)"
    return (
        f"few data: {counted(images, 'image')} for heads with {counted(largest, 'direction')}"
        f"{'' if np.isnan(median) else kept}; other images may give other texts"
    )
