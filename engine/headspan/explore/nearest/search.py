"""Search all images for the largest scores: by a sketch where one is kept, else by reading all numbers.

Both ways give the same images and scores, to the bit: they only choose the images that can be among the nearest, and
these are scored with sums in float64. Only if more than `_EXACT` images score alike within float32 rounding can
their order differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.explore.nearest.eight_bits import EightBits
from headspan.explore.nearest.kept_sketches import eight_bits_of, lists_of, sketch_for
from headspan.explore.nearest.scored import Scored, ScoredEmbedding, ScoredHeads, Sketchable
from headspan.explore.nearest.scored_ablated import ScoredAblated
from headspan.explore.nearest.sketch import Products, Sketch
from headspan.explore.nearest.survivors import survivors
from headspan.store.head_space import Head
from headspan.store.reader import Store

# How many blocks the images are divided into, for each neighbour that is asked for.
_BLOCKS = 8
# Images that are scored exactly; of more, the float32 scores are used.
_EXACT = 16_384
_AT_ONCE, _MOST_AT_ONCE = 256, 2048
# Heads whose bounds are added to the embedding's; of more, all numbers are read.
_MOST_ABLATED = 8


class Best(NamedTuple):
    """Image indices, and their scores, the largest first."""

    images: Int[np.ndarray, " count"]
    scores: Float32[np.ndarray, " count"]


# What a store that shows no images yet gives.
_NONE = Best(np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is searched for: the images with the largest dot products of `query` and what `heads` and `ablated` name."""

    # The mean contribution through distinct stored heads; None for the unit embedding.
    heads: Sequence[Head] | None
    query: Float32[np.ndarray, " joint"]
    count: int
    # An image that is left out.
    without: int | None = None
    # Heads whose contributions to the unit embeddings are at their means.
    ablated: Sequence[Head] = ()
    # Whether the images with the smallest products are wanted too; only through heads, and without the two above.
    both_ends: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Sketches:
    """What is read instead of all numbers to answer a question."""

    # Of the heads or the embedding, then of each ablated head.
    parts: Sequence[Sketch]
    # Of the embedding, where it is kept.
    eight_bits: EightBits | None = None

    @property
    def every(self) -> list[Sketch | EightBits]:
        """All sketches; `eight_bits` is the last one, if it is kept."""
        return [*self.parts, *([] if self.eight_bits is None else [self.eight_bits])]


# The best images; of both ends, those of the largest products, then those of the smallest ones, in ascending order.
Answer = tuple[Best, ...]
Answering = Callable[[Store, Question], Answer]


def search(
    store: Store,
    heads: Sequence[Head] | None,
    query: Float32[np.ndarray, " joint"],
    count: int,
    without: int | None = None,
    sketched: bool | None = None,
    ablated: Sequence[Head] = (),
) -> Best:
    """The `count` images with the largest dot products of `query` and their mean contribution through `heads`.

    Without heads, the products are with the unit embeddings, in which the contributions of the heads `ablated` are at
    their means. The image `without` is left out, as are images that failed. Of equal scores, the first images are
    chosen. Heads are distinct and stored. `sketched` is as in `sketch_for`.
    """
    return answered(store, Question(heads, query, count, without, ablated), sketched)[0]


def answered(store: Store, question: Question, sketched: bool | None = None) -> Answer:
    """The answer to a question, by sketches where they are kept. `sketched` is as in `sketch_for`."""
    return answered_by(store, question, sketches_of(store, question, sketched))


def sketches_of(store: Store, question: Question, sketched: bool | None = None) -> Sketches | None:
    """The sketches that answer a question; None if some of them are not kept yet, so that all numbers are read."""
    if question.count <= 0 or not store.images:
        return None
    # The sketches that other queries read serve every choice of heads.
    if len(question.ablated) > _MOST_ABLATED:
        return None
    whole = ScoredEmbedding(store) if question.heads is None else ScoredHeads(store, question.heads)
    removed = [ScoredHeads(store, [head]) for head in question.ablated]
    parts = [sketch_for(store, each, sketched) for each in (whole, *removed)]
    found = [each for each in parts if each is not None]
    if len(found) < len(parts):
        return None
    # Eight bits of all numbers are kept only beside a sketch.
    return Sketches(found, eight_bits_of(store, whole, sketched) if isinstance(whole, ScoredEmbedding) else None)


def answered_by(store: Store, question: Question, sketches: Sketches | None) -> Answer:
    """The answer to a question by its sketches, or, where these leave too many images, by all numbers."""
    scored, query, count, without = _scored(store, question), question.query, question.count, question.without
    if not store.images:
        return (_NONE, _NONE) if question.both_ends else (_NONE,)
    if question.both_ends:
        return _both_ends(store, scored, question, sketches)
    if sketches is not None:
        whole, *removed = sketches.parts
        parts = [whole.products(query), *(each.products(-query) for each in removed)]
        # Heads are in sketches, the embedding in eight bits.
        closer = [] if sketches.eight_bits is None else [sketches.eight_bits.products(query), *parts[1:]]
        best = _by_bounds(store, scored, query, count, parts, closer, without)
        if best is not None:
            return (best,)
    scores = scored.scores(query)
    if without is not None:
        scores[without] = np.nan
    return (_best_of(scored, query, scores, count, 2 * scored.rounding(query)),)


