"""Best-of-N from all samples: against all subsets, and its KL against exact ones of distributions that are known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from headspan.describe.writing.best_of import best_of, best_of_kl, best_of_mixture, count_at_kl, samples_for


def exact_best_of(probabilities: np.ndarray, count: float) -> np.ndarray:
    """The distribution of the best of `count` draws, if the outcomes are in the order of their rewards."""
    lower = int(count)
    whole = np.concatenate([[0.0], np.cumsum(probabilities)])
    found = np.diff(whole**lower)
    share = count - lower
    return (1 - share) * found + share * np.diff(whole ** (lower + 1)) if share else found


def exact_kl(ours: np.ndarray, base: np.ndarray) -> float:
    return float((ours[ours > 0] * np.log(ours[ours > 0] / base[ours > 0])).sum())


def test_the_expected_best_is_the_mean_over_all_subsets() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 7))
    # Equal rewards are no exception.
    rewards[1, 2:5] = rewards[1, 0]
    for count in range(1, 8):
        expected = [np.mean([max(subset) for subset in combinations(row, count)]) for row in rewards]
        np.testing.assert_allclose(best_of(rewards, count), expected, rtol=1e-13)


def test_the_expected_best_has_no_bias_however_many_samples_there_are() -> None:
    # The best of 5 of uniform numbers is 5/6 on average.
    samples = np.random.default_rng(1).uniform(size=(20_000, 9))
    error = np.sqrt(5 / 7 - 25 / 36) / np.sqrt(20_000)
    assert abs(best_of(samples, 5).mean() - 5 / 6) < 4 * error


@pytest.mark.parametrize("count", [1, 2, 5.25, 17, 64])
def test_the_divergence_is_at_most_the_bound_and_reaches_it_where_no_outcome_is_probable(count: float) -> None:
    lower = int(count)
    share = count - lower
    bound = (1 - share) * best_of_kl(lower) + share * best_of_kl(lower + 1)
    many, few = np.full(200_000, 1 / 200_000), np.array([0.5, 0.3, 0.15, 0.05])
    divergence = exact_kl(exact_best_of(many, count), many)
    assert divergence <= bound + 1e-9
    if not share:
        assert divergence == pytest.approx(bound, abs=1e-3)
    assert exact_kl(exact_best_of(few, count), few) <= bound + 1e-9
    # Of few outcomes, the last one is certain in the end, and no divergence exceeds that.
    assert exact_kl(exact_best_of(few, count), few) <= -np.log(0.05)


def test_a_divergence_gives_back_its_count_and_none_where_samples_are_too_few() -> None:
    for count in (1, 2, 3, 40, 64):
        assert count_at_kl(best_of_kl(count), 64) == pytest.approx(count, abs=1e-9)
    found = count_at_kl(1.0, 64)
    assert found is not None
    assert best_of_kl(int(found)) < 1.0 < best_of_kl(int(found) + 1)
    assert count_at_kl(-0.2, 64) == count_at_kl(0.0, 1) == 1.0
    assert count_at_kl(best_of_kl(64) + 1e-6, 64) is None
    for kl in (0.0, 0.7, 3.9, 6.0):
        assert count_at_kl(kl, samples_for(kl)) is not None


def test_between_two_counts_the_reward_is_that_of_their_mixture() -> None:
    rewards = np.random.default_rng(2).normal(size=(5, 11))
    np.testing.assert_allclose(
        best_of_mixture(rewards, 3.25), 0.75 * best_of(rewards, 3) + 0.25 * best_of(rewards, 4), rtol=1e-13
    )
    np.testing.assert_array_equal(best_of_mixture(rewards, 11.0), rewards.max(axis=1))
