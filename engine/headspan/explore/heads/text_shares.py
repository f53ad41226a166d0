"""Which heads carry a text most: each head's share of the variance of the text's score.

The score of an image is the dot product of the unit text vector `t` with the unit embedding, and a head's part of it is
the dot product with the head's contribution. Both variances follow from stored moments: `t·Σ_h·t ÷ t·Σ_e·t`. The parts
of different heads correlate, so these shares need not sum to 1, and one may exceed it. The covariance shares
`t·Cov(c_h, e)·t ÷ t·Σ_e·t` sum to 1 over all components, and need one pass over the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Float32, Float64

from headspan.config import as_ranges
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import Listener, ignore
from headspan.explore.nearest.similarities import refuse_other_vectors
from headspan.frames import Tabular
from headspan.spans.result import place_of
from headspan.store.head_products import directions_along
from headspan.store.head_space import Head, stored_heads
from headspan.store.magnitudes import component_covariances, magnitudes_of
from headspan.store.moments_file import EmbeddingMoments, MergedMoments, variances_along
from headspan.store.reader import Store
from headspan.store.selection import Images, selection_of
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import EmbeddedPool, largest_pool
from headspan.texts.vectors import embed_pool, known_vectors, text_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A score varies if its variance is above the rounding of float32 embeddings of unit length.
_LEAST_VARIANCE = 1e-13
# The largest pool of a store that is open, and what texts over all images are compared with, so that only the first
# text waits for them.
_pools: WeakKeyDictionary[Store, EmbeddedPool] = WeakKeyDictionary()
_compared: WeakKeyDictionary[Store, _Compared] = WeakKeyDictionary()
# The most texts of a pool that a text is compared with: percentiles in steps of 0.2.
_POOL_TEXTS = 500


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """What every text over some images is compared with."""

    images: int
    # Shares of a pool's texts; None without a pool.
    drawn: Float64[np.ndarray, "text layer head"] | None
    # Variance shares, which random directions have in the mean.
    random: Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class TextShares(Tabular):
    """Every stored head's share of the variance of a text's score over `images` images.

    The arrays' first axis follows `layers`, which are the model's layer numbers; methods take these numbers.
    """

    # None if the query was a vector.
    text: str | None
    layers: tuple[int, ...]
    images: int
    # Mean and standard deviation of the score `t · e / ‖e‖`, a cosine.
    score_mean: float
    score_deviation: float
    # `t·Σ_h·t ÷ t·Σ_e·t`.
    share: Float64[np.ndarray, "layer head"]
    # The mean of the head's part of the score; its sign says whether the head speaks for the text or against it.
    mean: Float64[np.ndarray, "layer head"]
    # What random directions give: the mean of `u·Σ_h·u` over all unit vectors `u` divided by that of `u·Σ_e·u`, which
    # is `tr Σ_h ÷ tr Σ_e`.
    random: Float64[np.ndarray, "layer head"]
    # From 0 to 1: the share of `pool_texts` texts drawn from a pool that have a smaller share at this head. None if no
    # pool's vectors are known.
    percentile: Float64[np.ndarray, "layer head"] | None = None
    pool: str | None = None
    pool_texts: int = 0
    # `t·Cov(c, e)·t ÷ t·Σ_e·t`, also of the initial state and the MLPs if the store holds them. None unless asked for.
    covariance_share: Float64[np.ndarray, "layer head"] | None = None
    term_covariance_share: Float64[np.ndarray, " term"] | None = None

    def __repr__(self) -> str:
        name = "a vector" if self.text is None else repr(self.text)
        return (
            f"TextShares({name}: {counted(self.share.size, 'head')} of layers {as_ranges(self.layers)}, "
            f"{counted(self.images, 'image')})"
        )

    def heads(self) -> Iterator[Head]:
        """Layer and head of every stored head, in order."""
        for layer in self.layers:
            for head in range(self.share.shape[1]):
                yield layer, head

    def ranking(self) -> list[Head]:
        """All heads, first the one with the largest share."""
        return sorted(self.heads(), key=lambda head: -self.of(*head))

    def of(self, layer: int, head: int) -> float:
        """Return the share of one head. Raises SettingsError if it is not stored."""
        return float(self.share[self._at(layer, head)])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the shares as a grid of heads, in percent. Needs matplotlib."""
        from headspan.plots.heads import draw_heads
        from headspan.plots.levels import MAGNITUDE

        name = "a vector’s score" if self.text is None else f"the score of “{self.text}”"
        return draw_heads(
            self.layers,
            np.array([[MAGNITUDE.of(share) for share in row] for row in self.share.tolist()]),
            [[f"{100 * share:.1f}" for share in row] for row in self.share.tolist()],
            level_names=MAGNITUDE.names,
            title=f"Share of the variance of {name}",
            legend="percent; parts of different heads correlate, so shares need not sum to 100",
            ax=ax,
        )

    def _at(self, layer: int, head: int) -> tuple[int, int]:
        return place_of(self.layers, self.share.shape[1], layer, head)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        heads = self.ranking()
        columns: dict[str, Sequence[Any]] = {
            "layer": [layer for layer, _ in heads],
            "head": [head for _, head in heads],
        }
        for name in ("share", "mean", "random", "percentile", "covariance_share"):
            if (values := getattr(self, name)) is not None:
                columns[name] = [float(values[self._at(*head)]) for head in heads]
        return columns


