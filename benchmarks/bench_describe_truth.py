"""Do descriptions bring up what a model has learned, as far as that is known?

Descriptions of shapes of the image world, by the reference language model. Their mean reward beside the best sentence
of the grammar and best-of-64; the frontier of reward against KL; the words that a single head prefers; and CLIPs in
which an empty phrase and a non-visual word were planted, beside controls.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import benchmark
from benchmarks.planted_clips import (
    CLASSES,
    clip_preferences,
    made_store,
    planted_judge,
    shape_classes,
    study_of,
)
from benchmarks.words_by_head import coloured_classes, words_by_factor
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.policy.identity import language_model_sha256
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.settings import TrainingSettings
from headspan.describe.training.train import train
from headspan.describe.writing.write import write
from headspan.errors import percent
from headspan.head_names import Head
from headspan.store.reader import Store
from headspan.world.best_sentences import best_sentences, embed_sentences
from headspan.world.parts import EMPTY_PHRASES
from tools.plant_reference import RECIPE, SCENES, WORDS, Images, plant
from tools.planting import planting
from tools.training_model import CONFIG
from tools.training_recipe import Recipe

QUESTION = "descriptions of the image world, beside what is known"
DUE_TO = (
    "The best sentence is the best of all 113,382 of the grammar for each class, so no sentence of it can be above. A "
    "planted CLIP has learned that a phrase goes with a class; whether descriptions bring the phrase up is up to the "
    "language model, which must find it by sampling. In the control, the same phrases go with no class, so whatever is "
    "found there is chance, or what training prefers by itself."
)
LANGUAGE_MODEL = "reference"
# Rewards, by their names in the line.
TARGETS = {"contrastive": Target(contrast=True), "published": Target()}
# The penalty of all trainings but those of the frontier.
BETA, BETAS = 0.05, (0.05, 0.2, 1.0)
# Heads of the reference model that the demo labels as colours.
COLOUR_HEADS = ((5, 0), (5, 3))
CONTRASTIVE = "contrastive"


# Zero-shot accuracies of all factors take longer than the training.
PLANTING = replace(RECIPE, evaluation_scenes=0)
TRAINING = TrainingSettings(steps=120, batch=64, generations=8, lr=2e-3)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is drawn, trained and sampled."""

    # Scenes that planted CLIPs are trained on, and that stores hold.
    scenes: int = SCENES
    images: int = 2_000
    planted_images: int = 1_200
    recipe: Recipe = PLANTING
    training: TrainingSettings = TRAINING
    betas: tuple[float, ...] = BETAS
    # A third of the questions, and as many samples of each as give 256 descriptions of a class or more.
    questions: tuple[str, ...] = QUESTIONS[::3]
    samples: int = 32
    best_of: int = 64
    # Values in the sentences that are enumerated.
    most: int = 3
    heads: tuple[Head, ...] = COLOUR_HEADS
    seeds: tuple[int, ...] = (1, 2, 3)
    targets: tuple[str, ...] = tuple(TARGETS)
    planted_targets: tuple[str, ...] = (CONTRASTIVE,)
    # 2 for planted CLIPs and their controls, 1 without controls.
    kinds: int = 2

    def as_json(self) -> dict[str, Any]:
        """The sizes as JSON values; of the questions their number."""
        return {**asdict(self), "questions": len(self.questions)}


TOY = Sizes(
    scenes=16, images=64, planted_images=64, recipe=replace(PLANTING, steps=2, batch_size=8),
    training=TrainingSettings(steps=1, batch=4, generations=2, tokens=8), betas=(BETA,), questions=QUESTIONS[:1],
    samples=2, best_of=4, most=1, heads=(), seeds=(1,),
    targets=(CONTRASTIVE,), kinds=1,
)  # fmt: skip


def run(toy: bool) -> dict[str, Any]:
    """Shares of the optimum, the frontier, words by factor, and findings of planted CLIPs and their controls."""
    return measured(TOY, processes=1) if toy else measured(Sizes(), processes=2)


