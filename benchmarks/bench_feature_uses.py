"""What do classes of sparse features carry on the image world, beside random features of equal energy?

A group-sparse dictionary is trained on drawn scenes and their captions, and its features are classed by their MDS. Then
three uses, each with its control. Bias: most circles are red and most squares are blue; how well is the worst group
read from images without each class of features? Attack: projected gradient descent on pixels against zero-shot styles,
plain and through the choice of features. Edit: of two scenes that differ in a factor, one takes a class of the other's
features; how many of its neighbours have the other's value?
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.measure import benchmark
from headspan.config import PrecomputeSettings
from headspan.errors import percent
from headspan.features.scores.result import FeatureScores
from headspan.features.uses.attack import attack
from headspan.features.uses.attack_result import TARGETED, UNTARGETED
from headspan.features.uses.bias import probe_bias
from headspan.features.uses.chosen import DECIDED, class_members
from headspan.features.uses.edit_study import edit_study
from headspan.features.uses.pgd import Search
from headspan.run.precompute import precompute
from headspan.store.reader import Store
from headspan.tasks.attribute_task import attribute_task
from headspan.tasks.task import Task
from headspan.world import write_world_shards
from headspan.world.planted import write_planted_shards

QUESTION = "uses of features on the image world"
DUE_TO = (
    "Random features are as many as those of the class and have its energy within the tolerance; where none outside "
    "the class have it, they are drawn from all features, and share some with the class. The adaptive attack goes "
    "through the choice of features by three gradients, and counts an image as soon as any attack, or noise, fools the "
    "classifier. The plain classifier is attacked by one gradient, and so less often than one that keeps features. No "
    "class of features makes classification robust: what the plain attack leaves, the adaptive one takes."
)
_SCENES, _TESTED, _COMMON, _RARE = 5000, 1000, 300, 75
_FACTORS = ("style", "background_colour", "background", "objects.colour", "objects.shape", "count")
# Prompts that tell styles.
_STYLE = ("a {c} picture",)
_PLANTED = Task(
    "planted", "worst_group", classes=("red circle", "blue square"), templates=("a {c}",), groups=("colour",)
)


def run(toy: bool) -> dict[str, Any]:
    """The rows of the three uses, with what the dictionary and its classes are."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), toy)
        return measure(Path(folder), toy)


def make(folder: Path, toy: bool) -> None:
    """Write the three stores and train the dictionary."""
    scenes, tested, common, rare = (256, 40, 12, 6) if toy else (_SCENES, _TESTED, _COMMON, _RARE)
    trained = _store(folder / "trained", write_world_shards(folder / "trained_shards", scenes, 11))
    _store(folder / "tests", write_world_shards(folder / "test_shards", tested, 12))
    counts = {
        ("red", "circle"): common + rare,
        ("blue", "square"): common,
        ("red", "square"): rare,
        ("blue", "circle"): rare,
    }
    _store(folder / "planted", write_planted_shards(folder / "planted_shards", counts, seed=5))
    size: dict[str, Any] = {"features": 768, "k": 16, "steps": 1500}
    if toy:
        size = {"features": 64, "k": 8, "steps": 30, "batch": 64}
    hs.features.train(
        trained, folder / "features", learner="group_sparse", device="cpu", keep=folder / "captions", **size
    )


def measure(folder: Path, toy: bool) -> dict[str, Any]:
    """Score the dictionary, and measure the uses side by side, a process each."""
    dictionary = hs.features.open_dictionary(folder / "features")
    scores = hs.features.score(folder / "trained", dictionary, keep=folder / "captions", device="cpu")
    classes = {
        name: int((scores.class_by_interval == number).sum())
        for name, number in (("image-dominant", 2), ("cross-modal", 1), ("text-dominant", 0), ("undecided", -1))
    }
    if toy:
        # So few pairs decide no class.
        scores = replace(scores, class_by_interval=(np.arange(len(scores.class_by_interval)) % 3).astype(np.int8))
    # A process takes seconds to import what it needs, as long as everything at toy size.
    pool: Executor = ThreadPoolExecutor(1) if toy else ProcessPoolExecutor(4, mp_context=get_context("spawn"))
    with pool as processes:
        bias = processes.submit(_bias, folder, scores, toy)
        attacks = [processes.submit(_attack, folder, scores, goal, toy) for goal in (UNTARGETED, TARGETED)]
        edits = processes.submit(_edits, folder, scores, toy)
        return {
            "scenes": Store(folder / "trained").images,
            "tested": Store(folder / "tests").images,
            "planted": Store(folder / "planted").images,
            "dictionary": dict(dictionary.settings) | {"learner": dictionary.kind},
            "quality": {name: round(value, 4) for name, value in scores.quality.items()},
            "classes": classes,
            "bias": bias.result(),
            "attack": [each.result() for each in attacks],
            "edit": edits.result(),
        }


def _named(scores: FeatureScores) -> list[str]:
    """The classes that have features."""
    return [name for name in DECIDED if class_members(scores, name).any()]


def _bias(folder: Path, scores: FeatureScores, toy: bool) -> dict[str, Any]:
    found = probe_bias(
        *(Store(folder / "planted"), hs.features.open_dictionary(folder / "features"), scores, _PLANTED),
        classes=_named(scores),
        draws=1 if toy else 5,
        samples=20 if toy else 1000,
    )
    return _json(found) | {"test_images": found.test_images, "train_images": found.train_images}