def text_shares(
    store: Store,
    text: str | Float[np.ndarray, " joint"],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    pool: str | Path | Sequence[str] | Pool | None = None,
    covariance: bool = False,
    images: Images | None = None,
) -> TextShares:
    """Every stored head's share of the variance of the score of `text`, or of a vector of the joint space.

    Args:
        store: The store to read; nothing is written.
        text: A text, embedded as it is, or a vector; its length does not matter for shares.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: As in `text_vectors`.
        pool: Texts to compare with, as in `text_vectors`: `percentile` is the text's place among them. None takes the
            largest pool that the store holds, or `general` if its vectors are cached; otherwise there is no percentile.
        covariance: Also compute the covariance shares, by one pass over `heads` (and `mlps`) in bounded memory.
        images: A selection, indices or a mask of images, over which variances are taken; None for all.

    Raises SettingsError if the vector does not have the joint dimension or no direction; StoreError if the text's score
    does not vary, as over a single image; and the errors of `text_vectors`.
    """
    # Read before a text is embedded, which may load the model.
    pool = None if pool is None else read_pool(pool)
    vector = text_vectors(store, [text], on_progress, weights=weights)[0] if isinstance(text, str) else text
    refuse_other_vectors(store, np.asarray(vector)[None])
    exact = np.asarray(vector, np.float64)[None]
    if not (np.isfinite(exact).all() and exact.any()):
        raise SettingsError(f"{store.path}: a vector of zeros, NaN or infinity has no direction; give another one")
    unit = exact / np.linalg.norm(exact)
    others = _known_pool(store) if pool is None else embed_pool(store, pool, on_progress, weights=weights)
    moments, embedding = store.moments(images), store.embedding_moments(images)
    score = variances_along(unit, embedding.total, embedding.gram, embedding.count)[0]
    if not score > _LEAST_VARIANCE:
        raise StoreError(
            f"{store.path}: the score of this text does not vary over {counted(moments.count, 'image')}, so no head "
            "has a share of its variance; use a store with more images"
        )
    shape = (len(store.layers), store.heads_per_layer)
    share, mean = np.empty((2, *shape))
    is_kept = pool is None and images is None
    compared = _compared.get(store) if is_kept else None
    if compared is None or compared.images != moments.count or (compared.drawn is None) != (others is None):
        compared = _compare(store, others, moments, embedding)
        if is_kept:
            _compared[store] = compared
    every = directions_along(store, stored_heads(store), unit[0]).reshape(*shape, -1)
    for place in np.ndindex(*shape):
        at, along = (store.contents.layer_index(store.layers[place[0]]), place[1]), every[place]
        share[place] = variances_along(along[None], moments.total[at], moments.gram[at], moments.count)[0] / score
        mean[place] = along @ moments.total[at] / moments.count
    heads = terms = None
    if covariance:
        rows = store.contents.good_rows() if images is None else selection_of(store, images).rows
        heads, terms = component_covariances(store.contents, moments, embedding, rows, unit)
        heads, terms = heads / score, None if terms is None else terms / score
    return TextShares(
        text=text if isinstance(text, str) else None,
        layers=tuple(store.layers),
        images=moments.count,
        score_mean=float(unit[0] @ embedding.total) / embedding.count,
        score_deviation=float(np.sqrt(score)),
        share=share,
        mean=mean,
        random=compared.random,
        percentile=None if compared.drawn is None else (compared.drawn < share).mean(axis=0),
        pool=None if others is None else others.pool.name,
        pool_texts=0 if compared.drawn is None else len(compared.drawn),
        covariance_share=heads,
        term_covariance_share=terms,
    )


def _compare(store: Store, pool: EmbeddedPool | None, moments: MergedMoments, embedding: EmbeddingMoments) -> _Compared:
    """The shares of a pool's texts, and those of random directions. Texts whose own scores do not vary have none."""
    random = magnitudes_of(store.contents, moments, embedding, False, np.zeros(0, np.int64)).variance_share
    if pool is None:
        return _Compared(moments.count, None, random)
    sample, scores = _sample(pool, embedding)
    drawn = np.empty((len(sample), *random.shape))
    for place in np.ndindex(*random.shape):
        along = (sample @ store.head_directions(store.layers[place[0]], place[1]).T).astype(np.float64)
        drawn[:, *place] = variances_along(along, moments.total[place], moments.gram[place], moments.count) / scores
    return _Compared(moments.count, drawn, random)


def _sample(
    pool: EmbeddedPool, embedding: EmbeddingMoments
) -> tuple[Float32[np.ndarray, "text joint"], Float64[np.ndarray, " text"]]:
    """At most _POOL_TEXTS vectors of a pool, drawn with a fixed seed, whose scores vary; and the scores' variances."""
    drawn = np.random.default_rng(0).permutation(len(pool.vectors))[:_POOL_TEXTS]
    vectors = pool.vectors[np.sort(drawn)]
    variances = variances_along(vectors.astype(np.float64), embedding.total, embedding.gram, embedding.count)
    varies = variances > _LEAST_VARIANCE
    return vectors[varies], variances[varies]


def _known_pool(store: Store) -> EmbeddedPool | None:
    """The largest pool whose vectors the store holds, or `general` if they are cached; None if the model is needed."""
    if store not in _pools:
        kept = largest_pool(store)
        found = known_vectors(store, "general" if kept is None else kept)
        if found is None:
            return None
        _pools[store] = found
    return _pools[store]
