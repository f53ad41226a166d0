"""Nearest images to a text or to an image, through one head, through all heads of a label, or any set.

Source: Madasu et al., arXiv 2409.06579 (CLIP-InterpreT): raw contributions over `‖embedding‖`, plain dot
products; several heads count by the mean of their contributions. Queries are carried to each head, so a
search is one pass over what is stored of the heads, and no dense contribution ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from headspan.errors import SettingsError
from headspan.store.head_space import coordinate_products, coordinates_of_image
from headspan.store.reader import Store

# Layer and head.
Head = tuple[int, int]
# Blocks of images for each neighbour that is asked for.
_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest images, by their index in the store, nearest first, and their dot products."""

    images: Int[np.ndarray, " count"]
    scores: Float32[np.ndarray, " count"]


def nearest_to_vector(
    store: Store, vector: Float[np.ndarray, " joint"], heads: Sequence[Head], count: int = 10
) -> Neighbours:
    """The images whose contributions through `heads` point most along `vector`, a unit text for one."""
    return _nearest(similarities(store, heads, np.asarray(vector)[None])[0], count)


def nearest_to_image(store: Store, image: int, heads: Sequence[Head], count: int = 10) -> Neighbours:
    """The images most like `image` through `heads`; the image itself is left out."""
    scores = similarities(store, heads, mean_contribution(store, heads, image)[None])[0]
    scores[image] = np.nan
    return _nearest(scores, count)


def similarities(
    store: Store, heads: Sequence[Head], vectors: Float[np.ndarray, "query joint"]
) -> Float32[np.ndarray, "query images"]:
    """Dot products of each query with every image's mean contribution through `heads`; NaN where an image failed."""
    refuse_other_vectors(store, vectors)
    heads = distinct(store, heads)
    along = [store.head_directions(layer, head) @ (vectors.T / len(heads)) for layer, head in heads]
    return coordinate_products(store, heads, along)


def mean_contribution(store: Store, heads: Sequence[Head], image: int) -> Float32[np.ndarray, " joint"]:
    """The mean of one image's contributions through `heads`."""
    heads = distinct(store, heads)
    total = np.zeros(store.joint, np.float32)
    for layer, head in heads:
        total += coordinates_of_image(store, image, layer, head) @ store.head_directions(layer, head)
    return total / len(heads)


def mean_contributions(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """The mean of every image's contributions through `heads`: queries for `similarities`."""
    heads = distinct(store, heads)
    total = np.zeros((store.images, store.joint), np.float32)
    for layer, head in heads:
        total += store.head(layer, head)
    return total / len(heads)


def _nearest(scores: Float32[np.ndarray, " images"], count: int) -> Neighbours:
    # The blocks' largest scores are those of `count` images and more: what is below them all is no candidate.
    block = max(1, len(scores) // (_BLOCKS * max(1, count)))
    tops = np.fmax.reduceat(scores, np.arange(0, len(scores), block))
    tops = tops[np.isfinite(tops)]
    bound = np.partition(tops, -count)[-count] if 0 < count <= len(tops) else -np.inf
    candidates = np.flatnonzero(scores >= bound)
    # NaN, of images that failed, is no neighbour; of equal scores, the first images are.
    candidates = candidates[np.isfinite(scores[candidates])]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][: max(0, count)]
    return Neighbours(best, scores[best])


def distinct(store: Store, heads: Sequence[Head]) -> list[Head]:
    """Each head once. SettingsError where there is none, or they are not pairs of numbers."""
    if not all(isinstance(head, Sequence) and len(head) == 2 for head in heads):
        raise SettingsError(f"heads {heads!r}: give a list of pairs (layer, head), as in [(22, 13)]")
    if not heads:
        raise SettingsError(f"{store.path}: no heads were named; name at least one as (layer, head)")
    return list(dict.fromkeys((layer, head) for layer, head in heads))


def refuse_other_vectors(store: Store, vectors: Float[np.ndarray, "text joint"]) -> None:
    """Raise SettingsError where `vectors` are not rows in the store's joint space."""
    shape = np.shape(vectors)
    if len(shape) != 2 or shape[1] != store.joint:
        raise SettingsError(
            f"vectors of shape {shape}: give [text, {store.joint}], as text_vectors(store, texts) makes them"
        )
