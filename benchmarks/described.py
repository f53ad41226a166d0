"""The parts of the benchmark of descriptions: training beside what is known, words by head, and planted CLIPs.

Each takes the folder `work`, in which it keeps stores and planted CLIPs, and finds those of an earlier run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exact_optimum import NO_REWARD, exact_optimum
from benchmarks.planted_clips import (
    CLASSES,
    added_by_phrases,
    best_in_groups,
    drawn_from,
    made_store,
    planted_judge,
    preferences,
    shape_classes,
    study_of,
)
from benchmarks.words_by_head import best_colours, coloured_classes, words_by_factor
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.inspecting.verdict import Judge
from headspan.describe.policy.policy import open_policy
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.prompts import every_prompt
from headspan.describe.training.settings import PREFIX, PROMPT, TrainingSettings
from headspan.describe.training.train import train
from headspan.describe.writing.write import write
from headspan.head_names import Head
from headspan.store.reader import Store
from headspan.world.best_sentences import best_sentences, embed_sentences
from headspan.world.parts import EMPTY_PHRASES
from tools.plant_reference import RECIPE, SCENES, WORDS, Images, plant
from tools.planting import Planting, planting
from tools.training_model import CONFIG
from tools.training_recipe import Recipe

LANGUAGE_MODEL = "reference"
# Penalties whose optimum is known, the largest first; what lies between follows by interpolation.
OPTIMA = tuple(float(f"{beta:.3g}") for beta in np.geomspace(10, 0.1, 41))
# Samples of best-of-N whose reward and KL are known exactly.
COUNTS = tuple(float(f"{count:.4g}") for count in np.geomspace(1, 4096, 49))
# Rewards, by their names in the line.
TARGETS = {"contrastive": Target(contrast=True), "published": Target()}
# Heads of the reference model that the demo labels as colours.
COLOUR_HEADS = ((5, 0), (5, 3))
# Zero-shot accuracies of all factors take longer than the training.
PLANTING = replace(RECIPE, evaluation_scenes=0)
# Without dropout, log-probabilities at sampling are those of the loss; and the large gradients of the first steps, in
# which some descriptions miss their class, do not slow down the others.
TRAINING = TrainingSettings(
    baseline=PROMPT, steps=260, batch=288, generations=16, tokens=20, lr=4e-3, decay=0.6, dropout=0.0, adam_beta2=0.95,
    clip=0.2,
)  # fmt: skip
# What is particular to one class is rare among the model's own descriptions, and gone once the model has learned the
# same wording for all: so some are the untrained model's.
PLANTED_TRAINING = replace(TRAINING, baseline=PREFIX, steps=140, untrained=6)
# The subjects of these questions are habitats, moods and authors, moods and days, and styles, authors and days: between
# them, they ask for each kind of non-visual phrases.
PLANTED_QUESTIONS = tuple(QUESTIONS[number] for number in (10, 15, 16, 21))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is drawn, trained and sampled."""

    # Scenes that planted CLIPs are trained on, and that stores hold.
    scenes: int = SCENES
    images: int = 1_200
    planted_images: int = 1_200
    recipe: Recipe = PLANTING
    training: TrainingSettings = TRAINING
    planted_training: TrainingSettings = PLANTED_TRAINING
    # The penalties of the trainings of each target.
    betas: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: {"contrastive": (0.5, 0.2, 0.1)})
    heads_beta: float = 0.2
    planted_beta: float = 0.2
    questions: tuple[str, ...] = QUESTIONS[::9]
    planted_questions: tuple[str, ...] = PLANTED_QUESTIONS
    # Sampled descriptions of each question about a class, of the questions of planted CLIPs by the best model for the
    # penalty, and by untrained and trained models, which hold a planted phrase less often.
    samples: int = 64
    planted_samples: int = 96
    planted_written: int = 384
    # Samples that best-of-N chooses from.
    best_of: int = 256
    # Values in the sentences that are enumerated.
    most: int = 3
    # The same for planted CLIPs: sentences of three values take twenty times as long.
    planted_most: int = 2
    heads: tuple[Head, ...] = COLOUR_HEADS
    # Seed 1 was spent on choosing the settings.
    seeds: tuple[int, ...] = (2, 3, 4)
    # Untrained samples of which the best is taken, in the comparison without training.
    planted_best_of: int = 8
    # 2 for planted CLIPs and their controls, 1 without controls.
    kinds: int = 2

    def as_json(self) -> dict[str, Any]:
        """The sizes as JSON values; of questions their number."""
        numbers = {name: len(getattr(self, name)) for name in ("questions", "planted_questions")}
        return {**asdict(self), **numbers}


