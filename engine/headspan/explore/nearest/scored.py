"""What images are scored by: their mean contribution through some heads, or their whole unit embedding.

Both give the scores of all images in float32, with a bound of their rounding; exact scores of a few images in float64;
and coordinates along principal axes, which `sketch` keeps in 8 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.decompose.formula import mean_and_bias_terms
from headspan.explore.nearest.similarities import similarities
from headspan.store.conversion import as_float32
from headspan.store.head_space import Head
from headspan.store.mapped import UnmappableError
from headspan.store.products import over_spans
from headspan.store.reader import Store

# Images that tell how large the rounding of a score is, and the axes of the embeddings.
_SAMPLE = 4096
# The rounding of a float32 score, relative to the largest sum of the absolute products of a sampled image. A score is
# a sum of some thousand products, which float32 rounds by 2⁻²⁴ each.
_ROUNDING, _ROUNDED = 2.0**-17, 128
_BLOCK_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Axes:
    """The principal axes of some of the joint space, and how the numbers of images are mapped to them."""

    # Orthonormal rows. A query's weights are `directions @ query`.
    directions: Float64[np.ndarray, "axis joint"]
    # `(coordinates - centre) @ to_axes` are an image's coordinates along the axes.
    to_axes: Float64[np.ndarray, "coordinate axis"]
    centre: Float32[np.ndarray, " coordinate"]
    variance: Float64[np.ndarray, " axis"]


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

    @abstractmethod
    def axes(self) -> list[Axes]:
        """The axes of each part of the numbers; a score is the sum over the parts."""

    @abstractmethod
    def block(self, part: int, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
        """The coordinates of rows of the store, NaN for images that are not shown."""


class ScoredHeads(Scored):
    """The mean contribution of every image through `heads`, divided by `‖embedding‖`."""

    def __init__(self, store: Store, heads: Sequence[Head]) -> None:
        self._store, self._heads = store, list(heads)
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

    def axes(self) -> list[Axes]:
        """The principal axes of each head's contributions, divided by the number of heads."""
        moments = self._store.moments()
        mean, gram = moments.total / moments.count, moments.gram / moments.count
        found: list[Axes] = []
        for index, (_, head) in zip(self._index, self._heads, strict=True):
            directions = self._directions[len(found)].astype(np.float64) / len(self._heads)
            left, lengths, right = np.linalg.svd(directions, full_matrices=False)
            to_rows = left * lengths
            covariance = gram[index, head] - np.outer(mean[index, head], mean[index, head])
            variance, turn = np.linalg.eigh(to_rows.T @ covariance @ to_rows)
            found.append(_axes(turn.T @ right, to_rows @ turn, mean[index, head], variance))
        return found

    def block(self, part: int, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
        """The normalised coordinates of one head."""
        own = self._store.contents.block("heads", first_row, end, self._index[part], self._heads[part][1])
        terms = self._store.mean_and_bias[:, first_row:end]
        return np.concatenate([as_float32(own) * terms[0][:, None], terms.T], axis=1)

    @cached_property
    def _directions(self) -> list[Float32[np.ndarray, "coordinate joint"]]:
        return [self._store.head_directions(*head) for head in self._heads]

    def _along(self, query: Float32[np.ndarray, " joint"]) -> Float64[np.ndarray, "head coordinate"]:
        return np.stack([each.astype(np.float64) @ query for each in self._directions]) / len(self._heads)

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


class ScoredEmbedding(Scored):
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

    def axes(self) -> list[Axes]:
        """The principal axes of a sample of the embeddings."""
        sample = self._unit(_sample(self._store, _SAMPLE))
        sample = sample[np.isfinite(sample).all(axis=1)]
        mean = sample.mean(axis=0) if len(sample) else np.zeros(self._store.joint)
        variance, turn = np.linalg.eigh((sample - mean).T @ (sample - mean) / max(1, len(sample)))
        return [_axes(turn.T, turn, mean, variance)]

    def block(self, part: int, first_row: int, end: int) -> Float32[np.ndarray, "row coordinate"]:
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
        return found.reshape(len(rows), -1) / self._store.norm[images, 2:].astype(np.float64)


def _axes(directions: np.ndarray, to_axes: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> Axes:
    return Axes(directions, to_axes, mean.astype(np.float32), np.maximum(variance, 0))


def _rounding_of(products: Float64[np.ndarray, " image"]) -> float:
    """The bound of the rounding of a score, from the sums of the absolute products of a sample."""
    products = products[np.isfinite(products)]
    return _ROUNDING * float(products.max(initial=0))


def _sample(store: Store, count: int) -> Int[np.ndarray, " some"]:
    """At most `count` images, evenly spaced."""
    return np.unique(np.linspace(0, max(0, store.images - 1), min(count, store.images)).astype(np.int64))
