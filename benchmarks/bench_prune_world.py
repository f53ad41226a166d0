"""Does pruning change what it should on the image world, whose factors, cues and groups are known?

Three questions, all with the trained reference model. Specific heads: without the heads that are labelled with a
factor's concept, does the model lose that factor more than any other one, and not so without as many random heads of
the same layers? By the direct effect (mean ablation) and by the total effect (the live model without the heads), over
held-out scenes. A spurious cue: most circles are red and most squares are blue, and the classes are named "red circle"
and "blue square"; how well is the worst group classified without the heads that carry colour, chosen on one half of the
images and scored on the other? Skew: is MaxSkew@10 of a planted imbalance the value that sorting and counting gives?
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import benchmark
from headspan.concepts.ccs import read_scores
from headspan.config import PrecomputeSettings
from headspan.demo import analyse_scenes
from headspan.errors import percent
from headspan.prune.choice.draws import DRAWS
from headspan.prune.studies.concept_specific import ConceptEffect, concept_effects
from headspan.prune.studies.spurious import spurious_study
from headspan.prune.studies.statistics import SAMPLES, Interval
from headspan.prune.total.total_effect import total_effect
from headspan.run.precompute import precompute
from headspan.store.reader import Store
from headspan.tasks.skew import Skew
from headspan.tasks.task import Task
from headspan.texts.pool import Pool
from headspan.texts.vectors import text_vectors
from headspan.world import write_world_shards
from headspan.world.planted import write_planted_shards
from headspan.world.pruning import factor_concepts, factor_heads

QUESTION = "pruning on the image world"
DUE_TO = (
    "A difference is the factor's loss of accuracy minus the largest loss of any other factor, with the 95 % interval "
    "of a bootstrap over images; for random heads it is the mean over sets. The heads of sizes and of positions match "
    "two and three of their five texts. Positions are lost by the total effect only, because later layers read them. "
    "Sizes are not lost with the head of that label: they are lost with the heads of counting. The reference model "
    "needs its MLPs, so its worst group is worse where they are ablated too, unless the right heads are."
)
_SCENES, _PLANTED, _RARE, _DRAWS_TOTAL = 2000, 400, 100, 3
_CUE, _CORE = ("red shape", "blue shape"), ("circle", "square")
_SKEW_PROMPTS = ("red shape", "blue shape", "circle", "square", "striped object", "picture")


def run(toy: bool) -> dict[str, Any]:
    """Differences of each factor by both effects, the worst group by variant, and skews by the code and by hand."""
    with tempfile.TemporaryDirectory() as folder:
        return {**_specific(Path(folder) / "world", toy), **_planted(Path(folder) / "planted", toy)}


def _specific(folder: Path, toy: bool) -> dict[str, Any]:
    scenes, draws, live_draws = (60, 2, 1) if toy else (_SCENES, DRAWS, _DRAWS_TOTAL)
    shards = write_world_shards(folder / "shards", scenes, 2, split="held_out")
    settings = PrecomputeSettings(shards=(shards,), out=str(folder / "run.zarr"), model="reference", layers="all")
    store, _ = analyse_scenes(settings)
    concepts, heads = factor_concepts(store), factor_heads(read_scores(store, None))
    if toy:
        heads = {name: heads[name] for name in list(heads)[:2]}
    samples = 50 if toy else SAMPLES
    direct = concept_effects(store, concepts, heads, draws=draws, samples=samples)
    live = concept_effects(
        store, concepts, heads, prune=partial(total_effect, store), draws=live_draws, samples=samples
    )
    return {
        "scenes": scenes,
        "accuracy": {
            name: float(each.correct(store.embedding)[each.truths >= 0].mean()) for name, each in concepts.items()
        },
        "direct": {each.concept: _as_json(each) for each in direct},
        "total": {each.concept: _as_json(each) for each in live},
    }


def _as_json(effect: ConceptEffect) -> dict[str, Any]:
    return {
        "heads": [list(head) for head in effect.heads],
        "drop": _ends(effect.drops[effect.concept]),
        "drops": {name: round(each.value, 4) for name, each in effect.drops.items()},
        "above_largest": _ends(effect.above_largest),
        "above_mean": _ends(effect.above_mean),
        "random_above_largest": None if effect.random_above_largest is None else _ends(effect.random_above_largest),
        "draws": effect.draws,
        "draws_above": effect.draws_above,
        "specific": effect.specific,
    }


def _ends(interval: Interval) -> list[float]:
    return [round(each, 4) for each in (interval.value, interval.low, interval.high)]


def _planted(folder: Path, toy: bool) -> dict[str, Any]:
    common, rare = (12, 6) if toy else (_PLANTED, _RARE)
    # Red objects are more than blue ones, too.
    counts = {
        ("red", "circle"): common + rare,
        ("blue", "square"): common,
        ("red", "square"): rare,
        ("blue", "circle"): rare,
    }
    shards = write_planted_shards(folder / "shards", counts, seed=5)
    settings = PrecomputeSettings(
        shards=(shards,), out=str(folder / "run.zarr"), model="reference", layers="all", emit=("heads", "mlps")
    )
    precompute(settings)
    store = Store(folder / "run.zarr")
    task = Task(
        "planted", "worst_group", classes=("red circle", "blue square"), templates=("a {c}",), groups=("colour",)
    )
    study = spurious_study(store, task, _CUE, _CORE, draws=2 if toy else DRAWS, samples=50 if toy else SAMPLES)
    return {
        "common": common,
        "rare": rare,
        "worst_group": [
            {
                "name": each.name,
                "rest": each.rest,
                "heads": [list(head) for head in each.heads],
                "worst": each.figures["worst_group"],
                "mean": each.figures["mean_group"],
                "change": _ends(each.change),
            }
            for each in study.variants
        ],
        "skew": _skew(store),
    }


def _skew(store: Store) -> dict[str, Any]:
    task = Task("planted", "skew", classes=_SKEW_PROMPTS, templates=("{p}",), groups=("colour", "shape"))
    skew = Skew.of(task, store)
    figures = skew.figures(skew.outcomes(store.embedding))
    known = [json.loads(text) for text in store.samples(columns=["metadata"])["metadata"].to_pylist()]
    vectors = text_vectors(store, Pool("prompts", _SKEW_PROMPTS))
    unit = store.embedding / np.linalg.norm(store.embedding, axis=1, keepdims=True)
    found = {}
    for key in task.groups:
        groups = [each[key] for each in known]
        total = 0.0
        for vector in vectors:
            cosines = (unit @ vector).tolist()
            top = sorted(range(len(groups)), key=lambda image: -cosines[image])[:10]
            counted = Counter(groups[image] for image in top)
            total += max(math.log(count / 10 / (groups.count(group) / len(groups))) for group, count in counted.items())
        found[key] = {"code": figures[f"max_skew_sum_{key}"], "by_hand": total}
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each factor and effect, each variant of the planted cue, and each key of the skew."""
    found = [["what", "heads", "value", "without random heads", "holds"]]
    for mode in ("direct", "total"):
        for factor, each in line[mode].items():
            random = (
                "none can be drawn" if each["random_above_largest"] is None else _points(each["random_above_largest"])
            )
            found.append(
                [
                    f"{factor.replace('_', ' ')}, {mode} effect: loss above the largest other loss",
                    _names(each["heads"]),
                    _points(each["above_largest"]),
                    f"{random}; {each['draws_above']} of {each['draws']} sets above 0",
                    "yes" if each["specific"] else "no",
                ]
            )
    beside_of = {each["rest"]: each for each in line["worst_group"] if each["name"] == "random"}
    for each in line["worst_group"]:
        if each["name"] == "random":
            continue
        rest = "" if each["rest"] == "nothing" else f", {each['rest']} ablated too"
        beside = beside_of.get(each["rest"]) if each["name"] == "automatic" else None
        found.append(
            [
                f"worst group, {each['name']}{rest}",
                _names(each["heads"]),
                f"{percent(each['worst'])} ({_points(each['change'])}); mean over groups {percent(each['mean'])}",
                "" if beside is None else f"{percent(beside['worst'])} ({_points(beside['change'])})",
                "" if each["name"] != "automatic" else "yes" if each["change"][1] > 0 else "no",
            ]
        )
    for key, each in line["skew"].items():
        same = math.isclose(each["code"], each["by_hand"], rel_tol=1e-9)
        found.append(
            [
                f"MaxSkew@10 by {key}, sum over {len(_SKEW_PROMPTS)} prompts",
                "",
                f"{each['code']:.4f}, by hand {each['by_hand']:.4f}",
                "",
                "yes" if same else "no",
            ]
        )
    return found


def _names(heads: list[list[int]]) -> str:
    return ", ".join(f"L{layer}.H{head}" for layer, head in heads) or "none"


def _points(ends: list[float]) -> str:
    value, low, high = (100 * each for each in ends)
    return f"{value:+.1f} points, {low:+.1f} to {high:+.1f}"


if __name__ == "__main__":
    benchmark(QUESTION, run)
