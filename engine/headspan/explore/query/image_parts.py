"""What every component of an image's embedding adds to its cosine with a text.

The parts sum to the cosine. One part, the rest, is what the store does not hold: layers, MLPs, and what rounding to 16
bits has changed. Contributions follow the published convention (`uniform`), in which biases are divided among the
components, and are divided by `‖embedding‖`. Sums are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from headspan.config import as_ranges
from headspan.decompose.formula import mlp_contributions
from headspan.explore.query.query_image import QueryImage, all_coordinates, unit_embedding
from headspan.head_names import Head
from headspan.store.head_products import directions_along
from headspan.store.head_space import stored_heads
from headspan.store.kept_means import embedding_mean, head_means, term_means
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class ImageParts:
    """The parts of one image's cosine with a text, each beside its mean over the store's images, NaN if it has none."""

    cosine: float
    mean_cosine: float
    heads: tuple[Head, ...]
    of_heads: Float64[np.ndarray, " head"]
    means_of_heads: Float64[np.ndarray, " head"]
    # The names of the initial state and the MLPs, with the layers of these; empty if their contributions are not
    # known. Their means are over some of the images, see `store.kept_means.term_means`.
    terms: tuple[tuple[str, int | None], ...]
    of_terms: Float64[np.ndarray, " term"]
    means_of_terms: Float64[np.ndarray, " term"]
    # What the rest is.
    rest_name: str

    @property
    def rest(self) -> float:
        """What all other components add, and what rounding has changed."""
        return self.cosine - float(self.of_heads.sum() + self.of_terms.sum())

    @property
    def mean_rest(self) -> float:
        """The mean of the rest over the store's images."""
        return self.mean_cosine - float(self.means_of_heads.sum() + self.means_of_terms.sum())


def image_parts(store: Store, query: QueryImage, vector: Float32[np.ndarray, " joint"]) -> ImageParts:
    """The parts of the cosine of an image and a unit vector, as far as the store holds them.

    MLPs are known for stored images of stores that hold `mlps`.
    """
    text = vector.astype(np.float64)
    text /= np.linalg.norm(text)
    heads = stored_heads(store)
    along = directions_along(store, heads, text)
    of_terms = means_of_terms = np.zeros(0)
    known = query.image is not None and "mlps" in store.contents.specs
    if known:
        of_terms, means_of_terms = _terms(store, query) @ text, term_means(store) @ text
    means_of_heads, mean_cosine = np.full(len(heads), np.nan), np.nan
    if store.images:
        means_of_heads = np.einsum("hc,hc->h", np.stack(head_means(store, heads)), along)
        mean_cosine = float(embedding_mean(store) @ text)
    return ImageParts(
        cosine=float(unit_embedding(query) @ text),
        mean_cosine=mean_cosine,
        heads=tuple(heads),
        of_heads=np.einsum("hc,hc->h", all_coordinates(store, query), along),
        means_of_heads=means_of_heads,
        terms=_term_names(store) if known else (),
        of_terms=of_terms,
        means_of_terms=means_of_terms,
        rest_name=_rest_name(store, known),
    )


def _term_names(store: Store) -> tuple[tuple[str, int | None], ...]:
    """The names of the initial state and the MLPs with their layers, in the order of `store.mlps()`."""
    if store.direct_layers < store.all_layers:
        return (("MLP of the pooling", None),) * store.terms
    return (("initial state", None), *((f"MLP of layer {layer}", layer) for layer in range(store.all_layers)))


def _terms(store: Store, query: QueryImage) -> Float64[np.ndarray, "term joint"]:
    assert query.image is not None, "only stored images have terms"
    contents, row = store.contents, store.row_of(query.image)
    centred = contents.row("mlps", row, dtype=np.float32)[None]
    found = mlp_contributions(
        centred, contents.row("mlp_means", row)[None], query.norm[None], contents.folded, "uniform", normalised=True
    )
    return found[0].astype(np.float64)


def _rest_name(store: Store, terms_known: bool) -> str:
    first = store.all_layers - store.direct_layers
    missing = [layer for layer in range(first, store.all_layers) if layer not in store.layers]
    parts = []
    if missing:
        parts.append(
            f"attention of layers {as_ranges(missing)}" if len(missing) > 1 else f"attention of layer {missing[0]}"
        )
    if store.terms and not terms_known:
        parts.append("MLPs and initial state" if store.terms > 1 else "MLP of the pooling")
    return ", ".join(parts) or "rounding"
