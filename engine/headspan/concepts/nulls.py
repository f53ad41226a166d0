"""Concept Consistency Scores by chance: the score of a head whose texts are drawn at random from the pool.

A head's texts are drawn without replacement, and the label rule of `label_heads` is applied to them: the label is the
most common concept, and the score is the number of texts that have it. So the score is the largest count among the
concepts, and its distribution is exact: the counts follow the multivariate hypergeometric distribution, and

    P(score < k) = [x^n] Π_c Σ_{j<k} C(n_c, j) x^j / C(N, n)

for `n` drawn texts, a pool of `N` texts, and `n_c` texts of concept `c`. A text that the pool lists twice counts once,
with the concept of its first place, because TEXTSPAN chooses a text once.

Shuffling the pool's concepts over its texts, with the chosen texts as they are, gives the same distribution for each
head: the concepts of `n` given texts under a random permutation are `n` concepts drawn without replacement. So one
probability answers both questions. The nulls differ only in how heads depend on one another, which no expected number
needs.

TEXTSPAN does not draw at random, even from a pool without meaning. With the world pool's vectors rotated at random (100
rotations), 2.9 % of the reference model's heads score 4 or more, where 0.9 % of random draws do; with random weights,
0.6 % do. So `p` can be too small by a factor of about three, and a `p` just below the level is weak evidence.

Labels and votes of language models have no such null. Their votes exist only for the texts of each head with its own
label, and say nothing about other texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from headspan.concepts.labels import LABELLED_TEXTS, Labels, label_by_concepts
from headspan.errors import counted
from headspan.spans.result import HeadSpans, place_of
from headspan.texts.pool import Pool

# A head whose score is at least as probable by chance is shown without its label.
LEVEL = 0.05
# The columns of `ConsistencyChance.columns`.
CHANCE_COLUMNS = ("p", "p_adjusted", "beats_chance")
# What replaces the label of such a head.
UNLABELLED = "unlabelled (chance)"


@dataclass(frozen=True, slots=True, repr=False)
class ConsistencyChance:
    """What chance gives for every head of a result, and how improbable each head's score is.

    Arrays follow `layers`, which are the model's layer numbers; methods take these numbers.

    A head is "unlabelled (chance)" if its own `p` is not below the level. `p` governs this, and not `adjusted`, so that
    a head's label does not depend on which other heads are in the result, and layers and models can be compared. If all
    heads chose at random, at most the level's share would be labelled: `expected_beating` is their expected number, to
    be read beside the number of labelled heads. `adjusted` is for selecting heads out of many.
    """

    layers: tuple[int, ...]
    # P(score >= k) by chance, for k = 0 to 5.
    tail: Float64[np.ndarray, "layer head score"]
    # The same at each head's own score.
    p: Float64[np.ndarray, "layer head"]
    # The probability of each concept, for a head with a score of 5 by chance; empty if no concept has five texts.
    concepts_of_high: Mapping[str, float]

    def __repr__(self) -> str:
        return (
            f"ConsistencyChance({int(self.beating().sum())} of {counted(self.p.size, 'head')} at p < {LEVEL}, "
            f"{self.expected_beating():.2g} by chance)"
        )

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

        It is smaller than `level` times the number of heads, since few values of `p` are possible.
        """
        return float((self.distribution * (self.tail < level)).sum())

    @property
    def distribution(self) -> Float64[np.ndarray, "layer head score"]:
        """P(score = k) by chance, for k = 0 to 5."""
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
        """The expected number of high heads with each concept of the pool."""
        return {concept: self.expected["high"] * share for concept, share in self.concepts_of_high.items()}

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
        values = (self.p, self.adjusted, self.beating())
        return {name: each.ravel().tolist() for name, each in zip(CHANCE_COLUMNS, values, strict=True)}

    def layer(self, layer: int) -> ConsistencyChance:
        """The result restricted to one layer. Raises SettingsError if the layer is not in it."""
        place, _ = place_of(self.layers, self.p.shape[1], layer, 0)
        one = slice(place, place + 1)
        return ConsistencyChance((layer,), self.tail[one], self.p[one], self.concepts_of_high)


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
    fives = {concept: comb(texts, LABELLED_TEXTS) for concept, texts in counts.items() if texts >= LABELLED_TEXTS}
    return ConsistencyChance(
        layers=labels.layers,
        tail=tail,
        p=np.take_along_axis(tail, scores[..., None], axis=2)[..., 0],
        concepts_of_high={concept: ways / sum(fives.values()) for concept, ways in fives.items()},
    )


def concept_counts(pool: Pool) -> dict[str, int]:
    """The number of different texts of each concept; the pool has concepts."""
    assert pool.concepts is not None
    first: dict[str, str] = {}
    for text, concept in zip(pool.texts, pool.concepts, strict=True):
        first.setdefault(text, concept)
    return dict(Counter(first.values()))


def tail_probabilities(counts: Sequence[int], texts: int) -> tuple[float, ...]:
    """P(score >= k) for k = 0 to 5, if `texts` texts are drawn from a pool with `counts` texts of each concept.

    Whole numbers are counted exactly and divided once.
    """
    assert texts <= sum(counts), f"{texts} texts cannot be drawn from {sum(counts)}"
    total = comb(sum(counts), texts)
    return tuple((total - _ways(counts, texts, below)) / total for below in range(LABELLED_TEXTS + 1))


def _ways(counts: Sequence[int], texts: int, below: int) -> int:
    """The number of ways to draw `texts` texts, fewer than `below` of each concept."""
    ways = [1] + [0] * texts
    for size, concepts in Counter(counts).items():
        of_one = [comb(size, drawn) if drawn < below else 0 for drawn in range(texts + 1)]
        ways = _product(ways, _power(of_one, concepts))
    return ways[texts]


def _product(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The product of two polynomials, up to the degree of `one`."""
    return [sum(one[low] * other[degree - low] for low in range(degree + 1)) for degree in range(len(one))]


def _power(base: Sequence[int], exponent: int) -> list[int]:
    """A polynomial to a power, up to its degree, by repeated squaring."""
    power, square = [1] + [0] * (len(base) - 1), list(base)
    while exponent:
        if exponent & 1:
            power = _product(power, square)
        square = _product(square, square)
        exponent >>= 1
    return power
