"""The five analyses of CLIP-InterpreT and the map of a text in float64, from dense contributions in joint space.

They are written from the definitions (Madasu et al., arXiv 2409.06579; Gandelsman, Efros, Steinhardt, ICLR 2024) and
import nothing of headspan: no head coordinates, no folded matrices, no stored numbers. Contributions are those of the
oracle, divided by the embedding's length, in the convention `uniform`; vectors of texts have length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from tests.oracle import Contributions

Head = tuple[int, int]
Vector = Float64[np.ndarray, " joint"]
Map = Float64[np.ndarray, "rows columns"]


def through_heads(image: Contributions, heads: Sequence[Head]) -> Vector:
    """The mean of an image's contributions through `heads`."""
    return np.mean([image.heads[layer, head] for layer, head in heads], axis=0)


def property_similarities(
    images: Sequence[Contributions], query: int, heads: Sequence[Head]
) -> Float64[np.ndarray, " images"]:
    """Analysis 1: the dot product of every image's mean contribution through a property's heads with the query's."""
    wanted = through_heads(images[query], heads)
    return np.array([wanted @ through_heads(each, heads) for each in images])


def image_similarities(images: Sequence[Contributions], query: int, head: Head) -> Float64[np.ndarray, " images"]:
    """Analysis 4: the dot product of every image's contribution through one head with the query's."""
    layer, number = head
    return np.array([images[query].heads[layer, number] @ each.heads[layer, number] for each in images])


def text_similarities(images: Sequence[Contributions], text: Vector, head: Head) -> Float64[np.ndarray, " images"]:
    """Analysis 5: the dot product of the unit text with every image's contribution through one head."""
    layer, number = head
    return np.array([text @ each.heads[layer, number] for each in images])


def text_map(image: Contributions, text: Vector, heads: Sequence[Head], shape: tuple[int, int]) -> Map:
    """Analysis 2: each patch's contribution, summed over `heads`, times the unit text; the first token is no patch."""
    rows, columns = shape
    found = np.zeros(shape)
    for row in range(rows):
        for column in range(columns):
            token = 1 + row * columns + column
            found[row, column] = sum(image.patches[layer, head, token] @ text for layer, head in heads)
    return found


def contrast_map(
    image: Contributions,
    first: Vector,
    second: Vector,
    heads: Sequence[Head],
    shape: tuple[int, int],
    centred: bool = False,
) -> Map:
    """Analysis 3: the map of the first text minus the map of the second; `centred`, minus the mean of that."""
    found = text_map(image, first, heads, shape) - text_map(image, second, heads, shape)
    return found - found.sum() / found.size if centred else found


def enlarged(found: Map, height: int, width: int) -> Float64[np.ndarray, "height width"]:
    """The map at `height` × `width` pixels, linear between the centres of patches and constant beyond the outermost."""
    rows, columns = found.shape
    pixels = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            down = min(max((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
            right = min(max((x + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
            top, left = min(int(down), rows - 2), min(int(right), columns - 2)
            below, beside = down - top, right - left
            pixels[y, x] = (
                (1 - below) * (1 - beside) * found[top, left]
                + (1 - below) * beside * found[top, left + 1]
                + below * (1 - beside) * found[top + 1, left]
                + below * beside * found[top + 1, left + 1]
            )
    return pixels