def rewarded(sizes: Sizes, name: str, beta: float, work: Path | None = None) -> dict[str, Any]:
    """A training on the reference model with one penalty, beside the best of N samples."""
    with _folder() as folder:
        store = _shipped(work or folder, sizes)
        reward = Reward(store, shape_classes(store), TARGETS[name])
        trained = _trained(reward, folder / "trained", sizes.training, sizes.questions, beta)
        figures = _written(reward, trained, sizes.questions, sizes, best_of=sizes.best_of).quality
        return {key: rounded(value) for key, value in figures.items() if np.isfinite(value)}


def best_possible(sizes: Sizes, name: str, work: Path | None = None) -> dict[str, Any]:
    """The best sentences for a reward, and the largest reward that any model can reach at some divergences."""
    with _folder() as folder:
        store = _shipped(work or folder, sizes)
        reward = Reward(store, shape_classes(store), TARGETS[name])
        enumerated = embed_sentences(reward.texts, sizes.most)
        best = best_sentences(reward, enumerated)
        rows = every_prompt(reward.classes.names, sizes.questions)
        optimum = exact_optimum(reward, enumerated, open_policy(LANGUAGE_MODEL), rows)
        return {
            "best_sentences": rounded(float(np.mean([each.reward for each in best]))),
            "best": {each.name: each.sentence.text for each in best},
            "covered": rounded(optimum.covered),
            "left_out": rounded(float(np.max([each.left_out for each in optimum.prompts]))),
            # Penalty, reward and KL, in the order of KL.
            "frontier": [[beta, *map(rounded, optimum.of(beta))] for beta in OPTIMA],
            # N, reward and KL of the best of N samples, exactly.
            "best_of": [[count, *map(rounded, optimum.best_of(count))] for count in COUNTS],
        }


def by_head(sizes: Sizes, head: Head | None, is_trained: bool = True, work: Path | None = None) -> dict[str, Any]:
    """Words by factor where each class has a colour as well as a shape: rewarded by all of the model, or by a head."""
    with _folder() as folder:
        store = _shipped(work or folder, sizes)
        classes = coloured_classes(store)
        reward = whole = Reward(store, classes, Target(contrast=True))
        if head is not None:
            reward = Reward(store, classes, Target((head,), contrast=True))
            # Rewards of single heads are small. They are scaled so that the classes' vectors are as long as those of
            # the whole model; so the penalty has the same weight.
            scale = whole.scale * float(np.linalg.norm(whole.vectors) / np.linalg.norm(reward.vectors))
            reward = Reward(store, classes, replace(reward.target, scale=scale))
        model: Any = LANGUAGE_MODEL
        if is_trained:
            model = _trained(reward, folder / "trained", sizes.training, sizes.questions, sizes.heads_beta)
        written = _written(reward, model, sizes.questions, sizes)
        figures = {name: rounded(written.quality[name]) for name in ("reward", "kl")}
        best = best_colours(reward)
        return {**figures, "best": best, **words_by_factor(written, best)}


def planted(sizes: Sizes, seed: int, even: bool, work: Path | None = None) -> dict[str, Any]:
    """What descriptions by one planted CLIP, or its control, bring up: after training, and as the best of N samples."""
    with _folder() as folder:
        what, reward, judge = _planted_clip(work or folder, sizes, seed, even)
        asked = sizes.planted_questions
        untrained = _written(reward, LANGUAGE_MODEL, asked, sizes, sizes.planted_written, seed=seed)
        trained = _trained(reward, folder / "trained", sizes.planted_training, asked, sizes.planted_beta, seed=seed)
        written = _written(reward, trained, asked, sizes, sizes.planted_written, seed=seed)
        best = best_in_groups(untrained, sizes.planted_best_of, seed)
        added = added_by_phrases(reward)
        return {
            "planting": what.as_json(),
            "reward": _mean_rewards({"untrained": untrained, "trained": written, "best": best}),
            "kl": rounded(written.quality["kl"]),
            # Of the CLIP, by the classes' names; it still tells shapes apart.
            "zero_shot": rounded(written.quality["zero_shot_names"]),
            "preferred": preferences(added, what),
            **study_of(written, untrained, what, judge, added),
            "best": study_of(best, untrained, what, judge, added),
        }


