"""Neighbours and maps of a store, compared with an independent float64 computation on the model's random weights."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import headspan as hs
from headspan.explore.neighbours import nearest_to_image, nearest_to_vector
from headspan.explore.segmentation import resized, text_maps
from headspan.model.load import LoadedModel
from tests import oracle_explore as oracle
from tests.conftest import BROKEN_ROWS
from tests.oracle import Contributions, decompose
from tests.tolerances import FLOAT16_PRODUCT, FLOAT16_STORE, FLOAT32_SUM, relative_error

# Heads of one property, in all layers of the toy; its image has 4 × 4 patches.
PROPERTY, ONE = [(2, 0), (0, 2), (1, 1)], (1, 2)
GRID = (4, 4)
QUERY = 9


@dataclass(frozen=True)
class Known:
    """What the oracle computes from weights and pixels: every image's contributions, and unit vectors for texts."""

    images: list[Contributions]
    texts: np.ndarray

    def nearest(self, scores: np.ndarray, without: int | None = None) -> np.ndarray:
        """Scores in descending order, without those of one image."""
        return np.sort(np.delete(scores, [] if without is None else without))[::-1]


@pytest.fixture(scope="module")
def known(toy_shards: tuple[Path, ...], toy_model: LoadedModel, toy_store: hs.Store) -> Known:
    visual = toy_model.clip.visual
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    weights = {name: value.numpy() for name, value in visual.state_dict().items()}
    images = []
    for shard in toy_shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                if extension == "txt" or int(key) in BROKEN_ROWS:
                    continue
                with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                    found = decompose(
                        weights,
                        heads=3,
                        patch_size=8,
                        activation="gelu",
                        pool="tok",
                        final_ln_after_pool=False,
                        pixels=transform(image).numpy(),
                    )
                images.append(found.contributions("uniform", normalised=True))
    assert len(images) == toy_store.images
    texts = np.random.default_rng(5).standard_normal((2, toy_store.joint))
    return Known(images, texts / np.linalg.norm(texts, axis=1, keepdims=True))


def test_property_neighbours_are_those_of_the_float64_computation(known: Known, toy_store: hs.Store) -> None:
    scores = oracle.property_similarities(known.images, QUERY, PROPERTY)
    found = nearest_to_image(toy_store, QUERY, PROPERTY, count=toy_store.images - 1)
    assert relative_error(found.scores, scores[found.images]) < FLOAT16_PRODUCT
    assert relative_error(found.scores, known.nearest(scores, without=QUERY)) < FLOAT16_PRODUCT


def test_neighbours_of_an_image_through_a_head_are_those_of_the_float64_computation(
    known: Known, toy_store: hs.Store
) -> None:
    scores = oracle.image_similarities(known.images, QUERY, ONE)
    found = nearest_to_image(toy_store, QUERY, [ONE], count=toy_store.images - 1)
    assert relative_error(found.scores, scores[found.images]) < FLOAT16_PRODUCT
    assert relative_error(found.scores, known.nearest(scores, without=QUERY)) < FLOAT16_PRODUCT


def test_neighbours_of_a_text_through_a_head_are_those_of_the_float64_computation(
    known: Known, toy_store: hs.Store
) -> None:
    scores = oracle.text_similarities(known.images, known.texts[0], ONE)
    found = nearest_to_vector(toy_store, known.texts[0].astype(np.float32), [ONE], count=toy_store.images)
    assert relative_error(found.scores, scores[found.images]) < FLOAT16_STORE
    assert relative_error(found.scores, known.nearest(scores)) < FLOAT16_STORE


@pytest.mark.parametrize("heads", [[ONE], PROPERTY, [(layer, head) for layer in range(3) for head in range(3)]])
def test_the_map_of_a_text_is_that_of_the_float64_computation(
    heads: list[oracle.Head], known: Known, toy_store: hs.Store
) -> None:
    text = known.texts[0]
    wanted = np.stack([oracle.text_map(known.images[image], text, heads, GRID) for image in (0, QUERY)])
    found = [text_maps(toy_store, image, text[None].astype(np.float32), heads)[0] for image in (0, QUERY)]
    assert relative_error(np.stack(found), wanted) < FLOAT16_STORE
    pixels = np.stack([resized(each, (33, 47)) for each in found])
    assert relative_error(pixels, [oracle.enlarged(each, 33, 47) for each in wanted]) < FLOAT16_STORE


def test_maps_are_enlarged_linearly_between_the_centres_of_patches() -> None:
    random = np.random.default_rng(0)
    for rows, columns, height, width in ((2, 2, 2, 2), (3, 5, 33, 47), (7, 7, 224, 224)):
        found = random.standard_normal((rows, columns)).astype(np.float32)
        wanted = oracle.enlarged(found.astype(np.float64), height, width)
        assert relative_error(resized(found, (height, width)), wanted) < FLOAT32_SUM
