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
from headspan.explore.maps.segmentation import resized
from headspan.explore.maps.segments import contrast, segment
from headspan.explore.nearest.neighbours import Neighbours, nearest_to_image, nearest_to_vector
from headspan.explore.nearest.property_neighbours import property_neighbours
from headspan.model.load import LoadedModel
from tests import oracle_explore as oracle
from tests.conftest import BROKEN_ROWS, ToyRun
from tests.oracle import Contributions, decompose
from tests.tolerances import FLOAT16_PRODUCT, FLOAT16_STORE, FLOAT32_SUM, ORACLE_FLOAT32, relative_error

# Heads of one property, in all layers of the toy; its image has 4 × 4 patches.
PROPERTY, ONE = [(2, 0), (0, 2), (1, 1)], (1, 2)
EVERY = [(layer, head) for layer in range(3) for head in range(3)]
GRID = (4, 4)
QUERY = 9


@dataclass(frozen=True)
class Known:
    """What the oracle computes from weights and pixels: every image's contributions, and unit vectors for texts."""

    images: list[Contributions]
    pictures: list[Image.Image]
    texts: np.ndarray


@pytest.fixture(scope="module")
def known(toy_shards: tuple[Path, ...], toy_model: LoadedModel, toy_store: hs.Store) -> Known:
    visual = toy_model.clip.visual
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    weights = {name: value.numpy() for name, value in visual.state_dict().items()}
    images, pictures = [], []
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
                    pictures.append(image.copy())
                images.append(found.contributions("uniform", normalised=True))
    assert len(images) == toy_store.images
    texts = np.random.default_rng(5).standard_normal((2, toy_store.joint))
    return Known(images, pictures, texts / np.linalg.norm(texts, axis=1, keepdims=True))


def test_property_neighbours_are_those_of_the_float64_computation(known: Known, toy_store: hs.Store) -> None:
    scores = oracle.property_similarities(known.images, QUERY, PROPERTY)
    found = property_neighbours(toy_store, QUERY, PROPERTY, count=toy_store.images - 1)
    agree(found.through("property"), scores, FLOAT16_PRODUCT, without=QUERY)
    cosines = np.array([known.images[QUERY].total() @ image.total() for image in known.images])
    agree(found.through("embedding"), cosines, ORACLE_FLOAT32, without=QUERY)


def test_property_neighbours_of_an_image_that_is_not_stored_are_those_of_the_float64_computation(
    known: Known, toy_run: ToyRun
) -> None:
    store = hs.open(toy_run.path)
    # The picture of a stored image, whose own row is then among the neighbours.
    found = property_neighbours(
        store, known.pictures[QUERY], PROPERTY, count=store.images, weights=str(toy_run.weights)
    ).through("property")
    agree(found, oracle.property_similarities(known.images, QUERY, PROPERTY), FLOAT16_PRODUCT)


def test_neighbours_of_an_image_through_a_head_are_those_of_the_float64_computation(
    known: Known, toy_store: hs.Store
) -> None:
    scores = oracle.image_similarities(known.images, QUERY, ONE)
    found = nearest_to_image(toy_store, QUERY, [ONE], count=toy_store.images - 1)
    agree(found, scores, FLOAT16_PRODUCT, without=QUERY)


def test_neighbours_of_a_text_through_a_head_are_those_of_the_float64_computation(
    known: Known, toy_store: hs.Store
) -> None:
    scores = oracle.text_similarities(known.images, known.texts[0], ONE)
    found = nearest_to_vector(toy_store, known.texts[0].astype(np.float32), [ONE], count=toy_store.images)
    agree(found, scores, FLOAT16_STORE)


@pytest.mark.parametrize("heads", [[ONE], PROPERTY, EVERY], ids=["one head", "a property", "all heads"])
def test_maps_of_a_text_are_those_of_the_float64_computation(
    heads: list[oracle.Head], known: Known, toy_store: hs.Store
) -> None:
    images = [0, QUERY]
    wanted = [oracle.text_map(known.images[image], known.texts[0], heads, GRID) for image in images]
    found = segment(toy_store, images, known.texts[0].astype(np.float32), heads).maps[:, 0]
    assert relative_error(found, wanted) < FLOAT16_STORE
    pixels = [resized(each, (33, 47)) for each in found]
    assert relative_error(pixels, [oracle.enlarged(each, 33, 47) for each in wanted]) < FLOAT16_STORE


@pytest.mark.parametrize("heads", [[ONE], PROPERTY, EVERY], ids=["one head", "a property", "all heads"])
def test_contrasts_of_two_texts_are_those_of_the_float64_computation(
    heads: list[oracle.Head], known: Known, toy_store: hs.Store
) -> None:
    images = [0, QUERY]
    first, second = known.texts
    wanted = [oracle.contrast_map(known.images[image], first, second, heads, GRID) for image in images]
    found = contrast(toy_store, images, first.astype(np.float32), second.astype(np.float32), heads).maps[:, 0]
    # The texts are nearly orthogonal, so the maps' difference is as large as the maps.
    assert relative_error(found, wanted) < FLOAT16_STORE
    texts = [each.astype(np.float32) for each in known.texts]
    centred = contrast(toy_store, images, *texts, heads, centred=True)
    wanted = [oracle.contrast_map(known.images[image], first, second, heads, GRID, centred=True) for image in images]
    assert relative_error(centred.maps[:, 0], wanted) < FLOAT16_STORE
    back = contrast(toy_store, images, *texts[::-1], heads, centred=True)
    assert (back.maps == -centred.maps).all()


def test_maps_are_enlarged_linearly_between_the_centres_of_patches() -> None:
    random = np.random.default_rng(0)
    for rows, columns, height, width in ((2, 2, 2, 2), (3, 5, 33, 47), (7, 7, 224, 224)):
        found = random.standard_normal((rows, columns)).astype(np.float32)
        wanted = oracle.enlarged(found.astype(np.float64), height, width)
        assert relative_error(resized(found, (height, width)), wanted) < FLOAT32_SUM


def agree(found: Neighbours, scores: np.ndarray, tolerance: float, without: int | None = None) -> None:
    """Assert that the images have these scores, and that no other images have larger ones."""
    assert relative_error(found.scores, scores[found.images]) < tolerance
    left = np.delete(scores, [] if without is None else without)
    assert relative_error(found.scores, np.sort(left)[::-1][: len(found.images)]) < tolerance
