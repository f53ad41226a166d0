"""Names of features: texts nearest to their directions without the gap between the modalities, beside two nulls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ortho_group

import headspan as hs
from headspan.errors import SettingsError, StoreError
from headspan.features.most_active import top_samples
from headspan.features.naming import best_cosines, name_features, p_above
from headspan.features.pairs.space import EMBEDDING, HEADS, Space
from headspan.features.saved import read_scores, save_scores
from headspan.features.strips import feature_strips
from headspan.features.table import feature_table
from headspan.texts.stored import EmbeddedPool, keep_vectors
from tests.engine.hand_made_features import hand_made_scores

POOL = hs.Pool("small", tuple(f"text {number}" for number in range(37)))


@pytest.fixture
def named_store(toy_copy: Path) -> hs.Store:
    """A store that keeps the pool with vectors around a mean of their own, so that the model is not needed."""
    store = hs.open(toy_copy)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(len(POOL.texts), store.joint)) + 2 * rng.normal(size=store.joint)
    keep_vectors(store, EmbeddedPool(POOL, _unit(vectors).astype(np.float32), None))
    return store


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _freed(store: hs.Store) -> tuple[np.ndarray, np.ndarray]:
    """The pool's texts in coordinates of the space without the gap, and the basis of that space, by SVD."""
    vectors = hs.text_vectors(store, POOL).astype(np.float64)
    gap = _unit(store.embedding.astype(np.float64)).mean(axis=0) - vectors.mean(axis=0)
    basis = np.linalg.svd(gap[None])[2][1:]
    return _unit((vectors - vectors.mean(axis=0)) @ basis.T), basis


def test_a_feature_along_a_text_and_the_gap_is_named_by_that_text(named_store: hs.Store) -> None:
    texts, basis = _freed(named_store)
    gap = np.linalg.svd(basis)[2][-1]
    rng = np.random.default_rng(0)
    directions = texts @ basis + 3 * gap + 0.02 * rng.normal(size=(len(texts), named_store.joint))
    scores = name_features(named_store, hand_made_scores(directions, 50), POOL)
    assert [names[0] for names in scores.names] == list(POOL.texts)
    assert scores.name_cosines is not None
    assert scores.name_p is not None
    assert scores.name_mixture_p is not None
    assert scores.name_cosines[:, 0].min() > 0.98
    # Reached by no draw of either null.
    assert scores.name_p.max() == scores.name_mixture_p.max() == 1 / 10_001


@pytest.mark.parametrize("coherence", [None, 0.3])
def test_cosines_are_those_without_the_gap_and_the_first_text_is_the_nearest(
    named_store: hs.Store, coherence: float | None
) -> None:
    texts, basis = _freed(named_store)
    directions = np.random.default_rng(1).normal(size=(13, named_store.joint))
    scores = name_features(named_store, hand_made_scores(directions, 50), POOL, 3, coherence=coherence)
    cosines = _unit(directions.astype(np.float32) @ basis.T) @ texts.T
    for own, names, found in zip(cosines, scores.names, scores.name_cosines, strict=True):  # type: ignore[arg-type]
        places = [POOL.texts.index(name) for name in names]
        assert places[0] == own.argmax()
        np.testing.assert_allclose(found[: len(places)], own[places], atol=1e-6)
        if coherence is None:
            assert places == np.argsort(-own)[:3].tolist()


def test_random_directions_are_as_near_as_those_of_a_pool_that_is_rotated(named_store: hs.Store) -> None:
    texts, _ = _freed(named_store)
    direction = np.zeros(texts.shape[1])
    direction[0] = 1
    rotations = ortho_group.rvs(texts.shape[1], 1500, random_state=5)
    rotated = np.array([(texts @ rotation @ direction).max() for rotation in rotations])
    scores = name_features(named_store, hand_made_scores(np.ones((2, named_store.joint)), 50), POOL)
    error = rotated.std() / np.sqrt(len(rotated))
    assert scores.name_chance["rotated_mean"] == pytest.approx(rotated.mean(), abs=4 * error)
    assert scores.name_chance["rotated_high"] == pytest.approx(np.quantile(rotated, 0.975), abs=12 * error)


