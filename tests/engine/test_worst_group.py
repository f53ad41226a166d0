"""Accuracy of groups of images, compared with plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.tasks.evaluation import Evaluation
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.task import Task
from headspan.tasks.worst_group import WorstGroup
from tests.conftest import ToyRun, encoded_image

TASK = Task("birds", "worst_group", classes=("land bird", "sea bird"), templates=("a {c}",), groups=("place", "light"))
# Class, place and light of each image; the last group has a single image.
KNOWN = [
    (0, "land", True), (0, "land", True), (0, "sea", True), (1, "sea", True), (1, "sea", True), (1, "sea", True),
    (None, "sea", True), (1, None, True), (1, "land", None), (0, "land", True), (1, "land", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def birds(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Eleven images, three of which have no group."""
    folder = tmp_path_factory.mktemp("birds")
    samples = [
        (
            f"{row}",
            encoded_image(row),
            {name: value for name, value in zip(("cls", "place", "light"), each, strict=True) if value is not None},
        )
        for row, each in enumerate(KNOWN)
    ]
    shards = hs.write_shards(samples, folder / "shards")
    hs.precompute(out=folder / "run.zarr", **toy_run.settings(shards=[shards]))
    return hs.open(folder / "run.zarr")


def test_every_group_is_a_class_with_the_values_of_the_metadata(birds: hs.Store) -> None:
    evaluation = evaluation_of(TASK, birds)
    assert isinstance(evaluation, WorstGroup)
    assert evaluation.sizes == {
        "land bird, land, True": 3,
        "land bird, sea, True": 1,
        "sea bird, land, False": 1,
        "sea bird, sea, True": 3,
    }
    assert repr(evaluation) == "WorstGroup(birds: 8 images, 4 groups)"
    named = np.array([0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    figures = evaluation.figures(named)
    assert list(figures)[:3] == ["worst_group", "accuracy", "mean_group"]
    assert figures["land bird, land, True"] == 2 / 3
    assert figures["land bird, sea, True"] == 1
    assert figures["sea bird, sea, True"] == 2 / 3
    assert figures["worst_group"] == figures["sea bird, land, False"] == 0
    assert figures["accuracy"] == 5 / 8
    assert figures["mean_group"] == pytest.approx((2 / 3 + 1 + 2 / 3 + 0) / 4)
    right = evaluation.correct(named)
    assert right.tolist() == [True, False, True, True, True, False, False, False, False, True, False]


def test_the_class_of_the_nearest_vector_is_named(birds: hs.Store) -> None:
    evaluation: Evaluation = WorstGroup.of(TASK, birds)
    vectors = hs.text_vectors(birds, ["a land bird", "a sea bird"])
    wanted = [int(np.dot(vectors[1], each) > np.dot(vectors[0], each)) for each in birds.embedding]
    assert evaluation.outcomes(birds.embedding).tolist() == wanted
    assert evaluation.headline == "worst_group"
    assert evaluation.higher_is_better


def test_a_resampled_image_counts_as_often_as_it_is_drawn(birds: hs.Store) -> None:
    evaluation = WorstGroup.of(TASK, birds)
    random = np.random.default_rng(1)
    named = random.integers(2, size=11)
    draws = random.integers(11, size=(40, 11))
    counts = np.stack([np.bincount(draw, minlength=11) for draw in draws]).astype(np.float32)
    found = evaluation.resampled(named, counts)
    for draw, value in zip(draws, found, strict=True):
        by_group: dict[tuple[object, ...], list[bool]] = {}
        for image in draw.tolist():
            if None not in KNOWN[image]:
                by_group.setdefault(KNOWN[image], []).append(named[image] == KNOWN[image][0])
        assert value == pytest.approx(min(np.mean(each) for each in by_group.values()))
    once = np.ones((1, 11), np.float32)
    assert evaluation.resampled(named, once)[0] == evaluation.figures(named)["worst_group"]


def test_values_of_the_metadata_can_have_other_names(birds: hs.Store) -> None:
    merged = {"day": ("True",), "night": ("False",), "anywhere": ("land", "sea")}
    evaluation = WorstGroup.of(replace(TASK, merged=merged), birds)
    assert evaluation.sizes == {
        "land bird, anywhere, day": 4,
        "sea bird, anywhere, day": 3,
        "sea bird, anywhere, night": 1,
    }


def test_some_images_can_be_evaluated_alone(birds: hs.Store) -> None:
    evaluation = WorstGroup.of(TASK, birds, images=[0, 2, 3, 6])
    assert evaluation.names == ("land bird, land, True", "land bird, sea, True", "sea bird, sea, True")
    assert evaluation.figures(np.array([0, 0, 0, 0]))["accuracy"] == 2 / 3


def test_images_without_both_a_class_and_a_group_are_refused(birds: hs.Store) -> None:
    with pytest.raises(SettingsError, match="no image's metadata has 'colour', which groups need"):
        WorstGroup.of(replace(TASK, groups=("place", "colour")), birds)
    with pytest.raises(
        SettingsError, match="none of 2 images has both a class and place, light, which task birds needs"
    ):
        WorstGroup.of(TASK, birds, images=[6, 8])
    with pytest.raises(SettingsError, match="task birds names classes 0 to 0"):
        WorstGroup.of(replace(TASK, classes=("land bird",)), birds)
