"""Zero-shot classes and average precision of pixels, compared with plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.explore.maps.segmentation import average_precision, resized
from headspan.tasks.zero_shot import accuracy, embed_classes


def test_a_class_vector_is_the_unit_mean_of_its_prompts_vectors(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    sets = {
        "pet": {"cat": ["a cat", "cats", "one cat"], "dog": ["a dog"]},
        "size": {"big": ["big"], "small": ["small"]},
    }
    found = embed_classes(store, sets)
    assert found["pet"].names == ("cat", "dog")
    cat, single = (
        hs.text_vectors(store, hs.Pool(name, texts))
        for name, texts in (("a", ("a cat", "cats", "one cat")), ("b", ("small",)))
    )
    wanted = cat.mean(axis=0) / np.linalg.norm(cat.mean(axis=0))
    np.testing.assert_allclose(found["pet"].vectors[0], wanted, atol=1e-6)
    np.testing.assert_allclose(found["size"].vectors[1], single[0], atol=1e-6)
    assert found["pet"].name(np.stack([wanted * 7, found["pet"].vectors[1] / 3])) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("sets", "missing"), [({"pet": {}}, "there are no classes"), ({"pet": {"cat": []}}, "class 'cat' has")]
)
def test_a_set_without_classes_or_prompts_is_refused(
    sets: dict[str, dict[str, list[str]]], missing: str, toy_store: hs.Store
) -> None:
    with pytest.raises(SettingsError, match=rf"classes of 'pet': {missing}"):
        embed_classes(toy_store, sets)


def test_accuracy_leaves_out_images_without_a_truth() -> None:
    found = accuracy(["a", "b", "a", "c"], ["a", "a", None, "b"])
    assert (found.share, found.images) == (1 / 3, 3)
    assert found.chance == 2 / 3
    with pytest.raises(SettingsError, match="none of 2 images has a true class; give at least one"):
        accuracy(["a", "b"], [None, None])


@pytest.mark.parametrize("count", [1, 3, 257])
def test_average_precision_equals_precision_at_every_true_pixel(count: int) -> None:
    random = np.random.default_rng(count)
    scores = random.standard_normal(count).astype(np.float32)
    truths = random.random(count) < 0.3
    truths[count // 2] = True
    order = np.argsort(-scores)
    hits, found = 0, []
    for place, pixel in enumerate(order, start=1):
        if truths[pixel]:
            hits += 1
            found.append(hits / place)
    assert average_precision(scores, truths) == pytest.approx(sum(found) / len(found))


def test_equal_scores_give_the_masks_share_and_an_empty_mask_gives_nan() -> None:
    truths = np.array([True, False, False, False])
    assert average_precision(np.ones(4, np.float32), truths) == 0.25
    assert math.isnan(average_precision(np.ones(4, np.float32), np.zeros(4, bool)))


def test_maps_are_enlarged_bilinearly_between_the_patches_centres() -> None:
    found = resized(np.array([[0, 4]], np.float32), (2, 8))
    np.testing.assert_allclose(found[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    np.testing.assert_array_equal(found[0], found[1])