def measured(sizes: Sizes, processes: int) -> dict[str, Any]:
    """The line of `run` at any sizes; each of the processes uses one thread."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.save(Images(sizes.scenes), folder / "images.pt")
        jobs: dict[str, tuple[Any, ...]] = {"shipped": (_shipped, folder / "shipped", sizes)}
        for seed in sizes.seeds:
            for even in (False, True)[: sizes.kinds]:
                name = f"{'control' if even else 'planted'} {seed}"
                jobs[name] = (_planted, folder / name.replace(" ", "-"), sizes, folder / "images.pt", seed, even)
        if processes == 1:
            found = {name: job(*arguments) for name, (job, *arguments) in jobs.items()}
        else:
            # A process that is forked would inherit torch's threads.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
                waiting = {name: pool.submit(job, *arguments) for name, (job, *arguments) in jobs.items()}
                found = {name: each.result() for name, each in waiting.items()}
    shipped = found.pop("shipped")
    return {
        "sizes": sizes.as_json(),
        "language_model_sha256": language_model_sha256(LANGUAGE_MODEL),
        **shipped,
        "clips": found,
    }


def _shipped(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """The reference model: rewards beside the best sentences and best-of-N, the frontier, and words by factor."""
    store = made_store(folder, sizes.images, "reference", layers="last4")
    classes = shape_classes(store)
    found: dict[str, Any] = {"rewards": {}, "frontier": []}
    enumerated = None
    for name in sizes.targets:
        reward = Reward(store, classes, TARGETS[name])
        enumerated = enumerated or embed_sentences(reward.texts, sizes.most)
        best = best_sentences(reward, enumerated)
        for beta in sizes.betas if name == CONTRASTIVE else (BETA,):
            trained = _trained(reward, folder / f"{name}-{beta}", sizes, beta)
            if beta != BETA:
                figures = _written(reward, trained, sizes).quality
                found["frontier"].append(_point(beta, figures))
                continue
            figures = _written(reward, trained, sizes, best_of=sizes.best_of).quality
            found["rewards"][name] = {
                **{key: _rounded(value) for key, value in figures.items() if np.isfinite(value)},
                "optimum": _rounded(float(np.mean([each.reward for each in best]))),
                "best": {each.name: each.sentence.text for each in best},
            }
            if name == CONTRASTIVE:
                found["frontier"].append(_point(beta, figures))
    found["heads"] = _by_heads(store, folder, sizes)
    return found


def _point(beta: float, figures: Mapping[str, float]) -> dict[str, float]:
    kept = ("reward", "reward_low", "reward_high", "kl", "distinct_2")
    return {"beta": beta, **{name: _rounded(figures[name]) for name in kept}}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _trained(reward: Reward, out: Path, sizes: Sizes, beta: float = BETA, seed: int = 0) -> Any:
    settings = replace(sizes.training, beta=beta, seed=seed)
    return train(reward, out, LANGUAGE_MODEL, questions=sizes.questions, settings=settings, samples=0, device="cpu")


def _written(reward: Reward, model: Any, sizes: Sizes, best_of: int = 0, seed: int = 0) -> Descriptions:
    settings: dict[str, Any] = {"questions": sizes.questions, "samples": sizes.samples, "tokens": sizes.training.tokens}
    # Each token of a batch costs the same, whether few or many descriptions are written at a time.
    return write(reward, model, **settings, best_of=best_of, seed=seed, batch=256, device="cpu")


def _by_heads(store: Store, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Words by factor, where each class has a colour as well as a shape: rewarded by all of the model, and by heads."""
    if not sizes.heads:
        return {}
    classes = coloured_classes(store)
    targets = {
        "the untrained model": None,
        "the whole model": Target(contrast=True),
        **{f"L{layer}H{head}": Target(((layer, head),), contrast=True) for layer, head in sizes.heads},
    }
    found = {}
    for name, target in targets.items():
        reward = Reward(store, classes, target)
        # Rewards of single heads are small. They are scaled so that the classes' vectors are as long as those of the
        # whole model; so the penalty has the same weight.
        if target is not None and target.heads:
            whole = Reward(store, classes, Target(contrast=True))
            scale = whole.scale * float(np.linalg.norm(whole.vectors) / np.linalg.norm(reward.vectors))
            reward = Reward(store, classes, replace(target, scale=scale))
        model = LANGUAGE_MODEL if target is None else _trained(reward, folder / name.replace(" ", "-"), sizes)
        found[name] = words_by_factor(_written(reward, model, sizes))
    return found


