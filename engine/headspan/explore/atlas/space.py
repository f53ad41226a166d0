"""Coordinates of images whose distances are those of one head's contributions, or of the embeddings: an exact PCA.

The principal directions follow from moments: they are the eigenvectors of the covariance in joint space, not of a
head's own coordinates, whose axes are neither orthogonal nor of equal length there. Contributions are those of
convention `uniform`, divided by `‖embedding‖`; embeddings are unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError
from headspan.head_names import head_name
from headspan.store.head_space import Head
from headspan.store.moments_file import covariance_of
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store
from headspan.store.selected_moments import unit_embeddings
from headspan.store.selection import Selection

# Directions with less of the variance are the rounding of float64 sums.
_LEAST_SHARE = 2.0**-40


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Space:
    """Principal directions of a head's contributions, or of the unit embeddings, by falling variance."""

    store: Store
    # None for the embedding.
    head: Head | None
    # In the head's normalised coordinates, or in joint space.
    mean: Float64[np.ndarray, " coordinate"]
    # From centred coordinates to principal ones.
    matrix: Float64[np.ndarray, "coordinate dimension"]
    # The directions in joint space, orthonormal.
    directions: Float64[np.ndarray, "dimension joint"]
    # Share of the variance along each direction.
    shares: Float64[np.ndarray, " dimension"]

    @property
    def dimensions(self) -> int:
        """The length of the vectors that `vectors` returns."""
        return self.matrix.shape[self.head is not None]

    def plane(self, rows: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, "row 2"]:
        """The first two principal coordinates of usable images, given by their rows; 0 where there is only one."""
        found = np.zeros((len(rows), 2))
        matrix = self.matrix[:, :2]
        found[:, : matrix.shape[1]] = self._centred(rows) @ matrix
        return found

    def vectors(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dimension"]:
        """Centred vectors of usable images, given by their rows, with the distances of contributions or embeddings."""
        centred = self._centred(rows)
        return (centred if self.head is None else centred @ self.matrix).astype(np.float32)

    def along(
        self, rows: Int64[np.ndarray, " row"], vectors: Float32[np.ndarray, "text joint"]
    ) -> Float64[np.ndarray, "row text"]:
        """Dot products of the centred contributions or embeddings with vectors of joint space."""
        return self._centred(rows) @ (self.matrix @ (self.directions @ vectors.T.astype(np.float64)))

    def _centred(self, rows: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, "row coordinate"]:
        contents = self.store.contents
        if self.head is None:
            return unit_embeddings(contents, rows)[0] - self.mean
        layer, head = self.head
        places = [np.array([contents.layer_index(layer)]), np.array([head]), np.arange(contents.size.head_dim)]
        outputs = picked_rows(contents, "heads", rows, places, np.dtype(np.float32))[:, 0, 0]
        norm = picked_rows(contents, "norm", rows, [np.arange(3)], np.dtype(np.float32))
        return head_coordinates(outputs.astype(np.float64), norm.astype(np.float64), normalised=True) - self.mean


def principal_space(store: Store, head: Head | None, selection: Selection | None = None) -> Space:
    """The space of a head, or with None of the embeddings, over all usable images or a selection.

    Raises SettingsError if the head is not stored, or if it does not vary over the images.
    """
    if head is None:
        embedding = store.embedding_moments(selection)
        count, total, gram = embedding.count, embedding.total, embedding.gram
        # The embeddings are in joint space as they are.
        triangle, orthonormal = np.eye(store.joint), np.eye(store.joint)
    else:
        index = store.contents.layer_index(*head)
        moments = store.moments(selection)
        count, total, gram = moments.count, moments.total[index, head[1]], moments.gram[index, head[1]]
        orthonormal, triangle = np.linalg.qr(store.head_directions(*head).T.astype(np.float64))
    mean = total / count
    covariance = triangle @ covariance_of(total, gram, count) @ triangle.T
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    # The mean square of what is centred; below the rounding of its sums there is no variance.
    square = float(np.trace(triangle @ (gram / count) @ triangle.T))
    kept = (variances > _LEAST_SHARE * square) & (variances > _LEAST_SHARE * max(variances[0], 0))
    if count < 2 or not kept.any():
        what = "the embeddings do" if head is None else f"{head_name(*head)} does"
        raise SettingsError(f"{store.path}: {what} not vary over {count:,} of its images, so there is no map of them")
    vectors = vectors[:, kept]
    # Signs of eigenvectors are arbitrary: the largest entry in joint space is positive.
    directions = (orthonormal @ vectors).T
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    return Space(
        store,
        head,
        mean,
        triangle.T @ vectors * signs,
        directions * signs[:, None],
        variances[kept] / np.trace(covariance),
    )
