"""Measures of agreement, compared with their definitions pair by pair and with published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from headspan.concepts.agreement import agree, rater_agreement
from headspan.concepts.consistency import NO_VOTE, ConceptConsistency, Votes
from headspan.concepts.labels import Labels


def by_hand(first: list[int], second: list[int]) -> tuple[float, float, float]:
    """κ, ρ and τ-b from their definitions over items and pairs of items."""
    count = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / count
    expected = sum(first.count(rating) * second.count(rating) for rating in set(first)) / count**2
    kappa = (observed - expected) / (1 - expected) if expected != 1 else math.nan

    def ranks(ratings: list[int]) -> list[float]:
        return [sum(other < one for other in ratings) + (ratings.count(one) + 1) / 2 for one in ratings]

    with np.errstate(invalid="ignore", divide="ignore"):
        rho = float(np.corrcoef(ranks(first), ranks(second))[0, 1])
    difference = first_untied = second_untied = 0
    for one, other in itertools.combinations(range(count), 2):
        a, b = np.sign(first[one] - first[other]), np.sign(second[one] - second[other])
        difference += a * b
        first_untied += a != 0
        second_untied += b != 0
    product = float(first_untied * second_untied)
    return kappa, rho, float(difference) / math.sqrt(product) if product else math.nan


@pytest.mark.parametrize("ratings", [2, 6])
@pytest.mark.parametrize("count", [2, 3, 57])
def test_measures_agree_with_their_definitions(count: int, ratings: int) -> None:
    random = np.random.default_rng(count * ratings)
    for _ in range(10):
        first = random.integers(0, ratings, count)
        second = np.where(random.random(count) < 0.6, first, random.integers(0, ratings, count))
        found = agree(first, second, np.arange(count), replicates=3)
        wanted = by_hand(first.tolist(), second.tolist())
        values = [found.kappa.value, found.spearman.value, found.kendall.value]
        assert values == pytest.approx(wanted, nan_ok=True)


def test_kappa_equals_a_published_example() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: κ = 0.4 in every textbook.
    first = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    second = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    found = agree(first, second, np.arange(50))
    assert found.kappa.value == pytest.approx(0.4)
    assert found.same == 0.7
    assert found.pairs == found.clusters == 50
    # Fleiss, Cohen and Everitt's large-sample standard error for this table is 0.129.
    assert found.kappa.low == pytest.approx(0.4 - 1.96 * 0.129, abs=0.05)
    assert found.kappa.high == pytest.approx(0.4 + 1.96 * 0.129, abs=0.05)


def test_rank_correlations_equal_published_examples() -> None:
    def ranked(first: list[int], second: list[int]) -> tuple[float, float]:
        found = agree(np.array(first), np.array(second), np.arange(len(first)), replicates=3)
        return found.spearman.value, found.kendall.value

    # Wikipedia's: hours of television by intelligence quotient.
    quotients, hours = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert ranked(quotients, hours)[0] == pytest.approx(-29 / 165)
    # SciPy's documentation of `spearmanr` and of `kendalltau` (τ-b, with ties).
    assert ranked([1, 2, 3, 4, 5], [5, 6, 7, 8, 7])[0] == pytest.approx(0.8207826816681233)
    assert ranked([12, 2, 1, 12, 2], [1, 4, 7, 1, 0])[1] == pytest.approx(-0.47140452079103173)


def test_measures_are_nan_if_all_votes_of_a_rater_are_equal() -> None:
    found = agree(np.ones(9, int), np.array([0, 1, 1] * 3), np.arange(9))
    assert found.same == pytest.approx(2 / 3)
    assert math.isnan(found.spearman.value)
    assert math.isnan(found.kendall.value)
    # κ is defined: it is 0, the agreement by chance.
    assert found.kappa.value == 0
    both = agree(np.ones(9, int), np.ones(9, int), np.arange(9))
    assert math.isnan(both.kappa.value)
    assert both.same == 1


def test_measures_are_nan_without_common_items() -> None:
    none = np.zeros(0, int)
    found = agree(none, none, none)
    assert found.pairs == 0
    assert math.isnan(found.kappa.value)


def test_the_bootstrap_draws_whole_heads() -> None:
    random = np.random.default_rng(0)
    heads = np.repeat(np.arange(20), 5)
    first = np.repeat(random.integers(0, 2, 20), 5)
    second = np.where(np.repeat(random.random(20) < 0.8, 5), first, 1 - first)
    together = agree(first, second, heads).kappa
    apart = agree(first, second, np.arange(100)).kappa
    assert together.value == apart.value
    # Five equal votes of a head are one observation, so the interval is √5 times as wide.
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_intervals_cover_the_true_value_in_95_percent_of_samples() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        first = random.integers(0, 2, 100)
        # One vote in ten is flipped: κ = 0.8.
        second = np.where(random.random(100) < 0.9, first, 1 - first)
        found = agree(first, second, np.arange(100), replicates=200).kappa
        covered += found.low <= 0.8 <= found.high
    assert 0.88 < covered / 200 < 0.99


def votes(*judges: list[list[list[int]]]) -> ConceptConsistency:
    """Votes on heads of one layer, one list for each judge."""
    cast = np.array(judges, np.int8)
    heads = cast.shape[2]
    labels = Labels("hand", "by hand", (8,), (("a",) * heads,), None)
    return ConceptConsistency(labels, Votes(tuple("ABCD"[: len(judges)]), cast, np.full((1, heads), 5, np.int8)))


def test_judges_and_people_are_compared_in_pairs_on_the_texts_that_both_rated() -> None:
    first = [[[1, 1, 1, 1, 1], [0, 0, 1, 0, 1], [1, 0, 0, 0, NO_VOTE]]]
    second = [[[1, 1, 1, 0, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]]
    person = np.full((1, 3, 5), NO_VOTE, np.int8)
    person[0, 1] = [0, 0, 1, 0, 1]
    pairs = rater_agreement(votes(first, second), {"me": person})
    assert [(pair.first, pair.second) for pair in pairs] == [("A", "B"), ("A", "me"), ("B", "me"), ("majority", "me")]
    judges, mine, other, majority = pairs
    assert (judges.texts.pairs, judges.texts.clusters) == (14, 3)
    assert judges.texts.same == pytest.approx(11 / 14)
    # A did not vote on one text of the third head, so this head has no score from A.
    assert judges.heads.pairs == 2
    assert mine.texts.pairs == 5
    assert mine.texts.same == 1
    assert other.texts.same == 0.8
    # One yes and one no are a tie, which is not consistent.
    assert majority.texts.same == 1


def test_one_judge_alone_gives_no_pair() -> None:
    assert len(rater_agreement(votes([[[1, 0, 1, 0, 1]]]), {})) == 0
