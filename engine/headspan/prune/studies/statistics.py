"""Statistics of paired outcomes: bootstrap intervals, McNemar's exact test, and rank correlation within layers.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile intervals); McNemar, Psychometrika
12, 1947, in its exact binomial form; Conover, "Practical Nonparametric Statistics", 1999 (rank correlation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from headspan.tasks.evaluation import Evaluation

# Bootstrap samples, and permutations of a test.
SAMPLES, PERMUTATIONS = 1000, 9999
# The numbers of times that items occur are drawn for so many samples and items at once: 32 MB.
_BLOCK = 8_000_000
# An interval holds this share of the samples.
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test: items that became wrong, items that became right, and the exact two-sided p."""

    lost: int
    gained: int
    p: float


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's rank correlation over heads, and the same with the layer as covariate."""

    heads: int
    # NaN if all scores or all effects are equal.
    rho: float
    p: float
    # The correlation of the ranks within layers; NaN if they are all equal there.
    within_layers: float
    p_within_layers: float


def resampling_counts(items: int, samples: int = SAMPLES, seed: int = 0) -> Iterator[Float32[np.ndarray, "draw item"]]:
    """Blocks of draws of a bootstrap: how often each of `items` occurs when as many are drawn with replacement.

    The draws depend on the arguments alone, so that the same items are drawn for every variant of a model.
    """
    random, block = np.random.default_rng(seed), max(1, min(samples, _BLOCK // max(items, 1)))
    for start in range(0, samples, block):
        size = min(block, samples - start)
        # Equal in distribution to a multinomial draw, and an order of magnitude faster for many items.
        yield np.stack([np.bincount(random.integers(items, size=items), minlength=items) for _ in range(size)]).astype(
            np.float32
        )


def bootstrapped(
    evaluation: Evaluation, outcomes: Sequence[np.ndarray], samples: int = SAMPLES, seed: int = 0
) -> Float64[np.ndarray, "outcomes draw"]:
    """The headline of each of `outcomes` in each bootstrap sample of the items, the same samples for all of them."""
    blocks = resampling_counts(len(outcomes[0]), samples, seed)
    return np.concatenate([[evaluation.resampled(each, counts) for each in outcomes] for counts in blocks], axis=1)


def paired_bootstrap(
    evaluation: Evaluation,
    before: np.ndarray,
    afters: Sequence[np.ndarray],
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """The change of the headline from `before` to each of `afters`, which are outcomes of the same items.

    Items are resampled, and an item is drawn for both at once. `samples` and `seed` are those of `bootstrapped`.
    """
    drawn = bootstrapped(evaluation, [before, *afters], samples, seed)
    values = [_headline(evaluation, each) for each in (before, *afters)]
    return [interval(value - values[0], row - drawn[0]) for value, row in zip(values[1:], drawn[1:], strict=True)]


def mcnemar(before: Bool[np.ndarray, " item"], after: Bool[np.ndarray, " item"]) -> McNemar:
    """Whether items that became wrong are more or fewer than those that became right; exact, two-sided."""
    return mcnemar_of(int((before & ~after).sum()), int((~before & after).sum()))


def mcnemar_of(lost: int, gained: int) -> McNemar:
    """The same, from the numbers of items that became wrong and that became right."""
    # Imported here, because it takes longer than most commands.
    from scipy.stats import binomtest

    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p)


def rank_correlation_of_heads(
    scores: Float[np.ndarray, " head"],
    effects: Float[np.ndarray, " head"],
    layers: Int[np.ndarray, " head"],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> RankCorrelation:
    """Correlate heads' scores with the effect of each, with and without the layer as covariate.

    `within_layers` is the partial rank correlation: the correlation of the ranks over all heads, from which the mean
    of each layer has been subtracted, which is what regressing them on an indicator of each layer leaves. Both `p` are
    two-sided and by permutation, of all heads or of the heads of each layer.
    """
    from scipy.stats import rankdata

    of_scores, of_effects = rankdata(scores), rankdata(effects)
    random = np.random.default_rng(seed)
    rho, p = _permuted(of_scores, of_effects, np.zeros_like(layers), permutations, random)
    partial, p_partial = _permuted(of_scores, of_effects, layers, permutations, random)
    return RankCorrelation(len(layers), rho, p, partial, p_partial)


def _permuted(
    first: Float64[np.ndarray, " head"],
    second: Float64[np.ndarray, " head"],
    blocks: Int[np.ndarray, " head"],
    permutations: int,
    random: np.random.Generator,
) -> tuple[float, float]:
    """The correlation of two rankings centred in each block, and its p when heads change places in their block."""
    left, right = _centred(first, blocks), _centred(second, blocks)
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    # Centred ranks that are all equal are zero but for rounding, and ranks differ by at least one half.
    if min(np.abs(left).max(initial=0), np.abs(right).max(initial=0)) < 1e-6:
        return float("nan"), float("nan")
    order = np.argsort(blocks, kind="stable")
    sizes = np.unique(blocks, return_counts=True)[1]
    left, right = left[order], right[order]
    observed, parts = float(left @ right), np.split(right, np.cumsum(sizes)[:-1])
    drawn = sum(
        random.permuted(np.tile(part, (permutations, 1)), axis=1) @ own
        for part, own in zip(parts, np.split(left, np.cumsum(sizes)[:-1]), strict=True)
    )
    # Equal correlations count as such whatever the order of their sums.
    as_large = int((np.abs(drawn) >= abs(observed) - 1e-9 * scale).sum())
    return observed / scale, (1 + as_large) / (1 + permutations)


def _centred(ranks: Float64[np.ndarray, " head"], blocks: Int[np.ndarray, " head"]) -> Float64[np.ndarray, " head"]:
    _, places = np.unique(blocks, return_inverse=True)
    return ranks - (np.bincount(places, ranks) / np.bincount(places))[places]


def _headline(evaluation: Evaluation, outcomes: np.ndarray) -> float:
    return float(evaluation.figures(outcomes)[evaluation.headline])


def interval(value: float, drawn: Float64[np.ndarray, " draw"]) -> Interval:
    """The interval of `drawn`; samples in which the figure is not defined are left out."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
