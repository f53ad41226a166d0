"""Find the images nearest to a text or to an image, as seen by one head or by several.

Source: Madasu et al., arXiv 2409.06579 (CLIP-InterpreT): plain dot products of raw contributions, divided by
`‖embedding‖`; several heads are combined by the mean of their contributions. Queries are projected to each
head's coordinates, so a search reads the stored numbers once and forms no contribution in joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.store.head_space import Head, coordinate_products, coordinates_of_image
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors

# How many blocks the images are divided into, for each neighbour that is asked for.
_BLOCKS = 8


@dataclass(frozen=True, slots=True, repr=False)
class Neighbours:
    """The nearest images, by their image index, nearest first, and their dot products with the query."""

    images: Int[np.ndarray, " count"]
    scores: Float32[np.ndarray, " count"]

    def __repr__(self) -> str:
        first = ", ".join(
            f"{image} ({score:.3g})" for image, score in zip(self.images[:3], self.scores[:3], strict=True)
        )
        more = ", …" if len(self.images) > 3 else ""
        return f"Neighbours({counted(len(self.images), 'image')}: {first}{more})"


def nearest_to_text(
    store: Store,
    text: str,
    heads: Sequence[Head],
    count: int = 10,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Neighbours:
    """The `count` images whose mean contribution through `heads`, a list of (layer, head), fits `text` best.

    `weights` is as in `text_vectors`. Raises SettingsError if a head is not stored, and the errors of `text_vectors`.
    """
    return nearest_to_vector(store, text_vectors(store, [text], on_progress, weights=weights)[0], heads, count)


def nearest_to_vector(
    store: Store, vector: Float[np.ndarray, " joint"], heads: Sequence[Head], count: int = 10
) -> Neighbours:
    """The `count` images whose mean contribution through `heads` has the largest dot product with `vector`.

    Raises SettingsError if a head is not stored or `vector` does not have the joint dimension.
    """
    return _nearest(similarities(store, np.asarray(vector)[None], heads)[0], count)


def nearest_to_image(store: Store, image: int, heads: Sequence[Head], count: int = 10) -> Neighbours:
    """The `count` images most similar to the image of that index through `heads`, without the image itself.

    Raises SettingsError if a head or the image is not in the store.
    """
    scores = similarities(store, mean_contribution(store, heads, image)[None], heads)[0]
    scores[image] = np.nan
    return _nearest(scores, count)


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


def mean_contribution(store: Store, heads: Sequence[Head], image: int) -> Float32[np.ndarray, " joint"]:
    """The mean of one image's contributions through `heads`, divided by `‖embedding‖`."""
    heads = distinct(store, heads)
    total = np.zeros(store.joint, np.float32)
    for layer, head in heads:
        total += coordinates_of_image(store, image, layer, head) @ store.head_directions(layer, head)
    return total / len(heads)


def mean_contributions(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """The mean of every image's contributions through `heads`, as queries for `similarities`."""
    heads = distinct(store, heads)
    total = np.zeros((store.images, store.joint), np.float32)
    for layer, head in heads:
        total += store.head(layer, head)
    return total / len(heads)


def _nearest(scores: Float32[np.ndarray, " images"], count: int) -> Neighbours:
    # The `count`-th largest of the blocks' maxima bounds the `count`-th largest score from below.
    block = max(1, len(scores) // (_BLOCKS * max(1, count)))
    tops = np.fmax.reduceat(scores, np.arange(0, len(scores), block))
    tops = tops[np.isfinite(tops)]
    bound = np.partition(tops, -count)[-count] if 0 < count <= len(tops) else -np.inf
    candidates = np.flatnonzero(scores >= bound)
    # Failed images have NaN and are left out. Of equal scores, the first images are chosen.
    candidates = candidates[np.isfinite(scores[candidates])]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][: max(0, count)]
    return Neighbours(best, scores[best])


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
