"""The report's maps against an independent computation: the mean map, the scale, the threshold and the colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.explore.maps.centred_maps import SAMPLE, baseline, full_colour, layer_maps, sampled
from headspan.explore.nearest.similarities import similarities
from headspan.report.maps import overlay
from headspan.report.pictures import ends
from tests.tolerances import FLOAT16_PRODUCT, FLOAT32_SUM, relative_error

HEADS = (0, 2)


@pytest.fixture(scope="module")
def vectors(toy_store: hs.Store) -> np.ndarray:
    found = np.random.default_rng(3).standard_normal((len(HEADS), toy_store.joint)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def along(store: hs.Store, layer: int, vectors: np.ndarray) -> np.ndarray:
    return np.stack([store.head_directions(layer, head) @ one for head, one in zip(HEADS, vectors, strict=True)])


def dense_maps(store: hs.Store, image: int, layer: int, vectors: np.ndarray) -> np.ndarray:
    """The maps from every patch's contribution in joint space, in float64."""
    patches = store.patches(image, layer)[store.prefix_tokens :].astype(np.float64)
    return np.stack([patches[:, head] @ one for head, one in zip(HEADS, vectors, strict=True)]).reshape(-1, 4, 4)


def test_maps_are_the_dot_products_of_the_patches_contributions(toy_store: hs.Store, vectors: np.ndarray) -> None:
    for image, layer in ((0, 0), (66, 2)):
        got = layer_maps(toy_store, image, layer, HEADS, along(toy_store, layer, vectors))
        assert relative_error(got, dense_maps(toy_store, image, layer, vectors)) < FLOAT32_SUM


def test_a_map_and_the_class_token_sum_to_the_images_score(toy_store: hs.Store, vectors: np.ndarray) -> None:
    score = similarities(toy_store, vectors[:1], [(1, HEADS[0])])[0, 7]
    own = layer_maps(toy_store, 7, 1, HEADS, along(toy_store, 1, vectors))[0].sum()
    token = toy_store.patches(7, 1)[0, HEADS[0]] @ vectors[0]
    assert own + token == pytest.approx(score, rel=10 * FLOAT16_PRODUCT)


def test_mean_scale_and_threshold_are_those_of_the_sample(toy_store: hs.Store, vectors: np.ndarray) -> None:
    sample = [3, 11, 12, 40, 41, 65, 66]
    dense = np.stack([dense_maps(toy_store, image, 1, vectors) for image in sample])
    base = baseline(toy_store, 1, HEADS, along(toy_store, 1, vectors), sample)
    assert base.images == 7
    assert relative_error(base.mean, dense.mean(axis=0)) < FLOAT32_SUM
    for head in range(len(HEADS)):
        centred = dense[:, head] - dense[:, head].mean(axis=0)
        # The variance over images of each patch, averaged over patches.
        scale = np.sqrt(dense[:, head].var(axis=0, ddof=1).mean())
        assert base.deviation[head] == pytest.approx(scale, rel=1e-4)
        sizes = np.sort(np.abs(centred / scale).ravel())
        # 95 % of 112 patches: between the 106th and the 107th.
        assert sizes[104] <= base.threshold[head] <= sizes[107]
        got = base.deviations(layer_maps(toy_store, 12, 1, HEADS, along(toy_store, 1, vectors)))[head]
        assert relative_error(got, centred[2] / scale) < 1e-4
    # Of the sample's own patches, one in twenty is coloured.
    sizes = np.abs((dense - dense.mean(axis=0)) / base.deviation[:, None, None])
    coloured = (sizes > base.threshold[:, None, None]).mean(axis=(0, 2, 3))
    assert np.all((coloured > 0.03) & (coloured <= 0.06))


def test_a_head_whose_maps_do_not_vary_has_no_scale(toy_store: hs.Store) -> None:
    base = baseline(toy_store, 0, (0,), np.zeros((1, toy_store.head_dim + 3), np.float32), [0, 1, 2])
    assert np.isnan(base.deviation).all()


def test_an_overlay_is_transparent_within_the_threshold_orange_for_the_text_and_blue_against_it() -> None:
    deviations = np.array([[0.0, 1.9, -1.9], [2.1, 5.0, 99.0], [-2.1, -5.0, -99.0]], np.float32)
    with Image.open(io.BytesIO(overlay(deviations, 2.0, 5.0))) as image:
        assert image.size == (3, 3)
        pixels = np.asarray(image.convert("RGBA")).astype(int)
    assert (pixels[0, :, 3] == 0).all()
    assert (pixels[1, :, 0] - pixels[1, :, 2] > 100).all()
    assert (pixels[2, :, 2] - pixels[2, :, 0] > 100).all()
    opacity = pixels[1:, :, 3]
    assert (opacity[:, 0] > 70).all()
    assert (opacity[:, 0] < opacity[:, 1]).all()
    # One scale: beyond full colour nothing changes, and both signs are equally strong.
    assert (opacity[:, 1] == opacity[:, 2]).all()
    assert (opacity[0] == opacity[1]).all()


def test_full_colour_is_far_beyond_the_threshold_and_no_single_patch_sets_it() -> None:
    maps = [np.zeros((16, 16), np.float32) for _ in range(4)]
    assert full_colour(maps, 1.5) == 3
    maps[0][0, 0] = 1000
    assert full_colour(maps, 1.5) == 3
    maps[1][:4] = -7
    assert full_colour(maps, 1.5) == pytest.approx(7)


@pytest.mark.parametrize("images", [1, 3, 8, 9, 257])
def test_the_ends_are_the_highest_and_lowest_scores_and_share_no_image(images: int) -> None:
    random = np.random.default_rng(images)
    scores = random.integers(-5, 5, images).astype(np.float32)
    scores[random.permutation(images)[: images // 10]] = np.nan
    known = [place for place in range(images) if np.isfinite(scores[place])]
    most, least = ends(scores.copy(), 4)
    assert most == sorted(known, key=lambda place: (-scores[place], place))[:4]
    rest = [place for place in known if place not in most]
    assert least == sorted(rest, key=lambda place: (scores[place], place))[:4]


def test_the_sample_is_drawn_once_without_bad_images(toy_run: object, toy_store: hs.Store) -> None:
    whole = hs.open(toy_store.path, include_failed=True)
    drawn = sampled(toy_store)
    assert drawn == sampled(hs.open(toy_store.path))
    assert sorted(drawn) == list(range(67)) != drawn
    assert sorted(whole.rows[sampled(whole)]) == toy_store.rows.tolist()
    assert len(drawn) <= SAMPLE
