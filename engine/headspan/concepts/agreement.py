"""Agreement of judges and people: Cohen's κ, Spearman's ρ and Kendall's τ-b, with bootstrap intervals.

Ratings are small whole numbers (votes of 0 and 1, scores of 0 to 5), so each measure is a function of the table
that counts pairs of ratings, and a bootstrap sample is a sum of such tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from headspan.concepts.consistency import NO_VOTE, ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.errors import counted, percent
from headspan.frames import Tabular

REPLICATES = 1000
MAJORITY = "majority"
_COVERED = 0.95
# No interval is given if the measure is defined in less than this share of the bootstrap samples.
_DEFINED = 0.5

# Votes of one rater, as one entry of `Votes.cast`.
Cast = Int[np.ndarray, "layer head text"]
Tables = Float[np.ndarray, "sample rating rating2"]


@dataclass(frozen=True, slots=True, repr=False)
class Measure:
    """A measure and its 95 % bootstrap interval; NaN if it is not defined, as when all ratings of a rater are equal."""

    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        return (
            "-" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]".replace("nan", "-")
        )


@dataclass(frozen=True, slots=True, repr=False)
class Agreement:
    """Measures of agreement over the items that both raters rated."""

    # Number of items, and of clusters of dependent items, such as the texts of one head.
    pairs: int
    clusters: int
    # Share of equal ratings.
    same: float
    kappa: Measure
    spearman: Measure
    kendall: Measure

    def __repr__(self) -> str:
        if not self.pairs:
            return "Agreement(no items rated by both)"
        return (
            f"Agreement({counted(self.pairs, 'item')}, {percent(self.same)} equal, κ {self.kappa}, ρ {self.spearman}, "
            f"τ-b {self.kendall})"
        )


@dataclass(frozen=True, slots=True)
class PairOfRaters:
    """The agreement of two raters on texts, and on the scores (0 to 5) of heads whose five texts both voted on."""

    first: str
    second: str
    texts: Agreement
    heads: Agreement


@dataclass(frozen=True, slots=True, repr=False)
class RaterAgreement(Tabular):
    """The agreement of every pair of raters of a run."""

    pairs: tuple[PairOfRaters, ...]

    def __repr__(self) -> str:
        return f"RaterAgreement({counted(len(self.pairs), 'pair')} of raters)"

    def __iter__(self) -> Iterator[PairOfRaters]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [
            {
                "first": pair.first,
                "second": pair.second,
                "rated": rated,
                "items": found.pairs,
                "same": found.same,
                **{
                    f"{name}{suffix}": value
                    for name, measure in (("kappa", found.kappa), ("rho", found.spearman), ("tau_b", found.kendall))
                    for suffix, value in (("", measure.value), ("_low", measure.low), ("_high", measure.high))
                },
            }
            for pair in self.pairs
            for rated, found in (("texts", pair.texts), ("heads", pair.heads))
        ]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def rater_agreement(
    found: ConceptConsistency, people: Mapping[str, Cast] | None = None, replicates: int = REPLICATES, seed: int = 0
) -> RaterAgreement:
    """Agreement of every two judges, of every two people, and of people with judges and with the judges' majority.

    `people` are votes by the name of each person, as `read_vote_sheet` returns them. Every measure is reported with a
    95 % bootstrap interval over heads, from `replicates` samples. No pair is returned for one rater alone.
    """
    people = people or {}
    judges = dict(zip(found.votes.judges, found.votes.cast, strict=True))
    pairs = list(combinations([*judges.items(), *people.items()], 2))
    if people and len(judges) > 1:
        voted = (found.votes.cast != NO_VOTE).any(axis=0)
        majority = np.where(voted, found.consistent, NO_VOTE).astype(np.int8)
        pairs += [((MAJORITY, majority), person) for person in people.items()]
    return RaterAgreement(
        tuple(
            PairOfRaters(first, second, *_agreements(one, other, found.votes.texts, replicates, seed))
            for (first, one), (second, other) in pairs
        )
    )


def _agreements(
    one: Cast, other: Cast, texts: Int[np.ndarray, "layer head"], replicates: int, seed: int
) -> tuple[Agreement, Agreement]:
    """Agreement on texts, with heads as clusters, and on the scores of heads."""
    both = (one != NO_VOTE) & (other != NO_VOTE)
    head_of = np.broadcast_to(np.arange(texts.size).reshape(*texts.shape, 1), both.shape)
    whole = both.sum(axis=2) == LABELLED_TEXTS
    return (
        agree(one[both].astype(int), other[both].astype(int), head_of[both], replicates, seed),
        agree(one[whole].sum(axis=1), other[whole].sum(axis=1), np.arange(whole.sum()), replicates, seed),
    )


def agree(
    first: Int[np.ndarray, " item"],
    second: Int[np.ndarray, " item"],
    cluster: Int[np.ndarray, " item"],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Agreement:
    """Agreement of two raters on the same items; ratings are whole numbers from 0.

    The percentile bootstrap draws whole clusters, since the texts of one head are not independent. κ is
    unweighted: with more than two ratings, any difference counts the same.
    """
    if not len(first):
        undefined = Measure(float("nan"), float("nan"), float("nan"))
        return Agreement(0, 0, float("nan"), undefined, undefined, undefined)
    ratings = int(max(first.max(), second.max())) + 1
    names, members = np.unique(cluster, return_inverse=True)
    by_cluster = np.zeros((len(names), ratings, ratings))
    np.add.at(by_cluster, (members, first, second), 1.0)
    whole = by_cluster.sum(axis=0)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), replicates)
    samples = np.tensordot(draws.astype(float), by_cluster, axes=1)

    def measured(measure: Callable[[np.ndarray], np.ndarray]) -> Measure:
        found = measure(samples)
        found = found[~np.isnan(found)]
        value = float(measure(whole[None])[0])
        if np.isnan(value) or len(found) < _DEFINED * replicates:
            return Measure(value, float("nan"), float("nan"))
        low, high = np.quantile(found, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
        return Measure(value, float(low), float(high))

    same = float(np.trace(whole) / whole.sum())
    return Agreement(len(first), len(names), same, measured(kappa), measured(spearman), measured(kendall))


def kappa(tables: Tables) -> Float[np.ndarray, " sample"]:
    """Cohen's κ: (observed − expected) / (1 − expected) agreement; NaN if expected is 1. Cohen 1960."""
    total = tables.sum(axis=(1, 2))
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    return _over(np.trace(tables, axis1=1, axis2=2) * total - expected, total**2 - expected)


