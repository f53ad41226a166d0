"""Margins of a block of images after the mean ablation of one head, in float32, with a bound on their error.

An image's margin is the score of its class minus the best score of the others. Without a head, the scores of classes a
and b move apart by at most `‖c‖ ‖v_a − v_b‖` (Cauchy and Schwarz), where c is the deviation of the head's contribution
from its mean. So if the best of the other classes leads the eighth by more, the new best is among the first seven, and
only these are scored. Otherwise all classes are. Both ways give the same margin.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

# Classes, beside the image's own, that are scored if the bound allows it.
_LISTED = 7
# All classes are scored if there are fewer, which costs little, or if fewer of a block's images could leave some out.
_LEAST_CLASSES, _LEAST_SHARE = 64, 0.25
# Images of a product, whose scores stay in a core's cache.
_PRODUCT_ROWS = 128
# Half the distance from 1 to the next float32.
_ROUNDING = 2.0**-24


class HeadScores:
    """How one head moves the scores of all classes; `directions` and `vectors` are those of head and classes."""

    def __init__(
        self,
        mean: Float64[np.ndarray, " coordinate"],
        directions: Float64[np.ndarray, "coordinate joint"],
        vectors: Float64[np.ndarray, "class_ joint"],
    ) -> None:
        self.mean = mean.astype(np.float32)
        self.mean_length = 2 * float(np.linalg.norm(mean))
        moved = vectors @ directions.T
        # [class, coordinate], so that a class's numbers are neighbours.
        self.of_classes = moved.astype(np.float32)
        self.largest = float(np.linalg.norm(moved, axis=1).max())
        # A square root of the Gram matrix: the length of a contribution is that of its coordinates times the root.
        squares, axes = np.linalg.eigh(directions @ directions.T)
        roots = np.sqrt(np.maximum(squares, 0))
        self.root = (axes * roots).astype(np.float32)
        self.widest = float(roots.max())


class BlockMargins:
    """A block of images: their scores by all classes, and margins without heads."""

    def __init__(
        self,
        scores: Float64[np.ndarray, "image class_"],
        truths: Int64[np.ndarray, " image"],
        reach: Float64[np.ndarray, " class_"],
    ) -> None:
        """`reach` is the largest distance of each class's vector from another's. `scores` are overwritten."""
        self._scores, self._truths = scores.astype(np.float32), truths
        self._largest = np.abs(scores).max(axis=1)
        self.whole = margins(scores, truths)
        self._listed: Int64[np.ndarray, "image listed"] | None = None
        if scores.shape[1] >= _LEAST_CLASSES:
            self._list(scores, reach)
        self._products = np.empty((min(_PRODUCT_ROWS, len(truths)), scores.shape[1]), np.float32)

    def without(
        self, head: HeadScores, coordinates: Float32[np.ndarray, "image coordinate"]
    ) -> tuple[Float32[np.ndarray, " image"], Float64[np.ndarray, " image"]]:
        """The margins without a head, and how much each may be in error.

        `coordinates` are the deviations of the images' normalised coordinates from their mean.
        """
        lengths = np.sqrt(np.vecdot(coordinates, coordinates), dtype=np.float64) + head.mean_length
        # Coordinates have some six roundings, a sum of n products n, and the scores one each.
        roundings = coordinates.shape[1] + 12
        errors = 2.1 * _ROUNDING * (roundings * head.largest * lengths + 4 * self._largest)
        left = np.empty(len(coordinates), np.float32)
        few = self._few(head, coordinates, lengths * (2 * _ROUNDING * roundings * head.widest), errors)
        if few is None:
            self._score_all(head, coordinates, slice(None), left)
            return left, errors
        assert self._listed is not None
        chosen = np.flatnonzero(few)
        moved = head.of_classes.take(self._listed[chosen].reshape(-1), axis=0).reshape(len(chosen), _LISTED + 1, -1)
        scores = self._of_listed[chosen] - np.matmul(moved, coordinates[chosen][..., None])[..., 0]
        left[chosen] = scores[:, 0] - scores[:, 1:].max(axis=1)
        if len(chosen) < len(few):
            self._score_all(head, coordinates, np.flatnonzero(~few), left)
        return left, errors

    def _list(self, others: Float64[np.ndarray, "image class_"], reach: Float64[np.ndarray, " class_"]) -> None:
        """List each image's class and the best others, and by how much the first leads those that are left out."""
        best = np.argpartition(others, -_LISTED - 1, axis=1)[:, -_LISTED - 1 :]
        found = np.take_along_axis(others, best, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
        self._listed = np.concatenate([self._truths[:, None], best[:, :_LISTED]], axis=1)
        self._of_listed = np.take_along_axis(self._scores, self._listed, axis=1)
        self._lead = found[:, 0] - found[:, _LISTED]
        self._reach = reach[best[:, 0]] * (1 + 1e-5)

    def _few(
        self,
        head: HeadScores,
        coordinates: Float32[np.ndarray, "image coordinate"],
        rounding: Float64[np.ndarray, " image"],
        errors: Float64[np.ndarray, " image"],
    ) -> Bool[np.ndarray, " image"] | None:
        """The images whose listed classes are enough; None if all classes of all images are to be scored."""
        if self._listed is None:
            return None
        along = coordinates @ head.root
        length = np.sqrt(np.vecdot(along, along), dtype=np.float64)
        few: Bool[np.ndarray, " image"] = (length + rounding) * self._reach + errors < self._lead
        return few if few.sum() >= _LEAST_SHARE * len(few) else None

    def _score_all(
        self,
        head: HeadScores,
        coordinates: Float32[np.ndarray, "image coordinate"],
        images: slice | Int64[np.ndarray, " some"],
        left: Float32[np.ndarray, " image"],
    ) -> None:
        """Write the margins of some images to `left`."""
        coordinates, scores, truths = coordinates[images], self._scores[images], self._truths[images]
        found = np.empty(len(truths), np.float32)
        for first in range(0, len(found), _PRODUCT_ROWS):
            here = slice(first, first + _PRODUCT_ROWS)
            product = self._products[: len(truths[here])]
            np.matmul(coordinates[here], head.of_classes.T, out=product)
            np.subtract(scores[here], product, out=product)
            found[here] = margins(product, truths[here])
        left[images] = found


def margins(
    scores: Float[np.ndarray, "image class_"], truths: Int64[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """The score of each image's class minus the best score of the others; the former is overwritten in `scores`."""
    images = np.arange(len(scores))
    own = scores[images, truths]
    scores[images, truths] = -np.inf
    found: Float[np.ndarray, " image"] = own - scores.max(axis=1)
    return found
