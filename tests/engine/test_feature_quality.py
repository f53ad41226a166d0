"""What codes retrieve and classify, stability over seeds, and SpLiCE, each beside an independent computation."""

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import nnls

from headspan.errors import SettingsError
from headspan.features.scores.sparse_evaluation import _comparable, recalls
from headspan.features.scores.splice import nonnegative_lasso, splice
from headspan.features.scores.stability import matched_cosines, stability


def units(seed: int, count: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_recall_counts_in_both_directions_how_often_the_own_partner_is_among_the_nearest() -> None:
    images = units(0, 61, 5)
    texts = images + 0.8 * units(1, 61, 5)
    found = recalls("dense", images, texts)
    cosines = (texts / np.linalg.norm(texts, axis=1, keepdims=True)) @ images.T
    for direction, scores in (("text_to_image", cosines), ("image_to_text", cosines.T)):
        ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
        for k in (1, 5):
            assert found[f"dense_{direction}_r{k}"] == pytest.approx((ranks < k).mean())
    assert 0 < found["dense_text_to_image_r1"] < found["dense_text_to_image_r5"] < 1


def test_codes_without_an_active_feature_are_found_by_chance() -> None:
    images, texts = np.zeros((10, 3), np.float32), np.ones((10, 3), np.float32)
    found = recalls("codes", *_comparable(images, texts))
    # All scores are equal: one of ten orders has the own partner first.
    assert found["codes_text_to_image_r1"] == found["codes_image_to_text_r1"] == pytest.approx(0.1)
    assert found["codes_text_to_image_r5"] == pytest.approx(0.5)


def test_matching_finds_the_assignment_with_the_largest_sum() -> None:
    one, other = units(0, 6, 3), units(1, 6, 3)
    mine, theirs = matched_cosines(one, other)
    best = max(sum(float(one[row] @ other[column]) for row, column in enumerate(p)) for p in permutations(range(6)))
    assert mine.sum() == pytest.approx(best, abs=1e-5)
    assert theirs.sum() == pytest.approx(best, abs=1e-5)


def test_stability_is_one_for_the_same_features_in_another_order_and_low_for_random_ones() -> None:
    one = units(0, 40, 64)
    same = 3 * one[np.random.default_rng(2).permutation(40)]
    found = stability([one, same])
    assert found.mean == pytest.approx(1, abs=1e-5)
    assert found.shared == 1
    other = stability([one, same, units(1, 50, 64)])
    assert other.random == pytest.approx(float(matched_cosines(units(5, 40, 64), units(6, 40, 64))[0].mean()), abs=0.03)
    # One of three pairs of dictionaries agrees; the others match by chance, and ten features have no match.
    assert other.mean == pytest.approx((1 + 2 * found.random * 40 / 50) / 3, abs=0.03)
    assert [len(each) for each in other.cosines] == [40, 40, 50]
    assert sorted(other.cosines[2])[9] == 0
    with pytest.raises(SettingsError, match=r"^stability compares at least 2 dictionaries, but 1 was given; name two$"):
        stability([one])
    with pytest.raises(SettingsError, match=r"^stability compares dictionaries of one space, .* have 64, 3 numbers"):
        stability([one, units(0, 4, 3)])


def test_the_lasso_with_non_negative_weights_meets_the_conditions_of_its_minimum() -> None:
    atoms, vectors, penalty = units(0, 90, 16), units(1, 7, 16), 0.2
    weights = nonnegative_lasso(vectors, atoms, penalty, 5000)
    assert (weights >= 0).all()
    # At the minimum, an atom's product with the residual is the penalty where it is used, and not above it elsewhere.
    products = (vectors - weights @ atoms) @ atoms.T
    np.testing.assert_allclose(products[weights > 1e-4], penalty, atol=2e-3)
    assert products.max() < penalty + 2e-3
    # Without a penalty it is non-negative least squares.
    free = nonnegative_lasso(vectors, atoms[:12], 0.0, 5000)
    for vector, found in zip(vectors, free, strict=True):
        np.testing.assert_allclose(found, nnls(atoms[:12].T.astype(np.float64), vector)[0], atol=2e-3)


def test_splice_finds_the_texts_that_images_are_made_of() -> None:
    texts = units(0, 60, 48)
    centred = texts - texts.mean(axis=0)
    random = np.random.default_rng(1)
    mixture = np.zeros((30, 60))
    for row in mixture:
        row[random.choice(60, 3, replace=False)] = 0.8 + 0.4 * random.random(3)
    images = (mixture @ (centred / np.linalg.norm(centred, axis=1, keepdims=True))).astype(np.float32)
    found = splice(images, texts, 0.3, image_mean=np.zeros(48, np.float32))
    largest = np.argsort(-found.weights, axis=1)[:, :3]
    assert (np.take_along_axis(mixture, largest, axis=1) > 0).mean() > 0.95
    assert found.l0 == (found.weights > 0).sum() / 30
    assert found.centred_cosine > 0.9
    # With the mean of the images added, as published.
    mean = np.full(48, 0.1, np.float32)
    moved = splice(images, texts, 0.3, image_mean=mean)
    concepts = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    rebuilt = moved.weights @ concepts
    rebuilt = rebuilt / np.linalg.norm(rebuilt, axis=1, keepdims=True) + mean
    rows = images / np.linalg.norm(images, axis=1, keepdims=True)
    expected = (rows * rebuilt).sum(axis=1) / np.linalg.norm(rebuilt, axis=1)
    assert moved.cosine == pytest.approx(expected.mean(), abs=1e-5)
    # A larger penalty leaves fewer texts.
    assert splice(images, texts, 0.8, image_mean=np.zeros(48, np.float32)).l0 < found.l0
