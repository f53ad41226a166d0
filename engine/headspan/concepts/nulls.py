"""Concept Consistency Scores by chance: what pools without meaning give, and texts drawn at random.

Two nulls apply the label rule of `label_heads` to other texts than the head's:

* Texts drawn at random from the pool (`drawn_texts`). Its probabilities are exact. Shuffling the pool's concepts over
  its texts, with the chosen texts as they are, gives the same ones: the concepts of `n` given texts under a random
  permutation are `n` concepts drawn without replacement.
* The texts that the head chooses from the pool's vectors rotated at random, which TEXTSPAN draws for its own null
  (`spans.nulls`). TEXTSPAN does not choose like a random draw: it prefers texts whose vectors are long in the head's
  directions, and the texts of a concept are alike. Of the reference model's heads, 3.4 % score 4 or more with the
  world's pool rotated, where 0.9 % of random draws do; with the general pool, 13 % score 3 or more, where 1.2 % do. Of
  heads with random weights, no more do than of random draws.

A head's `p` is the larger of both, so that neither null alone gives it. Runs without draws, and those of earlier
versions, have the first only. Their `p` can be too small by a factor of ten.

Labels and votes of language models have no such null. Their votes exist only for the texts of each head with its own
label, and say nothing about other texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from headspan.concepts.drawn_texts import concept_counts, tail_probabilities
from headspan.concepts.labels import LABELLED_TEXTS, Labels, label_by_concepts
from headspan.errors import counted
from headspan.spans.result import HeadSpans, place_of
from headspan.texts.pool import Pool

# A head whose score is at least as probable by chance is shown without its label.
LEVEL = 0.05
# The columns of `ConsistencyChance.columns`.
CHANCE_COLUMNS = ("p", "p_drawn", "p_rotated", "p_adjusted", "beats_chance")
# What replaces the label of such a head.
UNLABELLED = "unlabelled (chance)"


@dataclass(frozen=True, slots=True, repr=False)
class ConsistencyChance:
    """What chance gives for every head of a result, and how improbable each head's score is.

    Arrays follow `layers`, which are the model's layer numbers; methods take these numbers.

    A head is "unlabelled (chance)" if its own `p` is not below the level. `p` governs this, and not `adjusted`, so that
    a head's label does not depend on which other heads are in the result, and layers and models can be compared. If all
    heads chose by chance, at most the level's share would be labelled: `expected_beating` is their expected number, to
    be read beside the number of labelled heads. `adjusted` is for selecting heads out of many; with few draws it is
    coarse, since `p` is at least 1 / (1 + draws).

    Expected numbers are those of the rotated pools if the run has them, else those of texts drawn at random.
    """

    layers: tuple[int, ...]
    # P(score >= k) of texts drawn at random, for k = 0 to 5.
    tail: Float64[np.ndarray, "layer head score"]
    # The same at each head's own score.
    p_drawn: Float64[np.ndarray, "layer head"]
    # The probability of each concept, for a head with a score of 5 from texts drawn at random; empty if no concept has
    # five texts.
    concepts_of_high: Mapping[str, float]
    # The scores of each head's texts from rotated pools, and (1 + draws that score as high) / (1 + draws) at its own
    # score; None for a run without them.
    rotated: Int[np.ndarray, "draw layer head"] | None = None
    p_rotated: Float64[np.ndarray, "layer head"] | None = None

    def __repr__(self) -> str:
        return (
            f"ConsistencyChance({int(self.beating().sum())} of {counted(self.p_drawn.size, 'head')} at p < {LEVEL}, "
            f"{self.expected_beating():.2g} by chance)"
        )

    @property
    def about_p(self) -> str:
        """What `p` is, in a sentence."""
        if self.rotated is None:
            return (
                "p is the probability of a score at least as high if a head's texts are drawn at random from the pool; "
                "a textspan run with --draws would compare it with rotated pools too, without which p can be too small"
            )
        draws = len(self.rotated)
        return (
            "p is the larger of two: the probability of a score at least as high if a head's texts are drawn at random "
            f"from the pool, and (1 + n) / (1 + {draws}), where n of {draws} rotated pools give the head such a score"
        )

    @property
    def p(self) -> Float64[np.ndarray, "layer head"]:
        """The larger of `p_drawn` and `p_rotated` of each head."""
        return self.p_drawn if self.p_rotated is None else np.maximum(self.p_drawn, self.p_rotated)

    def beats(self, layer: int, head: int, level: float = LEVEL) -> bool:
        """Whether a head's `p` is below `level`. Raises SettingsError if the head is not in the result."""
        return bool(self.beating(level)[place_of(self.layers, self.p.shape[1], layer, head)])

    def of(self, layer: int, head: int) -> tuple[float, float]:
        """The `p` of one head, and its adjusted value; errors as in `beats`."""
        place = place_of(self.layers, self.p.shape[1], layer, head)
        return float(self.p[place]), float(self.adjusted[place])

    def beating(self, level: float = LEVEL) -> Bool[np.ndarray, "layer head"]:
        """Whether each head's `p` is below `level`."""
        return self.p < level

    def expected_beating(self, level: float = LEVEL) -> float:
        """The expected number of heads with `p` below `level` by chance.

        It is smaller than `level` times the number of heads, since few values of `p` are possible. With rotated pools,
        it is the mean number of a draw's heads that beat chance, each compared with the other draws.
        """
        if self.rotated is None:
            return float((self.distribution * (self.tail < level)).sum())
        drawn = np.take_along_axis(self.tail[None], self.rotated[..., None].astype(np.int64), axis=3)[..., 0] < level
        # The most draws that may score as high as a head with p below the level. As in `spans.nulls.heads_above`, the
        # rule for a draw among the others is no stricter than that for the run.
        most = math.ceil(level * (1 + len(self.rotated)) - 1e-9) - 2
        as_high = np.array([(self.rotated >= scores).sum(axis=0) - 1 for scores in self.rotated])
        return float((drawn & (as_high <= most)).sum(axis=(1, 2)).mean())

    @property
    def distribution(self) -> Float64[np.ndarray, "layer head score"]:
        """P(score = k) by chance, for k = 0 to 5: shares of the draws from rotated pools, or exact probabilities."""
        if self.rotated is not None:
            shares: Float64[np.ndarray, "layer head score"] = (
                self.rotated[..., None] == np.arange(LABELLED_TEXTS + 1)
            ).mean(axis=0)
            return shares
        return self.tail - np.pad(self.tail[..., 1:], ((0, 0), (0, 0), (0, 1)))

    @property
    def adjusted(self) -> Float64[np.ndarray, "layer head"]:
        """`p` adjusted for the number of heads in this result: Benjamini and Hochberg, 1995.

        Of the heads with an adjusted value of at most q, an expected share of at most q is chance, if heads are
        independent or depend positively on one another.
        """
        ranked = np.sort(self.p, axis=None)
        ratios = ranked * ranked.size / np.arange(1, ranked.size + 1)
        lowest = np.minimum.accumulate(ratios[::-1])[::-1]
        # The last of equal values, which has the smallest ratio among them.
        adjusted: Float64[np.ndarray, "layer head"] = np.minimum(
            lowest[np.searchsorted(ranked, self.p, side="right") - 1], 1.0
        )
        return adjusted

    @property
    def expected_at_k(self) -> tuple[float, ...]:
        """CCS@K by chance for K = 0 to 5: the expected share of heads whose score is K."""
        return tuple(self.distribution.mean(axis=(0, 1)).tolist())

    @property
    def expected(self) -> dict[str, float]:
        """The expected number of heads in each group: high = 5, moderate = 3, low ≤ 1."""
        by_score = self.distribution.sum(axis=(0, 1)).tolist()
        return {"high": by_score[5], "moderate": by_score[3], "low": by_score[0] + by_score[1]}

    @property
    def expected_high(self) -> dict[str, float]:
        """The expected number of high heads with each concept of the pool, for texts drawn at random."""
        high = float(self.tail[..., -1].sum())
        return {concept: high * share for concept, share in self.concepts_of_high.items()}

    def expected_ccr(self, high: int) -> float:
        """The expected CCR of `high` independent heads that are high by chance; NaN without any.

        The number of high heads is given, since chance alone rarely has one. Exact: a concept is shared by several of
        the heads unless none or one of them has it.
        """
        if not high or not self.concepts_of_high:
            return float("nan")
        share = np.array(list(self.concepts_of_high.values()))
        shared = 1 - (1 - share) ** high - high * share * (1 - share) ** (high - 1)
        return float(shared.sum() / high)

    def columns(self) -> dict[str, list[Any]]:
        """What a table says about every head beside chance."""
        unknown = [None] * self.p.size
        return {
            "p": self.p.ravel().tolist(),
            "p_drawn": self.p_drawn.ravel().tolist(),
            "p_rotated": unknown if self.p_rotated is None else self.p_rotated.ravel().tolist(),
            "p_adjusted": self.adjusted.ravel().tolist(),
            "beats_chance": self.beating().ravel().tolist(),
        }

    def layer(self, layer: int) -> ConsistencyChance:
        """The result restricted to one layer. Raises SettingsError if the layer is not in it."""
        place, _ = place_of(self.layers, self.p.shape[1], layer, 0)
        one = slice(place, place + 1)
        return ConsistencyChance(
            (layer,),
            self.tail[one],
            self.p_drawn[one],
            self.concepts_of_high,
            None if self.rotated is None else self.rotated[:, one],
            None if self.p_rotated is None else self.p_rotated[one],
        )


