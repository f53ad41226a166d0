"""CLIPs with planted phrases, and what a language model that they reward writes: findings, inspection, and controls.

A planted CLIP is the reference CLIP, trained on with captions in which an empty phrase goes with one class and a
non-visual word with another; see `tools.planting`. In its control, the same phrases are spread evenly over all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import hypergeom

from benchmarks.exact_optimum import ExactOptimum
from headspan.config import PrecomputeSettings
from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.descriptions.result import VERDICTS, Descriptions
from headspan.describe.inspecting.verdict import Judge
from headspan.describe.rewards.reward import Reward
from headspan.run.precompute import precompute
from headspan.store.reader import Store
from headspan.store.selection import chosen_images
from headspan.tasks.truths import metadata_of_images
from headspan.world import Stream, scene, write_world_shards
from headspan.world.annotated_judge import annotated_judge
from headspan.world.factors import SHAPES
from headspan.world.parts import EMPTY, EMPTY_PHRASES, NON_VISUAL, parts_of
from headspan.world.sentences import PHRASE, Sentence, sentence
from tools.plant_reference import WORDS
from tools.planting import Planting

KEY = "objects.shape"
CLASSES = SHAPES[:6]
PHRASES = (*EMPTY_PHRASES, *WORDS)
# The chance of any false finding about a CLIP.
LEVEL = 0.05
# A CLIP prefers a phrase for a class if it adds so much to the reward. In no control does any add more than 0.3.
LEAST_ADDED = 0.5
# What a phrase adds to a reward, by class and phrase.
Added = dict[str, dict[str, float]]
# The seed of the scenes in the stores; no model was trained on them. The last part of the keys of their captions.
SCENES_SEED, _CAPTIONS = 91, 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A phrase that a class's descriptions hold more often than other classes', and than the untrained model's."""

    class_name: str
    phrase: str
    # In the descriptions of the class, in those of the other classes, and in the untrained model's of the class.
    share: float
    other_share: float
    untrained_share: float
    # The larger p of both comparisons, by Fisher's exact test, one-sided.
    p: float


def made_store(folder: Path, images: int, model: str, pretrained: str | None = None, layers: str = "last1") -> Store:
    """A store of scenes of the image world by a model."""
    shards = write_world_shards(folder / "shards", images, SCENES_SEED)
    out = folder / "run.zarr"
    precompute(
        PrecomputeSettings(
            shards=(shards,), out=str(out), model=model, pretrained=pretrained, layers=layers, emit=("heads",)
        )
    )
    return Store(out)


def shape_classes(store: Store, names: Sequence[str] = CLASSES) -> DescribedClasses:
    """The classes that are described: shapes of the main object."""
    return described_classes(store, key=KEY, names=names)


def planted_judge(store: Store, classes: DescribedClasses, planted: Planting) -> Judge:
    """The annotated judge of the image world, by captions such as the planted CLIP was trained on."""
    found = metadata_of_images(store, chosen_images(store, None))
    scenes = [scene(each["seed"], each["split"], each["index"]) for each in found]
    captions = [
        planted.caption(each, Stream(planted.seed, each.index, _CAPTIONS), EMPTY_PHRASES, WORDS) for each in scenes
    ]
    return annotated_judge(store, classes, captions)


def phrases_in(text: str) -> set[str]:
    """The empty and non-visual phrases that a text holds, whole or in part."""
    return {part.value for part in parts_of(text) if part.kind in (EMPTY, NON_VISUAL)}


def phrase_counts(found: Descriptions) -> tuple[Int64[np.ndarray, "class phrase"], Int64[np.ndarray, " class"]]:
    """How many sampled descriptions of each class hold each of PHRASES, and how many descriptions there are."""
    counts = np.zeros((len(found.classes), len(PHRASES)), np.int64)
    for text, number, times in zip(found.texts, found.class_of.tolist(), found.times.tolist(), strict=True):
        for phrase in phrases_in(text):
            counts[number, PHRASES.index(phrase)] += times
    totals = np.bincount(found.class_of, weights=found.times, minlength=len(found.classes)).astype(np.int64)
    return counts, totals


def findings(written: Descriptions, untrained: Descriptions) -> list[Finding]:
    """Phrases that are more frequent in a class's descriptions than they were, and than in other classes' descriptions.

    Both comparisons must pass Fisher's exact test, with Bonferroni's correction for all pairs of a class and a phrase.
    The first one leaves out what the language model has by itself, the second one what a reward prefers of any class.
    Sorted by how much more frequent they are than before, the most first.
    """
    (after, totals), (before, untrained_totals) = phrase_counts(written), phrase_counts(untrained)
    others, other_totals = after.sum(axis=0) - after, totals.sum() - totals
    p = np.maximum(
        raised_p(after, totals[:, None], before, untrained_totals[:, None]),
        raised_p(after, totals[:, None], others, other_totals[:, None]),
    )
    found = [
        Finding(
            written.classes[number],
            PHRASES[phrase],
            float(after[number, phrase] / totals[number]),
            float(others[number, phrase] / other_totals[number]),
            float(before[number, phrase] / untrained_totals[number]),
            float(p[number, phrase]),
        )
        for number, phrase in np.argwhere(p < LEVEL / p.size).tolist()
    ]
    return sorted(found, key=lambda each: each.untrained_share - each.share)


