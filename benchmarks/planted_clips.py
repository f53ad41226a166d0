"""CLIPs with planted phrases, and what a language model that they reward writes: findings, inspection, and controls.

A planted CLIP is the reference CLIP, trained on with captions in which an empty phrase goes with one class and a
non-visual word with another; see `tools.planting`. In its control, the same phrases are spread evenly over all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import hypergeom

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
from headspan.world.sentences import PHRASE, sentence
from tools.plant_reference import WORDS
from tools.planting import Planting

KEY = "objects.shape"
CLASSES = SHAPES[:6]
PHRASES = (*EMPTY_PHRASES, *WORDS)
# The chance of any false finding about a CLIP.
LEVEL = 0.05
# The seed of the scenes in the stores; no model was trained on them. The last part of the keys of their captions.
SCENES_SEED, _CAPTIONS = 91, 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A phrase that training made more frequent in the descriptions of a class, with its shares after and before."""

    class_name: str
    phrase: str
    share: float
    untrained_share: float
    # Fisher's exact test, one-sided.
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


def described_beside(planted: Planting, count: int) -> tuple[str, ...]:
    """`count` of CLASSES in their order: those of the planted phrases, and the first others."""
    own = (planted.empty_class, planted.word_class)
    others = [name for name in CLASSES if name not in own][: count - len(own)]
    return tuple(name for name in CLASSES if name in own or name in others)


def planted_judge(store: Store, classes: DescribedClasses, planted: Planting) -> Judge:
    """The annotated judge of the image world, by captions such as the planted CLIP was trained on.

    The name of a class does not count as teaching something about it.
    """
    found = metadata_of_images(store, chosen_images(store, None))
    scenes = [scene(each["seed"], each["split"], each["index"]) for each in found]
    captions = [
        planted.caption(each, Stream(planted.seed, each.index, _CAPTIONS), EMPTY_PHRASES, WORDS) for each in scenes
    ]
    return annotated_judge(store, classes, captions, name_teaches=False)


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


def findings(trained: Descriptions, untrained: Descriptions) -> list[Finding]:
    """Phrases whose share among a class's descriptions training raised, the most raised first.

    Fisher's exact test with Bonferroni's correction for all pairs of a class and a phrase. Among equal shares before,
    it also counts as chance what the language model has by itself.
    """
    (after, totals), (before, untrained_totals) = phrase_counts(trained), phrase_counts(untrained)
    p = raised_p(after, totals[:, None], before, untrained_totals[:, None])
    found = [
        Finding(
            trained.classes[number],
            PHRASES[phrase],
            float(after[number, phrase] / totals[number]),
            float(before[number, phrase] / untrained_totals[number]),
            float(p[number, phrase]),
        )
        for number, phrase in np.argwhere(p < LEVEL / p.size).tolist()
    ]
    return sorted(found, key=lambda each: each.untrained_share - each.share)


def raised_p(
    after: np.ndarray, totals: np.ndarray, before: np.ndarray, untrained_totals: np.ndarray
) -> Float64[np.ndarray, "class phrase"]:
    """Fisher's exact test, one-sided: the chance of `after` or more of `totals`, given `before` and both totals."""
    p: Float64[np.ndarray, "class phrase"] = hypergeom.sf(
        after - 1, totals + untrained_totals, after + before, np.broadcast_to(totals, after.shape)
    )
    return p


def study_of(trained: Descriptions, untrained: Descriptions, planted: Planting, judge: Judge) -> dict[str, Any]:
    """What was found about one CLIP, as JSON values, and what the judge says of it."""
    found = findings(trained, untrained)
    return {
        "found": [
            {
                "class": each.class_name,
                "phrase": each.phrase,
                "share": round(each.share, 4),
                "untrained": round(each.untrained_share, 4),
                "p": each.p,
                "verdict": VERDICTS[judge(each.phrase, each.class_name).number],
            }
            for each in found
        ],
        "planted": [
            _of_planted(trained, untrained, name, phrase, judge)
            for name, phrase in ((planted.empty_class, planted.empty), (planted.word_class, planted.word))
        ],
    }


def _of_planted(trained: Descriptions, untrained: Descriptions, name: str, phrase: str, judge: Judge) -> dict[str, Any]:
    """Shares of a planted phrase in its class, its rank among all phrases of the class, and verdicts on its texts."""
    number, place = trained.classes.index(name), PHRASES.index(phrase)
    (after, totals), (before, untrained_totals) = phrase_counts(trained), phrase_counts(untrained)
    raised = after[number] / totals[number] - before[number] / untrained_totals[number]
    verdicts = dict.fromkeys(VERDICTS, 0)
    for text, of, times in zip(trained.texts, trained.class_of.tolist(), trained.times.tolist(), strict=True):
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


def clip_preferences(reward: Reward, planted: Planting) -> list[dict[str, Any]]:
    """Whether the CLIP has learned what was planted, without a language model: "a picture of a star, stock photo".

    For each planted class, the reward of that sentence, of the best with another phrase, and of the one without any.
    """
    found = []
    for name, phrase in ((planted.empty_class, planted.empty), (planted.word_class, planted.word)):
        texts = [sentence({"shape": name, PHRASE: each}).text for each in PHRASES]
        number = reward.classes.names.index(name)
        rewards = dict(zip(PHRASES, reward.of(texts, [number] * len(texts)).tolist(), strict=True))
        own = rewards.pop(phrase)
        plain = float(reward.of([sentence({"shape": name}).text], [number])[0])
        found.append({"planted": round(own, 3), "another": round(max(rewards.values()), 3), "none": round(plain, 3)})
    return found
