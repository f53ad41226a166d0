"""Differences of differences, compared with plain loops, and on the image world with its trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.ccs import read_scores
from headspan.config import PrecomputeSettings
from headspan.demo import analyse_scenes
from headspan.errors import SettingsError
from headspan.prune.choice.draws import matched_draws
from headspan.prune.direct.ablation import mean_ablated
from headspan.prune.studies.concept_specific import Concept, ConceptEffect, concept_effects, concepts_of
from headspan.prune.total.total_effect import total_effect
from headspan.store.head_space import Head, stored_heads
from headspan.tasks.classification import Classification
from headspan.tasks.task import Task
from headspan.tasks.zero_shot import Classes
from headspan.world import FACTORS, prompts, scene, value_of, write_world_shards
from headspan.world.pruning import factor_concepts, factor_heads


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Held-out scenes through the reference model, with labels and scores of its heads."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_world_shards(folder / "shards", 600, seed=2, split="held_out")
    settings = PrecomputeSettings(
        shards=(shards,), out=str(folder / "run.zarr"), model="reference", layers="all", device="cpu"
    )
    return analyse_scenes(settings)[0]


@pytest.fixture(scope="module")
def effects(world: hs.Store) -> dict[str, ConceptEffect]:
    heads = factor_heads(read_scores(world, None))
    return {each.concept: each for each in concept_effects(world, factor_concepts(world), heads)}


def hand_made(toy_store: hs.Store) -> tuple[dict[str, Concept], dict[tuple[Head, ...], np.ndarray]]:
    """Three concepts over the toy's images, and random embeddings for any set of heads."""
    random = np.random.default_rng(4)
    concepts = {}
    for name, count in (("a", 2), ("b", 3), ("c", 5)):
        vectors = random.standard_normal((count, toy_store.joint)).astype(np.float32)
        truths = random.integers(-1, count, size=toy_store.images)
        concepts[name] = Concept(Classes(tuple(map(str, range(count))), vectors), truths)
    return concepts, {}


def test_differences_and_their_intervals_equal_those_of_plain_loops(toy_store: hs.Store) -> None:
    concepts, pruned = hand_made(toy_store)
    random = np.random.default_rng(5)

    def prune(sets: Sequence[Sequence[Head]]) -> Iterator[np.ndarray]:
        for heads in sets:
            noise = random.standard_normal(toy_store.embedding.shape).astype(np.float32)
            yield pruned.setdefault(tuple(heads), toy_store.embedding + noise)

    heads = {"b": [(1, 0), (2, 2)]}
    found = concept_effects(toy_store, concepts, heads, prune=prune, draws=3, samples=400)[0]
    drawn = matched_draws(heads["b"], stored_heads(toy_store), 3, 0).sets
    assert (found.draws, len(drawn)) == (3, 3)

    def drop(name: str, embeddings: np.ndarray, images: Sequence[int]) -> float:
        each, lost, known = concepts[name], 0, 0
        for image in images:
            if (truth := each.truths[image]) >= 0:
                before, after = (
                    int(np.argmax(each.classes.vectors @ of[image])) for of in (toy_store.embedding, embeddings)
                )
                lost += int(before == truth) - int(after == truth)
                known += 1
        return lost / known

    def differences(embeddings: np.ndarray, images: Sequence[int]) -> tuple[float, float]:
        others = [drop(name, embeddings, images) for name in ("a", "c")]
        own = drop("b", embeddings, images)
        return own - sum(others) / 2, own - max(others)

    every = range(toy_store.images)
    own = pruned[tuple(heads["b"])]
    assert found.drops["a"].value == pytest.approx(drop("a", own, every))
    assert (found.above_mean.value, found.above_largest.value) == pytest.approx(differences(own, every))
    at_random = np.mean([differences(pruned[each], every) for each in drawn], axis=0)
    assert found.random_above_mean is not None
    assert found.random_above_largest is not None
    assert (found.random_above_mean.value, found.random_above_largest.value) == pytest.approx(at_random.tolist())
    generator = np.random.default_rng(7)
    samples = [differences(own, generator.integers(len(every), size=len(every))) for _ in range(400)]
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    spread = np.std(samples, axis=0)
    # The ends of two intervals of 400 samples each differ by about a sixth of the spread.
    for place, interval in enumerate((found.above_mean, found.above_largest)):
        assert abs(interval.low - low[place]) < 0.8 * spread[place]
        assert abs(interval.high - high[place]) < 0.8 * spread[place]


