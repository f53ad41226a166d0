"""Scores of features as running sums equal what plain loops over all pairs give, whatever the blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from headspan.features.scores.classes import by_interval, by_spread, spread
from headspan.features.scores.codes import at_same_places, sparse_codes, weighted_sums
from headspan.features.scores.dominance import DominanceSums
from headspan.features.scores.groups import groups_of, image_hash
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED
from headspan.features.scores.shuffled import ShuffledPairs

PAIRS, FEATURES = 257, 13


def random_codes(seed: int, share: float = 0.2, pairs: int = PAIRS) -> np.ndarray:
    """Codes, most of them 0; feature 0 is never active, feature 1 in one row only, and the last always."""
    random = np.random.default_rng(seed)
    codes = random.gamma(2.0, size=(pairs, FEATURES)) * (random.random((pairs, FEATURES)) < share)
    codes[:, :2] = 0
    codes[min(5, pairs - 1), 1] = 1.5
    codes[:, -1] += 0.25
    return np.asarray(codes)


def blocks_of(sizes: Sequence[int], pairs: int = PAIRS) -> Iterator[slice]:
    first = 0
    while first < pairs:
        for size in sizes:
            yield slice(first, min(pairs, first + size))
            first = min(pairs, first + size)


def looped(z: np.ndarray, w: np.ndarray, feature: int) -> tuple[float, int]:
    """MDS and its number of pairs, pair by pair."""
    ratios = [a / (a + b) for a, b in zip(z[:, feature], w[:, feature], strict=True) if a > 0 or b > 0]
    return (float(np.mean(ratios)) if ratios else float("nan")), len(ratios)


def test_sparse_codes_hold_the_positive_numbers_of_each_row_at_their_features() -> None:
    dense = random_codes(0) - 0.1 * (random_codes(9) > 0)
    codes = sparse_codes(dense)
    np.testing.assert_array_equal(codes.toarray(), np.maximum(dense, 0))
    assert codes.has_sorted_indices
    assert sparse_codes(np.zeros((3, 4))).nnz == 0
    other = random_codes(1)
    np.testing.assert_array_equal(at_same_places(codes, sparse_codes(other)), other[dense > 0])
    np.testing.assert_array_equal(at_same_places(codes, sparse_codes(0 * other)), 0 * other[dense > 0])
    vectors = np.random.default_rng(2).standard_normal((PAIRS, 7))
    np.testing.assert_allclose(weighted_sums(codes, vectors), np.maximum(dense, 0).T @ vectors, atol=1e-12)


@pytest.mark.parametrize("sizes", [[PAIRS], [1], [100, 3, 64]], ids=str)
def test_mds_and_energy_equal_loops_over_pairs_for_any_blocks(sizes: list[int]) -> None:
    z, w = random_codes(0), random_codes(1, 0.1)
    image, store = np.arange(PAIRS) // 2, np.zeros(PAIRS, np.int64)
    sums, once = DominanceSums(FEATURES, 16), DominanceSums(FEATURES, 16)
    once.add(sparse_codes(z), sparse_codes(w), groups_of(store, image, groups=16))
    for some in blocks_of(sizes):
        sums.add(sparse_codes(z[some]), sparse_codes(w[some]), groups_of(store[some], image[some], groups=16))
    found, whole = sums.scores(), once.scores()
    assert found.pairs == PAIRS
    for feature in range(FEATURES):
        mds, active = looped(z, w, feature)
        assert found.active[feature] == active
        assert found.mds[feature] == pytest.approx(mds, abs=1e-12, nan_ok=True)
    energy = np.array([(a**2).sum() / max((a**2).sum() + (b**2).sum(), 1e-300) for a, b in zip(z.T, w.T, strict=True)])
    energy[0] = np.nan
    np.testing.assert_allclose(found.energy, energy, atol=1e-12)
    np.testing.assert_array_equal(found.image_active, (z > 0).sum(axis=0))
    np.testing.assert_array_equal(found.both_active, ((z > 0) & (w > 0)).sum(axis=0))
    # The draws do not depend on the blocks either.
    np.testing.assert_allclose(found.mds_interval, whole.mds_interval, atol=1e-12)
    np.testing.assert_allclose(found.energy_interval, whole.energy_interval, atol=1e-12)
    assert np.isnan(found.mds_interval[0]).all()


def test_the_interval_is_that_of_a_bootstrap_over_images() -> None:
    random = np.random.default_rng(3)
    images = 1500
    # Two captions an image, which say the same: pairs are not independent.
    z, w = (
        np.repeat(random.gamma(2.0, size=(images, 1)) * (random.random((images, 1)) < share), 2, axis=0)
        for share in (0.3, 0.2)
    )
    image = np.repeat(np.arange(images), 2)
    sums = DominanceSums(1)
    sums.add(sparse_codes(z), sparse_codes(w), groups_of(np.zeros_like(image), image))
    found = sums.scores()
    active = (z + w > 0)[:, 0]
    ratio = np.divide(z, z + w, out=np.zeros_like(z), where=z + w > 0)[:, 0]
    by_image = np.stack([ratio, active]).reshape(2, images, 2).sum(axis=2)
    drawn = by_image[:, random.integers(images, size=(2000, images))].sum(axis=2)
    exact = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    width = exact[1] - exact[0]
    # Three relative standard errors of 4 % by the groups, and as much by the draws of either.
    assert np.abs(found.mds_interval[0] - exact).max() < 0.12 * width
    # A bootstrap over pairs would be too narrow, by a factor of 1/√2.
    pairs = random.integers(2 * images, size=(1000, 2 * images))
    narrow = np.quantile(ratio[pairs].sum(axis=1) / active[pairs].sum(axis=1), [0.025, 0.975])
    assert narrow[1] - narrow[0] < 0.88 * (found.mds_interval[0, 1] - found.mds_interval[0, 0])


def test_images_are_dealt_evenly_and_each_always_to_the_same_group() -> None:
    image = np.arange(50_000)
    first, second = (groups_of(np.full(50_000, store), image, groups=64) for store in (0, 1))
    counts = np.bincount(first, minlength=64)
    # A χ² of 63 degrees of freedom is above 113 with a probability of 1e-4.
    assert ((counts - 50_000 / 64) ** 2 / (50_000 / 64)).sum() < 113
    assert np.mean(first == second) == pytest.approx(1 / 64, abs=0.004)
    assert groups_of(np.array([1]), image[[40_001]], groups=64) == second[40_001]
    assert len(np.unique(image_hash(np.zeros_like(image), image, 1))) == 50_000


@pytest.mark.parametrize(("pairs", "shift"), [(PAIRS, 40), (PAIRS, PAIRS), (PAIRS, 1000), (41, 40), (40, 40), (3, 40)])
@pytest.mark.parametrize("sizes", [[1000], [1], [7, 50]], ids=str)
def test_shuffling_in_a_stream_is_one_permutation_without_fixed_pairs(pairs: int, shift: int, sizes: list[int]) -> None:
    z, w = random_codes(0, pairs=pairs), random_codes(1, pairs=pairs)
    # The number of each pair, so that rows can be told apart.
    z[:, 0] = w[:, 0] = 1 + np.arange(pairs)
    stream, found = ShuffledPairs(shift), []
    for some in blocks_of(sizes, pairs):
        found += list(stream.add(sparse_codes(z[some]), sparse_codes(w[some])))
    found += list(stream.rest())
    images, texts = (np.vstack([each[side].toarray() for each in found]) for side in (0, 1))
    order, partner = (each[:, 0].astype(int) - 1 for each in (images, texts))
    assert sorted(order) == sorted(partner) == list(range(pairs))
    np.testing.assert_array_equal(partner, (order - (shift if pairs > shift else pairs // 2)) % pairs)
    assert (order != partner).all()
    np.testing.assert_array_equal(images, z[order])
    np.testing.assert_array_equal(texts, w[partner])


def test_a_single_pair_cannot_be_shuffled() -> None:
    stream, code = ShuffledPairs(), sparse_codes(np.ones((1, 2)))
    assert list(stream.add(code, code)) == list(stream.rest()) == []


def test_classes_follow_the_spread_or_the_interval_and_need_twenty_pairs() -> None:
    mds = np.array([0.0, 0.5, 0.5, 0.55, 1.0, 1.0, np.nan])
    active = np.array([30, 30, 20, 30, 30, 19, 0])
    low, high = spread(mds, active)
    assert (low, high) == pytest.approx((0.51 - np.std(mds[:5]), 0.51 + np.std(mds[:5])))
    expected = [TEXT_DOMINANT, CROSS_MODAL, CROSS_MODAL, CROSS_MODAL, IMAGE_DOMINANT, UNDECIDED, UNDECIDED]
    assert by_spread(mds, active).tolist() == expected
    interval = np.array([[0, 0.2], [0.34, 0.6], [0.3, 0.5], [0.5, 0.9], [0.7, 1], [0.9, 1], [np.nan, np.nan]])
    expected = [TEXT_DOMINANT, CROSS_MODAL, UNDECIDED, UNDECIDED, IMAGE_DOMINANT, UNDECIDED, UNDECIDED]
    assert by_interval(interval, active).tolist() == expected
    # In a dictionary that splits the modalities, no MDS is beyond one standard deviation of the mean.
    split = np.array([0.0, 1.0] * 4)
    assert set(by_spread(split, np.full(8, 99)).tolist()) == {CROSS_MODAL}