def search_one_of(
    store: Store,
    vectors: Float32[np.ndarray, "text joint"],
    place: int,
    count: int,
    listed: bool | None = None,
) -> Best:
    """What `search` finds by embedding for one of many texts that are asked about again and again.

    The second call has the nearest images of all of them listed in the background; `listed` is as in `lists_of`.
    """
    query = vectors[place]
    lists = lists_of(store, vectors, listed) if count > 0 and store.images else None
    near = None if lists is None else lists.near(place, query, count)
    if near is None:
        return search(store, None, query, count)
    images = store.images_of_rows(near)
    return _ordered(images, ScoredEmbedding(store).exact(query, images), count)


def _by_bounds(
    store: Store,
    scored: Sketchable | ScoredAblated,
    query: Float32[np.ndarray, " joint"],
    count: int,
    parts: Sequence[Products],
    closer: Sequence[Products] = (),
    without: int | None = None,
) -> Best | None:
    """The best images by the bounds of `parts`, or else by `closer` ones; None if they leave too many."""
    row = None if without is None else int(store.rows[without])
    constant = scored.constant(query) if isinstance(scored, ScoredAblated) else 0.0

    def exact(rows: Int[np.ndarray, " some"]) -> Float64[np.ndarray, " some"]:
        return scored.exact(query, store.images_of_rows(rows))

    found = survivors(parts, count, row, exact, constant, closer)
    if found is None and len(closer) == 1:
        found = survivors(closer, count, row, exact)
    return None if found is None else _best_by_bounds(scored, query, store.images_of_rows(found[0]), found[1], count)


def _best_of(
    scored: Scored,
    query: Float32[np.ndarray, " joint"],
    scores: Float32[np.ndarray, " images"],
    count: int,
    margin: float,
) -> Best:
    """The best of all images; those whose float32 scores are within the margin are scored exactly."""
    near = largest(scores, count, margin)
    if len(near) <= _EXACT:
        parts = [near[first : first + _AT_ONCE] for first in range(0, len(near), _AT_ONCE)]
        return _ordered(near, np.concatenate([np.zeros(0), *(scored.exact(query, part) for part in parts)]), count)
    return _ordered(near, scores[near].astype(np.float64), count)


def _both_ends(
    store: Store, scored: Sketchable | ScoredAblated, question: Question, sketches: Sketches | None
) -> tuple[Best, Best]:
    """The answer for `query` and for its negative; a sketch, or all numbers, are read once."""
    query, count = question.query, question.count
    other, top, bottom = -query, None, None
    if sketches is not None:
        of_query, of_other = sketches.parts[0].both_ends(query)
        top = _by_bounds(store, scored, query, count, [of_query])
        bottom = _by_bounds(store, scored, other, count, [of_other])
    if top is None or bottom is None:
        scores, margin = scored.scores(query), 2 * scored.rounding(query)
        top = _best_of(scored, query, scores, count, margin)
        bottom = _best_of(scored, other, np.negative(scores, out=scores), count, margin)
    return top, Best(bottom.images, -bottom.scores)


def _scored(store: Store, question: Question) -> Sketchable | ScoredAblated:
    """The numbers that images are scored by."""
    if question.heads is not None:
        return ScoredHeads(store, question.heads)
    return ScoredAblated(store, question.ablated) if question.ablated else ScoredEmbedding(store)


def _best_by_bounds(
    scored: Scored,
    query: Float32[np.ndarray, " joint"],
    images: Int[np.ndarray, " some"],
    bounds: Float64[np.ndarray, " some"],
    count: int,
) -> Best | None:
    """The best of images in descending order of the bounds of their scores; None if too many need be scored."""
    scores, at_once = np.zeros(0), _AT_ONCE
    while len(scores) < len(images):
        first = len(scores)
        if first >= count and bounds[first] < np.partition(scores, -count)[-count]:
            break
        if first >= _EXACT:
            return None
        part = scored.exact(query, images[first : first + at_once])
        scores = np.concatenate([scores, np.where(np.isfinite(part), part, -np.inf)])
        # Blocks become larger, so that many images take few calls.
        at_once = min(2 * at_once, _MOST_AT_ONCE)
    return _ordered(images[: len(scores)], scores, count)


def largest(scores: Float32[np.ndarray, " images"], count: int, margin: float = 0.0) -> Int[np.ndarray, " some"]:
    """The images whose scores are not below the `count`-th largest by more than `margin`, in the order of the images.

    Scores that are not finite are left out.
    """
    if count <= 0:
        return np.zeros(0, np.int64)
    # The `count`-th largest of the blocks' maxima bounds the `count`-th largest score from below.
    block = max(1, len(scores) // (_BLOCKS * count))
    tops = np.fmax.reduceat(scores, np.arange(0, len(scores), block)) if len(scores) else scores
    tops = tops[np.isfinite(tops)]
    bound = np.partition(tops, -count)[-count] if count <= len(tops) else -np.inf
    candidates = np.flatnonzero(scores >= bound - np.float32(margin))
    candidates = candidates[np.isfinite(scores[candidates])]
    if count < len(candidates):
        bound = np.partition(scores[candidates], -count)[-count]
        candidates = candidates[scores[candidates] >= bound - np.float32(margin)]
    return candidates


def _ordered(images: Int[np.ndarray, " some"], scores: Float64[np.ndarray, " some"], count: int) -> Best:
    images, scores = images[np.isfinite(scores)], scores[np.isfinite(scores)]
    best = np.lexsort((images, -scores))[:count]
    return Best(images[best], scores[best].astype(np.float32))
