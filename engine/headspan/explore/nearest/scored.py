"""What images are scored by: their mean contribution through some heads, or their whole unit embedding.

Both give the scores of all images in float32, with a bound of their rounding; exact scores of a few images in float64;
and coordinates along principal axes of the joint space, which `sketch` keeps in 8 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.decompose.formula import mean_and_bias_terms
from headspan.explore.nearest.similarities import similarities
from headspan.store.conversion import as_float32
from headspan.store.head_products import directions_along
from headspan.store.head_space import Head
from headspan.store.mapped import UnmappableError
from headspan.store.products import over_spans
from headspan.store.reader import Store

# Rows that the axes are found from, in spans of neighbours.
_SAMPLE, _SPAN = 4096, 256
# The rounding of a float32 score, relative to the largest sum of the absolute products of a sampled image. A score is
# a sum of some thousand products, which float32 rounds by 2⁻²⁴ each.
_ROUNDING, _ROUNDED = 2.0**-17, 128
_BLOCK_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Axes:
    """Principal axes of the vectors whose products with a query are the scores, those of the largest sizes first."""

    # Orthonormal rows. A query's weights are `directions @ query`.
    directions: Float64[np.ndarray, "axis joint"]
    # `(coordinates - centre) @ to_axes` are an image's coordinates along the axes.
    to_axes: Float64[np.ndarray, "coordinate axis"]
    centre: Float32[np.ndarray, " coordinate"]
    # The score of the centre is the query's product with this vector.
    centre_vector: Float64[np.ndarray, " joint"]
    # Along each axis: the variance, and the mean square, which includes the mean.
    variance: Float64[np.ndarray, " axis"]
    square: Float64[np.ndarray, " axis"]


class Scored(ABC):
    """Numbers of all images that queries in joint space are scored by."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """The bytes that `scores` reads."""

    @abstractmethod
    def scores(self, query: Float32[np.ndarray, " joint"]) -> Float32[np.ndarray, " images"]:
        """The score of every image, NaN for images that failed."""

    @abstractmethod
    def exact(
        self, query: Float32[np.ndarray, " joint"], images: Int[np.ndarray, " some"]
    ) -> Float64[np.ndarray, " some"]:
        """The scores of some images, with sums in float64."""

    @abstractmethod
    def rounding(self, query: Float32[np.ndarray, " joint"]) -> float:
        """A bound of the difference between `scores` and `exact`."""


class Sketchable(Scored):
    """Scores that are products of a query with a vector of each image, of which `sketch` can keep the largest part."""

    @property
    @abstractmethod
    def of(self) -> Hashable:
        """What tells these numbers from others of the store."""

    @property
    @abstractmethod
    def coordinates(self) -> int:
        """How many numbers each image has."""

    @abstractmethod
    def block(self, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
        """The coordinates of rows of the store, NaN for images that are not shown."""

    @property
    @abstractmethod
    def directions(self) -> Float64[np.ndarray, "coordinate joint"]:
        """A score is the product of a query and `block @ directions`."""

    def axes(self, rows: int) -> Axes:
        """The principal axes of a sample of a store of so many rows."""
        sample = self.sample(rows).astype(np.float64)
        centre = sample.mean(axis=0).astype(np.float32) if len(sample) else np.zeros(sample.shape[1], np.float32)
        directions = self.directions
        if len(directions) < directions.shape[1]:
            # All vectors are in the span of the directions.
            left, lengths, basis = np.linalg.svd(directions, full_matrices=False)
            to_basis = left * lengths
        else:
            to_basis, basis = directions, np.eye(directions.shape[1])
        along = sample @ to_basis
        # Of mean squares, so that the mean, which is a part of every image's query, lies along the first axes.
        square, turn = np.linalg.eigh(along.T @ along / max(1, len(along)))
        square, turn = np.maximum(square[::-1], 0), turn[:, ::-1]
        variance = (((sample - centre) @ to_basis @ turn) ** 2).sum(axis=0) / max(1, len(sample))
        centre_vector = centre.astype(np.float64) @ directions
        return Axes(turn.T @ basis, to_basis @ turn, centre, centre_vector, variance, square)

    def sample(self, rows: int) -> Float32[np.ndarray, "some coordinate"]:
        """Coordinates of some thousand rows, in evenly spaced spans of neighbours."""
        span = min(rows, _SPAN)
        starts = np.unique(np.linspace(0, rows - span, -(-min(rows, _SAMPLE) // span)).astype(np.int64)).tolist()
        with np.errstate(invalid="ignore", over="ignore"):
            found = np.concatenate([self.block(start, start + span) for start in starts])
        return found[np.isfinite(found).all(axis=1)]


class ScoredHeads(Sketchable):
    """The mean contribution of every image through `heads`, divided by `‖embedding‖`."""

    def __init__(self, store: Store, heads: Sequence[Head]) -> None:
        self._store, self._heads = store, list(heads)
        # The last query and its products with the heads' directions.
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._index = [store.contents.layer_index(layer, head) for layer, head in heads]

    @property
    def bytes(self) -> int:
        return self._store.planned_images * len(self._heads) * self._store.head_dim * 2

    def scores(self, query: Float32[np.ndarray, " joint"]) -> Float32[np.ndarray, " images"]:
        return similarities(self._store, query[None], self._heads)[0]

    def exact(
        self, query: Float32[np.ndarray, " joint"], images: Int[np.ndarray, " some"]
    ) -> Float64[np.ndarray, " some"]:
        return self._sums(images, self._along(query), np.positive)

    def rounding(self, query: Float32[np.ndarray, " joint"]) -> float:
        return _rounding_of(self._sums(_sample(self._store, _ROUNDED), self._along(query), np.abs))

    @property
    def of(self) -> Hashable:
        return frozenset(self._heads)

    @property
    def coordinates(self) -> int:
        return len(self._heads) * self._store.head_dim + len(self._store.mean_and_bias)

    @cached_property
    def directions(self) -> Float64[np.ndarray, "coordinate joint"]:
        """The directions of the heads' outputs, head by head, then those of the three terms, which all heads share."""
        every = np.stack([self._store.head_directions(*head) for head in self._heads]).astype(np.float64)
        every /= len(self._heads)
        own = every[:, : self._store.head_dim].reshape(-1, every.shape[2])
        return np.concatenate([own, every[:, self._store.head_dim :].sum(axis=0)])

    def block(self, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
        """The normalised coordinates of the heads, head by head, then the three terms."""
        terms, size = self._store.mean_and_bias[:, first_row:end], self._store.head_dim
        found = np.empty((end - first_row, len(self._heads) * size + len(terms)), np.float32)
        for place, (index, (_, head)) in enumerate(zip(self._index, self._heads, strict=True)):
            own = as_float32(self._store.contents.block("heads", first_row, end, index, head))
            np.multiply(own, terms[0][:, None], out=found[:, place * size : (place + 1) * size])
        found[:, -len(terms) :] = terms.T
        return found

    def _along(self, query: Float32[np.ndarray, " joint"]) -> Float64[np.ndarray, "head coordinate"]:
        if self._last is None or self._last[0] is not query:
            self._last = query, directions_along(self._store, self._heads, query.astype(np.float64)) / len(self._heads)
        return self._last[1]

    def _sums(
        self,
        images: Int[np.ndarray, " some"],
        along: Float64[np.ndarray, "head coordinate"],
        of: Callable[[np.ndarray], np.ndarray],
    ) -> Float64[np.ndarray, " some"]:
        """The sums of the products of coordinates and `along`, or of another function of both."""
        terms = mean_and_bias_terms(self._store.norm[images].astype(np.float64), normalised=True)
        own = self._own(self._store.rows[images]).astype(np.float64)
        sums = np.einsum("ihd,hd->i", of(own), of(along[:, : own.shape[2]])) * terms[:, 0]
        # Not `@`, whose sums depend on where in `images` an image is.
        return sums + np.einsum("it,t->i", of(terms), of(along[:, own.shape[2] :]).sum(axis=0))

    def _own(self, rows: Int[np.ndarray, " some"]) -> Float32[np.ndarray, "some head head_dim"]:
        """The heads' outputs in some rows of the store."""
        contents, heads = self._store.contents, [head for _, head in self._heads]
        own = np.empty((len(rows), len(heads), self._store.head_dim), np.float32)
        try:
            maps = contents.maps("heads")
            if maps.apart != maps.spec.shape[1:3]:
                raise UnmappableError
            maps.take(rows, np.ravel_multi_index((self._index, heads), maps.apart), own)
        except UnmappableError:
            layers, numbers = np.unique(self._index), np.unique(heads)
            places = np.searchsorted(layers, self._index), np.searchsorted(numbers, heads)
            own[:] = contents.outer("heads", rows, layers, numbers, np.arange(self._store.head_dim))[:, *places]
        return own


class ScoredEmbedding(Sketchable):
    """Every image's unit embedding: scores of unit queries are cosines."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def bytes(self) -> int:
        return self._store.planned_images * self._store.joint * 4

    def scores(self, query: Float32[np.ndarray, " joint"]) -> Float32[np.ndarray, " images"]:
        store, query = self._store, query.astype(np.float32)
        found = np.empty(store.planned_images, np.float32)
        chunk_rows = store.contents.specs["embedding"].chunk[0]

        def multiply(first_row: int, end: int) -> None:
            try:
                for chunk in store.contents.maps("embedding").chunks((), first_row, end):
                    rows = chunk.reshape(len(chunk), -1)[: end - first_row]
                    np.matmul(rows, query, out=found[first_row : first_row + len(rows)])
                    first_row += len(rows)
            except UnmappableError:
                for begin in range(first_row, end, _BLOCK_ROWS):
                    stop = min(begin + _BLOCK_ROWS, end)
                    np.matmul(store.contents.block("embedding", begin, stop), query, out=found[begin:stop])

        over_spans(len(found), chunk_rows, multiply)
        # NaN for rows that are not shown.
        found *= store.mean_and_bias[-1]
        return found if store.images == store.planned_images else found[store.rows]

    def exact(
        self, query: Float32[np.ndarray, " joint"], images: Int[np.ndarray, " some"]
    ) -> Float64[np.ndarray, " some"]:
        # Not `@`, as above.
        return np.einsum("ij,j->i", self._unit(images), query.astype(np.float64))

    def rounding(self, query: Float32[np.ndarray, " joint"]) -> float:
        return _rounding_of(np.abs(self._unit(_sample(self._store, _ROUNDED))) @ np.abs(query))

    @property
    def of(self) -> Hashable:
        return None

    @property
    def coordinates(self) -> int:
        return self._store.joint

    @property
    def directions(self) -> Float64[np.ndarray, "coordinate joint"]:
        return np.eye(self._store.joint)

    def block(self, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
        """The unit embeddings."""
        found = self._store.contents.block("embedding", first_row, end)
        return found * self._store.mean_and_bias[-1, first_row:end, None]

    def _unit(self, images: Int[np.ndarray, " some"]) -> Float64[np.ndarray, "some joint"]:
        contents, rows = self._store.contents, self._store.rows[images]
        found = np.empty((len(rows), 1, self._store.joint), np.float32)
        try:
            contents.maps("embedding").take(rows, np.zeros(1, np.int64), found)
        except UnmappableError:
            found = contents.outer("embedding", rows, np.arange(self._store.joint))
        return found.reshape(len(rows), self._store.joint) / self._store.norm[images, 2:].astype(np.float64)


def _rounding_of(products: Float64[np.ndarray, " image"]) -> float:
    """The bound of the rounding of a score, from the sums of the absolute products of a sample."""
    products = products[np.isfinite(products)]
    return _ROUNDING * float(products.max(initial=0))


def _sample(store: Store, count: int) -> Int[np.ndarray, " some"]:
    """At most `count` images, evenly spaced."""
    return np.unique(np.linspace(0, max(0, store.images - 1), min(count, store.images)).astype(np.int64))
