"""How much each head matters: its shares of the unit embeddings' variance and squared length.

Both follow from the moments of the heads' coordinates and of the embeddings, so they cost nothing that grows with the
number of images. The covariance share does not: it needs a pass over the heads' numbers. Contributions follow the
published convention (`uniform`) and are divided by `‖embedding‖`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from headspan.config import as_ranges
from headspan.decompose.formula import head_coordinates, head_directions, mlp_contributions
from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.store.contents import Contents
from headspan.store.moments_file import EmbeddingMoments, MergedMoments
from headspan.store.selected_moments import unit_embeddings

# Images that are read at once: the rows of an inner chunk of `heads`, so that no chunk is read twice.
_BLOCK_ROWS = 4096
# The most bytes of the contributions of the initial state and the MLPs that are in memory at once.
_TERMS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Magnitudes(Tabular):
    """The magnitude of every stored head, over `images` images, as shares of what the unit embeddings have.

    * `variance_share` is `tr Σ_h / tr Σ_e`, the variance of a head's contributions against that of the embeddings.
      Contributions correlate, so a share may exceed 1, and the shares of all heads need not sum to 1. NaN if the
      embeddings do not vary, as those of a single image.
    * `squared_length_share` is `E‖c_h‖² / E‖e‖²`. It may exceed 1 too. It includes the mean contribution, which is the
      same for every image.
    * `covariance_share` is `tr Cov(c_h, e) / tr Σ_e`. It may be negative, and sums to 1 over all components: the heads
      of all layers, and the initial state and the MLPs in `term_covariance_share`, which is None if the store does not
      hold `mlps`. Convention `uniform` divides the biases among these. None unless it was asked for.
    """

    layers: tuple[int, ...]
    images: int
    variance_share: Float64[np.ndarray, "layer head"]
    squared_length_share: Float64[np.ndarray, "layer head"]
    covariance_share: Float64[np.ndarray, "layer head"] | None = None
    term_covariance_share: Float64[np.ndarray, " term"] | None = None

    def __repr__(self) -> str:
        heads, images = counted(self.variance_share.size, "head"), counted(self.images, "image")
        return f"Magnitudes({heads} of layers {as_ranges(self.layers)}, {images})"

    def of(self, layer: int, head: int) -> tuple[float, float]:
        """Return variance share and squared-length share of one head. Raises SettingsError if it is not stored."""
        heads = self.variance_share.shape[1]
        if layer not in self.layers or not 0 <= head < heads:
            raise SettingsError(
                f"magnitudes: head {head} of layer {layer} is not stored; stored are layers {as_ranges(self.layers)} "
                f"with heads 0 to {heads - 1}"
            )
        place = self.layers.index(layer), head
        return float(self.variance_share[place]), float(self.squared_length_share[place])

    def by_layer(self) -> dict[int, tuple[float, float]]:
        """Return the sums of both shares over the heads of each layer, by layer.

        They are not the shares of the sum of a layer's heads, whose contributions correlate.
        """
        sums = zip(self.variance_share.sum(axis=1), self.squared_length_share.sum(axis=1), strict=True)
        return {layer: (float(one), float(other)) for layer, (one, other) in zip(self.layers, sums, strict=True)}

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        heads = self.variance_share.shape[1]
        columns: dict[str, Sequence[Any]] = {
            "layer": [layer for layer in self.layers for _ in range(heads)],
            "head": [*range(heads)] * len(self.layers),
        }
        for name in ("variance_share", "squared_length_share", "covariance_share"):
            if (shares := getattr(self, name)) is not None:
                columns[name] = shares.reshape(-1).tolist()
        return columns


def magnitudes_of(
    contents: Contents,
    moments: MergedMoments,
    embedding: EmbeddingMoments,
    with_covariance: bool,
    rows: Int64[np.ndarray, " row"],
) -> Magnitudes:
    """Return the magnitude of every stored head; see `Store.magnitudes`. The moments are of the images in `rows`."""
    size, count = contents.size, moments.count
    lengths, variances = np.empty((2, len(size.layers), size.heads))
    for place in np.ndindex(*lengths.shape):
        directions = _directions(contents, *place)
        # `E‖z D‖² = tr(E[zᵀ z] D Dᵀ)`, and the same with the covariance of the coordinates z.
        metric, mean = directions @ directions.T, moments.total[place] / count
        second = moments.gram[place] / count
        lengths[place] = (second * metric).sum()
        # Rounding may make the variance of a constant contribution negative.
        variances[place] = max(0.0, ((second - np.outer(mean, mean)) * metric).sum())
    variance = embedding.variance or np.nan
    heads = terms = None
    if with_covariance:
        heads, terms = component_covariances(contents, moments, embedding, rows)
        heads, terms = heads / variance, None if terms is None else terms / variance
    return Magnitudes(size.layers, count, variances / variance, lengths / embedding.squared_length, heads, terms)


def component_covariances(
    contents: Contents,
    moments: MergedMoments,
    embedding: EmbeddingMoments,
    images: Int64[np.ndarray, " row"],
    along: Float64[np.ndarray, "direction joint"] | None = None,
) -> tuple[Float64[np.ndarray, "layer head"], Float64[np.ndarray, " term"] | None]:
    """Return `tr Cov(c, e)` of every head, and of every other term if the store holds them, by a pass over the rows.

    With `along`, whose rows are directions `t`, return the sum of `t · Cov(c, e) · t` over them instead.
    """
    size = contents.size
    layers, heads = len(size.layers), size.heads
    columns = size.joint if along is None else len(along)
    means, mean_embedding = moments.total / moments.count, embedding.total / embedding.count
    # Sums of `(z − E z)ᵀ (e − E e)`, which the directions turn into the covariance.
    crossed = np.zeros((layers, heads * means.shape[-1], columns))
    terms = np.zeros(size.terms) if "mlps" in contents.specs or not size.terms else None
    count = 0
    for rows in _blocks(contents, images):
        unit, norm = unit_embeddings(contents, rows)
        centred = unit - mean_embedding
        part = centred if along is None else centred @ along.T
        part = part.astype(np.float32)
        count += len(rows)
        for place in range(layers):
            outputs = _outer(contents, "heads", rows, [place])[:, 0]
            spread = np.broadcast_to(norm[:, None], (len(rows), heads, norm.shape[1]))
            coordinates = head_coordinates(outputs, spread, normalised=True) - means[place].astype(np.float32)
            crossed[place] += coordinates.reshape(len(rows), -1).T @ part
        if terms is not None and size.terms:
            inside = part if along is None else part @ along.astype(np.float32)
            terms += _term_covariances(contents, rows, norm, inside)
    crossed = crossed.reshape(layers, heads, -1, columns)
    found = np.empty((layers, heads))
    for at in np.ndindex(layers, heads):
        directions = _directions(contents, *at)
        found[at] = (crossed[at] * (directions if along is None else directions @ along.T)).sum() / count
    return found, None if terms is None else terms / count


def _term_covariances(
    contents: Contents,
    rows: Int64[np.ndarray, " row"],
    norm: Float32[np.ndarray, "row 3"],
    centred: Float32[np.ndarray, "row joint"],
) -> Float64[np.ndarray, " term"]:
    """Return the sums over `rows` of the inner products of every term's contribution with the centred embedding."""
    total = np.zeros(contents.size.terms)
    step = max(1, _TERMS_BYTES // (4 * contents.size.terms * contents.size.joint))
    for first in range(0, len(rows), step):
        here = slice(first, first + step)
        mlps, means = (_outer(contents, name, rows[here]) for name in ("mlps", "mlp_means"))
        added = mlp_contributions(mlps, means, norm[here], contents.folded, "uniform", True)
        total += np.einsum("itj,ij->it", added, centred[here]).sum(axis=0, dtype=np.float64)
    return total


def _directions(contents: Contents, index: int, head: int) -> Float64[np.ndarray, "coordinate joint"]:
    """Return the matrix from a head's coordinates to its contribution; `index` counts the stored layers."""
    size = contents.size
    layer = size.layers[index] - size.all_layers
    return head_directions(contents.folded, index, layer, head, "uniform").astype(np.float64)


def _blocks(contents: Contents, images: Int64[np.ndarray, " row"]) -> Iterator[Int64[np.ndarray, " row"]]:
    """Yield the rows of images, block by block."""
    borders = np.searchsorted(images, np.arange(_BLOCK_ROWS, contents.size.images, _BLOCK_ROWS))
    yield from (rows for rows in np.split(images, borders) if len(rows))


def _outer(
    contents: Contents, name: str, rows: Int64[np.ndarray, " row"], *first: Sequence[int]
) -> Float32[np.ndarray, "row *rest"]:
    """Return `rows` of an array as float32, at the places `first` of the first axes after the rows."""
    lengths = contents.specs[name].shape[1 + len(first) :]
    values = contents.outer(name, rows, *map(np.asarray, first), *map(np.arange, lengths))
    return values.astype(np.float32, copy=False)
