"""The true modality of features: hand-made codes with known answers, against plain loops, and over a store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.shuffling import shuffle_captions
from headspan.features.pairs.space import Space
from headspan.features.scores.codes import sparse_codes
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED
from headspan.world import value_of, write_world_shards
from headspan.world.feature_checks import Factor, FeatureTruth, ShareSums, factors_of, feature_truth, modality_auc
from headspan.world.ground_truth import scenes_of

PAIRS, FEATURES = 257, 7


def made_factors(random: np.random.Generator) -> tuple[Factor, ...]:
    """Three factors of independent values; the first has none in some images."""
    nothing = np.full(PAIRS, -1)
    first, second, third = (random.integers(0, count, PAIRS) for count in (4, 3, 5))
    first[random.random(PAIRS) < 0.2] = -1
    return (
        Factor("both", CROSS_MODAL, first, first),
        Factor("seen", IMAGE_DOMINANT, second, nothing),
        Factor("said", TEXT_DOMINANT, nothing, third),
    )


def made_codes(factors: tuple[Factor, ...], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Codes of known meaning, as the comments say; noise keeps shares below 1."""
    both, seen, said = factors
    z, w = np.zeros((PAIRS, FEATURES)), np.zeros((PAIRS, FEATURES))
    # 0: a value of both sides, on both sides. 1: on images only, tiny. 2: on texts only: a split dictionary.
    z[:, 0], w[:, 0] = both.images == 2, 3.0 * (both.texts == 2)
    z[:, 1], w[:, 2] = 1e-3 * (both.images == 1), both.texts == 1
    # 3: what only images show, although texts are more active. 4: what only texts say.
    z[:, 3], w[:, 3] = seen.images == 0, 5 + random.random(PAIRS)
    w[:, 4] = said.texts >= 3
    # 5: noise on both sides. 6: a value, but in too few pairs.
    z[:, 5], w[:, 5] = random.random((2, PAIRS))
    z[np.flatnonzero(seen.images == 1)[:9], 6] = 1
    return z, w


def added(factors: tuple[Factor, ...], z: np.ndarray, w: np.ndarray, block: int) -> ShareSums:
    sums = ShareSums(factors, FEATURES)
    for first in range(0, PAIRS, block):
        part = slice(first, first + block)
        sums.add(sparse_codes(z[part]), sparse_codes(w[part]), np.arange(PAIRS)[part])
    return sums


def test_each_hand_made_feature_has_the_factor_and_modality_that_it_was_made_with() -> None:
    random = np.random.default_rng(0)
    factors = made_factors(random)
    truth = added(factors, *made_codes(factors, random), PAIRS).truth()
    assert truth.factors == ("both", "seen", "said")
    assert truth.factor.tolist() == [0, 0, 0, 1, 2, -1, -1]
    wanted = [CROSS_MODAL, CROSS_MODAL, CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED, UNDECIDED]
    assert truth.modality.tolist() == wanted
    assert [truth.of(each) for each in (CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT)] == [3, 1, 1]


def test_shares_are_adjusted_shares_of_variance_for_any_size_of_blocks() -> None:
    random = np.random.default_rng(1)
    factors = made_factors(random)
    z, w = made_codes(factors, random)
    truth = added(factors, z, w, PAIRS).truth()
    for size in (1, 3, 64):
        again = added(factors, z, w, size).truth()
        np.testing.assert_allclose(again.image_shares, truth.image_shares, rtol=0, atol=1e-9)
        np.testing.assert_allclose(again.text_shares, truth.text_shares, rtol=0, atol=1e-9)
    for place, factor in enumerate(factors):
        for codes, values, found in (
            (z, factor.images, truth.image_shares),
            (w, factor.texts, truth.text_shares),
        ):
            for feature in range(FEATURES):
                code, value = codes[values >= 0, feature], values[values >= 0]
                if not len(code) or code.std() == 0:
                    assert found[feature, place] == 0
                    continue
                groups = [code[value == each] for each in set(value.tolist())]
                within = sum(((each - each.mean()) ** 2).sum() for each in groups)
                total = ((code - code.mean()) ** 2).sum()
                share = 1 - within / total * (len(code) - 1) / (len(code) - len(groups))
                # Sums of some hundred squares in float64 against sums of squared differences.
                assert found[feature, place] == pytest.approx(max(0, share), abs=1e-9)


def test_truth_does_not_depend_on_the_size_of_codes_nor_on_the_pairing_of_codes() -> None:
    random = np.random.default_rng(2)
    factors = made_factors(random)
    z, w = made_codes(factors, random)
    truth = added(factors, z, w, PAIRS).truth()
    scaled = added(factors, 1e3 * z, 1e-2 * w, PAIRS).truth()
    np.testing.assert_array_equal(truth.modality, scaled.modality)
    order = random.permutation(PAIRS)
    moved = tuple(Factor(each.name, each.modality, each.images, each.texts[order]) for each in factors)
    np.testing.assert_allclose(added(moved, z, w[order], PAIRS).truth().text_shares, truth.text_shares, atol=1e-12)


def made_truth(modality: list[int]) -> FeatureTruth:
    count = len(modality)
    nothing = np.zeros((count, 1))
    ints = np.zeros(count, np.int64)
    return FeatureTruth(("x",), ints, np.array(modality, np.int8), nothing, nothing, ints)


