"""Coordinates of images whose distances are those of one head's contributions, or of the embeddings: an exact PCA.

The principal directions follow from moments: they are the eigenvectors of the covariance in joint space, not of a
head's own coordinates, whose axes are neither orthogonal nor of equal length there. Contributions are those of
convention `uniform`, divided by `‖embedding‖`; embeddings are unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from headspan.decompose.formula import head_coordinates, mean_and_bias_terms
from headspan.errors import SettingsError
from headspan.explore.query.query_image import QueryImage, own_coordinates, unit_embedding
from headspan.head_names import head_name
from headspan.store.head_space import Head, coordinate_products
from headspan.store.moments_file import covariance_of
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store
from headspan.store.selected_moments import unit_embeddings
from headspan.store.selection import Selection

# Numbers that are multiplied at once. Reading a few rows of each shard takes as long as reading hundreds.
_BLOCK_NUMBERS = 2 << 20
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
        found[:, : matrix.shape[1]] = self._products(rows, matrix) - self.mean @ matrix
        return found

    def scores(
        self, rows: Int64[np.ndarray, " row"], vector: Float32[np.ndarray, " joint"]
    ) -> Float64[np.ndarray, " row"]:
        """Dot products of the contributions or unit embeddings, which are not centred, with a vector of joint space."""
        factors = vector.astype(np.float64)
        if self.head is not None:
            factors = self.store.head_directions(*self.head).astype(np.float64) @ factors
        return self._products(rows, factors[:, None])[:, 0]

    def place(self, query: QueryImage) -> Float64[np.ndarray, " 2"]:
        """The first two principal coordinates of one image, in the store or not; 0 where there is only one."""
        coordinates = unit_embedding(query) if self.head is None else own_coordinates(self.store, query, *self.head)
        found = np.zeros(2)
        matrix = self.matrix[:, :2]
        found[: matrix.shape[1]] = (coordinates - self.mean) @ matrix
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
        if self.head is None:
            return unit_embeddings(self.store.contents, rows)[0] - self.mean
        outputs, norm = self._stored(rows)
        return head_coordinates(outputs.astype(np.float64), norm.astype(np.float64), normalised=True) - self.mean

    def _products(
        self, rows: Int64[np.ndarray, " row"], factors: Float64[np.ndarray, "coordinate some"]
    ) -> Float64[np.ndarray, "row some"]:
        """Products of coordinates that are not centred, multiplied as float32, which is as exact as they are stored."""
        if self.head is not None and len(rows) == self.store.images and np.array_equal(rows, self.store.rows):
            # In one pass at the speed of memory.
            return coordinate_products(self.store, [self.head], [factors]).T.astype(np.float64)
        found, single = np.empty((len(rows), factors.shape[1])), factors.astype(np.float32)
        at_once = max(1, _BLOCK_NUMBERS // len(single))
        for first in range(0, len(rows), at_once):
            here = slice(first, first + at_once)
            numbers, norm = self._stored(rows[here])
            if self.head is None:
                found[here] = (numbers @ single) / norm[:, 2:]
            else:
                # The products of `head_coordinates`, which need not be formed.
                terms = mean_and_bias_terms(norm, normalised=True)
                found[here] = (numbers @ single[: numbers.shape[1]]) * terms[:, :1] + terms @ single[numbers.shape[1] :]
        return found

    def _stored(
        self, rows: Int64[np.ndarray, " row"]
    ) -> tuple[Float32[np.ndarray, "row number"], Float32[np.ndarray, "row 3"]]:
        """The head's outputs, or the embeddings, and `norm` of usable images."""
        contents, single = self.store.contents, np.dtype(np.float32)
        norm = picked_rows(contents, "norm", rows, [np.arange(3)], single)
        if self.head is None:
            return picked_rows(contents, "embedding", rows, [np.arange(contents.size.joint)], single), norm
        layer, head = self.head
        places = [np.array([contents.layer_index(layer)]), np.array([head]), np.arange(contents.size.head_dim)]
        return picked_rows(contents, "heads", rows, places, single)[:, 0, 0], norm


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
