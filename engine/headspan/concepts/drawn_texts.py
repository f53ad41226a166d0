"""The exact probabilities of a score for texts that are drawn at random from a pool.

Texts are drawn without replacement, and the label rule of `label_heads` is applied to them: the label is the most
common concept, and the score is the number of texts that have it. So the score is the largest count among the concepts,
and the counts follow the multivariate hypergeometric distribution:

    P(score < k) = [x^n] Π_c Σ_{j<k} C(n_c, j) x^j / C(N, n)

for `n` drawn texts, a pool of `N` texts, and `n_c` texts of concept `c`. A text that the pool lists twice counts once,
with the concept of its first place, because TEXTSPAN chooses a text once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.texts.pool import Pool


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