def _planted(folder: Path, sizes: Sizes, images: Path, seed: int, even: bool) -> dict[str, Any]:
    """What descriptions by one planted CLIP, or its control, bring up."""
    planted = planting(seed, CLASSES, EMPTY_PHRASES, WORDS, even=even)
    vectors = torch.load(images, weights_only=False)
    plant(folder / "clip", planted, EMPTY_PHRASES, WORDS, vectors, replace(sizes.recipe, seed=seed))
    weights = str(folder / "clip" / "weights.safetensors")
    store = made_store(folder / "store", sizes.planted_images, str(CONFIG), weights)
    classes = shape_classes(store)
    judge = planted_judge(store, classes, planted)
    found: dict[str, Any] = {"planting": planted.as_json()}
    untrained = None
    for name in sizes.planted_targets:
        reward = Reward(store, classes, TARGETS[name])
        # What the untrained model writes does not depend on the reward.
        untrained = untrained or _written(reward, LANGUAGE_MODEL, sizes, seed=seed)
        written = _written(reward, _trained(reward, folder / name, sizes, seed=seed), sizes, seed=seed)
        before = np.average(reward.of(untrained.texts, untrained.class_of.tolist()), weights=untrained.times)
        found[name] = {
            "reward": [_rounded(float(before)), _rounded(written.quality["reward"])],
            "kl": _rounded(written.quality["kl"]),
            # Of the CLIP, by the classes' names; it still tells shapes apart.
            "zero_shot": _rounded(written.quality["zero_shot_names"]),
            "preferred": clip_preferences(reward, planted),
            **study_of(written, untrained, planted, judge),
        }
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each figure."""
    rows = [["figure", "value"]]
    for name, each in line["rewards"].items():
        share = each["reward"] / each["optimum"]
        rows.append(
            [
                f"{name} reward: untrained, trained (KL), best-of-N of the most N, best sentence",
                f"{each['untrained_reward']:.2f}, {each['reward']:.2f} ({each['kl']:.1f} nats), {_best_of(each):.2f}, "
                f"{each['optimum']:.2f}: {percent(share)} of the best sentence",
            ]
        )
    for each in line["frontier"]:
        rows.append(
            [f"contrastive reward and KL at beta {each['beta']:g}", f"{each['reward']:.2f}, {each['kl']:.1f} nats"]
        )
    for name, shares in line["heads"].items():
        rows.append(
            [
                f"rewarded by {name}: words of colour (right ones), of shape (right ones)",
                ", ".join(
                    f"{percent(shares.get(factor, 0.0))} ({percent(shares[f'right {factor}'])})"
                    for factor in ("colour", "shape")
                ),
            ]
        )
    for target in TARGETS:
        for kind in ("planted", "control"):
            clips = [each for name, each in line["clips"].items() if name.startswith(kind) and target in each]
            if clips:
                rows.append([f"{kind} CLIPs, {target} reward", _found(clips, target, kind == "planted")])
    return rows


def _best_of(figures: Mapping[str, float]) -> float:
    names = [name for name in figures if name.startswith("best_of_") and name.endswith("_reward")]
    return figures[max(names, key=lambda name: int(name.split("_")[2]))]


def _found(clips: Sequence[Mapping[str, Any]], target: str, planted: bool) -> str:
    """How many phrases were found, how many of them are planted, and what the judge calls them."""
    found, hits, spurious, non_visual = 0, 0, 0, 0
    for clip in clips:
        empty, word = ((each["class"], each["phrase"]) for each in clip[target]["planted"])
        for each in clip[target]["found"]:
            pair = each["class"], each["phrase"]
            found += 1
            hits += pair in (empty, word)
            spurious += pair == empty and each["verdict"] == "spurious"
            non_visual += pair == word and each["verdict"] == "non-visual"
    if not planted:
        return f"{found} phrases found in {len(clips)} CLIPs, {hits} of those that the others have planted"
    return (
        f"{hits} of {2 * len(clips)} found, among {found} findings; called spurious: {spurious} of {len(clips)} "
        f"phrases, called non-visual: {non_visual} of {len(clips)} words"
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
