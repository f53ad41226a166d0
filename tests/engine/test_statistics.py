"""Statistics of studies, compared with enumeration, brute force, and SciPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations, product
from math import comb, isnan

import numpy as np
import pytest
from scipy.stats import spearmanr

from headspan.prune.studies import statistics
from headspan.prune.studies.statistics import (
    bootstrapped,
    mcnemar,
    paired_bootstrap,
    rank_correlation_of_heads,
    resampling_counts,
)
from headspan.tasks.task import Task


@dataclass(frozen=True)
class Shares:
    """An evaluation whose outcome of an item is whether it is right."""

    headline = "accuracy"
    higher_is_better = True
    task = Task("shares", "accuracy")

    def outcomes(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings[:, 0] > 0

    def figures(self, outcomes: np.ndarray) -> Mapping[str, float]:
        return {"accuracy": float(outcomes.mean())}

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return (counts @ outcomes.astype(np.float64)) / counts.sum(axis=1)

    def correct(self, outcomes: np.ndarray) -> np.ndarray:
        return outcomes


def _outcomes(items: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(items) < share


@pytest.mark.parametrize("items", [1, 3, 257])
def test_every_draw_has_as_many_items_as_there_are_whatever_the_block(
    items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.concatenate(list(resampling_counts(items, samples=31, seed=4)))
    assert whole.shape == (31, items)
    assert (whole.sum(axis=1) == items).all()
    monkeypatch.setattr(statistics, "_BLOCK", 2 * items)
    blocks = list(resampling_counts(items, samples=31, seed=4))
    assert [len(block) for block in blocks] == [2] * 15 + [1]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_the_bootstrap_draws_multisets_as_often_as_enumeration_says() -> None:
    items, samples = 3, 27_000
    drawn = np.concatenate(list(resampling_counts(items, samples, seed=1))).astype(int)
    wanted = np.zeros((4, 4, 4))
    for chosen in product(range(items), repeat=items):
        wanted[tuple(np.bincount(chosen, minlength=items))] += 1 / items**items
    found = np.zeros((4, 4, 4))
    for row in drawn:
        found[tuple(row)] += 1 / samples
    # Five standard deviations of a binomial share.
    np.testing.assert_array_less(np.abs(found - wanted), 5 * np.sqrt(wanted * (1 - wanted) / samples) + 1e-12)


def test_the_paired_interval_is_that_of_the_differences_of_items() -> None:
    before, after = _outcomes(400, 0.8, 0), _outcomes(400, 0.6, 1)
    (found,) = paired_bootstrap(Shares(), before, [after], samples=4000, seed=0)
    differences = after.astype(float) - before.astype(float)
    assert found.value == pytest.approx(differences.mean())
    # The percentile interval of a mean of 400 items is close to the normal one.
    error = differences.std() / 20
    assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)


def test_items_are_drawn_in_pairs_so_equal_outcomes_have_an_empty_interval() -> None:
    before = _outcomes(50, 0.5, 0)
    (same,) = paired_bootstrap(Shares(), before, [before.copy()], samples=100)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    drawn = bootstrapped(Shares(), [before, ~before], samples=100)
    np.testing.assert_allclose(drawn.sum(axis=0), 1)
    assert drawn[0].std() > 0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (9, 2), (7, 7), (30, 12)])
def test_mcnemar_is_exact(lost: int, gained: int) -> None:
    before = np.array([True] * lost + [False] * gained + [True] * 5 + [False] * 3)
    after = np.array([False] * lost + [True] * gained + [True] * 5 + [False] * 3)
    found = mcnemar(before, after)
    assert (found.lost, found.gained) == (lost, gained)
    n, least = lost + gained, min(lost, gained)
    tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("heads", [4, 24, 257])
def test_the_rank_correlation_is_scipys(heads: int) -> None:
    random = np.random.default_rng(heads)
    scores = random.integers(0, 6, heads).astype(float)
    effects = scores + 3 * random.standard_normal(heads)
    found = rank_correlation_of_heads(scores, effects, np.arange(heads) % 2, permutations=999)
    wanted = spearmanr(scores, effects)
    assert found.rho == pytest.approx(wanted.statistic)
    if heads > 100:
        assert found.p == pytest.approx(wanted.pvalue, abs=0.02)


def test_within_layers_it_is_the_partial_correlation_of_regressed_ranks() -> None:
    random = np.random.default_rng(0)
    layers = np.repeat([8, 9, 10, 11], [3, 5, 12, 4])
    scores = random.integers(0, 6, len(layers)).astype(float)
    effects = layers + random.standard_normal(len(layers))
    found = rank_correlation_of_heads(scores, effects, layers, permutations=99)
    indicators = (layers[:, None] == np.unique(layers)).astype(float)

    def residuals(values: np.ndarray) -> np.ndarray:
        ranks = np.array([(values < value).sum() + (values == value).sum() / 2 for value in values])
        return ranks - indicators @ np.linalg.lstsq(indicators, ranks, rcond=None)[0]

    assert found.within_layers == pytest.approx(np.corrcoef(residuals(scores), residuals(effects))[0, 1])


def test_the_p_within_layers_is_that_of_all_permutations_within_layers() -> None:
    layers = np.array([0, 0, 0, 1, 1, 1, 1])
    scores, effects = np.array([0.0, 1, 5, 1, 3, 5, 0]), np.array([0.3, 0.1, 0.9, 0.2, 0.3, 0.8, 0.5])
    found = rank_correlation_of_heads(scores, effects, layers, permutations=20_000)
    every = [
        rank_correlation_of_heads(scores, np.array([*first, *second]), layers, permutations=1).within_layers
        for first in permutations(effects[:3])
        for second in permutations(effects[3:])
    ]
    # The ranks over all heads stay in their layers, so the correlation needs no new ranking.
    wanted = np.mean(np.abs(every) >= abs(found.within_layers) - 1e-9)
    assert found.p_within_layers == pytest.approx(wanted, abs=0.02)


def test_a_score_that_only_follows_depth_does_not_count_within_layers() -> None:
    random = np.random.default_rng(3)
    layers = np.repeat(np.arange(4), 12)
    scores, effects = layers + random.integers(0, 2, 48), 10.0 * layers + random.standard_normal(48)
    found = rank_correlation_of_heads(scores.astype(float), effects, layers, permutations=999)
    assert found.rho > 0.8
    assert found.p == 0.001
    assert found.p_within_layers > 0.05


def test_equal_scores_have_no_correlation() -> None:
    found = rank_correlation_of_heads(np.full(6, 5.0), np.arange(6.0), np.repeat([0, 1], 3), permutations=9)
    assert isnan(found.rho)
    assert isnan(found.p_within_layers)
    # Equal within layers, but not between them.
    found = rank_correlation_of_heads(np.repeat([1.0, 5], 3), np.arange(6.0), np.repeat([0, 1], 3), permutations=9)
    assert found.rho > 0.8
    assert isnan(found.within_layers)