def test_the_direct_effect_is_the_default(world: hs.Store) -> None:
    concepts = factor_concepts(world)
    heads = [(5, 1), (4, 2)]
    found = concept_effects(world, concepts, {"shape": heads}, draws=0)[0]
    assert found.random_above_mean is found.random_above_largest is None
    left = mean_ablated(world, heads)
    for name, each in concepts.items():
        known = each.truths >= 0
        before, after = (each.correct(of)[known].mean() for of in (world.embedding, left))
        assert found.drops[name].value == pytest.approx(before - after)


def test_the_factors_of_the_world_are_those_of_its_scenes(world: hs.Store) -> None:
    concepts = factor_concepts(world)
    assert set(concepts) == set(FACTORS) - {"background"}
    for name, each in concepts.items():
        assert each.classes.names == tuple(prompts(name))
        for index in range(40):
            value = value_of(scene(2, "held_out", index), name)
            assert each.truths[index] == (-1 if value is None else each.classes.names.index(value))


@pytest.mark.parametrize("factor", ["colour", "shape", "texture", "count", "style", "background_colour"])
def test_without_the_heads_of_a_factor_the_model_loses_that_factor_more_than_any_other(
    factor: str, effects: dict[str, ConceptEffect]
) -> None:
    found = effects[factor]
    assert found.specific
    assert found.above_largest.low > 0.1
    # As many random heads of the same layers do nothing of the kind.
    assert found.draws >= 5
    assert found.random_above_largest is not None
    assert found.random_above_mean is not None
    assert found.random_above_largest.high < 0
    assert found.random_above_mean.high < found.above_mean.low
    assert found.draws_above == 0


def test_positions_are_lost_most_by_the_total_effect_of_their_head(
    world: hs.Store, effects: dict[str, ConceptEffect]
) -> None:
    heads = {"position": effects["position"].heads}
    prune = partial(total_effect, world)
    (position,) = concept_effects(world, factor_concepts(world), heads, prune=prune, draws=1)
    assert position.specific
    assert position.random_above_largest is not None
    assert position.random_above_largest.high < position.above_largest.low
    # Later layers read positions from the head, which writes little of them to the embedding itself.
    assert not effects["position"].specific


def test_where_a_factor_is_not_lost_most_none_of_its_heads_is_high(
    effects: dict[str, ConceptEffect], world: hs.Store
) -> None:
    scores = read_scores(world, None)
    for found in effects.values():
        assert found.specific or all(scores.group(*head) != "high" for head in found.heads), found.concept


def test_a_tasks_concepts_are_its_groups_of_classes() -> None:
    task = Task(
        "t",
        "accuracy",
        classes=("cat", "car", "dog"),
        templates=("a {c}",),
        concepts={"animals": ("dog", "cat"), "objects": ("car",)},
    )
    vectors = np.eye(3, 4, dtype=np.float32)
    classification = Classification(task, Classes(task.classes, vectors), np.array([0, 1, 2, -1, 2]))
    found = concepts_of(classification)
    assert found["animals"].classes.names == task.classes
    assert found["animals"].truths.tolist() == [0, -1, 2, -1, 2]
    assert found["objects"].truths.tolist() == [-1, 1, -1, -1, -1]
    alone = concepts_of(classification, own_classes=True)
    assert alone["animals"].classes.names == ("cat", "dog")
    assert alone["animals"].truths.tolist() == [0, -1, 1, -1, 1]
    # The car's vector is nearest, but a car is not among the animals.
    named = np.array([[0, 2, 1, 0]], np.float32).repeat(5, axis=0)
    assert found["animals"].correct(named).tolist() == [False] * 5
    assert alone["animals"].correct(named).tolist() == [False, False, True, False, True]
    with pytest.raises(
        SettingsError, match=r'task t: has no groups of classes; declare concepts, such as animals = \["cat"\]'
    ):
        concepts_of(replace(classification, task=replace(task, concepts={})))


@pytest.mark.parametrize(
    ("names", "heads", "message"),
    [
        ("a", {"a": [(0, 0)]}, "one concept has nothing to be compared with; give at least two"),
        ("ab", {"c": [(0, 0)]}, "heads are given for 'c', which is not among the concepts a, b"),
        ("ab", {"a": []}, "concept 'a' has no heads; leave it out of the heads to prune"),
        ("ab", {"a": [(0, 9)]}, "head 9"),
        ("ad", {"a": [(0, 0)]}, "no image is about 'd'; leave this concept out"),
    ],
)
def test_questions_without_an_answer_are_refused(
    names: str, heads: dict[str, list[Head]], message: str, toy_store: hs.Store
) -> None:
    concepts, _ = hand_made(toy_store)
    concepts["d"] = replace(concepts["a"], truths=np.full(toy_store.images, -1))
    with pytest.raises(SettingsError, match=message):
        concept_effects(toy_store, {name: concepts[name] for name in names}, heads, draws=1, samples=10)
