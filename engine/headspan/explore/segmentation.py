"""Where in an image the evidence for a text lies: each patch's contribution along the text.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024. A map of a text is the dot product of every patch's
contribution, summed over the chosen heads, with the unit text; tokens that are no patches are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from headspan.decompose.formula import head_coordinates
from headspan.explore.neighbours import Head, distinct, refuse_other_vectors
from headspan.store.reader import Store


def text_maps(
    store: Store, image: int, vectors: Float[np.ndarray, "text joint"], heads: Sequence[Head]
) -> Float32[np.ndarray, "text rows columns"]:
    """Maps of unit texts over the patch grid of the image of that index, through `heads`.

    Texts are carried to each head, so that no patch's contribution is ever formed in joint space. Raises
    SettingsError where the store holds no patches, heads are no pairs, or vectors are of another width.
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
    """Rows and columns of `patches` square patches over an image of that height and width."""
    shapes = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(shapes, key=lambda shape: abs(np.log(shape[0] / shape[1] * width / height)))


def resized(
    evidence: Float32[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float32[np.ndarray, "height width"]:
    """A map at `size` (height, width), bilinear between the patches' centres."""
    height, width = size
    return np.asarray(Image.fromarray(evidence).resize((width, height), Image.Resampling.BILINEAR))


def average_precision(scores: Float32[np.ndarray, "*pixels"], truths: Bool[np.ndarray, "*pixels"]) -> float:
    """Area under the precision-recall curve of scores for a mask: mean precision at each true pixel's score.

    Pixels of equal score count together. NaN for an empty mask.
    """
    values, places = np.unique(-scores.ravel(), return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    hits = np.bincount(places, weights=truths.ravel(), minlength=len(values))
    if not hits.sum():
        return float("nan")
    return float((hits * np.cumsum(hits) / np.cumsum(counts)).sum() / hits.sum())
