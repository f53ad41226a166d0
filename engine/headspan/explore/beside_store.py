"""Heads over a selection of images beside the whole store: which vary more or less here, and what their means say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from headspan.concepts.labels import LABELLED_TEXTS, Labels, label_by_concepts
from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.spans.result import HeadSpans
from headspan.store.head_space import Head
from headspan.store.moments_file import MergedMoments, covariance_of
from headspan.store.reader import Store
from headspan.texts.pool import Pool
from headspan.texts.vectors import text_vectors

# Heads that the representation names.
_SHOWN = 3


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BesideStore(Tabular):
    """The described heads, those first that differ most from the whole store: in their variance or in their mean.

    They are sorted by `|variance_share − store_variance_share| + shift² · store_variance_share`, whose parts are both
    shares of the embeddings' variance.

    * `variance_share` is `tr Σ_h / tr Σ_e` over the selection, and `store_variance_share` over all images of the store,
      as in `Store.magnitudes`; `ratio` is the first divided by the second.
    * `shift` says how far the head's mean contribution over the selection is from that over the store, in standard
      deviations of the head over the store: `‖E_sel c_h − E c_h‖ / √tr Σ_h`.
    * `towards` is the text of the pool with the largest dot product with `E_sel c_h − E c_h`: what the head says about
      these images that it does not say about all. None where the mean is the same.

    Arrays follow `heads`. Values are NaN where a head does not vary over the store.
    """

    spans: HeadSpans
    heads: tuple[Head, ...]
    # None where the pool has no concepts or the head has no texts.
    labels: tuple[str | None, ...]
    variance_share: Float64[np.ndarray, " head"]
    store_variance_share: Float64[np.ndarray, " head"]
    shift: Float64[np.ndarray, " head"]
    towards: tuple[str | None, ...]

    @property
    def ratio(self) -> Float64[np.ndarray, " head"]:
        """The share of the variance over the selection, divided by that over the whole store."""
        return _divided(self.variance_share, self.store_variance_share)

    def __repr__(self) -> str:
        found = list(zip(self.heads, self.ratio.tolist(), strict=True))[:_SHOWN]
        first = ", ".join(f"{head_name(layer, head)} × {ratio:.2f}" for (layer, head), ratio in found)
        return f"BesideStore({counted(len(self.heads), 'head')} over {self.spans.over}; most different: {first})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads],
            "texts": ["; ".join(self.spans.texts(*each, LABELLED_TEXTS)) or None for each in self.heads],
            "label": list(self.labels),
            "variance_share": self.variance_share.tolist(),
            "store_variance_share": self.store_variance_share.tolist(),
            "ratio": self.ratio.tolist(),
            "shift": self.shift.tolist(),
            "towards": list(self.towards),
        }


def beside_store(
    store: Store,
    spans: HeadSpans,
    labels: Labels | None = None,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> BesideStore:
    """Compare the heads of `spans`, which `textspan(store, images=…)` described over a selection, with the whole store.

    `labels` are those of `spans`; None for the concepts of the pool's texts, where it has any. Everything follows from
    the moments of the store and of the selection, and from the pool's vectors; `weights` is as in `text_vectors`.
    Raises SettingsError if `spans` are of all images, or of images that `store` does not show; and the errors of
    `text_vectors`.
    """
    if spans.selection is None:
        raise SettingsError(
            f"textspan run {spans.run!r} is over all images; describe some of them with textspan(store, images=…)"
        )
    if labels is None and spans.pool.concepts is not None and spans.indices.shape[2] >= LABELLED_TEXTS:
        labels = label_by_concepts(spans)
    vectors = text_vectors(store, spans.pool, on_progress, weights=weights)
    here, whole = store.magnitudes(images=spans.selection), store.magnitudes()
    heads = list(spans.heads())
    shares = np.array([(here.of(*each)[0], whole.of(*each)[0]) for each in heads])
    some, every = store.moments(spans.selection), store.moments()
    found = [_shift(store, head, some, every, spans.pool, vectors) for head in heads]
    shift = np.array([distance for distance, _ in found])
    differs = np.abs(shares[:, 0] - shares[:, 1]) + shift**2 * shares[:, 1]
    order = np.argsort(-np.nan_to_num(differs), kind="stable").tolist()
    return BesideStore(
        spans,
        tuple(heads[place] for place in order),
        tuple(None if labels is None else labels.name(*heads[place]) for place in order),
        shares[order, 0],
        shares[order, 1],
        shift[order],
        tuple(found[place][1] for place in order),
    )


def _shift(
    store: Store,
    head: Head,
    some: MergedMoments,
    every: MergedMoments,
    pool: Pool,
    vectors: Float32[np.ndarray, "text joint"],
) -> tuple[float, str | None]:
    """How far the mean of one head over some images is from that over all, and the text that it moves towards."""
    place = store.contents.layer_index(*head), head[1]
    directions = store.head_directions(*head).astype(np.float64)
    mean = every.total[place] / every.count
    away = (some.total[place] / some.count - mean) @ directions
    covariance = covariance_of(every.total[place], every.gram[place], every.count)
    variance = float(((covariance @ directions) * directions).sum())
    if not away.any() or not variance > 0:
        return (0.0 if variance > 0 else float("nan")), None
    return float(np.sqrt(away @ away / variance)), pool.texts[int((vectors @ away).argmax())]


def _divided(one: Float64[np.ndarray, " head"], other: Float64[np.ndarray, " head"]) -> Float64[np.ndarray, " head"]:
    """`one / other`, NaN where `other` is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(other > 0, one / other, np.nan)
