"""Name features by texts of a pool: those nearest to each feature's direction in joint space, beside chance.

Texts and directions are first freed of the mean gap between the modalities, whose formula is in
`explore.heads.modality_gap`; directions over coordinates of heads are mapped to joint space before that. With a
`coherence`, texts are chosen by coherent pursuit (`explore.heads.coherent_pursuit`), whose first text is the nearest
one too, and which then looks for what the texts chosen before leave out.

Two nulls say how near the nearest text is by chance. In a pool without meaning, which is the pool rotated at random,
every direction has the same distribution of its best cosine: that of a random direction with the pool as it is, since
only the rotation of the one against the other counts. So random directions are drawn, and not rotations. The second
null draws mixtures of all features, `Σ g d` with Gaussian `g`: directions of the same subspace and the same second
moments, without the features. A feature that is no nearer to a text than such mixtures owes its name to the subspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from headspan.errors import SettingsError, StoreError, counted
from headspan.events import Listener, Progress, ignore
from headspan.explore.heads.coherent_pursuit import coherent_pursuit
from headspan.explore.heads.modality_gap import freed_texts, unit_rows, without_gap
from headspan.features.pairs.image_vectors import directions_in_joint
from headspan.features.pairs.space import Space
from headspan.features.saved import KIND, save_scores
from headspan.features.scores.result import FeatureScores
from headspan.spans.nulls import range_of
from headspan.store.reader import Store
from headspan.store.taken_runs import refuse_made_differently
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import keep_vectors, stored_name
from headspan.texts.vectors import embed_pool

COUNT = 5
# Random directions of each null, which give a p of 0.0001 at best.
_DRAWS, _SEED = 10_000, 0
# Cosines, or weights of mixtures, that are in memory at once: 64 MB.
_AT_ONCE = 8 << 20
_Rows = Float64[np.ndarray, "direction joint"]


def name_features(
    store: Store,
    scores: FeatureScores,
    texts: str | Path | Sequence[str] | Pool = "general",
    count: int = COUNT,
    *,
    coherence: float | None = None,
    saved: bool = False,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    weights: str | Path | None = None,
) -> FeatureScores:
    """Return the scores with the names of their features; write nothing unless `saved`.

    Args:
        store: The store that the scores are of, or another of the same model.
        scores: Scores, as `read_scores` reads them.
        texts: The pool of texts, as in `text_vectors`.
        count: How many texts name a feature, the nearest first.
        coherence: Choose texts by coherent pursuit with this λ, instead of the nearest ones.
        saved: Save the names with the scores, and the pool's vectors as `texts/<pool>`.
        overwrite: Replace other names that the run has.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: Where the model's weights are now, as in `text_vectors`.

    Features without a direction, or whose direction is that of the gap, have no names and NaN as cosines.

    Raises SettingsError if `count` or `coherence` is out of range, or the pool has fewer texts; StoreError if the
    scores are of another model; the errors of `text_vectors`; and if `saved`, those of `save_scores`.
    """
    named = read_pool(texts)
    if count < 1:
        raise SettingsError(f"{counted(count, 'text')} per feature; ask for at least 1")
    if coherence is not None and not 0 <= coherence < float("inf"):
        raise SettingsError(f"coherence {coherence} is out of range; give a number from 0")
    if len(named.texts) < max(2, count):
        raise SettingsError(
            f"the pool {named.name} has {counted(len(named.texts), 'text')}, but {max(2, count)} are needed to name "
            "features; give a larger pool, or ask for fewer names"
        )
    space = _checked_space(store, scores)
    if saved:
        settings = {"name_pool": stored_name(store, named), "name_coherence": coherence}
        called = {"name_pool": "pool", "name_coherence": "coherence"}
        refuse_made_differently(store, KIND, scores.run, settings, overwrite, called, "its names")
    embedded = embed_pool(store, named, on_progress, weights=weights)
    pool, gap = freed_texts(embedded.vectors, store.embedding_moments())
    given = directions_in_joint(store, space, scores.directions) if space is not None else scores.directions
    directions = without_gap(np.nan_to_num(given.astype(np.float64)), gap)
    known = (directions != 0).any(axis=1)
    places, cosines = _chosen(directions[known], pool, count, coherence, on_progress)
    best = np.einsum("dj,dj->d", directions[known], pool[places[:, 0]])
    rng = np.random.default_rng(_SEED)
    rotated = best_cosines(without_gap(rng.standard_normal((_DRAWS, len(gap))), gap), pool)
    mixtures = np.concatenate([best_cosines(some, pool) for some in _mixtures(directions[known], rng)])
    words = iter(tuple(embedded.pool.texts[place] for place in row if place >= 0) for row in places.tolist())
    result = replace(
        scores,
        names=tuple(next(words) if each else () for each in known.tolist()),
        name_cosines=_spread(cosines, known).astype(np.float32),
        name_p=_spread(p_above(best, rotated), known),
        name_mixture_p=_spread(p_above(best, mixtures), known),
        name_chance=_summary(rotated, mixtures),
        name_coherence=coherence,
        name_pool=stored_name(store, embedded.pool),
    )
    if saved:
        keep_vectors(store, embedded)
        return save_scores(store, result, overwrite, on_progress)
    return result


def best_cosines(directions: _Rows, pool: _Rows) -> Float64[np.ndarray, " direction"]:
    """The cosine of each unit direction with the text that is nearest to it."""
    step = max(1, _AT_ONCE // len(pool))
    batches = range(0, len(directions), step)
    return np.concatenate(
        [(directions[begin : begin + step] @ pool.T).max(axis=1) for begin in batches] or [np.empty(0)]
    )


def _mixtures(directions: _Rows, rng: np.random.Generator) -> Iterator[_Rows]:
    """Random mixtures of directions, some at a time: their weights may be more numbers than all cosines."""
    step = max(1, _AT_ONCE // max(1, len(directions)))
    for begin in range(0, _DRAWS, step):
        yield unit_rows(rng.standard_normal((min(step, _DRAWS - begin), len(directions))) @ directions)


def p_above(
    own: Float64[np.ndarray, " direction"], drawn: Float64[np.ndarray, " draw"]
) -> Float64[np.ndarray, " direction"]:
    """(1 + draws that reach a direction's cosine) / (1 + draws)."""
    reached = len(drawn) - np.searchsorted(np.sort(drawn), own, side="left")
    return np.asarray((1 + reached) / (1 + len(drawn)))


def _checked_space(store: Store, scores: FeatureScores) -> Space | None:
    """The space of the scores. Raises StoreError if it is one of another model than the store's."""
    space = scores.space
    if space is None:
        if scores.directions.shape[1] != store.joint:
            raise StoreError(
                f"{store.path}: features of {scores.directions.shape[1]} numbers do not fit its joint space of "
                f"{store.joint}; score the dictionary on this store again"
            )
        return None
    own = store.attributes.get("weights_sha256")
    if space.weights_sha256 and own and space.weights_sha256 != own:
        raise StoreError(
            f"{store.path}: was made with image weights {own[:8]}, but the features are of image weights "
            f"{space.weights_sha256[:8]}; name them with a store of that model"
        )
    return space


def _chosen(
    directions: _Rows, pool: _Rows, count: int, coherence: float | None, on_progress: Listener
) -> tuple[Int64[np.ndarray, "direction name"], Float64[np.ndarray, "direction name"]]:
    """The places of each direction's texts in the pool, -1 where there are fewer, and their cosines."""
    if coherence is not None:
        places = coherent_pursuit(directions, pool, count, coherence, on_progress).chosen
        # A direction that no text matches has its nearest text nevertheless.
        for lost in np.flatnonzero(places[:, 0] < 0):
            places[lost, 0] = int((pool @ directions[lost]).argmax())
        cosines = np.einsum("dj,dnj->dn", directions, pool[places.clip(0)])
        return places, np.where(places >= 0, cosines, np.nan)
    found = np.empty((len(directions), count), np.int64)
    cosines = np.empty((len(directions), count))
    step = max(1, _AT_ONCE // len(pool))
    for begin in range(0, len(directions), step):
        batch = directions[begin : begin + step] @ pool.T
        # The lower place first where two texts are equally near.
        nearest = np.argpartition(-batch, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(batch, nearest, axis=1)
        order = np.lexsort((nearest, -values), axis=1)
        found[begin : begin + len(batch)] = np.take_along_axis(nearest, order, axis=1)
        cosines[begin : begin + len(batch)] = np.take_along_axis(values, order, axis=1)
        on_progress(Progress("features", begin + len(batch), len(directions)))
    return found, cosines


def _spread(values: np.ndarray, known: Bool[np.ndarray, " feature"]) -> np.ndarray:
    """Values of the features that have a direction, among all features; NaN for the others."""
    found = np.full((len(known), *values.shape[1:]), np.nan)
    found[known] = values
    return found


def _summary(rotated: Float64[np.ndarray, " draw"], mixtures: Float64[np.ndarray, " draw"]) -> dict[str, float]:
    """Mean and 95 % range of the best cosine in both nulls."""
    found = {"draws": float(len(rotated))}
    for name, drawn in (("rotated", rotated), ("mixtures", mixtures)):
        low, high = range_of(drawn)
        found |= {f"{name}_mean": float(drawn.mean()), f"{name}_low": low, f"{name}_high": high}
    return found
