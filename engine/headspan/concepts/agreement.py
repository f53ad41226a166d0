"""How far two raters agree: Cohen's κ, Spearman's ρ and Kendall's τ-b, with bootstrap intervals.

Ratings are small whole numbers (votes of 0 and 1, scores of 0 to 5), so each measure is a function of the table
that counts pairs of ratings, and a bootstrap sample is a sum of such tables. Nothing here knows heads or judges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

REPLICATES = 1000
_COVERED = 0.95
# An interval takes at least this share of samples in which the measure is defined.
_DEFINED = 0.5

Tables = Float[np.ndarray, "sample rating rating2"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure and its 95 % bootstrap interval; NaN where it is not defined, as when a rater never varies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two raters have in common, over `pairs` things that both rated, in `clusters` that belong together."""

    pairs: int
    clusters: int
    # Share of equal ratings.
    same: float
    kappa: Measure
    spearman: Measure
    kendall: Measure


def agree(
    first: Int[np.ndarray, " thing"],
    second: Int[np.ndarray, " thing"],
    cluster: Int[np.ndarray, " thing"],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Agreement:
    """Agreement of two raters on the same things; ratings are whole numbers from 0.

    The bootstrap (percentiles) draws whole clusters, as the texts of one head are not independent. κ is
    unweighted: for more than two ratings it counts near misses like far ones.
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
    """Cohen's κ: (observed − expected) / (1 − expected) agreement. Cohen 1960."""
    total = tables.sum(axis=(1, 2))
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    return _over(np.trace(tables, axis1=1, axis2=2) * total - expected, total**2 - expected)


def spearman(tables: Tables) -> Float[np.ndarray, " sample"]:
    """Spearman's ρ: the correlation of the ranks, equal ratings sharing the mean of theirs."""
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    total = tables.sum(axis=(1, 2))
    # Ranks from their mean, (n + 1) / 2.
    row_ranks, column_ranks = (
        np.cumsum(counts, axis=1) - counts / 2 - total[:, None] / 2 for counts in (rows, columns)
    )
    together = np.einsum("sij,si,sj->s", tables, row_ranks, column_ranks)
    spread = (rows * row_ranks**2).sum(axis=1) * (columns * column_ranks**2).sum(axis=1)
    return _over(together, np.sqrt(spread))


def kendall(tables: Tables) -> Float[np.ndarray, " sample"]:
    """Kendall's τ-b: concordant minus discordant pairs, over the pairs that neither rater ties (geometric mean)."""
    total = tables.sum(axis=(1, 2))
    # Of every cell, what lies below it to the right, and below it to the left.
    below = np.cumsum(tables[:, ::-1], axis=1)[:, ::-1] - tables
    right = np.cumsum(below[:, :, ::-1], axis=2)[:, :, ::-1] - below
    left = np.cumsum(below, axis=2) - below
    difference = (tables * (right - left)).sum(axis=(1, 2))
    untied = [total**2 - (counts**2).sum(axis=1) for counts in (tables.sum(axis=2), tables.sum(axis=1))]
    return _over(2 * difference, np.sqrt(untied[0] * untied[1]))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; NaN where a rater does not vary and there is none."""
    defined = below > 1e-9
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)