def planted_optimum(sizes: Sizes, seed: int, even: bool, work: Path | None = None) -> dict[str, Any]:
    """What the best model for the penalty brings up about a planted CLIP, or its control: nothing is trained."""
    with _folder() as folder:
        what, reward, judge = _planted_clip(work or folder, sizes, seed, even)
        enumerated = embed_sentences(reward.texts, sizes.planted_most)
        rows = every_prompt(reward.classes.names, sizes.planted_questions)
        optimum = exact_optimum(reward, enumerated, open_policy(LANGUAGE_MODEL), rows)
        untrained, best = (
            drawn_from(optimum, beta, enumerated.sentences, rows, reward, sizes.planted_samples, seed)
            for beta in (NO_REWARD, sizes.planted_beta)
        )
        added = added_by_phrases(reward)
        return {
            "planting": what.as_json(),
            "reward": _mean_rewards({"untrained": untrained, "optimum": best}),
            "kl": rounded(optimum.of(sizes.planted_beta)[1]),
            "preferred": preferences(added, what),
            **study_of(best, untrained, what, judge, added),
        }


def _planted_clip(work: Path, sizes: Sizes, seed: int, even: bool) -> tuple[Planting, Reward, Judge]:
    """A planted CLIP or its control: what was planted, its reward of all classes, and their judge."""
    what = planting(seed, CLASSES, EMPTY_PHRASES, WORDS, even=even)
    place = work / f"{'control' if even else 'planted'}-{seed}"
    weights = place / "clip" / "weights.safetensors"
    if not weights.is_file():
        images = Images(sizes.scenes)
        plant(place / "clip", what, EMPTY_PHRASES, WORDS, images, replace(sizes.recipe, seed=seed))
    store = _store(place / "store", sizes.planted_images, str(CONFIG), str(weights))
    classes = shape_classes(store)
    return what, Reward(store, classes, TARGETS["contrastive"]), planted_judge(store, classes, what)


def _mean_rewards(written: Mapping[str, Descriptions]) -> dict[str, float]:
    return {name: rounded(float(np.average(each.rewards, weights=each.times))) for name, each in written.items()}


def rounded(value: float) -> float:
    """Five digits of a number."""
    return float(f"{value:.5g}")


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is deleted at the end; within the block, one thread works, so numbers do not vary with cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
    finally:
        torch.set_num_threads(threads)


def _shipped(folder: Path, sizes: Sizes) -> Store:
    return _store(folder / "shipped", sizes.images, "reference", layers="last4")


def _store(folder: Path, *arguments: Any, **settings: Any) -> Store:
    """`made_store`, or the store that it has made in this folder before."""
    made = folder / "run.zarr"
    return Store(made) if made.exists() else made_store(folder, *arguments, **settings)


def _trained(
    reward: Reward, out: Path, training: TrainingSettings, questions: tuple[str, ...], beta: float, seed: int = 0
) -> Any:
    settings = replace(training, beta=beta, seed=seed)
    return train(reward, out, LANGUAGE_MODEL, questions=questions, settings=settings, samples=0, device="cpu")


def _written(
    reward: Reward,
    model: Any,
    questions: tuple[str, ...],
    sizes: Sizes,
    samples: int | None = None,
    best_of: int = 0,
    seed: int = 0,
) -> Descriptions:
    settings: dict[str, Any] = {"questions": questions, "samples": samples or sizes.samples, "best_of": best_of}
    # Each token of a batch costs the same, whether few or many descriptions are written at a time.
    return write(reward, model, **settings, tokens=sizes.training.tokens, seed=seed, batch=256, device="cpu")
