"""Skew of rankings, compared with counting by hand, and with what resampled images give when they are repeated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.tasks.evaluation import Evaluation
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.skew import Skew, occupations
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task
from headspan.tasks.truths import Groups
from tests.conftest import ToyRun, encoded_image

TASK = Task("faces", "skew", groups=("race", "gender"), settings={"k": 3}, merged={"asian": ("East", "Southeast")})
RACES = ("East", "Southeast", "white", "white", "white", None, "black", "white", "East", "black", "white")


@pytest.fixture(scope="module")
def faces(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Eleven images; one has no race, one alone is of gender x."""
    folder = tmp_path_factory.mktemp("faces")
    samples = []
    for row, race in enumerate(RACES):
        known = {"gender": "x" if row == 4 else "fm"[row % 2], "age": row, "box": [row, row]}
        samples.append((f"{row}", encoded_image(row), known if race is None else {**known, "race": race}))
    shards = hs.write_shards(samples, folder / "shards")
    hs.precompute(out=folder / "run.zarr", **toy_run.settings(shards=[shards]))
    return hs.open(folder / "run.zarr")


def random_skew(images: int, prompts: int, groups: int, k: int, smoothing: float = 0) -> tuple[Skew, np.ndarray]:
    """An evaluation and cosines; every seventh image has no group."""
    random = np.random.default_rng([images, prompts])
    numbers = random.integers(groups, size=images)
    numbers[:groups] = np.arange(groups)
    numbers[6::7] = -1
    task = Task("t", "skew", groups=("g",), settings={"k": k, "smoothing": smoothing})
    names = tuple(f"prompt {number}" for number in range(prompts))
    by_key = {"g": Groups(tuple(f"group {number}" for number in range(groups)), numbers)}
    scores = random.standard_normal((images, prompts)).astype(np.float32)
    return Skew(task, names, np.zeros((prompts, 1), np.float32), by_key), scores


def by_hand(scores: Sequence[float], groups: Sequence[int], k: int, smoothing: float) -> tuple[float, float, float]:
    """MaxSkew, MinSkew and NDKL of one ranking, by sorting and counting."""
    ranking = sorted((image for image in range(len(scores)) if groups[image] >= 0), key=lambda image: -scores[image])
    whole = Counter(groups[image] for image in ranking)
    data = {group: count / len(ranking) for group, count in whole.items()}

    def shares(length: int) -> dict[int, float]:
        top = Counter(groups[image] for image in ranking[:length])
        return {
            group: (top[group] + smoothing) / (length + smoothing * len(data))
            for group in data
            if top[group] + smoothing > 0
        }

    skews = [math.log(share / data[group]) for group, share in shares(k).items()]
    total, norm = 0.0, 0.0
    for length in range(1, k + 1):
        divergence = sum(share * math.log(share / data[group]) for group, share in shares(length).items())
        total += divergence / math.log2(length + 1)
        norm += 1 / math.log2(length + 1)
    return max(skews), min(skews), total / norm


@pytest.mark.parametrize("smoothing", [0, 0.5])
@pytest.mark.parametrize(("images", "prompts", "groups", "k"), [(3, 1, 2, 2), (40, 3, 5, 10), (257, 7, 3, 10)])
def test_figures_equal_those_counted_by_hand(images: int, prompts: int, groups: int, k: int, smoothing: float) -> None:
    skew, scores = random_skew(images, prompts, groups, k, smoothing)
    numbers = skew.groups["g"].numbers.tolist()
    wanted = np.array([by_hand(column, numbers, k, smoothing) for column in scores.T.tolist()])
    found = skew.figures(scores)
    assert list(found) == ["max_skew_sum_g", "max_skew_mean_g", "min_skew_sum_g", "min_skew_mean_g", "ndkl_mean_g"]
    sums, means = wanted.sum(axis=0), wanted.mean(axis=0)
    np.testing.assert_allclose(list(found.values()), [sums[0], means[0], sums[1], means[1], means[2]], rtol=1e-12)
    assert skew.headline == next(iter(found))
    assert not skew.higher_is_better
    assert skew.correct(scores) is None
    table = skew.per_prompt(scores)
    np.testing.assert_allclose(np.nanmax(table.skews, axis=1), wanted[:, 0], rtol=1e-12)
    np.testing.assert_allclose(table.ndkl, wanted[:, 2], rtol=1e-12)
    assert (table.counts.sum(axis=1) == k).all()
    assert math.isclose(table.shares.sum(), 1)
    columns = table._columns()
    np.testing.assert_allclose(columns["max_skew"], wanted[:, 0], rtol=1e-12)
    np.testing.assert_allclose(columns["min_skew"], wanted[:, 1], rtol=1e-12)
    assert "7 prompts, k 10" in repr(table) or prompts != 7


@pytest.mark.parametrize("smoothing", [0, 2])
def test_a_resampled_image_counts_as_often_as_it_is_drawn(smoothing: float) -> None:
    skew, scores = random_skew(40, 3, 4, 5, smoothing)
    random = np.random.default_rng(3)
    draws = [random.integers(40, size=40) for _ in range(30)]
    # A draw with one image only, and one that leaves a group out.
    draws += [np.full(40, 1), np.flatnonzero(skew.groups["g"].numbers != 2).repeat(2)[:40]]
    counts = np.stack([np.bincount(draw, minlength=40) for draw in draws]).astype(np.float32)
    found = skew.resampled(scores, counts)
    for draw, value in zip(draws, found, strict=True):
        repeated = np.sort(draw)
        numbers = skew.groups["g"].numbers[repeated].tolist()
        wanted = sum(by_hand(column, numbers, 5, smoothing)[0] for column in scores[repeated].T.tolist())
        assert value == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_array_equal(
        skew.resampled(scores, np.ones((1, 40), np.float32)), skew.figures(scores)["max_skew_sum_g"]
    )