def consistency_chance(spans: HeadSpans, labels: Labels) -> ConsistencyChance | None:
    """What chance gives for `labels` of `spans`; None if they do not follow from the pool's concepts by the label rule.

    Nothing is read from a store, and no vote is invented: labels and votes that anyone else gave have no such null.
    """
    if spans.pool.concepts is None or labels.consistent is None or spans.indices.shape[2] < LABELLED_TEXTS:
        return None
    ruled = label_by_concepts(spans)
    assert ruled.consistent is not None
    same_names = (ruled.layers, ruled.names) == (labels.layers, labels.names)
    if not (same_names and np.array_equal(ruled.consistent, labels.consistent)):
        return None
    counts = concept_counts(spans.pool)
    shape = spans.indices.shape[:2]
    drawn = [len(set(spans.texts(layer, head, LABELLED_TEXTS))) for layer, head in spans.heads()]
    tails = {texts: tail_probabilities(tuple(counts.values()), texts) for texts in set(drawn)}
    tail = np.array([tails[texts] for texts in drawn]).reshape(*shape, LABELLED_TEXTS + 1)
    scores = labels.consistent.sum(axis=2)
    rotated = None if spans.null is None or spans.null.picks is None else scores_of(spans.null.picks, spans.pool)
    fives = {concept: comb(texts, LABELLED_TEXTS) for concept, texts in counts.items() if texts >= LABELLED_TEXTS}
    return ConsistencyChance(
        layers=labels.layers,
        tail=tail,
        p_drawn=np.take_along_axis(tail, scores[..., None], axis=2)[..., 0],
        concepts_of_high={concept: ways / sum(fives.values()) for concept, ways in fives.items()},
        rotated=rotated,
        p_rotated=None if rotated is None else (1 + (rotated >= scores).sum(axis=0)) / (1 + len(rotated)),
    )


def scores_of(picks: Int[np.ndarray, "*run text"], pool: Pool) -> Int[np.ndarray, "*run"]:
    """The score of texts by the label rule: how many have their most common concept. Places of -1 are no texts."""
    assert pool.concepts is not None
    numbers = np.unique(pool.concepts, return_inverse=True)[1]
    exists = picks >= 0
    concepts = numbers[picks]
    equal = (concepts[..., :, None] == concepts[..., None, :]) & exists[..., :, None] & exists[..., None, :]
    scores: Int[np.ndarray, "*run"] = equal.sum(axis=-1).max(axis=-1)
    return scores
