"""Monosemanticity in closed form, similarity of top samples and reconstruction, each beside a plain loop."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest

from headspan.features.scores.codes import sparse_codes
from headspan.features.scores.monosemanticity import Reservoir, SideSums, top_similarity, win_rate
from headspan.features.scores.reconstruction import ReconstructionSums
from headspan.features.scores.tops import RunningTop

SAMPLES, FEATURES, WIDTH = 67, 6, 5
BLOCKS = [[SAMPLES], [1], [30, 7]]


def units(seed: int, count: int = SAMPLES) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)) + 0.3
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def codes(seed: int) -> np.ndarray:
    """Feature 0 is never active, feature 1 once, feature 2 always, feature 3 always and equally."""
    random = np.random.default_rng(seed)
    found = random.gamma(2.0, size=(SAMPLES, FEATURES)) * (random.random((SAMPLES, FEATURES)) < 0.3)
    found[:, :4] = 0
    found[11, 1] = 2
    found[:, 2] = 0.5 + random.random(SAMPLES)
    found[:, 3] = 0.7
    return np.asarray(found)


def blocks_of(sizes: Sequence[int]) -> Iterator[slice]:
    first = 0
    while first < SAMPLES:
        for size in sizes:
            yield slice(first, first + size)
            first += size


def sums_of(dense: np.ndarray, vectors: np.ndarray, sizes: Sequence[int]) -> SideSums:
    sums = SideSums(FEATURES, WIDTH)
    for some in blocks_of(sizes):
        if len(dense[some]):
            sums.add(sparse_codes(dense[some]), vectors[some])
    return sums


def scaled(code: np.ndarray) -> np.ndarray:
    return np.asarray((code - code.min()) / (code.max() - code.min()))


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_the_closed_form_of_monosemanticity_equals_the_loop_over_pairs(sizes: list[int]) -> None:
    dense, vectors = codes(0), units(1)
    found = sums_of(dense, vectors, sizes).scaled().monosemanticity()
    assert np.isnan(found[[0, 1, 3]]).all()
    for feature in (2, 4, 5):
        code = scaled(dense[:, feature])
        above = below = 0.0
        for one, other in combinations(range(SAMPLES), 2):
            weight = code[one] * code[other]
            above += weight * float(vectors[one] @ vectors[other])
            below += weight
        assert found[feature] == pytest.approx(above / below, abs=1e-12)


def test_sums_of_float32_give_monosemanticity_to_six_digits() -> None:
    dense, vectors = codes(0), units(1)
    exact = sums_of(dense, vectors, [SAMPLES]).scaled().monosemanticity()
    rough = sums_of(dense.astype(np.float32), vectors.astype(np.float32), [30, 7]).scaled().monosemanticity()
    np.testing.assert_allclose(rough, exact, atol=1e-6)


def test_the_score_across_sides_equals_the_loop_over_images_and_texts() -> None:
    one, other, images, texts = codes(0), codes(2), units(1), units(3)
    scaled_sums = sums_of(one, images, [30, 7]).scaled(), sums_of(other, texts, [1]).scaled()
    found = scaled_sums[0].across(scaled_sums[1])
    assert np.isnan(found[[0, 3]]).all()
    for feature in (1, 2, 4, 5):
        a, b = scaled(one[:, feature]), scaled(other[:, feature])
        pairs = [(a[i] * b[j], float(images[i] @ texts[j])) for i in range(SAMPLES) for j in range(SAMPLES)]
        expected = sum(weight * cosine for weight, cosine in pairs) / sum(weight for weight, _ in pairs)
        assert found[feature] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_the_largest_codes_are_kept_once_for_each_number_whatever_the_blocks(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headspan.features.scores.tops._WAITING", 40)
    dense = np.round(codes(4), 1)
    # Captions repeat, and a caption's code is the same each time; rounding gives ties between captions.
    caption = np.random.default_rng(5).integers(0, 25, SAMPLES)
    dense = dense[np.searchsorted(np.unique(caption), caption)]
    image = np.random.default_rng(6).permutation(SAMPLES)
    top = RunningTop(FEATURES, 4)
    for some in blocks_of(sizes):
        if len(dense[some]):
            top.add(sparse_codes(dense[some]), caption[some], image[some])
    numbers, values, images = top.tables()
    for feature in range(FEATURES):
        code = {int(each): float(dense[caption == each, feature][0]) for each in np.unique(caption)}
        expected = sorted((-value, each) for each, value in code.items() if value > 0)[:4]
        filled = expected + [(0.0, -1)] * (4 - len(expected))
        assert numbers[feature].tolist() == [each for _, each in filled]
        np.testing.assert_allclose(values[feature], [-value for value, _ in filled], rtol=1e-6)
        smallest = [image[caption == each].min() if each >= 0 else -1 for _, each in filled]
        assert images[feature].tolist() == smallest


def test_the_similarity_of_top_samples_is_their_mean_cosine() -> None:
    vectors = units(0).astype(np.float32)
    numbers = np.array([[3, 9, 4, 60, 5], [7, 8, 9, -1, -1], [-1] * 5])
    found = top_similarity(numbers, vectors, (2, 3, 5, 50))
    cosines = [[float(vectors[a] @ vectors[b]) for a, b in combinations(row, 2)] for row in ([3, 9, 4], [7, 8, 9])]
    np.testing.assert_allclose(found[:2, 1], np.mean(cosines, axis=1), atol=1e-6)
    assert found[0, 0] == pytest.approx(float(vectors[3] @ vectors[9]), abs=1e-6)
    np.testing.assert_array_equal(np.isnan(found), [[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])


def test_the_win_rate_is_a_coin_for_random_samples_and_one_for_alike_samples() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((500, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chance = top_similarity(random.integers(500, size=(400, 5)), vectors, (5,))[:, 0]
    coin = win_rate(chance, vectors, 5)
    # Four standard errors of a fair coin thrown 400 times.
    assert coin.share == pytest.approx(0.5, abs=0.1)
    assert coin.p > 1e-4
    alike = win_rate(np.append(np.full(20, 0.999), np.nan), vectors, 5)
    assert (alike.share, alike.features) == (1.0, 20)
    assert alike.p == pytest.approx(0.5**20)
    assert np.isnan(win_rate(np.full(3, np.nan), vectors, 5).p)
    assert np.isnan(win_rate(chance, vectors[:4], 5).share)


def test_the_reservoir_keeps_the_same_images_for_any_blocks() -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 62, SAMPLES).astype(np.uint64)
    vectors = units(0)
    found = []
    for sizes in BLOCKS:
        kept = Reservoir(10)
        for _ in range(2):
            for some in blocks_of(sizes):
                kept.add(hashes[some], vectors[some])
        found.append(kept.vectors)
    for each in found:
        np.testing.assert_array_equal(each, vectors[np.argsort(hashes)[:10]].astype(np.float32))


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_reconstruction_figures_equal_their_definitions(sizes: list[int]) -> None:
    vectors, dense = units(0), codes(1)
    decoded = vectors + 0.1 * units(2)
    decoded[3] = 0
    sums = ReconstructionSums(WIDTH)
    for some in blocks_of(sizes):
        sums.add(sparse_codes(dense[some]), vectors[some], decoded[some])
    found = sums.figures("image")
    fvu = ((vectors - decoded) ** 2).sum() / ((vectors - vectors.mean(axis=0)) ** 2).sum()
    lengths = np.maximum(np.linalg.norm(decoded, axis=1), 1e-30)
    expected = {
        "image_l0": (dense > 0).sum(axis=1).mean(),
        "image_fvu": fvu,
        "image_r2": 1 - fvu,
        "image_cosine": ((vectors * decoded).sum(axis=1) / lengths).mean(),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    without = ReconstructionSums(WIDTH)
    without.add(sparse_codes(dense), vectors, None)
    assert without.figures("text") == {"text_l0": pytest.approx(expected["image_l0"])}