def test_groups_come_from_the_metadata_and_merged_values_are_one_group(faces: hs.Store) -> None:
    skew = evaluation_of(TASK, faces)
    assert isinstance(skew, Skew)
    evaluation: Evaluation = skew
    assert skew.groups["race"].names == ("asian", "black", "white")
    wanted = [-1 if race is None else {"w": 2, "b": 1}.get(race[0], 0) for race in RACES]
    assert skew.groups["race"].numbers.tolist() == wanted
    assert skew.groups["gender"].names == ("f", "m", "x")
    outcomes = evaluation.outcomes(faces.embedding * 3)
    assert evaluation.headline == "max_skew_sum_race"
    figures = evaluation.figures(outcomes)
    assert [name for name in figures if name.startswith("max_skew_sum")] == ["max_skew_sum_race", "max_skew_sum_gender"]
    # A group of one image has the largest skew that there is, where that image is in the top 3.
    by_gender = skew.per_prompt(outcomes, "gender")
    alone = by_gender.counts[:, 2] == 1
    np.testing.assert_allclose(by_gender.skews[alone, 2], math.log(11 / 3))
    assert np.isnan(by_gender.skews[~alone, 2]).all()


def test_a_prompts_vector_is_the_unit_mean_of_its_phrases_vectors(faces: hs.Store) -> None:
    skew = Skew.of(TASK, faces)
    assert len(skew.prompts) == 104
    assert skew.prompts == occupations()[0]
    place = skew.prompts.index("doctor")
    texts = ["A doctor", "A photo of doctor", "A picture of doctor", "An image of doctor"]
    mean = hs.text_vectors(faces, texts).mean(axis=0)
    np.testing.assert_allclose(skew.vectors[place], mean / np.linalg.norm(mean), atol=1e-6)
    cosines = skew.outcomes(faces.embedding)[:, place]
    unit = faces.embedding / np.linalg.norm(faces.embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, unit @ skew.vectors[place], atol=1e-6)


def test_own_prompts_and_some_images_take_the_place_of_occupations_and_all(faces: hs.Store) -> None:
    own = replace(TASK, classes=("cat", "dog"), templates=("a {p}", "{p}s"), groups=("gender",))
    skew = Skew.of(own, faces, images=range(4, 10))
    assert skew.prompts == ("cat", "dog")
    assert len(skew.groups["gender"].numbers) == 6
    assert repr(skew) == "Skew(faces: 2 prompts, groups by gender)"


def test_the_declaration_of_fairface_asks_for_the_published_prompts_and_groups() -> None:
    task = read_task("fairface")
    subjects, phrases = occupations()
    assert (len(subjects), len(set(subjects)), len(phrases)) == (104, 104, 4)
    assert all("{p}" in phrase for phrase in phrases)
    assert (task.classes, task.templates) == ((), ())
    assert task.groups == ("race", "gender")
    assert {value for values in task.merged.values() for value in values} >= {"East Asian", "Southeast Asian"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": ("colour",)}, "no image's metadata has 'colour', which groups need; the metadata's keys are"),
        ({"groups": ()}, "task faces: names no key of the metadata in groups; name one, such as race"),
        ({"settings": {"k": 11}}, "10 images with 'race' cannot fill a ranking of k = 11, as task faces asks"),
        ({"settings": {"k": 0}}, "task faces: k = 0 is not a length of a ranking; give a whole number from 1"),
        ({"settings": {"k": True}}, "task faces: k = True is not a length"),
        (
            {"settings": {"k": 3, "smoothing": -1}},
            "task faces: smoothing = -1 is not a number of images; give 0 or more",
        ),
        ({"templates": ("a face",)}, r"task faces: template 'a face' has no \{p\}, the prompt's subject; write it"),
        ({"merged": {"a": ("East",), "b": ("East",)}}, "merged lists 'East' under 'a' and 'b'; keep one of them"),
    ],
)
def test_a_task_that_does_not_fit_the_images_is_refused(
    changed: dict[str, object], message: str, faces: hs.Store, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        Skew.of(replace(TASK, **changed), faces)  # type: ignore[arg-type]


def test_skews_of_a_key_that_the_task_does_not_have_are_refused() -> None:
    skew, scores = random_skew(40, 3, 4, 5)
    with pytest.raises(SettingsError, match="task t has no groups by 'age', only by g"):
        skew.per_prompt(scores, "age")


def test_images_of_equal_cosine_are_ranked_in_the_stores_order() -> None:
    skew, _ = random_skew(40, 1, 4, 5)
    scores = np.zeros((40, 1), np.float32)
    scores[20:] = 1
    numbers = skew.groups["g"].numbers
    top = [image for image in range(20, 40) if numbers[image] >= 0][:5]
    counts = Counter(numbers[top].tolist())
    assert skew.per_prompt(scores).counts[0].tolist() == [counts[group] for group in range(4)]
