"""Describe the heads of a store by texts, beside chance: everything that a TEXTSPAN run holds, and nothing is saved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from headspan.errors import StoreError, counted
from headspan.events import NOTE, Listener, Progress
from headspan.spans.algorithm import Principal, Spread, TextSpan, principals, span_principals
from headspan.spans.draws import draw_null
from headspan.spans.nulls import DRAWS, SEED
from headspan.spans.result import HeadSpans
from headspan.spans.stability import stability_of
from headspan.store.moments_file import MergedMoments
from headspan.store.reader import Store
from headspan.store.selection import Selection
from headspan.texts.stored import EmbeddedPool


def describe(
    store: Store,
    embedded: EmbeddedPool,
    run: str,
    texts_per_head: int,
    layers: Sequence[int],
    rank: int,
    moments: MergedMoments,
    draws: int = DRAWS,
    seed: int = SEED,
    also: Sequence[Store] = (),
    selection: Selection | None = None,
) -> HeadSpans:
    """TEXTSPAN of all heads of `layers` beside its null, with rank and stability; nothing is saved.

    `selection` are the images that `moments` are of; None if they are of all images. Raises StoreError if these are
    fewer than two.
    """
    heads = head_principals(store, layers, rank, moments)
    spans = span_principals(heads, embedded.vectors, texts_per_head)
    tail = (len(layers), store.heads_per_layer)
    indices = np.stack([span.indices for span in spans])
    stability = None
    if draws:
        images = None if selection is None else selection.images(store)
        stores = (store, *also)
        kept = stability_of(stores, layers, heads, embedded.vectors, indices, moments.count, seed, images)
        stability = kept.reshape(tail)
    return HeadSpans(
        run=run,
        pool=embedded.pool,
        layers=tuple(layers),
        indices=indices.reshape(*tail, texts_per_head),
        explained=np.stack([span.explained for span in spans]).reshape(*tail, texts_per_head),
        images=moments.count,
        stores=1 + len(also),
        null=draw_null(heads, embedded.vectors, texts_per_head, draws, seed, tail),
        ranks=np.array([head.rank for head in heads]).reshape(tail),
        effective_rank=np.array([head.effective_rank for head in heads]).reshape(tail),
        stability=stability,
        selection=selection,
    )


def at_most_all(pool: int, texts_per_head: int, name: str, on_progress: Listener) -> int:
    """`texts_per_head`, or the size of a smaller pool, which `on_progress` is told."""
    if texts_per_head > pool:
        few = f"the pool {name} has {counted(pool, 'text')}, fewer than {texts_per_head}"
        on_progress(Progress(NOTE, 1, 1, f"{few}: each head gets at most {pool:,}"))
    return min(texts_per_head, pool)


def span_store(
    store: Store,
    vectors: Float[np.ndarray, "text joint"],
    texts_per_head: int,
    layers: Sequence[int],
    rank: int,
    moments: MergedMoments,
) -> list[TextSpan]:
    """TEXTSPAN of all heads of `layers`, layer by layer, with means and directions for reconstruction.

    Raises StoreError if `moments` are of fewer than two images.
    """
    return span_principals(head_principals(store, layers, rank, moments), vectors, texts_per_head)


def head_principals(store: Store, layers: Sequence[int], rank: int, moments: MergedMoments) -> list[Principal]:
    """The principal directions of all heads of `layers`, layer by layer; errors as in `span_store`."""
    refuse_too_few(store, moments)
    return principals(
        (
            Spread(
                moments.count,
                moments.total[store.contents.layer_index(layer), head],
                moments.gram[store.contents.layer_index(layer), head],
                store.head_directions(layer, head),
            )
            for layer in layers
            for head in range(store.heads_per_layer)
        ),
        rank,
    )


def refuse_too_few(store: Store, moments: MergedMoments) -> None:
    """Raise StoreError if `moments` are of fewer than two images."""
    if moments.count < 2:
        images = counted(moments.count, "image")
        raise StoreError(f"{store.path}: {images}, but TEXTSPAN needs at least 2, to have a variance; give more images")
