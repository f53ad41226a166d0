"""Find the images nearest to a text or to an image, through one head, several heads, or the whole embedding.

Source: Madasu et al., arXiv 2409.06579 (CLIP-InterpreT): plain dot products of raw contributions, divided by
`‖embedding‖`; several heads are combined by the mean of their contributions. Scores of the whole embedding are cosines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.explore.nearest.search import Answering, Question, answered, search_one_of
from headspan.explore.nearest.similarities import distinct, refuse_other_vectors
from headspan.explore.query.query_image import Image, QueryImage, own_coordinates, query_image, unit_embedding
from headspan.frames import Tabular
from headspan.store.head_products import contribution_of
from headspan.store.head_space import Head, stored_heads
from headspan.store.kept_means import head_means
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors


@dataclass(frozen=True, repr=False)
class Neighbours(Tabular):
    """The nearest images, by their image index, nearest first, and their dot products with the query."""

    images: Int[np.ndarray, " count"]
    scores: Float32[np.ndarray, " count"]
    # The store that the images are in.
    store: Store = field(repr=False, compare=False)

    def __repr__(self) -> str:
        first = ", ".join(
            f"{image} ({score:.3g})" for image, score in zip(self.images[:3], self.scores[:3], strict=True)
        )
        more = ", …" if len(self.images) > 3 else ""
        return f"Neighbours({counted(len(self.images), 'image')}: {first}{more})"

    @property
    def keys(self) -> tuple[str, ...]:
        """The images' keys, read from the store when they are first used."""
        return self._keys_and_captions[0]

    @property
    def captions(self) -> tuple[str | None, ...]:
        """The images' captions; None for an image without one."""
        return self._keys_and_captions[1]

    @cached_property
    def _keys_and_captions(self) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
        samples = self.store.samples(self.images, ["key", "caption"])
        return tuple(samples["key"].to_pylist()), tuple(samples["caption"].to_pylist())

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "rank": list(range(1, len(self.images) + 1)),
            "image": self.images.tolist(),
            "key": self.keys,
            "caption": self.captions,
            "score": [float(score) for score in self.scores],
        }


