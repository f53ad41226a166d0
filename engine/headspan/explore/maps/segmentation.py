"""Map a text onto an image: how much each patch contributes in the direction of the text.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024. A map is the dot product of the unit text with every patch's
contribution, summed over the chosen heads. The class token and registers are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image as Pil

from headspan.decompose.formula import mean_and_bias_terms
from headspan.events import Listener, ignore
from headspan.explore.nearest.similarities import distinct, refuse_other_vectors
from headspan.explore.query.query_image import Image, QueryImage, query_image, refuse_failed
from headspan.store.head_space import Head
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class PatchOutputs:
    """The `α v` of one image's source tokens, a layer at a time, and its `norm`."""

    norm: Float32[np.ndarray, " 3"]
    # Takes a layer, as the model numbers it.
    of_layer: Callable[[int], Float[np.ndarray, "token head head_dim"]]


def patch_outputs(
    store: Store,
    image: Image | QueryImage,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> PatchOutputs:
    """Patches of an image, from the store if it holds them, else as `query_image` computes them.

    Of stored patches, only those layers are read that are asked for. Raises as `query_image` does.
    """
    if isinstance(image, QueryImage) and image.patches is None:
        image = image.image if image.image is not None else image
    if isinstance(image, int) and "patches" in store.contents.specs:
        norm = store.contents.row("norm", store.row_of(image))
        refuse_failed(store, image, norm)
        return PatchOutputs(norm, partial(store.patch_coordinates, image))
    query = query_image(store, image, on_progress, with_patches=True, weights=weights, shards=shards)
    patches = query.patches
    assert patches is not None
    return PatchOutputs(query.norm, lambda layer: patches[store.contents.layer_index(layer)].astype(np.float32))


def text_maps(
    store: Store,
    image: Image | QueryImage,
    vectors: Float[np.ndarray, "text joint"],
    heads: Sequence[Head],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> Float32[np.ndarray, "text rows columns"]:
    """Maps of unit text vectors over the patch grid of an image, through `heads`.

    The image is the index of a stored one, or a file or pixels as in `query_image`; `weights` and `shards` are as
    there. Contributions are divided by `‖embedding‖`. Texts are projected to each head's coordinates, so that no
    patch's contribution is formed in joint space. A text's map does not depend on the other texts, to the last bit.

    Raises SettingsError if a head or the image is not in the store, or if `vectors` are not rows of the joint
    dimension; and the errors of `query_image` if patches are not stored.
    """
    refuse_other_vectors(store, vectors)
    heads = distinct(store, heads)
    found = patch_outputs(store, image, on_progress, weights=weights, shards=shards)
    return maps_along(store, found, vectors, heads)


def maps_along(
    store: Store, patches: PatchOutputs, vectors: Float[np.ndarray, "text joint"], heads: Sequence[Head]
) -> Float32[np.ndarray, "text rows columns"]:
    """As `text_maps`, for patches that are read already, and heads without repetition."""
    terms = mean_and_bias_terms(patches.norm, normalised=True)
    maps = np.zeros((len(vectors), store.tokens), np.float32)
    for layer in sorted({layer for layer, _ in heads}):
        chosen = sorted(head for of, head in heads if of == layer)
        directions = [store.head_directions(layer, head) for head in chosen]
        own = patches.of_layer(layer)[:, chosen].reshape(store.tokens, -1)
        # One text after another: in a product of many texts, a text's last bits may depend on how many they are.
        for place, vector in enumerate(vectors):
            along = np.stack([each @ vector for each in directions])
            maps[place] += own @ along[:, : store.head_dim].ravel() * terms[0]
            maps[place] += (along[:, store.head_dim :] @ terms).sum() / store.tokens
    return on_grid(store, maps[:, store.prefix_tokens :])


def on_grid(store: Store, patches: Float32[np.ndarray, "map patch"]) -> Float32[np.ndarray, "map rows columns"]:
    """Numbers of patches as maps over the patch grid."""
    return patches.reshape(len(patches), *grid_shape(patches.shape[1], *store.attributes["preprocess"]["size"]))


def grid_shape(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a grid of `patches` square patches over an image of that height and width."""
    shapes = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(shapes, key=lambda shape: abs(np.log(shape[0] / shape[1] * width / height)))


def resized(
    evidence: Float32[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float32[np.ndarray, "height width"]:
    """A map enlarged to `size` (height, width) pixels, bilinear between the centres of patches."""
    height, width = size
    return np.asarray(Pil.fromarray(evidence).resize((width, height), Pil.Resampling.BILINEAR))


def average_precision(scores: Float[np.ndarray, "*pixels"], truths: Bool[np.ndarray, "*pixels"]) -> float:
    """Area under the precision-recall curve of scores for a mask: the mean precision at each true pixel's score.

    Pixels of equal score share one threshold. NaN if the mask is empty.
    """
    values, places = np.unique(-scores.ravel(), return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    hits = np.bincount(places, weights=truths.ravel(), minlength=len(values))
    if not hits.sum():
        return float("nan")
    return float((hits * np.cumsum(hits) / np.cumsum(counts)).sum() / hits.sum())