def spearman(tables: Tables) -> Float[np.ndarray, " sample"]:
    """Spearman's ρ: the correlation of the ranks; equal ratings share their mean rank. Spearman 1904."""
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    total = tables.sum(axis=(1, 2))
    # Ranks minus the mean rank, (n + 1) / 2.
    row_ranks, column_ranks = (
        np.cumsum(counts, axis=1) - counts / 2 - total[:, None] / 2 for counts in (rows, columns)
    )
    together = np.einsum("sij,si,sj->s", tables, row_ranks, column_ranks)
    spread = (rows * row_ranks**2).sum(axis=1) * (columns * column_ranks**2).sum(axis=1)
    return _over(together, np.sqrt(spread))


def kendall(tables: Tables) -> Float[np.ndarray, " sample"]:
    """Kendall's τ-b: concordant minus discordant pairs, divided by the geometric mean of the numbers of pairs that
    each rater does not tie. Kendall 1945."""
    total = tables.sum(axis=(1, 2))
    # For every cell, the sums of the cells below and to the right of it, and below and to the left.
    below = np.cumsum(tables[:, ::-1], axis=1)[:, ::-1] - tables
    right = np.cumsum(below[:, :, ::-1], axis=2)[:, :, ::-1] - below
    left = np.cumsum(below, axis=2) - below
    difference = (tables * (right - left)).sum(axis=(1, 2))
    untied = [total**2 - (counts**2).sum(axis=1) for counts in (tables.sum(axis=2), tables.sum(axis=1))]
    return _over(2 * difference, np.sqrt(untied[0] * untied[1]))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; NaN if the denominator is 0, as when all ratings of a rater are equal."""
    defined = below > 1e-9
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)
