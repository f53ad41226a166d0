"""The vector of each class that texts are multiplied with to get their reward.

The mean of a text's cosines with images is its product with the mean of their unit embeddings. The same holds for what
heads contribute. So a class needs a single vector, however many images it has.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.rewards.target import Target
from headspan.errors import SettingsError
from headspan.features.pairs.image_vectors import embeddings
from headspan.store.reader import Store
from headspan.store.selection import selection_of


def class_vectors(store: Store, classes: DescribedClasses, target: Target) -> Float64[np.ndarray, "class joint"]:
    """The mean unit embedding of every class, or the mean of what the target's heads contribute to its images.

    With `target.contrast`, the mean of the other classes' vectors is subtracted from each. The logit scale is left out.
    Raises SettingsError if there is only one class to contrast, and the errors of `Store.contents.layer_index` for
    heads that are not stored.
    """
    if target.contrast and len(classes.names) < 2:
        raise SettingsError(
            f"{store.path}: there is only the class {classes.names[0]!r}, so no others to compare it with; describe "
            "at least two classes, or leave out the contrast"
        )
    for layer, head in target.heads:
        store.contents.layer_index(layer, head)
    found = np.stack([_vector(store, classes, number, target) for number in range(len(classes.names))])
    if target.contrast:
        others = (found.sum(axis=0) - found) / (len(found) - 1)
        found = found - others
    return found


def _vector(store: Store, classes: DescribedClasses, number: int, target: Target) -> Float64[np.ndarray, " joint"]:
    images = classes.images(number, target.images)
    if not target.heads:
        vectors = embeddings(store, selection_of(store, images).rows).astype(np.float64)
        mean: Float64[np.ndarray, " joint"] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
        return mean
    moments = store.moments(images)
    total = np.zeros(store.joint)
    for layer, head in target.heads:
        coordinates = moments.total[store.layers.index(layer), head] / moments.count
        total += coordinates @ store.head_directions(layer, head).astype(np.float64)
    return total