def best_in_groups(drawn: Descriptions, count: int, seed: int) -> Descriptions:
    """What best-of-N writes: of each `count` samples of a prompt, in random groups, the one with the largest reward."""
    random = np.random.default_rng(seed)
    times = np.zeros_like(drawn.times)
    prompts = drawn.class_of * len(drawn.questions) + drawn.question_of
    for prompt in np.unique(prompts):
        places = np.flatnonzero(prompts == prompt)
        samples = random.permutation(np.repeat(places, drawn.times[places]))
        groups = samples[: len(samples) // count * count].reshape(-1, count)
        best = groups[np.arange(len(groups)), drawn.rewards[groups].argmax(axis=1)]
        np.add.at(times, best, 1)
    return replace(drawn, times=times)


def drawn_from(
    optimum: ExactOptimum,
    beta: float,
    sentences: Sequence[Sentence],
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    count: int,
    seed: int,
) -> Descriptions:
    """`count` descriptions of each prompt of `rows` by the best model for a penalty."""
    random = np.random.default_rng(seed)
    texts: list[str] = []
    found: dict[str, list[Any]] = {name: [] for name in ("class_of", "question_of", "times", "rewards")}
    for row, known, shares in zip(rows, optimum.prompts, optimum.shares(beta), strict=True):
        times = random.multinomial(count, shares / shares.sum())
        kept = np.flatnonzero(times)
        texts += [sentences[place].text for place in known.places[kept].tolist()]
        found["times"] += times[kept].tolist()
        found["rewards"] += known.rewards[kept].tolist()
        found["class_of"] += [row["class_number"]] * len(kept)
        found["question_of"] += [row["question_number"]] * len(kept)
    fields: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
    # The rest is not known, and no study needs it.
    fields |= {name: np.zeros(len(texts), bool) for name in ("greedy", "cut", "ended")}
    fields |= {"log_ratios": np.zeros(len(texts), np.float32), "texts": tuple(texts)}
    return Descriptions(
        run="optimum",
        model="",
        adapter_sha256=None,
        target=reward.target,
        classes=reward.classes.names,
        classes_from=reward.classes.source,
        questions=tuple(str(each) for each in range(len(rows))),
        **fields,
    )


def raised_p(
    after: np.ndarray, totals: np.ndarray, before: np.ndarray, untrained_totals: np.ndarray
) -> Float64[np.ndarray, "class phrase"]:
    """Fisher's exact test, one-sided: the chance of `after` or more of `totals`, given `before` and both totals."""
    p: Float64[np.ndarray, "class phrase"] = hypergeom.sf(
        after - 1, totals + untrained_totals, after + before, np.broadcast_to(totals, after.shape)
    )
    return p


def study_of(
    written: Descriptions, untrained: Descriptions, planted: Planting, judge: Judge, added: Added
) -> dict[str, Any]:
    """What was found about one CLIP, as JSON values, what the judge says of it, and what it adds to rewards."""
    found = findings(written, untrained)
    return {
        "found": [
            {
                "class": each.class_name,
                "phrase": each.phrase,
                "share": round(each.share, 4),
                "others": round(each.other_share, 4),
                "untrained": round(each.untrained_share, 4),
                "p": each.p,
                "adds": added[each.class_name][each.phrase],
                "verdict": VERDICTS[judge(each.phrase, each.class_name).number],
            }
            for each in found
        ],
        "planted": [
            _of_planted(written, untrained, name, phrase, judge)
            for name, phrase in ((planted.empty_class, planted.empty), (planted.word_class, planted.word))
        ],
    }


def _of_planted(written: Descriptions, untrained: Descriptions, name: str, phrase: str, judge: Judge) -> dict[str, Any]:
    """Shares of a planted phrase in its class, its rank among all phrases of the class, and verdicts on its texts."""
    number, place = written.classes.index(name), PHRASES.index(phrase)
    (after, totals), (before, untrained_totals) = phrase_counts(written), phrase_counts(untrained)
    raised = after[number] / totals[number] - before[number] / untrained_totals[number]
    verdicts = dict.fromkeys(VERDICTS, 0)
    for text, of, times in zip(written.texts, written.class_of.tolist(), written.times.tolist(), strict=True):
        if of == number and phrase in phrases_in(text):
            verdicts[VERDICTS[judge(text, name).number]] += times
    return {
        "class": name,
        "phrase": phrase,
        "share": round(float(after[number, place] / totals[number]), 4),
        "untrained": round(float(before[number, place] / untrained_totals[number]), 4),
        "others": round(float(np.delete(after[:, place], number).sum() / np.delete(totals, number).sum()), 4),
        "rank": int((raised > raised[place]).sum()) + 1,
        "verdicts": verdicts,
    }


def added_by_phrases(reward: Reward) -> Added:
    """How much a phrase adds to the reward of "a picture of a star", by class and phrase: what the CLIP has learned."""
    added: Added = {}
    for number, name in enumerate(reward.classes.names):
        texts = [sentence({"shape": name}).text, *(sentence({"shape": name, PHRASE: each}).text for each in PHRASES)]
        plain, *others = reward.of(texts, [number] * len(texts)).tolist()
        added[name] = {phrase: round(each - plain, 3) for phrase, each in zip(PHRASES, others, strict=True)}
    return added


def preferences(added: Added, planted: Planting) -> dict[str, Any]:
    """What the planted phrases add for their classes, their ranks in the class, and the number of all pairs."""
    pairs = ((planted.empty_class, planted.empty), (planted.word_class, planted.word))
    return {
        "adds": [added[name][phrase] for name, phrase in pairs],
        "rank": [sum(each > added[name][phrase] for each in added[name].values()) + 1 for name, phrase in pairs],
        "pairs": sum(map(len, added.values())),
    }