def test_mixtures_of_features_have_p_values_that_are_spread_over_all_values(named_store: hs.Store) -> None:
    _, basis = _freed(named_store)
    # Directions in 5 dimensions, so that their subspace matters.
    features = np.random.default_rng(2).normal(size=(400, 5)) @ basis[:5]
    scores = name_features(named_store, hand_made_scores(features, 50), POOL)
    assert scores.name_mixture_p is not None
    shares = np.quantile(scores.name_mixture_p, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(shares, [0.1, 0.5, 0.9], atol=0.12)


def test_p_counts_the_draws_that_reach_a_cosine() -> None:
    drawn = np.array([0.1, 0.5, 0.3, 0.3])
    np.testing.assert_allclose(p_above(np.array([0.3, 0.6, 0.0]), drawn), [4 / 5, 1 / 5, 1])
    directions, pool = np.eye(3), np.array([[0.6, 0.8, 0.0]])
    np.testing.assert_allclose(best_cosines(directions, pool), [0.6, 0.8, 0])


def test_directions_of_heads_are_named_where_the_heads_write(named_store: hs.Store) -> None:
    heads = ((1, 0), (2, 1))
    coordinates = np.random.default_rng(4).normal(size=(3, 2 * named_store.head_dim))
    space = Space(HEADS, coordinates.shape[1], heads=heads)
    written = sum(
        coordinates[:, part * named_store.head_dim : (part + 1) * named_store.head_dim]
        @ named_store.head_directions(*head)[: named_store.head_dim]
        for part, head in enumerate(heads)
    )
    of_heads = name_features(named_store, hand_made_scores(coordinates, 50, space=space), POOL)
    in_joint = name_features(
        named_store, hand_made_scores(written, 50, space=Space(EMBEDDING, named_store.joint)), POOL
    )
    assert of_heads.names == in_joint.names
    assert of_heads.name_cosines is not None
    assert in_joint.name_cosines is not None
    np.testing.assert_allclose(of_heads.name_cosines, in_joint.name_cosines, atol=1e-5)


def test_features_without_a_direction_have_no_names(named_store: hs.Store) -> None:
    directions = np.random.default_rng(1).normal(size=(4, named_store.joint))
    directions[1], directions[2] = 0, np.nan
    scores = name_features(named_store, hand_made_scores(directions, 50), POOL)
    assert [len(names) for names in scores.names] == [5, 0, 0, 5]
    assert scores.name_p is not None
    np.testing.assert_array_equal(np.isnan(scores.name_p), [False, True, True, False])
    assert feature_table(scores, sort="name", least_active=0).features.tolist()[2:] == [1, 2]


def test_names_are_saved_with_their_pool_and_other_names_are_refused(named_store: hs.Store) -> None:
    scores = hand_made_scores(np.random.default_rng(1).normal(size=(5, named_store.joint)), named_store.images)
    unsaved = name_features(named_store, save_scores(named_store, scores), POOL)
    assert read_scores(named_store).names == ()
    saved = name_features(named_store, read_scores(named_store), POOL, saved=True)
    found = read_scores(named_store)
    assert (found.names, found.name_pool, found.name_chance) == (unsaved.names, "small", saved.name_chance)
    with pytest.raises(StoreError, match=r"features run 'hand' already exists with other names; .* --overwrite"):
        name_features(named_store, found, POOL, 2, saved=True)
    name_features(named_store, found, POOL, 2, saved=True, overwrite=True)
    assert len(read_scores(named_store).names[0]) == 2
    with pytest.raises(
        StoreError, match=r"was made differently \(pool small, now list-.*; give --overwrite .* its names$"
    ):
        name_features(named_store, found, POOL.texts[:9], 2, saved=True)
    with pytest.raises(StoreError, match=r"named from the pool 'gone', which is not in the store; name them with save"):
        save_scores(named_store, replace(found, name_pool="gone"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, r"0 texts per feature; ask for at least 1"),
        ({"count": 38}, r"the pool small has 37 texts, but 38 are needed to name features; give a larger pool, or ask"),
        ({"coherence": -1.0}, r"coherence -1.0 is out of range; give a number from 0"),
    ],
)
def test_settings_out_of_range_are_refused(named_store: hs.Store, settings: dict[str, float], message: str) -> None:
    scores = hand_made_scores(np.ones((2, named_store.joint)), 50)
    with pytest.raises(SettingsError, match=message):
        name_features(named_store, scores, POOL, **settings)  # type: ignore[arg-type]


