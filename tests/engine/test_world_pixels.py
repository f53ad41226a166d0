"""Pixels of the image world: masks, areas of shapes and edges against geometry and against finer drawings."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from headspan.world import (
    Scene,
    coverage,
    render,
    scene,
)
from headspan.world.factors import SHAPES


def test_masks_number_the_objects_and_are_centred_on_them(train: list[Scene]) -> None:
    chosen = train[:300]
    _, masks = render(chosen, masks=True)
    for each, mask in zip(chosen, masks, strict=True):
        assert set(np.unique(mask)) == set(range(each.count + 1))
        for number, described in enumerate(each.metadata()["objects"], start=1):
            rows, columns = np.nonzero(mask == number)
            x, y = described["centre"]
            reach = np.hypot(columns + 0.5 - x, rows + 0.5 - y).max()
            # The pencil line of sketches may deviate outwards.
            assert 0.5 * described["radius"] < reach < described["radius"] + 2.5
            # The mass of a crescent is to one side of its centre.
            if each.repeated and described["shape"] != "crescent":
                distance = math.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y)
                assert distance < 0.25 * described["radius"]


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.9**2),
        ("square", (2 * 0.7) ** 2),
        ("ring", math.pi * (0.92**2 - 0.38**2)),
        ("hexagon", 2 * math.sqrt(3) * 0.83**2),
        ("pentagon", 5 * math.tan(math.pi / 5) * 0.8**2),
        ("triangle", 3 * math.sqrt(3) * 0.5**2),
        ("diamond", 2 / 1.5),
        ("cross", 4 * 0.33 * (2 * 0.92 - 0.33)),
    ],
)
def test_a_shape_has_its_area(shape: str, area: float) -> None:
    thing = replace(scene(0, "train", 0).things[0], shape=shape, x=0.503, y=0.488, radius=0.25)
    found = coverage(replace(scene(0, "train", 0), things=(thing,), style="flat"), 257).sum()
    assert found == pytest.approx(area * (0.25 * 257) ** 2, rel=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_touches_its_circle_and_is_inside_it(shape: str) -> None:
    thing = replace(scene(0, "train", 0).things[0], shape=shape, x=0.5, y=0.5, radius=0.25, turn=0.3)
    rows, columns = np.nonzero(coverage(replace(scene(0, "train", 0), things=(thing,), style="flat"), 256)[0] > 0.5)
    reach = np.hypot(rows + 0.5 - 128, columns + 0.5 - 128).max() / 64
    assert 0.88 < reach < 1.01


def test_edges_are_the_average_of_a_finer_drawing(train: list[Scene]) -> None:
    for each in [each for each in train if each.style == "flat"][:40]:
        fine = coverage(each, 512).reshape(each.count, 64, 8, 64, 8).mean(axis=(2, 4))
        coarse = coverage(each, 64)
        assert np.abs(fine - coarse).max() < 0.5
        assert np.abs(fine - coarse).sum() < 0.03 * fine.sum()


def test_coverage_adds_up_to_at_most_a_pixel_and_agrees_with_the_mask(train: list[Scene]) -> None:
    for each in [each for each in train if not each.repeated][:30]:
        shares = coverage(each)
        assert shares.min() >= 0
        assert shares.sum(axis=0).max() <= 1 + 1e-6
        _, masks = render([each], masks=True)
        for number, share in enumerate(shares, start=1):
            assert np.all(masks[0][share > 0.501] == number)


def test_every_object_contrasts_with_its_background(train: list[Scene]) -> None:
    chosen = train[:600]
    pixels, masks = render(chosen, masks=True)
    for each, image, mask in zip(chosen, pixels.astype(float), masks, strict=True):
        around = image[mask == 0]
        for number in range(1, each.count + 1):
            inside = image[mask == number]
            # Some quantile of the object differs from all quantiles of the background in some channel.
            gaps = [
                np.abs(np.quantile(inside, q, axis=0)[:, None] - np.quantile(around, q, axis=0)[:, None]).max()
                for q in (0.2, 0.5, 0.8)
            ]
            assert max(gaps) > 25, (each.split, each.index, number)


def test_no_global_statistic_of_the_pixels_predicts_a_factor() -> None:
    chosen = [each for each in (scene(3, "train", index) for index in range(4000)) if each.repeated]
    pixels = render(chosen, 64).astype(np.float64) / 255
    flat = pixels.reshape(len(chosen), -1, 3)
    mean, deviation = flat.mean(axis=1), flat.std(axis=1)
    grey = pixels.mean(axis=3)
    edges = np.stack([np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)], axis=1)
    together = np.concatenate([mean, deviation, edges], axis=1)
    half = len(chosen) // 2
    # Largest accuracies that the mean, and all statistics with their squares and products, may reach.
    for values, from_mean, from_all in (
        ([each.things[0].colour for each in chosen], 0.2, 0.45),
        ([each.things[0].shape for each in chosen], 0.15, 0.2),
        ([each.things[0].texture for each in chosen], 0.25, 0.35),
        ([each.things[0].size for each in chosen], 0.5, 0.55),
        ([str(each.count) for each in chosen], 0.45, 0.52),
    ):
        names, labels = np.unique(values, return_inverse=True)
        for statistics, most in ((mean, from_mean), (together, from_all)):
            features = (statistics - statistics[:half].mean(axis=0)) / statistics[:half].std(axis=0)
            crossed = np.stack([a * b for a, b in itertools.combinations_with_replacement(features.T, 2)], axis=1)
            design = np.concatenate([np.ones((len(chosen), 1)), features, crossed], axis=1)
            weights, *_ = np.linalg.lstsq(design[:half], np.eye(len(names))[labels[:half]], rcond=None)
            right = float(((design[half:] @ weights).argmax(axis=1) == labels[half:]).mean())
            assert right < most, f"{names}: {right:.2f}"
