"""Write descriptions of classes with a language model, measure them beside the untrained model's, and save them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headspan.config import AUTO
from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.quality_table import BEST_OF
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.descriptions.saved import KIND, save_descriptions
from headspan.describe.policy.policy import Policy
from headspan.describe.policy.tokens import TOKENS
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.prompts import every_prompt
from headspan.describe.training.trained import Trained, adapter_sha256
from headspan.describe.writing.entries import best_texts, class_rows, entries_of
from headspan.describe.writing.opening import open_reward, open_writer, trained_of
from headspan.describe.writing.prompting import zero_shot_figures
from headspan.describe.writing.quality import compared_with, quality_of
from headspan.describe.writing.samples import Samples, sample
from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.run.devices import named_devices
from headspan.store import results
from headspan.store.reader import Store
from headspan.store.taken_runs import refuse_made_differently

# Sampled descriptions of each question about a class.
SAMPLES = 16
# Descriptions that are written at the same time.
BATCH = 64
# What tells the random numbers of the descriptions from those of the untrained model.
_OWN, _UNTRAINED = range(2)
# The smallest values of settings; of others it is 1.
_LEAST = {"best_of": 0, "seed": 0}


def write(
    store: Store | str | Path | Reward,
    language_model: Trained | Policy | str | Path,
    *,
    run: str | None = None,
    classes: DescribedClasses | None = None,
    target: Target | None = None,
    questions: Sequence[str] | None = None,
    samples: int = SAMPLES,
    best_of: int = BEST_OF,
    tokens: int | None = None,
    seed: int = 0,
    batch: int = BATCH,
    device: str = AUTO,
    save: bool = False,
    overwrite: bool = False,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> Descriptions:
    """Write descriptions of every class with every question, greedy and sampled, and measure them.

    If a run is named, or with `save`, they are saved as `descriptions/<run>`; otherwise nothing is written. The same
    seed and batch give the same descriptions.

    Args:
        store: A store, open or as a path, or a reward, which has its classes and its target.
        language_model: What `train` wrote, as its folder or open, or any language model, which is then untrained: a
            policy, a folder, a `.gguf` file, or a repository of Hugging Face's hub.
        run: The name of the run; by default that of the language model or its folder.
        classes: What `described_classes` gave; by default those of the training, else the values of `class_name`.
        target: What is rewarded; by default as in the training.
        questions: Questions about a class, with `{c}` in its place; by default those of the training.
        samples: Sampled descriptions of each question about a class.
        best_of: Descriptions of each question about a class by the untrained model, whose rewards say what choosing
            the best of N reaches; at least as many as `samples`. 0 leaves the untrained model out.
        tokens: The largest number of tokens of a description; by default that of the training, else 32.
        seed: Decides the samples.
        batch: Descriptions that are written at the same time.
        device: auto, cpu or cuda:0.
        save: Whether they are saved although no run is named.
        overwrite: Whether a run of the same name with other descriptions is replaced.
        weights: The place of the weights of the store's model.
        on_progress: A listener.

    Raises:
        SettingsError: If settings cannot be used, or a class has no images.
        ModelError: If a model cannot be loaded, or a context is too short for the prompts.
        StoreError: If the store is damaged, or the run exists with other content.
        NotSavedError: If the store cannot be written; the error holds the descriptions.
    """
    _check(run=run, questions=questions, samples=samples, best_of=best_of, tokens=tokens, seed=seed, batch=batch)
    on = str(named_devices(device)[0])
    trained = trained_of(language_model)
    reward = open_reward(store, trained, classes, target, weights, on_progress)
    writer = open_writer(language_model, trained, on)
    policy, has_adapter = writer.policy, writer.policy.adapter is not None
    asked = tuple(questions or (trained.questions if trained else QUESTIONS))
    made: dict[str, Any] = {
        "model": policy.name,
        "adapter_sha256": adapter_sha256(policy.adapter) if policy.adapter else None,
        "target": reward.target,
        "classes": reward.classes.names,
        "classes_from": reward.classes.source,
        "questions": asked,
        "seed": seed,
    }
    if run is not None or save:
        settings = made | {"target": reward.target.as_json()}
        refuse_made_differently(reward.store, KIND, run or writer.run, settings, overwrite)
    rows = every_prompt(reward.classes.names, asked)
    longest = tokens or (trained.settings.tokens if trained else TOKENS)

    def draw(stage: str, count: int, stream: int, **how: Any) -> Samples:
        how |= {"tokens": longest, "batch": batch, "seed": (seed, stream), "stage": stage}
        return sample(policy, rows, reward, count, **how, on_progress=on_progress)

    every = max(samples, best_of)
    greedy = draw("greedy", 1, _OWN, greedy=True)
    # The descriptions of an untrained model are its own baseline.
    drawn = draw("descriptions", samples if has_adapter else every, _OWN)
    own = drawn.first(samples)
    figures = quality_of(own, greedy, seed)
    sets, best = {"zero_shot": own}, {}
    if best_of:
        untrained = draw("untrained", every, _UNTRAINED, untrained=True) if has_adapter else drawn
        figures |= compared_with(own, untrained, seed, has_adapter)
        best = best_texts(untrained, BEST_OF)
        if has_adapter:
            sets["untrained_zero_shot"] = untrained.first(samples)
    by_class = {name: _by_class(each, len(asked)) for name, each in sets.items()}
    figures |= zero_shot_figures(reward, by_class, reward.target.images)
    _note_cut(own, on_progress)
    found = Descriptions(
        run=run or writer.run,
        **made,
        **entries_of(own, greedy, rows),
        **best,
        quality=figures,
        training=trained.training if trained else {},
        log=trained.log if trained else {},
        class_rows=class_rows(reward.store, reward.classes),
    )
    if run is None and not save:
        return found
    return save_descriptions(reward.store, found, overwrite, on_progress)


def _check(run: str | None, questions: Sequence[str] | None, tokens: int | None, **numbers: int) -> None:
    """Raise SettingsError for settings that cannot be used."""
    if run is not None:
        results.check_run(run)
    if questions is not None and not questions:
        raise SettingsError("the list of questions is empty; give at least one, or leave it out for headspan's own")
    for name, value in {**numbers, "tokens": TOKENS if tokens is None else tokens}.items():
        least = _LEAST.get(name, 1)
        if value < least:
            raise SettingsError(f"{name} is {value}, but must be {least} or more")


def _by_class(samples: Samples, questions: int) -> list[tuple[str, ...]]:
    """The texts of each class, whose prompts follow each other."""
    each = questions * samples.rewards.shape[1]
    return [samples.texts[start : start + each] for start in range(0, len(samples.texts), each)]


def _note_cut(samples: Samples, on_progress: Listener) -> None:
    """Say how many descriptions the store's model may have read in part."""
    if cut := int(samples.cut.sum()):
        of = counted(samples.cut.size, "description")
        said = f"{cut:,} of {of} filled the context of the store's model, so their ends may have been cut"
        on_progress(Progress(NOTE, 1, 1, said))