def _attack(folder: Path, scores: FeatureScores, goal: str, toy: bool) -> dict[str, Any]:
    tests = Store(folder / "tests")
    few = goal == TARGETED
    found = attack(
        *(tests, hs.features.open_dictionary(folder / "features"), scores, attribute_task(tests, "style", _STYLE)),
        keep=[name for name in _named(scores) if name != "text-dominant"],
        remove=(),
        goals=(goal,),
        most=4 if toy else 24 if few else 48,
        epsilons=(4 / 255, 8 / 255) if few or toy else (2 / 255, 4 / 255, 8 / 255),
        search=Search(1 if toy else 10, 1),
        draws=1 if toy else 2,
        samples=20 if toy else 1000,
        device="cpu",
    )
    return _json(found) | {
        "images": found.images,
        "steps": found.steps,
        "restarts": found.restarts,
        "works": found.works,
    }


def _edits(folder: Path, scores: FeatureScores, toy: bool) -> dict[str, Any]:
    found = {
        donors: edit_study(
            *(Store(folder / "tests"), hs.features.open_dictionary(folder / "features"), scores, _FACTORS),
            classes=_named(scores),
            donors=donors,
            pairs=4 if toy else 100,
            draws=1 if toy else 5,
        )
        for donors in ("images", "captions")
    }
    return {donors: _json(each) | {"pairs": each.pairs} for donors, each in found.items()}


def _store(path: Path, shards: str) -> Store:
    precompute(PrecomputeSettings(shards=(shards,), out=str(path), model="reference", layers="last1", device="cpu"))
    return Store(path)


def _json(study: Any) -> dict[str, Any]:
    columns = study._columns()
    rows = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    return {"rows": rows, "residual": study.residual, "tolerance": study.tolerance, "remarks": list(study.remarks)}


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each class and reader, each classifier and ε, and each class and factor; random features beside it."""
    found = [["use", "features", "with the class", "random features of equal energy", "untouched"]]
    bias = line["bias"]["rows"]
    for reader in dict.fromkeys(each["reader"] for each in bias):
        own = [each for each in bias if each["reader"] == reader]
        untouched = next(each for each in own if each["kind"] == "untouched")
        for each in (row for row in own if row["kind"] == "class"):
            random = next((r for r in own if r["kind"] == "random" and r["removed"] == each["removed"]), None)
            found.append(
                [
                    f"worst group of a planted cue, {reader}, without {each['removed']}",
                    f"{each['features']}, {percent(each['energy'])} of energy",
                    f"{percent(each['worst_group'])}; all {percent(each['accuracy'])}",
                    "none"
                    if random is None
                    else f"{percent(random['worst_group'])} ({_points(random)}); all {percent(random['accuracy'])}",
                    f"{percent(untouched['worst_group'])}; all {percent(untouched['accuracy'])}",
                ]
            )
    for study in line["attack"]:
        for each in (row for row in study["rows"] if row["kind"] in ("reconstruction", "class")):
            same = [row for row in study["rows"] if row["epsilon_255"] == each["epsilon_255"]]
            plain = next(row for row in same if row["kind"] == "plain")
            random = next((r for r in same if r["kind"] == "random" and r["classifier"] == each["classifier"]), None)
            what = "robust accuracy" if each["goal"] == UNTARGETED else "images named as the target"
            found.append(
                [
                    f"{what} at ε = {each['epsilon_255']:.0f}/255, {each['classifier']}",
                    f"{each['features']}, {percent(each['energy'])} of energy",
                    _robust(each),
                    "" if each["kind"] != "class" else "none" if random is None else _robust(random),
                    f"clean {percent(plain['clean'])}, noise {percent(plain['noise'])}, attacked "
                    f"{percent(plain['adaptive'])}",
                ]
            )
    for donors, study in line["edit"].items():
        for each in (row for row in study["rows"] if row["kind"] == "class"):
            same = [row for row in study["rows"] if row["factor"] == each["factor"]]
            random = next((r for r in same if r["kind"] == "random" and r["exchanged"] == each["exchanged"]), None)
            source = next(row for row in same if row["kind"] == "source")
            found.append(
                [
                    f"edit, {each['exchanged']} from {donors}: {each['factor']}, {each['pairs']} pairs",
                    f"{each['features']}",
                    f"source's {percent(each['source'])}, donor's {percent(each['donor'])}",
                    "none"
                    if random is None
                    else f"source's {percent(random['source'])}, donor's {percent(random['donor'])} "
                    f"({percent(random['donor_low'])} to {percent(random['donor_high'])})",
                    f"source's {percent(source['source'])}, donor's {percent(source['donor'])}",
                ]
            )
    return found


def _robust(row: Mapping[str, Any]) -> str:
    ends = f"{percent(row['adaptive_low'])} to {percent(row['adaptive_high'])}"
    return (
        f"clean {percent(row['clean'])}, plain attack {percent(row['transferred'])}, adaptive "
        f"{percent(row['adaptive'])} ({ends})"
    )


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['change_low']:+.1f} to {100 * row['change_high']:+.1f} points"


if __name__ == "__main__":
    benchmark(QUESTION, run)