def test_features_of_another_model_are_refused(named_store: hs.Store) -> None:
    other = hand_made_scores(np.ones((2, 24)), 50, space=Space(EMBEDDING, 24, "f" * 64))
    with pytest.raises(StoreError, match=r"but the features are of image weights ffffffff; name them with a store of"):
        name_features(named_store, other, POOL)
    with pytest.raises(StoreError, match=r"features of 7 numbers do not fit its joint space of 24; score the dictio"):
        name_features(named_store, hand_made_scores(np.ones((2, 7)), 50, space=None), POOL)


def test_the_table_lists_a_class_with_the_largest_number_first(named_store: hs.Store) -> None:
    scores = hand_made_scores(np.random.default_rng(1).normal(size=(41, named_store.joint)), 60)
    table = feature_table(scores, "image-dominant", "mds", 10)
    of_class = [number for number in range(41) if number % 4 == 2 and scores.active[number] >= 10]
    assert table.features.tolist() == sorted(of_class, key=lambda number: -scores.mds[number])
    assert set(table._columns()["class"]) == {"image-dominant"}
    every = feature_table(scores, sort="mds", least_active=0, ascending=True)
    # Dead features have no MDS and come last.
    assert every.features.tolist()[-10:] == list(range(3, 41, 4))[-10:]
    with pytest.raises(SettingsError, match=r"class 'visual' is unknown; choose from image-dominant, cross-modal"):
        feature_table(scores, "visual")
    with pytest.raises(SettingsError, match=r"sort 'size' is unknown; choose from active, mds"):
        feature_table(scores, sort="size")
    with pytest.raises(SettingsError, match=r"hand: features have no names to sort by; name them by a pool of texts"):
        feature_table(scores, sort="name")


def test_top_samples_are_the_stores_images_and_captions(toy_store: hs.Store) -> None:
    scores = hand_made_scores(np.ones((4, toy_store.joint)), toy_store.images)
    (found, dead) = top_samples(toy_store, scores, [2, 3], 3)
    table = toy_store.samples().to_pylist()
    assert [each.key for each in found.images] == [table[image]["key"] for image in scores.top_images[2, :3]]
    captions = [(table[image]["caption"] or "").strip() for image in scores.top_captions[2]]
    assert [each.text for each in found.captions] == list(dict.fromkeys(captions))[:3]
    assert dead.images == dead.captions == ()
    gone = replace(scores, top_images=np.full((4, 7), 999))
    with pytest.raises(StoreError, match=r"has 67 images, but hand names image 999; score the dictionary on this sto"):
        top_samples(toy_store, gone, [0])
    with pytest.raises(SettingsError, match=r"feature 4: hand has features 0 to 3; name one of them"):
        top_samples(toy_store, scores, [4])


def test_strips_show_a_row_of_top_images_for_each_feature(toy_store: hs.Store) -> None:
    scores = hand_made_scores(np.ones((4, toy_store.joint)), toy_store.images)
    one, two = (feature_strips(toy_store, scores, features, 5) for features in ([1], [1, 2]))
    assert one.width == two.width
    assert one.height < two.height < 2 * one.height
    other = feature_strips(toy_store, scores, [2], 5)
    # The row of feature 1 is the first of both; its title and pictures are not those of feature 2.
    band = (0, 20, one.width, one.height - 20)
    assert one.crop(band).tobytes() == two.crop(band).tobytes() != other.crop(band).tobytes()
    with pytest.raises(SettingsError, match=r"101 features: a picture shows 1 to 100; choose fewer"):
        feature_strips(toy_store, scores, [0] * 101)
