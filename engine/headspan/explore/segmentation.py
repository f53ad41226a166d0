"""Map a text onto an image: how much each patch contributes in the direction of the text.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024. A map is the dot product of the unit text with every patch's
contribution, summed over the chosen heads. The class token and registers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from headspan.decompose.formula import head_coordinates
from headspan.explore.similarities import distinct, refuse_other_vectors
from headspan.store.head_space import Head
from headspan.store.reader import Store


def text_maps(
    store: Store, image: int, vectors: Float[np.ndarray, "text joint"], heads: Sequence[Head]
) -> Float32[np.ndarray, "text rows columns"]:
    """Maps of unit text vectors over the patch grid of the image of that index, through `heads`.

    Contributions are divided by `‖embedding‖`. Texts are projected to each head's coordinates, so that no patch's
    contribution is formed in joint space. Raises SettingsError if the store has no patches, if a head or the image is
    not in the store, or if `vectors` are not rows of the joint dimension.
    """
    refuse_other_vectors(store, vectors)
    heads = distinct(store, heads)
    norm = np.broadcast_to(store.norm[image], (store.tokens, 3))
    maps = np.zeros((store.tokens, len(vectors)), np.float32)
    for layer in sorted({layer for layer, _ in heads}):
        head_outputs = store.patch_coordinates(image, layer)
        for head in sorted({head for of, head in heads if of == layer}):
            coordinates = head_coordinates(head_outputs[:, head], norm, normalised=True, parts=store.tokens)
            maps += coordinates @ (store.head_directions(layer, head) @ vectors.T)
    rows, columns = grid_shape(store.tokens - store.prefix_tokens, *store.attributes["preprocess"]["size"])
    return maps[store.prefix_tokens :].T.reshape(len(vectors), rows, columns)


def grid_shape(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a grid of `patches` square patches over an image of that height and width."""
    shapes = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(shapes, key=lambda shape: abs(np.log(shape[0] / shape[1] * width / height)))


def resized(
    evidence: Float32[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float32[np.ndarray, "height width"]:
    """A map enlarged to `size` (height, width) pixels, bilinear between the centres of patches."""
    height, width = size
    return np.asarray(Image.fromarray(evidence).resize((width, height), Image.Resampling.BILINEAR))


def average_precision(scores: Float32[np.ndarray, "*pixels"], truths: Bool[np.ndarray, "*pixels"]) -> float:
    """Area under the precision-recall curve of scores for a mask: the mean precision at each true pixel's score.

    Pixels of equal score share one threshold. NaN if the mask is empty.
    """
    values, places = np.unique(-scores.ravel(), return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    hits = np.bincount(places, weights=truths.ravel(), minlength=len(values))
    if not hits.sum():
        return float("nan")
    return float((hits * np.cumsum(hits) / np.cumsum(counts)).sum() / hits.sum())