def nearest_to_text(
    store: Store,
    text: str,
    heads: Sequence[Head] | None = None,
    count: int = 10,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Neighbours:
    """The `count` images whose mean contribution through `heads`, a list of (layer, head), fits `text` best.

    Without `heads`, those whose embeddings have the largest cosine with the text's. `weights` is as in `text_vectors`.
    Raises SettingsError if a head is not stored, and the errors of `text_vectors`.
    """
    return nearest_to_vector(store, text_vectors(store, [text], on_progress, weights=weights)[0], heads, count)


def nearest_to_vector(
    store: Store, vector: Float[np.ndarray, " joint"], heads: Sequence[Head] | None = None, count: int = 10
) -> Neighbours:
    """The `count` images whose mean contribution through `heads` has the largest dot product with `vector`.

    Without `heads`, the dot products are with the unit embeddings. Raises SettingsError if a head is not stored or
    `vector` does not have the joint dimension.
    """
    refuse_other_vectors(store, np.asarray(vector)[None])
    return nearest(store, np.asarray(vector, np.float32), heads, count)


def nearest_to_one_of(
    store: Store, vectors: Float32[np.ndarray, "text joint"], place: int, count: int = 10
) -> Neighbours:
    """What `nearest_to_vector` finds by embedding for row `place` of vectors that are asked about again and again.

    The second call begins to list the images of all of them in the background; then an answer takes a millisecond.
    Raises SettingsError if the row is not finite.
    """
    _refuse_not_finite(store, vectors[place], "text")
    return Neighbours(*search_one_of(store, vectors, place, count), store)


def both_ends(
    store: Store,
    vector: Float[np.ndarray, " joint"],
    heads: Sequence[Head],
    count: int = 10,
    answering: Answering = answered,
) -> tuple[Neighbours, Neighbours]:
    """The images with the largest dot products of `nearest_to_vector`, and those with the smallest, smallest first.

    `answering` searches. Raises as `nearest_to_vector` does.
    """
    refuse_other_vectors(store, np.asarray(vector)[None])
    _refuse_not_finite(store, vector, "text")
    question = Question(distinct(store, heads), np.asarray(vector, np.float32), count, both_ends=True)
    top, bottom = answering(store, question)
    return Neighbours(*top, store), Neighbours(*bottom, store)


def nearest_to_image(
    store: Store,
    image: Image | QueryImage,
    heads: Sequence[Head] | None = None,
    count: int = 10,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Neighbours:
    """The `count` images most similar to an image through `heads`, a list of (layer, head), without the image itself.

    Without `heads`, those whose embeddings have the largest cosine with the image's. `image` is an index of the store,
    a file or pixels, which the store's model encodes, or what `query_image` returned. `weights` is as in
    `text_vectors`. Raises SettingsError if a head or the image is not in the store, and the errors of `query_image`.
    """
    query = query_image(store, image, on_progress, weights=weights)
    return nearest(store, query_vector(store, query, heads), heads, count, query.image)


def nearest_through_each(
    store: Store,
    image: Image | QueryImage,
    heads: Sequence[Head] | None = None,
    count: int = 10,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> dict[Head, Neighbours]:
    """The neighbours of an image through each of `heads` alone, by default through every stored head.

    Arguments and errors are those of `nearest_to_image`. The stored numbers are read once.
    """
    query = query_image(store, image, on_progress, weights=weights)
    every = stored_heads(store)
    chosen = every if heads is None else distinct(store, heads)
    return {head: nearest(store, query_vector(store, query, [head]), [head], count, query.image) for head in chosen}


def nearest_ablated(
    store: Store,
    image: Image | QueryImage,
    heads: Sequence[Head],
    count: int = 10,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Neighbours:
    """The `count` images most similar to an image if the contributions of `heads` were at their means, in all images.

    Scores are dot products of embeddings as `prune.mean_ablated` returns them, which are not normalised again. Other
    arguments and errors are those of `nearest_to_image`.
    """
    query = query_image(store, image, on_progress, weights=weights)
    chosen = distinct(store, heads) if heads else []
    vector = ablated_vector(store, query, chosen).astype(np.float32)
    return nearest(store, vector, None, count, query.image, chosen)


def ablated_vector(store: Store, query: QueryImage, heads: Sequence[Head]) -> Float64[np.ndarray, " joint"]:
    """An image's embedding divided by its length, with the contributions of distinct `heads` at their means."""
    found = unit_embedding(query)
    if heads:
        own = np.stack([own_coordinates(store, query, *head) for head in heads])
        found -= contribution_of(store, heads, own - np.stack(head_means(store, heads)))
    return found


def query_vector(store: Store, query: QueryImage, heads: Sequence[Head] | None) -> Float32[np.ndarray, " joint"]:
    """The mean of an image's contributions through `heads`, divided by `‖embedding‖`; without heads, its embedding.

    Raises SettingsError if a head is not stored.
    """
    if heads is None:
        return (query.embedding / query.norm[2].astype(np.float64)).astype(np.float32)
    chosen = distinct(store, heads)
    own = np.stack([own_coordinates(store, query, *head) for head in chosen])
    return (contribution_of(store, chosen, own) / len(chosen)).astype(np.float32)


def nearest(
    store: Store,
    vector: Float32[np.ndarray, " joint"],
    heads: Sequence[Head] | None,
    count: int,
    without: int | None = None,
    ablated: Sequence[Head] = (),
    answering: Answering = answered,
) -> Neighbours:
    """The `count` images with the largest dot products with `vector`, through distinct `heads` or the embedding.

    The image `without` is left out. `ablated` is as in `search`, and `answering` searches. Raises SettingsError if the
    vector is not finite.
    """
    _refuse_not_finite(store, vector, "image or text")
    chosen = None if heads is None else distinct(store, heads)
    (found,) = answering(store, Question(chosen, vector, count, without, ablated))
    return Neighbours(*found, store)


def _refuse_not_finite(store: Store, vector: Float[np.ndarray, " joint"], other: str) -> None:
    """Raise SettingsError if a query is not finite; `other` is what to give instead."""
    if not np.isfinite(vector).all():
        raise SettingsError(f"{store.path}: the query has numbers that are not finite; give another {other}")
