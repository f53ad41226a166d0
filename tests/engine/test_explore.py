"""Neighbours, maps and mean ablation, compared with their definitions on dense contributions."""

import subprocess
import sys

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.explore.maps.segmentation import grid_shape, text_maps
from headspan.explore.nearest.neighbours import nearest_to_image, nearest_to_vector, query_vector
from headspan.explore.nearest.search import largest
from headspan.explore.nearest.similarities import similarities
from headspan.explore.query.query_image import query_image
from headspan.prune.direct.ablation import mean_ablated
from headspan.store.moments_file import MergedMoments
from tests.conftest import BROKEN_ROWS, ToyRun
from tests.tolerances import FLOAT32_SUM, relative_error

SOME_HEADS = [(0, 2), (2, 0), (1, 1)]


@pytest.fixture
def vectors(toy_store: hs.Store) -> np.ndarray:
    found = np.random.default_rng(3).standard_normal((5, toy_store.joint)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def dense_mean(store: hs.Store) -> np.ndarray:
    return np.mean([store.head(layer, head) for layer, head in SOME_HEADS], axis=0)


def test_similarities_are_the_dot_products_of_mean_contributions(toy_store: hs.Store, vectors: np.ndarray) -> None:
    wanted = vectors @ dense_mean(toy_store).T
    assert relative_error(similarities(toy_store, vectors, SOME_HEADS), wanted) < FLOAT32_SUM


def test_the_nearest_images_to_a_text_are_those_of_the_largest_dot_products(
    toy_store: hs.Store, vectors: np.ndarray
) -> None:
    scores = dense_mean(toy_store) @ vectors[0]
    found = nearest_to_vector(toy_store, vectors[0], SOME_HEADS, count=7)
    assert found.images.tolist() == np.argsort(-scores)[:7].tolist()
    assert relative_error(found.scores, np.sort(scores)[::-1][:7]) < FLOAT32_SUM


def test_the_nearest_images_to_a_text_are_found_by_the_text_itself(toy_store: hs.Store) -> None:
    found = hs.explore.nearest_to_text(toy_store, "a cat", SOME_HEADS, count=4)
    (vector,) = hs.text_vectors(toy_store, ["a cat"])
    wanted = nearest_to_vector(toy_store, vector, SOME_HEADS, count=4)
    np.testing.assert_array_equal(found.images, wanted.images)
    assert repr(found).startswith(f"Neighbours(4 images: {found.images[0]} (")
    assert len(repr(nearest_to_image(toy_store, 0, SOME_HEADS, count=50))) < 80


def test_the_nearest_images_to_an_image_leave_it_out(toy_store: hs.Store) -> None:
    dense = dense_mean(toy_store)
    assert relative_error(query_vector(toy_store, query_image(toy_store, 9), SOME_HEADS), dense[9]) < FLOAT32_SUM
    scores = dense @ dense[9]
    order = [image for image in np.argsort(-scores).tolist() if image != 9]
    assert nearest_to_image(toy_store, 9, SOME_HEADS, count=1000).images.tolist() == order


@pytest.mark.parametrize("count", [0, 1, 2, 10, 257, 1000, 5000])
def test_the_nearest_are_the_first_of_all_images_in_order_of_their_scores(count: int) -> None:
    random = np.random.default_rng(count)
    for images in (0, 1, 3, 257, 1000):
        for scores in (
            random.standard_normal(images),
            # With many equal scores.
            random.integers(0, 5, images),
            np.zeros(images),
            np.sort(random.standard_normal(images)),
            np.full(images, np.nan),
            random.choice([np.nan, np.inf, -np.inf, 1, 2, 3], images),
        ):
            known = scores.astype(np.float32)
            ranked = [image for image in np.argsort(-known, kind="stable").tolist() if np.isfinite(known[image])]
            found = largest(known, count)
            least = known[ranked[:count]].min(initial=np.inf) if count else np.inf
            assert found.tolist() == [
                image for image in range(images) if np.isfinite(known[image]) and known[image] >= least
            ]


def test_failed_images_are_never_neighbours(toy_run: ToyRun, vectors: np.ndarray) -> None:
    store = hs.open(toy_run.path, include_failed=True)
    found = nearest_to_vector(store, vectors[0], SOME_HEADS, count=1000)
    assert len(found.images) == 70 - len(BROKEN_ROWS)
    assert not set(found.images.tolist()) & set(BROKEN_ROWS)


def test_a_map_is_each_patchs_contribution_times_the_text(toy_store: hs.Store, vectors: np.ndarray) -> None:
    wanted = sum(toy_store.patches(4, layer)[1:, head] @ vectors.T for layer, head in SOME_HEADS)
    maps = text_maps(toy_store, 4, vectors, SOME_HEADS)
    assert maps.shape == (5, 4, 4)
    assert relative_error(maps, np.asarray(wanted).T.reshape(5, 4, 4)) < FLOAT32_SUM


def test_an_empty_list_of_heads_is_refused(toy_store: hs.Store, vectors: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="the list of heads is empty; name at least one"):
        nearest_to_vector(toy_store, vectors[0], [])
    with pytest.raises(SettingsError, match="the list of heads is empty; name at least one"):
        text_maps(toy_store, 0, vectors, [])


def test_wrong_heads_and_wrong_vectors_are_refused_with_what_to_give(toy_store: hs.Store) -> None:
    # In a separate process, since the tests' type checks would refuse the arguments first.
    program = """
import sys, numpy as np, headspan as hs
from headspan.explore.nearest.neighbours import nearest_to_image
from headspan.explore.maps.segmentation import text_maps
store = hs.open(sys.argv[1])
wrong_heads, wrong_vectors = [(1, 0), [(1,)], [1]], [np.ones(24), np.ones((2, 5))]
for heads, vectors in [(heads, None) for heads in wrong_heads] + [([(1, 1)], vectors) for vectors in wrong_vectors]:
    try:
        nearest_to_image(store, 0, heads) if vectors is None else text_maps(store, 0, vectors, heads)
    except hs.HeadspanError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, str(toy_store.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 5
    assert all("give a list of pairs (layer, head)" in line for line in said[:3])
    assert all("give [text, 24], as text_vectors" in line for line in said[3:])


def test_mean_ablation_removes_the_heads_deviation_from_their_mean(toy_store: hs.Store) -> None:
    whole = toy_store.embedding / np.linalg.norm(toy_store.embedding, axis=1, keepdims=True)
    ablated = mean_ablated(toy_store, SOME_HEADS)
    moved = sum(toy_store.head(*head) - toy_store.head(*head).mean(axis=0) for head in SOME_HEADS)
    assert relative_error(whole - ablated, np.asarray(moved)) < FLOAT32_SUM * 100
    # The mean over images does not change.
    assert relative_error(ablated.mean(axis=0), whole.mean(axis=0)) < FLOAT32_SUM
    assert relative_error(mean_ablated(toy_store, []), whole) < FLOAT32_SUM


def test_mean_ablation_takes_its_means_from_the_moments(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Moments of 67 million images: a float32 sum over rows would lose most of them.
    moments = toy_store.moments()
    many = MergedMoments(moments.count * 10**6, moments.total * 1e6, moments.gram * 1e6)
    expected = mean_ablated(toy_store, SOME_HEADS)
    monkeypatch.setattr(hs.Store, "moments", lambda store: many)
    # An open store keeps the means that it has read.
    np.testing.assert_array_equal(mean_ablated(hs.open(toy_store.path), SOME_HEADS), expected)
    elsewhere = MergedMoments(moments.count, moments.total + 1, moments.gram)
    monkeypatch.setattr(hs.Store, "moments", lambda store: elsewhere)
    assert not np.allclose(mean_ablated(hs.open(toy_store.path), SOME_HEADS), expected)


@pytest.mark.parametrize(
    ("patches", "height", "width", "shape"),
    [
        (49, 224, 224, (7, 7)),
        (257 - 1, 224, 224, (16, 16)),
        (300, 240, 320, (15, 20)),
        (2, 8, 17, (1, 2)),
        (1, 9, 9, (1, 1)),
    ],
)
def test_the_patch_grid_has_the_shape_of_the_image(
    patches: int, height: int, width: int, shape: tuple[int, int]
) -> None:
    assert grid_shape(patches, height, width) == shape
