"""The images whose class is known, and whether embeddings of them are right: exact, with ties as in `argmax`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes

# Scores closer than this share of the largest may differ by float64's rounding alone.
_TIED = 1e-11
# Images that are classified at once.
_BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The images of a store whose class is known, the classes, and what all sweeps over them share."""

    store: Store
    images: Int64[np.ndarray, " image"]
    truths: Int64[np.ndarray, " image"]
    vectors: Float64[np.ndarray, "class joint"]
    # The largest distance of each vector from another.
    reach: Float64[np.ndarray, " class"]

    @classmethod
    def of(cls, store: Store, classes: Classes, truths: np.ndarray) -> Judged:
        """The images of `store` whose truth is not -1; those that failed are left out.

        Raises SettingsError if there are none, if there are fewer than two classes, or if sizes do not fit.
        """
        truths, vectors = np.asarray(truths), np.asarray(classes.vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) < 2 or vectors.shape[1] != store.joint:
            raise SettingsError(
                f"class vectors of shape {vectors.shape}: give those of at least two classes, [class, {store.joint}]"
            )
        if truths.shape != (store.images,) or truths.dtype.kind not in "iu":
            raise SettingsError(
                f"truths of shape {truths.shape} and type {truths.dtype}: give a class number for each of the "
                f"{store.images} images that the store shows, or -1"
            )
        if truths.min(initial=0) < -1 or truths.max(initial=0) >= len(vectors):
            raise SettingsError(
                f"truths from {truths.min()} to {truths.max()}: classes are numbered from 0 to {len(vectors) - 1}, and "
                "-1 stands for an image whose class is not known"
            )
        images = np.flatnonzero((truths >= 0) & np.isfinite(store.norm[:, 2])).astype(np.int64)
        if not len(images):
            raise SettingsError(f"{store.path}: no image has a known class; give the class of at least one")
        return cls(store, images, truths[images].astype(np.int64), vectors, _reach(vectors))

    def right(self, embeddings: Float[np.ndarray, "image joint"]) -> Bool[np.ndarray, " image"]:
        """Which of the images are right by these embeddings, of any length."""
        found = np.empty(len(self.images), bool)
        for first in range(0, len(found), _BLOCK_ROWS):
            here = slice(first, first + _BLOCK_ROWS)
            exact = embeddings[here].astype(np.float64)
            found[here] = rightly_named(exact, exact @ self.vectors.T, self.truths[here], self.vectors)
        return found


def rightly_named(
    embeddings: Float64[np.ndarray, "image joint"],
    scores: Float64[np.ndarray, "image class_"],
    truths: Int64[np.ndarray, " image"],
    vectors: Float64[np.ndarray, "class_ joint"],
) -> Bool[np.ndarray, " image"]:
    """Whether each image's class is the first with the best score.

    Products of matrices may give equal vectors scores that differ in the last bit. So the scores of classes that are
    nearly tied are computed again, one by one.
    """
    best = scores.max(axis=1, keepdims=True)
    near = scores >= best - _TIED * np.abs(scores).max(axis=1, keepdims=True)
    named = scores.argmax(axis=1)
    tied = np.flatnonzero(near.sum(axis=1) > 1)
    if len(tied):
        image, class_ = np.nonzero(near[tied])
        again = np.einsum("nj,nj->n", embeddings[tied[image]], vectors[class_])
        starts = np.searchsorted(image, np.arange(len(tied)))
        top = np.maximum.reduceat(again, starts)[image]
        first = np.minimum.reduceat(np.where(again == top, class_, len(vectors)), starts)
        named[tied] = first
    return named == truths


def _reach(vectors: Float64[np.ndarray, "class_ joint"]) -> Float64[np.ndarray, " class_"]:
    """The largest distance of each vector from another."""
    squares = np.vecdot(vectors, vectors)
    found = np.empty(len(vectors))
    for first in range(0, len(vectors), _BLOCK_ROWS):
        here = slice(first, first + _BLOCK_ROWS)
        found[here] = (squares - 2 * vectors[here] @ vectors.T).max(axis=1)
    # A square may be too small by its rounding.
    reach: Float64[np.ndarray, " class_"] = np.sqrt(np.maximum(found + squares, 0) + 1e-14 * squares.max())
    return reach