def test_areas_are_1_for_a_perfect_score_and_count_pairs_of_features_otherwise() -> None:
    truth = made_truth([IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT, UNDECIDED, CROSS_MODAL, IMAGE_DOMINANT])
    perfect = modality_auc(truth, np.array([0.9, 0.5, 0.1, 0.0, 0.6, np.nan]))
    assert (perfect.image_only, perfect.text_only, perfect.cross_modal, perfect.mean) == (1, 1, 1, 1)
    # A split dictionary: the cross-modal features are at both ends. Pairs: 0.95 and 0.05 against 0.9 and 0.1.
    split = modality_auc(truth, np.array([0.9, 0.95, 0.1, 0.5, 0.05, np.nan]))
    assert (split.image_only, split.text_only, split.cross_modal) == (2 / 3, 2 / 3, 0)
    assert split.mean == pytest.approx(4 / 9)
    without = modality_auc(made_truth([CROSS_MODAL, IMAGE_DOMINANT]), np.array([0.5, 1.0]))
    assert (without.text_only, without.mean) == (None, None)


@dataclass
class Knowing:
    """A dictionary whose codes are read off the scenes: the vectors say which pair they are of."""

    vectors: tuple[np.ndarray, np.ndarray]
    codes: tuple[np.ndarray, np.ndarray]
    space: Space
    folder: str = "knowing"

    @property
    def features(self) -> int:
        return self.codes[0].shape[1]

    def encode(self, vectors: np.ndarray, side: int = 0) -> np.ndarray:
        nearest = (vectors @ self.vectors[side].T).argmax(axis=1)
        return np.asarray(self.codes[side][nearest])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    folder = tmp_path_factory.mktemp("told")
    shards = write_world_shards(folder / "shards", 130, 3, without=("texture",), words=("style",))
    hs.precompute(shards, folder / "run.zarr", model="reference", emit=("heads",), layers=[5])
    return hs.open(folder / "run.zarr")


def test_factors_of_a_store_are_those_that_its_shards_were_written_with(store: hs.Store) -> None:
    factors = {each.name: each for each in factors_of(store)}
    assert {name for name, each in factors.items() if each.modality == IMAGE_DOMINANT} == {"texture"}
    assert {name for name, each in factors.items() if each.modality == TEXT_DOMINANT} == {"words: style"}
    assert "style" not in factors
    assert (factors["texture"].texts == -1).all()
    assert (factors["words: style"].images == -1).all()
    captions = store.samples(columns=["caption"])["caption"].to_pylist()
    blurred = [bool(re.search("blur|out-of-focus", text)) for text in captions]
    groups = {(place, said) for place, said in zip(factors["words: style"].texts.tolist(), blurred, strict=True)}
    assert len(groups) == len({place for place, _ in groups})
    assert sum(said for _, said in groups) == 1
    for scene, place in zip(scenes_of(store), factors["colour"].images.tolist(), strict=True):
        assert (place == -1) == (value_of(scene, "colour") is None)


def test_codes_read_off_the_scenes_of_a_store_get_their_modality(store: hs.Store, tmp_path: Path) -> None:
    pairs = open_pairs(store, keep=tmp_path)
    block = next(pairs.blocks(len(pairs)))
    factors = {each.name: each for each in factors_of(store)}
    z, w = np.zeros((len(pairs), 3)), np.zeros((len(pairs), 3))
    z[:, 0] = factors["texture"].images == 1
    w[:, 1] = factors["words: style"].texts == 2
    z[:, 2] = factors["background_colour"].images < 6
    knowing = Knowing((block.images, block.texts), (z, w), pairs.space)
    truth = feature_truth(store, knowing, least_pairs=3, keep=tmp_path)
    assert truth.modality.tolist() == [IMAGE_DOMINANT, TEXT_DOMINANT, CROSS_MODAL]
    assert truth.active.tolist() == ((z > 0) | (w > 0)).sum(axis=0).tolist()


def test_ordinary_captions_and_other_images_have_no_truth(store: hs.Store, tmp_path: Path) -> None:
    shards = write_world_shards(tmp_path / "shards", 3, 3)
    hs.precompute(shards, tmp_path / "run.zarr", model="reference", emit=("heads",), layers=[5])
    with pytest.raises(SettingsError, match=r"its captions name factors at random; write its shards with hs\.world"):
        factors_of(hs.open(tmp_path / "run.zarr"))


def test_shuffled_pairs_have_the_same_images_and_captions_in_another_pairing(store: hs.Store, tmp_path: Path) -> None:
    pairs = open_pairs(store, keep=tmp_path)
    plain, mixed = (next(each.blocks(len(pairs))) for each in (pairs, shuffle_captions(pairs, 1)))
    np.testing.assert_array_equal(plain.images, mixed.images)
    assert sorted(plain.caption.tolist()) == sorted(mixed.caption.tolist())
    assert (plain.caption == mixed.caption).mean() < 0.1
    np.testing.assert_array_equal(mixed.texts, pairs.caption_vectors(0)[mixed.caption])
    again = next(shuffle_captions(pairs, 1).blocks(len(pairs)))
    np.testing.assert_array_equal(again.caption, mixed.caption)
